"""A Gaussian-Bernoulli restricted Boltzmann machine: few tokens choose among Gaussians, all exact."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from egm import random
from egm.energies import state_checks
from egm.typing import Array, Key, State

__all__ = ["GaussianBernoulliRBM"]

_MAX_HIDDEN = 16
_SMALLEST_MODE = 1e-6
_EXACT = jax.lax.Precision.HIGHEST  # the default may round products to fewer bits on accelerators


@dataclasses.dataclass(frozen=True)
class GaussianBernoulliRBM:
    """E(x, h) = ||x - b||^2 / (2 sigma^2) - c.h - x.(W h) / sigma^2 on {"x": [..., D], "h": [..., L]}.

    Tokens are 0 and 1 and enter as they are (V = 2). Given h, x is normal around b + W h with
    variance sigma^2; h itself weighs exp(c.h + (||W h||^2 / 2 + b.W h) / sigma^2). The defaults are
    the "six modes" of the neural-sampler literature: D = 2, L = 3. Whatever is exact sums over the
    2^L configurations, for L up to 16.

    Attributes:
      weights: [D, L] W as nested tuples (anything rectangular is converted).
      visible_bias: [D] b.
      hidden_bias: [L] c.
      sigma: standard deviation of x given h.

    Raises:
      TypeError, ValueError: a field is not rectangular, its size does not fit W, sigma is not between
        1e-18 and 1e18, or the energies leave float32.

    Examples:
      >>> energy = egm.energies.GaussianBernoulliRBM()
      >>> state = energy.sample(jax.random.key(0), 5)
      >>> state["x"].shape, state["h"].shape, energy(state).shape
      ((5, 2), (5, 3), (5,))
      >>> print(f"log Z {energy.log_partition():.3f}")
      log Z 4.270
    """

    weights: tuple[tuple[float, ...], ...] = ((5.0, 0.0, -5.0), (0.0, 5.0, 0.0))
    visible_bias: tuple[float, ...] = (0.0, 0.0)
    hidden_bias: tuple[float, ...] = (-12.0, -12.0, -12.0)
    sigma: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "weights", state_checks.nested_tuple(self.weights, "weights", 2))
        for name, size in (("visible_bias", self.dim), ("hidden_bias", self.num_sites)):
            value = state_checks.nested_tuple(getattr(self, name), name, 1)
            if len(value) != size:
                raise ValueError(f"{name} must have size {size}, as weights has, got {len(value)}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "sigma", state_checks.length(self.sigma, "sigma"))
        with np.errstate(over="ignore", invalid="ignore"):
            bias, overlap = self._token_terms()
            largest = np.sum(np.abs(bias)) + np.sum(np.abs(overlap))
        if not largest < state_checks.LARGEST_ENERGY:
            raise ValueError(
                f"weights^2 / sigma^2 and hidden_bias must sum to less than "
                f"{state_checks.LARGEST_ENERGY:.0e}, "
                f"the range of float32 energies, got {largest:.3g}"
            )

    @property
    def dim(self) -> int:
        """D."""
        return len(self.weights)

    @property
    def num_sites(self) -> int:
        """L."""
        return len(self.weights[0])

    @property
    def vocab_size(self) -> int:
        """V = 2; the mask token is 2."""
        return 2

    @property
    def event_shape(self) -> dict[str, tuple[int, ...]]:
        """{"x": (D,), "h": (L,)}."""
        return {"x": (self.dim,), "h": (self.num_sites,)}

    def __call__(self, state: State) -> Array:
        """E(x, h), [...] in the dtype of x, at least float32.

        Raises:
          TypeError, ValueError: `state` is no {"x": [..., D] float, "h": [..., L] integer}.
        """
        x, h = state_checks.mixed(state, self.dim, self.num_sites)
        return self._energy(x, h)

    def single_site_conditionals(self, state: State) -> Array:
        """Logits [..., L, V] = -E(x, h with site i set to v) up to a constant a site."""
        x, _ = state_checks.mixed(state, self.dim, self.num_sites)
        field = self._field(x)
        return jnp.stack([jnp.zeros_like(field), field], axis=-1)

    def relaxed(self, state: State) -> Array:
        """[...] the mean of E(x, h) over independent tokens with probabilities "h" [..., L, V]."""
        x, p = state_checks.probabilities(state, self.dim, self.num_sites, 2)
        p = p[..., 1]
        _, overlap = self._token_terms()
        own = state_checks.constant(np.diag(overlap), p)
        return self._energy(x, p) + 0.5 * jnp.sum(own * p * (1 - p), axis=-1)

    def marginal_energy(self, x: Array) -> Array:
        """[...] -log sum_h exp(-E(x, h)) of x [..., D], in closed form: a softplus a token."""
        x = state_checks.vector(x, self.dim)
        field = self._field(x)
        # The energy with the likelier tokens, and what the others add.
        likelier = jax.lax.stop_gradient((field > 0).astype(x.dtype))
        less = jnp.where(field > 0, jax.nn.softplus(-field), jax.nn.softplus(field))
        return self._energy(x, likelier) - jnp.sum(less, axis=-1)

    def log_partition(self) -> float:
        """Log of the sum over h of the integral over x of exp(-E).

        Raises:
          ValueError: L above 16.
        """
        log_masses = self._configurations()[2]
        top = log_masses.max()
        gaussian = 0.5 * self.dim * math.log(2 * math.pi * self.sigma**2)
        return float(top + math.log(np.sum(np.exp(log_masses - top))) + gaussian)

    @property
    def modes(self) -> np.ndarray:
        """[M, D] the distinct centres b + W h of the configurations whose mass is above 1e-6."""
        return self._modes()[0]

    @property
    def mode_masses(self) -> np.ndarray:
        """[M] mass of all configurations with that centre, normalised over the modes."""
        return self._modes()[1]

    def sample(self, key: Key, n: int) -> State:
        """{"x": [n, D], "h": [n, L] int32} exact independent samples.

        Raises:
          TypeError, ValueError: `key` is not one typed key, `n` no positive int; L above 16.
        """
        n = state_checks.sample_size(key, n)
        which, noise = random.split(key)
        tokens, centres, log_masses = self._configurations()
        index = random.categorical(which, jnp.asarray(np.exp(log_masses - log_masses.max()), float), (n,))
        centre = jnp.asarray(centres, float)[index]
        x = centre + self.sigma * jax.random.normal(noise, centre.shape)
        return {"x": x, "h": jnp.asarray(tokens, jnp.int32)[index]}

    def _token_terms(self):
        """(c + W^T b / sigma^2 [L], W^T W / sigma^2 [L, L]) in float64: they cancel against each other."""
        weights = np.array(self.weights)
        bias = np.array(self.hidden_bias) + np.array(self.visible_bias) @ weights / self.sigma**2
        return bias, weights.T @ weights / self.sigma**2

    def _energy(self, x, h):
        """E with the square completed, ||x - b - W h||^2 / (2 sigma^2) less what h alone weighs.

        The form of the class's docstring differs by large terms that cancel.
        """
        bias, overlap = self._token_terms()
        weights = jnp.asarray(self.weights, x.dtype)
        center = jnp.matmul(h, weights.T, precision=_EXACT) + state_checks.constant(self.visible_bias, x)
        linear = state_checks.constant(bias + 0.5 * np.diag(overlap), h)
        pairs = jnp.asarray(np.triu(overlap, 1), x.dtype)
        own = jnp.sum(h * (linear + jnp.matmul(h, pairs.T, precision=_EXACT)), axis=-1)
        return jnp.sum((x - center) ** 2, axis=-1) / (2 * self.sigma**2) - own

    def _field(self, x):
        """[..., L] c + W^T x / sigma^2, the log-odds of each token."""
        bias, _ = self._token_terms()
        weights = jnp.asarray(self.weights, x.dtype) / self.sigma**2
        y = x - state_checks.constant(self.visible_bias, x)
        return jnp.matmul(y, weights, precision=_EXACT) + state_checks.constant(bias, y)

    def _configurations(self):
        """(tokens [2^L, L], centres [2^L, D], log masses [2^L] up to a constant), in float64."""
        if self.num_sites > _MAX_HIDDEN:
            raise ValueError(f"exact answers support up to {_MAX_HIDDEN} tokens, got {self.num_sites}")
        tokens = state_checks.tokens_of_integers(self.num_sites)
        shift = tokens @ np.array(self.weights).T
        bias = np.array(self.visible_bias)
        log_masses = tokens @ np.array(self.hidden_bias)
        log_masses = log_masses + (0.5 * np.sum(shift**2, axis=-1) + shift @ bias) / self.sigma**2
        return tokens, shift + bias, log_masses

    def _modes(self):
        _, centres, log_masses = self._configurations()
        masses = np.exp(log_masses - log_masses.max())
        masses /= masses.sum()
        kept = masses > _SMALLEST_MODE
        # Different tokens may share a centre: one mode.
        unique, index = np.unique(np.round(centres[kept], 9), axis=0, return_inverse=True)
        total = np.bincount(index.ravel(), weights=masses[kept])
        return unique, total / total.sum()
