"""Couplings of prior samples with data: independent, exact minibatch optimal transport, Sinkhorn.

`independent`, `exact_ot` and `sinkhorn` pair samples; `exact_assignment` and `sinkhorn_plan` work on a
cost matrix that the user brings. All run inside jit. With `axis_name` the batch is the global one: every
device solves the whole problem and keeps its own rows, so that N devices pair as one does.

No gradient flows through a cost or a plan; the pairs are differentiable as the rows they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from egm import checks, collectives, random
from egm.typing import Array, Key
from energymatch.couplings.costs import CostFn, squared_euclidean, squared_euclidean_of_centred
from energymatch.couplings.plans import exact_assignment, sinkhorn_plan

__all__ = ["exact_ot", "independent", "sinkhorn"]


def independent(key: Key, x_0: Array, x_1: Array, *, axis_name: str | None = None) -> tuple[Array, Array]:
    """Pairs at random: x_1 in a random order of the global batch.

    Args:
      key: one key, or [B] keys of the examples.
      x_0: [B, *event] prior samples.
      x_1: [B, *event] data.
      axis_name: mapped axis over which the batch is split.

    Returns:
      (x_0 as it came, x_1 [B, *event] reordered).

    Raises:
      TypeError, ValueError: the sizes differ, an array is not floating, or the key is none.

    Examples:
      >>> x_0, x_1 = jnp.zeros((4, 1)), jnp.arange(4.0)[:, None]
      >>> _, paired = energymatch.couplings.independent(jax.random.key(0), x_0, x_1)
      >>> print(jnp.sort(paired[:, 0]))
      [0. 1. 2. 3.]
    """
    x_0, x_1 = _batches(x_0, x_1)
    keys = random.derive(random.example_keys(key, x_0.shape[0], axis_name), "independent")
    bits = jax.vmap(jax.random.bits)(keys)
    order = jnp.argsort(collectives.all_gather(bits, axis_name))
    return x_0, collectives.all_gather(x_1, axis_name)[_own_rows(order, axis_name)]


def exact_ot(
    key: Key,
    x_0: Array,
    x_1: Array,
    *,
    cost: CostFn = squared_euclidean,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Pairs by the permutation of x_1 with the least total cost: exact minibatch optimal transport.

    Args:
      key: as in the other couplings; nothing is drawn.
      x_0: [B, *event] prior samples.
      x_1: [B, *event] data.
      cost: `cost(x_0, x_1) -> [B, B]`. Where it is not finite it stands for one above all finite costs.
      axis_name: mapped axis over which the batch is split; the plan is that of the global batch.

    Returns:
      (x_0 as it came, x_1 [B, *event] reordered).

    Raises:
      TypeError, ValueError: the sizes differ, an array is not floating, the key is none, or `cost`
        returns another shape than [B, B].

    Source: Tong et al., minibatch optimal transport (arXiv 2302.00482), as used by Energy Matching.

    Examples:
      >>> x_0, x_1 = jnp.array([[0.0], [1.0], [2.0]]), jnp.array([[2.1], [0.1], [1.1]])
      >>> _, paired = energymatch.couplings.exact_ot(jax.random.key(0), x_0, x_1)
      >>> print(paired[:, 0])
      [0.1 1.1 2.1]
    """
    x_0, x_1 = _batches(x_0, x_1)
    random.example_keys(key, x_0.shape[0], axis_name)
    matrix, x_1 = _global_cost(cost, x_0, x_1, axis_name)
    plan = collectives.whole(exact_assignment(matrix))
    if axis_name is not None:
        # Were two devices to break a tie in different ways, the whole would be no permutation.
        plan = collectives.psum(jnp.where(collectives.axis_index(axis_name) == 0, plan, 0), axis_name)
    return x_0, x_1[_own_rows(plan, axis_name)]


def sinkhorn(
    key: Key,
    x_0: Array,
    x_1: Array,
    *,
    regularization: Array | float = 0.05,
    tolerance: float = 1e-3,
    max_iterations: int = 1000,
    cost: CostFn = squared_euclidean,
    axis_name: str | None = None,
) -> tuple[Array, Array]:
    """Pairs drawn from the entropic plan: for each row of x_0 one of x_1, so that some may come twice.

    Args:
      key: one key, or [B] keys of the examples.
      x_0: [B, *event] prior samples.
      x_1: [B, *event] data.
      regularization: as in `sinkhorn_plan`.
      tolerance: as in `sinkhorn_plan`.
      max_iterations: as in `sinkhorn_plan`.
      cost: `cost(x_0, x_1) -> [B, B]`. Where it is not finite it stands for one above all finite costs.
      axis_name: mapped axis over which the batch is split; the plan is that of the global batch.

    Returns:
      (x_0 as it came, x_1 [B, *event] as drawn).

    Raises:
      TypeError, ValueError: as `exact_ot` and `sinkhorn_plan`.

    Examples:
      >>> x_0, x_1 = jax.random.normal(jax.random.key(0), (2, 16, 3))
      >>> x_0, paired = energymatch.couplings.sinkhorn(jax.random.key(1), x_0, x_1, regularization=0.1)
      >>> bool(jnp.sum((paired - x_0) ** 2) < jnp.sum((x_1 - x_0) ** 2))
      True
    """
    x_0, x_1 = _batches(x_0, x_1)
    keys = random.derive(random.example_keys(key, x_0.shape[0], axis_name), "sinkhorn")
    matrix, x_1 = _global_cost(cost, x_0, x_1, axis_name)
    plan = sinkhorn_plan(matrix, regularization, tolerance=tolerance, max_iterations=max_iterations)
    plan = collectives.whole(plan)
    return x_0, x_1[random.per_example(random.categorical, keys, _own_rows(plan, axis_name))]


def _batches(x_0: Array, x_1: Array) -> tuple[Array, Array]:
    x_0, x_1 = checks.float_array(x_0, "x_0", min_ndim=1), checks.float_array(x_1, "x_1", min_ndim=1)
    if x_0.shape[0] != x_1.shape[0] or x_0.shape[0] == 0:
        raise ValueError(f"x_0 and x_1 must share a batch size of 1 or more, got {x_0.shape} and {x_1.shape}")
    return x_0, x_1


def _global_cost(cost: CostFn, x_0: Array, x_1: Array, axis_name: str | None) -> tuple[Array, Array]:
    """([B, B] costs of the global batch, the global x_1)."""
    checks.function(cost, "cost")
    x_0, x_1 = collectives.all_gather((x_0, x_1), axis_name)
    if cost is squared_euclidean:
        cost = squared_euclidean_of_centred
    matrix = cost(*lax.stop_gradient((x_0, x_1)))
    return collectives.whole(checks.model_output(matrix, "cost", (x_0.shape[0],) * 2)), x_1


def _own_rows(x: Array, axis_name: str | None) -> Array:
    """This device's rows of what all devices hold whole."""
    if axis_name is None:
        return collectives.split(x)
    size = x.shape[0] // collectives.axis_size(axis_name)
    return lax.dynamic_slice_in_dim(x, collectives.axis_index(axis_name) * size, size)
