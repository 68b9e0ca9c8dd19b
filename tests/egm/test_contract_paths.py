"""The contract of every path, by enumeration or quadrature in float64, and on every way to run.

Statistical thresholds: the largest |z| over at most a few hundred features is below 5 at a fixed
key (probability 1e-4 for a correct sampler, were the key not fixed).
"""

import math

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import egm

IDS, CASES = contract.cases(egm.paths, "PATHS")
every_case = pytest.mark.parametrize("case", CASES, ids=IDS)
first_of_each_class = pytest.mark.parametrize(
    "case", [case for name, case in zip(IDS, CASES) if name.endswith("-0")], ids=lambda c: str(c.path)
)
TRIPLES = [(0.3, 0.6, 1.0), (0.25, 0.5, 0.8)]
KEY = jax.random.key(11)


def test_every_path_has_an_example():
    missing = contract.missing_entries(egm.paths, "PATHS")
    assert not missing, "\n".join(missing)


def test_every_path_is_exported():
    assert set(contract.public_classes(egm.paths)) == set(egm.paths.__all__)


def pair_log_noising(path, x_t, t, x_r, r):
    """[M, N] log p_{t|r} of every x_r [M] with every x_t [N]."""
    n, m = (jax.tree.leaves(x)[0].shape[0] for x in (x_t, x_r))
    wide = jax.tree.map(lambda a: jnp.broadcast_to(a[:, None], (m, n, *a.shape[1:])), x_r)
    return path.log_noising(x_t, t, wide, r)


_pairs = jax.jit(pair_log_noising, static_argnums=0)
log_normalizer = jax.jit(lambda path, x, t, r: path.log_normalizer(x, t, r), static_argnums=0)


def log_noising(*args):
    """`pair_log_noising` as a numpy array: what follows on the host compiles nothing."""
    return np.asarray(_pairs(*args))


def at_time(case, r):
    """(nodes, log_weights) of the states that exist at time r."""
    keep = case.space.data if r == 1 else np.ones_like(case.space.data)
    return contract.take(case.space.nodes, keep), case.space.log_weights[keep]


def log_sum(values, log_weights):
    """[M, N] to [N], on the host, where nothing compiles."""
    return scipy.special.logsumexp(np.asarray(values) + log_weights[:, None], axis=0)


def exact_phi(case):
    """phi as a model: log of the integral over x_1 of p_{t|1}(x | x_1) exp(-E(x_1))."""
    nodes, log_weights = at_time(case, 1.0)

    def phi(x, t):
        log_p = pair_log_noising(case.path, x, t, nodes, 1.0)
        e = case.energy(nodes)
        terms = log_p + (log_weights - e)[:, None] * jnp.ones_like(log_p)
        return jax.nn.logsumexp(terms, axis=0)

    return phi


@every_case
def test_is_a_path(x64, case):
    path = case.path
    assert isinstance(path, egm.Path)
    assert hash(path) == hash(path)
    nodes, space = case.space.nodes, case.space
    batch = jax.tree.leaves(nodes)[0].shape[:1]
    assert path.batch_shape(nodes) == batch
    assert path.contains(nodes).shape == batch
    assert jnp.all(path.contains(nodes))
    data = contract.take(nodes, space.data)
    for a, b in zip(jax.tree.leaves(path.data_state(data)), jax.tree.leaves(data)):
        np.testing.assert_array_equal(a, jnp.asarray(b))
    event = jax.tree.map(lambda a: (7, *a.shape[1:]), case.points)
    assert path.batch_shape(path.sample_prior(KEY, event)) == (7,)


@every_case
@pytest.mark.parametrize("num_steps", [1, 2, 17])
def test_times(case, num_steps):
    times = np.asarray(case.path.times(num_steps))
    assert times.shape == (num_steps + 1,)
    np.testing.assert_allclose(times[[0, -1]], [case.path.t_min, 1.0], rtol=1e-6)
    assert np.all(np.diff(times) > 0)
    assert times[-1] == 1


@every_case
@pytest.mark.parametrize("t, r, s", TRIPLES)
def test_chapman_kolmogorov(x64, case, t, r, s):
    middle, log_weights = at_time(case, r)
    last = contract.take(at_time(case, s)[0], np.s_[:: max(1, len(at_time(case, s)[1]) // 9)])
    first = np.exp(log_noising(case.path, case.points, t, middle, r))  # [M, N]
    second = np.exp(log_noising(case.path, middle, r, last, s) + log_weights)  # [S, M]
    direct = np.exp(log_noising(case.path, case.points, t, last, s))
    np.testing.assert_allclose(second @ first, direct, rtol=1e-7, atol=1e-12)


@every_case
@pytest.mark.parametrize("t, r, s", TRIPLES)
def test_noising_kernels_sum_to_one(x64, case, t, r, s):
    for a, b in ((t, r), (r, s), (t, s)):
        nodes, log_weights = at_time(case, b)
        x_r = contract.take(nodes, np.s_[:: max(1, len(log_weights) // 9)])
        x_r = jax.tree.map(lambda x: x if x.dtype.kind == "i" else 0.2 * x, x_r)
        log_p = log_noising(case.path, case.space.nodes, a, x_r, b)
        total = np.exp(log_p) @ np.exp(case.space.log_weights)
        np.testing.assert_allclose(total, 1.0, rtol=1e-7)


@every_case
@pytest.mark.parametrize("t, r, s", TRIPLES)
def test_log_normalizer(x64, case, t, r, s):
    for a, b in ((t, r), (r, s), (t, s)):
        nodes, log_weights = at_time(case, b)
        total = log_sum(log_noising(case.path, case.points, a, nodes, b), log_weights)
        came = log_normalizer(case.path, case.points, a, b)
        assert came.shape == total.shape
        np.testing.assert_allclose(came, total, atol=1e-7)


@every_case
def test_prior_is_normalised_and_sampled(x64, case):
    path, space = case.path, case.space
    log_p = np.asarray(path.prior_log_density(space.nodes))
    mean, second, mass = contract.exact_moments(space, log_p, case.features)
    np.testing.assert_allclose(mass, 1.0, rtol=1e-7)
    shape = jax.tree.map(lambda a: (20_000, *a.shape[1:]), case.points)
    assert contract.max_z(path.sample_prior(KEY, shape), case.features, mean, second) < 5


def weighted_data(case):
    """(x_1 [N, *event], weights [N]) a few states of the data's space, unequal weights."""
    x_1 = contract.take(case.space.nodes, np.flatnonzero(case.space.data))
    size = len(jax.tree.leaves(x_1)[0])
    x_1 = contract.take(x_1, (np.array([0.4, 0.46, 0.5, 0.55, 0.6]) * size).astype(int))
    return x_1, np.array([1, 4, 2, 2, 1]) / 10


@every_case
def test_moments_of_weighted_data(x64, case):
    """Against numpy; on a subspace mean 0 and one variance, with the trace about 0; None for tokens."""
    x_1, weights = weighted_data(case)
    came = case.path.moments(jax.tree.map(jnp.asarray, x_1), jnp.asarray(weights))
    paths, parts = case.path.leaves_with(x_1) if hasattr(case.path, "paths") else ([case.path], [x_1])
    found = case.path.leaves_with(came)[1] if hasattr(case.path, "paths") else [came]
    for path, x, moments in zip(paths, parts, found, strict=True):
        if x.dtype.kind == "i":
            assert moments is None
            continue
        mean = np.average(x, axis=0, weights=weights)
        variance = np.average((x - mean) ** 2, axis=0, weights=weights)
        if isinstance(path, egm.paths.CenteredPath):
            mean, trace = np.zeros_like(mean), np.average(np.sum(x**2, axis=-1), weights=weights)
            variance = np.full_like(mean, trace / path.dimension(x.shape[-1]))
        np.testing.assert_allclose(moments.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(moments.variance, variance, rtol=1e-12)
    reference = case.path.reference_energy(case.points, came)
    assert reference.shape == case.path.batch_shape(case.points)
    nothing = case.path.moments(jax.tree.map(jnp.asarray, x_1), jnp.zeros(5))
    assert all(np.all(np.asarray(a) == 0) for a in jax.tree.leaves(nothing))


@every_case
def test_prior_with_moments(x64, case):
    """Normalised and sampled; on Gaussian paths it has the mean and variances of the marginal at t_min."""
    path, space = case.path, case.space
    x_1, weights = weighted_data(case)
    moments = path.moments(jax.tree.map(jnp.asarray, x_1), jnp.asarray(weights))
    log_p = np.asarray(path.prior_log_density(space.nodes, moments))
    mean, second, mass = contract.exact_moments(space, log_p, case.features)
    np.testing.assert_allclose(mass, 1.0, rtol=1e-7)
    shape = jax.tree.map(lambda a: (20_000, *a.shape[1:]), case.points)
    assert contract.max_z(path.draw_prior(KEY, shape, moments).x_0, case.features, mean, second) < 5
    if isinstance(moments, egm.typing.Moments):
        # On a subspace the data's mean is taken for 0, as symmetry has it: half of them turned over.
        both = np.concatenate([x_1, -x_1]) if isinstance(path, egm.paths.CenteredPath) else x_1
        share = np.tile(weights, len(both) // 5) * 5 / len(both)
        marginal = share @ np.exp(log_noising(path, space.nodes, path.t_min, both, 1.0))
        expected = contract.exact_moments(space, np.log(np.maximum(marginal, 1e-300)), case.features)
        # The space ends at 5 standard deviations.
        np.testing.assert_allclose(mean, expected[0], rtol=1e-5, atol=1e-9)


@every_case
@pytest.mark.parametrize("r", [0.6, 1.0])
def test_samples_follow_the_noising_kernel(x64, case, r):
    path, t, n = case.path, 0.3, 20_000
    nodes, _ = at_time(case, r)
    size = jax.tree.leaves(nodes)[0].shape[0]
    for index in {size // 2 + size // 20, size // 3} if size > 50 else {size // 2, size - 1}:
        x_r = contract.take(nodes, np.s_[index : index + 1])
        log_p = log_noising(path, case.space.nodes, t, x_r, r)[0]
        mean, second, _ = contract.exact_moments(case.space, log_p, case.features)
        wide = jax.tree.map(lambda a: jnp.repeat(jnp.asarray(a), n, axis=0), x_r)
        drawn = [path.noise(KEY, wide, r, t)] + ([path.sample(KEY, wide, t)] if r == 1 else [])
        for x_t in drawn:
            assert contract.max_z(x_t, case.features, mean, second) < 5


@every_case
@pytest.mark.parametrize("r", [0.45, 1.0])
def test_proposals_follow_the_normalised_kernel(x64, case, r):
    path, t, k = case.path, 0.3, 20_000
    nodes, log_weights = at_time(case, r)
    x_r = jax.jit(lambda key, x: path.propose(key, x, t, r, k))(KEY, case.points)
    log_q = log_noising(path, case.points, t, nodes, r)
    log_q = log_q - path.log_normalizer(case.points, t, r)[None]
    space = contract.Space(nodes, log_weights, None)
    for i in range(log_q.shape[1]):
        mean, second, mass = contract.exact_moments(space, log_q[:, i], case.features)
        np.testing.assert_allclose(mass, 1.0, rtol=1e-7)
        drawn = contract.take(x_r, np.s_[:, i])
        assert contract.max_z(drawn, case.features, mean, second) < 5


@every_case
def test_generators_agree_with_the_exact_marginal(x64, case):
    """Posterior means of conditional generators at r = 1 and r < 1, and the local form of phi."""
    path, t, phi = case.path, 0.3, exact_phi(case)
    x_t = case.points
    n = jax.tree.leaves(x_t)[0].shape[0]

    @jax.jit
    def posterior_mean(r, nodes, log_weights):
        size = log_weights.shape[0]
        wide = jax.tree.map(lambda a: jnp.broadcast_to(a[:, None], (size, n, *a.shape[1:])), nodes)
        log_w = path.log_noising(x_t, t, wide, r) + jnp.broadcast_to(
            (phi(nodes, jnp.full(size, r)) + log_weights)[:, None], (size, n)
        )
        w = jax.nn.softmax(log_w, axis=0)
        values = path.conditional_generator(x_t, t, wide, r)
        mean = jax.tree.map(lambda v: jnp.sum(v * w.reshape(*w.shape, *(1,) * (v.ndim - 2)), axis=0), values)
        return mean, jax.nn.logsumexp(log_w, axis=0)

    def terminal_mean():
        nodes, log_weights = at_time(case, 1.0)
        wide = jax.tree.map(
            lambda a: jnp.broadcast_to(a[:, None], (len(log_weights), n, *a.shape[1:])), nodes
        )
        log_w = path.log_noising(x_t, t, wide, 1.0)
        log_w = log_w + (log_weights - case.energy(nodes))[:, None] * jnp.ones_like(log_w)
        values = path.conditional_generator(x_t, t, wide, 1.0)
        w = jax.nn.softmax(log_w, axis=0)
        return jax.tree.map(lambda v: jnp.sum(v * w.reshape(*w.shape, *(1,) * (v.ndim - 2)), axis=0), values)

    local = jax.jit(lambda: path.local_generator(phi, x_t, t))()
    naive = jax.jit(terminal_mean)()
    through, phi_t = posterior_mean(0.6, *at_time(case, 0.6))
    np.testing.assert_allclose(phi_t, phi(x_t, t), atol=1e-7)  # the log-marginal recursion
    for came in (naive, through):
        for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(local), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("power", [1.0, 1.7])
def test_masked_marginals_by_enumeration(x64, power):
    """The same against an enumeration that uses none of the path's own formulas."""
    problem = contract.token_problem(power=power)
    path, x, t = problem.path, jnp.asarray(problem.partial), 0.35
    came = jax.jit(lambda: path.local_generator(problem.phi, x, t))()
    np.testing.assert_allclose(came, problem.denoiser(x), atol=1e-12)
    case = contract.token_case(path, problem.sites)._replace(energy=problem)
    phi = jax.jit(exact_phi(case))(x, t)
    np.testing.assert_allclose(phi, problem.phi(x, jnp.full(len(x), t)), atol=1e-12)


@every_case
def test_determined_states_fix_the_terminal_one(x64, case):
    known = np.asarray(case.path.determined(case.points))
    if not known.any():
        return
    x = contract.take(case.points, known)
    data, _ = at_time(case, 1.0)
    reachable = np.isfinite(log_noising(case.path, x, 0.5, data, 1.0))
    assert np.all(reachable.sum(axis=0) == 1)
    masked = contract.take(case.points, ~known)
    reachable = np.isfinite(log_noising(case.path, masked, 0.5, data, 1.0))
    assert np.all(reachable.sum(axis=0) > 1)


def methods(case):
    """Every method on a batch, as functions of (key, x_t, x_r, t, r)."""
    path = case.path

    def total(x, t):
        return sum(jnp.sum(jnp.sin(a + 0.3), axis=-1) for a in jax.tree.leaves(x)) + t

    return {
        "noise": lambda key, x_t, x_r, t, r: path.noise(key, x_r, r, t),
        "log_noising": lambda key, x_t, x_r, t, r: path.log_noising(x_t, t, x_r, r),
        "propose": lambda key, x_t, x_r, t, r: path.propose(key, x_t, t, r, 3),
        "log_normalizer": lambda key, x_t, x_r, t, r: path.log_normalizer(x_t, t, r),
        "conditional_generator": lambda key, x_t, x_r, t, r: path.conditional_generator(x_t, t, x_r, r),
        "local_generator": lambda key, x_t, x_r, t, r: path.local_generator(total, x_t, t),
    }


@first_of_each_class
def test_jit_is_vmap_is_eager(case):
    cast = lambda a: jnp.asarray(a, jnp.float32 if a.dtype.kind == "f" else a.dtype)
    x_t = jax.tree.map(cast, contract.take(case.points, np.s_[:3]))
    t, r = jnp.array([0.1, 0.3, 0.7]), jnp.array([0.2, 0.9, 1.0])
    keys = jax.random.split(KEY, 3)

    def everything(key, x_t, t, r):
        x_r = jax.tree.map(lambda a: a[0], case.path.propose(key, x_t, t, r, 1))
        return {name: fn(key, x_t, x_r, t, r) for name, fn in methods(case).items()}

    arguments = (keys, x_t, t, r)
    mapped = jax.jit(jax.vmap(everything))(*arguments)
    jitted = jax.jit(everything)(*contract.take(arguments, 2))
    eager = everything(*contract.take(arguments, 0))
    for name in mapped:
        for i, one in ((2, jitted), (0, eager)):
            for a, b in zip(*map(jax.tree.leaves, (one[name], mapped[name])), strict=True):
                np.testing.assert_allclose(a, b[i], rtol=2e-5, atol=2e-6, err_msg=name)


@every_case
def test_batch_axes_and_extra_axes(case):
    """[2, 3] batches, and x_r with K in front, give what a loop over them gives."""
    path = case.path
    n = jax.tree.leaves(case.points)[0].shape[0]
    x_t = contract.take(case.points, np.arange(6).reshape(2, 3) % n)
    t, r = jnp.linspace(0.1, 0.6, 6).reshape(2, 3), jnp.linspace(0.7, 1.0, 6).reshape(2, 3)
    x_r = jax.jit(lambda k, x, t, r: path.propose(k, x, t, r, 4))(KEY, x_t, t, r)
    assert path.batch_shape(x_r) == (4, 2, 3)
    both = jax.jit(
        lambda x_t, t, x_r, r: (
            path.log_noising(x_t, t, x_r, r),
            path.conditional_generator(x_t, t, x_r, r),
        )
    )
    came, one = (
        both(x_t, t, x_r, r),
        both(*contract.take((x_t, t), (1, 2)), *(contract.take(x_r, (slice(None), 1, 2)), r[1, 2])),
    )
    assert came[0].shape == (4, 2, 3)
    for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a[:, 1, 2], b, rtol=1e-5, atol=1e-6)


@every_case
def test_equal_paths_share_a_trace(case):
    twin = contract.cases(egm.paths, "PATHS")[1][[c is case for c in CASES].index(True)].path
    assert twin == case.path
    assert hash(twin) == hash(case.path)
    count = 0

    def fn(path, x):
        nonlocal count
        count += 1
        return path.log_normalizer(x, 0.5, 1.0)

    jitted = jax.jit(fn, static_argnums=0)
    jitted(case.path, case.points)
    jitted(twin, case.points)
    assert count == 1
    assert math.isfinite(float(jnp.sum(jitted(twin, case.points))))
