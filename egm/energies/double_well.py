"""Four particles in two dimensions with double-well pair potentials: DW4."""

from __future__ import annotations

import dataclasses

from egm import checks
from egm.energies import particles, state_checks
from egm.energies.reference import ChainSettings, check_settings, pool
from egm.typing import Array, Key

__all__ = ["DoubleWell4"]

# u(r) = (a (r - d_0) + b (r - d_0)^2 + c (r - d_0)^4) / tau of Koehler et al., with a = 0 and tau = 1.
_QUADRATIC, _QUARTIC, _REST = -4.0, 0.9, 4.0


@dataclasses.dataclass(frozen=True)
class DoubleWell4:
    """E(x) = sum_{i<j} (.9 (r_ij - 4)^4 - 4 (r_ij - 4)^2) on [..., N * d].

    Each pair once, as in the literature (a sum over ordered pairs with a factor 1/2): a = 0, b = -4, c = .9,
    d_0 = 4, tau = 1. A pair has two wells of depth 40/9, at r = 4 -+ (20/9)^(1/2), about 2.51 and 5.49. E is
    invariant under permutations, rotations and translations: exp(-E) is normalisable only on the centred
    subspace of dimension (N - 1) d, where positions sum to zero, which is where `sample` draws and
    `egm.paths.CenteredPath` moves. The gradient is zero where two particles coincide.

    Attributes:
      num_particles: N, at least 2.
      spatial_dim: d.
      reference: how `sample` makes its pool of states.

    Source: Koehler, Klein and Noe, "Equivariant flows" (ICML 2020), section on DW4.
    """

    num_particles: int = 4
    spatial_dim: int = 2
    reference: ChainSettings = ChainSettings(
        inverse_temperatures=(1.0, 0.6, 0.35, 0.2), num_warmup=2000, thinning=12
    )

    def __post_init__(self):
        for name, minimum in (("num_particles", 2), ("spatial_dim", 1)):
            object.__setattr__(self, name, checks.positive_int(getattr(self, name), name, minimum))
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
        square = (r - _REST) ** 2
        return particles.pair_sum(square * (_QUARTIC * square + _QUADRATIC))

    def sample(self, key: Key, n: int) -> Array:
        """[n, N * d] states drawn without replacement from reference chains.

        The first call runs them and keeps the result on disk: see `egm.energies.reference.pool`.

        Raises:
          TypeError, ValueError: `key` is not one concrete typed key; `n` < 1 or above the pool's size.
          RuntimeError: the chains' split R-hat is not below its limit.
        """
        return pool.draw(self, key, n)
