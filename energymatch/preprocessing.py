"""Data before training: columns whose density has no bound, and the noise (dithering) that gives it one.

A column of few distinct values, a constant one or one that follows from others has no density: V may
become ever steeper there, and its likelihood ever higher. With data x + s eta, eta normal and s [*event]
one standard deviation a column, exp(-V/epsilon) is p_s = p * N(0, diag s^2), the density of the data
convolved with the noise, which is bounded by that of the noise. So log-densities are those of x + s eta:
where p is smooth over s, log p_s is log p; where columns J are discrete, the probability of a value is the
integral of p_s over what is nearer to it than to any other (at a spacing of 6 s all but .3% of its mass),
and since p_s(x + s eta) is at least P(x) times the density of the noise,

    log P(x) <= E_eta log p_s(x + s eta) + sum_J log(s_j sqrt(2 pi e)),

an equality but for the overlap of neighbouring values (below .02 at 6 s). Samples are of p_s too: round a
discrete column to its nearest value. Dequantisation: Theis, van den Oord and Bethge (arXiv 1511.01844).
Shape letters: N examples, *event the axes of one state, D their product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from egm import checks, random
from egm.typing import Array, Key

__all__ = [
    "ColumnReport",
    "DEPENDENT_NOISE",
    "RELATIVE_NOISE",
    "SPACINGS",
    "check_columns",
    "dither",
    "noise_scales",
]

RELATIVE_NOISE = 0.02
"""Of a column's standard deviation, for columns with a density of their own."""
DEPENDENT_NOISE = 0.1
"""For columns that follow from others: the ratio of widths that chains have to bridge is 10."""
SPACINGS = 1 / 6
"""Of the smallest spacing, for columns of few values: bumps with valleys of 4 nats, which chains cross."""
_FEW, _ATOM, _MIN_COUNT = 1 / 3, 0.1, 3


class ColumnReport(NamedTuple):
    """What `check_columns` found, on the host. Columns are those of the flattened event.

    Attributes:
      num_distinct: [D] int, distinct values.
      spacing: [D] smallest difference of two distinct values, 0 for constant columns.
      deviation: [D] standard deviation.
      constant: indices of columns of one value.
      discrete: of columns with at most a third as many values as examples, or with one value (an atom)
        that a tenth of the examples share.
      dependent: of columns that are linear in columns before them, duplicates among them; looked for where
        there are more than D + 1 examples.
      problems: one sentence a column that has no density, with its cure.
    """

    num_distinct: np.ndarray
    spacing: np.ndarray
    deviation: np.ndarray
    constant: tuple[int, ...]
    discrete: tuple[int, ...]
    dependent: tuple[int, ...]
    problems: tuple[str, ...]


def check_columns(x: Array | np.ndarray, names: Sequence[str] | None = None) -> ColumnReport:
    """Columns in which the data have no density, so that a likelihood has no bound.

    Args:
      x: [N, *event] floating, known (not traced).
      names: [D] of the columns, for the sentences.

    Returns:
      ColumnReport; its `problems` are empty where every column has a density, as far as N examples show.

    Raises:
      TypeError: `x` is not floating, or traced. ValueError: it has no columns, is not finite, or `names` are
        of another number.
    """
    table = _table(x)
    num, dim = table.shape
    label = _labels(names, dim)
    ordered = np.sort(table, axis=0)
    difference = np.diff(ordered, axis=0)
    spread = ordered[-1] - ordered[0]
    # Values that differ by rounding are one.
    new = difference > 1e-6 * spread[None]
    num_distinct = 1 + np.sum(new, axis=0)
    spacing = np.min(np.where(new, difference, np.inf), axis=0, initial=np.inf)
    spacing = np.where(np.isfinite(spacing), spacing, 0.0)
    largest = _longest_run(new)
    constant = num_distinct == 1
    few = num_distinct <= num * _FEW
    atom = largest >= max(_MIN_COUNT, _ATOM * num)
    discrete = ~constant & (few | atom)
    deviation = np.std(table, axis=0)
    dependent = _dependent(table, constant) if num > dim + 1 else {}
    problems = [f"{label[j]} is constant: drop it" for j in np.flatnonzero(constant)]
    for j in np.flatnonzero(discrete):
        what = f"has {num_distinct[j]} distinct values" if few[j] else f"has one value {largest[j]} times"
        problems.append(f"{label[j]} {what} in {num} examples: add noise of about a sixth of their spacing")
    for j, others in dependent.items():
        how = "a copy of" if len(others) == 1 else "linear in"
        problems.append(
            f"{label[j]} is {how} {', '.join(label[i] for i in others[:5])}: drop it, or add noise"
        )
    index = lambda mask: tuple(int(j) for j in np.flatnonzero(mask))
    return ColumnReport(
        num_distinct, spacing, deviation, index(constant), index(discrete), tuple(dependent), tuple(problems)
    )


def noise_scales(x: Array | np.ndarray) -> np.ndarray:
    """[*event] standard deviations of the noise that gives every column of a table a bounded density.

    A sixth of the smallest spacing where a column has few values (but at least what follows), a tenth of
    the standard deviation where it follows from others, a fiftieth elsewhere; a sixth of the median standard
    deviation where it is constant.

    Args, Raises: as `check_columns`.
    """
    report = check_columns(x)
    positive = report.deviation[report.deviation > 0]
    typical = float(np.median(positive)) if positive.size else 1.0
    scale = RELATIVE_NOISE * report.deviation
    for j in report.discrete:
        scale[j] = max(scale[j], SPACINGS * report.spacing[j])
    for j in report.dependent:
        scale[j] = max(scale[j], DEPENDENT_NOISE * report.deviation[j])
    for j in report.constant:
        scale[j] = SPACINGS * typical
    return scale.astype(np.float32).reshape(np.shape(x)[1:])


def dither(key: Key, x: Array, noise: Any, axis_name: str | None = None) -> Array:
    """[B, *event] x + noise * eta, eta standard normal: new noise in every step of training.

    Args:
      key: a typed key, folded with the global index of each example, or [B] keys.
      x: [B, *event].
      noise: standard deviations, a number or an array that broadcasts to [*event], which may be traced:
        `noise_scales` for a table; or D numbers, one an element of the flattened event.
      axis_name: mapped axis over which the batch is split.

    Raises:
      TypeError: not floating. ValueError: `noise` has another shape, or a known value is negative.
    """
    x = checks.float_array(x, "x", min_ndim=1)
    event = x.shape[1:]
    known = None if isinstance(noise, Tracer) else np.asarray(noise)
    scale = checks.as_array(noise, "noise")
    if jnp.iscomplexobj(scale):
        raise TypeError(f"noise must be real, got dtype {scale.dtype}")
    scale = scale.astype(x.dtype)
    if known is not None and not np.all(np.isfinite(known) & (known >= 0)):
        raise ValueError(f"noise must be finite and non-negative, got {noise!r:.80}")
    if scale.ndim == 1 and scale.size == int(np.prod(event)):
        scale = scale.reshape(event)
    try:
        scale = jnp.broadcast_to(scale, event)
    except ValueError:
        raise ValueError(f"noise must broadcast to the event shape {event}, got {scale.shape}") from None
    keys = random.example_keys(key, x.shape[0], axis_name)
    eta = random.per_example(lambda k: jax.random.normal(k, event, x.dtype), keys)
    return x + scale[None] * eta


def _table(x: Any) -> np.ndarray:
    """[N, D] in float64."""
    if isinstance(x, Tracer):
        raise TypeError("x must be known data, got a traced array")
    known = np.asarray(checks.float_array(x, "x") if isinstance(x, jax.Array) else x)
    if not jnp.issubdtype(known.dtype, jnp.floating):
        raise TypeError(f"x must be floating point, got dtype {known.dtype}")
    if known.ndim < 2 or known.size == 0:
        raise ValueError(f"x must have shape [N, *event] with at least one element, got {known.shape}")
    known = known.astype(np.float64).reshape(known.shape[0], -1)
    bad = np.flatnonzero(~np.all(np.isfinite(known), axis=0))
    if bad.size:
        raise ValueError(f"x must be finite, got other values in columns {bad[:5].tolist()}")
    return known


def _labels(names: Sequence[str] | None, dim: int) -> list[str]:
    if names is None:
        return [f"column {j}" for j in range(dim)]
    if not np.iterable(names) or isinstance(names, str):
        raise TypeError(f"names must be a sequence of {dim} names, got {names!r:.80}")
    names = [f"column {name!r}" for name in names]
    if len(names) != dim:
        raise ValueError(f"names must be {dim}, one a column, got {len(names)}")
    return names


def _longest_run(new: np.ndarray) -> np.ndarray:
    """[D] the largest number of equal values in sorted columns; `new` [N - 1, D] marks where one differs."""
    run = longest = np.ones(new.shape[1], int)
    for row in new:
        run = np.where(row, 1, run + 1)
        longest = np.maximum(longest, run)
    return longest


def _dependent(x: np.ndarray, constant: np.ndarray) -> dict[int, list[int]]:
    """{column: the columns before it that it is linear in}, by Gram-Schmidt on standardised columns."""
    z = x - x.mean(axis=0)
    z = z / np.where(constant, 1.0, np.linalg.norm(z, axis=0))
    basis, used, found = np.zeros((x.shape[0], 0)), [], {}
    for j in np.flatnonzero(~constant):
        rest = z[:, j]
        for _ in range(2):  # twice is enough
            rest = rest - basis @ (basis.T @ rest)
        norm = np.linalg.norm(rest)
        if norm > 1e-5:
            basis, used = np.column_stack([basis, rest / norm]), [*used, j]
            continue
        weights = np.linalg.lstsq(z[:, used], z[:, j], rcond=None)[0]
        found[int(j)] = [int(used[i]) for i in np.argsort(-np.abs(weights)) if abs(weights[i]) > 1e-4]
    return found
