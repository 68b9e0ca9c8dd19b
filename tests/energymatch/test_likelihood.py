"""log Z by annealed importance sampling: known answers, quadrature, unbiasedness, bounds.

Statistical tests have fixed keys. A standard error that a run reports has 15 degrees of freedom (16
groups), so a z-score is close to Student's t: 4 of them is one in a thousand.
"""

import math
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from egm import importance, metrics
from energymatch import likelihood
from energymatch.likelihood import Bridge, bridge, gaussian_prior, log_partition, log_partition_upper

KEY = jax.random.key(0)


def keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def gaussian(mean, scale):
    """(V of N(mean, scale^2) at epsilon = 1/2, its log Z) for a mean and a scale [*event]."""
    axes = tuple(range(1, mean.ndim + 1))

    def potential(x):
        return 0.25 * jnp.sum(((x - mean[None]) / scale[None]) ** 2, axis=axes)

    return potential, float(np.sum(np.log(scale)) + 0.5 * mean.size * math.log(2 * math.pi))


def z_scores(potential, log_z, prior, num_runs, **options):
    run = lambda key: log_partition(key, potential, epsilon=0.5, prior=prior, **options)
    out = jax.jit(jax.vmap(run))(keys(num_runs))
    return (np.asarray(out.log_z) - log_z) / np.asarray(out.log_z_error), out


def test_gaussian_and_the_calibration_of_the_error():
    potential, log_z = gaussian(np.array([1.0, -0.5], np.float32), np.array([1.0, 0.3], np.float32))
    prior = gaussian_prior(jnp.zeros(2), 2.0)
    bridge = Bridge(jnp.linspace(0, 1, 26) ** 2, jnp.geomspace(0.2, 0.01, 25))
    z, out = z_scores(potential, log_z, prior, 60, num_chains=256, bridge=bridge)
    # Mean of 60 scores; mean square 15/13 with variance 4.72 - (15/13)^2 for t with 15 degrees.
    assert abs(z.mean()) < 4 * math.sqrt(15 / 13 / 60)
    # Two errors also cover what the tail of the weights may hold, so that they are up to twice the spread's.
    assert 0.2 < (z**2).mean() < 15 / 13 + 4 * math.sqrt(3.39 / 60)
    assert (out.num_resampled > 0).all()
    # Most runs state a small error; one whose largest weight stands out states what it may hide.
    error = np.asarray(out.log_z_error)
    assert np.isfinite(error).mean() > 0.8 and np.quantile(error, 0.75) < 0.3


@pytest.mark.parametrize("event, scale", [pytest.param((64,), 0.5, marks=pytest.mark.slow), ((4, 4, 1), 1.5)])
def test_events_of_any_rank(event, scale):
    shift = np.full(event, 0.3, np.float32)
    potential, log_z = gaussian(shift, np.full(event, scale, np.float32))
    prior = gaussian_prior(jnp.zeros(event), 2 * scale)
    bridge = None  # the pilot's, or one made by hand
    if len(event) > 1:
        bridge = Bridge(jnp.linspace(0, 1, 101) ** 2, jnp.full(100, 0.1))
    z, out = z_scores(potential, log_z, prior, 4, num_chains=1024, num_steps=200, bridge=bridge)
    assert np.abs(z).max() < 4
    assert (out.log_z_error < 0.25).all()
    chex.assert_shape(out.x, (4, 1024, *event))
    # The weighted samples are the model's: mean of x, over 4 * 1024 chains of at most that many worth.
    weights = np.asarray(jax.nn.softmax(out.log_weights, axis=1)).reshape(4, 1024, *([1] * len(event)))
    mean = (weights * np.asarray(out.x)).sum(1).mean()
    worth = np.asarray(out.ess).sum() * 1024 * shift.size
    assert abs(mean - 0.3) < 4 * scale / math.sqrt(worth)


def far_modes(x):
    d2 = jnp.sum((x[:, None] - jnp.array([[[4.0, 4.0], [-4.0, -4.0]]])) ** 2, axis=-1)
    scale = jnp.array([[0.3, 0.6]])
    return -jax.nn.logsumexp(jnp.log(jnp.array([[0.3, 0.7]])) - d2 / (2 * scale**2), axis=-1)


def ring(x):
    return 50 * (jnp.sqrt(jnp.sum(x**2, axis=-1) + 1e-12) - 5) ** 2


def banana(x):  # width .2
    return x[:, 0] ** 2 / 8 + 12.5 * (x[:, 1] - 0.25 * x[:, 0] ** 2) ** 2


POTENTIALS = (far_modes, ring, banana)


@jax.jit
def partition_of(which, key, prior):
    potential = lambda x: jax.lax.switch(which, POTENTIALS, x)
    return log_partition(key, potential, epsilon=1.0, prior=prior, num_chains=512)


@pytest.mark.parametrize("which", range(3), ids=lambda i: POTENTIALS[i].__name__)
def test_against_quadrature(which):
    edge, n = 9.0, 451  # spacing .04; the narrowest width is .1
    grid = np.linspace(-edge, edge, n, dtype=np.float32)
    points = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    density = np.exp(-np.asarray(jax.jit(POTENTIALS[which])(points), np.float64))
    log_z = math.log(density.sum() * (2 * edge / (n - 1)) ** 2)
    data = np.random.default_rng(3).choice(points, 2000, p=density / density.sum())
    out = partition_of(which, KEY, likelihood.fit_gaussian(data))
    assert out.log_z_error < 0.1
    assert abs(out.log_z - log_z) < 4 * out.log_z_error
    # The mass right of 0, with the spread over groups as its error.
    weights = np.exp(out.log_weights - out.log_z).reshape(16, 32) / 32
    masses = (weights * (out.x[:, 0] > 0).reshape(16, 32)).sum(1)
    exact = (density * (points[:, 0] > 0)).sum() / density.sum()
    assert abs(masses.mean() - exact) < 4 * masses.std(ddof=1) / 4


@pytest.mark.parametrize("resample_below", [None, 0.95])
@pytest.mark.parametrize("step_size", [0.02, 1.5])
def test_unbiased_however_bad_the_bridge(resample_below, step_size):
    """E[mean of w f(x)] = Z E_model[f], for f = 1 and f = x, over 8,000 runs of 8 chains on 3 levels."""
    mean, scale = np.array([0.7], np.float32), np.array([0.5], np.float32)
    potential, log_z = gaussian(mean, scale)
    bridge = Bridge(jnp.array([0.0, 0.3, 0.8, 1.0]), jnp.full(3, step_size))

    def run(key):
        out = log_partition(
            key, potential, epsilon=0.5, prior=gaussian_prior(jnp.zeros(1), 1.5), num_chains=8,
            num_groups=2, bridge=bridge, resample_below=resample_below,
        )  # fmt: skip
        w = jnp.exp(out.log_weights - log_z)
        return jnp.exp(out.log_z - log_z), jnp.mean(w), jnp.mean(w * out.x[:, 0]), out.num_resampled

    ratio, same, first, num_resampled = (np.asarray(a) for a in jax.jit(jax.vmap(run))(keys(8000)))
    np.testing.assert_allclose(ratio, same, rtol=1e-4)
    error = lambda a: a.std() / math.sqrt(a.size)
    assert abs(ratio.mean() - 1) < 4 * error(ratio)
    assert abs(first.mean() - 0.7) < 4 * error(first)
    assert error(ratio) < 0.01
    assert (num_resampled.mean() > 1) == (resample_below is not None)


def test_brackets_from_exact_samples():
    """Over 41 levels without moves and with good ones: the bracket holds and closes."""
    mean, scale = np.array([1.0, -1.0], np.float32), np.array([0.8, 0.4], np.float32)
    potential, log_z = gaussian(mean, scale)
    x = mean[None] + scale[None] * jax.random.normal(jax.random.key(1), (4096, 2))

    @jax.jit
    def both(key, bridge):
        options = dict(epsilon=0.5, prior=gaussian_prior(jnp.zeros(2), 2.0), bridge=bridge)
        lower = log_partition(key, potential, num_chains=4096, resample_below=None, **options)
        return lower.log_weights, log_partition_upper(key, potential, x, **options)

    gaps = []
    for step_sizes in (np.full(40, 1e-10), np.geomspace(0.5, 0.03, 40)):
        bridge = Bridge(jnp.linspace(0, 1, 41) ** 2, jnp.asarray(step_sizes, jnp.float32))
        log_w, upper = both(KEY, bridge)
        elbo = metrics.summarize(log_w).elbo
        assert upper.log_z > log_z - 4 * upper.log_z_error
        assert elbo < log_z + 4 * np.std(log_w) / 64
        gaps.append((upper.log_z - log_z, log_z - elbo, upper.log_z_error))
        np.testing.assert_allclose(upper.log_z_error, np.std(upper.log_weights, ddof=1) / 64, rtol=1e-4)
    # Without moves the gap from above is KL(model || prior).
    kl = np.sum(np.log(2 / scale) + (scale**2 + mean**2) / 8 - 0.5)
    assert abs(gaps[0][0] - kl) < 4 * gaps[0][2]
    assert max(gaps[1][:2]) < 0.4 < min(gaps[0][:2])
    # From exact samples E[1/w] = 1/Z (of finite variance where the moves are good).
    ratio = np.exp(log_z - np.asarray(upper.log_weights, np.float64))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / 64 < 0.1


NORMAL = gaussian(np.zeros(1, np.float32), np.ones(1, np.float32))


@jax.jit
def upper_of_the_normal(x, prior, bridge):
    return log_partition_upper(KEY, NORMAL[0], x, epsilon=0.5, prior=prior, bridge=bridge)


@pytest.mark.parametrize("shift", [0.0, 1.5])
def test_bound_from_misfit_data(shift):
    """At least log Z - KL(data || model), and the likelihood it implies is at least the data's entropy."""
    potential, log_z = NORMAL
    x = shift + jax.random.normal(jax.random.key(2), (2000, 1))
    bridge = Bridge(jnp.linspace(0.0, 1.0, 11), jnp.full(10, 1e-3))
    prior = gaussian_prior(jnp.zeros(1), 2.0)
    out = upper_of_the_normal(x, prior, bridge)
    assert out.log_z > log_z - shift**2 / 2 - 4 * out.log_z_error
    implied = np.asarray(2 * potential(x) + out.log_weights)
    assert implied.mean() > 0.5 * math.log(2 * math.pi * math.e) - 4 * implied.std() / math.sqrt(2000)
    if shift:
        assert out.log_z < log_z - 4 * out.log_z_error  # the case that the documentation warns of


def test_weights_telescope_where_nothing_moves(x64):
    mean, scale = np.array([0.5, -1.0]), np.array([2.0, 0.7])
    potential, _ = gaussian(mean, scale)
    prior = gaussian_prior(jnp.zeros(2), jnp.array([[1.5, 0.0], [0.4, 1.0]]))
    bridge = Bridge(jnp.array([0.0, 0.2, 0.5, 1.0]), jnp.full(3, 1e-28))
    options = dict(epsilon=0.5, prior=prior, bridge=bridge)
    run = lambda k: log_partition(k, potential, num_chains=1024, resample_below=None, **options)
    out = jax.jit(run)(KEY)
    covariance = np.asarray(prior.scale @ prior.scale.T)
    log_prior = scipy.stats.multivariate_normal(np.zeros(2), covariance).logpdf
    x = np.asarray(out.x)
    expected = -0.5 * (((x - mean) / scale) ** 2).sum(1) - log_prior(x)
    np.testing.assert_allclose(out.log_weights, expected, rtol=1e-9, atol=1e-9)
    groups = np.exp(expected).reshape(16, 64).mean(1)
    np.testing.assert_allclose(out.log_z, np.log(groups.mean()), rtol=1e-9)
    spread = max(metrics.log_mean_error(jnp.log(groups)), metrics.log_mean_error(jnp.asarray(expected)))
    assert spread >= groups.std(ddof=1) / math.sqrt(16) / groups.mean()
    record = importance.reliability(expected)
    assert record.reliable
    np.testing.assert_allclose(out.log_z_error, math.hypot(spread, record.unseen / 2), rtol=1e-9)
    np.testing.assert_allclose(out.ess, np.exp(expected).sum() ** 2 / np.exp(2 * expected).sum() / 1024)
    upper = jax.jit(lambda k: log_partition_upper(k, potential, out.x, **options))(KEY)
    np.testing.assert_allclose(upper.log_z, expected.mean(), rtol=1e-9)
    np.testing.assert_allclose(upper.log_z_inverse, -np.log(np.exp(-expected).mean()), rtol=1e-9)


@jax.jit
def walled(value):
    """log Z of a normal with V = value right of x = 1, from both sides."""
    potential = lambda x: jnp.where(x[:, 0] > 1, value, 0.5 * jnp.sum(x**2, axis=-1))
    options = dict(epsilon=1.0, prior=gaussian_prior(jnp.zeros(2), 1.5))
    bridge = Bridge(jnp.linspace(0, 1, 21), jnp.full(20, 0.3))
    out = log_partition(KEY, potential, bridge=bridge, **options)
    x = jnp.array([[2.0, 0.0], [0.0, 0.0], [0.5, 1.0]])
    return out, log_partition_upper(KEY, potential, x, bridge=bridge, **options)


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_no_density_beyond_a_wall(value):
    """NaN and -inf are counted, +inf is legal; the datum beyond the wall is left out."""
    out, upper = walled(value)
    log_z = math.log(2 * math.pi) + scipy.stats.norm.logcdf(1)
    assert abs(out.log_z - log_z) < 4 * out.log_z_error
    assert (out.num_nonfinite > 0) == (value != np.inf)
    alive = np.asarray(out.log_weights) > -np.inf
    assert (np.asarray(out.x)[alive, 0] <= 1).all()
    np.testing.assert_allclose(upper.log_z, np.mean(upper.log_weights[1:]), rtol=1e-5)
    assert upper.num_nonfinite >= 1


def test_no_density_anywhere():
    potential = lambda x: jnp.full(x.shape[:1], jnp.nan)
    prior = gaussian_prior(jnp.zeros(2), 1.0)
    bridge = Bridge(jnp.array([0.0, 1.0]), jnp.ones(1))
    run = lambda k: log_partition(k, potential, epsilon=1.0, prior=prior, num_chains=32, bridge=bridge)
    out = jax.jit(run)(KEY)
    assert (out.log_z, out.log_z_error, out.ess) == (-np.inf, np.inf, 0)
    assert out.num_nonfinite == 32
    assert np.isfinite(out.x).all()


def test_pilot_levels_are_geometric_in_the_precision_and_moves_are_accepted():
    """From N(0, 2^2) to N(0, .05^2): the ESS between two levels depends on the precisions' ratio alone."""
    potential, _ = gaussian(np.zeros(4, np.float32), np.full(4, 0.05, np.float32))
    prior = gaussian_prior(jnp.zeros(4), 2.0)
    run = lambda k: log_partition(k, potential, epsilon=0.5, prior=prior, num_chains=1024, num_steps=50)
    out = jax.jit(run)(KEY)
    b = np.asarray(out.bridge.schedule, np.float64)
    log_precision = np.log((1 - b) / 4 + b / 0.0025)
    rise = (log_precision - log_precision[0]) / (log_precision[-1] - log_precision[0])
    # The pilot's ESS is noisy (1,024 chains) and its last step shorter than the rest.
    np.testing.assert_allclose(rise, np.linspace(0, 1, 51), atol=0.05)
    assert np.abs(out.acceptance - bridge.TARGET_ACCEPTANCE).max() < 0.15
    chex.assert_shape(out.acceptance, (50,))


def test_prior_covariance_preconditions_the_moves():
    """Widths over a factor of 1,000: one step size in x would move the widest coordinate by nothing."""
    scale = np.geomspace(0.01, 10.0, 8).astype(np.float32)
    potential, log_z = gaussian(np.zeros(8, np.float32), scale)
    run = lambda k, p: log_partition(k, potential, epsilon=0.5, prior=p, num_chains=256, num_steps=50)
    out = jax.jit(run)(KEY, gaussian_prior(jnp.zeros(8), 1.5 * scale))
    assert abs(out.log_z - log_z) < 4 * out.log_z_error
    assert out.log_z_error < 0.1
    assert out.ess > 0.5


def test_a_prior_of_ones_own():
    """A uniform box: the model is cut to it."""

    def sample(key, num):
        del num
        return jax.vmap(lambda k: jax.random.uniform(k, (2,), minval=-2.0, maxval=2.0))(key)

    def log_density(x):
        return jnp.where(jnp.all(jnp.abs(x) <= 2, axis=-1), -math.log(16.0), -jnp.inf)

    prior = types.SimpleNamespace(sample=sample, log_density=log_density)
    potential = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    bridge = Bridge(jnp.linspace(0, 1, 21), jnp.full(20, 0.5))
    out = jax.jit(lambda k: log_partition(k, potential, epsilon=1.0, prior=prior, bridge=bridge))(KEY)
    log_z = math.log(2 * math.pi) + 2 * math.log(1 - 2 * scipy.stats.norm.cdf(-2))
    assert abs(out.log_z - log_z) < 4 * out.log_z_error
    assert (out.num_nonfinite, np.abs(out.x).max() <= 2) == (0, True)
