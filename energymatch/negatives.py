"""Samples of the model for the contrastive term: short Langevin runs, or carried tempered chains.

A source of negatives is a pair of pure functions: `init(potential, x, epsilon_max)` gives the chains that
training carries, `draw(key, potential, epsilon_max, chains, batch)` the negatives and the chains after.
The potential changes from call to call. Shape letters: M negatives, R rungs, *event the axes of a state.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives
from egm.typing import Array, Key
from energymatch import langevin, schedules, tempering
from energymatch.losses import Batch
from energymatch.potential import Potential


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
    from t = 0 to 1 over all their steps. Short runs cannot tell a slope inside the data from its
    density: see docs/energy_matching.md. Starts alternate between prior and data, so that the negatives
    are the same on any number of devices that hold an even number of data each.

    Attributes:
      num_steps: Langevin steps.
      step_size: of each (the paper's dt).
      tau_star: below which the schedule is at zero temperature.
      method: of `energymatch.langevin`.
      bounds: (lo, hi) to clip to, for images.
      anneal_data: runs from data go through the schedule as well.

    Source: Energy Matching (arXiv 2504.10612), phase 2.
    """

    num_steps: int = 200
    step_size: float = 0.01
    tau_star: float = 0.8
    method: str = "euler_maruyama"
    bounds: tuple[float, float] | None = None
    anneal_data: bool = False

    def __post_init__(self):
        checks.positive_int(self.num_steps, "num_steps")
        checks.positive_float(self.step_size, "step_size")
        schedules.flow_weight(0.0, self.tau_star)

    def init(self, potential: Potential, x: Array, epsilon_max: float) -> None:
        """Nothing is carried."""
        return None

    def draw(self, key, potential, epsilon_max, chains, batch, axis_name=None) -> Negatives:
        """As many negatives as data: even ones start from the prior, odd ones from data at their place."""
        data = batch.x_1 if batch.data is None else batch.data
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
        end = self.num_steps * self.step_size
        t_0 = jnp.where(from_prior | self.anneal_data, 0.0, end)

        def temperature(t):
            return schedules.temperature(jnp.abs(t) / end, self.tau_star, epsilon_max)

        out = langevin.sample(
            key,
            potential,
            start,
            num_steps=self.num_steps,
            step_size=self.step_size,
            temperature=temperature,
            t_0=t_0,
            method=self.method,
            bounds=self.bounds,
            axis_name=axis_name,
        )
        held = jnp.mean(out.num_nonfinite / self.num_steps)
        metrics = {"chain_acceptance": jnp.mean(out.acceptance), "chain_held": held}
        metrics = collectives.pmean(metrics, axis_name)
        return Negatives(out.x, None, None, jax.lax.stop_gradient(metrics))


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

    num_rungs: int = 4
    factor: float = 1.7
    num_steps: int = 10
    step_size: float = 0.01
    num_swaps: int = 2
    method: str = "mala"
    bounds: tuple[float, float] | None = None

    def __post_init__(self):
        checks.positive_float(self.step_size, "step_size")
        # No array is made here: the default of a config is built on import, before jax may start.
        checks.positive_int(self.num_rungs, "num_rungs")
        if checks.positive_float(self.factor, "factor") <= 1:
            raise ValueError(f"factor must be above 1, got {self.factor}")

    def _temperatures(self, epsilon_max: float) -> Array:
        return tempering.geometric_temperatures(epsilon_max, self.factor, self.num_rungs)

    def init(self, potential: Potential, x: Array, epsilon_max: float) -> tempering.TemperingState:
        """Ladders [R, M, *event] with every rung at x."""
        return tempering.init(potential, x, self._temperatures(epsilon_max))

    def draw(self, key, potential, epsilon_max, chains, batch, axis_name=None) -> Negatives:
        """The coldest rung after `num_steps` moves and the swaps."""
        temperatures = self._temperatures(epsilon_max)
        chains, info = tempering.step(
            key,
            chains,
            potential=potential,
            temperatures=temperatures,
            step_size=self.step_size * jnp.sqrt(temperatures[0] / temperatures),
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
        if self.num_rungs > 1:
            metrics["swap_acceptance"] = jnp.mean(info.swap_acceptance)
        return Negatives(chains.x[0], None, chains, jax.lax.stop_gradient(metrics))
