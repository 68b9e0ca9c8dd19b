"""A replay buffer as a pair of pure functions: a ring of states with what is known about each.

Items are a pytree with a leading axis; invalid items never enter, and empty places are never drawn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks
from egm.typing import Array

__all__ = ["Buffer", "add", "draw", "filled", "init", "sample"]


class Buffer(NamedTuple):
    """State of a buffer of capacity C.

    Attributes:
      items: pytree of [C, ...].
      num_added: int32, valid items added since the start, folded into [C, 2C) once the buffer is full;
        the next one goes to num_added modulo C.
    """

    items: Any
    num_added: Array


def init(capacity: int, example: Any) -> Buffer:
    """An empty buffer.

    Args:
      capacity: C, the number of items it holds.
      example: pytree of one item (arrays or their shapes and dtypes), without the leading axis.

    Returns:
      Buffer.
    """
    checks.positive_int(capacity, "capacity")
    leaves = jax.tree.leaves(example)
    if not leaves or not all(hasattr(a, "shape") and hasattr(a, "dtype") for a in leaves):
        raise TypeError(f"example must be a pytree of arrays, got {example!r:.80}")
    items = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    return Buffer(items, jnp.zeros((), jnp.int32))


def filled(buffer: Buffer) -> Array:
    """[C] bool, the places that hold an item."""
    capacity = _capacity(checks.instance(buffer, Buffer, "buffer"))
    return jnp.arange(capacity) < jnp.minimum(buffer.num_added, capacity)


def add(buffer: Buffer, items: Any, valid: Array | None = None) -> Buffer:
    """The buffer after adding a batch; the oldest items give way.

    Args:
      buffer: the state before.
      items: pytree of [N, ...], N at most the capacity.
      valid: [N] bool; items that are not valid are left out. None adds all.

    Returns:
      The state after.

    Raises:
      ValueError: N exceeds the capacity, or a shape differs from the buffer's. TypeError: integers that the
        buffer's dtype may not hold, such as int32 tokens in one of uint8.
    """
    capacity = _capacity(checks.instance(buffer, Buffer, "buffer"))
    if not all(hasattr(a, "shape") and len(a.shape) for a in jax.tree.leaves(items)):
        raise TypeError(f"items must be a pytree of arrays [N, ...], got {items!r:.80}")
    shapes = jax.tree.map(lambda a: a.shape[1:], buffer.items)
    came = jax.tree.map(lambda a: a.shape[1:], items)
    if shapes != came:
        raise ValueError(f"items have shapes {came} without their leading axis, the buffer holds {shapes}")
    for held, new in zip(jax.tree.leaves(buffer.items), jax.tree.leaves(items), strict=True):
        integer = jnp.issubdtype(held.dtype, jnp.integer)
        if integer and jnp.promote_types(held.dtype, new.dtype) != held.dtype:
            raise TypeError(f"items must fit what the buffer holds, {held.dtype}, got {new.dtype}")
    sizes = sorted({a.shape[0] for a in jax.tree.leaves(items)})
    if len(sizes) > 1:
        raise ValueError(f"items must share their leading size, got {sizes}")
    n = sizes[0]
    if n > capacity:
        raise ValueError(f"items must be at most the capacity {capacity}, got {n}")
    if valid is not None:
        valid = checks.bool_vector(valid, "valid", n)
    valid = jnp.ones(n, bool) if valid is None else valid
    order = jnp.cumsum(valid) - 1
    # Places beyond the end are dropped by the scatter.
    place = jnp.where(valid, (buffer.num_added + order) % capacity, capacity)
    new = jax.tree.map(lambda b, a: b.at[place].set(a.astype(b.dtype), mode="drop"), buffer.items, items)
    # Kept in [C, 2C) once full, so that the count cannot overflow.
    total = buffer.num_added + jnp.sum(valid, dtype=jnp.int32)
    total = jnp.where(total >= 2 * capacity, total - capacity, total)
    return Buffer(new, total)


def draw(probabilities: Array, uniforms: Array) -> Array:
    """[B] indices with the given [C] probabilities, by inversion of [B] uniforms in [0, 1).

    Stratified uniforms, (i + u_i)/B, give a stratified sample. Places of probability zero are never
    drawn, unless all are.
    """
    probabilities, uniforms = (
        checks.vector(a, name) for a, name in ((probabilities, "probabilities"), (uniforms, "uniforms"))
    )
    # A partial sum may round up where nothing is added; a place of zero must not gain by that.
    cumulative = jax.lax.cummax(jnp.where(probabilities > 0, jnp.cumsum(probabilities), 0))
    index = jnp.searchsorted(cumulative, uniforms * cumulative[-1], side="right")
    last = jnp.max(jnp.where(probabilities > 0, jnp.arange(probabilities.shape[0]), 0))
    return jnp.minimum(index, last)


def sample(buffer: Buffer, probabilities: Array, uniforms: Array) -> Any:
    """Items drawn with the given probabilities, as in `draw`: a pytree of [B, ...]."""
    capacity = _capacity(checks.instance(buffer, Buffer, "buffer"))
    index = draw(probabilities, uniforms)
    if jnp.shape(probabilities) != (capacity,):
        raise ValueError(f"probabilities must have shape ({capacity},), got {jnp.shape(probabilities)}")
    return jax.tree.map(lambda a: a[index], buffer.items)


def _capacity(buffer: Buffer) -> int:
    return jax.tree.leaves(buffer.items)[0].shape[0]
