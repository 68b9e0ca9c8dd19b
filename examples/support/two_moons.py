"""The recipes of two_moons.py, ours and the paper's, and the batches that they are trained on."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
from data import moons

from energymatch import couplings, losses, matching
from energymatch.couplings import costs
from energymatch.networks import MLPPotential


class Recipe(NamedTuple):
    """How to train, and the sampler that goes with it.

    `pool` is (batches, batch size) of couplings made ahead, or None for one in every step.
    """

    network: MLPPotential
    config: matching.MatchingConfig
    warm_up: int
    iterations: int
    learning_rate: float
    batch_size: int
    pool: tuple[int, int] | None
    ema_decay: float
    cosine: bool
    method: str


RECIPES = {
    "default": Recipe(
        network=MLPPotential(width=128, depth=3, scale=4.0, output_scale=5.0),
        config=matching.MatchingConfig(),
        warm_up=2000,
        iterations=4000,
        learning_rate=2e-3,
        batch_size=256,
        pool=(12, 512),
        ema_decay=0.995,
        cosine=True,
        method="mala",
    ),
    "published": Recipe(
        network=MLPPotential(width=256, depth=4, first_activation=nn.relu),
        config=matching.published_2d(),
        warm_up=20_000,
        iterations=2000,
        learning_rate=1e-4,
        batch_size=128,
        pool=None,
        ema_decay=0.0,
        cosine=False,
        method="euler_maruyama",
    ),
}


def batches(key, recipe, data):
    """`draw_batch(key) -> losses.Batch` of coupled pairs, data, and fresh states to start negatives from."""
    size = recipe.batch_size

    def draw_data(key, num):
        return data[jax.random.randint(key, (num,), 0, data.shape[0])]

    def pair(key, num, cost):
        keys = jax.random.split(key, 3)
        x_0, x_1 = moons.sample_prior(keys[0], num), draw_data(keys[1], num)
        return couplings.exact_ot(keys[2], x_0, x_1, cost=cost)

    if recipe.pool is None:
        whole = functools.partial(pair, num=size, cost=costs.squared_euclidean)
    else:
        num, pool_size = recipe.pool
        cost = costs.line_of_sight(data[:128])
        make = jax.jit(lambda keys: jax.lax.map(lambda k: pair(k, pool_size, cost), keys))
        x_0, x_1 = (x.reshape(-1, 2) for x in make(jax.random.split(key, num)))

        def whole(key):
            rows = jax.random.randint(key, (size,), 0, x_0.shape[0])
            return x_0[rows], x_1[rows]

    def draw(key):
        keys = jax.random.split(key, 4)
        prior, starts = moons.sample_prior(keys[2], size), draw_data(keys[3], size)
        return losses.Batch(*whole(keys[0]), draw_data(keys[1], size), prior, starts)

    return draw
