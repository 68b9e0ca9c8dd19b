"""Exact answers by counting the states of a lattice of up to 5x5 by bond sum and spin sum."""

from __future__ import annotations

import functools

import numpy as np

from egm.energies.ising.arrays import freeze, logsumexp, row_spins

__all__ = [
    "MAX_ENUMERATION_SIDE",
    "enumerated_log_partition",
    "enumerated_magnetization",
    "joint_counts",
    "nonzero_counts",
]

MAX_ENUMERATION_SIDE = 5


@functools.lru_cache(maxsize=8)
def joint_counts(side: int) -> np.ndarray:
    """How many configurations have bond sum B and magnetisation M, by enumeration (side <= 5).

    Returns:
      [L + 1, L + 1] int64; entry [a, u] counts B = 4a - 2L (B moves in steps of four on a torus,
      where every row and column has an even number of sign changes) with u spins up.
    """
    sites, spins = side * side, row_spins(side).astype(np.int64)
    ring = np.sum(spins * np.roll(spins, -1, axis=1), axis=1)
    up = np.sum(spins > 0, axis=1)
    between = spins @ spins.T
    # One integer a row and one a pair of rows; their sums hold B and the number of up spins.
    base = sites + 1
    one, pair = ring * base + up, between * base
    counts = np.zeros((sites + 1, base), np.int64)
    for first in range(2**side):
        total = np.full((1, 1), one[first] + 2 * sites * base)
        last = np.full(1, first)
        for _ in range(side - 1):  # total [rows so far, last row]
            total = total.reshape(-1, len(last))[:, :, None] + (pair[last] + one)[None]
            last = np.arange(2**side)
            total = total.reshape(-1, 2**side)
        total = (total + pair[:, first]).ravel()
        found = np.bincount(total, minlength=(4 * sites + 1) * base)
        counts += found.reshape(-1, base)[::4]
    return freeze(counts)[0]


def nonzero_counts(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`joint_counts` as lists: bond sums, numbers of up spins, logs of the counts."""
    counts = joint_counts(side)
    a, up = np.nonzero(counts)
    return 4 * a - 2 * side * side, up, np.log(counts[a, up])


def enumerated_log_partition(side: int, bond: float, field: float) -> float:
    """log Z from `joint_counts`."""
    bonds, up, log_counts = nonzero_counts(side)
    return logsumexp(log_counts + bond * bonds + field * (2 * up - side * side))


def enumerated_magnetization(side: int, bond: float, field: float) -> np.ndarray:
    """[L + 1] probability of u spins up, from `joint_counts`."""
    bonds, up, log_counts = nonzero_counts(side)
    logs = log_counts + bond * bonds + field * (2 * up - side * side)
    probabilities = np.exp(logs - logsumexp(logs))
    return np.bincount(up, weights=probabilities, minlength=side * side + 1)
