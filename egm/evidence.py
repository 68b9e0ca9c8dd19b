"""Log Z from both sides: what a sampler's own weights cannot see, and chains of other starts that can.

ESS, log Z and every other figure of simulated trajectories know only the states that the sampler visits.
A sampler that has lost three of four equal modes reports an ESS near 1 and log(1/4) too little, with a
tiny error. What shows the loss are states from elsewhere: exact samples, data, or chains that start far
apart. Taken backward through the sampler (`egm.simulate_reverse`) each has a path log-weight, and where
the sampler puts no mass that is far above log Z.

With p the target's density on whole paths (its states, taken backward), q the sampler's (forward) and
w = Z p / q, for every limit c

  Z = E_q[w 1(w <= c)] + Z P_p(w > c),

the mass that the sampler visits and the mass that it misses. `two_sided` estimates the second part from
states that the sampler did not make; `tempered_chains` makes them, for any energy.

What none of it can see: a mode that no reference state reaches. Chains start from normal distributions up
to ten times wider than the one that they are given; a mode far outside them, or one so narrow that no
chain meets it on the way, stays unseen, by every number here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, importance, metrics, random, summation
from egm.paths import MaskedPath, ProductPath
from egm.paths.wrapped import wrapped
from egm.simulate import path_log_weights, simulate_reverse
from egm.typing import Array, Energy, Key, ModelFn, Path, Process, State, Trajectory

__all__ = ["Chains", "Evidence", "check", "from_states", "message", "moved", "tempered_chains", "two_sided"]

_NUM_WIDTHS = 3
_NUM_STARTS = 64  # rounds of draws of starts at most
_NUM_LAST = 2  # levels at b = 1 after the full energy is reached


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


class Chains(NamedTuple):
    """States of W x G independent populations of C tempered chains each, W widths of their starts.

    Attributes:
      x: states [W * G * C, *event], each population's in turn; each population's are equally weighted,
        and those of one that has not reached the full energy stand for nothing.
      log_z: [W, G] each population's estimate of log Z; the estimates of Z are unbiased but for the
        adaptation of the levels, so that a state of a population stands for its Z / C.
      acceptance: [W, G] mean acceptance probability of the moves.
      num_levels: [W, G] int32 levels of temperature.
      reached: [W, G] bool, whether the full energy was reached; else log_z is -inf.
      num_nonfinite: [W, G] int32 final states of no finite energy.
    """

    x: State
    log_z: Array
    acceptance: Array
    num_levels: Array
    reached: Array
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
        count = jnp.maximum(total(jnp.sum(valid)), 1)
        share = total(jnp.sum(missed)) / count
        # Of a few missed states of many the spread is that of their number; one more may have been.
        spread = jnp.sqrt(jnp.maximum(share * (1 - share), share / count) / count)
        rest = 1 - share
        log_lost = log_seen + jnp.log(share) - jnp.log(rest)
        lost_error = spread / jnp.where(rest > 0, rest**2, 1.0)
        log_unit = log_seen
    else:
        log_z = checks.float_array(reference_log_z, "reference_log_z")
        if log_z.ndim != 2 or log_z.size == 0:
            raise ValueError(f"reference_log_z must have shape [W, G], got {log_z.shape}")
        if reverse.shape[0] % log_z.size:
            raise ValueError(
                f"reverse_log_weights must hold as many states for each of the {log_z.size} "
                f"populations of reference_log_z, got {reverse.shape[0]}"
            )
        log_lost, lost_error, log_unit = _lost_by_populations(missed, valid, log_z, log_seen, axis_name)

    upper = jnp.logaddexp(log_seen, log_lost)
    # Errors of the lost mass are in units of exp(log_unit).
    lost_error = jnp.where(lost_error > 0, lost_error * jnp.exp(log_unit - upper), 0.0)
    seen_error = summary.log_z_error * jnp.exp(log_seen - upper)
    seen_error = jnp.where(jnp.isfinite(summary.log_z_error), seen_error, jnp.inf)
    upper_error = jnp.sqrt(seen_error**2 + lost_error**2)
    gap = jnp.abs(upper - summary.log_z)
    found = total(jnp.sum(missed))
    error = jnp.maximum(summary.log_z_error, jnp.where(found > 0, gap + 2 * lost_error, gap / 2))
    error = jnp.where(jnp.isfinite(error) & jnp.isfinite(upper), error, jnp.inf)
    missing = jnp.where(jnp.isfinite(upper), -jnp.expm1(jnp.minimum(summary.log_z - upper, 0.0)), 1.0)
    small = (missing <= tolerance) | (missing <= 2 * summary.log_z_error)
    finite = jnp.where(valid, reverse, 0.0)
    num_valid = total(jnp.sum(valid))
    return Evidence(
        lower=summary.log_z,
        upper=upper,
        error=error,
        converged=jnp.isfinite(error) & small & (num_valid > 0),
        lower_error=summary.log_z_error,
        upper_error=upper_error,
        missing_mass=missing,
        eubo=total(jnp.sum(finite)) / jnp.maximum(num_valid, 1),
        ess=summary.ess,
        num_missed=found,
        num_reference=num_valid,
        num_nonfinite=total(jnp.sum(~valid)),
    )


def message(evidence: Evidence) -> str:
    """What the evidence says, in plain words, on the host."""
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


def tempered_chains(
    key: Key,
    energy: Energy,
    path: Path,
    event_shape: Any,
    start: Any = None,
    *,
    widen: float = 10.0,
    num_groups: int = 4,
    num_chains: int = 512,
    num_moves: int = 10,
    max_levels: int = 300,
    ess_target: float = 0.9,
    gradient: bool = True,
) -> Chains:
    """Populations of chains from widely spread starts to the target, by a sequential Monte Carlo sampler.

    Every population starts from p_0, an isotropic normal distribution of one of three widths from that of
    `start` to `widen` times it (tokens: uniform), and moves along p_0^(1 - b) exp(-b E), b from 0 to 1 in
    levels of which each keeps an ESS of `ess_target`. A level is resampling and `num_moves` rounds of
    Metropolis-adjusted moves: Langevin at a random step size (a random walk without `gradient`),
    differences of other chains, exchanges of coordinates between two chains, and for tokens L proposals
    of one site. Populations are independent of each other and of the sampler, and use nothing that it has
    learned. Tokens alone have one width.

    Args:
      key: a typed key.
      energy: E, differentiable where `gradient`; NaN and -inf count as +inf.
      path: a Gaussian or masked path, or a product of them: says which parts are tokens, V and the space.
      event_shape: as for `make_iteration`.
      start: moments in the path's form (`egm.typing.Moments`; None for tokens), about where the target
        is and how wide, such as `Moments(scales.center, data_scale^2)`. None: the path's own prior.
      widen: the widest p_0 over the widest coordinate of `start`.
      num_groups: G, populations of each width.
      num_chains: C, chains of a population, an even number.
      num_moves: rounds of moves a level, and of two more at the end.
      max_levels: levels at most.
      ess_target: in (0, 1).
      gradient: whether E has a useful gradient.

    Returns:
      Chains.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.

    Source: Del Moral, Doucet and Jasra, "Sequential Monte Carlo samplers" (2006); ter Braak (2006) for
    the differences; Liang and Wong (2001) for the exchanges.
    """
    checks.one_key(key)
    checks.function(energy, "energy")
    widen = checks.positive_float(widen, "widen")
    for name, value, least in (
        ("num_groups", num_groups, 2),
        ("num_chains", num_chains, 4),
        ("num_moves", num_moves, 1),
        ("max_levels", max_levels, 1),
    ):
        checks.positive_int(value, name, least)
    if num_chains % 2:
        raise ValueError(f"num_chains must be even, got {num_chains}")
    ess_target = checks.below_one(ess_target, "ess_target")
    checks.flag(gradient, "gradient")
    parts = _parts(path, event_shape, start)
    flat = _Flat(parts, jax.tree.structure(event_shape, is_leaf=_is_shape), energy)
    run = functools.partial(_population, flat, num_chains, num_moves, max_levels, ess_target, gradient)
    widths = np.ones(1) if all(p.is_tokens for p in parts) else widen ** np.linspace(0, 1, _NUM_WIDTHS)
    num = len(widths) * num_groups
    found = jax.vmap(run)(
        jnp.asarray(np.repeat(widths, num_groups), float),
        jax.random.split(random.derive(key, "populations"), num),
    )
    x = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), flat.unflatten(found[0]))
    return Chains(x, *(a.reshape(len(widths), num_groups) for a in found[1:]))


def moved(
    key: Key,
    energy: Energy,
    path: Path,
    states: State,
    start: Any = None,
    *,
    num_rounds: int = 10,
    gradient: bool = True,
) -> tuple[State, Array]:
    """States after rounds of the moves of `tempered_chains` at the full energy, which keep exp(-E).

    So weighted states stay properly weighted, and states that are distributed as the target stay so.

    Args:
      key: a typed key.
      energy, path, start, gradient: as for `tempered_chains`; `start` gives the largest step.
      states: [N, *event], N even and at least 4.
      num_rounds: of moves of every part.

    Returns:
      (states [N, *event], their energies [N]).

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.
    """
    checks.one_key(key)
    checks.function(energy, "energy")
    checks.positive_int(num_rounds, "num_rounds")
    checks.flag(gradient, "gradient")
    size = jax.tree.leaves(states)[0].shape[0] if jax.tree.leaves(states) else 0
    if size < 4 or size % 2:
        raise ValueError(f"states must hold an even number of states, at least 4, got {size}")
    event_shape = jax.tree.map(lambda a: tuple(a.shape[1:]), states)
    leaves, treedef = jax.tree.flatten(states)
    flat = _Flat(_parts(path, event_shape, start), treedef, energy)
    leaves = [checks.as_array(leaf, "states") for leaf in leaves]
    leaves, e, _ = _moves(flat, gradient, key, leaves, flat.energy(leaves), jnp.ones(()), num_rounds)
    return flat.unflatten(leaves), e


# The sequential Monte Carlo sampler.


class _Part(NamedTuple):
    """One leaf of a state: a Gaussian part with its start, or tokens (path a MaskedPath)."""

    path: Any
    shape: tuple[int, ...]
    mean: Any
    variance: Any

    @property
    def is_tokens(self) -> bool:
        return isinstance(self.path, MaskedPath)

    def draw(self, key, num):
        if self.is_tokens:
            return jax.random.randint(key, (num, *self.shape), 0, self.path.vocab_size, jnp.int32)
        noise = self.path.standard_normal(key, (num, *self.shape))
        x = self.path.project(self.mean)[None] + jnp.sqrt(self.variance) * noise
        angles = self.angles
        if not angles.any():
            return x
        turn = jax.random.uniform(random.derive(key, "angles"), x.shape, x.dtype, -math.pi, math.pi)
        return jnp.where(jnp.asarray(angles)[None], turn, x)

    @property
    def angles(self):
        """[D] bool; they start uniform."""
        return self.path.confinement(self.shape[-1]) == 0

    def energy(self, x):
        """[C] -log p_0, normalised."""
        if self.is_tokens:
            sites = math.prod(self.shape)
            return jnp.full(x.shape[0], sites * math.log(self.path.vocab_size))
        mean = jnp.broadcast_to(self.path.project(self.mean), x.shape)
        if self.angles.any():
            normal = 0.5 * (jnp.square(x - mean) / self.variance + jnp.log(2 * math.pi * self.variance))
            angles = jnp.broadcast_to(jnp.asarray(self.angles), x.shape)
            return jnp.sum(jnp.where(angles, math.log(2 * math.pi), normal), axis=-1)
        return -self.path.normal_log_density(x, mean, jnp.broadcast_to(self.variance, x.shape[:1]))

    def lifted(self, x):
        """x with angles within [-pi, pi): sums of lifts would grow without bound."""
        angles = self.angles
        return jnp.where(jnp.broadcast_to(jnp.asarray(angles), x.shape), wrapped(x), x) if angles.any() else x

    def widened(self, width):
        return self if self.is_tokens else self._replace(variance=width**2 * self.variance)


class _Flat(NamedTuple):
    """A target on the list of a state's leaves."""

    parts: tuple[_Part, ...]
    treedef: Any
    function: Callable[[State], Array]

    def unflatten(self, leaves):
        return jax.tree.unflatten(self.treedef, leaves)

    def widened(self, width):
        return self._replace(parts=tuple(part.widened(width) for part in self.parts))

    def energy(self, leaves):
        """[C] E, +inf where it is no number or -inf."""
        e = self.function(self.unflatten(leaves))
        e = checks.model_output(e, "energy", leaves[0].shape[:1])
        return jnp.where(jnp.isnan(e) | (e == -jnp.inf), jnp.inf, e).astype(float)

    def reference(self, leaves):
        return sum(part.energy(x) for part, x in zip(self.parts, leaves, strict=True))


def _population(flat, num_chains, num_moves, max_levels, ess_target, gradient, width, key):
    """(leaves [C, ...], log Z, acceptance, number of levels, whether b = 1, non-finite states)."""
    flat = flat.widened(width)
    k_start, k_run = jax.random.split(key)
    leaves, e, log_share = _starts(flat, num_chains, k_start)
    move = functools.partial(_moves, flat, gradient)

    def level(carry):
        leaves, e, beta, log_z, accepted, index, last = carry
        k_resample, k_move = jax.random.split(jax.random.fold_in(k_run, index))
        slope = flat.reference(leaves) - e
        delta = _increment(slope, 1 - beta, ess_target)
        log_w = jnp.where(e == jnp.inf, -jnp.inf, delta * slope)
        log_z = summation.add(log_z, importance.log_mean_exp(log_w))
        chosen = _systematic(k_resample, importance.snis(log_w).weights)
        leaves, e = jax.tree.map(lambda a: a[chosen], (leaves, e))
        beta = jnp.where(delta >= 1 - beta, 1.0, beta + delta)
        leaves, e, rate = move(k_move, leaves, e, beta, num_moves)
        return leaves, e, beta, log_z, accepted + rate, index + 1, last + (beta >= 1)

    def unfinished(carry):
        return (carry[6] <= _NUM_LAST) & (carry[5] < max_levels) & (carry[3].high > -jnp.inf)

    zero, none = jnp.zeros(()), jnp.zeros((), jnp.int32)
    carry = (leaves, e, zero, summation.start(log_share), zero, none, none)
    leaves, e, beta, log_z, accepted, levels, _ = jax.lax.while_loop(unfinished, level, carry)
    log_z = summation.finish(log_z)
    reached = (beta >= 1) & (log_z > -jnp.inf)
    log_z = jnp.where(reached, log_z, -jnp.inf)
    return leaves, log_z, accepted / levels, levels, reached, jnp.sum(~jnp.isfinite(e))


def _starts(flat, num_chains, key):
    """(leaves, E, log of a factor of Z): draws from p_0, again where E is infinite, until enough are not.

    Behind walls a wide p_0 has few states of finite energy or none. The factor is the share of all draws
    that are finite over that of the states, which the first level counts.
    """

    def draw(index):
        keys = jax.random.split(jax.random.fold_in(key, index), len(flat.parts))
        leaves = [part.draw(k, num_chains) for part, k in zip(flat.parts, keys, strict=True)]
        return leaves, flat.energy(leaves)

    def again(carry):
        leaves, e, found, index = carry
        new, new_e = draw(index)
        pick = lambda a, b: jnp.where((e == jnp.inf).reshape(-1, *[1] * (a.ndim - 1)), a, b)
        leaves = [pick(a, b) for a, b in zip(new, leaves, strict=True)]
        return leaves, pick(new_e, e), found + jnp.sum(new_e < jnp.inf), index + 1

    def too_few(carry):
        return (jnp.sum(carry[1] < jnp.inf) < num_chains // 4) & (carry[3] < _NUM_STARTS)

    leaves, e = draw(0)
    leaves, e, found, rounds = jax.lax.while_loop(too_few, again, (leaves, e, jnp.sum(e < jnp.inf), 1))
    kept = jnp.sum(e < jnp.inf)
    return leaves, e, jnp.where(kept > 0, jnp.log(found / (kept * rounds)), 0.0)


def _increment(slope: Array, rest: Array, ess_target: float) -> Array:
    """The largest step of b, up to what is left, after which the weights keep the ESS."""

    def ess(delta):
        return importance.snis(jnp.where(slope == -jnp.inf, -jnp.inf, delta * slope)).ess

    def halve(_, bounds):
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = ess(jnp.exp(middle)) >= ess_target * share
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # States where E is infinite never count.
    share = jnp.mean(slope > -jnp.inf)
    rest = jnp.maximum(rest, 1e-30)
    low, _ = jax.lax.fori_loop(0, 40, halve, (jnp.log(rest) - 70.0, jnp.log(rest)))
    return jnp.where(ess(rest) >= ess_target * share, rest, jnp.exp(low))


def _systematic(key: Key, weights: Array) -> Array:
    """[C] indices drawn by weight, evenly spaced; the identity where no weight is positive."""
    size = weights.shape[0]
    place = (jnp.arange(size) + jax.random.uniform(key)) / size
    total = jnp.cumsum(weights)
    index = jnp.clip(jnp.searchsorted(total, place * total[-1], side="right"), 0, size - 1)
    return jnp.where(total[-1] > 0, index, jnp.arange(size))


def _moves(flat, gradient, key, leaves, e, beta, rounds):
    """(leaves, E, mean acceptance) after rounds that leave p_0^(1 - b) exp(-b E) invariant."""
    target = _Annealed(flat, beta, gradient)
    kinds = []
    for i, part in enumerate(flat.parts):
        own = (_tokens,) if part.is_tokens else (_langevin, _differences)
        # On a subspace coordinates are not free of each other.
        bound = not part.is_tokens and part.path.dimension(part.shape[-1]) < part.shape[-1]
        for kind in own if bound else (*own, _exchange):
            kinds.append(functools.partial(kind, target, i))

    def once(index, carry):
        leaves, e, rate = carry
        for k, kind in enumerate(kinds):
            leaves, e, a = kind(jax.random.fold_in(jax.random.fold_in(key, index), k), leaves, e)
            rate = rate + a / (rounds * len(kinds))
        return leaves, e, rate

    return jax.lax.fori_loop(0, rounds, once, (leaves, e, jnp.zeros(())))


class _Annealed(NamedTuple):
    """p_0^(1 - b) exp(-b E) on the leaves of states, and the Metropolis test on it."""

    flat: _Flat
    beta: Array
    gradient: bool

    def log_density(self, leaves, e):
        """[C] of states whose E is known."""
        # b = 0 is over before the first move, so an infinite E has no density.
        weighed = jnp.where(e == jnp.inf, -jnp.inf, -self.beta * e)
        return weighed - (1 - self.beta) * self.flat.reference(leaves)

    def decide(self, key, leaves, e, proposed, log_q):
        """(leaves, E, mean acceptance), Metropolis-Hastings with log_q = log q(back) - log q(there)."""
        e_new = self.flat.energy(proposed)
        ratio = self.log_density(proposed, e_new) - self.log_density(leaves, e) + log_q
        # From a state without density every other is accepted.
        ratio = jnp.where(e == jnp.inf, jnp.where(e_new == jnp.inf, -jnp.inf, 0.0), ratio)
        return _taken(key, ratio, leaves, e, proposed, e_new)

    def score(self, i, leaves, x):
        """The gradient of the log-density in leaf i at x."""

        def total(y):
            now = _replaced(leaves, i, y)
            return jnp.sum(-self.beta * self.flat.energy(now) - (1 - self.beta) * self.flat.reference(now))

        return jax.grad(total)(x)


def _taken(key, ratio, leaves, e, proposed, e_new):
    """(leaves, E, mean acceptance) after the test; NaN is refused."""
    ratio = jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
    take = jnp.log1p(-jax.random.uniform(key, ratio.shape)) < ratio
    leaves = [
        jnp.where(checks.expanded(take, old), new, old) for new, old in zip(proposed, leaves, strict=True)
    ]
    return leaves, jnp.where(take, e_new, e), jnp.mean(jnp.exp(jnp.minimum(ratio, 0.0)))


def _replaced(leaves, i, x):
    return [*leaves[:i], x, *leaves[i + 1 :]]


def _tokens(target, i, key, leaves, e):
    """L proposals of another token at a random site."""
    part = target.flat.parts[i]
    sites, vocab = math.prod(part.shape), part.path.vocab_size

    def one(site_index, carry):
        leaves, e, rate = carry
        k_site, k_token, k_accept = jax.random.split(jax.random.fold_in(key, site_index), 3)
        x = leaves[i].reshape(leaves[i].shape[0], -1)
        site = jax.random.randint(k_site, e.shape, 0, sites)[:, None]
        other = jax.random.randint(k_token, (e.shape[0], 1), 1, vocab)
        here = jnp.arange(sites)[None] == site
        y = jnp.where(here, (x + other) % vocab, x).reshape(leaves[i].shape)
        leaves, e, a = target.decide(k_accept, leaves, e, _replaced(leaves, i, y), 0.0)
        return leaves, e, rate + a / sites

    return jax.lax.fori_loop(0, sites, one, (leaves, e, jnp.zeros(())))


def _langevin(target, i, key, leaves, e):
    """A step of random size over four decades: some size suits every level and every mode."""
    part, x = target.flat.parts[i], leaves[i]
    k_size, k_noise, k_accept = jax.random.split(key, 3)
    size = jnp.sqrt(part.variance) * 10 ** (-4 * jax.random.uniform(k_size, (x.shape[0], 1)))
    dimension = part.path.dimension(x.shape[-1])

    def drift(x):
        if not target.gradient:
            return jnp.zeros_like(x)
        g = part.path.project(target.score(i, leaves, x))
        g = jnp.where(jnp.all(jnp.isfinite(g), axis=-1, keepdims=True), 0.5 * size**2 * g, 0.0)
        # No longer than the noise: a function of the state like any other to the Metropolis test.
        longest = size * math.sqrt(dimension)
        norm = jnp.sqrt(jnp.sum((g / longest) ** 2, axis=-1, keepdims=True))
        return g / jnp.maximum(norm, 1.0)

    noise = part.path.standard_normal(k_noise, x.shape, x.dtype)
    y = part.path.project(x + drift(x) + size * noise)
    back = (x - y - drift(y)) / size
    log_q = 0.5 * jnp.sum(noise**2 - back**2, axis=-1)
    return target.decide(k_accept, leaves, e, _replaced(leaves, i, part.lifted(y)), log_q)


def _differences(target, i, key, leaves, e):
    """Each half of the chains moves along differences of the other, which fit any covariance."""
    half, rates = e.shape[0] // 2, []
    for number, own in enumerate((slice(0, half), slice(half, None))):
        k_pair, k_length, k_accept = jax.random.split(jax.random.fold_in(key, number), 3)
        mine, mine_e = [a[own] for a in leaves], e[own]
        others = leaves[i][half:] if number == 0 else leaves[i][:half]
        first = jax.random.randint(k_pair, (half,), 0, half)
        second = (first + jax.random.randint(random.derive(k_pair, "second"), (half,), 1, half)) % half
        u = jax.random.uniform(k_length, (2, half, 1))
        dimension = target.flat.parts[i].path.dimension(others.shape[-1])
        length = 2.38 / math.sqrt(2 * dimension) * 10 ** (0.5 * u[1] - 0.4)
        # Whole differences, one time in ten, carry a chain from mode to mode.
        length = jnp.where(u[0] < 0.1, 1.0, length)
        y = target.flat.parts[i].lifted(mine[i] + length * (others[first] - others[second]))
        mine, mine_e, rate = target.decide(k_accept, mine, mine_e, _replaced(mine, i, y), 0.0)
        leaves = [a.at[own].set(b) for a, b in zip(leaves, mine, strict=True)]
        e = e.at[own].set(mine_e)
        rates.append(rate)
    return leaves, e, 0.5 * (rates[0] + rates[1])


def _exchange(target, i, key, leaves, e):
    """Pairs of chains exchange some of their coordinates, at random places or in a row.

    It keeps the product of their densities. Where coordinates have little to do with each other it is
    always accepted, and modes of one recombine with modes of another: selection among a few hundred
    chains alone loses most combinations of many wells.
    """
    k_pair, k_share, k_place, k_kind, k_accept = jax.random.split(key, 5)
    half = e.shape[0] // 2
    order = jnp.roll(jnp.arange(half), jax.random.randint(k_pair, (), 0, half))
    a, b = [x[:half] for x in leaves], [x[half:][order] for x in leaves]
    e_a, e_b = e[:half], e[half:][order]
    size = math.prod(a[i].shape[1:])
    share = 0.5 * jax.random.uniform(k_share, (half, 1))
    scattered = jax.random.uniform(k_place, (half, size)) < share
    begin = jax.random.randint(random.derive(k_place, "row"), (half, 1), 0, size)
    row = (jnp.arange(size)[None] - begin) % size < share * size
    chosen = jnp.where(jax.random.bernoulli(k_kind, 0.5, (half, 1)), scattered, row).reshape(a[i].shape)
    new_a = _replaced(a, i, jnp.where(chosen, b[i], a[i]))
    new_b = _replaced(b, i, jnp.where(chosen, a[i], b[i]))
    energies = target.flat.energy([jnp.concatenate(pair) for pair in zip(new_a, new_b, strict=True)])
    new_e_a, new_e_b = energies[:half], energies[half:]
    now = target.log_density(a, e_a) + target.log_density(b, e_b)
    then = target.log_density(new_a, new_e_a) + target.log_density(new_b, new_e_b)
    ratio = jnp.where(jnp.isneginf(now), jnp.where(jnp.isneginf(then), -jnp.inf, 0.0), then - now)
    a, e_a, rate = _taken(k_accept, ratio, a, e_a, new_a, new_e_a)
    b, e_b, _ = _taken(k_accept, ratio, b, e_b, new_b, new_e_b)
    leaves = [jnp.concatenate([x, y]) for x, y in zip(a, b, strict=True)]
    return leaves, jnp.concatenate([e_a, e_b]), rate


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


def _is_shape(value) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(n, int | np.integer) for n in value)


def _parts(path, event_shape, start) -> tuple[_Part, ...]:
    """The leaves of a state in the order of `jax.tree.leaves`, each with its path and start."""
    if isinstance(path, ProductPath):
        paths, shapes = path.leaves_with(event_shape, "event_shape")
        starts = [None] * len(paths) if start is None else path.leaves_with(start, "start")[1]
        found = [_parts(p, s, m) for p, s, m in zip(paths, shapes, starts, strict=True)]
        return tuple(part for parts in found for part in parts)
    if not _is_shape(event_shape):
        raise TypeError(f"event_shape must be a tuple of ints for {path!r:.60}, got {event_shape!r:.80}")
    shape = tuple(checks.positive_int(n, "every size in event_shape") for n in event_shape)
    if isinstance(path, MaskedPath):
        return (_Part(path, shape, None, None),)
    if not hasattr(path, "normal_log_density"):
        raise TypeError(f"path must be of Gaussian and masked paths, got {path!r:.80}")
    if len(shape) != 1:
        raise ValueError(f"event_shape of a Gaussian part must be (D,), got {shape}")
    if start is None:
        start = jnp.zeros(shape), jnp.full(shape, path.prior_variance)
    if not isinstance(start, tuple) or len(start) != 2:
        raise TypeError(f"start must be moments in the form of {path!r:.60}, got {start!r:.80}")
    mean, variance = start
    mean, variance = jnp.asarray(mean, float), jnp.asarray(variance, float)
    for name, value in (("mean", mean), ("variance", variance)):
        if value.shape != shape:
            raise ValueError(f"start.{name} must have shape {shape}, got {value.shape}")
    return (_Part(path, shape, mean, jnp.max(variance)),)
