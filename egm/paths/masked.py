"""The masked path on tokens: a site keeps its token with probability kappa_t and else shows the mask.

Source: EGM (arXiv 2505.19646), the masked probability path; masked discrete diffusion.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.paths import _tokens, local
from egm.typing import Array, Key, ModelFn, PriorDraw, Time

__all__ = ["MaskedPath"]


@dataclasses.dataclass(frozen=True)
class MaskedPath(_tokens.Scheduled):
    """Tokens 0..V-1, mask token V; kappa_t = t**power, so kappa_0 = 0 and kappa_1 = 1.

    A state is [..., L] integers of any dtype, and int32 where it comes out of a method. The generator is
    a denoiser: [..., L, V] probabilities of the data token at each site given the visible ones; the rate
    of a masked site to v is kappa'_t / (1 - kappa_t) times it.

    Attributes:
      vocab_size: V, the number of data tokens, at least 2.
      power: exponent of the schedule, positive.

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=2)
      >>> x_1 = jnp.array([[0, 1, 1, 0]])
      >>> print(*(path.sample(jax.random.key(0), x_1, t) for t in (0.0, 1.0)))  # 2 is the mask
      [[2 2 2 2]] [[0 1 1 0]]
      >>> x_t = jnp.array([[0, 2, 2, 0]])
      >>> path.propose(jax.random.key(1), x_t, 0.5, 1.0, num_samples=10).shape
      (10, 1, 4)
      >>> print(np.asarray(path.log_normalizer(x_t, 0.5, 1.0)).round(2))
      [-1.39]
    """

    @property
    def mask_token(self) -> int:
        """The token of a hidden site, V."""
        return self.vocab_size

    def batch_shape(self, x: Array, name: str = "x") -> tuple[int, ...]:
        """The batch axes of [..., L] tokens.

        Raises:
          TypeError: not an integer array. ValueError: no site axis, or a concrete token outside 0..V.
        """
        expected = f"tokens 0..{self.vocab_size - 1} or the mask {self.vocab_size}"
        return _tokens.batch_shape(x, name, self.vocab_size, expected)

    def contains(self, x: Array) -> Array:
        """[...] bool, whether every token is in 0..V."""
        x = self._tokens(x)
        return jnp.all((x >= 0) & (x <= self.vocab_size), axis=-1)

    def masked(self, x: Array) -> Array:
        """[..., L] bool, where the mask stands."""
        return self._tokens(x) == self.vocab_size

    def open_sites(self, x: Array, t: Time | None = None) -> Array:
        """[..., L] bool, where the token of time 1 is not known: where the mask stands, whatever the time."""
        del t
        return self.masked(x)

    def log_likelihood(self, x_t: Array, t: Time | None = None) -> Array:
        """[..., L, V] zeros: where a site is open, it shows the mask, which says nothing of its token."""
        del t
        return jnp.zeros((*x_t.shape, self.vocab_size))

    def site_weights(self, x: Array, t: Time | None = None) -> Array:
        """[..., L] one over the number of masked sites, at each of them."""
        hidden = self.open_sites(x, t)
        return hidden / jnp.maximum(jnp.sum(hidden, axis=-1, keepdims=True), 1)

    def entropy_left(self, num_sites: int, t: Time) -> Array:
        """What the marginal may lose of its entropy between t and 1, in nats: L log V (1 - kappa_t)."""
        return num_sites * math.log(self.vocab_size) * (1 - self.kappa(t))

    def determined(self, x: Array, t: Time | None = None) -> Array:
        """[...] bool, whether no site is masked, whatever the time."""
        del t
        return ~jnp.any(self.masked(x), axis=-1)

    def data_state(self, x: Array) -> Array:
        """`x` with token 0 in place of every mask, int32."""
        x = self._tokens(x)
        return jnp.where(self.masked(x), 0, x)

    def sample_prior(self, key: Key, shape: tuple[int, ...]) -> Array:
        """All sites masked, int32 of the given shape; the key is not needed."""
        del key
        return jnp.full(_tokens.sizes(shape), self.vocab_size, jnp.int32)

    def draw_prior(self, key: Key, shape: tuple[int, ...], moments: None = None) -> PriorDraw:
        """The states of `sample_prior`, whose log-density is 0; the moments are not needed."""
        del moments
        x_0 = self.sample_prior(key, shape)
        return PriorDraw(x_0, jnp.zeros(x_0.shape[:-1]))

    def num_local_states(self, event_shape: tuple[int, ...]) -> int:
        """V: `local_target` tries every token at one site."""
        del event_shape
        return self.vocab_size

    def local_target(self, key: Key, boundary_g: ModelFn, x_t: Array, t: Array, grid: Array) -> Array:
        """[B] targets, as `egm.typing.LocalPath` has them; exact."""
        del grid
        return local.one_site_target(self, key, boundary_g, x_t, t)

    def prior_log_density(self, x_0: Array, moments: None = None) -> Array:
        """[...] 0 where every site is masked, -inf elsewhere."""
        del moments
        self.batch_shape(x_0, "x_0")
        return jnp.where(jnp.all(self.masked(x_0), axis=-1), 0.0, -jnp.inf)

    def moments(self, x_1: Array, weights: Array) -> None:
        """None: the prior knows nothing of the data."""
        del x_1, weights

    def reference_energy(self, x_1: Array, moments: None) -> Array:
        """[...] zeros: the reference is uniform. Also for probabilities [..., L, V] in place of tokens."""
        del moments
        return _tokens.zero_energy(x_1)

    def sample(self, key: Key, x_1: Array, t: Time) -> Array:
        """x_t int32 ~ p_{t|1}(. | x_1): every site is hidden with probability 1 - kappa_t."""
        return self._noise(key, x_1, 1.0, t, "x_1")

    def noise(self, key: Key, x_r: Array, r: Time, t: Time) -> Array:
        """x_t ~ p_{t|r}(. | x_r): a visible site stays with probability kappa_t / kappa_r."""
        return self._noise(key, x_r, r, t, "x_r")

    def _noise(self, key: Key, x_r: Array, r: Time, t: Time, name: str) -> Array:
        checks.one_key(key)
        batch = self.batch_shape(x_r, name)
        x_r = self._tokens(x_r)
        given = t, r
        t, r = checks.time(t, "t", batch), checks.time(r, "r", batch)
        checks.time_order(*given)
        keep = jax.random.uniform(key, x_r.shape) < self._ratio(t, r)[..., None]
        return jnp.where(keep, x_r, self.vocab_size)

    def log_noising(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
        """[...] log p_{t|r}(x_t | x_r); -inf where x_r cannot become x_t."""
        t, r = self._pair(x_t, t, r)
        x_t, x_r = self._same_sites(x_t, x_r)
        x_t, x_r, t, r = jnp.broadcast_arrays(x_t, x_r, t[..., None], r[..., None])
        ratio = self._ratio(t, r)
        hidden = self.masked(x_t)
        kept = jnp.where(x_t == x_r, _tokens.log(ratio), -jnp.inf)
        per_site = jnp.where(hidden, _tokens.log1m(ratio), kept)
        per_site = jnp.where(self.masked(x_r), jnp.where(hidden, 0.0, -jnp.inf), per_site)
        return jnp.sum(per_site, axis=-1)

    def propose(self, key: Key, x_t: Array, t: Time, r: Time, num_samples: int) -> Array:
        """[K, ..., L] x_r ~ q_{r|t}(. | x_t).

        Visible sites stay; a masked one stays masked with probability 1/(1 + V(1 - kappa_t/kappa_r))
        (0 at r = 1), else shows a uniform token.
        """
        checks.one_key(key)
        checks.positive_int(num_samples, "num_samples")
        to_data = _is_one(r)
        t, r = self._pair(x_t, t, r)
        shape = (num_samples, *x_t.shape)
        if to_data:
            filled = _tokens.uniform_tokens(key, shape, self.vocab_size)
        else:
            stay = jnp.where(r >= 1, 0.0, 1.0 / (1.0 + self._odds(t, r)))[..., None]
            u = jax.random.uniform(key, shape)
            # One uniform decides both: below `stay` the mask, above it the token, by inversion.
            stay = jnp.broadcast_to(stay, shape)
            token = jnp.floor((u - stay) / (1.0 - stay) * self.vocab_size).astype(jnp.int32)
            token = jnp.clip(token, 0, self.vocab_size - 1)
            filled = jnp.where(u < stay, self.vocab_size, token)
        x_t = jnp.broadcast_to(self._tokens(x_t), shape)
        return jnp.where(self.masked(x_t), filled, x_t)

    def log_normalizer(self, x_t: Array, t: Time, r: Time) -> Array:
        """[...] log Z_{r|t}(x_t) = sum over r's states of p_{t|r}(x_t | .)."""
        t, r = self._pair(x_t, t, r)
        odds = self._odds(t, r)
        per_masked = jnp.where(r >= 1, _tokens.log(odds), jnp.log1p(odds))
        num_masked = jnp.sum(self.masked(x_t), axis=-1)
        num_visible = x_t.shape[-1] - num_masked
        visible = jnp.where(num_visible > 0, num_visible * _tokens.log(self._ratio(t, r)), 0.0)
        return visible + jnp.where(num_masked > 0, num_masked * per_masked, 0.0)

    def conditional_generator(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
        """[..., L, V] the denoiser of the path that ends in x_r at r, at (x_t, t).

        Masked sites: (1 - kappa_t)/(kappa_r - kappa_t) where x_r shows v; visible sites: 1 at x_t.
        """
        t, r = self._pair(x_t, t, r)
        x_t, x_r = self._same_sites(x_t, x_r)
        difference = self.kappa(r) - self.kappa(t)
        scale = jnp.where(difference > 0, (1 - self.kappa(t)) / _tokens.safe(difference), 0.0)[..., None]
        # Left at the size of x_t: wider, a loop over chunks of x_r would hold them beside each chunk.
        lead = (1,) * (x_r.ndim - x_t.ndim)
        x_t, scale = (a.reshape(lead + a.shape) for a in (x_t, scale))
        hidden = self.masked(x_t)
        token = jnp.where(hidden, x_r, x_t)
        return jnp.where(hidden, scale, 1.0)[..., None] * self._one_hot(token)

    def local_generator(self, log_density: ModelFn, x_t: Array, t: Time) -> Array:
        """[..., L, V] the exact denoiser of phi: softmax over v of phi(x_t with site i <- v).

        Visible sites give 1 at their token.
        """
        t = checks.time(t, "t", self.batch_shape(x_t, "x_t"))
        checks.function(log_density, "log_density")
        x_t = self._tokens(x_t)
        logits = _tokens.site_values(log_density, x_t, t, self.vocab_size)
        visible = ~self.masked(x_t)[..., None]
        return jnp.where(visible, self._one_hot(x_t), jax.nn.softmax(logits, axis=-1))

    def rates(self, denoiser: Array, x_t: Array, t: Time) -> Array:
        """[..., L, V] rates at which a masked site becomes v: kappa'_t / (1 - kappa_t) times the denoiser.

        Visible sites stay. From `conditional_generator` they are the rates of the path that ends in x_r.
        """
        t = checks.time(t, "t", self.batch_shape(x_t, "x_t"))
        rate = self.kappa_dot(t) / _tokens.safe(1 - self.kappa(t))
        rate = jnp.where(self.masked(x_t), rate[..., None], 0.0)
        return rate[..., None] * denoiser

    # The chain on a grid of times, as a process takes it.

    def jump(self, key: Key, x_t: Array, denoiser: Array, t: Array, r: Array) -> Array:
        """[L] x_r of one state [L]; the denoiser [L, V] stays as it is at t.

        A masked site is revealed with probability (kappa_r - kappa_t)/(1 - kappa_t), the exact one.
        """
        k_token, k_reveal = random.split(key)
        token = random.categorical(k_token, denoiser)
        hidden = 1 - self.kappa(t)
        reveal = (self.kappa(r) - self.kappa(t)) / jnp.where(hidden > 0, hidden, 1.0)
        shown = jax.random.uniform(k_reveal, x_t.shape) < reveal
        return jnp.where(self.masked(x_t) & shown, token, x_t)

    def log_jump_ratio(self, x_t: Array, x_r: Array, denoiser: Array, t: Array, r: Array) -> Array:
        """[N] log p_{t|r}(x_t | x_r) - log of the probability that `jump` leads from x_t to x_r [N, L]."""
        was_masked, still_masked = self.masked(x_t), self.masked(x_r)
        chosen = _tokens.pick(denoiser, jnp.where(still_masked, 0, x_r))
        tokens = jnp.sum(jnp.where(was_masked & ~still_masked, _tokens.log(chosen), 0.0), axis=-1)
        # What the schedule adds is alike at all sites of a kind: few roundings where they are counted.
        before, after = self.kappa(t), self.kappa(r)
        hidden = _tokens.log1m(before)
        kinds = (
            (was_masked & ~still_masked, hidden - _tokens.log(after)),
            (was_masked & still_masked, hidden - _tokens.log1m(after)),
            (~was_masked, _tokens.log(before) - _tokens.log(after)),
        )
        total = -tokens
        for sites, each in kinds:
            count = jnp.sum(sites, axis=-1)
            total = total + jnp.where(count > 0, count * each, 0.0)
        legal = jnp.all(was_masked | (x_t == x_r), axis=-1)
        return jnp.where(legal, total, -jnp.inf)

    def _pair(self, x_t: Array, t: Time, r: Time) -> tuple[Array, Array]:
        return checks.time_pair(t, r, self.batch_shape(x_t, "x_t"))

    def _tokens(self, x: Array) -> Array:
        return checks.tokens(x, self.vocab_size)

    def _same_sites(self, x_t: Array, x_r: Array) -> tuple[Array, Array]:
        """Both as int32."""
        self.batch_shape(x_r, "x_r")
        _tokens.check_same_sites(x_t, x_r)
        return self._tokens(x_t), self._tokens(x_r)

    def _ratio(self, t: Time, r: Time) -> Array:
        return self.kappa(t) / _tokens.safe(self.kappa(r))

    def _odds(self, t: Time, r: Time) -> Array:
        return self.vocab_size * jnp.maximum(self.kappa(r) - self.kappa(t), 0.0) / _tokens.safe(self.kappa(r))

    def _one_hot(self, tokens: Array) -> Array:
        return _tokens.one_hot(tokens, self.vocab_size)


def _is_one(r: Time) -> bool:
    value = checks.concrete(r)
    return value is not None and bool(np.all(value == 1))
