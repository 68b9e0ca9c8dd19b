"""The losses of Energy Matching: transport by -grad V, and the contrast of data with the model's samples.

A potential is `potential(params, x) -> [B]` here, since losses differentiate in the parameters. Losses
are local: under a mapped axis take `pmean` of the loss and of its gradient, as
`egm.training.make_train_step` does. Shape letters: B batch, M negatives, *event the axes of one state.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives, importance, random
from egm.typing import Array, Key, PyTree
from energymatch import _reductions, schedules
from energymatch._checks import number
from energymatch.potential import value_and_gradient

Potential = Callable[[PyTree, Array], Array]
"""`potential(params, x) -> [B]` on x [B, *event]."""
Gate = Callable[[Array, Array, Array], Array]
"""`gate(t [B], values [B], data_values [N]) -> [B]`, the weight of the flow loss; see `energy_gate`."""


class Batch(NamedTuple):
    """What one step of Energy Matching sees.

    Attributes:
      x_0: [B, *event] samples of the prior, coupled with x_1.
      x_1: [B, *event] data.
      data: [N, *event] data for the contrastive term and to start negatives from; in the warm-up unused.
      prior: [P, *event] samples of the prior to start negatives from, or None.
      starts: [S, *event] other data to start negatives from in place of `data`, or None.
    """

    x_0: Array
    x_1: Array
    data: Array | None = None
    prior: Array | None = None
    starts: Array | None = None


def time_gate(tau_star: float) -> Gate:
    """The published gate: `schedules.flow_weight`, 1 up to tau_star and linear to 0 at t = 1."""
    schedules.flow_weight(0.0, tau_star)
    return functools.partial(_time_gate, tau_star=tau_star)


def _time_gate(t: Array, values: Array, data_values: Array | None, *, tau_star: float) -> Array:
    del values, data_values
    return schedules.flow_weight(t, tau_star)


def energy_gate(
    epsilon: float | Array, margin: float = 5.0, width: float = 4.0, quantile: float = 0.9
) -> Gate:
    """Transport outside the data, density inside: a ramp from 0 to 1 in (V(x_t) - q) / epsilon.

    q is a quantile of V on the data. Where x_t is margin + width/2 nats or more above it the flow loss
    has its full weight; below margin - width/2, where the density is, none at all: it is left to the
    contrastive term. A sigmoid in place of the ramp leaks enough of the transport into the data to bias
    their density (a normal's deviation of .5 came out at .54).

    Args:
      epsilon: the temperature epsilon_max of exp(-V/epsilon).
      margin: the middle of the ramp, in nats.
      width: of the ramp, in nats.
      quantile: of V on the data, in [0, 1].

    Raises:
      TypeError, ValueError: an argument is no number, the quantile or the width is out of range.
    """
    number(epsilon, "epsilon", "finite and positive")
    checks.finite_float(margin, "margin")
    checks.positive_float(width, "width")
    if not 0 <= checks.finite_float(quantile, "quantile") <= 1:
        raise ValueError(f"quantile must lie in [0, 1], got {quantile}")

    def gate(t, values, data_values):
        q = jnp.nanquantile(jnp.where(jnp.isfinite(data_values), data_values, jnp.nan), quantile)
        return jnp.clip(((values - q) / epsilon - margin) / width + 0.5, 0.0, 1.0)

    return gate


def flow_matching_loss(
    potential: Potential,
    params: PyTree,
    key: Key,
    x_0: Array,
    x_1: Array,
    *,
    sigma: float = 0.0,
    gate: Gate | None = None,
    data_values: Array | None = None,
    axis_name: str | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Squared error of the velocity -grad V(x_t) against x_1 - x_0, a mean over the elements of an event.

    x_t = (1 - t) x_0 + t x_1 + sigma eta with t uniform on [0, 1] and eta normal.

    Args:
      potential: V.
      params: its parameters.
      key: a typed key, folded with the global index of each example, or [B] keys.
      x_0: [B, *event] prior samples, coupled with x_1 (`energymatch.couplings`).
      x_1: [B, *event] data.
      sigma: standard deviation of the noise about the line.
      gate: weight of each example from its time and V (without gradient); None for 1.
      data_values: [N] V on data (on this device), for a gate that compares with it; None for V(x_t).
      axis_name: mapped axis over which the batch is split.

    Returns:
      ([B] weighted losses, metrics flow_weight and velocity_norm, the means over the batch, and
      nonfinite_flow). An example that is not finite, or where V or grad V is not, has loss zero and counts
      in nonfinite_flow, a fraction.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.

    Source: Energy Matching (arXiv 2504.10612), L_OT; a mean over elements, to which the published
    lambda_cd is tuned.
    """
    checks.function(potential, "potential")
    if gate is not None:
        checks.function(gate, "gate")
    if data_values is not None:
        data_values = checks.wide(checks.vector(data_values, "data_values"))
    x_0, x_1 = checks.float_array(x_0, "x_0", min_ndim=2), checks.float_array(x_1, "x_1", min_ndim=2)
    if x_0.shape != x_1.shape:
        raise ValueError(f"x_1 must have the shape of x_0, {x_0.shape}, got {x_1.shape}")
    sigma = checks.positive_float(sigma, "sigma", allow_zero=True)
    x_0, x_1 = checks.wide(x_0), checks.wide(x_1)
    dtype = jnp.result_type(x_0, x_1)
    x_0, x_1 = x_0.astype(dtype), x_1.astype(dtype)
    batch, event = x_0.shape[0], x_0.shape[1:]
    keys = random.example_keys(key, batch, axis_name)

    def draw(key):
        time_key, noise_key = random.split(key)
        eta = jax.random.normal(noise_key, event, x_0.dtype) if sigma else jnp.zeros(event, x_0.dtype)
        return jax.random.uniform(time_key, dtype=x_0.dtype), eta

    t, eta = jax.vmap(draw)(keys)
    t_wide = t.reshape(batch, *(1,) * len(event))
    x_t, finite = _reductions.finite_rows((1 - t_wide) * x_0 + t_wide * x_1 + sigma * eta)
    values, gradient = value_and_gradient(lambda x: potential(params, x), x_t)
    residual = gradient + x_1 - x_0
    finite = finite & jnp.isfinite(values) & _reductions.all_true(jnp.isfinite(residual))
    # What is not finite is cut out before the square, whose gradient would be 0 * NaN.
    residual = jnp.where(finite.reshape(t_wide.shape), residual, 0.0)
    error = jnp.mean(jnp.square(residual), axis=tuple(range(1, x_0.ndim)))
    weight = jnp.ones_like(t)
    if gate is not None:
        stop = jax.lax.stop_gradient
        data_values = collectives.all_gather(stop(values if data_values is None else data_values), axis_name)
        weight = stop(gate(t, stop(values), data_values))
    usable = finite & jnp.isfinite(error) & jnp.isfinite(weight)
    weight = jnp.where(usable, weight, 0.0)
    loss = jnp.where(usable, weight * error, 0.0)
    metrics = {
        "flow_weight": _reductions.mean(weight),
        "velocity_norm": _reductions.mean(_reductions.norms(gradient, usable)),
        "nonfinite_flow": 1 - _reductions.mean(usable.astype(t.dtype)),
    }
    return loss, metrics


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
    """
    data_values = checks.wide(checks.float_array(data_values, "data_values", min_ndim=1))
    negative_values = checks.wide(checks.float_array(negative_values, "negative_values", min_ndim=1))
    for name, values in (("data_values", data_values), ("negative_values", negative_values)):
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"{name} must be a vector of at least 1, got shape {values.shape}")
    weight = checks.positive_float(weight, "weight", allow_zero=True)
    energy_l2 = checks.positive_float(energy_l2, "energy_l2", allow_zero=True)
    trim = checks.below_one(trim, "trim")
    if log_weights is None:
        log_weights = jnp.zeros_like(negative_values)
    log_weights = checks.wide(checks.float_array(log_weights, "log_weights"))
    if log_weights.shape != negative_values.shape:
        raise ValueError(f"log_weights must have shape {negative_values.shape}, got {log_weights.shape}")
    keep = _reductions.lowest(jax.lax.stop_gradient(negative_values), trim, axis_name)
    log_weights = jnp.where(keep, jax.lax.stop_gradient(log_weights), -jnp.inf)
    data, data_ess = _reductions.weighted_means(data_values, jnp.zeros_like(data_values), axis_name)
    negative, negative_ess = _reductions.weighted_means(negative_values, log_weights, axis_name)
    gap = jnp.where((data_ess > 0) & (negative_ess > 0), data[0] - negative[0], 0.0)
    # The switches of limit and floor are those of the whole batch.
    global_gap = collectives.pmean(jax.lax.stop_gradient(gap), axis_name)
    contrast, kept = gap, jnp.ones((), gap.dtype)
    diverging = jnp.zeros((), gap.dtype)
    if limit is not None:
        limit = checks.positive_float(limit, "limit")
        ceiling = _quantile(data_values, axis_name) + limit
        within = jnp.where(jax.lax.stop_gradient(negative_values) <= ceiling, log_weights, -jnp.inf)
        near, near_ess = _reductions.weighted_means(negative_values, within, axis_name)
        # Cut, so that one chain that is far away does not decide for all.
        cut = jnp.minimum(jax.lax.stop_gradient(negative_values), ceiling + limit)
        cut, _ = _reductions.weighted_means(cut, log_weights, axis_name)
        cut_gap = collectives.pmean(jax.lax.stop_gradient(data[0]) - cut[0], axis_name)
        kept = _share(negative_values, within, log_weights, axis_name)
        follows = (data_ess > 0) & (near_ess > 0) & (cut_gap >= -limit)
        contrast = jnp.where(follows, kept * (data[0] - near[0]), 0.0)
        known = (data_ess > 0) & (negative_ess > 0)
        diverging = (known & (~follows | (cut_gap > limit))).astype(gap.dtype)
        global_gap = collectives.pmean(jax.lax.stop_gradient(contrast), axis_name)
    loss, floored = weight * contrast, jnp.zeros((), gap.dtype)
    if floor is not None:
        floor = checks.positive_float(floor, "floor", allow_zero=True)
        below = weight * global_gap < -floor
        loss, floored = jnp.where(below, -floor, loss), below.astype(gap.dtype)
    if energy_l2:
        loss = loss + energy_l2 * (data[1] + negative[1])
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
    return loss, jax.lax.stop_gradient(metrics)


def negative_limit(dim: int, epsilon: float) -> float:
    """epsilon (D + 10): how far above the data V may lie at a negative that counts, D = `dim` elements.

    At equilibrium V of a state is above its minimum by epsilon D/2 with deviation epsilon sqrt(D/2) in a
    quadratic well. Twice that and 10 nats more is out of reach: a negative there lags behind V.

    Raises:
      TypeError, ValueError: an argument is no positive number.
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


def energy_matching_loss(
    potential: Potential,
    params: PyTree,
    key: Key,
    batch: Batch,
    negatives: Array,
    *,
    lambda_cd: float,
    gate: Gate | None = None,
    sigma: float = 0.0,
    trim: float = 0.0,
    floor: float | None = None,
    limit: float | None = None,
    log_weights: Array | None = None,
    energy_l2: float = 0.0,
    axis_name: str | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Phase 2: the gated flow-matching loss plus lambda_cd times the contrast of data with negatives.

    Args:
      potential: V.
      params: its parameters.
      key: as for `flow_matching_loss`.
      batch: coupled pairs and data.
      negatives: [M, *event] samples of the model at these parameters; no gradient flows into them.
      lambda_cd, trim, floor, limit, log_weights, energy_l2: as for `contrastive_divergence_loss`.
      gate, sigma: as for `flow_matching_loss`.
      axis_name: mapped axis over which all batches are split.

    Returns:
      (scalar local loss, metrics of both losses, and flow_loss, contrastive_loss, data_gradient_norm and
      negative_gradient_norm, the mean norms of grad V, zero where it is not finite).

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.

    Source: Energy Matching (arXiv 2504.10612), phase 2.
    """
    checks.function(potential, "potential")
    checks.instance(batch, Batch, "batch")
    data = batch.x_1 if batch.data is None else batch.data
    data = checks.wide(checks.not_empty(checks.float_array(data, "batch.data", min_ndim=2), "batch.data"))
    negatives = checks.not_empty(checks.float_array(negatives, "negatives", min_ndim=2), "negatives")
    negatives = jax.lax.stop_gradient(checks.wide(negatives))
    if negatives.shape[1:] != data.shape[1:]:
        raise ValueError(f"negatives must have event shape {data.shape[1:]}, got {negatives.shape[1:]}")
    states, finite = _reductions.finite_rows(jnp.concatenate([data, negatives.astype(data.dtype)]))
    values, gradient = value_and_gradient(lambda x: potential(params, x), states)
    values = jnp.where(finite, values, jnp.nan)
    data_values, negative_values = values[: data.shape[0]], values[data.shape[0] :]
    contrast, metrics = contrastive_divergence_loss(
        data_values,
        negative_values,
        weight=lambda_cd,
        trim=trim,
        floor=floor,
        limit=limit,
        log_weights=log_weights,
        energy_l2=energy_l2,
        axis_name=axis_name,
    )
    flow, flow_metrics = flow_matching_loss(
        potential,
        params,
        key,
        batch.x_0,
        batch.x_1,
        sigma=sigma,
        gate=gate,
        data_values=data_values,
        axis_name=axis_name,
    )
    flow = jnp.mean(flow)
    norms = _reductions.norms(gradient, jnp.isfinite(values))
    metrics |= flow_metrics | {
        "flow_loss": flow,
        "contrastive_loss": contrast,
        "data_gradient_norm": _reductions.mean(norms[: data.shape[0]]),
        "negative_gradient_norm": _reductions.mean(norms[data.shape[0] :]),
    }
    return flow + contrast, jax.lax.stop_gradient(metrics)
