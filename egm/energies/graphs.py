"""Combinatorial problems on graphs as energies: the largest cut, independent set and clique."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.energies import _pairwise as pairwise
from egm.typing import Array

__all__ = ["IndependentSet", "MaximumCut"]


@dataclasses.dataclass(frozen=True)
class MaximumCut(pairwise.OnGraph):
    """E(x) = -beta sum over edges of w_e [x_i != x_j]: the heavier the cut between 0 and 1, the likelier.

    Attributes:
      num_sites: L, the nodes.
      edges: pairs of nodes.
      weights: w_e, one an edge, or one number for all.
      inverse_temperature: beta >= 0.

    Raises:
      TypeError, ValueError: an edge joins no two nodes, or numbers are missing or not finite.

    Examples:
      >>> energy = egm.energies.MaximumCut(4, ((0, 1), (1, 2), (2, 3), (3, 0), (0, 2)))
      >>> print(energy.cut(jnp.array([[0, 1, 0, 1], [0, 1, 1, 0]])))
      [4. 3.]
    """

    num_sites: int
    edges: tuple[tuple[int, int], ...]
    weights: Any = 1.0
    inverse_temperature: float = 1.0

    def __post_init__(self):
        number = checks.positive_int(self.num_sites, "num_sites")
        edges = pairwise.checked_edges(self.edges, number)
        beta = checks.positive_float(self.inverse_temperature, "inverse_temperature", allow_zero=True)
        object.__setattr__(self, "edges", edges)
        object.__setattr__(self, "weights", pairwise.numbers(self.weights, "weights", len(edges)))
        object.__setattr__(self, "inverse_temperature", beta)

    @classmethod
    def from_graph(cls, graph: Any, inverse_temperature: float = 1.0, weight: str = "weight") -> MaximumCut:
        """Of a networkx graph, its nodes in their order; an edge without `weight` has weight 1.

        Raises:
          TypeError: graph has no nodes and edges, or weight is no name. ValueError: as for the class.
        """
        if not isinstance(weight, str):
            raise TypeError(f"weight must be the name of an edge's weight, got {weight!r:.80}")
        number, edges, weights = _read(graph, weight)
        return cls(number, edges, weights, inverse_temperature)

    @property
    def vocab_size(self) -> int:
        """V = 2, the sides of the cut; the mask token is 2."""
        return 2

    def cut(self, x: Array) -> Array:
        """[...] weight of the edges cut by tokens x [..., L]; raises TypeError, ValueError for others."""
        x = self._tokens(x)
        i, j = np.array(self.edges).T
        return jnp.where(x[..., i] != x[..., j], 1.0, 0.0) @ jnp.asarray(self.weights, float)

    @property
    def _constant(self) -> float:
        return -self.inverse_temperature * float(np.sum(self.weights))

    @functools.cached_property
    def _model(self) -> pairwise.Pairwise:
        bonds = -self.inverse_temperature * np.array(self.weights)
        return pairwise.Pairwise(np.array(self.edges), bonds, np.zeros((self.num_sites, 2)))


@dataclasses.dataclass(frozen=True)
class IndependentSet(pairwise.OnGraph):
    """E(x) = -beta (sum of w_i x_i - penalty sum over edges of x_i x_j), x_i = 1 for nodes in the set.

    With a penalty of at least the largest weight the lowest energy is that of a heaviest independent set:
    `repaired` takes conflicts out of any state. The largest clique is one of the complement (`cliques`).

    Attributes:
      num_sites: L, the nodes.
      edges: pairs of nodes that may not both be in the set.
      weights: w_i >= 0, one a node, or one number for all.
      penalty: of a conflict, at least the largest weight; 2 times it by default (None).
      inverse_temperature: beta >= 0.

    Raises:
      TypeError, ValueError: an edge joins no two nodes, or numbers are missing, not finite or out of range.

    Examples:
      >>> energy = egm.energies.IndependentSet(5, ((0, 1), (1, 2), (2, 3), (3, 4)))  # a path
      >>> x = jnp.array([[1, 1, 0, 0, 1]])  # 0 and 1 are neighbours
      >>> print(energy(x), energy.repaired(x), energy.size(energy.repaired(x)))
      [-1.] [[1 0 1 0 1]] [3.]
    """

    num_sites: int
    edges: tuple[tuple[int, int], ...]
    weights: Any = 1.0
    penalty: float | None = None
    inverse_temperature: float = 1.0

    def __post_init__(self):
        number = checks.positive_int(self.num_sites, "num_sites")
        weights = pairwise.numbers(self.weights, "weights", number)
        if min(weights) < 0:
            raise ValueError(f"weights must be >= 0, got {min(weights)}")
        penalty = 2.0 * max(weights) if self.penalty is None else self.penalty
        penalty = checks.positive_float(penalty, "penalty", allow_zero=True)
        if penalty < max(weights):
            raise ValueError(f"penalty must be at least the largest weight, {max(weights)}, got {penalty}")
        beta = checks.positive_float(self.inverse_temperature, "inverse_temperature", allow_zero=True)
        for name, value in (
            ("edges", pairwise.checked_edges(self.edges, number)),
            ("weights", weights),
            ("penalty", penalty),
            ("inverse_temperature", beta),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def from_graph(cls, graph: Any, inverse_temperature: float = 1.0) -> IndependentSet:
        """Of a networkx graph, its nodes in their order; errors as of `MaximumCut.from_graph`."""
        number, edges, _ = _read(graph, None)
        return cls(number, edges, inverse_temperature=inverse_temperature)

    @classmethod
    def cliques(cls, graph: Any, inverse_temperature: float = 1.0) -> IndependentSet:
        """Of the complement of a networkx graph: its independent sets are the graph's cliques.

        Raises:
          TypeError: graph has no nodes and edges. ValueError: every pair of nodes is joined.
        """
        number, edges, _ = _read(graph, None)
        joined = {frozenset(edge) for edge in edges}
        pairs = itertools.combinations(range(number), 2)
        others = tuple(pair for pair in pairs if frozenset(pair) not in joined)
        return cls(number, others, inverse_temperature=inverse_temperature)

    @property
    def vocab_size(self) -> int:
        """V = 2; the mask token is 2."""
        return 2

    def size(self, x: Array) -> Array:
        """[...] weight of the chosen nodes of tokens x [..., L], conflicts or not; errors as of the call."""
        return self._tokens(x).astype(float) @ jnp.asarray(self.weights, float)

    def repaired(self, x: Array) -> Array:
        """[..., L] independent sets: node by node, heavier ones first, what is chosen stays if it may.

        Then every node that has no neighbour in the set comes in, so that none could be larger by a node.

        Raises:
          TypeError, ValueError: x is no tokens of L sites.
        """
        x = self._tokens(x)
        joined = np.zeros((self.num_sites, self.num_sites), np.int32)
        for i, j in self.edges:
            joined[i, j] = joined[j, i] = 1
        order = np.argsort(-np.array(self.weights), kind="stable")

        def taken(chosen, wanted):
            def one(chosen, node):
                free = (chosen @ jnp.asarray(joined)[node]) == 0
                here = jnp.arange(self.num_sites) == node
                new = (jnp.take(wanted, node, axis=-1) == 1) & free
                return jnp.where(jnp.broadcast_to(here, chosen.shape) & new[..., None], 1, chosen), None

            return jax.lax.scan(one, chosen, jnp.asarray(order))[0]

        kept = taken(jnp.zeros_like(x), x)
        return taken(kept, jnp.ones_like(x))

    @property
    def _constant(self) -> float:
        return -0.5 * self.inverse_temperature * float(self.penalty or 0.0) * len(self.edges)

    @functools.cached_property
    def _model(self) -> pairwise.Pairwise:
        # x_i x_j = ([x_i = x_j] + x_i + x_j - 1) / 2 of 0 and 1.
        edges, strength = np.array(self.edges), self.inverse_temperature * float(self.penalty or 0.0)
        degree = np.bincount(edges.ravel(), minlength=self.num_sites)
        chosen = self.inverse_temperature * np.array(self.weights) - 0.5 * strength * degree
        biases = np.stack([np.zeros(self.num_sites), chosen], axis=1)
        return pairwise.Pairwise(edges, np.full(len(edges), -0.5 * strength), biases)


def _read(graph: Any, weight: str | None) -> tuple[int, tuple[tuple[int, int], ...], tuple[Any, ...]]:
    """(number of nodes, edges without loops, their weights) of a networkx graph."""
    if not (hasattr(graph, "nodes") and hasattr(graph, "edges")):
        raise TypeError(f"graph must have nodes and edges as of networkx, got {graph!r:.80}")
    place = {node: i for i, node in enumerate(graph.nodes)}
    found = [(place[a], place[b], data) for a, b, data in graph.edges(data=True) if a != b]
    weights = () if weight is None else tuple(data.get(weight, 1.0) for *_, data in found)
    return len(place), tuple((a, b) for a, b, _ in found), weights
