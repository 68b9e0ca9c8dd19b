"""What path weights say: log Z and its error, ESS, both bounds, weighted means.

log Z = log E[w]; ELBO = E[log w] <= log Z <= E_target[log w] = EUBO.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, importance
from egm.typing import Array

__all__ = [
    "PathWeightSummary",
    "evidence_upper_bound",
    "jackknife",
    "log_mean_error",
    "reason",
    "reweighted_mean",
    "summarize",
]


class PathWeightSummary(NamedTuple):
    """What N path log-weights say, and whether they may say it.

    The error is inf where the weights do not determine their mean (`egm.importance.reliability`;
    `reason` says why). It cannot see a mode that no sample has found: nothing in the weights can.

    Attributes:
      log_z: log of the mean weight.
      log_z_error: its standard error, inf where the weights are not reliable.
      ess: effective sample size as a fraction of N.
      elbo: mean log-weight over the valid ones; at most log Z in expectation.
      num_nonfinite: how many were NaN or +inf; they have weight zero and stay in N.
      tail_index: k-hat, the Pareto index of the largest weights; reliable up to .7.
      effective_number: N * ess.
      effective_limit: its lower limit, with the large weights that the tail foretells; reliable from 100.
      largest_weight: the largest normalised weight.
      reliable: bool, whether both hold.
    """

    log_z: Array
    log_z_error: Array
    ess: Array
    elbo: Array
    num_nonfinite: Array
    tail_index: Array
    effective_number: Array
    effective_limit: Array
    largest_weight: Array
    reliable: Array


def summarize(log_weights: Array, axis_name: str | None = None) -> PathWeightSummary:
    """Summary of path log-weights.

    The error is `log_mean_error` where the weights are reliable, else inf.

    Args:
      log_weights: [N] from `egm.path_log_weights`.
      axis_name: mapped axis over which they are split as well.

    Returns:
      PathWeightSummary of scalars.

    Examples:
      >>> log_weights = 2.0 + 0.1 * jax.random.normal(jax.random.key(0), (5000,))
      >>> summary = egm.metrics.summarize(log_weights)
      >>> print(f"log Z {summary.log_z:.2f} +- {summary.log_z_error:.3f}, ESS {summary.ess:.2f}")
      log Z 2.00 +- 0.001, ESS 0.99
    """
    log_weights = checks.vector(log_weights, "log_weights")
    record = importance.reliability(log_weights, axis_name)
    _, log_mean, ess = importance.snis(log_weights, 0, axis_name)
    n = log_weights.shape[0] * collectives.axis_size(axis_name)
    # Two errors cover two standard deviations and what the tail may still hold.
    error = jnp.hypot(log_mean_error(log_weights, axis_name), record.unseen / 2)
    error = jnp.where(record.reliable, error, jnp.inf)
    bad = importance.nonfinite(log_weights)
    num_bad = collectives.psum(jnp.sum(bad), axis_name)
    total = collectives.psum(jnp.sum(jnp.where(bad, 0.0, log_weights)), axis_name)
    elbo = total / jnp.maximum(n - num_bad, 1)
    return PathWeightSummary(
        log_mean, error, ess, elbo, num_bad, record.tail_index, record.effective_number,
        record.effective_limit, record.largest_weight, record.reliable,
    )  # fmt: skip


def log_mean_error(log_weights: Array, axis_name: str | None = None) -> Array:
    """Standard error of the log of a mean weight from the spread of N of them, and nothing else.

    By the delta method, widened by what N skew weights of few effective degrees of freedom ask for. For
    a few independent unbiased estimates of Z (runs, groups of chains); for single weights `summarize`
    knows also when not to state an error.

    Args:
      log_weights: [N], by the rules of `egm.importance.snis`.
      axis_name: mapped axis over which they are split as well.

    Returns:
      A scalar, inf where N = 1 or no weight is positive.
    """
    log_weights = checks.vector(log_weights, "log_weights")
    weights = importance.snis(log_weights, 0, axis_name).weights
    n = weights.shape[0] * collectives.axis_size(axis_name)
    positive = collectives.psum(jnp.sum(weights), axis_name) > 0
    spread, factor, skewness = _spread(weights - 1 / n, n, axis_name)
    # Johnson (1978) at two errors; right-skew means are low where their spread is.
    error = spread * (factor + 0.75 * jnp.maximum(skewness, 0.0))
    return jnp.where(positive & (n > 1), error, jnp.inf)


def reason(record: Any, level: float | Array | None = None) -> str:
    """Why an error is infinite, in words, for a table or a message; "" where it is not.

    Args:
      record: `PathWeightSummary`, `egm.importance.Reliability`, or the metrics of an iteration (a dict),
        on the host.
      level: of the energy that training has reached; where None, that of the metrics, or 1.

    Returns:
      One line.

    Raises:
      TypeError: the record is none of these.

    Examples:
      >>> heavy = 5.0 * jax.random.normal(jax.random.key(0), (5000,))
      >>> summary = egm.metrics.summarize(heavy)
      >>> print(summary.log_z_error, "|", egm.metrics.reason(summary))
      inf | N ESS = 4... < 100, the largest weight holds 0.4...; tail index of the weights 1.8... > 0.7
    """
    names = ("tail_index", "effective_number", "effective_limit", "largest_weight")
    fields = record._asdict() if hasattr(record, "_asdict") else record
    if not isinstance(fields, Mapping) or not all(name in fields for name in names):
        raise TypeError(f"record must have {', '.join(names)}, got {record!r:.80}")
    index, number, lower, largest = (float(fields[name]) for name in names)
    level = fields.get("level", 1.0) if level is None else level
    level = checks.finite_float(np.asarray(level).item() if np.ndim(level) == 0 else level, "level")
    why = []
    if level < 1:
        why.append(f"the annealing has reached {level:.2g} of the energy")
    if not number > 0:
        return "; ".join([*why, "no weight is positive"])
    enough = importance.MIN_EFFECTIVE_NUMBER
    if not number >= enough * (1 - 1e-4):
        why.append(f"N ESS = {number:.3g} < {enough}, the largest weight holds {largest:.2g}")
    elif not lower >= enough * (1 - 1e-4):
        why.append(f"N ESS = {number:.3g}, by the tail of the weights no more than {lower:.3g} < {enough}")
    if np.isinf(index):
        why.append("too few weights stand out to know their tail")
    elif not index <= importance.MAX_TAIL_INDEX:
        why.append(f"tail index of the weights {index:.2f} > {importance.MAX_TAIL_INDEX}")
    return "; ".join(why)


def evidence_upper_bound(reverse_log_weights: Array) -> tuple[Array, Array]:
    """The bound on log Z from above, which sees the modes that a sampler has lost.

    Args:
      reverse_log_weights: [N] path log-weights of `egm.simulate_reverse` from exact samples.

    Returns:
      (EUBO, its standard error), scalars; the error of one sample is inf, as is that of a bound that is
      not finite.

    Examples:
      >>> bound, error = egm.metrics.evidence_upper_bound(jnp.array([1.0, 1.2, 0.8, 1.0]))
      >>> print(f"log Z at most {bound:.2f} +- {error:.2f}")
      log Z at most 1.00 +- 0.08
    """
    reverse_log_weights = checks.vector(reverse_log_weights, "reverse_log_weights")
    n = reverse_log_weights.shape[0]
    mean = jnp.mean(reverse_log_weights)
    error = jnp.std(reverse_log_weights) / np.sqrt(max(n - 1, 1))
    return mean, jnp.where(jnp.isfinite(mean) & (n > 1), error, jnp.inf)


def reweighted_mean(values: Array, log_weights: Array) -> tuple[Array, Array]:
    """Self-normalised mean of an observable under the target, with its standard error.

    Plain samples, whose log-weights are all one number, have the usual standard error of a mean for any
    N > 1: nothing in it was estimated from weights. Else the error is inf unless the weights are reliable
    (`egm.importance.reliability`): one dominant weight makes any mean look exact. Where they are, it is
    the delta method's, widened for few effective degrees of freedom, for skewness, and for the weight
    that the tail may still hold.

    Args:
      values: [N] or [N, ...] the observable on the terminal states.
      log_weights: [N] path log-weights; zeros for a plain mean of raw samples.

    Returns:
      (mean [...], standard error [...]).

    Raises:
      ValueError: the leading sizes differ.

    Examples:
      >>> x = jax.random.normal(jax.random.key(0), (5000,))
      >>> log_weights = 0.5 * x  # from N(0, 1) to N(.5, 1)
      >>> mean, error = egm.metrics.reweighted_mean(x, log_weights)
      >>> bool(abs(mean - 0.5) < 4 * error)
      True
    """
    values, log_weights = _observables(values, log_weights)
    n = log_weights.shape[0]
    record = importance.reliability(log_weights)
    w = importance.snis(log_weights).weights
    mean, in_tail = _weighted_means(values, w, log_weights, record)
    c = jnp.where(checks.expanded(w, values) > 0, checks.expanded(w, values) * (values - mean[None]), 0.0)
    spread, factor, skewness = _spread(c, n)
    shift = _grown(record) * (in_tail - mean)
    error = jnp.hypot(spread * (factor + 0.75 * jnp.abs(skewness)), shift / 2)
    return mean, _stated(error, spread, record, n)


def jackknife(
    statistic: Callable[..., Array], values: Array, log_weights: Array, num_blocks: int = 20
) -> tuple[Array, Array]:
    """A function of weighted means, such as a variance or a Binder cumulant, with its standard error.

    The error is inf and widened as that of `reweighted_mean`.

    Args:
      statistic: `statistic(mean)` of the weighted mean [...] of `values`.
      values: [N, ...] observables on the terminal states (for a variance: the first two powers).
      log_weights: [N] path log-weights; zeros for raw samples.
      num_blocks: blocks left out in turn; the last N modulo num_blocks samples are not used.

    Returns:
      (statistic of the whole, standard error), each of the statistic's shape.

    Raises:
      ValueError: the leading sizes differ, or there are fewer samples than blocks.

    Examples:
      >>> x = jax.random.normal(jax.random.key(0), (1000,))
      >>> variance = lambda m: m[1] - m[0] ** 2
      >>> value, error = egm.metrics.jackknife(variance, jnp.stack([x, x**2], axis=1), jnp.zeros(1000))
      >>> bool(abs(value - 1.0) < 4 * error)
      True
    """
    checks.positive_int(num_blocks, "num_blocks", minimum=2)
    values, log_weights = _observables(values, log_weights)
    size = log_weights.shape[0] // num_blocks
    if size == 0:
        came = f"got {log_weights.size}; num_blocks asks for that many"
        raise ValueError(f"values must hold at least {num_blocks} samples, {came}")
    checks.function(statistic, "statistic")
    values, log_weights = values[: size * num_blocks], log_weights[: size * num_blocks]
    record = importance.reliability(log_weights)
    w = importance.snis(log_weights).weights
    mean, in_tail = _weighted_means(values, w, log_weights, record)
    w, values = (a.reshape(num_blocks, size, *a.shape[1:]) for a in (w, values))
    weight = jnp.sum(w, axis=1)
    moment = jnp.einsum("bn,bn...->b...", w, jnp.where(checks.expanded(w, values) > 0, values, 0))
    left = jnp.sum(weight) - weight
    means = (jnp.sum(moment, axis=0, keepdims=True) - moment) / left.reshape((-1,) + (1,) * (moment.ndim - 1))
    whole = statistic(mean)
    parts = jnp.stack([statistic(m) for m in means])
    spread, factor, skewness = _spread(parts - jnp.mean(parts, axis=0)[None], num_blocks)
    spread = (num_blocks - 1) / num_blocks * spread
    grown = _grown(record)
    shift = (1 + grown) * (statistic(mean + grown / (1 + grown) * (in_tail - mean)) - whole)
    error = jnp.hypot(spread * (factor + 0.75 * jnp.abs(skewness)), shift / 2)
    return whole, _stated(error, spread, record, size * num_blocks)


def _spread(c: Array, n: int, axis_name: str | None = None) -> tuple[Array, Array, Array]:
    """(standard error of their sum, widening at two errors, skewness of the sum) of n terms c [N, ...].

    The terms have mean zero. The degrees of freedom are those of the estimated variance, 2 in units of
    its relative variance (Satterthwaite 1946), so that few large terms are as uncertain as they are few;
    the widening is Student's quantile over the normal's, by Fisher and Cornish's expansion.
    """
    c = c.astype(jnp.promote_types(c.dtype, jnp.float32))
    largest = collectives.pmax(jnp.max(jnp.abs(c), axis=0), axis_name)
    unit = jnp.where(largest > 0, largest, 1.0)
    c = c / unit[None]
    two, three, four = (collectives.psum(jnp.sum(c**p, axis=0), axis_name) for p in (2, 3, 4))
    safe = jnp.where(two > 0, two, 1.0)
    one_over_nu = jnp.clip((four / safe**2 - 1 / n) / 2, 0.0, 0.5)
    widening = 1 + one_over_nu * (1.25 + one_over_nu * (1.53 + one_over_nu * (1.43 + 0.92 * one_over_nu)))
    spread = unit * jnp.sqrt(two * n / max(n - 1, 1))
    return spread, widening, three / safe**1.5


def _weighted_means(
    values: Array, w: Array, log_weights: Array, record: importance.Reliability
) -> tuple[Array, Array]:
    """(weighted mean of values [N, ...], the same over the tail of the largest weights alone)."""
    values = jnp.where(checks.expanded(w, values) > 0, values, 0)  # without weight it may be anything
    in_tail = jnp.where(log_weights > record.tail_start, w, 0.0)
    total = jnp.sum(in_tail)
    mean = jnp.sum(checks.expanded(w, values) * values, axis=0)
    tail = jnp.sum(checks.expanded(in_tail, values) * values, axis=0) / jnp.where(total > 0, total, 1.0)
    return mean, jnp.where(total > 0, tail, mean)


def _grown(record: importance.Reliability) -> Array:
    """The weight that the tail may still hold, in units of all that was seen."""
    return jnp.where(jnp.isfinite(record.unseen), jnp.expm1(record.unseen), 0.0)


def _stated(error: Array, usual: Array, record: importance.Reliability, n: int) -> Array:
    """The usual error for plain samples, the widened one where the weights are reliable, else inf."""
    error = jnp.where(record.reliable, error, jnp.inf)
    return jnp.where(record.equal, usual, error) if n > 1 else jnp.full_like(error, jnp.inf)


def _observables(values: Array, log_weights: Array) -> tuple[Array, Array]:
    """(values [N, ...], log_weights [N]), checked; integers and booleans are observables too."""
    values = checks.as_array(values, "values")
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    if not any(jnp.issubdtype(values.dtype, kind) for kind in kinds) or values.ndim < 1:
        raise TypeError(f"values must be real numbers [N, ...], got {values.dtype} of shape {values.shape}")
    log_weights = checks.vector(log_weights, "log_weights")
    if values.shape[:1] != log_weights.shape:
        raise ValueError(
            f"values must have leading size {log_weights.size}, as log_weights has, got shape {values.shape}"
        )
    # What weighs nothing may be anything: 0 times inf is NaN.
    counts = (importance.snis(log_weights).weights > 0).reshape((-1,) + (1,) * (values.ndim - 1))
    return jnp.where(counts, checks.wide(values), 0), checks.wide(log_weights)
