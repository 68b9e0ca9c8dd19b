"""Costs of pairing prior samples with data: the squared distance, and one that knows where the data are.

-grad V carries a particle in a straight line only through empty space. Inside the data V is the data's
energy, whose slope is not the transport's, so that a particle stays near the point where its line
first meets the data: what was meant to lie behind stays empty. Used through the `cost` argument of
`energymatch.couplings`. Shape letters: B batch, M landmarks, *event the axes of one state.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from egm import checks
from egm.typing import Array

__all__ = ["CostFn", "line_of_sight", "squared_euclidean", "squared_euclidean_of_centred"]

_FEW = 16
"""Dimensions up to which B^2 D differences cost about what a matrix product does."""


CostFn = Callable[[Array, Array], Array]
"""`cost(x_0, x_1)` of [B, *event] arrays gives the matrix [B, B] of the costs of pairing row i with j."""


def squared_euclidean(x_0: Array, x_1: Array) -> Array:
    """[B, B] squared distances between the rows of x_0 and those of x_1, summed over the event axes."""
    x_0, x_1 = _flat(x_0, x_1)
    # |a|^2 + |b|^2 - 2ab cancels where both are far from the origin, so the centre goes first.
    centre = _centre(jnp.concatenate([x_0, x_1]))
    return _squares(x_0 - centre, x_1 - centre)


def squared_euclidean_of_centred(x_0: Array, x_1: Array) -> Array:
    """`squared_euclidean` of batches that are each moved to the origin first, what a plan needs of it.

    It differs from the squared distance by a constant for each row and one for each column, which change
    no plan, and keeps the digits that plans depend on where the batches lie far apart.
    """
    x_0, x_1 = _flat(x_0, x_1)
    return _squares(x_0 - _centre(x_0), x_1 - _centre(x_1))


def line_of_sight(landmarks: Array, *, strength: float = 5.0, radius: float | None = None) -> CostFn:
    """The squared distance times 1 + strength * (1 - s)^2, s where the line first meets the data.

    s in [0, 1] is the share of the line from x_0 to x_1 before it enters a ball about a landmark, so
    that (1 - s) |x_1 - x_0| is the way which is left to the density's own, slow dynamics. Made for data
    of few dimensions: where nearest neighbours lie nearly as far apart as any two points the default
    balls meet almost every line (99% on 8x8 digits), and nothing has shown that the charge helps.

    Args:
      landmarks: [M, *event] data; 100 to 300 will do, time and memory are B^2 for each in turn.
      strength: of the charge; 0 for the squared distance.
      radius: of the balls; None for the median distance of a landmark to the fifth nearest other one.

    Returns:
      `cost(x_0 [B, *event], x_1 [B, *event]) -> [B, B]` for `couplings.exact_ot` or `sinkhorn`. A landmark
      that is not finite is met by no line.

    Raises:
      TypeError, ValueError: the landmarks are not floating or fewer than 6 with no radius given, a number
        is out of range; the cost's arguments have other event axes.

    Examples:
      >>> landmarks = jax.random.normal(jax.random.key(0), (100, 2))
      >>> cost = energymatch.couplings.line_of_sight(landmarks)
      >>> x_0, x_1 = 5.0 + jnp.zeros((4, 2)), landmarks[:4]
      >>> _, paired = energymatch.couplings.exact_ot(jax.random.key(1), x_0, x_1, cost=cost)
      >>> paired.shape
      (4, 2)
    """
    landmarks = checks.float_array(landmarks, "landmarks", min_ndim=2)
    strength = checks.positive_float(strength, "strength", allow_zero=True)
    event = landmarks.shape[1:]
    flat = landmarks.reshape(landmarks.shape[0], -1)
    if radius is None:
        if flat.shape[0] < 6:
            raise ValueError(f"landmarks must be at least 6 to find a radius, got {flat.shape[0]}")
        centred = checks.wide(flat) - _centre(checks.wide(flat))
        squared_radius = jnp.median(jnp.sort(_squares(centred, centred), axis=1)[:, 5])
    else:
        squared_radius = checks.positive_float(radius, "radius") ** 2

    def cost(x_0: Array, x_1: Array) -> Array:
        for name, x in (("x_0", x_0), ("x_1", x_1)):
            if x.shape[1:] != event:
                raise ValueError(f"{name} must have event shape {event}, as the landmarks, got {x.shape[1:]}")
        dtype = jnp.promote_types(jnp.result_type(x_0, x_1, flat), jnp.float32)
        # In the middle of the landmarks the inner products cancel least.
        centre = _centre(flat.astype(dtype))
        a, b, points = (x.reshape(x.shape[0], -1).astype(dtype) - centre for x in (x_0, x_1, flat))
        length = jnp.maximum(_squares(a, b), jnp.finfo(dtype).tiny)
        inner_ab = _inner(a, b)
        norm_a = jnp.sum(a**2, axis=1)

        def meet(s, point):
            """s or, where it comes first, the entry into the ball about one landmark."""
            to_point = jnp.sum((a - point[None]) ** 2, axis=1)[:, None]
            along = (b @ point)[None] - inner_ab - (a @ point)[:, None] + norm_a[:, None]
            discriminant = along**2 - length * (to_point - squared_radius)
            enter = (along - jnp.sqrt(jnp.maximum(discriminant, 0.0))) / length
            ahead = (discriminant > 0) & (enter >= 0)
            enter = jnp.where(to_point < squared_radius, 0.0, jnp.where(ahead, enter, 1.0))
            return jnp.fmin(s, enter), None

        s, _ = jax.lax.scan(meet, jnp.ones_like(length), points)
        return length * (1 + strength * (1 - s) ** 2)

    return cost


def _inner(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _squares(a: Array, b: Array) -> Array:
    """[B, B] squared distances of [B, D]: by differences in few dimensions, by inner products in many."""
    if a.shape[1] <= _FEW:
        return jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
    squares = jnp.sum(a**2, axis=1)[:, None] + jnp.sum(b**2, axis=1)[None]
    return jnp.maximum(squares - 2 * _inner(a, b), 0.0)


def _flat(x_0: Array, x_1: Array) -> tuple[Array, Array]:
    """Both as [B, D], in float32 or wider."""
    x_0, x_1 = checks.float_array(x_0, "x_0", min_ndim=1), checks.float_array(x_1, "x_1", min_ndim=1)
    if x_0.shape[1:] != x_1.shape[1:]:
        raise ValueError(f"x_0 has event shape {x_0.shape[1:]}, x_1 has {x_1.shape[1:]}")
    checks.not_empty(x_0, "x_0")
    checks.not_empty(x_1, "x_1")
    dtype = jnp.promote_types(jnp.result_type(x_0, x_1), jnp.float32)
    flat = lambda x: x.reshape(x.shape[0], -1).astype(dtype)
    return flat(x_0), flat(x_1)


def _centre(x: Array) -> Array:
    """[1, D] about the middle of [B, D]: the mean, then twice one in which far rows weigh little.

    One point at 3e4 among 64 would drag the mean by 470, and the rounding of 470^2 is that of no distance.
    """
    finite = jnp.all(jnp.isfinite(x), axis=1, keepdims=True)
    x = jnp.where(finite, x, 0.0)
    weights, centre = finite.astype(x.dtype), jnp.zeros_like(x[:1])
    for _ in range(3):
        centre = jnp.sum(weights * x, axis=0, keepdims=True) / jnp.maximum(jnp.sum(weights), 1e-30)
        squares = jnp.sum((x - centre) ** 2, axis=1, keepdims=True)
        typical = jnp.nanmedian(jnp.where(finite & jnp.isfinite(squares), squares, jnp.nan))
        weights = jnp.where(finite, 1 / (1 + squares / jnp.where(typical > 0, typical, 1.0)), 0.0)
    return jnp.nan_to_num(centre)
