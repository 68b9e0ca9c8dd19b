"""Small arrays that the exact routes share: rows as spins, logs of large integers, frozen results."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["freeze", "log_integers", "logsumexp", "row_spins"]


def logsumexp(a: np.ndarray) -> float:
    """log sum exp of a vector."""
    top = float(np.max(a))
    return top + math.log(np.sum(np.exp(a - top)))


def log_integers(counts: list[int]) -> np.ndarray:
    """Logs of integers of any size, -inf at zero."""
    return np.array([math.log(c) if c else -math.inf for c in counts])


def freeze(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Read-only, since caches hand the same arrays to every caller."""
    for array in arrays:
        array.flags.writeable = False
    return arrays


def row_spins(side: int) -> np.ndarray:
    """[2^side, side] spins of every row."""
    return 2 * (np.arange(2**side)[:, None] >> np.arange(side) & 1) - 1
