"""The Lennard-Jones cluster in a harmonic trap."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from egm import checks
from egm.energies import particles, state_checks
from egm.energies.reference import ChainSettings, check_settings, pool
from egm.typing import Array, Key

__all__ = ["LennardJones"]


@dataclasses.dataclass(frozen=True)
class LennardJones:
    """E(x) = 2 sum_{i<j} (r_ij^-12 - 2 r_ij^-6) + sum_i ||x_i - mean||^2 / 2 on [..., N * d].

    The factor 2 (the sum over ordered pairs) and the trap are the convention of the neural-sampler
    literature; the pair minimum is -2 at r = 1. Below `core_radius` the pair potential goes on as its
    tangent (C1, finite at r = 0), which keeps E and its gradient finite in float32; at .5 the pair
    potential is 7936, so the distribution is unchanged to all digits. E is invariant under
    permutations, rotations and translations: exp(-E) is normalisable only on the centred subspace of
    dimension (N - 1) d, where positions sum to zero, which is where `sample` draws and
    `egm.paths.CenteredPath` moves. The gradient of a pair is zero where the two coincide.

    Attributes:
      num_particles: N, at least 2.
      spatial_dim: d.
      core_radius: where the tangent takes over, in (0, 1) and not so small that float32 overflows (.003
        for 13 particles).
      reference: how `sample` makes its pool of states.

    Examples:
      >>> energy = egm.energies.LennardJones(num_particles=2)
      >>> x = jnp.array([[0.5, 0.0, 0.0, -0.5, 0.0, 0.0]])  # -2 at the pair's minimum, 1/4 of the trap
      >>> print(energy(x))
      [-1.75]
    """

    num_particles: int = 13
    spatial_dim: int = 3
    core_radius: float = 0.5
    reference: ChainSettings = ChainSettings(
        inverse_temperatures=(1.0, 0.85), num_warmup=2000, thinning=12, num_leapfrog=10
    )

    def __post_init__(self):
        for name, minimum in (("num_particles", 2), ("spatial_dim", 1)):
            object.__setattr__(self, name, checks.positive_int(getattr(self, name), name, minimum))
        radius = checks.positive_float(self.core_radius, "core_radius")
        if radius >= 1:
            raise ValueError(f"core_radius must be in (0, 1), got {radius}")
        pairs = self.num_particles * (self.num_particles - 1) / 2
        if 26 * pairs * radius**-13 > state_checks.LARGEST_ENERGY:
            raise ValueError(
                f"core_radius must keep E and its gradient in float32 where all particles coincide, 26 pairs "
                f"core_radius^-13 < {state_checks.LARGEST_ENERGY:.0e}, got {radius} with {pairs:.0f} pairs"
            )
        object.__setattr__(self, "core_radius", radius)
        check_settings(self.reference)

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(N * d,)."""
        return (self.num_particles * self.spatial_dim,)

    def __call__(self, x: Array) -> Array:
        """E(x), [...] in the dtype of x [..., N * d] (at least float32), centred or not.

        Raises:
          TypeError: `x` is not floating. ValueError: its trailing size is not N * d.
        """
        x = state_checks.vector(x, self.event_shape[0])
        r = particles.distances(particles.split(x, self.num_particles, self.spatial_dim))
        trap = 0.5 * jnp.sum(particles.centered(x, self.num_particles, self.spatial_dim) ** 2, axis=-1)
        return particles.pair_sum(self._pair(r)) + trap

    def sample(self, key: Key, n: int) -> Array:
        """[n, N * d] states drawn without replacement from reference chains.

        The first call runs them and keeps the result on disk: see `egm.energies.reference.pool`.

        Raises:
          TypeError, ValueError: `key` is not one concrete typed key; `n` < 1 or above the pool's size.
          RuntimeError: the chains' split R-hat is not below its limit.
        """
        return pool.draw(self, key, n)

    def _pair(self, r):
        core = self.core_radius
        attraction = jnp.maximum(r, core) ** -6
        slope = -24 * (core**-13 - core**-7)
        return 2 * (attraction**2 - 2 * attraction) + slope * jnp.minimum(r - core, 0.0)
