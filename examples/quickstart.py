"""Data to energy to sampler: learn V from points, then sample exp(-V/eps) without them.

python examples/quickstart.py                      # about two minutes
1. `energymatch` learns a potential V whose Boltzmann density exp(-V/eps) is that of the data.
2. `egm` learns a sampler of that density from V alone, with exact weights: an ESS and log Z.
Writes quickstart.png and results.json to --output_dir.
"""

import functools
import time

import jax
import jax.numpy as jnp
from absl import flags
from data import moons
from reports import quickstart as quickstart_report
from support import cluster, loop, potentials
from support.optimizers import SHOWN, cosine, optimizer

from egm import algorithms, heads, iteration, networks, paths, processes, scales
from egm.typing import Moments
from energymatch import losses, matching, potential
from energymatch.networks import MLPPotential

EPSILON = 1.0
STEPS = flags.DEFINE_integer("steps", 2000, "Gradient steps of the potential; as many again with density.")
ITERATIONS = flags.DEFINE_integer("iterations", 40, "Iterations of the sampler.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 2000, "Samples to compare.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/quickstart", "Where the figure and the numbers go.")


def learn_potential(key, data):
    """V and the seconds it took, by Energy Matching: transport first, then transport and density."""
    keys = jax.random.split(key, 6)
    x_0, x_1 = moons.coupled_pairs(keys[0], keys[1], data[:8192])

    def draw_batch(key):
        rows = jax.random.randint(key, (2, 256), 0, x_0.shape[0])
        return losses.Batch(x_0[rows[0]], x_1[rows[0]], data[rows[1]])

    net = MLPPotential(scale=4.0, output_scale=5.0)
    adam = potentials.optimizer(2e-3, STEPS.value)
    init, step = matching.make_warm_up(net.apply, adam)
    state = init(net.init(keys[2], data[:1]))
    fit = functools.partial(potentials.fit, configuration=loop.values(SEED))
    state, *_ = fit(step, state, keys[3], draw_batch, STEPS.value, label="transport")
    init, step = matching.make_matching(net.apply, adam, matching.MatchingConfig(epsilon_max=EPSILON))
    state = init(state.ema_params, data[-128:])
    state, *_ = fit(step, state, keys[4], draw_batch, STEPS.value, label="density")
    return functools.partial(net.apply, state.train.ema_params)


def learn_sampler(key, energy):
    """(process, generator, moments of the data, history) of a sampler of exp(-E), from E alone."""
    keys = jax.random.split(key, 3)
    found = scales.find_scales(keys[0], energy, (2,), search_radius=8.0)
    shape = {
        "length_scale": found.length_scale,
        "data_scale": found.data_scale,
        "center": tuple(found.center.tolist()),
    }
    path = paths.VarianceExplodingPath(
        found.length_scale, 2.5 * found.data_scale, length_scale=found.length_scale
    )
    process = processes.DiffusionProcess(path, data_scale=found.data_scale)
    net = networks.MLPVector(path, **shape)
    algorithm = algorithms.Weighted(path, heads.ScoreHead(path, **shape), net.apply)
    config = iteration.IterationConfig(num_simulated=2000, buffer_size=10_000, batch_size=512)
    moments = Moments(jnp.array(found.center, float), jnp.full(2, found.data_scale**2))
    init, step = iteration.make_iteration(
        algorithm, process, energy, optimizer(), config, event_shape=(2,), reference=moments
    )
    state = init(net.init(keys[1], jnp.zeros((1, 2)), jnp.zeros(1)))
    state, history, *_ = loop.train(
        step,
        state,
        keys[2],
        label="sampler",
        calls=ITERATIONS.value,
        prepare=cosine(2e-3),
        shown=SHOWN,
        configuration=loop.values(SEED, STEPS) | {"iteration": config},
    )
    return process, algorithm.generator(state.train.ema_params, energy), state.moments, history


def main(_):
    started = time.time()
    keys = jax.random.split(jax.random.key(SEED.value), 7)
    data, _ = moons.sample_data(keys[0], 20_000)
    V = learn_potential(keys[1], data)
    learned = time.time()
    energy = potential.boltzmann_energy(V, EPSILON)
    process, generator, moments, history = learn_sampler(keys[2], energy)
    seconds = {
        "potential_seconds": learned - started,
        "sampler_seconds": time.time() - learned,
        "iterations": len(history),
        "started": started,
    }
    if not cluster.is_main():
        return
    num = NUM_SAMPLES.value
    of_v = quickstart_report.samples_of_v(keys[3], keys[4], V, EPSILON, num)
    of_egm = quickstart_report.samples_of_sampler(keys[5], energy, process, generator, moments, num)
    quickstart_report.report(keys[6], data, energy, of_v, *of_egm, OUTPUT_DIR.value, seconds)


if __name__ == "__main__":
    cluster.run(main)
