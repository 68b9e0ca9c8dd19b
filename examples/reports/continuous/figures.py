"""The panels of a figure about a sampler of continuous or mixed states."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage
from reports.continuous.statistics import Samples, num_weighted, particle_distances, position

plt.switch_backend("Agg")  # no screen is needed

SAMPLER, WEIGHTED, EXACT = "tab:orange", "tab:blue", "black"
NUM_SHOWN = 2000
LAYOUTS = {4: "AB\nCD", 5: "ABC\nADE", 6: "ABC\nDEF", 7: "ABCD\nAEFG"}


class Panels(NamedTuple):
    """What there is to show.

    Attributes:
      data: samples.
      tokens: (found, truth, error) of token statistics, or None.
      composition: (found, truth, error) of frequencies of compositions, or None.
      modes: (raw, of as many exact samples, truth) masses and a number, or None.
      history: rows of the iterations' metrics.
      results: of `continuous_report.report`.
    """

    data: Samples
    tokens: Any
    composition: Any
    modes: Any
    history: list[dict[str, float]]
    results: dict[str, Any]


def figure(path, title: str, energy, p: Panels) -> None:
    """Samples, energies, what the target has of modes, tokens and compositions, and the training."""
    panels = []
    if not hasattr(energy, "num_particles"):
        panels.append(scatter)
    else:
        panels += [configurations] * (energy.spatial_dim == 2) + [pair_distances]
    panels.append(energies)
    panels += [modes] * (p.modes is not None)
    # The kinds of identical particles say nothing one by one.
    panels += [compositions] if p.composition is not None else [tokens] * (p.tokens is not None)
    panels += [training, log_partition]
    columns = (len(panels) + 1) // 2
    fig, axes = plt.subplot_mosaic(LAYOUTS[len(panels)], figsize=(4.4 * columns, 7.5), layout="constrained")
    fig.suptitle(title)
    for ax, panel in zip(axes.values(), panels, strict=True):
        panel(ax, energy, p)
    fig.savefig(path, dpi=150)
    plt.close(fig)


def scatter(ax, energy, p):
    """The first two coordinates of raw samples over contours of the marginal density."""
    x, exact = position(p.data.state), position(p.data.exact)
    low, high = np.quantile(exact[:, :2], [0.0005, 0.9995], axis=0)
    pad = 0.15 * np.max(high - low)
    (left, right), (bottom, top) = zip(low - pad, high + pad, strict=True)
    if exact.shape[1] == 2:
        grid = np.meshgrid(np.linspace(left, right, 200), np.linspace(bottom, top, 200))
        marginal = getattr(energy, "marginal_energy", energy)
        e = np.asarray(jax.jit(marginal)(np.stack(grid, axis=-1).astype(exact.dtype)))
        names = "x", "y"
    else:
        edges = [np.linspace(left, right, 81), np.linspace(bottom, top, 81)]
        counts = np.histogram2d(exact[:, 0], exact[:, 1], bins=edges)[0].T
        middles = [(a[1:] + a[:-1]) / 2 for a in edges]
        grid, e = np.meshgrid(*middles), -np.log(scipy.ndimage.gaussian_filter(counts, 1.5) + 1e-9)
        names = "$x_1$", "$x_2$"
    # One, two and three standard deviations of a mode.
    ax.contourf(*grid, e - np.min(e), levels=[0, 0.5, 2, 4.5], cmap="Blues_r", vmin=-7, vmax=6)
    ax.contour(*grid, e - np.min(e), levels=[0.5, 2, 4.5], colors="tab:blue", linewidths=0.5)
    shown = x[:NUM_SHOWN]
    ax.plot(*shown[:, :2].T, ".", color=SAMPLER, ms=2.5, alpha=0.7, label="sampler, raw")
    ax.plot([], [], "s", color="tab:blue", alpha=0.5, label="exact")
    room = 0.14 * (top - bottom)  # for the legend
    ax.set(xlim=(left, right), ylim=(bottom, top + room), xlabel=names[0], ylabel=names[1], aspect="equal")
    ax.legend(loc="upper center", ncols=2, fontsize="small", markerscale=1.5)
    r = p.results
    if "x_w2" in r:
        ax.set(title=f"$W_2$ {r['x_w2']:.3f}, floor {r['x_w2_floor']:.3f}")
    elif "coordinate_w1_ratio_mean" in r:
        ax.set(title=f"$W_1$ of a coordinate: {r['coordinate_w1_ratio_mean']:.2f} x floor")


def configurations(ax, energy, p):
    """Particle systems in the plane, each in its box: raw samples above, the reference's below."""
    rows, columns, gap = 2, 6, 0.5
    pitch = 2.5 * np.quantile(np.abs(position(p.data.exact)), 0.995)
    number = np.arange(rows * columns)
    for block, state in enumerate((p.data.state, p.data.exact)):
        x = position(state)[: number.size].reshape(number.size, -1, 2) / pitch
        centre = np.stack([number % columns, -(number // columns) - (rows + gap) * block], axis=-1)
        for corner in centre - 0.48:
            ax.add_patch(plt.Rectangle(corner, 0.96, 0.96, fill=False, ec="0.8", lw=0.8))
        points = (x + centre[:, None]).reshape(-1, 2)
        mixed = isinstance(state, dict)
        kinds = state["h"][: number.size].ravel() if mixed else np.zeros(len(points))
        for kind, color in enumerate(("tab:purple", "tab:green")):
            label = f"type {kind}" if block == 0 and mixed else None
            ax.plot(*points[kinds == kind].T, "o", color=color, ms=5, alpha=0.8, label=label)
        text = ("sampler, raw", "reference")[block]
        ax.text((columns - 1) / 2, centre[0, 1] + 0.53, text, ha="center", va="bottom")
    bottom = -(2 * rows + gap) - (0.1 if isinstance(p.data.state, dict) else -0.4)
    ax.set(xlim=(-0.55, columns - 0.45), ylim=(bottom, 1.0), aspect="equal", xticks=[], yticks=[])
    ax.set(title="configurations")
    if isinstance(p.data.state, dict):
        ax.legend(loc="lower center", ncols=2, fontsize="small", frameon=False)


def pair_distances(ax, energy, p):
    """Histogram of all distances between particles."""
    n = num_weighted(p.data)
    generated, exact = (particle_distances(energy, position(s)) for s in (p.data.state, p.data.exact))
    pairs = exact.shape[1]
    weights = np.repeat(weights_of(p) / pairs, pairs)
    histogram(ax, generated.ravel(), generated[:n].ravel(), weights, exact.ravel(), "reference")
    r = p.results
    title = f"$W_1$ {r['distance_w1']:.4f}, floor {r['distance_w1_floor']:.4f}"
    ax.set(title=title, xlabel="distance of two particles")


def energies(ax, energy, p):
    """Histogram of the energy."""
    e, r = p.data.energy, p.results
    name = "reference" if hasattr(energy, "num_particles") else "exact"
    histogram(ax, e, e[: num_weighted(p.data)], weights_of(p), p.data.exact_energy, name)
    ax.set(title=f"$W_1$ {r['energy_w1']:.3g}, floor {r['energy_w1_floor']:.3g}", xlabel="energy")


def weights_of(p):
    """[n] normalised weights of the samples that are reweighted."""
    log_w = np.asarray(p.data.log_w[: num_weighted(p.data)], np.float64)
    valid = ~(np.isnan(log_w) | np.isposinf(log_w))
    w = np.where(valid, np.exp(log_w - np.max(log_w, where=valid, initial=-np.inf)), 0.0)
    return w / max(np.sum(w), np.finfo(float).tiny)


def histogram(ax, raw, some, weights, exact, exact_name):
    """Raw samples as bars, reweighted and exact ones as lines, on the range of the exact ones."""
    low, high = np.quantile(exact, [0.0002, 0.9995])
    bins = np.linspace(low - 0.06 * (high - low), high + 0.1 * (high - low), 61)
    beyond = np.mean(~((raw >= bins[0]) & (raw <= bins[-1])))
    label = "sampler, raw" + (f" ({100 * beyond:.1f}% beyond)" if beyond > 5e-4 else "")
    middle, width = (bins[1:] + bins[:-1]) / 2, bins[1] - bins[0]

    def density(values, w=None):
        w = np.full(values.size, 1 / values.size) if w is None else w
        inside = np.isfinite(values)
        return np.histogram(values[inside], bins=bins, weights=w[inside])[0] / width

    bars, line = density(raw), density(exact)
    ax.bar(middle, bars, width=width, color=SAMPLER, alpha=0.55, label=label)
    ax.step(middle, density(some, weights), where="mid", color=WEIGHTED, lw=1.2, label="reweighted")
    ax.step(middle, line, where="mid", color=EXACT, lw=1, label=exact_name)
    # Room for the legend; a few large weights may reach beyond.
    top = 1.35 * max(np.max(bars), np.max(line))
    ax.set(ylabel="density", xlim=(bins[0], bins[-1]), ylim=(0, top))
    ax.legend(loc="upper right", fontsize="small")


def modes(ax, energy, p):
    """Mass per mode where they are few, else how many modes have which mass over the exact one."""
    raw, exact, truth, _ = p.modes
    title = f"{p.results['modes_found']} of {p.results['num_modes']} modes found"
    if truth.size <= 40:
        index = np.arange(1, truth.size + 1)
        ax.bar(index, raw, color=SAMPLER, alpha=0.55, label="sampler, raw")
        ax.plot(index, truth, "_", color=EXACT, ms=90 / np.sqrt(truth.size) / 2, mew=2, label="exact")
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        ax.set(xlabel="mode", ylabel="mass", title=title)
        ax.set_ylim(top=1.25 * max(raw.max(), truth.max()))
    else:
        ratios = raw / truth, exact / truth
        bins = np.linspace(0, max(2.0, np.quantile(np.concatenate(ratios), 0.999)), 41)
        ax.hist(ratios[0], bins, color=SAMPLER, alpha=0.55, label="sampler, raw")
        ax.hist(ratios[1], bins, color=EXACT, histtype="step", label="as many exact samples")
        ax.set(xlabel="mass of a mode / exact", ylabel="modes", title=title)
        ax.set_ylim(top=1.25 * ax.get_ylim()[1])
    ax.legend(loc="upper right", fontsize="small", ncols=2 if truth.size <= 40 else 1)


def tokens(ax, energy, p):
    """Means and pair means of spins with two standard errors."""
    found, truth, error = p.tokens
    index, sites = np.arange(1, found.size + 1), energy.event_shape["h"][0]
    ax.errorbar(index, found, 2 * error, fmt=".", color=SAMPLER, lw=1, label="sampler, raw (2 s.e.)")
    ax.plot(index, truth, "_", color=EXACT, ms=6, mew=1.5, label="exact")
    ax.axvline(sites + 0.5, color="0.6", lw=0.8, ls=":")
    low, high = min(np.min(found - 2 * error), truth.min()), max(np.max(found + 2 * error), truth.max())
    ax.set(ylim=(low - 0.06 * (high - low), high + 0.3 * (high - low)))
    # With few statistics each has its name.
    pairs = [f"{i + 1}{j + 1}" for i in range(sites) for j in range(i + 1, sites)]
    if found.size <= 10:
        ax.set_xticks(index, [str(i + 1) for i in range(sites)] + pairs)
        ax.set(xlabel="site i, pair ij")
    else:
        ax.set(xlabel=f"{sites} sites, then {len(pairs)} pairs")
    ax.set(ylabel=r"$\langle s_i \rangle$, $\langle s_i s_j \rangle$")
    ax.set(title=f"tokens, largest |z| {p.results['token_max_z']:.1f}")
    ax.legend(loc="upper right", fontsize="small", ncols=2)


def compositions(ax, energy, p):
    """How often how many particles are of type 1."""
    found, truth, error = p.composition
    count = np.arange(found.size)
    ax.bar(count - 0.2, found, 0.4, yerr=2 * error, color=SAMPLER, alpha=0.6, label="sampler, raw (2 s.e.)")
    ax.bar(count + 0.2, truth, 0.4, color="0.35", label="reference")
    ax.set(xlabel="particles of type 1", ylabel="frequency", xticks=count)
    ax.set(title=f"composition, largest |z| {p.results['composition_max_z']:.1f}")
    ax.set_ylim(top=1.3 * max(found.max(), truth.max()))
    ax.legend(loc="upper right", fontsize="small")


def training(ax, energy, p):
    """ESS of new samples and the annealed scale over the run."""
    seconds = [row["seconds"] for row in p.history]
    ax.plot(seconds, [row["ess"] for row in p.history], ".-", label="ESS / N of new samples")
    ax.plot(seconds, [row["level"] for row in p.history], "--", label="level of the annealing")
    ax.set(title=f"ESS {p.results['ess']:.3g} at the end", xlabel="seconds of training", ylim=(0, 1.25))
    ax.set(yticks=np.linspace(0, 1, 6))
    ax.legend(loc="upper right", fontsize="small", ncols=2)


def log_partition(ax, energy, p):
    """log Z of each iteration's new samples, with its standard error, and the exact one."""
    r = p.results
    seconds, log_z, error = (
        np.array([row[name] for row in p.history]) for name in ("seconds", "log_z", "log_z_error")
    )
    known = r["log_z_exact"] is not None
    centre = r["log_z_exact"] if known else r["log_z"]
    ax.errorbar(
        seconds,
        log_z,
        np.where(np.isfinite(error), error, np.nan),
        fmt=".-",
        lw=0.8,
        ms=4,
        color=SAMPLER,
        label="new samples",
    )
    stated = np.isfinite(r["log_z_error"])
    label = f"at the end, +- {r['log_z_error']:.2g}" if stated else "at the end, error not known"
    label = "exact" if known else label
    ax.axhline(centre, color=EXACT, lw=1, ls="-" if known else "--", label=label)
    # The first iterations are far off: the range is that of the second half.
    late = np.abs(log_z[log_z.size // 2 :] - centre)
    late = late[np.isfinite(late)]
    reach = 1.5 * max(np.max(late, initial=0.0), 5 * min(r["log_z_error"], 1.0), 1e-3)
    if np.isfinite(centre):
        ax.set(ylim=(centre - reach, centre + reach))
    ax.ticklabel_format(axis="y", useOffset=False)
    title = f"log Z {r['log_z']:.3f} at the end" + (f", exact {r['log_z_exact']:.3f}" if known else "")
    ax.set(title=title, xlabel="seconds of training", ylabel="log Z")
    ax.legend(loc="upper right", fontsize="small")
