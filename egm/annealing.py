"""Annealing: the energy on its way from a reference, lambda E + (1 - lambda) E_0, and the level lambda.

A level is chosen anew every iteration, the largest at which the buffer's path weights are even enough:
log w = log_path - lambda E - (1 - lambda) E_0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import buffer as buffers
from egm import importance
from egm.typing import Array, Energy, State

__all__ = [
    "LEVELS",
    "AnnealedEnergy",
    "Item",
    "LevelRule",
    "annealed_log_weights",
    "choose_level",
    "cut_largest",
]


class AnnealedEnergy(NamedTuple):
    """level * E + (1 - level) * reference: the energy on its way from a known one; level may be traced.

    Attributes:
      energy: E.
      level: in [0, 1].
      reference: its energy, `[...] = reference(x)`, constant in the tokens; None for 0 everywhere.
      smooth: whether its gradient may stand for it, a scalar bool, offered as `differentiable`; None
        where that is not known but by what E itself says.
    """

    energy: Energy
    level: Array
    reference: Callable[[State], Array] | None = None
    smooth: Array | None = None

    def __call__(self, x: State) -> Array:
        """The annealed energy, [...]."""
        return self._mix(self.energy, x)

    def _mix(self, energy, x):
        value = self.level * energy(x)
        return value if self.reference is None else value + (1 - self.level) * self.reference(x)

    def __getattr__(self, name: str):
        # Offered only where the energy itself offers it, as `hasattr` must tell.
        if name == "single_site_conditionals":
            conditionals = getattr(self.energy, name)
            return lambda x: self.level * conditionals(x)
        if name == "revealed_conditionals":
            revealed = getattr(self.energy, name)
            # A reference is constant in the tokens.
            return lambda x, scale=1.0: revealed(x, scale * self.level)
        if name == "relaxed":
            relaxed = getattr(self.energy, name)
            return lambda x: self._mix(relaxed, x)
        if name in ("conditional_evaluations", "revealed_evaluations"):
            return getattr(self.energy, name)
        if name == "differentiable":
            return getattr(self.energy, name) if self.smooth is None else self.smooth
        raise AttributeError(name)


LEVELS = np.linspace(0.0, 1.0, 201, dtype=np.float32)[1:] ** 2
"""The levels that annealing tries, finer towards zero; a reference adds the level 0 itself."""


class Item(NamedTuple):
    """What the buffer knows of one terminal state.

    Attributes:
      x_1: the state.
      energy: E(x_1), not annealed.
      reference: the reference's energy, 0 without one.
      log_path: log backward - log forward - log p_0, so that
        log w = log_path - level * energy - (1 - level) * reference.
    """

    x_1: State
    energy: Array
    reference: Array
    log_path: Array


class LevelRule(NamedTuple):
    """What the choice of the level depends on besides the buffer, all static.

    Attributes:
      ess_target: the ESS that a level must have, a fraction of a generation; None never moves the level.
      num_simulated: states of a generation.
      buffer_size: states that the buffer holds.
    """

    ess_target: float | None
    num_simulated: int
    buffer_size: int

    @property
    def num_generations(self) -> int:
        """How many generations the buffer holds, rounded up."""
        return -(-self.buffer_size // self.num_simulated)


def annealed_log_weights(buffer: buffers.Buffer, level: Array) -> Array:
    """[buffer_size] path log-weights at a level, log_path - level E - (1 - level) E_0; -inf where empty."""
    # An energy of +inf at level 0 is still a weight of zero.
    items = buffer.items
    tempered = items.log_path - level * items.energy - (1 - level) * items.reference
    tempered = jnp.where(jnp.isposinf(items.energy), -jnp.inf, tempered)
    return jnp.where(buffers.filled(buffer), tempered, -jnp.inf)


def cut_largest(log_weights: Array, rule: LevelRule) -> tuple[Array, Array]:
    """(log-weights with the largest cut to the next, the mass cut): as many as there are generations."""
    count = max(1, min(rule.num_generations, rule.buffer_size // 20))
    if count >= rule.buffer_size:
        return log_weights, jnp.zeros(())
    at = jax.lax.top_k(log_weights, count + 1)[0][-1]
    cut = jnp.minimum(log_weights, jnp.where(at > -jnp.inf, at, jnp.inf))
    kept = importance.log_mean_exp(cut) - importance.log_mean_exp(log_weights)
    return cut, jnp.where(jnp.isfinite(kept), -jnp.expm1(jnp.minimum(kept, 0.0)), 0.0)


def choose_level(
    buffer: buffers.Buffer, level: Array, num_held: Array, rule: LevelRule, levels: np.ndarray
) -> tuple[Array, Array, Array, Array]:
    """The level to train at, by the rule of `make_iteration`, on a fixed grid, finer towards zero.

    Returns:
      (level, the buffer's ESS there as a fraction of a generation, 1.0 where that misses the target,
      how many iterations in a row the level has been held by now).
    """
    size = rule.buffer_size / rule.num_simulated

    def both(s):
        weights = annealed_log_weights(buffer, s)
        full, cut = importance.snis(weights).ess, importance.snis(cut_largest(weights, rule)[0]).ess
        return jnp.stack([full, cut]) * size

    if rule.ess_target is None:
        return level, both(level)[0], jnp.zeros(()), jnp.zeros((), jnp.int32)
    grid = jnp.asarray(levels)
    full, cut = jax.lax.map(both, grid, batch_size=25).T
    index = jnp.arange(grid.size)
    here = jnp.argmin(jnp.abs(grid - level))

    def last(meets):
        return jnp.max(jnp.where(meets, index, -1))

    up = last(full >= rule.ess_target)
    robust = last((jnp.maximum(full, cut) >= rule.ess_target) & (index <= here))
    patient = num_held < rule.num_generations
    # None at all: wait for new states, then go where the buffer knows most.
    lost = jnp.where(patient, here, jnp.argmax(jnp.where(index <= here, cut, -1.0)))
    best = jnp.where(up >= here, up, jnp.where(robust >= 0, robust, lost))
    missed = full[best] < rule.ess_target
    held = missed & (best == here) & ((robust >= 0) | patient)
    # Held means unchanged, also a level between those of the grid.
    return (
        jnp.where(held, level, grid[best]),
        full[best],
        missed.astype(full.dtype),
        jnp.where(held, num_held + 1, 0),
    )
