"""What the algorithms share: checks of their fields, the comparison with a target, metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, losses
from egm.estimators import check_chunk_size
from egm.typing import Array, Estimate, EstimatingHead, ModelFn, Path, State


def check_fields(algorithm: Any, functions: tuple[str, ...]) -> None:
    """Raises TypeError unless the fields that algorithms share are what they must be."""
    checks.instance(algorithm.path, Path, "path")
    if hasattr(algorithm, "head") and not hasattr(algorithm.head, "conditional_target"):
        raise TypeError(f"head must be a head, as in egm.heads, got {algorithm.head!r:.80}")
    for name in functions:
        checks.function(getattr(algorithm, name), name)
    if getattr(algorithm, "skip", None) is not None:
        checks.function(algorithm.skip, "skip")
    checks.flag(algorithm.draws_by_weight, "draws_by_weight")


def check_samples(algorithm: Any) -> None:
    """Raises unless `num_samples` and `chunk_size` are as `egm.estimate` takes them."""
    checks.positive_int(algorithm.num_samples, "num_samples")
    check_chunk_size(algorithm.chunk_size)


def with_skip(apply, params, skip, energy) -> ModelFn:
    if skip is None:
        return lambda x, t: apply(params, x, t)
    closed = skip(energy)
    return lambda x, t: apply(params, x, t) + closed(x, t)


def estimated_values(head, output, x_t, t, energy) -> Callable[[State, Array], Any] | None:
    """What `estimate` averages for a head that asks for more than conditional generators; None for others."""
    if not isinstance(head, EstimatingHead):
        return None
    # `estimate` takes no time before `t_min` either.
    t = jnp.maximum(t, head.path.t_min)
    return head.estimated_values(jax.lax.stop_gradient(output), x_t, t, energy)


def compare(head, target, output, x_t, t, energy) -> tuple[Array, dict[str, Array]]:
    """(loss [B], what was clipped) of an output against an `Estimate` or a head's conditional target."""
    generator = target.generator if isinstance(target, Estimate) else target
    metrics = head.metrics(generator, output, x_t, t, energy)
    if not isinstance(target, Estimate):
        return head.divergence(target, output, x_t, t, energy), metrics
    return losses.generator_loss(lambda a, b: head.divergence(a, b, x_t, t, energy), target, output), metrics


def estimate_metrics(est) -> dict[str, Array]:
    return {
        "target_ess": jnp.mean(est.ess),
        "target_invalid": jnp.mean(1.0 - est.valid),
        "target_nonfinite": jnp.sum(est.num_nonfinite).astype(float),
    }
