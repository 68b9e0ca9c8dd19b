"""Particles of two kinds with double-well pair potentials: positions and kinds are both unknown."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.energies import particles, state_checks
from egm.energies.reference import ChainSettings, check_settings, pool
from egm.typing import Array, Key, State

__all__ = ["JointDoubleWell"]

# (a, b) of u(r) = (a (r - 2)^4 + b (r - 2)^2) / 2 by the two particles' kinds.
_QUARTIC = np.array([[0.8, 0.4], [0.4, 0.6]])
_QUADRATIC = np.array([[-3.0, -2.5], [-2.5, -2.8]])
_REST = 2.0


@dataclasses.dataclass(frozen=True)
class JointDoubleWell:
    """E(x, h) = sum_{i<j} (a (r_ij - 2)^4 + b (r_ij - 2)^2) / 2 on {"x": [..., N * d], "h": [..., N]}.

    h_i is the kind of particle i (V = 2); (a, b) is (.8, -3) between two of kind 0, (.4, -2.5) between
    the kinds, (.6, -2.8) between two of kind 1. E is invariant under permutations, rotations and
    translations: exp(-E) is normalisable only on the centred subspace of dimension (N - 1) d, where
    positions sum to zero, which is where `sample` draws and `egm.paths.CenteredPath` moves. The
    gradient is zero where two particles coincide, where it has no direction.

    Attributes:
      num_particles: N, at least 2.
      spatial_dim: d.
      reference: how `sample` makes its pool of states.

    Examples:
      >>> energy = egm.energies.JointDoubleWell()  # four particles in the plane, of two kinds
      >>> x = jnp.array([[0.0, 0.0, 2.0, 0.0, 0.0, 2.0, 2.0, 2.0]])
      >>> print(np.asarray(energy({"x": x, "h": jnp.zeros((1, 4), jnp.int32)})).round(2))
      [-1.68]
    """

    num_particles: int = 4
    spatial_dim: int = 2
    reference: ChainSettings = ChainSettings(
        inverse_temperatures=(1.0, 0.65, 0.4), num_warmup=2000, thinning=12
    )

    def __post_init__(self):
        for name, minimum in (("num_particles", 2), ("spatial_dim", 1)):
            object.__setattr__(self, name, checks.positive_int(getattr(self, name), name, minimum))
        check_settings(self.reference)

    @property
    def vocab_size(self) -> int:
        """V = 2; the mask token is 2."""
        return 2

    @property
    def event_shape(self) -> dict[str, tuple[int, ...]]:
        """{"x": (N * d,), "h": (N,)}."""
        return {"x": (self.num_particles * self.spatial_dim,), "h": (self.num_particles,)}

    def __call__(self, state: State) -> Array:
        """E(x, h), [...] in the dtype of x, at least float32.

        Raises:
          TypeError, ValueError: `state` is no {"x": [..., N * d] float, "h": [..., N] integer}.
        """
        x, h = state_checks.mixed(state, *self._sizes())
        return self._energy(x, h)

    def single_site_conditionals(self, state: State) -> Array:
        """Logits [..., N, V] = -E(x, h with site i set to v) up to a constant a site."""
        x, h = state_checks.mixed(state, *self._sizes())
        offset = self._offset(x)
        other = jnp.broadcast_to(h[..., None, :], offset.shape)
        logits = []
        for kind in (0.0, 1.0):
            u = _pair(offset, jnp.full_like(other, kind), other)
            logits.append(-jnp.sum(jnp.where(particles.pair_mask(u), u, 0.0), axis=-1))
        return jnp.stack(logits, axis=-1)

    def relaxed(self, state: State) -> Array:
        """[...] the mean of E(x, h) over independent tokens with probabilities "h" [..., N, V]."""
        x, p = state_checks.probabilities(state, *self._sizes(), 2)
        # Every pair term is affine in each of its two kinds, so the mean kind is enough.
        return self._energy(x, p[..., 1])

    def sample(self, key: Key, n: int) -> State:
        """{"x": [n, N * d], "h": [n, N] int32} drawn without replacement from reference chains.

        The first call runs them and keeps the result on disk: see `egm.energies.reference.pool`.

        Raises:
          TypeError, ValueError: `key` is not one concrete typed key; `n` < 1 or above the pool's size.
          RuntimeError: the chains' split R-hat is not below its limit.
        """
        return pool.draw(self, key, n)

    def _sizes(self):
        return self.num_particles * self.spatial_dim, self.num_particles

    def _offset(self, x):
        """[..., N, N] r_ij - 2."""
        return particles.distances(particles.split(x, self.num_particles, self.spatial_dim)) - _REST

    def _energy(self, x, kind):
        offset = self._offset(x)
        first = jnp.broadcast_to(kind[..., :, None], offset.shape)
        second = jnp.broadcast_to(kind[..., None, :], offset.shape)
        return particles.pair_sum(_pair(offset, first, second))


def _pair(offset, first, second):
    """u of pairs with kinds in [0, 1], affine in each of the two."""
    squared = offset**2
    a, b = (_bilinear(table, first, second) for table in (_QUARTIC, _QUADRATIC))
    return 0.5 * squared * (a * squared + b)


def _bilinear(table, first, second):
    (c00, c01), (_, c11) = table.tolist()
    return c00 + (c01 - c00) * (first + second) + (c00 + c11 - 2 * c01) * first * second
