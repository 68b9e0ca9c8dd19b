"""Time of the exact and the Sinkhorn plan inside jit, against optax's assignment and SciPy's on the host.

  python benchmarks/couplings.py --output_dir /tmp/couplings [--batch_sizes=128,256,512]

Costs: squared distances from 8 gaussians to two moons, and uniform random matrices. All run in turns on
the same matrices; `ratio` is the median of the time over SciPy's in the same turn (SciPy's copy to the
host is not counted), `excess` the relative excess of the total cost over SciPy's, which a drawn plan has
by design.
"""

import json
import os
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from scipy.optimize import linear_sum_assignment

from energymatch import couplings
from energymatch.couplings import costs

FLAGS = flags.FLAGS
flags.DEFINE_list("batch_sizes", ["128", "256", "512"], "Batch sizes.")
flags.DEFINE_integer("repeats", 15, "Turns a case, each on a matrix of its own.")
flags.DEFINE_string("output_dir", "/tmp/couplings", "Where results.json goes.")


def moons_cost(rng, size):
    """[B, B] squared distances of the published 2D problem."""
    angle = 2 * np.pi * rng.integers(8, size=size) / 8
    x_0 = 5 * np.stack([np.cos(angle), np.sin(angle)], 1) + np.sqrt(0.1) * rng.normal(size=(size, 2))
    angle, upper = np.pi * rng.random(size), rng.integers(2, size=size).astype(bool)
    arc = np.stack([np.cos(angle), np.sin(angle)], 1)
    x_1 = np.where(upper[:, None], arc, np.array([1, 0.5]) - arc) + 0.2 * rng.random((size, 1))
    return costs.squared_euclidean(jnp.asarray(x_0), jnp.asarray(3 * x_1 - 1))


def random_cost(rng, size):
    return jnp.asarray(rng.random((size, size), np.float32))


def solve_scipy(cost):
    return linear_sum_assignment(cost)[1]


def solve_optax(cost):
    rows, columns = optax.assignment.hungarian_algorithm(cost)
    return columns[jnp.argsort(rows)]


METHODS = {
    "scipy (host)": solve_scipy,
    "exact_assignment": jax.jit(couplings.exact_assignment),
    "optax hungarian": jax.jit(solve_optax),
    "sinkhorn_plan .05": jax.jit(couplings.sinkhorn_plan),
}


def run_case(data, make, size):
    """Median milliseconds, ratio to SciPy and excess cost of every method."""
    rng = np.random.default_rng(size)
    matrices = [jax.block_until_ready(make(rng, size)) for _ in range(FLAGS.repeats)]
    ms, excess = {m: [] for m in METHODS}, {m: [] for m in METHODS}
    for method in METHODS.values():
        jax.block_until_ready(method(matrices[0]))
    for cost in matrices:
        host, best = np.asarray(cost), None
        for name, method in METHODS.items():
            argument = host if method is solve_scipy else cost
            start = time.perf_counter()
            plan = jax.block_until_ready(method(argument))
            ms[name].append(1e3 * (time.perf_counter() - start))
            plan = np.asarray(plan, np.float64 if plan.ndim == 2 else np.int64)
            total = (
                size * (plan * host).sum() if plan.ndim == 2 else host[np.arange(size), plan].sum(dtype=float)
            )
            best = total if best is None else best
            excess[name].append(total / best - 1)
    for name in METHODS:
        ratio = np.median(np.array(ms[name]) / np.array(ms["scipy (host)"]))
        row = {"data": data, "B": size, "method": name, "ms": float(np.median(ms[name]))}
        yield {**row, "ratio": float(ratio), "excess": float(np.max(excess[name]))}


def main(_):
    os.makedirs(FLAGS.output_dir, exist_ok=True)
    rows, columns = [], "data B method ms ratio excess".split()
    print("|" + "|".join(columns) + "|\n" + "|---" * len(columns) + "|")
    for data, make in (("moons", moons_cost), ("random", random_cost)):
        for size in map(int, FLAGS.batch_sizes):
            for row in run_case(data, make, size):
                cells = [f"{row[c]:.3g}" if isinstance(row[c], float) else str(row[c]) for c in columns]
                print("|".join(["", *cells, ""]), flush=True)
                rows.append(row)
    record = {"jax": jax.__version__, "backend": jax.default_backend(), "rows": rows}
    pathlib.Path(FLAGS.output_dir, "results.json").write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    app.run(main)
