"""The space of tokens: spins, colours, letters, states of lattices and graphs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from egm import checks
from egm.spaces.real import as_shape

__all__ = ["Tokens"]


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Arrays of int32 tokens in 0..V-1.

    Attributes:
      shape: of one state: an int, a tuple of ints, or () for one token.
      vocab_size: V, at least 2.
      periodic: whether the axes of `shape` are those of a periodic grid, so that networks may use it; or
        the axes (H, W) of the grid that the L = H W sites of a flat state are, row by row.

    Raises:
      TypeError, ValueError: a size is none, or the grid has another number of sites.

    Examples:
      >>> lattice = egm.spaces.Tokens((4, 4), vocab_size=3, periodic=True)
      >>> egm.spaces.Layout(lattice).example(5).shape
      (5, 4, 4)
      >>> lattice.num_sites, lattice.grid
      (16, (4, 4))
    """

    shape: Any = ()
    vocab_size: int = 2
    periodic: Any = False

    def __post_init__(self):
        object.__setattr__(self, "shape", as_shape(self.shape))
        checks.positive_int(self.vocab_size, "vocab_size", 2)
        if isinstance(self.periodic, tuple | list):
            object.__setattr__(self, "periodic", as_shape(self.periodic))
            if math.prod(self.periodic) != self.num_sites:
                raise ValueError(
                    f"periodic must be a grid of the {self.num_sites} sites of shape, got {self.periodic}"
                )
        else:
            checks.flag(self.periodic, "periodic")

    @property
    def num_sites(self) -> int:
        """L."""
        return math.prod(self.shape)

    @property
    def grid(self) -> tuple[int, ...]:
        """The axes of the periodic grid; () where there is none."""
        if isinstance(self.periodic, tuple):
            return self.periodic
        return self.shape if self.periodic else ()
