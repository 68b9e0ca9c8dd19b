"""The space of angles."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from egm.paths.wrapped import wrapped
from egm.spaces.real import as_field
from egm.typing import Array

__all__ = ["Circle"]


@dataclasses.dataclass(frozen=True)
class Circle:
    """Arrays of angles in radians; states are in [-pi, pi), and log Z is that of dtheta.

    The energy is always asked within [-pi, pi), so that it need not be periodic; where it is not it jumps.

    Attributes:
      shape: of one state: an int, a tuple of ints, or () for one angle.
      periodic: angles at the sites of a torus: the axes of `shape` (two equal ones) are those of a periodic
        grid, and networks see it so.

    Raises:
      TypeError, ValueError: the shape is none, or a periodic one has other than two equal axes.

    Examples:
      >>> torsions = egm.spaces.Circle(2)
      >>> x, _ = torsions.constrain(jnp.array([[0.5, 2 * jnp.pi + 1.0]]))  # states are in [-pi, pi)
      >>> print(np.asarray(x).round(2))
      [[0.5 1. ]]
    """

    shape: Any = ()
    periodic: bool = False

    def __post_init__(self):
        object.__setattr__(self, "shape", as_field(self.shape, self.periodic))

    def constrain(self, y: Array) -> tuple[Array, Array]:
        """(y within [-pi, pi), zeros)."""
        return wrapped(y), jnp.zeros(y.shape[:1], y.dtype)

    def unconstrain(self, x: Array) -> Array:
        """x itself."""
        return x
