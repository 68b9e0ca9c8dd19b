"""A user's energy as a function of a batch of states, whether it was written for one state or for many."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.spaces import Layout
from egm.typing import Array, PyTree

__all__ = ["batched_energy"]

_NUM_TRIED = 7


def batched_energy(
    energy: Callable[[PyTree], Array], layout: Layout, batched: bool | None = None
) -> Callable[[PyTree], Array]:
    """The energy of a batch: `energy` itself where it takes one, else its `jax.vmap`.

    Where nothing is said it is tried: an energy that returns one number a state of a batch, and the same
    number whatever the other states are, takes batches.

    Args:
      energy: E of the user's states, of one or of a batch.
      layout: of the states.
      batched: True or False where it is known.

    Raises:
      TypeError: the energy is no function. ValueError: it returns neither a number for one state nor [N]
        for N of them.
    """
    checks.function(energy, "energy")
    if batched is not None:
        return energy if checks.flag(batched, "batched") else jax.vmap(energy)
    x, others = _states(layout, 0), _states(layout, 1)
    shape, trouble = _shape_of(energy, x)
    if shape == (_NUM_TRIED,):
        mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[:1], b[1:]]), x, others)
        first, second = (np.asarray(energy(state), float)[0] for state in (x, mixed))
        if np.isclose(first, second, rtol=1e-4, atol=1e-4, equal_nan=True) or not np.isfinite(first):
            return energy
    single = jax.vmap(energy)
    shape_one, trouble_one = _shape_of(single, x)
    if shape_one == (_NUM_TRIED,):
        return single
    what = f"{shape} for a batch of {_NUM_TRIED}" if shape is not None else f"an error ({trouble})"
    one = f"{shape_one[1:]} for one state" if shape_one is not None else f"an error ({trouble_one})"
    raise ValueError(
        f"energy must return one number a state: [N] for a batch of N states, or () for one state of "
        f"{layout.spaces!r:.120}; it gave {what}, and {one}"
    )


def _states(layout: Layout, seed: int) -> PyTree:
    k_x, k_h = jax.random.split(jax.random.key(seed))
    x = 0.5 * jax.random.normal(k_x, (_NUM_TRIED, layout.num_coordinates))
    sizes = jnp.asarray(layout.vocab_sizes, jnp.float32)[None]
    h = (jax.random.uniform(k_h, (_NUM_TRIED, layout.num_sites)) * sizes).astype(jnp.int32)
    return layout.to_user(layout.joined(x, h))[0]


def _shape_of(function, x):
    """(the shape of what it returns, None) or (None, why it failed)."""
    try:
        out = jax.eval_shape(function, x)
    except Exception as error:  # whatever a user's function raises
        return None, f"{type(error).__name__}: {error}".splitlines()[0][:160]
    if not hasattr(out, "shape"):
        return None, f"it returned a {type(out).__name__}"
    return out.shape, None
