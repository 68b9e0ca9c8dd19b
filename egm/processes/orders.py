"""Orders: which sites of a masked state a jump reveals when.

An order is a Markov chain on the sets of visible sites, from none to all, that does not look at the tokens,
together with its exact time reversal. Over a whole trajectory the probabilities of both are equal, whatever
the order, so they cancel in the path weight: what is left of a step is the product of the probabilities of
the tokens that it reveals. An order decides how many network calls a state costs and how even the weights
are, never whether they are right.

Source: for one site a step, masked diffusion in any order (EGM, arXiv 2505.19646); for more, design.md's
section on orders: the argument above.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.typing import Array, Key

__all__ = [
    "DrawnOrder",
    "Stage",
    "StagedOrder",
    "blocks",
    "coarse_to_fine",
    "colouring",
    "drawn",
    "growing",
    "random_sites",
]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Sites that are revealed before those of later stages, in uniformly random parts of given sizes.

    Attributes:
      sites: their indices, each once.
      sizes: how many of those still hidden each step reveals; the sum is the number of sites.

    Raises:
      TypeError, ValueError: no indices, one twice, or sizes of another sum.
    """

    sites: tuple[int, ...]
    sizes: tuple[int, ...]

    def __post_init__(self):
        sites = tuple(checks.positive_int(i, "every one of sites", 0) for i in _several(self.sites, "sites"))
        sizes = tuple(checks.positive_int(n, "every one of sizes") for n in _several(self.sizes, "sizes"))
        if len(set(sites)) != len(sites):
            raise ValueError(f"sites must name each site once, got {sites!r:.80}")
        if sum(sizes) != len(sites):
            raise ValueError(f"sizes must have the sum {len(sites)}, the number of sites, got {sum(sizes)}")
        object.__setattr__(self, "sites", sites)
        object.__setattr__(self, "sizes", sizes)


@dataclasses.dataclass(frozen=True)
class StagedOrder:
    """Stages one after another; within a stage every part is as likely as any other of its size.

    A stage of one size is revealed at once, one of sizes 1 site by site in random order.

    Attributes:
      stages: of `Stage`; their sites are 0..L-1, each once.
      num_closed: how many of the last steps need no network, because the energy knows the conditionals of
        the sites that they reveal (`revealed_conditionals`): training draws no states there.

    Raises:
      TypeError, ValueError: no stages, a site missing or in two stages, as many closed steps as there are.
    """

    stages: tuple[Stage, ...]
    num_closed: int = 0

    def __post_init__(self):
        stages = _several(self.stages, "stages")
        for stage in stages:
            checks.instance(stage, Stage, "every one of stages")
        sites = sorted(i for stage in stages for i in stage.sites)
        if sites != list(range(len(sites))):
            raise ValueError(f"stages must hold the sites 0..L-1, each once, got {sites!r:.80}")
        object.__setattr__(self, "stages", stages)
        _check_closed(self.num_closed, self.num_steps)

    @property
    def num_sites(self) -> int:
        """L."""
        return sum(len(stage.sites) for stage in self.stages)

    @property
    def num_steps(self) -> int:
        """Steps from no visible site to all of them."""
        return sum(len(stage.sizes) for stage in self.stages)

    def visible(self, key: Key, step: Array) -> Array:
        """[L] bool, a draw of the visible sites before `step`, an integer scalar below `num_steps`."""
        table = self._table
        stage = jnp.asarray(table.stage)[step]
        number = jnp.asarray(table.start)[step] - jnp.asarray(table.first)[stage]
        shown = _some_of(key, jnp.asarray(table.stage_of) == stage, number)
        return shown | (jnp.asarray(table.stage_of) < stage)

    def reveal(self, key: Key, visible: Array) -> Array:
        """[L] bool, a draw of the sites that are revealed next; none where all are visible."""
        candidates, number = self._next(visible)
        return _some_of(key, candidates, number)

    def hide(self, key: Key, visible: Array) -> Array:
        """[L] bool, a draw of the sites that the step that led to `visible` revealed: reversed `reveal`."""
        table = self._table
        # The step that ended here: the last whose start lies below the number of visible sites.
        step = jnp.sum(jnp.asarray(table.start) < jnp.sum(visible)) - 1
        inside = visible & (jnp.asarray(table.stage_of) == jnp.asarray(table.stage)[jnp.maximum(step, 0)])
        return _some_of(key, inside, jnp.asarray(table.size)[jnp.maximum(step, 0)])

    def weights(self, visible: Array) -> Array:
        """[L] the probability of each site to be among those that are revealed next."""
        candidates, number = self._next(visible)
        return candidates * (number / jnp.maximum(jnp.sum(candidates), 1))

    def joins(self, before: Array, after: Array) -> Array:
        """Scalar bool, whether one step leads from visible sites [L] to others."""
        candidates, number = self._next(before)
        new = after & ~before
        return jnp.all(after | ~before) & jnp.all(candidates | ~new) & (jnp.sum(new) == number)

    def _next(self, visible: Array) -> tuple[Array, Array]:
        """(hidden sites of the present stage [L], how many of them the next step reveals)."""
        table = self._table
        stage_of = jnp.asarray(table.stage_of)
        stage = jnp.min(jnp.where(visible, len(self.stages), stage_of))
        candidates = ~visible & (stage_of == stage)
        # From states that no trajectory visits, the step of this stage with no fewer sites visible.
        inside = jnp.sum(visible & (stage_of == stage))
        at = jnp.minimum(stage, len(self.stages) - 1)
        done = jnp.asarray(table.start) - jnp.asarray(table.first)[at]
        here = (jnp.asarray(table.stage) == at) & (done <= inside)
        end = jnp.max(jnp.where(here, done + jnp.asarray(table.size), 0))
        return candidates, jnp.where(stage < len(self.stages), end - inside, 0)

    @functools.cached_property
    def _table(self) -> _Table:
        size = np.array([n for stage in self.stages for n in stage.sizes], np.int32)
        stage = np.repeat(np.arange(len(self.stages)), [len(s.sizes) for s in self.stages])
        first = np.cumsum([0] + [len(s.sites) for s in self.stages])[:-1]
        stage_of = np.empty(self.num_sites, np.int32)
        for index, here in enumerate(self.stages):
            stage_of[list(here.sites)] = index
        return _Table(size, np.cumsum(size) - size, stage.astype(np.int32), first.astype(np.int32), stage_of)


@dataclasses.dataclass(frozen=True)
class _Table:
    """Of each step its size, the number of sites visible before it, its stage; of each stage and site."""

    size: np.ndarray
    start: np.ndarray
    stage: np.ndarray
    first: np.ndarray
    stage_of: np.ndarray


@dataclasses.dataclass(frozen=True)
class DrawnOrder:
    """One of several sequences of blocks, each as likely: an order that is drawn beforehand.

    A state does not hold which of them it is on, and need not: a step goes on with one of those that have
    come to the same visible sites, each as likely, which visits every set of sites as often as the
    sequences do.

    Attributes:
      ranks: [M][L] integers: the step at which sequence m reveals site i, from 0, none left out.
      num_closed: as of `StagedOrder`.

    Raises:
      TypeError, ValueError: the ranks are none, or the sequences differ in their number of steps.
    """

    ranks: tuple[tuple[int, ...], ...]
    num_closed: int = 0

    def __post_init__(self):
        rows = tuple(
            tuple(checks.positive_int(n, "every rank", 0) for n in _several(row, "every row of ranks"))
            for row in _several(self.ranks, "ranks")
        )
        sizes = sorted({len(row) for row in rows})
        if len(sizes) > 1:
            raise ValueError(f"ranks must have rows of one length, got lengths {sizes}")
        steps = sorted({max(row) + 1 for row in rows})
        if len(steps) > 1:
            raise ValueError(f"ranks must have the same number of steps in every row, got {steps}")
        for row in rows:
            if set(row) != set(range(steps[0])):
                raise ValueError(f"ranks must leave out no step below {steps[0]}, got {row!r:.80}")
        object.__setattr__(self, "ranks", rows)
        _check_closed(self.num_closed, self.num_steps)

    @property
    def num_sites(self) -> int:
        """L."""
        return len(self.ranks[0])

    @property
    def num_steps(self) -> int:
        """Steps from no visible site to all of them."""
        return max(self.ranks[0]) + 1

    def visible(self, key: Key, step: Array) -> Array:
        """As of `StagedOrder`."""
        return self._ranks[jax.random.randint(key, (), 0, len(self.ranks))] < step

    def reveal(self, key: Key, visible: Array) -> Array:
        """As of `StagedOrder`."""
        consistent, step = self._consistent(visible)
        chosen = random.categorical(key, consistent.astype(float))
        return ~visible & (self._ranks[chosen] == step[chosen])

    def hide(self, key: Key, visible: Array) -> Array:
        """As of `StagedOrder`."""
        consistent, step = self._consistent(visible)
        chosen = random.categorical(key, consistent.astype(float))
        return visible & (self._ranks[chosen] == step[chosen] - 1)

    def weights(self, visible: Array) -> Array:
        """As of `StagedOrder`."""
        consistent, step = self._consistent(visible)
        number = jnp.maximum(jnp.sum(consistent), 1)
        coming = ~visible[None] & (self._ranks == step[:, None])
        return jnp.sum(consistent[:, None] * coming, axis=0) / number

    def joins(self, before: Array, after: Array) -> Array:
        """As of `StagedOrder`."""
        known, step = self._consistent(before)
        done = jnp.all(before) & jnp.all(after)
        reached = jnp.all(after[None] == (self._ranks <= step[:, None]), axis=-1)
        return done | jnp.any(known & reached & ~jnp.all(before))

    def _consistent(self, visible: Array) -> tuple[Array, Array]:
        """([M] bool, which sequences pass `visible`; [M] the step that each of them takes there)."""
        last = self.num_steps
        step = jnp.min(jnp.where(visible[None], last, self._ranks), axis=-1)
        return jnp.all(visible[None] == (self._ranks < step[:, None]), axis=-1), step

    @property
    def _ranks(self) -> Array:
        return jnp.asarray(np.array(self.ranks, np.int32))


def random_sites(num_sites: int, sizes: Sequence[int] | None = None) -> StagedOrder:
    """Uniformly random sites, one a step; with `sizes`, as many as they say.

    Args:
      num_sites: L. sizes: how many sites each step reveals.

    Returns:
      StagedOrder of one stage.

    Raises:
      TypeError, ValueError: as of `Stage`.

    Examples:
      >>> order = egm.processes.orders.random_sites(16, sizes=(4, 4, 8))
      >>> order.num_sites, order.num_steps
      (16, 3)
    """
    number = checks.positive_int(num_sites, "num_sites")
    return StagedOrder((_stage(range(number), sizes),))


def colouring(colours: Sequence[int], sizes: Sequence[int] | None = None) -> StagedOrder:
    """All colours but the last in random order, then the last one at once, by the energy's conditionals.

    No two sites of a colour may interact (`egm.energies.check_colouring` tells): given all others those of
    the last colour are independent, so that the last step is exact and asks no network.

    Args:
      colours: [L] integers, the colour of each site; the last colour is the largest of them.
      sizes: how many sites each step before the last reveals; one each by default.

    Returns:
      StagedOrder of two stages, the last one closed.

    Raises:
      TypeError, ValueError: the colours are no integers or only one, or the sizes have another sum.

    Examples:
      >>> energy = egm.energies.Ising(side=4, inverse_temperature=0.4)
      >>> order = egm.processes.orders.colouring(energy.colouring)  # a checkerboard
      >>> order.num_steps, order.num_closed  # eight sites one by one, the other eight at once
      (9, 1)
    """
    colours = [checks.positive_int(c, "every colour", 0) for c in _several(colours, "colours")]
    last = max(colours)
    first = [i for i, c in enumerate(colours) if c < last]
    if not first:
        raise ValueError(f"colours must be at least two, got {last} everywhere")
    rest = tuple(i for i, c in enumerate(colours) if c == last)
    return StagedOrder((_stage(first, sizes), Stage(rest, (len(rest),))), 1)


def blocks(sequence: Sequence[Sequence[int]], num_closed: int = 0) -> StagedOrder:
    """A user's own blocks of sites, each revealed at once, in the given sequence.

    Args:
      sequence: the sites of each block; together 0..L-1, each once.
      num_closed: as of `StagedOrder`.

    Returns:
      StagedOrder.

    Raises:
      TypeError, ValueError: as of `Stage` and `StagedOrder`.
    """
    parts = [_several(part, "every block") for part in _several(sequence, "sequence")]
    return StagedOrder(tuple(Stage(part, (len(part),)) for part in parts), num_closed)


def coarse_to_fine(
    shape: Sequence[int],
    largest: Sequence[int] | int = 1,
    *,
    closed: bool = True,
) -> StagedOrder:
    """The sites of a periodic lattice, from a coarse sublattice to ever finer ones.

    The sublattices double their density from one to the next: on the square lattice the last holds every
    other site, as the squares of one colour, that before half of the rest, and so on; the first holds the
    sites whose coordinates are multiples of the largest power of two that divides all sides. Within one of
    them sites come at random, `largest` a step.

    Args:
      shape: the sides of the lattice, two of them and even.
      largest: of how many sites a step may be, from the coarsest sublattice to the finest but the last; the
        last of these numbers stands for all that follow.
      closed: whether the last sublattice is revealed at once, by the energy's conditionals.

    Returns:
      StagedOrder.

    Raises:
      TypeError, ValueError: the shape has other than two even sides.

    Examples:
      >>> order = egm.processes.orders.coarse_to_fine((8, 8), largest=8)
      >>> order.num_sites, order.num_steps
      (64, 8)
    """
    shape = tuple(checks.positive_int(n, "every side in shape") for n in _several(shape, "shape"))
    if len(shape) != 2 or any(n % 2 for n in shape):
        raise ValueError(f"shape must have two even sides, got {shape}")
    given = (largest,) if not isinstance(largest, Sequence) else _several(largest, "largest")
    most = [checks.positive_int(n, "largest") for n in given]
    levels: dict[int, list[int]] = {}
    for site, (row, column) in enumerate(itertools.product(*map(range, shape))):
        levels.setdefault(_level(row, column, shape), []).append(site)
    stages = []
    for depth, level in enumerate(sorted(levels, reverse=True)):
        sites = levels[level]
        if level == 0 and checks.flag(closed, "closed"):
            stages.append(Stage(tuple(sites), (len(sites),)))
            continue
        size = min(most[min(depth, len(most) - 1)], len(sites))
        stages.append(_stage(sites, _equal(len(sites), size)))
    return StagedOrder(tuple(stages), int(closed))


def growing(num_sites: int, num_steps: int, first: int = 1) -> tuple[int, ...]:
    """Sizes of steps that grow with the number of visible sites: few while the state is bare.

    Args:
      num_sites: of a stage. num_steps: how many sizes, at most `num_sites`. first: the smallest.

    Returns:
      `num_steps` sizes, not falling, in about geometric progression, of sum `num_sites`.

    Raises:
      TypeError, ValueError: no positive ints, or the steps are too many for sizes of at least `first`.
    """
    number = checks.positive_int(num_sites, "num_sites")
    steps, first = checks.positive_int(num_steps, "num_steps"), checks.positive_int(first, "first")
    if steps * first > number:
        raise ValueError(f"num_steps must be at most {number // first} for {number} sites, got {steps}")
    # The ratio of the progression by bisection, then rounded sums, none smaller than the one before.
    low, high = 1.0, float(number)
    for _ in range(100):
        ratio = 0.5 * (low + high)
        total = first * math.fsum(ratio**k for k in range(steps)) if steps * math.log(ratio) < 50 else np.inf
        low, high = (ratio, high) if total < number else (low, ratio)
    sizes = np.maximum(np.floor(first * low ** np.arange(steps)), first).astype(int)
    # What rounding has left goes to the largest.
    left = number - int(sizes.sum())
    sizes[steps - 1] += left - steps * (left // steps)
    sizes += left // steps
    return tuple(int(n) for n in np.sort(sizes))


def drawn(
    key: Key,
    function: Callable[[Key], Sequence[Sequence[int]]],
    num_orders: int = 64,
    num_closed: int = 0,
) -> DrawnOrder:
    """A user's own order as a function of a key, which is called `num_orders` times, on the host.

    Args:
      key: one typed key.
      function: `sequence = function(key)`, the sites of each block; the same number of blocks for each key.
      num_orders: M.
      num_closed: as of `StagedOrder`.

    Returns:
      DrawnOrder.

    Raises:
      TypeError, ValueError: what the function returns is no sequence of blocks of 0..L-1.
    """
    checks.one_key(key)
    checks.function(function, "function")
    rows = []
    for k in jax.random.split(random.derive(key, "orders"), checks.positive_int(num_orders, "num_orders")):
        order = blocks(function(k))
        row = np.empty(order.num_sites, int)
        for step, stage in enumerate(order.stages):
            row[list(stage.sites)] = step
        rows.append(tuple(row.tolist()))
    return DrawnOrder(tuple(rows), num_closed)


def _some_of(key: Key, candidates: Array, number: Array) -> Array:
    """[L] bool, `number` of the candidates [L], every choice as likely; all where they are fewer."""
    word = jax.random.bits(key, candidates.shape, jnp.uint32)
    # The smallest threshold that admits `number` of them, by bisection: no sort, which is slow on CPUs.
    number = jnp.minimum(number, jnp.sum(candidates))

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(candidates & (word <= middle)) >= number
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # Begun from the data, so that the loop's carry varies over a mapped axis as they do.
    zero = jnp.min(word) * jnp.uint32(0)
    threshold, _ = jax.lax.fori_loop(0, 33, halve, (zero, zero + jnp.uint32(2**32 - 1)))
    below, at = candidates & (word < threshold), candidates & (word == threshold)
    # Equal words are one in 2^32: the first of them.
    return below | (at & (jnp.cumsum(at) <= number - jnp.sum(below)))


def _stage(sites: Any, sizes: Sequence[int] | None) -> Stage:
    sites = tuple(sites)
    return Stage(sites, (1,) * len(sites) if sizes is None else _several(sizes, "sizes"))


def _equal(number: int, largest: int) -> tuple[int, ...]:
    """Sizes of sum `number`, the largest at most `largest`, all within one of each other."""
    steps = -(-number // largest)
    return tuple(number // steps + (k >= steps - number % steps) for k in range(steps))


def _level(row: int, column: int, shape: tuple[int, ...]) -> int:
    """How coarse the coarsest sublattice is that holds a site: 0 for the squares of the odd colour."""
    level, most = 0, 2 * min((n & -n).bit_length() - 1 for n in shape)
    while level < most:
        # Rotated by an eighth of a turn at every other level, where the sublattice is that of one colour.
        if level % 2 == 0:
            if (row + column) % 2:
                return level
        elif row % 2:
            return level
        else:
            row, column = row // 2, column // 2
        level += 1
    return level


def _several(value: Any, name: str) -> tuple:
    if isinstance(value, str | bytes | dict | set) or not np.iterable(value):
        raise TypeError(f"{name} must be a sequence, got {value!r:.80}")
    items = tuple(value.tolist() if isinstance(value, np.ndarray | jax.Array) else value)
    if not items:
        raise ValueError(f"{name} must not be empty")
    return items


def _check_closed(num_closed: int, num_steps: int) -> None:
    if checks.positive_int(num_closed, "num_closed", 0) >= num_steps:
        raise ValueError(f"num_closed must be below the {num_steps} steps, got {num_closed}")
