"""Self-normalised importance sampling: weights, log-mean-exp, effective sample size.

The kernel of both packages. All of it works along one axis of K samples that may also be split over
devices (`axis_name`) or arrive in chunks (`Running`, which never holds more than a chunk). NaN and
+inf log-weights get weight zero, and K stays the denominator; -inf is a legal weight of zero.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives
from egm.typing import SNIS, Array


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
    """
    log_weights = checks.float_array(log_weights, "log_weights", min_ndim=1)
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
    """Log of the mean weight along `axis` (removed), by the rules of `snis`."""
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
        return sum(v * s.reshape(s.shape + (1,) * (v.ndim - s.ndim)) for v, s in scaled)

    scales = [s for _, s in parts]
    records = [r for r, _ in parts]
    return Running(
        peak,
        sum(r.total * s for r, s in parts),
        sum(r.total_of_squares * s**2 for r, s in parts),
        jax.tree.map(lambda *vs: add(*zip(vs, scales, strict=True)), *[r.values for r in records]),
        sum(r.num_nonfinite for r in records),
    )


def _summary(peak: Array, total: Array, total_of_squares: Array, count: int) -> tuple[Array, Array]:
    positive = total > 0
    safe = jnp.where(positive, total, 1.0)
    log_mean = jnp.where(positive, peak + jnp.log(safe) - math.log(count), -jnp.inf)
    ess = jnp.where(positive, safe**2 / jnp.where(positive, total_of_squares, 1.0) / count, 0.0)
    return log_mean, ess
