"""Spin models on any graph: Ising with any couplings and fields (spin glasses), Potts of any colours."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from egm import checks, random
from egm.energies import _pairwise as pairwise
from egm.energies import lattices
from egm.typing import Key

__all__ = ["Potts", "SpinGlass"]


@dataclasses.dataclass(frozen=True)
class SpinGlass(pairwise.OnGraph):
    """E(x) = -beta (sum over edges of J_e s_i s_j + sum over sites of h_i s_i), s = 2x - 1, on any graph.

    Attributes:
      num_sites: L.
      edges: pairs of sites; `egm.energies.lattices.square` makes those of a lattice of any dimension.
      couplings: J_e, one an edge, or one number for all.
      fields: h_i, one a site, or one number for all.
      inverse_temperature: beta >= 0.

    Raises:
      TypeError, ValueError: an edge joins no two sites, or numbers are missing or not finite.

    Examples:
      >>> edges = ((0, 1), (1, 2), (2, 0))  # a triangle that cannot satisfy all of its bonds
      >>> energy = egm.energies.SpinGlass(3, edges, couplings=-1.0)
      >>> print(energy(jnp.array([[0, 1, 0], [0, 0, 0]])))
      [-1.  3.]
      >>> print(f"log Z {energy.log_partition():.3f}")
      log Z 2.798
    """

    num_sites: int
    edges: tuple[tuple[int, int], ...]
    couplings: Any = 1.0
    fields: Any = 0.0
    inverse_temperature: float = 1.0

    def __post_init__(self):
        number = checks.positive_int(self.num_sites, "num_sites")
        edges = pairwise.checked_edges(self.edges, number)
        beta = checks.positive_float(self.inverse_temperature, "inverse_temperature", allow_zero=True)
        for name, value in (
            ("edges", edges),
            ("couplings", pairwise.numbers(self.couplings, "couplings", len(edges))),
            ("fields", pairwise.numbers(self.fields, "fields", number)),
            ("inverse_temperature", beta),
        ):
            object.__setattr__(self, name, value)

    @classmethod
    def edwards_anderson(
        cls, key: Key, shape: Sequence[int], inverse_temperature: float, couplings: str = "signs"
    ) -> SpinGlass:
        """The glass of Edwards and Anderson (1975) on a periodic lattice, its couplings drawn.

        Args:
          key: one typed key, of the couplings.
          shape: the sides, two for the square lattice, three for the cubic one.
          inverse_temperature: beta.
          couplings: "signs" for +1 and -1, "normal" for standard normal ones.

        Returns:
          SpinGlass.

        Raises:
          TypeError, ValueError: an argument is wrong.
        """
        checks.one_key(key)
        if couplings not in ("signs", "normal"):
            raise ValueError(f"couplings must be 'signs' or 'normal', got {couplings!r:.80}")
        edges = lattices.square(shape)
        key, drawn = random.derive(key, "couplings"), None
        if couplings == "signs":
            drawn = 2.0 * np.asarray(jax.random.bernoulli(key, 0.5, (len(edges),))) - 1.0
        else:
            drawn = np.asarray(jax.random.normal(key, (len(edges),)), np.float64)
        return cls(int(np.prod(shape)), edges, tuple(drawn.tolist()), 0.0, inverse_temperature)

    @property
    def vocab_size(self) -> int:
        """V = 2; the mask token is 2."""
        return 2

    @property
    def _constant(self) -> float:
        """What 2 [s = s'] - 1 takes from each bond."""
        return self.inverse_temperature * float(np.sum(self.couplings))

    @functools.cached_property
    def _model(self) -> pairwise.Pairwise:
        beta, fields = self.inverse_temperature, np.array(self.fields)
        biases = beta * np.stack([-fields, fields], axis=1)
        return pairwise.Pairwise(np.array(self.edges), 2 * beta * np.array(self.couplings), biases)


@dataclasses.dataclass(frozen=True)
class Potts(pairwise.OnGraph):
    """E(x) = -beta (sum over edges of J_e [x_i = x_j] + h sum over sites of [x_i = 0]) on any graph.

    On the square lattice at J = 1 the transition is at beta = log(1 + sqrt(V)), continuous up to V = 4.

    Attributes:
      num_sites: L.
      edges: pairs of sites, as of `egm.energies.lattices.square`.
      vocab_size: V, the number of colours, at least 2; the mask token is V.
      couplings: J_e, one an edge, or one number for all.
      field: h, on colour 0.
      inverse_temperature: beta >= 0.

    Raises:
      TypeError, ValueError: an edge joins no two sites, or numbers are missing or not finite.

    Examples:
      >>> edges = egm.energies.lattices.square((3, 3))
      >>> energy = egm.energies.Potts(9, edges, vocab_size=3, inverse_temperature=0.5)
      >>> print(energy(jnp.zeros((1, 9), jnp.int32)), f"log Z {energy.log_partition():.2f}")
      [-9.] log Z 13.52
    """

    num_sites: int
    edges: tuple[tuple[int, int], ...]
    vocab_size: int
    couplings: Any = 1.0
    field: float = 0.0
    inverse_temperature: float = 1.0

    def __post_init__(self):
        number = checks.positive_int(self.num_sites, "num_sites")
        checks.positive_int(self.vocab_size, "vocab_size", 2)
        edges = pairwise.checked_edges(self.edges, number)
        beta = checks.positive_float(self.inverse_temperature, "inverse_temperature", allow_zero=True)
        for name, value in (
            ("edges", edges),
            ("couplings", pairwise.numbers(self.couplings, "couplings", len(edges))),
            ("field", checks.finite_float(self.field, "field")),
            ("inverse_temperature", beta),
        ):
            object.__setattr__(self, name, value)

    @functools.cached_property
    def _model(self) -> pairwise.Pairwise:
        beta = self.inverse_temperature
        biases = np.zeros((self.num_sites, self.vocab_size))
        biases[:, 0] = beta * self.field
        return pairwise.Pairwise(np.array(self.edges), beta * np.array(self.couplings), biases)
