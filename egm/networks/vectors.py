"""MLPs on vectors of a Gaussian path: raw generators, log-marginals, and closed forms to add them to.

`module.apply(params, x [N, D], t [N])`. A generator's raw output [N, D, 2] holds F and G: a head in
`egm.heads` makes F / sqrt(sigma^2 + alpha^2 s^2) a correction of the score, G one of the log of the
posterior variance. Outputs are near zero at the start. The field of the path is called `gaussian_path`
because Flax keeps `Module.path` for itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from egm import checks
from egm.networks._features import Features, ResidualMLP, check_fields, small_init
from egm.paths._gaussian_base import GaussianPath
from egm.typing import Array, Energy, ModelFn

Skip = Callable[[Array, Array], Array]


class MLPVector(nn.Module):
    """Raw outputs [N, D, num_outputs] of a time-conditioned residual MLP.

    Attributes:
      gaussian_path: the path; a centred one also fixes D.
      length_scale: s, the finest length of the target.
      data_scale: S, its standard deviation about `center`.
      center: c, a number or D numbers.
      width: of the hidden layers.
      depth: number of hidden layers.
      num_frequencies: of the Fourier features of x, from pi / (2 S) upwards in octaves; None goes up to
        about pi / (2 s), with at most 8.
      num_outputs: numbers a coordinate.
    """

    gaussian_path: GaussianPath
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    width: int = 128
    depth: int = 3
    num_frequencies: int | None = None
    num_outputs: int = 2

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        check_fields(self, sizes=("width", "depth", "num_outputs"))
        x, _, hidden = _hidden(self, x, t)
        out = nn.Dense(x.shape[-1] * self.num_outputs, kernel_init=small_init)(hidden)
        return out.reshape(*x.shape, self.num_outputs)


class MLPVectorLogMarginal(nn.Module):
    """g [N] from the same network; attributes as for `MLPVector`, `skip(x, t)` a closed form of g."""

    gaussian_path: GaussianPath
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    width: int = 128
    depth: int = 3
    num_frequencies: int | None = None
    skip: Skip | None = None

    @nn.compact
    def __call__(self, x: Array, t: Array) -> Array:
        check_fields(self, sizes=("width", "depth"))
        x, t, hidden = _hidden(self, x, t)
        out = nn.Dense(1, kernel_init=small_init)(hidden)[:, 0]
        return out if self.skip is None else out + self.skip(x, t)


def _hidden(module, x, t):
    features = Features(
        module.gaussian_path, module.length_scale, module.data_scale, module.center, module.num_frequencies
    )
    x, t = features.inputs(x, t)
    trunk = ResidualMLP(module.width, module.depth)
    return x, t, trunk(features.position(x, t), features.time(t, x.dtype))


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
    features = Features(path, data_scale, data_scale, center)
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
    features = Features(path, length_scale, data_scale, center)
    gaussian = _GaussianLogMarginal(features, checks.finite_float(offset, "offset"))
    return _EnergyLogMarginal(energy, gaussian, checks.positive_float(max_energy, "max_energy"))


@dataclasses.dataclass(frozen=True)
class _GaussianLogMarginal:
    features: Features
    offset: float

    def __call__(self, x: Array, t: Array) -> Array:
        f = self.features
        x, t = f.inputs(x, t)
        alpha = _floored_alpha(f.path, t)
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
        alpha = _floored_alpha(f.path, t)
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


def _floored_alpha(path, t):
    return jnp.maximum(path.alpha(t), path.alpha(jnp.asarray(path.t_min, t.dtype)))
