"""Dimension from an energy: how many directions the Hessian of a learned V leaves flat.

python examples/intrinsic_dimension.py      # spheres of known dimension, and digits against their PNG size
A direction is flat where exp(-V/eps) is more than twice as wide as the noise on the data: |lambda| <
eps/(2 noise)^2, for spheres and digits alike. Writes intrinsic_dimension.png and results.json to
--output_dir.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from data.digits import load_digits
from data.spheres import DIMENSIONS, spheres
from reports.intrinsic_dimension import report
from support import cluster, loop, potentials
from support.noisy_pairs import BATCH_SIZE, NOISE, batches

from energymatch import curvature, matching, negatives, networks

WARM_UP = flags.DEFINE_integer("warm_up", 600, "Steps of phase 1.")
ITERATIONS = flags.DEFINE_integer("iterations", 1500, "Steps of phase 2.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/intrinsic_dimension", "Where figure and numbers go.")


def learn(key, network, data, epsilon, step_size, label):
    """Parameters [S, ...] of a potential for each of the data sets [S, N, *event], trained side by side.

    Returns them and the last mean V/epsilon on data less that on the chains.
    """
    keys = jax.random.split(key, 4)
    draw = batches(keys[0], data)
    config = matching.MatchingConfig(
        epsilon_max=epsilon,
        negatives=negatives.Tempered(num_rungs=1, num_steps=5, num_swaps=0, step_size=step_size),
    )

    run = loop.values(SEED) | {"noise": NOISE, "network": network, "matching": config}

    def fit(maker, starts, num_steps, key, stage):
        optimizer = potentials.optimizer(1e-3, num_steps, warm_up=min(200, num_steps // 5))
        init, step = maker(network.apply, optimizer)

        def each(key, state, batch):
            state, metrics = jax.vmap(step)(jax.random.split(key, len(data)), state, batch)
            return state, jax.tree.map(jnp.mean, metrics)

        return potentials.fit(
            each, jax.vmap(init)(*starts), key, draw, num_steps,
            label=f"{label}: {stage}", shown=("flow_loss",), configuration=run,
        )  # fmt: skip

    params = jax.jit(jax.vmap(network.init))(jax.random.split(keys[1], len(data)), data[:, :1])
    state, *_ = fit(matching.make_warm_up, (params,), WARM_UP.value, keys[2], "transport")
    maker = functools.partial(matching.make_matching, config=config)
    starts = (state.ema_params, data[:, :BATCH_SIZE])
    state, history, *_ = fit(maker, starts, ITERATIONS.value, keys[3], "density")
    return state.train.ema_params, history[-1]["energy_gap"] / epsilon


def spectra(network, epsilon, params, x):
    """[S, N, D] eigenvalues of the Hessian over the threshold."""
    threshold = epsilon / (2 * NOISE) ** 2
    run = lambda params, x: curvature.spectrum(functools.partial(network.apply, params), x) / threshold
    return np.asarray(jax.jit(jax.vmap(run))(params, x))


def dimensions(network, epsilon, params, x):
    """([S, N] local intrinsic dimensions, seconds a point once compiled)."""
    threshold = epsilon / (2 * NOISE) ** 2

    @jax.jit
    def run(params, x):
        potential = functools.partial(network.apply, params)
        return curvature.local_intrinsic_dimension(potential, x, threshold=threshold)

    parts = [(jax.tree.map(lambda p, s=s: p[s], params), x[s]) for s in range(len(x))]
    jax.block_until_ready(run(*parts[0]))
    start = time.time()
    found = np.stack([run(*part) for part in parts])
    return found, (time.time() - start) / found.size


def main(_):
    started = time.time()
    keys = jax.random.split(jax.random.key(SEED.value), 3)
    data = spheres(keys[0], 10_000)
    network = networks.MLPPotential(width=96, depth=3)
    params, sphere_gap = learn(keys[1], network, data[:, 200:], 1.0, 0.02, "spheres")
    digits = load_digits(SEED.value)
    convolutional = networks.ConvPotential(width=32)
    digit_params, digit_gap = learn(
        keys[2], convolutional, jnp.asarray(digits.train)[None], 0.15, 0.1, "digits"
    )
    if not cluster.is_main():
        return
    held_out = data[:, :200]
    on_spheres = (*dimensions(network, 1.0, params, held_out), spectra(network, 1.0, params, held_out))
    on_digits = dimensions(convolutional, 0.15, digit_params, jnp.asarray(digits.held_out)[None])
    settings = {
        "seed": SEED.value,
        "warm_up": WARM_UP.value,
        "iterations": ITERATIONS.value,
        "noise": NOISE,
        "energy_gap_spheres": sphere_gap,
        "energy_gap_digits": digit_gap,
        "started": started,
    }
    report(DIMENSIONS, on_spheres, on_digits, digits, OUTPUT_DIR.value, settings)


if __name__ == "__main__":
    cluster.run(main)
