"""What a source of negatives must offer, and what it returns."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from egm.typing import Array, Key
from energymatch.losses import Batch
from energymatch.potential import Potential

__all__ = ["NegativeSource", "Negatives"]


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
