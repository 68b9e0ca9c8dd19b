"""The flow-matching loss, mean of (grad V(x_t) + x_1 - x_0)^2, and the gates that switch it off in data."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, collectives, random
from egm.checks import number, unit_interval
from egm.typing import Array, Key, PyTree
from energymatch import schedules
from energymatch.losses import reductions
from energymatch.potential import ParametricPotential, value_and_gradient

__all__ = ["Gate", "check_pairs", "energy_gate", "flow", "flow_matching_loss", "time_gate"]

Gate = Callable[[Array, Array, Any], Array]
"""`gate(t [B], values [B], data_values [N]) -> [B]`, the weight of the flow loss; see `energy_gate`."""


def time_gate(tau_star: float) -> Gate:
    """The published gate: `schedules.flow_weight`, 1 up to tau_star and linear to 0 at t = 1.

    Examples:
      >>> gate = energymatch.losses.time_gate(tau_star=0.8)
      >>> values = jnp.zeros(3)
      >>> print(np.asarray(gate(jnp.array([0.5, 0.9, 1.0]), values, values)).round(2))
      [1.  0.5 0. ]
    """
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

    Examples:
      >>> gate = energymatch.losses.energy_gate(epsilon=1.0)
      >>> t, values, data_values = jnp.full(3, 0.5), jnp.array([0.0, 5.0, 20.0]), jnp.zeros(10)
      >>> print(gate(t, values, data_values))
      [0.  0.5 1. ]
    """
    number(epsilon, "epsilon", "finite and positive")
    checks.finite_float(margin, "margin")
    checks.positive_float(width, "width")
    unit_interval(quantile, "quantile")

    def gate(t, values, data_values):
        q = jnp.nanquantile(jnp.where(jnp.isfinite(data_values), data_values, jnp.nan), quantile)
        return jnp.clip(((values - q) / epsilon - margin) / width + 0.5, 0.0, 1.0)

    return gate


def flow_matching_loss(
    potential: ParametricPotential,
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

    Examples:
      >>> potential = lambda params, x: params * jnp.sum(x, axis=-1)  # V, so that -grad V = -params
      >>> x_0, x_1 = jnp.zeros((4, 3)), jnp.ones((4, 3))
      >>> loss, metrics = energymatch.losses.flow_matching_loss(potential, -1.0, jax.random.key(0), x_0, x_1)
      >>> print(loss)  # the velocity 1 is that from x_0 to x_1
      [0. 0. 0. 0.]
    """
    checks.function(potential, "potential")
    if data_values is not None:
        data_values = checks.wide(checks.vector(data_values, "data_values"))
    x_0, x_1, sigma = check_pairs(x_0, x_1, sigma, gate)
    keys = random.example_keys(key, x_0.shape[0], axis_name)
    return flow(potential, params, keys, x_0, x_1, sigma, gate, data_values, axis_name)


def check_pairs(x_0: Any, x_1: Any, sigma: Any, gate: Any) -> tuple[Array, Array, float]:
    """(x_0, x_1, sigma) in one dtype; raises TypeError or ValueError that names the argument."""
    if gate is not None:
        checks.function(gate, "gate")
    x_0, x_1 = checks.float_array(x_0, "x_0", min_ndim=2), checks.float_array(x_1, "x_1", min_ndim=2)
    if x_0.shape != x_1.shape:
        raise ValueError(f"x_1 must have the shape of x_0, {x_0.shape}, got {x_1.shape}")
    dtype = jnp.promote_types(jnp.result_type(x_0, x_1), jnp.float32)
    return x_0.astype(dtype), x_1.astype(dtype), checks.positive_float(sigma, "sigma", allow_zero=True)


def flow(
    potential: ParametricPotential,
    params: PyTree,
    keys: Key,
    x_0: Array,
    x_1: Array,
    sigma: float,
    gate: Gate | None,
    data_values: Array | None,
    axis_name: str | None,
) -> tuple[Array, dict[str, Array]]:
    """`flow_matching_loss` of checked arguments, with [B] keys."""
    batch, event = x_0.shape[0], x_0.shape[1:]

    def draw(key):
        time_key, noise_key = random.split(key)
        eta = jax.random.normal(noise_key, event, x_0.dtype) if sigma else jnp.zeros(event, x_0.dtype)
        return jax.random.uniform(time_key, dtype=x_0.dtype), eta

    t, eta = jax.vmap(draw)(keys)
    t_wide = t.reshape(batch, *(1,) * len(event))
    x_t, finite = reductions.finite_rows((1 - t_wide) * x_0 + t_wide * x_1 + sigma * eta)
    values, gradient = value_and_gradient(lambda x: potential(params, x), x_t)
    residual = gradient + x_1 - x_0
    finite = finite & jnp.isfinite(values) & reductions.all_true(jnp.isfinite(residual))
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
        "flow_weight": reductions.mean(weight),
        "velocity_norm": reductions.mean(reductions.norms(gradient, usable)),
        "nonfinite_flow": 1 - reductions.mean(usable.astype(t.dtype)),
    }
    return loss, metrics
