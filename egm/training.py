"""One training step for both packages: gradients, EMA, metrics, on one device and on many.

The loss is local and the step reduces once, as `pmean(grad(pmean(loss)))`, which is right under jit,
pmap and shard_map alike (`pmean(grad(loss))` is not, under shard_map with check_vma). `jit_step`,
`shard_map_step` and `pmap_step` put a step of `egm.iteration` or `energymatch.matching` on many devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from egm import checks, collectives
from egm.typing import Array, Key, PyTree

DATA, MODEL = collectives.DATA, "model"
"""Names of the mesh axes: examples, chains and simulations are split along DATA, parameters along MODEL."""

WHOLE, SPLIT = P(), P(DATA)
"""Layouts: the same on all devices, and the leading axis split over them."""

Step = Callable[..., tuple[Any, dict[str, Array]]]
"""`state, metrics = step(key, state, *batch)`: of `egm.iteration` without a batch, of
`energymatch.matching` with one."""

LossFn = Callable[..., tuple[Array, dict[str, Array]]]
"""`loss, metrics = fn(params, target_params, key, batch)`, loss a scalar mean over the local batch."""


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
      params: the parameters that the optimiser moves.
      ema_params: their exponential moving average, for targets and for sampling, in float32 or wider: in
        bfloat16 a decay of .999 cannot be computed. `average` gives it in the parameters' own dtypes.
      opt_state: of the optax optimiser, for parameters and gradients in float32 or wider.
      step: int32, gradient steps taken.
    """

    params: PyTree
    ema_params: PyTree
    opt_state: Any
    step: Array


def init_train_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with the EMA at the parameters."""
    params = jax.tree.map(jnp.asarray, params)
    wide, copy = _wide(params), _wide(jax.tree.map(jnp.array, params))
    return TrainState(params, copy, optimizer.init(wide), jnp.zeros((), jnp.int32))


def average(state: TrainState) -> PyTree:
    """The EMA of the parameters in their own dtypes, for a network that computes in those."""
    return jax.tree.map(lambda a, p: a.astype(jnp.result_type(p)), state.ema_params, state.params)


def check_optimizer(optimizer: Any) -> None:
    """Raises TypeError unless it is an optax transformation, or has its two functions."""
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {optimizer!r:.80}")


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.99,
    axis_name: str | None = None,
) -> Callable[[TrainState, Key, Any], tuple[TrainState, dict[str, Array]]]:
    """A pure training step.

    Args:
      loss_fn: `loss, metrics = loss_fn(params, target_params, key, batch)`; target_params are the EMA, in
        the dtypes of the parameters.
      optimizer: any optax transformation (clipping, schedules and warm-up included).
      ema_decay: final decay of the EMA; step n uses min(ema_decay, (1 + n)/(10 + n)).
      axis_name: mapped axis over which the batch is split.

    Returns:
      `step(state, key, batch) -> (state, metrics)`; metrics add loss, grad_norm and skipped. A step
      whose gradient is not finite changes nothing but the count and sets skipped to 1. Whatever dtype the
      parameters have, loss, gradients, their norm, the optimiser's averages and the EMA are in float32 or
      wider; parameters that are kept in less round each update, and lose those below half a unit of it.

    Raises:
      ValueError: `ema_decay` is not in [0, 1). TypeError: `loss_fn` or `optimizer` is nothing of that kind.
    """
    checks.below_one(ema_decay, "ema_decay")
    checks.function(loss_fn, "loss_fn")
    check_optimizer(optimizer)

    def mean_loss(params, target_params, key, batch):
        loss, metrics = loss_fn(params, target_params, key, batch)
        loss, metrics = _wide((loss, metrics))
        return collectives.pmean(loss, axis_name), metrics

    def step(state: TrainState, key: Key, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        grad_fn = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, metrics), grads = grad_fn(state.params, average(state), key, batch)
        grads = collectives.pmean(_wide(grads), axis_name)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, _wide(state.params))
        params = optax.apply_updates(state.params, updates)
        # 1 - decay, and a difference: no rounding of the decay moves an average that has arrived.
        share = jnp.maximum(1.0 - ema_decay, 9.0 / (10.0 + state.step))
        ema_params = jax.tree.map(functools.partial(_averaged, share), params, state.ema_params)
        new = (params, ema_params, opt_state)
        old = (state.params, state.ema_params, state.opt_state)
        kept = jax.tree.map(functools.partial(_kept, finite), new, old)
        metrics = collectives.pmean(metrics, axis_name)
        metrics |= {
            "loss": loss,
            "grad_norm": grad_norm,
            "skipped": 1.0 - finite.astype(loss.dtype),
        }
        return TrainState(*kept, state.step + 1), metrics

    return step


def _averaged(share: Array, new: Array, average: Array) -> Array:
    """The average moved by a share of its way to the new value; integers are replaced, as by optax."""
    new, wide = checks.wide(new), checks.wide(average)
    return (wide + share * (new - wide)).astype(average.dtype)


def _kept(finite: Array, new: Array, old: Array) -> Array:
    """The new value where the step was finite, in the dtype of the old one, so that a scan may carry it."""
    new = new if new.dtype == old.dtype else new.astype(old.dtype)
    return jnp.where(finite, new, old)


def _wide(tree: PyTree) -> PyTree:
    """The floats of a tree in float32 or wider; the rest as it is."""
    floating = lambda x: jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return jax.tree.map(lambda x: checks.wide(x) if floating(x) else x, tree)


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
