"""What can be found of a target before anything is trained: coordinates, lengths, and states with weights.

`explore` descends to minima, makes the Laplace approximation there its unit of length, and runs tempered
chains (`egm.evidence.tempered_chains`) from wide starts in those coordinates and in the target's own. The
chains' states, each standing for its population's Z / C, give the coordinates in which the target has mean
zero and unit covariance, its finest length, a first estimate of log Z, and a first filling of a buffer:
they are properly weighted for exp(-E) whatever the number of chains. What no chain reaches stays unseen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import evidence, random, scales
from egm import transport as transports
from egm.paths import CenteredPath, MaskedPath, ProductPath, VarianceExplodingPath, WrappedPath
from egm.spaces import Layout
from egm.typing import TOKEN_OFFERS, Array, Energy, Key, Moments, State

__all__ = ["Coordinates", "Found", "explore", "finest_length", "may_be_turned", "path_of"]

_MOST_WHITENED = 128
"""Dimensions up to which a covariance is estimated and divided out."""
_ENERGY_RANGE = 10.0
_SLACK = 0.2
"""Of a log Z: differences and spreads below it say nothing."""
_MOST_MINIMA = 64
"""The lowest, from which chains start."""
_STANDS_OUT = 3.0
"""Eigenvalue of a correlation matrix over the median one, or below it, from which it gives an axis."""
_AGREE = 1.0
"""Spread of log Z over the populations below which one kind of start is enough."""


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


class Found(NamedTuple):
    """What `explore` returns.

    Attributes:
      coordinates: in which the target has mean zero and about unit variances.
      length_scale: s there, from the curvature that the chains see.
      states: [W * G * C, ...] of the chains, in those coordinates.
      log_z: [W, G] of the populations.
      log_shares: [W * G * C] log of what each state stands for of Z, -inf where its population has failed.
      energies: [W * G * C] E of the states, in those coordinates.
      num_minima: distinct minima that descents found; 0 where none was searched.
      smooth: whether the energy has a useful gradient.
    """

    coordinates: Coordinates
    length_scale: float
    states: State
    log_z: np.ndarray
    log_shares: np.ndarray
    energies: np.ndarray
    num_minima: int
    smooth: bool


def explore(
    key: Key,
    energy: Energy,
    layout: Layout,
    *,
    num_chains: int = 384,
    num_groups: int = 2,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Coordinates, lengths and weighted states of a target from its energy alone.

    Args:
      key: a typed key.
      energy: E on the layout's states, [N] = energy(state).
      layout: of the states.
      num_chains: of a population.
      num_groups: populations of each of three widths and of each kind of start.
      say: told what is being done.

    Returns:
      Found, on the host.

    Raises:
      ValueError: E is finite nowhere that was looked, or no chain has reached the full energy.
    """
    k_scales, k_chains, k_wide = random.split(key, 3)
    identity = _identity(layout)
    if not layout.num_coordinates:
        say("tempered chains")
        cheap = evidence.by_colour(energy, layout.num_sites)
        rounds = 10 if cheap else max(1, min(10, 640 // layout.num_sites))
        path, event = path_of(layout), layout.event_shape
        chains = _chains(k_chains, energy, path, event, None, 2 * num_groups, num_chains, rounds)
        return _found(identity, energy, [(chains, identity)], 1.0, 0, True)
    if layout.angles.any():
        # Descents have no end in a space without one: chains from everywhere.
        say("tempered chains")
        variance = np.where(layout.angles, 1.0, 100.0)
        wide = _linear(layout, np.zeros(layout.num_coordinates), np.diag(variance))
        smooth = _has_gradient(k_scales, energy, layout)
        run = _run(k_wide, wide, energy, layout, num_chains, 2 * num_groups, smooth)
        return _found(identity, energy, [(run, wide)], None, 0, smooth)
    say("descents to minima")
    minima = _descend(k_scales, energy, layout)
    smooth = minima is not None
    runs = []
    if minima is not None:
        laplace = _laplace(energy, layout, minima)
        say("tempered chains")
        runs.append((_run(k_chains, laplace, energy, layout, num_chains, num_groups, True), laplace))
    if not (runs and _agree(runs[0][0].log_z)) and (minima is None or layout.particles is None):
        radius = 10.0 if minima is None else max(minima.radius, minima.data_scale)
        wide = _isotropic(
            layout, np.zeros(layout.num_coordinates) if minima is None else minima.center, radius
        )
        say("tempered chains from afar")
        runs.append((_run(k_wide, wide, energy, layout, num_chains, num_groups, smooth), wide))
        if minima is not None and len(minima.energies) > 1 and may_be_turned(layout) and not layout.num_sites:
            say(f"tempered chains from {min(len(minima.energies), _MOST_MINIMA)} minima")
            mixture = _around(energy, laplace, minima)
            k_minima = random.derive(k_chains, "minima")
            run = _run(k_minima, laplace, energy, layout, num_chains, num_groups, True, mixture)
            runs.append((run, laplace))
    return _found(identity, energy, runs, None, 0 if minima is None else len(minima.energies), smooth)


def _agree(log_z: np.ndarray) -> bool:
    """Whether populations of all widths tell one log Z, so that chains from elsewhere would add nothing."""
    return bool(np.all(np.isfinite(log_z)) and np.ptp(log_z) < _AGREE)


def _has_gradient(key: Key, energy: Energy, layout: Layout) -> bool:
    """Whether E has a finite gradient that is not zero, at most of 64 states."""
    k_x, k_h = random.split(key)
    x = 3.0 * jax.random.normal(k_x, (64, layout.num_coordinates))
    h = jax.random.randint(k_h, (64, layout.num_sites), 0, max(layout.vocab_size, 1))
    total = lambda y: jnp.sum(energy(layout.joined(y, h)))
    g = np.asarray(jax.jit(jax.grad(total))(x))
    return bool(np.mean(np.all(np.isfinite(g), axis=1) & np.any(g != 0, axis=1)) > 0.5)


def _identity(layout: Layout) -> Coordinates:
    return _isotropic(layout, np.zeros(layout.num_coordinates), 1.0)


def _isotropic(layout: Layout, center: np.ndarray, unit: float) -> Coordinates:
    dimension = _dimension(layout)
    return Coordinates(layout, np.asarray(center, np.float64), float(unit), dimension * float(np.log(unit)))


def _dimension(layout: Layout) -> int:
    dim = 0 if layout.particles is None else layout.particles.spatial_dim
    return layout.num_coordinates - dim


def path_of(layout: Layout, vector: Any = None) -> Any:
    """A path that says where the parts live."""
    if vector is None:
        circular = tuple(layout.angles.tolist())
        vector = WrappedPath(1.0, 10.0, 1.0, circular) if any(circular) else VarianceExplodingPath(1.0, 10.0)
    if layout.particles is not None:
        vector = CenteredPath(vector, layout.particles.num_particles, layout.particles.spatial_dim)
    tokens = MaskedPath(layout.vocab_size) if layout.num_sites else None
    parts = layout.joined(vector, tokens)
    return ProductPath(parts) if isinstance(parts, dict) else parts


def _descend(key, energy, layout) -> scales.Scales | None:
    """Minima by descent, searched ever wider; None where the energy has no curvature to go by."""
    path = path_of(layout)
    vector = path.paths["x"] if isinstance(path, ProductPath) else path
    try:
        return scales.find_scales(
            key,
            energy,
            layout.event_shape,
            search_radius=1.0,
            vocab_size=layout.vocab_size or None,
            project=None if layout.particles is None else vector.project,
            num_starts=128,
            num_steps=400,
            max_widenings=7,
            energy_range=_ENERGY_RANGE,
        )
    except ValueError as error:
        if "not finite" in str(error) or "curvature" in str(error):
            return None
        raise


def may_be_turned(layout: Layout) -> bool:
    """Whether the coordinates may be turned: no particles, no grid, not too many."""
    free = not any(getattr(space, "periodic", False) for space in layout.leaves)
    return free and layout.particles is None and layout.num_coordinates <= _MOST_WHITENED


def _laplace(energy: Energy, layout: Layout, minima: scales.Scales) -> Coordinates:
    """Coordinates in which the normal approximation at the minima has unit covariance."""
    if not may_be_turned(layout):
        center = minima.center if layout.particles is None else np.zeros_like(minima.center)
        return _isotropic(layout, center, minima.data_scale)
    x = np.asarray(minima.minima[:16])
    tokens = jnp.zeros((1, layout.num_sites), jnp.int32)

    def one(y):
        state = layout.joined(y[None], tokens if layout.num_sites else None)
        return energy(state)[0]

    hessians = np.asarray(jax.jit(jax.vmap(jax.hessian(one)))(jnp.asarray(x, float)), np.float64)
    # A minimum that has no curvature in a direction says nothing of it but the spread of the minima.
    most = max(minima.data_scale, minima.radius) ** 2
    within = []
    for h in hessians[np.all(np.isfinite(hessians), axis=(1, 2))]:
        values, vectors = np.linalg.eigh((h + h.T) / 2)
        variance = 1 / np.maximum(values, 1 / most)
        within.append((vectors * variance) @ vectors.T)
    inside = np.mean(within, axis=0) if within else np.eye(x.shape[1]) * most
    return _linear(layout, minima.minima.mean(axis=0), inside + _between(np.asarray(minima.minima)))


def _around(energy: Energy, coordinates: Coordinates, minima: scales.Scales) -> evidence.Mixture:
    """Normals at the lowest minima in these coordinates, as wide as the curvature there says."""
    z = jnp.asarray(coordinates.linear(jnp.asarray(minima.minima[:_MOST_MINIMA], float)))
    there = coordinates.energy(energy)
    hessians = jax.jit(lambda y: jax.lax.map(jax.hessian(lambda one: there(one[None])[0]), y))(z)
    hessians = np.where(np.isfinite(hessians), hessians, 0.0).astype(np.float64)
    values, vectors = np.linalg.eigh((hessians + hessians.transpose(0, 2, 1)) / 2)
    # A direction without curvature is no wider than the target.
    variance = 1 / np.maximum(values, 1.0)
    return evidence.Mixture(z, np.einsum("mij,mj,mkj->mik", vectors, variance, vectors))


def _between(x: np.ndarray) -> np.ndarray:
    """[D, D] covariance of minima [M, D], without correlations of chance size where they are many."""
    num, dim = x.shape
    if num == 1:
        return np.zeros((dim, dim))
    covariance = np.cov(x.T, bias=True).reshape(dim, dim)
    plain = _significant(covariance, 4 * num) if num >= 2 * dim else None
    return covariance if plain is None else plain


def _linear(layout: Layout, center: np.ndarray, covariance: np.ndarray) -> Coordinates:
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


def _run(key, coordinates, energy, layout, num_chains, num_groups, smooth, mixture=None):
    unit = Moments(jnp.zeros(layout.num_coordinates), jnp.ones(layout.num_coordinates))
    start = layout.joined(unit, None) if mixture is None else mixture
    moved = coordinates.energy(energy)
    sites = max(layout.num_sites, 1)
    rounds = max(2, min(10, 640 // sites))
    return _chains(
        key,
        moved,
        path_of(layout),
        layout.event_shape,
        start,
        num_groups,
        num_chains,
        rounds,
        gradient=smooth,
        # Around minima the widths are known, and a normal w times wider has w^D times the volume.
        widen=10.0 if mixture is None else 1.25,
    )


def _chains(key, energy, path, event, start, groups, chains, rounds, gradient=True, widen=10.0):
    run = jax.jit(
        lambda k: evidence.tempered_chains(
            k,
            energy,
            path,
            event,
            start,
            num_groups=groups,
            num_chains=chains,
            num_moves=rounds,
            gradient=gradient,
            widen=widen,
        )
    )
    return jax.device_get(run(key))


def _found(identity, energy, runs, length, num_minima, smooth) -> Found:
    layout = identity.layout
    states, log_z = [], []
    for chains, coordinates in runs:
        states.append(jax.device_get(coordinates.apply(jax.tree.map(jnp.asarray, chains.x))))
        log_z.append(np.asarray(chains.log_z, np.float64))
    x = jax.tree.map(lambda *a: np.concatenate(a), *states)
    shares = _shares(log_z)
    log_z = np.concatenate(log_z)
    shares = np.repeat(shares, len(jax.tree.leaves(x)[0]) // shares.size)
    if not np.any(np.isfinite(shares)):
        raise ValueError(
            "energy: no tempered chain from a wide start has reached exp(-energy) in 300 levels; is it a "
            "density at all (does it grow in every direction), and finite somewhere near the origin?"
        )
    e = np.asarray(jax.jit(energy)(jax.tree.map(jnp.asarray, x)), np.float64)
    shares = np.where(np.isfinite(e), shares - np.log(len(shares) / log_z.size), -np.inf)
    vector, _ = layout.split(x)
    if vector is None:
        return Found(identity, 1.0, x, log_z, shares, e, num_minima, smooth)
    coordinates = _fitted(layout, vector, shares, runs[0][1])
    z = jax.device_get(coordinates.invert(jax.tree.map(jnp.asarray, x)))
    length = finest_length(coordinates.energy(energy), layout, z, shares) if smooth else 0.25
    return Found(coordinates, length, z, log_z, shares, e - coordinates.log_det, num_minima, smooth)


def _shares(runs: list[np.ndarray]) -> np.ndarray:
    """[P] log of what each population stands for of Z, over all populations of runs of log Z [W, G].

    Kinds of starts count by the precision of their log Z, which may be far better for one than for others;
    not so one that agrees with itself below what another has found: it may have lost a mode.
    """
    log_z = np.concatenate([run.reshape(-1) for run in runs])
    kind = np.repeat(np.arange(len(runs)), [run.size for run in runs])
    reached = np.isfinite(log_z)
    if not reached.any():
        return np.where(reached, log_z, -np.inf)
    # The levels were adapted to the states, so that one Z in a dozen may be far too high: no population
    # stands for more than e times the median one of its kind, or of all.
    own = [log_z[reached & (kind == k)] for k in range(len(runs))]
    middle = np.array([np.median(z) if z.size else -np.inf for z in own])
    spread = np.array([np.std(z) if z.size > 1 else np.inf for z in own])
    sure = middle - 2 * spread / np.sqrt([max(z.size, 1) for z in own])
    worst = max(1.0, np.max(spread, initial=0, where=np.isfinite(spread)))
    trusted = np.isfinite(spread) & (middle >= np.max(sure) - _SLACK)
    precision = 1 / (np.where(trusted, spread, worst) ** 2 + _SLACK**2)
    weight = precision[kind] / np.mean(precision[kind])
    most = np.maximum(np.median(log_z[reached]), middle[kind]) + 1.0
    return np.where(reached, np.minimum(log_z, most), -np.inf) + np.log(weight)


def _fitted(layout: Layout, x: np.ndarray, log_shares: np.ndarray, first: Coordinates) -> Coordinates:
    """Coordinates of weighted states; the outermost half per cent of each coordinate is drawn in.

    Moments are taken in the coordinates of a first guess, where no direction is far narrower than others.
    """
    w = np.exp(log_shares - log_shares.max())
    w /= w.sum()
    if layout.angles.all():
        return _identity(layout)
    if layout.angles.any():
        line = np.flatnonzero(~layout.angles)
        center, covariance = np.zeros(len(layout.angles)), np.eye(len(layout.angles))
        unit = first.matrix[np.ix_(line, line)]
        center[line], covariance[np.ix_(line, line)] = _normal(x[:, line], w, first.center[line], unit)
        return _linear(layout, center, covariance)
    if may_be_turned(layout):
        root = first.matrix if np.ndim(first.matrix) else first.matrix * np.eye(x.shape[1])
        return _linear(layout, *_normal(x, w, first.center, root))
    z = _drawn_in((x - first.center) / first.matrix, w)
    center = w @ z
    extent = first.matrix * float(np.sqrt(np.sum(w @ (z - center) ** 2) / _dimension(layout)))
    center = first.center + first.matrix * center
    center = np.full_like(center, center.mean()) if layout.particles is None else np.zeros_like(center)
    return _isotropic(layout, center, extent)


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


def finest_length(energy: Energy, layout: Layout, z: State, log_shares: np.ndarray, num: int = 512) -> float:
    """s = (D / E |grad E|^2)^(1/2), the largest twentieth left out; at most 1, the target's own width.

    Shorter where an untrained head does better with that: behind walls, where a noised state is far up.
    Not asked for particles, angles and mixed states.
    """
    w = np.exp(log_shares - log_shares.max())
    picked = np.searchsorted(np.cumsum(w), (np.arange(num) + 0.5) / num * w.sum())
    state = jax.tree.map(lambda a: jnp.asarray(a[np.minimum(picked, len(w) - 1)]), z)
    vector, tokens = layout.split(state)

    def total(y):
        return jnp.sum(energy(layout.joined(y, tokens)))

    square = np.sum(np.asarray(jax.jit(jax.grad(total))(vector), np.float64) ** 2, axis=-1)
    square = np.sort(square[np.isfinite(square)])
    if not square.size or not square.mean() > 0:
        return 0.25
    kept = square[: max(1, int(0.95 * square.size))].mean()
    length = float(np.clip((_dimension(layout) / kept) ** 0.5, 1e-3, 1.0))
    if layout.angles.any() or layout.particles is not None or layout.num_sites:
        return length
    states = jnp.asarray(vector)[None]
    found = scales.find_length(jax.random.key(0), lambda y, h: energy(y), states, {}, length)
    return max(found.length, 1e-3)
