"""MLPs on vectors of a Gaussian path: raw generators, log-marginals, and closed forms to add them to.

`module.apply(params, x [N, D], t [N])`. A generator's raw output [N, D, 2] holds F and G: a head in
`egm.heads` makes F / sqrt(sigma^2 + alpha^2 s^2) a correction of the score, G one of the log of the
posterior variance. Outputs are near zero at the start. The field of the path is called `gaussian_path`
because Flax keeps `Module.path` for itself.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from egm.networks._features import Features, ResidualMLP, check_fields, modulated, small_init
from egm.paths.gaussian import GaussianPath
from egm.typing import Array

__all__ = ["CoordinateVector", "MLPVector", "MLPVectorLogMarginal", "Skip"]

Skip = Callable[[Array, Array], Array]


class MLPVector(nn.Module):
    """Raw outputs [N, D, num_outputs] of a time-conditioned residual MLP.

    Attributes:
      gaussian_path: the path; a centred one also fixes D.
      length_scale: s, the finest length of the target.
      data_scale: S, its standard deviation about `center`.
      center: c, a number or D numbers.
      width: of the hidden layers.
      depth: number of hidden layers.
      num_frequencies: of the Fourier features of x, from pi / (2 S) upwards in octaves; None goes up to
        about pi / (2 s), with at most 8.
      num_outputs: numbers a coordinate.

    Examples:
      >>> path = egm.paths.VarianceExplodingPath(0.1, 5.0)
      >>> net = egm.networks.MLPVector(path, width=16, depth=1)
      >>> params = net.init(jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros(1))
      >>> net.apply(params, jnp.zeros((5, 3)), jnp.full(5, 0.5)).shape
      (5, 3, 2)
    """

    gaussian_path: GaussianPath
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    width: int = 128
    depth: int = 3
    num_frequencies: int | None = None
    num_outputs: int = 2

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        check_fields(self, sizes=("width", "depth", "num_outputs"))
        x, _, hidden = _hidden(self, x, t)
        out = nn.Dense(x.shape[-1] * self.num_outputs, kernel_init=small_init)(hidden)
        return out.reshape(*x.shape, self.num_outputs)


class CoordinateVector(nn.Module):
    """Raw outputs [N, D, num_outputs] of a small network that all coordinates share, told by a trunk.

    The trunk is that of `MLPVector` and gives each coordinate a context of a few numbers; the shared
    network sees these, the coordinate's own features and a few learned numbers of the coordinate. So what
    coordinates do by themselves is learned once for all of them, and what they do together by the trunk.

    Attributes:
      gaussian_path, length_scale, data_scale, center, num_frequencies, num_outputs: as for `MLPVector`.
      width, depth: of the trunk.
      channels: width of the shared network, of two layers.
      context: numbers that the trunk gives a coordinate, and that it has of its own.
    """

    gaussian_path: GaussianPath
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    width: int = 128
    depth: int = 3
    channels: int = 24
    context: int = 4
    num_frequencies: int | None = None
    num_outputs: int = 2

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        check_fields(self, sizes=("width", "depth", "channels", "context", "num_outputs"))
        x, t, hidden = _hidden(self, x, t)
        features = _features(self)
        time, (n, dim) = features.time(t, x.dtype), x.shape
        own = features.position(x, t)
        own = jnp.moveaxis(own.reshape(n, own.shape[-1] // dim, dim), 1, 2)
        told = nn.Dense(dim * self.context)(hidden).reshape(n, dim, self.context)
        place = self.param("place", nn.initializers.normal(1.0), (1, dim, self.context))
        place = jnp.broadcast_to(place.astype(x.dtype), (n, dim, self.context))
        h = nn.Dense(self.channels)(jnp.concatenate([own, told, place], axis=-1))
        h = nn.silu(modulated(h, time))
        h = nn.silu(modulated(nn.Dense(self.channels)(h), time))
        return nn.Dense(self.num_outputs, kernel_init=small_init)(h)


class MLPVectorLogMarginal(nn.Module):
    """g [N] from the same network; attributes as for `MLPVector`, `skip(x, t)` a closed form of g."""

    gaussian_path: GaussianPath
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    width: int = 128
    depth: int = 3
    num_frequencies: int | None = None
    skip: Skip | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        check_fields(self, sizes=("width", "depth"))
        x, t, hidden = _hidden(self, x, t)
        out = nn.Dense(1, kernel_init=small_init)(hidden)[:, 0]
        return out if self.skip is None else out + self.skip(x, t)


def _features(module):
    return Features(
        module.gaussian_path, module.length_scale, module.data_scale, module.center, module.num_frequencies
    )


def _hidden(module, x, t):
    features = _features(module)
    x, t = features.inputs(x, t)
    trunk = ResidualMLP(module.width, module.depth)
    return x, t, trunk(features.position(x, t), features.time(t, x.dtype))
