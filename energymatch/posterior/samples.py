"""Samples of exp(-V/epsilon - sum_j U_j) with the right mass in each mode."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives, importance, random
from egm.typing import Array, Key
from energymatch.likelihood import Bridge, LogPartition, Prior, log_partition
from energymatch.likelihood.bridge import Problem
from energymatch.posterior.measurements import with_energies
from energymatch.potential import Potential

__all__ = ["PosteriorSamples", "sample"]


class PosteriorSamples(NamedTuple):
    """What `sample` returns.

    Attributes:
      x: [B, *event] samples of equal weight.
      acceptance: mean acceptance probability of the last moves.
      num_nonfinite: int32, proposals of the last moves that were not finite (rejected).
      partition: the annealed run: `log_z` of exp(-V/epsilon - sum_j U_j) with its error, the ESS, and
        the weighted samples (x, log_weights) from which `x` was drawn. log p(y) is this log_z less that
        of exp(-V/epsilon), less the normaliser of the likelihood where U leaves it out. Its ESS counts
        from the last resampling on: chains that share an ancestor look independent in it.
    """

    x: Array
    acceptance: Array
    num_nonfinite: Array
    partition: LogPartition


def sample(
    key: Key,
    potential: Potential,
    *,
    energies: Sequence[Potential],
    epsilon: float,
    prior: Prior,
    num_samples: int = 4096,
    num_steps: int = 200,
    num_moves: int = 1,
    num_last_moves: int = 20,
    bridge: Bridge | None = None,
    resample_below: float | None = 0.5,
    num_groups: int = 16,
    axis_name: str | None = None,
) -> PosteriorSamples:
    """Samples of exp(-V/epsilon - sum_j U_j), with the right mass in each mode.

    `likelihood.log_partition` from the prior to the posterior (V and the measurement come in together),
    then resampling by weight over all chains, then adjusted moves that set copies apart and leave the
    posterior as it is. Exact in the limit of many chains; `partition.ess` and `partition.log_z_error`
    tell how far the run was from it, but samples that share an ancestor are not independent, which the
    ESS after a resampling does not show: for a few independent samples make as many runs.

    All chains share one measurement: several of them by `jax.vmap` over keys and y.

    Args:
      key: a typed key, or [B] keys (one a chain).
      potential: V(x) -> [B], lower on data.
      energies: U_j(x) -> [B] in nats, each of one example alone, the same for every example; () for the
        model itself.
      epsilon: temperature of the model.
      prior: p_0, must cover the posterior: `priors.fit_gaussian(data)` does where the model is the
        data's.
      num_samples: N, chains and samples over all devices, a multiple of `num_groups`.
      num_last_moves: moves after the last resampling, with the step size of the last level.
      num_steps, num_moves, bridge, resample_below, num_groups: as in `likelihood.log_partition`.
      axis_name: mapped axis over which the chains are split. The last resampling gathers all of them.

    Returns:
      PosteriorSamples. Where no chain has weight (log_z = -inf) x are the chains as they ended.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.

    Examples:
      >>> potential = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
      >>> prior = energymatch.likelihood.gaussian_prior(jnp.zeros(2), 2.0)
      >>> first = energymatch.posterior.operators.inpainting(jnp.array([True, False]))
      >>> measured = energymatch.posterior.gaussian_measurement(first, jnp.array([1.0, 0.0]), scale=0.1)
      >>> found = energymatch.posterior.sample(
      ...     jax.random.key(0),
      ...     potential,
      ...     energies=(measured,),
      ...     epsilon=1.0,
      ...     prior=prior,
      ...     num_samples=256,
      ...     num_steps=20,
      ... )
      >>> print(f"{found.x[:, 0].mean():.1f}")  # the measured coordinate; of the other one nothing is known
      1.0
    """
    checks.positive_float(epsilon, "epsilon")
    num_last_moves = checks.positive_int(num_last_moves, "num_last_moves", 0)
    num_samples = checks.positive_int(num_samples, "num_samples")
    target = with_energies(potential, energies, epsilon)
    size = collectives.axis_size(axis_name)
    if num_samples % size:
        raise ValueError(f"num_samples must be a multiple of the {size} devices, got {num_samples}")
    keys = random.example_keys(key, num_samples // size, axis_name)
    run_keys, pick_keys, move_keys = random.split(keys, 3)
    partition = log_partition(
        run_keys, target, epsilon=epsilon, prior=prior, num_chains=num_samples, num_steps=num_steps,
        num_moves=num_moves, bridge=bridge, resample_below=resample_below, num_groups=num_groups,
        axis_name=axis_name,
    )  # fmt: skip
    x = _draw(pick_keys, partition.log_weights, partition.x, axis_name)
    if num_last_moves == 0:
        return PosteriorSamples(x, jnp.ones((), x.dtype), jnp.zeros((), jnp.int32), partition)
    problem = Problem(target, epsilon, prior)
    state = problem.init(problem.coordinates(x))
    last = (jnp.ones((), x.dtype), partition.bridge.step_sizes[-1])
    state, (acceptance, num_bad) = problem.move(move_keys, state, *last, num_last_moves)
    acceptance = collectives.pmean(jnp.mean(acceptance), axis_name)
    num_bad = collectives.psum(jnp.sum(num_bad), axis_name)
    return PosteriorSamples(problem.event(state.x), acceptance, num_bad, partition)


def _draw(keys: Array, log_weights: Array, x: Array, axis_name: str | None) -> Array:
    """[B, *event] stratified resampling over all N chains: place i draws at (i + u_i)/N, u_i by its key."""
    batch = log_weights.shape[0]
    weights = importance.snis(log_weights, 0, axis_name).weights
    cumulative = jnp.cumsum(collectives.all_gather(weights, axis_name))
    place = collectives.axis_index(axis_name) * batch + jnp.arange(batch)
    # 1 - u is in (0, 1]: the first place whose cumulative weight reaches a point has a weight above zero.
    u = 1 - random.per_example(lambda k: jax.random.uniform(k, (), weights.dtype), keys)
    total = cumulative[-1]
    points = (place.astype(weights.dtype) + u) / cumulative.size * total
    pick = jnp.minimum(jnp.searchsorted(cumulative, points), cumulative.size - 1)
    return collectives.all_gather(x, axis_name)[jnp.where(total > 0, pick, place)]
