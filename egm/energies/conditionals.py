"""Single-site conditionals for any energy on tokens, alone or in a mixed state, by evaluating it."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives
from egm.typing import ENERGY_OFFERS, Array, Energy, State

__all__ = ["WithColouring", "WithConditionals"]


@dataclasses.dataclass(frozen=True)
class WithConditionals:
    """An energy with `single_site_conditionals` of its tokens from L * V evaluations of it.

    They turn conditional targets into Rao-Blackwell ones (`egm.algorithms.Weighted`), which is worth
    far more than their cost wherever the energy is cheap beside the network.

    Attributes:
      energy: E, `[N] = energy(x)` of tokens x [N, L], or of a dict of arrays [N, ...].
      vocab_size: V.
      part: None for tokens alone; for a dict the key of its tokens [N, L].

    Examples:
      >>> ring = lambda x: -jnp.sum(x == jnp.roll(x, 1, axis=-1), axis=-1).astype(float)
      >>> energy = egm.energies.WithConditionals(ring, vocab_size=3)
      >>> print(energy.single_site_conditionals(jnp.array([[0, 0, 0, 1]])).shape)
      (1, 4, 3)
    """

    energy: Energy
    vocab_size: int
    part: str | None = None

    def __post_init__(self):
        checks.function(self.energy, "energy")
        checks.positive_int(self.vocab_size, "vocab_size", minimum=2)
        if self.part is not None and not isinstance(self.part, str):
            raise TypeError(f"part must be None or the name of a part, got {self.part!r:.80}")

    def __call__(self, x: State) -> Array:
        """E(x) itself, [...]."""
        return self.energy(x)

    def __getattr__(self, name: str):
        # What else an energy may offer (`egm.typing.ENERGY_OFFERS`) stays offered.
        if name in ENERGY_OFFERS:
            return getattr(self.energy, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def conditional_evaluations(self, num_sites: int) -> int:
        """Energy evaluations of one call of `single_site_conditionals` for a state of L sites."""
        return num_sites * self.vocab_size

    def single_site_conditionals(self, x: State) -> Array:
        """Logits [N, L, V] = -E(x with site i set to v) for tokens x [N, L], or for part `part` of x.

        Raises:
          TypeError: `part` is named and x is no dict, or the tokens are no integers.
          ValueError: the tokens are not [N, L] or not in x, or the energy does not return [N].
        """
        name, tokens = "x", x
        if self.part is not None:
            name = f"x[{self.part!r}]"
            if not isinstance(x, dict):
                raise TypeError(f"x must be a dict with a part {self.part!r}, got {type(x).__name__}")
            if self.part not in x:
                raise ValueError(f"x must have a part {self.part!r}, got {sorted(x, key=str)}")
            tokens = x[self.part]
        tokens = checks.as_array(tokens, name, "an array of integers")
        if not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise TypeError(f"{name} must hold integer tokens, got dtype {tokens.dtype}")
        if tokens.ndim != 2:
            raise ValueError(f"{name} must have shape [N, L], got {tokens.shape}")
        tokens = checks.tokens(tokens, self.vocab_size)
        n, sites = tokens.shape
        chosen = jnp.eye(sites, dtype=bool)[:, None, None, :]
        values = jnp.arange(self.vocab_size, dtype=tokens.dtype)[None, :, None, None]
        copies = sites * self.vocab_size
        states = jnp.where(chosen, values, tokens[None, None]).reshape(copies, n, sites)
        states = collectives.merge(states)
        if self.part is not None:

            def repeat(a):
                a = jnp.asarray(a)
                return collectives.merge(jnp.broadcast_to(a[None], (copies, *a.shape)))

            rest = {key: value for key, value in x.items() if key != self.part}
            states = {**jax.tree.map(repeat, rest), self.part: states}
        out = checks.model_output(self.energy(states), "energy", (n * copies,))
        return -collectives.unmerge(out, copies).T.reshape(n, sites, self.vocab_size)


@dataclasses.dataclass(frozen=True)
class WithColouring:
    """An energy of tokens with a colouring of its sites: `revealed_conditionals` from its conditionals.

    What an order that reveals the last colour at once (`egm.processes.orders.colouring`) asks an energy for.
    `egm.energies.check_colouring` tells a colouring that is none.

    Attributes:
      energy: E of tokens, with `single_site_conditionals`.
      colours: [L] the colour of each site; no two sites of a colour interact.

    Raises:
      TypeError: the energy has no conditionals, or the colours are no integers.
    """

    energy: Any
    colours: tuple[int, ...]

    def __post_init__(self):
        checks.function(self.energy, "energy")
        if not hasattr(self.energy, "single_site_conditionals"):
            raise TypeError(
                f"energy must offer single_site_conditionals (WithConditionals), got {self.energy!r:.80}"
            )
        if isinstance(self.colours, str) or not np.iterable(self.colours):
            raise TypeError(f"colours must be a sequence of integers, got {self.colours!r:.80}")
        colours = tuple(checks.positive_int(c, f"colours[{i}]", 0) for i, c in enumerate(self.colours))
        if not colours:
            raise ValueError("colours must name a colour for each site, got none")
        object.__setattr__(self, "colours", colours)

    @property
    def colouring(self) -> tuple[int, ...]:
        """[L], the colours."""
        return self.colours

    @property
    def vocab_size(self) -> int:
        """V, of the energy."""
        return self.energy.vocab_size

    def __call__(self, x: Array) -> Array:
        """E(x) itself, [...]."""
        return self.energy(x)

    def __getattr__(self, name: str):
        if name in ENERGY_OFFERS:
            return getattr(self.energy, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def revealed_evaluations(self, num_sites: int) -> int:
        """Energy evaluations of one call of `revealed_conditionals` for a state of L sites."""
        return getattr(self.energy, "conditional_evaluations", lambda num_sites: 0)(num_sites)

    def revealed_conditionals(self, x: Array, scale: Any = 1.0) -> tuple[Array, Array]:
        """Logits of all sites with token 0 where the mask stands, exact where all other colours are seen.

        Args:
          x: [N, L] integer tokens in 0..V, V the mask.
          scale: factor on the energy, a scalar, may be traced.

        Returns:
          (logits [N, L, V], exact [N, L] bool, False at revealed sites).

        Raises:
          TypeError, ValueError: x is no tokens of L sites.
        """
        x = checks.integer_array(x, "x", 2)
        if x.shape[-1] != len(self.colours):
            raise ValueError(f"x has trailing size {x.shape[-1]}, this energy has {len(self.colours)} sites")
        x = checks.tokens(x, self.vocab_size)
        hidden = x == self.vocab_size
        logits = scale * self.energy.single_site_conditionals(jnp.where(hidden, 0, x))
        same = np.equal.outer(self.colours, self.colours)
        others = (hidden.astype(jnp.int32) @ jnp.asarray(~same, jnp.int32)) == 0
        return logits, hidden & others
