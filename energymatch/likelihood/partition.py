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

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives, importance, metrics, random, summation
from egm.checks import number
from egm.typing import Array, Key
from energymatch.langevin import LangevinState
from energymatch.langevin.scans import fold, scan
from energymatch.likelihood.bridge import (
    Bridge,
    Layout,
    Problem,
    check_bridge,
    increment,
    levels,
    pilot,
    resample,
)
from energymatch.likelihood.confinement import SURPLUS, Reach, probe
from energymatch.likelihood.priors import (
    Prior,
    fit_mixture,
    widened,
)
from energymatch.potential import Potential, boltzmann_log_density

__all__ = [
    "Evidence",
    "LogPartition",
    "UpperBound",
    "WIDER",
    "evidence",
    "log_partition",
    "log_partition_upper",
    "log_prob",
    "nll",
]

WIDER = 3.0
"""Factor on the widths of the prior of `evidence`'s third run."""


class LogPartition(NamedTuple):
    """What `log_partition` returns.

    Attributes:
      log_z: log of the mean weight, hence of an unbiased estimate of Z (log_z itself errs low, by about
        log_z_error^2 / 2).
      log_z_error: its standard error from the spread of the G groups (`egm.metrics.log_mean_error`), but
        no less than that of as many independent chains, and what the tail of the weights may hold; inf
        where the weights are not reliable or `confined` is False. It cannot see a mode that no chain has
        found: see `evidence`.
      ess: effective sample size of the final weights, a fraction of N.
      acceptance: [K] mean acceptance probability of the moves at each level.
      x: [B, *event] final states; with `log_weights`, samples of the model.
      log_weights: [B] total log-weights; log_z is their log-mean-exp over all N.
      num_resampled: int32, resamplings over all groups and levels.
      num_nonfinite: int32, first states with V = NaN or -inf (they weigh zero) and proposals with a V or
        gradient that is not finite (rejected). V = +inf is zero density and no error.
      bridge: the levels and steps that were used, for another run or for `log_partition_upper`.
      reach: what a look beyond the prior found (`confinement.Reach`).
      confined: bool, False where V stops growing along a ray, so that Z is infinite, or where there is
        more mass beyond the prior than log_z tells of: log_z is then that of a part of the space only.
      reliability: of the final weights of all chains (`egm.importance.reliability`).
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
    reach: Reach
    confined: Array
    reliability: importance.Reliability

    def reason(self) -> str:
        """Why the error is inf, in words; "" where it is finite. Of a finished run, outside jit."""
        if not self.reach.grows:
            return (
                "V does not confine: along some ray it does not outgrow log r, so Z is infinite; add a "
                "wall, as MLPPotential(confinement_radius=...)"
            )
        if not self.confined:
            return (
                f"mass beyond the prior: drawn out, it finds log Z = {float(self.reach.log_mass):.3g}, "
                f"the bridge {float(self.log_z):.3g}; start from a wider prior, or confine V"
            )
        return metrics.reason(self.reliability)


class UpperBound(NamedTuple):
    """What `log_partition_upper` returns.

    Attributes:
      log_z: mean log-weight of the reversed bridge over the valid data.
      log_z_error: its standard error.
      log_z_inverse: -log of the mean of 1/w over them. From exact samples of the model E[1/w] = 1/Z, so
        it too errs high, by less: the counterpart of `LogPartition.log_z`, and as blind to what the data
        do not show.
      log_z_inverse_error: its standard error.
      acceptance: [K] mean acceptance probability of the moves at each level, in the order of levels.
      log_weights: [B] log-weight of each datum.
      num_nonfinite: int32, data where V or the log-weight is not finite (left out of the mean) and
        rejected proposals with a V or gradient that is not finite.
    """

    log_z: Array
    log_z_error: Array
    log_z_inverse: Array
    log_z_inverse_error: Array
    acceptance: Array
    log_weights: Array
    num_nonfinite: Array


class Evidence(NamedTuple):
    """What `evidence` returns: log Z from three sides.

    Attributes:
      log_z: of `lower`.
      log_z_error: the largest of its error, half of what separates it from `upper.log_z_inverse`, and half
        of what `wide` lies above it.
      lower: the bridge from the prior.
      upper: the same bridge run backwards from the data: sees modes of the data that `lower` lost.
      wide: the bridge from the prior three times as wide: sees mass near by that the data do not show.
    """

    log_z: Array
    log_z_error: Array
    lower: LogPartition
    upper: UpperBound
    wide: LogPartition


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

    From one normal the bridge to separate modes of different widths is wrong with a small error bar: of
    two modes in 10 dimensions, .3 and 1 wide, log Z is off by -.57 with an error of .08, from
    `fit_mixture(data)` by .012 with an error of .010. What still can be lost is a mode that neither the
    data nor the prior shows; `evidence` looks from the other side as well.

    Z is finite only where V confines. Rays beyond the prior tell where it does not: `confined`, `reach`.

    Args:
      key: a typed key, or [B] keys (one a chain).
      potential: V(x) -> [B], lower on data.
      epsilon: temperature of the model, epsilon_max at equilibrium.
      prior: p_0, `fit_mixture(key, data)` wherever there are data; it must cover the model. A
        `GaussianPrior` and each component of a `MixturePrior` also give the moves their covariance.
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

    Examples:
      >>> potential = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
      >>> prior = energymatch.likelihood.gaussian_prior(jnp.zeros(2), 2.0)
      >>> found = energymatch.likelihood.log_partition(
      ...     jax.random.key(0), potential, epsilon=1.0, prior=prior, num_chains=256, num_steps=10
      ... )
      >>> bool(abs(found.log_z - jnp.log(2 * jnp.pi)) < 4 * found.log_z_error)
      True
    """
    problem = Problem(potential, epsilon, prior)
    layout = Layout.of(num_chains, num_groups, axis_name)
    num_moves = checks.positive_int(num_moves, "num_moves")
    checks.positive_int(num_steps, "num_steps")
    if resample_below is not None and not 0 < checks.finite_float(resample_below, "resample_below") <= 1:
        raise ValueError(f"resample_below must be in (0, 1] or None, got {resample_below}")
    keys = random.example_keys(key, layout.chains, axis_name)
    key_tune, key_prior, key_moves, key_groups, key_rays = random.split(keys, 5)
    if bridge is None:
        bridge = pilot(key_tune, problem, layout, num_steps, axis_name)
    else:
        bridge = check_bridge(bridge, problem.num_step_sizes)
    start = problem.start(key_prior)
    run = _anneal(problem, layout, bridge, start, (key_moves, key_groups), num_moves, resample_below)
    num_bad = jnp.sum(importance.nonfinite(-start.value)) + jnp.sum(run.num_bad)
    group_log_z = run.log_z + importance.log_mean_exp(run.log_w, 1)
    log_z = importance.log_mean_exp(group_log_z, 0, axis_name)
    reach = probe(key_rays, potential, epsilon=epsilon, prior=prior, axis_name=axis_name)
    confined = reach.grows & ~(reach.log_mass > log_z + SURPLUS)
    log_weights = (run.log_z[:, None] + run.log_w).reshape(-1)
    error, reliability = _error(group_log_z, log_weights, axis_name)
    return LogPartition(
        log_z,
        jnp.where(confined, error, jnp.inf),
        importance.snis(log_weights, 0, axis_name).ess,
        collectives.pmean(run.acceptance, axis_name),
        problem.event(run.state.x),
        log_weights,
        collectives.psum(jnp.sum(run.num_resampled), axis_name),
        collectives.psum(num_bad, axis_name),
        bridge,
        reach,
        confined,
        reliability,
    )


class _Run(NamedTuple):
    """What the levels leave: log-weights [G, N/G] since the last resampling of a group, log Z [G] up to it.

    `acceptance`, `num_bad` and `num_resampled` are [K].
    """

    state: LangevinState
    log_w: Array
    log_z: Array
    acceptance: Array
    num_bad: Array
    num_resampled: Array


def _anneal(
    problem: Problem,
    layout: Layout,
    bridge: Bridge,
    start: LangevinState,
    keys: tuple[Array, Array],
    num_moves: int,
    resample_below: float | None,
) -> _Run:
    """At each level: weigh, resample the groups that need it, move. Keys [B] are for moves and for groups."""
    key_moves, key_groups = keys[0], layout.split(keys[1])[:, 0]

    def body(carry, level):
        state, total, log_z = carry
        index, b_from, b, h = level
        total = summation.add(total, layout.split(increment(state, b_from, b)))
        resampled = jnp.zeros(layout.groups, bool)
        if resample_below is not None:
            record = importance.snis(summation.finish(total), axis=1)
            resampled = (record.ess < resample_below) & (record.ess > 0)
            state = resample(fold(key_groups, index), record.weights, resampled, state)
            log_z = log_z + jnp.where(resampled, record.log_mean, 0.0)
            total = summation.Sum(*(jnp.where(resampled[:, None], 0.0, part) for part in total))
        state, info = problem.move(fold(key_moves, index), state, b, h, num_moves)
        return (state, total, log_z), (*_totals(info), jnp.sum(resampled, dtype=jnp.int32))

    zeros = jnp.zeros((layout.groups, layout.size), start.value.dtype)
    carry = (start, summation.start(zeros), zeros[:, 0])
    (state, total, log_z), counts = scan(body, carry, levels(bridge))
    return _Run(state, summation.finish(total), log_z, *counts)


def _error(groups: Array, log_weights: Array, axis_name: str | None) -> tuple[Array, importance.Reliability]:
    """The standard error of log Z from the groups' estimates and all weights; inf where they carry none."""
    reliability = importance.reliability(log_weights, axis_name)
    # The spread of few groups is itself uncertain: no less than that of chains, were they independent.
    spread = metrics.log_mean_error(groups, axis_name), metrics.log_mean_error(log_weights, axis_name)
    # Two errors cover two standard deviations of the mean and what the tail may still hold.
    error = jnp.hypot(jnp.maximum(*spread), reliability.unseen / 2)
    return jnp.where(reliability.reliable, error, jnp.inf), reliability


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
    x = checks.wide(checks.not_empty(checks.float_array(x, "x", min_ndim=1), "x"))
    num_moves = checks.positive_int(num_moves, "num_moves")
    bridge = check_bridge(bridge, problem.num_step_sizes)
    keys = random.derive(random.example_keys(key, x.shape[0], axis_name), "upper")
    state = problem.init(problem.coordinates(x))

    def body(carry, level):
        state, total = carry
        index, b_from, b, h = level
        state, info = problem.move(fold(keys, index), state, b, h, num_moves)
        return (state, summation.add(total, increment(state, b_from, b))), _totals(info)

    start = (state, summation.start(jnp.zeros_like(state.value)))
    (_, total), (acceptance, num_bad) = scan(body, start, levels(bridge), reverse=True)
    log_w = summation.finish(total)
    valid = jnp.isfinite(state.value) & jnp.isfinite(log_w)
    count = collectives.psum(jnp.sum(valid), axis_name)
    mean = collectives.psum(jnp.sum(jnp.where(valid, log_w, 0.0)), axis_name) / jnp.maximum(count, 1)
    squares = collectives.psum(jnp.sum(jnp.where(valid, (log_w - mean) ** 2, 0.0)), axis_name)
    error = jnp.sqrt(squares / jnp.maximum(count * (count - 1), 1))
    num_bad = collectives.psum(jnp.sum(num_bad) + jnp.sum(~valid), axis_name)
    acceptance = collectives.pmean(acceptance, axis_name)
    mean, error = jnp.where(count > 0, mean, jnp.nan), jnp.where(count > 1, error, jnp.inf)
    # Invalid data are left out of the mean of 1/w too: they weigh zero, so the count is put right.
    clean = jnp.where(valid, -log_w, -jnp.inf)
    inverse, inverse_error = (
        importance.log_mean_exp(clean, 0, axis_name),
        metrics.log_mean_error(clean, axis_name),
    )
    size = x.shape[0] * collectives.axis_size(axis_name)
    inverse = jnp.where(count > 0, jnp.log(jnp.maximum(count, 1) / size) - inverse, jnp.nan)
    return UpperBound(mean, error, inverse, inverse_error, acceptance, log_w, num_bad)


def evidence(
    key: Key,
    potential: Potential,
    x: Array,
    *,
    epsilon: float,
    prior: Prior | None = None,
    num_chains: int = 1024,
    num_steps: int = 200,
    num_moves: int = 1,
    resample_below: float | None = 0.5,
    num_groups: int = 16,
    axis_name: str | None = None,
) -> Evidence:
    """log Z from below, from above and from farther out, with an error that covers what separates them.

    Three runs: `log_partition` from the prior; `log_partition_upper`, its bridge backwards from data; and
    `log_partition` from the prior three times as wide. A mode of the data that the first lost lies between
    it and the second, mass outside of the data between it and the third, and the error is at least half of
    either gap. What none of them shows is a mode far from all data.

    Args:
      key: a typed key, or [B] keys (one a chain).
      potential: V(x) -> [B], lower on data.
      x: [M, *event] data of the model, of this device where `axis_name` is given: held-out data if there
        are any, or exact samples. The cost of the second run grows with M; 1,000 will do.
      epsilon: temperature of the model.
      prior: p_0, a `MixturePrior` or `GaussianPrior`; None for `fit_mixture(key, x)`, which must be made
        outside jit.
      num_chains, num_steps, num_moves, resample_below, num_groups, axis_name: as in `log_partition`.

    Returns:
      Evidence.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.

    Examples:
      >>> potential = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
      >>> data = jax.random.normal(jax.random.key(0), (200, 2))
      >>> prior = energymatch.likelihood.fit_gaussian(data)
      >>> found = energymatch.likelihood.evidence(
      ...     jax.random.key(1), potential, data, epsilon=1.0, prior=prior, num_chains=256, num_steps=20
      ... )
      >>> bool(abs(found.log_z - jnp.log(2 * jnp.pi)) < 4 * found.log_z_error)
      True
    """
    x = checks.float_array(x, "x", min_ndim=1)
    if prior is None:
        # Traced data are refused by fit_mixture itself.
        traced_key = checks.concrete(jax.random.key_data(checks.one_key(key))) is None
        if traced_key and checks.concrete(x) is not None:
            raise TypeError("prior must be given where the key is traced (fit_mixture draws by it), got None")
        prior = fit_mixture(random.derive(key, "prior"), x)
    layout = Layout.of(num_chains, num_groups, axis_name)
    keys = random.example_keys(key, layout.chains, axis_name)
    lower_keys, wide_keys, upper_keys = random.split(keys, 3)
    # The data are no chains: keys of their own, by their place over all devices.
    upper_key = _first_key(upper_keys, axis_name)
    options: dict[str, Any] = dict(epsilon=epsilon, num_moves=num_moves, axis_name=axis_name)

    def forward(run):
        keys, prior = run
        return log_partition(
            keys, potential, prior=prior, num_chains=num_chains, num_steps=num_steps,
            resample_below=resample_below, num_groups=num_groups, **options,
        )  # fmt: skip

    # One program for both.
    both = jax.tree.map(lambda *a: jnp.stack(a), (lower_keys, prior), (wide_keys, widened(prior, WIDER)))
    lower, wide = _unstack(jax.lax.map(forward, both))
    upper = log_partition_upper(upper_key, potential, x, prior=prior, bridge=lower.bridge, **options)
    gaps = jnp.stack([jnp.abs(upper.log_z_inverse - lower.log_z), wide.log_z - lower.log_z])
    # A side that has no value says nothing good.
    gaps = jnp.where(jnp.isnan(gaps), jnp.inf, gaps)
    error = jnp.maximum(lower.log_z_error, 0.5 * jnp.max(gaps))
    confined = lower.confined & wide.confined
    return Evidence(lower.log_z, jnp.where(confined, error, jnp.inf), lower, upper, wide)


def log_prob(potential: Potential, x: Array, *, epsilon: float, log_z: float | Array) -> Array:
    """[B] log p(x) = -V(x)/epsilon - log Z.

    Args:
      potential: V(x) -> [B].
      x: [B, *event].
      epsilon: temperature of the model.
      log_z: from `log_partition` or quadrature. A log Z too low makes every log p too high.

    Examples:
      >>> potential = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
      >>> x = jnp.array([[0.0, 0.0], [1.0, 1.0]])
      >>> log_z = jnp.log(2 * jnp.pi)
      >>> log_p = energymatch.likelihood.log_prob(potential, x, epsilon=1.0, log_z=log_z)
      >>> print(np.asarray(log_p).round(2))
      [-1.84 -2.84]
    """
    value = boltzmann_log_density(potential, x, epsilon)
    return value - number(log_z, "log_z", "finite").astype(value.dtype)


def nll(
    potential: Potential, x: Array, *, epsilon: float, log_z: float | Array, axis_name: str | None = None
) -> Array:
    """Mean negative log-likelihood in nats of x [B, *event], over all devices where `axis_name` is given.

    Examples:
      >>> potential = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
      >>> x = jax.random.normal(jax.random.key(0), (1000, 2))
      >>> nats = energymatch.likelihood.nll(potential, x, epsilon=1.0, log_z=jnp.log(2 * jnp.pi))
      >>> print(f"{nats:.1f}")  # the entropy of N(0, 1) in two dimensions is 2.84
      2.8
    """
    checks.not_empty(x, "x")
    return -collectives.pmean(jnp.mean(log_prob(potential, x, epsilon=epsilon, log_z=log_z)), axis_name)


def _unstack(pair: Any) -> tuple[Any, Any]:
    return jax.tree.map(lambda a: a[0], pair), jax.tree.map(lambda a: a[1], pair)


def _first_key(keys: Array, axis_name: str | None) -> Array:
    """The first chain's key, the same on all devices."""
    data = collectives.all_gather(jax.random.key_data(keys[:1]), axis_name)[0]
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))


def _totals(info: tuple[Array, Array]) -> tuple[Array, Array]:
    """(mean acceptance, number of proposals that were not finite) over the chains of this device."""
    acceptance, num_bad = info
    return jnp.mean(acceptance), jnp.sum(num_bad)
