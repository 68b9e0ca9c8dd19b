"""Collectives that do nothing without an axis name, so that one function serves one device and many."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def psum(x: Any, axis_name: str | None) -> Any:
    """Sum over the mapped axis; `x` itself without one."""
    return x if axis_name is None else lax.psum(x, axis_name)


def pmean(x: Any, axis_name: str | None) -> Any:
    """Mean over the mapped axis; `x` itself without one."""
    return x if axis_name is None else lax.pmean(x, axis_name)


def pmax(x: Any, axis_name: str | None) -> Any:
    """Maximum over the mapped axis (no gradient flows through it); `x` itself without one."""
    return x if axis_name is None else lax.pmax(lax.stop_gradient(x), axis_name)


def all_gather(x: Any, axis_name: str | None) -> Any:
    """Shards concatenated along their leading axis; `x` itself without an axis name.

    As a sum of shards padded with zeros: unlike `lax.all_gather`, its result is known to be the same
    on all devices, which `jax.shard_map` asks of what is returned as replicated.
    """
    if axis_name is None:
        return x
    size, index = lax.axis_size(axis_name), lax.axis_index(axis_name)

    def gather(a):
        n = a.shape[0]
        whole = jnp.zeros((size * n, *a.shape[1:]), jnp.int8 if a.dtype == bool else a.dtype)
        whole = lax.dynamic_update_slice_in_dim(whole, a.astype(whole.dtype), index * n, axis=0)
        return lax.psum(whole, axis_name).astype(a.dtype)

    return jax.tree.map(gather, x)


def axis_index(axis_name: str | None) -> jax.Array | int:
    """Index of this shard along the mapped axis; 0 without one."""
    return 0 if axis_name is None else lax.axis_index(axis_name)


def axis_size(axis_name: str | None) -> int:
    """Static number of shards along the mapped axis; 1 without one."""
    return 1 if axis_name is None else lax.axis_size(axis_name)


def varying_like(tree: Any, like: Any) -> Any:
    """`tree` with every leaf marked as varying over the mapped axes of its counterpart in `like`.

    Under `jax.shard_map` the carry of a scan must vary over the same axes before and after a step;
    `like` may be arrays or what `jax.eval_shape` returns.
    """

    def mark(x, reference):
        missing = tuple(sorted(_varying_axes(reference) - _varying_axes(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, tree, like)


def _varying_axes(x: Any) -> frozenset[str]:
    aval = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    kind = getattr(aval, "manual_axis_type", None)  # jax >= 0.10; `vma` before
    return frozenset(kind.varying if kind is not None else getattr(aval, "vma", None) or ())
