"""Diffusions dx = (u + g^2 s / 2) dt + g dW that keep a Gaussian path's marginals, for any g >= 0.

Given x_1 such a diffusion is x_t = alpha_t x_1 + sigma_t e_t whose noise e_t is a stationary
Ornstein-Uhlenbeck process of rate g^2 / (2 sigma^2). So x_t and x_r are jointly normal given x_1, at any
two times, and both kernels of a step are known up to the distribution of x_1 given where it starts.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from egm import checks, random
from egm.paths.gaussian import GaussianPath
from egm.processes import _gaussian
from egm.typing import Array, Key, ModelFn

__all__ = ["DiffusionProcess", "NormalKernel"]


class NormalKernel(NamedTuple):
    """N(mean, variance): mean [N, D], variance [N, 1] or [N, D]."""

    mean: Array
    variance: Array


@dataclasses.dataclass(frozen=True)
class DiffusionProcess:
    """A diffusion with the path's marginals, by its coefficient g.

    With g* = `path.diffusion_coefficient`, a = alpha_t / alpha_r and rho* = a sigma_r / sigma_t, a step keeps
    of the noise the correlation rho = rho*^((g/g*)^2), g at the time t. Both kernels are normal, with the
    first two moments of the exact ones (m and V: mean and variance of x_1 given the state, by the record):

      forward  x_r: c m_t + (rho sigma_r / sigma_t) x_t,  sigma_r^2 (1 - rho^2) + c^2 V_t,
      backward x_t: d m_r + (rho sigma_t / sigma_r) x_r,  sigma_t^2 (1 - rho^2) + d^2 V_r,

    c = alpha_r - rho sigma_r alpha_t / sigma_t and d = alpha_t - rho sigma_t alpha_r / sigma_r. Weights are
    exact for any generator and any number of steps. Where x_1 given a state is normal with independent
    coordinates both kernels are exact, and weights have no spread whatever the step; else log w has a
    variance of the order of a step, for every g: nothing becomes singular as steps shrink, nor as g falls.

    Without a coefficient d = 0: backward is the path's own p_{t|r} = N(a x_r, v I), and a step asks the
    generator once, else twice. With the coefficient 0 noise falls with the step itself and the limit is the
    flow: its trajectories without a determinant, in any dimension (`FlowProcess` has the determinant).

    Attributes:
      path: a Gaussian path.
      coefficient: None for g*; a hashable function g(t) >= 0 of times [N] that returns [N] or a scalar;
        or a number c >= 0 for c g*.
      data_scale: l, for generators without a posterior variance: V is that of N(0, l^2) data. None takes
        the standard deviation of the path's prior.

    Raises:
      TypeError, ValueError: a field is none of these.

    Source: Generator Matching (arXiv 2410.20587); EGM (arXiv 2505.19646); kernels with a free correlation of
    the noise, DDIM (arXiv 2010.02502).

    Examples:
      >>> path = egm.paths.VarianceExplodingPath(0.1, 5.0)
      >>> process = egm.processes.DiffusionProcess(path)
      >>> g = egm.closed_forms.gaussian_log_marginal(path)  # of N(0, 1)
      >>> generator = egm.bootstrap.LocalGenerator(path, g)
      >>> x_0 = egm.draw_prior(jax.random.key(0), path, (256, 2))
      >>> trajectory = egm.simulate(jax.random.key(1), process, generator, x_0, process.times(20))
      >>> bool(abs(jnp.std(trajectory.x_1) - 1.0) < 0.2)
      True
    """

    path: GaussianPath
    coefficient: Callable[[Array], Array] | float | None = None
    data_scale: float | None = None

    def __post_init__(self):
        _gaussian.check_path(self.path)
        if self.data_scale is not None:
            object.__setattr__(self, "data_scale", checks.positive_float(self.data_scale, "data_scale"))
        if isinstance(self.coefficient, numbers.Real):
            value = checks.positive_float(self.coefficient, "coefficient", allow_zero=True)
            object.__setattr__(self, "coefficient", value)
        elif self.coefficient is not None and not callable(self.coefficient):
            raise TypeError(f"coefficient must be None, a number or a function, got {self.coefficient!r}")

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times from the path."""
        return self.path.times(num_steps)

    def diffusion_coefficient(self, t: Array) -> Array:
        """g(t), of the shape of t.

        Raises:
          TypeError, ValueError: the coefficient returned another shape, or a concrete value that is
            negative or not finite.
        """
        if self.coefficient is None:
            return self.path.diffusion_coefficient(t)
        if not callable(self.coefficient):
            return self.coefficient * self.path.diffusion_coefficient(t)
        g = checks.float_array(self.coefficient(t), "coefficient(t)")
        if g.shape not in ((), t.shape):
            raise ValueError(f"coefficient must return a scalar or shape {t.shape}, got {g.shape}")
        value = checks.concrete(g)
        if value is not None and not (value >= 0).all():
            raise ValueError(f"coefficient must return values >= 0, got {value}")
        return jnp.broadcast_to(g, t.shape)

    def step(self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array) -> tuple[Array, Array]:
        """One step forward.

        Args:
          key: a typed key, or [N] of them.
          x_t: [N, D].
          generator: the velocity [N, D], or a `Gaussian` record.
          t: scalar or [N], before r.
          r: scalar or [N].

        Returns:
          (x_r [N, D], log_ratio [N] = log backward(x_t | x_r) - log forward(x_r | x_t)).
        """
        x_t, t, r = _gaussian.prepare(self.path, x_t, t, r, "x_t")
        forward = self._forward(x_t, generator, t, r)
        x_r = self._draw(_keys(key, x_t), forward)
        ahead = _gaussian.normal_log_density(self.path, x_r, *forward)
        return x_r, self._log_backward(x_t, x_r, generator, t, r) - ahead

    def draw_forward(self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_r [N, D] ~ forward(. | x_t), the state of `step` alone."""
        x_t, t, r = _gaussian.prepare(self.path, x_t, t, r, "x_t")
        return self._draw(_keys(key, x_t), self._forward(x_t, generator, t, r))

    def forward_kernel(self, x_t: Array, generator: ModelFn, t: Array, r: Array) -> NormalKernel:
        """The normal distribution of `step`'s x_r."""
        x_t, t, r = _gaussian.prepare(self.path, x_t, t, r, "x_t")
        return self._forward(x_t, generator, t, r)

    def log_kernels(
        self, x_t: Array, x_r: Array, before: ModelFn, after: ModelFn, t: Array, r: Array
    ) -> tuple[Array, Array]:
        """(log forward(x_r | x_t), log backward(x_t | x_r)), [N] each; the generators asked at t and r."""
        x_t, x_r, t, r = _gaussian.prepare_pair(self.path, x_t, x_r, t, r)
        forward = _gaussian.normal_log_density(self.path, x_r, *self._forward(x_t, before, t, r))
        return forward, self._log_backward(x_t, x_r, after, t, r)

    def reverse_step(self, key: Key, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_t [N, D] ~ backward(. | x_r); at g* the generator is not needed."""
        x_r, t, r = _gaussian.prepare(self.path, x_r, t, r, "x_r")
        keys = _keys(key, x_r)
        if self._own:
            return random.per_example(self.path.noise, keys, x_r, r, t)
        return self._draw(keys, self._backward(x_r, generator, t, r))

    def log_ratio(self, x_t: Array, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward - log forward of a given pair, as in `step`."""
        forward, backward = self.log_kernels(x_t, x_r, generator, generator, t, r)
        return backward - forward

    @property
    def _own(self):
        """Whether g is g*, so that backward is p_{t|r}."""
        return self.coefficient is None or self.coefficient == 1

    @property
    def _scale(self):
        return self.path.prior_variance**0.5 if self.data_scale is None else self.data_scale

    def _pair(self, x, t, r):
        if not callable(self.coefficient):
            share = jnp.full(t.shape, 1.0 if self.coefficient is None else self.coefficient**2, t.dtype)
        else:
            share = jnp.square(self.diffusion_coefficient(t) / self.path.diffusion_coefficient(t))
        return _gaussian.noise_pair(self.path, t, r, share, x.dtype)

    def _forward(self, x, generator, t, r):
        out, pair = _gaussian.model(self.path, generator, x, t), self._pair(x, t, r)
        mean = pair.on_data * _gaussian.denoised(self.path, out, x, t) + pair.on_state * x
        spread = _gaussian.posterior(self.path, out, x, t, self._scale)
        return NormalKernel(self.path.project(mean), pair.known + pair.on_data**2 * spread)

    def _backward(self, x, generator, t, r):
        out, pair = _gaussian.model(self.path, generator, x, r), self._pair(x, t, r)
        push = pair.back_score * _gaussian.score(self.path, out, x, r)
        # A score may be infinite where it does not count.
        mean = pair.back_state * x + jnp.where(pair.back_score == 0, 0.0, push)
        spread = _gaussian.posterior(self.path, out, x, r, self._scale)
        return NormalKernel(self.path.project(mean), pair.back_known + pair.back_data**2 * spread)

    def _draw(self, keys, kernel):
        def one(key, mean, variance):
            return mean + jnp.sqrt(variance) * self.path.standard_normal(key, mean.shape, mean.dtype)

        return random.per_example(one, keys, *kernel)

    def _log_backward(self, x_t, x_r, generator, t, r):
        if self._own:
            return self.path.log_noising(x_t, t, x_r, r)
        return _gaussian.normal_log_density(self.path, x_t, *self._backward(x_r, generator, t, r))


def _keys(key: Key, x: Array) -> Array:
    return random.derive(random.example_keys(key, x.shape[0]), "diffusion")
