"""Negatives from persistent chains under parallel tempering."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from egm import checks, collectives
from egm.typing import Array
from energymatch import langevin, tempering
from energymatch.langevin import methods
from energymatch.negatives.source import Negatives
from energymatch.potential import Potential

__all__ = ["HOTTEST", "MAX_FACTOR", "MAX_RUNGS", "Tempered"]

MAX_FACTOR, HOTTEST, MAX_RUNGS = 1.7, 1.7**3, 8


@dataclasses.dataclass(frozen=True)
class Tempered:
    """Persistent chains under parallel tempering, the coldest rung as negatives: the default.

    The chains follow V as it is trained and are at its equilibrium but for their lag; the hot rungs keep
    the masses of separate modes right, which plain persistent chains do not.

    Attributes:
      num_rungs: R temperatures epsilon_max * factor^r; None for as many as reach HOTTEST, at most MAX_RUNGS.
      factor: between neighbours; None for `tempering.factor_for` the dimension, at most MAX_FACTOR.
      num_steps: moves a rung and a training step.
      step_size: of the coldest rung; rung r takes step_size * factor^(-r/2), to begin with where they adapt.
      num_swaps: rounds of swaps a training step.
      method: of the moves, "mala" or "euler_maruyama", or a `langevin.Method`.
      bounds: (lo, hi) of each coordinate, walls that reflect; a known start outside raises.
      adapt: step sizes of "mala" follow the acceptance of each rung (`tempering.step`), up to the variance
        of the data over epsilon_max. Chains whose steps stay too long for a V that becomes steeper stand
        still, and the contrast then lifts V where they stand.

    Source: parallel tempering for energy-based learning: Desjardins et al. (2010).
    """

    num_rungs: int | None = None
    factor: float | None = None
    num_steps: int = 10
    step_size: float = 0.01
    num_swaps: int = 2
    method: str | langevin.Method = "mala"
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
        ladders: Any = P(None, axis)
        whole: Any = P()
        return tempering.TemperingState(ladders, ladders, ladders, whole, whole)

    def draw(self, key, potential, epsilon_max, chains, batch, axis_name=None) -> Negatives:
        """The coldest rung after `num_steps` moves and the swaps."""
        temperatures = self._temperatures(epsilon_max, chains.x.shape[2:])
        step_size, limit = self.step_size * jnp.sqrt(temperatures[0] / temperatures), None
        if self.adapt and methods.resolve(self.method, tempering.METHODS).adjusted:
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
        if chains.log_step_sizes is not None:
            metrics["step_size"] = jnp.exp(chains.log_step_sizes[0])
        return Negatives(chains.x[0], None, chains, jax.lax.stop_gradient(metrics))


def _variance(x: Array, axis_name: str | None) -> Array:
    """Mean variance of the columns of x [B, *event], on all devices; 1 where it is no number."""
    finite = jnp.where(jnp.isfinite(x), x, 0.0)
    mean = collectives.pmean(jnp.mean(finite, axis=0), axis_name)
    square = collectives.pmean(jnp.mean(jnp.square(finite - mean[None])), axis_name)
    return jnp.where((square > 0) & jnp.isfinite(square), square, 1.0)
