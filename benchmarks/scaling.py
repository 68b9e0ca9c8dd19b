"""How training scales: over devices and processes, in memory with K, in time with the number of sites.

  python benchmarks/scaling.py [--part=devices,processes,memory,sites] [--quick] [--way=jit]

Every case has a process of its own. `devices`: 1, 2, 4 and 8 devices, on a CPU virtual ones
(--xla_force_host_platform_device_count) that share the cores. `processes`: one and two over loopback with
gloo (CPU only). A problem is `ising`, an iteration of the weighted sampler of the 5x5 lattice (simulation
and 10 gradient steps, all with `size` states), or `moons`, a step of the two-moons potential (`size` pairs
that are coupled beforehand, data, negatives). `weak` keeps size / devices, `strong` keeps size. Efficiency
is examples per second over those of one device times the devices that are real: one on a CPU, where the
cores are the same however many devices they make, so 1 is the same total work per second.
`memory`: `egm.estimate` on 10x10 Ising states against K and the chunk; `sites`: seconds of an estimate
(K = 1000), of simulating 8 states and of a gradient step at 16, against the side, with the exponent of the
number of sites fitted to the three largest. `share` is of the peak that --peak_tflops gives, by the flops of
the matrix products and convolutions (counted in the jaxpr, loops times their length).
"""

import json
import os
import pathlib
import socket
import subprocess
import sys

# The parent looks at the device and measures nothing: its memory is for the children.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import scaling_cases  # noqa: E402
from absl import app, flags  # noqa: E402

PARTS = ("devices", "processes", "memory", "sites")
FLAGS = flags.FLAGS
flags.DEFINE_list("part", list(PARTS), f"Of {', '.join(PARTS)}.")
flags.DEFINE_enum("way", "shard_map", ["shard_map", "jit"], "How a step is put on many devices.")
flags.DEFINE_float("seconds", 2.0, "Seconds of timing a case; three repeats at least.")
flags.DEFINE_float("peak_tflops", None, "Of one device, for `share`; by default a table's, in float32.")
flags.DEFINE_bool("quick", False, "A smoke run: the smallest cases of each part.")
flags.DEFINE_string("output_dir", "/tmp/scaling", "Where results.json goes.")
flags.DEFINE_string("case", None, "One case as JSON, set by the parent process.")
DEVICES = (1, 2, 4, 8)


def start(case):
    """A process for the case, with as many CPU devices as it wants."""
    want = case.get("devices", 1) // case.get("processes", 1)
    others = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    xla_flags = " ".join([*others, f"--xla_force_host_platform_device_count={want}"])
    command = [sys.executable, *sys.argv, f"--case={json.dumps(case)}"]
    return subprocess.Popen(
        command, env={**os.environ, "XLA_FLAGS": xla_flags}, stdout=subprocess.PIPE, text=True
    )


def measured(case):
    """Rows of the case, none where it failed (its stderr is ours); of process 0 where there are several."""
    number = case.get("processes", 1)
    if number > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            case = {**case, "address": f"127.0.0.1:{free.getsockname()[1]}"}
    children = [start({**case, "index": i}) for i in range(number)]
    try:
        outputs = [child.communicate(timeout=300)[0] for child in children]
    except subprocess.TimeoutExpired:
        print(f"{case} took more than 300 s", file=sys.stderr)
        return []
    finally:
        for child in children:
            child.kill()
    if any(child.returncode for child in children):
        print(f"{case} failed", file=sys.stderr)
        return []
    return json.loads(outputs[0].splitlines()[-1])


def cases(part, most):
    """(size, devices, processes) of both kinds of scaling are one list, its shared cases once."""
    if part == "devices":
        counts = [d for d in DEVICES if d <= most][: 2 if FLAGS.quick else None]
        sizes = [(64 * d, d) for d in counts] + [(64 * counts[-1], d) for d in counts[:-1]]
        return [{"size": s, "devices": d} for s, d in sizes]
    if part == "processes":
        sizes = ((256, 1, 1), (512, 1, 1), (512, 2, 1), (512, 2, 2))
        sizes = sizes[1::2] if FLAGS.quick else sizes
        return [{"size": s, "devices": d, "processes": p} for s, d, p in sizes]
    if part == "memory":
        grid = [(10**3, None), (10**4, None), (10**4, 1024), (10**5, None), (10**5, 1024), (10**5, 16384)]
        grid += [(10**6, None), (10**6, 1024), (10**6, 16384)]
        grid = grid[:3] if FLAGS.quick else grid
        return [{"K": k, "chunk": c, "run": k < 10**6 or c is not None} for k, c in grid]
    return [{"side": side} for side in ((5, 8) if FLAGS.quick else (5, 8, 12, 16, 24, 32))]


def with_efficiency(rows):
    """Weak and strong rows, each with its efficiency against the row of one device and process."""
    out, most = [], max((row["size"] for row in rows), default=0)
    for problem in dict.fromkeys(row["problem"] for row in rows):
        here = [row for row in rows if row["problem"] == problem]
        by_one = {row["size"]: row["examples_per_s"] for row in here if row["devices"] == 1}
        small = min(by_one, default=0)
        kinds = {"weak": [r for r in here if r["size"] == small * r["devices"]]}
        kinds["strong"] = [r for r in here if r["size"] == most]
        for kind, base in (("weak", by_one.get(small)), ("strong", by_one.get(most))):
            for row in kinds[kind]:
                real = 1 if row["backend"] == "cpu" else row["devices"]
                out.append({"kind": kind, **row, "efficiency": base and row["examples_per_s"] / base / real})
    return out


def exponents(rows):
    """A row of the slopes of log time in log sites, over the three largest."""
    last = rows[-3:]
    slope = lambda name: np.polyfit(*(np.log([r[k] for r in last]) for k in ("sites", name)), 1)[0]
    names = ("estimate_ms", "simulate_ms", "gradient_ms")
    return {"side": "exponent", **{name: float(slope(name)) for name in names}} if len(rows) > 2 else {}


COLUMNS = {
    "devices": "problem kind devices size ms steps_per_s examples_per_s efficiency share compile_s",
    "processes": "problem kind processes devices size ms steps_per_s examples_per_s efficiency",
    "memory": "K chunk temp_mib rise_mib peak_mib seconds",
    "sites": "side sites estimate_ms simulate_ms gradient_ms simulate_share gradient_share",
}


def show(part, rows):
    """A Markdown table."""
    columns = COLUMNS[part].split()
    print(f"\n{part}\n\n|" + "|".join(columns) + "|\n" + "|---" * len(columns) + "|")
    for row in rows:
        cells = ("" if row.get(c) is None else row[c] for c in columns)
        text = (
            f"{c:.0f}" if isinstance(c, float) and c >= 100 else f"{c:.3g}" if isinstance(c, float) else c
            for c in cells
        )
        print("|".join(["", *map(str, text), ""]), flush=True)


def write(record):
    """results.json, after every case."""
    pathlib.Path(FLAGS.output_dir, "results.json").write_text(json.dumps(record, indent=1))


def main(argv):
    del argv
    if FLAGS.case:
        case = json.loads(FLAGS.case)
        run = {
            "size": scaling_cases.run_training,
            "K": scaling_cases.run_memory,
            "side": scaling_cases.run_sites,
        }
        print(json.dumps(next(fn for name, fn in run.items() if name in case)(case)))
        return
    if wrong := set(FLAGS.part) - set(PARTS):
        raise app.UsageError(f"--part must name some of {PARTS}, got {sorted(wrong)}")
    os.makedirs(FLAGS.output_dir, exist_ok=True)
    most = 8 if jax.default_backend() == "cpu" else jax.device_count()
    record = {"jax": jax.__version__, "backend": jax.default_backend(), "cores": os.cpu_count()}
    print(f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores, way {FLAGS.way}")
    for part in FLAGS.part:
        if part == "processes" and jax.default_backend() != "cpu":
            print("\nprocesses: measured on CPUs only")
            continue
        record[part] = rows = []
        for case in cases(part, most):
            rows += measured(case)
            write(record)
        if part in ("devices", "processes"):
            record[part] = rows = with_efficiency(rows)
        show(part, rows + ([exponents(rows)] if part == "sites" else []))
        write(record)


if __name__ == "__main__":
    app.run(main)
