"""The two kernels of a diffusion with any coefficient: exact on normal targets, close in small steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_problem import gaussian_problem

import egm
from egm.paths import CenteredPath, LinearPath, VarianceExplodingPath, VariancePreservingPath
from egm.processes import DiffusionProcess, FlowProcess, SuperpositionProcess
from egm.typing import Gaussian

KEY = jax.random.key(5)
LINEAR, EXPLODING = LinearPath(), VarianceExplodingPath(0.5, 6.0)
PATHS = [LINEAR, EXPLODING, VariancePreservingPath(0.5, 6.0), CenteredPath(EXPLODING, 3, 1)]


@pytest.mark.parametrize("path", PATHS, ids=["linear", "exploding", "preserving", "centred"])
@pytest.mark.parametrize("coefficient", [0.0, 0.3, 0.5**0.5, 1.0, 2.0, None])
def test_a_normal_target_has_no_error_whatever_the_step(x64, path, coefficient):
    """log_ratio = log p_t(x_t) - log p_r(x_r) for each pair, the last step included; N(m, s^2 I)."""
    problem = gaussian_problem(path, 3, components=1, record="variance")
    process = DiffusionProcess(path, coefficient)
    for t, r in ((0.2, 0.25), (0.3, 0.8), (0.6, 1.0)):
        t, r = jnp.full(6, t), jnp.full(6, r)
        x_t = path.sample(jax.random.key(1), problem.exact_samples(6), t)
        x_r, ratio = process.step(KEY, x_t, problem.exact_generator, t, r)
        expected = problem.log_density(x_t, t) - problem.log_density(x_r, r)
        np.testing.assert_allclose(ratio, expected, atol=1e-9)
        # Any pair of states, not only those that are likely together.
        x_r = path.sample(jax.random.key(2), problem.exact_samples(6, 1), 0.9)
        ratio = process.log_ratio(x_t, x_r, problem.exact_generator, t, r)
        np.testing.assert_allclose(
            ratio, problem.log_density(x_t, t) - problem.log_density(x_r, r), atol=1e-9
        )
        back = process.reverse_step(KEY, x_r, problem.exact_generator, t, r)
        assert np.all(np.isfinite(process.log_ratio(back, x_r, problem.exact_generator, t, r)))


def test_one_is_the_paths_own(x64):
    """c = 1 and g = g* as a function make the step without a coefficient."""
    problem = gaussian_problem(LINEAR, 2, record="variance")
    x = problem.exact_samples(5)
    own, one, called = (
        DiffusionProcess(LINEAR, c).step(KEY, x, problem.exact_generator, 0.4, 0.6)
        for c in (None, 1.0, LINEAR.diffusion_coefficient)
    )
    for other in (one, called):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), own, other)


def _spread(coefficient, steps, n=1500):
    """Var log w of a mixture whose coordinates depend on each other, by the exact record from exact x_0."""
    path = EXPLODING
    problem = gaussian_problem(path, 3, components=3, record="variance", scale=1.5)
    process = DiffusionProcess(path, coefficient)

    @jax.jit
    def run(x_0):
        start = egm.PriorDraw(x_0, problem.log_density(x_0, jnp.zeros(n)))
        trajectory = egm.simulate(KEY, process, problem.exact_generator, start, process.times(steps))
        return egm.path_log_weights(problem, path, trajectory)

    x_0 = path.sample(jax.random.key(1), jnp.asarray(problem.exact_samples(n), float), 0.0)
    log_w = np.asarray(run(x_0), np.float64) - problem.log_z
    assert abs(np.mean(np.exp(log_w)) - 1) < 4 * np.std(np.exp(log_w)) / n**0.5 + 1e-4
    return np.var(log_w)


@pytest.mark.parametrize("coefficient", [0.0, 0.5**0.5, 1.0])
def test_the_spread_of_log_w_falls_with_the_step(coefficient):
    """By half where the steps double; with 1500 samples a variance is known to 4% (normal), 20% allowed."""
    coarse, fine = _spread(coefficient, 40), _spread(coefficient, 80)
    assert 0.3 < fine / coarse < 0.65
    assert fine < (0.1 if coefficient == 0 else 0.02)


def test_the_flow_of_any_dimension_has_weights():
    """100 dimensions, far above what a determinant is computed for; N(0, s^2 I) is exact."""
    size, path = 100, EXPLODING
    variance = lambda t: path.variance(t) + 0.49

    def generator(x, t):
        score = -x / variance(t)[:, None]
        spread = jnp.broadcast_to((0.49 * path.variance(t) / variance(t))[:, None], x.shape)
        return Gaussian(path.velocity_from_score(score, x, t), score, spread)

    flow = DiffusionProcess(path, 0.0)
    half = SuperpositionProcess((FlowProcess(path), DiffusionProcess(path)), (0.5, 0.5))
    x_0 = path.sample_prior(jax.random.key(1), (200, size))
    for process in (flow, half):
        run = jax.jit(lambda x, q=process: egm.simulate(KEY, q, generator, x, q.times(10)))
        log_w = egm.path_log_weights(lambda x: jnp.sum(x**2, -1) / 0.98, path, run(x_0))
        # What is left is the prior's distance from the marginal at 0, known in closed form.
        normal = 0.5 * size * np.log(2 * np.pi * 0.49)
        prior = path.prior_log_density(x_0)
        total = variance(jnp.zeros(200))
        exact = -0.5 * (jnp.sum(x_0**2, -1) / total + size * jnp.log(2 * np.pi * total)) - prior
        np.testing.assert_allclose(log_w, normal + exact, atol=2e-2)
