"""Reductions of the losses that leave out what is not finite, the same on any number of devices.

Shape letters: B batch, M values, *event the axes of one state.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, importance
from egm.typing import Array

__all__ = ["all_true", "finite_rows", "lowest", "mean", "norms", "weighted_means"]


def weighted_means(values: Array, log_weights: Array, axis_name: str | None) -> tuple[tuple, Array]:
    """This device's share of the weighted means of V and V^2 (their pmean is the mean), and the ESS."""
    values = checks.wide(values)
    usable = jnp.isfinite(values)
    weights = importance.snis(jnp.where(usable, log_weights, -jnp.inf), 0, axis_name)
    share = weights.weights * collectives.axis_size(axis_name)
    # Also where the weight is zero, which the square of a large value would turn to NaN.
    values = jnp.where(usable & (share > 0), values, 0.0)
    return (jnp.sum(share * values), jnp.sum(share * values**2)), weights.ess


def lowest(values: Array, trim: float, axis_name: str | None) -> Array:
    """[M] bool: all but the fraction `trim` of the finite values that are highest, ties by global index."""
    if not trim:
        return jnp.ones(values.shape, bool)
    every = collectives.all_gather(values, axis_name)
    order = jnp.argsort(jnp.where(jnp.isfinite(every), every, jnp.inf))
    rank = jnp.zeros(every.shape, jnp.int32).at[order].set(jnp.arange(every.size, dtype=jnp.int32))
    # Of n finite values floor(trim n) are dropped, a table of n: in float32 .6 * 25 is above 15.
    n = np.arange(every.size + 1)
    num_kept = np.maximum(n - np.floor(trim * n + 1e-9), 1).astype(np.int32)
    num_kept = jnp.asarray(num_kept)[jnp.sum(jnp.isfinite(every))]
    first = collectives.axis_index(axis_name) * values.size
    return jax.lax.dynamic_slice_in_dim(rank < num_kept, first, values.size)


def finite_rows(x: Array) -> tuple[Array, Array]:
    """(x with each row that is not finite replaced by one that is; [B] which rows were finite).

    A weight of zero alone would leave 0 * NaN in the gradient of the parameters.
    """
    finite = all_true(jnp.isfinite(x))
    spare = x[jnp.argmax(finite)][None]
    spare = jnp.where(jnp.isfinite(spare), spare, 0.0)
    return jnp.where(finite.reshape(finite.shape + (1,) * (x.ndim - 1)), x, spare), finite


def all_true(mask: Array) -> Array:
    """[B] whether a mask [B, *event] holds everywhere in the event."""
    return jnp.all(mask, axis=tuple(range(1, mask.ndim)))


def norms(gradient: Array, usable: Array) -> Array:
    """[B] Euclidean norms of [B, *event] without gradient, 0 where not usable [B] or not finite."""
    norm = jnp.linalg.norm(
        checks.wide(jax.lax.stop_gradient(gradient)).reshape(gradient.shape[0], -1), axis=-1
    )
    return jnp.where(usable & jnp.isfinite(norm), norm, 0.0)


def mean(x: Array) -> Array:
    """The mean over this device, without gradient."""
    return jnp.mean(checks.wide(jax.lax.stop_gradient(x)))
