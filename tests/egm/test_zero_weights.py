"""What weighs nothing does not matter, whatever its value: infinite, NaN, or with a square that overflows."""

import jax.numpy as jnp
import numpy as np
import pytest

import egm
from egm import metrics, paths
from energymatch import losses

BAD = [1e20, 3e38, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("bad", BAD)
def test_moments(bad):
    x = jnp.array([[bad, 1.0], [1.0, 2.0], [3.0, bad], [3.0, 4.0]])
    weights = jnp.array([0.0, 0.5, 0.0, 0.5])
    mean, variance = paths.LinearPath().moments(x, weights)
    np.testing.assert_allclose(mean, [2.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(variance, [1.0, 1.0], rtol=1e-6)
    mean, variance = paths.LinearPath().moments(jnp.array([[bad], [1.0]]), jnp.array([0.0, 1.0]))
    assert (mean[0], variance[0]) == (1.0, 0.0)
    centred = paths.CenteredPath(paths.LinearPath(), 2, 1)
    y = jnp.array([[bad, -bad], [1.0, -1.0]])
    np.testing.assert_allclose(centred.moments(y, jnp.array([0.0, 1.0])).variance, [2.0, 2.0], rtol=1e-6)
    product = paths.ProductPath({"x": paths.LinearPath(), "h": paths.MaskedPath(2)})
    state = {"x": x, "h": jnp.zeros((4, 3), jnp.int32)}
    np.testing.assert_allclose(product.moments(state, weights)["x"].variance, [1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("bad", BAD)
def test_weighted_means(bad):
    values, log_w = jnp.array([bad, 1.0, 3.0, bad]), jnp.array([-jnp.inf, 0.0, 0.0, -1e30])
    mean, error = metrics.reweighted_mean(values, log_w)
    np.testing.assert_allclose(mean, 2.0, rtol=1e-6)
    assert not np.isnan(error)
    moments = jnp.stack([values, values**2], axis=1)
    variance = metrics.jackknife(lambda m: m[1] - m[0] ** 2, moments, log_w, num_blocks=2)[0]
    np.testing.assert_allclose(variance, 1.0, rtol=1e-6)
    x = jnp.array([[bad], [1.0], [3.0], [bad]])
    np.testing.assert_allclose(
        metrics.mode_masses(x, jnp.array([[0.0], [4.0]]), log_w), [0.5, 0.5], rtol=1e-6
    )


@pytest.mark.parametrize("bad", BAD)
def test_contrast(bad):
    negative_values = jnp.array([bad, 1.0, 3.0])
    log_w = jnp.array([-jnp.inf, 0.0, 0.0])
    loss, out = losses.contrastive_divergence_loss(
        jnp.ones(2), negative_values, log_weights=log_w, energy_l2=0.1
    )
    np.testing.assert_allclose(loss, 1.0 - 2.0 + 0.1 * (1.0 + 5.0), rtol=1e-6)
    np.testing.assert_allclose(out["negative_energy"], 2.0, rtol=1e-6)


@pytest.mark.parametrize("bad", BAD)
def test_estimates(bad):
    """A proposal of no density may lie anywhere: the generator is the mean over the others."""
    record = egm.importance.running_chunk(
        jnp.array([[-jnp.inf], [0.0], [0.0]]), jnp.array([[[bad]], [[1.0]], [[3.0]]])
    )
    np.testing.assert_allclose(egm.importance.running_finish(record, 3)[0], [[2.0]], rtol=1e-6)
