"""Spaces of real numbers and what maps R onto their parts: the line, the half-line, intervals."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from egm import checks
from egm.typing import Array

__all__ = ["Continuous", "Interval", "Positive", "Real", "as_field", "as_shape"]


@runtime_checkable
class Continuous(Protocol):
    """Arrays of real numbers that a bijection makes of unconstrained ones."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one state."""
        ...

    def constrain(self, y: Array) -> tuple[Array, Array]:
        """(x [N, *shape], log |det dx/dy| [N]) of unconstrained y [N, *shape]."""
        ...

    def unconstrain(self, x: Array) -> Array:
        """y [N, *shape] of x [N, *shape], the inverse of `constrain`."""
        ...


@dataclasses.dataclass(frozen=True)
class Real:
    """Arrays of real numbers.

    Attributes:
      shape: of one state: an int, a tuple of ints, or () for one number.
      periodic: a field on a torus: the axes of `shape` (two equal ones) are those of a periodic grid, and
        networks see it so.

    Raises:
      TypeError, ValueError: the shape is none, or a periodic one has other than two equal axes.

    Examples:
      >>> space = {"mean": egm.spaces.Real(), "weights": egm.spaces.Real((3, 2))}
      >>> jax.tree.map(jnp.shape, egm.spaces.Layout(space).example(5))  # five states
      {'mean': (5,), 'weights': (5, 3, 2)}
    """

    shape: Any = ()
    periodic: bool = False

    def __post_init__(self):
        object.__setattr__(self, "shape", as_field(self.shape, self.periodic))

    def constrain(self, y: Array) -> tuple[Array, Array]:
        """(y itself, zeros)."""
        return y, jnp.zeros(y.shape[:1], y.dtype)

    def unconstrain(self, x: Array) -> Array:
        """x itself."""
        return x


@dataclasses.dataclass(frozen=True)
class Positive:
    """Arrays of numbers above zero, x = exp(y).

    Attributes:
      shape: of one state: an int, a tuple of ints, or () for one number.

    Examples:
      >>> scale = egm.spaces.Positive(2)
      >>> x, log_det = scale.constrain(jnp.array([[0.0, -1.0]]))  # the log-determinant is added to the energy
      >>> print(np.asarray(x).round(2), log_det)
      [[1.   0.37]] [-1.]
    """

    shape: Any = ()

    def __post_init__(self):
        object.__setattr__(self, "shape", as_shape(self.shape))

    def constrain(self, y: Array) -> tuple[Array, Array]:
        """(exp y, sum of y)."""
        return jnp.exp(y), _sum(y)

    def unconstrain(self, x: Array) -> Array:
        """log x."""
        return jnp.log(x)


@dataclasses.dataclass(frozen=True)
class Interval:
    """Arrays of numbers in (low, high), x = low + (high - low) sigmoid(y).

    Attributes:
      low, high: its ends, finite.
      shape: of one state: an int, a tuple of ints, or () for one number.

    Raises:
      TypeError, ValueError: an end is no finite number, or low is not below high.

    Examples:
      >>> share = egm.spaces.Interval(0.0, 10.0)
      >>> x, _ = share.constrain(jnp.array([-5.0, 0.0, 5.0]))
      >>> print(np.asarray(x).round(1))
      [0.1 5.  9.9]
    """

    low: float = 0.0
    high: float = 1.0
    shape: Any = ()

    def __post_init__(self):
        object.__setattr__(self, "shape", as_shape(self.shape))
        for name in ("low", "high"):
            object.__setattr__(self, name, checks.finite_float(getattr(self, name), name))
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got low = {self.low} and high = {self.high}")

    def constrain(self, y: Array) -> tuple[Array, Array]:
        """(low + width sigmoid(y), sum of log(width sigmoid(y) sigmoid(-y)))."""
        width = self.high - self.low
        slope = jnp.log(width) + jax.nn.log_sigmoid(y) + jax.nn.log_sigmoid(-y)
        return self.low + width * jax.nn.sigmoid(y), _sum(slope)

    def unconstrain(self, x: Array) -> Array:
        """The log-odds of x between the ends."""
        return jnp.log(x - self.low) - jnp.log(self.high - x)


def as_shape(shape: Any) -> tuple[int, ...]:
    """A shape as a tuple of positive ints; an int is one axis.

    Raises:
      TypeError, ValueError: it is none.
    """
    axes = shape if isinstance(shape, tuple | list) else (shape,)
    return tuple(checks.positive_int(n, "every size in shape") for n in axes)


def as_field(shape: Any, periodic: Any) -> tuple[int, ...]:
    """The shape of a field: two equal axes where it is periodic.

    Raises:
      TypeError, ValueError: it is none.
    """
    found = as_shape(shape)
    if checks.flag(periodic, "periodic") and (len(found) != 2 or found[0] != found[1]):
        raise ValueError(f"shape of a periodic field must be two equal axes, got {found}")
    return found


def _sum(a: Array) -> Array:
    return jnp.sum(a.reshape(a.shape[0], -1), axis=-1)
