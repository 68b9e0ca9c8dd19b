"""Single-site conditionals for any energy on tokens, by evaluating it."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from egm import checks
from egm.typing import Array, Energy


@dataclasses.dataclass(frozen=True)
class WithConditionals:
    """An energy on tokens with `single_site_conditionals` from L * V evaluations of it.

    They turn conditional targets into Rao-Blackwell ones (`egm.algorithms.Weighted`), which is worth
    far more than their cost wherever the energy is cheap beside the network.

    Attributes:
      energy: E, `[N] = energy(x [N, L])`.
      vocab_size: V.
    """

    energy: Energy
    vocab_size: int

    def __post_init__(self):
        checks.positive_int(self.vocab_size, "vocab_size", minimum=2)

    def __call__(self, x: Array) -> Array:
        """E(x) itself, [...]."""
        return self.energy(x)

    def conditional_evaluations(self, num_sites: int) -> int:
        """Energy evaluations of one call of `single_site_conditionals` for a state of L sites."""
        return num_sites * self.vocab_size

    def single_site_conditionals(self, x: Array) -> Array:
        """Logits [N, L, V] = -E(x with site i set to v) for x [N, L].

        Raises:
          ValueError: x is not [N, L], or the energy does not return [N].
        """
        if x.ndim != 2:
            raise ValueError(f"x must have shape [N, L], got {x.shape}")
        n, sites = x.shape
        chosen = jnp.eye(sites, dtype=bool)[:, None, None, :]
        values = jnp.arange(self.vocab_size, dtype=x.dtype)[None, :, None, None]
        states = jnp.where(chosen, values, x[None, None]).reshape(-1, sites)
        out = checks.model_output(self.energy(states), "energy", (states.shape[0],))
        return -jnp.moveaxis(out.reshape(sites, self.vocab_size, n), -1, 0)
