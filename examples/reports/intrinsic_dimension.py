"""What intrinsic_dimension.py shows: dimensions by sphere, digits by dimension, and their PNG sizes."""

from __future__ import annotations

import pathlib
import time
import zlib

import matplotlib.pyplot as plt
import numpy as np
import scipy.spatial
import scipy.stats
from support.tables import table, write_results

plt.switch_backend("Agg")  # no screen is needed


def png_sizes(levels):
    """[N] bytes of the PNG files of grey images [N, H, W] uint8, the best of the five filters for each image.

    A file is 57 bytes of signature, header, chunk frames and end, and one zlib stream of rows, each led by
    its filter's number (PNG specification, section 9: none, sub, up, average, Paeth).
    """
    x = np.pad(levels.astype(int), ((0, 0), (1, 0), (1, 0)))
    left, up, corner, x = x[:, 1:, :-1], x[:, :-1, 1:], x[:, :-1, :-1], x[:, 1:, 1:]
    p = left + up - corner
    paeth = np.where(abs(p - up) <= abs(p - corner), up, corner)
    nearest = (abs(p - left) <= abs(p - up)) & (abs(p - left) <= abs(p - corner))
    paeth = np.where(nearest, left, paeth)
    rows = []
    for kind, guess in enumerate((0 * x, left, up, (left + up) // 2, paeth)):
        filtered = ((x - guess) % 256).astype(np.uint8)
        rows.append(np.pad(filtered, ((0, 0), (0, 0), (1, 0)), constant_values=kind))
    return np.array([57 + min(len(zlib.compress(r.tobytes(), 9)) for r in one) for one in zip(*rows)])


def neighbour_dimension(x, train, num=20):
    """[N] the dimension by the distances to `num` neighbours (Levina and Bickel, 2004), for comparison."""
    x, train = x.reshape(len(x), -1), train.reshape(len(train), -1)
    distance = np.sort(scipy.spatial.distance.cdist(x, train), axis=-1)[:, :num]
    return 1 / np.mean(np.log(distance[:, -1:] / distance[:, :-1]), axis=-1)


def spearman(a, b):
    """(Spearman's correlation where both are finite, its standard error by 500 bootstrap samples)."""
    finite = np.isfinite(a) & np.isfinite(b)
    a, b = a[finite], b[finite]
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan, np.nan
    rows = np.random.default_rng(0).integers(len(a), size=(500, len(a)))
    spread = np.nanstd([scipy.stats.spearmanr(a[r], b[r]).statistic for r in rows])
    return float(scipy.stats.spearmanr(a, b).statistic), float(spread)


def report(truths, on_spheres, on_digits, data, output_dir, settings):
    """Print, plot and write; `on_...` are (dimensions [S, N], seconds), and eigenvalues [S, N, D]."""
    levels = np.rint(data.held_out * data.scale + data.mean)[..., 0].astype(np.uint8)
    sizes = png_sizes(levels)
    found, seconds, spectra = on_spheres
    (digits,), digit_seconds = on_digits
    correlation, error = spearman(digits, sizes)
    neighbours = neighbour_dimension(data.held_out, data.train)
    by_neighbours, neighbours_error = spearman(neighbours, sizes)
    results = dict(settings)
    rows = []
    for d, dims in zip(truths, found, strict=True):
        share = float(np.mean(dims == d))
        results |= {f"lid_{d}": float(np.nanmean(dims)), f"share_exact_{d}": share}
        rows.append([f"sphere, dimension {d}", float(np.nanmean(dims)), float(np.nanstd(dims)), share])
    rows.append(["digits, 64 pixels", float(np.nanmean(digits)), float(np.nanstd(digits)), "-"])
    results |= {
        "lid_digits": float(np.nanmean(digits)),
        "lid_digits_std": float(np.nanstd(digits)),
        "spearman": correlation,
        "spearman_error": error,
        "spearman_neighbours": by_neighbours,
        "spearman_neighbours_error": neighbours_error,
        "lid_digits_neighbours": float(neighbours.mean()),
        "png_bytes": [int(sizes.min()), int(sizes.max())],
        "num_digits": int(np.isfinite(digits).sum()),
        "seconds_per_image": digit_seconds,
        "seconds_per_point": seconds,
    }
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    figure(folder / "intrinsic_dimension.png", truths, found, spectra, digits, levels, sizes, results)
    results["total_seconds"] = time.time() - results.pop("started")
    header = ["held-out points of", "mean dimension", "standard deviation", "share exact"]
    print(table("\nlocal intrinsic dimension", header, rows))
    path = write_results(output_dir, results)
    print(
        f"\nSpearman correlation with the PNG size of {results['num_digits']} held-out digits, "
        f"{sizes.min()} to {sizes.max()} bytes: {correlation:.2f} +- {error:.2f}; of the dimension by 20 "
        f"neighbours {by_neighbours:.2f} +- {neighbours_error:.2f}\n{1e3 * digit_seconds:.1f} ms an image, "
        f"{results['total_seconds']:.0f} s in all. Wrote\n{folder / 'intrinsic_dimension.png'} and {path}"
    )


def figure(path, truths, found, spectra, digits, levels, sizes, results):
    """Spectra on the spheres, dimensions found, PNG size against dimension, digits in order of it."""
    fig, ((lines, bars), (scatter, grid)) = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
    edge = np.arange(1, spectra.shape[-1] + 1)
    for d, values, dims in zip(truths, spectra, found, strict=True):
        low, middle, high = np.nanquantile(np.sort(np.abs(values), axis=-1), (0.1, 0.5, 0.9), axis=0)
        (line,) = lines.plot(edge, middle, marker="o", label=f"sphere of dimension {d}")
        lines.fill_between(edge, low, high, color=line.get_color(), alpha=0.2)
        counts = np.bincount(dims[np.isfinite(dims)].astype(int), minlength=len(edge) + 1) / len(dims)
        bars.bar(np.arange(len(counts)), counts, color=line.get_color(), alpha=0.6, label=f"truth {d}")
    lines.axhline(1.0, c="black", ls="--", lw=1, label="threshold")
    lines.set(yscale="log", xlabel="eigenvalue, by size", ylabel=r"$|\lambda|$ / threshold", xticks=edge)
    lines.set_title("Hessian of V at held-out points: median and 80% of points")
    lines.legend()
    bars.set(xlabel="estimated dimension", ylabel="share of points", xticks=np.arange(len(edge) + 1))
    bars.set_title("spheres in 10 dimensions")
    bars.legend()
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, (2, len(digits)))
    scatter.plot(digits + jitter[0], sizes + jitter[1], ".", ms=5, alpha=0.6)
    scatter.set(xlabel="estimated dimension", ylabel="PNG size (bytes)")
    scatter.set_title(f"held-out digits: Spearman correlation {results['spearman']:.2f}")
    order = np.argsort(digits, kind="stable")
    shown = order[np.linspace(0, len(order) - 1, 60).round().astype(int)]
    framed = np.pad(levels[shown], ((0, 0), (1, 0), (1, 0)), constant_values=6)
    picture = framed.reshape(5, 12, 9, 9).transpose(0, 2, 1, 3).reshape(45, 108)
    grid.imshow(picture, cmap="gray_r", vmin=0, vmax=16, interpolation="nearest")
    grid.set_xticks([])
    ends = digits[shown].reshape(5, 12)
    grid.set_yticks(9 * np.arange(5) + 4.5, [f"{row[0]:.0f} to {row[-1]:.0f}" for row in ends])
    grid.set_title("held-out digits in order of their dimension")
    fig.savefig(path, dpi=110)
    plt.close(fig)
