"""Checks of the states and arguments of continuous and mixed energies, shared by their modules."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.typing import Array, Key

__all__ = [
    "LARGEST_ENERGY",
    "constant",
    "length",
    "mixed",
    "nested_tuple",
    "probabilities",
    "sample_size",
    "tokens_of_integers",
    "vector",
]

_SHORTEST, _LONGEST = 1e-18, 1e18


LARGEST_ENERGY = 1e37
"""Energies that an energy's parameters may lead to must stay below it: float32 ends at 3.4e38."""


def vector(x: Any, size: int, name: str = "x") -> Array:
    """[..., D] `x` in float32 or wider; TypeError unless floating, ValueError unless of trailing size D."""
    x = checks.wide(checks.float_array(x, name, min_ndim=1))
    if x.shape[-1] != size:
        raise ValueError(f"{name} has trailing size {x.shape[-1]}, this energy has dim {size}")
    return x


def mixed(state: Any, dim: int, sites: int) -> tuple[Array, Array]:
    """(x [..., D], h [..., L] in x's dtype) of {"x", "h"}; raises unless it is such a state."""
    x, h = _parts(state, dim)
    dtype = getattr(h, "dtype", None)
    h = checks.as_array(h, 'state["h"]', "an array of integers")
    if not jnp.issubdtype(h.dtype, jnp.integer):
        raise TypeError(f'state["h"] must hold integer tokens, got dtype {dtype or h.dtype}')
    _same_batch(x, h, 'state["h"]', (sites,))
    return x, h.astype(x.dtype)


def probabilities(state: Any, dim: int, sites: int, vocab: int) -> tuple[Array, Array]:
    """(x [..., D], p [..., L, V]) of {"x", "h"} with probabilities for tokens; raises likewise."""
    x, p = _parts(state, dim)
    p = checks.float_array(p, 'state["h"]')
    _same_batch(x, p, 'state["h"]', (sites, vocab))
    return x, p.astype(x.dtype)


def constant(value: Any, like: Array, event_ndim: int = 1) -> Array:
    """A constant with as many axes as a batch of such arrays: rank promotion may be an error."""
    value = np.asarray(value)
    lead = like.ndim - event_ndim
    return jnp.asarray(value.reshape((1,) * lead + value.shape), like.dtype)


def sample_size(key: Key, n: int) -> int:
    """`n`; raises unless `key` is one typed key and `n` a positive int."""
    checks.one_key(key)
    return checks.positive_int(n, "n")


def length(value: Any, name: str) -> float:
    """A positive length as a float; raises unless its square and the inverse of it are float32 numbers."""
    value = checks.positive_float(value, name)
    if not _SHORTEST <= value <= _LONGEST:
        expected = f"between {_SHORTEST:.0e} and {_LONGEST:.0e}, so that its square is a float32 number"
        raise ValueError(f"{name} must be {expected}, got {value}")
    return value


def tokens_of_integers(sites: int) -> np.ndarray:
    """[2^L, L] all configurations of L binary tokens; token i is bit i of the row's number."""
    return np.arange(2**sites)[:, None] >> np.arange(sites) & 1


def nested_tuple(value: Any, name: str, ndim: int) -> tuple:
    """`value` as (nested) tuples of floats; raises unless rectangular, finite, of `ndim` axes, not empty."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a rectangular array of numbers, got {value!r}") from None
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name} must have {ndim} axes and not be empty, got shape {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite, got {value!r}")
    rows = array.tolist()
    return tuple(rows) if ndim == 1 else tuple(tuple(row) for row in rows)


def _parts(state, dim):
    if not isinstance(state, dict) or set(state) != {"x", "h"}:
        came = sorted(state, key=str) if isinstance(state, dict) else type(state).__name__
        raise TypeError(f'state must be a dict with parts "x" and "h", got {came}')
    return vector(state["x"], dim, 'state["x"]'), state["h"]


def _same_batch(x, other, name, event):
    expected = (*x.shape[:-1], *event)
    if other.shape != expected:
        raise ValueError(f'{name} must have shape {expected} beside state["x"] {x.shape}, got {other.shape}')
