"""Bootstrapped EGM (arXiv 2505.19646): estimates at r = t + h, weighted by a learned exp(phi_r)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from egm import bootstrap, losses, random
from egm.algorithms._shared import check_fields, check_samples, compare, estimate_metrics, with_skip
from egm.estimators import estimate
from egm.typing import Apply, Energy, Head, ModelFn, Path, PyTree

__all__ = ["Bootstrap"]


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Bootstrapped EGM: both the generator and phi regress on estimates through phi at r = t + step.

    Parameters are a dict {"generator": ..., "log_marginal": ...}; phi_r takes the target parameters,
    and -E where r = 1.

    Attributes:
      path: the path.
      head: what the generator network's output stands for.
      apply: the generator network.
      apply_log_marginal: g, `[N] = apply_log_marginal(params, x, t)`.
      num_samples: K.
      step: h = r - t.
      chunk_size: most samples held at once, as in `egm.estimate`.
      skip: a closed form that is added to the network's g, `ModelFn = skip(energy)`, made of the
        annealed energy; `egm.networks.energy_log_marginal` is one.
    """

    path: Path
    head: Head
    apply: Apply
    apply_log_marginal: Apply
    num_samples: int = 1000
    step: float = 0.01
    chunk_size: int | None = 1024
    skip: Callable[[Energy], ModelFn] | None = None
    draws_by_weight: bool = False

    def __post_init__(self):
        check_fields(self, ("apply", "apply_log_marginal"))
        check_samples(self)
        bootstrap.intermediate_time(0.0, self.step)

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int, int]:
        """K a training example, an upper bound: most have r < 1; and those of the head."""
        generator, _ = self.head.energy_evaluations(energy, event_shape)
        return 0, generator, generator + self.num_samples

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`."""
        return lambda x, t: self.head.generator(self.apply(params["generator"], x, t), x, t, energy)

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        k_noise, k_estimate = random.split(keys)
        x_t = random.per_example(self.path.sample, k_noise, x_1, t)

        def g(p):
            return with_skip(self.apply_log_marginal, p["log_marginal"], self.skip, energy)

        est = estimate(
            k_estimate,
            self.path,
            bootstrap.boundary(energy, g(target_params), self.path),
            x_t,
            t,
            bootstrap.intermediate_time(t, self.step),
            num_samples=self.num_samples,
            chunk_size=self.chunk_size,
        )
        output = self.apply(params["generator"], x_t, t)
        generator_loss, metrics = compare(self.head, est, output, x_t, t, energy)
        target = est.log_marginal - self.path.log_normalizer(x_t, t, jnp.ones_like(t))
        prediction = g(params)(x_t, t)
        phi_loss = losses.log_marginal_loss(target, prediction, est.valid & ~self.path.determined(x_t))
        return generator_loss + phi_loss, metrics | estimate_metrics(est)
