"""Errors of weighted figures: they hold where they are stated, and collapsed weights state none.

The families of weights have a known mean; so have observables under them. arviz-stats is the reference
of the tail index.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from arviz_stats.base import array_stats
from jax.sharding import PartitionSpec as P

from egm import importance, metrics

KEY = jax.random.key(3)


def normal(s):
    """log w ~ N(0, s^2); the second observable, log w / s, has mean s under the weights."""
    return lambda r, shape: s * r.normal(size=shape), s * s / 2, s


def student(nu):
    """w = |t| with nu degrees of freedom: tail index 1 / nu."""
    log_mean = (
        math.log(2 * math.sqrt(nu / math.pi) / (nu - 1)) + math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)
    )
    return lambda r, shape: np.log(np.abs(r.standard_t(nu, size=shape))), log_mean, None


def gamma(a):
    """w ~ Gamma(a), by log w, which underflows for small a otherwise."""
    draw = lambda r, shape: np.log(r.gamma(a + 1, size=shape)) + np.log(r.random(shape)) / a
    return draw, math.log(a), None


def log_gamma(a, scale):
    """log w ~ Gamma(a, scale): tail index `scale`, times powers of a logarithm."""
    return lambda r, shape: scale * r.gamma(a, size=shape), -a * math.log(1 - scale), None


def pareto(k):
    return lambda r, shape: k * r.exponential(size=shape), -math.log(1 - k), None


def stretched(c):
    """Weibull with shape c < 1."""
    return lambda r, shape: np.log(r.weibull(c, size=shape)), math.lgamma(1 + 1 / c), None


def narrow(d, width):
    """A normal proposal in d dimensions whose standard deviation is `width` times the target's."""
    draw = lambda r, shape: (1 - width**2) / 2 * r.chisquare(d, size=shape) + d * math.log(width)
    return draw, 0.0, None


def two(q, ratio):
    """A fraction q of weights that are `ratio` times the others."""
    return lambda r, shape: math.log(ratio) * (r.random(shape) < q), math.log1p(q * (ratio - 1)), None


@functools.partial(jax.jit, static_argnums=())
@jax.vmap
def figures(log_w, values):
    summary = metrics.summarize(log_w)
    mean, error = metrics.reweighted_mean(values, log_w)
    return summary.log_z, summary.log_z_error, mean, error


def coverage(family, n, repetitions, seed=0):
    """(fraction stated, of those right within two errors: log Z, independent, own observable)."""
    draw, log_z, own_mean = family
    rng, parts = np.random.default_rng(seed), []
    batch = min(repetitions, 100_000 // n * 10)
    for _ in range(repetitions // batch):
        log_w = draw(rng, (batch, n))
        own = log_w / own_mean if own_mean else log_w
        values = np.stack([rng.normal(size=log_w.shape), own], axis=-1)
        parts.append(figures(jnp.float32(log_w), jnp.float32(values)))
    found, error, mean, mean_error = (np.concatenate(p) for p in zip(*parts, strict=True))
    stated = np.isfinite(error)
    np.testing.assert_array_equal(np.isfinite(mean_error), np.stack([stated] * 2, -1))
    right = lambda gap, err: np.mean(np.abs(gap[stated]) < 2 * err[stated]) if stated.any() else 1.0
    own = 1.0 if own_mean is None else right(mean[:, 1] - own_mean, mean_error[:, 1])
    return np.mean(stated), right(found - log_z, error), right(mean[:, 0], mean_error[:, 0]), own


def enough(fraction, stated, repetitions):
    """Whether >= .93 is met, less two standard errors of the fraction among those stated."""
    return fraction >= 0.93 - 2 * math.sqrt(0.93 * 0.07 / max(stated * repetitions, 1))


@pytest.mark.parametrize("s", [0.5, 1.0, 2.0, 5.0, 20.0])
def test_log_normal_weights(s):
    """200 repetitions of N = 1,000."""
    stated, *right = coverage(normal(s), 1000, 200)
    assert all(enough(r, stated, 200) for r in right), (stated, right)
    assert stated >= 0.98 if s <= 1 else stated <= 0.02


SLOW = [normal(s) for s in (0.5, 1, 2, 3, 5, 10, 20)]
OTHERS = [student(nu) for nu in (1.5, 2, 3, 5, 10)] + [gamma(a) for a in (0.05, 0.2, 1, 5)]
OTHERS += [log_gamma(a, k) for a, k in ((0.5, 0.2), (1, 0.5), (2, 0.4), (5, 0.2))]
OTHERS += [pareto(k) for k in (0.3, 0.5, 0.6)] + [stretched(c) for c in (0.3, 0.5, 2)]
OTHERS += [narrow(d, w) for d, w in ((1, 0.8), (5, 0.8), (20, 0.9), (50, 0.9), (50, 0.72))]
OTHERS += [two(0.5, 3), two(0.1, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("n", [100, 1000, 10_000])
@pytest.mark.parametrize("s", [0.5, 1, 2, 3, 5, 10, 20])
def test_log_normal_weights_at_length(s, n):
    """500 repetitions; where fewer than 1% are stated their few do not make a fraction."""
    stated, *right = coverage(normal(s), n, 500)
    if stated >= 0.01:
        assert min(right) >= 0.93, (stated, right)
    if s <= 1 and n >= 1000:
        assert stated >= 0.99
    if s >= 5:
        assert stated == 0


@pytest.mark.slow
@pytest.mark.parametrize("n", [1000, 10_000])
@pytest.mark.parametrize("family", OTHERS)
def test_other_weights_at_length(family, n):
    """Tails of Student, gamma, log-gamma, Pareto, Weibull, narrow proposals, two values."""
    stated, *right = coverage(family, n, 500)
    if stated >= 0.05:
        assert all(enough(r, stated, 500) for r in right), (stated, right)


def test_tail_index_against_arviz():
    """On the same float32 weights; only rounding differs."""
    rng = np.random.default_rng(0)
    for family in (normal(0.5), normal(2), normal(20), student(3), gamma(0.2), narrow(5, 0.9)):
        for n in (30, 1000, 10_000):
            log_w = np.float32(family[0](rng, (n,)))
            expected = array_stats.psislw(-log_w.astype(float))[1]
            found = importance.reliability(log_w).tail_index
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_collapsed_sampler_of_a_spin_glass_states_no_error():
    """8 x 8, couplings N(0, 1), beta 1, an autoregressive sampler that sees revealed neighbours only.

    log Z is exact (transfer matrices), 87.6; the usual error of 86.7 is .25.
    """
    rng, side, n = np.random.default_rng(2), 8, 4000
    right, down = rng.normal(size=(2, side, side))
    spins = 1 - 2 * ((np.arange(2**side)[:, None] >> np.arange(side)) & 1)
    along = [spins * np.roll(spins, -1, axis=1) @ right[i] for i in range(side)]
    product, log_scale = np.eye(2**side), 0.0
    for i in range(side):
        product = product @ (np.exp(along[i])[:, None] * np.exp(spins * down[i] @ spins.T))
        log_scale += np.log(product.max())
        product /= product.max()
    log_z = np.log(np.trace(product)) + log_scale
    x, log_w = np.zeros((n, side, side)), np.zeros(n)
    for i, j in [divmod(site, side) for site in rng.permutation(side * side)]:
        field = right[i, j] * x[:, i, (j + 1) % side] + right[i, j - 1] * x[:, i, j - 1]
        field += down[i, j] * x[:, (i + 1) % side, j] + down[i - 1, j] * x[:, i - 1, j]
        up = scipy.special.expit(2 * field)
        x[:, i, j] = np.where(rng.random(n) < up, 1, -1)
        log_w -= np.log(np.where(x[:, i, j] > 0, up, 1 - up))
    log_w += np.sum(right * x * np.roll(x, -1, 2) + down * x * np.roll(x, -1, 1), axis=(1, 2))
    s = metrics.summarize(jnp.float32(log_w))
    assert s.log_z < log_z - 3 * metrics.log_mean_error(jnp.float32(log_w)), (s.log_z, log_z)
    assert (s.log_z_error, s.reliable) == (np.inf, False)
    assert "N ESS" in metrics.reason(s)
    assert "tail index" in metrics.reason(s)


def test_one_sample_has_no_error():
    one = jnp.zeros(1)
    assert metrics.summarize(one).log_z_error == np.inf
    assert metrics.log_mean_error(one) == np.inf
    assert metrics.evidence_upper_bound(one) == (0.0, np.inf)
    mean, error = metrics.reweighted_mean(jnp.ones((1, 2)), one)
    np.testing.assert_array_equal(mean, np.ones(2))
    np.testing.assert_array_equal(error, np.full(2, np.inf))
    assert metrics.evidence_upper_bound(jnp.array([0.0, -jnp.inf]))[1] == np.inf


def test_plain_samples_have_the_usual_error_however_few():
    """Equal weights were not estimated: the mean's standard error, and the jackknife's, as ever."""
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    for log_w in (jnp.zeros(50), jnp.full(50, -812.5)):
        mean, error = metrics.reweighted_mean(x, log_w)
        np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(error, x.std(axis=0, ddof=1) / np.sqrt(50), rtol=1e-5)
        _, error = metrics.jackknife(lambda m: m, x, log_w, num_blocks=50)
        np.testing.assert_allclose(error, x.std(axis=0, ddof=1) / np.sqrt(50), rtol=1e-4)
    # Fifty weights that differ are too few for an error.
    assert metrics.reweighted_mean(x[:, 0], 0.1 * x[:, 1])[1] == np.inf
    assert metrics.jackknife(lambda m: m, x[:, 0], 0.1 * x[:, 1])[1] == np.inf


@pytest.mark.parametrize(
    ("log_w", "index", "effective", "reliable"),
    [
        (np.zeros(200), 0, 200, True),
        (np.full(200, -np.inf), np.inf, 0, False),
        (np.full(200, np.nan), np.inf, 0, False),
        (np.append(np.zeros(199), 3.0), np.inf, 219.0855**2 / (199 + np.exp(6)), False),
        (np.repeat([0.0, 2.0], [600, 400]), 0, (600 + 400 * np.e**2) ** 2 / (600 + 400 * np.e**4), True),
        (np.repeat([0.0, -np.inf], [195, 5]), 0, 195, True),
        (np.repeat([0.0, -np.inf], [5, 195]), np.inf, 5, False),
    ],
)
def test_weights_that_are_few_values(log_w, index, effective, reliable):
    """No tail where the largest weight came often, and none that can be known where it came rarely."""
    found = importance.reliability(jnp.float32(log_w))
    assert found.reliable == reliable
    np.testing.assert_allclose(found.effective_number, effective, rtol=1e-4)
    if np.isfinite(log_w).sum() != 5:
        assert found.tail_index == index


def test_rounding_is_no_tail():
    """log w = log L exactly, but for float32: as in a run of an exact denoiser."""
    log_w = 64 * np.log(2) + 4e-6 * np.random.default_rng(2).normal(size=4000)
    s = metrics.summarize(jnp.float32(log_w))
    assert s.reliable
    assert s.tail_index == 0
    assert s.log_z_error < 1e-6


def test_no_value_of_a_weightless_sample_matters():
    x = jnp.append(jax.random.normal(KEY, (999,)), jnp.nan)
    log_w = jnp.append(0.1 * x[:-1], -jnp.inf)
    mean, error = metrics.reweighted_mean(x, log_w)
    assert abs(mean - 0.1) < 4 * error < 0.2
    whole, error = metrics.jackknife(lambda m: m, x, log_w)
    np.testing.assert_allclose(whole, mean, rtol=1e-5)
    assert error < 0.1


def test_errors_of_jackknife_and_mean_agree_under_weights():
    """The identity as the statistic; 200 blocks give an error to 2 / sqrt(400) = 10%."""
    z = jax.random.normal(KEY, (20_000,))
    mean, error = metrics.reweighted_mean(z, 0.7 * z)
    whole, other = metrics.jackknife(lambda m: m, z, 0.7 * z, num_blocks=200)
    np.testing.assert_allclose(whole, mean, rtol=1e-4)
    np.testing.assert_allclose(other, error, rtol=0.2)


def test_samples_split_over_devices(mesh8):
    rng = np.random.default_rng(0)
    for log_w in (
        2 * rng.normal(size=800),
        np.repeat([0.0, np.nan, -np.inf], [300, 400, 100]),
        np.zeros(800),
    ):
        log_w = jnp.float32(log_w)
        whole = metrics.summarize(log_w), importance.reliability(log_w)
        fn = lambda w: (metrics.summarize(w, "i"), importance.reliability(w, "i"))
        split = jax.jit(jax.shard_map(fn, mesh=mesh8, in_specs=P("i"), out_specs=P()))(log_w)
        mapped = jax.pmap(fn, axis_name="i")(log_w.reshape(8, 100))
        for a, b, c in zip(*map(jax.tree.leaves, (whole, split, mapped)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4)
            np.testing.assert_allclose(a, c[5], rtol=1e-4)
    assert importance.reliability(log_w).equal


def test_a_million_samples():
    """Whose number squared is no int32; k-hat of a normal's exponential with s = .5 is near 0."""
    s = metrics.summarize(0.5 * jax.random.normal(KEY, (1_000_000,)))
    assert abs(s.log_z - 0.125) < 4 * s.log_z_error < 4e-3
    assert s.reliable


def test_reasons():
    rng = np.random.default_rng(0)
    good = metrics.summarize(jnp.float32(0.3 * rng.normal(size=1000)))
    assert metrics.reason(good) == ""
    assert metrics.reason(good, level=0.25) == "the annealing has reached 0.25 of the energy"
    assert metrics.reason(good._asdict() | {"level": 0.5}).endswith("0.5 of the energy")
    none = metrics.summarize(jnp.full(10, -jnp.inf))
    assert metrics.reason(none) == "no weight is positive"
    few = metrics.reason(metrics.summarize(jnp.zeros(50)))
    assert few == "N ESS = 50 < 100, the largest weight holds 0.02"
    heavy = importance.reliability(jnp.float32(0.9 * rng.exponential(size=20_000)))
    assert metrics.reason(heavy).endswith(f"tail index of the weights {heavy.tail_index:.2f} > 0.7")
