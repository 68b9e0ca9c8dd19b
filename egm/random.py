"""Random numbers that depend on the global index of an example, never on how the batch is laid out.

A scalar key with a batch of B examples stands for the keys `fold_in(key, i)`, i the global index of
the example; a loop that shards its batch passes the [B] keys of its own shard. The same numbers come
out on one device and on many. What the library draws with is derived from those keys by purpose
(`derive`), so that it is none of the keys `fold_in(key, i)` or `split(key, n)[i]` (which in jax is
`fold_in(key, i)`) that a loop around it makes of the same key.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives

__all__ = ["categorical", "derive", "example_keys", "per_example", "split"]


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


def derive(keys: jax.Array, purpose: str) -> jax.Array:
    """One key or an array of keys, each folded with a number above 2^31 that stands for a purpose.

    No `fold_in(key, i)` or `split(key, n)[i]` with i below 2^31 is the same key.
    """
    number = np.uint32(zlib.crc32(purpose.encode()) | 1 << 31)
    return _fold(checks.key_array(keys, "keys"), number)


def split(keys: jax.Array, num: int = 2) -> tuple[jax.Array, ...]:
    """`num` independent keys for each of one key or an array of keys, as a tuple of arrays.

    They are other keys than those of `jax.random.split`: see `derive`.
    """
    checks.positive_int(num, "num")
    keys = derive(keys, "split")
    return tuple(_fold(keys, i) for i in range(num))


def categorical(key: jax.Array, weights: jax.Array, shape: tuple[int, ...] = ()) -> jax.Array:
    """Indices drawn with probabilities in proportion to weights, each right to a relative rounding error.

    By descent through the tree of the weights' partial sums: at each of log2 V levels the lighter half is
    taken where a uniform number of 64 bits lies below its share. No probability above 2^-64 is lost, while
    `jax.random.categorical` loses those near the resolution of one float32 (20,000 tokens of 5e-8 beside
    one of .999 get a quarter of their mass), and fewer random numbers are needed: 2 log2 V, not V.

    Args:
      key: one key.
      weights: [..., V], not normalised; computed in float32 or wider. Zero, negative or NaN weighs nothing.
      shape: axes of independent draws in front of those of the weights.

    Returns:
      [*shape, ...] int32; 0 where no weight is positive.

    Raises:
      TypeError: `key` is no typed key. ValueError: it is an array of keys, or `weights` has no axis.
    """
    checks.one_key(key)
    weights = checks.wide(checks.as_array(weights, "weights"))
    if weights.ndim < 1 or weights.shape[-1] == 0:
        raise ValueError(f"weights must have shape [..., V] with V >= 1, got {weights.shape}")
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        weights = weights.astype(float)
    batch, size, draws = weights.shape[:-1], weights.shape[-1], math.prod(shape)
    depth = (size - 1).bit_length()
    level = jnp.where(weights > 0, weights, 0.0)
    level = jnp.pad(level, [(0, 0)] * len(batch) + [(0, (1 << depth) - size)])
    levels = []
    for _ in range(depth):
        pairs = level.reshape(*batch, -1, 2)
        levels.append(pairs)
        level = pairs[..., 0] + pairs[..., 1]
    high, low = jax.random.bits(key, (2, depth, *batch, draws), jnp.uint32).astype(level.dtype)
    uniform = high * 2.0**-32 + low * 2.0**-64
    index = jnp.zeros((*batch, draws), jnp.int32)
    for u, pairs in zip(uniform, reversed(levels)):
        pair = jnp.take_along_axis(pairs, index[..., None], axis=-2)
        left, right = pair[..., 0], pair[..., 1]
        # By the lighter half: uniform numbers are fine near 0, not near 1.
        lighter = u * (left + right) < jnp.minimum(left, right)
        index = 2 * index + (lighter == (right <= left))
    return jnp.moveaxis(index, -1, 0).reshape(*shape, *batch)


def _fold(keys: jax.Array, number: Any) -> jax.Array:
    fold = lambda key: jax.random.fold_in(key, number)
    for _ in keys.shape:
        fold = jax.vmap(fold)
    return fold(keys)
