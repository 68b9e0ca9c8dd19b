"""A mixture of isotropic Gaussians: multimodal, with every marginal of a Gaussian path in closed form."""

from __future__ import annotations

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.energies import state_checks
from egm.typing import Array, Key

__all__ = ["GaussianMixture"]

_GRID = tuple(itertools.product((-10.0, -5.0, 0.0, 5.0, 10.0), repeat=2))


@dataclasses.dataclass(frozen=True)
class GaussianMixture:
    """E(x) = -log sum_k w_k exp(-||x - m_k||^2 / (2 sigma^2)), the weights w summing to one.

    E is not normalised: log Z = D/2 log(2 pi sigma^2).

    Attributes:
      means: [M, D] m_k as nested tuples (anything rectangular is converted); by default the 25
        points of the grid {-10, -5, 0, 5, 10}^2.
      sigma: standard deviation of every component.
      weights: [M] positive, normalised to sum one; None for equal ones.

    Raises:
      TypeError, ValueError: means not rectangular, sigma not between 1e-18 and 1e18, weights not M positive
        numbers.

    Examples:
      >>> means = ((-3.0, 0.0), (3.0, 0.0))
      >>> energy = egm.energies.GaussianMixture(means, sigma=0.5, weights=(1.0, 3.0))
      >>> x = energy.sample(jax.random.key(0), 1000)
      >>> x.shape, energy(x).shape
      ((1000, 2), (1000,))
      >>> print(f"log Z {energy.log_partition():.3f}")
      log Z 0.452
    """

    means: tuple[tuple[float, ...], ...] = _GRID
    sigma: float = 1.0
    weights: tuple[float, ...] | None = None

    def __post_init__(self):
        means = state_checks.nested_tuple(self.means, "means", 2)
        given = (1.0,) * len(means) if self.weights is None else self.weights
        weights = np.asarray(state_checks.nested_tuple(given, "weights", 1))
        if len(weights) != len(means) or np.any(weights <= 0):
            raise ValueError(f"weights must be {len(means)} positive numbers, one a mean, got {given!r}")
        if weights.max() > 1e300:  # their sum may overflow
            weights = weights / weights.max()
        # Weights that are normalised already stay as they are, so that `dataclasses.replace` is exact.
        if abs(weights.sum() - 1) > 1e-12:
            weights = weights / weights.sum()
        if np.any(weights <= 0):
            raise ValueError(f"weights must not differ beyond the range of float64, got {given!r:.80}")
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "sigma", state_checks.length(self.sigma, "sigma"))
        object.__setattr__(self, "weights", tuple(weights.tolist()))

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(D,)."""
        return (len(self.means[0]),)

    @property
    def modes(self) -> np.ndarray:
        """[M, D] the components' means."""
        return np.array(self.means)

    @property
    def mode_masses(self) -> np.ndarray:
        """[M] the components' weights."""
        return np.array(self.weights)

    def __call__(self, x: Array) -> Array:
        """E(x), [...] in the dtype of x [..., D], at least float32.

        Raises:
          TypeError: `x` is not floating. ValueError: its trailing size is not D.
        """
        x = state_checks.vector(x, self.event_shape[0])
        return -self._log_sum(x, jnp.ones_like(x[..., 0]), jnp.full_like(x[..., 0], self.sigma**2))

    def log_partition(self) -> float:
        """Log of the integral of exp(-E)."""
        return 0.5 * self.event_shape[0] * math.log(2 * math.pi * self.sigma**2)

    def marginal_log_density(self, x: Array, alpha: Array, variance: Array) -> Array:
        """Log-density of alpha X + sqrt(variance) noise, X from the mixture, noise standard normal.

        With a Gaussian path's alpha_t and sigma_t^2 this is the exact normalised log p_t(x); its
        gradient is the exact score. phi_t differs from it by log Z.

        Args:
          x: [..., D].
          alpha: scalar or [...].
          variance: scalar or [...], non-negative.

        Returns:
          [...] in the dtype of x, at least float32.

        Raises:
          TypeError: `x` is not floating. ValueError: a shape is wrong.
        """
        x = state_checks.vector(x, self.event_shape[0])
        alpha, variance = (
            self._per_state(value, name, x) for value, name in ((alpha, "alpha"), (variance, "variance"))
        )
        total = alpha**2 * self.sigma**2 + variance
        return self._log_sum(x, alpha, total) - 0.5 * x.shape[-1] * jnp.log(2 * math.pi * total)

    def sample(self, key: Key, n: int) -> Array:
        """[n, D] exact independent samples.

        Raises:
          TypeError, ValueError: `key` is not one typed key, `n` no positive int.
        """
        n = state_checks.sample_size(key, n)
        which, noise = random.split(key)
        component = random.categorical(which, jnp.asarray(self.weights, float), (n,))
        means = jnp.array(self.means)[component]
        return means + self.sigma * jax.random.normal(noise, means.shape)

    def _log_sum(self, x, alpha, variance):
        """[...] log sum_k w_k exp(-||x - alpha m_k||^2 / (2 variance))."""
        means = state_checks.constant(self.modes, x[..., None, :], event_ndim=2)
        squared = jnp.sum((x[..., None, :] - alpha[..., None, None] * means) ** 2, axis=-1)
        log_weights = state_checks.constant(np.log(np.asarray(self.weights)), x)
        return jax.nn.logsumexp(log_weights - squared / (2 * variance[..., None]), axis=-1)

    @staticmethod
    def _per_state(value, name, x):
        value = checks.as_array(value, name)
        if not jnp.issubdtype(value.dtype, jnp.number) or jnp.issubdtype(value.dtype, jnp.complexfloating):
            raise TypeError(f"{name} must be a real number or array, got dtype {value.dtype}")
        value = value.astype(x.dtype)
        if value.shape not in ((), x.shape[:-1]):
            raise ValueError(f"{name} must be a scalar or have shape {x.shape[:-1]}, got {value.shape}")
        return jnp.broadcast_to(value, x.shape[:-1])
