"""Local bootstrapping: phi by its exact local recursion (h -> 0), the generator read off phi."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from egm import bootstrap, checks, divergences, losses, random
from egm.algorithms._shared import check_fields, with_skip
from egm.typing import Apply, Energy, EvaluationCounts, ModelFn, Path, PyTree

__all__ = ["LocalBootstrap"]


@dataclasses.dataclass(frozen=True)
class LocalBootstrap:
    """phi by its exact local recursion, the generator read off it locally (h -> 0), without samples.

    With masks one site is revealed in every colour; on the uniform path a short step is taken to every other
    token at each site, on Gaussian paths to the sigma points of the proposal (`egm.bootstrap.local_target`),
    and the score is the gradient of phi.

    Attributes:
      path: the path.
      apply: g, `[N] = apply(params, x, t)`.
      num_steps: of the grid `path.times` that a step is taken on, but with masks.
      skip: as for `Bootstrap`.
      draws_by_weight: whether x_1 is drawn by path weight.

    Examples:
      >>> path, g = egm.paths.MaskedPath(2), egm.networks.MLPLogMarginal(2, width=8, depth=1)
      >>> algorithm = egm.algorithms.LocalBootstrap(path, g.apply)
      >>> params = g.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
      >>> generator = algorithm.generator(params, egm.energies.Ising(side=2, inverse_temperature=0.4))
      >>> generator(jnp.full((1, 4), 2), jnp.zeros(1)).shape  # probabilities at each site of a state of masks
      (1, 4, 2)
    """

    path: Path
    apply: Apply
    num_steps: int = 100
    skip: Callable[[Energy], ModelFn] | None = None
    draws_by_weight: bool = True

    def __post_init__(self):
        check_fields(self, ("apply",))
        checks.positive_int(self.num_steps, "num_steps")

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> EvaluationCounts:
        """An upper bound: only states without a mask, or at t = 1, ask for E itself."""
        count = bootstrap.num_local_states(self.path, event_shape)
        # A trajectory asks for E where its last mask falls, with V tokens; without masks it never does.
        last = getattr(self.path, "mask_token", 0)
        return EvaluationCounts(last, 0, count)

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`; where x_1 is all but known the energy itself gives the generator."""
        g = bootstrap.relative_boundary(energy, self._g(params, energy), self.path)
        return bootstrap.LocalGenerator(self.path, g)

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        k_noise, k_local = random.split(keys)
        x_t = random.per_example(self.path.sample, k_noise, x_1, t)
        g = bootstrap.relative_boundary(energy, self._g(target_params, energy), self.path)
        target = bootstrap.local_target(k_local, g, self.path, x_t, t, self.num_steps)
        prediction = self._g(params, energy)(x_t, t)
        # The target is exact given the target parameters: no mean of an exponential is being estimated.
        loss = losses.log_marginal_loss(
            target, prediction, ~self.path.determined(x_t), divergences.squared_difference
        )
        return loss, {}

    def _g(self, params, energy):
        return with_skip(self.apply, params, self.skip, energy)
