"""Chains of Langevin dynamics: their state, what a move reports, and the checks of a move's arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.checks import number
from egm.typing import Array
from energymatch.potential import Potential, value_and_gradient

__all__ = [
    "LangevinInfo",
    "LangevinState",
    "Method",
    "Proposal",
    "Settings",
    "Temperature",
    "check_bounds",
    "check_energies",
    "check_step_size",
    "check_time",
    "evaluate",
    "outside",
    "reflect",
    "start_inside",
]

Temperature = float | Array | Callable[[Array], Array]
"""eps: a number, an array () or [B], or a function eps(t) of the times () or [B]."""


class LangevinState(NamedTuple):
    """Chains and what the next step needs of them; V and U apart, because eps(t) changes.

    Attributes:
      x: [B, *event].
      value: [B] V(x).
      gradient: [B, *event] grad V(x).
      energy: [B] sum_j U_j(x), a scalar term counted as its B-th part; None without extra energies.
      energy_gradient: [B, *event] its gradient, or None.
    """

    x: Array
    value: Array
    gradient: Array
    energy: Array | None
    energy_gradient: Array | None


class LangevinInfo(NamedTuple):
    """What happened to each chain in one step.

    Attributes:
      acceptance: [B] probability that the proposal was accepted: 1 for unadjusted moves, 0 where the
        chain was held.
      accepted: [B] bool, whether the chain moved.
      num_nonfinite: [B] int32, 1 where the proposal or its energies were not finite.
      num_outside: [B] int32, 1 where the chain stood outside `bounds` and was moved in instead of a step;
        None without bounds.
    """

    acceptance: Array
    accepted: Array
    num_nonfinite: Array
    num_outside: Array | None = None


class Proposal(NamedTuple):
    """What a method proposes.

    Attributes:
      state: at the proposed points, or at the old one where there is none.
      finite: [B] whether there is a point, at every stage of the method.
      sign: [B, *event] 1 or -1, the derivative of the point's reflection; None without bounds.
    """

    state: LangevinState
    finite: Array
    sign: Array | None


@runtime_checkable
class Method(Protocol):
    """How one step is made; frozen and hashable. `walk` is a `methods.Walk`: time, length, noise, walls."""

    adjusted: ClassVar[bool]
    """Whether it has a test: it takes a second key then, and energies of one example each only."""

    def propose(self, walk: Any, state: LangevinState) -> Proposal:
        """Where the chains would go."""
        ...

    def log_acceptance(self, walk: Any, old: LangevinState, proposal: Proposal) -> Array | None:
        """[B] the log of the odds to accept, below 0 or not; None where every finite proposal is."""
        ...


class Settings(NamedTuple):
    """What stays the same over the steps of a chain, checked by `methods.check_settings`."""

    potential: Potential
    temperature: Temperature
    energies: tuple[Potential, ...]
    method: Method
    bounds: tuple[float, float] | None


def check_bounds(bounds: Any) -> tuple[float, float] | None:
    """(lo, hi) or None; raises TypeError or ValueError for anything else."""
    if bounds is None:
        return None
    if not isinstance(bounds, (tuple, list)) or len(bounds) != 2:
        raise TypeError(f"bounds must be None or a pair (lo, hi), got {bounds!r}")
    lo, hi = (checks.finite_float(b, "bounds") for b in bounds)
    if lo >= hi:
        raise ValueError(f"bounds must be (lo, hi) with lo < hi, got {bounds}")
    return lo, hi


def reflect(x: Array, bounds: tuple[float, float]) -> tuple[Array, Array]:
    """(x folded into the box at its walls, however often; 1 or -1, the derivative of each coordinate)."""
    lo, hi = bounds
    inside = (x >= lo) & (x <= hi)
    phase = jnp.mod(jnp.where(inside, lo, x) - lo, 2 * (hi - lo))
    back = phase > hi - lo
    folded = jnp.clip(lo + jnp.where(back, 2 * (hi - lo) - phase, phase), lo, hi)
    return jnp.where(inside, x, folded), jnp.where(inside | ~back, 1.0, -1.0).astype(x.dtype)


def outside(x: Array, bounds: tuple[float, float]) -> Array:
    """[B] whether x [B, *event] has a finite coordinate out of the box."""
    return _any(jnp.isfinite(x) & ((x < bounds[0]) | (x > bounds[1])))


def start_inside(x: Any, name: str, bounds: tuple[float, float] | None) -> tuple[Array, Array | None]:
    """Starts [B, *event] reflected into the box, and [B] int32 which were outside (None without a box).

    Raises:
      ValueError: known starts are outside, or `bounds` are no pair. TypeError: not floating.
    """
    bounds = check_bounds(bounds)
    known = checks.concrete(x) if isinstance(x, np.ndarray | jax.Array) else None
    x = checks.wide(checks.not_empty(checks.float_array(x, name, min_ndim=1), name))
    if bounds is None:
        return x, None
    known = checks.concrete(x) if known is None else known
    if known is not None:
        bad = np.isfinite(known) & ((known < bounds[0]) | (known > bounds[1]))
        if np.any(bad):
            raise ValueError(f"{name} must lie in bounds {bounds}, got {known[bad].ravel()[0]}")
    return reflect(x, bounds)[0], outside(x, bounds).astype(jnp.int32)


def check_energies(energies: Any) -> tuple[Potential, ...]:
    """The terms as a tuple; raises TypeError unless they are functions."""
    if not isinstance(energies, (tuple, list)) or not all(callable(u) for u in energies):
        raise TypeError(f"energies must be a tuple of functions, got {energies!r}")
    return tuple(energies)


def check_time(t: Any, name: str, batch: int) -> Array:
    """`t` as an array () or [B]; known values must be finite."""
    return number(t, name, "finite", (batch,))


def check_step_size(step_size: Any, batch: int) -> Array:
    """`step_size` as an array () or [B]; known values must be finite and positive."""
    return number(step_size, "step_size", "finite and positive", (batch,))


def _energy_and_gradient(energies: Sequence[Potential], x: Array, adjusted: bool) -> tuple[Array, Array]:
    """([B] the sum of the terms, a scalar one shared out evenly; [B, *event] the sum's gradient)."""
    batch = x.shape[0]

    def total(x):
        value = jnp.zeros(batch, x.dtype)
        for i, energy in enumerate(energies):
            name, term = f"energies[{i}]", energy(x)
            if adjusted and getattr(energy, "couples_examples", False):
                raise ValueError(
                    f"{name} couples examples, which 'mala' tests one by one: use posterior.joint"
                )
            if jnp.shape(term) == () and not adjusted:
                term = checks.model_output(term, name, ()) / batch
            elif jnp.shape(term) == ():
                raise ValueError(f"{name} must return shape {(batch,)} with method 'mala', got ()")
            else:
                term = checks.model_output(term, name, (batch,))
            value = value + term.astype(x.dtype)
        return jnp.sum(value), value

    gradient, value = jax.grad(total, has_aux=True)(x)
    return value, gradient


def evaluate(settings: Settings, x: Array) -> LangevinState:
    """The state of chains at x [B, *event], in float32 or wider: a step rounded to bfloat16 drifts."""
    x = checks.wide(x)
    value, gradient = value_and_gradient(settings.potential, x)
    energy = energy_gradient = None
    if settings.energies:
        energy, energy_gradient = _energy_and_gradient(settings.energies, x, settings.method.adjusted)
    return LangevinState(x, value.astype(x.dtype), gradient, energy, energy_gradient)


def _any(mask: Array) -> Array:
    """[B] whether a mask [B, *event] holds anywhere in the event."""
    return jnp.any(mask, axis=tuple(range(1, mask.ndim)))
