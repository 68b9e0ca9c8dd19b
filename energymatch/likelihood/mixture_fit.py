"""Gaussian mixtures fitted to data on the host: k-means++ starts, EM, held-out likelihood picks the size.

NumPy in float64, so that the fit is the same on every machine and device count;
`energymatch.likelihood.priors` makes a `MixturePrior` of the result. Besides the components there is a
fixed background, one wide normal about all of the data: it takes outliers, whose
likelihood would otherwise decide everything.

Shape letters: N data, D dimensions, C components.

Source: Dempster, Laird and Rubin (1977), EM; Arthur and Vassilvitskii (2007), k-means++.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

__all__ = [
    "BACKGROUND_WIDTH",
    "FEW",
    "LONG",
    "Mixture",
    "NUM_STARTS",
    "PATIENCE",
    "SHORT",
    "SIZES",
    "SURE",
    "TOLERANCE",
    "fit",
    "log_densities",
    "predictive_factors",
]

SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
"""Numbers of components that are tried, up to the largest allowed one."""


PATIENCE = 3
"""Sizes in a row without a better held-out likelihood before the search ends."""


SURE = 2.0
"""Standard errors by which the held-out likelihood of more components must be higher."""


NUM_STARTS = 4
"""Starts of a size; the likelihood of the data fitted after SHORT iterations of EM picks one."""


FEW = 4
"""Components up to which one more start has them in shells about the median."""


SHORT, LONG = 8, 60
"""Iterations of EM from every start, and most of them from the best."""


TOLERANCE = 1e-4
"""Gain in nats an example at which EM ends."""


BACKGROUND_WIDTH = 2.0
"""Of the background, in standard deviations of the whole data."""


class Mixture(NamedTuple):
    """C normals, and how many data each explains.

    Attributes:
      counts: [C] sums of responsibilities.
      mean: [C, D].
      covariance: [C, D, D], or variances [C, D].
    """

    counts: np.ndarray
    mean: np.ndarray
    covariance: np.ndarray


def fit(
    rng: np.random.Generator, x: np.ndarray, full: bool, max_components: int, floor: float, background: float
) -> Mixture:
    """The mixture of x [N, D], whose axes have mean 0 and variance 1 (all directions, where `full`).

    Args:
      rng: for the held-out part and for starts.
      x: float64.
      full: matrices, or variances alone.
      max_components: most components.
      floor: least standard deviation.
      background: weight of the background.
    """
    count, size = x.shape
    order = rng.permutation(count)
    held_out, rest = x[order[: count // 5]], x[order[count // 5 :]]
    # A matrix of D (D + 1)/2 numbers wants several D points, a normal of any kind a few.
    most = max(1, rest.shape[0] // (4 * size if full else 8))

    def fitted(num):
        found = _best_start(rng, rest, num, full, floor, background)
        found = _em(rest, found, full, floor, background, LONG)[0]
        return found, _joint(held_out, found, background)[1]

    (best, best_log_p), misses = fitted(SIZES[0]), 0
    for num in (s for s in SIZES[1:] if s <= min(most, max_components)):
        found, log_p = fitted(num)
        if _is_better(log_p, best_log_p):
            best, best_log_p, misses = found, log_p, 0
        else:
            misses += 1
        if misses == PATIENCE:
            break
    return _em(x, best, full, floor, background, LONG)[0]


def _is_better(log_p: np.ndarray, than: np.ndarray) -> bool:
    """Whether the held-out likelihood is higher by more than SURE standard errors of the difference."""
    gain = log_p - than
    return gain.size > 1 and gain.mean() > SURE * gain.std(ddof=1) / math.sqrt(gain.size)


def _best_start(rng, x, num, full, floor, background) -> Mixture:
    if num == 1:
        return _whole(x, full)
    starts = [_seeds(rng, x, num) for _ in range(NUM_STARTS)]
    if num <= FEW:
        starts.append(_shells(x, num))
    found = []
    for labels in starts:
        mixture = _maximise(x, _one_hot(labels), full, floor)
        found.append(_em(x, mixture, full, floor, background, SHORT))
    return max(found, key=lambda pair: pair[1])[0]


def _whole(x: np.ndarray, full: bool) -> Mixture:
    return _maximise(x, np.ones((x.shape[0], 1)), full, 0.0)


def _seeds(rng: np.random.Generator, x: np.ndarray, num: int, num_rounds: int = 5) -> np.ndarray:
    """[N] labels of k-means after `num_rounds` rounds from k-means++."""
    centres = x[rng.integers(x.shape[0])][None]
    for _ in range(num - 1):
        squares = np.min(_squares(x, centres), axis=1)
        total = squares.sum()
        p = squares / total if total > 0 else None
        centres = np.concatenate([centres, x[rng.choice(x.shape[0], p=p)][None]])
    for _ in range(num_rounds):
        labels = np.argmin(_squares(x, centres), axis=1)
        members = _one_hot(labels, num)
        counts = members.sum(0)
        centres = np.where(counts[:, None] > 0, members.T @ x / np.maximum(counts, 1)[:, None], centres)
    return np.argmin(_squares(x, centres), axis=1)


def _shells(x: np.ndarray, num: int) -> np.ndarray:
    """[N] labels by distance from the median: components of other widths, which k-means does not part."""
    rank = np.argsort(np.argsort(np.sum((x - np.median(x, axis=0)) ** 2, axis=1)))
    return rank * num // x.shape[0]


def _squares(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    squares = np.sum(x**2, axis=1)[:, None] + np.sum(centres**2, axis=1) - 2 * x @ centres.T
    return np.maximum(squares, 0.0)


def _one_hot(labels: np.ndarray, num: int | None = None) -> np.ndarray:
    return np.eye(int(labels.max()) + 1 if num is None else num)[labels]


def _em(x, mixture, full, floor, background, most) -> tuple[Mixture, float]:
    """(mixture, mean log-likelihood before the last step) after at most `most` steps of EM."""
    before = score = -math.inf
    for _ in range(most):
        log_joint, log_p = _joint(x, mixture, background)
        mixture = _maximise(x, np.exp(log_joint - log_p[:, None]), full, floor)
        score = float(np.mean(log_p))
        if score - before < TOLERANCE:
            break
        before = score
    return mixture, score


def _maximise(x: np.ndarray, members: np.ndarray, full: bool, floor: float) -> Mixture:
    """The M step; components that hold next to nothing are dropped, the last one excepted."""
    counts = members.sum(0)
    keep = counts > min(1.0, 0.5 * counts.max())
    counts, members = counts[keep], members[:, keep]
    mean = members.T @ x / counts[:, None]
    if not full:
        variance = members.T @ x**2 / counts[:, None] - mean**2
        return Mixture(counts, mean, np.maximum(variance, floor**2))
    covariance = []
    for m, c, n in zip(members.T, mean, counts, strict=True):
        centred = x - c
        s = (centred * m[:, None]).T @ centred / n
        if n < 2 * x.shape[1] + 2:
            s = np.diag(np.diagonal(s))  # too few points for a matrix
        values, vectors = np.linalg.eigh(s)
        covariance.append((vectors * np.maximum(values, floor**2)) @ vectors.T)
    return Mixture(counts, mean, np.stack(covariance))


def _joint(x: np.ndarray, mixture: Mixture, background: float) -> tuple[np.ndarray, np.ndarray]:
    """([N, C] log of weight times density of each component, [N] log-density with the background)."""
    log_w = math.log1p(-background) + np.log(mixture.counts / mixture.counts.sum())
    log_joint = log_w + log_densities(x, mixture.mean, mixture.covariance)
    size = x.shape[1]
    z = x / BACKGROUND_WIDTH
    wide = -0.5 * np.sum(z**2, axis=1) - size * (math.log(BACKGROUND_WIDTH) + 0.5 * math.log(2 * math.pi))
    both = np.concatenate([log_joint, (math.log(background) + wide)[:, None]], axis=1)
    return log_joint, np.logaddexp.reduce(both, axis=1)


def log_densities(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """[N, C] log N(x; mean_c, covariance_c)."""
    constant = 0.5 * x.shape[1] * math.log(2 * math.pi)
    if covariance.ndim == 2:
        # One product for all components; float64 bears the cancellation, a variance being 1e-6 at least.
        squares = x**2 @ (1 / covariance).T - 2 * x @ (mean / covariance).T + np.sum(mean**2 / covariance, 1)
        return -0.5 * (squares + np.sum(np.log(covariance), axis=1)) - constant
    out = np.empty((x.shape[0], mean.shape[0]))
    for i, (m, c) in enumerate(zip(mean, covariance, strict=True)):
        values, vectors = np.linalg.eigh(c)
        squares = np.sum(((x - m) @ vectors) ** 2 / values, axis=1)
        out[:, i] = -0.5 * squares - 0.5 * np.sum(np.log(values))
    return out - constant


def predictive_factors(counts: np.ndarray, size: int, full: bool) -> np.ndarray:
    """[C] factors on variances for what n points leave unknown, those of Student's t that predicts the next.

    At most 3: of few points, and of matrices from fewer than 2 D (which are diagonal by then).
    """
    lost = np.where(counts >= 2 * size + 2, size if full else 1, 1)
    return np.minimum((counts + lost) / np.maximum(counts - lost, 1e-9), 3.0)
