"""The head on tokens: logits as a denoiser, p_{1|t}(x_1 = v at a site | x_t), trained by cross-entropy."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, divergences, importance, random
from egm.typing import Array, Energy, HeadCounts, Key, MaskingPath, Order, TokenPath

__all__ = ["DenoiserHead"]


@dataclasses.dataclass(frozen=True)
class DenoiserHead:
    """Logits [B, L, V] that stand for the denoiser of a path on tokens.

    The network says what a site's token is by all the others; what its own noised token says of it is known
    (`TokenPath.log_likelihood`) and added: the denoiser is softmax(logits + log p_{t|1}(x_t | v)). A mask
    says nothing, and what is visible is known. Where the energy knows the conditional of a masked site in
    closed form (`revealed_conditionals`), that stands in place of the network's, and the network is not
    trained there.

    Attributes:
      path: the masked or the uniform path, or any `egm.typing.TokenPath`.
      order: of the process that simulates (`egm.processes.OrderedProcess`), on a path with masks: training
        draws the states that it visits, each of its steps as often, and learns the sites that it reveals
        next. None: those of the path, at all sites that are open.

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=2)
      >>> head = egm.heads.DenoiserHead(path)
      >>> x_t = jnp.array([[1, 2]])  # the second site is masked
      >>> print(head.generator(jnp.zeros((1, 2, 2)), x_t))  # of a network's logits [1, 2, 2]
      [[[0.  1. ]
        [0.5 0.5]]]
    """

    path: TokenPath
    order: Order | None = None

    def __post_init__(self):
        checks.instance(self.path, TokenPath, "path")
        if self.order is not None:
            checks.instance(self.order, Order, "order")
            if not isinstance(self.path, MaskingPath):
                raise ValueError(f"order must be None on a path without masks, {self.path!r:.80}")

    def generator(self, output: Array, x_t: Array, t: Array | None = None, energy: Any = None) -> Array:
        """[B, L, V] probabilities: 1 at the token of a site that is not open; with masks t is not needed."""
        x_t, output, t = self._checked(x_t, output, t)
        closed = self._closed(energy)
        if closed is not None:
            logits, exact = closed(x_t)
            output = jnp.where(exact[..., None], logits.astype(output.dtype), output)
        known = jax.nn.one_hot(x_t, self.path.vocab_size, dtype=output.dtype)
        open_ = self.path.open_sites(x_t, t)[..., None]
        return jnp.where(open_, jax.nn.softmax(self._informed(output, x_t, t), axis=-1), known)

    def stand_in(self, output: Array, x_t: Array, t: Array | None = None) -> Array:
        """[B, L, V] what stands for the tokens in a relaxed energy: their probabilities."""
        return self.generator(output, x_t, t)

    def divergence(
        self, target: Array, output: Array, x_t: Array, t: Array | None = None, energy: Any = None
    ) -> Array:
        """[B] sum over the open sites of their weight (`TokenPath.site_weights`) times the KL divergence.

        On the masked path that is the mean over the masked sites; 0 where no site is open.

        With an order: the sum over the sites that it reveals next, in expectation, over their mean number;
        the mean over its steps is the divergence of the trajectories a site. Sites whose conditionals the
        energy knows in closed form weigh 0.

        With masks, t uniform and kappa_t = t this is, up to a factor, the time integral of the Poisson KL
        between the rates of the chain, which weighs the sum over masked sites by 1/(1 - kappa_t): given the
        number n of masked sites that weight has mean (L + 1)/n.
        """
        x_t, output, t = self._checked(x_t, output, t)
        weights = self._site_weights(x_t, t, energy).astype(output.dtype)
        return divergences.denoiser_kl(target, self._informed(output, x_t, t), weights)

    def conditional_target(self, x_1: Array, x_t: Any = None, t: Any = None, energy: Any = None) -> Array:
        """[B, L, V] denoiser targets given x_1: its mean given all other sites where that is cheap.

        With `energy.single_site_conditionals` the softmax of the energy differences and of what x_t says of
        the site (Rao-Blackwell: the same mean, less variance), else x_1 itself. Masks say nothing: with them
        x_t and t are not needed.
        """
        if x_t is None and not isinstance(self.path, MaskingPath):
            raise ValueError(f"x_t must be given on a path without masks, got None on {self.path!r:.80}")
        conditionals = getattr(energy, "single_site_conditionals", None)
        plain = jax.nn.one_hot(checks.tokens(x_1, self.path.vocab_size), self.path.vocab_size)
        if conditionals is None:
            return plain
        logits = checks.wide(conditionals(x_1))
        # A token that makes the energy NaN or -inf weighs zero, as in an estimate; x_1 where none is left.
        logits = jnp.where(importance.nonfinite(logits), -jnp.inf, logits)
        some = jnp.any(logits > -jnp.inf, axis=-1, keepdims=True)
        logits = jnp.where(some, logits, 0.0)
        if x_t is not None:
            x_t, logits, t = self._checked(x_t, logits, t)
            logits = self._informed(logits, x_t, t)
        return jnp.where(some, jax.nn.softmax(logits, axis=-1), plain)

    def training_states(self, keys: Key, x_1: Array, t: Array) -> Array:
        """[B, L] states to train at: the path's at t, or the order's at the step of time t; keys [B]."""
        order = self.order
        if order is None:
            return random.per_example(self.path.sample, keys, x_1, t)
        x_1 = checks.tokens(x_1, self.path.vocab_size)
        steps = order.num_steps - order.num_closed
        path: Any = self.path  # one with masks, where there is an order
        step = jnp.clip(jnp.floor(path.kappa(t) * steps).astype(jnp.int32), 0, steps - 1)
        visible = random.per_example(order.visible, random.derive(keys, "order"), step)
        return jnp.where(visible, x_1, path.mask_token)

    def needs_output(self, x_t: Array, energy: Energy) -> Array:
        """[B] bool, False where all sites that come next are known in closed form, or none is open."""
        x_t = checks.tokens(x_t, self.path.vocab_size)
        return jnp.any(self._site_weights(x_t, None, energy) > 0, axis=-1)

    def _closed(self, energy: Any) -> Any:
        """Closed conditionals of states with masks, or None."""
        return getattr(energy, "revealed_conditionals", None) if isinstance(self.path, MaskingPath) else None

    def _informed(self, logits: Array, x_t: Array, t: Array | None) -> Array:
        """The logits with what the site's own token says."""
        return logits + self.path.log_likelihood(x_t, t).astype(logits.dtype)

    def _site_weights(self, x_t: Array, t: Array | None, energy: Any) -> Array:
        """[B, L] what the sites weigh in the loss."""
        if self.order is None:
            weights = self.path.site_weights(x_t, t)
        else:
            open_ = self.path.open_sites(x_t, t)
            weights = jax.vmap(self.order.weights)(~open_) * (self.order.num_steps / x_t.shape[-1])
        closed = self._closed(energy)
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
        closed = 0
        if isinstance(self.path, MaskingPath):
            closed = getattr(energy, "revealed_evaluations", lambda num_sites: 0)(event_shape[-1])
        if not hasattr(energy, "single_site_conditionals"):
            return HeadCounts(closed, closed)
        count = getattr(energy, "conditional_evaluations", lambda num_sites: 1)
        return HeadCounts(closed, count(event_shape[-1]) + closed)

    def _checked(self, x_t, output, t):
        """(x_t int32, output in float32 or wider, t [B] or None)."""
        batch = self.path.batch_shape(x_t, "x_t")
        if len(batch) != 1:
            raise ValueError(f"x_t must have shape [B, L], got {x_t.shape}")
        shape = (*x_t.shape, self.path.vocab_size)
        output = checks.float_array(output, "output")
        if output.shape != shape:
            raise ValueError(f"output must have shape {shape} for x_t {x_t.shape}, got {output.shape}")
        t = None if t is None else checks.time(t, "t", batch)
        return checks.tokens(x_t, self.path.vocab_size), checks.wide(output), t
