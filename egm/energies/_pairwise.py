"""What the spin models on graphs share: energies, conditionals and enumeration of pairwise Potts terms.

log-weight of a state: sum over edges of K_e [x_i = x_j] plus sum over sites of b_i(x_i). Ising bonds are of
this form, s s' = 2 [s = s'] - 1.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.energies import lattices
from egm.energies.lattices import checked_edge
from egm.typing import Array, Key

_MOST_STATES = 2**20
_DENSE, _DENSE_SHARE = 256, 16
"""Sites up to which bonds are a matrix, and of larger graphs the most pairs of sites to a directed edge."""
_FEW_NEIGHBOURS = 6.0


@dataclasses.dataclass(frozen=True, eq=False)
class Pairwise:
    """Arrays of a model: edges [E, 2], bonds K [E], biases b [L, V]; made once and kept."""

    edges: np.ndarray
    bonds: np.ndarray
    biases: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.biases.shape  # type: ignore[return-value]

    def __post_init__(self):
        sites, _ = self.shape
        # Directed edges: 2e from the first site to the second, 2e + 1 back; of each site those that come in.
        into: list[list[int]] = [[] for _ in range(sites)]
        for e, (i, j) in enumerate(self.edges):
            into[j].append(2 * e)
            into[i].append(2 * e + 1)
        width = max(1, max(map(len, into)))
        none = 2 * len(self.edges)
        table = np.array([row + [none] * (width - len(row)) for row in into], np.int32)
        object.__setattr__(self, "_into", table)
        source = np.stack([self.edges[:, 0], self.edges[:, 1]], axis=1).ravel()
        object.__setattr__(self, "_source", source.astype(np.int32))

    def log_weight(self, x: Array) -> Array:
        """[...] of tokens [..., L]."""
        first, second = (x[..., self.edges[:, k]] for k in (0, 1))
        total = jnp.where(first == second, 1.0, 0.0) @ jnp.asarray(self.bonds, float)
        bias = jnp.asarray(self.biases, float)
        chosen = jnp.take_along_axis(
            jnp.broadcast_to(bias, (*x.shape, bias.shape[-1])), x[..., None], axis=-1
        )
        return total + jnp.sum(chosen[..., 0], axis=-1)

    def conditionals(self, x: Array, scale: Any = 1.0, depth: int = 0) -> tuple[Array, Array]:
        """(logits [..., L, V], exact [..., L]) given visible tokens, by `depth` rounds of messages."""
        if depth == 0 and self.dense is not None:
            return self._by_products(x, scale)
        sites, vocab = self.shape
        visible = x < vocab
        bonds = scale * jnp.repeat(jnp.asarray(self.bonds, float), 2)
        source = self._source  # type: ignore[attr-defined]
        shown, known = x[..., source], visible[..., source]
        pulls = shown[..., None] == jnp.broadcast_to(jnp.arange(vocab), (*shown.shape, vocab))
        direct = jnp.where(pulls, jnp.broadcast_to(bonds[:, None], pulls.shape), 0.0)
        bias = scale * jnp.asarray(self.biases, float)
        message, exact = direct, known
        same = jnp.eye(vocab, dtype=bool)
        for _ in range(depth):
            total, count = self._gathered(message, bias), self._inexact(exact)
            # What has come to the source, without what has come from the target itself.
            back = np.arange(len(source)) ^ 1
            cavity = total[..., source, :] - message[..., back, :]
            pair = jnp.where(same[None], bonds[:, None, None], 0.0)
            out = jax.nn.logsumexp(cavity[..., :, None] + jnp.broadcast_to(pair, (*cavity.shape, vocab)), -2)
            # Differences alone matter: kept near zero.
            out = out - jnp.mean(out, axis=-1, keepdims=True)
            message = jnp.where(known[..., None], direct, out)
            exact = known | (count[..., source] - ~exact[..., back] == 0)
        return self._gathered(message, bias), (self._inexact(exact) == 0) & ~visible

    @functools.cached_property
    def dense(self) -> np.ndarray | None:
        """K as a matrix [L, L], where a product with it is no slower than gathering over edges; or None."""
        sites, _ = self.shape
        if sites > _DENSE and sites**2 > _DENSE_SHARE * 2 * len(self.edges):
            return None
        matrix = np.zeros((sites, sites))
        np.add.at(matrix, tuple(self.edges.T), self.bonds)
        return matrix + matrix.T

    def _by_products(self, x: Array, scale: Any) -> tuple[Array, Array]:
        """`conditionals` without messages, by matrix products."""
        sites, vocab = self.shape
        seen = jax.nn.one_hot(x, vocab, axis=-2, dtype=float)  # the mask is none of them
        bonds = jnp.asarray(self.dense, float)
        field = jnp.swapaxes(jnp.matmul(seen, bonds, precision="highest"), -1, -2)
        hidden, joined = x == vocab, np.zeros((sites, sites), np.float32)
        joined[tuple(self.edges.T)] = joined[tuple(self.edges[:, ::-1].T)] = 1.0
        open_ = jnp.matmul(hidden.astype(jnp.float32), joined) > 0.5
        bias = jnp.broadcast_to(jnp.asarray(self.biases, float), field.shape)
        return scale * (field + bias), hidden & ~open_

    def _gathered(self, message: Array, bias: Array) -> Array:
        none = jnp.zeros((*message.shape[:-2], 1, message.shape[-1]), message.dtype)
        rows = jnp.concatenate([message, none], axis=-2)[..., self._into, :]  # type: ignore[attr-defined]
        return jnp.sum(rows, axis=-2) + jnp.broadcast_to(bias, rows.shape[:-2] + rows.shape[-1:])

    def _inexact(self, exact: Array) -> Array:
        """[..., L] how many messages to each site are not exact."""
        rows = jnp.concatenate([exact, jnp.ones((*exact.shape[:-1], 1), bool)], axis=-1)
        return jnp.sum(~rows[..., self._into], axis=-1)  # type: ignore[attr-defined]

    def enumerated(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """(all states [M, L], their log-weights [M] in float64); raises ValueError where they are many."""
        sites, vocab = self.shape
        if vocab**sites > _MOST_STATES:
            raise ValueError(f"{name} supports up to {_MOST_STATES} states, got {vocab}^{sites}")
        states = np.array(list(itertools.product(range(vocab), repeat=sites)), np.int8)
        total = np.zeros(len(states))
        for (i, j), bond in zip(self.edges, self.bonds, strict=True):
            total += bond * (states[:, i] == states[:, j])
        for i in range(sites):
            total += self.biases[i][states[:, i]]
        return states, total


def log_partition(model: Pairwise) -> float:
    """log of the sum of all weights, by enumeration."""
    _, terms = model.enumerated("log_partition")
    return float(np.logaddexp.reduce(terms))


def sample(model: Pairwise, key: Key, n: int) -> Array:
    """[n, L] int32 exact samples, by enumeration."""
    checks.one_key(key)
    n = checks.positive_int(n, "n")
    states, terms = model.enumerated("sample")
    total = np.cumsum(np.exp(terms - terms.max()))
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    chosen = np.searchsorted(total, rng.random(n) * total[-1], side="right")
    return jnp.asarray(states[np.minimum(chosen, len(states) - 1)], jnp.int32)


def checked_edges(edges: Any, num_sites: int) -> tuple[tuple[int, int], ...]:
    """The edges as pairs of ints; raises TypeError or ValueError unless they are, one at least."""
    if isinstance(edges, str | bytes) or not np.iterable(edges):
        raise TypeError(f"edges must be pairs of sites, got {edges!r:.80}")
    pairs = tuple(checked_edge(edge, num_sites) for edge in edges)
    if not pairs:
        raise ValueError("edges must hold at least one edge")
    return pairs


def numbers(values: Any, name: str, size: int) -> tuple[float, ...]:
    """`size` finite numbers, one given number standing for all; raises TypeError or ValueError."""
    if isinstance(values, str) or not np.iterable(values):
        values = (values,) * size
    found = tuple(checks.finite_float(v, f"every one of {name}") for v in values)
    if len(found) != size:
        raise ValueError(f"{name} must be one number or {size}, got {len(found)}")
    return found


def tokens(x: Any, num_sites: int, vocab_size: int) -> Array:
    """[..., L] int32; raises TypeError unless integers, ValueError for another number of sites."""
    x = checks.as_array(x, "x", "an array of integers")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"x must hold integer tokens, got dtype {x.dtype}")
    if x.ndim < 1 or x.shape[-1] != num_sites:
        raise ValueError(f"x must have shape [..., {num_sites}], the sites of this energy, got {x.shape}")
    return checks.tokens(x, vocab_size)


class OnGraph:
    """What a model of pairwise terms on a graph offers, by its `_model` and a constant."""

    num_sites: int
    edges: tuple[tuple[int, int], ...]
    vocab_size: Any
    _model: Any
    _constant: Any = 0.0

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.num_sites,)

    @property
    def colouring(self) -> tuple[int, ...]:
        """[L] a colour for each site, none the same at both ends of an edge, the most frequent the last."""
        return lattices.colouring(self.num_sites, self.edges)

    def __call__(self, x: Array) -> Array:
        """Energy [...] of tokens x [..., L] in 0..V-1; raises TypeError, ValueError for anything else."""
        return self._constant - self._model.log_weight(self._tokens(x))

    def single_site_conditionals(self, x: Array) -> Array:
        """Logits [..., L, V] of every site's token given all the others; errors as of the call."""
        return self._model.conditionals(self._tokens(x))[0]

    def revealed_conditionals(
        self, x: Array, scale: Any = 1.0, depth: int | None = None
    ) -> tuple[Array, Array]:
        """Logits of the hidden sites given the revealed ones, and where they are exact.

        Belief propagation in `depth` rounds, from no messages: exact where the hidden sites that hang
        together with a site form a tree of at most `depth` bonds from it to revealed ones.

        Args:
          x: [..., L] integer tokens in 0..V, V the mask.
          scale: factor on the energy, a scalar, may be traced.
          depth: rounds, at least 0. None: 1 where sites have up to six neighbours in the mean; 0 on denser
            graphs, where hidden sites seldom hang together as a tree and messages take long.

        Returns:
          (logits [..., L, V], exact [..., L] bool, False at revealed sites).

        Raises:
          TypeError: `x` is not of an integer dtype. ValueError: its trailing size is not L.
        """
        if depth is None:
            depth = 1 if 2 * len(self.edges) <= _FEW_NEIGHBOURS * self.num_sites else 0
        return self._model.conditionals(self._tokens(x), scale, depth)

    def log_partition(self) -> float:
        """log sum_x exp(-E(x)) in float64, by enumeration; raises ValueError above 2^20 states."""
        return log_partition(self._model) - self._constant

    def sample(self, key: Key, n: int) -> Array:
        """[n, L] exact samples by enumeration; raises ValueError above 2^20 states."""
        return sample(self._model, key, n)

    def _tokens(self, x: Any) -> Array:
        return tokens(x, self.num_sites, self.vocab_size)
