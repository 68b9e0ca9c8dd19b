"""Gaussian paths x_t = alpha_t x_1 + sigma_t noise: linear, variance exploding and preserving.

With a = alpha_t / alpha_r and v = sigma_t^2 - a^2 sigma_r^2 every path here has
p_{t|r}(x_t | x_r) = N(a x_r, v I), q_{r|t}(x_r | x_t) = N(x_t / a, v / a^2 I) and
log Z_{r|t} = -D log a. The generator is the velocity. A path gives its schedule; all the rest is
`_GaussianPath`. Schedules are written in the variance sigma_t^2, whose derivative stays finite at
t = 1 where sigma_1 = 0.

Used by `egm.estimate`, the flow and diffusion processes, and `egm.paths.ProductPath`.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.typing import Array, Key, ModelFn


class Kernel(NamedTuple):
    """p_{t|r}(x_t | x_r) = N(scale x_r, variance I); every part has the shape of t and r."""

    scale: Array
    log_scale: Array
    variance: Array


class _GaussianPath(abc.ABC):
    """All that follows from a schedule with alpha_1 = 1 and sigma_1 = 0.

    Methods on states take x [..., D] with any number of batch axes, also none, and t and r scalars
    or of the batch shape. Schedule methods (`alpha`, `variance`, `kernel`, ...) take times of any
    shape and do not check them.

    Source: Generator Matching (arXiv 2410.20587); Score-based generative modeling through
    stochastic differential equations (arXiv 2011.13456) for the link of velocity and score.
    """

    event_ndim: ClassVar[int] = 1

    # The schedule: what a subclass gives.

    @property
    @abc.abstractmethod
    def t_min(self) -> float:
        """The first time at which the proposals are finite (alpha is not zero)."""

    @abc.abstractmethod
    def alpha(self, t: Array) -> Array:
        """alpha_t, non-decreasing, 1 at t = 1."""

    @abc.abstractmethod
    def alpha_dot(self, t: Array) -> Array:
        """Time derivative of alpha."""

    @abc.abstractmethod
    def variance(self, t: Array) -> Array:
        """sigma_t^2, decreasing, exactly 0 at t = 1."""

    @abc.abstractmethod
    def variance_dot(self, t: Array) -> Array:
        """Time derivative of sigma_t^2, finite at t = 1."""

    @abc.abstractmethod
    def kernel(self, t: Array, r: Array) -> Kernel:
        """a = alpha_t / alpha_r, log a and v = sigma_t^2 - a^2 sigma_r^2 in closed form."""

    @property
    @abc.abstractmethod
    def prior_variance(self) -> float:
        """Variance of each coordinate of `sample_prior`."""

    @abc.abstractmethod
    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] increasing times from `t_min` to 1, both exact."""

    # The space: what the centred path changes.

    def project(self, x: Array) -> Array:
        """The orthogonal projection of [..., D] onto the path's space; here `x` itself."""
        return x

    def dimension(self, trailing_size: int) -> int:
        """Dimension of that space for states [..., D], D = `trailing_size`; here D."""
        return trailing_size

    def standard_normal(self, key: Key, shape: tuple[int, ...], dtype: Any = float) -> Array:
        """Standard normal noise on the path's space, of the given full shape."""
        return self.project(jax.random.normal(_one_key(key), shape, dtype))

    def normal_log_density(self, x: Array, mean: Array, variance: Array) -> Array:
        """[...] log N(x; mean, variance I) on the path's space; x [..., D], variance [...]."""
        size = self.dimension(x.shape[-1])
        distance = jnp.sum(jnp.square(x - mean), axis=-1)
        return -0.5 * (distance / variance + size * jnp.log(2 * math.pi * variance))

    # Derived schedules.

    def diffusion_coefficient(self, t: Array) -> Array:
        """g*_t, with g*^2 = 2 (sigma^2 alpha'/alpha - sigma sigma'); its reverse is p_{t|r}."""
        return jnp.sqrt(2 * self._score_factor(_float_time(t)))

    def _rate(self, t):
        """alpha' / alpha, the factor of x in the velocity."""
        return self.alpha_dot(t) / self.alpha(t)

    def _score_factor(self, t):
        """g*^2 / 2, the factor of the score in the velocity; both terms are non-negative."""
        return self.variance(t) * self._rate(t) - 0.5 * self.variance_dot(t)

    # States.

    def batch_shape(self, x: Array, name: str = "x") -> tuple[int, ...]:
        """The batch axes of x [..., D].

        Raises:
          TypeError: `x` is not floating point. ValueError: it has no axis.
        """
        shape = checks.float_array(x, name, min_ndim=1).shape
        self._check_size(shape[-1], name)
        return shape[:-1]

    def _check_size(self, size, name):
        """Raises ValueError where a trailing size is wrong for this path; here never."""
        del size, name

    def contains(self, x: Array) -> Array:
        """[...] bool, whether all D coordinates are finite."""
        self.batch_shape(x)
        return jnp.all(jnp.isfinite(x), axis=-1)

    def determined(self, x: Array) -> Array:
        """[...] False: before t = 1 no state fixes x_1."""
        return jnp.zeros(self.batch_shape(x), bool)

    def data_state(self, x: Array) -> Array:
        """`x` itself: every value is one that data can have."""
        return x

    def sample_prior(self, key: Key, shape: tuple[int, ...]) -> Array:
        """[..., D] = `shape`, from N(0, prior_variance I), in the default float dtype."""
        shape = tuple(checks.positive_int(n, "every size in shape", minimum=0) for n in shape)
        if not shape:
            raise ValueError("shape must have at least 1 axis, the state's, got ()")
        self._check_size(shape[-1], "shape")
        return math.sqrt(self.prior_variance) * self.standard_normal(key, shape)

    def prior_log_density(self, x_0: Array) -> Array:
        """[...] normalised log-density of `sample_prior`."""
        batch = self.batch_shape(x_0, "x_0")
        x_0 = jnp.asarray(x_0)
        variance = jnp.full(batch, self.prior_variance, x_0.dtype)
        return self.normal_log_density(x_0, jnp.zeros_like(x_0), variance)

    # Kernels.

    def sample(self, key: Key, x_1: Array, t: Array) -> Array:
        """[..., D] x_t ~ p_{t|1}(. | x_1); x_1 itself at t = 1."""
        return self._noise(key, x_1, 1.0, t, "x_1")

    def noise(self, key: Key, x_r: Array, r: Array, t: Array) -> Array:
        """[..., D] x_t ~ p_{t|r}(. | x_r), for t <= r.

        Raises:
          ValueError: concrete times with t > r or outside [0, 1], or of another shape than () and
            the batch shape of x_r.
        """
        return self._noise(key, x_r, r, t, "x_r")

    def _noise(self, key, x, r, t, name):
        batch = self.batch_shape(x, name)
        x = jnp.asarray(x)
        t_checked, r_checked = checks.time(t, "t", batch), checks.time(r, "r", batch)
        _ordered(t, r)
        kernel = self._kernel(x, t_checked, r_checked)
        eps = self.standard_normal(key, x.shape, x.dtype)
        return kernel.scale[..., None] * x + jnp.sqrt(kernel.variance)[..., None] * eps

    def log_noising(self, x_t: Array, t: Array, x_r: Array, r: Array) -> Array:
        """log p_{t|r}(x_t | x_r).

        Args:
          x_t: [..., D]. t, r: scalars or [...], t < r.
          x_r: [K, ..., D], any number of extra leading axes.

        Returns:
          [K, ...] log-densities.

        Raises:
          ValueError: shapes that do not match, or concrete times with t >= r.
        """
        x_t, x_r, t, r = self._pair(x_t, t, x_r, r)
        kernel = self._kernel(x_t, t, r)
        return self.normal_log_density(x_t, kernel.scale[..., None] * x_r, kernel.variance)

    def propose(self, key: Key, x_t: Array, t: Array, r: Array, num_samples: int) -> Array:
        """[K, ..., D] x_r ~ q_{r|t}(. | x_t) = N(x_t / a, v / a^2 I), K = `num_samples`.

        Raises:
          ValueError: concrete times with t >= r or t < t_min. TypeError: num_samples is no int.
        """
        num_samples = checks.positive_int(num_samples, "num_samples")
        batch = self.batch_shape(x_t, "x_t")
        x_t = jnp.asarray(x_t)[None]
        t, r = self._proposal_times(t, r, batch)
        kernel = self._kernel(x_t, t[None], r[None])
        eps = self.standard_normal(key, (num_samples, *x_t.shape[1:]), x_t.dtype)
        return (x_t + jnp.sqrt(kernel.variance)[..., None] * eps) / kernel.scale[..., None]

    def log_normalizer(self, x_t: Array, t: Array, r: Array) -> Array:
        """[...] log Z_{r|t} = -D log a, the integral of p_{t|r}(x_t | x_r) over x_r."""
        batch = self.batch_shape(x_t, "x_t")
        x_t = jnp.asarray(x_t)
        kernel = self._kernel(x_t, *self._proposal_times(t, r, batch))
        return -self.dimension(x_t.shape[-1]) * kernel.log_scale

    # Generators.

    def conditional_generator(self, x_t: Array, t: Array, x_r: Array, r: Array) -> Array:
        """The conditional velocity a' x_r + v'/(2v) (x_t - a x_r), primes for d/dt.

        Args:
          x_t: [..., D]. t, r: scalars or [...], t < r.
          x_r: [K, ..., D], any number of extra leading axes.

        Returns:
          [K, ..., D] velocities.

        Raises:
          ValueError: shapes that do not match, or concrete times with t >= r.
        """
        x_t, x_r, t, r = self._pair(x_t, t, x_r, r)
        wide = _wide(t, r, x_t)
        t, r = t.astype(wide), r.astype(wide)
        scale, _, variance = self.kernel(t, r)
        scale_dot = self.alpha_dot(t) / self.alpha(r)
        variance_dot = self.variance_dot(t) - 2 * scale * scale_dot * self.variance(r)
        scale, scale_dot, rate = (
            c.astype(x_t.dtype)[..., None] for c in (scale, scale_dot, variance_dot / (2 * variance))
        )
        return scale_dot * x_r + rate * (x_t - scale * x_r)

    def conditional_score(self, x_t: Array, t: Array, x_r: Array, r: Array) -> Array:
        """[K, ..., D] gradient of `log_noising` in x_t: -(x_t - a x_r) / v; x_r [K, ..., D]."""
        x_t, x_r, t, r = self._pair(x_t, t, x_r, r)
        kernel = self._kernel(x_t, t, r)
        return (kernel.scale[..., None] * x_r - x_t) / kernel.variance[..., None]

    def local_generator(self, log_density: ModelFn, x_t: Array, t: Array) -> Array:
        """[..., D] the marginal velocity of phi_t, from its gradient at x_t [..., D]; no samples.

        Args:
          log_density: phi, called as `log_density(x, t)` with x [N, D] and t [N], returns [N].
          x_t: [..., D]. t: scalar or [...].

        Raises:
          ValueError: `log_density` returns another shape, or a concrete t is below t_min.
        """
        batch = self.batch_shape(x_t, "x_t")
        x_t, t_checked = jnp.asarray(x_t), checks.time(t, "t", batch)
        size = math.prod(batch)
        flat_t = t_checked.reshape(size)

        def total(x):
            out = log_density(x, flat_t)
            return jnp.sum(checks.model_output(out, "log_density", (size,)))

        score = jax.grad(total)(x_t.reshape(size, x_t.shape[-1])).reshape(x_t.shape)
        return self.velocity_from_score(self.project(score), x_t, t)

    def velocity_from_score(self, score: Array, x: Array, t: Array) -> Array:
        """Marginal velocity u = (alpha'/alpha) x + (sigma^2 alpha'/alpha - sigma sigma') s.

        Args:
          score: [K, ..., D], any number of extra leading axes. x: [..., D]. t: scalar or [...].

        Returns:
          [K, ..., D] velocities.
        """
        score, x, rate, factor = self._conversion(score, "score", x, t)
        return rate * x + factor * score

    def score_from_velocity(self, velocity: Array, x: Array, t: Array) -> Array:
        """[K, ..., D] the inverse of `velocity_from_score`; the linear path needs t < 1."""
        velocity, x, rate, factor = self._conversion(velocity, "velocity", x, t)
        return (velocity - rate * x) / factor

    # Shapes and dtypes.

    def _kernel(self, x, t, r):
        """The kernel in the dtype of x, from times no narrower than float32."""
        wide = _wide(t, r, x)
        kernel = self.kernel(t.astype(wide), r.astype(wide))
        return Kernel(*(part.astype(x.dtype) for part in kernel))

    def _matching(self, x, x_name, y, y_name):
        """x [..., D] with leading axes of size 1 up to the rank of y, y [K, ..., D], and [...]."""
        batch, batch_y = self.batch_shape(x, x_name), self.batch_shape(y, y_name)
        x, y = jnp.asarray(x), jnp.asarray(y)
        if x.shape[-1] != y.shape[-1]:
            raise ValueError(f"{x_name} has trailing size {x.shape[-1]}, {y_name} has {y.shape[-1]}")
        if len(batch_y) < len(batch) or batch_y[len(batch_y) - len(batch) :] != batch:
            raise ValueError(f"the batch axes of {y_name} must end with {x_name}'s, {batch}, got {batch_y}")
        return _lead(x, y.ndim), y, batch

    def _pair(self, x_t, t, x_r, r):
        x_t, x_r, batch = self._matching(x_t, "x_t", x_r, "x_r")
        t, r = (_lead(time, x_r.ndim - 1) for time in checks.time_pair(t, r, batch))
        return x_t, x_r, t, r

    def _conversion(self, field, name, x, t):
        x, field, batch = self._matching(x, "x", field, name)
        t_checked = _lead(checks.time(t, "t", batch), x.ndim - 1)
        self._check_t_min(t)
        t_wide = t_checked.astype(_wide(t_checked, t_checked, x))
        rate, factor = self._rate(t_wide), self._score_factor(t_wide)
        return field, x, rate.astype(x.dtype)[..., None], factor.astype(x.dtype)[..., None]

    def _proposal_times(self, t, r, batch):
        pair = checks.time_pair(t, r, batch)
        self._check_t_min(t)
        return pair

    def _check_t_min(self, t):
        value = checks.concrete(t)
        # The slack lets a float32 rounding of t_min pass.
        if value is not None and np.any(value * (1 + 1e-6) < self.t_min):
            raise ValueError(f"t must be at least t_min = {self.t_min}, got {np.min(value)}")


@dataclasses.dataclass(frozen=True)
class LinearPath(_GaussianPath):
    """Conditional optimal transport: alpha_t = t, sigma_t = (1 - t) sigma, prior N(0, sigma^2 I).

    alpha_0 = 0, so the proposals exist from `t_min` on. The prior is the marginal at t = 0 all the
    same, and `prior_log_density` is that of `sample_prior`.

    Attributes:
      sigma: standard deviation of the prior.
      t_min: first time of `times`, in (0, 1).

    Source: Flow Matching (arXiv 2210.02747).
    """

    sigma: float = 1.0
    t_min: float = 1e-3

    def __post_init__(self):
        _set_positive(self, "sigma", "t_min")
        if self.t_min >= 1:
            raise ValueError(f"t_min must be below 1, got {self.t_min}")

    def alpha(self, t: Array) -> Array:
        return _float_time(t)

    def alpha_dot(self, t: Array) -> Array:
        return jnp.ones_like(_float_time(t))

    def variance(self, t: Array) -> Array:
        return jnp.square(self.sigma * (1 - _float_time(t)))

    def variance_dot(self, t: Array) -> Array:
        return -2 * self.sigma**2 * (1 - _float_time(t))

    def kernel(self, t: Array, r: Array) -> Kernel:
        t, r = _float_time(t), _float_time(r)
        scale = t / r
        variance = self.sigma**2 * ((r - t) / r) * ((r * (1 - t) + t * (1 - r)) / r)
        return Kernel(scale, jnp.log(scale), variance)

    @property
    def prior_variance(self) -> float:
        return self.sigma**2

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times, uniform from `t_min` to 1."""
        num_steps = checks.positive_int(num_steps, "num_steps")
        return _increasing(np.linspace(self.t_min, 1.0, num_steps + 1), self.t_min)


@dataclasses.dataclass(frozen=True)
class VarianceExplodingPath(_GaussianPath):
    """alpha_t = 1, sigma_t^2 = sigma_min^2 [(sigma_max / sigma_min)^{2 (1 - t)} - 1].

    The prior is N(0, sigma_0^2 I) with sigma_0^2 = sigma_max^2 - sigma_min^2: the usual
    approximation of the marginal at t = 0, good where the data are small beside sigma_max.

    Attributes:
      sigma_min: scale at which the noise sets in near t = 1.
      sigma_max: scale of the noise at t = 0, above `sigma_min`.
      length_scale: s in `times`, the length below which noise no longer matters to the target.

    Source: arXiv 2011.13456, with time reversed and sigma_1 = 0 exactly.
    """

    sigma_min: float
    sigma_max: float
    length_scale: float = 1.0
    t_min: ClassVar[float] = 0.0

    def __post_init__(self):
        _set_positive(self, "sigma_min", "sigma_max", "length_scale")
        if self.sigma_min >= self.sigma_max:
            raise ValueError(
                "sigma_min must be below sigma_max, got "
                f"sigma_min = {self.sigma_min} and sigma_max = {self.sigma_max}"
            )

    @property
    def _log_range(self):
        return 2 * math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Array) -> Array:
        return jnp.ones_like(_float_time(t))

    def alpha_dot(self, t: Array) -> Array:
        return jnp.zeros_like(_float_time(t))

    def variance(self, t: Array) -> Array:
        return self.sigma_min**2 * jnp.expm1(self._log_range * (1 - _float_time(t)))

    def variance_dot(self, t: Array) -> Array:
        grown = jnp.exp(self._log_range * (1 - _float_time(t)))
        return -(self.sigma_min**2) * self._log_range * grown

    def kernel(self, t: Array, r: Array) -> Kernel:
        t, r = _float_time(t), _float_time(r)
        variance = (
            self.sigma_min**2 * jnp.exp(self._log_range * (1 - r)) * jnp.expm1(self._log_range * (r - t))
        )
        return Kernel(jnp.ones_like(variance), jnp.zeros_like(variance), variance)

    @property
    def prior_variance(self) -> float:
        return self.sigma_min**2 * math.expm1(self._log_range)

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times, uniform in log(sigma_t^2 + length_scale^2)."""
        ratio = _noise_grid(self.prior_variance, self.length_scale, num_steps)
        return _increasing(1 - np.log1p(ratio / self.sigma_min**2) / self._log_range, self.t_min)


@dataclasses.dataclass(frozen=True)
class VariancePreservingPath(_GaussianPath):
    """alpha_t = exp(-B/2), sigma_t^2 = 1 - exp(-B), B the integral of beta over the time left to 1.

    With s = 1 - t, beta(s) = beta_min + (beta_max - beta_min) s and B = beta_min s + (beta_max -
    beta_min) s^2 / 2. The prior is N(0, I), exact for data of unit covariance, else good as far as
    alpha_0 = exp(-(beta_min + beta_max) / 4) is small.

    Attributes:
      beta_min: noise rate at the target, t = 1.
      beta_max: noise rate at the prior, t = 0, at least `beta_min`.
      length_scale: s in `times`.

    Source: arXiv 2011.13456, with time reversed.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    length_scale: float = 1.0
    t_min: ClassVar[float] = 0.0

    def __post_init__(self):
        _set_positive(self, "beta_min", "beta_max", "length_scale")
        if self.beta_min > self.beta_max:
            raise ValueError(
                "beta_min must not exceed beta_max, got "
                f"beta_min = {self.beta_min} and beta_max = {self.beta_max}"
            )

    def _beta(self, t):
        return self.beta_min + (self.beta_max - self.beta_min) * (1 - t)

    def _integral(self, t, r):
        """The integral of beta from t to r."""
        return (r - t) * 0.5 * (self._beta(t) + self._beta(r))

    def alpha(self, t: Array) -> Array:
        return jnp.exp(-0.5 * self._integral(_float_time(t), 1.0))

    def alpha_dot(self, t: Array) -> Array:
        return 0.5 * self._beta(_float_time(t)) * self.alpha(t)

    def variance(self, t: Array) -> Array:
        return -jnp.expm1(-self._integral(_float_time(t), 1.0))

    def variance_dot(self, t: Array) -> Array:
        t = _float_time(t)
        return -self._beta(t) * jnp.exp(-self._integral(t, 1.0))

    def kernel(self, t: Array, r: Array) -> Kernel:
        integral = self._integral(_float_time(t), _float_time(r))
        return Kernel(jnp.exp(-0.5 * integral), -0.5 * integral, -jnp.expm1(-integral))

    @property
    def prior_variance(self) -> float:
        return 1.0

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times, uniform in log(sigma_t^2 / alpha_t^2 + length_scale^2)."""
        ratio = _noise_grid(math.expm1(self._integral(0.0, 1.0)), self.length_scale, num_steps)
        integral = np.log1p(ratio)
        slope = self.beta_max - self.beta_min
        left = 2 * integral / (self.beta_min + np.sqrt(self.beta_min**2 + 2 * slope * integral))
        return _increasing(1 - left, self.t_min)


@dataclasses.dataclass(frozen=True)
class CenteredPath(_GaussianPath):
    """A Gaussian path on the subspace of N particles in d dimensions whose positions sum to zero.

    For translation-invariant energies. A state is [..., N * d], the particles' positions one after
    another; noise is projected, and every density is one on the subspace, of dimension (N - 1) d.
    States passed in are taken to be centred already (`project` centres them).

    Attributes:
      path: the Gaussian path whose schedule this one has.
      num_particles: N, at least 2.
      spatial_dim: d.

    Raises:
      TypeError: `path` is no Gaussian path, or is centred already.
    """

    path: _GaussianPath
    num_particles: int
    spatial_dim: int

    def __post_init__(self):
        if not isinstance(self.path, _GaussianPath) or isinstance(self.path, CenteredPath):
            raise TypeError(f"path must be a Gaussian path, not yet centred, got {self.path!r}")
        for name, minimum in (("num_particles", 2), ("spatial_dim", 1)):
            value = checks.positive_int(getattr(self, name), name, minimum)
            object.__setattr__(self, name, value)

    def _check_size(self, size, name):
        expected = self.num_particles * self.spatial_dim
        if size != expected:
            raise ValueError(
                f"{name} has trailing size {size}, this path has {self.num_particles} particles "
                f"in {self.spatial_dim} dimensions, {expected} in all"
            )

    def contains(self, x: Array) -> Array:
        """[...] bool, whether x is finite and centred, to the square root of its precision."""
        finite = super().contains(x)
        x = jnp.asarray(x)
        limit = math.sqrt(jnp.finfo(x.dtype).eps) * (1 + jnp.max(jnp.abs(x), axis=-1))
        return finite & (jnp.max(jnp.abs(x - self.project(x)), axis=-1) <= limit)

    def project(self, x: Array) -> Array:
        """[..., N * d] with the mean position of the particles taken off."""
        particles = x.reshape(*x.shape[:-1], self.num_particles, self.spatial_dim)
        return (particles - jnp.mean(particles, axis=-2, keepdims=True)).reshape(x.shape)

    def dimension(self, trailing_size: int) -> int:
        """(N - 1) d."""
        return (self.num_particles - 1) * self.spatial_dim

    @property
    def t_min(self) -> float:
        return self.path.t_min

    @property
    def prior_variance(self) -> float:
        return self.path.prior_variance

    def alpha(self, t: Array) -> Array:
        return self.path.alpha(t)

    def alpha_dot(self, t: Array) -> Array:
        return self.path.alpha_dot(t)

    def variance(self, t: Array) -> Array:
        return self.path.variance(t)

    def variance_dot(self, t: Array) -> Array:
        return self.path.variance_dot(t)

    def kernel(self, t: Array, r: Array) -> Kernel:
        return self.path.kernel(t, r)

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times of the wrapped path."""
        return self.path.times(num_steps)


def _float_time(t):
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


def _wide(t, r, x):
    """The dtype to compute a schedule in: as wide as times and state, at least float32."""
    return jnp.result_type(t.dtype, r.dtype, x.dtype, jnp.float32)


def _lead(x, ndim):
    """`x` with axes of size 1 in front, up to `ndim`: ranks are never promoted silently."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def _one_key(key):
    checks.key_array(key)
    if key.shape != ():
        raise ValueError(f"key must be one key, got an array of keys of shape {key.shape}")
    return key


def _ordered(t, r):
    """Raises where concrete times have t > r (equal ones are no noise at all)."""
    t, r = checks.concrete(t), checks.concrete(r)
    if t is not None and r is not None and np.any(t > r):
        raise ValueError(f"t must not be above r, got t = {t} and r = {r}")


def _set_positive(path, *names):
    """Validated fields of a frozen dataclass as floats, so that equal paths hash alike."""
    for name in names:
        object.__setattr__(path, name, checks.positive_float(getattr(path, name), name))


def _noise_grid(largest, length_scale, num_steps):
    """Noise-to-signal ratios n from `largest` to 0, uniform in log(n + length_scale^2)."""
    num_steps = checks.positive_int(num_steps, "num_steps")
    fraction = np.linspace(1.0, 0.0, num_steps + 1)
    return length_scale**2 * np.expm1(fraction * np.log1p(largest / length_scale**2))


def _increasing(grid, first):
    """The times in the default float dtype, with exact ends; raises where rounding merges two."""
    grid = np.asarray(grid, jnp.result_type(float))
    grid[0], grid[-1] = first, 1.0
    if not np.all(np.diff(grid) > 0):
        raise ValueError(
            f"{len(grid) - 1} steps are too many for {grid.dtype} times on this grid; "
            "take fewer steps or a larger length_scale"
        )
    return jnp.asarray(grid)
