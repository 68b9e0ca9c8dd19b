"""log Z without a field from the exact number of states of every energy, in modular integer arithmetic."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from egm.energies.ising.arrays import log_integers, logsumexp

__all__ = ["MAX_DENSITY_SIDE", "density_log_partition", "density_of_states"]

MAX_DENSITY_SIDE = 32


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
    raise AssertionError("there is none below the prime")


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

    values = np.asarray(sum(product(odd, sign) for odd in (0, 1) for sign in (1, -1)))
    values = values % prime * half % prime
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


def density_log_partition(side: int, bond: float) -> float:
    """log Z at zero field from `density_of_states`: positive terms at either sign of the bond."""
    sites = side * side
    bonds = 2 * sites - 4 * np.arange(sites + 1)
    return logsumexp(log_integers(density_of_states(side)) + bond * bonds)
