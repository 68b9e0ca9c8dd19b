"""The paper's two estimators beside each other: naive and bootstrapped, the same seconds of training each.

  python benchmarks/bootstrap.py [TARGET ...] [--seconds=60] [--seeds=3] [--algorithms=naive,bootstrap]

Every run is one of the examples with its own settings of that algorithm, in a process of its own, one after
the other. Compilation is left out of the seconds; what is judged are the raw samples of the last average of
the parameters. One row a run.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
TARGETS = {
    "ising_5": ("ising", "--side=5", "--inverse_temperature=.4"),
    "ising_10": ("ising", "--side=10", "--inverse_temperature=.2"),
    "gb_rbm": ("mixed", "--target=gb_rbm"),
    "joint_double_well": ("mixed", "--target=joint_double_well"),
    "joint_mixture": ("mixed", "--target=joint_mixture"),
    "gaussian_mixture": ("gaussian_mixture",),
}


def run(target, algorithm, seed, seconds):
    """results.json of one run, or the last line of what it said."""
    name, *flags = TARGETS[target]
    with tempfile.TemporaryDirectory() as out:
        settings = [
            f"--algorithm={algorithm}",
            f"--seed={seed}",
            f"--seconds={seconds}",
            f"--output_dir={out}",
        ]
        command = [sys.executable, str(EXAMPLES / f"{name}.py"), *flags, *settings]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return done.stderr.strip().splitlines()[-1]
        return json.loads((pathlib.Path(out) / "results.json").read_text())


def row(target, algorithm, seed, r):
    """A line of the table."""
    exact = r.get("log_z_exact")
    log_z = f"{r['log_z'] - exact:+.4f}" if exact is not None else f"{r['log_z']:.3f} (not known)"
    error = "inf" if r["log_z_error"] is None else f"{r['log_z_error']:.2g}"
    cells = [
        target, algorithm, seed, f"{r['ess']:.3f}", f"{r['energy_w1']:.3g}", f"{r['energy_w1_floor']:.2g}",
        f"{log_z} ± {error}", f"{r['energy_evaluations']:.2g}", f"{r['train_seconds']:.0f}",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*", default=list(TARGETS))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--algorithms", default="naive,bootstrap")
    options = parser.parse_args()
    print("| target | algorithm | seed | ESS | energy W1 | floor | log Z - exact | energy evaluations | s |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for target in options.targets:
        for seed in range(options.seeds):
            for algorithm in options.algorithms.split(","):
                r = run(target, algorithm, seed, options.seconds)
                failed = isinstance(r, str)
                line = f"| {target} | {algorithm} | {seed} | failed: {r} |" if failed else None
                print(line or row(target, algorithm, seed, r), flush=True)


if __name__ == "__main__":
    main()
