"""Langevin dynamics in a potential at a temperature that may change with time.

dx = -grad[V(x) + eps(t) sum_j U_j(x)] dt + sqrt(2 eps(t)) dW, V the potential and U_j extra energies in
nats (a likelihood, an interaction): at a fixed eps its equilibrium is exp(-V/eps - sum_j U_j). `sample`
runs chains in one `lax.scan`; `init` and `step` are for loops of one's own. Shape letters: B chains,
*event the axes of one state, T saved states.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.typing import Array, Key
from energymatch.langevin import methods
from energymatch.langevin import state as state_
from energymatch.langevin.methods import check_settings
from energymatch.langevin.scans import fold, scan
from energymatch.langevin.state import (
    LangevinInfo,
    LangevinState,
    Method,
    Temperature,
    check_bounds,
    check_step_size,
    check_time,
    evaluate,
    start_inside,
)
from energymatch.potential import Potential

__all__ = ["Samples", "init", "reflect", "sample", "step"]


class Samples(NamedTuple):
    """What `sample` returns.

    Attributes:
      x: [B, *event] at the last time.
      states: [T, B, *event] the saved states, x_0 first, or None.
      times: their times, [T] or, where clocks differ, [T, B]; or None.
      acceptance: [B] mean over steps of the acceptance probability.
      num_nonfinite: [B] int32, steps in which a non-finite proposal held the chain where it was.
      num_outside: [B] int32, 1 where the start lay outside `bounds` and was reflected in; None without.
    """

    x: Array
    states: Array | None
    times: Array | None
    acceptance: Array
    num_nonfinite: Array
    num_outside: Array | None = None


def reflect(x: Array, bounds: tuple[float, float]) -> Array:
    """x of any shape folded into [lo, hi] at the walls, however often that takes.

    Raises:
      TypeError, ValueError: `x` is not floating, `bounds` is no pair lo < hi.
    """
    x = checks.float_array(x, "x")
    box = check_bounds(bounds)
    return x if box is None else state_.reflect(x, box)[0]


def init(potential: Potential, x: Array, *, energies: Sequence[Potential] = ()) -> LangevinState:
    """The state of chains at x.

    Args:
      potential: V(x) -> [B].
      x: [B, *event]; the chains are in float32 where it is narrower.
      energies: U_j, each [B, *event] -> [B], or -> a scalar (a term that couples the batch).

    Raises:
      TypeError: `x` or an output is not floating, or `energies` is no sequence of functions.
      ValueError: V or U has another shape than stated.
    """
    settings = check_settings(potential, 0.0, energies, methods.EulerMaruyama(), None)
    return evaluate(settings, checks.float_array(x, "x", min_ndim=1))


def step(
    key: Key,
    state: LangevinState,
    t: float | Array,
    *,
    potential: Potential,
    temperature: Temperature,
    step_size: float | Array,
    energies: Sequence[Potential] = (),
    method: str | Method = "euler_maruyama",
    bounds: tuple[float, float] | None = None,
    axis_name: str | None = None,
) -> tuple[LangevinState, LangevinInfo]:
    """One step of length h from t to t + h.

    `methods.EulerMaruyama`, `Heun` and `MALA` ("euler_maruyama", "heun", "mala") say what a step is, with one
    normal eta for all of it. "mala" is exact for every h at a fixed temperature; where eps(t) = 0 it is a
    gradient step that is always accepted.

    A proposal that is not finite, or where V, U or their gradients are not, leaves its chain where it
    was and is counted. V or U = +inf is zero density: "mala" rejects it without counting.

    Args:
      key: a typed key, folded with the global index of each chain, or [B] keys.
      state: from `init` with the same potential and energies, or from a step before.
      t: time, a scalar or [B].
      potential: V(x) -> [B].
      temperature: eps, a scalar, [B], or a function of t such as
        `functools.partial(schedules.temperature, tau_star=.8, epsilon_max=.15)`.
      step_size: h, a number, a traced scalar or [B].
      energies: U_j as in `init`. Terms that couple the batch see the other chains' proposals; "mala"
        takes terms of one example each only.
      method: one of METHODS, or an object that is a `Method`.
      bounds: (lo, hi) of each coordinate, walls that reflect: a move with noise is folded into the box, one
        without (eps = 0) stops at the wall. "mala" tests its folded proposals as moves of the density
        continued evenly at the walls, hence is exact for the density cut to the box. A chain that stands
        outside is reflected in, in place of its step, and counted.
      axis_name: the mapped axis over which the chains are split.

    Returns:
      (state, info). One evaluation of V, grad V and U, grad U; two for "heun".

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value; a scalar energy with "mala".

    Source: Energy Matching (arXiv 2504.10612), sampling; MALA: Roberts and Tweedie (1996).

    Examples:
      >>> potential = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
      >>> state = energymatch.langevin.init(potential, jnp.ones((5, 2)))
      >>> state, info = energymatch.langevin.step(
      ...     jax.random.key(0), state, 1.0, potential=potential, temperature=0.1, step_size=0.01
      ... )
      >>> state.x.shape, info.acceptance.shape
      ((5, 2), (5,))
    """
    settings = check_settings(potential, temperature, energies, method, bounds)
    batch = checks.instance(state, LangevinState, "state").x.shape[0]
    if bool(settings.energies) != (state.energy is not None):
        raise ValueError("energies must be those that the state was made with by init")
    t, step_size = check_time(t, "t", batch), check_step_size(step_size, batch)
    return methods.move(random.example_keys(key, batch, axis_name), state, t, step_size, settings)


def sample(
    key: Key,
    potential: Potential,
    x_0: Array,
    *,
    num_steps: int,
    step_size: float | Array,
    temperature: Temperature,
    t_0: float | Array = 0.0,
    energies: Sequence[Potential] = (),
    method: str | Method = "euler_maruyama",
    bounds: tuple[float, float] | None = None,
    save_every: int | None = None,
    axis_name: str | None = None,
) -> Samples:
    """Chains from x_0 over the times t_k = t_0 + k h, k = 0..num_steps.

    Step k of chain b takes the key `fold_in(keys[b], k)`, keys the [B] keys or `fold_in(key, global b)`: the
    same numbers come from a loop of `step`.

    Args:
      key: a typed key, or [B] keys.
      potential: V(x) -> [B], called num_steps + 1 times with its gradient (2 num_steps + 1 for "heun").
      x_0: [B, *event].
      num_steps: number of steps.
      step_size: h, as in `step`.
      temperature: eps, as in `step`.
      t_0: time of x_0, a scalar or [B] (chains started at data and at the prior have clocks apart).
      energies, method, bounds, axis_name: as in `step`. Starts outside the bounds raise where they are
        known; traced ones are reflected in and counted.
      save_every: keep every so many states, x_0 and the last one included; must divide num_steps. None
        keeps the end only. Memory goes to what is kept.

    Returns:
      Samples.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value; a known x_0 outside `bounds`.

    Examples:
      >>> potential = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
      >>> found = energymatch.langevin.sample(
      ...     jax.random.key(0),
      ...     potential,
      ...     jnp.zeros((500, 2)),
      ...     num_steps=50,
      ...     step_size=0.2,
      ...     temperature=1.0,
      ...     method="mala",
      ... )
      >>> bool(abs(found.x.std() - 1.0) < 0.1)
      True
    """
    settings = check_settings(potential, temperature, energies, method, bounds)
    num_steps = checks.positive_int(num_steps, "num_steps")
    every = num_steps if save_every is None else checks.positive_int(save_every, "save_every")
    if num_steps % every:
        raise ValueError(f"save_every must divide num_steps = {num_steps}, got {save_every}")
    x_0, num_outside = start_inside(x_0, "x_0", settings.bounds)
    batch = x_0.shape[0]
    t_0, step_size = check_time(t_0, "t_0", batch), check_step_size(step_size, batch)
    keys = random.example_keys(key, batch, axis_name)

    def time(k):
        return t_0 + k * step_size

    def body(carry, k):
        state, acceptance, num_nonfinite = carry
        state, info = methods.move(fold(keys, k), state, time(k), step_size, settings)
        return (state, acceptance + info.acceptance, num_nonfinite + info.num_nonfinite), None

    def block(carry, ks):
        carry, _ = scan(body, carry, ks)
        return carry, (carry[0].x if save_every is not None else None)

    state = evaluate(settings, x_0)
    start = (state, jnp.zeros(batch, state.x.dtype), jnp.zeros(batch, jnp.int32))
    steps = np.arange(num_steps, dtype=np.int32).reshape(-1, every)
    (state, acceptance, num_nonfinite), states = scan(block, start, steps)
    times = None
    if states is not None:
        states = jnp.concatenate([start[0].x[None], states])
        times = jax.vmap(time)(np.arange(0, num_steps + 1, every))
    return Samples(state.x, states, times, acceptance / num_steps, num_nonfinite, num_outside)
