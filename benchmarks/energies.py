"""What one call of `egm.fit` gives on targets that it was not set for: one row a target and seed.

python benchmarks/energies.py                             # all of them, three seeds, 300 s a call: hours
python benchmarks/energies.py ising_8 ring --seeds=1 --seconds=120
The same call for all: no target has settings of its own. Truths are those of energy_targets.py. Each run is
a process of its own, so that compilation counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

import energy_targets
import jax
import numpy as np
from peers_table import mode_figures

import egm


def row(name, seed, seconds):
    """One call and its figures."""
    target = energy_targets.TARGETS[name]()
    began = time.time()
    sampler = egm.fit(jax.random.key(seed), target.energy, target.space, seconds=seconds, progress=False)
    taken = time.time() - began
    draw = sampler.sample(jax.random.key(1000 + seed), 10_000)
    out = {
        "target": name,
        "seed": seed,
        "ess": sampler.ess,
        "log_z": sampler.log_z,
        "error": sampler.log_z_error,
        "exact": target.log_z,
        "converged": sampler.converged,
        "reason": sampler.reason,
        "iterations": len(sampler.history["ess"]),
        "steps": sampler.design.num_times,
        "seconds": taken,
        "facts": {},
    }
    for fact, (function, exact) in target.facts.items():
        mean, error = (float(v) for v in draw.expectation(function))
        out["facts"][fact] = (mean, error, exact)
    if target.modes is not None:
        function, masses = target.modes
        index = np.asarray(function(np.asarray(draw.x)))
        out["modes"] = mode_figures(index, np.asarray(draw.weights), masses)
    return out


def line(r):
    """A row as text."""
    exact = f"{r['log_z'] - r['exact']:+.4f}" if r["exact"] is not None else f"{r['log_z']:.3f}"
    text = (
        f"{r['target']:<18}{r['seed']:>4} ESS {r['ess']:.3f}  log Z {exact} +- {r['error']:.2g}  "
        f"{r['iterations']} it, {r['steps']} steps, {r['seconds']:.0f} s"
    )
    for fact, (mean, error, known) in r["facts"].items():
        text += f"; {fact} {mean:.3f} +- {error:.2g}" + ("" if known is None else f" ({known:.3f})")
    if "modes" in r:
        found, count, least, most = r["modes"]
        text += f"; {found} of {count} modes, shares {least:.2f} to {most:.2f}"
    return text + ("" if r["converged"] else f"; NOT CONVERGED: {r['reason']}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--here", type=int, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.targets or energy_targets.TARGETS:
        if options.here is not None:
            print(json.dumps(row(name, options.here, options.seconds)))
            continue
        for seed in range(options.seeds):
            command = [sys.executable, __file__, name, f"--here={seed}", f"--seconds={options.seconds}"]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"{name:<18}{seed:>4} FAILED: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            print(line(json.loads(done.stdout.splitlines()[-1])), flush=True)


if __name__ == "__main__":
    main()
