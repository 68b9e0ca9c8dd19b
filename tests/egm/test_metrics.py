"""Metrics against closed forms and SciPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from egm import metrics

KEY = jax.random.key(0)


def test_summary_by_hand():
    log_w = jnp.tile(jnp.log(jnp.array([1.0, 2.0, 3.0, 2.0])), 100)
    s = metrics.summarize(log_w)
    np.testing.assert_allclose(s.log_z, np.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(s.ess, 64 / 18 / 4, rtol=1e-6)
    np.testing.assert_allclose(s.elbo, np.log(12) / 4, rtol=1e-6)
    # Relative standard error of the mean, sqrt(variance / N) / mean, and Student's widening for
    # 2 / (1/200 - 1/400) = 800 degrees of freedom, 1 + 1.25 / 800.
    np.testing.assert_allclose(s.log_z_error, np.sqrt(200 / 399 / 400) / 2 * (1 + 1.25 / 800), rtol=1e-4)
    assert (s.tail_index, s.reliable) == (0, True)  # the largest weight came 100 times
    np.testing.assert_allclose([s.effective_number, s.largest_weight], [400 * 64 / 72, 3 / 800], rtol=1e-5)
    bad = metrics.summarize(jnp.append(log_w, jnp.nan))
    assert int(bad.num_nonfinite) == 1
    np.testing.assert_allclose(bad.log_z, np.log(800 / 401), rtol=1e-6)
    np.testing.assert_allclose(bad.elbo, s.elbo, rtol=1e-6)


def test_reweighted_mean_and_its_error():
    """Normal samples reweighted to a shifted normal: 4 standard errors, and their known size."""
    x = jax.random.normal(KEY, (40_000,))
    mean, error = metrics.reweighted_mean(x, 0.5 * x)  # target N(1/2, 1)
    assert abs(mean - 0.5) < 4 * error
    # The delta method's variance is E_p[w (x - mu)^2] / N with w = exp(x/2 - 1/8).
    exact = np.sqrt(np.exp(0.25) * (1 + 0.25) / 40_000)
    np.testing.assert_allclose(error, exact, rtol=0.1)


def test_jackknife():
    """The error of a mean is the standard error, that of a variance sqrt(2/N) for a normal."""
    x = jax.random.normal(KEY, (20_000,))
    zeros = jnp.zeros(20_000)
    mean, error = metrics.jackknife(lambda m: m[0], x[:, None], zeros)
    np.testing.assert_allclose(mean, jnp.mean(x), atol=1e-6)
    # 20 blocks give the error to a relative 1/sqrt(2 * 19) = .16; 4 of them.
    np.testing.assert_allclose(error, 1 / np.sqrt(20_000), rtol=0.65)
    powers = jnp.stack([x, x**2], axis=-1)
    variance, error = metrics.jackknife(lambda m: m[1] - m[0] ** 2, powers, zeros)
    assert abs(variance - 1) < 4 * np.sqrt(2 / 20_000)
    np.testing.assert_allclose(error, np.sqrt(2 / 20_000), rtol=0.65)


def test_mode_masses_by_hand_and_by_brute_force():
    modes = jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    x = jnp.array([[0.1, 0.2], [1.9, 0.0], [2.1, -3.0], [0.5, 9.0], [jnp.nan, 0.0], [jnp.inf, 0.0]])
    masses = metrics.mode_masses(x, modes)
    np.testing.assert_allclose(masses, np.array([2, 1, 1]) / 6, rtol=1e-6)  # two are no mode's
    log_w = jnp.log(jnp.array([1.0, 2.0, 3.0, 4.0])).at[1].set(jnp.nan)  # NaN weighs nothing
    masses = metrics.mode_masses(x[:4], modes, log_w)
    np.testing.assert_allclose(masses, np.array([1, 3, 4]) / 8, rtol=1e-6)
    # Far from the origin and close together, against float64.
    rng = np.random.default_rng(4)
    modes = 1000 + rng.normal(size=(30, 5))
    x = 1000 + 2 * rng.normal(size=(500, 5))
    nearest = np.argmin(np.sum((x[:, None] - modes[None]) ** 2, axis=-1), axis=1)
    w = rng.uniform(size=500)
    expected = np.bincount(nearest, weights=w, minlength=30) / w.sum()
    masses = jax.jit(metrics.mode_masses)(jnp.float32(x), jnp.float32(modes), jnp.float32(np.log(w)))
    # float32 places a sample to 6e-5 of 2: one in thousands may change sides.
    np.testing.assert_allclose(masses, expected, atol=2.5 / 500)


def test_mode_masses_of_a_mixture():
    """Component masses where modes lie far apart, the closed form where two overlap."""
    masses = np.array([0.5, 0.3, 0.2])
    n = 20_000
    which = jax.random.choice(KEY, 3, (n,), p=jnp.array(masses))
    z = jax.random.normal(jax.random.key(1), (n, 1))
    error = np.sqrt(masses * (1 - masses) / n)
    modes = jnp.array([[0.0], [20.0], [40.0]])
    assert np.all(np.abs(metrics.mode_masses(modes[which] + z, modes) - masses) < 4 * error)
    near = jnp.array([[0.0], [2.0], [40.0]])
    cross = scipy.stats.norm.sf(1.0)
    expected = np.array([0.5 - 0.5 * cross + 0.3 * cross, 0.3 - 0.3 * cross + 0.5 * cross, 0.2])
    found = metrics.mode_masses(near[which] + z, near)
    assert np.all(np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / n))


def test_wasserstein_against_scipy():
    a, b = np.random.default_rng(0).normal(size=(2, 501)).astype(np.float32)
    expected = scipy.stats.wasserstein_distance(a, b + 0.3)
    np.testing.assert_allclose(metrics.wasserstein_1d(a, b + 0.3), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.wasserstein_1d(a, a + 2, p=2), 2.0, rtol=1e-6)


def test_the_floor_is_what_two_exact_sets_give():
    x = np.random.default_rng(1).normal(size=8000)
    floor = metrics.distance_floor(metrics.wasserstein_1d, x, 1000, 40)
    sets = np.random.default_rng(2).normal(size=(80, 1000))
    direct = [float(metrics.wasserstein_1d(a, b)) for a, b in zip(sets[::2], sets[1::2], strict=True)]
    error = np.std(direct) / np.sqrt(40)
    assert abs(floor - np.mean(direct)) < 4 * np.sqrt(2) * error
    distance = metrics.sample_distance(metrics.wasserstein_1d, x[:4000], x[:4000] + 1, 4)
    np.testing.assert_allclose(distance, 1.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.wasserstein_1d(np.zeros(3), np.zeros(4)), r"one size, got shapes \(3,\) and \(4,\)"),
        (lambda: metrics.distance_floor(None, np.zeros(9), 5, 1), "at least 10 samples, got 9"),
        (lambda: metrics.reweighted_mean(np.zeros(3), jnp.zeros(4)), "leading size 4"),
        (
            lambda: metrics.mode_masses(np.zeros(3), np.zeros((2, 3))),
            r"x must have shape \[N, D\], got \(3,\)",
        ),
        (lambda: metrics.mode_masses(np.zeros((4, 3)), np.zeros((2, 2))), r"\[M, 3\].*got \(2, 2\)"),
        (lambda: metrics.mode_masses(np.zeros((4, 3)), np.zeros((2, 3)), np.zeros(3)), r"\(4,\), got \(3,\)"),
        (lambda: metrics.jackknife(None, np.zeros(4), jnp.zeros(4)), "at least 20 samples, got 4"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_mode_masses_need_floats():
    with pytest.raises(TypeError, match="modes must be floating point, got dtype int"):
        metrics.mode_masses(np.zeros((4, 3)), np.zeros((2, 3), int))


def test_distances_within_and_between_clusters(x64):
    """A cluster turned, reflected, permuted and moved is at distance 0; else SciPy's by all 24 orders."""

    def turned(a, b):
        return np.sum((a @ scipy.linalg.orthogonal_procrustes(a, b)[0] - b) ** 2)

    rng = np.random.default_rng(3)
    for dim in (2, 3):
        x, y = rng.normal(size=(2, 5, 4, dim))
        q = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
        same = (x[:, [2, 0, 3, 1]] @ q + rng.normal(size=dim)).reshape(5, -1)
        x, y = x.reshape(5, -1), y.reshape(5, -1)
        np.testing.assert_allclose(np.diag(metrics.aligned_squared_distances(x, same, 4, dim)), 0, atol=1e-12)
        found = metrics.aligned_squared_distances(x, y, 4, dim)
        a, b = (v.reshape(5, 4, dim) - v.reshape(5, 4, dim).mean(1, keepdims=True) for v in (x, y))
        for i, j in ((0, 0), (1, 4), (3, 2)):
            best = min(turned(a[i], b[j, list(order)]) for order in itertools.permutations(range(4)))
            np.testing.assert_allclose(found[i, j], best, rtol=1e-9)
        expected = [[np.linalg.norm(u - v) for u, v in itertools.combinations(each, 2)] for each in a]
        np.testing.assert_allclose(metrics.interatomic_distances(x, 4, dim), expected, rtol=1e-12)
