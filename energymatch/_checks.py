"""A check of numbers that may be traced, per example or plain, which `egm.checks` has for times only."""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.typing import Array

_ALLOWED = {
    "finite": np.isfinite,
    "finite and positive": lambda value: np.isfinite(value) & (value > 0),
    "finite and non-negative": lambda value: np.isfinite(value) & (value >= 0),
}


def number(value: Any, name: str, expected: str, batch_shape: tuple[int, ...] = ()) -> Array:
    """`value` as a floating array of shape () or `batch_shape`, integers converted.

    Args:
      value: a number or an array, traced or not. Numbers are checked under jit as well.
      name: of the argument.
      expected: what its values must be where they are known: a key of `_ALLOWED`.
      batch_shape: the shape that is allowed besides ().

    Raises:
      TypeError: no number, or a boolean. ValueError: another shape, or a value that is not as expected.
    """
    array = checks.as_array(value, name, "a number or an array of numbers")
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(float)
    array = checks.float_array(array, name)
    if array.shape not in ((), batch_shape):
        allowed = f"a scalar or have shape {batch_shape}" if batch_shape else "a scalar"
        raise ValueError(f"{name} must be {allowed}, got shape {array.shape}")
    # Under jit `jnp.asarray` traces a plain number, which is known all the same.
    known = checks.concrete(value if isinstance(value, numbers.Real | np.ndarray | jax.Array) else array)
    if known is not None:
        bad = ~_ALLOWED[expected](known)
        if np.any(bad):
            raise ValueError(f"{name} must be {expected}, got {known[bad].ravel()[0]}")
    return array


def unit_interval(value: Any, name: str) -> float:
    """The value as a float; raises unless it is a number in [0, 1]. Makes no array."""
    value = checks.finite_float(value, name)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return value
