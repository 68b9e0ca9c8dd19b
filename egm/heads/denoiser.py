"""The head on tokens: logits as a denoiser, p_{1|t}(x_1 = v at a site | x_t), trained by cross-entropy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, divergences, importance, random
from egm.paths.masked import MaskedPath
from egm.typing import Array, Energy, HeadCounts, Key, Order

__all__ = ["DenoiserHead"]


@dataclasses.dataclass(frozen=True)
class DenoiserHead:
    """Logits [B, L, V] that stand for the denoiser of a masked path.

    Where the energy knows the conditional of a hidden site in closed form (`revealed_conditionals`), that
    stands in place of the network's, and the network is not trained there.

    Attributes:
      path: the masked path.
      order: of the process that simulates (`egm.processes.OrderedProcess`): training draws the states that
        it visits, each of its steps as often, and learns the sites that it reveals next. None: those of the
        path, at all masked sites.

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=2)
      >>> head = egm.heads.DenoiserHead(path)
      >>> x_t = jnp.array([[1, 2]])  # the second site is masked
      >>> print(head.generator(jnp.zeros((1, 2, 2)), x_t))  # of a network's logits [1, 2, 2]
      [[[0.  1. ]
        [0.5 0.5]]]
    """

    path: MaskedPath
    order: Order | None = None

    def __post_init__(self):
        if self.order is not None:
            checks.instance(self.order, Order, "order")
        if not isinstance(self.path, MaskedPath):
            raise TypeError(f"path must be a MaskedPath, got {self.path!r:.80}")

    def generator(self, output: Array, x_t: Array, t: Array | None = None, energy: Any = None) -> Array:
        """[B, L, V] probabilities: softmax at masked sites, 1 at the token of a visible one."""
        del t
        x_t, output = self._checked(x_t, output)
        closed = getattr(energy, "revealed_conditionals", None)
        if closed is not None:
            logits, exact = closed(x_t)
            output = jnp.where(exact[..., None], logits.astype(output.dtype), output)
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

        With an order: the sum over the sites that it reveals next, in expectation, over their mean number;
        the mean over its steps is the divergence of the trajectories a site. Sites whose conditionals the
        energy knows in closed form weigh 0.

        With t uniform and kappa_t = t this is, up to a factor, the time integral of the Poisson KL
        between the rates of the chain, which weighs the sum over masked sites by 1/(1 - kappa_t):
        given the number n of masked sites that weight has mean (L + 1)/n.
        """
        del t
        x_t, output = self._checked(x_t, output)
        weights = self._site_weights(x_t, energy).astype(output.dtype)
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

    def training_states(self, keys: Key, x_1: Array, t: Array) -> Array:
        """[B, L] states to train at: the path's at t, or the order's at the step of time t; keys [B]."""
        order = self.order
        if order is None:
            return random.per_example(self.path.sample, keys, x_1, t)
        x_1 = checks.tokens(x_1, self.path.vocab_size)
        steps = order.num_steps - order.num_closed
        step = jnp.clip(jnp.floor(self.path.kappa(t) * steps).astype(jnp.int32), 0, steps - 1)
        visible = random.per_example(order.visible, random.derive(keys, "order"), step)
        return jnp.where(visible, x_1, self.path.mask_token)

    def needs_output(self, x_t: Array, energy: Energy) -> Array:
        """[B] bool, False where all sites that come next are known in closed form, or none is masked."""
        return jnp.any(self._site_weights(checks.tokens(x_t, self.path.vocab_size), energy) > 0, axis=-1)

    def _site_weights(self, x_t: Array, energy: Any) -> Array:
        """[B, L] what the sites weigh in the loss."""
        hidden = self.path.masked(x_t)
        if self.order is None:
            count = jnp.sum(hidden, axis=-1, keepdims=True)
            weights = hidden / jnp.maximum(count, 1)
        else:
            weights = jax.vmap(self.order.weights)(~hidden) * (self.order.num_steps / x_t.shape[-1])
        closed = getattr(energy, "revealed_conditionals", None)
        return weights if closed is None else jnp.where(closed(x_t)[1], 0.0, weights)

    def metrics(self, target, output, x_t, t=None, energy=None) -> dict[str, Array]:
        """Nothing: tokens are not clipped."""
        del target, output, x_t, t, energy
        return {}

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> HeadCounts:
        """What the energy's `conditional_evaluations` says, one for a target where it says nothing.

        Closed conditionals that are made of evaluations (`revealed_evaluations`) count for the generator, and
        once more for the loss.
        """
        closed = getattr(energy, "revealed_evaluations", lambda num_sites: 0)(event_shape[-1])
        if not hasattr(energy, "single_site_conditionals"):
            return HeadCounts(closed, closed)
        count = getattr(energy, "conditional_evaluations", lambda num_sites: 1)
        return HeadCounts(closed, count(event_shape[-1]) + closed)

    def _checked(self, x_t, output):
        if len(self.path.batch_shape(x_t, "x_t")) != 1:
            raise ValueError(f"x_t must have shape [B, L], got {x_t.shape}")
        shape = (*x_t.shape, self.path.vocab_size)
        output = checks.float_array(output, "output")
        if output.shape != shape:
            raise ValueError(f"output must have shape {shape} for x_t {x_t.shape}, got {output.shape}")
        return checks.tokens(x_t, self.path.vocab_size), checks.wide(output)
