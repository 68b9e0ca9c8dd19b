"""One move of Langevin dynamics: its arguments, its proposal, Metropolis' test. `langevin` is the door to it.

Shape letters as there: B chains, *event the axes of one state.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, random
from egm.checks import number
from egm.typing import Array
from energymatch.langevin.state import (
    LangevinInfo,
    LangevinState,
    Settings,
    Temperature,
    evaluate,
    outside,
    reflect,
)


def _epsilon(temperature: Temperature, t: Array, x: Array) -> Array:
    """[B] eps(t) in the dtype of x; a traced value below 0 makes a proposal that is not finite."""
    epsilon = temperature(t) if callable(temperature) else temperature
    epsilon = number(epsilon, "temperature", "finite and non-negative", x.shape[:1])
    return jnp.broadcast_to(epsilon.astype(x.dtype), x.shape[:1])


def _wide(a: Array, like: Array) -> Array:
    """[B] with axes of length 1 for the event."""
    return a.reshape(a.shape + (1,) * (like.ndim - 1))


def _all(mask: Array) -> Array:
    """[B] whether a mask [B, *event] holds everywhere in the event."""
    return jnp.all(mask, axis=tuple(range(1, mask.ndim)))


def _select(mask: Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(_wide(mask, a), a, b), new, old)


def _finite(state: LangevinState) -> Array:
    leaves = [_all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]
    return jnp.all(jnp.stack(leaves), axis=0)


def _drift(state: LangevinState, epsilon: Array) -> Array:
    """[B, *event] grad[V + eps sum_j U_j]."""
    if state.energy_gradient is None:
        return state.gradient
    return state.gradient + _wide(epsilon, state.x) * state.energy_gradient


def move(
    keys: Array, state: LangevinState, t: Array, step_size: Array, settings: Settings
) -> tuple[LangevinState, LangevinInfo]:
    """`langevin.step` with checked arguments: keys [B], t and step_size () or [B]."""
    state = jax.tree.map(checks.wide, state)
    x, method, bounds = state.x, settings.method, settings.bounds
    h = jnp.broadcast_to(step_size.astype(x.dtype), x.shape[:1])
    epsilon = epsilon_end = _epsilon(settings.temperature, t, x)
    if method == "heun":
        epsilon_end = _epsilon(settings.temperature, t + step_size, x)
    noise_keys = keys = random.derive(keys, "langevin")
    if method == "mala":
        noise_keys, uniform_keys = random.split(keys)
    eta = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(noise_keys)
    variance = (epsilon + epsilon_end) * h
    random_part = _wide(_root(variance), x) * eta
    cold = epsilon == 0
    strayed = None if bounds is None else outside(x, bounds)

    def proposal(drift):
        """(point to evaluate: x where there is none, [B] whether it is finite, sign of its reflection)."""
        y, sign = x - _wide(h, x) * drift + random_part, None
        finite = _all(jnp.isfinite(y))
        if bounds is not None:
            folded, sign = reflect(y, bounds)
            # Without noise the flow stops at a wall.
            y = _select(variance == 0, jnp.clip(y, *bounds), folded)
            y = _select(strayed, reflect(x, bounds)[0], y)
        return _select(finite, y, x), finite, sign

    drift = _drift(state, epsilon)
    y, finite, sign = proposal(drift)
    new = evaluate(settings, y)
    if method == "heun":
        finite = finite & _finite(new)
        y, also_finite, _ = proposal(0.5 * (drift + _drift(new, epsilon_end)))
        finite, new = finite & also_finite, evaluate(settings, y)
    usable = finite & _finite(new)
    num_outside = None if strayed is None else strayed.astype(jnp.int32)
    if method != "mala":
        info = LangevinInfo(usable.astype(x.dtype), usable, (~usable).astype(jnp.int32), num_outside)
        return _select(usable, new, state), info

    log_ratio = _log_acceptance(state, new, eta, epsilon, h, sign)
    certain = cold if strayed is None else cold | strayed
    usable = usable & (certain | ~jnp.isnan(log_ratio))
    acceptance = jnp.where(certain, 1.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    acceptance = jnp.where(usable, acceptance, 0.0)
    accepted = jax.vmap(lambda k: jax.random.uniform(k, (), x.dtype))(uniform_keys) < acceptance
    zero_density = finite & (_is_infinite(new.value) | _is_infinite(new.energy))
    num_nonfinite = (~usable & ~zero_density).astype(jnp.int32)
    return _select(accepted, new, state), LangevinInfo(acceptance, accepted, num_nonfinite, num_outside)


def _log_acceptance(
    old: LangevinState, new: LangevinState, eta: Array, epsilon: Array, h: Array, sign: Array | None
) -> Array:
    """[B] log of pi(y) q(x | y) / (pi(x) q(y | x)), pi = exp(-V/eps - U), y = x - h G(x) + sqrt(2 eps h) eta.

    In a box the test is that of the density continued evenly at every wall: y is the proposal before its
    reflection, where the slope is `sign` times that in the box. The moves commute with the reflections,
    so that what is seen in the box keeps the density there, whichever image of y was drawn.

    With c = sqrt(h / (2 eps)) (G(x) + G(y)) the densities' ratio is exp(c . (eta - c/2)): no difference
    of large squares.
    """
    epsilon = jnp.where(epsilon == 0, 1.0, epsilon)
    log_ratio = (old.value - new.value) / epsilon
    if old.energy is not None:
        log_ratio = log_ratio + old.energy - new.energy
    backward = _drift(new, epsilon) if sign is None else sign * _drift(new, epsilon)
    c = _wide(jnp.sqrt(0.5 * h / epsilon), eta) * (_drift(old, epsilon) + backward)
    return log_ratio + jnp.sum(c * (eta - 0.5 * c), axis=tuple(range(1, eta.ndim)))


def _is_infinite(value: Array | None) -> Array | bool:
    return False if value is None else value == jnp.inf


def _root(variance: Array) -> Array:
    """Square root with a gradient of 0 at 0; NaN below, so that a negative temperature is counted."""
    zero = variance == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, variance)))
