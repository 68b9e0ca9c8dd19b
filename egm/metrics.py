"""What path weights and samples say about a sampler: ESS, log Z from both sides, means, distances.

ESS and ELBO come from simulated trajectories and cannot see lost modes; the EUBO, from exact samples
taken backward, can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, importance
from egm._frechet import frechet_distance as frechet_distance
from egm._frechet import frechet_distance_of_moments as frechet_distance_of_moments
from egm.typing import Array


class PathWeightSummary(NamedTuple):
    """What N path log-weights say.

    Attributes:
      log_z: log of the mean weight.
      log_z_error: its standard error (delta method).
      ess: effective sample size as a fraction of N.
      elbo: mean log-weight over the valid ones; at most log Z in expectation.
      num_nonfinite: how many were NaN or +inf; they have weight zero and stay in N.
    """

    log_z: Array
    log_z_error: Array
    ess: Array
    elbo: Array
    num_nonfinite: Array


def summarize(log_weights: Array, axis_name: str | None = None) -> PathWeightSummary:
    """Summary of path log-weights.

    Args:
      log_weights: [N] from `egm.path_log_weights`.
      axis_name: mapped axis over which they are split as well.

    Returns:
      PathWeightSummary of scalars.
    """
    log_weights = checks.vector(log_weights, "log_weights")
    weights, log_mean, ess = importance.snis(log_weights, 0, axis_name)
    del weights
    n = log_weights.shape[0] * collectives.axis_size(axis_name)
    # Var(w)/mean(w)^2 = 1/ess - 1, hence the relative error of the mean.
    error = jnp.where(
        ess > 0,
        jnp.sqrt(jnp.maximum(1 / jnp.where(ess > 0, ess, 1) - 1, 0) / max(n - 1, 1)),
        jnp.inf,
    )
    bad = importance.nonfinite(log_weights)
    num_bad = collectives.psum(jnp.sum(bad), axis_name)
    total = collectives.psum(jnp.sum(jnp.where(bad, 0.0, log_weights)), axis_name)
    elbo = total / jnp.maximum(n - num_bad, 1)
    return PathWeightSummary(log_mean, error, ess, elbo, num_bad)


def evidence_upper_bound(reverse_log_weights: Array) -> tuple[Array, Array]:
    """The bound on log Z from above, which sees the modes that a sampler has lost.

    Args:
      reverse_log_weights: [N] path log-weights of `egm.simulate_reverse` from exact samples.

    Returns:
      (EUBO, its standard error), scalars.
    """
    reverse_log_weights = checks.vector(reverse_log_weights, "reverse_log_weights")
    n = reverse_log_weights.shape[0]
    return jnp.mean(reverse_log_weights), jnp.std(reverse_log_weights) / np.sqrt(max(n - 1, 1))


def reweighted_mean(values: Array, log_weights: Array) -> tuple[Array, Array]:
    """Self-normalised mean of an observable under the target, with its standard error.

    Args:
      values: [N] or [N, ...] the observable on the terminal states.
      log_weights: [N] path log-weights; zeros for a plain mean of raw samples.

    Returns:
      (mean [...], standard error [...]), the error by the delta method.

    Raises:
      ValueError: the leading sizes differ.
    """
    values, log_weights = _observables(values, log_weights)
    w = importance.snis(log_weights).weights.reshape((-1,) + (1,) * (values.ndim - 1))
    mean = jnp.sum(w * values, axis=0)
    return mean, jnp.sqrt(jnp.sum(w**2 * (values - mean[None]) ** 2, axis=0))


def jackknife(
    statistic: Callable[..., Array], values: Array, log_weights: Array, num_blocks: int = 20
) -> tuple[Array, Array]:
    """A function of weighted means, such as a variance or a Binder cumulant, with its standard error.

    Args:
      statistic: `statistic(mean)` of the weighted mean [...] of `values`.
      values: [N, ...] observables on the terminal states (for a variance: the first two powers).
      log_weights: [N] path log-weights; zeros for raw samples.
      num_blocks: blocks left out in turn; the last N modulo num_blocks samples are not used.

    Returns:
      (statistic of the whole, standard error), each of the statistic's shape.

    Raises:
      ValueError: the leading sizes differ, or there are fewer samples than blocks.
    """
    checks.positive_int(num_blocks, "num_blocks", minimum=2)
    values, log_weights = _observables(values, log_weights)
    size = log_weights.shape[0] // num_blocks
    if size == 0:
        came = f"got {log_weights.size}; num_blocks asks for that many"
        raise ValueError(f"values must hold at least {num_blocks} samples, {came}")
    checks.function(statistic, "statistic")
    w = importance.snis(log_weights).weights
    w, values = (a[: size * num_blocks].reshape(num_blocks, size, *a.shape[1:]) for a in (w, values))
    weight = jnp.sum(w, axis=1)
    moment = jnp.einsum("bn,bn...->b...", w, values)
    left = jnp.sum(weight) - weight
    means = (jnp.sum(moment, axis=0, keepdims=True) - moment) / left.reshape((-1,) + (1,) * (moment.ndim - 1))
    whole = statistic(jnp.sum(moment, axis=0) / jnp.sum(weight))
    parts = jnp.stack([statistic(m) for m in means])
    error = jnp.sqrt((num_blocks - 1) * jnp.mean((parts - jnp.mean(parts, axis=0)[None]) ** 2, axis=0))
    return whole, error


def mode_masses(x: Array, modes: Array, log_weights: Array | None = None) -> Array:
    """The fraction of samples whose nearest mode each one is: which modes a sampler has, and how much.

    Where modes overlap these are not quite the masses of mixture components: compare with the same
    fractions of exact samples.

    Args:
      x: [N, D] samples. One that is not finite is no mode's.
      modes: [M, D].
      log_weights: [N] path log-weights; None for raw samples.

    Returns:
      [M] non-negative, with sum 1 less the weight of samples that are not finite; ties go to the first.

    Raises:
      TypeError: x or modes is not floating. ValueError: a shape does not fit.
    """
    x, modes = checks.float_array(x, "x"), checks.float_array(modes, "modes")
    if x.ndim != 2:
        raise ValueError(f"x must have shape [N, D], got {x.shape}")
    if modes.ndim != 2 or modes.shape[1] != x.shape[1] or modes.shape[0] == 0:
        raise ValueError(f"modes must have shape [M, {x.shape[1]}], as x has, got {modes.shape}")
    if log_weights is None:
        log_weights = jnp.zeros(x.shape[:1])
    log_weights = checks.float_array(log_weights, "log_weights")
    if log_weights.shape != x.shape[:1]:
        raise ValueError(f"log_weights must have shape {x.shape[:1]}, got {log_weights.shape}")
    weights = importance.snis(log_weights).weights
    # ||x||^2 is common to all modes. Around their mean the squares cancel least.
    modes = modes.astype(x.dtype)
    middle = jnp.mean(modes, axis=0, keepdims=True)
    modes, x = modes - middle, x - middle
    cross = jnp.matmul(x, modes.T, precision=jax.lax.Precision.HIGHEST)
    nearest = jnp.argmin(jnp.sum(modes**2, axis=-1)[None] - 2 * cross, axis=-1)
    weights = jnp.where(jnp.all(jnp.isfinite(x), axis=-1), weights, 0.0)
    return jax.ops.segment_sum(weights, nearest, num_segments=modes.shape[0])


def wasserstein_1d(a: Array, b: Array, p: float = 1.0) -> Array:
    """Wasserstein-p distance between two equally large samples of a number, (mean |a_(i) - b_(i)|^p)^(1/p).

    Args:
      a: [N].
      b: [N].
      p: the order, at least 1.

    Raises:
      ValueError: the samples differ in size.
    """
    a, b = checks.vector(a, "a"), checks.vector(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must be vectors of one size, got shapes {a.shape} and {b.shape}")
    if checks.finite_float(p, "p") < 1:
        raise ValueError(f"p must be at least 1, got {p}")
    gap = jnp.abs(jnp.sort(a) - jnp.sort(b))
    return jnp.mean(gap**p) ** (1.0 / p)


def sample_distance(distance, generated: Array, exact: Array, num_sets: int) -> float:
    """Mean of `distance` over `num_sets` equal disjoint sets of two samples, each against its own set.

    Args:
      distance: a function of two samples of equal size, for instance `wasserstein_1d`.
      generated: [num_sets * n, ...].
      exact: the same shape.
      num_sets: the number of sets.

    Returns:
      A float.
    """
    checks.function(distance, "distance")
    checks.positive_int(num_sets, "num_sets")
    generated, exact = _samples(generated, "generated"), _samples(exact, "exact")
    if generated.shape != exact.shape:
        raise ValueError(f"exact must have the shape of generated, {generated.shape}, got {exact.shape}")
    if exact.shape[0] % num_sets:
        raise ValueError(f"num_sets must divide the {exact.shape[0]} samples, got {num_sets}")
    halves = zip(np.split(generated, num_sets), np.split(exact, num_sets), strict=True)
    return float(np.mean([float(jax.device_get(distance(a, b))) for a, b in halves]))


def distance_floor(distance, exact: Array, set_size: int, num_pairs: int, seed: int = 0) -> float:
    """What `distance` gives between exact samples: its mean over random disjoint pairs of exact sets.

    Args:
      distance: a function of two samples of equal size.
      exact: [M, ...] independent exact samples, M at least twice `set_size`.
      set_size: size of each set.
      num_pairs: the number of pairs; each is drawn anew from `exact` without replacement.
      seed: of the host generator that draws the pairs.

    Returns:
      A float.

    Raises:
      ValueError: there are too few exact samples.
    """
    for name, value, minimum in (("set_size", set_size, 1), ("num_pairs", num_pairs, 1), ("seed", seed, 0)):
        checks.positive_int(value, name, minimum)
    exact = _samples(exact, "exact")
    if exact.shape[0] < 2 * set_size:
        came = f"got {len(exact)}; set_size = {set_size} asks for them"
        raise ValueError(f"exact must hold at least {2 * set_size} samples, {came}")
    checks.function(distance, "distance")
    rng = np.random.default_rng(seed)
    gaps = []
    for _ in range(num_pairs):
        pick = rng.permutation(exact.shape[0])[: 2 * set_size]
        gaps.append(float(jax.device_get(distance(exact[pick[:set_size]], exact[pick[set_size:]]))))
    return float(np.mean(gaps))


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
    return values, log_weights


def _samples(x: Array, name: str) -> np.ndarray:
    """Samples [N, ...] on the host."""
    array = checks.as_array(x, name)
    if not any(jnp.issubdtype(array.dtype, k) for k in (jnp.floating, jnp.integer)) or array.ndim < 1:
        raise TypeError(f"{name} must be real numbers [N, ...], got {array.dtype} of shape {array.shape}")
    return np.asarray(x)
