"""The blocks of `UNetViTPotential`: residual, attention and resampling blocks, an encoder layer.

All are smooth functions of their input, since training takes the gradient of a gradient. Shape letters:
H and W rows and columns, C channels, T tokens, E their width. `dtype` is that of the computation, None for
that of the input and the parameters; statistics and softmax are float32 at least. `keys` are [B] keys
for dropout, None for none.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egm import random
from egm.typing import Array

GROUPS = 32
"""Groups of every group normalisation; channels are multiples of it."""
EPSILON = 1e-5
"""Added to the variance in every normalisation."""

fan_in_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform within 1 / sqrt(fan-in), as the published network starts."""


def dense(features: int, name: str, dtype: Any, kernel_init: Any = fan_in_init) -> nn.Dense:
    """A linear layer on the last axis."""
    return nn.Dense(features, name=name, dtype=dtype, kernel_init=kernel_init)


def conv(features: int, name: str, dtype: Any, stride: int = 1, kernel_init: Any = fan_in_init) -> nn.Conv:
    """A 3x3 convolution with one row and column of zeros on every side, strided or not."""
    padding = ((1, 1), (1, 1))
    return nn.Conv(features, (3, 3), stride, padding, name=name, dtype=dtype, kernel_init=kernel_init)


def group_norm(name: str, dtype: Any) -> nn.GroupNorm:
    """Group normalisation, its variance in two passes."""
    return nn.GroupNorm(GROUPS, epsilon=EPSILON, name=name, dtype=dtype, use_fast_variance=False)


def dropped(x: Array, rate: float, keys: Array | None) -> Array:
    """x [B, ...] with a share `rate` of its elements set to 0 and the others divided by 1 - rate."""
    if keys is None or rate == 0:
        return x
    kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(kept, x / (1 - rate), jnp.zeros((), x.dtype))


def attended(q: Array, k: Array, v: Array, rate: float = 0.0, keys: Array | None = None) -> Array:
    """[B, T, E] softmax(q k / sqrt(c)) v over tokens, q, k and v [B, T, heads, c], heads concatenated."""
    scale = q.shape[-1] ** -0.25
    logits = jnp.einsum("bthc,bshc->bhts", q * scale, k * scale)
    weights = nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    weights = dropped(weights.astype(v.dtype), rate, keys)
    return jnp.einsum("bhts,bshc->bthc", weights, v).reshape(*v.shape[:2], -1)


class ResidualBlock(nn.Module):
    """h [B, H, W, C] -> [B, H, W, features], given the embedded time [1, 4 * num_channels].

    Attributes:
      features: channels of the output.
      dropout: rate, before the last convolution.
      dtype: of the computation.
    """

    features: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, h: Array, time: Array, keys: Array | None) -> Array:
        out = nn.silu(group_norm("norm_0", self.dtype)(h))
        out = conv(self.features, "conv_0", self.dtype)(out)
        out = out + dense(self.features, "time", self.dtype)(time)[:, None, None]
        out = dropped(nn.silu(group_norm("norm_1", self.dtype)(out)), self.dropout, keys)
        # Zero at first: every block starts as the identity, as the published ones do.
        out = conv(self.features, "conv_1", self.dtype, kernel_init=nn.initializers.zeros)(out)
        if h.shape[-1] != self.features:
            h = dense(self.features, "skip", self.dtype)(h)
        return h + out


class AttentionBlock(nn.Module):
    """h [B, H, W, C] -> [B, H, W, C], every position looking at all of them.

    Its qkv layer gives queries, keys and values of the first head, then of the second...

    Attributes:
      num_heads: they divide C.
      dtype: of the computation.
    """

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, h: Array) -> Array:
        batch, height, width, channels = h.shape
        tokens = group_norm("norm", self.dtype)(h).reshape(batch, height * width, channels)
        qkv = dense(3 * channels, "qkv", self.dtype)(tokens)
        qkv = qkv.reshape(batch, height * width, self.num_heads, 3, channels // self.num_heads)
        out = attended(qkv[..., 0, :], qkv[..., 1, :], qkv[..., 2, :])
        out = dense(channels, "out", self.dtype, kernel_init=nn.initializers.zeros)(out)
        return h + out.reshape(h.shape)


class EncoderLayer(nn.Module):
    """tokens [B, T, E] -> [B, T, E]: attention, then an MLP of width 4 E, each normalised after its sum.

    Its qkv layer gives the queries of all heads, then the keys, then the values.

    Attributes:
      num_heads: they divide E.
      dropout: rate, of the attention's weights and after each layer.
      dtype: of the computation.
    """

    num_heads: int
    dropout: float
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, keys: Array | None) -> Array:
        batch, count, width = tokens.shape
        sites = (None,) * 4 if keys is None else random.split(keys, 4)
        norm = lambda name: nn.LayerNorm(EPSILON, self.dtype, name=name, use_fast_variance=False)

        qkv = dense(3 * width, "qkv", self.dtype)(tokens)
        qkv = qkv.reshape(batch, count, 3, self.num_heads, width // self.num_heads)
        out = attended(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.dropout, sites[0])
        out = dense(width, "out", self.dtype)(out)
        tokens = norm("norm_0")(tokens + dropped(out, self.dropout, sites[1]))

        hidden = nn.gelu(dense(4 * width, "mlp_0", self.dtype)(tokens), approximate=False)
        out = dense(width, "mlp_1", self.dtype)(dropped(hidden, self.dropout, sites[2]))
        return norm("norm_1")(tokens + dropped(out, self.dropout, sites[3]))


def doubled(h: Array) -> Array:
    """[B, 2 H, 2 W, C] of h [B, H, W, C], every pixel repeated."""
    batch, height, width, channels = h.shape
    h = jnp.broadcast_to(h[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return h.reshape(batch, 2 * height, 2 * width, channels)


def time_features(t: float, size: int) -> Array:
    """[size] cosines, then sines, of t times frequencies from 1 down to 1e-4; an odd size ends in 0."""
    half = size // 2
    angles = t * jnp.exp(-math.log(1e4) * jnp.arange(half) / half)
    return jnp.concatenate((jnp.cos(angles), jnp.sin(angles), jnp.zeros(size % 2)))
