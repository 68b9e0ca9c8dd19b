"""Exact answers for the periodic square-lattice Ising model, on the host in float64 or integers.

Everything here depends on (side, bond, field) with bond = beta * J and field = beta * h: the weight
of a configuration is exp(bond * B + field * M), B the sum of s_i s_j over each site's right and
lower neighbour and M the sum of spins. A row is an integer whose bit c is the token of column c.
Four independent routes, each the others' check: enumeration, the row-to-row transfer matrix (first
rows reduced by symmetry), Kaufman's closed form, and the density of states. Used by `Ising`.
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

MAX_ENUMERATION_SIDE = 5
MAX_TRANSFER_SIDE = 16
MAX_MAGNETIZATION_SIDE = 12
MAX_DENSITY_SIDE = 32

_CHUNK_BYTES = 4 * 2**20  # of a cache, not of the memory


def logsumexp(a: np.ndarray) -> float:
    """log sum exp of a vector."""
    top = float(np.max(a))
    return top + math.log(np.sum(np.exp(a - top)))


def _log_integers(counts: list[int]) -> np.ndarray:
    """Logs of integers of any size, -inf at zero."""
    return np.array([math.log(c) if c else -math.inf for c in counts])


def _freeze(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Read-only, since caches hand the same arrays to every caller."""
    for array in arrays:
        array.flags.writeable = False
    return arrays


def _row_spins(side: int) -> np.ndarray:
    """[2^side, side] spins of every row."""
    return 2 * (np.arange(2**side)[:, None] >> np.arange(side) & 1) - 1


# Enumeration.


@functools.lru_cache(maxsize=8)
def joint_counts(side: int) -> np.ndarray:
    """How many configurations have bond sum B and magnetisation M, by enumeration (side <= 5).

    Returns:
      [L + 1, L + 1] int64; entry [a, u] counts B = 4a - 2L (B moves in steps of four on a torus,
      where every row and column has an even number of sign changes) with u spins up.
    """
    sites, spins = side * side, _row_spins(side).astype(np.int64)
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
    return _freeze(counts)[0]


# The row-to-row transfer matrix, first rows reduced by the symmetries of the torus.


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
    return _freeze(*np.unique(least, return_counts=True))


def _row_weights(side: int, bond: float, field: float) -> tuple[np.ndarray, float]:
    """exp(bond * ring + field * M) of every row [2^side] over its maximum, and that one's log."""
    spins = _row_spins(side)
    log = bond * np.sum(spins * np.roll(spins, -1, axis=1), axis=1) + field * np.sum(spins, axis=1)
    return np.exp(log - log.max()), float(log.max())


def _apply_bonds(v: np.ndarray, side: int, bond: float) -> np.ndarray:
    """Sum over a row [2^side, ...] against its bonds to the next row, whose weights are at most 1.

    The matrix is a Kronecker product over sites, applied to four sites at a time.
    """
    shape, before = v.shape, 1
    for start in range(0, side, 4):
        sites = min(4, side - start)
        spins = _row_spins(sites).astype(float)
        factor = np.exp(bond * (spins @ spins.T) - abs(bond) * sites)
        # The axis in front holds the bits above: the leading group is the highest.
        v = np.matmul(factor, v.reshape(before, 2**sites, -1))
        before *= 2**sites
    return v.reshape(shape)


@functools.lru_cache(maxsize=4)
def row_distribution(side: int, bond: float, field: float) -> tuple[np.ndarray, float]:
    """The marginal of one row over `_row_classes`, and log Z: the diagonal of T^side.

    Returns:
      ([C] probabilities of the classes, log Z).
    """
    rows, sizes = _row_classes(side, field == 0)
    weights, log_top = _row_weights(side, bond, field)
    root = np.sqrt(weights)[:, None]
    log_step = log_top + abs(bond) * side  # what the weights of one row and its bonds lack

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
    logs += np.log(sizes)
    log_z = logsumexp(logs)
    return _freeze(np.exp(logs - log_z))[0], log_z + side * log_step


def row_correlation(side: int, bond: float, field: float) -> np.ndarray:
    """[side // 2 + 1] <s_0 s_r> along a row, from the marginal of a row."""
    rows, _ = _row_classes(side, field == 0)
    spins = _row_spins(side)[rows]
    probabilities, _ = row_distribution(side, bond, field)
    distances = range(side // 2 + 1)
    return np.array([probabilities @ np.mean(spins * np.roll(spins, -r, axis=1), axis=1) for r in distances])


def sample_transfer(rng: np.random.Generator, side: int, bond: float, field: float, n: int) -> np.ndarray:
    """Independent exact samples: a first row from its marginal, then site by site.

    The first row is drawn as a class of `_row_classes`; each class's samples share one table of
    backward weights, and a random symmetry then moves each sample within its orbit.

    Returns:
      [n, side^2] int8 tokens.

    Raises:
      FloatingPointError: couplings so strong that conditional weights underflow.
    """
    rows, _ = _row_classes(side, field == 0)
    probabilities, _ = row_distribution(side, bond, field)
    weights, _ = _row_weights(side, bond, field)
    bits = np.arange(side)
    same, differ = np.exp(bond - abs(bond)), np.exp(-bond - abs(bond))
    classes = rng.choice(len(rows), size=n, p=probabilities / probabilities.sum())
    order = np.argsort(classes, kind="stable")
    starts = np.searchsorted(classes[order], np.arange(len(rows) + 1))
    states = np.empty((n, side), np.int64)
    # table[j, c][mixed]: weight of what follows, given that row j is `mixed` up to column c and row
    # j - 1 is `mixed` from column c on; summed over everything later, up to the first row.
    table = np.empty((side, side + 1, 2**side))
    for k in np.unique(classes):
        members, first = order[starts[k] : starts[k + 1]], rows[k]
        differing = np.sum((np.arange(2**side) ^ first)[:, None] >> bits & 1, axis=1)
        after = same ** (side - differing) * differ**differing
        for j in range(side - 1, 0, -1):
            np.multiply(after / after.max(), weights, out=table[j, side])
            for c in range(side - 1, 0 if j == 1 else -1, -1):
                old = table[j, c + 1].reshape(-1, 2, 2**c)
                new = table[j, c].reshape(-1, 2, 2**c)
                np.multiply(old, same, out=new)
                new += differ * old[:, ::-1]
            after = table[j, 0]
        mixed = np.full(len(members), first)
        states[members, 0] = first
        for j in range(1, side):
            uniform = rng.random((side, len(members)))
            for c in range(side):
                bit = 1 << c
                was_up = mixed & bit != 0
                down, up = table[j, c + 1][mixed & ~bit], table[j, c + 1][mixed | bit]
                up = np.where(was_up, same, differ) * up
                total = up + np.where(was_up, differ, same) * down
                if not np.all(total > 0):
                    raise FloatingPointError(f"bond {bond} and field {field} underflow float64")
                mixed = np.where(uniform[c] * total < up, mixed | bit, mixed & ~bit)
            states[members, j] = mixed
    shift, mirror = rng.integers(side, size=(n, 1)), rng.choice([-1, 1], size=(n, 1))
    columns = (mirror * bits + shift) % side
    tokens = (states[:, :, None] >> columns[:, None] & 1).astype(np.int8)
    if field == 0:
        tokens ^= rng.integers(2, size=(n, 1, 1), dtype=np.int8)
    return tokens.reshape(n, -1)


@functools.lru_cache(maxsize=4)
def magnetization_probabilities(side: int, bond: float, field: float) -> np.ndarray:
    """[L + 1] probability of u spins up: row transfer of polynomials in the number of up spins."""
    sites = side * side
    rows, sizes = _row_classes(side, field == 0)
    weights, _ = _row_weights(side, bond, field)
    up = np.sum(_row_spins(side) > 0, axis=1)
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
    logs += np.log(sizes)[:, None]
    total = np.exp(logs - logs.max()).sum(axis=0)
    if field == 0:  # the classes joined rows to their flips
        total = total + total[::-1]
    return _freeze(total / total.sum())[0]


# Closed forms at zero field.


def kaufman_log_partition(side: int, bond: float) -> float:
    """log Z at zero field, bond >= 0, any side: Kaufman's four products.

    Source: B. Kaufman, Phys. Rev. 76, 1232 (1949).
    """
    n = side
    if bond == 0:
        return n * n * math.log(2.0)
    k = np.arange(2 * n)
    cosh = math.cosh(2 * bond) / math.tanh(2 * bond) - np.cos(np.pi * k / n)
    gamma = np.arccosh(np.maximum(cosh, 1.0))
    gamma[0] = 2 * bond + math.log(math.tanh(bond))
    size = n * np.abs(gamma)
    with np.errstate(divide="ignore"):
        log_cosh = size / 2 + np.log1p(np.exp(-size))  # log 2 cosh(n gamma / 2)
        log_sinh = size / 2 + np.log(-np.expm1(-size))  # log 2 sinh(n |gamma| / 2)
    logs = np.array([log_cosh[1::2].sum(), log_sinh[1::2].sum()])
    logs = np.append(logs, [log_cosh[::2].sum(), log_sinh[::2].sum()])
    signs = np.array([1.0, 1.0, 1.0, np.sign(gamma[0])])
    top = logs.max()
    log_sum = top + math.log(np.sum(signs * np.exp(logs - top)))
    log_two_sinh = 2 * bond + math.log(-math.expm1(-4 * bond))
    return log_sum - math.log(2.0) + n * n / 2 * log_two_sinh


@functools.lru_cache(maxsize=8)
def density_of_states(side: int) -> list[int]:
    """Number of configurations with bond sum B = 2L - 4m, m = 0..L, as exact integers.

    Kaufman's products are polynomials in exp(-2 bond) once square roots pair up. They are evaluated
    at roots of unity modulo primes that contain 2 cos(pi k / side), and joined by remainders.

    Source: P. D. Beale, Phys. Rev. Lett. 76, 78 (1996), who expands the polynomials symbolically.
    """
    sites = side * side
    points = 1 << sites.bit_length()  # a power of two above the degree L in exp(-4 bond)
    counts, modulus = [0] * (sites + 1), 1
    for prime in _primes(math.lcm(2 * side, 2 * points)):
        found = _density_modulo(side, points, prime)
        inverse = pow(modulus, -1, prime)
        counts = [c + modulus * ((int(f) - c) * inverse % prime) for c, f in zip(counts, found)]
        modulus *= prime
        if modulus > 2**sites:
            return counts
    raise ValueError(f"side {side} needs more primes than there are below 2^31")


def _primes(step: int):
    """Primes = 1 modulo `step` below 2^31, largest first."""
    sieve = np.ones(46342, bool)
    for d in range(2, 216):
        sieve[d * d :: d] = False
    small = np.flatnonzero(sieve)[2:]
    for candidate in range((2**31 - 2) // step * step + 1, 46342, -step):
        if np.all(candidate % small):
            yield candidate


def _root_of_unity(order: int, prime: int) -> int:
    """An element of exactly this order modulo the prime."""
    factors = [q for q in range(2, order + 1) if order % q == 0 and all(q % d for d in range(2, q))]
    for base in itertools.count(2):
        root = pow(base, (prime - 1) // order, prime)
        if all(pow(root, order // q, prime) != 1 for q in factors):
            return root


def _power(base: np.ndarray, exponent: int, prime: int) -> np.ndarray:
    """Elementwise power modulo the prime."""
    result = np.ones_like(base)
    while exponent:
        if exponent & 1:
            result = result * base % prime
        base, exponent = base * base % prime, exponent >> 1
    return result


def _powers(root: int, count: int, prime: int) -> np.ndarray:
    """[count] 1, root, root^2, ... modulo the prime."""
    out = np.ones(count, np.int64)
    for i in range(1, count):
        out[i] = out[i - 1] * root % prime
    return out


def _density_modulo(side: int, points: int, prime: int) -> np.ndarray:
    """`density_of_states` modulo one prime, [L + 1]."""
    n, half = side, (prime + 1) // 2
    x = _powers(_root_of_unity(2 * points, prime), points, prime)  # x = exp(-2 bond)
    unit = _powers(_root_of_unity(2 * n, prime), 2 * n, prime)
    square = x * x % prime
    minus, plus = (1 - square) % prime, (1 + square) % prime
    root = x * minus % prime
    shift = 2 * _power(root, n, prime) % prime

    def product(odd: int, sign: int) -> np.ndarray:  # of 2 cosh or 2 sinh(n gamma_k / 2), scaled
        result = np.ones_like(x)
        for k in range(odd, n + 1, 2):
            if k in (0, n):  # alone: e^gamma is a square
                s = x if k == 0 else prime - x
                low = _power((1 - s) % prime, n, prime)
                high = _power(x * (1 + s) % prime, n, prime)
                factor = low + sign * high
            else:  # k and 2n - k: 2 cosh(n gamma) +- 2, by the Lucas recurrence
                two_cos = int(unit[k] + unit[2 * n - k]) % prime
                trace = (plus * plus - two_cos * root) % prime
                norm = root * root % prime
                before, now = np.full_like(x, 2), trace
                for _ in range(n - 1):
                    before, now = now, (trace * now % prime - norm * before % prime) % prime
                factor = now + sign * shift
            result = result * (factor % prime) % prime
        return result

    values = sum(product(odd, sign) for odd in (0, 1) for sign in (1, -1)) % prime * half % prime
    # Inverse Fourier transform over the points square = w^j, by radix two.
    return _inverse_transform(values, _powers(int(square[1]), points, prime), prime)[: n * n + 1]


def _inverse_transform(values: np.ndarray, powers: np.ndarray, prime: int) -> np.ndarray:
    """Coefficients [P] of the polynomial with these values [P] at powers [P] of a root of unity."""
    points = len(values)
    inverse_powers = powers[-np.arange(points) % points]

    def transform(v, stride):
        if len(v) == 1:
            return v
        even, odd = transform(v[::2], 2 * stride), transform(v[1::2], 2 * stride)
        odd = odd * inverse_powers[::stride][: len(odd)] % prime
        return np.concatenate([(even + odd) % prime, (even - odd) % prime])

    return transform(values, 1) * pow(points, -1, prime) % prime


# Histograms.


def energy_histogram(side: int, bond: float, field: float) -> tuple[np.ndarray, np.ndarray]:
    """(energies [M] sorted, probabilities [M]); energies within 1e-12 of the range are one."""
    sites = side * side
    if side <= MAX_ENUMERATION_SIDE:
        bonds, up, log_counts = _nonzero_counts(side)
    else:
        log_counts = _log_integers(density_of_states(side))
        keep = np.isfinite(log_counts)
        bonds, up, log_counts = 2 * sites - 4 * np.flatnonzero(keep), 0, log_counts[keep]
    energies = -(bond * bonds + field * (2 * up - sites if field else 0))
    logs = log_counts - energies
    probabilities = np.exp(logs - logsumexp(logs))
    unit = max(np.ptp(energies), np.finfo(float).tiny) * 1e-12
    _, index, group = np.unique(np.round(energies / unit), return_index=True, return_inverse=True)
    return energies[index], np.bincount(group, weights=probabilities)


def _nonzero_counts(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`joint_counts` as lists: bond sums, numbers of up spins, logs of the counts."""
    counts = joint_counts(side)
    a, up = np.nonzero(counts)
    return 4 * a - 2 * side * side, up, np.log(counts[a, up])


def enumerated_log_partition(side: int, bond: float, field: float) -> float:
    """log Z from `joint_counts`."""
    bonds, up, log_counts = _nonzero_counts(side)
    return logsumexp(log_counts + bond * bonds + field * (2 * up - side * side))


def density_log_partition(side: int, bond: float) -> float:
    """log Z at zero field from `density_of_states`: positive terms at either sign of the bond."""
    sites = side * side
    bonds = 2 * sites - 4 * np.arange(sites + 1)
    return logsumexp(_log_integers(density_of_states(side)) + bond * bonds)


def enumerated_magnetization(side: int, bond: float, field: float) -> np.ndarray:
    """[L + 1] probability of u spins up, from `joint_counts`."""
    bonds, up, log_counts = _nonzero_counts(side)
    logs = log_counts + bond * bonds + field * (2 * up - side * side)
    probabilities = np.exp(logs - logsumexp(logs))
    return np.bincount(up, weights=probabilities, minlength=side * side + 1)
