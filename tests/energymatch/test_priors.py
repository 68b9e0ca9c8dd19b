"""Gaussian priors: densities against SciPy, moments, fits, shards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from energymatch.likelihood import Prior, fit_gaussian, gaussian_prior

RNG = np.random.default_rng(0)
FACTOR = np.array([[1.0, 0, 0], [0.5, 2.0, 0], [-1.0, 0.3, 0.4]])
MEAN = np.array([1.0, -2.0, 0.5])


@pytest.mark.parametrize(
    "mean, scale, covariance",
    [
        (MEAN, 0.7, 0.49 * np.eye(3)),
        (MEAN, np.array([1.0, 2.0, 0.1]), np.diag([1.0, 4.0, 0.01])),
        (MEAN, FACTOR, FACTOR @ FACTOR.T),
        (MEAN.reshape(3, 1, 1), FACTOR, FACTOR @ FACTOR.T),
    ],
)
def test_density_and_maps(x64, mean, scale, covariance):
    prior = gaussian_prior(jnp.asarray(mean), jnp.asarray(scale))
    x = RNG.normal(size=(5, *mean.shape)) * 2
    expected = scipy.stats.multivariate_normal(MEAN, covariance).logpdf(x.reshape(5, 3))
    np.testing.assert_allclose(prior.log_density(x), expected, rtol=1e-12)
    np.testing.assert_allclose(prior.stretch(prior.unstretch(x)), x, rtol=1e-10)
    assert isinstance(prior, Prior)


def test_samples_have_the_moments_and_depend_on_their_own_keys():
    prior = gaussian_prior(jnp.asarray(MEAN, jnp.float32), jnp.asarray(FACTOR, jnp.float32))
    x = np.asarray(prior.sample(jax.random.key(0), 20000), np.float64)
    z = np.linalg.solve(FACTOR, (x - MEAN).T).T
    # Means and entries of z z^T: standard errors 1/sqrt(n), and sqrt(2/n) on the diagonal.
    assert np.abs(z.mean(0)).max() < 4 / np.sqrt(20000)
    assert np.abs(z.T @ z / 20000 - np.eye(3)).max() < 4 * np.sqrt(2 / 20000)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(8, 12))
    np.testing.assert_array_equal(prior.sample(keys, 4), x[8:12].astype(np.float32))


@pytest.mark.parametrize("event", [(3,), (3, 1)])
def test_fit_has_the_moments_of_the_data(x64, event):
    x = (RNG.normal(size=(200, 3)) @ FACTOR.T + MEAN).reshape(200, *event)
    flat = x.reshape(200, 3)
    full = fit_gaussian(x, widen=1.0)
    assert full.scale.shape == (3, 3)
    np.testing.assert_allclose(full.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(full.scale @ full.scale.T, np.cov(flat.T, bias=True), rtol=1e-9)
    np.testing.assert_allclose(fit_gaussian(x).scale, 2 * full.scale, rtol=1e-9)
    diagonal = fit_gaussian(x, full=False, widen=1.5)
    np.testing.assert_allclose(diagonal.scale, 1.5 * x.std(0), rtol=1e-12)
    assert fit_gaussian(x[:20]).scale.shape == event  # too few data for a matrix


@pytest.mark.parametrize("full", [True, False])
def test_what_never_changes_gets_the_floor(full):
    x = RNG.normal(size=(100, 3)).astype(np.float32) * np.array([4.0, 0.0, 1.0], np.float32)
    prior = fit_gaussian(x, full=full, floor=0.01, widen=1.0)
    scale = np.asarray(prior.scale)
    deviation = np.sqrt(np.diag(scale @ scale.T)) if full else scale
    np.testing.assert_allclose(deviation[1], 0.01 * x[:, 0].std(), rtol=2e-2)
    assert np.isfinite(prior.log_density(x)).all()


def test_fit_over_devices(mesh8):
    x = RNG.normal(size=(80, 2)).astype(np.float32) + 3
    one = fit_gaussian(x)
    fit = lambda x: fit_gaussian(x, axis_name="i")
    many = jax.jit(jax.shard_map(fit, mesh=mesh8, in_specs=P("i"), out_specs=P()))(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), many, one)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: gaussian_prior(jnp.zeros(3, int), 1.0), TypeError, "mean must be floating point"),
        (lambda: gaussian_prior(jnp.zeros(3), 1), TypeError, "scale must be floating point"),
        (lambda: gaussian_prior(jnp.zeros(3), jnp.ones(2)),
         ValueError, r"scale must be a scalar or have shape \(3,\) or \(3, 3\), got shape \(2,\)"),
        (lambda: gaussian_prior(jnp.zeros(3), 0.0), ValueError, "scale must be positive, got 0"),
        (lambda: fit_gaussian(jnp.zeros((1, 3))), ValueError, "x must have at least 2 examples"),
        (lambda: fit_gaussian(jnp.zeros((4, 3), int)), TypeError, "x must be floating point"),
        (lambda: fit_gaussian(jnp.zeros((4, 3)), widen=0.0), ValueError, "widen must be finite and positive"),
        (lambda: fit_gaussian(jnp.zeros((4, 3)), floor=-1.0), ValueError, "floor must be finite"),
        (lambda: gaussian_prior(jnp.zeros(3), 1.0).sample(jax.random.split(jax.random.key(0), 3), 4),
         ValueError, r"key must be one key or have shape \(4,\)"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
