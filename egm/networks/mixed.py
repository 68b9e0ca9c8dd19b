"""Networks on mixed states {"x": [N, D], "h": [N, L]}: a vector of a Gaussian path and tokens.

`module.apply(params, state, t [N])`; h may hold masks (token V). Raw generators are dicts
{"x": [N, D, 2], "h": [N, L, V]}: F and G for the vector (`egm.networks.vectors`), logits for tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from egm.networks._features import (
    Features,
    ResidualMLP,
    check_fields,
    mixed_state,
    one_hot_tokens,
    small_init,
)
from egm.networks.particles import Messages, message_fields, raw_outputs, rowwise, summed
from egm.paths.gaussian import GaussianPath
from egm.typing import Array

__all__ = ["EGNNMixed", "EGNNMixedLogMarginal", "MLPMixed", "MLPMixedLogMarginal", "Mixed", "Skip"]

Mixed = dict[str, Array]
Skip = Callable[[Mixed, Array], Array]
_SIZES = ("num_particles", "spatial_dim", "width", "depth", "edge_width")


class MLPMixed(nn.Module):
    """Raw outputs {"x": [N, D, num_outputs], "h": [N, L, V]} of a time-conditioned residual MLP.

    Attributes:
      gaussian_path: the path of x.
      vocab_size: V, the mask not counted.
      length_scale: s, the finest length of x under the target.
      data_scale: S, its standard deviation about `center`.
      center: c, a number or D numbers.
      width: of the hidden layers.
      depth: number of hidden layers.
      num_frequencies: of the Fourier features of x, as for `MLPVector`.
      num_outputs: numbers a coordinate of x.
      flip: exact equivariance under (x, h) -> (-x, 1 - h), for energies that have this symmetry, by
        evaluating both; V = 2 and center = 0 only.

    Examples:
      >>> path = egm.paths.VarianceExplodingPath(0.1, 5.0)
      >>> net = egm.networks.MLPMixed(path, vocab_size=2, width=16, depth=1)
      >>> state = {"x": jnp.zeros((5, 3)), "h": jnp.zeros((5, 4), jnp.int32)}
      >>> params = net.init(jax.random.key(0), state, jnp.zeros(5))
      >>> jax.tree.map(jnp.shape, net.apply(params, state, jnp.zeros(5)))
      {'h': (5, 4, 2), 'x': (5, 3, 2)}
    """

    gaussian_path: GaussianPath
    vocab_size: int
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    width: int = 128
    depth: int = 3
    num_frequencies: int | None = None
    num_outputs: int = 2
    flip: bool = False

    @nn.compact
    def __call__(self, state: Mixed, t: Array) -> Mixed:
        check_fields(self, sizes=("vocab_size", "width", "depth", "num_outputs"), flags=("flip",))
        if self.flip:
            state, t = self._both(state, t)
        hidden, dim, sites = _hidden(self, state, t)
        size = dim * self.num_outputs
        out = nn.Dense(size + sites * self.vocab_size, kernel_init=small_init)(hidden)
        x = out[:, :size].reshape(-1, dim, self.num_outputs)
        h = out[:, size:].reshape(-1, sites, self.vocab_size)
        if self.flip:
            (x, x_flipped), (h, h_flipped) = (jnp.split(a, 2) for a in (x, h))
            # F is a vector and turns its sign; the other outputs are scalars.
            sign = jnp.where(jnp.arange(self.num_outputs) == 0, -1.0, 1.0).astype(x.dtype)
            x = 0.5 * (x + x_flipped * jnp.broadcast_to(sign, x.shape))
            h = 0.5 * (h + h_flipped[..., ::-1])
        return {"x": x, "h": h}

    def _both(self, state, t):
        """The states and, behind them, the flipped ones."""
        if self.vocab_size != 2:
            raise ValueError(f"flip needs vocab_size = 2, got {self.vocab_size}")
        if self.center != 0:
            raise ValueError(f"flip needs center = 0, got {self.center}")
        x, h = mixed_state(state)
        flipped = jnp.where(h == self.vocab_size, h, 1 - h)
        t = jnp.broadcast_to(t, x.shape[:1])
        both = {"x": jnp.concatenate([x, -x]), "h": jnp.concatenate([h, flipped])}
        return both, jnp.concatenate([t, t])


class MLPMixedLogMarginal(nn.Module):
    """g [N] from the same network; attributes as for `MLPMixed`, `skip(state, t)` a closed form of g."""

    gaussian_path: GaussianPath
    vocab_size: int
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    width: int = 128
    depth: int = 3
    num_frequencies: int | None = None
    skip: Skip | None = None

    @nn.compact
    def __call__(self, state: Mixed, t: Array) -> Array:
        check_fields(self, sizes=("vocab_size", "width", "depth"))
        hidden, _, _ = _hidden(self, state, t)
        out = nn.Dense(1, kernel_init=small_init)(hidden)[:, 0]
        return out if self.skip is None else out + self.skip(state, t)


class EGNNMixed(nn.Module):
    """{"x": [N, P * d, num_outputs], "h": [N, P, V]} for P particles, each with a position and a type.

    x is as for `EGNN`; the logits are invariant under motions, and permute with the particles.

    Attributes:
      gaussian_path: the path of x, centred or not.
      num_particles: P.
      spatial_dim: d.
      vocab_size: V types, the mask not counted.
      length_scale: s, the finest length of x under the target.
      data_scale: S, the standard deviation of a coordinate.
      width: of the particles' hidden values.
      depth: number of rounds of messages.
      num_outputs: numbers a coordinate of x.
      edge_width: of the messages.
    """

    gaussian_path: GaussianPath
    num_particles: int
    spatial_dim: int
    vocab_size: int
    length_scale: float = 1.0
    data_scale: float = 1.0
    width: int = 64
    depth: int = 3
    num_outputs: int = 2
    edge_width: int = 32

    @nn.compact
    def __call__(self, state: Mixed, t: Array) -> Mixed:
        x, h = mixed_state(state)
        check_fields(self, sizes=("vocab_size", "num_outputs", *_SIZES))
        nodes, vectors = Messages(*message_fields(self), self.vocab_size)(x, t, h)  # pyright: ignore[reportCallIssue]
        logits = rowwise(nn.silu(nodes), self.vocab_size, kernel_init=small_init)
        return {"x": raw_outputs(nodes, vectors, self.num_outputs), "h": logits}


class EGNNMixedLogMarginal(nn.Module):
    """Invariant g [N]; attributes as for `EGNNMixed`, `skip(state, t)` a closed form of g."""

    gaussian_path: GaussianPath
    num_particles: int
    spatial_dim: int
    vocab_size: int
    length_scale: float = 1.0
    data_scale: float = 1.0
    width: int = 64
    depth: int = 3
    skip: Skip | None = None
    edge_width: int = 32

    @nn.compact
    def __call__(self, state: Mixed, t: Array) -> Array:
        x, h = mixed_state(state)
        check_fields(self, sizes=("vocab_size", *_SIZES))
        nodes, _ = Messages(*message_fields(self), self.vocab_size, vectors=False)(x, t, h)  # pyright: ignore[reportCallIssue]
        out = summed(nodes)
        return out if self.skip is None else out + self.skip(state, t)


def _hidden(module, state, t):
    x, h = mixed_state(state)
    features = Features(
        module.gaussian_path, module.length_scale, module.data_scale, module.center, module.num_frequencies
    )
    x, t = features.inputs(x, t)
    tokens = one_hot_tokens(h, "h", x.shape[0], module.vocab_size, x.dtype)
    flat = tokens.reshape(x.shape[0], math.prod(tokens.shape[1:]))
    inputs = jnp.concatenate([features.position(x, t), flat], axis=-1)
    trunk = ResidualMLP(module.width, module.depth)
    return trunk(inputs, features.time(t, x.dtype)), x.shape[-1], tokens.shape[1]
