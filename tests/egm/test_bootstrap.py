"""Bootstrapping: the boundary, the exact one-site recursion and the local generator, by enumeration."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm
from egm import bootstrap, paths

PROBLEM = contract.token_problem()
PATH = PROBLEM.path
X = jnp.asarray(PROBLEM.partial)
HIDDEN = np.asarray(X) == PATH.mask_token
KNOWN = ~HIDDEN.any(axis=-1)
KEY = jax.random.key(2)


@pytest.mark.parametrize("seed", [0, 1])
def test_local_target_is_exact_for_an_exact_g(x64, seed):
    """`PROBLEM` is NaN on a mask, so a finite target shows that E never saw one."""
    boundary_g = bootstrap.relative_boundary(PROBLEM, PROBLEM.g, PATH)
    t = jnp.linspace(0.01, 0.99, len(X))
    fn = jax.jit(lambda key, x, t: bootstrap.local_target(key, boundary_g, PATH, x, t))
    came = fn(jax.random.key(seed), X, t)
    np.testing.assert_allclose(came, PROBLEM.g(X), atol=1e-12)
    # The same numbers from the keys of a shard.
    keys = egm.random.example_keys(jax.random.key(seed), len(X))
    np.testing.assert_array_equal(fn(keys[5:9], X[5:9], t[5:9]), came[5:9])


def test_local_target_draws_masked_sites_uniformly():
    """A g that depends on the site it differs at tells which one was drawn."""
    n = 4000
    x = jnp.tile(jnp.array([[3, 1, 3]]), (n, 1))
    g = lambda x, t: jnp.where(x[:, 0] != 3, 0.0, 1.0)  # 0 where site 0 was drawn, 1 for site 2
    came = np.asarray(bootstrap.local_target(KEY, g, PATH, x, jnp.full(n, 0.5)))
    assert set(np.round(came, 5)) == {0.0, 1.0}
    assert abs(came.mean() - 0.5) < 4 * 0.5 / np.sqrt(n)  # 4 standard errors


def test_boundary(x64):
    """-E at r = 1 and where no mask is left; g + log Z_{1|r} elsewhere; E never sees a mask."""
    seen = []

    def energy(x):
        jax.debug.callback(lambda states: seen.append(np.asarray(states)), x)
        return PROBLEM(x)

    net = lambda x, t: jnp.sum(x, axis=-1) * 0.3 + t  # any network
    phi = bootstrap.boundary(energy, net, PATH)
    r = jnp.full(len(X), 0.4)
    came = np.asarray(phi(X, r))
    log_z = PATH.log_normalizer(X, 0.4, 1.0)
    np.testing.assert_allclose(came[~KNOWN], (net(X, r) + log_z)[~KNOWN])
    states = jnp.asarray(PROBLEM.states)
    np.testing.assert_allclose(came[KNOWN], -PROBLEM(states) + 3 * np.log(0.4))
    np.testing.assert_allclose(phi(states, jnp.ones(27)), -PROBLEM(states))
    exact = bootstrap.boundary(energy, PROBLEM.g, PATH)
    np.testing.assert_allclose(exact(X, r), PROBLEM.phi(X, r), atol=1e-12)
    jax.effects_barrier()
    assert len(seen) == 3
    assert all(np.all(x < PATH.mask_token) for x in seen)
    # Where E stands nowhere it is not evaluated.
    phi(X[~KNOWN], r[~KNOWN])
    jax.effects_barrier()
    assert len(seen) == 3
    # At r = 0 all masks is the only state, with log p~_0 = psi; no 0 log 0 appears.
    np.testing.assert_allclose(exact(X[-1:], jnp.zeros(1)), PROBLEM.psi(X[-1:]), atol=1e-12)
    assert not np.any(np.isnan(exact(X, jnp.zeros(len(X)))))


def test_terminal():
    states = jnp.asarray(PROBLEM.states)
    np.testing.assert_array_equal(bootstrap.terminal(PROBLEM)(states, jnp.ones(27)), -PROBLEM(states))


def test_gradients_are_finite_through_both_branches():
    """In the parameters of g, of E, and for a Gaussian path in the state."""
    r = jnp.where(jnp.arange(len(X)) % 2 == 0, 1.0, 0.3)
    x = jnp.where(((r == 1) & ~KNOWN)[:, None], 0, X)

    def total(parameters):
        net = lambda x, t: parameters["g"] * jnp.sqrt(1.0 - t)  # a slope of infinity at t = 1
        energy = lambda x: PROBLEM.energy_from(parameters["table"], x)
        phi = bootstrap.boundary(energy, net, PATH)
        return jnp.sum(phi(x, r))

    table = jnp.asarray(PROBLEM.table, jnp.float32)
    gradient = jax.grad(total)({"g": jnp.float32(1), "table": table})
    inside = (r < 1) & ~KNOWN
    np.testing.assert_allclose(gradient["g"], np.sum(inside) * np.sqrt(0.7), rtol=1e-5)
    assert np.all(np.isfinite(gradient["table"]))
    np.testing.assert_allclose(np.sum(gradient["table"]), -np.sum(~inside), rtol=1e-5)


def test_gradients_in_the_state_of_a_gaussian_path():
    path = paths.VarianceExplodingPath(0.3, 3.0)
    energy = lambda x: jnp.sum(jnp.abs(x) ** 3, axis=-1)
    net = lambda x, t: -jnp.sum(x**2, axis=-1) / jnp.maximum(1.0 - t, 1e-6)
    phi = bootstrap.boundary(energy, net, path)
    x, r = jnp.array([[1.0, -2.0], [0.5, 3.0]]), jnp.array([1.0, 0.5])
    gradient = jax.grad(lambda x: jnp.sum(phi(x, r)))(x)
    np.testing.assert_allclose(gradient, [[-3.0, 12.0], [-2.0, -12.0]], rtol=1e-5)


@pytest.mark.parametrize("which", ["g", "phi"])
def test_local_generator_is_the_exact_posterior(x64, which):
    """Of phi and of g alike; the full route and the route by sites agree."""
    model = getattr(PROBLEM, which)
    generator = bootstrap.LocalGenerator(PATH, lambda x, t: model(x, t))
    t = jnp.linspace(0.05, 0.95, len(X))
    full, exact = jax.jit(generator.__call__)(X, t), PROBLEM.denoiser(X)
    np.testing.assert_allclose(full, exact, atol=1e-12)
    for site in range(PROBLEM.sites):
        here = generator.at_sites(X, t, jnp.full(len(X), site))
        hidden = HIDDEN[:, site]
        np.testing.assert_allclose(here[hidden], exact[:, site][hidden], atol=1e-12)


def test_local_generator_needs_no_samples_and_one_call():
    calls = []

    def model(x, t):
        calls.append((x.shape, t.shape))
        return PROBLEM.g(x)

    generator = bootstrap.LocalGenerator(PATH, model)
    generator(X[:5], jnp.full(5, 0.5))
    generator.at_sites(X[:5], jnp.full(5, 0.5), jnp.zeros(5, int))
    assert calls == [((45, 3), (45,)), ((15, 3), (15,))]  # L V N and V N states
    assert hash(generator) == hash(bootstrap.LocalGenerator(PATH, model))


def test_with_tokens():
    x = jnp.array([[3, 1, 3], [0, 3, 2]])
    came = bootstrap.with_tokens(x, jnp.array([0, 1]), 3)
    np.testing.assert_array_equal(came[2], [[2, 1, 3], [0, 2, 2]])
    assert came.shape == (3, 2, 3)
    assert came.dtype == x.dtype


def test_intermediate_time():
    t = jnp.array([0.0, 0.95, 0.999, 1.0])
    np.testing.assert_allclose(bootstrap.intermediate_time(t, 0.01), [0.01, 0.96, 1.0, 1.0])
    assert bootstrap.intermediate_time(t, 0.01)[2] == 1
    np.testing.assert_array_equal(bootstrap.intermediate_time(t, 1), jnp.ones(4))
