"""Measurement operators A: what of a state x is seen, for the energies of `energymatch.posterior`.

Each function returns A(x): [B, *event] -> [B, *measurement], linear in x, whose adjoint is its `jax.vjp`.
"Spatial" axes are the one of vectors [B, D] or the two of images [B, height, width, channels] (NHWC).
Any function of x with that signature serves as well, linear or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.typing import Array, Key

__all__ = ["Operator", "downsampling", "gaussian_blur", "inpainting", "linear", "random_projection"]

Operator = Callable[[Array], Array]
"""`A(x) -> [B, *measurement]` with x [B, *event]."""


def inpainting(mask: Array) -> Operator:
    """A(x) = mask * x: what is not seen is zero, in the same place.

    Args:
      mask: [*event] bool, True where x is seen; traced or not.

    Returns:
      The operator; its y has the shape of x and should be zero where the mask is False (any other finite
      value there adds a constant to the energy).

    Raises:
      TypeError: `mask` is not boolean. ValueError (from the operator): x has another event shape.

    Examples:
      >>> seen = energymatch.posterior.operators.inpainting(jnp.array([True, False, True]))
      >>> print(seen(jnp.array([[1.0, 2.0, 3.0]])))
      [[1. 0. 3.]]
    """
    mask = checks.as_array(mask, "mask", "a boolean array")
    if mask.dtype != bool:
        raise TypeError(f"mask must be boolean, got dtype {mask.dtype}")

    def operator(x: Array) -> Array:
        x = checks.float_array(x, "x", min_ndim=1)
        if x.shape[1:] != mask.shape:
            raise ValueError(f"x must have event shape {mask.shape}, that of the mask, got {x.shape[1:]}")
        return jnp.where(mask[None], x, jnp.zeros((), x.dtype))

    return operator


def linear(matrix: Array) -> Operator:
    """A(x) = matrix x, with x flattened.

    Args:
      matrix: [M, D], D the size of an event.

    Returns:
      The operator, [B, *event] -> [B, M].

    Raises:
      TypeError, ValueError: `matrix` is no floating matrix, or (from the operator) x has another size.
    """
    matrix = checks.float_array(matrix, "matrix")
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have shape [M, D], got shape {matrix.shape}")

    def operator(x: Array) -> Array:
        x = checks.float_array(x, "x", min_ndim=1)
        size = math.prod(x.shape[1:])
        if size != matrix.shape[1]:
            raise ValueError(f"x must have events of size {matrix.shape[1]}, got shape {x.shape}")
        flat = x.reshape(x.shape[0], size)
        return jnp.matmul(flat, matrix.T.astype(x.dtype), precision=jax.lax.Precision.HIGHEST)

    return operator


def random_projection(key: Key, event_shape: tuple[int, ...], num_measurements: int) -> Operator:
    """`linear` with M x D independent entries N(0, 1/M), so that E|A(x)|^2 = |x|^2.

    Args:
      key: one typed key.
      event_shape: of x without the batch.
      num_measurements: M.

    Raises:
      TypeError, ValueError: an argument has a wrong type or value.
    """
    if checks.key_array(key).shape != ():
        raise ValueError(f"key must be one key, got shape {key.shape}")
    if not isinstance(event_shape, (tuple, list)):
        raise TypeError(f"event_shape must be a tuple of ints, got {event_shape!r}")
    size = math.prod(checks.positive_int(n, "event_shape") for n in event_shape)
    num_measurements = checks.positive_int(num_measurements, "num_measurements")
    return linear(jax.random.normal(key, (num_measurements, size)) / math.sqrt(num_measurements))


def downsampling(factor: int) -> Operator:
    """Means over blocks: `factor` entries of a vector, factor x factor pixels of an image.

    Args:
      factor: at least 1; it must divide the spatial axes.

    Raises:
      TypeError, ValueError: `factor` is no positive int, or (from the operator) x is neither a batch of
        vectors nor of images, or has an axis that the factor does not divide.
    """
    factor = checks.positive_int(factor, "factor")

    def operator(x: Array) -> Array:
        axes = _spatial_axes(x)
        if any(x.shape[axis] % factor for axis in axes):
            raise ValueError(f"x must have spatial axes that factor = {factor} divides, got {x.shape}")
        for axis in axes:
            n = x.shape[axis]
            shape = (*x.shape[:axis], n // factor, factor, *x.shape[axis + 1 :])
            x = jnp.mean(x.reshape(shape), axis=axis + 1)
        return x

    return operator


def gaussian_blur(width: float, *, truncate: float = 4.0) -> Operator:
    """Convolution with a Gaussian along each spatial axis, mirrored at the edges.

    The kernel is sampled at the entries and normalised, so that constants stay as they are; edges mirror
    as (b a | a b c | c b): SciPy's `gaussian_filter` with mode "reflect". Applied as one matrix an axis,
    n^2 multiplications a line of n entries.

    Args:
      width: standard deviation in entries.
      truncate: radius of the kernel in widths.

    Raises:
      TypeError, ValueError: a number is not positive, or (from the operator) x is neither a batch of
        vectors nor of images.
    """
    width = checks.positive_float(width, "width")
    radius = int(checks.positive_float(truncate, "truncate") * width + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / width) ** 2)
    kernel /= kernel.sum()

    def matrix(n: int) -> np.ndarray:
        sources = np.pad(np.arange(n), radius, mode="symmetric")
        out = np.zeros((n, n))
        for shift, value in enumerate(kernel):
            np.add.at(out, (np.arange(n), sources[shift : shift + n]), value)
        return out

    def operator(x: Array) -> Array:
        for axis in _spatial_axes(x):
            lines = jnp.moveaxis(x, axis, -1)
            weights = jnp.asarray(matrix(x.shape[axis]).T, x.dtype)
            x = jnp.moveaxis(jnp.matmul(lines, weights, precision=jax.lax.Precision.HIGHEST), -1, axis)
        return x

    return operator


def _spatial_axes(x: Array) -> tuple[int, ...]:
    """(1,) of vectors [B, D], (1, 2) of images [B, height, width, channels]."""
    checks.float_array(x, "x")
    if x.ndim not in (2, 4):
        raise ValueError(f"x must be vectors [B, D] or images [B, height, width, channels], got {x.shape}")
    return (1,) if x.ndim == 2 else (1, 2)
