"""Bootstrapped EGM (arXiv 2505.19646): estimates at r = r(t), weighted by a learned exp(phi_r)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from egm import bootstrap, checks, divergences, horizons, losses, proposals, random
from egm.algorithms._shared import (
    check_fields,
    check_samples,
    compare,
    estimate_metrics,
    estimated_values,
    with_skip,
)
from egm.estimators import estimate
from egm.typing import (
    Apply,
    Energy,
    EvaluationCounts,
    Head,
    Horizon,
    ModelFn,
    Path,
    PreparedProposal,
    Proposal,
    PyTree,
)

__all__ = ["Bootstrap"]


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Bootstrapped EGM: both the generator and phi regress on estimates through phi at r = r(t).

    Parameters are a dict {"generator": ..., "log_marginal": ...}; phi_r takes the target parameters,
    and -E where r = 1. `published` has the paper's settings; docs/algorithms.md says why the defaults
    are others. A `ScoreHead` learns the variance of x_1 given x_t from the same samples
    (`egm.typing.EstimatingHead`), which the default proposal draws by it.

    Attributes:
      path: the path.
      head: what the generator network's output stands for.
      apply: the generator network.
      apply_log_marginal: g, `[N] = apply_log_marginal(params, x, t)`.
      num_samples: K.
      step: how far ahead an estimate looks: a `Horizon` (`egm.horizons`), or a number h for r = t + h.
      chunk_size: most samples held at once, as in `egm.estimate`.
      skip: a closed form that is added to the network's g, `ModelFn = skip(energy)`, made of the
        annealed energy; `egm.networks.energy_log_marginal` is one.
      draws_by_weight: whether x_1 is drawn by path weight.
      proposal: what draws the samples (`egm.proposals`); None for the path's own q_{r|t}. A `Guided` one
        without a generator follows this one's own, by the target parameters.
      divergence: of g's targets, `[B] = divergence(target, prediction)`: squared error has no bias where
        the target has no noise, `divergences.exponential` none where it has.

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=2)
      >>> net = egm.networks.MLPDenoiser(vocab_size=2, width=8, depth=1)
      >>> g = egm.networks.MLPLogMarginal(vocab_size=2, width=8, depth=1)
      >>> algorithm = egm.algorithms.Bootstrap(path, egm.heads.DenoiserHead(path), net.apply, g.apply)
      >>> x = jnp.zeros((1, 4), jnp.int32)
      >>> params = {"generator": net.init(jax.random.key(0), x), "log_marginal": g.init(jax.random.key(1), x)}
      >>> generator = algorithm.generator(params, egm.energies.Ising(side=2, inverse_temperature=0.4))
      >>> generator(jnp.full((1, 4), 2), jnp.zeros(1)).shape  # probabilities at each site of a state of masks
      (1, 4, 2)
    """

    path: Path
    head: Head
    apply: Apply
    apply_log_marginal: Apply
    num_samples: int = 32
    step: float | Horizon = horizons.Nats()
    chunk_size: int | None = 1024
    skip: Callable[[Energy], ModelFn] | None = None
    draws_by_weight: bool = False
    proposal: Proposal | PreparedProposal | None = proposals.Guided()
    divergence: Callable[[Any, Any], Any] = divergences.squared_difference

    def __post_init__(self):
        check_fields(self, ("apply", "apply_log_marginal", "divergence"))
        check_samples(self)
        if not isinstance(self.step, Horizon):
            horizons.FixedStep(self.step)
        if self.proposal is not None:
            checks.instance(self.proposal, Proposal | PreparedProposal, "proposal")

    @classmethod
    def published(cls, path: Path, head: Head, apply: Apply, apply_log_marginal: Apply, **fields: Any):
        """With the paper's settings, K = 1000 and r = t + .01 by q_{r|t}; `fields` are the others'."""
        settings: dict[str, Any] = dict(
            num_samples=1000, step=0.01, proposal=None, divergence=divergences.exponential
        )
        return cls(path, head, apply, apply_log_marginal, **(settings | fields))

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> EvaluationCounts:
        """K a training example, an upper bound: most have r < 1; and those of the head."""
        generator, _ = self.head.energy_evaluations(energy, event_shape)
        following = self._following
        calls = 1 if following is None else 1 + following.calls(self.path)
        return EvaluationCounts(0, generator, calls * generator + self.num_samples)

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`."""
        return lambda x, t: self.head.generator(self.apply(params["generator"], x, t), x, t, energy)

    @property
    def _following(self) -> proposals.Guided | None:
        """The proposal, if it is to be guided by this algorithm's own generator."""
        found = self.proposal
        return found if isinstance(found, proposals.Guided) and found.generator is None else None

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        k_noise, k_estimate = random.split(keys)
        x_t = random.per_example(self.path.sample, k_noise, x_1, t)

        def g(p):
            return with_skip(self.apply_log_marginal, p["log_marginal"], self.skip, energy)

        proposal, following = self.proposal, self._following
        if following is not None:
            proposal = dataclasses.replace(following, generator=self.generator(target_params, energy))
        output = self.apply(params["generator"], x_t, t)
        horizon = self.step if isinstance(self.step, Horizon) else horizons.FixedStep(self.step)
        est = estimate(
            k_estimate,
            self.path,
            bootstrap.boundary(energy, g(target_params), self.path),
            x_t,
            t,
            horizon.look_ahead(self.path, x_t, t),
            num_samples=self.num_samples,
            chunk_size=self.chunk_size,
            proposal=proposal,
            values=estimated_values(self.head, output, x_t, t, energy),
        )
        generator_loss, metrics = compare(self.head, est, output, x_t, t, energy)
        target = est.log_marginal - self.path.log_normalizer(x_t, t, jnp.ones_like(t))
        prediction = g(params)(x_t, t)
        learns = est.valid & ~self.path.determined(x_t)
        phi_loss = losses.log_marginal_loss(target, prediction, learns, self.divergence)
        return generator_loss + phi_loss, metrics | estimate_metrics(est)
