"""Pointwise losses [B] between targets and a model's output; the caller reduces.

Targets are an `Estimate` (naive or bootstrapped) or an exact local form; `egm.heads` has the divergences
of each kind of generator, and conditional targets on states drawn by path weight.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from egm import checks, divergences
from egm.typing import Array, Estimate

__all__ = ["generator_loss", "log_marginal_loss"]


def generator_loss(divergence: Callable[[Array, Array], Array], estimate: Estimate, output: Array) -> Array:
    """Loss of a model's generator against an estimate of it.

    Args:
      divergence: `[B] = divergence(target, output)`, for instance a head's with x_t bound.
      estimate: from `egm.estimate`; no gradient flows into it.
      output: the model's output at the same points.

    Returns:
      [B]; exactly zero where the estimate is invalid.
    """
    checks.function(divergence, "divergence")
    checks.instance(estimate, Estimate, "estimate")
    return jnp.where(estimate.valid, divergence(estimate.generator, output), 0.0)


def log_marginal_loss(
    target: Array,
    prediction: Array,
    valid: Array | None = None,
    divergence: Callable[[Array, Array], Array] = divergences.exponential,
) -> Array:
    """Loss of a log-marginal network against naive, bootstrapped or exact one-site targets.

    Args:
      target: [B] log-marginals (both in phi or both relative to log Z_{1|t}); no gradient flows in.
      prediction: [B] the network's.
      valid: optional [B] bool.
      divergence: `exponential` where the target is the log of a noisy mean, `(t - p)**2` where exact.

    Returns:
      [B]; exactly zero where invalid or where the target is not finite.
    """
    checks.function(divergence, "divergence")
    target, prediction = (
        checks.wide(checks.float_array(a, name))
        for a, name in ((target, "target"), (prediction, "prediction"))
    )
    if target.shape != prediction.shape:
        raise ValueError(f"target has shape {target.shape}, the prediction has shape {prediction.shape}")
    if valid is not None:
        valid = checks.bool_vector(valid, "valid", target.size) if target.ndim == 1 else valid
    usable = jnp.isfinite(target) if valid is None else valid & jnp.isfinite(target)
    safe = jnp.where(usable, target, jax.lax.stop_gradient(prediction))
    return jnp.where(usable, divergence(safe, prediction), 0.0)
