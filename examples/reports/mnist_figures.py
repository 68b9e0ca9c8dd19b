"""The two pictures of mnist.py: samples, energies and dimensions; digits, measurements and members."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from data.digits28 import SIDE
from support.digits28_judges import TIMES
from support.digits28_posteriors import ARMS, MEMBERS, make_operators

plt.switch_backend("Agg")  # no screen is needed

INK = {"cmap": "gray_r", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
SHOWN = 2
"""Digits an operator in the figure of posteriors: the first ones, not selected."""


def tiled(levels, columns):
    """[N, 28, 28] as one picture, a line between digits."""
    framed = np.pad(levels, ((0, 0), (1, 1), (1, 1)), constant_values=90.0)
    side = SIDE + 2
    rows = framed[: len(framed) // columns * columns].reshape(-1, columns, side, side)
    return rows.transpose(0, 2, 1, 3).reshape(-1, columns * side)


def overview(path, digits, clean, energies, points, results):
    """Samples by both phases and by transport alone, energies, the gap by step, dimension and PNG size."""
    fig, axes = plt.subplots(2, 4, figsize=(20, 10.4), layout="constrained")
    samples = results["samples"]
    for axis, t in zip(axes[0], TIMES, strict=False):
        grid(axis, digits, clean["density"][t])
        axis.set_title(f"both phases, t = {t}: Frechet distance {samples['density'][f't{t}']['frechet']:.1f}")
    t = TIMES[0]
    grid(axes[0, 3], digits, clean["transport"][t])
    axes[0, 3].set_title(
        f"transport alone, t = {t}: Frechet distance {samples['transport'][f't{t}']['frechet']:.1f}"
    )
    histogram(axes[1, 0], energies, results["energies"])
    steps, gap, error = (np.array(column) for column in zip(*results["held_out_gap_by_step"], strict=True))
    axes[1, 1].errorbar(steps, gap, error, fmt="o-", ms=3, lw=1)
    axes[1, 1].axvline(results["warm_up"], color="0.5", ls="--", lw=1, label="phase 2 begins")
    axes[1, 1].axhline(0, color="black", lw=0.8)
    axes[1, 1].set(xlabel="step", ylabel=r"$V/\epsilon$, held-out less training digits (nats)")
    axes[1, 1].set_title("overfitting while it is trained")
    axes[1, 1].legend()
    scatter(axes[1, 2], points, results["dimension"])
    ordered(axes[1, 3], digits, points[0])
    fig.savefig(path, dpi=75)
    plt.close(fig)


def grid(axis, digits, x):
    axis.imshow(tiled(digits.levels(x[:100])[..., 0], 10 if len(x) >= 100 else 4), **INK)
    axis.set_xticks([])
    axis.set_yticks([])


def histogram(axis, energies, figures):
    """Energies of digits and of what is none, as far as they fit on the axis."""
    low = min(np.quantile(e, 0.001) for e in energies.values())
    high = np.quantile(energies["rotated by 90 degrees"], 0.995)
    edges = np.linspace(low, high, 70)
    for name, e in energies.items():
        label = name if name not in figures["auroc"] else f"{name}: AUROC {figures['auroc'][name]:.3f}"
        if np.median(e) > high:
            axis.plot([], [], " ", label=f"{label}, median {np.median(e):.0f}")
            continue
        axis.hist(e, edges, weights=np.full(len(e), 1 / len(e)), histtype="step", lw=1.6, label=label)
    axis.set(xlabel=r"$V/\epsilon$ (nats)", ylabel="share")
    axis.set_ylim(0, 1.7 * axis.get_ylim()[1])  # room for the legend
    axis.set_title("energies")
    axis.legend(fontsize=8)


def scatter(axis, points, figures):
    lid, neighbours, sizes = points
    axis.plot(sizes, lid, ".", label=f"Hessian of V: Spearman {figures['spearman'][0]:.2f}")
    axis.set(xlabel="PNG size (bytes)", ylabel="dimension by the Hessian of V")
    other = axis.twinx()
    other.plot(sizes, neighbours, "x", ms=4, color="tab:orange", alpha=0.6)
    axis.plot([], [], "x", color="tab:orange",
              label=f"Levina-Bickel: {figures['spearman_levina_bickel'][0]:.2f} (right)")  # fmt: skip
    other.set_ylabel("dimension by neighbours", color="tab:orange")
    axis.set_title("dimension against PNG size, held-out digits")
    axis.legend(fontsize=9, loc="upper left")


def ordered(axis, digits, lid):
    """Held-out digits from the least to the largest dimension."""
    order = np.argsort(lid, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, min(100, len(order) // 4 * 4)).round().astype(int)]
    columns = 10 if len(shown) == 100 else 4
    axis.imshow(tiled(digits.levels(digits.held_out[shown])[..., 0], columns), **INK)
    ends = lid[shown].reshape(-1, columns)
    ticks = (SIDE + 2) * (np.arange(len(ends)) + 0.5)
    axis.set_yticks(ticks, [f"{row[0]:.0f} to {row[-1]:.0f}" for row in ends])
    axis.set_xticks([])
    axis.set_title("held-out digits in order of their dimension")


def posteriors(path, digits, found):
    """Digits of each operator in three rows: the published annealing, the posterior, with the interaction."""
    names = list(found["members"])
    shown = min(SHOWN, len(found["truth"]))
    shape = (len(names) * shown * len(ARMS), MEMBERS + 4)
    fig, axes = plt.subplots(*shape, figsize=(0.95 * shape[1] + 1.6, 0.95 * shape[0] + 0.4), squeeze=False)
    titles = ["digit", "measured", *[f"member {i + 1}" for i in range(MEMBERS)], "mean", "deviation"]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    for row, axis_row in enumerate(axes):
        name, digit, arm = names[row // (shown * len(ARMS))], row // len(ARMS) % shown, row % len(ARMS)
        clean = found["members"][name].clean[arm, digit]
        pictures = [found["truth"][digit], seen(found["y"][name][digit], name), *clean, clean.mean(0)]
        for axis, picture in zip(axis_row, pictures, strict=False):
            axis.imshow(np.ma.masked_invalid(digits.levels(picture)[..., 0]), **INK)
            axis.set_facecolor("#c8d8e8")
        axis_row[-1].imshow(digits.scale * clean.std(0, ddof=1)[..., 0], cmap="magma", vmin=0, vmax=128)
        label = f"{name}\n{ARMS[arm]}" if arm == 0 else ARMS[arm]
        axis_row[0].set_ylabel(label, fontsize=7, rotation=0, ha="right", va="center")
        for axis in axis_row:
            axis.set_xticks([])
            axis.set_yticks([])
    fig.subplots_adjust(left=0.14, right=0.995, top=0.975, bottom=0.005, wspace=0.05, hspace=0.05)
    fig.savefig(path, dpi=75)
    plt.close(fig)


def seen(y, name):
    """The measurement as a picture, NaN where nothing is measured."""
    whole = np.asarray(make_operators()[name](np.ones((1, SIDE, SIDE, 1), np.float32)))[0]
    return np.where(whole != 0, y, np.nan)
