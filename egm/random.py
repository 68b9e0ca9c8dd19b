"""Random numbers that depend on the global index of an example, never on how the batch is laid out.

A scalar key with a batch of B examples stands for the keys `fold_in(key, i)`, i the global index of
the example; a loop that shards its batch passes the [B] keys of its own shard. The same numbers come
out on one device and on many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, collectives


def example_keys(key: jax.Array, batch_size: int, axis_name: str | None = None) -> jax.Array:
    """One key an example.

    Args:
      key: a typed key, or an array [B] of them, which is returned as it is.
      batch_size: B, the number of examples here (on this device where `axis_name` is given).
      axis_name: the mapped axis that splits the batch, so that indices are global.

    Returns:
      [B] keys.

    Raises:
      TypeError: `key` is not a typed PRNG key. ValueError: it has another shape than () or (B,), or is
        of an "rbg" kind, whose numbers depend on how the keys are laid out.
    """
    checks.key_array(key)
    checks.positive_int(batch_size, "batch_size", 0)
    if "rbg" in str(jax.random.key_impl(key)):
        raise ValueError(f"key must be of a kind such as 'threefry2x32', got {jax.random.key_impl(key)}")
    if key.shape == (batch_size,):
        return key
    if key.shape != ():
        raise ValueError(f"key must be one key or have shape ({batch_size},), got shape {key.shape}")
    first = collectives.axis_index(axis_name) * batch_size
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(first + jnp.arange(batch_size))
    # On a mesh the examples are computed where their keys are.
    return collectives.split(keys) if axis_name is None else keys


def per_example(sampler: Callable[..., Any], keys: jax.Array, *args: Any) -> Any:
    """`sampler(key, *args)` mapped over the leading axis of the keys and of every argument."""
    return jax.vmap(sampler)(keys, *args)


def split(keys: jax.Array, num: int = 2) -> tuple[jax.Array, ...]:
    """`num` independent keys for each of one key or an array of keys, as a tuple of arrays."""
    checks.key_array(keys, "keys")
    checks.positive_int(num, "num")
    if keys.shape == ():
        return tuple(jax.random.split(keys, num))
    parts = jax.vmap(lambda k: jax.random.split(k, num))(keys)
    return tuple(parts[:, i] for i in range(num))
