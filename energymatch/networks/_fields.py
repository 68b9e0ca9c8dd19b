"""What the networks for potentials share: standardised inputs, the confining wall, the scalar output."""

from __future__ import annotations

import importlib
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.typing import Array

Numbers = float | tuple[float, ...]
"""One number, or a tuple of D of them, one an element of the flattened event."""


class Picklable:
    """A mixin of Flax modules whose fields hold functions of jax, which pickle cannot take as they are.

    `jax.nn.silu` is wrapped by `jax.jit`, and pickle would look for what is inside: it goes as a name.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __reduce__(self):
        fields = {f: getattr(self, f) for f in self.__dataclass_fields__ if f != "parent"}
        return _rebuilt, (type(self), {name: _as_name(value) for name, value in fields.items()})


class _Name(tuple):
    """(module, name) of a function."""


def _as_name(value):
    name = getattr(value, "__name__", None)
    if isinstance(name, str):
        for module in (jax.nn, jnp):
            if getattr(module, name, None) is value:
                return _Name((module.__name__, name))
    return value


def _rebuilt(kind, fields):
    found = lambda v: getattr(importlib.import_module(v[0]), v[1]) if isinstance(v, _Name) else v
    return kind(**{name: found(value) for name, value in fields.items()})


def flattened(x: Any, center: Numbers, scale: Numbers) -> tuple[Array, Array]:
    """x [B, *event] as [B, D], checked: relative to the center, and standardised.

    Args:
      x: [B, *event], floating, with at least one event axis.
      center: subtracted.
      scale: positive; the difference is divided by it.

    Returns:
      x - center and (x - center) / scale, both [B, D].

    Raises:
      TypeError: `x` is not floating point, or `center` or `scale` no numbers. ValueError: `x` has no
        event axis, or `center` or `scale` another size than D, or values out of range.
    """
    x = checks.float_array(x, "x", min_ndim=2)
    size = math.prod(x.shape[1:])
    x = x.reshape(x.shape[0], size)
    offset = x - _numbers(center, "center", size, x.dtype)
    return offset, offset / _numbers(scale, "scale", size, x.dtype, positive=True)


def _numbers(values, name, size, dtype, positive=False):
    """[1, 1] or [1, D] of the values, checked."""
    if np.ndim(values) > 1 or (np.ndim(values) == 1 and len(values) != size):
        raise ValueError(
            f"{name} must be a number or a tuple of {size}, one an element of the event, "
            f"got shape {np.shape(values)}"
        )
    if hasattr(values, "__iter__") and not hasattr(values, "__len__"):
        raise TypeError(f"{name} must be a number or a tuple of {size}, got a {type(values).__name__}")
    check = checks.positive_float if positive else checks.finite_float
    many = values if np.ndim(values) else (values,)
    return jnp.asarray([[check(value, name) for value in many]], dtype)


def wall(offset: Array, radius: float | None, strength: float) -> Array | float:
    """[B] strength/2 relu(|offset| / radius - 1)^2, offset [B, D]; 0 without a radius.

    Zero inside the radius, with a continuous gradient across it. It grows quadratically, a network of
    bounded slope at most linearly: exp(-V / epsilon) has a finite integral at every epsilon.

    Raises:
      TypeError, ValueError: `radius` or `strength` is not a positive number.
    """
    checks.positive_float(strength, "confinement_strength")
    if radius is None:
        return 0.0
    radius = checks.positive_float(radius, "confinement_radius")
    square = jnp.sum(jnp.square(offset / radius), axis=-1)
    # The square root has no gradient at 0, and none is needed inside.
    distance = jnp.sqrt(jnp.where(square > 1, square, 1.0))
    return 0.5 * strength * jnp.square(distance - 1)
