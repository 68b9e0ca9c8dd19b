"""Flax networks on tokens: denoisers and log-marginals, an MLP and a periodic CNN for square grids.

All of them are time-free, as the masked path allows: `module.apply(params, x [N, L], t [N])` ignores t.
Denoisers return logits [N, L, V], log-marginals g [N]. `flip=True` (V = 2) makes a denoiser equivariant
and a log-marginal invariant under the global spin flip 0 <-> 1, exactly, for twice the evaluations.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from egm.typing import Array

Skip = Callable[[Array], Array]
"""A closed form that the network's output is added to, `skip(x)`: logits [N, L, V] or g [N]."""


def _small(scale: float = 0.05):
    return nn.initializers.variance_scaling(scale**2, "fan_in", "normal")


def _features(x: Array, vocab_size: int) -> Array:
    """[N, L, F]: for V = 2 the spin (0 where masked) and visibility; else the one-hot with the mask."""
    if vocab_size == 2:
        hidden = x == 2
        return jnp.stack([jnp.where(hidden, 0.0, 2.0 * x - 1.0), 1.0 - hidden], axis=-1)
    return jax.nn.one_hot(x, vocab_size + 1)


def _flip(x: Array) -> Array:
    return jnp.where(x == 2, 2, 1 - x)


def _require_two(vocab_size: int) -> None:
    if vocab_size != 2:
        raise ValueError(f"flip needs vocab_size = 2, got {vocab_size}")


class _MLPTrunk(nn.Module):
    width: int
    depth: int

    @nn.compact
    def __call__(self, features: Array) -> Array:
        h = features.reshape(features.shape[0], -1)
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width)(h))
        return h


class _GridTrunk(nn.Module):
    """Residual blocks of a depthwise circular convolution over the whole torus and a gated pointwise map.

    Channels come first, [C, N, L], so that both are plain matrix products. With `odd` every feature
    changes sign under the spin flip: no biases on the values, gates see magnitudes and visibility only.
    """

    side: int
    channels: int
    depth: int
    expansion: int
    odd: bool

    @nn.compact
    def __call__(self, values: Array, context: Array) -> Array:
        """`values` [F, N, L] (odd if `odd`) and `context` [G, N, L] (even) to [C, N, L]."""
        h = _Pointwise(self.channels, use_bias=not self.odd)(values)
        for layer in range(self.depth):
            kernel = self.param(
                f"kernel_{layer}", nn.initializers.normal(1.0 / self.side), (self.channels, self.side**2)
            )
            u = _circulant(kernel, _rms_norm(h), self.side)
            u = jnp.concatenate([u, h], axis=0)
            width = self.expansion * self.channels
            gate_input = jnp.concatenate([jnp.abs(u) if self.odd else u, context], axis=0)
            gate = nn.sigmoid(_Pointwise(width)(gate_input))
            value = _Pointwise(width, use_bias=not self.odd)(u) * gate
            h = h + _Pointwise(self.channels, use_bias=not self.odd, scale=0.3)(value)
        return h


class _Pointwise(nn.Module):
    """A linear map of the leading channel axis."""

    features: int
    use_bias: bool = True
    scale: float = 1.0

    @nn.compact
    def __call__(self, h: Array) -> Array:
        init = nn.initializers.variance_scaling(self.scale**2, "fan_in", "normal")
        kernel = self.param("kernel", init, (h.shape[0], self.features))
        out = jnp.einsum("cd,cnl->dnl", kernel, h)
        if self.use_bias:
            out = out + self.param("bias", nn.initializers.zeros, (self.features,))[:, None, None]
        return out


def _rms_norm(h: Array) -> Array:
    return h * jax.lax.rsqrt(jnp.mean(h**2, axis=0, keepdims=True) + 1e-3)


def _circulant(kernel: Array, h: Array, side: int) -> Array:
    index = jnp.arange(side)
    gap = (index[:, None] - index[None, :]) % side
    place = (gap[:, None, :, None] * side + gap[None, :, None, :]).reshape(side**2, side**2)
    return jnp.einsum("cnl,clm->cnm", h, kernel[:, place])


class GridDenoiser(nn.Module):
    side: int
    vocab_size: int = 2
    channels: int = 24
    depth: int = 3
    expansion: int = 2
    flip: bool = False
    skip: Skip | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array | None = None) -> Array:
        n, sites = x.shape
        if self.flip:
            s = jnp.where(x == 2, 0.0, 2.0 * x - 1.0)
            v = (x != 2) * 1.0
            g = lambda a: a.reshape(n, self.side, self.side)
            nb = lambda a: 0.5 * sum(jnp.roll(g(a), k, axis=ax) for ax in (1, 2) for k in (1, -1)).reshape(n, sites)
            values = jnp.stack([s, nb(s)])
            context = jnp.stack([v, nb(v), jnp.broadcast_to(v.mean(-1, keepdims=True), v.shape)])
            h = _GridTrunk(self.side, self.channels, self.depth, self.expansion, True)(values, context)
            half = _Pointwise(1, use_bias=False, scale=0.05)(h)[0]
            out = jnp.stack([-half, half], axis=-1)
        else:
            f = jnp.moveaxis(_features(x, self.vocab_size), -1, 0)
            h = _GridTrunk(self.side, self.channels, self.depth, self.expansion, False)(f, f[-1:])
            out = jnp.moveaxis(_Pointwise(self.vocab_size, scale=0.05)(h), 0, -1)
        if self.skip is not None:
            out = out + self.param("skip_gain", nn.initializers.ones, ()) * self.skip(x)
        return out
