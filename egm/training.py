"""One training step for both packages: gradients, EMA, metrics, on one device and on many.

The loss is local and the step reduces once, as `pmean(grad(pmean(loss)))`, which is right under jit,
pmap and shard_map alike (`pmean(grad(loss))` is not, under shard_map with check_vma).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egm import checks, collectives
from egm.typing import Array, Key, PyTree

LossFn = Callable[..., tuple[Array, dict[str, Array]]]
"""`loss, metrics = fn(params, target_params, key, batch)`, loss a scalar mean over the local batch."""


class TrainState(NamedTuple):
    """What training changes.

    Attributes:
      params: the parameters that the optimiser moves.
      ema_params: their exponential moving average, for targets and for sampling.
      opt_state: of the optax optimiser.
      step: int32, gradient steps taken.
    """

    params: PyTree
    ema_params: PyTree
    opt_state: Any
    step: Array


def init_train_state(params: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step, with the EMA at the parameters."""
    copy = jax.tree.map(jnp.array, params)
    return TrainState(params, copy, optimizer.init(params), jnp.zeros((), jnp.int32))


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float = 0.99,
    axis_name: str | None = None,
) -> Callable[[TrainState, Key, Any], tuple[TrainState, dict[str, Array]]]:
    """A pure training step.

    Args:
      loss_fn: `loss, metrics = loss_fn(params, target_params, key, batch)`; target_params are the EMA.
      optimizer: any optax transformation (clipping, schedules and warm-up included).
      ema_decay: final decay of the EMA; step n uses min(ema_decay, (1 + n)/(10 + n)).
      axis_name: mapped axis over which the batch is split.

    Returns:
      `step(state, key, batch) -> (state, metrics)`; metrics add loss, grad_norm and skipped. A step
      whose gradient is not finite changes nothing but the count and sets skipped to 1.

    Raises:
      ValueError: `ema_decay` is not in [0, 1).
    """
    if not 0 <= checks.finite_float(ema_decay, "ema_decay") < 1:
        raise ValueError(f"ema_decay must be in [0, 1), got {ema_decay}")

    def mean_loss(params, target_params, key, batch):
        loss, metrics = loss_fn(params, target_params, key, batch)
        return collectives.pmean(loss, axis_name), metrics

    def step(state: TrainState, key: Key, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        grad_fn = jax.value_and_grad(mean_loss, has_aux=True)
        (loss, metrics), grads = grad_fn(state.params, state.ema_params, key, batch)
        grads = collectives.pmean(grads, axis_name)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema_params = optax.incremental_update(params, state.ema_params, 1.0 - decay)
        new = (params, ema_params, opt_state)
        old = (state.params, state.ema_params, state.opt_state)
        kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        metrics = collectives.pmean(metrics, axis_name)
        metrics |= {
            "loss": loss,
            "grad_norm": grad_norm,
            "skipped": 1.0 - finite.astype(loss.dtype),
        }
        return TrainState(*kept, state.step + 1), metrics

    return step
