"""Optimal transport between B rows and B columns of a cost matrix, inside jit: exact and entropic.

`energymatch.couplings` pairs samples by these plans and shows both functions under its own name.
No gradient flows through a plan.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from egm import checks, collectives
from egm.typing import Array
from energymatch._checks import number

# The warm start of the exact assignment: temperatures .3 * .5^n of the mean regret, n < 8, with 10
# iterations each. At B = 512 it takes the path steps of moons from 32,485 to 2,400 (random: 4,750 to 1,389).
_LEVELS, _ITERATIONS, _FIRST, _RATIO = 8, 10, 0.3, 0.5
_ANNEALING = 0.9  # of sinkhorn_plan: the factor by which the temperature falls to its final value


def exact_assignment(cost_matrix: Array) -> Array:
    """The permutation p with the least sum_i cost[i, p(i)], up to the rounding of its dtype.

    Shortest augmenting paths from a good start: Sinkhorn iterations give the columns' prices, each row
    takes its cheapest column, and what is still free is assigned by Dijkstra's algorithm. The result is
    optimal for any start; a good one leaves few rows and short paths. O(B^3) at worst, and always ends.

    Args:
      cost_matrix: [B, B] float; entries that are not finite stand for a cost above all finite ones, so
        that they are taken last and change no other pair's price.

    Returns:
      [B] int32, the column of each row.

    Raises:
      TypeError: the matrix is not floating. ValueError: it is not square.

    Source: Jonker and Volgenant (1987), Computing 38, 325-340 (the augmentation step).
    """
    regret, mean = _regret(_square(cost_matrix))
    size = regret.shape[0]
    rows = jnp.arange(size, dtype=jnp.int32)
    price = _warm_start(regret, mean)
    wanted = jnp.argmin(regret - price[None], axis=1).astype(jnp.int32)
    first = jnp.full(size, size, jnp.int32).at[wanted].min(rows)  # of the rows that want a column
    column_of = jnp.where(first[wanted] == rows, wanted, -1)
    row_of = jnp.where(first < size, first, -1)
    state = collectives.varying_like((price, column_of, row_of), (regret[0],) * 3)
    return lax.while_loop(lambda s: jnp.any(s[1] < 0), lambda s: _augment(regret, *s), state)[1]


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
      regularization: epsilon in units of the matrix, the mean of cost[i, j] - min_j cost[i, j]: towards 0
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
    regret, mean = _regret(_square(cost_matrix))
    final = (regularization * mean).astype(regret.dtype)

    def body(state):
        before, columns, _, epsilon, n = state
        settled = epsilon == final  # the last iteration was one at the final temperature
        epsilon = jnp.maximum(final, mean * _ANNEALING**n)
        rows = _soft_minimum(regret - columns[None], epsilon, axis=1)
        error = jnp.where(settled, jnp.mean(jnp.abs(jnp.exp((before - rows) / epsilon) - 1)), jnp.inf)
        return rows, _soft_minimum(regret - rows[:, None], epsilon, axis=0), error, epsilon, n + 1

    zeros, none = jnp.zeros_like(regret[0]), jnp.zeros_like(mean)
    state = (zeros, zeros, none + jnp.inf, none, jnp.zeros((), jnp.int32))
    state = collectives.varying_like(state, (regret,) * 5)
    rows, columns, _, epsilon, _ = lax.while_loop(
        lambda s: (s[2] > tolerance) & (s[4] < max_iterations), body, state
    )
    return jnp.exp((rows[:, None] + columns[None] - regret) / epsilon) / regret.size


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


def _warm_start(regret: Array, mean: Array) -> Array:
    """[B] column prices near the optimal ones, by Sinkhorn's iterations at falling temperatures."""

    def level(n, price):
        epsilon = mean * _FIRST * _RATIO**n
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
    """Costs above the least of their row, over their largest, those not finite at 2; and their mean.

    Neither plan depends on a constant added to a row; the scale keeps huge and tiny costs in range.
    """
    finite = jnp.isfinite(cost)
    # A sixteenth: the difference of two extremes is finite, and its reciprocal is no subnormal number.
    part = jnp.where(finite, cost / 16, jnp.inf)
    least = jnp.min(part, axis=1, keepdims=True)
    regret = jnp.where(finite, part - jnp.where(jnp.isfinite(least), least, 0.0), 0.0)
    largest = jnp.max(regret)
    regret = regret / jnp.where(largest > 0, largest, 1.0)
    mean = jnp.sum(regret) / jnp.maximum(jnp.sum(finite), 1)
    return jnp.where(finite, regret, 2.0), jnp.where(mean > 0, mean, 1.0)


def _square(cost_matrix: Array) -> Array:
    """The matrix without its gradient, at least in float32."""
    cost_matrix = lax.stop_gradient(checks.float_array(cost_matrix, "cost_matrix"))
    if cost_matrix.ndim != 2 or cost_matrix.shape[0] != cost_matrix.shape[1] or cost_matrix.size == 0:
        raise ValueError(f"cost_matrix must have shape [B, B] with B >= 1, got {cost_matrix.shape}")
    return cost_matrix.astype(jnp.promote_types(cost_matrix.dtype, jnp.float32))
