"""Memory and time of one gradient of a gradient of the published image potential, 49,985,796 parameters.

  python benchmarks/image_step.py [--cases=8-float32,8-float32-remat] [--compile_only]

A step is the gradient in the parameters of the flow-matching loss on grad_x V, images [B, 32, 32, 3]. A case
is batch-dtype, with -remat where every block is computed again in the backward passes; it has a process of
its own. By default batches 1 and 8 on a CPU, 128 on a GPU. `temp` is XLA's temporary memory; parameters and
gradients take 191 MiB each beside it. `peak` is of the process while it steps (of the device on a GPU), the
parameters and what is left of compilation in it; `rise` is above what it held before the first step.

XLA's CPU compiler drops the barriers that keep a recomputation apart from the first computation (its pass
cse_barrier_expander), and with them the saving. So -remat is compiled without that pass; -remat_default is
what a plain jax.jit gives.
"""

import ctypes
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

# The parent looks at the device and measures nothing: its memory is for the children.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from absl import app, flags  # noqa: E402

from energymatch import losses, networks  # noqa: E402

FLAGS = flags.FLAGS
flags.DEFINE_list("cases", None, "batch-dtype[-remat|-remat_default], e.g. 8-bfloat16-remat.")
flags.DEFINE_bool("compile_only", False, "Memory by XLA's own count, nothing is run.")
flags.DEFINE_float("seconds", 6.0, "Seconds of timing a case; two steps at least.")
flags.DEFINE_string("output_dir", "/tmp/image_step", "Where results.json goes.")
flags.DEFINE_string("case", None, "One case, set by the parent process.")
NUM_PARAMETERS = 49_985_796
KEEP_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}
DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}
MODES = ("", "remat", "remat_default")
MIB = 2**20


def parse(case):
    """(batch, dtype's name, mode) of a case's name."""
    batch, dtype, mode = (*case.split("-", 2), "")[:3]
    if not batch.isdigit() or int(batch) < 1 or dtype not in DTYPES or mode not in MODES:
        raise ValueError(
            f"cases must be batch-dtype[-remat|-remat_default], dtype of {list(DTYPES)}, got {case!r}"
        )
    return int(batch), dtype, mode


def default_cases(backend):
    batches = (1, 8) if backend == "cpu" else (128,)
    names = [f"{b}-{d}{m}" for b in batches for d in DTYPES for m in ("", "-remat")]
    return names + (["8-float32-remat_default"] if backend == "cpu" else [])


def drawn(shapes):
    """Normal numbers of those shapes that keep the scale of a layer's input."""
    generator = np.random.default_rng(0)

    def one(a):
        values = generator.standard_normal(a.shape, dtype=np.float32)
        values *= np.prod(a.shape[:-1]) ** -0.5
        return jnp.asarray(values)

    return jax.tree.map(one, shapes)


def peak_bytes(reset=False):
    """Peak of the device, or of this process; `reset` starts it anew where Linux lets it."""
    if jax.default_backend() != "cpu":
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"]
    if reset and os.access("/proc/self/clear_refs", os.W_OK):
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # what compilation freed but the allocator still holds
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_case(case):
    batch, dtype, mode = parse(case)
    network = networks.UNetViTPotential(dtype=DTYPES[dtype], remat=bool(mode))
    images = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    count = sum(a.size for a in jax.tree.leaves(shapes))
    if count != NUM_PARAMETERS:
        raise RuntimeError(f"the network has {count} parameters, expected {NUM_PARAMETERS}")

    def loss(params, key, x_0, x_1):
        return jnp.mean(losses.flow_matching_loss(network.apply, params, key, x_0, x_1)[0])

    start = time.perf_counter()
    lowered = jax.jit(jax.grad(loss)).lower(shapes, jax.random.key(1), images, images)
    options = KEEP_BARRIERS if mode == "remat" and jax.default_backend() == "cpu" else None
    program = lowered.compile(compiler_options=options)
    memory = program.memory_analysis()
    out = {
        "compile_s": time.perf_counter() - start,
        "temp_mib": memory.temp_size_in_bytes / MIB,
        "gflop": program.cost_analysis().get("flops", float("nan")) / 1e9,
    }
    if not FLAGS.compile_only:
        x_0, x_1 = jax.random.normal(jax.random.key(2), (2, *images.shape))
        args = drawn(shapes), jax.random.key(1), x_0, jnp.tanh(x_1)
        del lowered
        jax.block_until_ready(args)
        before = peak_bytes(reset=True)
        norm = float(jnp.linalg.norm(program(*args)["params"]["conv_in"]["kernel"]))
        if not np.isfinite(norm) or not norm:
            raise RuntimeError(f"the gradient's norm is {norm}")
        times, begin = [], time.perf_counter()
        while len(times) < 2 or time.perf_counter() - begin < FLAGS.seconds:
            tick = time.perf_counter()
            jax.block_until_ready(program(*args))
            times.append(time.perf_counter() - tick)
        peak = peak_bytes()
        out |= {"peak_mib": peak / MIB, "rise_mib": (peak - before) / MIB}
        out |= {"step_s": statistics.median(times), "steps": len(times)}
    return {"batch": batch, "dtype": dtype, "mode": mode or "kept", **out}


def main(argv):
    del argv
    if FLAGS.case:
        print(json.dumps(run_case(FLAGS.case)))
        return
    cases = FLAGS.cases or default_cases(jax.default_backend())
    for case in cases:
        parse(case)
    os.makedirs(FLAGS.output_dir, exist_ok=True)
    print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores")
    columns = "batch dtype mode compile_s temp_mib peak_mib rise_mib step_s steps gflop".split()
    print("|" + "|".join(columns) + "|\n" + "|---" * len(columns) + "|", flush=True)
    rows, command = [], [sys.executable, *sys.argv]
    for case in cases:
        done = subprocess.run([*command, f"--case={case}"], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"| {case} failed with status {done.returncode} |", flush=True)
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        cells = [rows[-1].get(c, "") for c in columns]
        text = (
            f"{c:.0f}" if isinstance(c, float) and c >= 100 else f"{c:.2g}" if isinstance(c, float) else c
            for c in cells
        )
        print("|".join(["", *map(str, text), ""]), flush=True)
        record = {"jax": jax.__version__, "backend": jax.default_backend(), "rows": rows}
        pathlib.Path(FLAGS.output_dir, "results.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    app.run(main)
