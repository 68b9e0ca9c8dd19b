"""One move of Langevin dynamics: a method proposes it and tells its odds, `move` does the rest.

`EulerMaruyama`, `Heun` and `MALA` are what `langevin.step` takes as its method; a class of one's own with
the same members (`Method`) is as good. Shape letters: B chains, *event the axes of one state.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from egm import checks, random
from egm.checks import number
from egm.typing import Array
from energymatch.langevin.state import (
    LangevinInfo,
    LangevinState,
    Method,
    Proposal,
    Settings,
    Temperature,
    check_bounds,
    check_energies,
    evaluate,
    outside,
    reflect,
)
from energymatch.potential import Potential

__all__ = [
    "ALIASES",
    "EulerMaruyama",
    "Heun",
    "MALA",
    "METHODS",
    "Walk",
    "check_settings",
    "drift",
    "finite_states",
    "move",
    "resolve",
]


@dataclasses.dataclass(frozen=True)
class EulerMaruyama:
    """x - h G(x, t) + sqrt(2 eps(t) h) eta, G = grad V + eps sum_j grad U_j: its law is off by O(h)."""

    adjusted: ClassVar[bool] = False

    def propose(self, walk: Walk, state: LangevinState) -> Proposal:
        """One evaluation of V."""
        y, finite, sign = walk.to(state.x, drift(state, walk.epsilon), walk.epsilon)
        return Proposal(evaluate(walk.settings, y), finite, sign)

    def log_acceptance(self, walk: Walk, old: LangevinState, proposal: Proposal) -> None:
        """Every finite proposal is accepted."""
        return None


@dataclasses.dataclass(frozen=True)
class Heun:
    """x - h (G(x, t) + G(x', t + h))/2 + noise of variance (eps(t) + eps(t + h)) h, x' the Euler step.

    One normal eta serves both.
    """

    adjusted: ClassVar[bool] = False

    def propose(self, walk: Walk, state: LangevinState) -> Proposal:
        """Two evaluations of V."""
        epsilon_end = walk.epsilon_at(walk.t + walk.step_size)
        first = drift(state, walk.epsilon)
        y, finite, _ = walk.to(state.x, first, epsilon_end)
        predicted = evaluate(walk.settings, y)
        mean = 0.5 * (first + drift(predicted, epsilon_end))
        y, also_finite, sign = walk.to(state.x, mean, epsilon_end)
        return Proposal(evaluate(walk.settings, y), finite & finite_states(predicted) & also_finite, sign)

    def log_acceptance(self, walk: Walk, old: LangevinState, proposal: Proposal) -> None:
        """Every finite proposal is accepted."""
        return None


@dataclasses.dataclass(frozen=True)
class MALA:
    """The Euler step as a proposal at the temperature eps(t), accepted by Metropolis' test: exact for any h.

    Source: Roberts and Tweedie (1996).
    """

    adjusted: ClassVar[bool] = True

    def propose(self, walk: Walk, state: LangevinState) -> Proposal:
        """One evaluation of V."""
        return EulerMaruyama().propose(walk, state)

    def log_acceptance(self, walk: Walk, old: LangevinState, proposal: Proposal) -> Array:
        """[B] log of pi(y) q(x | y) / (pi(x) q(y | x)), pi = exp(-V/eps - U), q the Euler step's density.

        In a box the test is that of the density continued evenly at every wall: y is the proposal before its
        reflection, where the slope is `sign` times that in the box. The moves commute with the reflections,
        so that what is seen in the box keeps the density there, whichever image of y was drawn.

        With c = sqrt(h / (2 eps)) (G(x) + G(y)) the densities' ratio is exp(c . (eta - c/2)): no difference
        of large squares.
        """
        new, eta = proposal.state, walk.eta
        epsilon = jnp.where(walk.epsilon == 0, 1.0, walk.epsilon)
        log_ratio = (old.value - new.value) / epsilon
        if old.energy is not None and new.energy is not None:
            log_ratio = log_ratio + old.energy - new.energy
        backward = drift(new, epsilon)
        if proposal.sign is not None:
            backward = proposal.sign * backward
        c = _wide(jnp.sqrt(0.5 * walk.h / epsilon), eta) * (drift(old, epsilon) + backward)
        return log_ratio + jnp.sum(c * (eta - 0.5 * c), axis=tuple(range(1, eta.ndim)))


ALIASES: dict[str, Method] = {"euler_maruyama": EulerMaruyama(), "heun": Heun(), "mala": MALA()}
METHODS = tuple(ALIASES)
"""Names of the discretisations."""


@dataclasses.dataclass(frozen=True)
class Walk:
    """What a method is given to propose with: one step's time, length, temperature, noise and walls.

    Attributes:
      settings: of the chains.
      t: () or [B] the time of the step's start.
      step_size: () or [B] as given; h: [B] in the dtype of the chains.
      epsilon: [B] eps(t).
      eta: [B, *event] normal noise, one for the whole step.
      strayed: [B] chains that stand outside the bounds; None without.
    """

    settings: Settings
    t: Array
    step_size: Array
    h: Array
    epsilon: Array
    eta: Array
    strayed: Array | None

    def epsilon_at(self, t: Array) -> Array:
        """[B] eps at another time."""
        return _epsilon(self.settings.temperature, t, self.eta)

    def to(self, x: Array, slope: Array, epsilon_end: Array) -> tuple[Array, Array, Array | None]:
        """x - h slope + noise of variance (eps(t) + epsilon_end) h, kept in the box.

        Returns:
          ([B, *event] the point to evaluate, x where there is none; [B] whether it is finite; [B, *event] the
          sign of its reflection, None without bounds).
        """
        variance = (self.epsilon + epsilon_end) * self.h
        y, sign = x - _wide(self.h, x) * slope + _wide(_root(variance), x) * self.eta, None
        finite = _all(jnp.isfinite(y))
        bounds = self.settings.bounds
        if bounds is not None and self.strayed is not None:
            folded, sign = reflect(y, bounds)
            # Without noise the flow stops at a wall.
            y = _select(variance == 0, jnp.clip(y, *bounds), folded)
            y = _select(self.strayed, reflect(x, bounds)[0], y)
        return _select(finite, y, x), finite, sign


def resolve(method: Any, names: tuple[str, ...] = METHODS) -> Method:
    """The method of a name, or the method itself; raises ValueError where it is neither.

    Args:
      method: one of `names`, or an object with `propose` and `log_acceptance`.
      names: those allowed; an object that has another name is refused too.
    """
    found: Any = ALIASES.get(method) if isinstance(method, str) else method
    refused = [one for name, one in ALIASES.items() if name not in names]
    if isinstance(found, type) or not isinstance(found, Method) or found in refused:
        raise ValueError(f"method must be one of {names}, got {method!r}")
    return found


def check_settings(
    potential: Potential, temperature: Temperature, energies: Any, method: Any, bounds: Any
) -> Settings:
    """What stays the same over the steps; raises TypeError or ValueError that names the argument."""
    checks.function(potential, "potential")
    method = resolve(method)
    return Settings(potential, temperature, check_energies(energies), method, check_bounds(bounds))


def move(
    keys: Array, state: LangevinState, t: Array, step_size: Array, settings: Settings
) -> tuple[LangevinState, LangevinInfo]:
    """`langevin.step` with checked arguments: keys [B], t and step_size () or [B]."""
    state = jax.tree.map(checks.wide, state)
    x, method = state.x, settings.method
    test_keys = noise_keys = random.derive(keys, "langevin")
    if method.adjusted:
        noise_keys, test_keys = random.split(test_keys)
    eta = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:], x.dtype))(noise_keys)
    h = jnp.broadcast_to(step_size.astype(x.dtype), x.shape[:1])
    strayed = None if settings.bounds is None else outside(x, settings.bounds)
    walk = Walk(settings, t, step_size, h, _epsilon(settings.temperature, t, x), eta, strayed)
    proposal = method.propose(walk, state)
    new = proposal.state
    usable = proposal.finite & finite_states(new)
    num_outside = None if strayed is None else strayed.astype(jnp.int32)
    log_ratio = method.log_acceptance(walk, state, proposal)
    if log_ratio is None:
        info = LangevinInfo(usable.astype(x.dtype), usable, (~usable).astype(jnp.int32), num_outside)
        return _select(usable, new, state), info
    # A move without noise and one back into the box are no proposals of a density's.
    certain = walk.epsilon == 0 if strayed is None else (walk.epsilon == 0) | strayed
    usable = usable & (certain | ~jnp.isnan(log_ratio))
    acceptance = jnp.where(certain, 1.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    acceptance = jnp.where(usable, acceptance, 0.0)
    accepted = jax.vmap(lambda k: jax.random.uniform(k, (), x.dtype))(test_keys) < acceptance
    zero_density = proposal.finite & (_is_infinite(new.value) | _is_infinite(new.energy))
    num_nonfinite = (~usable & ~zero_density).astype(jnp.int32)
    return _select(accepted, new, state), LangevinInfo(acceptance, accepted, num_nonfinite, num_outside)


def drift(state: LangevinState, epsilon: Array) -> Array:
    """[B, *event] G = grad[V + eps sum_j U_j]."""
    if state.energy_gradient is None:
        return state.gradient
    return state.gradient + _wide(epsilon, state.x) * state.energy_gradient


def finite_states(state: LangevinState) -> Array:
    """[B] whether all that a state holds is finite."""
    leaves = [_all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]
    return jnp.all(jnp.stack(leaves), axis=0)


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


def _is_infinite(value: Array | None) -> Array | bool:
    return False if value is None else value == jnp.inf


def _root(variance: Array) -> Array:
    """Square root with a gradient of 0 at 0; NaN below, so that a negative temperature is counted."""
    zero = variance == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, variance)))
