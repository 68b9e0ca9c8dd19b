"""What the processes on Gaussian paths share: the model's answer, the score, densities, determinants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives
from egm.paths.gaussian import GaussianPath
from egm.typing import Array, Gaussian, ModelFn, TargetMixture

MAX_DIMENSION = 64
"""Trailing size up to which a flow's determinant is computed unless told otherwise."""
NEWTON_STEPS = 16
STARTS = (0.0, -0.5, 0.5, -2.0, 1.0)
"""Where the inverse of a step from x to x + v is also looked for: at y plus these multiples of v(y)."""


def check_path(path: Any) -> None:
    """Raises TypeError unless `path` is a Gaussian path."""
    if not isinstance(path, GaussianPath):
        raise TypeError(f"path must be a Gaussian path, got {path!r}")


def prepare(path: GaussianPath, x: Array, t: Array, r: Array, name: str) -> tuple[Array, Array, Array]:
    """(x [N, D], t [N], r [N]), checked; raises as `egm.checks` does."""
    batch = path.batch_shape(x, name)
    if len(batch) != 1:
        raise ValueError(f"{name} must have shape [N, D], got {jnp.shape(x)}")
    return checks.wide(x), *checks.time_pair(t, r, batch)


def prepare_pair(path: GaussianPath, x_t: Array, x_r: Array, t: Array, r: Array):
    """(x_t [N, D], x_r [N, D], t [N], r [N]), checked."""
    x_t, t, r = prepare(path, x_t, t, r, "x_t")
    path.batch_shape(x_r, "x_r")
    if jnp.shape(x_r) != x_t.shape:
        raise ValueError(f"x_r must have the shape of x_t, {x_t.shape}, got {jnp.shape(x_r)}")
    return x_t, checks.wide(x_r), t, r


def step_size(x: Array, t: Array, r: Array) -> Array:
    """[N, 1] r - t in the dtype of x."""
    return (r - t).astype(x.dtype)[:, None]


def model(path: GaussianPath, generator: ModelFn, x: Array, t: Array) -> Gaussian:
    """`generator(x, t)` as a record whose parts are checked to be [N, D], the fields projected.

    Raises:
      TypeError, ValueError: the generator returned neither an array nor a record, or a wrong shape.
    """
    out = checks.function(generator, "generator")(x, t)
    if isinstance(out, TargetMixture):
        return mixture_moments(path, checked_mixture(out, x), x, t)
    if not isinstance(out, Gaussian):
        out = Gaussian(out)
    if out.velocity is None:
        raise TypeError(f"generator must return an array of shape {x.shape} or a Gaussian, got None")

    def part(name, field, project):
        if field is None:
            return None
        label = "generator" if name == "velocity" else f"generator's {name}"
        field = checks.model_output(field, label, x.shape).astype(x.dtype)
        return path.project(field) if project else field

    velocity: Any = part("velocity", out.velocity, True)
    return Gaussian(
        velocity,
        part("score", out.score, True),
        part("posterior_variance", out.posterior_variance, False),
    )


class Posterior(NamedTuple):
    """p(x_1 | x_t) as a mixture: log-weights [N, K] (normalised), means and variances [N, K, D]."""

    log_weights: Array
    means: Array
    variances: Array


def checked_mixture(out: TargetMixture, x: Array) -> TargetMixture:
    """The record in the dtype of x [N, D]; raises where a part has another shape."""
    if not isinstance(out, TargetMixture):
        raise TypeError(f"generator must return a TargetMixture for jumps, got {out!r:.80}")
    size = jnp.shape(out.log_weights)[-1] if jnp.ndim(out.log_weights) == 2 else 1
    shapes = ((x.shape[0], size), *((x.shape[0], size, x.shape[1]),) * 2)
    named = zip(TargetMixture._fields, out, shapes, strict=True)
    parts = [checks.model_output(part, f"generator's {n}", shape) for n, part, shape in named]
    return TargetMixture(*(part.astype(x.dtype) for part in parts))


def mixture_posterior(path: GaussianPath, mixture: TargetMixture, x: Array, t: Array) -> Posterior:
    """Bayes' rule at x [N, D] and t [N], finite at t = 1 too."""
    alpha, noise = (c.astype(x.dtype)[:, None, None] for c in (path.alpha(t), path.variance(t)))
    total = noise + alpha**2 * mixture.variances
    off = x[:, None] - alpha * mixture.means
    evidence = -0.5 * jnp.sum(off**2 / total + jnp.log(total), axis=-1)
    weights = jax.nn.log_softmax(mixture.log_weights + evidence, axis=-1)
    share = mixture.variances / total
    return Posterior(weights, mixture.means + alpha * share * off, share * noise)


def mixture_moments(path: GaussianPath, mixture: TargetMixture, x: Array, t: Array) -> Gaussian:
    """The velocity, the score and the variance of x_1 that a mixture stands for."""
    found = mixture_posterior(path, mixture, x, t)
    p = jnp.exp(found.log_weights)[..., None]
    alpha, noise = (c.astype(x.dtype)[:, None, None] for c in (path.alpha(t), path.variance(t)))
    slope = (alpha * mixture.means - x[:, None]) / (noise + alpha**2 * mixture.variances)
    field = path.project(jnp.sum(p * slope, axis=1))
    first = jnp.sum(p * found.means, axis=1)
    spread = jnp.sum(p * (found.variances + jnp.square(found.means - first[:, None])), axis=1)
    return Gaussian(path.velocity_from_score(field, x, t), field, spread)


def score(path: GaussianPath, out: Gaussian, x: Array, t: Array) -> Array:
    """[N, D] the record's score, else the velocity's; 0 where the velocity does not determine it.

    That is at t = 1 of the linear path; a score of 0 there changes how good a kernel is, not whether
    its weights are exact.
    """
    if out.score is not None:
        return out.score
    known = path.diffusion_coefficient(t) > 0
    from_velocity = path.score_from_velocity(out.velocity, x, jnp.where(known, t, path.t_min).astype(t.dtype))
    return jnp.where(known[:, None], from_velocity, 0.0)


def denoised(path: GaussianPath, out: Gaussian, x: Array, t: Array) -> Array:
    """[N, D] E[x_1 | x_t] by the record's score, else by its velocity; t as wide as the schedule needs.

    By the velocity as (sigma^2 u - sigma sigma' x) / (sigma^2 alpha' - alpha sigma sigma'), a sum of
    terms of one sign, where (x + sigma^2 s) / alpha loses digits as alpha falls to 0.
    """
    alpha, noise = path.alpha(t), path.variance(t)
    if out.score is not None:
        field, total, share = out.score, alpha, jnp.ones_like(alpha)
    else:
        share = -0.5 * path.variance_dot(t)
        field, total = out.velocity, noise * path.alpha_dot(t) + alpha * share
    on_field, on_x = ((part / total).astype(x.dtype)[:, None] for part in (noise, share))
    return on_field * field + on_x * x


class NoisePair(NamedTuple):
    """The law of (x_t, x_r) given x_1 whose noises have a correlation rho, coordinate by coordinate.

    x_s = alpha_s x_1 + sigma_s e_s at both times, e_t and e_r standard normal: each state is normal given
    the other and x_1. Parts are [N, 1].

    Attributes:
      on_data, on_state, known: x_r given (x_t, x_1) is N(on_data x_1 + on_state x_t, known).
      back_state, back_score: x_t given x_r has mean back_state x_r + back_score times the score at x_r.
      back_known, back_data: and variance back_known + back_data^2 Var[x_1 | x_r].
    """

    on_data: Array
    on_state: Array
    known: Array
    back_state: Array
    back_score: Array
    back_known: Array
    back_data: Array


def noise_pair(path: GaussianPath, t: Array, r: Array, share: Array, dtype: Any) -> NoisePair:
    """The pair of a noise that decorrelates at `share` times the rate of the path's own p_{t|r}.

    The path's own has rho* = a sigma_r / sigma_t; here rho = rho*^share. share = 1: x_t given x_r does not
    depend on x_1; share = 0: the noise is kept, as along the conditional flow.

    Args:
      path: a Gaussian path.
      t, r: [N].
      share: [N] >= 0, (g / g*)^2.
      dtype: of the result.
    """
    wide = jnp.result_type(t, r, dtype, jnp.float32)
    t, r, share = t.astype(wide), r.astype(wide), share.astype(wide)
    scale, _, noise = path.kernel(t, r)
    before, after = path.variance(t), path.variance(r)
    # At r = 1 nothing is left of the noise: x_r is x_1, whatever the share.
    last = after == 0
    log_own = jnp.log1p(-jnp.where(last, 0.5, noise / before))  # 2 log rho*
    decorrelated = jnp.where(last, 1.0, -jnp.expm1(share * log_own))  # 1 - rho^2
    both = jnp.where(last, 0.0, jnp.exp(0.5 * (share + 1) * log_own))  # rho rho*
    push = jnp.where(last, 0.0, -jnp.expm1(0.5 * (share - 1) * log_own))  # 1 - rho / rho*
    parts = (
        path.alpha(r) * jnp.where(last, 1.0, -jnp.expm1(0.5 * (share + 1) * log_own)),
        both / scale,
        after * decorrelated,
        scale,
        scale * after * push,
        before * decorrelated,
        path.alpha(t) * push,
    )
    return NoisePair(*(part.astype(dtype)[:, None] for part in parts))


def posterior(path: GaussianPath, out: Gaussian, x: Array, t: Array, data_scale: float) -> Array:
    """[N, D], or [N, 1] on a subspace: Var[x_1 | x_t] by the record, else that of N(0, data_scale^2)."""
    if out.posterior_variance is None:
        noise = path.variance(t)
        broad = jnp.square(path.alpha(t) * data_scale) + noise
        return (data_scale**2 * noise / broad).astype(x.dtype)[:, None]
    size = path.dimension(x.shape[-1])
    if size < x.shape[-1]:
        return jnp.sum(out.posterior_variance, axis=-1, keepdims=True) / size
    return out.posterior_variance


def normal_log_density(path: GaussianPath, x: Array, mean: Array, variance: Array) -> Array:
    """[N] log N(x; mean, diag(variance)) on the path's space; variance [N, 1] or, if flat, [N, D]."""
    if variance.shape[-1] == 1:
        return path.normal_log_density(x, mean, variance[:, 0])
    return jnp.sum(path.coordinate_log_density(x, mean, variance), axis=-1)


def jacobian(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    """(fn(x) [N, D], its Jacobian [N, D, D]) of a map [N, D] -> [N, D] that acts on each row by itself.

    D tangents go through the linearised map together, each for all N rows.
    """
    y, push = jax.linearize(fn, x)
    size = x.shape[-1]
    basis = jnp.broadcast_to(jnp.eye(size, dtype=x.dtype)[:, None], (size, *x.shape))
    columns = jax.vmap(push)(collectives.varying_like(basis, x))
    return y, jnp.moveaxis(columns, 0, -1)


def flow_step(fn: Callable[[Array], Array], x: Array) -> tuple[Array, Array, Array]:
    """One deterministic step and its path term, also where the map is not injective.

    The term is log|det of the Jacobian| as long as x is the one state that leads to fn(x). The map of a
    step that is too large folds: it turns over (a determinant below zero) between sheets on which it does
    not, all of whose states lead to the same place and would be counted each, so that log Z comes out too
    high; leaving out the turned states alone is not enough. So where any row's determinant is not
    positive, every row is inverted from what it led to. A row that does not come back is another's
    preimage and has no weight: with the inverse as the backward kernel the weights are exact again, but
    for what Newton's method does not find, by which log Z can only come out too low.

    Returns:
      (fn(x) [N, D], log|det| [N], NaN in refused rows, refused [N] bool).
    """
    y, matrix = jacobian(fn, x)
    sign, log_ratio = jnp.linalg.slogdet(matrix)
    x_held, y_held = jax.lax.stop_gradient((x, y))

    def check():
        back = preimage(fn, y_held)
        limit = math.sqrt(jnp.finfo(x.dtype).eps) * (1 + jnp.max(jnp.abs(x_held), axis=-1))
        return ~(jnp.max(jnp.abs(back - x_held), axis=-1) <= limit) & ~jnp.isnan(log_ratio)

    none = collectives.varying_like(jnp.zeros(x.shape[:1], bool), log_ratio)
    refused = jax.lax.cond(jnp.any(sign <= 0), check, lambda: none)
    return y, jnp.where(refused, jnp.nan, log_ratio), refused


def invert(fn: Callable[[Array], Array], y: Array, guess: Array, num_steps: int = NEWTON_STEPS) -> Array:
    """[N, D] the x with fn(x) = y by Newton's method from `guess`; NaN where it did not converge."""

    def body(_, x):
        out, matrix = jacobian(fn, x)
        return x - jnp.linalg.solve(matrix, (out - y)[..., None])[..., 0]

    x = jax.lax.fori_loop(0, num_steps, body, guess)
    limit = math.sqrt(jnp.finfo(y.dtype).eps) * (1 + jnp.max(jnp.abs(y), axis=-1, keepdims=True))
    found = jnp.max(jnp.abs(fn(x) - y), axis=-1, keepdims=True) <= limit
    return jnp.where(found, x, jnp.nan)


def preimage(fn: Callable[[Array], Array], y: Array) -> Array:
    """[N, D] one x with fn(x) = y, a function of y alone: the backward kernel of a flow; NaN if not found.

    Newton's method from y - v, v = fn(y) - y, and where that does not converge from `STARTS`, the first
    that does.
    """
    move = fn(y) - y
    first = invert(fn, y, y - move)

    def search(found):
        def attempt(x, multiple):
            return jnp.where(jnp.isnan(x), invert(fn, y, y + multiple * move), x), None

        return jax.lax.scan(attempt, found, jnp.asarray(STARTS, y.dtype))[0]

    return jax.lax.cond(jnp.any(jnp.isnan(first)), search, lambda x: x, first)


def euler(path: GaussianPath, generator: ModelFn, t: Array, r: Array) -> Callable[[Array], Array]:
    """The map x -> x + h u(x, t) on [N, D]; on a subspace, the identity across it."""

    def fn(x):
        return x + step_size(x, t, r) * model(path, generator, path.project(x), t).velocity

    return fn


def heun(path: GaussianPath, generator: ModelFn, t: Array, r: Array) -> Callable[[Array], Array]:
    """The map x -> x + h/2 (u(x, t) + u(x + h u(x, t), r)) on [N, D], as `euler`."""

    def fn(x):
        h = step_size(x, t, r)
        first = model(path, generator, path.project(x), t).velocity
        second = model(path, generator, path.project(x + h * first), r).velocity
        return x + 0.5 * h * (first + second)

    return fn
