"""The small convolutional potential beside the published U-Net, and what the published schedules would take.

  python benchmarks/image_networks.py [--part=networks,schedules] [--turns=3]

networks: seconds an image, in one run and in turn, of the gradient in x (one Langevin step) and of a
training step's gradient (the gradient in the parameters of the flow-matching loss on grad_x V), and XLA's
count of floating-point operations. Images of 28x28x1 for ConvPotential, of 32x32x1 for
the U-Nets, which halve them three times.

schedules: operations of the published runs (CIFAR-10, ImageNet32) by the same count for 32x32x3, and hours
at a share of the peak of one H100 and of a TPU v5e-8. No such device was at hand: nothing of it is measured.
The share that these CPU cores reach of a plain matrix product is measured beside it.
"""

import json
import pathlib
import time

import jax
import jax.numpy as jnp
from absl import app, flags

from energymatch import losses, networks

FLAGS = flags.FLAGS
flags.DEFINE_list("part", ["networks", "schedules"], "Which parts.")
flags.DEFINE_integer("turns", 3, "Timings of each, in turn; the least counts.", lower_bound=1)
flags.DEFINE_string("output_dir", "/tmp/image_networks", "Where results.json goes.")

CASES = {
    "ConvPotential of mnist.py": (networks.ConvPotential(width=24, local_energies=True), (28, 28, 1), 64),
    "UNetViTPotential, narrow": (
        networks.UNetViTPotential(
            num_channels=32,
            num_res_blocks=1,
            channel_mult=(1, 1),
            attention_resolutions=(),
            num_head_channels=32,
            embed_dim=64,
            num_transformer_layers=1,
        ),
        (32, 32, 1),
        8,
    ),
    "UNetViTPotential, published size": (networks.UNetViTPotential(), (32, 32, 1), 2),
}
TIMED = ("gradient", "training")
SCHEDULES = {"CIFAR-10": (145_000, 2_000), "ImageNet32": (640_000, 1_000)}
"""Steps of the two phases, of BATCH images each."""
BATCH, LANGEVIN_STEPS = 128, 200
PEAKS = {"H100": 989e12, "TPU v5e-8": 8 * 197e12}
"""Dense bfloat16 operations a second as their makers state them (SXM; 197e12 a chip)."""
SHARES = (0.1, 0.2, 0.4)


def programs(network, event, batch, like=None):
    """({name: (lowered program, its arguments)} of the gradient in x, of a flow step, of V; the parameters).

    Arguments are drawn, or shapes only where `like` is jax.eval_shape.
    """
    images = jax.ShapeDtypeStruct((batch, *event), jnp.float32)
    make = lambda key: (
        network.init(key, jnp.zeros((1, *event))),
        *jax.random.normal(key, (2, *images.shape)),
    )
    params, x_0, x_1 = (like or (lambda f, *a: jax.jit(f)(*a)))(make, jax.random.key(0))

    def in_x(params, x):
        return jax.grad(lambda x: jnp.sum(network.apply(params, x)))(x)

    def flow(params, x_0, x_1):
        loss = losses.flow_matching_loss(network.apply, params, jax.random.key(1), x_0, x_1)[0]
        return jnp.mean(loss)

    def contrast(params, x):
        return jnp.mean(network.apply(params, x))

    made = {
        "gradient": (in_x, (params, x_0)),
        "training": (jax.grad(flow), (params, x_0, x_1)),
        "contrast": (jax.grad(contrast), (params, x_0)),
    }
    return {k: (jax.jit(f).lower(*a), a) for k, (f, a) in made.items()}, params


def gflop(program, batch):
    """XLA's count of a lowered program, before it is compiled: 1e9 operations an image."""
    return program.cost_analysis()["flops"] / 1e9 / batch


def seconds(program, args):
    start = time.perf_counter()
    jax.block_until_ready(program(*args))
    return time.perf_counter() - start


def compare():
    """A row a network: parameters; operations and seconds an image."""
    compiled, best = {name: (programs(*case), case[2]) for name, case in CASES.items()}, {}
    runs = {
        (name, kind): (program.compile(), args, batch)
        for name, ((made, _), batch) in compiled.items()
        for kind, (program, args) in made.items()
        if kind in TIMED
    }
    for _ in range(1 + FLAGS.turns):  # the first warms up
        for which, (program, args, batch) in runs.items():
            best.setdefault(which, []).append(seconds(program, args) / batch)
    rows = []
    for name, ((made, params), batch) in compiled.items():
        row = {"network": name, "parameters": sum(p.size for p in jax.tree.leaves(params)), "batch": batch}
        for kind in TIMED:
            row |= {f"{kind}_gflop": gflop(made[kind][0], batch)}
            row |= {f"{kind}_ms": 1e3 * min(best[name, kind][1:])}
        rows.append(row)
    return rows


def matrix_product_rate(size=1024, repeats=10):
    """Floating-point operations a second of a plain float32 matrix product."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, a))
    return 2 * size**3 / min(seconds(product, (a, a)) for _ in range(repeats))


def schedules():
    """Operations of the published runs and hours at several shares of the peak."""
    batch = 1
    made, _ = programs(networks.UNetViTPotential(), (32, 32, 3), batch, jax.eval_shape)
    per = {kind: gflop(program, batch) for kind, (program, _) in made.items()}
    out = {"gflop_an_image": per, "runs": {}}
    for name, (first, second) in SCHEDULES.items():
        warm_up = first * BATCH * per["training"] * 1e9
        # Negatives as many as data; V of both in the contrast.
        step = per["training"] + LANGEVIN_STEPS * per["gradient"] + 2 * per["contrast"]
        phase_2 = second * BATCH * step * 1e9
        hours = {
            device: {f"{share:g}": (warm_up + phase_2) / (share * peak) / 3600 for share in SHARES}
            for device, peak in PEAKS.items()
        }
        out["runs"][name] = {"warm_up_flop": warm_up, "phase_2_flop": phase_2, "hours": hours}
    return out


def main(argv):
    del argv
    unknown = set(FLAGS.part) - {"networks", "schedules"}
    if unknown:
        raise ValueError(f"--part must be of networks, schedules, got {sorted(unknown)}")
    record = {"jax": jax.__version__, "backend": jax.default_backend()}
    record["matrix_product_gflops"] = matrix_product_rate() / 1e9
    print(f"a matrix product: {record['matrix_product_gflops']:.0f} Gflop/s")
    if "networks" in FLAGS.part:
        record["networks"] = compare()
        for row in record["networks"]:
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}))
        small, *others = record["networks"]
        for other in others:
            times = {k: other[f"{k}_ms"] / small[f"{k}_ms"] for k in TIMED}
            ratios = ", ".join(f"{k} {ratio:.0f}" for k, ratio in times.items())
            print(f"times the small one's, an image, {other['network']}: {ratios}")
    if "schedules" in FLAGS.part:
        record["schedules"] = schedules()
        print(json.dumps(record["schedules"], indent=1))
    folder = pathlib.Path(FLAGS.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
