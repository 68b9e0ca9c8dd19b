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
from reports.intrinsic_dimension import report
from support import cluster, loop, potentials

from energymatch import couplings, curvature, losses, matching, negatives, networks

WARM_UP = flags.DEFINE_integer("warm_up", 600, "Steps of phase 1.")
ITERATIONS = flags.DEFINE_integer("iterations", 1500, "Steps of phase 2.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/intrinsic_dimension", "Where figure and numbers go.")

DIMENSIONS, SPACE, RADIUS = (1, 2, 4, 6), 10, 2.0
BATCH_SIZE, POOL = 128, (16, 256)
"""Pairs are coupled ahead, 16 batches of 256."""
NOISE = 0.2
"""Standard deviation of the noise on the data: without it there is no density."""


@functools.partial(jax.jit, static_argnums=1)
def spheres(key, num):
    """[S, num, 10] points of spheres of the dimensions above, each in a subspace of its own."""
    keys = jax.random.split(key, 2)
    basis = jnp.linalg.qr(jax.random.normal(keys[0], (len(DIMENSIONS), SPACE, SPACE)))[0]
    inside = jnp.arange(SPACE) <= jnp.array(DIMENSIONS)[:, None]
    x = jax.random.normal(keys[1], (len(DIMENSIONS), num, SPACE)) * inside[:, None]
    return RADIUS * x / jnp.linalg.norm(x, axis=-1, keepdims=True) @ basis.mT


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
        each = lambda key, state, batch: jax.vmap(step)(jax.random.split(key, len(data)), state, batch)
        return potentials.fit(
            each,
            jax.vmap(init)(*starts),
            key,
            draw,
            num_steps,
            label=f"{label}: {stage}",
            shown=("flow_loss",),
            configuration=run,
        )

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
