"""log Z without a field on the torus, in closed form (Kaufman, 1949)."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["kaufman_log_partition"]


def kaufman_log_partition(side: int, bond: float) -> float:
    """log Z at zero field, bond >= 0, any side: Kaufman's four products.

    Source: B. Kaufman, Phys. Rev. 76, 1232 (1949).
    """
    n = side
    if bond < 1e-12:  # the next term is of order n^2 bond^2
        return n * n * math.log(2.0)
    k = np.arange(2 * n)
    if bond < 150:
        # cosh gamma_k = cosh(2 bond) coth(2 bond) - cos(pi k / n), less one without cancellation.
        sinh = math.sinh(2 * bond)
        excess = (1 - sinh) ** 2 / sinh + 2 * np.sin(np.pi * k / (2 * n)) ** 2
        gamma = 2 * np.arcsinh(np.sqrt(excess / 2))
    else:  # the cosine is below the precision, and the rest would overflow
        gamma = np.full(2 * n, 2 * bond)
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
