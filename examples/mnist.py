"""Learn the energy of 28x28 digits, then sample, tell outliers, measure dimension and invert measurements.

python examples/mnist.py --data_dir=FOLDER                # FOLDER holds mnist10k.npz
python examples/data/digits28.py /tmp/made_up             # a few made-up digits in the same file
python examples/mnist.py --data_dir=/tmp/made_up --quick
Writes mnist.png, mnist_posteriors.png and results.json to --output_dir.
"""

import functools
import time

import jax
import numpy as np
from absl import flags
from data import digits28 as data
from reports.mnist import report
from support import cluster, loop
from support.digits28 import Settings, learn
from support.digits28_dimension import spectra
from support.digits28_judges import draw_samples, fit_classifier
from support.digits28_posteriors import Lengths, make_operators, measured, solve

DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with mnist10k.npz.")
WARM_UP = flags.DEFINE_integer("warm_up", 1200, "Steps of phase 1.", lower_bound=1)
ITERATIONS = flags.DEFINE_integer("iterations", 1800, "Steps of phase 2.", lower_bound=1)
SET_SIZE = flags.DEFINE_integer("set_size", 1000, "Generated digits.", lower_bound=16)
COPIES = flags.DEFINE_integer("copies", 8, "Distorted copies of every training digit.", lower_bound=0)
NOISE = flags.DEFINE_float("noise", 0.2, "On the digits, in deviations of a mean pixel.", lower_bound=1e-3)
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
NUM_DIGITS = flags.DEFINE_integer("num_digits", 24, "Held-out digits to measure.", lower_bound=2)
NUM_DIMENSIONS = flags.DEFINE_integer("num_dimensions", 120, "Held-out digits, and half as many others.", 8)
STRENGTH = flags.DEFINE_float("strength", 40.0, "Of the interaction, nats a pair.", lower_bound=0.0)
WIDTH = flags.DEFINE_float("width", 16.0, "Of the interaction, in deviations of a mean pixel.")
QUICK = flags.DEFINE_boolean("quick", False, "A few steps of everything, to see that it runs.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/mnist", "Where figures and numbers go.")


def found_posteriors(key, learned, digits, settings, names, num, lengths):
    """({operator: members}, {operator: y}, the digits measured) of held-out digits."""
    truth, keys = digits.held_out[:num], jax.random.split(key)
    y = measured(keys[0], truth, settings.noise)
    members = {
        name: jax.device_get(
            solve(
                *learned.density, jax.random.fold_in(keys[1], index), y[name], make_operators()[name],
                settings, lengths, STRENGTH.value, WIDTH.value,
            )
        )
        for index, name in enumerate(names)
    }  # fmt: skip
    return members, jax.device_get(y), truth


def main(_):
    started, quick = time.time(), QUICK.value
    digits = data.load(DATA_DIR.value, SEED.value, 1 if quick else COPIES.value)
    settings = Settings(noise=NOISE.value, epsilon_max=NOISE.value)
    steps = (WARM_UP.value, ITERATIONS.value)
    if quick:
        settings, steps = settings._replace(batch_size=16, pool=(2, 32)), (4, 4)
    learned = learn(SEED.value, digits, settings, *steps)
    if not cluster.is_main():
        return
    keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED.value), 1), 5)
    seconds, found = {"training": time.time() - started}, {}

    def timed(name, function, *args):
        start = time.time()
        out = function(*args)
        seconds[name] = time.time() - start
        loop.say(f"{name}: {seconds[name]:.0f} s")
        return out

    judge = timed("classifier", fit_classifier, keys[0], digits, 4 if quick else 1500)
    num = 16 if quick else SET_SIZE.value
    found["samples"] = {
        name: timed(f"samples, {name}", draw_samples, keys[1], getattr(learned, name), settings, num)
        for name in ("density", "transport")
    }
    num = 8 if quick else NUM_DIMENSIONS.value
    both = np.concatenate([digits.train[: num // 2], digits.held_out[:num]])
    lanczos = (8,) if quick else ()
    eigenvalues, per_image = timed("dimensions", spectra, keys[2], learned.density, both, *lanczos)
    found["eigenvalues"] = (*np.split(eigenvalues, [num // 2]), per_image)
    names = list(make_operators())
    few = (names[:1], 2, Lengths(annealing=2, moves=2)) if quick else (names, NUM_DIGITS.value, Lengths())
    find = functools.partial(found_posteriors, keys[3], learned, digits, settings)
    found["members"], found["y"], found["truth"] = timed("posteriors", find, *few)
    run = loop.values(SEED, WARM_UP, ITERATIONS, COPIES, NUM_DIGITS, STRENGTH, WIDTH)
    run |= {"settings": settings._asdict(), "seconds": seconds, "started": started}
    report(digits, learned, judge, found, settings, OUTPUT_DIR.value, run)


if __name__ == "__main__":
    cluster.run(main)
