"""The uniform path on tokens: a site keeps its token with probability kappa_t and else has a uniform one.

At each site p_{t|r}(x | y) = a 1{x = y} + (1 - a)/V, a = kappa_t/kappa_r, is symmetric in x and y. It sums to
1 over y as it does over x (it is doubly stochastic), so that Z_{r|t} = 1 and q_{r|t} is the kernel itself.

Source: D3PM, uniform transitions (Austin et al., arXiv 2107.03006); as a path of EGM: this library.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from egm import checks, random
from egm.paths import _tokens, local
from egm.typing import Array, Key, ModelFn, PriorDraw, Time

__all__ = ["UniformPath"]


@dataclasses.dataclass(frozen=True)
class UniformPath(_tokens.Scheduled):
    """Tokens 0..V-1; kappa_t = t**power, so kappa_0 = 0 and kappa_1 = 1, as on the masked path.

    A state is [..., L] integers of any dtype, and int32 where it comes out of a method. No token says whether
    it is noise: a network on this path needs the time. The generator is a denoiser: [..., L, V] probabilities
    of the token of time 1 at each site given all of x_t, its own token included.

    Attributes:
      vocab_size: V, the number of tokens, at least 2.
      power: exponent of the schedule, positive.
    """

    # States.

    def batch_shape(self, x: Array, name: str = "x") -> tuple[int, ...]:
        """The batch axes of [..., L] tokens.

        Raises:
          TypeError: not an integer array. ValueError: no site axis, or a concrete token outside 0..V-1.
        """
        return _tokens.batch_shape(x, name, self.vocab_size - 1, f"tokens 0..{self.vocab_size - 1}")

    def contains(self, x: Array) -> Array:
        """[...] bool, whether every token is in 0..V-1."""
        x = self._tokens(x)
        return jnp.all((x >= 0) & (x < self.vocab_size), axis=-1)

    def open_sites(self, x: Array, t: Time | None = None) -> Array:
        """[..., L] bool, where the token of time 1 is not known: everywhere before t = 1 (None: before)."""
        return jnp.broadcast_to(~self.determined(x, t)[..., None], x.shape)

    def determined(self, x: Array, t: Time | None = None) -> Array:
        """[...] bool, whether t = 1 (None: before)."""
        batch = self.batch_shape(x)
        return jnp.zeros(batch, bool) if t is None else checks.time(t, "t", batch) >= 1

    def data_state(self, x: Array) -> Array:
        """`x` itself, int32."""
        return self._tokens(x)

    def log_likelihood(self, x_t: Array, t: Time | None) -> Array:
        """[..., L, V] log p_{t|1}(x_t at the site | v) less that of another token; 0 at t = 1 as well."""
        kappa = self.kappa(checks.time(t, "t", self.batch_shape(x_t, "x_t")))
        open_ = kappa < 1
        odds = jnp.log1p(self.vocab_size * kappa / jnp.where(open_, 1 - kappa, 1.0))
        return jnp.where(open_, odds, 0.0)[..., None, None] * self._one_hot(x_t)

    def site_weights(self, x: Array, t: Time | None = None) -> Array:
        """[..., L] 2 kappa/(1 - kappa^2) over L before t = 1.

        With it a small error of the denoiser costs in cross-entropy what it costs in evidence, by the Poisson
        KL of the rates: near t = 1, and near 0 where the denoiser is about uniform.
        """
        weights = self.open_sites(x, t) / x.shape[-1]
        if t is None:
            return weights
        kappa = self.kappa(checks.time(t, "t", self.batch_shape(x)))
        return weights * (2 * kappa / ((1 + kappa) * jnp.maximum(1 - kappa, _FIRST_KAPPA)))[..., None]

    def entropy_left(self, num_sites: int, t: Time) -> Array:
        """What the marginal may lose of its entropy from t to 1, in nats: L times that of one noised token.

        No target loses it faster: given the other sites a site's law is noise on some law, and the rate of
        loss is convex in that, largest for a certain token.
        """
        kappa, others = self.kappa(t), self.vocab_size - 1
        wrong = (1 - kappa) / self.vocab_size
        right = kappa + wrong
        xlogy = jax.scipy.special.xlogy
        return -num_sites * (xlogy(right, right) + others * xlogy(wrong, wrong))

    # The prior.

    def sample_prior(self, key: Key, shape: tuple[int, ...]) -> Array:
        """Uniform tokens, int32 of the given shape."""
        checks.one_key(key)
        return _tokens.uniform_tokens(key, _tokens.sizes(shape), self.vocab_size)

    def draw_prior(self, key: Key, shape: tuple[int, ...], moments: None = None) -> PriorDraw:
        """The states of `sample_prior`, whose log-density is -L log V; the moments are not needed."""
        del moments
        x_0 = self.sample_prior(key, shape)
        return PriorDraw(x_0, self.prior_log_density(x_0))

    def prior_log_density(self, x_0: Array, moments: None = None) -> Array:
        """[...] -L log V."""
        del moments
        return jnp.full(self.batch_shape(x_0, "x_0"), -x_0.shape[-1] * math.log(self.vocab_size))

    def moments(self, x_1: Array, weights: Array) -> None:
        """None: the prior knows nothing of the data."""
        del x_1, weights

    def reference_energy(self, x_1: Array, moments: None) -> Array:
        """[...] zeros: the reference is uniform. Also for probabilities [..., L, V] in place of tokens."""
        del moments
        return _tokens.zero_energy(x_1)

    # The kernels.

    def sample(self, key: Key, x_1: Array, t: Time) -> Array:
        """x_t int32 ~ p_{t|1}(. | x_1): every site keeps its token with probability kappa_t."""
        return self._noise(key, x_1, 1.0, t, "x_1")

    def noise(self, key: Key, x_r: Array, r: Time, t: Time) -> Array:
        """x_t ~ p_{t|r}(. | x_r): a site keeps its token with probability kappa_t / kappa_r."""
        return self._noise(key, x_r, r, t, "x_r")

    def _noise(self, key: Key, x_r: Array, r: Time, t: Time, name: str) -> Array:
        checks.one_key(key)
        batch = self.batch_shape(x_r, name)
        given = t, r
        t, r = checks.time(t, "t", batch), checks.time(r, "r", batch)
        checks.time_order(*given)
        return self._mixed(key, self._tokens(x_r), self._kept(t, r))

    def propose(self, key: Key, x_t: Array, t: Time, r: Time, num_samples: int) -> Array:
        """[K, ..., L] x_r ~ q_{r|t}(. | x_t) = p_{t|r}(x_t | .), which as a kernel is its own transpose."""
        checks.one_key(key)
        checks.positive_int(num_samples, "num_samples")
        kept = self._kept(*self._pair(x_t, t, r))
        return self._mixed(key, jnp.broadcast_to(self._tokens(x_t), (num_samples, *x_t.shape)), kept)

    def _mixed(self, key: Key, x: Array, kept: Array) -> Array:
        """x [K, ..., L] with every token kept with a probability of the batch's shape, else uniform."""
        k_keep, k_token = random.split(key)
        keep = jax.random.uniform(k_keep, x.shape) < jnp.broadcast_to(kept[..., None], x.shape)
        return jnp.where(keep, x, _tokens.uniform_tokens(k_token, x.shape, self.vocab_size))

    def log_noising(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
        """[...] log p_{t|r}(x_t | x_r)."""
        t, r = self._pair(x_t, t, r)
        x_t, x_r = self._same_sites(x_t, x_r)
        num_kept = jnp.sum(jnp.broadcast_to(x_t, jnp.broadcast_shapes(x_t.shape, x_r.shape)) == x_r, axis=-1)
        num_other = x_t.shape[-1] - num_kept
        lost = jnp.broadcast_to(self._lost(t, r), num_kept.shape)
        same = num_kept * jnp.log1p(-lost * (1 - 1 / self.vocab_size))
        other = num_other * (_tokens.log(lost) - math.log(self.vocab_size))
        return same + jnp.where(num_other > 0, other, 0.0)

    def log_normalizer(self, x_t: Array, t: Time, r: Time) -> Array:
        """[...] log Z_{r|t}(x_t) = 0: the kernel is doubly stochastic."""
        return jnp.zeros_like(self._pair(x_t, t, r)[0])

    # Generators.

    def conditional_generator(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
        """[..., L, V] the denoiser of the path that ends in x_r at r, at (x_t, t): 1 at x_r where r = 1.

        p_{t|1}(x_t | v) (1{x_r = v} - (1 - kappa_r)/V) / (kappa_r p_{t|r}(x_t | x_r)), whose mean over
        p_{r|t} is p_{1|t}(v | x_t) whatever the target: given x_t, p_{r|t} at a site is a linear map of
        p_{1|t}, and this is its inverse. It has sum 1 over v, and entries below 0 where r < 1.
        """
        t, r = self._pair(x_t, t, r)
        x_t, x_r = self._same_sites(x_t, x_r)
        lead = (1,) * (x_r.ndim - x_t.ndim)
        x_t, t, r = (a.reshape(lead + a.shape) for a in (x_t, t, r))
        # kappa_r p_{t|r} at the token of x_r itself and at another.
        other = jnp.maximum(self.kappa(r) - self.kappa(t), 0.0) / self.vocab_size
        reached = jnp.where(x_t == x_r, (self.kappa(t) + other)[..., None], other[..., None])
        noise = ((1 - self.kappa(r)) / self.vocab_size)[..., None, None]
        likelihood = self._likelihood(x_t, t)
        return likelihood / _tokens.safe(reached)[..., None] * (self._one_hot(x_r) - noise)

    def local_generator(self, log_density: ModelFn, x_t: Array, t: Time) -> Array:
        """[..., L, V] the denoiser of phi from phi at x_t with each token at each site.

        c = softmax_v phi(x_t with site i <- v) is the law of a site's noised token given the other sites; the
        noise is taken off it: p_{t|1}(x_t | v) (c_v - (1 - kappa_t)/V) / (kappa_t c_{x_t}). A phi that is no
        marginal may give less than 0, which is cut. Before kappa_t = .001 phi says too little, and is asked
        there.
        """
        t = checks.time(t, "t", self.batch_shape(x_t, "x_t"))
        checks.function(log_density, "log_density")
        x_t, t = self._tokens(x_t), jnp.maximum(t, _FIRST_KAPPA ** (1 / self.power))
        values = _tokens.site_values(log_density, x_t, t, self.vocab_size)
        kappa = self.kappa(t)[..., None, None]
        signal = jax.nn.softmax(values, axis=-1) - (1 - kappa) / self.vocab_size
        denoiser = self._likelihood(x_t, t) * jnp.maximum(signal, 0.0)
        return denoiser / _tokens.safe(jnp.sum(denoiser, axis=-1, keepdims=True))

    def rates(self, denoiser: Array, x_t: Array, t: Time) -> Array:
        """[..., L, V] rates at which a site becomes v, of the noising chain reversed; 0 at its own token.

        kappa'_t/(V kappa_t) p_t(x_t with site i <- v)/p_t(x_t); the ratio is the mean over the denoiser's u
        of p_{t|1}(v | u)/p_{t|1}(x_t | u). Infinite at t = 0. From `conditional_generator` they are the rates
        of the path that ends in x_r.
        """
        t = checks.time(t, "t", self.batch_shape(x_t, "x_t"))
        ratio = self._over_likelihood(denoiser, x_t, t, t)
        kappa = self.kappa(t)
        rate = jnp.where(kappa > 0, self.kappa_dot(t) / (self.vocab_size * _tokens.safe(kappa)), jnp.inf)
        return jnp.where(self._one_hot(x_t) > 0, 0.0, rate[..., None, None] * ratio)

    # The chain on a grid of times, as a process takes it.

    def jump(self, key: Key, x_t: Array, denoiser: Array, t: Array, r: Array) -> Array:
        """[L] x_r of one state [L], by p(x_r | x_t, x_1) over the denoiser [L, V], which stays as at t."""
        kept, lost = self._kept(t, r), self._lost(t, r)
        back = kept * self._one_hot(x_t) + lost / self.vocab_size
        return random.categorical(key, back * self._over_likelihood(denoiser, x_t, t, r))

    def log_jump_ratio(self, x_t: Array, x_r: Array, denoiser: Array, t: Array, r: Array) -> Array:
        """[N] log p_{t|r}(x_t | x_r) - log of the probability that `jump` leads from x_t to x_r [N, L].

        p_{t|r}(x_t | x_r) is a factor of both: left is the mean of p_{r|1}(x_r | u)/p_{t|1}(x_t | u).
        """
        forward = _tokens.pick(self._over_likelihood(denoiser, x_t, t, r), x_r)
        return -jnp.sum(_tokens.log(forward), axis=-1)

    def _over_likelihood(self, denoiser: Array, x_t: Array, t: Array, r: Array) -> Array:
        """[..., L, V] sum over u of denoiser(u) p_{r|1}(v | u) / p_{t|1}(x_t | u)."""
        likelihood = self._likelihood(x_t, t)
        weight = jnp.where(likelihood > 0, denoiser / _tokens.safe(likelihood), 0.0)
        kappa = self.kappa(r)[..., None, None]
        return kappa * weight + (1 - kappa) / self.vocab_size * jnp.sum(weight, axis=-1, keepdims=True)

    # Local bootstrapping.

    def num_local_states(self, event_shape: tuple[int, ...]) -> int:
        """1 + L (V - 1): `local_target` tries every other token at each site."""
        return 1 + math.prod(event_shape) * (self.vocab_size - 1)

    def local_target(self, key: Key, boundary_g: ModelFn, x_t: Array, t: Array, grid: Array) -> Array:
        """[B] targets, as `egm.typing.LocalPath` has them, one step of the grid ahead."""
        del key
        return local.every_site_target(self, boundary_g, x_t, t, grid)

    def _kept(self, t: Array, r: Array) -> Array:
        return self.kappa(t) / _tokens.safe(self.kappa(r))

    def _lost(self, t: Array, r: Array) -> Array:
        """1 - kappa_t/kappa_r, without a loss of digits near 1."""
        return jnp.maximum(self.kappa(r) - self.kappa(t), 0.0) / _tokens.safe(self.kappa(r))

    def _likelihood(self, x_t: Array, t: Array) -> Array:
        """[..., L, V] p_{t|1}(x_t at the site | v)."""
        kappa = self.kappa(t)[..., None, None]
        return kappa * self._one_hot(x_t) + (1 - kappa) / self.vocab_size

    def _pair(self, x_t: Array, t: Time, r: Time) -> tuple[Array, Array]:
        return checks.time_pair(t, r, self.batch_shape(x_t, "x_t"))

    def _tokens(self, x: Array) -> Array:
        return checks.tokens(x, self.vocab_size)

    def _same_sites(self, x_t: Array, x_r: Array) -> tuple[Array, Array]:
        """Both as int32."""
        self.batch_shape(x_r, "x_r")
        _tokens.check_same_sites(x_t, x_r)
        return self._tokens(x_t), self._tokens(x_r)

    def _one_hot(self, tokens: Array) -> Array:
        return _tokens.one_hot(tokens, self.vocab_size)


_FIRST_KAPPA = 1e-3
"""Where noise is first taken off a marginal: the signal is kappa_t of it, and float32 loses 1e-4 of that."""
