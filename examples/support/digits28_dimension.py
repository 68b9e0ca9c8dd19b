"""Local intrinsic dimension of 28x28 digits: all 784 eigenvalues of the Hessian of V, by Lanczos."""

from __future__ import annotations

import time

import jax
import numpy as np
import scipy.linalg
import scipy.stats

from energymatch import curvature

CHUNK = 10
"""Digits at a time."""
GRID = np.geomspace(0.02, 1.5, 40)
"""Thresholds tried on training digits, in units of epsilon/noise^2, the curvature of the noise alone."""


def spectra(key, potential, x, num_steps=None):
    """([N, D] eigenvalues of the Hessian of V at x [N, *event], seconds an image once compiled).

    D Lanczos steps (or `num_steps`, for as many Ritz values), each one product with the Hessian; then the
    eigenvalues of the tridiagonal matrix, so that any number of thresholds costs nothing more.
    """
    num_steps = int(np.prod(x.shape[1:])) if num_steps is None else num_steps

    @jax.jit
    def run(key, x):
        out = curvature.lanczos(key, potential, x, num_steps)
        return out.diagonal, out.off_diagonal

    chunk = min(CHUNK, len(x))
    rows = np.minimum(np.arange(-(-len(x) // chunk) * chunk), len(x) - 1).reshape(-1, chunk)
    keys = jax.random.split(key, len(rows))
    jax.block_until_ready(run(keys[0], x[rows[0]]))
    start, found = time.time(), []
    for k, part in zip(keys, rows, strict=True):
        for diagonal, off_diagonal in zip(*jax.device_get(run(k, x[part])), strict=True):
            found.append(scipy.linalg.eigvalsh_tridiagonal(diagonal, off_diagonal))
    return np.stack(found)[: len(x)], (time.time() - start) / rows.size


def counts(eigenvalues, threshold):
    """[N] how many of [N, D] eigenvalues are below the threshold in size."""
    return np.sum(np.abs(eigenvalues) < threshold, axis=-1)


def choose_threshold(eigenvalues, sizes, unit):
    """(the threshold of unit * GRID whose counts agree best with the sizes by Spearman, all correlations)."""
    correlations = []
    for share in GRID:
        found = counts(eigenvalues, share * unit)
        correlations.append(scipy.stats.spearmanr(found, sizes).statistic if np.ptp(found) else -1.0)
    return float(unit * GRID[int(np.argmax(correlations))]), np.array(correlations)
