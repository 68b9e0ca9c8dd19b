"""A sampler as plain data and back: what its folder's JSON holds of spaces, pytrees and numbers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from egm import evidence
from egm.coordinates import Coordinates
from egm.spaces import Circle, Interval, Layout, Particles, Positive, Real, Tokens
from egm.transport import CouplingMap, Transport
from egm.typing import Moments, PyTree


def coordinates(layout: Layout, about: dict[str, Any], arrays: dict[str, Any]) -> Coordinates:
    """The coordinates of a folder."""
    matrix = arrays["matrix"] if arrays["matrix"].ndim == 2 else float(arrays["matrix"][0])
    curved = about.get("transport")
    if curved is not None:
        curved = Transport(CouplingMap(**curved), arrays["transport"])
    return Coordinates(layout, arrays["center"][: layout.num_coordinates], matrix, about["log_det"], curved)


def evidence_of(values: Any) -> evidence.Evidence | None:
    """The evidence of its plain numbers."""
    return None if values is None else evidence.Evidence(*(jnp.asarray(v) for v in values))


def moments(layout: Layout, leaves: Any) -> Any:
    """The moments in the path's form of their arrays."""
    if not layout.num_coordinates:
        return None
    values = list(leaves.values()) if isinstance(leaves, dict) else list(leaves)
    vector = Moments(*(jnp.asarray(a, float) for a in values))
    return layout.joined(vector, None)


KINDS = {kind.__name__: kind for kind in (Real, Positive, Interval, Circle, Tokens, Particles)}


def plain_space(space: Any) -> dict[str, Any]:
    """A space as its kind and fields; raises TypeError for one of the user's own."""
    kind = type(space).__name__
    if kind not in KINDS or KINDS[kind] is not type(space):
        raise TypeError(f"only the spaces of egm.spaces can be saved, got {space!r:.80}")
    return {"kind": kind} | {f.name: getattr(space, f.name) for f in dataclasses.fields(space)}


def tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields with the tuples that JSON has made lists of."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}


def structure(tree: PyTree) -> Any:
    """Dicts, lists and tuples of a pytree of spaces as plain data, None where a space stands."""
    if isinstance(tree, dict):
        return {"dict": {k: structure(v) for k, v in tree.items()}}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: [structure(v) for v in tree]}
    if dataclasses.is_dataclass(tree):
        return None
    raise TypeError(f"only dicts, lists and tuples of spaces can be saved, got {tree!r:.80}")


def rebuilt(structure: Any, leaves: Any) -> PyTree:
    """The pytree of a plain structure, its leaves taken in the order of `jax.tree.leaves`."""
    if structure is None:
        return next(leaves)
    ((kind, inside),) = structure.items()
    if kind == "dict":
        return {k: rebuilt(inside[k], leaves) for k in sorted(inside)}
    parts = [rebuilt(v, leaves) for v in inside]
    return parts if kind == "list" else tuple(parts)


def plain(value: Any) -> Any:
    """A number of any kind as Python's; text and None as they are."""
    return value if isinstance(value, str | type(None)) else np.asarray(value).item()
