"""Tempered chains from wide starts, by a sequential Monte Carlo sampler, and moves that keep exp(-E)."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, importance, random, summation
from egm.evidence._kernels import moves
from egm.evidence._leaves import Flat, is_shape, parts_of
from egm.typing import Array, Energy, Key, Path, State

__all__ = ["Chains", "moved", "tempered_chains"]

_NUM_WIDTHS = 3
_NUM_STARTS = 64  # rounds of draws of starts at most
_NUM_LAST = 2  # levels at b = 1 after the full energy is reached


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
    max_levels: int | Array = 300,
    ess_target: float = 0.9,
    gradient: bool = True,
) -> Chains:
    """Populations of chains from widely spread starts to the target, by a sequential Monte Carlo sampler.

    Every population starts from p_0, an isotropic normal distribution of one of three widths from that of
    `start` to `widen` times it (tokens: uniform), and moves along p_0^(1 - b) exp(-b E), b from 0 to 1 in
    levels of which each keeps an ESS of `ess_target`. A level is resampling and `num_moves` rounds of
    Metropolis-adjusted moves: Langevin at a random step size (a random walk without `gradient`),
    differences of other chains, exchanges of coordinates between two chains, and for tokens L proposals
    of one site, or all of a colour at once where the energy offers `colouring` and cheap conditionals.
    Populations are independent of each other and of the sampler, and use nothing that it has learned.
    Tokens alone have one width.

    Args:
      key: a typed key.
      energy: E, differentiable where `gradient`; NaN and -inf count as +inf.
      path: a Gaussian path, one of tokens or a product of them: says which parts are tokens, V, the space.
      event_shape: as for `make_iteration`.
      start: moments in the path's form (`egm.typing.Moments`; None for tokens), about where the target
        is and how wide, such as `Moments(scales.center, data_scale^2)`; or an `egm.heads.NormalMixture` of
        places that are known, such as minima with the inverse Hessians there. None: the path's own prior.
      widen: the widest p_0 over the widest coordinate of `start`.
      num_groups: G, populations of each width.
      num_chains: C, chains of a population, an even number.
      num_moves: rounds of moves a level, and of two more at the end.
      max_levels: levels at most; may be traced.
      ess_target: in (0, 1).
      gradient: whether E has a useful gradient.

    Returns:
      Chains.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.

    Source: Del Moral, Doucet and Jasra, "Sequential Monte Carlo samplers" (2006); ter Braak (2006) for
    the differences; Liang and Wong (2001) for the exchanges.

    Examples:
      >>> energy = egm.energies.GaussianMixture(means=((-3.0,), (3.0,)))
      >>> chains = egm.evidence.tempered_chains(
      ...     jax.random.key(0), energy, egm.paths.LinearPath(), (1,), num_groups=2, num_chains=64
      ... )
      >>> chains.x.shape, bool(chains.reached.all())  # three widths of two populations of 64
      ((384, 1), True)
    """
    checks.one_key(key)
    checks.function(energy, "energy")
    widen = checks.positive_float(widen, "widen")
    for name, value, least in (
        ("num_groups", num_groups, 2),
        ("num_chains", num_chains, 4),
        ("num_moves", num_moves, 1),
    ):
        checks.positive_int(value, name, least)
    if not isinstance(max_levels, jax.Array):
        checks.positive_int(max_levels, "max_levels")
    if num_chains % 2:
        raise ValueError(f"num_chains must be even, got {num_chains}")
    ess_target = checks.below_one(ess_target, "ess_target")
    checks.flag(gradient, "gradient")
    parts = parts_of(path, event_shape, start)
    flat = Flat(parts, jax.tree.structure(event_shape, is_leaf=is_shape), energy)
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

    Examples:
      >>> energy = egm.energies.GaussianMixture(means=((-3.0,), (3.0,)))
      >>> x = energy.sample(jax.random.key(0), 64)
      >>> x, e = egm.evidence.moved(jax.random.key(1), energy, egm.paths.LinearPath(), x, num_rounds=2)
      >>> x.shape, e.shape
      ((64, 1), (64,))
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
    flat = Flat(parts_of(path, event_shape, start), treedef, energy)
    leaves = [checks.as_array(leaf, "states") for leaf in leaves]
    leaves, e, _ = moves(flat, gradient, key, leaves, flat.energy(leaves), jnp.ones(()), num_rounds)
    return flat.unflatten(leaves), e


def _population(flat, num_chains, num_moves, max_levels, ess_target, gradient, width, key):
    """(leaves [C, ...], log Z, acceptance, number of levels, whether b = 1, non-finite states)."""
    flat = flat.widened(width)
    k_start, k_run = jax.random.split(key)
    leaves, e, log_share = _starts(flat, num_chains, k_start)
    move = functools.partial(moves, flat, gradient)

    def level(carry):
        leaves, e, beta, log_z, accepted, index, last = carry
        k_resample, k_move = jax.random.split(jax.random.fold_in(k_run, index))
        slope = flat.reference(leaves) - e
        delta = _increment(slope, 1 - beta, ess_target)
        log_w = jnp.where(e == jnp.inf, -jnp.inf, delta * slope)
        log_z = summation.add(log_z, importance.log_mean_exp(log_w))
        chosen = importance.systematic(k_resample, log_w, num_chains)
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
