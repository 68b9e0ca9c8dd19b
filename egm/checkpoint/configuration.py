"""Configurations as plain data, and the first field in which two of them differ; for `egm.checkpoint`."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["first_difference", "plain"]


def plain(value: Any, path: str = "configuration") -> Any:
    """A configuration as JSON-like data.

    Mappings, sequences, numbers, strings, booleans, None and numpy arrays stay what they are. A dataclass or
    a NamedTuple becomes a mapping of its fields and of its class's name (fields outside its repr left out), a
    function or a class its name, a `functools.partial` its function and arguments.

    Raises:
      TypeError: something else, with its dotted path.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    if isinstance(value, type):
        return value.__qualname__
    inside = lambda v, name: plain(v, f"{path}.{name}")
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise TypeError(f"{path} must have strings for keys, got {list(value)}")
        return {name: inside(v, name) for name, v in value.items()}
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value) if f.repr}
    elif hasattr(value, "_asdict"):
        fields = value._asdict()
    elif isinstance(value, functools.partial):
        return {n: inside(getattr(value, n), n) for n in ("func", "args", "keywords")}
    elif isinstance(value, list | tuple):
        return [inside(v, str(i)) for i, v in enumerate(value)]
    elif isinstance(value, Callable) and hasattr(value, "__qualname__"):
        return value.__qualname__
    else:
        raise TypeError(f"{path} must be plain data, a dataclass or a function, got {value!r}")
    return {"class": type(value).__name__} | {name: inside(v, name) for name, v in fields.items()}


_ABSENT = object()


def first_difference(there: Any, here: Any, path: str = "") -> tuple[str, str, str] | None:
    """(dotted path, what is there, what is here) of the first difference, None for none."""
    parts = [dict(enumerate(v)) if isinstance(v, list) else v for v in (there, here)]
    if all(isinstance(v, dict) for v in parts) and type(there) is type(here):
        old, new = parts
        for name in [*new, *(n for n in old if n not in new)]:
            inside = f"{path}.{name}" if path else str(name)
            found = first_difference(old.get(name, _ABSENT), new.get(name, _ABSENT), inside)
            if found is not None:
                return found
        return None
    both_nan = all(isinstance(v, float) and math.isnan(v) for v in (there, here))
    same = both_nan or (isinstance(there, bool) == isinstance(here, bool) and there == here)
    text = lambda v: "absent" if v is _ABSENT else repr(v)
    return None if same else (path, text(there), text(here))
