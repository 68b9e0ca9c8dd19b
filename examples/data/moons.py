"""The 2D problem of the Energy Matching paper: eight Gaussians carried to two moons, with exact answers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from energymatch import couplings
from energymatch.couplings import costs

SCALE, SHIFT, WIDTH = 3.0, -1.0, 0.6
"""Moons of unit radius, scaled and shifted; uniform noise of this width along (1, 1) makes them wide."""


def sample_prior(key: jax.Array, num: int) -> jax.Array:
    """[num, 2] from eight Gaussians of variance .1 on a circle of radius 5."""
    which, noise = jax.random.split(key)
    angle = jax.random.randint(which, (num,), 0, 8) * (jnp.pi / 4)
    center = 5.0 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return center + jnp.sqrt(0.1) * jax.random.normal(noise, (num, 2))


def sample_data(key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """([num, 2] from two moons in random order, [num] bool, whether of the upper one)."""
    keys = jax.random.split(key, 3)
    angle = jax.random.uniform(keys[0], (num,), maxval=jnp.pi)
    upper = jax.random.bernoulli(keys[1], shape=(num,))
    arc = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    arc = jnp.where(upper[:, None], arc, jnp.array([[1.0, 0.5]]) - arc)
    return SCALE * arc + SHIFT + jax.random.uniform(keys[2], (num, 1), maxval=WIDTH), upper


def coupled_pairs(prior_key: jax.Array, pair_key: jax.Array, data: jax.Array, size: int = 512):
    """(x_0, x_1) [N, 2] of noise and data coupled by optimal transport in batches of `size`.

    The cost bends around the data: lines from noise to data that run through other data cost more.
    """
    couple = functools.partial(couplings.exact_ot, cost=costs.line_of_sight(data[:128]))
    x_0 = sample_prior(prior_key, data.shape[0])
    batched = [a.reshape(-1, size, 2) for a in (x_0, data)]
    keys = jax.random.split(pair_key, batched[0].shape[0])
    x_0, x_1 = jax.lax.map(lambda a: couple(*a), (keys, *batched))
    return x_0.reshape(-1, 2), x_1.reshape(-1, 2)


def density(x: np.ndarray) -> np.ndarray:
    """[..., 2] (lower, upper) moon's share of the data's density at x [..., 2], in closed form.

    x = 3 m(t) - 1 + u (1, 1), t uniform on [0, pi] and u on [0, .6]; the Jacobian is 3 |sin t + cos t|,
    and the line through x along (1, 1) meets the arc at up to two angles.
    """
    x = (np.asarray(x, float) - SHIFT) / SCALE
    shares = []
    for upper in (False, True):
        sign, p = (1.0, x) if upper else (-1.0, np.array([1.0, 0.5]) - x)
        cosine = np.clip((p[..., 0] - p[..., 1]) / np.sqrt(2), -1, 1)  # of t + pi/4
        total = np.zeros(x.shape[:-1])
        for root in (np.arccos(cosine), 2 * np.pi - np.arccos(cosine)):
            t = root - np.pi / 4
            u = sign * (p[..., 0] - np.cos(t))
            inside = (t >= 0) & (t <= np.pi) & (u >= 0) & (u <= WIDTH / SCALE)
            jacobian = SCALE * np.maximum(np.abs(np.sin(t) + np.cos(t)), 1e-12)
            total += np.where(inside, 0.5 / (np.pi * WIDTH * jacobian), 0.0)
        shares.append(np.where(np.abs(p[..., 0] - p[..., 1]) <= np.sqrt(2), total, 0.0))
    return np.stack(shares, axis=-1)


def entropy(num: int = 2000) -> float:
    """The data's differential entropy in nats (2.046) by the midpoint rule in (t, u)."""
    t = (np.arange(num) + 0.5) / num * np.pi
    u = (np.arange(num // 4) + 0.5) / (num // 4) * WIDTH
    total = 0.0
    for upper in (False, True):
        arc = np.stack([np.cos(t), np.sin(t)], axis=-1)
        arc = arc if upper else np.array([1.0, 0.5]) - arc
        x = SCALE * arc[:, None] + SHIFT + u[None, :, None]
        total -= 0.5 * np.mean(np.log(np.sum(density(x), axis=-1)))
    return float(total)
