"""Gaussian paths by their schedules: linear, variance exploding and variance preserving.

Used by `egm.estimate`, the flow and diffusion processes, and `egm.paths.ProductPath`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.paths.gaussian import GaussianPath, Kernel, float_time, increasing, noise_grid, set_positive
from egm.typing import Array, Time

__all__ = ["LinearPath", "VarianceExplodingPath", "VariancePreservingPath"]


@dataclasses.dataclass(frozen=True)
class LinearPath(GaussianPath):
    """Conditional optimal transport: alpha_t = t, sigma_t = (1 - t) sigma, prior N(0, sigma^2 I).

    alpha_0 = 0, so the proposals exist from `t_min` on. The prior is the marginal at t = 0 all the
    same, and `prior_log_density` is that of `sample_prior`.

    Attributes:
      sigma: standard deviation of the prior.
      t_min: first time of `times`, in (0, 1).

    Source: Flow Matching (arXiv 2210.02747).

    Examples:
      >>> path = egm.paths.LinearPath(sigma=2.0)
      >>> path.sample_prior(jax.random.key(0), (5, 3)).shape
      (5, 3)
      >>> x_1, x_t = jnp.ones((1, 3)), jnp.zeros((1, 3))
      >>> print(path.conditional_generator(x_t, 0.5, x_1, 1.0))  # the straight line to x_1
      [[2. 2. 2.]]
    """

    sigma: float = 1.0
    t_min: float = 1e-3  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self):
        set_positive(self, "sigma", "t_min")
        if self.t_min >= 1:
            raise ValueError(f"t_min must be below 1, got {self.t_min}")

    def alpha(self, t: Time) -> Array:
        return float_time(t)

    def alpha_dot(self, t: Time) -> Array:
        return jnp.ones_like(float_time(t))

    def variance(self, t: Time) -> Array:
        return jnp.square(self.sigma * (1 - float_time(t)))

    def variance_dot(self, t: Time) -> Array:
        return -2 * self.sigma**2 * (1 - float_time(t))

    def kernel(self, t: Time, r: Time) -> Kernel:
        t, r = float_time(t), float_time(r)
        scale = t / r
        variance = self.sigma**2 * ((r - t) / r) * ((r * (1 - t) + t * (1 - r)) / r)
        return Kernel(scale, jnp.log(scale), variance)

    @property
    def prior_variance(self) -> float:
        return self.sigma**2

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times, uniform from `t_min` to 1."""
        num_steps = checks.positive_int(num_steps, "num_steps")
        return increasing(np.linspace(self.t_min, 1.0, num_steps + 1), self.t_min)


@dataclasses.dataclass(frozen=True)
class VarianceExplodingPath(GaussianPath):
    """alpha_t = 1, sigma_t^2 = sigma_min^2 [(sigma_max / sigma_min)^{2 (1 - t)} - 1].

    The prior is N(0, sigma_0^2 I) with sigma_0^2 = sigma_max^2 - sigma_min^2: the usual
    approximation of the marginal at t = 0, good where the data are small beside sigma_max.

    Attributes:
      sigma_min: scale at which the noise sets in near t = 1.
      sigma_max: scale of the noise at t = 0, above `sigma_min`.
      length_scale: s in `times`, the length below which noise no longer matters to the target.

    Source: arXiv 2011.13456, with time reversed and sigma_1 = 0 exactly.

    Examples:
      >>> path = egm.paths.VarianceExplodingPath(sigma_min=0.1, sigma_max=10.0)
      >>> x_t = path.sample(jax.random.key(0), jnp.zeros((5, 3)), 0.5)
      >>> noise = np.sqrt(path.variance(jnp.array([0.0, 0.5, 1.0])))  # of x_t about x_1
      >>> print(noise.round(2))
      [10.    0.99  0.  ]
    """

    sigma_min: float
    sigma_max: float
    length_scale: float = 1.0
    t_min: ClassVar[float] = 0.0  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self):
        set_positive(self, "sigma_min", "sigma_max", "length_scale")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                "sigma_min must be below sigma_max, got "
                f"sigma_min = {self.sigma_min} and sigma_max = {self.sigma_max}"
            )

    @property
    def _log_range(self):
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Time) -> Array:
        return jnp.ones_like(float_time(t))

    def alpha_dot(self, t: Time) -> Array:
        return jnp.zeros_like(float_time(t))

    def variance(self, t: Time) -> Array:
        return self.sigma_min**2 * jnp.expm1(self._log_range * (1 - float_time(t)))

    def variance_dot(self, t: Time) -> Array:
        grown = jnp.exp(self._log_range * (1 - float_time(t)))
        return -(self.sigma_min**2) * self._log_range * grown

    def kernel(self, t: Time, r: Time) -> Kernel:
        t, r = float_time(t), float_time(r)
        variance = (
            self.sigma_min**2 * jnp.exp(self._log_range * (1 - r)) * jnp.expm1(self._log_range * (r - t))
        )
        return Kernel(jnp.ones_like(variance), jnp.zeros_like(variance), variance)

    @property
    def prior_variance(self) -> float:
        return self.sigma_min**2 * math.expm1(self._log_range)

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times, uniform in log(sigma_t^2 + length_scale^2)."""
        ratio = noise_grid(self.prior_variance, self.length_scale, num_steps)
        return increasing(1 - np.log1p(ratio / self.sigma_min**2) / self._log_range, self.t_min)


@dataclasses.dataclass(frozen=True)
class VariancePreservingPath(GaussianPath):
    """alpha_t = exp(-B/2), sigma_t^2 = 1 - exp(-B), B the integral of beta over the time left to 1.

    With s = 1 - t, beta(s) = beta_min + (beta_max - beta_min) s and B = beta_min s + (beta_max -
    beta_min) s^2 / 2. The prior is N(0, I), exact for data of unit covariance, else good as far as
    alpha_0 = exp(-(beta_min + beta_max) / 4) is small.

    Attributes:
      beta_min: noise rate at the target, t = 1.
      beta_max: noise rate at the prior, t = 0, at least `beta_min`.
      length_scale: s in `times`.

    Source: arXiv 2011.13456, with time reversed.

    Examples:
      >>> path = egm.paths.VariancePreservingPath()
      >>> t = jnp.array([0.0, 0.5, 1.0])
      >>> print(np.asarray(path.alpha(t) ** 2 + path.variance(t)).round(3))
      [1. 1. 1.]
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    length_scale: float = 1.0
    t_min: ClassVar[float] = 0.0  # pyright: ignore[reportIncompatibleMethodOverride]

    def __post_init__(self):
        set_positive(self, "beta_min", "beta_max", "length_scale")
        if self.beta_min > self.beta_max:
            raise ValueError(
                "beta_min must not exceed beta_max, got "
                f"beta_min = {self.beta_min} and beta_max = {self.beta_max}"
            )

    def _beta(self, t):
        return self.beta_min + (self.beta_max - self.beta_min) * (1 - t)

    def _integral(self, t, r):
        """The integral of beta from t to r."""
        return (r - t) * 0.5 * (self._beta(t) + self._beta(r))

    def alpha(self, t: Time) -> Array:
        return jnp.exp(-0.5 * self._integral(float_time(t), 1.0))

    def alpha_dot(self, t: Time) -> Array:
        return 0.5 * self._beta(float_time(t)) * self.alpha(t)

    def variance(self, t: Time) -> Array:
        return -jnp.expm1(-self._integral(float_time(t), 1.0))

    def variance_dot(self, t: Time) -> Array:
        t = float_time(t)
        return -self._beta(t) * jnp.exp(-self._integral(t, 1.0))

    def kernel(self, t: Time, r: Time) -> Kernel:
        integral = self._integral(float_time(t), float_time(r))
        return Kernel(jnp.exp(-0.5 * integral), -0.5 * integral, -jnp.expm1(-integral))

    @property
    def prior_variance(self) -> float:
        return 1.0

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times, uniform in log(sigma_t^2 / alpha_t^2 + length_scale^2)."""
        ratio = noise_grid(math.expm1(self._integral(0.0, 1.0)), self.length_scale, num_steps)
        integral = np.log1p(ratio)
        slope = self.beta_max - self.beta_min
        left = 2 * integral / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * slope * integral))
        return increasing(1 - left, self.t_min)
