"""What mnist.py measures of its potentials: samples, energies, outliers, dimensions, posteriors."""

from __future__ import annotations

import pathlib
import time

import numpy as np
from reports import mnist_figures
from reports.digits import entropy, nearest
from reports.intrinsic_dimension import neighbour_dimension, png_sizes, spearman
from reports.inverse_problems import distances, mean_and_error, square_error
from sklearn.metrics import roc_auc_score
from support import digits28_dimension as dimension
from support.digits28 import gaps
from support.digits28_judges import TIMES, cleaned, energies_of, outliers
from support.digits28_posteriors import ARMS, ZETA, make_operators
from support.tables import table, write_results

from egm.metrics import frechet_distance


def of_samples(samples, density, judge, digits, settings):
    """{potential: {t: figures}} of samples freed of noise by the density's gradient, and of references.

    `samples` is {potential: ({t: states}, acceptance)}. The Frechet distance is that of the classifier's
    features to the held-out digits', of as many training digits as samples too: it is biased upwards in few.
    """
    real = judge.features(digits.held_out)
    typical = float(np.median(nearest(digits.held_out, digits.train)[0]))

    def figures(x):
        shares = np.bincount(judge.classes(x), minlength=10) / len(x)
        return {
            "frechet": frechet_distance(judge.features(x), real),
            "class_entropy": entropy(shares),
            "class_min_share": float(shares.min()),
            "nearest_ratio": float(np.median(nearest(x, digits.train)[0])) / typical,
        }

    clean, out = {}, {}
    for name, (states, acceptance) in samples.items():
        clean[name] = {t: cleaned(density, x, settings) for t, x in states.items()}
        out[name] = {
            f"t{t}": figures(x)
            | {
                "energy": float(energies_of(density, states[t], settings).mean()),
                "acceptance": acceptance,
            }
            for t, x in clean[name].items()
        }
    rng = np.random.default_rng(0)
    train = digits.train[: len(next(iter(clean.values()))[TIMES[0]])]
    noisy = (train + settings.noise * rng.normal(size=train.shape)).astype(np.float32)
    out["training digits"] = figures(train)
    out["training digits, noise added and removed"] = figures(cleaned(density, noisy, settings))
    return out, clean


def of_energies(density, digits, settings, seed):
    """(figures of V/epsilon on digits and on what is none, all with noise; the energies by name)."""
    rng = np.random.default_rng(seed + 1)
    noisy = lambda x: x + settings.noise * rng.normal(size=x.shape)
    energy = lambda x: energies_of(density, noisy(x), settings)
    held_out, train = energy(digits.held_out), energy(digits.train)
    others = {name: energy(x) for name, x in outliers(rng, digits, len(digits.held_out)).items()}

    def auroc(e):
        is_outlier = np.arange(len(held_out) + len(e)) >= len(held_out)
        return float(roc_auc_score(is_outlier, np.concatenate([held_out, e])))

    spread = np.sqrt(held_out.var() / len(held_out) + train.var() / len(train))
    figures = {
        "held_out": float(held_out.mean()),
        "held_out_sd": float(held_out.std()),
        "train": float(train.mean()),
        "held_out_less_train": [float(held_out.mean() - train.mean()), float(spread)],
        "auroc": {name: auroc(e) for name, e in others.items()},
    }
    return figures, {"held-out digits": held_out, "training digits": train} | others


def of_dimensions(found, digits, settings):
    """Figures of the eigenvalues on training digits, where the threshold is chosen, and on held-out ones.

    `found` is (eigenvalues on training digits [N, D], on held-out ones [M, D], seconds an image).
    """
    chosen_on, eigenvalues, seconds = found
    num = len(eigenvalues)
    bytes_of = lambda x: png_sizes(np.rint(digits.levels(x))[..., 0].astype(np.uint8))
    sizes = bytes_of(digits.held_out[:num])
    unit = settings.epsilon_max / settings.noise**2
    threshold, tried = dimension.choose_threshold(chosen_on, bytes_of(digits.train[: len(chosen_on)]), unit)
    lid, plain = dimension.counts(eigenvalues, threshold), dimension.counts(eigenvalues, unit / 4)
    neighbours = neighbour_dimension(digits.held_out[:num], digits.train)
    ink = np.sum(digits.levels(digits.held_out[:num]) > 127, axis=(1, 2, 3))
    figures = {
        "num_digits": num,
        "threshold": threshold,
        "threshold_share": threshold / unit,
        "spearman": spearman(lid, sizes),
        "spearman_training": float(tried.max()),
        "spearman_untuned": spearman(plain, sizes),
        "spearman_levina_bickel": spearman(neighbours, sizes),
        "spearman_pixels_of_ink": spearman(ink, sizes),
        "by_threshold": [dimension.GRID, tried],
        "lid": [float(lid.mean()), float(lid.std())],
        "levina_bickel": [float(neighbours.mean()), float(neighbours.std())],
        "png_bytes": [int(sizes.min()), int(sizes.max())],
        "seconds_per_image": seconds,
    }
    return figures, (lid, neighbours, sizes)


def of_posteriors(members, y, digits, truth):
    """{operator: {arm: figures}}, errors on the pixels that no number measures, or on all."""
    mean_digit, out = digits.train.mean(0).reshape(-1), {}
    flat = lambda x: x.reshape(*x.shape[: x.ndim - 3], -1)
    clean_truth = flat(truth)
    for name, found in members.items():
        operator = make_operators()[name]
        seen = np.asarray(operator(np.ones((1, *truth.shape[1:]), np.float32))) != 0
        where = ~np.asarray(seen).reshape(-1) if seen.size == mean_digit.size else np.zeros(0, bool)
        where = where if where.any() else np.ones(mean_digit.size, bool)
        mean_error = square_error(mean_digit, clean_truth, where)
        row = {"error_mean_digit": mean_and_error(mean_error), "acceptance": found.acceptance}
        for k, arm in enumerate(ARMS):
            clean = flat(found.clean[k])
            error = square_error(clean, clean_truth[:, None], where)
            measured = np.asarray(operator(found.x[k].reshape(-1, *truth.shape[1:])))
            residual = ((measured.reshape(*found.x.shape[1:3], -1) - flat(y[name])[:, None]) / ZETA) ** 2
            row[arm] = {
                "error": mean_and_error(error.mean(1)),
                "less_mean_digit": mean_and_error(error.mean(1) - mean_error),
                "error_of_mean": mean_and_error(square_error(clean.mean(1), clean_truth, where)),
                "error_of_best": mean_and_error(error.min(1)),
                "misfit": mean_and_error(residual[..., seen.reshape(-1)].mean((1, 2))),
                "distance": mean_and_error(distances(clean)),
                "energy": mean_and_error(found.energy[k].mean(1)),
            }
        out[name] = row
    return out


def report(digits, learned, judge, found, settings, output_dir, run):
    """Measure, print, plot and write. `found` has samples, eigenvalues, members, y and truth by name."""
    density = learned.density
    samples, clean = of_samples(found["samples"], density, judge, digits, settings)
    energies, by_name = of_energies(density, digits, settings, run["seed"])
    dimensions, points = of_dimensions(found["eigenvalues"], digits, settings)
    posteriors = of_posteriors(found["members"], found["y"], digits, found["truth"])
    results = dict(run) | {
        "classifier_accuracy": judge.accuracy,
        "samples": samples,
        "energies": energies,
        "held_out_gap_by_step": gaps(learned.history),
        "dimension": dimensions,
        "posteriors": posteriors,
        "compile_seconds": learned.compile_seconds,
        "train_seconds": learned.train_seconds,
    }
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    mnist_figures.overview(folder / "mnist.png", digits, clean, by_name, points, results)
    mnist_figures.posteriors(folder / "mnist_posteriors.png", digits, found)
    results["total_seconds"] = time.time() - results.pop("started")
    show(results, samples, energies, dimensions, posteriors)
    print(f"{results['total_seconds']:.0f} s in all. Wrote {write_results(output_dir, results)}")


def show(results, samples, energies, dimensions, posteriors):
    """The tables."""
    keys = ("frechet", "class_entropy", "class_min_share", "nearest_ratio", "energy")
    rows = []
    for name, figures in samples.items():
        by_time = figures.items() if "frechet" not in figures else [("", figures)]
        rows += [[f"{name} {t}", *[one.get(k, "") for k in keys]] for t, one in by_time]
    header = ["", "Frechet distance", "class entropy", "smallest share", "nearest / held-out", "V/eps"]
    print(table(f"\nsamples (classifier's accuracy {results['classifier_accuracy']:.3f})", header, rows))
    gap, error = energies["held_out_less_train"]
    rows = [[name, value] for name, value in energies["auroc"].items()]
    title = f"\nheld-out digits lie {gap:.1f} +- {error:.1f} nats above training digits; AUROC of V against"
    print(table(title, ["", "AUROC"], rows))
    rows = [
        [name, f"{dimensions[key][0]:.3f} +- {dimensions[key][1]:.3f}"]
        for name, key in (
            ("dimension, threshold chosen on training digits", "spearman"),
            ("dimension, twice as wide as the noise", "spearman_untuned"),
            ("Levina-Bickel, 20 neighbours", "spearman_levina_bickel"),
            ("pixels of ink", "spearman_pixels_of_ink"),
        )
    ]
    title = f"\nSpearman with the PNG size of {dimensions['num_digits']} held-out digits, "
    print(table(title + f"{dimensions['seconds_per_image']:.2f} s an image", ["", "correlation"], rows))
    keys = ("error", "less_mean_digit", "error_of_mean", "error_of_best", "misfit", "distance", "energy")
    rows = []
    for name, row in posteriors.items():
        pair = lambda v: f"{v[0]:.3f} +- {v[1]:.3f}"
        rows += [[f"{name}, {arm}", *[pair(row[arm][k]) for k in keys]] for arm in ARMS]
        rows.append([f"{name}, mean digit", pair(row["error_mean_digit"]), *[""] * 6])
    header = ["", "members' error", "less the mean digit's", "of their mean", "of the best"]
    print(table("\nposteriors", [*header, "misfit", "distance", "V/eps"], rows))
