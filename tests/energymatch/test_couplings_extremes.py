"""Plans where sizes differ: far points, far batches, scales, duplicates; against SciPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from energymatch import couplings
from energymatch.couplings import costs

KEY = jax.random.key(0)
SIZE = 64
exact = jax.jit(couplings.exact_assignment)
entropic = jax.jit(couplings.sinkhorn_plan)
pair = jax.jit(couplings.exact_ot)

KINDS = {
    "plain": lambda a, b: (a, b),
    "one far": lambda a, b: (a, _far(b, 1, 3e4)),
    "one far in each": lambda a, b: (_far(a, 1, -1e4), _far(b, 1, 3e4)),
    "the same far place": lambda a, b: (_far(a, 1, 1e4), _far(b, 1, 1e4)),
    "many far": lambda a, b: (_far(a, 5, 1e3), _far(b, 7, 1e4)),
    "shifted": lambda a, b: (a, b + 2000),
    "both shifted": lambda a, b: (a + 500, b - 2000),
    "shifted by dimension": lambda a, b: (a, b + np.linspace(-1e3, 1e3, b.shape[1])),
    "tiny": lambda a, b: (1e-6 * a, 1e-6 * b),
    "huge": lambda a, b: (1e6 * a, 1e6 * b),
    "anisotropic": lambda a, b: tuple(x * np.logspace(-3, 3, x.shape[1]) for x in (a, b)),
    "duplicates": lambda a, b: (np.repeat(a[: SIZE // 2], 2, axis=0), np.round(b)),
    "lognormal": lambda a, b: (np.exp(4 * a), np.exp(4 * b)),
    "cauchy": lambda a, b: (a / b[::-1], b / np.roll(a, 1, axis=0)),
}


def _far(x, count, factor):
    x = x.copy()
    x[:count] = factor * (1 + 0.1 * x[:count])
    return x


def batches(kind, dim, seed):
    rng = np.random.default_rng([seed, dim])
    made = KINDS[kind](*rng.normal(size=(2, SIZE, dim)))
    return tuple(x.astype(np.float32) for x in made)


def compare(cost, plan, by_size):
    """Relative excess over SciPy's, of the total and of the `by_size` cheapest pairs."""
    np.testing.assert_array_equal(np.sort(plan), np.arange(SIZE))
    rows, columns = linear_sum_assignment(cost)
    ours, best = np.sort(cost[rows, plan]), np.sort(cost[rows, columns])
    floor = 1e-300
    return ours.sum() / max(best.sum(), floor) - 1, ours[:by_size].sum() / max(
        best[:by_size].sum(), floor
    ) - 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 4, 30])
def test_pairs_are_scipys_in_float64(kind, dim):
    """The total, and that of the 52 cheapest pairs of 64, which one far point's rounding would drown."""
    for seed in range(4):
        x_0, x_1 = batches(kind, dim, seed)
        cost = cdist(x_0.astype(float), x_1.astype(float), "sqeuclidean")
        order = np.asarray(pair(KEY, x_0, x_1)[1])
        plan = np.array([np.flatnonzero(np.all(x_1 == row, axis=1))[0] for row in order])
        if len(np.unique(x_1, axis=0)) < SIZE:
            # Equal rows of x_1: which one is meant does not matter.
            total = np.sum((x_0.astype(float) - order) ** 2)
            best = cost[linear_sum_assignment(cost)].sum()
            assert total <= best * (1 + 1e-6)
            continue
        excess, near = compare(cost, plan, 52)
        # Above 16 dimensions distances come from inner products: the total has the rounding of its largest.
        assert excess < (1e-9 if dim <= 16 else 1e-7)
        assert near < 1e-6


@pytest.mark.parametrize("dim", [1, 4, 30])
def test_assignments_of_a_given_float32_matrix(dim):
    """SciPy sees the same float32 matrix: also where it holds few digits of what others' costs differ by."""
    for kind in KINDS:
        for seed in range(2):
            x_0, x_1 = batches(kind, dim, seed)
            cost = cdist(x_0.astype(float), x_1.astype(float), "sqeuclidean").astype(np.float32)
            excess, near = compare(cost.astype(float), np.asarray(exact(cost)), 52)
            assert excess < 1e-9, kind
            if "shifted" not in kind:  # those are full of ties, after rounding
                assert near < 1e-6, kind


def test_the_reported_far_point():
    """64 normals, one at 3e4: the others' pairs cost .233 as SciPy's, not 1.66 (the mean of 63)."""
    x_0, x_1 = batches("one far", 2, 0)
    cost = np.asarray(costs.squared_euclidean(x_0, x_1))
    rows, columns = linear_sum_assignment(cost)
    others = lambda plan: np.sort(cost[rows, plan])[:-1].mean()
    np.testing.assert_allclose(others(np.asarray(exact(cost))), others(columns), rtol=1e-6)


def test_a_shift_changes_no_pair():
    """Exactly where the shift is a power of two and rounds nothing, else but for rounding of the data."""
    x_0, x_1 = batches("plain", 4, 0)
    x_1 = np.round(x_1 * 256) / 256
    for couple in (couplings.exact_ot, couplings.sinkhorn):
        near, far = couple(KEY, x_0, x_1)[1], couple(KEY, x_0, x_1 + np.float32(2048))[1]
        same = np.all(np.asarray(near) == np.asarray(far) - 2048, axis=1)
        assert np.mean(same) == 1


@pytest.mark.parametrize("where", ["x_0", "x_1", "both"])
@pytest.mark.parametrize("distance", [30.0, 100.0, 1e4])
def test_a_far_point_does_not_change_the_unit_of_sinkhorn(where, distance):
    """Effective number of partners of the other rows, exp of their entropy: within 2% of without."""
    x_0, x_1 = batches("plain", 2, 1)
    partners = lambda cost: np.exp(_entropy(np.asarray(entropic(jnp.asarray(cost)))[1:, 1:])).mean()
    clean = partners(cdist(x_0, x_1, "sqeuclidean").astype(np.float32))
    if where in ("x_0", "both"):
        x_0[0] = distance
    if where in ("x_1", "both"):
        x_1[0] = -distance if where == "x_1" else distance
    far = partners(cdist(x_0, x_1, "sqeuclidean").astype(np.float32))
    assert abs(far / clean - 1) < 0.1
    assert clean < 20  # of 64: nowhere near independent


def _entropy(plan):
    share = plan / plan.sum(1, keepdims=True)
    return -np.sum(np.where(share > 0, share * np.log(np.where(share > 0, share, 1)), 0), axis=1)


@pytest.mark.parametrize("dim", [2, 40])
def test_squared_distances_far_from_the_origin(dim):
    """Against float64, with one row so far out that the mean of the rest lies nowhere near them."""
    rng = np.random.default_rng(0)
    x_0, x_1 = (rng.normal(size=(2, SIZE, dim)) + 1000).astype(np.float32)
    x_1[0] = 3e4
    exact_cost = cdist(x_0.astype(float), x_1.astype(float), "sqeuclidean")
    np.testing.assert_allclose(costs.squared_euclidean(x_0, x_1), exact_cost, rtol=2e-5)


def test_centred_squares_differ_by_rows_and_columns_alone():
    x_0, x_1 = batches("plain", 3, 0)
    a, b = costs.squared_euclidean(x_0, x_1 + 3), costs.squared_euclidean_of_centred(x_0, x_1 + 3)
    gap = np.asarray(a - b, float)
    gap = gap - gap.mean(0) - gap.mean(1, keepdims=True) + gap.mean()
    np.testing.assert_allclose(gap, 0, atol=1e-4)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
@pytest.mark.parametrize("dim", [2, 20])
def test_line_of_sight_far_from_the_origin(shift, dim):
    """Its default radius, and the whole cost, are those of the same data about the origin."""
    rng = np.random.default_rng(0)
    x_0, x_1, landmarks = (rng.normal(size=(3, SIZE, dim)) * [[[2]], [[1]], [[1]]]).astype(np.float32)
    near = costs.line_of_sight(landmarks)(x_0, x_1)
    far = costs.line_of_sight(landmarks + np.float32(shift))(x_0 + np.float32(shift), x_1 + np.float32(shift))
    # A line that grazes a ball may meet it or not by the data's rounding alone.
    close = np.isclose(far, near, rtol=0.01 if shift else 1e-6)
    assert np.mean(close) > 0.97
