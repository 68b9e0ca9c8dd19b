"""Both sides of log Z: the mass that the sampler visits, and the mass that reference states find beside it.

The equation stands at the head of `egm.evidence`.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, importance, metrics, random
from egm.evidence.chains import tempered_chains
from egm.simulate import path_log_weights, simulate_reverse
from egm.typing import Array, Energy, Key, ModelFn, Process, State, Trajectory

__all__ = ["Evidence", "check", "from_states", "message", "two_sided"]


class Evidence(NamedTuple):
    """Log Z from both sides. Scalars.

    Attributes:
      lower: log Z by the sampler's own weights, which lacks the mass of the modes that it lost. In
        expectation at most log Z.
      upper: log Z with the mass that only the reference states found.
      error: of `lower`. At least half of what separates the two, and where reference states lie where
        the sampler has no mass, all of it and two standard errors of it; inf where the weights have
        collapsed or everything lies where the sampler has no mass.
      converged: the error is finite and the missing mass is below the tolerance or below its noise.
      lower_error: standard error of `lower` by the sampler's weights alone.
      upper_error: standard error of `upper`.
      missing_mass: the share of the target that the sampler does not visit, in [0, 1].
      eubo: mean of the reference states' path log-weights, above log Z in expectation where they are
        distributed as the target; inf where a weight is.
      ess: of the sampler's weights, a fraction.
      num_missed: reference states where the sampler has no mass.
      num_reference: valid reference states.
      num_nonfinite: reference states whose log-weight is NaN or -inf, which count for nothing.
    """

    lower: Array
    upper: Array
    error: Array
    converged: Array
    lower_error: Array
    upper_error: Array
    missing_mass: Array
    eubo: Array
    ess: Array
    num_missed: Array
    num_reference: Array
    num_nonfinite: Array


def two_sided(
    log_weights: Array,
    reverse_log_weights: Array,
    reference_log_z: Array | None = None,
    *,
    tolerance: float = 0.01,
    axis_name: str | None = None,
) -> Evidence:
    """The evidence from the sampler's states and from states that it did not make.

    A reference state counts as missed where its path log-weight is above log Z + log(N) / 2: a region
    whose mass the sampler has to less than 1 / sqrt(N) of what is due.

    Args:
      log_weights: [N] from `egm.path_log_weights` of simulated trajectories, at the full energy.
      reverse_log_weights: [M] path log-weights of `egm.simulate_reverse` from reference states: exact
        samples, data, or `Chains.x`.
      reference_log_z: `Chains.log_z` [W, G], where the states are those of W x G populations in turn,
        which need not be distributed as the target; None where they are independent draws from it. The
        widest starts find what narrow ones cannot, and fail where narrow ones do not: of the W rows the
        one that misses most counts.
      tolerance: missing mass that still counts as converged.
      axis_name: mapped axis over which samples, states and populations (their G) are split as well.

    Returns:
      Evidence.

    Raises:
      TypeError, ValueError: an argument has a wrong type or shape.

    Examples:
      >>> forward = 0.1 * jax.random.normal(jax.random.key(0), (1000,))
      >>> backward = jnp.zeros(100).at[:50].set(20.0)  # half of the exact samples: where no sample was
      >>> found = egm.evidence.two_sided(forward, backward)
      >>> bool(found.converged), int(found.num_missed), round(float(found.missing_mass), 1)
      (False, 50, 0.5)
    """
    log_weights = checks.vector(log_weights, "log_weights")
    reverse = checks.vector(reverse_log_weights, "reverse_log_weights")
    tolerance = checks.positive_float(tolerance, "tolerance", allow_zero=True)
    total = functools.partial(collectives.psum, axis_name=axis_name)
    summary = metrics.summarize(log_weights, axis_name)
    n = log_weights.shape[0] * collectives.axis_size(axis_name)
    limit = summary.log_z + 0.5 * math.log(n)
    limit = jnp.where(jnp.isfinite(limit), limit, -jnp.inf)
    visited = jnp.where(log_weights <= limit, log_weights, -jnp.inf)
    log_seen = importance.log_mean_exp(visited, 0, axis_name)

    # Where E is infinite there is no state of the target, and none is missed.
    valid = ~jnp.isnan(reverse) & (reverse > -jnp.inf)
    missed = valid & (reverse > limit)
    if reference_log_z is None:
        lost = _lost_by_draws(missed, valid, log_seen, axis_name)
    else:
        log_z = _population_log_z(reference_log_z, reverse)
        lost = _lost_by_populations(missed, valid, log_z, log_seen, axis_name)
    found, num_valid = total(jnp.sum(missed)), total(jnp.sum(valid))
    upper, upper_error, error = _both_errors(summary, log_seen, lost, found)
    missing = jnp.where(jnp.isfinite(upper), -jnp.expm1(jnp.minimum(summary.log_z - upper, 0.0)), 1.0)
    small = (missing <= tolerance) | (missing <= 2 * summary.log_z_error)
    return Evidence(
        lower=summary.log_z,
        upper=upper,
        error=error,
        converged=jnp.isfinite(error) & small & (num_valid > 0),
        lower_error=summary.log_z_error,
        upper_error=upper_error,
        missing_mass=missing,
        eubo=total(jnp.sum(jnp.where(valid, reverse, 0.0))) / jnp.maximum(num_valid, 1),
        ess=summary.ess,
        num_missed=found,
        num_reference=num_valid,
        num_nonfinite=total(jnp.sum(~valid)),
    )


def message(evidence: Evidence) -> str:
    """What the evidence says, in plain words, on the host.

    Examples:
      >>> even = jnp.full(1000, 2.0)  # path log-weights of a perfect sampler
      >>> found = egm.evidence.two_sided(even, even[:100])
      >>> print(egm.evidence.message(found))
      log Z = 2 by the sampler's own weights (standard error 0). None of 100 reference states ...
    """
    e: Evidence = jax.tree.map(lambda v: np.asarray(jax.device_get(v)), evidence)
    text = [f"log Z = {e.lower:.4g} by the sampler's own weights (standard error {e.lower_error:.2g})."]
    if not np.isfinite(e.lower_error):
        text.append(
            "Those weights have collapsed: the figure means nothing. Train longer or take more steps."
        )
    if not e.num_reference:
        text.append("There is no valid reference state, so nothing is known of modes that were lost.")
    elif e.num_missed:
        text.append(
            f"{int(e.num_missed)} of {int(e.num_reference)} reference states lie where the sampler has no "
            f"mass: with them log Z = {e.upper:.4g}, so about {100 * e.missing_mass:.2g}% of the target is "
            f"missing. The error of log Z is {e.error:.2g}."
        )
        if not e.converged:
            text.append(
                "The sampler has lost modes, or has not converged. Widen the search for scales "
                "(find_scales with a larger search_radius, a wider path and reference), anneal more "
                "slowly, or train longer."
            )
    else:
        text.append(
            f"None of {int(e.num_reference)} reference states lies where the sampler has no mass (error "
            f"{e.error:.2g}). Modes that they did not reach either remain unseen."
        )
    if e.num_nonfinite:
        text.append(f"{int(e.num_nonfinite)} reference states have no log-weight (NaN).")
    return " ".join(text)


def from_states(
    key: Key,
    energy: Energy,
    process: Process,
    generator_fn: ModelFn,
    states: State,
    times: Array,
    moments: Any = None,
) -> Array:
    """Path log-weights [M] of reference states, taken backward through the sampler.

    Args:
      key: a typed key.
      energy: E.
      process, generator_fn, times: the sampler, as `egm.simulate` has them.
      states: [M, *event] exact samples, data or `Chains.x`.
      moments: those that the sampler's prior is drawn with, `IterationState.moments`.

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=2)
      >>> process = egm.processes.AnyOrderProcess(path)
      >>> denoiser = lambda x, t: jnp.full((*x.shape, 2), 0.5)  # exact for an energy of zero
      >>> energy = lambda x: jnp.zeros(len(x))
      >>> exact = jax.random.randint(jax.random.key(0), (16, 4), 0, 2)
      >>> times = process.times(4)
      >>> reverse = egm.evidence.from_states(jax.random.key(1), energy, process, denoiser, exact, times)
      >>> print(np.asarray(reverse[:2]).round(3))  # log Z = 4 log 2 each, since the sampler is exact
      [2.773 2.773]
    """
    trajectory = simulate_reverse(key, process, generator_fn, states, times, moments=moments)
    return path_log_weights(energy, process.path, trajectory)


def check(
    key: Key,
    energy: Energy,
    process: Process,
    generator_fn: ModelFn,
    trajectory: Trajectory,
    times: Array,
    start: Any = None,
    *,
    moments: Any = None,
    tolerance: float = 0.01,
    **chains: Any,
) -> Evidence:
    """Whether a sampler has lost modes, by tempered chains: the end of a training, in one call.

    Args:
      key: a typed key.
      energy: E.
      process, generator_fn, times: the sampler, as `egm.simulate` has them.
      trajectory: from `egm.simulate`, some thousand states.
      start: about where and how wide the target is: the `reference` of `make_iteration`.
      moments: those that the sampler's prior is drawn with, `IterationState.moments`.
      tolerance: as for `two_sided`.
      **chains: options of `tempered_chains`.

    Returns:
      Evidence; `message` puts it into words.

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=2)
      >>> process = egm.processes.AnyOrderProcess(path)
      >>> denoiser, energy = lambda x, t: jnp.full((*x.shape, 2), 0.5), lambda x: jnp.zeros(len(x))
      >>> x_0, times = path.sample_prior(jax.random.key(0), (256, 4)), process.times(4)
      >>> trajectory = egm.simulate(jax.random.key(1), process, denoiser, x_0, times)
      >>> found = egm.evidence.check(
      ...     jax.random.key(2), energy, process, denoiser, trajectory, times, num_chains=32, gradient=False
      ... )
      >>> bool(found.converged)
      True
    """
    checks.instance(trajectory, Trajectory, "trajectory")
    k_chains, k_back = random.split(checks.one_key(key))
    event_shape = jax.tree.map(lambda a: tuple(a.shape[1:]), trajectory.x_1)
    found = tempered_chains(k_chains, energy, process.path, event_shape, start, **chains)
    log_prior = process.path.prior_log_density(trajectory.x_0, moments)
    same = checks.concrete(
        jnp.allclose(log_prior, trajectory.log_prior, rtol=1e-4, atol=1e-3, equal_nan=True)
    )
    if same is not None and not same:
        raise ValueError(
            "moments must be those that the trajectory's prior was drawn with (IterationState.moments), "
            f"got {moments!r:.80}"
        )
    forward = path_log_weights(energy, process.path, trajectory)
    backward = from_states(k_back, energy, process, generator_fn, found.x, times, moments)
    return two_sided(forward, backward, found.log_z, tolerance=tolerance)


def _population_log_z(value: Any, reverse: Array) -> Array:
    """[W, G], checked against the states."""
    log_z = checks.float_array(value, "reference_log_z")
    if log_z.ndim != 2 or log_z.size == 0:
        raise ValueError(f"reference_log_z must have shape [W, G], got {log_z.shape}")
    if reverse.shape[0] % log_z.size:
        raise ValueError(
            f"reverse_log_weights must hold as many states for each of the {log_z.size} "
            f"populations of reference_log_z, got {reverse.shape[0]}"
        )
    return log_z


def _both_errors(summary, log_seen, lost, found):
    """(upper bound, its standard error, the error of log Z) of the parts seen and lost."""
    log_lost, lost_error, log_unit = lost
    upper = jnp.logaddexp(log_seen, log_lost)
    # Errors of the lost mass are in units of exp(log_unit).
    lost_error = jnp.where(lost_error > 0, lost_error * jnp.exp(log_unit - upper), 0.0)
    seen_error = summary.log_z_error * jnp.exp(log_seen - upper)
    seen_error = jnp.where(jnp.isfinite(summary.log_z_error), seen_error, jnp.inf)
    gap = jnp.abs(upper - summary.log_z)
    error = jnp.maximum(summary.log_z_error, jnp.where(found > 0, gap + 2 * lost_error, gap / 2))
    error = jnp.where(jnp.isfinite(error) & jnp.isfinite(upper), error, jnp.inf)
    return upper, jnp.sqrt(seen_error**2 + lost_error**2), error


def _lost_by_draws(missed, valid, log_seen, axis_name):
    """As `_lost_by_populations`, of independent draws from the target."""
    total = functools.partial(collectives.psum, axis_name=axis_name)
    count = jnp.maximum(total(jnp.sum(valid)), 1)
    share = total(jnp.sum(missed)) / count
    # Of a few missed states of many the spread is that of their number; one more may have been.
    spread = jnp.sqrt(jnp.maximum(share * (1 - share), share / count) / count)
    rest = 1 - share
    log_lost = log_seen + jnp.log(share) - jnp.log(rest)
    return log_lost, spread / jnp.where(rest > 0, rest**2, 1.0), log_seen


def _lost_by_populations(missed, valid, log_z, log_seen, axis_name):
    """(log of the missed part of Z, its standard error in units of exp(log unit), log unit).

    By each row of populations; the row that misses most counts. A row's is the absolute size by its own
    Z, or its size beside the part that the sampler visits, whichever is more: populations that mix badly
    must not make a loss look small.
    """
    total = functools.partial(collectives.psum, axis_name=axis_name)
    rows, groups = log_z.shape
    number = groups * collectives.axis_size(axis_name)
    missed, valid = (a.reshape(rows, groups, -1) for a in (missed, valid))
    share = jnp.sum(missed, axis=2) / jnp.maximum(jnp.sum(valid, axis=2), 1)
    unit = collectives.pmax(jnp.max(log_z), axis_name)
    unit = jnp.where(jnp.isfinite(unit), unit, 0.0)
    z = jnp.where(jnp.isfinite(log_z), jnp.exp(log_z - unit), 0.0)
    lost, kept = z * share, z * (1 - share)
    mean = total(jnp.sum(lost, axis=1)) / number
    rest = total(jnp.sum(kept, axis=1)) / number
    # Few, skew numbers: what their spread tells is widened for that.
    spread = lambda rows: jnp.stack([metrics.log_mean_error(jnp.log(row), axis_name) for row in rows])
    relative = spread(lost)
    log_mean = jnp.log(mean)
    beside = jnp.where((rest > 0) & (mean > 0), log_seen + log_mean - jnp.log(rest), -jnp.inf)
    # What a population lacks in one part it has in the other, so that errors of a ratio add up.
    relative = jnp.where(beside > unit + log_mean, relative + spread(kept), relative)
    each = jnp.maximum(unit + log_mean, beside)
    worst = jnp.argmax(each)
    error = jnp.where(mean > 0, relative * jnp.exp(each - unit), 0.0)
    return each[worst], error[worst], unit
