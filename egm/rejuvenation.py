"""The buffer as a population: resampled by its weights and moved by kernels that keep the annealed target.

Its weights stay proper all the way, E[w f(x)] = Z E_p[f] at every level: resampling leaves each copy what is
left of its weight, and a kernel that keeps the target keeps the weight. So a few states that weigh all
become many different ones, and the level rises as in a sequential Monte Carlo sampler whose proposals are the
sampler's own states.

Source: Neal, "Annealed importance sampling" (2001); Del Moral, Doucet and Jasra (2006).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egm import buffer as buffers
from egm import checks, collectives, importance, moves, random
from egm.annealing import AnnealedEnergy, Item
from egm.typing import Array, Key, Path, State

__all__ = ["generation_share", "resampled", "walked"]

_FULL_SHARE = 0.3


def generation_share(log_weights: Array) -> Array:
    """How much a generation counts beside states that were moved, by its log-weights [N] at their level.

    1 from an ESS of .3 on, below in proportion to the ESS: unbiased estimates are best added by their
    precision. One state of a collapsed generation would otherwise weigh as much as all of the buffer.
    """
    return jnp.clip(importance.snis(log_weights).ess / _FULL_SHARE, 1e-6, 1.0)


def resampled(key: Key, buffer: buffers.Buffer, probabilities: Array, count: Array) -> buffers.Buffer:
    """The whole buffer drawn by these probabilities, each copy with what is left of its weight.

    Args:
      key: a typed key.
      buffer: of `Item`s.
      probabilities: [C], sum 1, positive where a weight is; or all zeros, which changes nothing.
      count: how many states of mean weight Z the buffer stands for; it is all of C afterwards.

    Returns:
      A full buffer: log w - log(count p) in place of log w, so that the mean over C keeps its expectation.
    """
    capacity = probabilities.shape[0]
    positive = probabilities > 0
    log_p = jnp.where(positive, jnp.log(jnp.where(positive, probabilities, 1.0)), -jnp.inf)
    index = importance.systematic(key, log_p, capacity)
    # Places are given up in turn: copies must not lie side by side.
    index = jax.random.permutation(random.derive(key, "places"), index)
    items = jax.tree.map(lambda a: a[index], buffer.items)
    items = items._replace(log_path=items.log_path - log_p[index] - jnp.log(jnp.maximum(count, 1.0)))
    full = buffers.Buffer(items, jnp.maximum(buffer.num_added, capacity))
    return jax.tree.map(lambda a, b: jnp.where(jnp.any(positive), a, b), full, buffer)


def walked(
    key: Key,
    buffer: buffers.Buffer,
    energy: AnnealedEnergy,
    path: Path,
    log_step: Array,
    *,
    num_rounds: int,
    item_of: Callable[[State], Item],
    axis_name: str | None = None,
) -> tuple[buffers.Buffer, Array, Array]:
    """The buffer's states moved with their weights at this level kept.

    Args:
      key: a typed key.
      buffer: of `Item`s, the same on every device; each moves its part.
      energy: at the level.
      path: of the states.
      log_step: log of the step size, adapted by the way.
      num_rounds: of `egm.moves`.
      item_of: the item of states [N, ...], with a log_path of 0.
      axis_name: mapped axis over which the states are split.

    Returns:
      (buffer, log_step, mean acceptance).
    """
    level, capacity = energy.level, jax.tree.leaves(buffer.items)[0].shape[0]
    here = capacity // collectives.axis_size(axis_name)
    part: Any = lambda a: jax.lax.dynamic_slice_in_dim(a, collectives.axis_index(axis_name) * here, here)
    old, counted = jax.tree.map(part, (buffer.items, buffers.filled(buffer)))
    keys = random.example_keys(key, here, axis_name)
    found = moves.moved(
        keys, energy, path, old.x_1, log_step, num_rounds=num_rounds, counted=counted, axis_name=axis_name
    )
    new = item_of(found.states)
    before, after = (level * i.energy + (1 - level) * i.reference for i in (old, new))
    # What stays is the weight. One of no density has none, and takes no part.
    new = new._replace(log_path=old.log_path + after - before)
    kept = counted & jnp.isfinite(before) & jnp.isfinite(after)
    new = jax.tree.map(lambda a, b: jnp.where(checks.expanded(kept, a), a, b), new, old)
    items = collectives.all_gather(new, axis_name)
    return buffer._replace(items=items), found.log_size, found.acceptance
