"""Sums of many terms that keep the digits of one: compensated addition for the carry of a scan.

A float32 sum of L equal terms of size c drifts by up to L^2 c 2^-25, since each partial sum is rounded
alike: .06 for the 4096 sites of a 64x64 lattice. A carry of two numbers holds what rounding dropped.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from egm.typing import Array

__all__ = ["Sum", "add", "finish", "start"]


class Sum(NamedTuple):
    """A running sum, high + low.

    Attributes:
      high: the rounded sum.
      low: what rounding has dropped from it so far.
    """

    high: Array
    low: Array


def start(zeros: Array) -> Sum:
    """The sum of no terms, of the shape and dtype of `zeros`."""
    return Sum(zeros, jnp.zeros_like(zeros))


def add(total: Sum, term: Array) -> Sum:
    """The sum with one more term; NaN and infinities act as in a plain sum.

    The error of an addition is a floating-point number itself and found exactly by six operations, which
    XLA does not reassociate (Knuth, The Art of Computer Programming 2, 4.2.2; Neumaier, 1974).
    """
    high = total.high + term
    part = high - total.high
    error = (total.high - (high - part)) + (term - part)
    return Sum(high, total.low + jnp.where(jnp.isfinite(high), error, 0.0))


def finish(total: Sum) -> Array:
    """The sum, rounded once."""
    return total.high + total.low
