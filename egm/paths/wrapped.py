"""The wrapped Gaussian path: angles that lose their direction in noise on the circle.

A state is written by any of its lifts to the line, theta + 2 pi k, and every density here is one on the
circle, the sum over all lifts; so are velocity and score. Draws come as lifts: they need no wrapping, since
nothing depends on k.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.paths.schedules import VarianceExplodingPath
from egm.typing import Array, Key, Moments, PriorDraw, Time

__all__ = ["WrappedPath", "wrapped"]

_TURN = 2 * math.pi
_IMAGES = 2
"""Lifts to each side that count where the variance is small; beyond it the Fourier series is used."""
_HARMONICS = 6
_SERIES_FROM = 2.0
"""The variance from which the series is used: the next harmonic is exp(-49), the next image exp(-61)."""


def wrapped(x: Array) -> Array:
    """x in [-pi, pi), up to whole turns."""
    return x - _TURN * jnp.floor((x + math.pi) / _TURN)


@dataclasses.dataclass(frozen=True)
class WrappedPath(VarianceExplodingPath):
    """A variance exploding path of which some coordinates are angles, in radians.

    Of the angles the prior is uniform, which is the marginal at t = 0 up to 2 exp(-sigma_max^2 / 2): take
    sigma_max of 4 or more. The other coordinates are as on the path without angles.

    Attributes:
      sigma_min, sigma_max, length_scale: as of `VarianceExplodingPath`.
      circular: which of D coordinates are angles; None for all of them.

    Raises:
      TypeError, ValueError: as `VarianceExplodingPath`, or `circular` is no tuple of bools.

    Examples:
      >>> path = egm.paths.WrappedPath(0.1, 4.5)
      >>> x_0 = path.sample_prior(jax.random.key(0), (5, 2))
      >>> bool(jnp.all(jnp.abs(x_0) <= jnp.pi))
      True
      >>> print(np.asarray(path.prior_log_density(x_0)).round(2))  # -2 log(2 pi)
      [-3.68 -3.68 -3.68 -3.68 -3.68]
    """

    circular: tuple[bool, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.circular is not None:
            if not isinstance(self.circular, tuple | list) or not self.circular:
                raise TypeError(f"circular must be None or a tuple of bools, got {self.circular!r:.80}")
            flags = tuple(checks.flag(c, "every entry of circular") for c in self.circular)
            object.__setattr__(self, "circular", flags)

    def _check_size(self, size, name):
        if self.circular is not None and size != len(self.circular):
            raise ValueError(
                f"{name} has trailing size {size}, this path has {len(self.circular)} coordinates"
            )

    def angles(self, size: int) -> np.ndarray:
        """[D] bool, which coordinates are angles."""
        return np.ones(size, bool) if self.circular is None else np.asarray(self.circular)

    def confinement(self, size: int) -> np.ndarray:
        """[D] 0 for angles, which no normal distribution confines, 1 elsewhere."""
        return 1.0 - self.angles(size)

    def draw_prior(self, key: Key, shape: tuple[int, ...], moments: Moments | None = None) -> PriorDraw:
        """States `shape` = [..., D] and their log-density: angles uniform in [-pi, pi), others normal."""
        x_0 = super().draw_prior(key, shape, moments).x_0
        turn = jax.random.uniform(jax.random.fold_in(key, 1), x_0.shape, x_0.dtype, -math.pi, math.pi)
        x_0 = jnp.where(self._mask(x_0), turn, x_0)
        return PriorDraw(x_0, self.prior_log_density(x_0, moments))

    def prior_log_density(self, x_0: Array, moments: Moments | None = None) -> Array:
        """[...] normalised log-density of `draw_prior`; the same for every lift."""
        self.batch_shape(x_0, "x_0")
        x_0 = checks.wide(x_0)
        mean, variance = (jnp.broadcast_to(a, x_0.shape) for a in self._prior(x_0.shape[-1], moments))
        normal = -0.5 * (jnp.square(x_0 - mean) / variance + jnp.log(_TURN * variance))
        return jnp.sum(jnp.where(self._mask(x_0), -math.log(_TURN), normal), axis=-1)

    def reference_energy(self, x_1: Array, moments: Moments) -> Array:
        """[...] that of the normal coordinates; angles are uniform."""
        x_1 = checks.wide(x_1)
        mean, variance = (jnp.broadcast_to(a, x_1.shape) for a in moments)
        return 0.5 * jnp.sum(jnp.where(self._mask(x_1), 0.0, jnp.square(x_1 - mean) / variance), axis=-1)

    def normal_log_density(self, x: Array, mean: Array, variance: Array) -> Array:
        """[...] log-density of a wrapped normal distribution N(mean, variance I) at x [..., D]."""
        return jnp.sum(self.coordinate_log_density(x, mean, variance[..., None]), axis=-1)

    def conditional_generator(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
        """[K, ..., D] conditional velocities, v'/2 times minus the wrapped score (see `GaussianPath`)."""
        x_t, x_r, t, r = self._pair(x_t, t, x_r, r)
        rate = 0.5 * self.variance_dot(t).astype(x_t.dtype)
        return -rate[..., None] * self._score(x_t, x_r, self._kernel(x_t, t, r).variance)

    def conditional_score(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
        """[K, ..., D] gradient of `log_noising` in x_t; x_r [K, ..., D]."""
        x_t, x_r, t, r = self._pair(x_t, t, x_r, r)
        return self._score(x_t, x_r, self._kernel(x_t, t, r).variance)

    def _score(self, x_t, x_r, variance):
        variance = jnp.broadcast_to(variance[..., None], jnp.broadcast_shapes(x_t.shape, x_r.shape))
        x_t = jnp.broadcast_to(x_t, variance.shape)
        return jax.grad(lambda x: jnp.sum(self.coordinate_log_density(x, x_r, variance)))(x_t)

    def _mask(self, x):
        return jnp.broadcast_to(jnp.asarray(self.angles(x.shape[-1])), x.shape)

    def coordinate_log_density(self, x: Array, mean: Array, variance: Array) -> Array:
        """[..., D] log-density of each coordinate, wrapped normal for angles."""
        x, mean = checks.wide(x), checks.wide(mean)
        gap = x - mean
        variance = jnp.broadcast_to(variance, gap.shape)
        normal = -0.5 * (jnp.square(gap) / variance + jnp.log(_TURN * variance))
        around = gap - _TURN * jax.lax.stop_gradient(jnp.floor(gap / _TURN + 0.5))
        lifts = _TURN * jnp.arange(-_IMAGES, _IMAGES + 1, dtype=gap.dtype)
        lifts = lifts.reshape((-1,) + (1,) * gap.ndim)
        small = jnp.minimum(variance, _SERIES_FROM)
        images = jax.nn.logsumexp(-0.5 * jnp.square(around[None] + lifts) / small[None], axis=0)
        images = images - 0.5 * jnp.log(_TURN * small)
        large = jnp.maximum(variance, _SERIES_FROM)
        k = jnp.arange(1, _HARMONICS + 1, dtype=gap.dtype).reshape((-1,) + (1,) * gap.ndim)
        waves = jnp.exp(-0.5 * jnp.square(k) * large[None]) * jnp.cos(k * around[None])
        series = jnp.log1p(2 * jnp.sum(waves, axis=0)) - math.log(_TURN)
        angular = jnp.where(variance < _SERIES_FROM, images, series)
        return jnp.where(self._mask(gap), angular, normal)
