"""Edges of lattices, colourings of graphs, and the check that a colouring is one of an energy's."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.typing import Energy, Key

__all__ = ["check_colouring", "checked_edge", "colouring", "square"]


def square(shape: Sequence[int], periodic: bool = True) -> tuple[tuple[int, int], ...]:
    """Edges of a square, cubic, ... lattice, sites in row-major order.

    Args:
      shape: the sides, any number of them.
      periodic: whether the last site of an axis is next to the first; a side of 2 then has each of its
        edges twice, as the two ways round, and a side of 1 none.

    Returns:
      Pairs of sites.

    Raises:
      TypeError, ValueError: a side is no positive int.

    Examples:
      >>> egm.energies.lattices.square((2, 2), periodic=False)
      ((0, 2), (0, 1), (1, 3), (2, 3))
    """
    if isinstance(shape, str) or not np.iterable(shape) or len(shape) == 0:
        raise TypeError(f"shape must be a tuple of sides, got {shape!r:.80}")
    shape = tuple(checks.positive_int(n, "every side in shape") for n in shape)
    checks.flag(periodic, "periodic")
    return _square(shape, bool(periodic))


@functools.lru_cache(maxsize=64)
def _square(shape: tuple[int, ...], periodic: bool) -> tuple[tuple[int, int], ...]:
    number = np.arange(int(np.prod(shape))).reshape(shape)
    edges = []
    for place in itertools.product(*map(range, shape)):
        for axis, side in enumerate(shape):
            if side == 1 or (place[axis] == side - 1 and not periodic):
                continue
            there = (*place[:axis], (place[axis] + 1) % side, *place[axis + 1 :])
            edges.append((int(number[place]), int(number[there])))
    return tuple(edges)


@functools.lru_cache(maxsize=64)
def colouring(num_sites: int, edges: tuple[tuple[int, int], ...]) -> tuple[int, ...]:
    """A colour for each site so that no edge joins two of one colour: two colours where two suffice.

    By Brelaz's rule (Communications of the ACM 22, 1979): the site with most colours around it is next, of
    most edges among those, and takes the first colour that is free; exact on bipartite graphs. Colours are
    numbered by how many sites they have, the most frequent last.

    Args:
      num_sites: L. edges: pairs of sites.

    Returns:
      [L] colours from 0.

    Raises:
      TypeError, ValueError: an edge is no pair of two different sites.
    """
    around: list[set[int]] = [set() for _ in range(checks.positive_int(num_sites, "num_sites"))]
    for edge in edges:
        i, j = checked_edge(edge, num_sites)
        around[i].add(j)
        around[j].add(i)
    colours = np.full(num_sites, -1)
    seen: list[set[int]] = [set() for _ in range(num_sites)]
    left = set(range(num_sites))
    while left:
        site = max(left, key=lambda i: (len(seen[i]), len(around[i]), -i))
        colours[site] = next(c for c in itertools.count() if c not in seen[site])
        for near in around[site]:
            seen[near].add(int(colours[site]))
        left.remove(site)
    order = np.argsort(np.argsort(np.bincount(colours), kind="stable"))
    return tuple(int(order[c]) for c in colours)


def checked_edge(edge: Sequence[int], num_sites: int) -> tuple[int, int]:
    """The edge as two ints; raises TypeError or ValueError unless they are two different sites."""
    if not hasattr(edge, "__len__") or len(edge) != 2:
        raise TypeError(f"edges must be pairs of sites, got {edge!r:.80}")
    i, j = (checks.positive_int(n, "every site of edges", 0) for n in edge)
    if max(i, j) >= num_sites or i == j:
        raise ValueError(f"edges must join two of the sites 0..{num_sites - 1}, got {(i, j)}")
    return i, j


def check_colouring(
    key: Key, energy: Energy, colours: Sequence[int], vocab_size: int, num_states: int = 16
) -> None:
    """Raises unless sites of one colour do not interact, as far as random states can tell.

    The tokens of each colour in turn are drawn anew, all others left: the conditionals of its own sites
    must not change. What an energy does at rare states alone is not seen.

    Args:
      key: one typed key.
      energy: offers `single_site_conditionals` (`egm.energies.WithConditionals` gives them to any).
      colours: [L] the colour of each site.
      vocab_size: V.
      num_states: random states to try.

    Raises:
      TypeError: the energy has no conditionals. ValueError: sites of one colour interact, named in the
        message.

    Examples:
      >>> energy = egm.energies.SpinGlass(4, ((0, 1), (1, 2), (2, 3), (3, 0)))
      >>> egm.energies.check_colouring(jax.random.key(0), energy, (0, 1, 0, 1), vocab_size=2)  # it is one
    """
    checks.one_key(key)
    colours = tuple(checks.positive_int(c, "every one of colours", 0) for c in colours)
    conditionals = getattr(energy, "single_site_conditionals", None)
    if conditionals is None:
        raise TypeError(f"energy must offer single_site_conditionals (WithConditionals), got {energy!r:.80}")
    shape = (checks.positive_int(num_states, "num_states"), len(colours))
    k_first, k_second = random.split(key)
    first, second = (
        jax.random.randint(k, shape, 0, checks.positive_int(vocab_size, "vocab_size", 2), jnp.int32)
        for k in (k_first, k_second)
    )
    before = np.asarray(jax.nn.log_softmax(conditionals(first), axis=-1), np.float64)
    for colour in sorted(set(colours)):
        here = np.array(colours) == colour
        x = jnp.where(jnp.asarray(here)[None], second, first)
        after = np.asarray(jax.nn.log_softmax(conditionals(x), axis=-1), np.float64)
        gap = np.max(np.abs(np.where(np.isneginf(before) & np.isneginf(after), 0, after - before)), (0, 2))
        bad = here & ~(gap <= 1e-4 * max(1.0, float(np.max(np.abs(before), initial=0, where=before > -1e30))))
        if np.any(bad):
            raise ValueError(
                f"colours must be those of sites that do not interact, got colour {colour} at site "
                f"{int(np.argmax(bad))}, whose conditional changes with others of that colour"
            )
