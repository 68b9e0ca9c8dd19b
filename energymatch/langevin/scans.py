"""Loops over the steps of chains, the same on one device and on many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from egm import collectives
from egm.typing import Array, Key

__all__ = ["fold", "scan"]


def scan(
    body: Callable[[Any, Any], tuple[Any, Any]], start: Any, steps: Any, reverse: bool = False
) -> tuple[Any, Any]:
    """`lax.scan` whose carry may begin with constants under `jax.shard_map`: they are marked as varying."""
    like, _ = jax.eval_shape(body, start, jax.tree.map(lambda a: a[0], steps))
    return jax.lax.scan(body, collectives.varying_like(start, like), steps, reverse=reverse)


def fold(keys: Key, index: Any) -> Array:
    """Every key [B] folded with one index."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys, index)
