"""Parallel tempering: Langevin chains at several temperatures that swap states with their neighbours.

Rung r of a ladder samples exp(-V/T_r), T_0 = epsilon_max the coldest; hot rungs cross the barriers and
hand what they find down, which sets the relative mass of separate modes right where a single chain
keeps the mass it started with. A ladder is a state that is carried from call to call, while V may
change in between. Shape letters: R rungs, B ladders, *event the axes of one state.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, random
from egm.checks import number
from egm.typing import Array, Key
from energymatch import langevin
from energymatch.langevin import methods
from energymatch.langevin.scans import fold, scan
from energymatch.langevin.state import check_bounds, evaluate, start_inside
from energymatch.potential import Potential, value_and_gradient

__all__ = [
    "ADAPTATION_RATE",
    "METHODS",
    "TARGET_ACCEPTANCE",
    "TARGET_SWAP_ACCEPTANCE",
    "TemperingInfo",
    "TemperingState",
    "factor_for",
    "geometric_temperatures",
    "init",
    "step",
]

METHODS = ("mala", "euler_maruyama")
"""Names of the moves within a rung."""
TARGET_ACCEPTANCE = 0.57
"""Of the moves: the optimum of "mala" in many dimensions (Roberts and Rosenthal, 1998)."""
ADAPTATION_RATE = 0.5
"""Change of a log step size a call, times what the acceptance is off."""
TARGET_SWAP_ACCEPTANCE = 0.4
"""What `factor_for` aims at: between .23, the optimum for one ladder, and what few rungs can afford."""


class TemperingState(NamedTuple):
    """B ladders of R rungs, coldest first.

    Attributes:
      x: [R, B, *event].
      value: [R, B] V(x) by the potential of the last call.
      gradient: [R, B, *event] grad V(x) by the same.
      num_rounds: int32, rounds of swaps so far: even ones pair rungs (0, 1), (2, 3), ..., odd ones (1, 2),
        (3, 4), ...
      log_step_sizes: [R] logarithms of the step sizes, which `step` adapts; None where it is given them.
    """

    x: Array
    value: Array
    gradient: Array
    num_rounds: Array
    log_step_sizes: Array | None = None


class TemperingInfo(NamedTuple):
    """What one call did, over the ladders of all devices.

    Attributes:
      acceptance: [R] mean acceptance probability of the moves.
      swap_acceptance: [R - 1] mean probability of swapping rungs r and r + 1, in every round, whether
        that pair was up or not.
      num_nonfinite: [R] int32, moves in which a non-finite proposal held the chain where it was.
      num_outside: [R] int32, states that stood outside `bounds` and were reflected in; None without bounds.
    """

    acceptance: Array
    swap_acceptance: Array
    num_nonfinite: Array
    num_outside: Array | None = None


def geometric_temperatures(epsilon_max: float | Array, factor: float, num: int) -> Array:
    """[num] temperatures epsilon_max * factor^r, r = 0..num - 1.

    Args:
      epsilon_max: the coldest, a positive number or a traced scalar.
      factor: ratio of neighbours, above 1.
      num: number of rungs R.

    Raises:
      TypeError, ValueError: an argument has a wrong type or value.
    """
    factor = checks.positive_float(factor, "factor")
    if factor <= 1:
        raise ValueError(f"factor must be above 1, got {factor}")
    num = checks.positive_int(num, "num")
    epsilon_max = number(epsilon_max, "epsilon_max", "finite and positive")
    return epsilon_max * jnp.asarray(factor ** np.arange(num), epsilon_max.dtype)


def factor_for(dim: int, acceptance: float = TARGET_SWAP_ACCEPTANCE) -> float:
    """The ratio of neighbouring temperatures at which swaps of a quadratic well have a given acceptance.

    In D dimensions V/T is a gamma variate of shape D/2 on every rung, and a swap of rungs of ratio f has the
    mean probability A = int_w^(pi/2) cos^(D-1) / int_0^(pi/2) cos^(D-1) with sin w = (f - 1)/(f + 1), the
    incomplete beta law. So f is about 1 + c/sqrt(D), c = 1.7 at A = .4: a fixed ratio has no swaps left in
    many dimensions.

    Args:
      dim: D, the number of elements of an event.
      acceptance: A, in (0, 1).

    Returns:
      f > 1.

    Raises:
      TypeError, ValueError: an argument has a wrong type or value.

    Source: Predescu, Predescu and Ciobanu (2004), the incomplete beta function law.
    """
    dim = checks.positive_int(dim, "dim")
    acceptance = checks.positive_float(acceptance, "acceptance")
    if acceptance >= 1:
        raise ValueError(f"acceptance must be below 1, got {acceptance}")
    # cos^(D-1) w is below e^-50 beyond 10/sqrt(D - 1).
    w = np.linspace(0.0, min(0.5 * np.pi, 10 / np.sqrt(max(dim - 1, 1))), 20_001)
    density = np.cos(w) ** (dim - 1)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]))])
    sine = np.sin(np.interp(1 - acceptance, mass / mass[-1], w))
    return float((1 + sine) / (1 - sine))


def init(
    potential: Potential,
    x: Array,
    temperatures: Array,
    *,
    step_size: float | Array | None = None,
    bounds: tuple[float, float] | None = None,
) -> TemperingState:
    """Ladders with every rung at x.

    Args:
      potential: V(x) -> [B].
      x: [B, *event]; float32 where it is narrower.
      temperatures: [R] increasing, from `geometric_temperatures` or of one's own.
      step_size: what `step` adapts the step sizes from, a number or [R]; None where `step` is given them.

      bounds: of `step`: a known x outside raises, a traced one is reflected in.

    Raises:
      TypeError, ValueError: an argument has a wrong type or shape, the temperatures do not increase, or a
        known x lies outside `bounds`.
    """
    x, _ = start_inside(x, "x", bounds)
    value, gradient = value_and_gradient(potential, x)
    num_rungs = _temperatures(temperatures).size
    rungs = lambda a: jnp.broadcast_to(a, (num_rungs, *a.shape))
    if step_size is not None:
        step_size = number(step_size, "step_size", "finite and positive", (num_rungs,))
        step_size = jnp.broadcast_to(jnp.log(step_size), (num_rungs,))
    return TemperingState(rungs(x), rungs(value), rungs(gradient), jnp.zeros((), jnp.int32), step_size)


def step(
    key: Key,
    state: TemperingState,
    *,
    potential: Potential,
    temperatures: Array,
    step_size: float | Array | None = None,
    num_steps: int = 10,
    num_swaps: int = 2,
    method: str | langevin.Method = "mala",
    bounds: tuple[float, float] | None = None,
    target_acceptance: float = TARGET_ACCEPTANCE,
    max_step_size: float | Array | None = None,
    axis_name: str | None = None,
) -> tuple[TemperingState, TemperingInfo]:
    """`num_steps` Langevin moves on every rung, then `num_swaps` rounds of swaps between neighbours.

    V and its gradient are evaluated anew at the start, as the potential may have been trained since.
    A swap of rungs i and j has probability min(1, exp((1/T_i - 1/T_j) (V_i - V_j))). With "mala" the
    product of the rungs' Boltzmann densities is left invariant whatever the step sizes. All R * B
    states go through the potential in one call, num_steps + 1 times.

    Args:
      key: a typed key, folded with the global index of each ladder, or [B] keys.
      state: from `init` or a call before.
      potential: V(x) -> [R * B] on x [R * B, *event].
      temperatures: [R] increasing.
      step_size: h for all rungs, or [R], such as h * (temperatures / temperatures[0]) ** -0.5. None: those
        of the state, which then change after the moves by a factor exp(rate (acceptance - target)) with
        the mean acceptance of each rung over all devices.
      num_steps: moves, at least 1.
      num_swaps: rounds of swaps; 0 for none.
      method: one of METHODS, or a `langevin.Method`. "euler_maruyama" has its bias on every rung.
      bounds: (lo, hi) of each coordinate, as in `langevin.step`.
      target_acceptance: of the moves, where the state's step sizes are adapted; "mala" only.
      max_step_size: what adapted step sizes stay below, a positive number or a traced scalar; None for no
        limit. Where V is flat every move is accepted and they grow until something stops them.
      axis_name: the mapped axis over which the ladders (axis 1 of the state) are split.

    Returns:
      (state, info). Rung 0 of the state samples the density at the coldest temperature.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.

    Source: Swendsen and Wang (1986); Geyer (1991).
    """
    found, box = methods.resolve(method, METHODS), check_bounds(bounds)
    checks.function(potential, "potential")
    num_steps = checks.positive_int(num_steps, "num_steps")
    num_swaps = checks.positive_int(num_swaps, "num_swaps", 0)
    checks.below_one(checks.positive_float(target_acceptance, "target_acceptance"), "target_acceptance")
    temperatures = _temperatures(temperatures)
    num_rungs, batch = checks.instance(state, TemperingState, "state").x.shape[:2]
    if temperatures.size != num_rungs:
        raise ValueError(f"temperatures must have shape ({num_rungs},), got {temperatures.shape}")
    adapted = step_size is None
    if step_size is None:
        if state.log_step_sizes is None:
            raise ValueError(
                "step_size must be given where the state was made without: tempering.init(step_size=...)"
            )
        step_size = jnp.exp(checks.wide(state.log_step_sizes))
    if max_step_size is not None:
        max_step_size = number(max_step_size, "max_step_size", "finite and positive", (num_rungs,))
    step_size = number(step_size, "step_size", "finite and positive", (num_rungs,))
    keys = random.example_keys(key, batch, axis_name)

    state = jax.tree.map(checks.wide, state)
    temperatures = temperatures.astype(state.x.dtype)
    move_keys, swap_keys = random.split(keys)
    settings = methods.Settings(potential, jnp.tile(temperatures, batch), (), found, box)
    new, totals = _moves(move_keys, state, settings, step_size, num_steps)
    new, swap_acceptance = _swap(swap_keys, new, temperatures, num_swaps)
    acceptance, num_nonfinite, num_outside = totals
    count = lambda a: collectives.psum(jnp.sum(a, axis=1), axis_name)
    info = TemperingInfo(
        collectives.pmean(jnp.mean(acceptance, axis=1), axis_name) / num_steps,
        collectives.pmean(jnp.mean(swap_acceptance, axis=1), axis_name),
        count(num_nonfinite),
        None if num_outside is None else count(num_outside),
    )
    if adapted and found.adjusted:
        excess = info.acceptance - target_acceptance
        new = new._replace(log_step_sizes=_adapted(state.log_step_sizes, excess, max_step_size))
    return new, info


def _moves(
    keys: Array, state: TemperingState, settings: methods.Settings, step_size: Array, num_steps: int
) -> tuple[TemperingState, tuple[Array, Array, Array | None]]:
    """(state, [R, B] sums over steps of acceptance, proposals not finite, strays) of moves on all rungs."""
    num_rungs, batch = state.x.shape[:2]
    # Flattened with the ladder in front, [B * R], so that ladders split over devices stay where they are.
    flatten = lambda a: jnp.swapaxes(a, 0, 1).reshape(num_rungs * batch, *a.shape[2:])
    rungs = lambda a: jnp.swapaxes(a.reshape(batch, num_rungs, *a.shape[1:]), 0, 1)
    rung_keys = flatten(jax.vmap(fold, (None, 0))(keys, np.arange(num_rungs)))
    t, h = jnp.zeros(()), jnp.tile(jnp.broadcast_to(step_size, (num_rungs,)), batch)

    def body(carry, k):
        chains, totals = carry
        chains, info = methods.move(fold(rung_keys, k), chains, t, h, settings)
        now = (info.acceptance, info.num_nonfinite, info.num_outside)
        return (chains, jax.tree.map(jnp.add, totals, now)), None

    chains = evaluate(settings, flatten(state.x))
    none = jnp.zeros(chains.value.shape, jnp.int32)
    totals = (none.astype(chains.x.dtype), none, None if settings.bounds is None else none)
    (chains, totals), _ = scan(body, (chains, totals), np.arange(num_steps))
    new = state._replace(x=rungs(chains.x), value=rungs(chains.value), gradient=rungs(chains.gradient))
    return new, jax.tree.map(rungs, totals)


def _adapted(log_step_sizes: Any, excess: Array, max_step_size: Array | None) -> Array:
    """[R] log step sizes, longer where more moves are accepted than was aimed at."""
    log_step_sizes = log_step_sizes + (ADAPTATION_RATE * excess).astype(log_step_sizes.dtype)
    return log_step_sizes if max_step_size is None else jnp.minimum(log_step_sizes, jnp.log(max_step_size))


def _swap(keys: Array, state: TemperingState, temperatures: Array, num_swaps: int):
    """(state after the rounds, [R - 1, B] mean probability of a swap)."""
    num_rungs, batch = state.value.shape
    total = jnp.zeros((num_rungs - 1, batch), state.value.dtype)
    if num_rungs == 1 or num_swaps == 0:
        return state, total
    pairs, rungs = np.arange(num_rungs - 1), np.arange(num_rungs)[:, None]
    gap = (1 / temperatures[:-1] - 1 / temperatures[1:])[:, None]
    value, order = state.value, jnp.broadcast_to(rungs, state.value.shape)
    draw = jax.vmap(lambda k: jax.random.uniform(k, pairs.shape, temperatures.dtype), out_axes=1)
    for k in range(num_swaps):
        log_ratio = gap * (value[:-1] - value[1:])
        # A NaN never swaps, and does not spoil the mean.
        probability = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
        is_up = (pairs + state.num_rounds + k) % 2 == 0
        swap = is_up[:, None] & (draw(fold(keys, k)) < probability)
        from_above = jnp.pad(swap, ((0, 1), (0, 0))).astype(jnp.int32)
        from_below = jnp.pad(swap, ((1, 0), (0, 0))).astype(jnp.int32)
        source = rungs + from_above - from_below
        value = jnp.take_along_axis(value, source, axis=0)
        order = jnp.take_along_axis(order, source, axis=0)
        total = total + probability

    def reorder(a):
        return jnp.take_along_axis(a, order.reshape(order.shape + (1,) * (a.ndim - 2)), axis=0)

    moved = state._replace(
        x=reorder(state.x),
        value=value,
        gradient=reorder(state.gradient),
        num_rounds=state.num_rounds + num_swaps,
    )
    return moved, total / num_swaps


def _temperatures(temperatures: Any) -> Array:
    """[R] checked: known ones must be finite, positive and increasing."""
    array = checks.float_array(temperatures, "temperatures")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"temperatures must be a vector of at least 1, got shape {array.shape}")
    array = number(temperatures, "temperatures", "finite and positive", array.shape)
    value = checks.concrete(temperatures if isinstance(temperatures, np.ndarray) else array)
    if value is not None and not np.all(np.diff(value) > 0):
        raise ValueError(f"temperatures must increase, got {value}")
    return array
