"""`egm.fit` and `energymatch.fit` beside the libraries that one may take instead: equal seconds for each.

  pip install -e .[benchmarks,interop]
  python benchmarks/peers.py --page=docs/benchmarks.md           # all: hours
  python benchmarks/peers.py --targets funnel iris --seconds=30  # some
  python benchmarks/peers.py --reuse --page=docs/benchmarks.md   # only what results.json lacks, then the page

Each run is a process of its own, one after another, so that compilation counts; the clock starts when the
method is called. No method has settings of a target's own, but all except `egm.fit` are told how wide a
target is. A method that fails is a line of the table with its last words. Energies and their exact answers
are those of energy_targets.py, tables those of tables.py, the time of a step that of em_step.py.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time

import peers_table

ENERGIES = ["gaussian", "funnel", "many_well", "mixture_2d", "logistic_10", "ring", "banana"]
PLANAR = ["spirals", "rings", "checkerboard"]
TABLES = ["iris", "wine", "breast_cancer"]
METHODS = {
    "energy": {
        "egm.fit": "peers_energies",
        "blackjax SMC": "peers_energies",
        "numpyro NUTS": "peers_energies",
        "flowjax ELBO": "peers_energies",
        "nautilus": "peers_neural",
        "pocoMC": "peers_neural",
    },
    "data": {
        "energymatch.fit": "peers_data",
        "flowjax": "peers_data",
        "scikit-learn": "peers_data",
        "torchebm": "peers_torch",
        "published recipe": "peers_torch",
        "torchcfm OT-CFM": "peers_torch",
    },
}
"""Method -> the module that has it; imported in the process that runs it."""
LATEST = 16
"""Times the seconds after which a run is given up, by the clock on the wall."""
PACKAGES = ["jax", "blackjax", "numpyro", "flowjax", "nautilus-sampler", "pocomc", "torch", "torchebm"]
PACKAGES += ["torchcfm", "scikit-learn"]


def kind_of(target):
    return "energy" if target in ENERGIES else "data"


def on_one_core():
    """One core, and clocks tell the CPU time of this process: what they would say on a core of its own."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])  # before jax and torch count them
    time.time = time.perf_counter = time.process_time


def run_here(method, target, seconds, seed):
    """The rows of one method on one target, in this process."""
    kind = kind_of(target)
    run = importlib.import_module(METHODS[kind][method]).METHODS[method]
    start = {"kind": kind, "target": target, "seed": seed}
    if kind == "energy":
        peers_energies = importlib.import_module("peers_energies")
        given = peers_energies.target_of(target)
        began = time.perf_counter()
        found = run(given, peers_energies.WIDTHS[target], seconds, seed)
        return [start | {"method": method, "seconds": time.perf_counter() - began} | found]
    peers_data = importlib.import_module("peers_data")
    train, test = importlib.import_module("tables").split_of(target, seed)
    began = time.perf_counter()
    found = run(train, test, seconds, seed)
    taken, rows = time.perf_counter() - began, []
    for name, figures in found.items():
        figures = peers_data.figures(figures, test, target in PLANAR)
        rows.append(start | {"method": name, "seconds": taken} | figures)
    return rows


def run_apart(method, target, seconds, seed, one_core=False):
    """The same in a process of its own; a failure is a row."""
    command = [sys.executable, __file__, "--here", method, target, str(seconds), str(seed)]
    command += ["--one_core"] if one_core else []
    row = {"kind": kind_of(target), "target": target, "method": method, "seed": seed}
    began = time.perf_counter()
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=LATEST * seconds, start_new_session=True
        )
    except subprocess.TimeoutExpired as late:
        return [
            row | {"seconds": time.perf_counter() - began, "failed": f"no answer in {late.timeout:.0f} s"}
        ]
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        return [row | {"seconds": time.perf_counter() - began, "failed": last[:200].replace("|", "/")}]
    return json.loads(done.stdout.splitlines()[-1])


def step_rows(turns):
    """The rows of em_step.py, a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        script = pathlib.Path(__file__).with_name("em_step.py")
        command = [sys.executable, str(script), f"--turns={turns}", f"--output_dir={folder}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print("em_step.py failed:", (done.stderr.strip() or "no words").splitlines()[-1], flush=True)
            return []
        return json.loads(pathlib.Path(folder, "results.json").read_text())["rows"]


def about(options):
    """One line on the run: seconds, machine, versions."""
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{name} not installed")
    seeds = ", ".join(map(str, options.seed))
    cores = "CPU time on one core" if options.one_core else f"on {os.cpu_count()} CPU cores"
    return (
        f"{options.seconds:g} s a run, {cores}, seed {seeds}, "
        f"{platform.machine()}, Python {platform.python_version()}; {', '.join(versions)}."
    )


def wanted(options):
    """(method, target, seed) in the order of the tables."""
    for target in options.targets or ENERGIES + PLANAR + TABLES:
        for method, module in METHODS[kind_of(target)].items():
            if module == "peers_torch" and target not in PLANAR:
                continue
            if options.methods is None or method in options.methods:
                for seed in options.seed:
                    yield method, target, seed


def told(rows):
    """Rows as text, while the run goes on."""
    for row in rows:
        if row["kind"] == "energy":
            yield " | ".join(peers_table.energy_cells(row))
        else:
            keys = ("target", "method", "nats", "w2", "floor", "steps", "note", "failed")
            cells = [row[k] for k in keys if row.get(k) is not None]
            yield " | ".join(peers_table.short(c, 4) if isinstance(c, float) else str(c) for c in cells)


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="for each method and target")
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--one_core", action="store_true", help="of CPU time, on one core, for a machine with other work"
    )
    parser.add_argument("--targets", nargs="+", default=None)
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--quick", action="store_true", help="a smoke run: one target of each kind, 10 s")
    parser.add_argument("--turns", type=int, default=4, help="of em_step.py; 0 leaves the time of a step out")
    parser.add_argument("--reuse", action="store_true", help="keep the rows of results.json")
    parser.add_argument("--output_dir", default="/tmp/peers")
    parser.add_argument("--page", default=None, help="a page whose part between markers the tables replace")
    parser.add_argument("--here", nargs=4, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.targets = options.targets or ["mixture_2d", "spirals", "iris"]
        options.seconds, options.turns = min(options.seconds, 10.0), 0
    known = [*ENERGIES, *PLANAR, *TABLES]
    unknown = set(options.targets or []) - set(known)
    if unknown:
        parser.error(f"unknown targets {sorted(unknown)}, known are {known}")
    return options


def main():
    options = arguments()
    if options.here is not None:
        method, target, seconds, seed = options.here
        if options.one_core:
            on_one_core()
        print(json.dumps(run_here(method, target, float(seconds), int(seed))))
        return
    folder = pathlib.Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "results.json"
    results = {"about": about(options), "seconds": options.seconds, "rows": [], "done": [], "steps": []}
    if options.reuse and file.exists():
        results = json.loads(file.read_text())
    for each in wanted(options):
        if list(each) in results["done"]:
            continue
        rows = run_apart(each[0], each[1], options.seconds, each[2], options.one_core)
        results["rows"] += rows
        results["done"].append(each)
        file.write_text(json.dumps(results, indent=1))
        print("\n".join(told(rows)), flush=True)
    if options.turns and not results["steps"]:
        results["steps"] = step_rows(options.turns)
        file.write_text(json.dumps(results, indent=1))
    order = [*ENERGIES, *PLANAR, *TABLES]
    methods = [name for found in METHODS.values() for name in found]
    place = lambda r: (order.index(r["target"]), methods.index(r["method"]) if r["method"] in methods else 99)
    text = peers_table.tables(results | {"rows": sorted(results["rows"], key=place)})
    print("\n" + text)
    if options.page:
        page = pathlib.Path(options.page)
        page.write_text(peers_table.between(page.read_text(), text))


if __name__ == "__main__":
    main()
