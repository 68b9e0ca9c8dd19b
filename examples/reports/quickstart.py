"""What quickstart.py measures and shows: samples of V in two ways beside the data."""

from __future__ import annotations

import functools
import pathlib
import time

import jax
import matplotlib.pyplot as plt
import numpy as np
from data import moons
from support.distances import w2
from support.tables import table, with_error, write_results

import egm
from energymatch import langevin, schedules

plt.switch_backend("Agg")  # no screen is needed


def samples_of_v(key, prior_key, V, epsilon, num):
    """From V itself: transport to t = 1, then Langevin dynamics at its own temperature."""
    temperature = functools.partial(schedules.temperature, tau_star=0.8, epsilon_max=epsilon)
    run = lambda key, x: langevin.sample(
        key, V, x, num_steps=1000, step_size=0.01, temperature=temperature, method="mala"
    )
    return jax.jit(run)(key, moons.sample_prior(prior_key, num)).x


def samples_of_sampler(key, energy, process, generator, moments, num):
    """From the sampler: (states, their path log-weights)."""

    @jax.jit
    def sample(key):
        prior_key, step_key = jax.random.split(key)
        x_0 = egm.draw_prior(prior_key, process.path, (num, 2), moments)
        trajectory = egm.simulate(step_key, process, generator, x_0, process.times(100))
        return trajectory.x_1, egm.path_log_weights(energy, process.path, trajectory)

    return sample(key)


def report(key, data, energy, of_v, of_egm, log_weights, output_dir, seconds):
    """The table, quickstart.png and results.json; `seconds` is what training took, and "started"."""
    num = of_v.shape[0]
    summary = egm.metrics.summarize(log_weights)
    truth = np.asarray(moons.sample_data(key, 3 * num)[0]).reshape(3, num, 2)
    started = seconds.pop("started")
    results = {
        "w2_energymatch": w2(of_v, truth[0]),
        "w2_egm": w2(of_egm, truth[0]),
        "w2_between": w2(of_v, of_egm),
        "w2_floor": w2(truth[1], truth[2]),
        "ess": float(summary.ess),
        "log_z": float(summary.log_z),
        "log_z_error": float(summary.log_z_error),
        "log_z_reason": egm.metrics.reason(summary),
        **seconds,
    }
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure(folder / "quickstart.png", energy, data, of_v, of_egm, results)
    results["total_seconds"] = time.time() - started
    floor = f"{results['w2_floor']:.3f} (between two sets of data)"
    log_z = with_error(results["log_z"], results["log_z_error"])
    rows = [
        ["W2 of samples of V (energymatch) to data", results["w2_energymatch"], floor],
        ["W2 of samples of the sampler (egm) to data", results["w2_egm"], floor],
        ["W2 between the two", results["w2_between"], floor],
        ["ESS / N of the sampler", results["ess"], "1"],
        ["log Z of exp(-V/eps)", log_z, results["log_z_reason"]],
    ]
    print(table("\ndata -> energy -> sampler", ["", "", "reference"], rows))
    path = write_results(output_dir, results)
    print(f"\n{results['total_seconds']:.0f} s in all. Wrote\n{folder / 'quickstart.png'} and {path}")


def figure(path, energy, data, of_v, of_egm, results):
    """The data, the energy that is learned from them, and samples of it in two ways."""
    edge = np.linspace(-6, 7, 200, dtype=np.float32)
    e = np.asarray(jax.jit(energy)(np.stack(np.meshgrid(edge, edge), axis=-1)))
    fig, axes = plt.subplots(1, 4, figsize=(16, 4.2), layout="constrained")
    axes[0].scatter(*np.asarray(data[:2000]).T, s=2, c="black")
    axes[0].set_title("data")
    shown = axes[1].contourf(edge, edge, e - e.min(), np.arange(0, 31, 2), cmap="viridis_r", extend="max")
    fig.colorbar(shown, ax=axes[1])
    axes[1].set_title(r"energy $V/\epsilon$ learned from them")
    axes[2].scatter(*np.asarray(of_v).T, s=2, c="tab:blue")
    axes[2].set_title(f"energymatch: along -grad V, W2 {results['w2_energymatch']:.2f}")
    axes[3].scatter(*np.asarray(of_egm).T, s=2, c="tab:orange")
    axes[3].set_title(f"egm: from V alone, W2 {results['w2_egm']:.2f}, ESS {results['ess']:.2f}")
    for ax in axes:
        ax.set(xlim=(-6, 7), ylim=(-6, 7), aspect="equal")
    fig.savefig(path, dpi=130)
    plt.close(fig)
