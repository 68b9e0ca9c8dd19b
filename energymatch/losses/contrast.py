"""The contrastive term: lambda_cd (E_data V - E_negatives V), optionally trimmed and clamped."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives, importance
from egm.typing import Array
from energymatch.losses import reductions

__all__ = ["Terms", "check_terms", "contrast", "contrastive_divergence_loss", "negative_limit"]


def contrastive_divergence_loss(
    data_values: Array,
    negative_values: Array,
    *,
    weight: float = 1.0,
    trim: float = 0.0,
    floor: float | None = None,
    limit: float | None = None,
    log_weights: Array | None = None,
    energy_l2: float = 0.0,
    axis_name: str | None = None,
) -> tuple[Array, dict[str, Array]]:
    """weight * (mean V on data - mean V on negatives), whose gradient is epsilon times the likelihood's.

    A value that is not finite (of a datum or a negative) has weight zero; the others share its weight.
    Where no datum or no negative is left the loss is zero: one mean alone would depend on V's constant.

    The contrast runs away where its negatives cannot follow V: it then lifts V at states that the model has
    long left, without end. With a `limit` a negative that far above the data, and its share of the data,
    counts no more, and where the gap itself is beyond the limit the contrast waits: V goes on with the flow
    loss alone, and the chains with it, until they have come down.

    Args:
      data_values: [N] V on data.
      negative_values: [M] V on samples of the model, which are constants.
      weight: lambda_cd.
      trim: fraction of the negatives, those of the highest V, that are dropped (of all devices together).
      floor: the weighted difference is cut to at least -floor, beyond which it has no gradient.
      limit: negatives with V this far above the 90% quantile of V on the data have no say, and the loss is
        that of the others times their share of the weight; it is 0 where the mean of V on the data is
        this far below that on the negatives. None for none; `negative_limit` has one that samples of the
        model do not reach.
      log_weights: [M] log-weights of the negatives (annealed importance sampling), self-normalised over
        all devices; without gradient.
      energy_l2: factor of a penalty (mean V^2 on data + mean V^2 on negatives).
      axis_name: mapped axis over which both batches are split.

    Returns:
      (scalar local loss, metrics data_energy, negative_energy, energy_gap (data - negatives),
      negative_ess, nonfinite_data and nonfinite_negatives (fractions), floored (0 or 1), contrast_kept (the
      share of the negatives within the limit) and diverging (1 where the gap exceeds the limit on either
      side, or no negative is within it: V is not being fitted, whatever the loss says)).

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.

    Source: Energy Matching (arXiv 2504.10612), L_CD and its clamp and trim; the L2 penalty: Du and
    Mordatch (2019).

    Examples:
      >>> data_values, negative_values = jnp.array([1.0, 2.0]), jnp.array([3.0, 5.0])
      >>> loss, metrics = energymatch.losses.contrastive_divergence_loss(data_values, negative_values)
      >>> print(loss)  # mean V of the data less that of the negatives
      -2.5
    """
    data_values, negative_values = (
        _values(data_values, "data_values"),
        _values(negative_values, "negative_values"),
    )
    terms = check_terms(weight, trim, floor, limit, log_weights, energy_l2, negative_values.shape)
    return contrast(data_values, negative_values, terms, axis_name)


class Terms(NamedTuple):
    """The options of the contrast, checked by `check_terms`."""

    weight: float
    trim: float
    floor: float | None
    limit: float | None
    log_weights: Array | None
    energy_l2: float


def check_terms(
    weight: Any, trim: Any, floor: Any, limit: Any, log_weights: Any, energy_l2: Any, shape: tuple[int, ...]
) -> Terms:
    """The options; raises TypeError or ValueError that names one. `shape` is that of the negatives."""
    weight = checks.positive_float(weight, "weight", allow_zero=True)
    energy_l2 = checks.positive_float(energy_l2, "energy_l2", allow_zero=True)
    if log_weights is not None:
        log_weights = checks.wide(checks.float_array(log_weights, "log_weights"))
        if log_weights.shape != shape:
            raise ValueError(f"log_weights must have shape {shape}, got {log_weights.shape}")
    limit = None if limit is None else checks.positive_float(limit, "limit")
    floor = None if floor is None else checks.positive_float(floor, "floor", allow_zero=True)
    return Terms(weight, checks.below_one(trim, "trim"), floor, limit, log_weights, energy_l2)


def contrast(
    data_values: Array, negative_values: Array, terms: Terms, axis_name: str | None
) -> tuple[Array, dict[str, Array]]:
    """`contrastive_divergence_loss` of checked arguments."""
    stop = jax.lax.stop_gradient
    keep = reductions.lowest(stop(negative_values), terms.trim, axis_name)
    log_weights = jnp.zeros_like(negative_values) if terms.log_weights is None else terms.log_weights
    log_weights = jnp.where(keep, stop(log_weights), -jnp.inf)
    data, data_ess = reductions.weighted_means(data_values, jnp.zeros_like(data_values), axis_name)
    negative, negative_ess = reductions.weighted_means(negative_values, log_weights, axis_name)
    known = (data_ess > 0) & (negative_ess > 0)
    gap = jnp.where(known, data[0] - negative[0], 0.0)
    counted, kept, diverging = gap, jnp.ones((), gap.dtype), jnp.zeros((), gap.dtype)
    if terms.limit is not None:
        reached = (data[0], data_ess > 0, known)
        counted, kept, diverging = _within(
            data_values, negative_values, log_weights, reached, terms.limit, axis_name
        )
    loss, floored = terms.weight * counted, jnp.zeros((), gap.dtype)
    if terms.floor is not None:
        # The switch is that of the whole batch.
        below = terms.weight * collectives.pmean(stop(counted), axis_name) < -terms.floor
        loss, floored = jnp.where(below, -terms.floor, loss), below.astype(gap.dtype)
    if terms.energy_l2:
        loss = loss + terms.energy_l2 * (data[1] + negative[1])
    metrics = {
        "data_energy": data[0],
        "negative_energy": negative[0],
        "energy_gap": gap,
        "negative_ess": negative_ess,
        "nonfinite_data": 1 - jnp.mean(jnp.isfinite(data_values)),
        "nonfinite_negatives": 1 - jnp.mean(jnp.isfinite(negative_values)),
        "floored": floored,
        "contrast_kept": kept,
        "diverging": diverging,
    }
    return loss, stop(metrics)


def _within(
    data_values: Array,
    negative_values: Array,
    log_weights: Array,
    reached: tuple[Array, Array, Array],
    limit: float,
    axis_name: str | None,
) -> tuple[Array, Array, Array]:
    """(the contrast of the negatives within the limit, the share of them, 1 where V is not being fitted).

    `reached` is the mean of V on the data, whether there is a datum, and whether there is a negative too.
    """
    stop = jax.lax.stop_gradient
    data_mean, some_data, known = reached
    ceiling = _quantile(data_values, axis_name) + limit
    within = jnp.where(stop(negative_values) <= ceiling, log_weights, -jnp.inf)
    near, near_ess = reductions.weighted_means(negative_values, within, axis_name)
    # Cut, so that one chain that is far away does not decide for all.
    cut = jnp.minimum(stop(negative_values), ceiling + limit)
    cut, _ = reductions.weighted_means(cut, log_weights, axis_name)
    cut_gap = collectives.pmean(stop(data_mean) - cut[0], axis_name)
    kept = _share(negative_values, within, log_weights, axis_name)
    follows = some_data & (near_ess > 0) & (cut_gap >= -limit)
    contrast = jnp.where(follows, kept * (data_mean - near[0]), 0.0)
    return contrast, kept, (known & (~follows | (cut_gap > limit))).astype(contrast.dtype)


def _values(values: Any, name: str) -> Array:
    values = checks.wide(checks.float_array(values, name, min_ndim=1))
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"{name} must be a vector of at least 1, got shape {values.shape}")
    return values


def negative_limit(dim: int, epsilon: float) -> float:
    """epsilon (D + 10): how far above the data V may lie at a negative that counts, D = `dim` elements.

    At equilibrium V of a state is above its minimum by epsilon D/2 with deviation epsilon sqrt(D/2) in a
    quadratic well. Twice that and 10 nats more is out of reach: a negative there lags behind V.

    Raises:
      TypeError, ValueError: an argument is no positive number.

    Examples:
      >>> energymatch.losses.negative_limit(dim=2, epsilon=0.5)  # V this far above the data's counts no more
      6.0
    """
    return checks.positive_float(epsilon, "epsilon") * (checks.positive_int(dim, "dim") + 10)


def _quantile(data_values: Array, axis_name: str | None) -> Array:
    """The 90% quantile of the finite ones of all devices' values, without gradient."""
    data = collectives.all_gather(jax.lax.stop_gradient(data_values), axis_name)
    return jnp.nanquantile(jnp.where(jnp.isfinite(data), data, jnp.nan), 0.9)


def _share(values: Array, kept: Array, log_weights: Array, axis_name: str | None) -> Array:
    """The part of the weight exp(log_weights) of finite values that `kept`, the same or -inf, has."""
    usable = jnp.where(jnp.isfinite(jax.lax.stop_gradient(values)), log_weights, -jnp.inf)
    weights = importance.snis(usable, 0, axis_name).weights
    total = lambda a: collectives.psum(jnp.sum(a), axis_name)
    some = total(weights) > 0
    return jnp.where(some, total(jnp.where(jnp.isfinite(kept), weights, 0.0)), 1.0)
