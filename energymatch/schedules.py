"""Schedules of Energy Matching in time: the temperature of the dynamics and the weight of the flow loss.

Time runs from 0 (prior) to 1 (data); the dynamics may go on past 1, at the data's own temperature.
"""

from __future__ import annotations

import numbers
from typing import Any

import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.checks import number, unit_interval
from egm.typing import Array

__all__ = ["flow_weight", "temperature"]


def temperature(t: Array | float, tau_star: float, epsilon_max: Array | float) -> Array:
    """epsilon(t): 0 up to tau_star, rising linearly to epsilon_max at t = 1, constant after.

    With tau_star = 1 it is 0 below t = 1 and epsilon_max from there on.

    Args:
      t: times of any shape, from 0 on; they may exceed 1.
      tau_star: where the temperature leaves 0, a number in [0, 1].
      epsilon_max: the temperature of the learned Boltzmann density exp(-V/epsilon_max), a non-negative
        number or a (traced) scalar.

    Returns:
      Temperatures of the shape of t, differentiable in t and epsilon_max (0 at the jump of tau_star = 1).

    Raises:
      TypeError: an argument is of another kind. ValueError: a concrete value is out of range.

    Source: Energy Matching (arXiv 2504.10612), the temperature schedule of its section on training.

    Examples:
      >>> t = jnp.array([0.0, 0.8, 0.9, 1.0, 2.0])
      >>> print(np.asarray(energymatch.temperature(t, tau_star=0.8, epsilon_max=0.5)).round(2))
      [0.   0.   0.25 0.5  0.5 ]
    """
    t, tau_star = _time(t), unit_interval(tau_star, "tau_star")
    epsilon_max = number(epsilon_max, "epsilon_max", "finite and non-negative")
    if tau_star == 1:
        return epsilon_max * (t >= 1).astype(t.dtype)
    # By the time left, not the time since tau_star: exactly epsilon_max at t = 1 in any precision.
    return epsilon_max * (1 - _share_left(t, tau_star))


def flow_weight(t: Array | float, tau_star: float) -> Array:
    """w(t), the weight of the flow-matching loss in phase 2: 1 up to tau_star, linear to 0 at 1, 0 after.

    With tau_star = 1 there is no gate: the weight is 1 at every t.

    Args:
      t: times of any shape, from 0 on.
      tau_star: where the weight leaves 1, a number in [0, 1].

    Returns:
      Weights in [0, 1], of the shape of t.

    Raises:
      TypeError: an argument is of another kind. ValueError: a concrete value is out of range.

    Source: Energy Matching (arXiv 2504.10612), phase 2 of its training.

    Examples:
      >>> t = jnp.array([0.0, 0.8, 0.9, 1.0])
      >>> print(np.asarray(energymatch.flow_weight(t, tau_star=0.8)).round(2))
      [1.  1.  0.5 0. ]
    """
    t, tau_star = _time(t), unit_interval(tau_star, "tau_star")
    return jnp.ones_like(t) if tau_star == 1 else _share_left(t, tau_star)


def _share_left(t: Array, tau_star: float) -> Array:
    return jnp.clip((1 - t) / (1 - tau_star), 0, 1)


def _time(t: Any) -> Array:
    """`t` as a float array; known values below 0 raise, those of a plain number under jit as well."""
    array = checks.as_array(t, "t", "a time or an array of times")
    known, t = checks.concrete(t if isinstance(t, numbers.Real) else array), array
    if jnp.issubdtype(t.dtype, jnp.integer):
        t = t.astype(float)
    t = checks.float_array(t, "t")
    if known is not None and not np.all(known >= 0):
        raise ValueError(f"t must be at least 0, got {known[~(known >= 0)].ravel()[0]}")
    return t
