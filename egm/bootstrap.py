"""Bootstrapping: the intermediate time, phi with -E at the boundary, and the local (h -> 0) forms.

A log-marginal network learns g(x, t) = phi_t(x) - log Z_{1|t}(x) = log E_{q_{1|t}} exp(-E(x_1)), which
is bounded above by -min E; the path adds log Z_{1|t} in closed form. `ModelFn`s here are closed over
their parameters: pass an exponential moving average of them for a target.

Source: EGM (arXiv 2505.19646), bootstrapped estimators.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, collectives, importance, random
from egm.paths import MaskedPath, ProductPath
from egm.paths.gaussian import GaussianPath
from egm.typing import Array, Energy, Key, ModelFn, Path, State


def intermediate_time(t: Array, step: float) -> Array:
    """The time up to which a bootstrapped estimate looks ahead.

    Args:
      t: [B].
      step: h, in (0, 1].

    Returns:
      [B] r = min(t + step, 1).

    Raises:
      ValueError: `step` is not in (0, 1].
    """
    if checks.positive_float(step, "step") > 1:
        raise ValueError(f"step must be in (0, 1], got {step}")
    t = checks.float_array(t, "t")
    return jnp.minimum(t + step, 1.0)


def terminal(energy: Energy) -> ModelFn:
    """phi_1 = -E as a `log_density` for `egm.estimate` with r = 1 (the naive estimate).

    Args:
      energy: E, `[N] = energy(x)`.

    Returns:
      A `ModelFn` [N]; it raises ValueError or TypeError where the energy returns another shape or dtype.
    """
    checks.function(energy, "energy")

    def log_density(x: State, r: Array) -> Array:
        return -checks.model_output(energy(x), "energy", r.shape)

    return log_density


def relative_boundary(energy: Energy, g: ModelFn, path: Path) -> ModelFn:
    """g(x, t), with -E(x) in its place wherever x_1 is known: no mask left, t = 1 on Gaussian paths.

    Both branches stay finite for gradients, E never sees a mask, and is evaluated only in calls in which
    it stands somewhere.

    Args:
      energy: E, with `[N] = energy(x)`.
      g: the network's log-marginal relative to log Z_{1|t}, `[N] = g(x, t)`.
      path: the path.

    Returns:
      A `ModelFn` [N].
    """
    checks.function(energy, "energy")
    checks.function(g, "g")
    checks.instance(path, Path, "path")

    def boundary_g(x: State, t: Array) -> Array:
        known = path.determined(x, t)
        frozen = jax.lax.stop_gradient(x)
        data = path.data_state(jax.tree.map(lambda a, b: jnp.where(_expand(known, a), a, b), x, frozen))

        def evaluate(states):
            return -checks.model_output(energy(states), "energy", t.shape)

        like = jax.eval_shape(evaluate, data)
        skipped = collectives.varying_like(jnp.zeros(like.shape, like.dtype), like)
        at_boundary = jax.lax.cond(jnp.any(known), evaluate, lambda _: skipped, data)
        inside = checks.model_output(g(x, t), "g", t.shape)
        return jnp.where(known, at_boundary, inside)

    return boundary_g


def boundary(energy: Energy, g: ModelFn, path: Path) -> ModelFn:
    """phi as `egm.estimate` takes it: g + log Z_{1|t} inside, -E exactly wherever r = 1.

    Args as for `relative_boundary`.

    Returns:
      A `ModelFn` [N], unnormalised with phi_1 = -E.
    """
    relative = relative_boundary(energy, g, path)

    def log_density(x: State, r: Array) -> Array:
        inside = r < 1
        log_z = path.log_normalizer(x, jnp.where(inside, r, 0.5), jnp.ones_like(r))
        return relative(x, r) + jnp.where(inside, log_z, 0.0)

    return log_density


@dataclasses.dataclass(frozen=True)
class LocalGenerator:
    """The exact marginal generator of a phi (or g), without samples: the h -> 0 limit of bootstrapping.

    On tokens the denoiser is a softmax over phi(x with site i <- v), and phi and g give the same one;
    with `at_sites` only the sites that a process is about to reveal are evaluated, V states each. On
    Gaussian paths the velocity follows from the score, the gradient of phi, which is that of g.

    Attributes:
      path: the path.
      log_density: phi or g, `[M] = log_density(x [M, *event], t [M])`.
    """

    path: Path
    log_density: ModelFn

    def __post_init__(self):
        checks.instance(self.path, Path, "path")
        checks.function(self.log_density, "log_density")

    def __call__(self, x: State, t: Array) -> Array:
        """The generator at (x, t), in the path's form."""
        return self.path.local_generator(self.log_density, x, t)

    def at_sites(self, x: Array, t: Array, sites: Array) -> Array:
        """[N, V] probabilities of the token at `sites` [N] of x [N, L]."""
        states = with_tokens(x, sites, self.path.vocab_size)
        logits = _flat_call(self.log_density, states, t)
        return jax.nn.softmax(logits, axis=0).T


def with_tokens(x: Array, sites: Array, vocab_size: int) -> Array:
    """[V, N, L] int32, the states x [N, L] with each token at site `sites` [N]."""
    checks.positive_int(vocab_size, "vocab_size")
    x = checks.tokens(checks.integer_array(x, "x", 2), vocab_size)
    sites = checks.integer_array(sites, "sites", 1)
    if sites.shape != x.shape[:1]:
        raise ValueError(f"sites must have shape {x.shape[:1]}, as x has, got {sites.shape}")
    chosen = jnp.arange(x.shape[-1])[None, :] == sites[:, None]
    values = jnp.arange(vocab_size, dtype=x.dtype)[:, None, None]
    return jnp.where(chosen[None], values, x[None])


def num_local_states(path: Path, event_shape: Any) -> int:
    """How many states `local_target` evaluates g at for an example."""
    checks.instance(path, Path, "path")
    if isinstance(path, ProductPath):
        return sum(num_local_states(p, s) for p, s in zip(*path.leaves_with(event_shape), strict=True))
    if isinstance(path, MaskedPath):
        return path.vocab_size
    if not isinstance(event_shape, tuple | list) or not event_shape:
        raise TypeError(f"event_shape must be a tuple of ints, got {event_shape!r:.80}")
    checks.positive_int(event_shape[-1], "every size in event_shape")
    return 2 * path.dimension(event_shape[-1]) + 1


def local_target(
    key: Key, boundary_g: ModelFn, path: Path, x_t: State, t: Array, num_steps: int = 100
) -> Array:
    """Targets for g(x_t, t) from the exact recursion g_t(x) = log E_{q_{r|t}} exp g_r(x_r), no samples.

    On tokens g(x) = log mean_v g(x with site i <- v) holds for every masked site i at a fixed time, and
    one is drawn uniformly: V evaluations, no error. On Gaussian paths r is one step of `path.times`
    ahead, and the mean over the proposal N(m, w I) is a cubature of its 2 D sigma points, turned at
    random, around m + w grad g_r(m), where the integrand's slope is gone: exact for g linear in x, and
    its error is of second order in w times the curvature. In a product the parts take turns at random.

    Args:
      key: a typed key, or [B] keys.
      boundary_g: from `relative_boundary`, closed over target parameters.
      path: a masked or Gaussian path, or a product of them.
      x_t: state with one batch axis B.
      t: [B], at least t_min.
      num_steps: of the grid `path.times` on Gaussian paths.

    Returns:
      [B] targets; where nothing is left to do, `boundary_g` itself.

    Source: the local form of bootstrapping, EGM (arXiv 2505.19646); spherical cubature, Arasaratnam and
    Haykin (2009).
    """
    checks.function(boundary_g, "boundary_g")
    checks.instance(path, Path, "path")
    checks.positive_int(num_steps, "num_steps")
    batch = path.batch_shape(x_t, "x_t")
    if len(batch) != 1:
        raise ValueError(f"x_t must have one batch axis, got batch shape {batch}")
    x_t = jax.tree.map(checks.wide, x_t)
    checks.not_empty(x_t, "x_t")
    t = checks.time(t, "t", batch)
    keys = random.derive(random.example_keys(key, batch[0]), "local_target")
    if isinstance(path, MaskedPath):
        return _one_site_target(keys, boundary_g, path, x_t, t)
    if isinstance(path, GaussianPath):
        return _cubature_target(keys, boundary_g, path, x_t, t, path.times(num_steps))
    return _product_target(keys, boundary_g, path, x_t, t, num_steps)


def _one_site_target(keys: Array, boundary_g: ModelFn, path: MaskedPath, x_t: Array, t: Array) -> Array:
    hidden = path.masked(x_t)
    site = random.per_example(random.categorical, keys, hidden)
    states = with_tokens(x_t, site, path.vocab_size)
    x_t = checks.tokens(x_t, path.vocab_size)
    states = jnp.where(jnp.any(hidden, axis=-1)[None, :, None], states, x_t[None])
    return importance.log_mean_exp(_flat_call(boundary_g, states, t), axis=0)


def _cubature_target(
    keys: Array, boundary_g: ModelFn, path: GaussianPath, x_t: Array, t: Array, grid: Array
) -> Array:
    place = jnp.interp(t, grid, jnp.linspace(0.0, 1.0, grid.size))
    r = jnp.interp(place + 1.0 / (grid.size - 1), jnp.linspace(0.0, 1.0, grid.size), grid)
    kernel = path.kernel(t, r)
    deviation = jnp.sqrt(kernel.variance) / kernel.scale
    mean = x_t / kernel.scale[:, None]

    def total(x):
        return jnp.sum(checks.model_output(boundary_g(x, r), "log_density", r.shape))

    slope = path.project(jax.grad(total)(mean))
    # A steep g asks for a shift that the step does not justify: at most a standard deviation's worth.
    steep = deviation * jnp.sqrt(jnp.sum(slope**2, axis=-1))
    size = path.dimension(x_t.shape[-1])
    slope = slope * (size**0.5 / jnp.maximum(steep, size**0.5))[:, None]

    def directions(k):
        draws = path.standard_normal(k, (size, x_t.shape[-1]), x_t.dtype)
        return jnp.linalg.qr(draws.T)[0].T

    basis = jnp.moveaxis(random.per_example(directions, keys), 1, 0) * size**0.5
    points = jnp.concatenate([basis, -basis])
    move = deviation[:, None] * slope
    states = mean[None] + deviation[None, :, None] * (points + move[None])
    tilt = -jnp.sum(points * move[None], axis=-1) - 0.5 * jnp.sum(move**2, axis=-1)[None]
    return importance.log_mean_exp(_flat_call(boundary_g, states, r) + tilt, axis=0)


def _product_target(
    keys: Array, boundary_g: ModelFn, path: ProductPath, x_t: State, t: Array, num_steps: int
) -> Array:
    paths, parts = path.leaves_with(x_t)
    k_turn, *k_parts = random.split(keys, len(paths) + 1)
    targets, open_ = [], []
    for i, (part_path, part) in enumerate(zip(paths, parts, strict=True)):

        def part_g(states, times, index=i):
            lead = states.shape[0] // t.shape[0]
            copy = lambda a: collectives.merge(jnp.broadcast_to(a[None], (lead, *a.shape)))
            others = [jax.tree.map(copy, p) for p in parts]
            others[index] = states
            return boundary_g(path.unflatten(others), times)

        if isinstance(part_path, GaussianPath):
            grid = path.times(num_steps)
            targets.append(_cubature_target(k_parts[i], part_g, part_path, part, t, grid))
        else:
            targets.append(local_target(k_parts[i], part_g, part_path, part, t, num_steps))
        open_.append(~part_path.determined(part, t))
    allowed = jnp.stack(open_, axis=-1)
    allowed = allowed | ~jnp.any(allowed, axis=-1, keepdims=True)
    turn = random.per_example(random.categorical, k_turn, allowed)
    return jnp.take_along_axis(jnp.stack(targets, axis=-1), turn[:, None], axis=-1)[:, 0]


def _flat_call(fn: ModelFn, states: Array, t: Array) -> Array:
    lead, n = states.shape[:2]
    times = collectives.merge(jnp.broadcast_to(t[None], (lead, n)))
    out = checks.model_output(fn(collectives.merge(states), times), "log_density", (lead * n,))
    return collectives.unmerge(out, lead)


def _expand(mask: Array, like: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))
