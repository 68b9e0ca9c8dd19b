"""Learn a sampler of the 2D Ising model from its energy alone, and compare it with exact samples.

python examples/ising.py                                      # 5x5 at beta = .4, about a minute
python examples/ising.py --side=10 --inverse_temperature=.4407 # the critical point
Writes ising.png and results.json to --output_dir.
"""

import functools
import time

import jax
import jax.numpy as jnp
from absl import flags
from reports import ising as ising_report
from support import cluster, lattices, loop
from support.optimizers import SHOWN, cosine, optimizer

import egm
from egm import algorithms, heads, iteration, networks, symmetry

SIDE = flags.DEFINE_integer("side", 5, "Side of the periodic square lattice.")
BETA = flags.DEFINE_float("inverse_temperature", 0.4, "Inverse temperature, J = 1.")
FIELD = flags.DEFINE_float("field", 0.0, "Magnetic field h.")
ALGORITHM = flags.DEFINE_enum(
    "algorithm",
    "weighted",
    ["naive", "bootstrap", "published_bootstrap", "local_bootstrap", "weighted"],
    "What to train.",
)
ITERATIONS = flags.DEFINE_integer("iterations", None, "Outer iterations; by default by side and algorithm.")
SECONDS = flags.DEFINE_float("seconds", None, "Train for this long instead of a number of iterations.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1000, "K of the naive estimate.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/ising", "Where the figure and the numbers go.")


def make_algorithm(name: str, path: egm.paths.MaskedPath, energy: egm.energies.Ising, order):
    """The algorithm and its initial parameters' function `init(key)`."""
    even = symmetry.flips(jax.random.key(0), energy, path, energy.event_shape)
    shape = {"side": energy.side, "channels": 16, "expansion": 1, "flip": even}
    denoiser = networks.TorusDenoiser(**shape, skip=energy.masked_conditionals)
    log_marginal = networks.TorusLogMarginal(**shape, skip=energy.masked_log_marginal)
    head = heads.DenoiserHead(path, order)
    x, t = jnp.zeros((1, energy.num_sites), jnp.int32), jnp.zeros(1)
    if name == "local_bootstrap":
        return algorithms.LocalBootstrap(path, log_marginal.apply), lambda k: log_marginal.init(k, x, t)
    if name == "weighted":
        return algorithms.Weighted(path, head, denoiser.apply), lambda k: denoiser.init(k, x, t)
    if name == "naive":
        algorithm = algorithms.Naive(path, head, denoiser.apply, NUM_SAMPLES.value)
        return algorithm, lambda k: denoiser.init(k, x, t)
    # Two or three spins a stage, all of whose values eight samples take: sums without noise, and many steps.
    make = functools.partial(algorithms.Bootstrap, num_samples=8, step=egm.horizons.Nats(1.4))
    if name == "published_bootstrap":
        # A step evaluates g on batch_size * 1000 states: a small network.
        make = algorithms.Bootstrap.published
        log_marginal = networks.MLPLogMarginal(
            2, width=128, depth=2, skip=lambda x: -energy.revealed_energy(x)
        )
    algorithm = make(path, head, denoiser.apply, log_marginal.apply)
    return algorithm, lambda k: {
        "generator": denoiser.init(k, x, t),
        "log_marginal": log_marginal.init(k, x, t),
    }


def main(_):
    started = time.time()
    energy = egm.energies.Ising(SIDE.value, BETA.value, field=FIELD.value)
    path = egm.paths.MaskedPath(energy.vocab_size)
    order = lattices.make_order(energy, ALGORITHM.value)
    process = egm.processes.OrderedProcess(path, order)
    algorithm, init_params = make_algorithm(ALGORITHM.value, path, energy, order)
    config, learning_rate, iterations = lattices.settings(SIDE.value, ALGORITHM.value, order.num_steps)
    init, step = iteration.make_iteration(
        algorithm, process, energy, optimizer(), config, event_shape=energy.event_shape
    )
    k_params, k_train, k_report = jax.random.split(jax.random.key(SEED.value), 3)
    state, history, compile_seconds, _ = loop.train(
        step,
        init(init_params(k_params)),
        k_train,
        label="sampler",
        calls=ITERATIONS.value or iterations,
        seconds=SECONDS.value,
        prepare=cosine(learning_rate),
        shown=SHOWN,
        configuration=loop.values(SIDE, BETA, FIELD, ALGORITHM, lattices.ORDER, NUM_SAMPLES, SEED)
        | {"iteration": config},
    )
    if not cluster.is_main():
        return
    ising_report.report(
        k_report,
        energy,
        process,
        algorithm.generator(state.train.ema_params, energy),
        history,
        OUTPUT_DIR.value,
        {
            "algorithm": ALGORITHM.value,
            "seed": SEED.value,
            "compile_seconds": compile_seconds,
            "started": started,
        },
    )


if __name__ == "__main__":
    cluster.run(main)
