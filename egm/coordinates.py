"""Coordinates in which a target is learned: a linear map of a state's vector part, and a curved one."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import transport as transports
from egm.spaces import Layout
from egm.typing import TOKEN_OFFERS, Array, Energy, State

__all__ = [
    "Coordinates",
    "between",
    "dimension",
    "fitted",
    "identity",
    "isotropic",
    "linear",
    "may_be_turned",
]

_MOST_WHITENED = 128
"""Dimensions up to which a covariance is estimated and divided out."""
_STANDS_OUT = 3.0
"""Eigenvalue of a correlation matrix over the median one, or below it, from which it gives an axis."""


@dataclasses.dataclass(frozen=True, eq=False)
class Coordinates:
    """x = center + T(z) matrix for the vector's part of a state, its log-determinant in the energy.

    Attributes:
      layout: says which part is the vector.
      center: [D].
      matrix: [D, D], or a number.
      log_det: of the linear map on the state's space.
      transport: T; None for the identity.
    """

    layout: Layout
    center: np.ndarray
    matrix: Any
    log_det: float
    transport: transports.Transport | None = None

    def apply(self, z: State) -> State:
        """The layout's states of states in these coordinates."""
        return self.with_log_det(z)[0]

    def with_log_det(self, z: State) -> tuple[State, Array]:
        """(the layout's states, log |det| [N] of the map there) of states in these coordinates."""
        vector, tokens = self.layout.split(z)
        log_det = jnp.full(jax.tree.leaves(z)[0].shape[:1], self.log_det)
        if vector is None:
            return z, log_det
        if self.transport is not None:
            vector, curved = self.transport.apply(vector)
            log_det = log_det + curved
        scaled = (
            vector * self.matrix if np.ndim(self.matrix) == 0 else vector @ jnp.asarray(self.matrix, float)
        )
        return self.layout.joined(jnp.asarray(self.center, float)[None] + scaled, tokens), log_det

    def invert(self, x: State) -> State:
        """The inverse of `apply`."""
        vector, tokens = self.layout.split(x)
        if vector is None:
            return x
        vector = self.linear(vector)
        if self.transport is not None:
            vector, _ = self.transport.invert(vector)
        return self.layout.joined(vector, tokens)

    def linear(self, vector: Array) -> Array:
        """T(z) [N, D] of the vector's part [N, D] of the layout's states."""
        vector = vector - jnp.asarray(self.center, float)[None]
        if np.ndim(self.matrix) == 0:
            return vector / self.matrix
        return vector @ jnp.asarray(np.linalg.inv(self.matrix), float)

    def energy(self, function: Energy) -> Energy:
        """E in these coordinates, of E on the layout's states."""
        return _Moved(self, function)


@dataclasses.dataclass(frozen=True)
class _Moved:
    coordinates: Coordinates
    function: Energy

    def __call__(self, x: State) -> Array:
        state, log_det = self.coordinates.with_log_det(x)
        return self.function(state) - log_det

    def __getattr__(self, name: str):
        tokens_alone = not self.coordinates.layout.num_coordinates
        if name in TOKEN_OFFERS and tokens_alone:
            return getattr(self.function, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def may_be_turned(layout: Layout) -> bool:
    """Whether the coordinates may be turned: no particles, no grid, not too many."""
    free = not any(getattr(space, "periodic", False) for space in layout.leaves)
    return free and layout.particles is None and layout.num_coordinates <= _MOST_WHITENED


def dimension(layout: Layout) -> int:
    """Of the vector's space: particles are centred."""
    dim = 0 if layout.particles is None else layout.particles.spatial_dim
    return layout.num_coordinates - dim


def identity(layout: Layout) -> Coordinates:
    """The layout's own."""
    return isotropic(layout, np.zeros(layout.num_coordinates), 1.0)


def isotropic(layout: Layout, center: np.ndarray, unit: float) -> Coordinates:
    """Coordinates around a center [D], all of one unit."""
    log_det = dimension(layout) * float(np.log(unit))
    return Coordinates(layout, np.asarray(center, np.float64), float(unit), log_det)


def linear(layout: Layout, center: np.ndarray, covariance: np.ndarray) -> Coordinates:
    """Coordinates of this mean and covariance that turn axes only towards directions that stand out."""
    values, vectors = np.linalg.eigh(np.asarray(covariance, np.float64))
    values = np.maximum(values, max(values.max(), 1e-300) * 1e-12)
    matrix = _axes(covariance) @ ((vectors * np.sqrt(values)) @ vectors.T)
    return Coordinates(layout, np.asarray(center, np.float64), matrix, 0.5 * float(np.sum(np.log(values))))


def _axes(covariance: np.ndarray) -> np.ndarray:
    """[D, D] orthonormal rows: directions in which coordinates together are far wider or narrower.

    What lies along such a direction (two modes far apart) differs from what lies across, and variances
    are learned by coordinate. All other axes stay as near to the coordinates as they can.
    """
    sd = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    values, vectors = np.linalg.eigh(covariance / sd / sd[:, None])
    values = np.maximum(values, 1e-12) / np.median(np.maximum(values, 1e-12))
    special = vectors[:, (values > _STANDS_OUT) | (values < 1 / _STANDS_OUT)]
    axes, free = np.eye(len(sd)), np.ones(len(sd), bool)
    if special.shape[1] in (0, len(sd)):
        return vectors.T if special.shape[1] else axes
    for u in special.T:
        place = int(np.argmax(np.abs(u) * free))
        axes[:, place], free[place] = u * np.sign(u[place]), False
    rest = axes[:, free] - special @ (special.T @ axes[:, free])
    left, _, right = np.linalg.svd(rest, full_matrices=False)
    axes[:, free] = left @ right
    return axes.T


def fitted(layout: Layout, x: np.ndarray, log_shares: np.ndarray, first: Coordinates) -> Coordinates:
    """Coordinates of weighted states; the outermost half per cent of each coordinate is drawn in.

    Moments are taken in the coordinates of a first guess, where no direction is far narrower than others.
    """
    w = np.exp(log_shares - log_shares.max())
    w /= w.sum()
    if layout.angles.all():
        return identity(layout)
    if layout.angles.any():
        line = np.flatnonzero(~layout.angles)
        center, covariance = np.zeros(len(layout.angles)), np.eye(len(layout.angles))
        unit = first.matrix[np.ix_(line, line)]
        center[line], covariance[np.ix_(line, line)] = _normal(x[:, line], w, first.center[line], unit)
        return linear(layout, center, covariance)
    if may_be_turned(layout):
        root = first.matrix if np.ndim(first.matrix) else first.matrix * np.eye(x.shape[1])
        return linear(layout, *_normal(x, w, first.center, root))
    z = _drawn_in((x - first.center) / first.matrix, w)
    center = w @ z
    extent = first.matrix * float(np.sqrt(np.sum(w @ (z - center) ** 2) / dimension(layout)))
    center = first.center + first.matrix * center
    center = np.full_like(center, center.mean()) if layout.particles is None else np.zeros_like(center)
    return isotropic(layout, center, extent)


def _normal(x: np.ndarray, w: np.ndarray, center: np.ndarray, root: np.ndarray):
    """(mean, covariance) of states x [N, D] of weights w, taken in the coordinates x = center + z root."""
    z = _drawn_in(np.linalg.solve(root.T, (np.asarray(x, np.float64) - center).T).T, w)
    mean, num = w @ z, 1 / np.sum(w**2)
    covariance = ((z - mean) * w[:, None]).T @ (z - mean)
    plain = _significant(root.T @ covariance @ root, num)
    if plain is None:
        # As many as count: of few the covariance is drawn towards its diagonal, in these coordinates.
        shrink = min(1.0, x.shape[1] / num)
        covariance = (1 - shrink) * covariance + shrink * np.diag(np.diag(covariance))
        plain = root.T @ covariance @ root
    return center + mean @ root, plain


def _drawn_in(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x with the outermost half per cent of each coordinate drawn in."""
    order = np.argsort(x, axis=0)
    total = np.cumsum(w[order], axis=0)
    sorted_x = np.take_along_axis(x, order, axis=0)
    low, high = (
        np.array([np.interp(q, total[:, d], sorted_x[:, d]) for d in range(x.shape[1])])
        for q in (0.005, 0.995)
    )
    return np.clip(np.where(w[:, None] > 0, x, 0.5 * (low + high)), low, high)


def between(x: np.ndarray) -> np.ndarray:
    """[D, D] covariance of minima [M, D], without correlations of chance size where they are many."""
    num, dim = x.shape
    if num == 1:
        return np.zeros((dim, dim))
    covariance = np.cov(x.T, bias=True).reshape(dim, dim)
    plain = _significant(covariance, 4 * num) if num >= 2 * dim else None
    return covariance if plain is None else plain


def _significant(covariance: np.ndarray, num: float) -> np.ndarray | None:
    """A covariance of about `num` states without what chance would have put there; None where that is more.

    Coordinates that have nothing to do with each other must not be mixed: what is a function of each of
    them alone would become one of all. So correlations of chance size are zero, unless together they make
    a direction far wider or narrower than chance does (Marchenko and Pastur's edges for `num` / 4 states,
    since chains' states are not independent).
    """
    sd = np.sqrt(np.maximum(np.diag(covariance), 1e-300))
    correlation = covariance / sd / sd[:, None]
    num = max(num / 4, 1.0)
    kept = np.where(np.abs(correlation) > 4 / np.sqrt(num), correlation, 0.0)
    values, vectors = np.linalg.eigh(kept)
    if values.min() <= 1e-3:
        return None
    root = (vectors / np.sqrt(values)) @ vectors.T
    rest = np.linalg.eigvalsh(root @ correlation @ root)
    ratio = np.sqrt(len(sd) / num)
    chance = rest.max() < (1 + ratio) ** 2 * 1.5 and rest.min() > max(1 - ratio, 0.0) ** 2 / 1.5
    return kept * sd * sd[:, None] if chance else None
