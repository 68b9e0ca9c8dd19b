"""One local step of bootstrapping on each kind of path: g(x_t, t) from g at states nearby, no samples.

`boundary_g(x, t)` is [N] for states [N, *event]; keys are [B], one an example. The paths' `local_target`
lead here, `egm.bootstrap.local_target` says what they estimate.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, collectives, importance, random
from egm.typing import Array, Key, ModelFn, State

__all__ = [
    "cubature_target",
    "every_site_target",
    "flat_call",
    "one_site_target",
    "product_target",
    "with_tokens",
]


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


def flat_call(fn: ModelFn, states: Array, t: Array) -> Array:
    """[K, N] of `fn` at states [K, N, *event] and times [N]."""
    lead, n = states.shape[:2]
    times = collectives.merge(jnp.broadcast_to(t[None], (lead, n)))
    out = checks.model_output(fn(collectives.merge(states), times), "log_density", (lead * n,))
    return collectives.unmerge(out, lead)


def one_site_target(path: Any, keys: Key, boundary_g: ModelFn, x_t: Array, t: Array) -> Array:
    """[B] log mean_v exp g(x with site i <- v) at a masked site i drawn uniformly; g where none is masked."""
    hidden = path.masked(x_t)
    site = random.per_example(random.categorical, keys, hidden)
    states = with_tokens(x_t, site, path.vocab_size)
    x_t = checks.tokens(x_t, path.vocab_size)
    states = jnp.where(jnp.any(hidden, axis=-1)[None, :, None], states, x_t[None])
    return importance.log_mean_exp(flat_call(boundary_g, states, t), axis=0)


def cubature_target(path: Any, keys: Key, boundary_g: ModelFn, x_t: Array, t: Array, grid: Array) -> Array:
    """[B] log E exp g_r over the proposal one step of the grid ahead: 2 D sigma points, turned at random."""
    r = _next_time(t, grid)
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
    return importance.log_mean_exp(flat_call(boundary_g, states, r) + tilt, axis=0)


def every_site_target(path: Any, boundary_g: ModelFn, x_t: Array, t: Array, grid: Array) -> Array:
    """[B] log E exp g_r on the uniform path one step of the grid ahead, sites taken to add up in g_r.

    g_r(x) + sum over sites of log mean exp(g_r(x with site i <- v) - g_r(x)), v the token of q_{r|t} there:
    exact where g_r is a sum of functions of one site, else its error is of second order in the probability
    1 - kappa_t/kappa_r of a change and in what two sites have in common. 1 + L (V - 1) evaluations.
    """
    x_t, vocab = checks.tokens(x_t, path.vocab_size), path.vocab_size
    batch, num_sites = x_t.shape
    r = _next_time(t, grid)
    chosen = jnp.eye(num_sites, dtype=jnp.int32)[None, :, None, :]
    turn = jnp.arange(1, vocab, dtype=jnp.int32)[:, None, None, None]
    changed = (x_t[None, None] + turn * chosen) % vocab
    states = jnp.concatenate([x_t[None], changed.reshape(-1, batch, num_sites)])
    values = flat_call(boundary_g, states, r)
    change = (values[1:] - values[:1]).reshape(vocab - 1, num_sites, batch)
    kappa_r = jnp.where(path.kappa(r) > 0, path.kappa(r), 1.0)
    lost = jnp.maximum(path.kappa(r) - path.kappa(t), 0.0) / kappa_r
    # Of a lost token one in V comes back as it was.
    each = jnp.broadcast_to(jnp.where(lost > 0, lost, 1.0) / vocab, change.shape)
    total = jax.nn.logsumexp(change, axis=0, b=each)
    stays = jnp.broadcast_to(jnp.log1p(-lost * (1 - 1 / vocab)), total.shape)
    return values[0] + jnp.sum(jnp.where(lost[None] > 0, jnp.logaddexp(stays, total), 0.0), axis=0)


def _next_time(t: Array, grid: Array) -> Array:
    """[B] a step of the grid after t, in places of the grid; at most 1."""
    places = jnp.linspace(0.0, 1.0, grid.size)
    return jnp.interp(jnp.interp(t, grid, places) + 1.0 / (grid.size - 1), places, grid)


def product_target(path: Any, keys: Key, boundary_g: ModelFn, x_t: State, t: Array, grid: Array) -> Array:
    """[B] the target of one part with the others held, the part drawn among those with something to do."""
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

        targets.append(part_path.local_target(k_parts[i], part_g, part, t, grid))
        open_.append(~part_path.determined(part, t))
    allowed = jnp.stack(open_, axis=-1)
    allowed = allowed | ~jnp.any(allowed, axis=-1, keepdims=True)
    turn = random.per_example(random.categorical, k_turn, allowed)
    return jnp.take_along_axis(jnp.stack(targets, axis=-1), turn[:, None], axis=-1)[:, 0]
