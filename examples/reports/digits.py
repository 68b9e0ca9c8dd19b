"""What digits.py measures of a potential and shows: its samples, their neighbours, and what V tells apart."""

from __future__ import annotations

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from data.digits import NUM_TRAIN, shuffle_pixels
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from support.tables import table, write_results

from energymatch import couplings, langevin, schedules
from energymatch.potential import value_and_gradient

plt.switch_backend("Agg")  # no screen is needed

TIMES = (2, 4, 10)
DEFAULT_TIME = 10
"""Of the samples: those of the figure and of the results without a time in their name."""


def draw_samples(key, potential, sampler, num):
    """{time: ([num, 8, 8, 1] states, the same without noise)} of fresh chains from the prior.

    exp(-V/eps) is the density of digits plus noise: the mean of the digit given the noisy one is
    x + noise^2 grad log p(x) (Tweedie's formula).
    """
    epsilon_max, step_size = sampler["epsilon_max"], sampler["step_size"]
    temperature = functools.partial(
        schedules.temperature, tau_star=sampler["tau_star"], epsilon_max=epsilon_max
    )
    prior_key, chain_key = jax.random.split(key)

    @jax.jit
    def run(x_0):
        out = langevin.sample(
            chain_key,
            potential,
            x_0,
            num_steps=round(max(TIMES) / step_size),
            step_size=step_size,
            temperature=temperature,
            method="mala",
            save_every=round(1 / step_size),
        )
        states = out.states[jnp.asarray(TIMES)]
        slope = jax.lax.map(lambda x: value_and_gradient(potential, x)[1], states)
        return states, states - sampler["noise"] ** 2 / epsilon_max * slope, jnp.mean(out.acceptance)

    states, clean, acceptance = jax.device_get(run(jax.random.normal(prior_key, (num, 8, 8, 1))))
    return {t: (states[i], clean[i]) for i, t in enumerate(TIMES)}, float(acceptance)


def nearest(x, train):
    """(distance of each to its nearest training digit, which one)."""
    square = np.asarray(couplings.squared_euclidean(jnp.asarray(x), jnp.asarray(train)))
    return np.sqrt(square.min(1)), square.argmin(1)


def class_shares(classifier, x):
    return np.bincount(classifier.predict(x.reshape(len(x), -1)), minlength=10) / len(x)


def entropy(shares):
    return float(-np.sum(shares * np.log(np.where(shares > 0, shares, 1.0))))


def report(key, potential, digits, output_dir, history, sampler, num, settings):
    """Measure, print, plot and write."""
    rng = np.random.default_rng(settings["seed"] + 1)
    values = jax.jit(potential)

    def energy(x):
        return np.asarray(values(jnp.asarray(x, jnp.float32))) / sampler["epsilon_max"]

    def noisy(x):
        return x + sampler["noise"] * rng.normal(size=x.shape).astype(np.float32)

    held_out = digits.held_out
    sets = {
        "held-out digits": held_out,
        "with 25% of the pixels shuffled": shuffle_pixels(rng, held_out),
        "noise of the prior": rng.normal(size=held_out.shape),
    }
    energies = {name: energy(x) for name, x in sets.items()}
    real, corrupted, noise = energies.values()

    def auroc(outliers):
        is_outlier = np.arange(len(real) + len(outliers)) >= len(real)
        return float(roc_auc_score(is_outlier, np.concatenate([real, outliers])))

    samples, acceptance = draw_samples(key, potential, sampler, num)
    clean = samples[DEFAULT_TIME][1]
    energies["samples"] = energy(clean)
    classifier = LogisticRegression(C=0.1, max_iter=1000)
    classifier.fit(digits.train.reshape(NUM_TRAIN, -1), digits.train_labels)
    distance = float(np.median(nearest(held_out, digits.train)[0]))
    shares_data = np.bincount(np.r_[digits.train_labels, digits.held_out_labels]) / 1797
    at = {}
    for t, (state, x) in samples.items():
        shares = class_shares(classifier, x)
        at[t] = {
            "nearest_ratio": float(np.median(nearest(x, digits.train)[0])) / distance,
            "class_entropy": entropy(shares),
            "class_min_share": float(shares.min()),
            "class_shares": shares,
            "mean_energy": float(energy(state).mean()),
        }
    results = dict(settings) | {
        "auroc_noise": auroc(noise),
        "auroc_corrupted": auroc(corrupted),
        **at[DEFAULT_TIME],
        **{f"{name}_t{t}": v for t, row in at.items() if t != DEFAULT_TIME for name, v in row.items()},
        "class_entropy_data": entropy(shares_data),
        "class_min_share_data": float(shares_data.min()),
        "classifier_accuracy": classifier.score(held_out.reshape(len(held_out), -1), digits.held_out_labels),
        "mean_energy_held_out": float(energy(noisy(held_out)).mean()),
        "mean_energy_train": float(energy(noisy(digits.train)).mean()),
        "acceptance": acceptance,
        "energy_gap": history[-1]["energy_gap"] / sampler["epsilon_max"],
    }
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure(folder / "digits.png", digits, clean, energies, results)
    results["total_seconds"] = time.time() - results.pop("started")
    print(table("\ndigits: samples from the prior after time t", *rows_of(results, at)))
    path = write_results(output_dir, results)
    print(
        f"\nAUROC of V for held-out digits: {results['auroc_corrupted']:.3f} against digits with 25% of the "
        f"pixels shuffled, {results['auroc_noise']:.3f} against noise"
        f"\n{results['total_seconds']:.0f} s in all: {results['compile_seconds']:.0f} s compiling, "
        f"{results['train_seconds']:.0f} s training. Wrote\n{folder / 'digits.png'} and {path}"
    )


def rows_of(r, at):
    """Header and rows of the table."""
    rows = [
        ["distance to the nearest training digit, x held-out", "nearest_ratio", 1.0],
        ["class entropy, nats", "class_entropy", r["class_entropy_data"]],
        ["smallest class share", "class_min_share", r["class_min_share_data"]],
        ["mean V/eps (held-out digits with noise)", "mean_energy", r["mean_energy_held_out"]],
    ]
    header = ["", *[f"t = {t}" for t in at], "data"]
    return header, [[name, *[at[t][key] for t in at], reference] for name, key, reference in rows]


def tiled(digits, x, columns):
    """[N, 8, 8, 1] as one picture of grey levels, a line between digits."""
    levels = np.clip(x * digits.scale + digits.mean, 0, 16)[..., 0]
    framed = np.pad(levels, ((0, 0), (1, 0), (1, 0)), constant_values=6.0)
    rows = framed.reshape(-1, columns, 9, 9).transpose(0, 2, 1, 3)
    return rows.reshape(rows.shape[0] * 9, columns * 9)


def figure(path, digits, samples, energies, results):
    """Samples, their nearest training digits, and the energies of digits and of what is none."""
    fig = plt.figure(figsize=(15, 8.5), layout="constrained")
    grid, pairs, histogram, shares = (
        fig.add_subplot(2, 2, 1),
        fig.add_subplot(2, 2, 2),
        fig.add_subplot(2, 2, 3),
        fig.add_subplot(2, 2, 4),
    )
    style = {"cmap": "gray_r", "vmin": 0, "vmax": 16, "interpolation": "nearest"}
    grid.imshow(tiled(digits, samples[:128], 16), **style)
    grid.set_title(f"generated from noise, t = {DEFAULT_TIME} (not selected)")
    shown = samples[128:192]
    neighbours = digits.train[nearest(shown, digits.train)[1]]
    both = np.stack([shown.reshape(4, 16, 8, 8, 1), neighbours.reshape(4, 16, 8, 8, 1)], axis=1)
    pairs.imshow(tiled(digits, both.reshape(-1, 8, 8, 1), 16), **style)
    pairs.set_title(
        f"samples, below each its nearest training digit ({results['nearest_ratio']:.2f} x held-out)"
    )
    pairs.set_yticks([9.0 * (row + 0.5) for row in range(8)], ["sample", "nearest"] * 4)
    grid.set_yticks([])
    for ax in (grid, pairs):
        ax.set_xticks([])
    low = min(e.min() for e in energies.values())
    edges = np.linspace(low, np.quantile(energies["with 25% of the pixels shuffled"], 0.99), 60)
    colors = ("tab:blue", "tab:red", "0.4", "tab:orange")
    for (name, e), color in zip(energies.items(), colors, strict=True):
        if np.median(e) > edges[-1]:
            name += f": {np.median(e):.0f}, right of the axis"
        weights = np.full(len(e), 1 / len(e))
        histogram.hist(e, edges, weights=weights, histtype="step", lw=2, color=color, label=name)
    histogram.set(xlabel=r"$V/\epsilon_{max}$ (nats)", ylabel="share")
    histogram.set_title(f"AUROC of V, held-out against shuffled: {results['auroc_corrupted']:.3f}")
    histogram.legend()
    shares.bar(np.arange(10), results["class_shares"], color="tab:orange")
    shares.axhline(0.1, c="black", lw=1, label="data")
    shares.axhline(0.04, c="tab:red", lw=1, ls="--", label="4%")
    shares.set_xticks(np.arange(10))
    shares.set_ylim(0, 1.3 * max(0.1, results["class_shares"].max()))
    shares.set(xlabel="class by a logistic regression of real digits", ylabel="share of the samples")
    shares.set_title(
        f"class entropy {results['class_entropy']:.3f} (data {results['class_entropy_data']:.3f} nats)"
    )
    shares.legend()
    fig.savefig(path, dpi=110)
    plt.close(fig)
