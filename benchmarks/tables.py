"""Held-out log-densities of `energymatch.fit` beside scikit-learn's densities, in one run, one call a table.

python benchmarks/tables.py                      # every table, three splits
python benchmarks/tables.py rings iris --splits=1 --seconds=60
KDE and Gaussian mixtures take their settings by 5-fold cross-validation on whitened data; one Gaussian is the
empirical one. Nats, higher is better; seconds are those of the call.
"""

from __future__ import annotations

import argparse
import time
import warnings

import jax
import numpy as np
from sklearn import datasets, mixture, model_selection, neighbors

import energymatch


def rings(rng, n):
    radius = rng.choice([1.0, 2.0, 3.0, 4.0], n) + 0.08 * rng.normal(size=n)
    angle = rng.uniform(0, 2 * np.pi, n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def spirals(rng, n):
    turn = np.sqrt(rng.uniform(size=n)) * 3 * np.pi
    arm = rng.choice([-1.0, 1.0], n)
    x = np.stack([-arm * np.cos(turn) * turn, arm * np.sin(turn) * turn], 1) / 3
    return x + 0.1 * rng.normal(size=(n, 2))


def checkerboard(rng, n):
    x = rng.uniform(-2, 2, n)
    y = rng.uniform(0, 1, n) - rng.integers(0, 2, n) * 2 + np.floor(x) % 2
    return np.stack([x, y], 1) * 2


def swiss_roll(rng, n):
    return datasets.make_swiss_roll(n, noise=0.5, random_state=int(rng.integers(2**31)))[0][:, [0, 2]] / 5


SYNTHETIC = {"spirals": spirals, "rings": rings, "checkerboard": checkerboard, "swiss_roll": swiss_roll}
REAL = {
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
    "diabetes": datasets.load_diabetes,
    "breast_cancer": datasets.load_breast_cancer,
}


def split_of(name, seed):
    """(training rows, test rows); columns of few values get noise, the same for all densities."""
    rng = np.random.default_rng(seed)
    if name in SYNTHETIC:
        return SYNTHETIC[name](rng, 5000), SYNTHETIC[name](rng, 5000)
    table = REAL[name]().data
    report = energymatch.preprocessing.check_columns(table)
    noise = energymatch.preprocessing.noise_scales(table)
    few = np.isin(np.arange(table.shape[1]), report.discrete)
    table = table + np.where(few, noise, 0.0) * rng.normal(size=table.shape)
    order = rng.permutation(len(table))
    cut = len(table) * 4 // 5
    return table[order[:cut]], table[order[cut:]]


def peers(train, test):
    """Mean test log-densities of the other densities."""
    mean = train.mean(0)
    values, vectors = np.linalg.eigh(np.cov(train.T, bias=True))
    root = vectors / np.sqrt(np.maximum(values, 1e-12 * values.max()))
    log_det = np.linalg.slogdet(root)[1]
    a, b = ((x - mean) @ root for x in (train, test))
    out = {"one Gaussian": -0.5 * np.mean(np.sum(b**2, 1)) - 0.5 * a.shape[1] * np.log(2 * np.pi)}
    grid = {"bandwidth": np.geomspace(0.02, 1.5, 25)}
    out["KDE"] = model_selection.GridSearchCV(neighbors.KernelDensity(), grid, cv=5).fit(a).score(b) / len(b)
    best = None
    for kind in ("full", "diag"):
        sizes = {"n_components": [1, 2, 3, 5, 8, 12, 20, 30]}
        model = mixture.GaussianMixture(covariance_type=kind, reg_covar=1e-3, random_state=0)
        found = model_selection.GridSearchCV(model, sizes, cv=5).fit(a)
        if best is None or found.best_score_ > best.best_score_:
            best = found
    out["mixture"] = best.score(b)
    return {name: value + log_det for name, value in out.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tables", nargs="*", default=[*SYNTHETIC, *REAL])
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=300.0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    names = ["fit", "its mixture", "one Gaussian", "KDE", "mixture"]
    print(
        f"{'table':<14}" + "".join(f"{n:>14}" for n in names) + f"{'log Z error':>14}{'seconds':>10}",
        flush=True,
    )
    for name in options.tables:
        rows = []
        for seed in range(options.splits):
            train, test = split_of(name, seed)
            began = time.time()
            model = energymatch.fit(jax.random.key(seed), train, seconds=options.seconds, progress=False)
            seconds = time.time() - began
            ours = float(np.mean(model.log_prob(test)))
            z = model.whitening.apply(np.asarray(test, np.float32))
            base = float(np.mean(model.base.log_density(z))) - model.whitening.log_det
            found = peers(train, test)
            rows.append([ours, base, *(found[n] for n in names[2:]), model.log_z_error, seconds])
        row = np.mean(rows, 0)
        print(
            f"{name:<14}" + "".join(f"{v:>14.3f}" for v in row[:5]) + f"{row[5]:>14.4f}{row[6]:>10.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
