"""Gaussian paths on the centred subspace of a system of particles."""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp

from egm import checks
from egm.paths.gaussian import GaussianPath, Kernel, with_weight
from egm.typing import Array, Moments, Time

__all__ = ["CenteredPath"]


@dataclasses.dataclass(frozen=True)
class CenteredPath(GaussianPath):
    """A Gaussian path on the subspace of N particles in d dimensions whose positions sum to zero.

    For translation-invariant energies. A state is [..., N * d], the particles' positions one after
    another; noise is projected, and every density is one on the subspace, of dimension (N - 1) d.
    States passed in are taken to be centred already (`project` centres them).

    Attributes:
      path: the Gaussian path whose schedule this one has.
      num_particles: N, at least 2.
      spatial_dim: d.

    Raises:
      TypeError: `path` is no Gaussian path, or is centred already.

    Examples:
      >>> path = egm.paths.CenteredPath(egm.paths.LinearPath(), num_particles=4, spatial_dim=3)
      >>> x_0 = path.sample_prior(jax.random.key(0), (5, 12))
      >>> bool(jnp.all(jnp.abs(x_0.reshape(5, 4, 3).mean(axis=1)) < 1e-5))
      True
    """

    path: GaussianPath
    num_particles: int
    spatial_dim: int

    def __post_init__(self):
        if not isinstance(self.path, GaussianPath) or isinstance(self.path, CenteredPath):
            raise TypeError(f"path must be a Gaussian path, not yet centred, got {self.path!r}")
        for name, minimum in (("num_particles", 2), ("spatial_dim", 1)):
            value = checks.positive_int(getattr(self, name), name, minimum)
            object.__setattr__(self, name, value)

    def _check_size(self, size, name):
        expected = self.num_particles * self.spatial_dim
        if size != expected:
            raise ValueError(
                f"{name} has trailing size {size}, this path has {self.num_particles} particles "
                f"in {self.spatial_dim} dimensions, {expected} in all"
            )

    def contains(self, x: Array) -> Array:
        """[...] bool, whether x is finite and centred, to the square root of its precision."""
        finite = super().contains(x)
        x = jnp.asarray(x)
        limit = math.sqrt(jnp.finfo(x.dtype).eps) * (1 + jnp.max(jnp.abs(x), axis=-1))
        return finite & (jnp.max(jnp.abs(x - self.project(x)), axis=-1) <= limit)

    def project(self, x: Array) -> Array:
        """[..., N * d] with the mean position of the particles taken off."""
        particles = x.reshape(*x.shape[:-1], self.num_particles, self.spatial_dim)
        return (particles - jnp.mean(particles, axis=-2, keepdims=True)).reshape(x.shape)

    def dimension(self, trailing_size: int) -> int:
        """(N - 1) d."""
        return (self.num_particles - 1) * self.spatial_dim

    def moments(self, x_1: Array, weights: Array) -> Moments:
        """Mean 0 and one variance for all coordinates, so that the prior keeps every symmetry."""
        x_1, weights = with_weight(x_1, weights)
        size = x_1.shape[-1]
        variance = jnp.sum(weights * jnp.sum(jnp.square(x_1), axis=-1)) / self.dimension(size)
        return Moments(jnp.zeros(size, x_1.dtype), jnp.full(size, variance))

    @property
    def t_min(self) -> float:
        return self.path.t_min

    @property
    def prior_variance(self) -> float:
        return self.path.prior_variance

    def alpha(self, t: Time) -> Array:
        return self.path.alpha(t)

    def alpha_dot(self, t: Time) -> Array:
        return self.path.alpha_dot(t)

    def variance(self, t: Time) -> Array:
        return self.path.variance(t)

    def variance_dot(self, t: Time) -> Array:
        return self.path.variance_dot(t)

    def kernel(self, t: Time, r: Time) -> Kernel:
        return self.path.kernel(t, r)

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times of the wrapped path."""
        return self.path.times(num_steps)
