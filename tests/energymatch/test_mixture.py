"""Mixture priors: densities against SciPy, what the fit finds in data of every kind, bad input."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from energymatch.likelihood import GaussianPrior, Prior, fit_mixture, gaussian_prior, mixture_prior
from energymatch.likelihood.priors import widened

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MEANS = np.array([[1.0, -2.0, 0.5], [0.0, 1.0, 0.0]])
FACTORS = np.array([[[1.0, 0, 0], [0.5, 2.0, 0], [-1.0, 0.3, 0.4]], np.diag([0.1, 1.0, 3.0])])
WEIGHTS = np.array([0.3, 0.7])


def exact_log_density(x):
    log_p = [
        math.log(w) + scipy.stats.multivariate_normal(m, a @ a.T).logpdf(x)
        for w, m, a in zip(WEIGHTS, MEANS, FACTORS, strict=True)
    ]
    return np.logaddexp(*log_p)


@pytest.mark.parametrize("event", [(3,), (3, 1, 1)])
def test_density_and_frames(x64, event):
    prior = mixture_prior(2 * WEIGHTS, MEANS.reshape(2, *event), FACTORS)
    x = RNG.normal(size=(5, *event)) * 2
    np.testing.assert_allclose(prior.log_density(x), exact_log_density(x.reshape(5, 3)), rtol=1e-12)
    labels = jnp.array([0, 1, 1, 0, 1])
    frames = prior.frames(labels)
    np.testing.assert_allclose(frames.event(frames.coordinates(x)), x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(frames.push(frames.pull(x)), x, rtol=1e-9, atol=1e-12)
    # pull is the chain rule: the gradient of f(x(z)) in z.
    f = lambda z: jnp.sum(jnp.sin(frames.event(z)))
    z = frames.coordinates(jnp.asarray(x))
    np.testing.assert_allclose(jax.grad(f)(z), frames.pull(jnp.cos(x)), rtol=1e-9, atol=1e-12)
    assert isinstance(prior, Prior)


def test_samples_are_the_mixtures():
    prior = mixture_prior(*(jnp.asarray(a, jnp.float32) for a in (WEIGHTS, MEANS, FACTORS)))
    x = np.asarray(prior.sample(KEY, 20_000), np.float64)
    mean = WEIGHTS @ MEANS
    second = sum(
        w * (a @ a.T + np.outer(m, m)) for w, m, a in zip(WEIGHTS, MEANS, FACTORS, strict=True)
    ) - np.outer(mean, mean)
    assert np.all(np.abs(x.mean(0) - mean) < 4 * x.std(0) / math.sqrt(20_000))
    centred = x - mean
    products = np.einsum("bi,bj->bij", centred, centred)
    assert np.all(np.abs(products.mean(0) - second) < 4 * products.std(0) / math.sqrt(20_000))
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(8, 12))
    np.testing.assert_array_equal(prior.sample(keys, 4), x[8:12].astype(np.float32))


def test_an_argument_of_transformed_functions(mesh8):
    prior = mixture_prior(*(jnp.asarray(a, jnp.float32) for a in (WEIGHTS, MEANS, FACTORS)))
    x = jnp.asarray(RNG.normal(size=(8, 3)), jnp.float32)
    expected = prior.log_density(x)
    log_density = lambda prior, x: prior.log_density(x)
    np.testing.assert_allclose(jax.jit(log_density)(prior, x), expected, rtol=1e-6)
    one = lambda prior, x: prior.log_density(x[None])[0]
    np.testing.assert_allclose(jax.vmap(one, (None, 0))(prior, x), expected, rtol=1e-5)
    sharded = jax.shard_map(log_density, mesh=mesh8, in_specs=(P(), P("i")), out_specs=P("i"))
    np.testing.assert_allclose(jax.jit(sharded)(prior, x), expected, rtol=1e-5)


def clusters(rng, counts, means, widths):
    parts = [m + w * rng.normal(size=(n, len(m))) for n, m, w in zip(counts, means, widths, strict=True)]
    return np.concatenate(parts)


@pytest.mark.parametrize("dim", [1, 2, 10])
def test_every_cluster_is_covered(dim):
    """Widths .1, 1 and .3, masses .05 to .7: the density at a cluster's points is near the cluster's own."""
    rng = np.random.default_rng(dim)
    means = np.zeros((3, dim))
    means[:, 0] = [-6.0, 0.0, 5.0]
    counts, widths = [100, 1400, 500], [0.1, 1.0, 0.3]
    x = clusters(rng, counts, means, widths).astype(np.float32)
    prior = fit_mixture(KEY, rng.permutation(x))
    assert 4 <= prior.log_weights.size <= 8
    np.testing.assert_allclose(jnp.sum(jnp.exp(prior.log_weights)), 1, rtol=1e-5)
    for m, w in zip(means, widths, strict=True):
        fresh = (m + w * rng.normal(size=(500, dim))).astype(np.float32)
        own = scipy.stats.norm.logpdf(fresh, m, w).sum(1)
        # Half of the weight is spread evenly; widths times 1.5 cost up to .4 - .28 nats a dimension.
        assert np.mean(own - prior.log_density(fresh)) < math.log(14) + 0.25 * dim
        # Never narrower than the cluster: from 4 widths on the prior's density is above the cluster's.
        far = fresh + (4 * w * np.sign(fresh - m)).astype(np.float32)
        assert np.all(scipy.stats.norm.logpdf(far, m, w).sum(1) < prior.log_density(far))


def test_one_normal_is_one_component_whatever_its_condition():
    turn = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    x = (RNG.normal(size=(4000, 6)) * np.geomspace(1, 1e-4, 6)) @ turn.T + 3.0
    prior = fit_mixture(KEY, jnp.asarray(x, jnp.float32))
    assert prior.log_weights.size == 2
    # In the data's own axes the first component is 1.5 wide each way (data in float32: 1e-7 of 3).
    covariance = turn.T @ np.asarray(prior.scale[0], np.float64) @ np.asarray(prior.scale[0]).T @ turn
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)) / np.geomspace(1, 1e-4, 6), 1.5, rtol=0.1)


@pytest.mark.parametrize(
    "x",
    [
        RNG.normal(size=(2, 3)),
        RNG.normal(size=(5, 40)),
        np.repeat(RNG.normal(size=(4, 2)), 25, axis=0),
        np.concatenate([np.zeros((300, 2)), RNG.normal(size=(300, 2))]),
        RNG.normal(size=(200, 3)) * np.array([1.0, 0.0, 1e-3]),
        np.stack([RNG.integers(0, 2, 500), RNG.normal(size=500)], 1) * 1.0,
        RNG.normal(size=(64, 8, 8, 1)) + np.sign(RNG.normal(size=(64, 1, 1, 1))),
        np.concatenate([RNG.normal(size=(500, 2)), [[1e4, -1e4]]]),
        RNG.standard_cauchy(size=(300, 2)),
    ],
    ids=["two", "few of many columns", "duplicates", "half equal", "constant column", "binary column",
         "images", "an outlier", "heavy tails"],
)  # fmt: skip
def test_data_of_every_kind(x):
    x = x.astype(np.float32)
    prior = fit_mixture(KEY, x)
    again = fit_mixture(KEY, x)
    jax.tree.map(np.testing.assert_array_equal, prior, again)
    assert all(np.all(np.isfinite(a)) for a in prior)
    assert np.all(np.isfinite(prior.log_density(x)))
    assert prior.sample(KEY, 7).shape == (7, *x.shape[1:])
    assert prior.mean.shape[1:] == x.shape[1:]
    # Wide enough for all data: no point is below what the background alone gives the farthest one.
    assert np.min(prior.log_density(x)) > np.min(
        math.log(0.1) + GaussianPrior(prior.mean[-1], prior.scale[-1]).log_density(x) - 1e-3
    )


def test_options():
    x = clusters(RNG, [300, 300], np.array([[-5.0, 0.0], [5.0, 0.0]]), [1.0, 1.0])
    assert fit_mixture(KEY, x, max_components=1).log_weights.size == 2
    diagonal = fit_mixture(KEY, x, full=False)
    assert diagonal.scale.shape == diagonal.mean.shape
    narrow, wide = fit_mixture(KEY, x, widen=1.0), fit_mixture(KEY, x, widen=2.0)
    np.testing.assert_allclose(wide.scale[:-1], 2 * narrow.scale[:-1], rtol=1e-5)
    np.testing.assert_allclose(jnp.exp(fit_mixture(KEY, x, background=0.25).log_weights[-1]), 0.25, rtol=1e-5)
    three = widened(wide, 3.0)
    frames = three.frames(jnp.zeros(4, int))
    np.testing.assert_allclose(frames.event(frames.coordinates(x[:4])), x[:4], rtol=1e-5)
    np.testing.assert_allclose(three.scale, 3 * wide.scale, rtol=1e-6)
    assert fit_mixture(KEY, x, max_examples=50).mean.shape[1:] == (2,)


UPPER = np.array([[1.0, 0.5], [0.0, 2.0]], np.float32)


def test_traced_factor_that_is_not_lower_triangular_gives_nan_not_half_of_it():
    make = jax.jit(lambda a: gaussian_prior(jnp.zeros(2), a))
    assert np.all(np.isnan(make(UPPER).log_density(jnp.zeros((3, 2)))))
    assert np.all(np.isfinite(make(UPPER.T).log_density(jnp.zeros((3, 2)))))
    # The record itself, unchecked, means the lower triangle everywhere: draws and density agree.
    prior = GaussianPrior(jnp.zeros(2), jnp.asarray(UPPER))
    z = jnp.asarray(RNG.normal(size=(4, 2)), jnp.float32)
    np.testing.assert_allclose(prior.unstretch(prior.stretch(z)), z, rtol=1e-5)


X = np.zeros((4, 3), np.float32)
X[0] = 1


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: gaussian_prior(jnp.zeros(2), UPPER), ValueError, "scale must be lower-triangular"),
        (lambda: gaussian_prior(jnp.zeros(2), UPPER.T @ UPPER), ValueError, "scale must be lower-triangular"),
        (lambda: gaussian_prior(jnp.zeros(2), jnp.array([1.0, jnp.inf])), ValueError, "scale must be finite"),
        (lambda: mixture_prior(jnp.ones(1), jnp.zeros((1, 2)), UPPER[None]),
         ValueError, "scale must be lower-triangular"),
        (lambda: mixture_prior(jnp.ones(2), jnp.zeros((2, 3)), jnp.zeros((2, 3))),
         ValueError, "scale must be positive, got 0"),
        (lambda: mixture_prior(jnp.ones(2), jnp.zeros((2, 3)), jnp.ones((2, 2))),
         ValueError, r"scale must have shape \(2, 3\) or \(2, 3, 3\), got shape \(2, 2\)"),
        (lambda: mixture_prior(jnp.array([1.0, -1.0]), jnp.zeros((2, 3)), jnp.ones((2, 3))),
         ValueError, "weights must be finite and positive, got -1"),
        (lambda: mixture_prior(jnp.ones(3), jnp.zeros((2, 3)), jnp.ones((2, 3))),
         ValueError, r"weights must be a scalar or have shape \(2,\)"),
        (lambda: mixture_prior(1.0, jnp.zeros((2, 3)), jnp.ones((2, 3))),
         ValueError, r"weights must have shape \[C\]"),
        (lambda: fit_mixture(KEY, X[:1]), ValueError, "x must have at least 2 examples"),
        (lambda: fit_mixture(KEY, X.astype(int)), TypeError, "x must be floating point"),
        (lambda: fit_mixture(KEY, np.ones((9, 2))), ValueError, "x must not be constant: all of its 9"),
        (lambda: fit_mixture(KEY, np.where(X == 1, np.nan, X)),
         ValueError, "x must be finite, got 1 examples of 4"),
        (lambda: jax.jit(functools.partial(fit_mixture, KEY))(X),
         TypeError, "x must be known data, outside jit"),
        (lambda: fit_mixture(KEY, X, background=1.0), ValueError, r"background must be in \(0, 1\), got 1"),
        (lambda: fit_mixture(KEY, X, widen=0.0), ValueError, "widen must be finite and positive"),
        (lambda: fit_mixture(KEY, X, max_components=0), ValueError, "max_components must be at least 1"),
        (lambda: fit_mixture(0, X), TypeError, "key must be a typed PRNG key"),
        (lambda: widened(3, 2.0), TypeError, "prior must be a GaussianPrior or a MixturePrior, got 3"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
