"""Self-normalised importance sampling: weights, log-mean-exp, effective sample size, reliability.

The kernel of both packages. All of it works along one axis of K samples that may also be split over
devices (`axis_name`) or arrive in chunks (`Running`, which never holds more than a chunk). NaN and
+inf log-weights get weight zero, and K stays the denominator; -inf is a legal weight of zero.
"""

from __future__ import annotations

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives
from egm.typing import SNIS, Array, Key

__all__ = [
    "MAX_TAIL_INDEX",
    "MIN_EFFECTIVE_NUMBER",
    "Reliability",
    "Running",
    "clipped_probabilities",
    "log_mean_exp",
    "nonfinite",
    "reliability",
    "running_chunk",
    "running_collect",
    "running_empty",
    "running_finish",
    "running_merge",
    "snis",
    "systematic",
]


def nonfinite(log_weights: Array) -> Array:
    """Boolean mask of the log-weights that are no weights: NaN and +inf (an energy of NaN or -inf)."""
    log_weights = checks.float_array(log_weights, "log_weights")
    return jnp.isnan(log_weights) | (log_weights == jnp.inf)


def snis(log_weights: Array, axis: int = 0, axis_name: str | None = None) -> SNIS:
    """Self-normalised importance weights.

    Args:
      log_weights: log unnormalised weights, any shape; -inf is a weight of zero, NaN and +inf are
        invalid and weigh zero too.
      axis: the axis of the K samples.
      axis_name: mapped axis over which the samples are split as well; K is then the total.

    Returns:
      SNIS(weights, log_mean, ess). With no valid sample: zeros, -inf and 0.

    Raises:
      TypeError: the log-weights are not floating point. ValueError: `axis` does not exist or is empty.

    Examples:
      >>> weights, log_mean, ess = egm.importance.snis(jnp.log(jnp.array([1.0, 1.0, 2.0, 0.0])))
      >>> print(weights, f"mean {jnp.exp(log_mean):.2f}, ESS {ess:.3f}")
      [0.25 0.25 0.5  0.  ] mean 1.00, ESS 0.667
    """
    log_weights = checks.wide(checks.float_array(log_weights, "log_weights", min_ndim=1))
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"axis must be an int, got {axis!r:.80}")
    if not -log_weights.ndim <= axis < log_weights.ndim:
        raise ValueError(f"axis must be one of the {log_weights.ndim} axes of log_weights, got {axis}")
    if log_weights.shape[axis] == 0:
        raise ValueError(f"log_weights must have samples along axis {axis}, got {log_weights.shape}")
    count = log_weights.shape[axis] * collectives.axis_size(axis_name)
    clean = jnp.where(nonfinite(log_weights), -jnp.inf, log_weights)
    peak = collectives.pmax(jnp.max(jax.lax.stop_gradient(clean), axis=axis, keepdims=True), axis_name)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    unnormalised = jnp.exp(clean - peak)
    total = collectives.psum(jnp.sum(unnormalised, axis=axis, keepdims=True), axis_name)
    total_of_squares = collectives.psum(jnp.sum(unnormalised**2, axis=axis), axis_name)
    weights = unnormalised / jnp.where(total > 0, total, 1.0)
    log_mean, ess = _summary(peak.squeeze(axis), total.squeeze(axis), total_of_squares, count)
    return SNIS(weights, log_mean, ess)


def log_mean_exp(log_weights: Array, axis: int = 0, axis_name: str | None = None) -> Array:
    """Log of the mean weight along `axis` (removed), by the rules of `snis`.

    Examples:
      >>> log_weights = jnp.array([[0.0, -jnp.inf], [0.0, jnp.log(4.0)]])
      >>> print(np.exp(egm.importance.log_mean_exp(log_weights)).round(3))
      [1. 2.]
    """
    return snis(log_weights, axis, axis_name).log_mean


def clipped_probabilities(log_weights: Array, clip: float | None) -> tuple[Array, Array]:
    """Probabilities for drawing by weight, with weights above `clip` times their mean cut to it.

    For drawing training examples only: never for an ESS or a log Z, which clipping would bias.

    Args:
      log_weights: [N] log-weights by the rules of `snis`; N may include empty places at -inf.
      clip: the cut as a multiple of the mean over the places with positive weight; None for no cut.

    Returns:
      ([N] probabilities that sum to 1, or all zeros where no weight is positive; the fraction of the
      total weight that was cut, a scalar).

    Examples:
      >>> log_weights = jnp.log(jnp.array([1.0, 1.0, 1.0, 97.0]))
      >>> probabilities, cut = egm.importance.clipped_probabilities(log_weights, clip=2.0)
      >>> print(np.asarray(probabilities).round(2), f"cut {cut:.2f}")
      [0.02 0.02 0.02 0.94] cut 0.47
    """
    weights = snis(checks.vector(log_weights, "log_weights")).weights
    if clip is None:
        return weights, jnp.zeros((), weights.dtype)
    clip = checks.positive_float(clip, "clip")
    num_positive = jnp.sum(weights > 0)
    kept = jnp.minimum(weights, clip / jnp.maximum(num_positive, 1))
    total = jnp.sum(kept)
    clipped_mass = jnp.where(num_positive > 0, jnp.maximum(1.0 - total, 0.0), 0.0)
    return kept / jnp.where(total > 0, total, 1.0), clipped_mass


def systematic(key: Key, log_weights: Array, num: int) -> Array:
    """Indices drawn by weight, evenly: each number of copies is N w rounded down or up, N w in expectation.

    Args:
      key: a typed key.
      log_weights: [K] log-weights by the rules of `snis`.
      num: N, how many are drawn.

    Returns:
      [N] int32 indices in increasing order; 0, 1, 2 ... (again from 0 after the last) where no weight is
      positive.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.

    Source: Kitagawa, "Monte Carlo filter and smoother" (1996), systematic resampling.

    Examples:
      >>> log_weights = jnp.log(jnp.array([0.5, 0.25, 0.25, 0.0]))
      >>> print(egm.importance.systematic(jax.random.key(0), log_weights, 4))
      [0 0 1 2]
    """
    log_weights = checks.vector(log_weights, "log_weights")
    return _systematic(checks.one_key(key), log_weights, checks.positive_int(num, "num"))


# Compiled whole, as `reliability` is: on the host its operations take longer one by one than together.
@functools.partial(jax.jit, static_argnums=2)
def _systematic(key: Key, log_weights: Array, num: int) -> Array:
    weights = snis(log_weights).weights
    size = weights.shape[0]
    place = (jnp.arange(num) + jax.random.uniform(key)) / num
    total = jnp.cumsum(weights)
    index = jnp.clip(jnp.searchsorted(total, place * total[-1], side="right"), 0, size - 1)
    return jnp.where(total[-1] > 0, index, jnp.arange(num) % size)


MAX_TAIL_INDEX = 0.7
"""Above it the mean of weights is not to be trusted at any practical N (Vehtari et al., section 3)."""
MIN_EFFECTIVE_NUMBER = 100
"""N * ESS below which weights are called collapsed: the relative error of their mean is above 1/10."""
_MIN_FIT, _PRIOR_COUNT, _PRIOR_INDEX = 5, 10, 0.5


class Reliability(NamedTuple):
    """Whether N weights determine their own mean, and what that rests on.

    Attributes:
      tail_index: k-hat, the shape of the generalised Pareto tail of the largest weights: moments of order
        1/k and above do not exist. 0 where the largest weights are all the same number (no tail); +inf
        where too few of them differ from the rest to fit one, or no weight is positive.
      effective_number: N times the ESS, in [0, N].
      effective_limit: lower limit of that number at 90%: the largest weights are put where the upper
        limit of k expects them, so that a lucky draw without large weights does not pass for a good one.
      largest_weight: the largest normalised weight, in [0, 1].
      unseen: bound on how far the log of the mean weight lies too low because the tail has not been seen
        to its end: the tail's mean at the three-sigma upper limit of k, given that a mean exists.
      tail_start: the log-weight above which the tail begins, -inf where no weight is positive.
      equal: bool, whether all N log-weights are one finite number: plain samples.
      reliable: bool, tail_index <= .7 and effective_limit >= 100 (hence effective_number >= 100).
    """

    tail_index: Array
    effective_number: Array
    effective_limit: Array
    largest_weight: Array
    unseen: Array
    tail_start: Array
    equal: Array
    reliable: Array


def reliability(log_weights: Array, axis_name: str | None = None) -> Reliability:
    """Whether a mean of weights, or under them, has an error that can be stated.

    The ESS cannot say so by itself: it is at least 1/N however few the samples that matter, and large
    weights that were not drawn are not in it. The tail of those that were drawn foretells them.

    Args:
      log_weights: [N], by the rules of `snis`.
      axis_name: mapped axis over which they are split as well; N is then the total.

    Returns:
      Reliability of scalars, without gradient.

    Source: Vehtari, Simpson, Gelman, Yao, Gabry, Pareto smoothed importance sampling (JMLR 2024), for the
    number of weights in the tail, min(N/5, 3 sqrt N), the regularised k-hat and its limit .7; Zhang and
    Stephens (Technometrics 2009) for the estimator of k; Smith (Biometrika 1985) for its variance.

    Examples:
      >>> even = jax.random.normal(jax.random.key(0), (5000,)) * 0.1
      >>> heavy = jax.random.normal(jax.random.key(0), (5000,)) * 5.0
      >>> [bool(egm.importance.reliability(w).reliable) for w in (even, heavy)]
      [True, False]
    """
    log_weights = jax.lax.stop_gradient(checks.vector(log_weights, "log_weights"))
    return _compiled_reliability(log_weights) if axis_name is None else _reliability(log_weights, axis_name)


def _reliability(log_weights: Array, axis_name: str | None) -> Reliability:
    n_here = log_weights.shape[0]
    n = n_here * collectives.axis_size(axis_name)
    record = snis(log_weights, 0, axis_name)
    clean = jnp.where(nonfinite(log_weights), -jnp.inf, log_weights)
    size = min(max(int(min(0.2 * n, 3 * math.sqrt(n))), 1), n - 1)
    top = _largest(clean, size + 1, axis_name)
    smallest = -collectives.pmax(jnp.max(-clean), axis_name)
    peak = jnp.where(jnp.isfinite(top[0]), top[0], 0.0)
    # Sums of float32 differ in the last digits where the weights are one number.
    same = 32 * jnp.finfo(top.dtype).eps * jnp.maximum(jnp.abs(peak), 1.0)
    # Weights of zero become negligible ones, whose differences are finite.
    gaps = jnp.maximum(top, peak - 300.0) - jnp.maximum(top[-1], peak - 300.0)
    effective = n * record.ess
    index, limit, unseen = _pareto_tail(gaps[:-1], same, n, peak - record.log_mean, effective)
    positive = jnp.isfinite(top[0])
    index = jnp.where(positive, index, jnp.inf)
    reliable = (index <= MAX_TAIL_INDEX) & (limit >= MIN_EFFECTIVE_NUMBER * (1 - 1e-4))
    largest = jnp.where(positive, jnp.exp(peak - record.log_mean) / n, 0.0)
    equal = positive & (top[0] - smallest <= same)
    unseen = jnp.where(positive, unseen, jnp.inf)
    return Reliability(index, effective, limit, largest, unseen, top[-1], equal, reliable)


_compiled_reliability = jax.jit(functools.partial(_reliability, axis_name=None))


def _largest(x: Array, count: int, axis_name: str | None) -> Array:
    """[count] the largest of x over all shards, in decreasing order."""
    here = jax.lax.top_k(x, min(count, x.shape[0]))[0]
    return here if axis_name is None else jax.lax.top_k(collectives.all_gather(here, axis_name), count)[0]


def _pareto_tail(
    gaps: Array, same: Array, n: int, log_peak: Array, effective: Array
) -> tuple[Array, Array, Array]:
    """(k-hat, limit of the effective number, log of how much the mean may grow) of n weights.

    `gaps` [M] are the log-weights of the tail less the log of the threshold, decreasing; `same` is the
    gap that is none; `log_peak` the largest log-weight less that of the mean of all n.
    """
    if gaps.shape[0] == 0:
        return jnp.asarray(jnp.inf, gaps.dtype), effective, jnp.asarray(jnp.inf, gaps.dtype)
    above = gaps > same
    count = jnp.sum(above)
    widest = jnp.maximum(gaps[0], same)
    # Excess over the threshold, the largest one 1: (e^g - 1) / (e^g_max - 1), which cannot overflow.
    y = jnp.where(above, jnp.exp(gaps - widest) * jnp.expm1(-gaps) / jnp.expm1(-widest), 0.0)
    fit = _fit_pareto(y, above)
    # The mean weight of all n is 1 here, the largest excess exp(log_peak) (1 - e^-g_max).
    unit = jnp.exp(log_peak) * -jnp.expm1(-widest)
    unseen = jnp.log1p(count / n * unit * jnp.maximum(fit.longer() - fit.mean, 0.0))
    # The same weights with those of the tail at the quantiles of the upper limit's.
    start = jnp.exp(log_peak - widest)
    tails = (y, fit.longest_quantiles(gaps.shape[0]))
    seen, expected = (jnp.where(above, start + unit * excess, 0.0) for excess in tails)
    moment = lambda total, p: jnp.maximum(total - jnp.sum(seen**p), 0.0) + jnp.sum(expected**p)
    limit = moment(float(n), 1) ** 2 / moment(float(n) ** 2 / jnp.maximum(effective, 1e-30), 2)
    limit = jnp.minimum(effective, jnp.where(jnp.isfinite(limit), limit, 0.0))
    # One value many times over is an atom at the end of the weights, with nothing beyond it.
    lowest = jnp.min(jnp.where(above, gaps, widest))
    atom = (count == 0) | ((count >= _MIN_FIT) & (gaps[0] - lowest <= same))
    fitted = (count >= _MIN_FIT) & ~atom
    index = jnp.where(fitted, fit.index, jnp.where(atom, 0.0, jnp.inf))
    unseen = jnp.where(fitted & (index < 1), unseen, jnp.where(atom, 0.0, jnp.inf))
    return index, jnp.where(fitted, limit, effective), unseen


class _Pareto(NamedTuple):
    """A generalised Pareto distribution fitted to `count` excesses of mean `mean`."""

    index: Array  # k, regularised
    sigma: Array
    mean: Array
    count: Array

    @property
    def _k(self) -> Array:
        return jnp.clip(self.index, 0.0, 1.0)

    @property
    def _error(self) -> Array:
        return (1 + self._k) / jnp.sqrt(jnp.maximum(self.count, 1))

    def _sigma_at(self, shift: Array) -> Array:
        """At a fixed mean excess sigma falls as k grows (Smith's covariance of the two)."""
        return self.sigma * jnp.exp(-shift / (1 + self._k))

    def longer(self) -> Array:
        """The mean excess at three sigma of k below 1, as the mean exists: E[w] = Z."""
        norm, k = jax.scipy.stats.norm, self._k
        shift = norm.ppf(norm.cdf(3.0) * norm.cdf((1 - k) / self._error)) * self._error
        return self._sigma_at(shift) / jnp.maximum(1 - k - shift, 1e-6)

    def longest_quantiles(self, m: int) -> Array:
        """[m] excesses, decreasing, at the upper limit (90%) of k."""
        upper = jnp.maximum(self._k + 1.2816 * self._error, 1e-3)
        survival = (jnp.arange(m) + 0.5) / jnp.maximum(self.count, 1)
        grown = jnp.expm1(-upper * jnp.log(jnp.minimum(survival, 1.0))) / upper
        return self._sigma_at(upper - self._k) * grown


def _fit_pareto(y: Array, above: Array) -> _Pareto:
    """Fit to the excesses y [M] that are `above`, decreasing, by Zhang and Stephens' posterior mean.

    Theta = -k / sigma on their grid, with their prior's scale 3 and first quartile; k is drawn to the
    prior's index by Vehtari et al.'s rule.
    """
    m = y.shape[0]
    count = jnp.sum(above)
    weight = above / jnp.maximum(count, 1)
    num_grid = 30 + int(math.sqrt(m))
    place = jnp.maximum((count / 4 + 0.5).astype(int), 1)
    quartile = jnp.maximum(y[jnp.clip(count - place, 0, m - 1)], 1e-30)
    grid = 1 + (1 - jnp.sqrt(num_grid / (jnp.arange(num_grid) + 0.5))) / (3 * quartile)
    log_scale = jax.vmap(lambda theta: jnp.sum(weight * jnp.log1p(-theta * y)))
    k = log_scale(grid)
    ratio = -grid / jnp.where(k == 0, 1.0, k)
    fits = (k != 0) & (ratio > 0)
    profile = count * (jnp.log(jnp.where(fits, ratio, 1.0)) - k - 1)
    theta = jnp.sum(jax.nn.softmax(jnp.where(fits, profile, -jnp.inf)) * grid)
    raw = log_scale(theta[None])[0]
    index = (count * raw + _PRIOR_COUNT * _PRIOR_INDEX) / (count + _PRIOR_COUNT)
    sigma = -raw / jnp.where(theta == 0, 1.0, theta)
    mean = jnp.sum(weight * y)
    sigma = jnp.where(index > 0, sigma * jnp.exp(-(index - raw) / (1 + jnp.maximum(raw, 0.0))), mean)
    return _Pareto(index, sigma, mean, count)


class Running(NamedTuple):
    """SNIS over samples that arrive in chunks: running maximum, sums relative to it, and counts.

    Attributes:
      peak: [B] the largest log-weight so far, -inf before the first valid one.
      total: [B] sum of exp(log w - peak).
      total_of_squares: [B] sum of its squares.
      values: pytree of [B, ...], sum of exp(log w - peak) times the values.
      num_nonfinite: [B] int32.
    """

    peak: Array
    total: Array
    total_of_squares: Array
    values: Any
    num_nonfinite: Array


def running_chunk(log_weights: Array, values: Any, counted: Array | None = None) -> Running:
    """The record of one chunk.

    Args:
      log_weights: [C, B].
      values: pytree of [C, B, ...] whose weighted mean is wanted.
      counted: optional bool [C, 1] or [C, B]; samples that are not counted do not exist at all.

    Returns:
      Running over the chunk.
    """
    log_weights, values = checks.wide(log_weights), jax.tree.map(checks.wide, values)
    bad = nonfinite(log_weights)
    if counted is not None:
        bad = bad & counted
    usable = ~bad if counted is None else ~bad & counted
    clean = jnp.where(usable, log_weights, -jnp.inf)
    peak = jax.lax.stop_gradient(jnp.max(clean, axis=0))
    unnormalised = jnp.exp(clean - jnp.where(jnp.isfinite(peak), peak, 0.0)[None])

    def weighted_sum(value):
        w = unnormalised.reshape(unnormalised.shape + (1,) * (value.ndim - 2))
        return jnp.sum(jnp.where(w > 0, w * value, 0.0), axis=0)

    return Running(
        peak,
        jnp.sum(unnormalised, axis=0),
        jnp.sum(unnormalised**2, axis=0),
        jax.tree.map(weighted_sum, values),
        jnp.sum(bad, axis=0, dtype=jnp.int32),
    )


def running_empty(like: Running) -> Running:
    """The record of no samples, with the shapes and dtypes of `like` (arrays or their structures)."""
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
    return zeros._replace(peak=jnp.full(like.peak.shape, -jnp.inf, like.peak.dtype))


def running_merge(a: Running, b: Running) -> Running:
    """The record of the samples of both."""
    peak = jnp.maximum(a.peak, b.peak)
    scale_a, scale_b = _rescale(a.peak, peak), _rescale(b.peak, peak)
    return _combine(peak, [(a, scale_a), (b, scale_b)])


def running_collect(record: Running, axis_name: str | None) -> Running:
    """The record of the samples of all shards along a mapped axis; `record` itself without one."""
    if axis_name is None:
        return record
    peak = collectives.pmax(record.peak, axis_name)
    local = _combine(peak, [(record, _rescale(record.peak, peak))])
    return collectives.psum(local._replace(peak=jnp.zeros_like(peak)), axis_name)._replace(peak=peak)


def running_finish(record: Running, num_samples: int) -> tuple[Any, Array, Array]:
    """(weighted mean of the values, log_mean [B], ess [B]) of `num_samples` samples in all.

    Where no sample has weight the mean is zeros, log_mean is -inf and the ESS is zero.
    """
    total = jnp.where(record.total > 0, record.total, 1.0)
    mean = jax.tree.map(lambda v: v / total.reshape(total.shape + (1,) * (v.ndim - 1)), record.values)
    log_mean, ess = _summary(record.peak, record.total, record.total_of_squares, num_samples)
    return mean, log_mean, ess


def _rescale(peak: Array, new_peak: Array) -> Array:
    return jnp.exp(jnp.where(jnp.isfinite(peak), peak - new_peak, -jnp.inf))


def _combine(peak: Array, parts: list[tuple[Running, Array]]) -> Running:
    def add(*scaled):
        terms = [v * s.reshape(s.shape + (1,) * (v.ndim - s.ndim)) for v, s in scaled]
        return functools.reduce(operator.add, terms)

    scales = [s for _, s in parts]
    records = [r for r, _ in parts]
    return Running(
        peak,
        functools.reduce(operator.add, [r.total * s for r, s in parts]),
        functools.reduce(operator.add, [r.total_of_squares * s**2 for r, s in parts]),
        jax.tree.map(lambda *vs: add(*zip(vs, scales, strict=True)), *[r.values for r in records]),
        functools.reduce(operator.add, [r.num_nonfinite for r in records]),
    )


def _summary(peak: Array, total: Array, total_of_squares: Array, count: int) -> tuple[Array, Array]:
    positive = total > 0
    safe = jnp.where(positive, total, 1.0)
    log_mean = jnp.where(positive, peak + jnp.log(safe) - math.log(count), -jnp.inf)
    ess = jnp.where(positive, safe**2 / jnp.where(positive, total_of_squares, 1.0) / count, 0.0)
    return log_mean, ess
