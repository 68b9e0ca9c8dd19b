"""A table whose columns have names (pandas, polars, and what looks like them) as an array and back.

Nothing of these libraries is imported: a frame is what has `columns` and gives a column for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["is_frame", "label", "names_of", "values_of"]


def is_frame(data: Any) -> bool:
    """Whether it has named columns."""
    return hasattr(data, "columns") and hasattr(data, "to_numpy") and hasattr(data, "__getitem__")


def names_of(data: Any, name: str) -> tuple[str, ...] | None:
    """The names of the columns as text, None where it is no frame; two of the same name raise ValueError."""
    if not is_frame(data):
        return None
    names = tuple(str(c) for c in data.columns)
    twice = next((n for i, n in enumerate(names) if n in names[:i]), None)
    if twice is not None:
        raise ValueError(f"{name} must have columns of different names, got {twice!r} twice")
    return names


def values_of(data: Any, name: str, columns: Sequence[str] | None = None) -> Any:
    """[N, D] the values of a frame, by `columns` where they are told, in the frame's order else.

    What is no frame comes back as it is.

    Raises:
      TypeError: a column holds no numbers. ValueError: one of `columns` is not there.
    """
    names = names_of(data, name)
    if names is None:
        return data
    labels = dict(zip(names, data.columns, strict=True))
    missing = [c for c in columns or () if c not in labels]
    if missing:
        raise ValueError(f"{name} must have the columns {list(columns or ())}, it lacks {missing}")
    found = [_column(data[labels[c]], f"column {c!r} of {name}") for c in columns or names]
    if found and all(c.dtype == bool for c in found):
        return np.stack(found, axis=1)
    return np.stack([c.astype(np.float64) for c in found], axis=1) if found else np.zeros((len(data), 0))


def label(names: Sequence[str] | None, column: int) -> str:
    """How a message calls a column."""
    return f"column {column}" if names is None else f"column {names[column]!r}"


def _column(series: Any, what: str) -> np.ndarray:
    """[N] numbers; a value that is missing is NaN."""
    kind = getattr(series.dtype, "kind", None)
    if kind in ("f", "i", "u", "b"):
        try:
            found = np.asarray(series)
            if found.dtype.kind in "fiub":
                return found
            # An extension type of pandas with missing values.
            return series.to_numpy(dtype=np.float64, na_value=np.nan)
        except (TypeError, ValueError):
            pass
    elif kind is None and np.asarray(series).dtype.kind in "fiub":
        return np.asarray(series)
    raise TypeError(f"{what} must hold numbers, got {series.dtype}: encode text as numbers, or drop it")
