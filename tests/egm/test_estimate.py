"""`egm.estimate` against enumeration, and on every way to run it.

Standard errors of the self-normalised estimate come from enumeration: Var = sum_q w^2 (F - F_bar)^2 /
(sum_q w)^2 / K. Thresholds are 5 of them (the largest of a few hundred numbers, at a fixed key).
"""

import functools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import egm
from egm import bootstrap, heads, losses, paths

PROBLEM = contract.token_problem()
PATH = PROBLEM.path
X = jnp.asarray(PROBLEM.partial)  # every state, masked or not
KEY = jax.random.key(3)


def estimate(key, x, t, r, *, log_density=None, num_samples=1000, **options):
    return egm.estimate(key, PATH, log_density or PROBLEM.phi, x, t, r, num_samples=num_samples, **options)


TERMINAL = bootstrap.terminal(PROBLEM)
naive = jax.jit(lambda key, x, t: estimate(key, x, t, 1.0, log_density=TERMINAL))
naive_4096 = jax.jit(lambda key, x, t: estimate(key, x, t, 1.0, log_density=TERMINAL, num_samples=4096))
bootstrapped_4096 = jax.jit(lambda key, x, t, r: estimate(key, x, t, r, num_samples=4096))


def close(a, b, tolerance):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        left, right = np.asarray(left), np.asarray(right)
        np.testing.assert_allclose(left, right.reshape(left.shape), rtol=tolerance, atol=tolerance)


def enumerated(t, r):
    """(mean [N, L, V], log-marginal [N], their standard errors times sqrt(K)) at all states X."""
    nodes = PROBLEM.states if r == 1 else PROBLEM.partial
    with jax.enable_x64(True):
        values, q, phi, log_z = map(np.asarray, _terms(nodes, float(t), float(r)))
    w = np.exp(phi)[:, None]
    total = np.sum(q * w, axis=0)
    mean = np.einsum("mn,mnlv->nlv", q * w, values) / total[:, None, None]
    spread = np.einsum("mn,mnlv->nlv", q * w**2, (values - mean) ** 2)
    relative = np.sqrt(np.maximum(np.sum(q * w**2, axis=0) / total**2 - 1, 0))
    return mean, log_z + np.log(total), np.sqrt(spread) / total[:, None, None], relative


@jax.jit
def _terms(nodes, t, r):
    """Conditional generators [M, N, L, V], q [M, N], phi_r [M] and log Z [N] of all nodes at r."""
    m, n = len(nodes), len(X)
    wide, x = jnp.broadcast_to(nodes[:, None], (m, n, PROBLEM.sites)), jnp.asarray(PROBLEM.partial)
    log_z = PATH.log_normalizer(x, t, r)
    q = jnp.exp(PATH.log_noising(x, t, wide, r) - log_z[None])
    return PATH.conditional_generator(x, t, wide, r), q, PROBLEM.phi(nodes, r), log_z


@pytest.mark.parametrize("t, r", [(0.3, 1.0), (0.05, 1.0), (0.3, 0.35), (0.3, 0.6), (0.3, 0.95)])
def test_against_the_exact_posterior(t, r):
    k = 4096
    est = naive_4096(KEY, X, t) if r == 1 else bootstrapped_4096(KEY, X, t, r)
    mean, log_marginal, error, relative = enumerated(t, r)
    np.testing.assert_allclose(mean, PROBLEM.denoiser(X), atol=1e-5)  # the exact recursion of F
    phi = PROBLEM.phi(X, jnp.full(len(X), t))
    np.testing.assert_allclose(log_marginal, phi, atol=1e-5)  # and of phi
    assert np.all(est.valid)
    assert np.all(est.num_nonfinite == 0)
    assert np.all((est.ess > 0.05) & (est.ess <= 1 + 1e-6))
    assert np.all(np.abs(est.generator - mean) <= 5 * error / np.sqrt(k) + 1e-5)
    assert np.all(np.abs(est.log_marginal - log_marginal) <= 5 * relative / np.sqrt(k) + 1e-5)


def test_a_batch_of_times_and_the_boundary_inside():
    """r of its own for every example, some of them 1, through `bootstrap.boundary`."""
    t = jnp.linspace(0.05, 0.9, len(X))
    r = jnp.minimum(t + 0.3, 1.0)
    phi = bootstrap.boundary(PROBLEM, PROBLEM.g, PATH)
    est = jax.jit(lambda key: estimate(key, X, t, r, log_density=phi, num_samples=4096))(KEY)
    # One error bar for all: the relative error of a weight is below 2.5 on this problem.
    assert np.all(np.abs(est.log_marginal - PROBLEM.phi(X, t)) < 5 * 2.5 / 64)
    np.testing.assert_allclose(np.mean(est.generator - PROBLEM.denoiser(X)), 0, atol=1e-2)
    assert np.all(np.mean(np.abs(est.generator - PROBLEM.denoiser(X)), axis=0) < 0.05)


@pytest.mark.parametrize("x64_on, tolerance", [(False, 1e-5), (True, 1e-9)])
def test_chunks_and_devices_give_the_same_estimate(mesh8, x64_on, tolerance):
    """K = 1300 is 11 blocks of 128, the last cut short; 8 devices hold 2, 2, 2, 2, 2, 1, 0, 0."""
    with jax.enable_x64(x64_on):
        t, r = jnp.linspace(0.05, 0.6, len(X)), jnp.linspace(0.7, 0.99, len(X))

        def run(**options):
            def fn(data):
                key = jax.random.wrap_key_data(data)
                return estimate(key, X, t, r, num_samples=1300, **options)

            return fn

        data = jax.random.key_data(KEY)
        whole = jax.jit(run())(data)
        assert whole.generator.dtype == (jnp.float64 if x64_on else jnp.float32)
        for chunk_size in (128, 512):
            close(whole, jax.jit(run(chunk_size=chunk_size))(data), tolerance)
        for chunk_size in (None, 128):
            fn = run(chunk_size=chunk_size, axis_name="i")
            sharded = jax.shard_map(fn, mesh=mesh8, in_specs=P(), out_specs=P())
            close(whole, jax.jit(sharded)(data), tolerance)
        mapped = jax.pmap(lambda data, i: fn(data), axis_name="i", in_axes=(None, 0))
        mapped = mapped(data, jnp.arange(8))
        close(whole, jax.tree.map(lambda a: a[5], mapped), tolerance)


def test_every_way_to_run_a_batch_gives_the_same_estimate(mesh8):
    """Keys an example split with the batch: jit = vmap = eager = pmap = shard_map on 8 devices."""
    x, t = X[:: len(X) // 16][:16], jnp.linspace(0.1, 0.8, 16)
    keys = egm.random.example_keys(KEY, 16)
    jitted = naive(keys, x, t)
    close(jitted, naive(KEY, x, t), 0)
    one = lambda k, x, t: jax.tree.map(lambda a: a[0], naive(k[None], x[None], t[None]))
    close(jitted, jax.jit(jax.vmap(one))(keys, x, t), 1e-5)
    close(jax.tree.map(lambda a: a[:2], jitted), naive.__wrapped__(keys[:2], x[:2], t[:2]), 1e-5)
    split = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), (keys, x, t))
    close(jitted, jax.pmap(naive.__wrapped__)(*split), 1e-5)
    sharded = jax.shard_map(naive.__wrapped__, mesh=mesh8, in_specs=P("i"), out_specs=P("i"))
    close(jitted, jax.jit(sharded)(keys, x, t), 1e-5)


def test_a_sample_does_not_depend_on_the_number_of_samples():
    """The first 100 of 300 samples are those of K = 100: what a user sees when K grows."""

    @jax.jit
    def proposals():
        seen = []
        for k in (100, 300):

            def log_density(x, r):
                seen.append(x.reshape(-1, len(X), PROBLEM.sites))
                return -PROBLEM(x)

            estimate(KEY, X, 0.3, 1.0, log_density=log_density, num_samples=k)
        return seen

    few, many = proposals()
    np.testing.assert_array_equal(few, many[:100])


def test_repeated_calls_trace_once():
    count = 0

    @jax.jit
    def fn(key, x, t, r):
        nonlocal count
        count += 1
        return estimate(key, x, t, r, num_samples=256, chunk_size=128).log_marginal

    for seed, t, r in ((0, 0.1, 0.9), (1, 0.5, 0.95), (2, 0.9, 1.0)):
        fn(jax.random.key(seed), X, t, r)
    assert count == 1


# Energies that are no numbers, and gradients in them: the table of energies is an argument.


@functools.partial(jax.jit, static_argnums=1)
def from_table(table, chunk_size):
    phi = lambda x, r: -PROBLEM.energy_from(table, x)
    options = {"log_density": phi, "chunk_size": chunk_size, "num_samples": 4000}
    return estimate(KEY, X, 0.2, 1.0, **options)


def changed(values):
    """The table of energies with some replaced."""
    table = PROBLEM.table.astype(np.float32)
    for index, value in values.items():
        table[index] = value
    return table


@pytest.mark.parametrize("chunk_size", [None, 128])
def test_nonfinite_energies_weigh_nothing_and_stay_in_k(chunk_size):
    """NaN and -inf energies are counted, +inf ones are not; all three change nothing else."""
    bad = from_table(changed({3: np.nan, 7: -np.inf, 11: np.inf}), chunk_size)
    zero = from_table(changed(dict.fromkeys((3, 7, 11), np.inf)), chunk_size)
    one = from_table(changed({11: np.nan}), chunk_size)
    close(bad._replace(num_nonfinite=zero.num_nonfinite), zero, 1e-6)
    assert np.all(zero.num_nonfinite == 0)
    np.testing.assert_array_equal(X[63], [PATH.mask_token] * 3)
    # From all masks every terminal state has probability 1/27; 5 standard errors.
    for est, p in ((bad, 2 / 27), (one, 1 / 27)):
        assert abs(est.num_nonfinite[63] - 4000 * p) < 5 * np.sqrt(4000 * p)
    w = np.exp(-PROBLEM.table)
    w[[3, 7, 11]] = 0
    error = np.sqrt(np.mean(w**2) / np.mean(w) ** 2 - 1) / np.sqrt(4000)
    g = bad.log_marginal[63] - 3 * np.log(3 * 0.8)
    assert abs(g - np.log(np.mean(w))) < 5 * error  # the mean over all K


@pytest.mark.parametrize("value, counted", [(np.nan, True), (-np.inf, True), (np.inf, False)])
def test_no_weight_at_all(value, counted):
    """Zeros, invalid, no loss, and a gradient of exactly zero."""
    est = from_table(changed(dict.fromkeys(range(27), value)), None)
    gradient, each = _losses(est, jnp.ones((len(X), 3, 3)))
    assert not np.any(est.valid)
    assert np.all(est.num_nonfinite == (4000 if counted else 0))
    for a in (est.generator, est.log_marginal, est.ess, gradient, each):
        np.testing.assert_array_equal(a, np.zeros_like(a))


@jax.jit
def _losses(est, logits):
    """(gradient, losses [N]) of both pointwise losses against an estimate."""
    head = heads.DenoiserHead(PATH)

    def loss(logits):
        each = losses.generator_loss(lambda a, b: head.divergence(a, b, X), est, logits)
        each += losses.log_marginal_loss(est.log_marginal, logits[:, 0, 0], est.valid)
        return jnp.sum(each), each

    return jax.grad(loss, has_aux=True)(logits)


@functools.partial(jax.jit, static_argnums=3)
def _gradient(table, t, r, chunk_size):
    """Gradient in the table of the summed log-marginals, [27], and the log-marginals; r None for 1."""

    def log_marginal(table):
        energy = lambda x: PROBLEM.energy_from(table, x)
        g = lambda x, s: -jnp.sum(x, axis=-1) * table[0]
        phi = bootstrap.terminal(energy) if r is None else bootstrap.boundary(energy, g, PATH)
        options = {"log_density": phi, "num_samples": 200, "chunk_size": chunk_size}
        value = estimate(KEY, X, t, 1.0 if r is None else r, **options).log_marginal
        return jnp.sum(value), value

    return jax.grad(log_marginal, has_aux=True)(table)


@pytest.mark.parametrize("chunk_size", [None, 128])
@pytest.mark.parametrize("t, r", [(0, None), (1e-6, None), (0.5, None), (1 - 1e-6, None), (1e-6, 2e-6)])
def test_gradients_in_the_energy_are_finite_near_the_ends(t, r, chunk_size):
    """d log_marginal / d E is minus the posterior: it sums to -1 over the table at every state."""
    gradient, value = _gradient(changed({}), float(t), r, chunk_size)
    assert np.all(np.isfinite(gradient))
    # At t = 0 a visible token has probability zero.
    assert np.all(np.isfinite(value) | ((t == 0) & np.any(X != PATH.mask_token, axis=-1)))
    if r is None and t > 0:
        np.testing.assert_allclose(np.sum(gradient), -len(X), rtol=1e-5)


def test_float32_agrees_with_float64():
    """The naive proposals are whole numbers, the same at both precisions."""
    t = np.linspace(0.01, 0.99, len(X))
    single = naive(KEY, X, jnp.asarray(t))
    with jax.enable_x64(True):
        double = naive(KEY, X, jnp.asarray(t))
        assert double.generator.dtype == jnp.float64
        close(single, jax.tree.map(np.asarray, double), 1e-5)


@pytest.mark.parametrize("chunk_size", [None, 128])
def test_traced_values_out_of_range_are_invalid(chunk_size):
    x = jnp.tile(jnp.array([[3, 1, 3]]), (9, 1))
    t = jnp.array([0.3, 0.9, -0.1, 0.3, jnp.nan, 0.3, 0.3, 0.3, 0.3])
    r = jnp.array([0.8, 0.8, 0.80, 1.1, 0.80, jnp.nan, 0.8, 0.8, 0.8])
    x = x.at[6, 0].set(4).at[7, 2].set(-1)
    r = r.at[8].set(0.3)
    est = jax.jit(lambda *a: estimate(KEY, *a, chunk_size=chunk_size, num_samples=256))(x, t, r)
    np.testing.assert_array_equal(est.valid, [True] + [False] * 8)
    alone = jax.jit(lambda *a: estimate(KEY, *a, num_samples=256))(x[:1], t[:1], r[:1])
    close(jax.tree.map(lambda a: a[:1], est), alone, 1e-6)
    for a in (est.generator, est.log_marginal, est.ess):
        np.testing.assert_array_equal(a[1:], np.zeros_like(a[1:]))
    assert np.all(est.num_nonfinite >= 0)


def test_a_gaussian_estimate_of_a_normal_target():
    """The same code on vectors: E = x^2 / (2 s^2) has a normal posterior in closed form."""
    path, s, k, t = paths.VarianceExplodingPath(0.3, 3.0), 0.7, 4096, 0.5
    x = jnp.linspace(-2, 2, 7)[:, None]
    energy = lambda x: jnp.sum(x**2, axis=-1) / (2 * s**2)
    est = jax.jit(lambda key: egm.estimate(key, path, bootstrap.terminal(energy), x, t, 1.0, num_samples=k))(
        KEY
    )
    v = float(path.variance(t))
    score = -x / (s**2 + v)
    exact = path.velocity_from_score(score, x, t)
    # The velocity is linear in x_1, whose posterior variance is v s^2 / (v + s^2).
    slope = float(path.variance_dot(t)) / (2 * v)
    error = abs(slope) * np.sqrt(v * s**2 / (v + s**2) / (k * np.asarray(est.ess)))[:, None]
    assert np.all(np.abs(est.generator - exact) < 5 * error)
    log_marginal = -0.5 * x[:, 0] ** 2 / (s**2 + v) + 0.5 * np.log(s**2 / (s**2 + v))
    relative = np.sqrt(1 / np.asarray(est.ess) - 1) / np.sqrt(k)
    assert np.all(np.abs(est.log_marginal - log_marginal) < 5 * relative)


def test_a_state_of_probability_zero_is_invalid():
    """At t = 0 no token is visible: log Z is -inf there, and the estimate is no estimate."""
    visible = ~np.all(np.asarray(X) == PATH.mask_token, axis=-1)
    est = naive(KEY, X, jnp.zeros(len(X)))
    np.testing.assert_array_equal(est.valid, ~visible)
    assert not np.any(est.log_marginal[visible])
    assert not np.any(est.generator[visible])
