"""What `energymatch.fit` begins with: a table's whitened coordinates, and a mixture of normals in them.

NumPy in float64 on the host. Shares and kinds are chosen by folds, in coordinates that have not seen the
rows left out; a few rows far out (`ordinary`) neither stretch the coordinates nor get components.
Shape letters: N rows, D columns, C components.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from egm.typing import Key
from energymatch.likelihood import MixturePrior, mixture_fit
from energymatch.model import Whitening

__all__ = ["broader", "choose", "folds", "mixture_of", "ordinary", "shrinkage", "whitening_of"]

_FOLDS = 5
_MOST_KERNELS = 1000
_MOST_FOLDED = 1500
_SHRINK = (0.0, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
_MOST_WIDTHS = 12
"""Of wide normals, the widest 4^11 times as wide as the first."""
_FAR, _MOST_FAR = 100.0, 0.02
"""Widths off a column's median, by its quartiles, at which a row is far out; the most of such rows."""


def ordinary(x: np.ndarray) -> np.ndarray:
    """[N] False for a few rows far out in some column; True for all where such rows are more than a few.

    One row at 10^6 widths would make all others one point in coordinates of the table's covariance.
    """
    low, middle, high = np.quantile(x, [0.25, 0.5, 0.75], axis=0)
    width = np.where(high > low, (high - low) / 1.349, np.inf)
    near = np.all(np.abs(x - middle) <= _FAR * width, axis=1)
    return near if np.sum(~near) <= max(1.0, _MOST_FAR * len(x)) else np.ones(len(x), bool)


def whitening_of(x: np.ndarray, shrink: float) -> Whitening:
    """By the covariance of standardised columns, drawn towards 1 by the share `shrink`.

    Of few rows the covariance is 0 in directions in which the next row is not.
    """
    x = x[ordinary(x)]
    deviation, values, vectors = _axes_of(x)
    width = np.sqrt(_shrunk(values, shrink))
    root = (width[:, None] * vectors.T) * deviation
    inverse = (vectors / width) / deviation[:, None]
    return Whitening(x.mean(axis=0), root, inverse, float(np.sum(np.log(width)) + np.sum(np.log(deviation))))


def _axes_of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(deviations [D], 1 for constants; eigenvalues and -vectors of the correlations)."""
    deviation = x.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    standard = (x - x.mean(axis=0)) / deviation
    values, vectors = np.linalg.eigh(np.cov(standard.T, bias=True).reshape(x.shape[1], x.shape[1]))
    return deviation, values, vectors


def _shrunk(values: np.ndarray, shrink: float) -> np.ndarray:
    """Eigenvalues drawn towards 1, none below 1e-6 of the largest."""
    return np.maximum((1 - shrink) * values + shrink, 1e-6 * values.max())


def shrinkage(x: np.ndarray) -> float:
    """The share in `_SHRINK` under which one normal gives rows left out the best log-density."""
    part = x[ordinary(x)][:_MOST_FOLDED]
    total = np.zeros(len(_SHRINK))
    for rest, out in folds(len(part)):
        deviation, values, vectors = _axes_of(part[rest])
        square = np.square((part[out] - part[rest].mean(axis=0)) / deviation @ vectors)
        for i, shrink in enumerate(_SHRINK):
            variance = _shrunk(values, shrink)
            far = square @ (1 / variance)
            # A few rows far out say nothing of the covariance, and would decide.
            total[i] -= np.mean(np.minimum(far, np.quantile(far, 0.9))) + np.sum(np.log(variance))
    return float(_SHRINK[np.argmax(total)])


def folds(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(which rows remain, which are left out) of each fold; one of many rows is enough."""
    fold = np.arange(count) % _FOLDS
    for i in range(_FOLDS if count < _MOST_FOLDED else 1):
        yield fold != i, fold == i


def choose(key: Key, x: np.ndarray, shrink: float, until: float) -> str:
    """The kind of mixture with the best log-density over folds of x: as many as `until` allows, one at least.

    Rows far out are never left out: they lie where no kind has anything, and would decide.
    """
    part = x[:_MOST_FOLDED]
    near = ordinary(part)
    # Where there are many rows the network tells more than one kernel for each, at less cost.
    kinds = ("one normal", "normals", "clusters", "kernels")[: 4 if len(x) <= _MOST_KERNELS else 3]
    scores: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}
    for fold_rest, fold_out in folds(len(part)):
        rest, out = fold_rest | ~near, fold_out & near
        whitening = whitening_of(part[rest], shrink)
        inside, outside = (
            np.asarray(whitening.apply(jnp.asarray(part[rows], float)), np.float64) for rows in (rest, out)
        )
        normals = _normals(key, inside)
        for kind, found in scores.items():
            mixture = mixture_of(key, inside, kind, shrink, normals)
            score = np.asarray(mixture.log_density(jnp.asarray(outside, float)), np.float64)
            found.append(np.where(np.isfinite(score), score, -1e6))
        if time.time() > until:
            break
    return max(kinds, key=lambda kind: np.mean(np.concatenate(scores[kind])))


def mixture_of(
    key: Key, z: np.ndarray, kind: str, shrink: float, normals: mixture_fit.Mixture | None = None
) -> MixturePrior:
    """A mixture of this kind with a little of a wide normal, so that it covers what the data do not show.

    "normals" and "clusters" are those of `_normals` (found, where None); where a component has few rows, its
    covariance is drawn towards that of all rows, and for "clusters" towards one as small as its own.
    """
    every, z = z, z[ordinary(z)]
    rng = _generator(key)
    (n, dim), center, spread = z.shape, z.mean(axis=0), np.eye(z.shape[1])
    if shrink == 0:  # else that of z is 0 in some directions, and 1 is what folds found best
        spread = np.cov(z.T, bias=True).reshape(dim, dim)
        # Ledoit and Wolf's idea with a fixed target: few rows, a covariance nearer to its diagonal.
        share = min(0.5, dim / n / 2)
        spread = (1 - share) * spread + share * np.diag(np.diag(spread))
    if kind == "one normal":
        weights, means, covariances = np.ones(1), center[None], spread[None]
    elif kind in ("normals", "clusters"):
        found = _normals(key, every) if normals is None else normals
        weights, means = found.counts / found.counts.sum(), found.mean
        covariances = found.covariance
        if covariances.ndim == 2:
            covariances = covariances[:, :, None] * np.eye(dim)
        # A component of fewer rows than dimensions has no covariance of its own in some directions.
        share = 0.1 * np.minimum(dim / np.maximum(found.counts, 1.0), 1.0)
        if kind == "clusters":
            variances = np.einsum("kii->ki", covariances) / np.diag(spread)
            share = share * np.minimum(np.median(variances, axis=1), 1.0)
        covariances = covariances + share[:, None, None] * spread
    else:
        means = z if n <= _MOST_KERNELS else z[rng.choice(n, _MOST_KERNELS, replace=False)]
        width = _bandwidth(rng, z, means)
        weights = np.ones(len(means))
        covariances = np.broadcast_to(width**2 * np.eye(dim), (len(means), dim, dim))
    return _mixture(weights, means, covariances, center, np.abs(every - center).max())


def _generator(key: Key) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def _normals(key: Key, z: np.ndarray) -> mixture_fit.Mixture:
    """As many normals as held-out rows want, with full matrices where there are rows enough for them."""
    z = z[ordinary(z)]
    n, dim = z.shape
    return mixture_fit.fit(_generator(key), z[:4000], n >= 10 * dim and dim <= 32, 32, 1e-3, 0.02)


def _mixture(weights, means, covariances, center, farthest: float, wide: float = 0.01) -> MixturePrior:
    """With a share `wide` of a normal twice as wide as the data, and wider ones before it for outliers."""
    dim = means.shape[1]
    # Until the farthest row is three widths off.
    widths = [2.0]
    while 3 * widths[0] < farthest and len(widths) < _MOST_WIDTHS:
        widths.insert(0, 4 * widths[0])
    shares = np.full(len(widths), 0.3 * wide)
    shares[-1] = wide
    weights = np.append((1 - shares.sum()) * weights / weights.sum(), shares)
    means = np.concatenate([means, np.broadcast_to(center, (len(widths), dim))])
    covariances = np.concatenate([covariances, np.square(widths)[:, None, None] * np.eye(dim)])
    if np.allclose(covariances[:-1], covariances[:1] * 0 + np.eye(dim)[None] * covariances[:-1, :1, :1]):
        # Kernels: standard deviations alone, and a round wide normal.
        scale = np.sqrt(np.einsum("kii->ki", covariances))
        inverse = 1 / scale
    else:
        scale = np.linalg.cholesky(covariances + 1e-9 * np.eye(dim))
        inverse = np.linalg.inv(scale)
    return MixturePrior(*(jnp.asarray(a, jnp.float32) for a in (np.log(weights), means, scale, inverse)))


def broader(base: MixturePrior, share: float = 0.2) -> MixturePrior:
    """The mixture with more of its wide normal, the last one: where data are none, negatives must not be few.

    With a hundredth of them there, what the network makes of the outskirts held a tenth of the mass.
    """
    weights = jnp.exp(base.log_weights)
    weights = weights * (1 - share) / (1 - weights[-1])
    return base._replace(log_weights=jnp.log(weights.at[-1].set(share)))


def _bandwidth(rng: np.random.Generator, z: np.ndarray, means: np.ndarray) -> float:
    """The kernel width with the best log-density of points left out."""
    probe = z if len(z) <= 1000 else z[rng.choice(len(z), 1000, replace=False)]
    square = np.sum(probe**2, 1)[:, None] + np.sum(means**2, 1)[None] - 2 * probe @ means.T
    square = np.where(square < 1e-9, np.inf, square)  # not itself
    dim, best, width = z.shape[1], -np.inf, 1.0
    for h in np.geomspace(0.01, 1.5, 40):
        terms = -0.5 * square / h**2
        peak = terms.max(axis=1)
        score = np.mean(peak + np.log(np.mean(np.exp(terms - peak[:, None]), axis=1))) - dim * np.log(h)
        if score > best:
            best, width = score, h
    return float(width)
