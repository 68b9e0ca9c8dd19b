"""Negatives by importance sampling: draws from a known density, weighted by the model."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from egm import checks, collectives, importance, random
from egm.typing import Array
from energymatch.likelihood.priors import Prior
from energymatch.negatives.source import Negatives
from energymatch.potential import Potential

__all__ = ["Proposed"]


@dataclasses.dataclass(frozen=True, eq=False)
class Proposed:
    """Draws of a prior with weights exp(-V/epsilon) / prior: no chains, nothing carried, no burn-in.

    Self-normalised, the contrast's gradient is that of the log-likelihood up to O(1/num). It serves where
    the prior is near the model, as a mixture is that was fitted to the same data; `negative_ess` tells.

    Attributes:
      prior: a normalised density with exact samples that covers the model.
      num: draws a step, over all devices.
    """

    prior: Prior
    num: int = 1024

    def __post_init__(self):
        checks.instance(self.prior, Prior, "prior")
        checks.positive_int(self.num, "num")

    def init(self, potential: Potential, x: Array, epsilon_max: float) -> None:
        """Nothing is carried."""
        return None

    def spec(self, axis: str) -> Any:
        """There is nothing to split."""
        return P()

    def draw(self, key, potential, epsilon_max, chains, batch, axis_name=None) -> Negatives:
        """`num` draws and their log-weights."""
        here = self.num // collectives.axis_size(axis_name)
        x = self.prior.sample(random.example_keys(key, here, axis_name), here)
        log_weights = -potential(x) / epsilon_max - self.prior.log_density(x)
        log_weights = jnp.where(importance.nonfinite(log_weights), -jnp.inf, log_weights)
        ess = importance.snis(log_weights, 0, axis_name).ess
        return Negatives(x, log_weights, None, {"proposal_ess": ess})
