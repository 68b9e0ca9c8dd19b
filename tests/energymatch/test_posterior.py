"""Posteriors: exact samples where the posterior is known.

The model is a mixture of three normals in four dimensions, V = -eps log p; two numbers y = A x + zeta n
are measured. Each component's posterior is normal by the Kalman formulas, its weight w N(y; A m, S).
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from energymatch import langevin, posterior, schedules
from energymatch.likelihood import Bridge, gaussian_prior
from energymatch.posterior import operators, samples

KEY = jax.random.key(0)
EPS, ZETA = 0.15, 0.5
WEIGHTS = np.array([0.5, 0.3, 0.2])
MEANS = np.array([[2.0, 0, 1, 0], [-2, 1, 0, 0], [0, -2, -1, 1]])
COVARIANCES = np.stack([np.diag([0.3, 0.2, 0.4, 0.3]), np.diag([0.2, 0.4, 0.3, 0.2]), 0.25 * np.eye(4)])
COVARIANCES[0, 0, 1] = COVARIANCES[0, 1, 0] = 0.1
A = np.array([[0.3, 0.5, 0.4, 0.0], [0.0, 0.2, -0.3, 0.6]])
Y = np.array([0.1, 0.1])


def moments(weights, means, covariances):
    mean = weights @ means
    centred = means - mean
    return mean, np.einsum("i,ijk->jk", weights, covariances) + np.einsum(
        "i,ij,ik", weights, centred, centred
    )


def exact_posterior():
    """(weights, means, covariances of the components, log Z of exp(-V/eps - U)) in float64."""
    log_w, means, covariances = [], [], []
    for w, m, c in zip(WEIGHTS, MEANS, COVARIANCES, strict=True):
        s = A @ c @ A.T + ZETA**2 * np.eye(2)
        gain = c @ A.T @ np.linalg.inv(s)
        log_w.append(np.log(w) + scipy.stats.multivariate_normal(A @ m, s).logpdf(Y))
        means.append(m + gain @ (Y - A @ m))
        covariances.append(c - gain @ A @ c)
    log_evidence = np.logaddexp.reduce(log_w)
    return (
        np.exp(log_w - log_evidence),
        np.array(means),
        np.array(covariances),
        log_evidence + math.log(2 * math.pi * ZETA**2),  # U leaves the normaliser out
    )


EXACT = exact_posterior()


def potential(x):
    d = x[:, None] - jnp.asarray(MEANS, x.dtype)[None]
    z = jnp.einsum("kij,bkj->bki", jnp.asarray(np.linalg.inv(np.linalg.cholesky(COVARIANCES)), x.dtype), d)
    log_volume = 0.5 * np.linalg.slogdet(2 * np.pi * COVARIANCES)[1]
    log_w = jnp.asarray(np.log(WEIGHTS) - log_volume, x.dtype)[None]
    return -EPS * jax.nn.logsumexp(log_w - 0.5 * jnp.sum(z**2, -1), axis=-1)


def measured(y=Y):
    operator = operators.linear(jnp.asarray(A, jnp.float32))
    return posterior.gaussian_measurement(operator, jnp.asarray(y, jnp.float32), ZETA)


def model_prior():
    mean, covariance = moments(WEIGHTS, MEANS, COVARIANCES)
    return gaussian_prior(
        jnp.asarray(mean, jnp.float32), jnp.asarray(np.linalg.cholesky(covariance), jnp.float32)
    )


def component_masses(x):
    """[N, 3] posterior probability of each component at x: their mean is the components' weights."""
    weights, means, covariances, _ = EXACT
    log_p = [scipy.stats.multivariate_normal(m, c).logpdf(x) for m, c in zip(means, covariances, strict=True)]
    log_p = np.log(weights) + np.stack(log_p, axis=-1)
    return np.exp(log_p - np.logaddexp.reduce(log_p, axis=-1, keepdims=True))


def errors(x, worth):
    """Mean, covariance and component weights of x less the exact ones, in errors of `worth` draws."""
    mean, covariance = moments(*EXACT[:3])
    centred = x - mean
    products = np.einsum("bi,bj->bij", centred, centred)
    masses = component_masses(x)
    scores = [
        (a.mean(0) - exact) / (a.std(0) / np.sqrt(worth))
        for a, exact in ((x, mean), (products, covariance), (masses, EXACT[0]))
    ]
    return [np.abs(s).max() for s in scores], np.abs(masses.mean(0) - EXACT[0]).max()


NUM_SAMPLES, NUM_RUNS = 4096, 8


@pytest.fixture(scope="module")
def runs():
    """Independent runs of `sample`, on levels and with step sizes near those that the pilot finds."""
    bridge = Bridge(jnp.linspace(0, 1, 41) ** 1.3, jnp.geomspace(0.8, 0.09, 40))

    def run(key):
        return posterior.sample(
            key, potential, energies=(measured(),), epsilon=EPS, prior=model_prior(),
            num_samples=NUM_SAMPLES, bridge=bridge,
        )  # fmt: skip

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(jax.random.split(KEY, NUM_RUNS)))


def test_exact_samples_of_a_mixtures_posterior(runs, capsys):
    """Every run's 4,096 samples: mean, covariance and weights within 4 standard errors, weights within .03.

    A run holds n ess samples' worth when its weights are used up in n draws: errors are those of
    n / (1 + 1/ess) draws (a component's weight of .35: .0117, hence .03 is 2.6 of them).
    """
    worst, weight_errors = [], []
    for x, ess in zip(runs.x.astype(np.float64), runs.partition.ess, strict=True):
        scores, weight_error = errors(x, NUM_SAMPLES / (1 + 1 / ess))
        worst.append(max(scores))
        weight_errors.append(weight_error)
    # The means over all runs: 3% of the two components that matter, with standard errors of 1.2% and .6%.
    masses = np.mean([component_masses(x).mean(0) for x in runs.x.astype(np.float64)], axis=0)
    with capsys.disabled():
        print(
            f"\nsample: largest error {max(worst):.1f} standard errors, of a weight {max(weight_errors):.3f}"
        )
        print(f"  weights over {NUM_RUNS} runs {masses.round(4)}, exact {EXACT[0].round(4)}")
    assert max(worst) < 4
    assert max(weight_errors) < 0.03
    np.testing.assert_allclose(masses[:2], EXACT[0][:2], rtol=0.03)
    assert np.all(runs.partition.ess > 0.5)
    assert np.all(np.abs(runs.acceptance - 0.57) < 0.15)
    assert np.all(runs.num_nonfinite == 0)


def test_evidence(runs):
    """log Z of each run within 4 of the errors that it states, the log of their mean within 4 of theirs."""
    record = runs.partition
    assert np.all(np.abs(record.log_z - EXACT[3]) < 4 * record.log_z_error)
    ratios = np.exp(record.log_z - EXACT[3])
    assert abs(ratios.mean() - 1) < 4 * record.log_z_error.mean() / np.sqrt(NUM_RUNS) < 0.03


def test_last_moves_set_copies_apart(runs):
    """Resampling copies heavy chains; 20 moves accepted at .57 leave none (.43^20: one that never moves)."""
    for x, weights in zip(runs.x, runs.partition.log_weights, strict=True):
        assert len(np.unique(x, axis=0)) == NUM_SAMPLES
        assert np.std(weights) > 0.1  # they were not of one weight


def test_the_published_annealing_has_an_error_of_its_own(runs, capsys):
    """Euler-Maruyama under eps(t) from a standard normal, published 2D settings, to two times.

    Below tau_star the chains roll into V's basins with no knowledge of y; above it they mix too slowly.
    """
    start = jax.random.normal(jax.random.key(9), (NUM_SAMPLES, 4))
    temperature = functools.partial(schedules.temperature, tau_star=0.8, epsilon_max=EPS)

    @jax.jit
    def run(key):
        return langevin.sample(
            key, potential, start, num_steps=1000, step_size=0.01, temperature=temperature,
            energies=(measured(),), save_every=200,
        ).states  # fmt: skip

    states = np.asarray(run(KEY), np.float64)
    ours = max(errors(x.astype(np.float64), NUM_SAMPLES)[1] for x in runs.x)
    for index in (1, 5):
        (mean, covariance, _), weight = errors(states[index], NUM_SAMPLES)
        with capsys.disabled():
            print(
                f"\npublished annealing, t = {2 * index}: weights off by {weight:.2f} (sample: {ours:.3f}), "
                f"mean by {mean:.0f} and covariance by {covariance:.0f} standard errors"
            )
        assert weight > 5 * ours
        assert mean > 15


def test_vmap_over_measurements():
    """Posterior means (y/zeta^2)/(1 + 1/zeta^2) of three y, each its own annealed run with its own pilot."""
    y = jnp.array([[-1.0], [0.5], [2.0]])

    def run(key, y):
        energy = posterior.gaussian_measurement(lambda x: x, y, 1.0)
        V = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
        return posterior.sample(
            key, V, energies=(energy,), epsilon=1.0, prior=gaussian_prior(jnp.zeros(1), 1.0),
            num_samples=1024, num_steps=10,
        )  # fmt: skip

    out = jax.jit(jax.vmap(run))(jax.random.split(KEY, 3), y)
    worth = 1024 / (1 + 1 / np.asarray(out.partition.ess))
    assert np.all(np.abs(out.x.mean((1, 2)) - y[:, 0] / 2) < 4 * np.sqrt(0.5 / worth))


def test_eight_devices_and_one(mesh8):
    V = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    energy = posterior.gaussian_measurement(lambda x: x, jnp.ones(2), 1.0)
    prior = gaussian_prior(jnp.zeros(2), 1.5)
    bridge = Bridge(jnp.linspace(0, 1, 6), jnp.full(5, 0.2))

    def run(key, axis_name=None):
        out = posterior.sample(
            key, V, energies=(energy,), epsilon=1.0, prior=prior, num_samples=64,
            num_last_moves=3, num_groups=8, bridge=bridge, axis_name=axis_name,
        )  # fmt: skip
        return out.x, (out.acceptance, out.num_nonfinite, out.partition.log_z)

    x, scalars = jax.jit(run)(KEY)
    over = functools.partial(run, axis_name="i")
    shard = jax.jit(jax.shard_map(over, mesh=mesh8, in_specs=P(), out_specs=(P("i"), P())))
    chex.assert_trees_all_close(shard(KEY), (x, scalars), rtol=1e-4, atol=1e-4)
    mapped_x, mapped = jax.pmap(over, axis_name="i")(jnp.broadcast_to(KEY, (8,)))
    np.testing.assert_allclose(mapped_x.reshape(64, 2), x, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[3], mapped), scalars, rtol=1e-4)


def test_draws_by_weight():
    """Place i takes the weights' quantile at (i + u)/N: each chain N w times, rounded up or down by 1."""
    log_w = jnp.log(jnp.array([0.0, 1.0, 3.5, 0.0, 0.5, 3.0, 0.0, 0.0]))
    counts = []
    draw = jax.jit(lambda key: samples._draw(jax.random.split(key, 8), log_w, jnp.arange(8.0), None))
    for seed in range(200):
        counts.append(np.bincount(np.asarray(draw(jax.random.key(seed)), int), minlength=8))
    counts = np.array(counts)
    expected = np.array([0, 1, 3.5, 0, 0.5, 3, 0, 0])
    assert np.all(np.abs(counts - expected) < 2)
    assert np.all(counts[:, expected == 0] == 0)
    error = counts.std(0) / np.sqrt(200)
    assert np.all(np.abs(counts.mean(0) - expected) <= 4 * error)


def test_what_has_no_density_or_is_not_finite():
    """U = NaN on half of the line: counted, without weight; everywhere: log Z = -inf and finite states."""
    V = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    bridge = Bridge(jnp.linspace(0, 1, 6), jnp.full(5, 0.3))

    @jax.jit
    def run(edge):
        energy = lambda x: jnp.where(x[:, 0] > edge, jnp.nan, 0.0)
        return posterior.sample(
            KEY, V, energies=(energy,), epsilon=1.0, prior=gaussian_prior(jnp.zeros(1), 1.5),
            num_samples=256, bridge=bridge, num_last_moves=5,
        )  # fmt: skip

    half, none = run(0.0), run(-jnp.inf)
    assert np.all(half.x <= 0)
    assert abs(half.partition.log_z - math.log(math.sqrt(2 * math.pi) / 2)) < 4 * half.partition.log_z_error
    assert half.num_nonfinite > 0
    assert none.partition.log_z == -np.inf
    assert np.all(np.isfinite(none.x))
