"""Simulation of token processes: exact denoisers, bounds on log Z, grids, shards and routes.

Thresholds: |z| < 4 for a mean over N trajectories; a chi-square statistic below its quantile of
1 - 1e-4; all at fixed keys.
"""

import functools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

import egm
import egm.summation
from egm import bootstrap, metrics
from egm.processes import AnyOrderProcess, JumpProcess

PROBLEM = contract.token_problem()
PATH = PROBLEM.path
JUMP, ANY = JumpProcess(PATH), AnyOrderProcess(PATH)
KEY = jax.random.key(4)
N = 8000


def start(n):
    return jnp.full((n, PROBLEM.sites), PATH.mask_token, jnp.int32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def run(process, generator, steps, n=N, save_states=False, key=KEY):
    times = process.times(steps)
    path = egm.simulate(key, process, generator, start(n), times, save_states=save_states)
    return path, egm.path_log_weights(PROBLEM, PATH, path)


def chi_square(x):
    """p-value of the frequencies of the 27 states under the exact distribution."""
    index = np.asarray(x) @ np.array([9, 3, 1])
    observed = np.bincount(index, minlength=27)
    return scipy.stats.chisquare(observed, PROBLEM.probabilities * len(index)).pvalue


# `jax.jit` compares static arguments by equality: bound methods of one problem are equal.
EXACT = PROBLEM.denoiser
RANDOM = PROBLEM.random_denoiser


def test_any_order_with_the_exact_denoiser_is_exact():
    """Every weight is Z, samples follow p, ESS is 1, ELBO = log Z = EUBO."""
    path, log_w = run(ANY, EXACT, 3)
    np.testing.assert_allclose(log_w, PROBLEM.log_z, atol=1e-5)
    assert chi_square(path.x_1) > 1e-4
    summary = metrics.summarize(log_w)
    np.testing.assert_allclose(summary.ess, 1, rtol=1e-5)
    np.testing.assert_allclose([summary.log_z, summary.elbo], PROBLEM.log_z, atol=1e-5)
    assert summary.log_z_error < 1e-3
    assert summary.num_nonfinite == 0
    back = jax.jit(lambda x: egm.simulate_reverse(KEY, ANY, EXACT, x, ANY.times(3)))(
        PROBLEM.exact_samples(500)
    )
    assert np.all(back.x_0 == PATH.mask_token)
    eubo, error = metrics.evidence_upper_bound(egm.path_log_weights(PROBLEM, PATH, back))
    np.testing.assert_allclose(eubo, PROBLEM.log_z, atol=1e-5)
    assert error < 1e-5


def test_jump_with_the_exact_denoiser_becomes_exact_with_steps():
    """Two sites revealed in one step are drawn independently: a loss of ESS of order 1/steps."""
    ess = {}
    for steps in (4, 64):
        path, log_w = run(JUMP, EXACT, steps)
        ess[steps] = float(metrics.summarize(log_w).ess)
        weights = np.exp(np.asarray(log_w, np.float64) - PROBLEM.log_z)
        assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(N)
    assert 1 - ess[64] < 0.3 * (1 - ess[4])
    assert ess[64] > 0.97
    assert chi_square(path.x_1) > 1e-4


@pytest.mark.parametrize("process, steps", [(JUMP, 5), (ANY, 3)], ids=["jump", "any order"])
def test_bounds_from_both_sides(process, steps):
    """ELBO < log Z < EUBO for an untrained denoiser, by their standard errors."""
    _, log_w = run(process, RANDOM, steps)
    summary = metrics.summarize(log_w)
    back = jax.jit(lambda x: egm.simulate_reverse(KEY, process, RANDOM, x, process.times(steps)))(
        PROBLEM.exact_samples(N)
    )
    eubo, error = metrics.evidence_upper_bound(egm.path_log_weights(PROBLEM, PATH, back))
    assert eubo - 4 * error > PROBLEM.log_z > summary.elbo + 4 * np.std(log_w) / np.sqrt(N)
    assert abs(summary.log_z - PROBLEM.log_z) < 4 * summary.log_z_error
    np.testing.assert_allclose(summary.ess, 1 / np.mean((w := np.exp(log_w - summary.log_z)) ** 2), rtol=1e-3)
    # Reweighted means are those of the target.
    x_1 = run(process, RANDOM, steps)[0].x_1
    mean, mean_error = metrics.reweighted_mean(x_1.astype(float), log_w)
    exact = PROBLEM.probabilities @ PROBLEM.states
    assert np.all(np.abs(mean - exact) < 4 * mean_error)
    assert w.shape == (N,)


@pytest.mark.parametrize("process", [JUMP, ANY], ids=["jump", "any order"])
def test_states_and_their_ratios(process):
    path, _ = run(process, RANDOM, 3, 64, True)
    assert path.states.shape == (4, 64, 3)
    np.testing.assert_array_equal(path.states[0], path.x_0)
    np.testing.assert_array_equal(path.states[-1], path.x_1)
    # Tokens once shown stay; the last state has no mask.
    shown = path.states[:-1] != PATH.mask_token
    assert np.all((path.states[1:] == path.states[:-1]) | ~shown)
    assert np.all(path.x_1 != PATH.mask_token)
    assert run(process, RANDOM, 3, 64)[0].states is None
    times = process.times(3)
    terms = [
        process.log_ratio(path.states[i], path.states[i + 1], RANDOM, times[i], times[i + 1])
        for i in range(3)
    ]
    np.testing.assert_allclose(sum(terms), path.log_ratio, rtol=1e-5, atol=1e-5)


def test_reverse_states_are_in_the_order_of_time():
    path = jax.jit(lambda x: egm.simulate_reverse(KEY, JUMP, RANDOM, x, JUMP.times(4), save_states=True))(
        PROBLEM.exact_samples(64)
    )
    np.testing.assert_array_equal(path.states[0], path.x_0)
    np.testing.assert_array_equal(path.states[-1], path.x_1)
    assert np.all(path.x_0 == PATH.mask_token)
    masks = np.sum(path.states == PATH.mask_token, axis=(1, 2))
    assert np.all(np.diff(masks) <= 0)


def test_pairs_that_no_step_joins():
    x = jnp.array([[3, 3, 3]] * 5)
    r = jnp.array([[0, 3, 3], [3, 3, 3], [0, 1, 3], [0, 1, 2], [3, 3, 2]])
    x = x.at[3].set(jnp.array([1, 1, 3]))
    came = np.asarray(ANY.log_ratio(x, r, EXACT, 0.2, 0.6))
    assert np.all(np.isfinite(came[[0, 4]]))
    assert not np.any(np.isfinite(came[[2, 3]]))
    came = np.asarray(JUMP.log_ratio(x, r, EXACT, 0.2, 0.6))
    assert np.all(np.isfinite(came[[0, 1, 2, 4]]))
    assert not np.isfinite(came[3])


def test_the_route_by_sites_is_the_full_route():
    local = bootstrap.LocalGenerator(PATH, PROBLEM.g)
    full = lambda x, t: local(x, t)  # hides `at_sites`
    a, b = run(ANY, local, 3, 64, True), run(ANY, full, 3, 64, True)
    np.testing.assert_array_equal(a[0].states, b[0].states)
    np.testing.assert_allclose(a[0].log_ratio, b[0].log_ratio, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(a[1], PROBLEM.log_z, atol=1e-5)


@pytest.mark.parametrize("process", [JUMP, ANY], ids=["jump", "any order"])
def test_shards_with_their_keys_give_the_same_trajectories(process, mesh8):
    keys = egm.random.example_keys(KEY, 32)

    def fn(keys, x_0):
        return egm.simulate(keys, process, RANDOM, x_0, process.times(3))

    whole = jax.jit(fn)(KEY, start(32))
    parts = [jax.jit(fn)(keys[i : i + 16], start(16)) for i in (0, 16)]
    together = jax.tree.map(lambda *a: jnp.concatenate(a), *parts)
    sharded = jax.shard_map(fn, mesh=mesh8, in_specs=P("i"), out_specs=P("i"))
    for other in (together, jax.jit(sharded)(keys, start(32))):
        np.testing.assert_array_equal(other.x_1, whole.x_1)
        np.testing.assert_allclose(other.log_ratio, whole.log_ratio, rtol=1e-5, atol=1e-5)


def test_a_grid_of_one_step():
    """All sites at once: the weight is exp(-E) over the product of the denoiser's probabilities."""
    path, log_w = run(JUMP, RANDOM, 1)
    p = RANDOM(start(1), jnp.zeros(1))[0]
    log_q = np.sum(np.log(p[np.arange(3), path.x_1]), axis=-1)
    np.testing.assert_allclose(log_w, -PROBLEM(path.x_1) - log_q, rtol=1e-4, atol=1e-5)


def test_any_grid_gives_exact_weights():
    """Times need not be those of the process; the weights know."""
    times = jnp.array([0.0, 0.07, 0.5, 0.51, 1.0])

    @jax.jit
    def fn(key):
        path = egm.simulate(key, JUMP, RANDOM, start(N), times)
        return egm.path_log_weights(PROBLEM, PATH, path)

    w = np.exp(np.asarray(fn(KEY), np.float64) - PROBLEM.log_z)
    assert abs(w.mean() - 1) < 4 * w.std() / np.sqrt(N)


def test_masks_left_at_the_end_are_no_sample():
    """Fewer steps than sites leave masks: refused where it is known, and of no weight where it is not."""
    match = "num_steps must be at least the 3 sites"
    for fn in (egm.simulate, egm.simulate_reverse):
        with pytest.raises(ValueError, match=match):
            fn(KEY, ANY, RANDOM, start(4), ANY.times(2))
        with pytest.raises(ValueError, match=match):  # at trace time
            jax.eval_shape(lambda k, fn=fn: fn(k, ANY, RANDOM, start(4), ANY.times(2)), KEY)
    product = egm.processes.ProductProcess({"h": ANY, "g": JUMP})
    state = {"h": start(4), "g": start(4)}
    both = lambda x, t: {name: RANDOM(x[name], t) for name in x}
    with pytest.raises(ValueError, match=match):
        egm.simulate(KEY, product, both, state, product.times(2))
    # More are fine: a state that is done stays. So is a part of the way, whose end is no sample.
    path, log_w = run(ANY, RANDOM, 5, 64)
    assert np.all(np.isfinite(log_w))
    path = egm.simulate(KEY, ANY, RANDOM, start(64), ANY.times(6)[:3])
    assert np.all(np.any(path.x_1 == PATH.mask_token, axis=-1))
    summary = metrics.summarize(egm.path_log_weights(PROBLEM, PATH, path))
    assert summary.num_nonfinite == 64
    assert summary.ess == 0


UNIFORM = lambda x, t: jnp.full((*x.shape, 2), 0.5)


@pytest.mark.parametrize(
    "way, side",
    [("forward", 16), ("forward", 32), ("forward", 64), ("reverse", 32), ("vmap", 32), ("jump", 64)],
)
def test_many_equal_terms_add_up(way, side):
    """At infinite temperature every weight is 2^L: to 1e-5, in float32, for up to 4,096 steps.

    A plain sum is off by 2.7e-4, 7.3e-3 and 6.3e-2 at the three sizes. log 2 times a power of two is
    rounded as log 2 is; a sum of other terms is rounded once, at 6e-8 of its size. The grid's own numbers
    (logarithms of kappa) add roundings to the jump process: 1e-6 of L, a tenth of what it was.
    """
    sites, path = side**2, egm.paths.MaskedPath(2)
    process = JumpProcess(path) if way == "jump" else AnyOrderProcess(path)
    times = process.times(10 if way == "jump" else sites)
    x_0 = path.sample_prior(KEY, (2, sites))

    @jax.jit
    def fn(x):
        if way == "reverse":
            return egm.simulate_reverse(KEY, process, UNIFORM, x, times)
        if way == "vmap":
            whole = jax.tree.map(lambda a: a[:, None], (egm.random.example_keys(KEY, 2), x))
            one = jax.vmap(lambda k, x: egm.simulate(k, process, UNIFORM, x, times))(*whole)
            return jax.tree.map(lambda a: a[:, 0], one)
        return egm.simulate(KEY, process, UNIFORM, x, times)

    path_ = fn(jnp.zeros_like(x_0) if way == "reverse" else x_0)
    log_w = egm.path_log_weights(lambda x: jnp.zeros(2), path, path_)
    error = np.max(np.abs(np.asarray(log_w, np.float64) - sites * np.log(2)))
    assert error < (1.5e-7 * sites if way == "jump" else 1e-5)


def test_a_compensated_sum_is_rounded_once():
    """100,000 random terms under jit and shard-free vmap, against float64; infinities as in a plain sum."""
    terms = np.random.default_rng(0).normal(5.0, 20.0, (3, 100_000)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def total(x):
        body = lambda s, v: (egm.summation.add(s, v), None)
        return egm.summation.finish(jax.lax.scan(body, egm.summation.start(jnp.zeros(())), x)[0])

    np.testing.assert_allclose(total(terms), terms.astype(np.float64).sum(axis=1), rtol=6e-8)
    special = jnp.array([[1.0, jnp.inf, 2.0], [1.0, -jnp.inf, 2.0], [jnp.inf, -jnp.inf, 0.0]])
    np.testing.assert_array_equal(total(special), [jnp.inf, -jnp.inf, jnp.nan])


def test_a_generator_of_nan_makes_invalid_weights():
    broken = lambda x, t: jnp.full((*x.shape, 3), jnp.nan)
    for process in (JUMP, ANY):
        _, log_w = run(process, broken, 3, 8)
        assert np.all(egm.importance.nonfinite(log_w))
