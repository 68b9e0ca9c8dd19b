"""The local recursion on Gaussian and product paths against exact log-marginals, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_problem import gaussian_problem, mixed_problem

from egm import bootstrap, random
from egm.paths import CenteredPath, LinearPath, MaskedPath, ProductPath, VarianceExplodingPath

KEY = jax.random.key(4)
LINEAR, EXPLODING = LinearPath(), VarianceExplodingPath(0.5, 4.0)
CENTERED = CenteredPath(EXPLODING, 3, 1)
T = np.array([0.15, 0.4, 0.7, 0.9])


def exact_g(problem):
    """log E_{q_{1|t}} exp(-E) = log p_t + log Z + D log alpha."""
    path = problem.path

    def g(x, t):
        return (
            problem.log_density(x, t) + problem.log_z + path.dimension(x.shape[-1]) * jnp.log(path.alpha(t))
        )

    return g


def target_at(path, boundary_g, x, t, num_steps, key=KEY):
    return jax.jit(lambda k, x, t: bootstrap.local_target(k, boundary_g, path, x, t, num_steps))(key, x, t)


@pytest.mark.parametrize("path, dim", [(LINEAR, 1), (EXPLODING, 2), (CENTERED, 3)], ids=str)
def test_the_error_is_of_second_order_in_the_step(x64, path, dim):
    """With an exact g; twice the steps divide the error by 4 (between 3 and 5 in the mean over states)."""
    problem = gaussian_problem(path, dim, 2, scale=1.3)
    g = exact_g(problem)
    boundary_g = bootstrap.relative_boundary(problem, g, path)
    t = jnp.asarray(np.repeat(T, 16))
    x = path.sample(KEY, problem.exact_samples(64), t)
    exact = g(x, t)
    errors = [np.mean(np.abs(target_at(path, boundary_g, x, t, n) - exact)) for n in (50, 100, 200)]
    assert errors[0] < 0.02
    assert all(3 < a / b < 5 for a, b in zip(errors, errors[1:])), errors
    # A step without the shift along the gradient keeps the value g_r(m): a clear bias of first order.
    still = np.mean(np.abs(g(x / path.alpha(t)[:, None], jnp.ones_like(t)) - exact))
    assert still > 20 * errors[0]


@pytest.mark.parametrize("path, dim", [(LINEAR, 2), (CENTERED, 3)], ids=str)
def test_exact_for_a_linear_g_and_at_the_end(x64, path, dim):
    """The mean of exp(a + b . x_r) over N(x_t / alpha, w I) is exp(a + b . x_t / alpha + w b^2 / 2)."""
    slope = path.project(jnp.array([0.3, -0.4, 0.2])[:dim])
    t = jnp.array([0.2, 0.5, 0.97, 1.0])
    x = path.project(jax.random.normal(KEY, (4, dim)))
    g = lambda x, t: 0.3 * t + x @ slope
    num_steps = 10
    came = target_at(path, g, x, t, num_steps)
    grid = path.times(num_steps)
    place = jnp.interp(t, grid, jnp.arange(num_steps + 1.0))
    r = jnp.interp(place + 1, jnp.arange(num_steps + 1.0), grid)
    scale = path.alpha(t) / path.alpha(r)
    variance = (path.variance(t) - scale**2 * path.variance(r)) / scale**2
    expected = 0.3 * r + (x / scale[:, None]) @ slope + 0.5 * variance * jnp.sum(slope**2)
    np.testing.assert_allclose(came, expected, rtol=1e-10)
    problem = gaussian_problem(path, dim, 2)
    wrong = bootstrap.relative_boundary(problem, lambda x, t: 7.0 + 0.0 * t, path)
    np.testing.assert_allclose(target_at(path, wrong, x, t, num_steps)[3], -problem(x)[3], rtol=1e-12)


def test_a_steep_g_stays_in_reach(x64):
    """The shift is at most a standard deviation's worth, so that a gradient of 1e8 gives finite targets."""
    x, t = jnp.ones((3, 2)), jnp.full(3, 0.5)
    for g in (lambda x, t: 1e8 * jnp.sum(x, axis=-1), lambda x, t: -1e8 * jnp.sum(x**2, axis=-1)):
        assert np.all(np.isfinite(target_at(EXPLODING, g, x, t, 20)))


def test_targets_of_a_shard_are_those_of_the_batch(x64):
    problem = gaussian_problem(EXPLODING, 2, 2)
    fn = jax.jit(lambda k, x, t: bootstrap.local_target(k, exact_g(problem), EXPLODING, x, t, 10))
    x, t = jax.random.normal(KEY, (8, 2)), jnp.linspace(0.1, 0.9, 8)
    keys = random.example_keys(KEY, 8)
    np.testing.assert_allclose(fn(keys[2:4], x[2:4], t[2:4]), fn(KEY, x, t)[2:4], rtol=1e-12)


def test_products_take_turns(x64):
    """Exact for the exact mixed g: on the tokens' turn to rounding, on the other's to second order."""
    problem = mixed_problem(EXPLODING, 2, 1)
    path, mixture = problem.path, problem.mixture

    def g(state, t):
        x, h = state["x"], state["h"]
        log_joint = jnp.where(problem._agrees(h), mixture.posterior(x, t)[0], -jnp.inf)
        hidden = jnp.sum(h == 2, axis=-1)
        return jax.nn.logsumexp(log_joint, axis=-1) + problem.log_z - hidden * jnp.log(2.0)

    boundary_g = bootstrap.relative_boundary(problem, g, path)
    n = 240
    t = jnp.asarray(np.tile(np.repeat(T, 4), n // 16))
    kinds = jnp.array([[2, 2], [0, 2], [2, 1], [1, 0]], jnp.int32)
    samples = problem.exact_samples(n)
    x_t = {"x": EXPLODING.sample(KEY, samples["x"], t), "h": jnp.tile(kinds, (n // 4, 1))}
    exact, errors = np.asarray(g(x_t, t)), []
    for num_steps in (40, 80):
        came = target_at(path, boundary_g, x_t, t, num_steps)
        errors.append(np.abs(np.asarray(came) - exact))
    tokens = errors[0] < 1e-12
    shown = np.all(np.asarray(x_t["h"]) < 2, axis=-1)
    assert not np.any(tokens[shown])
    # A fair coin among 180 states with a mask: 4 standard errors.
    assert abs(tokens[~shown].mean() - 0.5) < 4 * 0.5 / np.sqrt(180)
    np.testing.assert_array_equal(tokens, errors[1] < 1e-12)
    assert 3 < errors[0][~tokens].mean() / errors[1][~tokens].mean() < 5
    # At t = 1 the tokens alone are left, and then nothing.
    one = jnp.ones(n)
    np.testing.assert_allclose(target_at(path, boundary_g, x_t, one, 40), g(x_t, one), atol=1e-12)


def test_number_of_states():
    count = bootstrap.num_local_states
    assert count(MaskedPath(3), (5,)) == 3
    assert count(LINEAR, (4,)) == 9
    assert count(CENTERED, (3,)) == 5
    assert count(ProductPath({"x": LINEAR, "h": MaskedPath(2)}), {"x": (2,), "h": (7,)}) == 7
