"""What proteins.py measures of its proposals and shows."""

from __future__ import annotations

import pathlib
import time

import matplotlib.pyplot as plt
import numpy as np
from data.proteins import ALPHABET, LENGTH
from matplotlib.font_manager import FontProperties
from matplotlib.patches import PathPatch
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D
from scipy.stats import spearmanr
from support.protein_tokens import TILT
from support.proteins import GUARDED, RANKINGS, best, measure, values
from support.tables import table, with_error, write_results

plt.switch_backend("Agg")  # no screen is needed

PUBLISHED = {"medium": {"GGS": (0.617, 2.5)}, "hard": {}}
"""(median fitness, diversity) of published proposals, by the same oracle, from the authors' own files."""
SHOWN = ("fitness", "diversity", "novelty", "predictor", "ensemble")
COLORS = {"tokens": "#0b6e99", "latents": "#c2571a", "latents, interaction": "#7a3b8f"}


def report(variants, oracle, runs, output_dir, settings):
    """Measure, print, plot and write. `runs` holds (task, seed, its variants, sequences, judges, told)."""
    results = {"oracle": oracle_on_data(variants, oracle), **settings, "tasks": {}}
    print(
        f"\nThe oracle on all {len(variants.y)} measurements: Spearman {results['oracle']['spearman']:.3f}, "
        f"root mean square error {results['oracle']['error']:.3f} of {variants.largest:.2f}"
    )
    picked = {}
    for name, seed, task, found, judges, told in runs:
        out = results["tasks"].setdefault(name, {"num_variants": len(task.x), "seeds": [], "told": []})
        row = {}
        for method, x in found.items():
            row[f"{method}, all"] = measure(x[:512], oracle, judges, task.x)
            row[f"{method}, all"]["distinct"] = len(np.unique(x, axis=0))
            for ranking in RANKINGS:
                chosen = best(judges, x, ranking)
                row[f"{method}, {ranking}"] = measure(chosen, oracle, judges, task.x)
                picked.setdefault((name, method, ranking), chosen)
        out["seeds"].append({"seed": seed} | row)
        out["told"].append(told)
    for name, out in results["tasks"].items():
        out["mean"], out["error"] = summary(out["seeds"])
        print_task(name, out)
    results["total_seconds"] = time.time() - results.pop("started")
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure(folder / "proteins.png", runs, results, picked, oracle)
    path = write_results(output_dir, results)
    print(
        f"\n{results['total_seconds']:.0f} s in all, {results['cpu_seconds']:.0f} s of CPU time. Wrote\n"
        f"{folder / 'proteins.png'} and {path}"
    )


def oracle_on_data(variants, oracle):
    """How the oracle agrees with all measurements."""
    value = values(oracle, variants.x) * variants.largest
    return {
        "spearman": float(spearmanr(value, variants.y)[0]),
        "error": float(np.sqrt(np.mean((value - variants.y) ** 2))),
    }


def summary(seeds):
    """({row: {figure: mean}}, {row: {figure: standard error}}) over the seeds that have the row."""
    mean, error = {}, {}
    for row in dict.fromkeys(k for s in seeds for k in s if k != "seed"):
        parts = [s[row] for s in seeds if row in s]
        columns = {k: np.array([p[k] for p in parts], float) for k in parts[0]}
        mean[row] = {k: float(v.mean()) for k, v in columns.items()}
        error[row] = {
            k: float(v.std(ddof=1) / np.sqrt(v.size)) if v.size > 1 else float("nan")
            for k, v in columns.items()
        }
    return mean, error


def print_task(name, out):
    """Two tables: the proposals, and what the weights say."""
    rows = [
        [row, *[f"{figures[k]:.3f}" if k != "diversity" else f"{figures[k]:.2f}" for k in SHOWN]]
        for row, figures in out["mean"].items()
    ]
    seeds = len(out["seeds"])
    print(table(f"\n{name}: {out['num_variants']} variants, mean over {seeds} seeds", ["", *SHOWN], rows))
    weights = []
    for i, first in enumerate(out["told"][0]["tilts"]):
        parts = [told["tilts"][i] for told in out["told"]]
        mean = lambda k, parts=parts: float(np.mean([p[k] for p in parts]))
        weights.append(
            [first["tilt"], first["beta"]] + [mean(k) for k in ("ess", "tail_index", "log_z", "log_z_error")]
        )
    title = f"\nWeights of the tokens ({name}; log Z at tilt 0 is {out['told'][0]['log_z_at_0']:.3f} exactly)"
    print(table(title, ["tilt", "beta", "ESS", "k-hat", "log Z", "error"], weights))
    if out["told"][0]["joined"]:
        joined = out["told"][0]["joined"]
        error = with_error(joined["log_z"], joined["log_z_error"], 3)
        print(f"Latents by egm: ESS {joined['ess']:.3f}, log Z {error}")


def figure(path, runs, results, picked, oracle):
    """A row for each task: fitness, fitness against diversity, logos of the variants and of the proposals."""
    names = list(results["tasks"])
    fig, axes = plt.subplots(
        len(names), 3, figsize=(14, 3.9 * len(names)), squeeze=False, width_ratios=(1, 1, 1.35)
    )
    for row, name in zip(axes, names, strict=True):
        task = next(r[2] for r in runs if r[0] == name)
        method = f"tokens, tilt {TILT[name]:g}"
        histogram(row[0], name, task, method, picked, oracle)
        trade_off(row[1], name, results["tasks"][name]["mean"])
        logos(row[2], task.x, picked[name, method, GUARDED])
    fig.tight_layout()
    fig.savefig(path, dpi=80)
    plt.close(fig)


def histogram(axis, name, task, method, picked, oracle):
    bins = np.linspace(0, 1, 51)
    axis.hist(task.y, bins, density=True, color="#999999", label=f"{len(task.y)} variants shown, measured")
    shown = {"tokens (egm)": (method, "tokens"), "latents (energymatch)": ("latents", "latents")}
    for label, (which, color) in shown.items():
        fitness = values(oracle, picked[name, which, GUARDED])
        axis.hist(fitness, bins, density=True, histtype="step", lw=1.8, color=COLORS[color], label=label)
    for other, (fitness, _) in PUBLISHED[name].items():
        axis.axvline(fitness, color="k", ls="--", lw=1, label=f"{other}, median")
    axis.set_xlim(0, 0.85)
    axis.set_ylim(0, 1.5 * axis.get_ylim()[1])  # room for the legend
    axis.set_xlabel("fitness by the oracle (of the largest measured)")
    axis.set_ylabel("density")
    axis.set_title(f"{name}: variants and 128 proposals", fontsize=11)
    axis.legend(fontsize=8, loc="upper right", framealpha=0.9)


def trade_off(axis, name, mean):
    """Each method as drawn (open, dashed) and the best 128 of it (full), the tokens by tilt."""
    for ranking, style, fill in (("all", "--", "white"), (GUARDED, "-", None)):
        told = "as drawn" if ranking == "all" else "best 128"
        rows = {r: f for r, f in mean.items() if r.startswith("tokens, tilt") and r.endswith(f", {ranking}")}
        points = [(f["diversity"], f["fitness"]) for f in rows.values()]
        color = COLORS["tokens"]
        axis.plot(
            *zip(*points, strict=True), f"o{style}", color=color, mfc=fill or color, label=f"tokens, {told}"
        )
        for row, point in zip(rows, points, strict=True):
            axis.annotate(
                row.split()[2].rstrip(","),
                point,
                (5, -9),
                textcoords="offset points",
                fontsize=8,
                color=color,
            )
        for method, marker in (("latents", "s"), ("latents, interaction", "D"), ("latents by egm", "^")):
            row = mean.get(f"{method}, {ranking}")
            if row:
                color = COLORS.get(method, "#444444")
                axis.plot(
                    row["diversity"], row["fitness"], marker, color=color, mfc=fill or color, ms=7,
                    label=method if fill is None else None,
                )  # fmt: skip
    for other, (fitness, diversity) in PUBLISHED[name].items():
        axis.plot(diversity, fitness, "k*", ms=11, label=other)
    axis.margins(0.12)
    axis.set_xlabel("diversity (mean edit distance of two proposals)")
    axis.set_ylabel("median fitness by the oracle")
    axis.set_title("fitness against diversity (numbers: tilt)", fontsize=11)
    axis.legend(fontsize=8, framealpha=0.9)
    axis.grid(alpha=0.25)


def logos(axis, seen, proposed):
    """Two rows of letters, as high as their share of the site (residues above 4%), one above the other."""
    groups = [set("DE"), set("KRH"), set("NQST"), set("AVLIMC"), set("FWY"), set("GP")]
    colors = ["#c0392b", "#2456a6", "#2e8b57", "#333333", "#8e44ad", "#d08a1a"]
    for base, x, title in ((1.25, seen, "variants shown"), (0.0, proposed, "128 proposals")):
        for site in range(LENGTH):
            share = np.bincount(x[:, site], minlength=len(ALPHABET)) / len(x)
            bottom = base
            for v in np.argsort(share):
                if share[v] < 0.04:
                    continue
                color = next(c for g, c in zip(groups, colors, strict=True) if ALPHABET[v] in g)
                letter(axis, ALPHABET[v], site, bottom, share[v], color)
                bottom += share[v]
        axis.text(-0.3, base + 1.04, title, fontsize=9)
    axis.set_xlim(-0.5, LENGTH + 0.2)
    axis.set_ylim(0, 2.45)
    axis.set_yticks([])
    axis.set_xticks(np.arange(0, LENGTH, 3) + 0.5, [str(i + 561) for i in range(0, LENGTH, 3)], fontsize=8)
    axis.set_xlabel("residue of the capsid")
    axis.set_title("share of each residue", fontsize=11)


def letter(axis, text, x, y, height, color):
    """A letter stretched into the box from (x, y), one wide and so high."""
    outline = TextPath((0, 0), text, size=1, prop=FontProperties(family="monospace", weight="bold"))
    box = outline.get_extents()
    scale = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, height / box.height).translate(x, y)
    axis.add_patch(PathPatch(scale.transform_path(outline), color=color, lw=0))
