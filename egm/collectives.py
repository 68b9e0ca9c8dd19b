"""Collectives that do nothing without an axis name, so that one function serves one device and many.

With an axis name the caller maps the devices himself (`jax.pmap`, `jax.shard_map`). Without one the same
functions say how arrays lie on a context mesh (`jax.set_mesh`, or what `egm.devices.jit_step` sets)
with an axis DATA, and the compiler splits the work; without a mesh they do nothing at all.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

__all__ = [
    "DATA",
    "all_gather",
    "axis_index",
    "axis_size",
    "merge",
    "pmax",
    "pmean",
    "psum",
    "split",
    "unmerge",
    "varying_like",
    "whole",
]

DATA = "data"
"""Name of the mesh axis along which `split` lays examples."""


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
    """Shards concatenated along their leading axis; without an axis name `x` itself, whole on all devices.

    As a sum of shards padded with zeros: unlike `lax.all_gather`, its result is known to be the same
    on all devices, which `jax.shard_map` asks of what is returned as replicated.
    """
    if axis_name is None:
        return whole(x)
    size, index = lax.axis_size(axis_name), lax.axis_index(axis_name)

    def gather(a):
        n = a.shape[0]
        whole = jnp.zeros((size * n, *a.shape[1:]), jnp.int8 if a.dtype == bool else a.dtype)
        whole = lax.dynamic_update_slice_in_dim(whole, a.astype(whole.dtype), index * n, axis=0)
        return lax.psum(whole, axis_name).astype(a.dtype)

    return jax.tree.map(gather, x)


def split(x: Any) -> Any:
    """`x` with each leading axis split along the axis DATA of the context mesh.

    `x` itself outside jit, where there is no such mesh, where the axis is mapped already
    (`jax.shard_map`), and each leaf whose leading axis does not divide. Values do not change, only where
    they are computed.
    """
    size = _mesh_size()
    fits = lambda a: a.ndim > 0 and a.shape[0] % size == 0
    return jax.tree.map(lambda a: _constrain(a, P(DATA)) if fits(a) else a, x) if size else x


def whole(x: Any) -> Any:
    """`x` the same on all devices of the context mesh of `split`; `x` itself without one.

    For what is small and sequential, an assignment problem say, that the compiler would cut in pieces.
    """
    return jax.tree.map(lambda a: _constrain(a, P()), x) if _mesh_size() else x


def merge(x: jax.Array) -> jax.Array:
    """[K, B, ...] to [K * B, ...]: K in front, or B where a mesh splits the examples, so that none moves."""
    count = x.shape[0] * x.shape[1]
    return (jnp.swapaxes(x, 0, 1) if _mesh_size() else x).reshape(count, *x.shape[2:])


def unmerge(x: jax.Array, num: int) -> jax.Array:
    """[K * B, ...] from `merge` to [K, B, ...], K = num."""
    if _mesh_size():
        return jnp.swapaxes(x.reshape(-1, num, *x.shape[1:]), 0, 1)
    return x.reshape(num, -1, *x.shape[1:])


def _constrain(x: jax.Array, spec: P) -> jax.Array:
    return lax.with_sharding_constraint(x, spec) if isinstance(x, jax.core.Tracer) else x  # pyright: ignore[reportAttributeAccessIssue]


def _mesh_size() -> int:
    """Devices along the axis DATA of the context mesh; 0 where there are not two, or the axis is mapped."""
    mesh = jax.sharding.get_abstract_mesh()
    if DATA not in mesh.axis_names:
        return 0
    automatic = mesh.axis_types[mesh.axis_names.index(DATA)] == AxisType.Auto
    return mesh.shape[DATA] if automatic and mesh.shape[DATA] > 1 else 0


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
