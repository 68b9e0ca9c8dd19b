"""A target on the leaves of a state: each with its path and the distribution that its chains start from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, importance, random
from egm.heads import NormalMixture
from egm.paths import ProductPath
from egm.paths.wrapped import wrapped
from egm.typing import Array, State, TokenPath


class Part(NamedTuple):
    """One leaf of a state: a Gaussian part with its start, or tokens (path a `TokenPath`)."""

    path: Any
    shape: tuple[int, ...]
    mean: Any
    variance: Any

    @property
    def is_tokens(self) -> bool:
        return isinstance(self.path, TokenPath)

    def draw(self, key, num):
        if self.is_tokens:
            return jax.random.randint(key, (num, *self.shape), 0, self.path.vocab_size, jnp.int32)
        noise = self.path.standard_normal(key, (num, *self.shape))
        x = self.path.project(self.mean)[None] + jnp.sqrt(self.variance) * noise
        angles = self.angles
        if not angles.any():
            return x
        turn = jax.random.uniform(random.derive(key, "angles"), x.shape, x.dtype, -math.pi, math.pi)
        return jnp.where(jnp.asarray(angles)[None], turn, x)

    @property
    def angles(self):
        """[D] bool; they start uniform."""
        return self.path.confinement(self.shape[-1]) == 0

    def energy(self, x):
        """[C] -log p_0, normalised."""
        if self.is_tokens:
            sites = math.prod(self.shape)
            return jnp.full(x.shape[0], sites * math.log(self.path.vocab_size))
        mean = jnp.broadcast_to(self.path.project(self.mean), x.shape)
        if self.angles.any():
            normal = 0.5 * (jnp.square(x - mean) / self.variance + jnp.log(2 * math.pi * self.variance))
            angles = jnp.broadcast_to(jnp.asarray(self.angles), x.shape)
            return jnp.sum(jnp.where(angles, math.log(2 * math.pi), normal), axis=-1)
        return -self.path.normal_log_density(x, mean, jnp.broadcast_to(self.variance, x.shape[:1]))

    def lifted(self, x):
        """x with angles within [-pi, pi): sums of lifts would grow without bound."""
        angles = self.angles
        return jnp.where(jnp.broadcast_to(jnp.asarray(angles), x.shape), wrapped(x), x) if angles.any() else x

    def widened(self, width):
        return self if self.is_tokens else self._replace(variance=width**2 * self.variance)


class MixturePart(NamedTuple):
    """A Gaussian part whose chains start from a mixture; as `Part`."""

    path: Any
    shape: tuple[int, ...]
    means: Array
    log_weights: Array
    roots: Array
    inverse: Array
    width: Any = 1.0

    is_tokens = False

    @property
    def variance(self):
        """The largest of a coordinate, of any component."""
        return self.width**2 * jnp.max(jnp.sum(self.roots**2, axis=-1))

    @property
    def angles(self):
        return np.zeros(self.shape[-1], bool)

    def draw(self, key, num):
        """Of each component as many as can be, which of them have one more is random."""
        k_order, k_parts, k_place = jax.random.split(random.derive(key, "order"), 3)
        parts = jax.random.permutation(k_parts, self.means.shape[0])
        place = importance.systematic(k_place, self.log_weights[parts], num)
        order = jax.random.permutation(k_order, parts[place])
        noise = jax.random.normal(key, (num, *self.shape))
        return self.means[order] + self.width * jnp.einsum("nij,nj->ni", self.roots[order], noise)

    def energy(self, x):
        """[C] -log p_0, normalised."""
        count, dim = self.means.shape
        # One product for all components: batches of small ones take many times longer.
        rows = self.inverse.reshape(count * dim, dim)
        product = functools.partial(jnp.matmul, precision="highest")
        middle = jnp.einsum("mij,mj->mi", self.inverse, self.means, precision="highest")
        z = (product(x, rows.T).reshape(-1, count, dim) - middle[None]) / self.width
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.inverse, axis1=1, axis2=2)), axis=-1)
        log_det = log_det - dim * jnp.log(self.width) + self.log_weights
        log_p = log_det[None] - 0.5 * jnp.sum(z**2, axis=-1)
        return 0.5 * dim * math.log(2 * math.pi) - jax.nn.logsumexp(log_p, axis=-1)

    def lifted(self, x):
        return x

    def widened(self, width):
        return self._replace(width=width * self.width)


class Flat(NamedTuple):
    """A target on the list of a state's leaves."""

    parts: tuple[Part | MixturePart, ...]
    treedef: Any
    function: Callable[[State], Array]

    def unflatten(self, leaves):
        return jax.tree.unflatten(self.treedef, leaves)

    def widened(self, width):
        return self._replace(parts=tuple(part.widened(width) for part in self.parts))

    def energy(self, leaves):
        """[C] E, +inf where it is no number or -inf."""
        e = self.function(self.unflatten(leaves))
        e = checks.model_output(e, "energy", leaves[0].shape[:1])
        return jnp.where(jnp.isnan(e) | (e == -jnp.inf), jnp.inf, e).astype(float)

    def reference(self, leaves):
        return sum(part.energy(x) for part, x in zip(self.parts, leaves, strict=True))


def is_shape(value) -> bool:
    """Whether it is a shape rather than a tree of shapes."""
    return isinstance(value, tuple | list) and all(isinstance(n, int | np.integer) for n in value)


def parts_of(path, event_shape, start) -> tuple[Part | MixturePart, ...]:
    """The leaves of a state in the order of `jax.tree.leaves`, each with its path and start."""
    if isinstance(path, ProductPath):
        paths, shapes = path.leaves_with(event_shape, "event_shape")
        starts = [None] * len(paths) if start is None else path.leaves_with(start, "start")[1]
        found = [parts_of(p, s, m) for p, s, m in zip(paths, shapes, starts, strict=True)]
        return tuple(part for parts in found for part in parts)
    if not is_shape(event_shape):
        raise TypeError(f"event_shape must be a tuple of ints for {path!r:.60}, got {event_shape!r:.80}")
    shape = tuple(checks.positive_int(n, "every size in event_shape") for n in event_shape)
    if isinstance(path, TokenPath):
        return (Part(path, shape, None, None),)
    if not hasattr(path, "normal_log_density"):
        raise TypeError(f"path must be of Gaussian paths and paths of tokens, got {path!r:.80}")
    if len(shape) != 1:
        raise ValueError(f"event_shape of a Gaussian part must be (D,), got {shape}")
    if isinstance(start, NormalMixture):
        return (_mixture(path, shape, start),)
    if start is None:
        start = jnp.zeros(shape), jnp.full(shape, path.prior_variance)
    if not isinstance(start, tuple) or len(start) != 2:
        raise TypeError(f"start must be moments in the form of {path!r:.60}, got {start!r:.80}")
    mean, variance = start
    mean, variance = jnp.asarray(mean, float), jnp.asarray(variance, float)
    for name, value in (("mean", mean), ("variance", variance)):
        if value.shape != shape:
            raise ValueError(f"start.{name} must have shape {shape}, got {value.shape}")
    return (Part(path, shape, mean, jnp.max(variance)),)


def _mixture(path, shape, start: NormalMixture) -> MixturePart:
    if start.means.shape[1:] != shape:
        raise ValueError(f"start.means must have shape [K, {shape[0]}], got {start.means.shape}")
    if path.dimension(shape[0]) < shape[0] or np.any(path.confinement(shape[0]) == 0):
        raise ValueError(
            f"start must be moments on a subspace and for angles, got a NormalMixture for {path!r:.60}"
        )
    roots = np.linalg.cholesky(start.covariances)
    numbers = (start.means, start.log_weights, roots, np.linalg.inv(roots))
    return MixturePart(path, shape, *(jnp.asarray(a, float) for a in numbers))
