"""What two_moons.py measures of a potential and shows: its density by quadrature, its samples in time."""

from __future__ import annotations

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.spatial
from data import moons
from support.distances import w2
from support.tables import table, with_error, write_results

from egm import metrics
from energymatch import langevin, likelihood, schedules

plt.switch_backend("Agg")  # no screen is needed

NUM_SETS, NUM_FLOOR_PAIRS = 5, 20
STEP_SIZE, TAU_STAR, TIMES = 0.01, 0.8, (1, 2, 10)


def grid(half_width, num):
    """([num, num, 2] midpoints of a square, the area of a cell)."""
    edge = (np.arange(num) + 0.5) / num * 2 * half_width - half_width
    return np.stack(np.meshgrid(edge, edge), axis=-1).astype(np.float32), (2 * half_width / num) ** 2


def on_grid(energy, points):
    """Energies [num, num] in float64, a row at a time."""
    return np.asarray(jax.jit(lambda p: jax.lax.map(energy, p))(points), dtype=np.float64)


def log_partition(energies, cell):
    low = energies.min()
    return float(np.log(np.sum(np.exp(low - energies)) * cell) - low)


def quadrature(energy):
    """log Z on two squares, the mass of each moon, and the energies on the smaller one."""
    points, cell = grid(8.0, 800)
    energies = on_grid(energy, points)
    log_z = log_partition(energies, cell)
    wide = log_partition(on_grid(energy, grid(16.0, 1600)[0]), cell)
    mass = np.exp(-energies - log_z) * cell
    exact, upper = moons.sample_data(jax.random.key(98), 4000)
    tree, there = scipy.spatial.cKDTree(np.asarray(exact)), mass > 1e-9
    nearest = np.asarray(upper)[tree.query(points[there])[1]]
    return log_z, wide, float(np.sum(mass[there] * nearest)), energies


def draw_samples(key, potential, epsilon_max, method, num):
    """{time: [num, 2]} from the prior, the same from data after 10 more, acceptance, and paths to t = 1."""
    temperature = functools.partial(schedules.temperature, tau_star=TAU_STAR, epsilon_max=epsilon_max)
    keys = jax.random.split(key, 5)

    @functools.partial(jax.jit, static_argnames="save_every")
    def unit(key, x, t_0, save_every=None):
        """The dynamics over one unit of time."""
        return langevin.sample(
            key,
            potential,
            x,
            num_steps=round(1 / STEP_SIZE),
            step_size=STEP_SIZE,
            temperature=temperature,
            t_0=t_0,
            method=method,
            save_every=save_every,
        )

    x = moons.sample_prior(keys[0], num)
    paths = unit(keys[1], x[:200], 0.0, save_every=2).states
    at = {}
    for t in range(TIMES[-1]):
        x = unit(jax.random.fold_in(keys[2], t), x, float(t)).x
        if t + 1 in TIMES:
            at[t + 1] = x
    # The equilibrium's own dynamics, at epsilon_max throughout.
    x, acceptance = moons.sample_data(keys[4], num)[0], []
    for t in range(10, 20):
        out = unit(jax.random.fold_in(keys[3], t), x, float(t))
        x, acceptance = out.x, [*acceptance, out.acceptance.mean()]
    return jax.device_get(at), np.asarray(x), float(np.mean(acceptance)), np.asarray(paths)


def report(key, potential, epsilon_max, method, set_size, output_dir, history, settings):
    """Measure, print, plot and write."""
    keys = jax.random.split(key, 5)

    def energy(x):
        return potential(x) / epsilon_max

    log_z, log_z_wide, mass, energies = quadrature(energy)
    # A short run is judged by fewer states.
    held_out, _ = moons.sample_data(keys[0], min(20_000, 40 * set_size))
    nll = float(jnp.mean(jax.jit(energy)(held_out))) + log_z
    prior = likelihood.fit_mixture(keys[4], held_out)
    options = {"epsilon": epsilon_max, "prior": prior, "num_chains": min(4096, 8 * set_size)}
    both_sides = jax.jit(lambda k, x: likelihood.evidence(k, potential, x, **options))
    ais = both_sides(keys[1], held_out[: min(1024, 2 * set_size)])
    num = NUM_SETS * set_size
    at, from_data, acceptance, paths = draw_samples(keys[2], potential, epsilon_max, method, num)
    exact = np.asarray(moons.sample_data(keys[3], 2 * num)[0])
    distance = functools.partial(metrics.sample_distance, w2, exact=exact[:num], num_sets=NUM_SETS)
    floor = metrics.distance_floor(w2, exact, set_size, NUM_FLOOR_PAIRS)
    results = dict(settings) | {
        "nll": nll,
        "entropy": moons.entropy(),
        "moon_mass": mass,
        "log_z_quadrature": log_z,
        "log_z_wide_box": log_z_wide,
        "log_z_ais": float(ais.log_z),
        "log_z_ais_error": float(ais.log_z_error),
        "log_z_upper": float(ais.upper.log_z_inverse),
        "ais_ess": float(ais.lower.ess),
        **{f"w2_t{t}": distance(generated=x) for t, x in at.items()},
        "w2_from_data_t10": distance(generated=from_data),
        "w2_floor": floor,
        "acceptance": acceptance,
    }
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure(folder / "two_moons.png", np.asarray(held_out), paths, energies + log_z, at, results, history)
    results["total_seconds"] = time.time() - results.pop("started")
    print(table(f"\ntwo moons, {results['recipe']} recipe", ["", "", "reference"], rows_of(results)))
    path = write_results(output_dir, results)
    print(
        f"\n{results['total_seconds']:.0f} s in all: {results['compile_seconds']:.0f} s compiling, "
        f"{results['train_seconds']:.0f} s training. Wrote\n{folder / 'two_moons.png'} and {path}"
    )


def rows_of(r):
    """Rows of the table."""
    floor = r["w2_floor"]

    def ratio(key):
        return f"{r[key]:.3f} ({r[key] / floor:.2f} x floor)"

    return [
        ["NLL of held-out data, nats", r["nll"], f"{r['entropy']:.3f} (entropy)"],
        ["mass of the upper moon", r["moon_mass"], "0.5"],
        ["log Z by quadrature", r["log_z_quadrature"], f"{r['log_z_wide_box']:.4f} (twice the box)"],
        [
            "log Z by AIS",
            with_error(r["log_z_ais"], r["log_z_ais_error"]),
            "ESS " + f"{r['ais_ess']:.2f}",
        ],
        *[[f"W2 from the prior, t = {t}", ratio(f"w2_t{t}"), f"{floor:.3f} (floor)"] for t in TIMES],
        ["W2 from data, t = 10 more", ratio("w2_from_data_t10"), f"{floor:.3f} (floor)"],
    ]


def figure(path, data, paths, energies, at, results, history):
    """Data, trajectories, the learned density and energy, and samples at three times."""
    points, _ = grid(8.0, energies.shape[0])
    edge = points[0, :, 0]
    fig, axes = plt.subplots(2, 4, figsize=(17, 8), layout="constrained")
    fig.suptitle("two moons: one potential carries noise to data and is the data's energy")
    panels = list(axes.flat)

    def contours(ax, levels, cmap):
        return ax.contourf(edge, edge, energies, levels=levels, cmap=cmap, extend="max")

    panels[0].scatter(*data[:3000].T, s=1, c="black")
    panels[0].set_title("data")
    contours(panels[1], np.arange(0, 60, 3), "Greys_r")
    panels[1].plot(paths[..., 0], paths[..., 1], lw=0.4, c="tab:orange")
    panels[1].scatter(*paths[0].T, s=3, c="tab:green", label="t = 0", zorder=3)
    panels[1].scatter(*paths[-1].T, s=3, c="tab:blue", label="t = 1", zorder=3)
    panels[1].legend(loc="upper right", markerscale=3)
    panels[1].set_title("trajectories over V")
    shown = contours(panels[2], np.arange(0, 16.5, 1.5), "viridis_r")
    panels[2].contour(edge, edge, energies, levels=[2.5, 5, 10, 20, 40], colors="white", linewidths=0.5)
    fig.colorbar(shown, ax=panels[2], label=r"$V/\epsilon_{max} + \log Z$ (nats)")
    panels[2].set_title(f"learned energy, NLL {results['nll']:.2f}")
    with np.errstate(divide="ignore"):
        exact = -np.log(np.sum(moons.density(points), axis=-1))
    panels[3].set_facecolor("0.9")
    panels[3].contourf(edge, edge, np.where(np.isfinite(exact), exact, np.nan), np.arange(0, 16.5, 1.5),
                       cmap="viridis_r")  # fmt: skip
    panels[3].set_title(f"exact energy, entropy {results['entropy']:.2f}")
    for ax, (t, x) in zip(panels[4:7], at.items(), strict=True):
        ax.scatter(*x[:3000].T, s=1, c="tab:blue")
        key = f"w2_t{t}"
        ax.set_title(f"samples at t = {t}: W2 {results[key]:.2f} (floor {results['w2_floor']:.2f})")
    for ax in panels[:7]:
        ax.set(xlim=(-7, 7), ylim=(-7, 7), aspect="equal")
    ax = panels[7]
    steps = (np.arange(len(history)) + 1) / len(history)
    ax.plot(steps, [h["flow_loss"] for h in history], c="tab:orange", label="flow loss")
    ax.plot(steps, [abs(h["energy_gap"]) for h in history], c="tab:blue", label="|V data - V negatives|")
    ax.set(yscale="log", xlabel="share of phase 2", title="training")
    ax.legend()
    fig.savefig(path, dpi=110)
    plt.close(fig)
