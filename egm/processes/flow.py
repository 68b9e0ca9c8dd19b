"""The flow dx = u dt of a marginal velocity, with the determinant of every discrete step.

A step is one deterministic map, so the path weight of a trajectory is the target over the density that
the composed map pushes the prior to: exact for any velocity and step size at which the map is injective.
A map that folds gives several states one image, and a log Z too high by as many; see `FlowProcess`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp

from egm import checks
from egm.paths.gaussian import GaussianPath
from egm.processes import _gaussian
from egm.typing import Array, Key, ModelFn

__all__ = ["FlowProcess"]

_METHODS = {"euler": _gaussian.euler, "heun": _gaussian.heun}


@dataclasses.dataclass(frozen=True)
class FlowProcess:
    """Euler or Heun steps of dx = u(x, t) dt; log_ratio is log|det| of the whole step's Jacobian.

    Exact, at the cost of D forward-mode passes of the network and D^3 an example a step: for up to 32
    dimensions or so. The generator must treat every state by itself. An integrated or stochastic trace is
    not offered: it is biased in exp space.

    Weights hold where the map x + h u of a step is injective. `step_norm` < 1 all over a convex region is
    enough for that there. Where a step meets a determinant that is not positive, each state of its batch
    is checked by inverting the map (16 to 96 Jacobians, only then): states that are not what the inverse
    finds get log_ratio NaN, hence no weight, and are counted in `Trajectory.num_folded` and among the
    non-finite weights. The others keep exact weights, so log Z can come out too low by what the inverse
    misses, not too high; smaller steps are the cure. A fold that no state of a batch has turned over in
    is not seen. A map that turns all of space over (x to -2x) is injective and passes.

    Attributes:
      path: a Gaussian path; on a centred one the determinant is that on the subspace.
      method: "euler" (first order) or "heun" (second order, two calls of the generator).
      max_dimension: largest trailing size D that is accepted.

    Raises:
      TypeError, ValueError: a field is none of these.

    Examples:
      >>> path = egm.paths.VarianceExplodingPath(0.1, 5.0)
      >>> process = egm.processes.FlowProcess(path, method="heun")
      >>> g = egm.closed_forms.gaussian_log_marginal(path)  # of N(0, 1)
      >>> generator = egm.bootstrap.LocalGenerator(path, g)
      >>> x_0 = egm.draw_prior(jax.random.key(0), path, (16, 2))
      >>> trajectory = egm.simulate(jax.random.key(1), process, generator, x_0, process.times(20))
      >>> trajectory.x_1.shape, bool(jnp.all(jnp.isfinite(trajectory.log_ratio)))
      ((16, 2), True)
    """

    path: GaussianPath
    method: Literal["euler", "heun"] = "euler"
    max_dimension: int = _gaussian.MAX_DIMENSION

    def __post_init__(self):
        _gaussian.check_path(self.path)
        if not isinstance(self.method, str) or self.method not in _METHODS:
            raise ValueError(f"method must be one of {sorted(_METHODS)}, got {self.method!r}")
        checks.positive_int(self.max_dimension, "max_dimension")

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times from the path."""
        return self.path.times(num_steps)

    def diffusion_coefficient(self, t: Array) -> Array:
        """Zeros, of the shape of t: a flow has no noise."""
        return jnp.zeros_like(t)

    def step(self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array) -> tuple[Array, Array]:
        """One step forward.

        Args:
          key: not used.
          x_t: [N, D].
          generator: the velocity [N, D], or a `Gaussian` record.
          t: scalar or [N], before r.
          r: scalar or [N].

        Returns:
          (x_r [N, D], log_ratio [N] = log|det of the Jacobian of x_r in x_t|, NaN where the map folds).

        Raises:
          ValueError: D is above `max_dimension`, or a shape is wrong.
        """
        return self.step_with_folds(key, x_t, generator, t, r)[:2]

    def step_with_folds(
        self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array
    ) -> tuple[Array, Array, Array]:
        """(x_r, log_ratio, folded [N] bool): `step`, and the states that it refused."""
        del key
        x_t, fn = self._map(x_t, generator, t, r, "x_t")
        return _gaussian.flow_step(fn, x_t)

    def step_norm(self, x_t: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] spectral norm of the Jacobian of x_r - x_t in x_t, for Euler h times that of u.

        Where it is below 1 on all of a convex region the step is injective there (a contraction moves
        two states by less than what separates them); at visited states alone it is a sign, no proof.
        """
        x_t, fn = self._map(x_t, generator, t, r, "x_t")
        _, matrix = _gaussian.jacobian(fn, x_t)
        change = matrix - jnp.broadcast_to(jnp.eye(x_t.shape[-1], dtype=matrix.dtype), matrix.shape)
        return jnp.linalg.norm(change, ord=2, axis=(-2, -1))

    def reverse_step(self, key: Key, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_t [N, D], the inverse of `step` by Newton's method; NaN where that does not converge.

        The key is not used. Costs 16 Jacobians, six times that where a row does not converge at first.
        """
        del key
        x_r, fn = self._map(x_r, generator, t, r, "x_r")
        return _gaussian.preimage(fn, x_r)

    def log_ratio(self, x_t: Array, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log|det| of the step from x_t, as in `step`; x_r is taken to be where it leads."""
        _gaussian.prepare_pair(self.path, x_t, x_r, t, r)
        x_t, fn = self._map(x_t, generator, t, r, "x_t")
        return _gaussian.flow_step(fn, x_t)[1]

    def _map(self, x, generator, t, r, name):
        x, t, r = _gaussian.prepare(self.path, x, t, r, name)
        if x.shape[-1] > self.max_dimension:
            raise ValueError(
                f"{name} has trailing size {x.shape[-1]}, above max_dimension = {self.max_dimension}: "
                "a flow's determinant costs D passes of the generator and D^3 an example"
            )
        return x, _METHODS[self.method](self.path, generator, t, r)
