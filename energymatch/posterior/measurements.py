"""Measurement energies: -log p(y | A(x)) in nats, and their sum with a potential."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.checks import number
from egm.typing import Array
from energymatch.langevin.state import check_energies
from energymatch.posterior.operators import Operator
from energymatch.potential import Potential

__all__ = ["gaussian_measurement", "measurement", "with_energies"]


def measurement(
    operator: Operator, y: Any, negative_log_likelihood: Callable[[Array, Any], Array]
) -> Potential:
    """U(x) = -log p(y | A(x)) for any likelihood.

    Args:
      operator: A(x) -> [B, *measurement], linear or not: `energymatch.posterior.operators` or one's own.
      y: what was measured, handed on as it is.
      negative_log_likelihood: (A(x), y) -> [B] in nats, constants left out or not; differentiable in
        A(x). Where it is +inf the likelihood is zero.

    Returns:
      U(x) -> [B].

    Raises:
      TypeError: a function is not callable. TypeError, ValueError (from U): its output is no float [B].

    Examples:
      >>> poisson = lambda rate, count: jnp.sum(rate - count * jnp.log(rate), axis=-1)
      >>> energy = energymatch.posterior.measurement(jnp.exp, jnp.array([3.0, 5.0]), poisson)
      >>> print(np.asarray(energy(jnp.log(jnp.array([[3.0, 5.0], [1.0, 1.0]])))).round(2))
      [-3.34  2.  ]
    """
    checks.function(operator, "operator")
    checks.function(negative_log_likelihood, "negative_log_likelihood")

    def energy(x: Array) -> Array:
        x = checks.float_array(x, "x", min_ndim=1)
        value = negative_log_likelihood(operator(x), y)
        return checks.model_output(value, "negative_log_likelihood", x.shape[:1])

    return energy


def gaussian_measurement(operator: Operator, y: Array, scale: float | Array) -> Potential:
    """U(x) = |y - A(x)|^2 / (2 zeta^2), of y = A(x) + zeta n with n standard normal.

    zeta is the standard deviation of the noise of each measured number, in the units of y; the
    normaliser (size of y)/2 log(2 pi zeta^2) is left out.

    Args:
      operator: A(x) -> [B, *measurement], linear or not.
      y: [B, *measurement], or [*measurement]: one measurement for all of the batch. For G measurements
        with M members each: `jnp.repeat(y, M, axis=0)`.
      scale: zeta, a positive number, a traced scalar or [B].

    Returns:
      U(x) -> [B].

    Raises:
      TypeError, ValueError: an argument has a wrong type or value, a known y is not finite, or (from U)
        A(x) does not fit y.

    Examples:
      >>> total = energymatch.posterior.operators.linear(jnp.array([[1.0, 1.0]]))
      >>> energy = energymatch.posterior.gaussian_measurement(total, jnp.array([3.0]), scale=0.5)
      >>> print(energy(jnp.array([[1.0, 2.0], [1.0, 1.0]])))  # in nats
      [0. 2.]
    """
    y = checks.float_array(y, "y")
    known = checks.concrete(y)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f"y must be finite, got {known[~np.isfinite(known)].ravel()[0]}")
    shape = checks.as_array(scale, "scale").shape
    if len(shape) > 1:
        raise ValueError(f"scale must be a scalar or have shape [B], got shape {shape}")
    number(scale, "scale", "finite and positive", shape)

    def squares(prediction: Array, y: Array) -> Array:
        prediction = checks.wide(checks.float_array(prediction, "operator(x)", min_ndim=1))
        if y.shape not in (prediction.shape, prediction.shape[1:]):
            raise ValueError(
                f"y must have shape {prediction.shape} or {prediction.shape[1:]}, as operator(x) has, "
                f"got {y.shape}"
            )
        zeta = number(scale, "scale", "finite and positive", prediction.shape[:1]).astype(prediction.dtype)
        difference = jnp.broadcast_to(y.astype(prediction.dtype), prediction.shape) - prediction
        return jnp.sum(difference**2, axis=tuple(range(1, difference.ndim))) / (2 * zeta**2)

    return measurement(operator, y, squares)


def with_energies(potential: Potential, energies: Sequence[Potential], epsilon: float | Array) -> Potential:
    """V + epsilon sum_j U_j, the potential whose Boltzmann density at epsilon is the posterior.

    For `likelihood`, `tempering` and all else that takes a potential. (`langevin.sample` takes the
    energies apart, because its epsilon changes with time.)

    Args:
      potential: V(x) -> [B].
      energies: U_j(x) -> [B] in nats, each of one example alone.
      epsilon: temperature of the model, a positive number or a traced scalar.

    Raises:
      TypeError, ValueError: an argument has a wrong type or value, or an energy couples examples.
    """
    checks.function(potential, "potential")
    for i, energy in enumerate(check_energies(energies)):
        if getattr(energy, "couples_examples", False):
            raise ValueError(
                f"energies[{i}] couples examples: wrap potential and energies with joint, got {energy}"
            )
    epsilon = number(epsilon, "epsilon", "finite and positive")

    def total(x: Array) -> Array:
        value = checks.model_output(potential(x), "potential", x.shape[:1])
        for i, energy in enumerate(energies):
            term = checks.model_output(energy(x), f"energies[{i}]", x.shape[:1])
            value = value + epsilon.astype(value.dtype) * term.astype(value.dtype)
        return value

    return total
