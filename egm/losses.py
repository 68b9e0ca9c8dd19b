"""Pointwise losses [B] between targets and a model's output; the caller reduces.

A head says how a network's output stands for a generator: what the process gets from it, and which
Bregman divergence trains it. Targets are an `Estimate` (naive or bootstrapped), an exact local form, or
conditional targets on states drawn by path weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from egm import divergences
from egm.paths.masked import MaskedPath
from egm.typing import Array, Energy, Estimate


@dataclasses.dataclass(frozen=True)
class DenoiserHead:
    """Logits [B, L, V] that stand for the denoiser of a masked path.

    Attributes:
      path: the masked path.
    """

    path: MaskedPath

    def generator(self, logits: Array, x_t: Array) -> Array:
        """[B, L, V] probabilities: softmax at masked sites, 1 at the token of a visible one."""
        visible = jax.nn.one_hot(x_t, self.path.vocab_size, dtype=logits.dtype)
        hidden = self.path.masked(x_t)[..., None]
        return jnp.where(hidden, jax.nn.softmax(logits, axis=-1), visible)

    def divergence(self, target: Array, logits: Array, x_t: Array) -> Array:
        """[B] mean over the masked sites of the KL divergence; 0 where no site is masked.

        With t uniform and kappa_t = t this is, up to a factor, the time integral of the Poisson KL
        between the rates of the chain, which weighs the sum over masked sites by 1/(1 - kappa_t):
        given the number n of masked sites that weight has mean (L + 1)/n.
        """
        hidden = self.path.masked(x_t)
        count = jnp.sum(hidden, axis=-1, keepdims=True)
        weights = hidden / jnp.maximum(count, 1).astype(logits.dtype)
        return divergences.denoiser_kl(target, logits, weights)

    def conditional_target(self, x_1: Array, energy: Energy) -> Array:
        """[B, L, V] denoiser targets given x_1: its mean given all other sites where that is cheap.

        With `energy.single_site_conditionals` the softmax of the energy differences (Rao-Blackwell:
        the same mean, less variance), else x_1 itself.
        """
        conditionals = getattr(energy, "single_site_conditionals", None)
        if conditionals is None:
            return jax.nn.one_hot(x_1, self.path.vocab_size)
        return jax.nn.softmax(conditionals(x_1), axis=-1)


def generator_loss(divergence: Callable[[Array, Array], Array], estimate: Estimate, output: Array) -> Array:
    """Loss of a model's generator against an estimate of it.

    Args:
      divergence: `[B] = divergence(target, output)`, for instance a head's with x_t bound.
      estimate: from `egm.estimate`; no gradient flows into it.
      output: the model's output at the same points.

    Returns:
      [B]; exactly zero where the estimate is invalid.
    """
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
    usable = jnp.isfinite(target) if valid is None else valid & jnp.isfinite(target)
    safe = jnp.where(usable, target, jax.lax.stop_gradient(prediction))
    return jnp.where(usable, divergence(safe, prediction), 0.0)
