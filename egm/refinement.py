"""Samples without weights from a trained sampler, exact in the limit: `refine`.

A round is (1) an independence Metropolis-Hastings step whose proposals are fresh paths of the sampler, with
their path weights; (2) moves of x by kernels that keep exp(-E); (3) a new path backward from x, which gives
the weight that the next round compares. All three keep pi(x) times the law of the backward path, whatever
the sampler is worth: a bad one is accepted seldom and refines slowly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, evidence, importance, random
from egm.sampler import Sampler
from egm.simulate import path_log_weights, simulate_reverse
from egm.typing import Array, Key, Moments, PyTree

__all__ = ["Refined", "refine"]


class Refined(NamedTuple):
    """What `refine` returns.

    Attributes:
      x: the user's pytree, leaves [N, *shape], equally weighted.
      acceptance: [num_rounds] share of the fresh paths that were taken.
      distinct: how many different paths of the sampler the states go back to, over N.
    """

    x: PyTree
    acceptance: Array
    distinct: Array


def refine(
    key: Key, sampler: Sampler, num: int, *, num_rounds: int = 5, num_moves: int = 4, pool: int = 4
) -> Refined:
    """`num` samples of the target without weights: resampled, then refined by Metropolis-Hastings.

    Args:
      key: a typed key.
      sampler: from `egm.fit` or `Sampler.load`.
      num: N, at least 4; an odd one is drawn with one more.
      num_rounds: of fresh paths, moves, and backward paths.
      num_moves: rounds of moves of every part within one of these (`egm.evidence.moved`).
      pool: the N first states are drawn by weight from `pool` N paths.

    Returns:
      Refined. Look at `acceptance`: where it is low, `num_rounds` of about 3 / acceptance are needed before
      the samples have forgotten the sampler, and modes that it never visits stay unseen.

    Raises:
      TypeError, ValueError: an argument has a wrong type or value.

    Source: Andrieu, Doucet and Holenstein (2010), particle independent Metropolis-Hastings with one path.

    Examples:
      >>> refined = egm.refine(jax.random.key(2), sampler, 64, num_rounds=2)
      >>> refined.x.shape, refined.acceptance.shape
      ((64, 2), (2,))
    """
    checks.one_key(key)
    checks.instance(sampler, Sampler, "sampler")
    num = checks.positive_int(num, "num", 4)
    for name, value in (("num_rounds", num_rounds), ("num_moves", num_moves), ("pool", pool)):
        checks.positive_int(value, name)
    size = num + num % 2
    k_pool, k_draw, k_rounds = random.split(key, 3)
    steps = sampler.design.num_times
    found = [
        sampler._run(random.derive(k_pool, f"pool {i}"), sampler.params, sampler.moments, size, steps)
        for i in range(pool)
    ]
    states, weights = jax.tree.map(lambda *a: jnp.concatenate(a), *found)
    weights = jnp.where(jnp.isnan(weights), -jnp.inf, weights)
    chosen = importance.systematic(k_draw, weights, size)
    chosen = jax.random.permutation(random.derive(k_draw, "order"), chosen)
    x, log_w = jax.tree.map(lambda a: a[chosen], (states, weights))
    one = _round_of(sampler, num_moves)
    origin, rates = chosen, []
    for i in range(num_rounds):
        k_fresh, k_rest = random.split(random.derive(k_rounds, f"round {i}"))
        fresh = sampler._run(k_fresh, sampler.params, sampler.moments, size, steps)
        x, log_w, taken = one(k_rest, sampler.params, sampler.moments, x, log_w, *fresh)
        origin = jnp.where(taken, weights.shape[0] + i * size + jnp.arange(size), origin)
        rates.append(jnp.mean(taken))
    user, _ = sampler.design.layout.to_user(sampler.coordinates.apply(x))
    distinct = jnp.unique(origin[:num]).size / num
    return Refined(jax.tree.map(lambda a: a[:num], user), jnp.stack(rates), jnp.asarray(distinct, float))


def _round_of(sampler: Sampler, num_moves: int) -> Any:
    """(states, their log-weights, which were taken from the fresh ones) after a round, compiled."""
    layout, energy, parts = sampler.design.layout, sampler._canonical, sampler.parts
    times = parts.process.times(sampler.design.num_times)
    start = None
    if layout.num_coordinates:
        unit = Moments(jnp.zeros(layout.num_coordinates), jnp.ones(layout.num_coordinates))
        start = layout.joined(unit, None)

    @jax.jit
    def one(key, params, moments, x, log_w, fresh, fresh_log_w):
        k_accept, k_move, k_back = random.split(key, 3)
        # A path without a weight is left for any other, and never taken.
        fresh_log_w, log_w = (jnp.where(jnp.isnan(w), -jnp.inf, w) for w in (fresh_log_w, log_w))
        ratio = fresh_log_w - log_w
        taken = jnp.log1p(-jax.random.uniform(k_accept, ratio.shape)) < ratio
        x = jax.tree.map(lambda a, b: jnp.where(checks.expanded(taken, a), a, b), fresh, x)
        x, _ = evidence.moved(k_move, energy, parts.path, x, start, num_rounds=num_moves)
        generator = sampler._generator(params)
        back = simulate_reverse(k_back, parts.process, generator, x, times, moments=moments)
        return x, path_log_weights(energy, parts.path, back), taken

    return one
