"""Draws the two pictures of the landing page: runs README's two programs, as they stand there, then draws.

python docs/support/landing.py   # two minutes; writes docs/landing_sampler.png and docs/landing_density.png
"""

import pathlib
import re

import jax
import matplotlib.pyplot as plt
import numpy as np

DOCS = pathlib.Path(__file__).resolve().parents[1]
STYLE = {"font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 12}


def programs():
    text = (DOCS.parent / "README.md").read_text()
    for code in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)[:2]:
        names = {"__name__": "__main__"}
        exec(code, names)
        yield names


def draw_sampler(names):
    x = names["draw"].resample(jax.random.key(2))
    a, b = np.linspace(-2, 2, 200), np.linspace(-4, 4, 200)
    grid_a, grid_b = np.meshgrid(a, b)
    exact = np.exp(-(2 * (grid_a**2 - 1) ** 2 + (grid_b - grid_a) ** 2))
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    axes[0].scatter(
        np.asarray(x["a"])[:2000], np.asarray(x["b"])[:2000], s=3, alpha=0.5, label="2,000 samples"
    )
    axes[0].contour(grid_a, grid_b, exact, levels=6, colors="k", linewidths=0.8)
    axes[0].plot([], [], "k", lw=0.8, label="exact density")
    axes[0].set(xlabel="a", ylabel="b", title="two wells along a")
    s = np.linspace(0, 12, 300)
    axes[1].hist(np.asarray(x["s"]), bins=60, range=(0, 12), density=True, alpha=0.6, label="10,000 samples")
    axes[1].plot(s, s**2 * np.exp(-s) / 2, "k", lw=1, label="exact density")
    axes[1].set(xlabel="s", ylabel="density", title="a positive rate")
    for ax in axes:
        ax.legend(loc="upper right", fontsize=9)
    figure.savefig(DOCS / "landing_sampler.png", dpi=110)


def draw_density(names):
    model, table = names["model"], names["table"]
    side = np.linspace(-2.6, 2.6, 160)
    points = np.stack(np.meshgrid(side, side), -1).reshape(-1, 2)
    density = np.exp(np.concatenate([np.asarray(model.log_prob(p)) for p in np.split(points, 10)]))
    filled = model.impute(jax.random.key(2), np.array([[np.nan, 0.0]]), np.array([False, True]), 400)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    axes[0].scatter(*table.T, s=3, alpha=0.5)
    axes[0].set(title="2,000 rows of a table", xlabel="first column", ylabel="second column", aspect="equal")
    image = axes[1].imshow(
        density.reshape(160, 160), origin="lower", extent=(-2.6, 2.6, -2.6, 2.6), cmap="Blues"
    )
    axes[1].axhline(0, color="C1", lw=1)
    axes[1].set(title="the learned density", xlabel="first column")
    figure.colorbar(image, ax=axes[1], shrink=0.85)
    axes[2].hist(np.asarray(filled)[:, 0, 0], bins=60, range=(-2.6, 2.6), color="C1")
    axes[2].set(
        title="first column, where the second is 0", xlabel="first column", ylabel="of 400 imputed values"
    )
    figure.savefig(DOCS / "landing_density.png", dpi=110)


if __name__ == "__main__":
    plt.rcParams.update(STYLE)
    found = programs()
    draw_sampler(next(found))
    draw_density(next(found))
