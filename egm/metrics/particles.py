"""Clusters of particles: distances within them, and between two of them whatever their place and order."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.typing import Array

__all__ = ["MAX_PERMUTED", "aligned_squared_distances", "interatomic_distances"]

MAX_PERMUTED = 6
"""Particles up to which all permutations are tried."""


def interatomic_distances(x: Array, num_particles: int, spatial_dim: int) -> Array:
    """[N, P (P - 1) / 2] distances of all pairs of particles of states x [N, P * d].

    Raises:
      TypeError, ValueError: x is no float array [N, P * d].
    """
    x = _positions(x, "x", num_particles, spatial_dim)
    i, j = np.triu_indices(num_particles, 1)
    return jnp.sqrt(jnp.sum(jnp.square(x[:, i] - x[:, j]), axis=-1))


def aligned_squared_distances(x: Array, y: Array, num_particles: int, spatial_dim: int) -> Array:
    """[N, M] squared distances of clusters, the least over all that an energy of pairs cannot see.

    min over permutations, rotations, reflections and translations of sum_i |x_i - y_i|^2: with both centred
    |x|^2 + |y|^2 less twice the largest sum of the singular values of X^T P Y over permutations P
    (Procrustes; Schoenemann 1966). All P! are tried. Its W2 is that of the literature on samplers of
    particles where that takes symmetries out.

    Args:
      x: [N, P * d].
      y: [M, P * d].
      num_particles: P, at most 6.
      spatial_dim: d.

    Raises:
      TypeError, ValueError: a state has another shape, or P is above 6.
    """
    if checks.positive_int(num_particles, "num_particles", 2) > MAX_PERMUTED:
        raise ValueError(f"num_particles must be at most {MAX_PERMUTED}, got {num_particles}")
    x, y = (_positions(a, name, num_particles, spatial_dim) for a, name in ((x, "x"), (y, "y")))
    x, y = (a - jnp.mean(a, axis=1, keepdims=True) for a in (x, y))
    orders = jnp.asarray(list(itertools.permutations(range(num_particles))))

    def overlap(best, order):
        return jnp.maximum(best, _nuclear(jnp.einsum("npi,mpj->nmij", x, y[:, order]))), None

    best, _ = jax.lax.scan(overlap, jnp.zeros((x.shape[0], y.shape[0]), x.dtype), orders)
    size_x, size_y = (jnp.sum(jnp.square(a), axis=(1, 2)) for a in (x, y))
    return jnp.maximum(size_x[:, None] + size_y[None] - 2 * best, 0.0)


def _nuclear(matrix: Array) -> Array:
    """[...] sum of the singular values of [..., d, d]."""
    if matrix.shape[-1] == 2:
        square = jnp.sum(jnp.square(matrix), axis=(-2, -1))
        det = matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
        return jnp.sqrt(square + 2 * jnp.abs(det))
    return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False), axis=-1)


def _positions(x: Any, name: str, num_particles: int, spatial_dim: int) -> Array:
    x = checks.float_array(x, name)
    size = checks.positive_int(num_particles, "num_particles", 2) * checks.positive_int(
        spatial_dim, "spatial_dim"
    )
    if x.ndim != 2 or x.shape[1] != size:
        raise ValueError(f"{name} must have shape [N, {size}], got {x.shape}")
    return x.reshape(-1, num_particles, spatial_dim)
