"""Networks on particles: equivariant under rotations, reflections and permutations, blind to translations.

`module.apply(params, x [N, P * d], t [N])`, the positions of P particles one after another; x is centred
first. Messages depend on distances alone and pass between all pairs; vectors are sums of
differences of positions weighted by them.

Source: E(n) Equivariant Graph Neural Networks (arXiv 2102.09844), without its updates of positions, so that
features of distances are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from egm import checks
from egm.networks._features import Features, check_fields, modulated, one_hot_tokens, small_init
from egm.paths.gaussian import GaussianPath
from egm.typing import Array

__all__ = [
    "EGNN",
    "EGNNLogMarginal",
    "Messages",
    "Skip",
    "message_fields",
    "raw_outputs",
    "rowwise",
    "summed",
]

Skip = Callable[[Array, Array], Array]
_SIZES = ("num_particles", "spatial_dim", "width", "depth", "edge_width")


class EGNN(nn.Module):
    """Raw outputs [N, P * d, num_outputs]: a centred equivariant vector field, then invariant numbers.

    The first output is F, whose mean over particles is zero. The others (G, of the posterior's variance)
    are one number a particle, the same for its d coordinates.

    Attributes:
      gaussian_path: the path, centred or not.
      num_particles: P.
      spatial_dim: d.
      length_scale: s, the finest length of the target.
      data_scale: S, the standard deviation of a coordinate.
      width: of the particles' hidden values.
      depth: number of rounds of messages.
      num_types: V; where it is not 0, calls take types [N, P], with V for a mask.
      num_outputs: numbers a coordinate.
      edge_width: of the messages.

    Examples:
      >>> path = egm.paths.CenteredPath(egm.paths.VarianceExplodingPath(0.1, 5.0), 4, 3)
      >>> net = egm.networks.EGNN(path, num_particles=4, spatial_dim=3, width=8, depth=1, edge_width=4)
      >>> x = path.sample_prior(jax.random.key(0), (5, 12))
      >>> params = net.init(jax.random.key(1), x, jnp.zeros(5))
      >>> net.apply(params, x, jnp.zeros(5)).shape
      (5, 12, 2)
    """

    gaussian_path: GaussianPath
    num_particles: int
    spatial_dim: int
    length_scale: float = 1.0
    data_scale: float = 1.0
    width: int = 64
    depth: int = 3
    num_types: int = 0
    num_outputs: int = 2
    edge_width: int = 32

    @nn.compact
    def __call__(self, x: Array, t: Array, types: Array | None = None) -> Array:
        check_fields(self, sizes=(*_SIZES, "num_outputs"))
        nodes, vectors = Messages(*message_fields(self), self.num_types)(x, t, types)  # pyright: ignore[reportCallIssue]
        return raw_outputs(nodes, vectors, self.num_outputs)


class EGNNLogMarginal(nn.Module):
    """Invariant g [N], a sum over particles; attributes as for `EGNN`, `skip(x, t)` a closed form of g.

    `skip` sees x as it is passed, not centred.
    """

    gaussian_path: GaussianPath
    num_particles: int
    spatial_dim: int
    length_scale: float = 1.0
    data_scale: float = 1.0
    width: int = 64
    depth: int = 3
    num_types: int = 0
    skip: Skip | None = None
    edge_width: int = 32

    @nn.compact
    def __call__(self, x: Array, t: Array, types: Array | None = None) -> Array:
        check_fields(self, sizes=_SIZES)
        nodes, _ = Messages(*message_fields(self), self.num_types, vectors=False)(x, t, types)  # pyright: ignore[reportCallIssue]
        out = summed(nodes)
        return out if self.skip is None else out + self.skip(x, t)


class Messages(nn.Module):
    """The rounds of messages: hidden values [N, P, C] and vectors [N, P, d] (None without `vectors`)."""

    gaussian_path: GaussianPath
    num_particles: int
    spatial_dim: int
    length_scale: float
    data_scale: float
    width: int
    depth: int
    edge_width: int
    num_types: int
    vectors: bool = True

    @nn.compact
    def __call__(self, x: Array, t: Array, types: Array | None) -> tuple[Array, Any]:
        features = Features(self.gaussian_path, self.length_scale, self.data_scale)
        x, t = features.inputs(x, t)
        x = _centered_particles(x, self.num_particles, self.spatial_dim)
        time = features.time(t, x.dtype)
        fine, coarse = (v.astype(x.dtype).reshape(-1, 1, 1) for v in features.variances(t))
        difference = x[:, :, None] - x[:, None]
        square = jnp.sum(jnp.square(difference), axis=-1)
        radial = _radial(square, fine, coarse, self.data_scale / self.length_scale)
        radial = radial.reshape(-1, radial.shape[-1])

        h = jnp.broadcast_to(nn.Dense(self.width)(time)[:, None], (*x.shape[:2], self.width))
        if types is not None or self.num_types:
            h = h + rowwise(self._types(types, x), self.width, use_bias=False)
        share = 1 / math.sqrt(self.num_particles)
        inverse = share * jax.lax.rsqrt(square + fine)
        field: Any = jnp.zeros_like(x) if self.vectors else None
        for _ in range(checks.positive_int(self.depth, "depth")):
            receiver = rowwise(h, self.edge_width)[:, :, None]
            sender = rowwise(h, self.edge_width, use_bias=False)[:, None]
            pairs = (receiver + sender).reshape(-1, self.edge_width)
            pairs = pairs + nn.Dense(self.edge_width, use_bias=False)(radial)
            pairs = nn.silu(nn.Dense(self.edge_width, use_bias=False)(nn.silu(pairs)))
            if self.vectors:
                weight = nn.Dense(1, use_bias=False, kernel_init=small_init)(pairs)
                weight = weight.reshape(square.shape) * inverse
                field = field + jnp.sum(weight[..., None] * difference, axis=2)
            message = pairs.reshape(*square.shape, self.edge_width)
            received = jnp.concatenate([h, share * jnp.sum(message, axis=2)], axis=-1)
            hidden = nn.silu(modulated(rowwise(received, self.width), time))
            h = h + rowwise(hidden, self.width)
        if self.vectors:
            field = field - jnp.mean(field, axis=1, keepdims=True)
        return h, field

    def _types(self, types, x):
        if types is None:
            raise ValueError(f"types must be given, [N, {x.shape[1]}], to a network with num_types > 0")
        if not self.num_types:
            raise ValueError("types were given to a network with num_types = 0")
        out = one_hot_tokens(types, "types", x.shape[0], self.num_types, x.dtype)
        if out.shape[1] != x.shape[1]:
            raise ValueError(f"types must have trailing size {x.shape[1]}, the particles, got {out.shape[1]}")
        return out


def _centered_particles(x, num_particles, spatial_dim):
    checks.positive_int(num_particles, "num_particles", minimum=2)
    checks.positive_int(spatial_dim, "spatial_dim")
    if x.shape[-1] != num_particles * spatial_dim:
        raise ValueError(
            f"x has trailing size {x.shape[-1]}, this network has {num_particles} particles in "
            f"{spatial_dim} dimensions, {num_particles * spatial_dim} in all"
        )
    x = x.reshape(-1, num_particles, spatial_dim)
    return x - jnp.mean(x, axis=1, keepdims=True)


def _radial(square, fine, coarse, ratio):
    """[N, P, P, 9] features of squared distances, smooth at 0; `ratio` is S / s.

    The log of the distance covers both lengths; its harmonics resolve it. The variances [N, 1, 1] are
    those of x_t, so that all of it fades into the noise together.
    """
    log = jnp.log1p(square / fine) / math.log1p(8 * max(ratio, 1.0) ** 2)
    sin, cos = jnp.sin(math.pi * log), jnp.cos(math.pi * log)
    out = [log, square / (square + fine), square / (square + coarse)]
    for k in range(3):
        if k:
            sin, cos = 2 * sin * cos, 1 - 2 * sin * sin
        out += [sin, cos]
    return jnp.stack(out, axis=-1)


def rowwise(h: Array, features: int, **options) -> Array:
    """A dense layer on [..., C] as one product of matrices.

    So the gradient of an `EGNN` (13 particles, 256 states; no bias on pairs) takes 87 ms of CPU time, with
    more axes (and that bias) 101.
    """
    out = nn.Dense(features, **options)(h.reshape(-1, h.shape[-1]))
    return out.reshape(*h.shape[:-1], features)


def message_fields(module: nn.Module) -> tuple:
    """The fields that `Messages` shares with the networks built on it."""
    names = ("num_particles", "spatial_dim", "length_scale", "data_scale", "width", "depth", "edge_width")
    return module.gaussian_path, *(getattr(module, name) for name in names)


def raw_outputs(nodes: Array, vectors: Any, num_outputs: int) -> Array:
    """[N, P * d, num_outputs] from hidden values [N, P, C] and vectors [N, P, d]."""
    checks.positive_int(num_outputs, "num_outputs")
    out = vectors[..., None]
    if num_outputs > 1:
        scalars = rowwise(nn.silu(nodes), num_outputs - 1, kernel_init=small_init)
        scalars = jnp.broadcast_to(scalars[:, :, None], (*vectors.shape, num_outputs - 1))
        out = jnp.concatenate([out, scalars], axis=-1)
    return out.reshape(out.shape[0], math.prod(vectors.shape[1:]), num_outputs)


def summed(nodes: Array) -> Array:
    """[N] a small invariant number from hidden values [N, P, C]."""
    hidden = nn.silu(rowwise(nodes, nodes.shape[-1]))
    return jnp.sum(rowwise(hidden, 1, kernel_init=small_init)[..., 0], axis=-1)
