"""Figures and numbers of a trained sampler of continuous or mixed states beside the exact ones."""

from __future__ import annotations

import pathlib
import time
from typing import Any

import jax
import numpy as np
import scipy.stats
from reports.continuous import figures, statistics
from support.tables import table, with_error, write_results


def rows_of(results):
    """Rows of the printed table: name, sampler, exact, comparison."""
    rows = []
    names = {
        "energy_w1": "W1 of the energy",
        "energy_w2": "W2 of the energy",
        "x_w2": "W2 of x",
        "distance_w1": "W1 of the distances",
    }
    for key, name in names.items():
        if key in results:
            value, floor = results[key], results[f"{key}_floor"]
            rows.append([name, value, f"{floor:.4g} (floor)", f"{value / floor:.2f} x floor"])
    if "coordinate_w1_ratio_max" in results:
        value = f"{results['coordinate_w1_ratio_mean']:.2f} x floor"
        largest = f"largest {results['coordinate_w1_ratio_max']:.2f}"
        rows.append(["W1 of a coordinate, mean", value, "1 x floor", largest])
    for key, name in {"token": "token statistics", "composition": "composition"}.items():
        if f"{key}_max_z" in results:
            count = results[f"{key}_num_statistics"]
            # The median of the largest of so many independent ones.
            usual = scipy.stats.norm.isf((1 - 0.5 ** (1 / count)) / 2)
            exact = f"{usual:.2f} (usual)"
            rows.append([f"largest |z|, {name}", results[f"{key}_max_z"], exact, f"of {count}"])
    if "num_modes" in results:
        rare = results["num_modes_listed"] - results["num_modes"]
        rare = f"{rare} more are too rare to judge" if rare else ""
        rows.append(["modes found", results["modes_found"], results["num_modes"], rare])
        mass, floor = (
            " to ".join(f"{results[f'{name}_{end}']:.2f}" for end in ("min", "max"))
            for name in ("mode_mass_ratio", "mode_mass_ratio_floor")
        )
        rows.append(["mass of a mode / exact", mass, f"{floor} (floor)", ""])
    log_z, error, exact = (results[k] for k in ("log_z", "log_z_error", "log_z_exact"))
    known = exact is not None
    rows.append(["ESS / N", results["ess"], "1", ""])
    rows.append(
        [
            "log Z",
            with_error(log_z, error),
            f"{exact:.4f}" if known else "not known",
            results["log_z_reason"] or (f"z = {results['log_z_z']:.2f}" if known else ""),
        ]
    )
    if results["eubo"] is None:
        rows.append(["ELBO - log Z", results["elbo"] - log_z, "0", "EUBO not finite"])
    else:
        rows.append(
            ["EUBO - ELBO", results["eubo"] - results["elbo"], "0", f"+- {results['eubo_error']:.2g}"]
        )
    means = results["mean_energy"]
    raw, reweighted, exact = (with_error(*means[name]) for name in ("raw", "reweighted", "exact"))
    rows += [["mean energy, raw", raw, exact, ""], ["mean energy, reweighted", reweighted, exact, ""]]
    return rows


def report(
    key, name, energy, process, generator, moments, num_times, history, output_dir, run: dict[str, Any]
) -> dict[str, Any]:
    """Write NAME.png and results.json, print the table, and return the results.

    Args:
      key: a typed key.
      name: of the target, and of the figure.
      energy: E, with `event_shape` and `sample`.
      process: what simulates.
      generator: `fn(x, t)` in the form of the process's path.
      moments: those that the prior is drawn with, in the path's form, or None.
      num_times: steps of the simulation.
      history: rows of metrics of the iterations, as `common.train` returns them.
      output_dir: where the files go.
      run: "algorithm", "process", "seed", "compile_seconds", and "started", a `time.time()`.
    """
    k_draw, k_modes = jax.random.split(key)
    data = statistics.draw(k_draw, energy, process, generator, moments, num_times)
    results = {"target": name} | {k: run[k] for k in ("algorithm", "process", "seed")}
    results |= statistics.distances_to_exact(energy, data) | statistics.weight_results(energy, data)
    tokens = masses = bars = None
    if isinstance(energy.event_shape, dict):
        tokens = statistics.token_statistics(energy, data)
        results |= statistics.largest_z("token", *tokens)
        if hasattr(energy, "num_particles"):
            bars = statistics.composition(data)
            results |= statistics.largest_z("composition", *bars)
    masses = statistics.mode_masses(k_modes, energy, data)
    if masses is not None and masses[2].size == 0:  # of so few samples no mode can be judged
        masses = None
    if masses is not None:
        raw, exact, truth, count = masses
        results |= {"modes_found": int(np.sum(raw >= truth / 4)), "num_modes": truth.size}
        results["num_modes_listed"] = count
        for ratio, values in {"mode_mass_ratio": raw / truth, "mode_mass_ratio_floor": exact / truth}.items():
            results |= {f"{ratio}_min": float(values.min()), f"{ratio}_max": float(values.max())}
    results |= {
        "energy_evaluations": history[-1]["num_energy_evaluations"],
        "iterations": len(history),
        "compile_seconds": run["compile_seconds"],
        "train_seconds": history[-1]["seconds"],
    }
    title = f"{name.replace('_', ' ')}, {run['algorithm']}, {run['process']}"
    count = len(data.energy)
    print(table(f"\n{title}: {count} raw samples", ["", "sampler", "exact", ""], rows_of(results)))
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    panels = figures.Panels(data, tokens, bars, masses, history, results)
    figures.figure(folder / f"{name}.png", title, energy, panels)
    results["total_seconds"] = time.time() - run["started"]
    seconds = (results[f"{part}_seconds"] for part in ("total", "compile", "train"))
    print("\n{:.0f} s in all: {:.0f} s compiling, {:.0f} s training. Wrote".format(*seconds))
    print(f"{folder / f'{name}.png'} and {write_results(output_dir, results)}")
    return results
