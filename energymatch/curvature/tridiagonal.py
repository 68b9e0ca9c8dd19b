"""Symmetric maps known by their products, one an example: dense eigenvalues, and Lanczos' tridiagonal form.

Used by `energymatch.curvature`. A map is `push(v [B, D]) -> [B, D]`, A v of every example. Shape letters:
B batch, D the size of the space, m steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egm import collectives
from egm.typing import Array, Key

__all__ = [
    "Push",
    "Tridiagonal",
    "all_finite",
    "count_below",
    "eigenvalues",
    "tridiagonalize",
    "weight_inside",
]

Push = Callable[[Array], Array]


class Tridiagonal(NamedTuple):
    """Q A Q^T = T with orthonormal rows Q.

    Attributes:
      diagonal: [B, m] of T.
      off_diagonal: [B, m - 1] of T; 0 where a Krylov space was exhausted.
      residual: [B] what the last step leaves outside Q, |A q_m - Q^T Q A q_m|; rounding alone at m = D.
      basis: [B, m, *event] the rows of Q.
    """

    diagonal: Array
    off_diagonal: Array
    residual: Array
    basis: Array


def eigenvalues(
    push: Push, finite: Array, shape: tuple[int, int], dtype: jnp.dtype, chunk_size: int | None = None
) -> Array:
    """[B, D] ascending, from the D columns, `chunk_size` of them at a time (None: 256 over all examples).

    NaN where `finite` [B] is False or a column is not finite.
    """
    batch, size = shape
    chunk_size = max(1, 256 // batch) if chunk_size is None else chunk_size

    def column(direction):
        return push(jnp.broadcast_to(direction, shape))

    columns = jax.lax.map(column, jnp.eye(size, dtype=dtype), batch_size=min(chunk_size, size))
    whole = jnp.moveaxis(columns, 0, -1)
    finite = finite & jnp.all(jnp.isfinite(whole), axis=(-2, -1))
    values = jnp.linalg.eigvalsh(jnp.where(finite[:, None, None], whole, 0.0))
    return jnp.where(finite[:, None], values, jnp.nan)


def tridiagonalize(push: Push, start: Array, keys: Key, num_steps: int) -> Tridiagonal:
    """Lanczos with full reorthogonalisation; a new direction is random where the Krylov space has ended.

    Args:
      push: [B, D] -> [B, D], a symmetric map an example.
      start: [B, D] first directions.
      keys: [B], for restarts.
      num_steps: m <= D.

    Returns:
      Tridiagonal with a flat basis [B, m, D]; NaN in examples whose map is not finite.
    """
    batch, size = start.shape
    dtype = start.dtype
    # A residual this small, relative to |A q|, is rounding: following it or not changes T by as much.
    tolerance = 2 * float(jnp.finfo(dtype).eps) * math.sqrt(size)

    def orthogonal(w, basis):
        along = jnp.einsum("bmd,bd->bm", basis, w, precision=jax.lax.Precision.HIGHEST)
        return w - jnp.einsum("bmd,bm->bd", basis, along, precision=jax.lax.Precision.HIGHEST)

    def body(carry, i):
        basis, q, scale = carry
        basis = jax.lax.dynamic_update_slice_in_dim(basis, q[:, None], i, axis=1)
        w = push(q)
        scale = jnp.maximum(scale, jnp.linalg.norm(w, axis=-1))
        residual = orthogonal(w, basis)
        length = jnp.linalg.norm(residual, axis=-1)
        exhausted = length <= tolerance * scale
        fresh = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, i), (size,), dtype))(keys)
        following = _unit(jnp.where(exhausted[:, None], fresh, residual))
        # Twice is enough: the first pass leaves rounding that weighs the more, the shorter the residual.
        for _ in range(2):
            following = _unit(orthogonal(following, basis))
        off_diagonal = jnp.where(exhausted, 0.0, jnp.sum(following * w, axis=-1))
        return (basis, following, scale), (jnp.sum(q * w, axis=-1), off_diagonal, length)

    basis = collectives.varying_like(jnp.zeros((batch, num_steps, size), dtype), start)
    carry = (basis, _unit(start), jnp.zeros_like(start[:, 0]))
    (basis, _, _), (diagonal, off_diagonal, length) = jax.lax.scan(body, carry, jnp.arange(num_steps))
    return Tridiagonal(diagonal.T, off_diagonal[:-1].T, length[-1], basis)


def count_below(matrix: Tridiagonal, shift: Array) -> Array:
    """[B] int32, how many eigenvalues of T lie below the shift: the negative pivots of T - shift.

    Exact for a matrix within rounding of T (Sylvester's law of inertia, Sturm's sequence), in m steps.
    """
    diagonal, squares = matrix.diagonal.T - shift, jnp.square(matrix.off_diagonal.T)
    # LAPACK's smallest pivot (stebz): a square divided by it does not overflow.
    tiny = float(jnp.finfo(diagonal.dtype).tiny)
    smallest = tiny * jnp.maximum(1.0, jnp.max(squares, axis=0, initial=0.0))

    def body(carry, entry):
        pivot, count = carry
        diagonal, square = entry
        pivot = diagonal - square / pivot
        pivot = jnp.where(jnp.abs(pivot) < smallest, -smallest, pivot)
        return (pivot, count + (pivot < 0)), None

    pivot = jnp.where(jnp.abs(diagonal[0]) < smallest, -smallest, diagonal[0])
    (_, count), _ = jax.lax.scan(body, (pivot, (pivot < 0).astype(jnp.int32)), (diagonal[1:], squares))
    return count


def weight_inside(matrix: Tridiagonal, threshold: Array) -> tuple[Array, Array]:
    """The weight of the start on eigenvectors with |lambda| < threshold, by Gauss' quadrature in T.

    Returns:
      ([B] the weight, in [0, 1]; [B] the part of the start's weight that is undecided, that of Ritz values
      whose residual reaches across the threshold).
    """

    def dense(diagonal, off_diagonal):
        return jnp.diag(diagonal) + jnp.diag(off_diagonal, 1) + jnp.diag(off_diagonal, -1)

    whole = jax.vmap(dense)(matrix.diagonal, matrix.off_diagonal)
    whole = jnp.where(all_finite(matrix)[:, None, None], whole, 0.0)
    values, vectors = jnp.linalg.eigh(whole)
    weights, distance = jnp.square(vectors[:, 0]), jnp.abs(values) - threshold
    reach = matrix.residual[:, None] * jnp.abs(vectors[:, -1])
    inside = jnp.sum(jnp.where(distance < 0, weights, 0.0), axis=-1)
    return inside, jnp.sum(jnp.where(jnp.abs(distance) < reach, weights, 0.0), axis=-1)


def all_finite(matrix: Tridiagonal) -> Array:
    """[B] bool, whether T is finite."""
    finite = (jnp.all(jnp.isfinite(part), axis=-1) for part in (matrix.diagonal, matrix.off_diagonal))
    return next(finite) & next(finite)


def _unit(v):
    norm = jnp.linalg.norm(v, axis=-1, keepdims=True)
    return v / jnp.where(norm > 0, norm, 1.0)
