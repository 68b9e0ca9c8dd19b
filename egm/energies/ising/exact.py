"""Exact answers for the periodic square-lattice Ising model, on the host in float64 or integers.

Everything here depends on (side, bond, field) with bond = beta * J and field = beta * h: the weight
of a configuration is exp(bond * B + field * M), B the sum of s_i s_j over each site's right and
lower neighbour and M the sum of spins. A row is an integer whose bit c is the token of column c.
Four independent routes, each the others' check: enumeration, the row-to-row transfer matrix (first
rows reduced by symmetry), Kaufman's closed form, and the density of states. Used by `Ising`.

The transfer matrix works with the weights themselves where all that it can meet fits a float64, and
with their logarithms, some twenty times slower but for few first rows, where the couplings are so
strong that it does not (`_fits`).
"""

from __future__ import annotations

import numpy as np

from egm.energies.ising.arrays import log_integers, logsumexp
from egm.energies.ising.density_of_states import density_of_states
from egm.energies.ising.enumeration import MAX_ENUMERATION_SIDE, nonzero_counts

__all__ = ["energy_histogram"]


def energy_histogram(side: int, bond: float, field: float) -> tuple[np.ndarray, np.ndarray]:
    """(energies [M] sorted, probabilities [M]); energies within 1e-12 of the range are one."""
    sites = side * side
    if side <= MAX_ENUMERATION_SIDE:
        bonds, up, log_counts = nonzero_counts(side)
    else:
        log_counts = log_integers(density_of_states(side))
        keep = np.isfinite(log_counts)
        bonds, up, log_counts = 2 * sites - 4 * np.flatnonzero(keep), 0, log_counts[keep]
    energies = -(bond * bonds + field * (2 * up - sites if field else 0))
    logs = log_counts - energies
    probabilities = np.exp(logs - logsumexp(logs))
    unit = max(np.ptp(energies), np.finfo(float).tiny) * 1e-12
    _, index, group = np.unique(np.round(energies / unit), return_index=True, return_inverse=True)
    return energies[index], np.bincount(group, weights=probabilities)
