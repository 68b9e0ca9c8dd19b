"""Geometry of N particles in d dimensions, states [..., N * d]: the particles' positions in turn."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from egm.typing import Array

__all__ = ["centered", "distances", "pair_mask", "pair_sum", "split"]

_COINCIDENT = 1e-30  # squared distance below which two particles have no direction


def split(x: Array, num_particles: int, spatial_dim: int) -> Array:
    """[..., N, d] positions."""
    return x.reshape(*x.shape[:-1], num_particles, spatial_dim)


def centered(x: Array, num_particles: int, spatial_dim: int) -> Array:
    """[..., N * d] with the mean position taken off."""
    positions = split(x, num_particles, spatial_dim)
    return (positions - jnp.mean(positions, axis=-2, keepdims=True)).reshape(x.shape)


def distances(positions: Array) -> Array:
    """[..., N, N] distances of positions [..., N, d]; the gradient is zero where two coincide."""
    # One coordinate at a time keeps the inner loops over pairs, not over the d coordinates.
    axes = [positions[..., k] for k in range(positions.shape[-1])]
    squared = sum((c[..., :, None] - c[..., None, :]) ** 2 for c in axes)
    apart = squared > _COINCIDENT
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)


def pair_mask(u: Array) -> Array:
    """[..., N, N] bool, False on the diagonal."""
    return jnp.broadcast_to(~np.eye(u.shape[-1], dtype=bool), u.shape)


def pair_sum(u: Array) -> Array:
    """[...] the sum over pairs i < j of a symmetric u [..., N, N]."""
    return 0.5 * jnp.sum(jnp.where(pair_mask(u), u, 0.0), axis=(-2, -1))
