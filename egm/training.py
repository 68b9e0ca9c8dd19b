"""One training step for both packages: gradients, EMA, metrics.

The loss is local and the step reduces once, as `pmean(grad(pmean(loss)))`, which is right under jit,
pmap and shard_map alike (`pmean(grad(loss))` is not, under shard_map with check_vma). `egm.devices` puts
a step on many devices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egm import checks, collectives
from egm.typing import Array, Key, PyTree

__all__ = [
    "LossFn",
    "TrainState",
    "average",
    "check_optimizer",
    "init_train_state",
    "make_train_step",
    "scan_steps",
]

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
        params, ema_params, opt_state = kept
        return TrainState(params, ema_params, opt_state, state.step + 1), metrics

    return step


def scan_steps(
    step: Callable[..., tuple[Any, dict[str, Array]]], draw_batch: Callable[[Key], Any], num_steps: int
) -> Callable[[Key, Any], tuple[Any, dict[str, Array]]]:
    """Many training steps as one call: a `jax.lax.scan` of `step` on fresh batches.

    Args:
      step: `state, metrics = step(key, state, batch)`, as `energymatch.matching` makes them.
      draw_batch: `batch = draw_batch(key)`, pure; a pytree with leading axis B.
      num_steps: how many.

    Returns:
      `state, metrics = several(key, state)`, the metrics being means over the steps.

    Raises:
      TypeError, ValueError: an argument has a wrong type or value.
    """
    checks.function(step, "step")
    checks.function(draw_batch, "draw_batch")
    checks.positive_int(num_steps, "num_steps")

    def several(key, state):
        def body(state, key):
            batch_key, step_key = jax.random.split(key)
            return step(step_key, state, collectives.split(draw_batch(batch_key)))

        state, metrics = jax.lax.scan(body, state, jax.random.split(key, num_steps))
        return state, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)

    return several


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
