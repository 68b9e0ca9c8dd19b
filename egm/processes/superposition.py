"""Convex mixtures of the generators of processes that share a Gaussian path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.paths.gaussian import GaussianPath
from egm.processes import _gaussian
from egm.processes.diffusion import DiffusionProcess
from egm.processes.flow import FlowProcess
from egm.processes.vector_jump import VectorJumpProcess
from egm.typing import Array, Key, ModelFn

__all__ = ["SuperpositionProcess"]


@dataclasses.dataclass(frozen=True)
class SuperpositionProcess:
    """The process whose generator is a convex mixture of flows', diffusions' and jumps' on one path.

    Flows and diffusions are u . grad plus g_i^2 times what keeps the marginals, so what they mix to is the
    diffusion with g^2 = sum of w_i g_i^2, a flow's g being 0: the drift u is shared, only the noise mixes.
    It steps exactly as `DiffusionProcess` with that coefficient, whatever the parts' own kernels are: path
    weights are exact, without a determinant, and their spread falls with the step.

    With jumps a step is a jump's with their weight, else the diffusion's of the other parts: the mean
    generator over a step is the mixture's. Both kernels are the mixtures of the parts', so that log_ratio is
    a function of the two states, whichever part led from one to the other.

    Attributes:
      processes: a tuple of flows, diffusions, jumps (`VectorJumpProcess`) and superpositions without jumps.
      weights: as many numbers >= 0 that sum to 1; or a hashable function of times [N] that returns
        such a tuple, of scalars or [N] each. Concrete ones that are no such weights raise; traced ones
        make the step NaN, which counts as invalid.
      data_scale: as for `DiffusionProcess`; None takes the first that a part has.

    Raises:
      TypeError: a process is of another kind. ValueError: paths differ, or the weights are none.

    Examples:
      >>> path = egm.paths.LinearPath()
      >>> parts = (egm.processes.FlowProcess(path), egm.processes.DiffusionProcess(path))
      >>> process = egm.processes.SuperpositionProcess(parts, weights=(0.5, 0.5))
      >>> ratio = process.diffusion_coefficient(jnp.full(1, 0.5)) / path.diffusion_coefficient(0.5)
      >>> print(f"{float(ratio[0]) ** 2:.2f}")  # half of the diffusion's g^2
      0.50
    """

    processes: tuple[Any, ...]
    weights: tuple[float, ...] | Callable[[Array], tuple[Any, ...]]
    data_scale: float | None = None

    def __post_init__(self):
        if not isinstance(self.processes, tuple | list):
            raise TypeError(f"processes must be a tuple of processes, got {self.processes!r:.80}")
        processes = tuple(self.processes)
        if not processes:
            raise ValueError("processes must hold at least one process, got none")
        for process in processes:
            nested = isinstance(process, SuperpositionProcess) and not process._has_jumps
            if not nested and not isinstance(process, FlowProcess | DiffusionProcess | VectorJumpProcess):
                raise TypeError(
                    "processes must be flows, diffusions, jumps on R^d and superpositions without jumps, "
                    f"got {process!r}"
                )
            if process.path != processes[0].path:
                raise ValueError(
                    f"processes must share one path, got {processes[0].path!r} and {process.path!r}"
                )
        object.__setattr__(self, "processes", processes)
        if self.data_scale is not None:
            object.__setattr__(self, "data_scale", checks.positive_float(self.data_scale, "data_scale"))
        if not callable(self.weights):
            if not isinstance(self.weights, tuple | list):
                raise TypeError(f"weights must be a tuple of numbers or a function, got {self.weights!r:.80}")
            weights = tuple(checks.finite_float(w, "every number in weights") for w in self.weights)
            self._check(weights)
            object.__setattr__(self, "weights", weights)

    @property
    def path(self) -> GaussianPath:
        """The path that all parts share."""
        return self.processes[0].path

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times from the path."""
        return self.path.times(num_steps)

    def diffusion_coefficient(self, t: Array) -> Array:
        """The mixture's g(t), of the shape of t."""
        return jnp.sqrt(self._squared(t))

    def step(self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array) -> tuple[Array, Array]:
        """One step forward; args and result as for `DiffusionProcess.step`; jumps need a `TargetMixture`."""
        if not self._has_jumps:
            return self._diffusion.step(key, x_t, generator, t, r)
        x_t, t, r = _gaussian.prepare(self.path, x_t, t, r, "x_t")
        known = _at(generator, x_t, t)
        jumps, k_jump, k_move = self._choice(key, x_t, t)
        jumped, _ = self._jump.step(k_jump, x_t, generator, t, r)
        moved = self._diffusion.draw_forward(k_move, x_t, known, t, r)
        x_r = jnp.where(jumps[:, None], jumped, moved)
        return x_r, self._ratio(x_t, x_r, known, generator, t, r)

    def reverse_step(self, key: Key, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_t [N, D] ~ backward(. | x_r)."""
        if not self._has_jumps:
            return self._diffusion.reverse_step(key, x_r, generator, t, r)
        x_r, t, r = _gaussian.prepare(self.path, x_r, t, r, "x_r")
        known = _at(generator, x_r, r)
        jumps, k_jump, k_move = self._choice(key, x_r, t)
        jumped = self._jump.reverse_step(k_jump, x_r, known, t, r)
        return jnp.where(jumps[:, None], jumped, self._diffusion.reverse_step(k_move, x_r, known, t, r))

    def log_ratio(self, x_t: Array, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward - log forward of a given pair."""
        if not self._has_jumps:
            return self._diffusion.log_ratio(x_t, x_r, generator, t, r)
        x_t, x_r, t, r = _gaussian.prepare_pair(self.path, x_t, x_r, t, r)
        return self._ratio(x_t, x_r, _at(generator, x_t, t), generator, t, r)

    def _ratio(self, x_t, x_r, known, generator, t, r):
        after = _at(generator, x_r, r)
        stays, *jump = self._jump.log_kernels(x_t, x_r, known, after, t, r)
        move = self._diffusion.log_kernels(x_t, x_r, known, after, t, r)
        share = self._jump_share(t)
        # Where a state stays only a jump's step has led there: its probability, not a density.
        forward, backward = (
            jnp.where(stays, j, jnp.logaddexp(jnp.log(share) + j, jnp.log1p(-share) + m))
            for j, m in zip(jump, move)
        )
        return backward - forward

    def _choice(self, key, x, t):
        """(whether the step is a jump's [N], keys of the jump, keys of the diffusion)."""
        k_choice, k_jump, k_move = random.split(
            random.derive(random.example_keys(key, x.shape[0]), "superposition"), 3
        )
        uniform = random.per_example(lambda k: jax.random.uniform(k, (), x.dtype), k_choice)
        return uniform < self._jump_share(t), k_jump, k_move

    @property
    def _has_jumps(self):
        return any(isinstance(p, VectorJumpProcess) for p in self.processes)

    @property
    def _jump(self):
        return VectorJumpProcess(self.path)

    @property
    def _diffusion(self):
        return DiffusionProcess(self.path, self._moving_coefficient, self._data_scale)

    @property
    def _data_scale(self):
        parts = (getattr(p, "_data_scale", getattr(p, "data_scale", None)) for p in self.processes)
        return next((s for s in (self.data_scale, *parts) if s is not None), None)

    def _weights(self, t):
        """The weights [N] each, NaN where they are not convex."""
        weights = self.weights(t) if callable(self.weights) else self.weights
        weights = [jnp.asarray(w, t.dtype) for w in self._check(weights)]
        weights = [jnp.broadcast_to(w, t.shape) for w in weights]
        convex = jnp.abs(sum(weights) - 1) <= _TOLERANCE
        for w in weights:
            convex &= w >= 0
        return [jnp.where(convex, w, jnp.nan) for w in weights]

    def _jump_share(self, t):
        named = zip(self._weights(t), self.processes, strict=True)
        jumps = sum((w for w, p in named if isinstance(p, VectorJumpProcess)), jnp.zeros_like(t))
        return jnp.minimum(jumps, 1.0)

    def _squared(self, t):
        """g^2 of the mixture, jumps counting as 0."""
        total = jnp.zeros_like(t)
        for w, process in zip(self._weights(t), self.processes, strict=True):
            if not isinstance(process, VectorJumpProcess):
                # A weight of 0 also silences a part whose g is infinite there.
                part = w * jnp.square(process.diffusion_coefficient(t))
                total = total + jnp.where(w == 0, 0.0, part)
            total = jnp.where(jnp.isnan(w), jnp.nan, total)
        return total

    def _moving_coefficient(self, t):
        """g of the diffusion alone, its weights taken to sum to 1."""
        left = 1 - self._jump_share(t) if self._has_jumps else jnp.ones_like(t)
        return jnp.sqrt(jnp.where(left == 0, 0.0, self._squared(t) / jnp.where(left == 0, 1.0, left)))

    def _check(self, weights):
        weights = tuple(weights)
        if len(weights) != len(self.processes):
            raise ValueError(
                f"weights must be one a process, {len(self.processes)} in all, got {len(weights)}"
            )
        values = [v for v in map(checks.concrete, weights) if v is not None]
        if len(values) == len(weights):
            bad = any(np.any(~(v >= 0)) for v in values)
            if bad or np.any(np.abs(sum(values) - 1) > _TOLERANCE):
                raise ValueError(f"weights must be >= 0 and sum to 1, got {weights}")
        return weights


_TOLERANCE = 1e-5


def _at(generator: ModelFn, x: Array, t: Array) -> ModelFn:
    """The generator's answer at (x, t), asked once: what both kernels from there need."""
    out = checks.function(generator, "generator")(x, t)
    return lambda *_: out
