"""Learn the energy of two moons: -grad V carries eight Gaussians there, exp(-V/eps) is their density.

python examples/two_moons.py                       # about two minutes
python examples/two_moons.py --recipe=published    # the paper's own, for comparison
Writes two_moons.png and results.json to --output_dir.
"""

import functools
import time
from typing import NamedTuple

import flax.linen as nn
import jax
import optax
from absl import flags
from data import moons
from reports.two_moons import report
from support import cluster, potentials

from energymatch import couplings, losses, matching
from energymatch.couplings import costs
from energymatch.networks import MLPPotential

RECIPE = flags.DEFINE_enum("recipe", "default", ["default", "published"], "Ours, or the paper's.")
WARM_UP = flags.DEFINE_integer("warm_up", None, "Steps of phase 1; by default by recipe.")
ITERATIONS = flags.DEFINE_integer("iterations", None, "Steps of phase 2; by default by recipe.")
SET_SIZE = flags.DEFINE_integer("set_size", 2000, "Points in each of the 5 sets that W2 compares.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/two_moons", "Where the figure and the numbers go.")


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


def main(_):
    started = time.time()
    recipe = RECIPES[RECIPE.value]
    warm_up, iterations = WARM_UP.value or recipe.warm_up, ITERATIONS.value or recipe.iterations
    keys = jax.random.split(jax.random.key(SEED.value), 7)
    data, _ = moons.sample_data(keys[0], 50_000)
    potential = recipe.network.apply
    draw = batches(keys[1], recipe, data)

    def optimizer(num_steps):
        if recipe.cosine:
            return potentials.optimizer(recipe.learning_rate, num_steps)
        return optax.adam(recipe.learning_rate)

    init, step = matching.make_warm_up(
        potential, optimizer(warm_up), sigma=recipe.config.sigma, ema_decay=recipe.ema_decay
    )
    params = recipe.network.init(keys[2], data[:1])
    run = {"seed": SEED.value, "recipe": recipe}
    state, _, compile_1, train_1 = potentials.fit(
        step,
        init(params),
        keys[3],
        draw,
        warm_up,
        label="transport",
        shown=("flow_loss",),
        configuration=run,
    )
    init, step = matching.make_matching(
        potential, optimizer(iterations), recipe.config, ema_decay=recipe.ema_decay
    )
    # As published: Adam's moments go on from the warm-up; ours starts anew, from the average.
    published = RECIPE.value == "published"
    start = matching.MatchingState(state, None) if published else init(state.ema_params, data[-128:])
    state, history, compile_2, train_2 = potentials.fit(
        step,
        start,
        keys[4],
        draw,
        iterations,
        label="transport and density",
        configuration=run,
        layout=matching.state_spec(recipe.config),
        shown=("flow_loss", "energy_gap"),
    )
    if not cluster.is_main():
        return
    report(
        keys[5],
        functools.partial(potential, state.train.ema_params),
        recipe.config.epsilon_max,
        recipe.method,
        SET_SIZE.value,
        OUTPUT_DIR.value,
        history,
        {
            "recipe": RECIPE.value,
            "seed": SEED.value,
            "compile_seconds": compile_1 + compile_2,
            "train_seconds": train_1 + train_2,
            "started": started,
        },
    )


if __name__ == "__main__":
    cluster.run(main)
