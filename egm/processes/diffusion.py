"""Diffusions dx = (u + g^2 s / 2) dt + g dW that keep a Gaussian path's marginals, for any g >= 0.

Both kernels are Gaussian, so path weights are exact for any generator and any number of steps.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives, random
from egm.paths.gaussian import GaussianPath
from egm.processes import _gaussian
from egm.typing import Array, Key, ModelFn

__all__ = ["DiffusionProcess"]


class _Forward(NamedTuple):
    """N(mean, variance): mean [N, D], variance [N, 1] or [N, D]."""

    mean: Array
    variance: Array


@dataclasses.dataclass(frozen=True)
class DiffusionProcess:
    """A diffusion with the path's marginals, by its coefficient g.

    Without a coefficient it is g* = `path.diffusion_coefficient`, whose time reverse is the path's own
    p_{t|r} = N(a x_r, v I). Backward is p_{t|r}; forward has mean (x_t + v s) / a, s the score, exact for
    the exact score, and variance v / a^2, or with the record's posterior variance the exact one,
    v sigma_r^2 / sigma_t^2 + (alpha_r v / sigma_t^2)^2 Var[x_1 | x_t] for each coordinate (on a centred
    subspace isotropic, with the same trace), which keeps the ESS up where steps are few. For a generator
    without it `data_scale` = l stands for the one of normal data, sigma_t^2 l^2 / (sigma_t^2 +
    alpha_t^2 l^2). v / a^2 is far too wide where alpha_t is small, on the linear path above all.

    With a coefficient both kernels are Euler-Maruyama steps, g = g(t) and h = r - t: forward
    N(x_t + h (u + g^2 s/2)(x_t, t), g^2 h), backward N(x_r - h (u - g^2 s/2)(x_r, r), g^2 h). Where
    g(t) = 0 a step is the flow's Euler step with its determinant, computed only then (though compiled
    for every function g), and refused where it folds, as `FlowProcess` does; above 64 dimensions
    log_ratio is NaN there.

    Attributes:
      path: a Gaussian path.
      coefficient: None for g*; a hashable function g(t) >= 0 of times [N] that returns [N] or a scalar;
        or a number c >= 0 for c g* by Euler-Maruyama steps, c = 0 being the flow.
      data_scale: l, for generators without a posterior variance; None takes v / a^2.

    Raises:
      TypeError, ValueError: a field is none of these.

    Source: Generator Matching (arXiv 2410.20587); EGM (arXiv 2505.19646).

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
        return self.step_with_folds(key, x_t, generator, t, r)[:2]

    def step_with_folds(
        self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array
    ) -> tuple[Array, Array, Array]:
        """(x_r, log_ratio, folded [N] bool): `step`, and the states that a flow's step refused."""
        x_t, t, r = _gaussian.prepare(self.path, x_t, t, r, "x_t")
        forward = self._forward(x_t, generator, t, r)
        x_r = self._draw(_keys(key, x_t), forward)
        return x_r, *self._ratio(x_t, x_r, forward, generator, t, r)

    def reverse_step(self, key: Key, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_t [N, D] ~ backward(. | x_r); at g* the generator is not needed."""
        x_r, t, r = _gaussian.prepare(self.path, x_r, t, r, "x_r")
        keys = _keys(key, x_r)
        if self.coefficient is None:
            return random.per_example(self.path.noise, keys, x_r, r, t)
        x_t = self._draw(keys, self._backward(x_r, generator, t, r))
        if not self._may_vanish:
            return x_t

        def inverse():
            if x_r.shape[-1] > _gaussian.MAX_DIMENSION:
                return jnp.full_like(x_r, jnp.nan)
            fn = _gaussian.euler(self.path, generator, t, r)
            return _gaussian.preimage(fn, x_r)

        return self._where_still(t, inverse, x_t)

    def log_ratio(self, x_t: Array, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward - log forward of a given pair, as in `step`."""
        x_t, x_r, t, r = _gaussian.prepare_pair(self.path, x_t, x_r, t, r)
        return self._ratio(x_t, x_r, self._forward(x_t, generator, t, r), generator, t, r)[0]

    @property
    def _may_vanish(self):
        """Whether g may be 0; g* never is before t = 1."""
        return callable(self.coefficient) or self.coefficient == 0

    def _forward(self, x, generator, t, r):
        out = _gaussian.model(self.path, generator, x, t)
        if self.coefficient is not None:
            score = _gaussian.score(self.path, out, x, t)
            return self._euler_maruyama(x, out.velocity, score, t, r, t)
        # Given x_1 too, x_r is normal: mean c_1 x_1 + c_t x_t and variance `known`.
        wide = jnp.result_type(t, r, x, jnp.float32)
        t, r = t.astype(wide), r.astype(wide)
        scale, _, noise = self.path.kernel(t, r)
        share = noise / self.path.variance(t)
        left = self.path.variance(r) / self.path.variance(t)
        c_1, c_t, known, wide_open = (
            part.astype(x.dtype)[:, None]
            for part in (self.path.alpha(r) * share, scale * left, noise * left, noise / scale**2)
        )
        mean = self.path.project(c_1 * _gaussian.denoised(self.path, out, x, t) + c_t * x)
        posterior = out.posterior_variance
        if posterior is None:
            if self.data_scale is None:
                return _Forward(mean, wide_open)
            broad = jnp.square(self.path.alpha(t) * self.data_scale) + self.path.variance(t)
            normal = (self.data_scale**2 * self.path.variance(t) / broad).astype(x.dtype)
            return _Forward(mean, known + c_1**2 * normal[:, None])
        size = self.path.dimension(x.shape[-1])
        if size < x.shape[-1]:
            posterior = jnp.sum(posterior, axis=-1, keepdims=True) / size
        return _Forward(mean, known + c_1**2 * posterior)

    def _backward(self, x, generator, t, r):
        out = _gaussian.model(self.path, generator, x, r)
        score = _gaussian.score(self.path, out, x, r)
        return self._euler_maruyama(x, -out.velocity, score, t, r, t)

    def _euler_maruyama(self, x, drift, score, t, r, at):
        """N(x + h (drift + g^2 score / 2), g^2 h), g at the time `at`; the backward has drift -u."""
        h = _gaussian.step_size(x, t, r)
        g2 = jnp.square(self.diffusion_coefficient(at)).astype(x.dtype)[:, None]
        # A score may be infinite where there is no noise.
        push = jnp.where(g2 == 0, 0.0, 0.5 * g2 * jnp.where(g2 == 0, 0.0, score))
        return _Forward(self.path.project(x + h * (drift + push)), g2 * h)

    def _draw(self, keys, kernel):
        def one(key, mean, variance):
            return mean + jnp.sqrt(variance) * self.path.standard_normal(key, mean.shape, mean.dtype)

        return random.per_example(one, keys, *kernel)

    def _ratio(self, x_t, x_r, forward, generator, t, r):
        """(log_ratio [N], folded [N] bool)."""
        none = jnp.zeros_like(x_t[:, 0], bool)
        if self.coefficient is None:
            backward = self.path.log_noising(x_t, t, x_r, r)
            return backward - _gaussian.normal_log_density(self.path, x_r, *forward), none
        back = self._backward(x_r, generator, t, r)
        noisy = self._log_density(x_t, back) - self._log_density(x_r, forward)
        if not self._may_vanish:
            return noisy, none
        still = self.diffusion_coefficient(t) == 0

        def flow():
            if x_t.shape[-1] > _gaussian.MAX_DIMENSION:
                return jnp.full_like(x_t[:, 0], jnp.nan), none
            _, ratio, folded = _gaussian.flow_step(_gaussian.euler(self.path, generator, t, r), x_t)
            return ratio, folded & still

        # One array for both, so that one condition serves: a fold is marked by +inf, which no flow gives.
        def marked():
            ratio, folded = flow()
            return jnp.where(folded, jnp.inf, ratio)

        ratio = self._where_still(t, marked, noisy)
        folded = still & (ratio == jnp.inf)
        return jnp.where(folded, jnp.nan, ratio), folded

    def _log_density(self, x, kernel):
        safe = jnp.where(kernel.variance == 0, 1.0, kernel.variance)
        return _gaussian.normal_log_density(self.path, x, kernel.mean, safe)

    def _where_still(self, t, flow, noisy):
        """`flow()` in the rows with g(t) = 0 and `noisy` elsewhere; without such rows flow is not run."""
        still = self.diffusion_coefficient(t) == 0

        def run(make):
            return lambda: collectives.varying_like(make().astype(noisy.dtype), noisy)

        value = jax.lax.cond(jnp.any(still), run(flow), run(lambda: jnp.zeros_like(noisy)))
        return jnp.where(still.reshape(still.shape + (1,) * (noisy.ndim - 1)), value, noisy)


def _keys(key: Key, x: Array) -> Array:
    return random.derive(random.example_keys(key, x.shape[0]), "diffusion")
