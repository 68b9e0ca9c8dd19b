"""The loss of phase 2: gated flow matching plus the contrast, with the metrics of both."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, random
from egm.typing import Array, Key, PyTree
from energymatch.losses import contrast as contrast_
from energymatch.losses import flow as flow_
from energymatch.losses import reductions
from energymatch.losses.flow import Gate
from energymatch.potential import ParametricPotential, value_and_gradient

__all__ = ["Batch", "energy_matching_loss"]


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


def energy_matching_loss(
    potential: ParametricPotential,
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

    Examples:
      >>> potential = lambda params, x: params * jnp.sum(x**2, axis=-1)
      >>> x_0, data = jax.random.normal(jax.random.key(0), (2, 8, 3))
      >>> batch = energymatch.losses.Batch(x_0, data, data)
      >>> loss, metrics = energymatch.losses.energy_matching_loss(
      ...     potential, 0.5, jax.random.key(1), batch, 2 * x_0, lambda_cd=1.0
      ... )
      >>> loss.shape, bool(metrics["energy_gap"] < 0)  # V is lower on the data than on these negatives
      ((), True)
    """
    checks.function(potential, "potential")
    checks.instance(batch, Batch, "batch")
    data = batch.x_1 if batch.data is None else batch.data
    data = checks.wide(checks.not_empty(checks.float_array(data, "batch.data", min_ndim=2), "batch.data"))
    negatives = checks.not_empty(checks.float_array(negatives, "negatives", min_ndim=2), "negatives")
    negatives = jax.lax.stop_gradient(checks.wide(negatives))
    if negatives.shape[1:] != data.shape[1:]:
        raise ValueError(f"negatives must have event shape {data.shape[1:]}, got {negatives.shape[1:]}")
    terms = contrast_.check_terms(lambda_cd, trim, floor, limit, log_weights, energy_l2, negatives.shape[:1])
    x_0, x_1, sigma = flow_.check_pairs(batch.x_0, batch.x_1, sigma, gate)
    keys = random.example_keys(key, x_0.shape[0], axis_name)
    states, finite = reductions.finite_rows(jnp.concatenate([data, negatives.astype(data.dtype)]))
    values, gradient = value_and_gradient(lambda x: potential(params, x), states)
    values = jnp.where(finite, values, jnp.nan)
    data_values, negative_values = values[: data.shape[0]], values[data.shape[0] :]
    contrast, metrics = contrast_.contrast(data_values, negative_values, terms, axis_name)
    losses, flow_metrics = flow_.flow(potential, params, keys, x_0, x_1, sigma, gate, data_values, axis_name)
    flow = jnp.mean(losses)
    norms = reductions.norms(gradient, jnp.isfinite(values))
    metrics |= flow_metrics | {
        "flow_loss": flow,
        "contrastive_loss": contrast,
        "data_gradient_norm": reductions.mean(norms[: data.shape[0]]),
        "negative_gradient_norm": reductions.mean(norms[data.shape[0] :]),
    }
    return flow + contrast, jax.lax.stop_gradient(metrics)
