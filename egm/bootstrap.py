"""Bootstrapping: the intermediate time, phi with -E at the boundary, and the local (h -> 0) forms.

A log-marginal network learns g(x, t) = phi_t(x) - log Z_{1|t}(x) = log E_{q_{1|t}} exp(-E(x_1)), which
is bounded above by -min E; the path adds log Z_{1|t} in closed form. `ModelFn`s here are closed over
their parameters: pass an exponential moving average of them for a target.

Source: EGM (arXiv 2505.19646), bootstrapped estimators.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from egm import checks, collectives, importance, random
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
    return jnp.minimum(t + step, 1.0)


def terminal(energy: Energy) -> ModelFn:
    """phi_1 = -E as a `log_density` for `egm.estimate` with r = 1 (the naive estimate).

    Args:
      energy: E, `[N] = energy(x)`.

    Returns:
      A `ModelFn` [N]; it raises ValueError or TypeError where the energy returns another shape or dtype.
    """

    def log_density(x: State, r: Array) -> Array:
        return -checks.model_output(energy(x), "energy", r.shape)

    return log_density


def relative_boundary(energy: Energy, g: ModelFn, path: Path) -> ModelFn:
    """g(x, t), with -E(x) in its place wherever x_1 is known: at t = 1, or with no mask left.

    Both branches stay finite for gradients, E never sees a mask, and is evaluated only in calls in which
    it stands somewhere.

    Args:
      energy: E, with `[N] = energy(x)`.
      g: the network's log-marginal relative to log Z_{1|t}, `[N] = g(x, t)`.
      path: the path.

    Returns:
      A `ModelFn` [N].
    """

    def boundary_g(x: State, t: Array) -> Array:
        known = (t >= 1) | path.determined(x)
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
    Gaussian paths the velocity follows from the score, the gradient of phi (not of g).

    Attributes:
      path: the path.
      log_density: phi, or g on tokens, `[M] = log_density(x [M, *event], t [M])`.
    """

    path: Path
    log_density: ModelFn

    def __call__(self, x: State, t: Array) -> Array:
        """The generator at (x, t), in the path's form."""
        return self.path.local_generator(self.log_density, x, t)

    def at_sites(self, x: Array, t: Array, sites: Array) -> Array:
        """[N, V] probabilities of the token at `sites` [N] of x [N, L]."""
        states = with_tokens(x, sites, self.path.vocab_size)
        logits = _flat_call(self.log_density, states, t)
        return jax.nn.softmax(logits, axis=0).T


def with_tokens(x: Array, sites: Array, vocab_size: int) -> Array:
    """[V, N, L] the states x [N, L] with each token at site `sites` [N]."""
    chosen = jnp.arange(x.shape[-1])[None, :] == sites[:, None]
    values = jnp.arange(vocab_size, dtype=x.dtype)[:, None, None]
    return jnp.where(chosen[None], values, x[None])


def one_site_target(key: Key, boundary_g: ModelFn, path: Path, x_t: Array, t: Array) -> Array:
    """Exact one-site recursion of g on the masked path: V evaluations, no Monte-Carlo error.

    g(x) = log mean_v exp g(x with site i <- v) holds for every masked site i; one is drawn uniformly.
    With the last mask gone, `boundary_g` is -E.

    Args:
      key: a typed key, or [B] keys.
      boundary_g: from `relative_boundary`, closed over target parameters.
      path: a masked path.
      x_t: [B, L] tokens and masks.
      t: [B].

    Returns:
      [B] targets for g(x_t, t); where no site is masked, `boundary_g` itself.
    """
    path.batch_shape(x_t, "x_t")
    hidden = path.masked(x_t)
    keys = random.example_keys(key, x_t.shape[0])
    logits = jnp.where(hidden, 0.0, -jnp.inf)
    site = random.per_example(jax.random.categorical, keys, logits)
    states = with_tokens(x_t, site, path.vocab_size)
    states = jnp.where(jnp.any(hidden, axis=-1)[None, :, None], states, x_t[None])
    return importance.log_mean_exp(_flat_call(boundary_g, states, t), axis=0)


def _flat_call(fn: ModelFn, states: Array, t: Array) -> Array:
    lead, n = states.shape[:2]
    times = jnp.broadcast_to(t[None], (lead, n)).reshape(-1)
    out = fn(states.reshape(lead * n, *states.shape[2:]), times)
    return checks.model_output(out, "log_density", (lead * n,)).reshape(lead, n)


def _expand(mask: Array, like: Array) -> Array:
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))
