"""Pair terms of an energy on tokens, found by evaluating it, and what follows from them.

Ising and Potts models, spin glasses, Boltzmann machines, cuts and other quadratic forms of tokens are sums of
terms of one and of two sites. Whoever writes such an energy as a function need not say so: the terms are its
mixed differences. With them all single-site conditionals are one matrix product, and the graph of the terms
has a colouring.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.energies import lattices
from egm.typing import ENERGY_OFFERS, Array, Energy, Key

__all__ = ["WithPairs", "pair_terms"]

_MOST = 2**20
"""Evaluations of the energy that finding its terms may take."""
_CHUNK = 4096
_NUM_TRIED, _NUM_TRIPLES = 256, 32
_ROUNDING = 32 * float(np.finfo(np.float32).eps)
"""Of the largest energy: mixed differences below it are rounding."""
_LARGEST_ROUNDING = 0.05
"""Of a term: above it nothing is known of weak ones."""
_TOLERANCE = 1e-3
"""Times sqrt(L): root mean square of what pair terms may leave of the energy of random states."""


@dataclasses.dataclass(frozen=True, eq=False)
class WithPairs:
    """An energy of tokens with the conditionals and the colouring that its pair terms give.

    E(x) = const - sum_i b_i(x_i) - sum_{i<j} J_ij(x_i, x_j). The energy itself is evaluated as it was given:
    weights rest on that alone, and terms that are slightly wrong cost ESS, never correctness.

    Attributes:
      energy: E, `[N] = energy(x)` of tokens x [N, L].
      biases: b [L, V].
      tables: J [L, V, L, V], the same with sites and tokens exchanged, 0 at i = j.

    Raises:
      TypeError, ValueError: the arrays have other shapes, or are not finite numbers.

    Examples:
      >>> ring = lambda x: -jnp.sum(x == jnp.roll(x, 1, axis=-1), axis=-1).astype(float)
      >>> energy = egm.energies.WithPairs(ring, *egm.energies.pair_terms(ring, num_sites=6, vocab_size=3))
      >>> energy.colouring
      (0, 1, 0, 1, 0, 1)
      >>> print(energy.single_site_conditionals(jnp.array([[0, 0, 1, 2, 2, 2]]))[0, 0])  # next to 0 and 2
      [1. 0. 1.]
    """

    energy: Energy
    biases: Any
    tables: Any

    def __post_init__(self):
        checks.function(self.energy, "energy")
        biases, tables = _numbers(self.biases, "biases"), _numbers(self.tables, "tables")
        if biases.ndim != 2 or biases.shape[1] < 2:
            raise ValueError(f"biases must have shape [L, V], got {biases.shape}")
        if tables.shape != biases.shape * 2:
            raise ValueError(f"tables must have shape {biases.shape * 2} for biases {biases.shape}, "
                             f"got {tables.shape}")  # fmt: skip
        for name, value in (("biases", biases), ("tables", tables)):
            if not np.all(np.isfinite(value)):
                raise ValueError(f"{name} must be finite, got {value[~np.isfinite(value)][0]}")
            object.__setattr__(self, name, value)

    def __eq__(self, other):
        if not isinstance(other, WithPairs):
            return NotImplemented
        same = (np.array_equal(a, b) for a, b in ((self.biases, other.biases), (self.tables, other.tables)))
        return self.energy == other.energy and all(same)

    def __hash__(self):
        return hash((self.energy, self._digest))

    @functools.cached_property
    def _digest(self) -> int:
        return hash((self.biases.tobytes(), self.tables.tobytes()))

    @property
    def num_sites(self) -> int:
        """L."""
        return self.biases.shape[0]

    @property
    def vocab_size(self) -> int:
        """V; the mask token is V."""
        return self.biases.shape[1]

    @functools.cached_property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """The pairs of sites that a term joins."""
        joined = np.any(self.tables != 0, axis=(1, 3))
        return tuple((int(i), int(j)) for i, j in np.argwhere(np.triu(joined, 1)))

    @functools.cached_property
    def colouring(self) -> tuple[int, ...]:
        """[L] a colour for each site, none the same at both ends of a pair, the most frequent the last."""
        return lattices.colouring(self.num_sites, self.edges)

    def __call__(self, x: Array) -> Array:
        """E(x) itself, [...]."""
        return self.energy(x)

    def __getattr__(self, name: str):
        # All that conditionals cost is said here: nothing.
        if name in ENERGY_OFFERS and not name.endswith("_evaluations"):
            return getattr(self.energy, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def single_site_conditionals(self, x: Array) -> Array:
        """Logits [N, L, V] of every site's token given all the others, for tokens x [N, L]."""
        return self.masked_conditionals(x)

    def masked_conditionals(self, x: Array) -> Array:
        """The same where some sites hold the mask V: of those the mean over all tokens stands.

        Raises:
          TypeError, ValueError: x is no tokens of L sites.
        """
        x, size = self._tokens(x), self.biases.size
        hot = jax.nn.one_hot(x, self.vocab_size, dtype=float)
        seen = jnp.where((x == self.vocab_size)[..., None], 1 / self.vocab_size, hot)
        tables = jnp.asarray(self.tables, float).reshape(size, size)
        field = jnp.matmul(seen.reshape(-1, size), tables, precision="highest")
        return field.reshape(seen.shape) + jnp.asarray(self.biases, float)[None]

    def revealed_conditionals(self, x: Array, scale: Any = 1.0) -> tuple[Array, Array]:
        """Logits of the hidden sites, exact where all that a term joins with them is visible.

        Args:
          x: [N, L] integer tokens in 0..V, V the mask.
          scale: factor on the energy, a scalar, may be traced.

        Returns:
          (logits [N, L, V], exact [N, L] bool, False at visible sites).

        Raises:
          TypeError, ValueError: x is no tokens of L sites.
        """
        hidden = self._tokens(x) == self.vocab_size
        joined = np.any(self.tables != 0, axis=(1, 3)).astype(np.float32)
        open_ = jnp.matmul(hidden.astype(jnp.float32), jnp.asarray(joined)) > 0.5
        return scale * self.masked_conditionals(x), hidden & ~open_

    def _tokens(self, x: Array) -> Array:
        x = checks.integer_array(x, "x", 2)
        if x.shape[-1] != self.num_sites:
            raise ValueError(f"x has trailing size {x.shape[-1]}, this energy has {self.num_sites} sites")
        return checks.tokens(x, self.vocab_size)


def pair_terms(
    energy: Energy, num_sites: int, vocab_size: int, key: Key | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """The terms of an energy that is a sum over sites and pairs of sites; None of one that is not.

    Every pair's mixed differences from the state of zeros are taken, and held against the energy of random
    states. What differs from a sum of pairs at rare states alone is not seen.

    Args:
      energy: E, `[N] = energy(x)` of tokens x [N, L].
      num_sites: L.
      vocab_size: V.
      key: of the random states; None for that of seed 0.

    Returns:
      (b [L, V], J [L, V, L, V]) of `WithPairs`, on the host; None also where E is not finite at some state,
      or where there are so many pairs that more than a million evaluations were needed.

    Raises:
      TypeError, ValueError: an argument has a wrong type or value.

    Examples:
      >>> energy = lambda x: (x[..., 0] * x[..., 1]).astype(float)
      >>> biases, tables = egm.energies.pair_terms(energy, num_sites=3, vocab_size=2)
      >>> print(tables[0, :, 1, :])
      [[ 0.  0.]
       [ 0. -1.]]
      >>> egm.energies.pair_terms(lambda x: jnp.prod(x, axis=-1).astype(float), 3, 2)  # of three sites
    """
    checks.function(energy, "energy")
    sites = checks.positive_int(num_sites, "num_sites")
    values = checks.positive_int(vocab_size, "vocab_size", 2)
    key = jax.random.key(0) if key is None else checks.one_key(key)
    if sites * (sites - 1) // 2 * (values - 1) ** 2 + sites * values > _MOST:
        return None
    if not _no_triples(random.derive(key, "triples"), energy, sites, values):
        return None
    biases, tables, largest = _differences(energy, sites, values)
    known = np.all(np.isfinite(biases)) and np.all(np.isfinite(tables))
    if not known or _ROUNDING * largest > _LARGEST_ROUNDING:
        return None
    tables[np.abs(tables) <= _ROUNDING * largest] = 0.0
    x = np.array(jax.random.randint(random.derive(key, "pairs"), (_NUM_TRIED, sites), 0, values))
    x[0] = 0
    hot = np.eye(values)[x].reshape(_NUM_TRIED, -1)
    pairs = 0.5 * np.sum((hot @ tables.reshape(hot.shape[1], -1)) * hot, axis=1)
    given = np.asarray(energy(jnp.asarray(x, jnp.int32)), np.float64)
    left = given + hot @ biases.ravel() + pairs
    error = np.sqrt(np.mean((left - left[0]) ** 2))
    allowed = _TOLERANCE * np.sqrt(sites) + _ROUNDING * np.abs(given).max()
    return (biases, tables) if error <= allowed else None


def _no_triples(key: Key, energy: Energy, sites: int, values: int) -> bool:
    """Whether mixed differences over three random groups of sites vanish: soon known where they do not."""
    k_group, k_first, k_second = jax.random.split(key, 3)
    shape = (_NUM_TRIPLES, 1, sites)
    group = np.asarray(jax.random.randint(k_group, shape, 0, 3))
    first, second = (np.asarray(jax.random.randint(k, shape, 0, values)) for k in (k_first, k_second))
    moved = np.array(
        list(itertools.product((0, 1), repeat=3))
    )  # which of the groups hold the second's tokens
    chosen = np.take_along_axis(
        np.broadcast_to(moved[None], (_NUM_TRIPLES, 8, 3)), group.repeat(8, 1), axis=2
    )
    x = np.where(chosen, second, first).reshape(-1, sites)
    e = np.asarray(energy(jnp.asarray(x, jnp.int32)), np.float64).reshape(_NUM_TRIPLES, 8)
    with np.errstate(invalid="ignore"):
        difference = e @ (-1.0) ** moved.sum(axis=1)
    allowed = _TOLERANCE * sites**0.5 + 2 * _ROUNDING * np.abs(e).max()
    return bool(np.all(np.abs(difference) <= allowed))


def _differences(energy: Energy, sites: int, values: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(b [L, V], J [L, V, L, V], the largest |E| that was met), from E at zeros but for up to two sites."""
    evaluate = _Evaluation(energy, sites)
    zero = evaluate(np.zeros((1, 0), int), np.zeros((1, 0), int))[0]
    every = np.arange(sites)[:, None]
    alone = np.stack([evaluate(every, np.full((sites, 1), a)) for a in range(1, values)], axis=1)
    largest = max(abs(zero), np.abs(alone).max())
    biases, tables = np.zeros((sites, values)), np.zeros((sites, values, sites, values))
    with np.errstate(invalid="ignore"):
        biases[:, 1:] = zero - alone
        first, second = np.triu_indices(sites, 1)
        pair = np.stack([first, second], axis=1)
        for a, b in itertools.product(range(1, values), repeat=2):
            both = evaluate(pair, np.broadcast_to([a, b], pair.shape))
            largest = max(largest, np.abs(both).max(initial=0))
            # -E of both less what each of them alone gives.
            term = zero - both - biases[first, a] - biases[second, b]
            tables[first, a, second, b] = tables[second, b, first, a] = term
    return biases, tables, float(largest)


def _numbers(value: Any, name: str) -> np.ndarray:
    """A float64 array on the host; raises TypeError unless it is numbers."""
    try:
        found = np.asarray(value)
        if not np.issubdtype(found.dtype, np.number) or np.iscomplexobj(found):
            raise TypeError(found.dtype)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of real numbers, got {value!r:.80}") from error
    return found.astype(np.float64)


class _Evaluation:
    """E in float64 at states of zeros but for some sites, in chunks of one shape."""

    def __init__(self, energy: Energy, num_sites: int):
        self._energy = jax.jit(lambda x: energy(x))
        self._num_sites = num_sites

    def __call__(self, sites: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """[M] E of the states whose sites [M, S] hold tokens [M, S]."""
        found = []
        for start in range(0, len(sites), _CHUNK):
            here, held = sites[start : start + _CHUNK], tokens[start : start + _CHUNK]
            x = np.zeros((min(_CHUNK, 1 << (len(sites) - 1).bit_length()), self._num_sites), np.int32)
            np.put_along_axis(x[: len(here)], here, held, axis=1)
            out = checks.model_output(self._energy(jnp.asarray(x)), "energy", (len(x),))
            found.append(np.asarray(out, np.float64)[: len(here)])
        return np.concatenate(found) if found else np.zeros(0)
