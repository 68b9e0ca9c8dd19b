"""Batches for potentials of several data sets side by side, each with noise that gives it a density."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from energymatch import couplings, losses

BATCH_SIZE, POOL = 128, (16, 256)
"""Pairs are coupled ahead, 16 batches of 256."""
NOISE = 0.2
"""Standard deviation of the noise on the data: without it there is no density."""


def batches(key, data):
    """`draw_batch(key) -> losses.Batch` for each of the data sets [S, N, *event]."""
    event = data.shape[2:]

    def draw_data(key, data, num):
        rows, noise = jax.random.split(key)
        x = data[jax.random.randint(rows, (num,), 0, data.shape[0])]
        return x + NOISE * jax.random.normal(noise, x.shape)

    def pair(key, data):
        keys = jax.random.split(key, 3)
        x_0 = jax.random.normal(keys[0], (POOL[1], *event))
        return couplings.exact_ot(keys[1], x_0, draw_data(keys[2], data, POOL[1]))

    pool = jax.jit(lambda key, data: jax.lax.map(lambda k: pair(k, data), jax.random.split(key, POOL[0])))
    pairs = [pool(jax.random.fold_in(key, index), one) for index, one in enumerate(data)]
    x_0, x_1 = (jnp.stack(x).reshape(len(data), -1, *event) for x in zip(*pairs, strict=True))

    def one(key, data, x_0, x_1):
        keys = jax.random.split(key)
        rows = jax.random.randint(keys[0], (BATCH_SIZE,), 0, x_0.shape[0])
        return losses.Batch(x_0[rows], x_1[rows], draw_data(keys[1], data, BATCH_SIZE), x_0[rows])

    return lambda key: jax.vmap(one)(jax.random.split(key, len(data)), data, x_0, x_1)
