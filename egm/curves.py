"""Curved coordinates: where the states of the chains lie along a ridge, in a funnel, or in long tails.

`straightened` comes after `egm.pilot.explore`: it learns a map (`egm.transport`) from the chains' states.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import evidence, importance, random, transport
from egm.coordinates import Coordinates, may_be_turned
from egm.pilot import Found, finest_length, path_of
from egm.scales import as_argument
from egm.spaces import Layout
from egm.typing import Array, Energy, Key, Moments

__all__ = ["straightened"]

_TURNS = 4
"""Maps learned one after the other, once tails are known."""
_NO_SHORTER = 0.8
"""Of the length before, which tails alone leave about as it was."""
_FURTHER = 4
"""Times that the chains are moved on for each."""


def straightened(key: Key, energy: Energy, found: Found, seconds: float, say: Callable[[str], None]) -> Found:
    """`found` in coordinates in which the chains' states look normal, where a map makes them so.

    The chains go on, a map is learned from their states, the chains go on in its coordinates, where they
    mix better, and so forth; the first is of tails alone. It is judged by chains that it has not seen, and
    taken where it is worth more than chance, the target has become smoother (tails: hardly less smooth), and
    E is finite where the map sends a normal; the last map for which all this holds. Each move keeps exp(-E)
    in the coordinates that it is made in; that these were learned from the same chains leaves a bias of
    adaptation in their states, none in a sampler's own weights.

    Args:
      key: a typed key.
      energy: E on the layout's states.
      found: of `explore`.
      seconds: after which no further map is begun, so that what is found depends on the machine.
      say: told what is being done.

    Returns:
      Found, its states moved on; with the coordinates of before where no map is of use. Unchanged without
      a gradient, with tokens, particles, angles or grids.
    """
    layout = found.coordinates.layout
    plain = may_be_turned(layout) and not layout.num_sites and not layout.angles.any()
    if not (plain and found.smooth and layout.num_coordinates):
        return found
    k_start, k_moves, k_fit, k_covered = random.split(key, 4)
    held = np.asarray(jax.random.permutation(random.derive(key, "sides"), len(found.log_shares))) % 4 == 0
    curved = transport.near_identity(k_start, transport.CouplingMap(layout.num_coordinates))
    places = _Places(energy, found.coordinates, curved.module)
    now, gain = places.placed(found, places.coordinates(curved)), np.zeros(1)
    began, back, tried = time.time(), found.coordinates, []
    for turn in range(1 + _TURNS):
        if turn > 1 and time.time() - began > seconds:
            break
        say("tails" if turn == 0 else f"curved coordinates, {turn} of {_TURNS}")
        now, sides = _further(random.derive(k_moves, f"{turn}"), places, now, held)
        k_turn, before = random.derive(k_fit, f"{turn}"), now.length_scale
        new, gain = transport.fit(k_turn, *sides, start=curved, tails_alone=turn == 0)
        clear = _clear(gain, int(held.sum()), 0.02 * layout.num_coordinates)
        if turn == 0:
            heavy = places.placed(now, places.coordinates(new))
            # Tails alone: few numbers, which cannot fold what lies between them.
            usable = clear and heavy.length_scale > _NO_SHORTER * before
            if usable and _covered(k_covered, places.energy(heavy.coordinates), layout):
                now, curved, back = heavy, new, heavy.coordinates
                say(f"tails: {gain.mean():.3g} nats nearer to a normal")
            continue
        if not clear:
            return places.placed(now, back)
        curved = new
        now = places.placed(now, places.coordinates(curved))
        tried.append(now.coordinates)
        if now.length_scale < 0.5 * found.length_scale:
            # Modes apart are drawn out into threads; no further map would mend that.
            return places.placed(now, back)
    behind = places.placed(now, back)
    say(
        f"curved coordinates: {gain.mean():.3g} nats nearer to a normal, length {behind.length_scale:.3g} "
        f"-> {now.length_scale:.3g}"
    )
    # The last map has seen most, but may send a normal where E is infinite; then the one before.
    for coordinates in reversed(tried):
        there = places.placed(now, coordinates)
        if there.length_scale > behind.length_scale and _covered(
            k_covered, places.energy(coordinates), layout
        ):
            return there
    return behind


def _clear(gain: np.ndarray, number: int, least: float) -> bool:
    """Whether gains of so many chains are more than chance, the outermost hundredths drawn in.

    Of heavy tails a few states far out gain most, and would make the standard error as large.
    """
    drawn_in = np.clip(gain, *np.quantile(gain, [0.01, 0.99]))
    return bool(drawn_in.mean() > max(least, 3 * drawn_in.std() / np.sqrt(number)))


class _Places:
    """States and E in coordinates that differ by their map's parameters, compiled once for all of them."""

    def __init__(self, energy: Energy, linear: Coordinates, module: transport.CouplingMap):
        self.linear, layout = linear, linear.layout
        self._energy = energy
        unit = Moments(jnp.zeros(layout.num_coordinates), jnp.ones(layout.num_coordinates))

        def coordinates(params):
            return self.coordinates(transport.Transport(module, params))

        def energy_of(params, z):
            return coordinates(params).energy(energy)(z)

        def inverted(params, x):
            z = coordinates(params).invert(x)
            return z, energy_of(params, z)

        def applied(params, z):
            return coordinates(params).apply(z)

        def move(key, z, params):
            there = functools.partial(energy_of, params)
            return evidence.moved(key, there, path_of(layout), z, unit, num_rounds=4)

        self._energy_of, self.move = energy_of, jax.jit(move)
        self._applied = jax.jit(applied)
        self._inverted = jax.jit(inverted)

    def coordinates(self, curved: transport.Transport) -> Coordinates:
        """Those of a map."""
        return dataclasses.replace(self.linear, transport=curved)

    def energy(self, coordinates: Coordinates) -> Energy:
        """E there, the map's parameters an argument of what is compiled."""
        if coordinates.transport is None:
            return coordinates.energy(self._energy)
        return jax.tree_util.Partial(self._energy_of, coordinates.transport.params)

    def applied(self, coordinates: Coordinates, z: Array) -> Array:
        """The layout's states of states there."""
        if coordinates.transport is None:
            return coordinates.apply(z)
        return self._applied(coordinates.transport.params, z)

    def placed(self, found: Found, coordinates: Coordinates) -> Found:
        """The same states in other coordinates; what has no energy there stands for nothing."""
        x = self.applied(found.coordinates, jnp.asarray(found.states))
        if coordinates.transport is None:
            z = coordinates.invert(x)
            e = jax.jit(coordinates.energy(self._energy))(z)
        else:
            z, e = self._inverted(coordinates.transport.params, x)
        z, e = np.asarray(z), np.asarray(e, np.float64)
        usable = np.isfinite(e) & np.all(np.isfinite(z), axis=1)
        z, shares = np.where(usable[:, None], z, 0.0), np.where(usable, found.log_shares, -np.inf)
        return found._replace(
            coordinates=coordinates,
            length_scale=finest_length(self.energy(coordinates), coordinates.layout, z, shares),
            states=z,
            log_shares=shares,
            energies=e,
        )


def _further(key: Key, places: _Places, found: Found, held: np.ndarray) -> tuple[Found, tuple[Array, Array]]:
    """(found with states moved on, states on the way [M, D] for the map and for its judge, by weight).

    Of the chains on each side as many as there are, so that the numbers are those of every turn.
    """
    curved = found.coordinates.transport
    if curved is None:
        raise ValueError("found must be in coordinates with a map")
    sides = [np.flatnonzero(~held), np.flatnonzero(held)]
    x, e, seen = jnp.asarray(found.states), found.energies, ([], [])
    for i in range(_FURTHER):
        k_move, k_draw = random.split(random.derive(key, f"{i}"))
        x, e = places.move(k_move, x, curved.params)
        host, draws = np.asarray(x), random.split(k_draw)
        for chains, states, k_side in zip(sides, seen, draws, strict=True):
            shares = jnp.asarray(found.log_shares[chains], float)
            states.append(host[chains[np.asarray(importance.systematic(k_side, shares, len(chains)))]])
    now = found._replace(states=np.asarray(x), energies=np.asarray(e, np.float64))
    whole = [places.applied(now.coordinates, jnp.asarray(np.concatenate(states))) for states in seen]
    train, judge = (places.linear.linear(states) for states in whole)
    return now, (train, judge)


def _covered(key: Key, energy: Energy, layout: Layout) -> bool:
    """Whether E is finite where a map sends a normal, and nearly everywhere where it sends a wider one."""
    z = jax.random.normal(key, (4096, layout.num_coordinates))
    energy = as_argument(energy)
    finite = [float(_finite_share(energy, scale * z)) for scale in (1.0, 1.5)]
    return finite[0] > 0.999 and finite[1] > 0.99


@jax.jit
def _finite_share(energy: Any, z: Array) -> Array:
    return jnp.mean(jnp.isfinite(energy(z)))
