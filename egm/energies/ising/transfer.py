"""Exact answers by the row-to-row transfer matrix: log Z, correlations, magnetisation, samples."""

from __future__ import annotations

import functools
import math

import numpy as np

from egm.energies.ising.arrays import freeze, logsumexp, row_spins

__all__ = [
    "MAX_MAGNETIZATION_SIDE",
    "MAX_TRANSFER_SIDE",
    "magnetization_probabilities",
    "row_correlation",
    "row_distribution",
    "sample_transfer",
]

MAX_TRANSFER_SIDE = 16


MAX_MAGNETIZATION_SIDE = 12


_CHUNK_BYTES = 4 * 2**20  # of a cache, not of the memory


_LOG_RANGE = 600.0  # exp(-600) is far above the smallest float64


_LOG_NEGLIGIBLE = 40.0  # in logarithms, first rows that weigh below exp(-40) of the whole are left out


@functools.lru_cache(maxsize=4)
def _row_classes(side: int, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """One row of each orbit of rotation, reflection and (with `flip`) global spin flip.

    Returns:
      ([C] rows, [C] orbit sizes).
    """
    mask = 2**side - 1
    rows = np.arange(2**side)
    mirrored = sum((rows >> c & 1) << (side - 1 - c) for c in range(side))
    least = rows.copy()
    for image in (rows, mirrored):
        for shift in range(side):
            rotated = (image << shift | image >> (side - shift)) & mask
            np.minimum(least, rotated, out=least)
            if flip:
                np.minimum(least, mask - rotated, out=least)
    least, sizes = freeze(*np.unique(least, return_counts=True))
    return least, sizes


def _row_logs(side: int, bond: float, field: float) -> tuple[np.ndarray, float]:
    """bond * ring + field * M of every row [2^side] less its maximum, and that maximum."""
    spins = row_spins(side)
    log = bond * np.sum(spins * np.roll(spins, -1, axis=1), axis=1) + field * np.sum(spins, axis=1)
    return log - log.max(), float(log.max())


def _fits(side: int, bond: float, field: float) -> bool:
    """Whether the weights of rows given the one before, over their largest, are normal float64 numbers.

    Whatever came before, two rows differ by at most exp(2 |bond| side) through the bonds between rows
    and by the range of the rows' own weights.
    """
    return 2 * abs(bond) * side - float(_row_logs(side, bond, field)[0].min()) < _LOG_RANGE


def _apply_bonds(v: np.ndarray, side: int, bond: float) -> np.ndarray:
    """Sum over a row [2^side, ...] against its bonds to the next row, whose weights are at most 1.

    The matrix is a Kronecker product over sites, applied to four sites at a time.
    """
    shape, before = v.shape, 1
    for start in range(0, side, 4):
        sites = min(4, side - start)
        spins = row_spins(sites).astype(float)
        factor = np.exp(bond * (spins @ spins.T) - abs(bond) * sites)
        # The axis in front holds the bits above: the leading group is the highest.
        v = np.matmul(factor, v.reshape(before, 2**sites, -1))
        before *= 2**sites
    return v.reshape(shape)


def _apply_log_bonds(v: np.ndarray, side: int, bond: float) -> np.ndarray:
    """`_apply_bonds` of logarithms, one site at a time."""
    same, differ = bond - abs(bond), -bond - abs(bond)
    shape = v.shape
    for c in range(side):
        v = v.reshape(2 ** (side - 1 - c), 2, -1)
        v = np.logaddexp(v + same, v[:, ::-1] + differ)
    return v.reshape(shape)


def _log_bonds_to(row: int, side: int, bond: float) -> np.ndarray:
    """[2^side] log-weight of the bonds between every row and this one, at most 0."""
    differing = np.sum((np.arange(2**side) ^ row)[:, None] >> np.arange(side) & 1, axis=1)
    return (bond - abs(bond)) * (side - differing) + (-bond - abs(bond)) * differing


def _log_closed_chain(side: int, bond: float) -> float:
    """Log of the sum over a closed chain of `side` spins, the first fixed, of its bonds' weights <= 1.

    ((1 + q)^n +- (1 - q)^n) / 2 with q = exp(-2 |bond|); the minus where a closed chain is frustrated.
    """
    q = math.exp(-2 * abs(bond))
    if bond >= 0 or side % 2 == 0:
        return side * math.log1p(q) + math.log((1 + ((1 - q) / (1 + q)) ** side) / 2)
    if q < 1e-18:
        return math.log(side) - 2 * abs(bond)
    return side * math.log1p(q) + math.log(-math.expm1(side * (math.log1p(-q) - math.log1p(q))) / 2)


def _log_bounds(side: int, bond: float, field: float) -> np.ndarray:
    """[C] upper bounds of the log of what each class of first rows weighs, the lesser of two.

    A class weighs at most (its row's own weight) times a closed chain of bonds a column, which is tight
    where the columns are frustrated, times the number of its rows. And with T the symmetric matrix
    sqrt(w_r) V_rs sqrt(w_s), (T^n)_ff <= (T^2)_ff ||T||^(n - 2): the squares of all rows are one
    application of the squared bonds, and ||T||^2 <= max_r (T^2 phi)_r / phi_r for every positive phi
    (Collatz and Wielandt).
    """
    rows, sizes = _row_classes(side, field == 0)
    row_logs, _ = _row_logs(side, bond, field)

    def apply(phi):
        return row_logs / 2 + _apply_log_bonds(row_logs / 2 + phi, side, bond)

    phi, log_norm = np.zeros(2**side), math.inf
    for _ in range(20):
        image = apply(apply(phi))
        log_norm = min(log_norm, float(np.max(image - phi)))
        phi = image - image.max()
    squares = row_logs + _apply_log_bonds(row_logs, side, 2 * bond)
    chains = row_logs + (side * _log_closed_chain(side, bond) if bond else side * (side - 1) * math.log(2))
    return np.minimum(squares + (side - 2) / 2 * log_norm, chains)[rows] + np.log(sizes)


def _scan_log_classes(side: int, bond: float, field: float, evaluate) -> np.ndarray:
    """[C, ...] logs of what `evaluate(first row)` gives for each class, -inf for those left out.

    Those with the largest bounds come first, until no other can matter.
    """
    rows, sizes = _row_classes(side, field == 0)
    bounds = _log_bounds(side, bond, field)
    found, best = {}, -math.inf
    for k in np.argsort(-bounds, kind="stable"):
        if bounds[k] < best - _LOG_NEGLIGIBLE:
            break
        found[k] = evaluate(rows[k]) + math.log(sizes[k])
        best = max(best, float(np.max(found[k])))
    logs = np.full((len(rows), *np.shape(next(iter(found.values())))), -np.inf)
    for k, value in found.items():
        logs[k] = value
    return logs


@functools.lru_cache(maxsize=4)
def row_distribution(side: int, bond: float, field: float) -> tuple[np.ndarray, float]:
    """The marginal of one row over `_row_classes`, and log Z: the diagonal of T^side.

    Returns:
      ([C] probabilities of the classes, log Z).
    """
    row_logs, log_top = _row_logs(side, bond, field)
    log_step = log_top + abs(bond) * side  # what the weights of one row and its bonds lack
    compute = _log_diagonal if _fits(side, bond, field) else _log_diagonal_in_logs
    logs = compute(side, bond, field, row_logs)
    log_z = logsumexp(logs)
    return freeze(np.exp(logs - log_z))[0], log_z + side * log_step


def _log_diagonal_in_logs(side: int, bond: float, field: float, row_logs: np.ndarray) -> np.ndarray:
    """[C] log of what each class of first rows weighs, in logarithms throughout."""

    def diagonal(first):
        after = [_log_bonds_to(first, side, bond)]
        for _ in range((side - 1) // 2):
            after.append(_apply_log_bonds(row_logs + after[-1], side, bond))
        return row_logs[first] + logsumexp(row_logs + after[-1] + after[side // 2 - 1])

    return _scan_log_classes(side, bond, field, diagonal)


def _log_diagonal(side: int, bond: float, field: float, row_logs: np.ndarray) -> np.ndarray:
    """[C] the same with the weights themselves, rescaled."""
    rows, sizes = _row_classes(side, field == 0)
    root = np.exp(row_logs / 2)[:, None]

    def apply(v):  # the symmetric T = root V root to [2^side, classes]
        v = _apply_bonds(v * root, side, bond) * root
        scale = v.max(axis=0)
        return v / scale, np.log(scale)

    logs = np.empty(len(rows))
    chunk = max(1, _CHUNK_BYTES // (8 * 2**side))
    for start in range(0, len(rows), chunk):
        first = rows[start : start + chunk]
        half, log_half = np.zeros((2**side, len(first))), np.zeros(len(first))
        half[first, np.arange(len(first))] = 1.0
        for _ in range(side // 2):
            half, log_scale = apply(half)
            log_half += log_scale
        other, log_scale = apply(half) if side % 2 else (half, 0.0)
        overlap = np.sum(half * other, axis=0)
        logs[start : start + chunk] = np.log(overlap) + 2 * log_half + log_scale
    return logs + np.log(sizes)


def row_correlation(side: int, bond: float, field: float) -> np.ndarray:
    """[side // 2 + 1] <s_0 s_r> along a row, from the marginal of a row."""
    rows, _ = _row_classes(side, field == 0)
    spins = row_spins(side)[rows]
    probabilities, _ = row_distribution(side, bond, field)
    distances = range(side // 2 + 1)
    return np.array([probabilities @ np.mean(spins * np.roll(spins, -r, axis=1), axis=1) for r in distances])


def sample_transfer(rng: np.random.Generator, side: int, bond: float, field: float, n: int) -> np.ndarray:
    """Independent exact samples: a first row from its marginal, then site by site.

    The first row is drawn as a class of `_row_classes`; each class's samples share one table of
    backward weights, and a random symmetry then moves each sample within its orbit.

    Returns:
      [n, side^2] int8 tokens.
    """
    rows, _ = _row_classes(side, field == 0)
    probabilities, _ = row_distribution(side, bond, field)
    bits = np.arange(side)
    fill, draw_up = _weight_table(side, bond, field)
    classes = rng.choice(len(rows), size=n, p=probabilities / probabilities.sum())
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], np.arange(len(rows) + 1))
    states = np.empty((n, side), np.int64)
    # table[j, c][mixed]: weight of what follows, given that row j is `mixed` up to column c and row
    # j - 1 is `mixed` from column c on; summed over everything later, up to the first row.
    table = np.empty((side, side + 1, 2**side))
    for k in np.unique(classes):
        members, first = order[starts[k] : starts[k + 1]], rows[k]
        fill(table, first)
        mixed = np.full(len(members), first)
        states[members, 0] = first
        for j in range(1, side):
            uniform = rng.random((side, len(members)))
            for c in range(side):
                bit = 1 << c
                down, up = table[j, c + 1][mixed & ~bit], table[j, c + 1][mixed | bit]
                goes_up = draw_up(uniform[c], mixed & bit != 0, up, down)
                mixed = np.where(goes_up, mixed | bit, mixed & ~bit)
            states[members, j] = mixed
    shift, mirror = rng.integers(side, size=(n, 1)), rng.choice([-1, 1], size=(n, 1))
    columns = (mirror * bits + shift) % side
    tokens = (states[:, :, None] >> columns[:, None] & 1).astype(np.int8)
    if field == 0:
        tokens ^= rng.integers(2, size=(n, 1, 1), dtype=np.int8)
    return tokens.reshape(n, -1)


def _weight_table(side: int, bond: float, field: float):
    """(fill(table, first row), draw_up(uniform, was up, weight if up, if down)) of `sample_transfer`.

    The table holds weights where they fit, else their logarithms.
    """
    row_logs, _ = _row_logs(side, bond, field)
    log_same, log_differ = bond - abs(bond), -bond - abs(bond)
    fits = _fits(side, bond, field)
    weights = np.exp(row_logs)
    same, differ = np.exp(log_same), np.exp(log_differ)

    def fill(table, first):
        after = _log_bonds_to(first, side, bond)
        after = np.exp(after) if fits else after
        for j in range(side - 1, 0, -1):
            table[j, side] = (after / after.max() * weights) if fits else (after - after.max() + row_logs)
            for c in range(side - 1, 0 if j == 1 else -1, -1):
                old = table[j, c + 1].reshape(-1, 2, 2**c)
                new = table[j, c].reshape(-1, 2, 2**c)
                if fits:
                    np.multiply(old, same, out=new)
                    new += differ * old[:, ::-1]
                else:
                    np.logaddexp(old + log_same, old[:, ::-1] + log_differ, out=new)
            after = table[j, 0]

    def draw_up(uniform, was_up, up, down):
        if fits:
            up = np.where(was_up, same, differ) * up
            total = up + np.where(was_up, differ, same) * down
            return uniform * total < up
        log_odds = up - down + np.where(was_up, log_same - log_differ, log_differ - log_same)
        # log(u / (1 - u)) < log odds, without the exponential of either.
        with np.errstate(divide="ignore"):
            return np.log(uniform) - np.log1p(-uniform) < log_odds

    return fill, draw_up


@functools.lru_cache(maxsize=4)
def magnetization_probabilities(side: int, bond: float, field: float) -> np.ndarray:
    """[L + 1] probability of u spins up: row transfer of polynomials in the number of up spins."""
    up = np.sum(row_spins(side) > 0, axis=1)
    row_logs, _ = _row_logs(side, bond, field)
    compute = _log_polynomials if _fits(side, bond, field) else _log_polynomials_in_logs
    logs = compute(side, bond, field, row_logs, up)
    total = np.exp(logs - logs.max()).sum(axis=0)
    if field == 0:  # the classes joined rows to their flips
        total = total + total[::-1]
    return freeze(total / total.sum())[0]


def _log_polynomials_in_logs(side, bond, field, row_logs, up) -> np.ndarray:
    """[C, L + 1] log of what each class of first rows weighs with u spins up, in logarithms throughout."""

    def closed(first):
        poly = np.full((2**side, side + 1), -np.inf)
        poly[first, up[first]] = row_logs[first]
        for _ in range(1, side):
            size = poly.shape[1]
            poly = _apply_log_bonds(poly, side, bond) + row_logs[:, None]
            longer = np.full((2**side, size + side), -np.inf)
            for u in range(side + 1):
                longer[up == u, u : u + size] = poly[up == u]
            poly = longer
        poly = poly + _log_bonds_to(first, side, bond)[:, None]
        top = np.max(poly, axis=0)
        safe = np.where(np.isfinite(top), top, 0.0)
        with np.errstate(divide="ignore"):
            return safe + np.log(np.sum(np.exp(poly - safe), axis=0))

    return _scan_log_classes(side, bond, field, closed)


def _log_polynomials(side, bond, field, row_logs, up) -> np.ndarray:
    """[C, L + 1] the same with the weights themselves, rescaled."""
    rows, sizes = _row_classes(side, field == 0)
    weights = np.exp(row_logs)
    sites = side * side
    logs = np.empty((len(rows), sites + 1))
    chunk = max(1, _CHUNK_BYTES // (8 * 2**side * (sites + 1)))
    for start in range(0, len(rows), chunk):
        first = rows[start : start + chunk]
        # poly [row, class, number of up spins so far]
        poly = np.zeros((2**side, len(first), side + 1))
        poly[first, np.arange(len(first)), up[first]] = weights[first]
        log_scale = np.zeros(len(first))
        for j in range(1, side + 1):
            size = poly.shape[2]
            poly = _apply_bonds(poly, side, bond)
            if j == side:
                break
            scale = poly.max(axis=(0, 2))
            log_scale += np.log(scale)
            poly *= weights[:, None, None] / scale[:, None]
            longer = np.zeros((2**side, len(first), size + side))
            for u in range(side + 1):
                longer[up == u, :, u : u + size] = poly[up == u]
            poly = longer
        with np.errstate(divide="ignore"):
            closed = np.log(poly[first, np.arange(len(first))])
        logs[start : start + chunk] = closed + log_scale[:, None]
    return logs + np.log(sizes)[:, None]
