"""Weighted conditional loss: the sampler itself is the SNIS proposal, x_1 drawn by path weight."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, collectives, random
from egm.algorithms._shared import check_fields, compare
from egm.typing import (
    Apply,
    Array,
    Energy,
    EvaluationCounts,
    Head,
    Key,
    ModelFn,
    Path,
    PlacingHead,
    ProbingHead,
    PyTree,
    State,
)

__all__ = ["Weighted"]


@dataclasses.dataclass(frozen=True)
class Weighted:
    """The sampler itself as the SNIS proposal: conditional targets on x_1 drawn by path weight.

    Attributes:
      path: the path.
      head: what the network's output stands for.
      apply: the network.
      energy_targets: let targets use the energy where it offers more than its value (Rao-Blackwell
        targets from single-site conditionals, target scores from its gradient).

    Examples:
      >>> path, net = egm.paths.MaskedPath(2), egm.networks.MLPDenoiser(2, width=8, depth=1)
      >>> algorithm = egm.algorithms.Weighted(path, egm.heads.DenoiserHead(path), net.apply)
      >>> x_1, t = jnp.array([[0, 1, 1, 0], [1, 1, 0, 0]]), jnp.array([0.3, 0.6])
      >>> params = net.init(jax.random.key(0), x_1)
      >>> keys = egm.random.example_keys(jax.random.key(1), 2)
      >>> energy = egm.energies.Ising(side=2, inverse_temperature=0.4)
      >>> loss, metrics = algorithm.loss(keys, params, params, x_1, t, energy)
      >>> loss.shape
      (2,)
    """

    path: Path
    head: Head
    apply: Apply
    energy_targets: bool = True
    draws_by_weight: bool = True

    def __post_init__(self):
        check_fields(self, ("apply",))
        checks.flag(self.energy_targets, "energy_targets")

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> EvaluationCounts:
        """Those of the head."""
        generator, target = self.head.energy_evaluations(energy, event_shape)
        return EvaluationCounts(0, generator, generator + target * self.energy_targets)

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`."""

        def network(x, t):
            return self.apply(params, x, t)

        def generator(x, t):
            if not isinstance(self.head, PlacingHead):
                return self.head.generator(network(x, t), x, t, energy)
            like = jax.eval_shape(network, x, t)
            none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
            none = collectives.varying_like(none, like)
            asked = jnp.any(self.head.needs_output(x, energy))
            output = jax.lax.cond(asked, network, lambda x, t: none, x, t)
            return self.head.generator(output, x, t, energy)

        return generator

    def differentiable(self, keys: Key, x_1: State, t: Array, energy: Energy) -> tuple[Array, int]:
        """(whether targets may use the gradient of the energy around x_1 at t, evaluations of E spent).

        Args:
          keys: [B]. x_1: states with one batch axis B. t: [B]. energy: E, annealed.
        """
        head = self.head
        count = head.probe_evaluations(energy) if isinstance(head, ProbingHead) else 0
        if not self.energy_targets or not isinstance(head, ProbingHead) or not count:
            told = getattr(energy, "differentiable", True) if self.energy_targets else True
            return jnp.asarray(told, bool), 0
        x_t = random.per_example(self.path.sample, keys, x_1, t)
        return head.differentiable(x_1, x_t, t, energy), t.shape[0] * count

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        del target_params
        if isinstance(self.head, PlacingHead):
            x_t = self.head.training_states(keys, x_1, t)
        else:
            x_t = random.per_example(self.path.sample, keys, x_1, t)
        target = self.head.conditional_target(x_1, x_t, t, energy if self.energy_targets else None)
        return compare(self.head, target, self.apply(params, x_t, t), x_t, t, energy)
