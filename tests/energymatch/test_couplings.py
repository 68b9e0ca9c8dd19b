"""Couplings: exact plans against SciPy, Sinkhorn against float64, and the global batch on many devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from energymatch import couplings
from energymatch.couplings import costs

KEY = jax.random.key(0)
exact = jax.jit(couplings.exact_assignment)
entropic = jax.jit(couplings.sinkhorn_plan, static_argnames=("tolerance", "max_iterations"))
METHODS = {
    "independent": jax.jit(couplings.independent, static_argnames=("axis_name",)),
    "exact_ot": jax.jit(couplings.exact_ot, static_argnames=("cost", "axis_name")),
    "sinkhorn": jax.jit(couplings.sinkhorn, static_argnames=("cost", "max_iterations", "axis_name")),
}


def moons(rng, size):
    """(x_0, x_1) [B, 2] float32: a wide Gaussian and two arcs."""
    angle, side = np.pi * rng.random((size, 1)), rng.choice([-1, 1], (size, 1))
    arcs = np.concatenate([3 * np.cos(angle) + side, side * (3 * np.sin(angle) - 1)], 1)
    return (4 * rng.normal(size=(size, 2))).astype(np.float32), arcs.astype(np.float32)


def matrix(kind, size):
    rng = np.random.default_rng(size)
    if kind == "distances":
        return cdist(*moons(rng, size), "sqeuclidean")
    return {
        "uniform": rng.random((size, size)),
        "tied": rng.integers(3, size=(size, size)),
        "constant": np.full((size, size), 7.0),
        "zero": np.zeros((size, size)),
        "product": np.outer(np.arange(size), np.arange(size)),  # the worst case of shortest paths
        "duplicates": rng.random((1 + size // 4, size))[rng.integers(1 + size // 4, size=size)],
        "heavy tails": rng.standard_cauchy((size, size)),
        "outlier": rng.random((size, size)) - 1e6 * (np.arange(size**2).reshape(size, size) == 0),
        "huge": 6e38 * rng.random((size, size)) - 3e38,
        "tiny": 1e-30 * rng.random((size, size)),
        "shifted": 1e4 + rng.random((size, size)),
    }[kind]


@pytest.mark.parametrize("size", [1, 2, 33, 96])
def test_exact_assignment_costs_what_scipys_does(size):
    """In float64 sums; both solvers see the float32 matrix, whose rounding is that of its largest cost."""
    kinds = "distances uniform tied constant zero product duplicates outlier huge tiny shifted".split()
    for kind in [*kinds, "heavy tails"]:
        cost = matrix(kind, size).astype(np.float32)
        plan = np.asarray(exact(cost))
        assert plan.dtype == np.int32
        np.testing.assert_array_equal(np.sort(plan), np.arange(size), err_msg=kind)
        wide = cost.astype(np.float64)
        best = wide[linear_sum_assignment(wide)].sum()
        excess = wide[np.arange(size), plan].sum() - best
        # Potentials are sums of costs above the row's least, each rounded: size such roundings a pair.
        spread = np.max(wide - wide.min(1, keepdims=True))
        assert -1e-12 * np.abs(wide).max() * size <= excess <= 1e-7 * size * spread, kind


def test_exact_assignment_in_float64_and_float16(x64):
    cost = matrix("distances", 64)
    rows, columns = linear_sum_assignment(cost)
    np.testing.assert_array_equal(exact(cost), columns)
    half = cost.astype(np.float16)
    best = half.astype(float)[linear_sum_assignment(half.astype(float))].sum()
    np.testing.assert_allclose(half.astype(float)[rows, exact(half)].sum(), best, rtol=1e-5)


def test_exact_assignment_under_vmap():
    costs = np.stack([matrix(k, 17) for k in ("distances", "tied", "constant")]).astype(np.float32)
    for plan, cost in zip(jax.jit(jax.vmap(couplings.exact_assignment))(costs), costs):
        np.testing.assert_array_equal(plan, exact(cost))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_costs_that_are_no_numbers(bad):
    """A bad row and a bad column: the pairs of the others are the optimum without both."""
    cost = matrix("distances", 40).astype(np.float32)
    rows, columns = linear_sum_assignment(np.delete(np.delete(cost, 3, 0), 7, 1))
    expected = np.insert(columns + (columns >= 7), 3, 7)
    broken = cost.copy()
    broken[3], broken[:, 7] = bad, bad
    np.testing.assert_array_equal(exact(broken), expected)
    single = cost.copy()
    single[5, np.asarray(exact(cost))[5]] = bad  # a pair of the optimum: now it is the last choice
    assert exact(single)[5] != exact(cost)[5]
    np.testing.assert_array_equal(np.sort(exact(np.full((6, 6), bad, np.float32))), np.arange(6))
    plan = np.asarray(entropic(broken, 0.05))
    assert np.all(np.isfinite(plan))
    np.testing.assert_allclose(plan.sum(0), 1 / 40, rtol=1e-4)
    x_0, x_1 = moons(np.random.default_rng(0), 40)
    x_1[7] = bad
    for name in ("exact_ot", "sinkhorn"):
        _, paired = METHODS[name](KEY, x_0, x_1)
        assert np.sum(~np.isfinite(paired[:, 0])) <= 3
    _, paired = METHODS["exact_ot"](KEY, x_0, x_1)
    assert np.sum(~np.isfinite(paired[:, 0])) == 1


def test_squared_euclidean_far_from_the_origin():
    x_0, x_1 = moons(np.random.default_rng(1), 50)
    exact_cost = cdist(x_0.astype(float), x_1.astype(float), "sqeuclidean")
    np.testing.assert_allclose(costs.squared_euclidean(x_0, x_1), exact_cost, rtol=1e-5, atol=1e-4)
    far = costs.squared_euclidean(x_0 + 1024, x_1 + 1024)  # float32 itself is rounded to 6e-5 there
    # Twice a difference of up to 20 times that rounding in each of 2 axes: 5e-3; uncentred it is off by .5.
    np.testing.assert_allclose(far, exact_cost, atol=1e-2)
    images = [x.reshape(50, 2, 1, 1) for x in (x_0, x_1)]
    np.testing.assert_array_equal(costs.squared_euclidean(*images), costs.squared_euclidean(x_0, x_1))
    halves = costs.squared_euclidean(x_0.astype(jnp.bfloat16), x_1.astype(jnp.bfloat16))
    assert halves.dtype == np.float32


def float64_sinkhorn(cost, regularization, iterations=20000):
    """The plan by plain scaling in float64, in the units that the docstring states."""
    epsilon = regularization * np.mean(cost - cost.min(1, keepdims=True))
    kernel = np.exp(-(cost - cost.min()) / epsilon)
    n = len(cost)
    v = np.ones(n)
    for _ in range(iterations):
        u = 1 / n / (kernel @ v)
        v = 1 / n / (kernel.T @ u)
    return u[:, None] * kernel * v


@pytest.mark.parametrize("regularization", [0.02, 0.2, 2.0])
@pytest.mark.parametrize("kind", ["distances", "uniform"])
def test_sinkhorn_against_float64(kind, regularization):
    cost = matrix(kind, 32)
    plan = entropic(cost.astype(np.float32), regularization, tolerance=1e-5, max_iterations=20000)
    # The L1 distance of plans; the tolerance of the marginals bounds it up to a modest factor.
    assert np.abs(plan - float64_sinkhorn(cost, regularization)).sum() < 2e-3


def test_sinkhorn_marginals_and_limits():
    cost = matrix("distances", 48).astype(np.float32)
    for regularization in (1e-3, 0.05, 1.0, 1e4):
        plan = np.asarray(entropic(cost, regularization, max_iterations=20000))
        np.testing.assert_allclose(plan.sum(0), 1 / 48, rtol=1e-3)
        assert np.abs(plan.sum(1) - 1 / 48).sum() <= 1.1e-3  # the tolerance and float32
    np.testing.assert_allclose(plan, np.full((48, 48), 1 / 48**2), rtol=2e-3)
    small = np.asarray(entropic(cost, 1e-3, max_iterations=20000))
    best = cost[linear_sum_assignment(cost)].mean()
    uniform = cost.mean()
    assert abs((small * cost).sum() - best) < 1e-3 * (uniform - best)
    np.testing.assert_allclose(entropic(jnp.ones((5, 5))), np.full((5, 5), 0.04), rtol=1e-5)


def test_sinkhorn_does_not_see_shift_and_scale():
    cost = matrix("distances", 24).astype(np.float32)
    plan = entropic(cost)
    shift = np.arange(24, dtype=np.float32)[:, None]
    np.testing.assert_allclose(entropic(cost + shift), plan, atol=1e-5)
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(entropic(scale * cost), plan, atol=1e-5)


def test_sinkhorn_stops_at_its_maximum():
    cost = matrix("distances", 24).astype(np.float32)
    short = entropic(cost, 0.01, tolerance=0.0, max_iterations=3)
    assert np.abs(short - entropic(cost, 0.01)).sum() > 0.1
    np.testing.assert_allclose(short.sum(0), np.full(24, 1 / 24), rtol=1e-4)


def test_sinkhorn_draws_from_its_plan():
    """4,000 draws of each of 6 rows; 4.5 standard errors of a frequency, for 36 of them."""
    x_0, x_1 = moons(np.random.default_rng(2), 6)
    draw = lambda k: couplings.sinkhorn(k, x_0, x_1, regularization=0.3)[1]
    drawn = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 4000))
    plan = 6 * np.asarray(entropic(costs.squared_euclidean_of_centred(x_0, x_1), 0.3))
    plan /= plan.sum(1, keepdims=True)
    frequency = np.mean(np.all(np.asarray(drawn)[:, :, None] == x_1, axis=-1), axis=0)
    np.testing.assert_array_less(np.abs(frequency - plan), 4.5 * np.sqrt(plan * (1 - plan) / 4000) + 1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_pairs_of_images(name):
    keys = jax.random.split(KEY, 2)
    x_0, x_1 = (jax.random.normal(k, (16, 8, 8, 1)) for k in keys)
    left, right = METHODS[name](KEY, x_0, x_1)
    np.testing.assert_array_equal(left, x_0)
    assert right.shape == x_1.shape
    index = [int(np.flatnonzero([np.array_equal(row, x) for x in x_1])[0]) for row in right]
    if name != "sinkhorn":
        assert sorted(index) == list(range(16))
    if name == "exact_ot":
        flat = [np.asarray(x, np.float64).reshape(16, -1) for x in (x_0, x_1)]
        np.testing.assert_array_equal(index, linear_sum_assignment(cdist(*flat, "sqeuclidean"))[1])


def test_independent_is_a_uniform_permutation():
    """Every one of the 24 orders of 4 examples, 4.5 standard errors of 1/24 in 6,000 draws."""
    x = np.arange(4.0, dtype=np.float32)
    shuffle = jax.jit(jax.vmap(lambda k: couplings.independent(k, x, x)[1]))
    drawn = np.asarray(shuffle(jax.random.split(KEY, 6000)))
    orders, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(orders) == 24
    assert np.max(np.abs(counts / 6000 - 1 / 24)) < 4.5 * np.sqrt(1 / 24 * 23 / 24 / 6000)


def test_a_cost_of_ones_own():
    x_0, x_1 = moons(np.random.default_rng(3), 20)
    cost = lambda a, b: jnp.abs(a[:, None, 0] - b[None, :, 0])  # in one dimension: sorted with sorted
    _, paired = METHODS["exact_ot"](KEY, x_0, x_1, cost=lambda a, b: cost(a, b) ** 2)
    np.testing.assert_array_equal(paired[np.argsort(x_0[:, 0]), 0], np.sort(x_1[:, 0]))
    options = {"cost": cost, "regularization": 1e-3, "max_iterations": 20000}
    draw = lambda k: couplings.sinkhorn(k, x_0, x_1, **options)[1]
    near = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 1000))[..., 0]
    total = np.mean(np.abs(np.sort(x_0[:, 0]) - np.sort(x_1[:, 0])))
    np.testing.assert_allclose(np.mean(np.abs(x_0[None, :, 0] - near)), total, rtol=0.02)


def test_pairs_carry_a_gradient_and_plans_none():
    x_0, x_1 = moons(np.random.default_rng(4), 8)
    for couple in METHODS.values():
        loss = lambda x, couple=couple: jnp.sum(couple(KEY, x_0, x)[1] * x_0)
        gradient = jax.jit(jax.grad(loss))(x_1)
        # The gradient in a row is the sum of the x_0 that it was paired with.
        np.testing.assert_allclose(jnp.sum(gradient * x_1), loss(x_1), rtol=1e-5)
    zero = jax.grad(lambda c: jnp.sum(entropic(c) * c))(jnp.eye(4))
    np.testing.assert_allclose(zero, entropic(jnp.eye(4)), rtol=1e-6)


@functools.cache
def on_four_devices(name):
    """The coupling of the global batch under shard_map, with one key, and under pmap, with [4, 8] keys."""
    couple = functools.partial(METHODS[name], axis_name="i")
    devices = jax.devices()[:4]
    mesh = jax.make_mesh((4,), ("i",), (jax.sharding.AxisType.Auto,), devices=devices)
    specs = {"mesh": mesh, "in_specs": (P(), P("i"), P("i")), "out_specs": P("i")}
    return jax.jit(jax.shard_map(couple, **specs)), jax.pmap(couple, "i", devices=devices)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_four_devices_pair_as_one(name, tied):
    x_0, x_1 = moons(np.random.default_rng(5), 32)
    if tied:
        x_0, x_1 = np.round(x_0 / 4), np.round(x_1 / 4)
    whole = METHODS[name](KEY, x_0, x_1)
    sharded, mapped = on_four_devices(name)
    came = sharded(KEY, x_0, x_1)
    split = lambda x: x.reshape(4, 8, *x.shape[1:])
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(np.arange(32))
    parts = mapped(split(keys), split(x_0), split(x_1))
    for i in range(2):
        np.testing.assert_array_equal(came[i], whole[i])
        np.testing.assert_array_equal(parts[i].reshape(32, 2), whole[i])


@pytest.mark.parametrize("name", ["exact_ot", "sinkhorn"])
def test_each_device_for_itself(name, mesh8):
    """Without `axis_name` inside shard_map a device couples its own rows."""
    x_0, x_1 = moons(np.random.default_rng(6), 64)
    fn = jax.shard_map(lambda a, b: METHODS[name](KEY, a, b), mesh=mesh8, in_specs=P("i"), out_specs=P("i"))
    _, came = jax.jit(fn)(x_0, x_1)
    for rows in np.split(np.arange(64), 8):
        np.testing.assert_array_equal(came[rows], METHODS[name](KEY, x_0[rows], x_1[rows])[1])


def test_one_trace():
    traces = []

    @jax.jit
    def fn(key, x_0, x_1):
        traces.append(1)
        return couplings.exact_ot(key, x_0, x_1)

    for seed in range(3):
        fn(jax.random.key(seed), *moons(np.random.default_rng(seed), 8))
    assert len(traces) == 1


X = jnp.ones((4, 2))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: couplings.exact_ot(KEY, X, X[:3]),
         ValueError, r"x_0 and x_1 must share a batch size of 1 or more, got \(4, 2\) and \(3, 2\)"),
        (lambda: couplings.independent(KEY, X[:0], X[:0]), ValueError, "batch size of 1 or more"),
        (lambda: couplings.sinkhorn(KEY, X, X[:, :1]),
         ValueError, r"x_0 has event shape \(2,\), x_1 has \(1,\)"),
        (lambda: couplings.exact_ot(KEY, X.astype(int), X), TypeError, "x_0 must be floating point"),
        (lambda: couplings.exact_ot(KEY, X, X[0, 0]), ValueError, "x_1 must have at least 1 axes"),
        (lambda: couplings.exact_ot(0, X, X), TypeError, "key must be a typed PRNG key"),
        (lambda: couplings.independent(jax.random.split(KEY, 3), X, X),
         ValueError, r"key must be one key or have shape \(4,\), got shape \(3,\)"),
        (lambda: couplings.exact_ot(KEY, X, X, cost=lambda a, b: jnp.sum(a - b, 1)),
         ValueError, r"cost must return shape \(4, 4\), got \(4,\)"),
        (lambda: couplings.exact_assignment(X),
         ValueError, r"cost_matrix must have shape \[B, B\] with B >= 1, got \(4, 2\)"),
        (lambda: couplings.exact_assignment(jnp.zeros((0, 0))), ValueError, "with B >= 1"),
        (lambda: couplings.exact_assignment(jnp.eye(3, dtype=int)),
         TypeError, "cost_matrix must be floating point, got dtype int32"),
        (lambda: couplings.sinkhorn_plan(jnp.eye(3), 0.0),
         ValueError, "regularization must be finite and positive, got 0.0"),
        (lambda: couplings.sinkhorn_plan(jnp.eye(3), jnp.ones(3)),
         ValueError, r"regularization must be a scalar, got shape \(3,\)"),
        (lambda: couplings.sinkhorn(KEY, X, X, tolerance=-1.0),
         ValueError, "tolerance must be finite and non-negative, got -1.0"),
        (lambda: couplings.sinkhorn(KEY, X, X, max_iterations=0),
         ValueError, "max_iterations must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
