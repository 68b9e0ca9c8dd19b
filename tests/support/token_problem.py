"""A random energy on a few tokens whose every answer is enumerated: what many tests are held to."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

import egm


@dataclasses.dataclass(frozen=True, eq=False)
class TokenProblem:
    """A random energy on L sites of V tokens: a table of all V^L states; NaN where it sees a mask.

    Attributes:
      path: MaskedPath(V).
      sites: L.
      table: [V^L] energies.
      states: [V^L, L] the states in the order of the table.
      partial: [(V + 1)^L, L] the states with masks too.
    """

    path: Any
    sites: int
    table: np.ndarray
    states: np.ndarray
    partial: np.ndarray

    def __call__(self, x):
        return self.energy_from(self.table, x)

    def energy_from(self, table, x):
        """E(x) with another table, which may be traced."""
        vocab = self.path.vocab_size
        index = jnp.sum(x * _like(vocab ** np.arange(self.sites)[::-1], x), axis=-1)
        e = jnp.asarray(table, float)[jnp.clip(index, 0, len(self.states) - 1)]
        return jnp.where(jnp.all((x >= 0) & (x < vocab), axis=-1), e, jnp.nan)

    @property
    def log_z(self):
        return float(scipy.special.logsumexp(-self.table))

    @property
    def probabilities(self):
        return np.exp(-self.table - self.log_z)

    def exact_samples(self, n, seed=0):
        rng = np.random.default_rng(seed)
        return jnp.asarray(rng.choice(self.states, n, p=self.probabilities), jnp.int32)

    def _terms(self, x):
        wide = jnp.broadcast_to(jnp.asarray(self.states, x.dtype), (*x.shape[:-1], *self.states.shape))
        agrees = jnp.all((x[..., None, :] == wide) | self.path.masked(x)[..., None, :], axis=-1)
        return jnp.where(agrees, _like(-self.table, agrees), -jnp.inf)

    def psi(self, x):
        """log of the sum of exp(-E) over the completions of x [..., L]."""
        return jax.nn.logsumexp(self._terms(x), axis=-1)

    def g(self, x, t=None):
        """log of the mean of exp(-E) over them."""
        return self.psi(x) - jnp.sum(self.path.masked(x), axis=-1) * np.log(self.path.vocab_size)

    def phi(self, x, t):
        """log p~_t(x), t of the batch shape of x."""
        hidden = jnp.sum(self.path.masked(x), axis=-1)
        k = self.path.kappa(t)
        xlogy = jax.scipy.special.xlogy
        return xlogy(self.sites - hidden, k) + xlogy(hidden, 1 - k) + self.psi(x)

    def denoiser(self, x, t=None):
        """[..., L, V] the exact marginal denoiser."""
        weights = jax.nn.softmax(self._terms(x), axis=-1)
        one_hot = jax.nn.one_hot(jnp.asarray(self.states), self.path.vocab_size, dtype=float)
        return jnp.einsum("...s,slv->...lv", weights, one_hot)

    def random_denoiser(self, x, t):
        """[N, L, V] some untrained denoiser, which depends on x and on t."""
        vocab, size = self.path.vocab_size, self.sites
        rng = np.random.default_rng(5)
        w = jnp.asarray(rng.normal(size=(size, vocab + 1, size, vocab)), float)
        h = jnp.einsum("nlv,lvmw->nmw", jax.nn.one_hot(x, vocab + 1, dtype=float), w)
        p = jax.nn.softmax(0.25 * (h + jnp.sin(3 * t)[:, None, None] * h[..., ::-1]), axis=-1)
        visible = jax.nn.one_hot(x, vocab, dtype=float)
        return jnp.where(self.path.masked(x)[..., None], p, visible)


@dataclasses.dataclass(frozen=True, eq=False)
class UniformProblem(TokenProblem):
    """The same on the uniform path, `partial` being `states`; the noising kernel is made here again."""

    def _terms(self, x, t):
        """[..., S] log p_{t|1}(x | state) - E(state)."""
        k = jnp.asarray(t**self.path.power)[..., None, None]
        same = x[..., None, :] == jnp.broadcast_to(self.states, (*x.shape[:-1], *self.states.shape))
        kernel = jnp.log(k * same + (1 - k) / self.path.vocab_size)
        return jnp.sum(kernel, axis=-1) - _like(self.table, kernel[..., 0])

    def phi(self, x, t):
        """log p~_t(x), t of the batch shape of x."""
        return jax.nn.logsumexp(self._terms(x, t), axis=-1)

    psi = None
    g = phi

    def denoiser(self, x, t):
        """[..., L, V] the exact marginal denoiser."""
        weights = jax.nn.softmax(self._terms(x, t), axis=-1)
        one_hot = jax.nn.one_hot(jnp.asarray(self.states), self.path.vocab_size, dtype=float)
        return jnp.einsum("...s,slv->...lv", weights, one_hot)

    def random_denoiser(self, x, t):
        """[N, L, V] some untrained denoiser, which depends on x and on t."""
        vocab, size = self.path.vocab_size, self.sites
        w = jnp.asarray(np.random.default_rng(5).normal(size=(size, vocab, size, vocab)), float)
        h = jnp.einsum("nlv,lvmw->nmw", jax.nn.one_hot(x, vocab, dtype=float), w)
        return jax.nn.softmax(0.25 * (h + jnp.sin(3 * t)[:, None, None] * h[..., ::-1]), axis=-1)


def _like(values, x):
    return jnp.broadcast_to(jnp.asarray(values), x.shape)


@functools.cache
def uniform_problem(vocab=3, sites=3, power=1.0, seed=0):
    """A `UniformProblem`, its energies those of `token_problem`."""
    problem = token_problem(vocab, sites, power, seed)
    path = egm.paths.UniformPath(vocab, power)
    return UniformProblem(path, sites, problem.table, problem.states, problem.states)


@functools.cache
def token_problem(vocab=3, sites=3, power=1.0, seed=0):
    """A `TokenProblem` with standard normal energies; equal arguments give the same object."""
    states = np.array(list(itertools.product(range(vocab), repeat=sites)), np.int32)
    partial = np.array(list(itertools.product(range(vocab + 1), repeat=sites)), np.int32)
    table = np.random.default_rng(seed).normal(size=len(states))
    return TokenProblem(egm.paths.MaskedPath(vocab, power), sites, table, states, partial)
