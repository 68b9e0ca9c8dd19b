"""What the continuous networks see of (x, t): bounded features with finite derivatives on all of [0, 1].

They are written in the variances sigma^2 + alpha^2 s^2 and sigma^2 + alpha^2 S^2 (s the target's finest
length, S its extent), which vanish nowhere: neither alpha = 0 nor sigma = 0 is a special case. Also the
parts that several networks share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.target import TargetScale
from egm.typing import Array

_MAX_FREQUENCIES = 8
# Noise beyond this many S says no more about x_1: there the log of its level flattens out.
_LARGEST_NOISE = 100.0
# Standardised positions are squashed to stay below this many standard deviations.
_LARGEST_POSITION = 8.0

small_init = nn.initializers.normal(1e-3)
"""Kernel of a last layer: a network starts near zero, so that its skip speaks first."""


@dataclasses.dataclass(frozen=True)
class Features(TargetScale):
    """Features of a state of a Gaussian path, given the lengths of the target.

    Attributes:
      path, length_scale, data_scale, center: as of `TargetScale`.
      num_frequencies: F, of the Fourier features; None takes log2(S / s) + 1 of them, at most 8.

    Raises:
      TypeError, ValueError: as `TargetScale`, or num_frequencies is negative.
    """

    num_frequencies: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.num_frequencies is not None:
            checks.positive_int(self.num_frequencies, "num_frequencies", minimum=0)

    @property
    def frequencies(self) -> tuple[float, ...]:
        """F frequencies from pi / (2 S) on, each twice the last, by default up to about pi / (2 s)."""
        count = self.num_frequencies
        if count is None:
            octaves = math.ceil(math.log2(self.data_scale / self.length_scale))
            count = min(1 + max(octaves, 0), _MAX_FREQUENCIES)
        return tuple(math.pi / (2 * self.data_scale) * 2**k for k in range(count))

    def noise_level(self, t: Array) -> Array:
        """[...] log(1 + n^2 / s^2) with n = sigma / alpha, flat where n >> S; 0 at t = 1."""
        alpha, variance = self.path.alpha(t), self.path.variance(t)
        floor = variance / (_LARGEST_NOISE * max(self.data_scale, self.length_scale)) ** 2
        return jnp.log1p(variance / (self.length_scale**2 * (jnp.square(alpha) + floor)))

    def time(self, t: Array, dtype: Any) -> Array:
        """[N, 8] features of t [N], all within [-1, 1].

        The noise level over the path's range, from -1 at t = 0 to 1 at t = 1, with its harmonics; t;
        and the data's share of the standard deviation of x_t, for s and for S.
        """
        level = 1 - 2 * self.noise_level(t) / self.noise_level(jnp.zeros((), t.dtype))
        alpha, (fine, coarse) = self.path.alpha(t), self.variances(t)
        shares = (alpha * self.length_scale / jnp.sqrt(fine), alpha * self.data_scale / jnp.sqrt(coarse))
        sin, cos = jnp.sin(0.5 * jnp.pi * level), jnp.cos(0.5 * jnp.pi * level)
        harmonics = (sin, cos, 2 * sin * cos, 1 - 2 * sin * sin)
        return jnp.stack((level, t, *shares, *harmonics), axis=-1).astype(dtype)

    def position(self, x: Array, t: Array) -> Array:
        """[N, (1 + 2 F) D] features of x [N, D] at t [N]: the standardised state, sines and cosines.

        The latter are E[sin, cos of omega (x_1 - c) | x_t] for x_1 from N(c, S^2 I): high frequencies
        fade while the noise hides them. (Regression of the exact score of 25 modes, error after 4000
        steps: 1.1e-4 without them, 4.2e-5 without the fading, 3.0e-5 as they are.) Of angles there are
        harmonics alone, [N, 2 F] each.
        """
        confined = self.path.confinement(x.shape[-1]) > 0
        if confined.all():
            return self._on_the_line(x, t)
        angles = self._on_the_circle(x[:, ~confined], t)
        if not confined.any():
            return angles
        centers = self.centers(x)[:, confined]
        return jnp.concatenate([self._on_the_line(x[:, confined], t, centers), angles], axis=-1)

    def _on_the_circle(self, x, t):
        """[N, 2 F D] E[cos, sin of k x_1 | x_t] for x_1 uniform, k = 1..F up to about 1 / s."""
        count = self.num_frequencies
        if count is None:
            count = min(max(2, math.ceil(1 / self.length_scale)), _MAX_FREQUENCIES)
        variance = self.path.variance(t)[:, None].astype(x.dtype)
        out = []
        for k in range(1, max(count, 1) + 1):
            damping = jnp.exp(-0.5 * k**2 * variance)
            out += [damping * jnp.cos(k * x), damping * jnp.sin(k * x)]
        return jnp.concatenate(out, axis=-1)

    def _on_the_line(self, x, t, centers=None):
        alpha, (_, coarse) = self.path.alpha(t), self.variances(t)
        inverse = jax.lax.rsqrt(coarse)
        column = lambda a: a[:, None].astype(x.dtype)
        centers = self.centers(x) if centers is None else centers
        u = _squash((x - column(alpha) * centers) * column(inverse))
        out = [u]
        # x_1 given x_t has mean c + gain u and variance spread.
        gain, spread = (
            self.data_scale**2 * alpha * inverse,
            self.data_scale**2 * self.path.variance(t) / coarse,
        )
        angle = column(0.5 * math.pi / self.data_scale * gain) * u
        sin, cos = jnp.sin(angle), jnp.cos(angle)
        for omega in self.frequencies:
            damping = column(jnp.exp(-0.5 * omega**2 * spread))
            out += [damping * sin, damping * cos]
            sin, cos = 2 * sin * cos, 1 - 2 * sin * sin
        return jnp.concatenate(out, axis=-1)


def _squash(u):
    """u where it is small beside the largest position, smoothly bounded by that."""
    ratio = jnp.square(u / _LARGEST_POSITION)
    return u * jax.lax.rsqrt(jnp.sqrt(1 + jnp.square(ratio)))


def modulated(h: Array, time: Array) -> Array:
    """h (1 + scale) + shift, both linear in the time features [N, 8]; h [N, C] or [N, P, C]."""
    film = nn.Dense(2 * h.shape[-1])(time)
    film = film.reshape(film.shape[0], *(1,) * (h.ndim - 2), film.shape[-1])
    scale, shift = jnp.split(film, 2, axis=-1)
    return h * (1 + scale) + shift


class ResidualMLP(nn.Module):
    """[N, width] hidden values of a time-conditioned MLP, with residual connections between its layers.

    Attributes:
      width: of every layer.
      depth: number of layers, at least 1.
    """

    width: int
    depth: int

    @nn.compact
    def __call__(self, h: Array, time: Array) -> Array:
        checks.positive_int(self.depth, "depth")
        h = nn.Dense(self.width)(h)
        for _ in range(self.depth - 1):
            h = h + nn.Dense(self.width)(nn.silu(modulated(h, time)))
        return nn.silu(modulated(h, time))


def check_fields(module: nn.Module, *, sizes: tuple[str, ...], flags: tuple[str, ...] = ()) -> None:
    """Raises unless the named fields are positive ints (`vocab_size` at least 2) and booleans."""
    for name in sizes:
        checks.positive_int(getattr(module, name), name, 2 if name == "vocab_size" else 1)
    for name in flags:
        checks.flag(getattr(module, name), name)
    if getattr(module, "skip", None) is not None:
        checks.function(module.skip, "skip")


def one_hot_tokens(h: Any, name: str, batch: int, vocab_size: int, dtype: Any) -> Array:
    """[N, L, V + 1] one-hot tokens, the mask V included, of h [N, L].

    Raises:
      TypeError: h is not an integer array. ValueError: it is not [N, L], or a concrete token is not in
        0..V.
    """
    if not jnp.issubdtype(jnp.result_type(h), jnp.integer):
        raise TypeError(f"{name} must be an integer array, got dtype {jnp.result_type(h)}")
    if jnp.ndim(h) != 2 or jnp.shape(h)[0] != batch:
        raise ValueError(f"{name} must have shape [{batch}, L], got {jnp.shape(h)}")
    value = checks.concrete(h)
    if value is not None and np.any((value < 0) | (value > vocab_size)):
        raise ValueError(
            f"tokens of {name} must be in 0..{vocab_size}, the mask, got {value.min()}..{value.max()}"
        )
    return jax.nn.one_hot(checks.tokens(h, vocab_size), vocab_size + 1, dtype=dtype)


def mixed_state(state: Any) -> tuple[Any, Any]:
    """The parts x and h of a mixed state.

    Raises:
      TypeError: `state` is no mapping. ValueError: its keys are not "x" and "h".
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"a mixed state must be a dict with keys 'x' and 'h', got {type(state).__name__}")
    if set(state) != {"x", "h"}:
        raise ValueError(f"a mixed state must have keys 'x' and 'h', got {sorted(map(str, state))}")
    return state["x"], state["h"]
