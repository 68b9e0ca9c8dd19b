"""Negatives of the paper: short Langevin runs, half started at data, half at the prior."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from egm import checks, collectives
from egm.checks import unit_interval
from egm.typing import Array
from energymatch import langevin, schedules
from energymatch.losses import Batch
from energymatch.negatives.source import Negatives
from energymatch.potential import Potential

__all__ = ["ShortRun"]


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
    method: str | langevin.Method = "euler_maruyama"
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
        start, from_prior = _starts(batch, axis_name)
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


def _starts(batch: Batch, axis_name: str | None) -> tuple[Array, np.ndarray]:
    """([M, *event] first states, the prior's in the even places; [M] bool, which are the prior's)."""
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
    return start, from_prior


def _spread(x: Array, num: int, event: tuple[int, ...]) -> Array:
    """`num` of the examples x [S, *event], at equal distances."""
    if x.shape[0] < num or x.shape[1:] != event:
        raise ValueError(f"batch.starts must hold at least {num} examples of shape {event}, got {x.shape}")
    return x[np.arange(num) * x.shape[0] // num]
