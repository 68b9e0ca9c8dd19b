"""The space of particles: N points in d dimensions up to a common shift."""

from __future__ import annotations

import dataclasses

from egm import checks
from egm.typing import Array

__all__ = ["Particles"]


@dataclasses.dataclass(frozen=True)
class Particles:
    """N particles in d dimensions whose energy depends on neither their common place nor their order.

    States are [..., N d], flat, with their mean at zero, as those of `egm.paths.CenteredPath`; log Z is
    that of the centred subspace. The energy must be the same under rotations as well.

    Attributes:
      num_particles: N, at least 2.
      spatial_dim: d.

    Examples:
      >>> cluster = egm.spaces.Particles(num_particles=3, spatial_dim=2)
      >>> cluster.shape
      (6,)
      >>> print(cluster.centred(jnp.array([0.0, 0.0, 3.0, 0.0, 3.0, 3.0])))
      [-2. -1.  1. -1.  1.  2.]
    """

    num_particles: int
    spatial_dim: int = 3

    def __post_init__(self):
        checks.positive_int(self.num_particles, "num_particles", 2)
        checks.positive_int(self.spatial_dim, "spatial_dim")

    @property
    def shape(self) -> tuple[int]:
        """(N d,)."""
        return (self.num_particles * self.spatial_dim,)

    def centred(self, x: Array) -> Array:
        """x [..., N d] with the mean of its particles at zero."""
        parts = x.reshape(*x.shape[:-1], self.num_particles, self.spatial_dim)
        return (parts - parts.mean(axis=-2, keepdims=True)).reshape(x.shape)
