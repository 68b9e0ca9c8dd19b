"""What can be found of a target before anything is trained: coordinates, lengths, and states with weights.

`explore` descends to minima, makes the Laplace approximation there its unit of length, and runs tempered
chains (`egm.evidence.tempered_chains`) from wide starts in those coordinates and in the target's own. The
chains' states, each standing for its population's Z / C, give the coordinates in which the target has mean
zero and unit covariance, its finest length, a first estimate of log Z, and a first filling of a buffer:
they are properly weighted for exp(-E) whatever the number of chains. What no chain reaches stays unseen.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import evidence, random, scales
from egm.coordinates import (
    Coordinates,
    between,
    dimension,
    fitted,
    identity,
    isotropic,
    linear,
    may_be_turned,
)
from egm.heads import NormalMixture
from egm.paths import CenteredPath, MaskedPath, ProductPath, VarianceExplodingPath, WrappedPath
from egm.spaces import Layout
from egm.typing import Array, Energy, Key, Moments, State

__all__ = ["MOST_MINIMA", "Found", "explore", "finest_length", "normals_at", "path_of", "with_chains"]

_ENERGY_RANGE, _NARROWER = 10.0, 0.7
"""Of the minima that count; .7 D more in D dimensions, by which one half as wide may be lower."""
_NUM_STARTS = (128, 512)
"""Of descents, at least and at most."""
_NUM_STEPS, _MOST_WIDENINGS = 400, 7
_FOR_DESCENTS = 0.1
"""Share of the time that they may take, if all searches are made."""
_SLACK = 0.2
"""Of a log Z: differences and spreads below it say nothing."""
MOST_MINIMA = 64
"""The lowest, from which chains start."""
_AGREE = 1.0
"""Spread of log Z over the populations below which one kind of start is enough."""
_NUM_CHAINS = 384
"""Of a population."""
_LEAST_CHAINS, _LEAST_ROUNDS = 64, 2
"""Where time is short."""
_FIRST, _SECOND = 0.4, 0.7
"""Shares of the time left that the first kinds of start may take, where others may follow."""
_LEAST_TIME = 0.1
"""Share of all the time that each has, however long what came before took."""


class Found(NamedTuple):
    """What `explore` returns.

    Attributes:
      coordinates: in which the target has mean zero and about unit variances.
      length_scale: s there, from the curvature that the chains see.
      states: [N, ...] of the chains, in those coordinates.
      log_z: [W, G] of the populations.
      population: [N] of which of the W * G each state is, in turn; kinds of starts differ in size.
      kind: [W * G] the kind of start of each population.
      log_shares: [N] log of what each state stands for of Z, -inf where its population has failed.
      energies: [N] E of the states, in those coordinates.
      minima: [M, D] of the layout's states' vectors, distinct, heaviest first; M = 0 where none was searched.
      smooth: whether the energy has a useful gradient.
    """

    coordinates: Coordinates
    length_scale: float
    states: State
    log_z: np.ndarray
    population: np.ndarray
    kind: np.ndarray
    log_shares: np.ndarray
    energies: np.ndarray
    minima: np.ndarray
    smooth: bool


def explore(
    key: Key,
    energy: Energy,
    layout: Layout,
    *,
    num_chains: int = _NUM_CHAINS,
    num_groups: int = 2,
    seconds: float = np.inf,
    say: Callable[[str], None] = lambda text: None,
) -> Found:
    """Coordinates, lengths and weighted states of a target from its energy alone.

    Args:
      key: a typed key.
      energy: E on the layout's states, [N] = energy(state).
      layout: of the states.
      num_chains: of a population, at most.
      num_groups: populations of each of three widths and of each kind of start.
      seconds: about what it may take. Where a level of temperature takes long there are fewer moves and
        chains, and no further kind of start once time is over; so what is found depends on the machine.
      say: told what is being done.

    Returns:
      Found, on the host.

    Raises:
      ValueError: E is finite nowhere that was looked, or no chain has reached the full energy.
    """
    k_scales, k_chains, k_wide = random.split(key, 3)
    clock = _Clock(seconds)
    own = identity(layout)
    if not layout.num_coordinates:
        say("tempered chains")
        cheap = evidence.by_colour(energy, layout.num_sites)
        rounds = 10 if cheap else max(1, min(10, 640 // layout.num_sites))
        path, event = path_of(layout), layout.event_shape
        chains = _chains(
            clock, k_chains, energy, path, event, None, 2 * num_groups, (num_chains, rounds),
            share=1.0, least=_LEAST_CHAINS, levels=_levels(layout),
        )  # fmt: skip
        return _found(own, energy, [(chains, own)], 1.0, None, True)
    if layout.angles.any():
        # Descents have no end in a space without one: chains from everywhere.
        say("tempered chains")
        variance = np.where(layout.angles, 1.0, 100.0)
        wide = linear(layout, np.zeros(layout.num_coordinates), np.diag(variance))
        smooth = _has_gradient(k_scales, energy, layout)
        run = _run(clock, k_wide, wide, energy, layout, num_chains, 2 * num_groups, smooth)
        return _found(own, energy, [(run, wide)], None, None, smooth)
    return _by_descents(clock, (k_scales, k_chains, k_wide), energy, layout, num_chains, num_groups, say)


def _by_descents(clock, keys, energy, layout, num_chains, num_groups, say) -> Found:
    """`explore` where there are numbers and no angles."""
    k_scales, k_chains, k_wide = keys
    say("descents to minima")
    minima = _descend(k_scales, energy, layout, _num_starts(clock, energy, layout))
    smooth = minima is not None
    runs = []
    if minima is not None:
        laplace = _laplace(energy, layout, minima)
        say("tempered chains")
        runs.append(
            (_run(clock, k_chains, laplace, energy, layout, num_chains, num_groups, True, _FIRST), laplace)
        )
    several = may_be_turned(layout) and not layout.num_sites and not clock.settled(runs)
    if minima is not None and len(minima.energies) > 1 and several:
        say(f"tempered chains from {min(len(minima.energies), MOST_MINIMA)} minima")
        first, mixture = runs[0][1], _start(energy, runs[0][1], minima)
        k_minima = random.derive(k_chains, "minima")
        run = _run(clock, k_minima, first, energy, layout, num_chains, num_groups, True, _SECOND, mixture)
        runs.append((run, first))
    if not clock.settled(runs) and (minima is None or layout.particles is None):
        say("tempered chains from afar")
        wide = _from_afar(layout, minima)
        runs.append((_run(clock, k_wide, wide, energy, layout, num_chains, num_groups, smooth), wide))
    return _found(identity(layout), energy, runs, None, None if minima is None else minima.minima, smooth)


def _from_afar(layout: Layout, minima: scales.Scales | None) -> Coordinates:
    """Coordinates whose unit is as far as minima were found; where none was searched, ten."""
    if minima is None:
        return isotropic(layout, np.zeros(layout.num_coordinates), 10.0)
    return isotropic(layout, minima.center, max(minima.radius, minima.data_scale))


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


def _num_starts(clock, energy, layout) -> int:
    """Of the descents, as many as there is time for: a narrow minimum is reached from few of them."""
    x = jnp.zeros((_NUM_STARTS[0], layout.num_coordinates))
    state = layout.joined(x, jnp.zeros((len(x), layout.num_sites), jnp.int32))
    gradient = jax.jit(jax.grad(lambda y: jnp.sum(energy(y)), allow_int=True))
    jax.block_until_ready(gradient(state))
    began = time.time()
    for _ in range(3):
        jax.block_until_ready(gradient(state))
    each = (time.time() - began) / 3 * _NUM_STEPS * _MOST_WIDENINGS
    factor = clock.share(_FOR_DESCENTS) / max(each, 1e-9)
    return int(np.clip(_NUM_STARTS[0] * factor, *_NUM_STARTS)) // 64 * 64


def _descend(key, energy, layout, num_starts) -> scales.Scales | None:
    """Minima by descent, searched ever wider; None where the energy has no curvature to go by."""
    path = path_of(layout)
    vector = path.paths["x"] if isinstance(path, ProductPath) else path
    free = may_be_turned(layout) and not layout.num_sites
    more = _NARROWER * layout.num_coordinates if free else 0.0
    try:
        found = scales.find_scales(
            key,
            energy,
            layout.event_shape,
            search_radius=1.0,
            vocab_size=layout.vocab_size or None,
            project=None if layout.particles is None else vector.project,
            num_starts=num_starts,
            num_steps=_NUM_STEPS,
            max_widenings=_MOST_WIDENINGS,
            energy_range=_ENERGY_RANGE + more,
        )
    except ValueError as error:
        if "not finite" in str(error) or "curvature" in str(error):
            return None
        raise
    return _heavy(energy, found) if free else found


def _heavy(energy: Energy, found: scales.Scales) -> scales.Scales:
    """The minima by what a normal there weighs, those left out that weigh exp(-10) of the heaviest.

    In many dimensions a wide minimum lies far above a narrow one and may hold more.
    """
    x = jnp.asarray(found.minima, float)
    covariances = normals_at(energy, x, max(found.data_scale, found.radius) ** 2)
    weight = -np.asarray(found.energies, np.float64) + 0.5 * np.linalg.slogdet(covariances)[1]
    order = np.argsort(-weight)
    order = order[weight[order] > weight.max() - _ENERGY_RANGE]
    return found._replace(minima=found.minima[order], energies=found.energies[order])


def _laplace(energy: Energy, layout: Layout, minima: scales.Scales) -> Coordinates:
    """Coordinates in which the normal approximation at the minima has unit covariance."""
    if not may_be_turned(layout):
        center = minima.center if layout.particles is None else np.zeros_like(minima.center)
        return isotropic(layout, center, minima.data_scale)
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
    return linear(layout, minima.minima.mean(axis=0), inside + between(np.asarray(minima.minima)))


def _start(energy: Energy, coordinates: Coordinates, minima: scales.Scales) -> NormalMixture:
    """Normals at the lowest minima, in these coordinates."""
    z = coordinates.linear(jnp.asarray(minima.minima[:MOST_MINIMA], float))
    return NormalMixture(np.asarray(z), normals_at(coordinates.energy(energy), z))


def normals_at(energy: Energy, z: Array, most: float = 1.0) -> np.ndarray:
    """[M, D, D] covariances as wide as the curvature at z [M, D] says, no variance above the target's."""

    def curvature(y):
        return jax.lax.map(jax.hessian(lambda one: energy(one[None])[0]), y)

    hessians = jax.jit(curvature)(z)
    hessians = np.where(np.isfinite(hessians), hessians, 0.0).astype(np.float64)
    values, vectors = np.linalg.eigh((hessians + hessians.transpose(0, 2, 1)) / 2)
    # A direction without curvature is no wider than the target.
    variance = 1 / np.maximum(values, 1 / most)
    return np.einsum("mij,mj,mkj->mik", vectors, variance, vectors)


class _Clock:
    """Sizes of runs of chains, by what a level of temperature takes of the time that is left."""

    def __init__(self, seconds: float):
        self._began, self._seconds = time.time(), seconds
        self._each: float | None = None

    @property
    def left(self) -> float:
        return self._seconds - (time.time() - self._began)

    def timed(self, run: Callable[[], Any], sizes: tuple[int, int]) -> float:
        """Seconds of a level of runs of these sizes, whose program has been run before."""
        began = time.time()
        jax.block_until_ready(run())
        seconds = time.time() - began
        self._each = seconds / math.prod(sizes)
        return seconds

    def level(self, sizes: tuple[int, int]) -> float:
        """Seconds of a level of these sizes, by those of the last that was timed; 0 before."""
        return (self._each or 0.0) * math.prod(sizes)

    def share(self, share: float) -> float:
        """Seconds that this share of all is."""
        return share * self._seconds

    def settled(self, runs) -> bool:
        """Whether no further kind of start is due: the first agrees with itself, or time is over."""
        if not runs:
            return False
        over = self.left <= 0 and any(np.isfinite(run.log_z).any() for run, _ in runs)
        return over or _agree(runs[0][0].log_z)

    def sizes(self, share, level, levels, most, least) -> tuple[int, int]:
        """(chains, rounds of moves), as many as there is time for: both fewer by about the same factor.

        Args: share of the time left; seconds of a level, and how many levels are expected; the most and the
        fewest of both.
        """
        room = max(share * self.left, _LEAST_TIME * self._seconds)
        factor = min(room / max(level * levels, 1e-9), 1.0)
        rounds = max(min(least[1], most[1]), int(most[1] * np.sqrt(factor)))
        factor = min(factor * most[1] / rounds, 1.0)
        return max(min(least[0], most[0]), 2 * int(0.5 * most[0] * factor)), rounds


def _run(clock, key, coordinates, energy, layout, num_chains, num_groups, smooth, share=1.0, mixture=None):
    unit = Moments(jnp.zeros(layout.num_coordinates), jnp.ones(layout.num_coordinates))
    start = layout.joined(unit, None) if mixture is None else mixture
    moved = coordinates.energy(energy)
    sites = max(layout.num_sites, 1)
    least, levels = _LEAST_CHAINS, _levels(layout)
    if mixture is not None:
        least, levels = max(least, 4 * len(mixture.means)), _levels(layout) // 5
    return _chains(
        clock,
        key,
        moved,
        path_of(layout),
        layout.event_shape,
        start,
        num_groups,
        (num_chains, max(2, min(10, 640 // sites))),
        share=share,
        least=least,
        levels=levels,
        gradient=smooth,
        # Around minima the widths are known, and a normal w times wider has w^D times the volume.
        widen=10.0 if mixture is None else 1.25,
    )


def _levels(layout) -> int:
    """Of temperature, as a rule: 20 in two dimensions, 150 in 50."""
    return 10 + 20 * math.isqrt(layout.num_coordinates + layout.num_sites)


def _chains(
    clock, key, energy, path, event, start, groups, sizes, *, share, least, levels, gradient=True, widen=10.0
):  # fmt: skip
    """Tempered chains; fewer, or of fewer moves, where by the time of a level there is no time for all."""

    def compiled(chains, rounds):
        run = functools.partial(
            evidence.tempered_chains,
            num_groups=groups,
            num_chains=chains,
            num_moves=rounds,
            gradient=gradient,
            widen=widen,
        )

        def tempered_chains(k, most):
            return run(k, energy, path, event, start, max_levels=most)

        return jax.jit(tempered_chains)

    one, fewest = jnp.ones((), jnp.int32), (least, _LEAST_ROUNDS)
    # By an earlier kind of starts first: compiling takes longer than most runs.
    expected = clock.level(sizes)
    first = clock.sizes(share, expected, levels, sizes, fewest)
    run = compiled(*first)
    jax.block_until_ready(run(key, one))
    level = clock.timed(lambda: run(key, one), first) * math.prod(sizes) / math.prod(first)
    chosen = first
    if not 0.5 * level < expected < 2 * level:
        chosen = clock.sizes(share, level, levels, sizes, fewest)
        run = run if chosen == first else compiled(*chosen)
    return jax.device_get(run(key, 300 * one))


def _found(own, energy, runs, length, minima, smooth) -> Found:
    layout = own.layout
    minima = np.zeros((0, layout.num_coordinates)) if minima is None else np.asarray(minima)
    states, log_z = [], []
    for chains, coordinates in runs:
        states.append(jax.device_get(coordinates.apply(jax.tree.map(jnp.asarray, chains.x))))
        log_z.append(np.asarray(chains.log_z, np.float64))
    x = jax.tree.map(lambda *a: np.concatenate(a), *states)
    sizes = [len(jax.tree.leaves(chains.x)[0]) // chains.log_z.size for chains, _ in runs]
    sizes = np.repeat(sizes, [each.size for each in log_z])
    population = np.repeat(np.arange(len(sizes)), sizes)
    kind = np.repeat(np.arange(len(runs)), [each.size for each in log_z])
    log_z = np.concatenate(log_z)
    shares = _shares(log_z, kind, population)
    if not np.any(np.isfinite(shares)):
        raise ValueError(
            "energy: no tempered chain from a wide start has reached exp(-energy) in 300 levels; is it a "
            "density at all (does it grow in every direction), and finite somewhere near the origin?"
        )
    e = np.asarray(jax.jit(energy)(jax.tree.map(jnp.asarray, x)), np.float64)
    shares = np.where(np.isfinite(e), shares, -np.inf)
    vector, _ = layout.split(x)
    if vector is None:
        return Found(own, 1.0, x, log_z, population, kind, shares, e, minima, smooth)
    coordinates = fitted(layout, vector, shares, runs[0][1])
    z = jax.device_get(coordinates.invert(jax.tree.map(jnp.asarray, x)))
    length = finest_length(coordinates.energy(energy), layout, z, shares) if smooth else 0.25
    e = e - coordinates.log_det
    return Found(coordinates, length, z, log_z, population, kind, shares, e, minima, smooth)


def with_chains(
    key: Key, energy: Energy, found: Found, mixture: NormalMixture, seconds: float = np.inf
) -> Found:
    """`found` with chains more, from a mixture that is already near the target.

    Args:
      key: a typed key.
      energy: E in the coordinates of `found`, of states that are numbers alone.
      mixture: there.
      seconds: about what it may take.
    """
    layout = found.coordinates.layout
    chains = _chains(
        _Clock(seconds), key, energy, path_of(layout), layout.event_shape, mixture, 2, (_NUM_CHAINS, 10),
        share=1.0, least=max(_LEAST_CHAINS, 2 * len(mixture.means)), levels=10, gradient=found.smooth,
        # As wide as the target is, not only its places.
        widen=1.0,
    )  # fmt: skip
    states, e = np.asarray(chains.x), np.asarray(jax.jit(energy)(jnp.asarray(chains.x)), np.float64)
    log_z = np.asarray(chains.log_z, np.float64)
    kind = np.append(found.kind, np.full(log_z.size, found.kind.max() + 1))
    own = found.log_z.size + np.repeat(np.arange(log_z.size), len(states) // log_z.size)
    population = np.append(found.population, own)
    log_z = np.concatenate([found.log_z, log_z])
    usable = np.append(np.isfinite(found.log_shares) & np.isfinite(found.energies), np.isfinite(e))
    shares = np.where(usable, _shares(log_z, kind, population), -np.inf)
    return found._replace(
        states=np.concatenate([found.states, states]),
        log_z=log_z,
        population=population,
        kind=kind,
        log_shares=shares,
        energies=np.append(found.energies, e),
    )


def _shares(log_z: np.ndarray, kind: np.ndarray, population: np.ndarray) -> np.ndarray:
    """[N] log of what each state stands for of Z: of log Z [W, G], the kind of each, and its own of [N].

    Kinds of starts count by the precision of their log Z, which may be far better for one than for others;
    not so one that agrees with itself below what another has found: it may have lost a mode.
    """
    log_z = log_z.reshape(-1)
    reached = np.isfinite(log_z)
    if not reached.any():
        return np.full(len(population), -np.inf)
    # The levels were adapted to the states, so that one Z in a dozen may be far too high: no population
    # stands for more than e times the median one of its kind, or of all.
    own = [log_z[reached & (kind == k)] for k in range(kind.max() + 1)]
    middle = np.array([np.median(z) if z.size else -np.inf for z in own])
    spread = np.array([np.std(z) if z.size > 1 else np.inf for z in own])
    sure = middle - 2 * spread / np.sqrt([max(z.size, 1) for z in own])
    worst = max(1.0, np.max(spread, initial=0, where=np.isfinite(spread)))
    trusted = np.isfinite(spread) & (middle >= np.max(sure) - _SLACK)
    precision = 1 / (np.where(trusted, spread, worst) ** 2 + _SLACK**2)
    weight = precision[kind] / np.mean(precision[kind])
    most = np.maximum(np.median(log_z[reached]), middle[kind]) + 1.0
    shares = np.where(reached, np.minimum(log_z, most), -np.inf) + np.log(weight)
    return (shares - np.log(np.bincount(population)))[population]


def finest_length(energy: Energy, layout: Layout, z: State, log_shares: np.ndarray, num: int = 512) -> float:
    """s = (D / E |grad E|^2)^(1/2), the largest twentieth left out; at most 1, the target's own width.

    Shorter where an untrained head does better with that: behind walls, where a noised state is far up.
    Not asked for particles, angles and mixed states.
    """
    w = np.exp(log_shares - log_shares.max())
    picked = np.searchsorted(np.cumsum(w), (np.arange(num) + 0.5) / num * w.sum())
    state = jax.tree.map(lambda a: jnp.asarray(a[np.minimum(picked, len(w) - 1)]), z)
    vector, tokens = layout.split(state)

    energy = scales.as_argument(energy)
    square = np.sum(np.asarray(_gradient(energy, layout, vector, tokens), np.float64) ** 2, axis=-1)
    square = np.sort(square[np.isfinite(square)])
    if not square.size or not square.mean() > 0:
        return 0.25
    kept = square[: max(1, int(0.95 * square.size))].mean()
    length = float(np.clip((dimension(layout) / kept) ** 0.5, 1e-3, 1.0))
    if layout.angles.any() or layout.particles is not None or layout.num_sites:
        return length
    states = jnp.asarray(vector)[None]
    alone = jax.tree_util.Partial(_of_vector, energy)
    found = scales.find_length(jax.random.key(0), alone, states, {}, length)
    return max(found.length, 1e-3)


@functools.partial(jax.jit, static_argnums=1)
def _gradient(energy: Any, layout: Layout, vector: Array, tokens: Any) -> Array:
    return jax.grad(lambda y: jnp.sum(energy(layout.joined(y, tokens))))(vector)


def _of_vector(energy: Energy, x: Array, tokens: Any) -> Array:
    del tokens
    return energy(x)
