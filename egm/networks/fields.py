"""Flax networks for fields of numbers or angles on a periodic square grid."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from egm import checks
from egm.networks._features import Features, check_fields
from egm.networks._torus import Pointwise, rms_norm, torus_convolution, with_neighbours
from egm.paths.gaussian import GaussianPath
from egm.typing import Array

__all__ = ["TorusVector"]


class TorusVector(nn.Module):
    """Raw outputs [N, L, num_outputs] for a field on a periodic side x side grid, the same after shifts.

    Residual blocks of a depthwise circular convolution over the whole torus and a pointwise map that the
    time modulates.

    Attributes:
      gaussian_path, length_scale, data_scale, num_frequencies, num_outputs: as for `MLPVector`; on a
        `WrappedPath` all sites are angles.
      side: L = side^2.
      channels: width of the residual stream.
      depth: number of residual blocks.
      expansion: hidden width of a block, as a multiple of `channels`.
    """

    gaussian_path: GaussianPath
    side: int
    length_scale: float = 1.0
    data_scale: float = 1.0
    channels: int = 24
    depth: int = 3
    expansion: int = 2
    num_frequencies: int | None = None
    num_outputs: int = 2

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        check_fields(self, sizes=("side", "channels", "depth", "expansion", "num_outputs"))
        features = Features(self.gaussian_path, self.length_scale, self.data_scale, 0.0, self.num_frequencies)
        x, t = features.inputs(x, t)
        n, sites = x.shape
        if sites != self.side**2:
            raise ValueError(
                f"x has trailing size {sites}, this network of side = {self.side} has {self.side**2}"
            )
        confined = self.gaussian_path.confinement(sites) > 0
        if confined.any() and not confined.all():
            raise ValueError("gaussian_path must have angles at all sites or at none")
        seen, time = features.position(x, t), features.time(t, x.dtype)
        h = jnp.moveaxis(seen.reshape(n, seen.shape[-1] // sites, sites), 1, 0)
        h = Pointwise(self.channels)(with_neighbours(self.side, h))
        for layer in range(self.depth):
            init = nn.initializers.normal(1.0 / self.side)
            kernel = self.param(f"kernel_{layer}", init, (self.channels, sites))
            u = jnp.concatenate([torus_convolution(kernel, rms_norm(h), self.side), h], axis=0)
            value = _modulated(Pointwise(self.expansion * self.channels)(u), time)
            h = h + Pointwise(self.channels, scale=0.3)(nn.silu(value))
        return jnp.moveaxis(Pointwise(self.num_outputs, scale=0.01)(h), 0, -1)


def _modulated(h: Array, time: Array) -> Array:
    """h [C, N, L] times 1 + scale, plus shift, both linear in the time features [N, 8]."""
    film = jnp.moveaxis(nn.Dense(2 * h.shape[0])(time), -1, 0)[..., None]
    scale, shift = jnp.split(checks.wide(film), 2, axis=0)
    return h * (1 + jnp.broadcast_to(scale, h.shape)) + jnp.broadcast_to(shift, h.shape)
