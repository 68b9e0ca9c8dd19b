"""Learn the energy of two moons: -grad V carries eight Gaussians there, exp(-V/eps) is their density.

python examples/two_moons.py                       # about two minutes
python examples/two_moons.py --recipe=published    # the paper's own, for comparison
Writes two_moons.png and results.json to --output_dir.
"""

import functools
import time

import jax
import optax
from absl import flags
from data import moons
from reports.two_moons import report
from support import cluster, potentials
from support.two_moons import RECIPES, batches

from energymatch import matching

RECIPE = flags.DEFINE_enum("recipe", "default", ["default", "published"], "Ours, or the paper's.")
WARM_UP = flags.DEFINE_integer("warm_up", None, "Steps of phase 1; by default by recipe.")
ITERATIONS = flags.DEFINE_integer("iterations", None, "Steps of phase 2; by default by recipe.")
SET_SIZE = flags.DEFINE_integer("set_size", 2000, "Points in each of the 5 sets that W2 compares.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/two_moons", "Where the figure and the numbers go.")


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
