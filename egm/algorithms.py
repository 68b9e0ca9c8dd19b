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

from egm import bootstrap, checks, losses, random
from egm.estimators import check_chunk_size, estimate
from egm.heads import Head
from egm.paths import MaskedPath
from egm.typing import Array, Energy, Estimate, Key, ModelFn, Path, PyTree, State

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

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int, int]:
        """Evaluations of E for each (trajectory beside its end, generator call, training example)."""
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
    """scale * E + (1 - scale) * reference: the energy on its way from a known one; scale may be traced.

    Attributes:
      energy: E.
      scale: in [0, 1].
      reference: its energy, `[...] = reference(x)`, constant in the tokens; None for 0 everywhere.
      smooth: whether its gradient may stand for it, a scalar bool, offered as `differentiable`; None
        where that is not known but by what E itself says.
    """

    energy: Energy
    scale: Array
    reference: Callable[[State], Array] | None = None
    smooth: Array | None = None

    def __call__(self, x: State) -> Array:
        """The annealed energy, [...]."""
        return self._mix(self.energy, x)

    def _mix(self, energy, x):
        value = self.scale * energy(x)
        return value if self.reference is None else value + (1 - self.scale) * self.reference(x)

    def __getattr__(self, name: str):
        # Offered only where the energy itself offers it, as `hasattr` must tell.
        if name == "single_site_conditionals":
            conditionals = self.energy.single_site_conditionals
            return lambda x: self.scale * conditionals(x)
        if name == "relaxed":
            relaxed = self.energy.relaxed
            return lambda x: self._mix(relaxed, x)
        if name == "conditional_evaluations":
            return self.energy.conditional_evaluations
        if name == "differentiable":
            return self.energy.differentiable if self.smooth is None else self.smooth
        raise AttributeError(name)


@dataclasses.dataclass(frozen=True)
class Weighted:
    """The sampler itself as the SNIS proposal: conditional targets on x_1 drawn by path weight.

    Attributes:
      path: the path.
      head: what the network's output stands for.
      apply: the network.
      energy_targets: let targets use the energy where it offers more than its value (Rao-Blackwell
        targets from single-site conditionals, target scores from its gradient).
    """

    path: Path
    head: Head
    apply: Apply
    energy_targets: bool = True
    draws_by_weight: bool = True

    def __post_init__(self):
        _check(self, ("apply",))
        checks.flag(self.energy_targets, "energy_targets")

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int, int]:
        """Those of the head."""
        generator, target = self.head.energy_evaluations(energy, event_shape)
        return 0, generator, generator + target * self.energy_targets

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`."""
        return lambda x, t: self.head.generator(self.apply(params, x, t), x, t, energy)

    def differentiable(self, keys: Key, x_1: State, t: Array, energy: Energy) -> tuple[Array, int]:
        """(whether targets may use the gradient of the energy around x_1 at t, evaluations of E spent).

        Args:
          keys: [B]. x_1: states with one batch axis B. t: [B]. energy: E, annealed.
        """
        count = self.head.probe_evaluations(energy) if hasattr(self.head, "probe_evaluations") else 0
        if not self.energy_targets or not count:
            told = getattr(energy, "differentiable", True) if self.energy_targets else True
            return jnp.asarray(told, bool), 0
        x_t = random.per_example(self.path.sample, keys, x_1, t)
        return self.head.differentiable(x_1, x_t, t, energy), t.shape[0] * count

    def loss(self, keys, params, target_params, x_1, t, energy):
        """See `Algorithm`."""
        del target_params
        x_t = random.per_example(self.path.sample, keys, x_1, t)
        target = self.head.conditional_target(x_1, x_t, t, energy if self.energy_targets else None)
        return _compare(self.head, target, self.apply(params, x_t, t), x_t, t, energy)


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
    head: Head
    apply: Apply
    num_samples: int = 1000
    chunk_size: int | None = 256
    draws_by_weight: bool = False

    def __post_init__(self):
        _check(self, ("apply",))
        _check_samples(self)

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int, int]:
        """K a training example, and those of the head."""
        generator, _ = self.head.energy_evaluations(energy, event_shape)
        return 0, generator, generator + self.num_samples

    def generator(self, params: PyTree, energy: Energy) -> ModelFn:
        """See `Algorithm`."""
        return lambda x, t: self.head.generator(self.apply(params, x, t), x, t, energy)

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
        loss, metrics = _compare(self.head, est, output, x_t, t, energy)
        return loss, metrics | _estimate_metrics(est)


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
        _check(self, ("apply", "apply_log_marginal"))
        _check_samples(self)
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
            return _with_skip(self.apply_log_marginal, p["log_marginal"], self.skip, energy)

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
        generator_loss, metrics = _compare(self.head, est, output, x_t, t, energy)
        target = est.log_marginal - self.path.log_normalizer(x_t, t, jnp.ones_like(t))
        prediction = g(params)(x_t, t)
        phi_loss = losses.log_marginal_loss(target, prediction, est.valid & ~self.path.determined(x_t))
        return generator_loss + phi_loss, metrics | _estimate_metrics(est)


@dataclasses.dataclass(frozen=True)
class LocalBootstrap:
    """phi by its exact local recursion, the generator read off it locally (h -> 0), without samples.

    On tokens one site is revealed in every colour; on Gaussian paths a short step is taken to the
    sigma points of the proposal (`egm.bootstrap.local_target`), and the score is the gradient of phi.

    Attributes:
      path: the path.
      apply: g, `[N] = apply(params, x, t)`.
      num_steps: of the grid `path.times` that a step is taken on, on Gaussian paths.
      skip: as for `Bootstrap`.
      draws_by_weight: whether x_1 is drawn by path weight.
    """

    path: Path
    apply: Apply
    num_steps: int = 100
    skip: Callable[[Energy], ModelFn] | None = None
    draws_by_weight: bool = True

    def __post_init__(self):
        _check(self, ("apply",))
        checks.positive_int(self.num_steps, "num_steps")

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int, int]:
        """An upper bound: -E stands in few states of a call."""
        count = bootstrap.num_local_states(self.path, event_shape)
        last = self.path.vocab_size if isinstance(self.path, MaskedPath) else 0
        return last, 0, count

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
        loss = losses.log_marginal_loss(target, prediction, ~self.path.determined(x_t), _squared)
        return loss, {}

    def _g(self, params, energy):
        return _with_skip(self.apply, params, self.skip, energy)


def _check(algorithm: Any, functions: tuple[str, ...]) -> None:
    """Raises TypeError unless the fields that algorithms share are what they must be."""
    checks.instance(algorithm.path, Path, "path")
    if hasattr(algorithm, "head") and not hasattr(algorithm.head, "conditional_target"):
        raise TypeError(f"head must be a head, as in egm.heads, got {algorithm.head!r:.80}")
    for name in functions:
        checks.function(getattr(algorithm, name), name)
    if getattr(algorithm, "skip", None) is not None:
        checks.function(algorithm.skip, "skip")
    checks.flag(algorithm.draws_by_weight, "draws_by_weight")


def _check_samples(algorithm: Any) -> None:
    """Raises unless `num_samples` and `chunk_size` are as `egm.estimate` takes them."""
    checks.positive_int(algorithm.num_samples, "num_samples")
    check_chunk_size(algorithm.chunk_size)


def _with_skip(apply, params, skip, energy) -> ModelFn:
    if skip is None:
        return lambda x, t: apply(params, x, t)
    closed = skip(energy)
    return lambda x, t: apply(params, x, t) + closed(x, t)


def _squared(target: Array, prediction: Array) -> Array:
    return (target - prediction) ** 2


def _compare(head, target, output, x_t, t, energy) -> tuple[Array, dict[str, Array]]:
    """(loss [B], what was clipped) of an output against an `Estimate` or a head's conditional target."""
    generator = target.generator if isinstance(target, Estimate) else target
    metrics = head.metrics(generator, output, x_t, t, energy)
    if not isinstance(target, Estimate):
        return head.divergence(target, output, x_t, t, energy), metrics
    return losses.generator_loss(lambda a, b: head.divergence(a, b, x_t, t, energy), target, output), metrics


def _estimate_metrics(est) -> dict[str, Array]:
    return {
        "target_ess": jnp.mean(est.ess),
        "target_invalid": jnp.mean(1.0 - est.valid),
        "target_nonfinite": jnp.sum(est.num_nonfinite).astype(float),
    }
