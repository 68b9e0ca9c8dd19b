"""Curved coordinates: where the states of the chains lie along a ridge, in a funnel, or in long tails.

`straightened` comes after `egm.pilot.explore`: it learns a map (`egm.transport`) from the chains' states.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import evidence, importance, random, transport
from egm.coordinates import Coordinates, may_be_turned
from egm.pilot import Found, finest_length, path_of
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
    linear = found.coordinates
    curved = transport.near_identity(k_start, transport.CouplingMap(layout.num_coordinates))
    now, gain = _in_coordinates(energy, found, dataclasses.replace(linear, transport=curved)), np.zeros(1)
    move = _mover(energy, now.coordinates)
    began, back, tried = time.time(), found.coordinates, []
    for turn in range(1 + _TURNS):
        if turn > 1 and time.time() - began > seconds:
            break
        say("tails" if turn == 0 else f"curved coordinates, {turn} of {_TURNS}")
        now, x, chains = _further(random.derive(k_moves, f"{turn}"), move, now)
        x = linear.linear(now.coordinates.apply(x))
        sides = jnp.asarray(x[~held[chains]]), jnp.asarray(x[held[chains]])
        k_turn, before = random.derive(k_fit, f"{turn}"), now.length_scale
        new, gain = transport.fit(k_turn, *sides, start=curved, tails_alone=turn == 0)
        clear = _clear(gain, int(held.sum()), 0.02 * layout.num_coordinates)
        if turn == 0:
            heavy = _in_coordinates(energy, now, dataclasses.replace(linear, transport=new))
            # Tails alone: few numbers, which cannot fold what lies between them.
            usable = clear and heavy.length_scale > _NO_SHORTER * before
            if usable and _covered(k_covered, heavy.coordinates.energy(energy), layout):
                now, curved, back = heavy, new, heavy.coordinates
                say(f"tails: {gain.mean():.3g} nats nearer to a normal")
            continue
        if not clear:
            return _in_coordinates(energy, now, back)
        curved = new
        now = _in_coordinates(energy, now, dataclasses.replace(linear, transport=curved))
        tried.append(now.coordinates)
        if now.length_scale < 0.5 * found.length_scale:
            # Modes apart are drawn out into threads; no further map would mend that.
            return _in_coordinates(energy, now, back)
    behind = _in_coordinates(energy, now, back)
    say(
        f"curved coordinates: {gain.mean():.3g} nats nearer to a normal, length {behind.length_scale:.3g} "
        f"-> {now.length_scale:.3g}"
    )
    # The last map has seen most, but may send a normal where E is infinite; then the one before.
    for coordinates in reversed(tried):
        there = _in_coordinates(energy, now, coordinates)
        if there.length_scale > behind.length_scale and _covered(
            k_covered, coordinates.energy(energy), layout
        ):
            return there
    return behind


def _clear(gain: np.ndarray, number: int, least: float) -> bool:
    """Whether gains of so many chains are more than chance, the outermost hundredths drawn in.

    Of heavy tails a few states far out gain most, and would make the standard error as large.
    """
    drawn_in = np.clip(gain, *np.quantile(gain, [0.01, 0.99]))
    return bool(drawn_in.mean() > max(least, 3 * drawn_in.std() / np.sqrt(number)))


def _mover(energy: Energy, coordinates: Coordinates) -> Callable[..., tuple[Array, Array]]:
    """(states [N, D], E [N]) = move(key, states, the map's parameters): rounds that keep exp(-E)."""
    layout, curved = coordinates.layout, _map_of(coordinates)
    unit = Moments(jnp.zeros(layout.num_coordinates), jnp.ones(layout.num_coordinates))

    @jax.jit
    def move(key, x, params):
        there = dataclasses.replace(coordinates, transport=dataclasses.replace(curved, params=params))
        return evidence.moved(key, there.energy(energy), path_of(layout), x, unit, num_rounds=4)

    return move


def _map_of(coordinates: Coordinates) -> transport.Transport:
    if coordinates.transport is None:
        raise ValueError("coordinates must have a map")
    return coordinates.transport


def _further(key: Key, move: Callable[..., Any], found: Found) -> tuple[Found, np.ndarray, np.ndarray]:
    """(found with states moved on, [N, D] some on the way, the chain [N] of each), drawn by weight."""
    shares, params = jnp.asarray(found.log_shares, float), _map_of(found.coordinates).params
    x, e, seen, chains = jnp.asarray(found.states), found.energies, [], []
    for i in range(_FURTHER):
        k_move, k_draw = random.split(random.derive(key, f"{i}"))
        x, e = move(k_move, x, params)
        chosen = np.asarray(importance.systematic(k_draw, shares, len(shares)))
        chains.append(chosen)
        seen.append(np.asarray(x)[chosen])
    now = found._replace(states=np.asarray(x), energies=np.asarray(e, np.float64))
    return now, np.concatenate(seen), np.concatenate(chains)


def _in_coordinates(energy: Energy, found: Found, coordinates: Coordinates) -> Found:
    """The same states in other coordinates; what has no energy there stands for nothing."""
    z = coordinates.invert(found.coordinates.apply(jnp.asarray(found.states)))
    moved = coordinates.energy(energy)
    e = np.asarray(jax.jit(moved)(z), np.float64)
    z = np.asarray(z)
    usable = np.isfinite(e) & np.all(np.isfinite(z), axis=1)
    z, shares = np.where(usable[:, None], z, 0.0), np.where(usable, found.log_shares, -np.inf)
    return found._replace(
        coordinates=coordinates,
        length_scale=finest_length(moved, coordinates.layout, z, shares),
        states=z,
        log_shares=shares,
        energies=e,
    )


def _covered(key: Key, energy: Energy, layout: Layout) -> bool:
    """Whether E is finite where a map sends a normal, and nearly everywhere where it sends a wider one."""
    z = jax.random.normal(key, (4096, layout.num_coordinates))
    finite = [np.mean(np.isfinite(np.asarray(jax.jit(energy)(scale * z)))) for scale in (1.0, 1.5)]
    return bool(finite[0] > 0.999 and finite[1] > 0.99)
