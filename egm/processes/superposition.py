"""Convex mixtures of the generators of processes that share a Gaussian path."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.paths.gaussian import GaussianPath
from egm.processes.diffusion import DiffusionProcess
from egm.processes.flow import FlowProcess
from egm.typing import Array, Key, ModelFn

__all__ = ["SuperpositionProcess"]


@dataclasses.dataclass(frozen=True)
class SuperpositionProcess:
    """The process whose generator is a convex mixture of flows' and diffusions' on one path.

    Each of them is u . grad plus g_i^2 times what keeps the marginals, so the mixture is the diffusion
    with g^2 = sum of w_i g_i^2, a flow's g being 0: the drift u is shared, only the noise mixes. It
    steps exactly as `DiffusionProcess` with that coefficient, whatever the parts' own kernels are: path
    weights are exact, without a determinant, and their spread falls with the step.

    Attributes:
      processes: a tuple of flows, diffusions and superpositions of them.
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
            if not isinstance(process, FlowProcess | DiffusionProcess | SuperpositionProcess):
                raise TypeError(
                    f"processes must be flows and diffusions, jumps on R^d are not there yet, got {process!r}"
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
        weights = self.weights(t) if callable(self.weights) else self.weights
        weights = [jnp.asarray(w, t.dtype) for w in self._check(weights)]
        weights = [jnp.broadcast_to(w, t.shape) for w in weights]
        convex = jnp.abs(sum(weights) - 1) <= _TOLERANCE
        for w in weights:
            convex &= w >= 0
        squares = (jnp.square(p.diffusion_coefficient(t)) for p in self.processes)
        # A weight of 0 also silences a part whose g is infinite there.
        mixed = sum(jnp.where(w > 0, w * g2, 0.0) for w, g2 in zip(weights, squares))
        return jnp.sqrt(jnp.where(convex, mixed, jnp.nan))

    def step(self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array) -> tuple[Array, Array]:
        """One step forward; args and result as for `DiffusionProcess.step`."""
        return self._diffusion.step(key, x_t, generator, t, r)

    def reverse_step(self, key: Key, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_t [N, D] ~ backward(. | x_r)."""
        return self._diffusion.reverse_step(key, x_r, generator, t, r)

    def log_ratio(self, x_t: Array, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward - log forward of a given pair."""
        return self._diffusion.log_ratio(x_t, x_r, generator, t, r)

    @property
    def _diffusion(self):
        return DiffusionProcess(self.path, self.diffusion_coefficient, self._data_scale)

    @property
    def _data_scale(self):
        parts = (getattr(p, "_data_scale", getattr(p, "data_scale", None)) for p in self.processes)
        return next((s for s in (self.data_scale, *parts) if s is not None), None)

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
