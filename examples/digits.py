"""Learn the energy of handwritten digits: -grad V carries noise to digits, exp(-V/eps) is their density.

python examples/digits.py      # the 1,797 digits of 8x8 pixels scikit-learn ships, 300 s of CPU time
Writes digits.png and results.json to --output_dir.
"""

import functools
import time

import jax
from absl import flags
from data.digits import load_digits
from reports.digits import report
from support import cluster
from support.digits import EPSILON_MAX, NOISE, STEP_SIZE, TAU_STAR, learn

WARM_UP = flags.DEFINE_integer("warm_up", 1000, "Steps of phase 1.")
ITERATIONS = flags.DEFINE_integer("iterations", 5000, "Steps of phase 2.")
SET_SIZE = flags.DEFINE_integer("set_size", 2000, "Generated digits.", lower_bound=192)
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/digits", "Where the figure and the numbers go.")


def main(_):
    started = time.time()
    digits = load_digits(SEED.value)
    network, params, history, compile_seconds, train_seconds = learn(
        SEED.value, digits, WARM_UP.value, ITERATIONS.value
    )
    if not cluster.is_main():
        return
    report(
        jax.random.split(jax.random.key(SEED.value), 5)[3],
        functools.partial(network.apply, params),
        digits,
        OUTPUT_DIR.value,
        history,
        {"epsilon_max": EPSILON_MAX, "noise": NOISE, "step_size": STEP_SIZE, "tau_star": TAU_STAR},
        SET_SIZE.value,
        {
            "seed": SEED.value,
            "warm_up": WARM_UP.value,
            "iterations": ITERATIONS.value,
            "compile_seconds": compile_seconds,
            "train_seconds": train_seconds,
            "started": started,
        },
    )


if __name__ == "__main__":
    cluster.run(main)
