"""Path weights from priors other than the path's own: the trajectory holds the density of its start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm
from egm.paths import MaskedPath, ProductPath, VarianceExplodingPath
from egm.processes import AnyOrderProcess, DiffusionProcess, FlowProcess
from egm.typing import Moments

KEY = jax.random.key(5)
VE = VarianceExplodingPath(0.1, 3.0)
FITTED = Moments(jnp.array([2.0, -1.0]), jnp.array([0.5, 3.0]))


def gaussian(x):
    """E of a normal distribution with log Z = log 2 pi + 1."""
    return 0.5 * jnp.sum((x - 1.0) ** 2, axis=-1) - 1.0


@pytest.mark.parametrize("process", [FlowProcess(VE), DiffusionProcess(VE)], ids=["flow", "diffusion"])
def test_log_z_is_unbiased_from_any_prior(process):
    """Fitted, user's own, and the path's own prior: 4 standard errors of the mean weight, N = 20,000."""
    n, times = 20_000, process.times(8)
    generator = lambda x, t: jnp.zeros_like(x)
    own = jax.random.normal(jax.random.key(1), (n, 2)) * 4 + 1
    density = jnp.sum(jax.scipy.stats.norm.logpdf(own, 1.0, 4.0), axis=-1)
    starts = {
        "path": egm.paths.VarianceExplodingPath.sample_prior(VE, KEY, (n, 2)),
        "fitted": egm.draw_prior(KEY, VE, (n, 2), FITTED._replace(variance=4 * jnp.ones(2))),
        "own": egm.PriorDraw(own, density),
    }
    for name, x_0 in starts.items():
        path = jax.jit(lambda x: egm.simulate(KEY, process, generator, x, times))(x_0)  # noqa: B023
        log_w = egm.path_log_weights(gaussian, VE, path)
        weights = np.exp(np.asarray(log_w, np.float64) - np.log(2 * np.pi) - 1)
        assert np.std(weights) < 20, name
        assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(n), name


@pytest.mark.parametrize("path", [VE, MaskedPath(3), ProductPath({"x": VE, "h": MaskedPath(2)})])
def test_states_without_their_density_are_the_paths_own(path):
    """A prior with moments comes only with its density: it cannot be forgotten on the way to `simulate`."""
    with pytest.raises(TypeError):
        path.sample_prior(KEY, (7, 2), FITTED)


def test_the_trajectory_holds_the_density_of_its_start_and_end():
    process = DiffusionProcess(VE)
    run = lambda x: egm.simulate(KEY, process, lambda x, t: -x, x, process.times(3))
    draw = egm.draw_prior(KEY, VE, (7, 2), FITTED)
    np.testing.assert_allclose(draw.log_density, VE.prior_log_density(draw.x_0, FITTED))
    np.testing.assert_allclose(run(draw).log_prior, VE.prior_log_density(draw.x_0, FITTED))
    np.testing.assert_allclose(run(draw.x_0).log_prior, VE.prior_log_density(draw.x_0))
    keys = jax.random.split(KEY, 7)
    each = egm.draw_prior(keys, VE, (2,), FITTED)
    np.testing.assert_allclose(each.x_0[3], VE.draw_prior(keys[3], (2,), FITTED).x_0, rtol=1e-6)
    assert each.log_density.shape == (7,)
    for moments in (None, FITTED):
        back = egm.simulate_reverse(KEY, process, lambda x, t: -x, draw.x_0, process.times(3), moments)
        np.testing.assert_allclose(back.log_prior, VE.prior_log_density(back.x_0, moments))
    mixed = ProductPath({"x": VE, "h": MaskedPath(2)})
    both = egm.draw_prior(KEY, mixed, {"x": (4, 2), "h": (4, 3)}, {"x": FITTED, "h": None})
    np.testing.assert_allclose(both.log_density, VE.prior_log_density(both.x_0["x"], FITTED))


def test_what_is_forgotten_raises():
    process = AnyOrderProcess(MaskedPath(2))
    x_0 = egm.draw_prior(KEY, process.path, (4, 3))
    path = egm.simulate(KEY, process, lambda x, t: jnp.full((4, 3, 2), 0.5), x_0, process.times(3))
    energy = lambda x: jnp.zeros(x.shape[0])
    np.testing.assert_allclose(egm.path_log_weights(energy, process.path, path), 3 * np.log(2), rtol=1e-5)
    with pytest.raises(TypeError, match="positional|moments"):
        egm.path_log_weights(energy, process.path, path, None)
    with pytest.raises(TypeError, match="log_prior"):
        egm.Trajectory(path.x_0, path.x_1, path.log_ratio, None)
    with pytest.raises(ValueError, match=r"log_density, must return shape \(4,\)"):
        egm.simulate(
            KEY, process, lambda x, t: None, x_0._replace(log_density=jnp.zeros(3)), process.times(3)
        )
