"""What every Gaussian path x_t = alpha_t x_1 + sigma_t noise shares, given its schedule.

With a = alpha_t / alpha_r and v = sigma_t^2 - a^2 sigma_r^2 every path here has
p_{t|r}(x_t | x_r) = N(a x_r, v I), q_{r|t}(x_r | x_t) = N(x_t / a, v / a^2 I) and
log Z_{r|t} = -D log a. The generator is the velocity. Schedules are written in the variance
sigma_t^2, whose derivative stays finite at t = 1 where sigma_1 = 0.
"""

from __future__ import annotations

import abc
import math
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.paths import local
from egm.typing import Array, Key, ModelFn, Moments, PriorDraw, Time

__all__ = ["GaussianPath", "Kernel", "float_time", "increasing", "noise_grid", "set_positive", "with_weight"]


class Kernel(NamedTuple):
    """p_{t|r}(x_t | x_r) = N(scale x_r, variance I); every part has the shape of t and r."""

    scale: Array
    log_scale: Array
    variance: Array


class GaussianPath(abc.ABC):
    """All that follows from a schedule with alpha_1 = 1 and sigma_1 = 0.

    Methods on states take x [..., D] with any number of batch axes, also none, and t and r scalars
    or of the batch shape. Schedule methods (`alpha`, `variance`, `kernel`, ...) take times of any
    shape and do not check them. States narrower than float32 are computed with, and come out, in
    float32, whatever dtype a network runs in.

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
    def alpha(self, t: Time) -> Array:
        """alpha_t, non-decreasing, 1 at t = 1."""

    @abc.abstractmethod
    def alpha_dot(self, t: Time) -> Array:
        """Time derivative of alpha."""

    @abc.abstractmethod
    def variance(self, t: Time) -> Array:
        """sigma_t^2, decreasing, exactly 0 at t = 1."""

    @abc.abstractmethod
    def variance_dot(self, t: Time) -> Array:
        """Time derivative of sigma_t^2, finite at t = 1."""

    @abc.abstractmethod
    def kernel(self, t: Time, r: Time) -> Kernel:
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
        """Standard normal noise on the path's space, of the given full shape, in float32 or wider."""
        dtype = jnp.promote_types(jnp.result_type(dtype), jnp.float32)
        return self.project(jax.random.normal(checks.one_key(key), shape, dtype))

    def normal_log_density(self, x: Array, mean: Array, variance: Array) -> Array:
        """[...] log N(x; mean, variance I) on the path's space; x [..., D], variance [...]."""
        x, mean = checks.wide(x), checks.wide(mean)
        size = self.dimension(x.shape[-1])
        distance = jnp.sum(jnp.square(x - mean), axis=-1)
        return -0.5 * (distance / variance + size * jnp.log(2 * math.pi * variance))

    def coordinate_log_density(self, x: Array, mean: Array, variance: Array) -> Array:
        """[..., D] log N(x_i; mean_i, variance_i) of each coordinate, where the space is all of R^D."""
        return -0.5 * (jnp.square(x - mean) / variance + jnp.log(2 * math.pi * variance))

    def confinement(self, trailing_size: int) -> np.ndarray:
        """[D] 1 where data have a finite variance on the line; 0 where a coordinate is an angle."""
        return np.ones(trailing_size)

    # Derived schedules.

    def diffusion_coefficient(self, t: Time) -> Array:
        """g*_t, with g*^2 = 2 (sigma^2 alpha'/alpha - sigma sigma'); its reverse is p_{t|r}."""
        return jnp.sqrt(2 * self._score_factor(float_time(t)))

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

    def determined(self, x: Array, t: Time | None = None) -> Array:
        """[...] whether t = 1: before that no state fixes x_1."""
        batch = self.batch_shape(x)
        return jnp.zeros(batch, bool) if t is None else jnp.broadcast_to(t, batch) >= 1

    def data_state(self, x: Array) -> Array:
        """`x` itself: every value is one that data can have."""
        return x

    def sample_prior(self, key: Key, shape: tuple[int, ...]) -> Array:
        """[..., D] = `shape` from N(0, prior_variance I), in the default float dtype."""
        return self.draw_prior(key, shape).x_0

    def draw_prior(self, key: Key, shape: tuple[int, ...], moments: Moments | None = None) -> PriorDraw:
        """States [..., D] = `shape` in the default float dtype, and their log-density [...].

        From N(0, prior_variance I), or, with the data's moments, from the normal distribution that
        has the mean and variances of the marginal at `t_min`.
        """
        if not isinstance(shape, tuple | list):
            raise TypeError(f"shape must be a tuple of ints, got {shape!r:.80}")
        shape = tuple(checks.positive_int(n, "every size in shape", minimum=0) for n in shape)
        if not shape:
            raise ValueError("shape must have at least 1 axis, the state's, got ()")
        self._check_size(shape[-1], "shape")
        mean, variance = self._prior(shape[-1], moments)
        noise = self.standard_normal(key, shape)
        x_0 = jnp.broadcast_to(mean, shape) + jnp.broadcast_to(jnp.sqrt(variance), shape) * noise
        return PriorDraw(x_0, self.prior_log_density(x_0, moments))

    def num_local_states(self, event_shape: tuple[int, ...]) -> int:
        """2 D sigma points and the gradient at their centre."""
        if not isinstance(event_shape, tuple | list) or not event_shape:
            raise TypeError(f"event_shape must be a tuple of ints, got {event_shape!r:.80}")
        checks.positive_int(event_shape[-1], "every size in event_shape")
        return 2 * self.dimension(event_shape[-1]) + 1

    def local_target(self, key: Key, boundary_g: ModelFn, x_t: Array, t: Array, grid: Array) -> Array:
        """[B] targets, as `egm.typing.LocalPath` has them; r is one step of the grid ahead."""
        return local.cubature_target(self, key, boundary_g, x_t, t, grid)

    def prior_log_density(self, x_0: Array, moments: Moments | None = None) -> Array:
        """[...] normalised log-density of `draw_prior` with the same moments."""
        self.batch_shape(x_0, "x_0")
        x_0 = checks.wide(x_0)
        size = x_0.shape[-1]
        parts = self._prior(size, moments)
        mean, variance = (jnp.broadcast_to(a.astype(x_0.dtype), x_0.shape) for a in parts)
        distance = jnp.sum(jnp.square(x_0 - mean) / variance, axis=-1)
        # On a subspace the variances are all equal: their logarithms count once a dimension.
        log_volume = jnp.sum(jnp.log(2 * math.pi * variance), axis=-1) * (self.dimension(size) / size)
        return -0.5 * (distance + log_volume)

    def _prior(self, size, moments):
        """Mean and variance, [D] each."""
        if moments is None:
            return jnp.zeros(size), jnp.full(size, self.prior_variance)
        for name, value in moments._asdict().items():
            if jnp.shape(value) != (size,):
                raise ValueError(f"moments.{name} must have shape ({size},), got {jnp.shape(value)}")
        first = jnp.asarray(self.t_min, float)
        alpha = self.alpha(first)
        return alpha * moments.mean, alpha**2 * moments.variance + self.variance(first)

    def moments(self, x_1: Array, weights: Array) -> Moments:
        """Weighted mean and variance of each coordinate.

        Args:
          x_1: [N, D] data; a row of weight 0 may be anything, also infinite.
          weights: [N], sum 1 (all zeros give zeros).
        """
        x_1, weights = with_weight(x_1, weights)
        mean = _weighted_sum(weights, x_1)
        centred = jnp.where(weights[:, None] > 0, x_1 - mean[None], 0.0)
        return Moments(mean, _weighted_sum(weights, jnp.square(centred)))

    def reference_energy(self, x_1: Array, moments: Moments) -> Array:
        """[...] sum over coordinates of (x_1 - mean)^2 / (2 variance)."""
        x_1 = checks.wide(x_1)
        mean, variance = (jnp.broadcast_to(a, x_1.shape) for a in moments)
        return 0.5 * jnp.sum(jnp.square(x_1 - mean) / variance, axis=-1)

    # Kernels.

    def sample(self, key: Key, x_1: Array, t: Time) -> Array:
        """[..., D] x_t ~ p_{t|1}(. | x_1); x_1 itself at t = 1."""
        return self._noise(key, x_1, 1.0, t, "x_1")

    def noise(self, key: Key, x_r: Array, r: Time, t: Time) -> Array:
        """[..., D] x_t ~ p_{t|r}(. | x_r), for t <= r.

        Raises:
          ValueError: concrete times with t > r or outside [0, 1], or of another shape than () and
            the batch shape of x_r.
        """
        return self._noise(key, x_r, r, t, "x_r")

    def _noise(self, key, x, r, t, name):
        batch = self.batch_shape(x, name)
        x = checks.wide(x)
        t_checked, r_checked = checks.time(t, "t", batch), checks.time(r, "r", batch)
        checks.time_order(t, r)
        kernel = self._kernel(x, t_checked, r_checked)
        eps = self.standard_normal(key, x.shape, x.dtype)
        return kernel.scale[..., None] * x + jnp.sqrt(kernel.variance)[..., None] * eps

    def log_noising(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
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

    def propose(self, key: Key, x_t: Array, t: Time, r: Time, num_samples: int) -> Array:
        """[K, ..., D] x_r ~ q_{r|t}(. | x_t) = N(x_t / a, v / a^2 I), K = `num_samples`.

        Raises:
          ValueError: concrete times with t >= r or t < t_min. TypeError: num_samples is no int.
        """
        num_samples = checks.positive_int(num_samples, "num_samples")
        batch = self.batch_shape(x_t, "x_t")
        x_t = checks.wide(x_t)[None]
        t, r = self._proposal_times(t, r, batch)
        kernel = self._kernel(x_t, t[None], r[None])
        eps = self.standard_normal(key, (num_samples, *x_t.shape[1:]), x_t.dtype)
        return (x_t + jnp.sqrt(kernel.variance)[..., None] * eps) / kernel.scale[..., None]

    def log_normalizer(self, x_t: Array, t: Time, r: Time) -> Array:
        """[...] log Z_{r|t} = -D log a, the integral of p_{t|r}(x_t | x_r) over x_r."""
        batch = self.batch_shape(x_t, "x_t")
        x_t = checks.wide(x_t)
        kernel = self._kernel(x_t, *self._proposal_times(t, r, batch))
        return -self.dimension(x_t.shape[-1]) * kernel.log_scale

    # Generators.

    def conditional_generator(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
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

    def conditional_score(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
        """[K, ..., D] gradient of `log_noising` in x_t: -(x_t - a x_r) / v; x_r [K, ..., D]."""
        x_t, x_r, t, r = self._pair(x_t, t, x_r, r)
        kernel = self._kernel(x_t, t, r)
        return (kernel.scale[..., None] * x_r - x_t) / kernel.variance[..., None]

    def local_generator(self, log_density: ModelFn, x_t: Array, t: Time) -> Array:
        """[..., D] the marginal velocity of phi_t, from its gradient at x_t [..., D]; no samples.

        Args:
          log_density: phi, called as `log_density(x, t)` with x [N, D] and t [N], returns [N].
          x_t: [..., D]. t: scalar or [...].

        Raises:
          ValueError: `log_density` returns another shape, or a concrete t is below t_min.
        """
        batch = self.batch_shape(x_t, "x_t")
        x_t, t_checked = checks.wide(x_t), checks.time(t, "t", batch)
        size = math.prod(batch)
        flat_t = t_checked.reshape(size)

        checks.function(log_density, "log_density")

        def total(x):
            out = log_density(x, flat_t)
            return jnp.sum(checks.model_output(out, "log_density", (size,)))

        score = jax.grad(total)(x_t.reshape(size, x_t.shape[-1])).reshape(x_t.shape)
        return self.velocity_from_score(self.project(score), x_t, t)

    def velocity_from_score(self, score: Array, x: Array, t: Time) -> Array:
        """Marginal velocity u = (alpha'/alpha) x + (sigma^2 alpha'/alpha - sigma sigma') s.

        Args:
          score: [K, ..., D], any number of extra leading axes. x: [..., D]. t: scalar or [...].

        Returns:
          [K, ..., D] velocities.
        """
        score, x, rate, factor = self._conversion(score, "score", x, t)
        return rate * x + factor * score

    def score_from_velocity(self, velocity: Array, x: Array, t: Time) -> Array:
        """[K, ..., D] the inverse of `velocity_from_score`; the linear path needs t < 1."""
        velocity, x, rate, factor = self._conversion(velocity, "velocity", x, t)
        return (velocity - rate * x) / factor

    def conditional_rate(self, x_t: Array, t: Time, x_r: Array, r: Time) -> Array:
        """The rate of the jumps that keep p_{t|r}(. | x_r): (1/v)'/2 |x_t - b x_r|^2, b = a - a' v/v'.

        A jump leads to a fresh draw from p_{t|r}(. | x_r) itself (`noise`, with the density `log_noising`),
        wherever it starts: states far from b x_r are taken away as the distribution narrows.

        Args:
          x_t: [..., D]. t, r: scalars or [...], t < r.
          x_r: [K, ..., D], any number of extra leading axes.

        Returns:
          [K, ...] rates. Their mean over x_r ~ p_{r|t} is that of the marginal process.

        Raises:
          ValueError: shapes that do not match, concrete times with t >= r, or coordinates that are angles.

        Source: jumps are generators of Generator Matching (arXiv 2410.20587), whose own solution stays
        wherever the density grows; here destinations are normal.
        """
        x_t, x_r, t, r = self._pair(x_t, t, x_r, r)
        if not np.all(self.confinement(x_t.shape[-1])):
            raise ValueError(f"path must have no angles for jumps, got {self!r}")
        wide = _wide(t, r, x_t)
        t, r = t.astype(wide), r.astype(wide)
        scale, _, variance = self.kernel(t, r)
        scale_dot = self.alpha_dot(t) / self.alpha(r)
        variance_dot = self.variance_dot(t) - 2 * scale * scale_dot * self.variance(r)
        center = scale - scale_dot * variance / variance_dot
        rate, center = (c.astype(x_t.dtype) for c in (-0.5 * variance_dot / variance**2, center))
        return rate * jnp.sum(jnp.square(x_t - center[..., None] * x_r), axis=-1)

    # Shapes and dtypes.

    def _kernel(self, x, t, r):
        """The kernel in the dtype of x, from times no narrower than float32."""
        wide = _wide(t, r, x)
        kernel = self.kernel(t.astype(wide), r.astype(wide))
        return Kernel(*(part.astype(x.dtype) for part in kernel))

    def _matching(self, x, x_name, y, y_name):
        """x [..., D] with leading axes of size 1 up to the rank of y, y [K, ..., D], and [...]."""
        batch, batch_y = self.batch_shape(x, x_name), self.batch_shape(y, y_name)
        x, y = checks.wide(x), checks.wide(y)
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


def with_weight(x_1, weights):
    """(x_1 [N, D] with zeros in the rows that weigh nothing, weights [N]), both wide: 0 times inf is NaN."""
    x_1, weights = checks.wide(x_1), checks.wide(weights)
    return jnp.where(weights[:, None] > 0, x_1, 0.0), weights


def _weighted_sum(weights, x):
    return jnp.matmul(weights, x, precision=jax.lax.Precision.HIGHEST)


def float_time(t):
    """`t` as a floating array; integers take the default float dtype."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(float)


def _wide(t, r, x):
    """The dtype to compute a schedule in: as wide as times and state, at least float32."""
    return jnp.result_type(t.dtype, r.dtype, x.dtype, jnp.float32)


def _lead(x, ndim):
    """`x` with axes of size 1 in front, up to `ndim`: ranks are never promoted silently."""
    return x.reshape((1,) * (ndim - x.ndim) + x.shape)


def set_positive(path, *names):
    """Validated fields of a frozen dataclass as floats, so that equal paths hash alike."""
    for name in names:
        object.__setattr__(path, name, checks.positive_float(getattr(path, name), name))


def noise_grid(largest, length_scale, num_steps):
    """Noise-to-signal ratios n from `largest` to 0, uniform in log(n + length_scale^2)."""
    num_steps = checks.positive_int(num_steps, "num_steps")
    fraction = np.linspace(1.0, 0.0, num_steps + 1)
    return length_scale**2 * np.expm1(fraction * np.log1p(largest / length_scale**2))


def increasing(grid, first):
    """The times in the default float dtype, with exact ends; raises where rounding merges two."""
    grid = np.asarray(grid, jnp.result_type(float))
    grid[0], grid[-1] = first, 1.0
    if not np.all(np.diff(grid) > 0):
        raise ValueError(
            f"{len(grid) - 1} steps are too many for {grid.dtype} times on this grid; "
            "take fewer steps or a larger length_scale"
        )
    return jnp.asarray(grid)
