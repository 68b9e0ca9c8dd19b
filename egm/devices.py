"""Ways to run one step on many devices: jit over a mesh, `jax.shard_map`, `jax.pmap`.

A step of `egm.iteration` or `energymatch.matching` is local and reduces once (`egm.training`); these
functions lay its arguments on devices and give the numbers of one device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from egm import checks, collectives
from egm.typing import Array, PyTree

__all__ = [
    "Step",
    "data_mesh",
    "from_processes",
    "jit_step",
    "kernel_spec",
    "pmap_step",
    "put",
    "shard_map_step",
]

DATA, MODEL = collectives.DATA, "model"
"""Names of the mesh axes: examples, chains and simulations are split along DATA, parameters along MODEL."""


WHOLE, SPLIT = P(), P(DATA)
"""Layouts: the same on all devices, and the leading axis split over them."""


Step = Callable[..., tuple[Any, dict[str, Array]]]
"""`state, metrics = step(key, state, *batch)`: of `egm.iteration` without a batch, of
`energymatch.matching` with one."""


def data_mesh(devices: Any = None, *, model: int = 1) -> Mesh:
    """A mesh of all devices, of all processes.

    Args:
      devices: the devices in order; None for `jax.devices()`.
      model: how many of them share one copy of the parameters.

    Returns:
      A mesh with the axis DATA and, where `model` is above 1, MODEL; the compiler partitions along both.

    Raises:
      ValueError: `model` does not divide the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices, object).reshape(-1)
    model = checks.positive_int(model, "model")
    if devices.size == 0 or devices.size % model:
        raise ValueError(f"model must divide the number of devices, got {model} and {devices.size} devices")
    names = (DATA,) if model == 1 else (DATA, MODEL)
    grid = devices if model == 1 else devices.reshape(-1, model)
    return Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))


def kernel_spec(tree: PyTree, mesh: Mesh) -> PyTree:
    """A layout that splits every matrix of parameters, of their EMA and of the optimiser over MODEL.

    The last axis where it divides, else the first one; what has neither, vectors included, stays whole.
    """
    size = mesh.shape[MODEL]

    def one(x):
        if jnp.ndim(x) == 2 and x.shape[1] % size == 0:
            return P(None, MODEL)
        return P(MODEL, None) if jnp.ndim(x) == 2 and x.shape[0] % size == 0 else P()

    return jax.tree.map(one, tree)


def put(tree: PyTree, mesh: Mesh, spec: Any = WHOLE) -> PyTree:
    """A copy of the tree on the mesh, laid out by `spec`, a prefix tree of PartitionSpecs.

    With several processes each holds the same whole values; `from_processes` is for rows of their own.
    """

    def one(x, sharding):
        if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = one(jax.random.key_data(x), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.jit(jnp.copy, out_shardings=sharding)(x)
        x = np.array(x)  # a copy: the result may be donated
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(one, tree, _shardings(tree, mesh, spec))


def from_processes(tree: PyTree, mesh: Mesh, spec: Any = SPLIT) -> PyTree:
    """One global array of the rows that each process read, in the order of the processes.

    Args:
      tree: numpy arrays [B / number of processes, ...], different on every process.
      mesh: of all devices.
      spec: layout of the result, a prefix tree.

    Returns:
      The tree with leaves [B, ...] on the mesh.
    """
    return jax.tree.map(
        lambda x, s: jax.make_array_from_process_local_data(s, np.asarray(x)),
        tree,
        _shardings(tree, mesh, spec),
    )


def jit_step(step: Step, mesh: Mesh, *, state: Any = WHOLE, batch: Any = SPLIT, donate: bool = False) -> Step:
    """A step built without axis name under `jax.jit`, its work split over a mesh by the compiler.

    Every random number of an example goes through `egm.random.example_keys`, whose keys are split along
    DATA here; simulations, batches and chains follow them. Parameters may be split too, along MODEL.

    Args:
      step: `state, metrics = step(key, state, *batch)`.
      mesh: from `data_mesh`.
      state: layout of the state before and after, a prefix tree of PartitionSpecs; for
        chains that are split `energymatch.matching.state_spec`.
      batch: layout of every further argument, a prefix tree.
      donate: reuse the memory of the state that comes in.

    Returns:
      The same step as a jitted function; metrics are the same on all devices.
    """

    def run(key, old, *batches):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            old, batches = _laid_out(old, mesh, state), [_laid_out(b, mesh, batch) for b in batches]
            new, metrics = step(key, old, *batches)
        return _laid_out(new, mesh, state), _laid_out(metrics, mesh, P())

    return jax.jit(run, donate_argnums=1 if donate else ())


def shard_map_step(
    step: Step, mesh: Mesh, *, state: Any = WHOLE, batch: Any = SPLIT, donate: bool = False
) -> Step:
    """A step built with `axis_name=DATA` under `jax.shard_map`: every device runs it on its own examples.

    Args and returns as `jit_step`; the layouts name DATA only, and a mesh with MODEL leaves that axis to
    the compiler.
    """

    def run(key, old, *batches):
        fn = jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), state, *[batch] * len(batches)),
            out_specs=(state, P()),
            axis_names={DATA},
        )
        return fn(key, old, *batches)

    return jax.jit(run, donate_argnums=1 if donate else ())


def pmap_step(step: Step, devices: Any = None, *, state: Any = WHOLE, batch: Any = SPLIT) -> Step:
    """A step built with `axis_name=DATA` under `jax.pmap`, on arrays as `jit_step` takes them.

    For loops that use pmap already; it is in maintenance mode, and arrays are cut and joined at every call.

    Args:
      step: `state, metrics = step(key, state, *batch)`.
      devices: those of this process; None for all of them.
      state: as for `jit_step`; P(), or a spec that names DATA once.
      batch: likewise.

    Returns:
      The same step, to be called with whole arrays.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    axes = lambda spec: jax.tree.map(_data_axis, spec, is_leaf=_is_spec)

    @functools.cache
    def mapped(num_batches):
        # One argument must be split: that is the index when nothing else is.
        return jax.pmap(
            lambda index, key, old, *batches: step(key, old, *batches),
            axis_name=DATA,
            in_axes=(0, None, axes(state), *[axes(batch)] * num_batches),
            out_axes=(axes(state), None),
            devices=devices,
        )

    def cut(x, spec):
        axis = _data_axis(spec)
        if axis is None:
            return x
        if x.shape[axis] % len(devices):
            raise ValueError(f"axis {axis} must divide over {len(devices)} devices, got shape {x.shape}")
        return x.reshape(*x.shape[:axis], len(devices), -1, *x.shape[axis + 1 :])

    def join(x, spec):
        axis = _data_axis(spec)
        return x if axis is None else x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def run(key, old, *batches):
        old = jax.tree.map(cut, old, _specs(old, state))
        batches = [jax.tree.map(cut, b, _specs(b, batch)) for b in batches]
        new, metrics = mapped(len(batches))(np.arange(len(devices)), key, old, *batches)
        return jax.tree.map(join, new, _specs(new, state)), metrics

    return run


def _is_spec(x: Any) -> bool:
    return isinstance(x, P)


def _data_axis(spec: P) -> int | None:
    """The axis of an array that its spec splits along DATA, or None."""
    return spec.index(DATA) if DATA in spec else None


def _specs(tree: PyTree, spec: Any) -> PyTree:
    """A PartitionSpec for every leaf, from a prefix tree of them."""
    return jax.tree.map(lambda s, sub: jax.tree.map(lambda _: s, sub), spec, tree, is_leaf=_is_spec)


def _shardings(tree: PyTree, mesh: Mesh, spec: Any) -> PyTree:
    return jax.tree.map(lambda s: NamedSharding(mesh, s), _specs(tree, spec), is_leaf=_is_spec)


def _laid_out(tree: PyTree, mesh: Mesh, spec: Any) -> PyTree:
    return jax.lax.with_sharding_constraint(tree, _shardings(tree, mesh, spec))
