"""Figures and numbers of a trained Ising sampler beside the exact ones."""

from __future__ import annotations

import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from support.tables import table, with_error, write_results

import egm
from egm import metrics

plt.switch_backend("Agg")  # no screen is needed

SET_SIZE, NUM_SETS, NUM_FLOOR_PAIRS = 2000, 5, 50


def known(exact):
    """What `exact()` returns, or None where the energy says that it is out of reach."""
    try:
        return exact()
    except ValueError:
        return None


def magnetization(x):
    """[N] signed magnetisation per site."""
    return np.mean(2.0 * np.asarray(x) - 1.0, axis=-1)


def simulate_sets(key, energy, process, generator):
    """Raw samples and path log-weights, and reverse path log-weights of exact samples."""
    path, times = process.path, process.times(process.order.num_steps)

    @jax.jit
    def forward(k):
        x_0 = path.sample_prior(k, (SET_SIZE, energy.num_sites))
        trajectory = egm.simulate(k, process, generator, x_0, times)
        return trajectory.x_1, egm.path_log_weights(energy, path, trajectory)

    @jax.jit
    def backward(k, x_1):
        trajectory = egm.simulate_reverse(k, process, generator, x_1, times)
        return egm.path_log_weights(energy, path, trajectory)

    k_forward, k_exact, k_backward = jax.random.split(key, 3)
    sets = [forward(k) for k in jax.random.split(k_forward, NUM_SETS)]
    x, log_w = (np.concatenate([np.asarray(s[i]) for s in sets]) for i in (0, 1))
    # Coupling from the past is exact but slow above the transfer matrix's reach.
    exact = np.asarray(energy.sample(k_exact, (2 if energy.side <= 16 else 1) * NUM_SETS * SET_SIZE))
    reverse = np.asarray(backward(k_backward, jnp.asarray(exact[:SET_SIZE])))
    return x, log_w, exact, reverse


def observables(energy, x, log_w):
    """name -> (value, standard error) from samples with path log-weights (zeros: raw)."""
    e, m = np.asarray(energy(jnp.asarray(x))), magnetization(x)
    sites = energy.num_sites
    values = np.stack([e / sites, e**2 / sites**2, np.abs(m), m**2, m**4], axis=-1)
    statistics = {
        "energy per site": lambda a: a[0],
        "heat capacity per site": lambda a: sites * (a[1] - a[0] ** 2),
        "|magnetisation|": lambda a: a[2],
        "Binder cumulant": lambda a: 1 - a[4] / (3 * a[3] ** 2),
    }
    return {
        name: tuple(float(v) for v in metrics.jackknife(f, values, jnp.asarray(log_w)))
        for name, f in statistics.items()
    }


def phase_masses(x, log_w):
    """ "up" and "down" -> (mass of that phase under the target, standard error); half of m = 0 each."""
    m = magnetization(x)
    up = metrics.reweighted_mean(jnp.asarray((m > 0) + 0.5 * (m == 0)), jnp.asarray(log_w))
    up, error = (float(v) for v in up)
    return {"up": (up, error), "down": (1 - up, error)}


def exact_observables(energy, exact):
    """The same from closed forms, else (and with an error) from the exact samples."""
    moments = energy.exact_moments()
    names = {
        "energy per site": ("mean_energy", 1 / energy.num_sites),
        "heat capacity per site": ("heat_capacity", 1.0),
        "|magnetisation|": ("mean_abs_magnetization", 1.0),
        "Binder cumulant": ("binder_cumulant", 1.0),
    }
    sampled = observables(energy, exact, np.zeros(len(exact), np.float32))
    return {
        name: (moments[key] * factor, 0.0) if key in moments else sampled[name]
        for name, (key, factor) in names.items()
    }


def correlation(x, side):
    """[side//2 + 1] mean of s_0 s_r along rows and columns."""
    s = (2.0 * np.asarray(x) - 1.0).reshape(-1, side, side)
    shifts = range(side // 2 + 1)
    return np.array([np.mean(0.5 * s * (np.roll(s, r, 1) + np.roll(s, r, 2))) for r in shifts])


def report(key, energy, process, generator, history, output_dir, run):
    """Write ising.png and results.json and print the tables."""
    train_seconds = history[-1]["seconds"]
    x, log_w, exact, reverse = simulate_sets(key, energy, process, generator)
    summary = metrics.summarize(jnp.asarray(log_w))
    eubo, eubo_error = (float(v) for v in metrics.evidence_upper_bound(jnp.asarray(reverse)))
    results = {
        "side": energy.side,
        "inverse_temperature": energy.inverse_temperature,
        "field": energy.field,
        "algorithm": run["algorithm"],
        "seed": run["seed"],
        "network_calls": process.order.num_steps - process.order.num_closed,
    }
    rows = []
    statistics = {
        "energy": lambda a: np.asarray(energy(jnp.asarray(a))),
        "magnetization": magnetization,
    }
    for name, of in statistics.items():
        generated, true = of(x), of(exact)
        w1 = metrics.sample_distance(metrics.wasserstein_1d, generated, true[: len(generated)], NUM_SETS)
        floor = metrics.distance_floor(metrics.wasserstein_1d, true, SET_SIZE, NUM_FLOOR_PAIRS)
        results |= {f"{name}_w1": w1, f"{name}_w1_floor": floor}
        rows.append([f"W1 of the {name}", w1, f"{floor:.4g} (floor)", f"{w1 / floor:.2f} x floor"])
    log_z_exact = known(energy.log_partition)
    log_z, error = float(summary.log_z), float(summary.log_z_error)
    results |= {
        "ess": float(summary.ess),
        "log_z": log_z,
        "log_z_error": error,
        "log_z_reason": metrics.reason(summary),
        "tail_index": float(summary.tail_index),
        "log_z_exact": log_z_exact,
        "elbo": float(summary.elbo),
        "eubo": eubo,
        "eubo_error": eubo_error,
        "phase_masses": phase_masses(x, log_w),
        "num_nonfinite": int(summary.num_nonfinite),
        "energy_evaluations": history[-1]["num_energy_evaluations"],
        "iterations": len(history),
        "compile_seconds": run["compile_seconds"],
        "train_seconds": train_seconds,
    }
    rows += [
        ["ESS / N", results["ess"], "1", ""],
        [
            "log Z",
            with_error(log_z, error),
            "not known" if log_z_exact is None else f"{log_z_exact:.4f}",
            results["log_z_reason"]
            or ("" if log_z_exact is None else f"z = {(log_z - log_z_exact) / error:.2f}"),
        ],
        ["EUBO - ELBO", eubo - results["elbo"], "0", f"+- {eubo_error:.2g}"],
    ]
    up, up_error = results["phase_masses"]["up"]
    share = np.mean(magnetization(exact) > 0)
    rows.append(["mass of the up phase", with_error(up, up_error), f"{share:.3f} (exact samples)", ""])
    truth = exact_observables(energy, exact)
    raw = observables(energy, x, np.zeros_like(log_w))
    reweighted = observables(energy, x, log_w)
    results["observables"] = {
        name: {"raw": raw[name], "reweighted": reweighted[name], "exact": truth[name]} for name in truth
    }
    title = f"\n{energy.side}x{energy.side} Ising, beta = {energy.inverse_temperature}, {run['algorithm']}:"
    print(table(f"{title} {len(x)} raw samples", ["", "sampler", "exact", ""], rows))
    show = [
        [name, *(with_error(*pair) for pair in (raw[name], reweighted[name], truth[name]))] for name in truth
    ]
    print(table("", ["observable", "raw", "reweighted", "exact"], show))
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure(folder / "ising.png", title.strip(), energy, x, exact, history, results)
    results["total_seconds"] = time.time() - run["started"]
    compiled, total = results["compile_seconds"], results["total_seconds"]
    print(f"\n{total:.0f} s in all: {compiled:.0f} s compiling, {train_seconds:.0f} s training. Wrote")
    print(f"{folder / 'ising.png'} and {write_results(output_dir, results)}")


def figure(path, title, energy, x, exact, history, results):
    """Samples, histograms of energy and magnetisation, correlations, and the run's ESS and scale."""
    fig, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    side = energy.side
    fig.suptitle(title.rstrip(":"))
    for ax, states, name in (
        (axes[0, 0], x, "samples of the sampler"),
        (axes[1, 0], exact, "exact samples"),
    ):
        grid = np.full((3 * (side + 1) - 1, 4 * (side + 1) - 1), np.nan)
        for i, state in enumerate(np.asarray(states[:12]).reshape(-1, side, side)):
            row, column = divmod(i, 4)
            grid[
                row * (side + 1) : row * (side + 1) + side,
                column * (side + 1) : column * (side + 1) + side,
            ] = state
        ax.imshow(grid, cmap="cividis", interpolation="nearest")
        ax.set(title=name, xticks=[], yticks=[])
    e, e_exact = (np.asarray(energy(jnp.asarray(a))) for a in (x, exact))
    histogram(axes[0, 1], e, e_exact, known(energy.energy_histogram))
    axes[0, 1].set(
        title=f"W1 {results['energy_w1']:.3f}, floor {results['energy_w1_floor']:.3f}",
        xlabel="energy (beta inside)",
    )
    m, m_exact = magnetization(x), magnetization(exact)
    histogram(axes[1, 1], m, m_exact, known(energy.magnetization_histogram))
    axes[1, 1].set(
        title=f"W1 {results['magnetization_w1']:.4f}, floor {results['magnetization_w1_floor']:.4f}",
        xlabel="magnetisation per site",
        xticks=np.linspace(-1, 1, 5),
    )
    distance = np.arange(side // 2 + 1)
    truth = known(energy.correlation_function)
    truth = correlation(exact, side) if truth is None else truth
    axes[0, 2].plot(distance, truth, "k-", label="exact")
    axes[0, 2].plot(distance, correlation(x, side), "o", color="tab:orange", label="sampler, raw")
    axes[0, 2].set(title="spin correlation", xlabel="distance", ylabel="<s_0 s_r>")
    axes[0, 2].legend()
    seconds = [row["seconds"] for row in history]
    axes[1, 2].plot(seconds, [row["ess"] for row in history], ".-", label="ESS / N of new samples")
    axes[1, 2].plot(seconds, [row["level"] for row in history], ".--", label="level of the annealing")
    axes[1, 2].set(title=f"ESS {results['ess']:.3f} at the end", xlabel="seconds of training", ylim=(0, 1.03))
    axes[1, 2].legend(loc="lower right")
    fig.savefig(path, dpi=110)
    plt.close(fig)


def histogram(ax, generated, exact, distribution):
    """The sampler's values as bars, the exact distribution as a line (from samples where not known)."""
    if distribution is None:
        levels, counts = np.unique(np.round(exact, 4), return_counts=True)
        distribution = levels, counts / len(exact)
    levels, probabilities = distribution
    width = np.min(np.diff(levels))
    keep = probabilities > 1e-4 * np.max(probabilities)
    index = np.argmin(np.abs(generated[:, None] - levels[None, keep]), axis=1)
    frequency = np.bincount(index, minlength=np.sum(keep)) / len(generated)
    ax.bar(
        levels[keep],
        frequency,
        width=0.9 * width,
        color="tab:orange",
        alpha=0.6,
        label="sampler, raw",
    )
    ax.plot(levels[keep], probabilities[keep], "k.-", lw=1, ms=4, label="exact")
    ax.legend()
