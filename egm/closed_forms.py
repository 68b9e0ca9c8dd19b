"""Log-marginals g(x, t) = log E_{q_{1|t}} exp(-E(x_1)) known in closed form, to add a network to.

Exact for a normal target; for any other, exact at both ends of time and a start in between.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from egm import checks
from egm.paths.gaussian import GaussianPath
from egm.target import TargetScale
from egm.typing import Array, Energy, ModelFn

__all__ = ["energy_log_marginal", "gaussian_log_marginal"]


def gaussian_log_marginal(
    path: GaussianPath,
    center: float | tuple[float, ...] = 0.0,
    data_scale: float = 1.0,
    offset: float = 0.0,
) -> ModelFn:
    """The closed form of g for a Gaussian target, log E_{q_{1|t}} exp(-|x_1 - c|^2 / 2 S^2).

    With n = sigma / alpha it is -D/2 log(1 + n^2 / S^2) - |x / alpha - c|^2 / (2 (S^2 + n^2)), D the
    dimension of the path's space. Below the path's t_min the linear path takes alpha at t_min.

    Args:
      path: the Gaussian path; a centred one also projects c.
      center: c, a number or D numbers.
      data_scale: S.
      offset: added to g, where the energy is not 0 at c: log of the target's partition function less
        D/2 log(2 pi S^2) fits the prior's end.

    Returns:
      A hashable `ModelFn`, g [N] of x [N, D] and t [N], finite on all of [0, 1].

    Raises:
      TypeError, ValueError: `path` is no Gaussian path, a number is no finite one, S is not positive.
    """
    features = TargetScale(path, data_scale, data_scale, center)
    return _GaussianLogMarginal(features, checks.finite_float(offset, "offset"))


def energy_log_marginal(
    energy: Energy,
    path: GaussianPath,
    length_scale: float = 1.0,
    center: float | tuple[float, ...] = 0.0,
    data_scale: float = 1.0,
    offset: float = 0.0,
    max_energy: float = 100.0,
) -> ModelFn:
    """-E(x / alpha) where the noise is small, the Gaussian closed form where it is large.

    The weights are s^2 / (s^2 + n^2), n = sigma / alpha, and the rest. Energies above `max_energy`
    level off smoothly towards twice that, also at +inf and NaN, which have gradient zero.

    Args:
      energy: E, `[N] = energy(x)`.
      path: the Gaussian path.
      length_scale: s.
      center: c. data_scale: S. offset: as for `gaussian_log_marginal`.
      max_energy: positive; energies below it are kept as they are.

    Returns:
      A hashable `ModelFn` (where `energy` is hashable), g [N] of x [N, D] and t [N], finite on all of
      [0, 1], and -E(x) at t = 1 where E <= max_energy.

    Raises:
      TypeError, ValueError: as for `gaussian_log_marginal`, or `max_energy` or s is not positive.
    """
    checks.function(energy, "energy")
    features = TargetScale(path, length_scale, data_scale, center)
    gaussian = _GaussianLogMarginal(features, checks.finite_float(offset, "offset"))
    return _EnergyLogMarginal(energy, gaussian, checks.positive_float(max_energy, "max_energy"))


@dataclasses.dataclass(frozen=True)
class _GaussianLogMarginal:
    features: TargetScale
    offset: float

    def __call__(self, x: Array, t: Array) -> Array:
        f = self.features
        x, t = f.inputs(x, t)
        alpha = f.floored_alpha(t)
        total = f.path.variance(t) + jnp.square(alpha * f.data_scale)
        residual = f.path.project(x - alpha[:, None].astype(x.dtype) * f.centers(x))
        distance = jnp.sum(jnp.square(residual), axis=-1)
        log_ratio = jnp.log(total) - 2 * (jnp.log(alpha) + math.log(f.data_scale))
        size = f.path.dimension(x.shape[-1])
        return self.offset - 0.5 * (size * log_ratio + distance / total).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class _EnergyLogMarginal:
    energy: Energy
    gaussian: _GaussianLogMarginal
    max_energy: float

    def __call__(self, x: Array, t: Array) -> Array:
        f = self.gaussian.features
        x, t = f.inputs(x, t)
        alpha = f.floored_alpha(t)
        signal = jnp.square(alpha * f.length_scale)
        gate = (signal / (signal + f.path.variance(t))).astype(x.dtype)
        energies = self._bounded(x / alpha[:, None].astype(x.dtype))
        return self.gaussian(x, t) * (1 - gate) - energies * gate

    def _bounded(self, x):
        def evaluate(states):
            return checks.model_output(self.energy(states), "energy", states.shape[:1])

        # Where E overflows its gradient is no number: those states are cut off from it, which takes an
        # evaluation to find them. At eleven times the limit tanh is 1 to float32.
        limit, frozen = self.max_energy, jax.lax.stop_gradient(x)
        ordinary = jax.lax.stop_gradient(evaluate(frozen)) < 11 * limit
        values = evaluate(jnp.where(jnp.broadcast_to(ordinary[:, None], x.shape), x, frozen))
        # tanh has no second derivative at 0, so that the join is twice differentiable.
        excess = jnp.tanh(jnp.maximum(values - limit, 0.0) / limit) * limit
        return jnp.where(ordinary, jnp.minimum(values, limit) + excess, 2 * limit)
