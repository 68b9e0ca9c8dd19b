"""Spheres of known dimension in a space of ten."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

DIMENSIONS, SPACE, RADIUS = (1, 2, 4, 6), 10, 2.0


@functools.partial(jax.jit, static_argnums=1)
def spheres(key, num):
    """[S, num, 10] points of spheres of the dimensions above, each in a subspace of its own."""
    keys = jax.random.split(key, 2)
    basis = jnp.linalg.qr(jax.random.normal(keys[0], (len(DIMENSIONS), SPACE, SPACE)))[0]
    inside = jnp.arange(SPACE) <= jnp.array(DIMENSIONS)[:, None]
    x = jax.random.normal(keys[1], (len(DIMENSIONS), num, SPACE)) * inside[:, None]
    return RADIUS * x / jnp.linalg.norm(x, axis=-1, keepdims=True) @ basis.mT
