"""A user's energy as the library takes it: of a batch of states, with conditionals of its tokens."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, energies
from egm.spaces import Layout
from egm.typing import Array, Energy, PyTree

__all__ = ["batched_energy", "with_conditionals", "with_pairs"]

_NUM_TRIED = 7
_MOST_CONDITIONALS = 4096
"""L V up to which single-site conditionals are made by evaluating the energy."""
_MOST_PAIRS = 2048
"""L V up to which the pair terms of an energy are looked for: a table of the square of it is kept."""


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


def with_pairs(energy: Energy, layout: Layout) -> Energy:
    """An energy of tokens alone with its pair terms, where it is made of them and says nothing of itself.

    Args:
      energy: E on the layout's states.
      layout: of the states.

    Returns:
      `egm.energies.WithPairs`, or the energy as it was.
    """
    sizes = layout.vocab_sizes
    alone = sizes.size > 1 and not layout.num_coordinates and sizes.min() == sizes.max()
    if not alone or hasattr(energy, "single_site_conditionals") or sizes.sum() > _MOST_PAIRS:
        return energy
    found = energies.pair_terms(energy, layout.num_sites, layout.vocab_size)
    return energy if found is None else energies.WithPairs(energy, *found)


def with_conditionals(energy: Energy, layout: Layout) -> Energy:
    """The energy with single-site conditionals, by evaluating it, where they are affordable."""
    count = layout.num_sites * layout.vocab_size
    if not count or hasattr(energy, "single_site_conditionals") or count > _MOST_CONDITIONALS:
        return energy
    return energies.WithConditionals(energy, layout.vocab_size, "h" if layout.num_coordinates else None)


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
