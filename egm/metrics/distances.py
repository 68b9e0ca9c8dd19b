"""Distances between sets of samples, the floor that finite sets leave, and the masses of modes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, importance
from egm.typing import Array

__all__ = ["distance_floor", "mode_masses", "sample_distance", "wasserstein_1d"]


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

    Examples:
      >>> modes = jnp.array([[-2.0], [2.0]])
      >>> x = jnp.array([[-2.1], [1.9], [2.2], [2.0]])
      >>> print(egm.metrics.mode_masses(x, modes))
      [0.25 0.75]
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

    Examples:
      >>> print(egm.metrics.wasserstein_1d(jnp.array([0.0, 1.0, 2.0]), jnp.array([3.0, 1.0, 2.0])))
      1.0
    """
    a, b = checks.vector(a, "a"), checks.vector(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must be vectors of one size, got shapes {a.shape} and {b.shape}")
    if checks.finite_float(p, "p") < 1:
        raise ValueError(f"p must be at least 1, got {p}")
    gap = jnp.abs(jnp.sort(a) - jnp.sort(b))
    return jnp.mean(gap**p) ** (1.0 / p)


def sample_distance(distance, generated: Any, exact: Any, num_sets: int) -> float:
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


def distance_floor(distance, exact: Any, set_size: int, num_pairs: int, seed: int = 0) -> float:
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

    Examples:
      >>> exact = jax.random.normal(jax.random.key(0), (1000,))
      >>> floor = egm.metrics.distance_floor(egm.metrics.wasserstein_1d, exact, set_size=100, num_pairs=5)
      >>> 0.0 < floor < 0.5
      True
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


def _samples(x: Array, name: str) -> np.ndarray:
    """Samples [N, ...] on the host."""
    array = checks.as_array(x, name)
    if not any(jnp.issubdtype(array.dtype, k) for k in (jnp.floating, jnp.integer)) or array.ndim < 1:
        raise TypeError(f"{name} must be real numbers [N, ...], got {array.dtype} of shape {array.shape}")
    return np.asarray(x)
