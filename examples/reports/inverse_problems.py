"""What inverse_problems.py measures of posterior samples and shows."""

from __future__ import annotations

import pathlib
import time

import matplotlib.pyplot as plt
import numpy as np
from support.tables import table, write_results

plt.switch_backend("Agg")  # no screen is needed

SHOWN = 2
"""Digits an operator in the figure: the first ones, not selected."""
KEYS = {"lower half missing": "inpainting", "2x down-sampling": "downsampling", "blur of width 1.5": "blur"}

DIFFERENCES = {
    "error_less_best_unconditional": ("error", "error_best_unconditional"),
    "best_less_told_unconditional": ("error_of_best", "error_told_unconditional"),
    "error_less_mean_digit": ("error", "error_mean_digit"),
    "mean_less_mean_digit": ("error_of_mean", "error_mean_digit"),
}
"""Differences by digit: a figure of the members and one of an alternative."""


def mean_and_error(values):
    """(mean, standard error) over digits [N]."""
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size))


def square_error(x, truth, where):
    """Mean square error over the pixels `where` [64], per example."""
    return np.mean((x - truth)[..., where] ** 2, axis=-1)


def distances(x):
    """[N] mean distance between two of the members of x [N, M, 64]."""
    squares = np.sum((x[:, :, None] - x[:, None]) ** 2, axis=-1)
    first, second = np.triu_indices(x.shape[1], 1)
    return np.sqrt(squares[:, first, second]).mean(axis=1)


def misfit(x, matrix, y, zeta):
    """|y - A x|^2 / zeta^2 a measured number, per member of x [N, M, 64]: 1 for the truth, in the mean."""
    seen = np.any(matrix != 0, axis=1)
    return np.mean(((x @ matrix.T - y[:, None])[..., seen] / zeta) ** 2, axis=-1)


def measure(matrix, y, truth, x, clean, energy, free, mean_digit, zeta):
    """({name: [N] figures by digit} without and with the interaction, the same of the alternatives).

    `free` is what samples without a measurement are, (x, clean) [N, M, 64]. Errors are of clean images, on
    the pixels that no number measures, or on all where every pixel counts in some.
    """
    where = ~np.any(matrix != 0, axis=0)
    where = where if where.any() else np.ones_like(where)
    against = truth[:, None]

    def of_members(x, clean, energy):
        return {
            "error": square_error(clean, against, where).mean(1),
            "error_of_best": square_error(clean, against, where).min(1),
            "error_of_mean": square_error(clean.mean(1), truth, where),
            "misfit": misfit(x, matrix, y, zeta).mean(1),
            "distance": distances(x),
            "distance_clean": distances(clean),
            "energy": energy.mean(1),
        }

    free_errors = square_error(free[1], against, where)
    picked = misfit(free[0], matrix, y, zeta).argmin(1)
    others = {
        "error_best_unconditional": np.take_along_axis(free_errors, picked[:, None], 1)[:, 0],
        "error_told_unconditional": free_errors.min(1),
        "error_mean_digit": square_error(mean_digit, truth, where),
    }
    return [of_members(*parts) for parts in zip(x, clean, energy, strict=True)], others


def report(digits, matrices, y, truth, members, energies, zeta, output_dir, settings):
    """Measure, print, plot and write. `truth` [N, 64] are clean digits, the last operator's y is empty."""
    mean_digit = digits.train.reshape(len(digits.train), -1).mean(0)
    results = dict(settings) | {
        "energy_held_out": float(energies.mean()),
        "energy_held_out_sd": float(energies.std(ddof=1)),
    }
    # Samples without a measurement are independent of each other: those without the interaction.
    free = members.x[-1, 0], members.clean[-1, 0]
    rows, baselines = [], []
    for o, name in enumerate(list(matrices)[:-1]):
        parts = (members.x[o], members.clean[o], members.energy[o])
        both, others = measure(matrices[name], y[o], truth, *parts, free, mean_digit, zeta)
        out = {k: mean_and_error(v) for k, v in others.items()}
        for label, figures in zip(("plain", "interaction"), both, strict=True):
            out[label] = {k: mean_and_error(v) for k, v in figures.items()}
            for name_of, (mine, other) in DIFFERENCES.items():
                out[label][name_of] = mean_and_error(figures[mine] - others[other])
        plain, repelled = both
        out |= {
            "distance_ratio": float(repelled["distance"].mean() / plain["distance"].mean()),
            "misfit_ratio": float(repelled["misfit"].mean() / plain["misfit"].mean()),
            "energy_rise": mean_and_error(repelled["energy"] - plain["energy"]),
            "acceptance": members.acceptance[o],
            "swaps": members.swaps[o],
        }
        results[KEYS[name]] = out
        rows += rows_of(name, out)
        baselines.append(
            [name, *[pair(out[k]) for k in others], *[pair(out["plain"][k]) for k in DIFFERENCES]]
        )
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure(folder / "inverse_problems.png", digits, matrices, y, truth, members)
    results["total_seconds"] = time.time() - results.pop("started")
    header = ["", "members' error", "of their mean", "of the best", "misfit", "distance", "clean", "V/eps"]
    print(table(f"\n{settings['members']} members for each of {len(truth)} digits", header, rows))
    header = ["error of", "best of as many unconditional", "the same, told the truth", "the mean digit"]
    header += ["members less best", "best member less that told", "members less mean digit"]
    header += ["their mean less mean digit"]
    print(table("\nWithout the posterior", header, baselines))
    path = write_results(output_dir, results)
    print(
        f"\nHeld-out digits: V/eps {results['energy_held_out']:.1f}, standard deviation "
        f"{results['energy_held_out_sd']:.1f}\n{results['total_seconds']:.0f} s in all: "
        f"{results['train_seconds']:.0f} s training, {results['posterior_seconds']:.0f} s of posterior "
        f"samples with their compilation. Wrote\n{folder / 'inverse_problems.png'} and {path}"
    )


def pair(value):
    return f"{value[0]:.3f} ± {value[1]:.3f}"


def rows_of(name, out):
    """Two rows of the table."""
    keys = ("error", "error_of_mean", "error_of_best", "misfit", "distance", "distance_clean", "energy")
    rows = [[name, *[pair(out["plain"][k]) for k in keys]]]
    return [*rows, ["  with interaction", *[pair(out["interaction"][k]) for k in keys]]]


def figure(path, digits, matrices, y, truth, members):
    """Digits of each operator, without and with the interaction: truth, y, members, mean, deviation."""
    num = members.x.shape[3]
    names = list(matrices)[:-1]
    shape = (len(names) * SHOWN * 2, num + 4)
    fig, axes = plt.subplots(*shape, figsize=(1.02 * shape[1] + 1.2, 0.98 * shape[0] + 0.6), squeeze=False)
    titles = ["digit", "measured", *[f"member {i + 1}" for i in range(num)], "mean", "deviation"]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9)
    levels = lambda x: np.clip(x.reshape(8, 8) * digits.scale + digits.mean[..., 0], 0, 16)
    ink = {"cmap": "gray_r", "vmin": 0, "vmax": 16, "interpolation": "nearest"}
    for row, axis_row in enumerate(axes):
        o, digit, kind = row // (2 * SHOWN), row // 2 % SHOWN, row % 2
        clean = members.clean[o, kind, digit]
        pictures = [levels(truth[digit]), seen(matrices[names[o]], y[o, digit], digits)]
        pictures += [levels(x) for x in (*clean, clean.mean(0))]
        for axis, picture in zip(axis_row, pictures, strict=False):
            axis.imshow(np.ma.masked_invalid(picture), **ink)
            axis.set_facecolor("#c8d8e8")
        deviation = axis_row[-1].imshow(
            digits.scale * clean.std(0, ddof=1).reshape(8, 8), cmap="magma", vmin=0, vmax=8
        )
        label = f"{names[o]}\n" if kind == 0 else "with\ninteraction"
        axis_row[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center")
        for axis in axis_row:
            axis.set_xticks([])
            axis.set_yticks([])
    fig.subplots_adjust(left=0.13, right=0.925, top=0.97, bottom=0.01, wspace=0.06, hspace=0.06)
    bar = fig.colorbar(deviation, cax=fig.add_axes((0.935, 0.3, 0.012, 0.4)))
    bar.set_label("deviation, grey levels of 16", fontsize=8)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def seen(matrix, y, digits):
    """The measurement of the grey levels themselves as a picture, NaN where nothing is measured."""
    rows = np.any(matrix != 0, axis=1)
    picture = np.clip(y * digits.scale + matrix @ digits.mean.ravel(), 0, 16)
    if np.all(matrix == np.diag(np.diag(matrix))):
        return np.where(rows, picture, np.nan).reshape(8, 8)
    side = round(np.sqrt(rows.sum()))
    return picture[rows].reshape(side, side)
