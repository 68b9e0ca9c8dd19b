"""log p(x) = -V(x)/epsilon - log Z, with log Z by annealed importance sampling (AIS).

The bridge pi_b has -log pi_b = -(1 - b) log p_0 + b V/epsilon, b from 0 (a prior p_0 with exact samples)
to 1 (the model). With the work W(x) = V(x)/epsilon + log p_0(x) that is -log p_0 + b W: Langevin's
target at the temperature 1/b with potential W and extra energy -log p_0, so one evaluation of V and its
gradient serves a move, the next weight -(b' - b) W and every b. Weights are unbiased for Z however few
the steps, because the moves are Metropolis-adjusted.

Shape letters: N chains (B on this device), M data, K bridge steps, G groups, *event the axes of one
state.

Source: Neal (2001), annealed importance sampling; Del Moral, Doucet and Jasra (2006), SMC samplers;
Grosse, Ghahramani and Adams (2015), the bound from above by running the bridge backwards.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives, importance, metrics, random
from egm.typing import Array, Key
from energymatch._checks import number
from energymatch.annealing import (
    Bridge,
    Layout,
    Problem,
    check_bridge,
    fold,
    increment,
    levels,
    resample,
    tune_bridge,
)
from energymatch.potential import Potential, boltzmann_log_density
from energymatch.priors import GaussianPrior, Prior, fit_gaussian, gaussian_prior

__all__ = [
    "Bridge",
    "GaussianPrior",
    "LogPartition",
    "Prior",
    "UpperBound",
    "fit_gaussian",
    "gaussian_prior",
    "log_partition",
    "log_partition_upper",
    "log_prob",
    "nll",
    "tune_bridge",
]


class LogPartition(NamedTuple):
    """What `log_partition` returns.

    Attributes:
      log_z: log of the mean weight, hence of an unbiased estimate of Z (log_z itself errs low, by about
        log_z_error^2 / 2).
      log_z_error: its standard error, from the spread of the G groups. Above .3 or so it says no more
        than that the run was too short; it cannot see a mode that no chain has found.
        Where the prior is no wider than the model, rare chains carry much weight and it errs low too.
      ess: effective sample size of the final weights, a fraction of N.
      acceptance: [K] mean acceptance probability of the moves at each level.
      x: [B, *event] final states; with `log_weights`, samples of the model.
      log_weights: [B] total log-weights; log_z is their log-mean-exp over all N.
      num_resampled: int32, resamplings over all groups and levels.
      num_nonfinite: int32, first states with V = NaN or -inf (they weigh zero) and proposals with a V or
        gradient that is not finite (rejected). V = +inf is zero density and no error.
      bridge: the levels and steps that were used, for another run or for `log_partition_upper`.
    """

    log_z: Array
    log_z_error: Array
    ess: Array
    acceptance: Array
    x: Array
    log_weights: Array
    num_resampled: Array
    num_nonfinite: Array
    bridge: Bridge


class UpperBound(NamedTuple):
    """What `log_partition_upper` returns.

    Attributes:
      log_z: mean log-weight of the reversed bridge over the valid data.
      log_z_error: its standard error.
      acceptance: [K] mean acceptance probability of the moves at each level, in the order of levels.
      log_weights: [B] log-weight of each datum.
      num_nonfinite: int32, data where V or the log-weight is not finite (left out of the mean) and
        rejected proposals with a V or gradient that is not finite.
    """

    log_z: Array
    log_z_error: Array
    acceptance: Array
    log_weights: Array
    num_nonfinite: Array


def log_partition(
    key: Key,
    potential: Potential,
    *,
    epsilon: float,
    prior: Prior,
    num_chains: int = 1024,
    num_steps: int = 200,
    num_moves: int = 1,
    bridge: Bridge | None = None,
    resample_below: float | None = 0.5,
    num_groups: int = 16,
    axis_name: str | None = None,
) -> LogPartition:
    """log Z of exp(-V/epsilon) by AIS from a prior, with resampling.

    The chains are G independent samplers of N/G chains each: a group resamples within itself
    (systematically) where its ESS falls, and Z is the mean of the groups' unbiased estimates, so their
    spread gives the error that chains of one group, which resampling ties together, cannot. Groups
    never talk to each other: N devices give the numbers of one, with no traffic between them.

    Levels and step sizes come from `tune_bridge`, a pilot run on chains of its own: given what it found
    E[exp(log_z)] = Z exactly, which adapting within the run would only give in the limit of many chains.
    A `bridge` from an earlier run saves the pilot's cost. Runs with other keys may be joined: the log of
    the mean of exp(log_z), `importance.log_mean_exp`.

    Z is finite only where V confines. That cannot be seen from a sample: compare with a wider prior.

    Args:
      key: a typed key, or [B] keys (one a chain).
      potential: V(x) -> [B], lower on data.
      epsilon: temperature of the model, epsilon_max at equilibrium.
      prior: p_0, for instance `fit_gaussian(data)`; it must cover the model. A `GaussianPrior` also
        gives the moves its covariance.
      num_chains: N over all devices, a multiple of `num_groups`. Memory grows with N only.
      num_steps: K, the number of levels; not used where `bridge` is given. V and its gradient are
        evaluated K num_moves + 1 times, and about as often again by `tune_bridge`.
      num_moves: Metropolis-adjusted Langevin moves at each level.
      bridge: levels and step sizes from an earlier run.
      resample_below: ESS, a fraction of the group, below which a group resamples; None for never.
      num_groups: G, a multiple of the number of devices, at least 2.
      axis_name: mapped axis over which the chains are split.

    Returns:
      LogPartition.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.
    """
    problem = Problem(potential, epsilon, prior)
    layout = Layout.of(num_chains, num_groups, axis_name)
    num_moves = checks.positive_int(num_moves, "num_moves")
    checks.positive_int(num_steps, "num_steps")
    if resample_below is not None and not 0 < checks.finite_float(resample_below, "resample_below") <= 1:
        raise ValueError(f"resample_below must be in (0, 1] or None, got {resample_below}")
    keys = random.example_keys(key, layout.chains, axis_name)
    key_tune, key_prior, key_moves, key_groups = random.split(keys, 4)
    if bridge is None:
        bridge = tune_bridge(
            key_tune, potential, epsilon=epsilon, prior=prior, num_chains=num_chains, num_steps=num_steps,
            num_groups=num_groups, axis_name=axis_name,
        )  # fmt: skip
    bridge = check_bridge(bridge)
    state = problem.start(key_prior)
    num_bad_starts = jnp.sum(importance.nonfinite(-state.value))
    key_groups = layout.split(key_groups)[:, 0]

    def body(carry, level):
        state, log_w, log_z = carry
        index, b_from, b, h = level
        log_w = log_w + layout.split(increment(state, b_from, b))
        resampled = jnp.zeros(layout.groups, bool)
        if resample_below is not None:
            record = importance.snis(log_w, axis=1)
            resampled = (record.ess < resample_below) & (record.ess > 0)
            state = resample(fold(key_groups, index), record.weights, resampled, state)
            log_z = log_z + jnp.where(resampled, record.log_mean, 0.0)
            log_w = jnp.where(resampled[:, None], 0.0, log_w)
        state, info = problem.move(fold(key_moves, index), state, b, h, num_moves)
        return (state, log_w, log_z), (*_totals(info), jnp.sum(resampled, dtype=jnp.int32))

    zeros = jnp.zeros((layout.groups, layout.size), state.value.dtype)
    start = (state, zeros, zeros[:, 0])
    (state, log_w, log_z), (acceptance, num_bad, num_resampled) = _scan(body, start, levels(bridge))
    total = log_z + importance.log_mean_exp(log_w, 1)
    summary = metrics.summarize(total, axis_name)
    log_weights = (log_z[:, None] + log_w).reshape(-1)
    return LogPartition(
        summary.log_z,
        summary.log_z_error,
        importance.snis(log_weights, 0, axis_name).ess,
        collectives.pmean(acceptance, axis_name),
        problem.event(state.x),
        log_weights,
        collectives.psum(jnp.sum(num_resampled), axis_name),
        collectives.psum(num_bad_starts + jnp.sum(num_bad), axis_name),
        bridge,
    )


def log_partition_upper(
    key: Key,
    potential: Potential,
    x: Array,
    *,
    epsilon: float,
    prior: Prior,
    bridge: Bridge,
    num_moves: int = 1,
    axis_name: str | None = None,
) -> UpperBound:
    """The bound on log Z from above, by the bridge run backwards from data: it sees lost modes.

    Each x goes through the levels from 1 down to 0 by the same moves, which are their own reversals;
    log w is the sum of -(b' - b) W as before. From exact samples of the model E[1/w] = 1/Z, hence
    E[log w] >= log Z, while forward runs give E[log w] <= log Z. From data x ~ p_data,

      E[log w] = log Z + KL(data's paths || the forward run's paths) - KL(p_data || model)
              >= log Z - KL(p_data || model):

    a bound when the data are the model's, else a diagnostic that may lie too low, by no more than what
    the model misses of the data (its mean negative log-likelihood less the data's entropy). In the same
    way E[V(x)/epsilon] + E[log w], the likelihood it implies, is never below the data's entropy.

    Args:
      key: a typed key, or [B] keys (one an example).
      potential: V(x) -> [B].
      x: [B, *event] data, or exact samples where there are any.
      epsilon: temperature of the model.
      prior: p_0, as in `log_partition`.
      bridge: from `log_partition` with the same prior.
      num_moves: moves at each level.
      axis_name: mapped axis over which the data are split as well.

    Returns:
      UpperBound.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.
    """
    problem = Problem(potential, epsilon, prior)
    x = checks.float_array(x, "x", min_ndim=1)
    num_moves = checks.positive_int(num_moves, "num_moves")
    bridge = check_bridge(bridge)
    keys = random.example_keys(key, x.shape[0], axis_name)
    state = problem.init(problem.coordinates(x))

    def body(carry, level):
        state, log_w = carry
        index, b_from, b, h = level
        state, info = problem.move(fold(keys, index), state, b, h, num_moves)
        return (state, log_w + increment(state, b_from, b)), _totals(info)

    start = (state, jnp.zeros_like(state.value))
    (_, log_w), (acceptance, num_bad) = _scan(body, start, levels(bridge), reverse=True)
    valid = jnp.isfinite(state.value) & jnp.isfinite(log_w)
    count = collectives.psum(jnp.sum(valid), axis_name)
    mean = collectives.psum(jnp.sum(jnp.where(valid, log_w, 0.0)), axis_name) / jnp.maximum(count, 1)
    squares = collectives.psum(jnp.sum(jnp.where(valid, (log_w - mean) ** 2, 0.0)), axis_name)
    error = jnp.sqrt(squares / jnp.maximum(count * (count - 1), 1))
    num_bad = collectives.psum(jnp.sum(num_bad) + jnp.sum(~valid), axis_name)
    acceptance = collectives.pmean(acceptance, axis_name)
    mean, error = jnp.where(count > 0, mean, jnp.nan), jnp.where(count > 1, error, jnp.inf)
    return UpperBound(mean, error, acceptance, log_w, num_bad)


def log_prob(potential: Potential, x: Array, *, epsilon: float, log_z: float | Array) -> Array:
    """[B] log p(x) = -V(x)/epsilon - log Z.

    Args:
      potential: V(x) -> [B].
      x: [B, *event].
      epsilon: temperature of the model.
      log_z: from `log_partition` or quadrature. A log Z too low makes every log p too high.
    """
    value = boltzmann_log_density(potential, x, epsilon)
    return value - number(log_z, "log_z", "finite").astype(value.dtype)


def nll(
    potential: Potential, x: Array, *, epsilon: float, log_z: float | Array, axis_name: str | None = None
) -> Array:
    """Mean negative log-likelihood in nats of x [B, *event], over all devices where `axis_name` is given."""
    return -collectives.pmean(jnp.mean(log_prob(potential, x, epsilon=epsilon, log_z=log_z)), axis_name)


def _totals(info: tuple[Array, Array]) -> tuple[Array, Array]:
    """(mean acceptance, number of proposals that were not finite) over the chains of this device."""
    acceptance, num_bad = info
    return jnp.mean(acceptance), jnp.sum(num_bad)


def _scan(body: Callable, start: Any, steps: Any, reverse: bool = False) -> Any:
    like, _ = jax.eval_shape(body, start, jax.tree.map(lambda a: a[0], steps))
    return jax.lax.scan(body, collectives.varying_like(start, like), steps, reverse=reverse)
