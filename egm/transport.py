"""Transport maps: smooth one-to-one maps under which states of a curved target look normal.

A ridge that bends, a funnel, or a tail that falls off by a power has no single length, and a diffusion
needs one. `fit` learns x = T(z) from states of the target by maximum likelihood of N(0, I) under T, so that
what is left for a sampler to learn in z is small. T is a bijection of R^D whatever it has learned: the
energy in z, E(T(z)) - log |det dT/dz|, has the same log Z.

T is a chain of affine coupling layers (each coordinate is scaled and shifted by a function of others), then
a map of the radius and one of each coordinate, z exp(h z^2 / 2), whose tails are those of a power 1 / h.

Sources: Dinh et al., "Density estimation using Real NVP" (arXiv 1605.08803); Goerg, "The Lambert way to
Gaussianize heavy-tailed data with the inverse of Tukey's h transformation" (arXiv 1010.2265); Parno and
Marzouk, "Transport map accelerated Markov chain Monte Carlo" (arXiv 1412.5492).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from egm import checks, random
from egm.typing import Array, Key, PyTree

__all__ = ["CouplingMap", "Transport", "fit", "near_identity"]

_STRONGEST = 10.0
"""Log-scale of one layer that is never exceeded."""
_FARTHEST = 5.0
"""What a layer sees of a coordinate at most: beyond the states that it learned from it goes on evenly."""
_STEEP = 10.0
"""By which the tails' parameters learn faster than weights."""
_TAILS = ("tails", "radial")
"""Parameters of the tails."""
_LOOK = 100
"""Steps between looks at the states left out."""
_LOOKS = 10
_PATIENCE = 5


class CouplingMap(nn.Module):
    """T of R^D, close to the identity at the start.

    Attributes:
      dimension: D.
      width: of the two hidden layers of each coupling's network.
    """

    dimension: int
    width: int = 64

    @property
    def sizes(self) -> dict[str, int]:
        """What makes the map again, as plain numbers."""
        return {"dimension": self.dimension, "width": self.width}

    def setup(self):
        """Two layers for each digit of the coordinates' numbers: any two are parted by one of them."""
        digits = np.arange(max(1, (self.dimension - 1).bit_length()))
        halves = np.arange(self.dimension)[None] >> digits[:, None] & 1
        self._moves = np.stack([halves, 1 - halves], axis=1).reshape(-1, self.dimension).astype(np.float32)
        layers, d, w = len(self._moves), self.dimension, self.width
        normal, zero = (
            nn.initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0),
            nn.initializers.zeros_init(),
        )
        weights = {
            "first": self.param("first", normal, (layers, d, w)),
            "first_bias": self.param("first_bias", zero, (layers, w)),
            "second": self.param("second", normal, (layers, w, w)),
            "second_bias": self.param("second_bias", zero, (layers, w)),
            "last": self.param("last", zero, (layers, w, 2 * d)),
            # Straight lines beside the network: a funnel is one, and goes on where no state was.
            "line": self.param("line", zero, (layers, d, 2 * d)),
            "last_bias": self.param("last_bias", zero, (layers, 2 * d)),
        }
        self._layers = (jnp.asarray(self._moves), weights)
        small = nn.initializers.constant(-4.0 / _STEEP)
        self._tails = self.param("tails", small, (d,))
        self._radial = self.param("radial", small, ())

    def __call__(self, z: Array) -> tuple[Array, Array]:
        """(T(z) [N, D], log |det dT/dz| [N]) of z [N, D]."""

        def layer(carry, weights):
            z, log_det = carry
            log_scale, shift = _coupling(z, *weights)
            return (z * jnp.exp(log_scale) + shift, log_det + jnp.sum(log_scale, axis=-1)), None

        start = (z, jnp.zeros(z.shape[:-1], z.dtype))
        (z, log_det), _ = jax.lax.scan(layer, start, self._layers)
        radial, tails = self._strengths()
        square = jnp.sum(z**2, axis=-1, keepdims=True)
        log_det = log_det + self._radial_log_det(square)
        z = z * jnp.exp(0.5 * radial * square)
        return z * jnp.exp(0.5 * tails * z**2), log_det + self._tails_log_det(z)

    def inverse(self, x: Array) -> tuple[Array, Array]:
        """(z [N, D] with T(z) = x, log |det dT/dz| [N] there) of x [N, D]."""
        radial, tails = self._strengths()
        z = x * jnp.exp(-0.5 * _lambert_w(tails * x**2))
        log_det = self._tails_log_det(z)
        z = z * jnp.exp(-0.5 * _lambert_w(radial * jnp.sum(z**2, axis=-1, keepdims=True)))
        log_det = log_det + self._radial_log_det(jnp.sum(z**2, axis=-1, keepdims=True))

        def layer(carry, weights):
            z, log_det = carry
            log_scale, shift = _coupling(z, *weights)
            return ((z - shift) * jnp.exp(-log_scale), log_det + jnp.sum(log_scale, axis=-1)), None

        return jax.lax.scan(layer, (z, log_det), self._layers, reverse=True)[0]

    def _strengths(self) -> tuple[Array, Array]:
        """h of the radius, h [1, D] of the coordinates."""
        return nn.softplus(_STEEP * self._radial) / self.dimension, nn.softplus(_STEEP * self._tails)[None]

    def _radial_log_det(self, square: Array) -> Array:
        h = self._strengths()[0]
        return jnp.squeeze(0.5 * self.dimension * h * square + jnp.log1p(h * square), -1)

    def _tails_log_det(self, z: Array) -> Array:
        h = self._strengths()[1]
        return jnp.sum(0.5 * h * z**2 + jnp.log1p(h * z**2), axis=-1)


def _coupling(z: Array, moves: Array, weights: dict[str, Array]) -> tuple[Array, Array]:
    """(log-scale, shift) [N, D] by which one layer moves some coordinates, functions of the others."""
    moves = moves[None]
    # Bounded: far outside of the states that it has seen a layer must not run away.
    left = z * (1 - moves) / jnp.sqrt(1 + (z / _FARTHEST) ** 2)
    hidden = nn.silu(left @ weights["first"] + weights["first_bias"][None])
    hidden = nn.silu(hidden @ weights["second"] + weights["second_bias"][None])
    out = hidden @ weights["last"] + left @ weights["line"] + weights["last_bias"][None]
    log_scale, shift = jnp.split(out, 2, axis=-1)
    return moves * log_scale / jnp.sqrt(1 + (log_scale / _STRONGEST) ** 2), moves * shift


@jax.custom_jvp
def _lambert_w(x: Array) -> Array:
    """W with W exp(W) = x >= 0."""
    # Newton for log W + W = log x, from a bound that is near at both ends.
    log_x = jnp.log(jnp.maximum(x, 1e-30))
    w = jnp.where(x < 2.0, x / (1 + x), log_x - jnp.log(jnp.maximum(log_x, 0.5)))
    for _ in range(4):
        w = jnp.maximum(w, 1e-30)
        w = w * (1 + log_x - jnp.log(w)) / (1 + w)
    return jnp.where(x > 1e-6, w, x)


@_lambert_w.defjvp
def _lambert_w_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    w = _lambert_w(x)
    return w, dx * jnp.where(x > 1e-6, w / (jnp.maximum(x, 1e-30) * (1 + w)), 1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Transport:
    """A `CouplingMap` with its parameters.

    Attributes:
      module: the map.
      params: as `module.init` returns them, NumPy arrays.
    """

    module: CouplingMap
    params: PyTree

    def apply(self, z: Array) -> tuple[Array, Array]:
        """(T(z) [N, D], log |det dT/dz| [N]) of z [N, D]."""
        return _mapped(self.module, self.params, z, "__call__")

    def invert(self, x: Array) -> tuple[Array, Array]:
        """(z [N, D] with T(z) = x, log |det dT/dz| [N] there) of x [N, D]."""
        return _mapped(self.module, self.params, x, "inverse")


@functools.partial(jax.jit, static_argnums=(0, 3))
def _mapped(module: CouplingMap, params: PyTree, states: Array, method: str) -> Any:
    return module.apply(params, states, method=method)


def fit(
    key: Key,
    x: Array,
    held: Array,
    *,
    width: int = 64,
    start: Transport | None = None,
    tails_alone: bool = False,
) -> tuple[Transport, np.ndarray]:
    """A map under which states look normal, by maximum likelihood, stopped by states left out.

    Args:
      key: a typed key.
      x: [N, D] states of mean about 0 and variances about 1.
      held: [M, D] further states, independent of them.
      width: of the map's networks.
      start: a map to go on from; None for one near the identity.
      tails_alone: learn the tails' strengths and nothing else: D + 1 numbers, which few states tell.

    Returns:
      (Transport, gain [M]): the log-density of each held state under the map less that under N(0, I);
      their mean is what the map is worth, in nats.

    Raises:
      TypeError, ValueError: the states are no [N, D] arrays of floats of one D.
    """
    checks.one_key(key)
    checks.flag(tails_alone, "tails_alone")
    x, held = (checks.float_array(a, name, min_ndim=2) for a, name in ((x, "x"), (held, "held")))
    if x.ndim != 2 or not x.size:
        raise ValueError(f"x must have shape [N, D], got {x.shape}")
    if held.shape[1:] != x.shape[1:]:
        raise ValueError(f"held must have shape [M, {x.shape[1]}] as x has, got {held.shape}")
    module = CouplingMap(x.shape[1], checks.positive_int(width, "width"))
    module = module if start is None else start.module
    k_init, k_train = random.split(key)
    params = near_identity(k_init, module).params if start is None else start.params
    state = _optimizer().init(params)
    best, since = (params, _gains(module, params, held)), 0
    for look in range(_LOOKS):
        rest = jnp.asarray(not tails_alone, float)
        params, state = _steps(module, random.derive(k_train, f"look {look}"), params, state, x, rest)
        found = _gains(module, params, held)
        better = bool(jnp.mean(found) > jnp.mean(best[1]))
        best, since = ((params, found), 0) if better else (best, since + 1)
        if since >= _PATIENCE:
            break
    return Transport(module, jax.device_get(best[0])), np.asarray(best[1])


def near_identity(key: Key, module: CouplingMap) -> Transport:
    """A map that has learned nothing."""
    params: Any = jax.jit(module.init)(key, jnp.zeros((1, module.dimension)))
    return Transport(module, jax.device_get(params))


@functools.cache
def _optimizer() -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(3e-3, _LOOK * _LOOKS)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=1e-3))


@functools.partial(jax.jit, static_argnums=0)
def _steps(module: CouplingMap, key: Key, params: PyTree, state: Any, x: Array, rest: Array) -> Any:
    """(params, state) after some steps; `rest` is 0 where all but the tails stay as they are."""

    def kept(path, update):
        return update if path[-1].key in _TAILS else rest * update

    def loss(params, batch):
        return -jnp.mean(_log_density(module, params, batch))

    def step(carry, k):
        params, state = carry
        batch = x[jax.random.randint(k, (min(256, len(x)),), 0, len(x))]
        updates, state = _optimizer().update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, jax.tree_util.tree_map_with_path(kept, updates)), state), None

    return jax.lax.scan(step, (params, state), jax.random.split(key, _LOOK))[0]


@functools.partial(jax.jit, static_argnums=0)
def _gains(module: CouplingMap, params: PyTree, held: Array) -> Array:
    return _log_density(module, params, held) - _normal(held)


def _log_density(module: CouplingMap, params: PyTree, x: Array) -> Array:
    z, log_det = Transport(module, params).invert(x)
    return _normal(z) - log_det


def _normal(z: Array) -> Array:
    """[N] log-density of N(0, I) up to its constant."""
    return -0.5 * jnp.sum(z**2, axis=-1)
