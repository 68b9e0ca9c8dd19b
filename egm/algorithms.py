"""The algorithms of EGM as losses over one batch of terminal states; the outer loop is `iteration`.

Each is a frozen dataclass with `generator(params, energy)`, what a process simulates, and
`loss(keys, params, target_params, x_1, t, energy)` [B] on x_t ~ p_{t|1}(. | x_1).

Source: EGM (arXiv 2505.19646); the weighted conditional loss is close to the objective of the masked
diffusion neural sampler (arXiv 2508.10684).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from egm import bootstrap, losses, random
from egm.estimators import estimate
from egm.typing import Array, Energy, Key, ModelFn, Path, PyTree, State

Apply = Callable[[PyTree, State, Array], Any]
"""`output = apply(params, x [N, *event], t [N])`, as a Flax module's."""


class Algorithm(Protocol):
    """What an outer iteration trains."""

    @property
    def path(self) -> Path:
        """The path whose generator is learned."""
        ...

    @property
    def draws_by_weight(self) -> bool:
        """Whether x_1 must be drawn by path weight (else uniformly from the buffer)."""
        ...

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int]:
        """Energy evaluations for each simulated state (beside its own) and each training example."""
        ...

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """The marginal generator that `params` stand for, in the path's form.

        The energy is that of the boundary of phi; algorithms that learn a generator do not need it.
        """
        ...

    def loss(
        self, keys: Key, params: PyTree, target_params: PyTree, x_1: State, t: Array, energy: Energy
    ) -> tuple[Array, dict[str, Array]]:
        """([B] loss, metrics, each a scalar)."""
        ...


class Tempered(NamedTuple):
    """scale * E, the energy at an annealed temperature; the scale may be traced."""

    energy: Energy
    scale: Array

    def __call__(self, x: State) -> Array:
        """scale * E(x), [...]."""
        return self.scale * self.energy(x)

    def __getattr__(self, name: str):
        # Offered only where the energy itself offers it, as `hasattr` must tell.
        if name == "single_site_conditionals":
            conditionals = self.energy.single_site_conditionals
            return lambda x: self.scale * conditionals(x)
        raise AttributeError(name)


@dataclasses.dataclass(frozen=True)
class Weighted:
    """The sampler itself as the SNIS proposal: conditional targets on x_1 drawn by path weight.

    Attributes:
      path: the path.
      head: what the network's output stands for.
      apply: the network.
      rao_blackwell: use the energy's single-site conditionals as targets where it offers them.
    """

    path: Path
    head: losses.DenoiserHead
    apply: Apply
    rao_blackwell: bool = True
    draws_by_weight: bool = True

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int]:
        """Those of the conditional targets: one, or what the energy's `conditional_evaluations` says."""
        if not self.rao_blackwell or not hasattr(energy, "single_site_conditionals"):
            return 0, 0
        count = getattr(energy, "conditional_evaluations", lambda num_sites: 1)
        return 0, count(event_shape[-1])

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`."""
        del energy
        return lambda x, t: self.head.generator(self.apply(params, x, t), x)

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        del target_params
        x_t = random.per_example(self.path.sample, keys, x_1, t)
        target = self.head.conditional_target(x_1, energy if self.rao_blackwell else None)
        return self.head.divergence(target, self.apply(params, x_t, t), x_t), {}


@dataclasses.dataclass(frozen=True)
class Naive:
    """Naive EGM: the generator regresses on its SNIS estimate from uniform proposals at r = 1.

    Attributes:
      path: the path.
      head: what the network's output stands for.
      apply: the network.
      num_samples: K.
      chunk_size: most samples held at once, as in `egm.estimate`.
    """

    path: Path
    head: losses.DenoiserHead
    apply: Apply
    num_samples: int = 1000
    chunk_size: int | None = 256
    draws_by_weight: bool = False

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int]:
        """K a training example."""
        return 0, self.num_samples

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`."""
        del energy
        return lambda x, t: self.head.generator(self.apply(params, x, t), x)

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        del target_params
        k_noise, k_estimate = random.split(keys)
        x_t = random.per_example(self.path.sample, k_noise, x_1, t)
        est = estimate(
            k_estimate,
            self.path,
            bootstrap.terminal(energy),
            x_t,
            t,
            1.0,
            num_samples=self.num_samples,
            chunk_size=self.chunk_size,
        )
        output = self.apply(params, x_t, t)
        loss = losses.generator_loss(lambda a, b: self.head.divergence(a, b, x_t), est, output)
        return loss, _estimate_metrics(est)


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
    """

    path: Path
    head: losses.DenoiserHead
    apply: Apply
    apply_log_marginal: Apply
    num_samples: int = 1000
    step: float = 0.01
    chunk_size: int | None = 1024
    draws_by_weight: bool = False

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int]:
        """K a training example, an upper bound: most have r < 1."""
        return 0, self.num_samples

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`."""
        del energy
        return lambda x, t: self.head.generator(self.apply(params["generator"], x, t), x)

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        k_noise, k_estimate = random.split(keys)
        x_t = random.per_example(self.path.sample, k_noise, x_1, t)

        def g(x, s):
            return self.apply_log_marginal(target_params["log_marginal"], x, s)

        est = estimate(
            k_estimate,
            self.path,
            bootstrap.boundary(energy, g, self.path),
            x_t,
            t,
            bootstrap.intermediate_time(t, self.step),
            num_samples=self.num_samples,
            chunk_size=self.chunk_size,
        )
        output = self.apply(params["generator"], x_t, t)
        generator_loss = losses.generator_loss(lambda a, b: self.head.divergence(a, b, x_t), est, output)
        target = est.log_marginal - self.path.log_normalizer(x_t, t, jnp.ones_like(t))
        prediction = self.apply_log_marginal(params["log_marginal"], x_t, t)
        phi_loss = losses.log_marginal_loss(target, prediction, est.valid & ~self.path.determined(x_t))
        return generator_loss + phi_loss, _estimate_metrics(est)


@dataclasses.dataclass(frozen=True)
class LocalBootstrap:
    """phi by the exact one-site recursion on the masked path, its denoiser read off locally (h -> 0).

    Attributes:
      path: a masked path.
      apply: g, `[N] = apply(params, x, t)`.
      draws_by_weight: whether x_1 is drawn by path weight.
    """

    path: Path
    apply: Apply
    draws_by_weight: bool = True

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int]:
        """V for the last masked site, and at most V a training example."""
        return self.path.vocab_size, self.path.vocab_size

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`; where one mask is left the energy itself gives the denoiser."""
        g = bootstrap.relative_boundary(energy, lambda x, t: self.apply(params, x, t), self.path)
        return bootstrap.LocalGenerator(self.path, g)

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        k_noise, k_site = random.split(keys)
        x_t = random.per_example(self.path.sample, k_noise, x_1, t)
        g = bootstrap.relative_boundary(energy, lambda x, s: self.apply(target_params, x, s), self.path)
        target = bootstrap.one_site_target(k_site, g, self.path, x_t, t)
        prediction = self.apply(params, x_t, t)
        # The target is exact given the target parameters: no mean of an exponential is being estimated.
        loss = losses.log_marginal_loss(target, prediction, ~self.path.determined(x_t), _squared)
        return loss, {}


def _squared(target: Array, prediction: Array) -> Array:
    return (target - prediction) ** 2


def _estimate_metrics(est) -> dict[str, Array]:
    return {
        "target_ess": jnp.mean(est.ess),
        "target_invalid": jnp.mean(1.0 - est.valid),
        "target_nonfinite": jnp.sum(est.num_nonfinite).astype(float),
    }
