"""A Gaussian-Bernoulli restricted Boltzmann machine: few tokens choose among Gaussians, all exact."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.energies import _states
from egm.typing import Array, Key, State

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
      TypeError, ValueError: a field is not rectangular, its size does not fit W, sigma is not positive.
    """

    weights: tuple[tuple[float, ...], ...] = ((5.0, 0.0, -5.0), (0.0, 5.0, 0.0))
    visible_bias: tuple[float, ...] = (0.0, 0.0)
    hidden_bias: tuple[float, ...] = (-12.0, -12.0, -12.0)
    sigma: float = 1.0

    def __post_init__(self):
        object.__setattr__(self, "weights", _states.nested_tuple(self.weights, "weights", 2))
        for name, size in (("visible_bias", self.dim), ("hidden_bias", self.num_sites)):
            value = _states.nested_tuple(getattr(self, name), name, 1)
            if len(value) != size:
                raise ValueError(f"{name} must have size {size}, as weights has, got {len(value)}")
            object.__setattr__(self, name, value)
        object.__setattr__(self, "sigma", checks.positive_float(self.sigma, "sigma"))

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
        """E(x, h), [...] in the dtype of x.

        Raises:
          TypeError, ValueError: `state` is no {"x": [..., D] float, "h": [..., L] integer}.
        """
        x, h = _states.mixed(state, self.dim, self.num_sites)
        return self._quadratic(x) - jnp.sum(h * self._field(x), axis=-1)

    def single_site_conditionals(self, state: State) -> Array:
        """Logits [..., L, V] = -E(x, h with site i set to v) up to a constant a site."""
        x, _ = _states.mixed(state, self.dim, self.num_sites)
        field = self._field(x)
        return jnp.stack([jnp.zeros_like(field), field], axis=-1)

    def relaxed(self, state: State) -> Array:
        """[...] the mean of E(x, h) over independent tokens with probabilities "h" [..., L, V]."""
        x, p = _states.probabilities(state, self.dim, self.num_sites, 2)
        return self._quadratic(x) - jnp.sum(p[..., 1] * self._field(x), axis=-1)

    def marginal_energy(self, x: Array) -> Array:
        """[...] -log sum_h exp(-E(x, h)) of x [..., D], in closed form: a softplus a token."""
        x = _states.vector(x, self.dim)
        return self._quadratic(x) - jnp.sum(jax.nn.softplus(self._field(x)), axis=-1)

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
        n = _states.sample_size(key, n)
        which, noise = jax.random.split(key)
        tokens, centres, log_masses = self._configurations()
        index = jax.random.categorical(which, jnp.asarray(log_masses - log_masses.max(), float), shape=(n,))
        centre = jnp.asarray(centres, float)[index]
        x = centre + self.sigma * jax.random.normal(noise, centre.shape)
        return {"x": x, "h": jnp.asarray(tokens, jnp.int32)[index]}

    def _quadratic(self, x):
        return jnp.sum((x - _states.constant(self.visible_bias, x)) ** 2, axis=-1) / (2 * self.sigma**2)

    def _field(self, x):
        """[..., L] c + W^T x / sigma^2, the log-odds of each token."""
        weights = jnp.asarray(self.weights, x.dtype) / self.sigma**2
        return jnp.matmul(x, weights, precision=_EXACT) + _states.constant(self.hidden_bias, x)

    def _configurations(self):
        """(tokens [2^L, L], centres [2^L, D], log masses [2^L] up to a constant), in float64."""
        if self.num_sites > _MAX_HIDDEN:
            raise ValueError(f"exact answers support up to {_MAX_HIDDEN} tokens, got {self.num_sites}")
        tokens = _states.tokens_of_integers(self.num_sites)
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
