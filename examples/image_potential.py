"""Learn the energy of images with the published settings, or sample from a published checkpoint.

python examples/image_potential.py --preset=cifar10 --data_dir=FOLDER --checkpoint_dir=FOLDER [--resume]
python examples/image_potential.py --preset=cifar10 --checkpoint=CONVERTED --sample_only
python examples/image_potential.py --preset=tiny      # shapes made on the spot, a few steps
Writes image_potential.png, samples.npz (for FID tools), network/ and results.json to --output_dir; see
docs/images.md.
"""

import dataclasses
import functools
import math
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags, logging
from jax.sharding import PartitionSpec as P
from reports.image_potential import report
from support import cluster, image_presets, loop
from support.image_presets import DATA_DIR, PRESET, Prefetch, chosen_preset, read_data
from support.image_training import make_call

from egm import devices
from energymatch import convert, images, matching, networks

OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/image_potential", "Where everything goes.")
CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Start from a folder of energymatch.convert.")
SAMPLE_ONLY = flags.DEFINE_boolean("sample_only", False, "Sample from --checkpoint without training.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the network's computation.")
REMAT = flags.DEFINE_boolean("remat", False, "Save memory: compute blocks again in the backward pass.")
DROPOUT = flags.DEFINE_float("dropout", 0.1, "In training.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
SAMPLE_BATCH = flags.DEFINE_integer("sample_batch", 64, "Samples drawn at a time.", lower_bound=1)
flags.adopt_module_key_flags(image_presets)


def learn(preset, data, network, params, mesh):
    """(EMA parameters, history of both phases) after the two phases of training."""
    rate = optax.linear_schedule(0.0, preset.learning_rate, preset.rate_warm_up)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.95))
    config = matching.published_images(preset.num_langevin)
    stream = images.BatchStream(
        data, 2 * preset.batch_size, SEED.value, True, jax.process_index(), jax.process_count()
    )

    def phase(index, make, start, num_steps, shown):
        chunk = math.gcd(preset.chunk[index], num_steps)
        init, call = make_call(make, network, optimizer, preset.batch_size, mesh, chunk)

        def read(n):
            """Call n's batches: images for the transport and, of the same epochs, for the contrast."""
            first = index * preset.warm_up + n * chunk
            x = np.stack([stream.batch(step) for step in range(first, first + chunk)])
            return devices.from_processes((x[:, ::2], x[:, 1::2]), mesh, P(None, devices.DATA))

        if not num_steps:
            return loop.Trained(start(init), [], 0.0, 0.0)
        with Prefetch(read) as feed:
            return loop.train(
                call,
                devices.put(start(init), mesh),
                devices.put(jax.random.fold_in(jax.random.key(SEED.value), 1 + index), mesh),
                label=("transport", "transport and density")[index],
                calls=num_steps // chunk,
                feed=feed,
                feed_layout=P(None, devices.DATA),
                configuration={
                    "preset": dataclasses.replace(preset, num_samples=0, tau_s=0.0),
                    "network": network,
                    "matching": config,
                    "seed": SEED.value,
                    "checkpoint": CHECKPOINT.value,
                },
                shown={name: name for name in shown},
            )

    warm_up = functools.partial(matching.make_warm_up, ema_decay=0.9999)
    first = phase(0, warm_up, lambda init: init(params), preset.warm_up, ("flow_loss",))
    # As published: parameters, average, Adam's moments and the rate go on from the warm-up.
    make = functools.partial(matching.make_matching, config=config, ema_decay=0.99)
    start = lambda init: matching.MatchingState(first.state, None)
    second = phase(1, make, start, preset.iterations, ("flow_loss", "energy_gap"))
    return second.state.train.ema_params, (first, second)


def main(_):
    started = time.time()
    if SAMPLE_ONLY.value and not CHECKPOINT.value:
        raise app.UsageError("--sample_only needs --checkpoint")
    logging.set_verbosity(logging.WARNING)  # orbax tells every step of a save
    output, mesh = pathlib.Path(OUTPUT_DIR.value), cluster.mesh()
    preset = chosen_preset(mesh.size)
    config, params = convert.load(CHECKPOINT.value) if CHECKPOINT.value else (preset.network, None)
    dtype = jnp.bfloat16 if DTYPE.value == "bfloat16" else None
    network = networks.UNetViTPotential(**config, dtype=dtype, remat=REMAT.value, dropout=DROPOUT.value)
    data, phases = None, ()
    if DATA_DIR.value or not SAMPLE_ONLY.value:
        data = read_data(output / f"data_{jax.process_index()}")
    if params is None:
        params = jax.jit(network.init)(jax.random.key(SEED.value), jnp.zeros((1, *data.shape)))
    if not SAMPLE_ONLY.value:
        if cluster.is_main():
            shutil.rmtree(output / "network", ignore_errors=True)  # of a run before
        params, phases = learn(preset, data, network, params, mesh)
        convert.save(output / "network", config, params)
    settings = {"preset": PRESET.value, "seed": SEED.value, "dtype": DTYPE.value, "started": started}
    report(network, params, data, phases, preset, mesh, output, settings, SAMPLE_BATCH.value)


if __name__ == "__main__":
    cluster.run(main)
