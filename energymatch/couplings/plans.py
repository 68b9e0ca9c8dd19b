"""Optimal transport between B rows and B columns of a cost matrix, inside jit: exact and entropic.

`energymatch.couplings` pairs samples by these plans and shows both functions under its own name.
No gradient flows through a plan.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from egm import checks, collectives
from egm.checks import number
from egm.typing import Array

__all__ = ["exact_assignment", "sinkhorn_plan"]

# The warm start of the exact assignment: temperatures .3 * .5^n of the unit, n < 8, with 10
# iterations each. At B = 512 it takes the path steps of moons from 32,485 to 2,400 (random: 4,750 to 1,389).
_LEVELS, _ITERATIONS, _FIRST, _RATIO = 8, 10, 0.3, 0.5


_FAR = 20.0  # multiple of the median regret above which one tells nothing of the unit


_PASSES = 8  # at most, of the exact assignment; two where costs are of one size


_ANNEALING = 0.9  # of sinkhorn_plan: the factor by which the temperature falls to its final value


def exact_assignment(cost_matrix: Array) -> Array:
    """The permutation p with the least sum_i cost[i, p(i)], up to the rounding of its dtype.

    Shortest augmenting paths from a good start: Sinkhorn iterations give the columns' prices, each row
    takes its cheapest column, and what is still free is assigned by Dijkstra's algorithm. The result is
    optimal for any start; a good one leaves few rows and short paths. O(B^3) at worst, and always ends.
    Then the prices are taken off the costs and the rest is solved again, until nothing changes: one row or
    column of huge costs would else drown the differences of all others in its rounding.

    Args:
      cost_matrix: [B, B] float; entries that are not finite stand for a cost above all finite ones, so
        that they are taken last and change no other pair's price.

    Returns:
      [B] int32, the column of each row.

    Raises:
      TypeError: the matrix is not floating. ValueError: it is not square.

    Source: Jonker and Volgenant (1987), Computing 38, 325-340 (the augmentation step).
    """
    regret, unit = _regret(_square(cost_matrix))
    price = _warm_start(regret, unit)

    def refine(state):
        regret, price, before, _, n = state
        left = _less(regret, price)
        price, column_of = _solve(left, before)
        return left, price, column_of, jnp.any(column_of != before), n + 1

    none = jnp.zeros((), jnp.int32)
    state = (regret, price, jnp.full(regret.shape[:1], -1, jnp.int32), none == 0, none)
    state = collectives.varying_like(state, (regret,) * 5)
    return lax.while_loop(lambda s: s[3] & (s[4] < _PASSES), refine, state)[2]


def sinkhorn_plan(
    cost_matrix: Array,
    regularization: Array | float = 0.05,
    *,
    tolerance: float = 1e-3,
    max_iterations: int = 1000,
) -> Array:
    """The entropic plan: argmin <P, cost> - epsilon H(P) over P with both marginals 1/B.

    By iterations in the log domain, the temperature falling geometrically to epsilon at the start.

    Args:
      cost_matrix: [B, B] float; entries that are not finite stand for a cost above all finite ones.
      regularization: epsilon in units of the matrix, the mean of cost[i, j] - min_j cost[i, j] over all
        that are not above 20 times their median, so that a few far points do not change it: towards 0
        the plan is the exact assignment (in float32 down to about 1e-3), far above 1 it is uniform.
      tolerance: stop when sum_i |sum_j P[i, j] - 1/B|, the error of the rows, is below it.
      max_iterations: stop there in any case.

    Returns:
      [B, B] plan with sum 1; its columns sum to 1/B, its rows within the tolerance.

    Raises:
      TypeError: the matrix is not floating, or an argument is no number. ValueError: the matrix is not
        square, or an argument is out of range.

    Source: Cuturi, Sinkhorn distances (arXiv 1306.0895); Peyre and Cuturi (arXiv 1803.00567), section 4.4.
    """
    regularization = number(regularization, "regularization", "finite and positive")
    tolerance = checks.positive_float(tolerance, "tolerance", allow_zero=True)
    max_iterations = checks.positive_int(max_iterations, "max_iterations")
    regret, unit = _regret(_square(cost_matrix))
    final = (regularization * unit).astype(regret.dtype)

    def body(state):
        before, columns, _, epsilon, n = state
        settled = epsilon == final  # the last iteration was one at the final temperature
        epsilon = jnp.maximum(final, unit * _ANNEALING**n)
        rows = _soft_minimum(regret - columns[None], epsilon, axis=1)
        error = jnp.where(settled, jnp.mean(jnp.abs(jnp.exp((before - rows) / epsilon) - 1)), jnp.inf)
        return rows, _soft_minimum(regret - rows[:, None], epsilon, axis=0), error, epsilon, n + 1

    zeros, none = jnp.zeros_like(regret[0]), jnp.zeros_like(unit)
    state = (zeros, zeros, none + jnp.inf, none, jnp.zeros((), jnp.int32))
    state = collectives.varying_like(state, (regret,) * 5)
    rows, columns, _, epsilon, _ = lax.while_loop(
        lambda s: (s[2] > tolerance) & (s[4] < max_iterations), body, state
    )
    return jnp.exp((rows[:, None] + columns[None] - regret) / epsilon) / regret.size


def _solve(regret: Array, before: Array) -> tuple[Array, Array]:
    """([B] prices of the columns, [B] the column of each row) of least total regret.

    From the assignment `before` (-1 for none) wherever it takes the cheapest column of a row.
    """
    size = regret.shape[0]
    rows = jnp.arange(size, dtype=jnp.int32)
    known = jnp.maximum(before, 0)
    kept = (before >= 0) & (regret[rows, known] <= jnp.min(regret, axis=1))
    wanted = jnp.where(kept, known, jnp.argmin(regret, axis=1)).astype(jnp.int32)
    # Of the rows that want a column the first that had it takes it, else the first.
    place = jnp.where(kept, rows, rows + size)
    first = jnp.full(size, 2 * size, jnp.int32).at[wanted].min(place)
    column_of = jnp.where(first[wanted] == place, wanted, -1)
    row_of = jnp.where(first < 2 * size, first % size, -1)
    state = collectives.varying_like((jnp.zeros_like(regret[0]), column_of, row_of), (regret[0],) * 3)
    price, column_of, _ = lax.while_loop(lambda s: jnp.any(s[1] < 0), lambda s: _augment(regret, *s), state)
    return price, column_of


def _augment(regret: Array, price: Array, column_of: Array, row_of: Array) -> tuple[Array, Array, Array]:
    """Assigns the first free row along the shortest path to a free column, and updates the prices."""
    columns = jnp.arange(regret.shape[0], dtype=jnp.int32)
    # Under vmap this runs on for those that are done: with no free row both loops end at once.
    start = jnp.where(jnp.any(column_of < 0), jnp.argmax(column_of < 0), -1).astype(jnp.int32)

    def scan_row(state):
        distance, parent, done, row, _, offset, _ = state
        through = regret[row] - price - offset
        shorter = (through < distance) & ~done
        distance = jnp.where(shorter, through, distance)
        parent = jnp.where(shorter, row, parent)
        open_distance = jnp.where(done, jnp.inf, distance)
        nearest = jnp.min(open_distance)
        # Among equals a free column ends the search at once: a constant matrix takes one step a row.
        column = jnp.argmax(jnp.where(open_distance == nearest, 1 + (row_of < 0), 0)).astype(jnp.int32)
        offset = regret[row_of[column], column] - price[column] - nearest
        return distance, parent, done | (columns == column), row_of[column], column, offset, nearest

    zero = jnp.zeros_like(price[0])
    state = (jnp.full_like(price, jnp.inf), column_of, column_of < -1, start, start, zero, zero)
    state = collectives.varying_like(state, (regret,) * 7)
    distance, parent, done, _, column, _, nearest = lax.while_loop(lambda s: s[3] >= 0, scan_row, state)
    price = price + jnp.where(done, distance - nearest, 0.0)

    def flip(state):
        column_of, row_of, column, _ = state
        row = parent[column]
        return column_of.at[row].set(column), row_of.at[column].set(row), column_of[row], row

    state = (column_of, row_of, column, jnp.full_like(start, -1))
    column_of, row_of, _, _ = lax.while_loop(lambda s: s[3] != start, flip, state)
    return price, column_of, row_of


def _warm_start(regret: Array, unit: Array) -> Array:
    """[B] column prices near the optimal ones, by Sinkhorn's iterations at falling temperatures."""

    def level(n, price):
        epsilon = unit * _FIRST * _RATIO**n
        rows = _soft_minimum(regret - price[None], epsilon, axis=1)
        kernel = jnp.exp((rows[:, None] + price[None] - regret) / epsilon)

        def scale(_, factors):
            # Matrix-vector products where the log domain takes exponentials; the floor keeps them finite.
            by_column = 1 / jnp.maximum(factors[0] @ kernel, 1e-20)
            return 1 / jnp.maximum(kernel @ by_column, 1e-20), by_column

        ones = collectives.varying_like((jnp.ones_like(price),) * 2, (regret,) * 2)
        return price + epsilon * jnp.log(lax.fori_loop(0, _ITERATIONS, scale, ones)[1])

    prices = collectives.varying_like(jnp.zeros_like(regret[0]), regret)
    return lax.fori_loop(0, _LEVELS, level, prices)


def _soft_minimum(x: Array, epsilon: Array, axis: int) -> Array:
    """-epsilon log mean exp(-x/epsilon): the potential that makes one marginal of the plan uniform."""
    return -epsilon * (jax.nn.logsumexp(-x / epsilon, axis=axis) - jnp.log(float(x.shape[axis])))


def _regret(cost: Array) -> tuple[Array, Array]:
    """Costs above the least of their row, then of their column, those not finite above all; and their unit.

    No plan depends on a constant added to a row or a column; the scale keeps huge and tiny costs in range.
    The unit is a typical regret of a row, as `sinkhorn_plan` says; 1 where all are 0.
    """
    finite = jnp.isfinite(cost)
    # A sixteenth: the difference of two extremes is finite, and its reciprocal is no subnormal number.
    part = _above_least(jnp.where(finite, cost / 16, jnp.inf), finite, axis=1)
    unit = _typical(part, finite)
    part = _above_least(part, finite, axis=0)
    largest = jnp.max(jnp.where(finite, part, 0.0))
    scale = jnp.where(largest > 0, largest, 1.0)
    return jnp.where(finite, part / scale, 2.0), jnp.where(unit > 0, unit / scale, 1.0)


def _above_least(x: Array, finite: Array, axis: int) -> Array:
    least = jnp.min(x, axis=axis, keepdims=True)
    return jnp.where(finite, x - jnp.where(jnp.isfinite(least), least, 0.0), jnp.inf)


def _typical(regret: Array, finite: Array) -> Array:
    """The mean of the regrets that are not above _FAR times a median (of 32 rows and columns at most)."""
    stride = -(-regret.shape[0] // 32)
    few = jnp.where(finite, regret, jnp.nan)[::stride, ::stride]
    middle = jnp.nan_to_num(jnp.nanmedian(few))
    counted = finite & (regret <= jnp.where(middle > 0, _FAR * middle, jnp.inf))
    largest = jnp.max(jnp.where(counted, regret, 0.0))
    scale = jnp.where(largest > 0, largest, 1.0)
    share = jnp.sum(jnp.where(counted, regret / scale, 0.0)) / jnp.maximum(jnp.sum(counted), 1)
    return share * scale


def _less(regret: Array, price: Array) -> Array:
    """Regrets less the columns' prices and the least of each row: the same problem, in smaller numbers."""
    row = jnp.min(regret - price[None], axis=1, keepdims=True)
    # Prices and rows may be large and of opposite signs: their rounding, together, is a constant.
    left = regret - (price[None] + row)
    return left - jnp.min(left, axis=1, keepdims=True)


def _square(cost_matrix: Array) -> Array:
    """The matrix without its gradient, at least in float32."""
    cost_matrix = lax.stop_gradient(checks.float_array(cost_matrix, "cost_matrix"))
    if cost_matrix.ndim != 2 or cost_matrix.shape[0] != cost_matrix.shape[1] or cost_matrix.size == 0:
        raise ValueError(f"cost_matrix must have shape [B, B] with B >= 1, got {cost_matrix.shape}")
    return cost_matrix.astype(jnp.promote_types(cost_matrix.dtype, jnp.float32))
