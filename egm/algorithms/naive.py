"""Naive EGM (arXiv 2505.19646): the generator regresses on F_t ~ sum_k w_k F_{t|1}^{x_1^k}, w ~ exp(-E)."""

from __future__ import annotations

import dataclasses
from typing import Any

from egm import bootstrap, random
from egm.algorithms._shared import check_fields, check_samples, compare, estimate_metrics, estimated_values
from egm.estimators import estimate
from egm.typing import Apply, Energy, EvaluationCounts, Head, ModelFn, Path, PyTree

__all__ = ["Naive"]


@dataclasses.dataclass(frozen=True)
class Naive:
    """Naive EGM: the generator regresses on its SNIS estimate from uniform proposals at r = 1.

    A `ScoreHead` learns from the same samples the variance of x_1 given x_t (`egm.typing.EstimatingHead`).

    Attributes:
      path: the path.
      head: what the network's output stands for.
      apply: the network.
      num_samples: K.
      chunk_size: most samples held at once, as in `egm.estimate`.

    Examples:
      >>> path, net = egm.paths.MaskedPath(2), egm.networks.MLPDenoiser(2, width=8, depth=1)
      >>> algorithm = egm.algorithms.Naive(path, egm.heads.DenoiserHead(path), net.apply, num_samples=100)
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
    num_samples: int = 1000
    chunk_size: int | None = 256
    draws_by_weight: bool = False

    def __post_init__(self):
        check_fields(self, ("apply",))
        check_samples(self)

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> EvaluationCounts:
        """K a training example, and those of the head."""
        generator, _ = self.head.energy_evaluations(energy, event_shape)
        return EvaluationCounts(0, generator, generator + self.num_samples)

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`."""
        return lambda x, t: self.head.generator(self.apply(params, x, t), x, t, energy)

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        del target_params
        k_noise, k_estimate = random.split(keys)
        x_t = random.per_example(self.path.sample, k_noise, x_1, t)
        output = self.apply(params, x_t, t)
        est = estimate(
            k_estimate,
            self.path,
            bootstrap.terminal(energy),
            x_t,
            t,
            1.0,
            num_samples=self.num_samples,
            chunk_size=self.chunk_size,
            values=estimated_values(self.head, output, x_t, t, energy),
        )
        loss, metrics = compare(self.head, est, output, x_t, t, energy)
        return loss, metrics | estimate_metrics(est)
