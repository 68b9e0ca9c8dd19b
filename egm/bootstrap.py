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

from egm import checks, collectives, random
from egm.horizons import FixedStep
from egm.paths.local import flat_call, with_tokens
from egm.typing import Array, Energy, Key, LocalPath, ModelFn, Path, State, Time

__all__ = [
    "LocalGenerator",
    "boundary",
    "intermediate_time",
    "local_target",
    "num_local_states",
    "relative_boundary",
    "terminal",
]


def intermediate_time(t: Time, step: float) -> Array:
    """The time up to which a bootstrapped estimate looks ahead.

    Args:
      t: [B].
      step: h, in (0, 1].

    Returns:
      [B] r = min(t + step, 1).

    Raises:
      ValueError: `step` is not in (0, 1].
    """
    whatever: Any = None
    return FixedStep(step).look_ahead(whatever, whatever, checks.float_array(t, "t"))


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
    """g(x, t), with -E(x) in its place wherever x_1 is known: no mask left, t = 1 on other paths.

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
        data = path.data_state(
            jax.tree.map(lambda a, b: jnp.where(checks.expanded(known, a), a, b), x, frozen)
        )

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

    On tokens the denoiser follows from phi(x with site i <- v), on the masked path as the softmax over v, and
    phi and g give the same one; with `at_sites` (masks) only the sites that a process is about to reveal are
    evaluated, V states each. On Gaussian paths the velocity follows from the score, the gradient of phi,
    which is that of g.

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
        path: Any = self.path  # tokens, so that it has a vocabulary
        states = with_tokens(x, sites, path.vocab_size)
        logits = flat_call(self.log_density, states, t)
        return jax.nn.softmax(logits, axis=0).T


def num_local_states(path: Path, event_shape: Any) -> int:
    """How many states `local_target` evaluates g at for an example."""
    checks.instance(path, Path, "path")
    return _local(path).num_local_states(event_shape)


def local_target(
    key: Key, boundary_g: ModelFn, path: Path, x_t: State, t: Array, num_steps: int = 100
) -> Array:
    """Targets for g(x_t, t) from the exact recursion g_t(x) = log E_{q_{r|t}} exp g_r(x_r), no samples.

    With masks g(x) = log mean_v exp g(x with site i <- v) holds for every masked site i at a fixed time, and
    one is drawn uniformly: V evaluations, no error. On the uniform path r is one step of `path.times` ahead,
    and every site changes by itself: exact where g_r is a sum over sites, 1 + L (V - 1) evaluations. On
    Gaussian paths r is such a step too, and the mean over the proposal N(m, w I) is a cubature of its 2 D
    sigma points, turned at random, around m + w grad g_r(m), where the integrand's slope is gone: exact for g
    linear in x, and its error is of second order in w times the curvature. In a product the parts take turns
    at random.

    Args:
      key: a typed key, or [B] keys.
      boundary_g: from `relative_boundary`, closed over target parameters.
      path: a path of tokens or a Gaussian one, a product of them, or any `egm.typing.LocalPath`.
      x_t: state with one batch axis B.
      t: [B], at least t_min.
      num_steps: of the grid `path.times`, where a step is taken on one.

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
    return _local(path).local_target(keys, boundary_g, x_t, t, path.times(num_steps))


def _local(path: Path) -> LocalPath:
    if not isinstance(path, LocalPath):
        raise TypeError(f"path must offer local targets (egm.typing.LocalPath), got {path!r:.80}")
    return path
