"""Samples of the model for the contrastive term: short Langevin runs, or chains that training carries.

A source of negatives is a pair of pure functions: `init(potential, x, epsilon_max)` gives the chains that
training carries, `draw(key, potential, epsilon_max, chains, batch)` the negatives and the chains after.
The potential changes from call to call. Shape letters: M negatives, R rungs, *event the axes of a state.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from egm import checks, collectives, random
from egm.typing import Array, Key
from energymatch import _moves, langevin, schedules, tempering
from energymatch._checks import unit_interval
from energymatch.losses import Batch
from energymatch.potential import Potential

MAX_FACTOR, HOTTEST, MAX_RUNGS = 1.7, 1.7**3, 8


class Negatives(NamedTuple):
    """What `draw` returns.

    Attributes:
      x: [M, *event].
      log_weights: [M], or None where all weigh the same.
      chains: the state to carry.
      metrics: scalars, the means over this device's chains.
    """

    x: Array
    log_weights: Array | None
    chains: Any
    metrics: dict[str, Array]


class NegativeSource(Protocol):
    """What `energymatch.matching` asks of a source; frozen, so that a jitted step traces once."""

    def init(self, potential: Potential, x: Array, epsilon_max: float) -> Any:
        """The chains before the first step, started at data x [M, *event]."""
        ...

    def spec(self, axis: str) -> Any:
        """A PartitionSpec for each array of the chains, split along a mesh axis of this name."""
        ...

    def draw(
        self,
        key: Key,
        potential: Potential,
        epsilon_max: float,
        chains: Any,
        batch: Batch,
        axis_name: str | None,
    ) -> Negatives:
        """Negatives at the present potential."""
        ...


@dataclasses.dataclass(frozen=True)
class ShortRun:
    """The published negatives: runs of `num_steps` from data and from the prior, nothing carried.

    Runs from data stay at epsilon_max; those from the prior go through the schedule of the temperature
    from t = 0 to `end_time` over all their steps. Short runs cannot tell a slope inside the data from its
    density: see docs/energy_matching.md. Starts alternate between prior and data, so that the negatives
    are the same on any number of devices that hold an even number of data each.

    Attributes:
      num_steps: Langevin steps.
      step_size: of each (the paper's dt).
      tau_star: below which the schedule is at zero temperature.
      method: of `energymatch.langevin`.
      bounds: (lo, hi) of each coordinate, walls that reflect; starts outside are reflected in.
      anneal_data: runs from data go through the schedule as well.
      end_time: of the schedule when a run ends, at least 1; num_steps * step_size is the dynamics' own time.
      at_step_end: the temperature of a step is that of its end, as in the published 2D code, not of its
        start, as in the published code for images.
      clip_at_end: `bounds` clip the last state only: a normal prior lies outside those of images.

    Source: Energy Matching (arXiv 2504.10612), phase 2.
    """

    num_steps: int = 200
    step_size: float = 0.01
    tau_star: float = 0.8
    method: str = "euler_maruyama"
    bounds: tuple[float, float] | None = None
    anneal_data: bool = False
    end_time: float = 1.0
    clip_at_end: bool = False
    at_step_end: bool = False

    def __post_init__(self):
        checks.positive_int(self.num_steps, "num_steps")
        checks.positive_float(self.step_size, "step_size")
        unit_interval(self.tau_star, "tau_star")
        if checks.finite_float(self.end_time, "end_time") < 1:
            raise ValueError(
                f"end_time must be at least 1, where the temperature is full, got {self.end_time}"
            )

    def init(self, potential: Potential, x: Array, epsilon_max: float) -> None:
        """Nothing is carried."""
        return None

    def spec(self, axis: str) -> Any:
        """There is nothing to split."""
        return P()

    def draw(self, key, potential, epsilon_max, chains, batch, axis_name=None) -> Negatives:
        """As many negatives as data: even ones start from the prior, odd ones from data at their place.

        Where batch.starts is given those from data start there instead, spread over all of its examples.
        """
        data = checks.wide(batch.x_1 if batch.data is None else batch.data)
        prior = batch.x_0 if batch.prior is None else batch.prior
        num, num_prior = data.shape[0], data.shape[0] - data.shape[0] // 2
        if num < 2 or prior.shape[0] < num_prior:
            raise ValueError(
                f"batch.prior must hold at least {num_prior} examples and batch.data 2, got "
                f"{prior.shape[0]} and {num}"
            )
        if prior.shape[1:] != data.shape[1:]:
            raise ValueError(f"batch.prior must have event shape {data.shape[1:]}, got {prior.shape[1:]}")
        if axis_name is not None and num % 2:
            raise ValueError(f"batch.data must hold an even number on each device, got {num}")
        # Spread over all of the prior's examples: its shards and the data's need not be of one size.
        chosen = np.arange(num_prior) * prior.shape[0] // num_prior
        from_prior = np.arange(num) % 2 == 0
        start = data.at[::2].set(prior[chosen].astype(data.dtype))
        if batch.starts is not None:
            start = start.at[1::2].set(_spread(batch.starts, num // 2, data.shape[1:]).astype(data.dtype))
        bounds = None if self.clip_at_end else self.bounds
        if bounds is not None:
            start = langevin.reflect(start, bounds)
        end = self.num_steps * self.step_size
        t_0 = jnp.where(from_prior | self.anneal_data, 0.0, end)
        t_0 = t_0 + self.step_size * self.at_step_end

        def temperature(t):
            return schedules.temperature(jnp.abs(t) / end * self.end_time, self.tau_star, epsilon_max)

        out = langevin.sample(
            key,
            potential,
            start,
            num_steps=self.num_steps,
            step_size=self.step_size,
            temperature=temperature,
            t_0=t_0,
            method=self.method,
            bounds=bounds,
            axis_name=axis_name,
        )
        x = jnp.clip(out.x, *self.bounds) if self.clip_at_end and self.bounds is not None else out.x
        held = jnp.mean(out.num_nonfinite / self.num_steps)
        metrics = {"chain_acceptance": jnp.mean(out.acceptance), "chain_held": held}
        metrics = collectives.pmean(metrics, axis_name)
        return Negatives(x, None, None, jax.lax.stop_gradient(metrics))


def _spread(x: Array, num: int, event: tuple[int, ...]) -> Array:
    """`num` of the examples x [S, *event], at equal distances."""
    if x.shape[0] < num or x.shape[1:] != event:
        raise ValueError(f"batch.starts must hold at least {num} examples of shape {event}, got {x.shape}")
    return x[np.arange(num) * x.shape[0] // num]


@dataclasses.dataclass(frozen=True)
class Tempered:
    """Persistent chains under parallel tempering, the coldest rung as negatives: the default.

    The chains follow V as it is trained and are at its equilibrium but for their lag; the hot rungs keep
    the masses of separate modes right, which plain persistent chains do not.

    Attributes:
      num_rungs: R temperatures epsilon_max * factor^r.
      factor: between neighbours.
      num_steps: moves a rung and a training step.
      step_size: of the coldest rung; rung r takes step_size * factor^(-r/2).
      num_swaps: rounds of swaps a training step.
      method: of the moves, "mala" or "euler_maruyama".
      bounds: (lo, hi) of each coordinate.

    Source: parallel tempering for energy-based learning: Desjardins et al. (2010).
    """

    num_rungs: int | None = None
    factor: float | None = None
    num_steps: int = 10
    step_size: float = 0.01
    num_swaps: int = 2
    method: str = "mala"
    bounds: tuple[float, float] | None = None
    adapt: bool = True

    def __post_init__(self):
        checks.positive_float(self.step_size, "step_size")
        # No array is made here: the default of a config is built on import, before jax may start.
        if self.num_rungs is not None:
            checks.positive_int(self.num_rungs, "num_rungs")
        if self.factor is not None and checks.positive_float(self.factor, "factor") <= 1:
            raise ValueError(f"factor must be above 1, got {self.factor}")
        checks.flag(self.adapt, "adapt")

    def ladder(self, dim: int) -> tuple[int, float]:
        """(number of rungs, factor between neighbours) for events of D elements."""
        factor = min(MAX_FACTOR, tempering.factor_for(dim)) if self.factor is None else self.factor
        if self.num_rungs is not None:
            return self.num_rungs, factor
        num_rungs = 1 + round(math.log(HOTTEST) / math.log(factor))
        return min(max(num_rungs, 2), MAX_RUNGS), factor

    def _temperatures(self, epsilon_max: float, event: tuple[int, ...]) -> Array:
        num_rungs, factor = self.ladder(math.prod(event))
        return tempering.geometric_temperatures(epsilon_max, factor, num_rungs)

    def init(self, potential: Potential, x: Array, epsilon_max: float) -> tempering.TemperingState:
        """Ladders [R, M, *event] with every rung at x."""
        temperatures = self._temperatures(epsilon_max, x.shape[1:])
        step_size = self.step_size * jnp.sqrt(temperatures[0] / temperatures)
        return tempering.init(potential, x, temperatures, step_size=step_size, bounds=self.bounds)

    def spec(self, axis: str) -> tempering.TemperingState:
        """Ladders are split, each with all its rungs."""
        ladders = P(None, axis)
        return tempering.TemperingState(ladders, ladders, ladders, P(), P())

    def draw(self, key, potential, epsilon_max, chains, batch, axis_name=None) -> Negatives:
        """The coldest rung after `num_steps` moves and the swaps."""
        temperatures = self._temperatures(epsilon_max, chains.x.shape[2:])
        step_size, limit = self.step_size * jnp.sqrt(temperatures[0] / temperatures), None
        if self.adapt and self.method == "mala":
            data = batch.x_1 if batch.data is None else batch.data
            # A random part as wide as the data is enough to cross them in one move.
            step_size, limit = None, _variance(data, axis_name) / epsilon_max
        chains, info = tempering.step(
            key,
            chains,
            potential=potential,
            temperatures=temperatures,
            step_size=step_size,
            max_step_size=limit,
            num_steps=self.num_steps,
            num_swaps=self.num_swaps,
            method=self.method,
            bounds=self.bounds,
            axis_name=axis_name,
        )
        num_moves = chains.x.shape[1] * self.num_steps * collectives.axis_size(axis_name)
        metrics = {
            "chain_acceptance": jnp.mean(info.acceptance),
            "chain_held": jnp.mean(info.num_nonfinite / num_moves),
        }
        if temperatures.size > 1:
            metrics["swap_acceptance"] = jnp.mean(info.swap_acceptance)
        metrics["cold_acceptance"] = info.acceptance[0]
        metrics["step_size"] = jnp.exp(chains.log_step_sizes[0])
        return Negatives(chains.x[0], None, chains, jax.lax.stop_gradient(metrics))


def _variance(x: Array, axis_name: str | None) -> Array:
    """Mean variance of the columns of x [B, *event], on all devices; 1 where it is no number."""
    finite = jnp.where(jnp.isfinite(x), x, 0.0)
    mean = collectives.pmean(jnp.mean(finite, axis=0), axis_name)
    square = collectives.pmean(jnp.mean(jnp.square(finite - mean[None])), axis_name)
    return jnp.where((square > 0) & jnp.isfinite(square), square, 1.0)


class RestartedState(NamedTuple):
    """Chains of `Restarted`.

    Attributes:
      x: [M, *event].
      age: [M] int32, Langevin steps since the chain left the prior.
    """

    x: Array
    age: Array


@dataclasses.dataclass(frozen=True)
class Restarted:
    """Chains of all ages from the prior, run as samples are drawn: through the schedule, then at epsilon_max.

    A chain goes back to the prior with probability `restart` a training step, and its state weighs from
    the time `burn_in` of its own clock on. So V is trained on what sampling from the prior reaches, also
    where that is not where chains from data stay; chains from data show a place that pulls samples away
    only when one of them finds it. Young chains must not weigh: they lie far above the data, and pushing
    them up steepens V on the way from the prior without changing the density.

    After many training steps the share of chains that weigh is (1 - restart)^(n - 1), n the training
    steps that burn_in takes: burn_in / (num_steps step_size), rounded up.

    Attributes:
      num_steps: Langevin steps a training step.
      step_size: of each (the paper's dt).
      tau_star: below which the schedule is at zero temperature.
      restart: probability a training step, in [0, 1]; with 0 chains are persistent and stay of data.
      burn_in: time from which a chain weighs; 1 is where the schedule reaches epsilon_max.
      method: of `energymatch.langevin`.
      bounds: (lo, hi) of each coordinate.

    Source: restarts: Du and Mordatch (2019), whose buffer starts 5% of its chains anew; the dynamics:
    Energy Matching (arXiv 2504.10612).
    """

    num_steps: int = 5
    step_size: float = 0.1
    tau_star: float = 0.8
    restart: float = 0.05
    burn_in: float = 4.0
    method: str = "mala"
    bounds: tuple[float, float] | None = None

    def __post_init__(self):
        checks.positive_int(self.num_steps, "num_steps")
        checks.positive_float(self.step_size, "step_size")
        checks.positive_float(self.burn_in, "burn_in", allow_zero=True)
        unit_interval(self.tau_star, "tau_star")
        unit_interval(self.restart, "restart")
        if self.restart == 1 and self._burn_in_steps > self.num_steps:
            raise ValueError(
                f"restart must be below 1 where burn_in = {self.burn_in} takes more than num_steps = "
                f"{self.num_steps} steps of {self.step_size}: no chain would ever weigh"
            )

    @property
    def _burn_in_steps(self) -> int:
        # 4 / .1 is 40 steps, also where the division rounds up.
        return math.ceil(self.burn_in / self.step_size - 1e-6)

    def init(self, potential: Potential, x: Array, epsilon_max: float) -> RestartedState:
        """Chains at data x, as old as `burn_in`."""
        age = jnp.full(x.shape[0], self._burn_in_steps, jnp.int32)
        x, _ = _moves.start_inside(checks.wide(x), "x", self.bounds)
        return RestartedState(x, collectives.varying_like(age, x))

    def spec(self, axis: str) -> RestartedState:
        """Chains are split."""
        return RestartedState(P(axis), P(axis))

    def draw(self, key, potential, epsilon_max, chains, batch, axis_name=None) -> Negatives:
        """All M chains after `num_steps` steps; batch.prior (or x_0) holds M states to restart at."""
        x, num = checks.wide(chains.x), chains.x.shape[0]
        prior = batch.x_0 if batch.prior is None else batch.prior
        if prior.shape != x.shape:
            raise ValueError(f"batch.prior must have the chains' shape {x.shape}, got {prior.shape}")
        restart_keys, move_keys = random.split(random.example_keys(key, num, axis_name))
        uniform = random.per_example(lambda k: jax.random.uniform(k, (), x.dtype), restart_keys)
        restart = uniform < self.restart
        age = jnp.where(restart, 0, chains.age)
        start = jnp.where(restart.reshape(num, *(1,) * (x.ndim - 1)), prior.astype(x.dtype), x)
        if self.bounds is not None:
            start = langevin.reflect(start, self.bounds)
        out = langevin.sample(
            move_keys,
            potential,
            start,
            num_steps=self.num_steps,
            step_size=self.step_size,
            temperature=functools.partial(
                schedules.temperature, tau_star=self.tau_star, epsilon_max=epsilon_max
            ),
            t_0=age.astype(x.dtype) * self.step_size,
            method=self.method,
            bounds=self.bounds,
            axis_name=axis_name,
        )
        age = age + self.num_steps
        weighs = age >= self._burn_in_steps
        metrics = {
            "chain_acceptance": jnp.mean(out.acceptance),
            "chain_held": jnp.mean(out.num_nonfinite / self.num_steps),
            "chain_weighing": jnp.mean(weighs.astype(x.dtype)),
        }
        metrics = jax.lax.stop_gradient(collectives.pmean(metrics, axis_name))
        log_weights = jnp.where(weighs, 0.0, -jnp.inf).astype(x.dtype)
        return Negatives(out.x, log_weights, RestartedState(out.x, age), metrics)
