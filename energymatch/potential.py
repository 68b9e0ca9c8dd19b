"""What follows from a potential V: its gradient, the velocity -grad V, the Boltzmann density exp(-V/epsilon).

A potential is `V(x) -> [B]` on x [B, *event], its parameters closed over, lower on data. Shape letters:
B batch, *event the axes of one state (a vector [D], an image [height, width, channels]).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from egm import checks
from egm.checks import number
from egm.typing import Array, Energy, PyTree

__all__ = [
    "ParametricPotential",
    "Potential",
    "boltzmann_energy",
    "boltzmann_log_density",
    "value_and_gradient",
    "velocity",
]

Potential = Callable[[Array], Array]
"""`V(x) -> [B]` with x [B, *event]: V of an example depends on that example alone."""


def value_and_gradient(potential: Potential, x: Array) -> tuple[Array, Array]:
    """V and grad V in one forward and one backward pass (of the sum over examples).

    Args:
      potential: V.
      x: [B, *event]; float32 where it is narrower.

    Returns:
      ([B] V(x), [B, *event] grad V(x)), in float32 or wider.

    Raises:
      TypeError: `x` or V(x) is not floating. ValueError: `x` has no batch axis or V(x) is not [B].
    """
    x = checks.wide(checks.float_array(x, "x", min_ndim=1))

    def total(x):
        value = _evaluate(potential, x)
        return jnp.sum(value), value

    gradient, value = jax.grad(total, has_aux=True)(x)
    return value, gradient


def velocity(potential: Potential, x: Array) -> Array:
    """[B, *event] the velocity of the transport, -grad V(x).

    Args, Raises: as `value_and_gradient`.

    Source: Energy Matching (arXiv 2504.10612), the field of the flow matching loss.
    """
    return -value_and_gradient(potential, x)[1]


def boltzmann_log_density(potential: Potential, x: Array, epsilon: float | Array) -> Array:
    """[B] the unnormalised log-density -V(x)/epsilon.

    Args:
      potential: V.
      x: [B, *event].
      epsilon: temperature, a positive number or a traced scalar (epsilon_max at equilibrium).

    Raises:
      TypeError, ValueError: as `value_and_gradient`, or `epsilon` is not a positive scalar.
    """
    x = checks.wide(checks.float_array(x, "x", min_ndim=1))
    epsilon = number(epsilon, "epsilon", "finite and positive")
    value = _evaluate(potential, x)
    return -value / epsilon.astype(value.dtype)


def boltzmann_energy(potential: Potential, epsilon: float | Array, *, event_ndim: int = 1) -> Energy:
    """E(x) = V(x)/epsilon as an `egm.Energy`, to be sampled by the machinery of `egm`.

    Args:
      potential: V.
      epsilon: temperature, a positive number or a traced scalar.
      event_ndim: number of axes of one state: 1 for vectors, 3 for images.

    Returns:
      A function of x [..., *event] with any batch axes; it raises as `value_and_gradient` does.

    Raises:
      TypeError: `potential` is not callable. TypeError, ValueError: `epsilon` is not a positive scalar,
        or `event_ndim` is no int above 0.
    """
    checks.function(potential, "potential")
    number(epsilon, "epsilon", "finite and positive")
    event_ndim = checks.positive_int(event_ndim, "event_ndim")

    def energy(x: Array) -> Array:
        x = checks.float_array(x, "x", min_ndim=event_ndim)
        batch, event = x.shape[: x.ndim - event_ndim], x.shape[x.ndim - event_ndim :]
        flat = x.reshape(math.prod(batch), *event)
        return -boltzmann_log_density(potential, flat, epsilon).reshape(batch)

    return energy


def _evaluate(potential: Potential, x: Array) -> Array:
    checks.function(potential, "potential")
    return checks.model_output(potential(x), "potential", x.shape[:1])


ParametricPotential = Callable[[PyTree, Array], Array]
"""`potential(params, x) -> [B]` on x [B, *event]."""
