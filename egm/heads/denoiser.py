"""The head on tokens: logits as a denoiser, p_{1|t}(x_1 = v at a site | x_t), trained by cross-entropy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, divergences, importance
from egm.paths.masked import MaskedPath
from egm.typing import Array, Energy, HeadCounts

__all__ = ["DenoiserHead"]


@dataclasses.dataclass(frozen=True)
class DenoiserHead:
    """Logits [B, L, V] that stand for the denoiser of a masked path.

    Attributes:
      path: the masked path.
    """

    path: MaskedPath

    def __post_init__(self):
        if not isinstance(self.path, MaskedPath):
            raise TypeError(f"path must be a MaskedPath, got {self.path!r:.80}")

    def generator(self, output: Array, x_t: Array, t: Array | None = None, energy: Any = None) -> Array:
        """[B, L, V] probabilities: softmax at masked sites, 1 at the token of a visible one."""
        del t, energy
        x_t, output = self._checked(x_t, output)
        visible = jax.nn.one_hot(x_t, self.path.vocab_size, dtype=output.dtype)
        hidden = self.path.masked(x_t)[..., None]
        return jnp.where(hidden, jax.nn.softmax(output, axis=-1), visible)

    def stand_in(self, output: Array, x_t: Array) -> Array:
        """[B, L, V] what stands for the tokens in a relaxed energy: their probabilities."""
        return self.generator(output, x_t)

    def divergence(
        self, target: Array, output: Array, x_t: Array, t: Array | None = None, energy: Any = None
    ) -> Array:
        """[B] mean over the masked sites of the KL divergence; 0 where no site is masked.

        With t uniform and kappa_t = t this is, up to a factor, the time integral of the Poisson KL
        between the rates of the chain, which weighs the sum over masked sites by 1/(1 - kappa_t):
        given the number n of masked sites that weight has mean (L + 1)/n.
        """
        del t, energy
        x_t, output = self._checked(x_t, output)
        hidden = self.path.masked(x_t)
        count = jnp.sum(hidden, axis=-1, keepdims=True)
        weights = hidden / jnp.maximum(count, 1).astype(output.dtype)
        return divergences.denoiser_kl(target, output, weights)

    def conditional_target(self, x_1: Array, x_t: Any = None, t: Any = None, energy: Any = None) -> Array:
        """[B, L, V] denoiser targets given x_1: its mean given all other sites where that is cheap.

        With `energy.single_site_conditionals` the softmax of the energy differences (Rao-Blackwell:
        the same mean, less variance), else x_1 itself.
        """
        del x_t, t
        conditionals = getattr(energy, "single_site_conditionals", None)
        plain = jax.nn.one_hot(checks.tokens(x_1, self.path.vocab_size), self.path.vocab_size)
        if conditionals is None:
            return plain
        logits = checks.wide(conditionals(x_1))
        # A token that makes the energy NaN or -inf weighs zero, as in an estimate; x_1 where none is left.
        logits = jnp.where(importance.nonfinite(logits), -jnp.inf, logits)
        some = jnp.any(logits > -jnp.inf, axis=-1, keepdims=True)
        return jnp.where(some, jax.nn.softmax(jnp.where(some, logits, 0.0), axis=-1), plain)

    def metrics(self, target, output, x_t, t=None, energy=None) -> dict[str, Array]:
        """Nothing: tokens are not clipped."""
        del target, output, x_t, t, energy
        return {}

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> HeadCounts:
        """What the energy's `conditional_evaluations` says, one where it says nothing."""
        if not hasattr(energy, "single_site_conditionals"):
            return HeadCounts(0, 0)
        count = getattr(energy, "conditional_evaluations", lambda num_sites: 1)
        return HeadCounts(0, count(event_shape[-1]))

    def _checked(self, x_t, output):
        if len(self.path.batch_shape(x_t, "x_t")) != 1:
            raise ValueError(f"x_t must have shape [B, L], got {x_t.shape}")
        shape = (*x_t.shape, self.path.vocab_size)
        output = checks.float_array(output, "output")
        if output.shape != shape:
            raise ValueError(f"output must have shape {shape} for x_t {x_t.shape}, got {output.shape}")
        return checks.tokens(x_t, self.path.vocab_size), checks.wide(output)
