"""Negatives from persistent chains that start again at the prior now and then."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from egm import checks, collectives, random
from egm.checks import unit_interval
from egm.typing import Array
from energymatch import langevin, schedules
from energymatch.langevin import state
from energymatch.negatives.source import Negatives
from energymatch.potential import Potential

__all__ = ["Restarted", "RestartedState"]


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
    method: str | langevin.Method = "mala"
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
        x, _ = state.start_inside(x, "x", self.bounds)
        return RestartedState(x, collectives.varying_like(age, x))

    def spec(self, axis: str) -> RestartedState:
        """Chains are split."""
        split: Any = P(axis)
        return RestartedState(split, split)

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
