"""Flax networks on tokens: denoisers and log-marginals, an MLP and a CNN for periodic square grids.

They are time-free, as the masked path allows: `module.apply(params, x [N, L], t [N])` ignores t. On the
uniform path no token says whether it is noise: with `visibility=path.kappa` the features of a token are
scaled by the probability that it is none, which is one more feature.
Denoisers return logits [N, L, V], log-marginals g [N] (`egm.bootstrap`). With `flip` (V = 2 only) a
denoiser is exactly equivariant, and a log-marginal exactly invariant, under the spin flip 0 <-> 1.
`skip(x)` is a closed form that the output is added to: logits, or g.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from egm import checks
from egm.networks._features import check_fields
from egm.networks._torus import Pointwise, rms_norm, torus_convolution, with_neighbours
from egm.typing import Array

__all__ = ["MLPDenoiser", "MLPLogMarginal", "Skip", "TorusDenoiser", "TorusLogMarginal", "torus_convolution"]

Skip = Callable[[Array], Array]
Visibility = Callable[[Array], Array]
_SIZES = ("side", "channels", "depth", "expansion")


class MLPDenoiser(nn.Module):
    """Logits [N, L, V] from an MLP on all sites.

    Attributes:
      vocab_size: V.
      width: of the hidden layers.
      depth: number of hidden layers.
      flip: equivariance under the spin flip, by evaluating x and its flip.
      skip: optional closed form of the logits.
      visibility: None for the masked path; `UniformPath.kappa`, `[N] = kappa(t)`, on the uniform one.

    Examples:
      >>> net = egm.networks.MLPDenoiser(vocab_size=2, width=16, depth=1)
      >>> params = net.init(jax.random.key(0), jnp.zeros((1, 9), jnp.int32))
      >>> net.apply(params, jnp.full((5, 9), 2), jnp.full(5, 0.5)).shape  # logits
      (5, 9, 2)
    """

    vocab_size: int
    width: int = 256
    depth: int = 3
    flip: bool = False
    skip: Skip | None = None
    visibility: Visibility | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array | None = None) -> Array:
        x = _checked(self, x, ("width", "depth"))
        sites = x.shape[-1]
        trunk = _MLP(self.width, self.depth, sites * self.vocab_size)

        shown = _shown(self, x, t)

        def logits(tokens):
            return trunk(_features(tokens, self.vocab_size, shown)).reshape(-1, sites, self.vocab_size)

        out = logits(x)
        if self.flip:
            out = 0.5 * (out + logits(_flipped(x, self.vocab_size))[..., ::-1])
        return _with_skip(self, out, x)


class MLPLogMarginal(nn.Module):
    """g [N] from an MLP on all sites; attributes as for `MLPDenoiser`, `skip` a closed form of g."""

    vocab_size: int
    width: int = 256
    depth: int = 3
    flip: bool = False
    skip: Skip | None = None
    visibility: Visibility | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array | None = None) -> Array:
        x = _checked(self, x, ("width", "depth"))
        trunk = _MLP(self.width, self.depth, 1)
        shown = _shown(self, x, t)
        out = trunk(_features(x, self.vocab_size, shown))[:, 0]
        if self.flip:
            flipped = _features(_flipped(x, self.vocab_size), self.vocab_size, shown)
            out = 0.5 * (out + trunk(flipped)[:, 0])
        return _with_skip(self, out, x)


class TorusDenoiser(nn.Module):
    """Logits [N, L, V] on a periodic side x side grid, from residual blocks that see the whole grid.

    Attributes:
      side: L = side**2.
      vocab_size: V.
      channels: width of the residual stream.
      depth: number of residual blocks.
      expansion: hidden width of a block, as a multiple of `channels`.
      flip: equivariance under the spin flip, by odd features throughout (no second evaluation).
      skip: optional closed form of the logits.
      visibility: None for the masked path; `UniformPath.kappa`, `[N] = kappa(t)`, on the uniform one.

    Examples:
      >>> net = egm.networks.TorusDenoiser(side=4, channels=4, depth=1)
      >>> params = net.init(jax.random.key(0), jnp.zeros((1, 16), jnp.int32))
      >>> x = jax.random.randint(jax.random.key(1), (1, 4, 4), 0, 3)
      >>> logits = lambda x: net.apply(params, x.reshape(1, 16)).reshape(1, 4, 4, 2)
      >>> shifted = logits(jnp.roll(x, 1, axis=2))
      >>> bool(jnp.allclose(jnp.roll(logits(x), 1, axis=2), shifted, atol=1e-5))  # equivariant
      True
    """

    side: int
    vocab_size: int = 2
    channels: int = 24
    depth: int = 3
    expansion: int = 2
    flip: bool = False
    skip: Skip | None = None
    visibility: Visibility | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array | None = None) -> Array:
        x = _checked(self, x, _SIZES)
        h, _ = _TorusTrunk(*_trunk_fields(self), name="trunk")(x, _shown(self, x, t))
        if self.flip:
            half = Pointwise(1, use_bias=False, scale=0.05)(h)[0]
            out = jnp.stack([-half, half], axis=-1)
        else:
            out = jnp.moveaxis(Pointwise(self.vocab_size, scale=0.05)(h), 0, -1)
        return _with_skip(self, out, x)


class TorusLogMarginal(nn.Module):
    """g [N] on a periodic grid, a sum over sites; attributes as for `TorusDenoiser`."""

    side: int
    vocab_size: int = 2
    channels: int = 24
    depth: int = 3
    expansion: int = 2
    flip: bool = False
    skip: Skip | None = None
    visibility: Visibility | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array | None = None) -> Array:
        x = _checked(self, x, _SIZES)
        h, context = _TorusTrunk(*_trunk_fields(self), name="trunk")(x, _shown(self, x, t))
        even = jnp.concatenate([jnp.abs(h) if self.flip else h, context], axis=0)
        even = nn.silu(Pointwise(self.channels)(even))
        out = jnp.sum(Pointwise(1, scale=0.05)(even)[0], axis=-1)
        return _with_skip(self, out, x)


class _TorusTrunk(nn.Module):
    """Blocks of a depthwise circular convolution over the whole torus and a gated pointwise map.

    Channels come first, [C, N, L], so that both are plain matrix products. With `flip` the values are
    odd under the spin flip: they have no biases, and gates see magnitudes and visibility alone.
    """

    side: int
    vocab_size: int
    channels: int
    depth: int
    expansion: int
    flip: bool

    @nn.compact
    def __call__(self, x: Array, shown: Array | None = None) -> tuple[Array, Array]:
        if x.shape[-1] != self.side**2:
            raise ValueError(
                f"x has trailing size {x.shape[-1]}, this network of side = {self.side} has {self.side**2}"
            )
        visible = (x != self.vocab_size).astype(float)
        if self.flip:
            _require_two(self.vocab_size)
            values = jnp.where(x == 2, 0.0, 2.0 * x - 1.0)[None]
        else:
            values = jnp.moveaxis(jax.nn.one_hot(x, self.vocab_size), -1, 0)
        more = []
        if shown is not None:
            wide = jnp.broadcast_to(shown[:, None], visible.shape)
            visible, values = visible * wide, values * wide[None]
            more = [jnp.broadcast_to(_log_odds(shown, self.vocab_size)[None, :, None], (1, *visible.shape))]
        fraction = jnp.broadcast_to(jnp.mean(visible, axis=-1, keepdims=True), visible.shape)
        context = jnp.concatenate([with_neighbours(self.side, visible[None]), fraction[None], *more], axis=0)
        h = Pointwise(self.channels, use_bias=not self.flip)(with_neighbours(self.side, values))
        width = self.expansion * self.channels
        for layer in range(self.depth):
            init = nn.initializers.normal(1.0 / self.side)
            kernel = self.param(f"kernel_{layer}", init, (self.channels, self.side**2))
            u = jnp.concatenate([torus_convolution(kernel, rms_norm(h), self.side), h], axis=0)
            gate = nn.sigmoid(
                Pointwise(width)(jnp.concatenate([jnp.abs(u) if self.flip else u, context], axis=0))
            )
            value = Pointwise(width, use_bias=not self.flip)(u) * gate
            h = h + Pointwise(self.channels, use_bias=not self.flip, scale=0.3)(value)
        return h, context


class _MLP(nn.Module):
    width: int
    depth: int
    features: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        for _ in range(self.depth):
            h = nn.silu(nn.Dense(self.width)(h))
        return nn.Dense(self.features, kernel_init=nn.initializers.normal(1e-3))(h)


def _checked(module: nn.Module, x: Array, sizes: tuple[str, ...]) -> Array:
    """x [N, L], checked with the fields of the module."""
    check_fields(module, sizes=("vocab_size", *sizes), flags=("flip",))
    return checks.tokens(checks.integer_array(x, "x", 2), module.vocab_size)


def _trunk_fields(module: nn.Module) -> tuple:
    names = ("side", "vocab_size", "channels", "depth", "expansion", "flip")
    return tuple(getattr(module, name) for name in names)


def _with_skip(module: nn.Module, out: Array, x: Array) -> Array:
    return out if module.skip is None else out + module.skip(x)


def _shown(module: nn.Module, x: Array, t: Array | None) -> Array | None:
    """[N] the module's visibility at t, or None without one."""
    if module.visibility is None:
        return None
    return checks.function(module.visibility, "visibility")(checks.time(t, "t", x.shape[:1]))


def _log_odds(shown: Array, vocab_size: int) -> Array:
    """Log of a token's likelihood over that of another, about 0 to 2; bounded near 1, where it diverges."""
    return 0.25 * jnp.log1p(vocab_size * shown / jnp.maximum(1 - shown, 1e-3))


def _features(x: Array, vocab_size: int, shown: Array | None) -> Array:
    """[N, F] for an MLP on all sites."""
    tokens = jax.nn.one_hot(x, vocab_size + 1).reshape(x.shape[0], x.shape[1] * (vocab_size + 1))
    if shown is None:
        return tokens
    scaled = tokens * jnp.broadcast_to(shown[:, None], tokens.shape)
    return jnp.concatenate([scaled, shown[:, None], _log_odds(shown, vocab_size)[:, None]], axis=-1)


def _flipped(x: Array, vocab_size: int) -> Array:
    _require_two(vocab_size)
    return jnp.where(x == 2, 2, 1 - x)


def _require_two(vocab_size: int) -> None:
    if vocab_size != 2:
        raise ValueError(f"flip needs vocab_size = 2, got {vocab_size}")
