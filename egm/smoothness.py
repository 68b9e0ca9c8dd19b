"""Is grad E the gradient of E? What uses it in place of E asks, on states that matter.

A conditional score made of grad E (`egm.heads.ScoreHead`) has the right mean only if exp(-E) has no jump:
integration by parts over x_1 leaves a term wherever the density jumps, at a step of E or at a wall
(E = +inf), and grad E knows nothing of it. The same holds for an E that is constant by pieces, and for a
gradient that is cut off (`stop_gradient`, casts to integers) or wrong (`custom_vjp`). Kinks are
harmless, and so is an E that grows to infinity: there the density vanishes by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.typing import Array, Energy

__all__ = ["NUM_EVALUATIONS", "Probe", "is_smooth", "probe_segments"]

_PIECES, _FINER, _ROUNDS = 32, 8, 4
_OFFSETS = (1 / 16, 1 / 128, 1 / 1024, 1 / 8192, 1 / 65536)

NUM_EVALUATIONS = _PIECES + 1 + _ROUNDS * (_FINER + 1) + 2 * len(_OFFSETS)
"""Evaluations of E (and its gradient) that `probe_segments` makes a segment."""


class Probe(NamedTuple):
    """What segments from states to their neighbours say of an energy.

    Attributes:
      jump: [N] the largest jump of exp(-E) on each segment, as a fraction of the density on its higher
        side, or of exp(-E(start)) where that is larger: 0 for a continuous E, 1 for a wall.
      mismatch: [N] bool, whether grad E disagrees with differences of E around the start of the segment.
    """

    jump: Array
    mismatch: Array


def probe_segments(energy: Energy, start: Array, stop: Array) -> Probe:
    """Compare E along straight segments with the line integral of its gradient.

    A segment is cut in 32 pieces, and the piece that its trapezoid rule explains worst is cut in 8 again
    and again, four times: what remains at 1/131,072 of the length is a jump. E is called with N states at
    a time. Differences that rounding of E explains do not count.

    Args:
      energy: E, `[N] = energy(x)`.
      start: [N, D] states that have weight, e.g. samples.
      stop: [N, D] where each segment ends, e.g. as far away as the noise reaches.

    Returns:
      Probe.
    """
    checks.function(energy, "energy")
    start, stop = (checks.float_array(a, name, min_ndim=2) for a, name in ((start, "start"), (stop, "stop")))
    if start.ndim != 2:
        raise ValueError(f"start must have shape [N, D], got {start.shape}")
    if start.shape != stop.shape:
        raise ValueError(f"stop must have the shape of start, {start.shape}, got {stop.shape}")
    at = _along(energy, start, stop - start)
    # The coarse nodes, and pairs around the start, in one loop: E is compiled twice in all.
    fractions = np.concatenate([np.linspace(0.0, 1.0, _PIECES + 1), _OFFSETS, -np.array(_OFFSETS)])
    nodes = jnp.broadcast_to(jnp.asarray(fractions, start.dtype)[:, None], (fractions.size, start.shape[0]))
    values, slopes = jax.lax.map(at, nodes)
    first, coarse = values[0], slice(_PIECES + 1)
    defect, ends = _worst(first, nodes[coarse], values[coarse], slopes[coarse])

    def closer(carry, _):
        _, (left, right) = carry
        inner = jnp.linspace(0.0, 1.0, _FINER + 1, dtype=start.dtype)[:, None]
        s = left[None] + inner * (right - left)[None]
        return _worst(first, s, *jax.lax.map(at, s)), None

    (jump, _), _ = jax.lax.scan(closer, (defect, ends), None, length=_ROUNDS)
    around = slice(_PIECES + 1, None)
    mismatch = _contradicted(nodes[around], values[around], slopes[0])
    return Probe(jnp.where(jnp.isfinite(first), jump, 0.0), mismatch)


def _along(energy: Energy, start: Array, move: Array) -> Callable[[Array], tuple[Array, Array]]:
    """(E [N] and its slope along the segment [N]) at fractions s [N] of the way."""

    def total(x):
        value = checks.model_output(energy(x), "energy", x.shape[:1])
        return jnp.sum(value), value

    def at(s):
        gradient, value = jax.grad(total, has_aux=True)(start + s[:, None] * move)
        slope = jnp.sum(jnp.where(jnp.isfinite(gradient), gradient, 0.0) * move, axis=-1)
        # No density where E is no number either.
        return jnp.where(jnp.isnan(value) | (value == -jnp.inf), jnp.inf, value), slope

    return at


def _worst(first: Array, s: Array, value: Array, slopes: Array) -> tuple[Array, list[Array]]:
    """(defect [N] of the worst piece, its ends) of nodes s, values, slopes [M + 1, N]; `first` [N] at 0."""
    low, high = jnp.minimum(value[:-1], value[1:]), jnp.maximum(value[:-1], value[1:])
    rise = value[1:] - value[:-1] - 0.5 * (s[1:] - s[:-1]) * (slopes[1:] + slopes[:-1])
    size = jnp.where(jnp.isfinite(high), jnp.abs(high) + jnp.abs(low), jnp.abs(low))
    gap = jnp.where(jnp.isfinite(high), jnp.abs(rise), jnp.inf)
    gap = jnp.where(jnp.isfinite(low), jnp.maximum(gap - _rounding(s) * size, 0.0), 0.0)
    level = jnp.exp(jnp.minimum(first[None] - low, 0.0))
    level = jnp.where(jnp.isfinite(low), level, 0.0)
    # The size of a gap decides where to look, so that a wall is found among steep pieces.
    place = jnp.argmax(jnp.where(level > 0, level * gap, 0.0), axis=0)[None]
    take = lambda a: jnp.take_along_axis(a, place, axis=0)[0]
    return take(level * -jnp.expm1(-gap)), [take(a) for a in (s[:-1], s[1:])]


def _contradicted(s: Array, values: Array, slope: Array) -> Array:
    """Bool [N]: whether the slope [N] at the start disagrees with E ahead of it less E behind it."""
    ahead, behind = jnp.split(values, 2)
    change, told = ahead - behind, 2 * s[: len(_OFFSETS)] * slope[None]
    scale = jnp.abs(change) + jnp.abs(told)
    known = jnp.isfinite(change) & (_rounding(s) * (jnp.abs(ahead) + jnp.abs(behind)) < 0.01 * scale)
    wrong = known & (jnp.abs(change - told) > 0.05 * scale)
    known, wrong = jnp.sum(known, axis=0), jnp.sum(wrong, axis=0)
    return (known >= 2) & (wrong == known)


def _rounding(like: Array) -> float:
    return 16 * float(jnp.finfo(like.dtype).eps)


def is_smooth(probe: Probe, max_jump: float = 0.05, max_mismatch: float = 0.3) -> Array:
    """Whether grad E may stand for E: a scalar bool.

    Args:
      probe: of any number of segments.
      max_jump: no segment has a larger jump of the density.
      max_mismatch: at most this share of the segments has a gradient that differences of E contradict.
    """
    checks.instance(probe, Probe, "probe")
    max_jump = checks.positive_float(max_jump, "max_jump", allow_zero=True)
    max_mismatch = checks.positive_float(max_mismatch, "max_mismatch", allow_zero=True)
    return ~jnp.any(probe.jump > max_jump) & (jnp.mean(probe.mismatch) <= max_mismatch)
