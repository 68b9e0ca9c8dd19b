"""The bridge between a prior and exp(-V/epsilon): its levels, the moves on it, and a pilot that tunes it.

`energymatch.likelihood` tells what it is for. At level b the target is exp(-U - b W), with U = -log p_0
and the work W = V/epsilon + log p_0. Shape letters as there: B chains on this device, K levels, G groups.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, importance, random
from egm.typing import Array, Key
from energymatch import langevin
from energymatch.langevin import methods
from energymatch.langevin.scans import fold
from energymatch.likelihood.priors import GaussianPrior, MixturePrior, Prior
from energymatch.potential import Potential, boltzmann_log_density

__all__ = [
    "Bridge",
    "Layout",
    "PILOT_ESS",
    "PILOT_MOVES",
    "PILOT_STEPS",
    "POOLED",
    "Problem",
    "TARGET_ACCEPTANCE",
    "check_bridge",
    "increment",
    "levels",
    "pilot",
    "resample",
    "tune_bridge",
]

TARGET_ACCEPTANCE = 0.57
"""Of the adjusted moves; optimal for MALA in high dimension (Roberts and Rosenthal, 1998)."""


PILOT_ESS = 0.95
"""ESS of the weights between two levels of the pilot."""


PILOT_STEPS = 1000
"""Most levels of the pilot."""


PILOT_MOVES = 4
"""Moves at each level of the pilot, each followed by an adaptation of the step size."""


POOLED = 8
"""Chains' worth of the mean acceptance in that of each component of a mixture."""


class Bridge(NamedTuple):
    """The levels between prior and model, and how far the moves at each of them go.

    Attributes:
      schedule: [K + 1] increasing levels b, 0 first and 1 last.
      step_sizes: [K] Langevin step h of the moves at schedule[1:], x - h A A^T grad E + sqrt(2 h) A
        noise, with A the scale of a `GaussianPrior`, else 1. With a `MixturePrior` of C components [K, C]:
        each has its own A and h (or [K], one h for all).
    """

    schedule: Array
    step_sizes: Array


@dataclasses.dataclass(frozen=True)
class Problem:
    """Potential, temperature and prior of a bridge, in the coordinates z that the moves are made in.

    x = mean + A z for a `GaussianPrior`, so that its covariance preconditions the moves; else x = z. The
    densities stay those of x: weights need ratios only.

    With a `MixturePrior` z = x too, but each move is made in the coordinates of one component c, drawn by
    its responsibility r_c(x) = w_c N_c(x) / p_0(x). Given c the target is r_c times the level's density,

      r_c(x) p_0(x) exp(-b W(x)) = w_c N_c(x) exp(-b W(x)),

    the level's with one component in the place of the mixture, and the adjusted move keeps it, with any
    step size that depends on c. Drawing c, moving and forgetting c is then in detailed balance with the
    level's density itself (sum over c of balanced flows): modes of any widths each get their own moves.
    """

    potential: Potential
    epsilon: float
    prior: Prior

    def __post_init__(self):
        checks.function(self.potential, "potential")
        if isinstance(self.prior, type) or not isinstance(self.prior, Prior):
            raise TypeError(f"prior must have sample and log_density, got {self.prior!r}")
        checks.positive_float(self.epsilon, "epsilon")

    def event(self, z: Array) -> Array:
        """[B, *event] x of the coordinates z."""
        prior = self.prior
        return prior.mean[None] + prior.stretch(z) if isinstance(prior, GaussianPrior) else z

    def coordinates(self, x: Array) -> Array:
        """[B, *event] z of the states x."""
        prior = self.prior
        if isinstance(prior, MixturePrior) and x.shape[1:] != prior.mean.shape[1:]:
            raise ValueError(f"x must have event shape {prior.mean.shape[1:]}, got {x.shape[1:]}")
        if not isinstance(prior, GaussianPrior):
            return x
        if x.shape[1:] != prior.mean.shape:
            raise ValueError(f"x must have event shape {prior.mean.shape}, got {x.shape[1:]}")
        return prior.unstretch(x - prior.mean[None])

    def start(self, keys: Array) -> langevin.LangevinState:
        """[B] exact samples of the prior, one for each key."""
        x = self.prior.sample(keys, keys.shape[0])
        x = checks.wide(checks.float_array(x, "prior.sample", min_ndim=1))
        if x.shape[0] != keys.shape[0]:
            raise ValueError(f"prior.sample must return {keys.shape[0]} states, got shape {x.shape}")
        return self.init(self.coordinates(x))

    def init(self, z: Array) -> langevin.LangevinState:
        """Chains at z; their `value` is the work W, their `energy` -log p_0 (None with a mixture)."""
        energies = () if isinstance(self.prior, MixturePrior) else (self._base,)
        return langevin.init(self._work, z, energies=energies)

    def move(
        self, keys: Array, state: langevin.LangevinState, b: Array, step_size: Array, num_moves: int
    ) -> tuple[langevin.LangevinState, tuple[Array, Array]]:
        """(state, ([B] mean acceptance, [B] proposals that were not finite)) of moves that keep level b."""

        def body(state, index):
            state, acceptance, bad, _ = self.step(fold(keys, index), state, b, step_size)
            return state, (acceptance, bad)

        state, (acceptance, bad) = jax.lax.scan(body, state, np.arange(num_moves))
        return state, (jnp.mean(acceptance, axis=0), jnp.sum(bad, axis=0))

    def step(
        self, keys: Array, state: langevin.LangevinState, b: Array, step_size: Array
    ) -> tuple[langevin.LangevinState, Array, Array, Array]:
        """One move: (state, [B] acceptance, [B] proposals not finite, [B] the component that made it)."""
        alive = jnp.isfinite(state.value)
        if isinstance(self.prior, MixturePrior):
            new, info, labels = self._step_in_component(self.prior, keys, state, b, step_size)
        else:
            new, info = _adjusted(keys, state, b, step_size, self._work, self._base)
            labels = jnp.zeros(alive.shape, jnp.int32)
        # A chain outside the support stays there with no weight: that is no proposal's fault.
        return new, info.acceptance, jnp.where(alive, info.num_nonfinite, 0), labels

    def _step_in_component(self, prior: MixturePrior, keys, state, b, step_size):
        label_keys, move_keys = random.split(keys)
        log_joint = prior.log_joint(state.x)
        labels = random.per_example(jax.random.categorical, label_keys, log_joint).astype(jnp.int32)
        frames = prior.frames(labels)
        h = step_size if step_size.ndim == 0 else step_size[labels]
        z = frames.coordinates(state.x)
        # -log of the component's density, its constant left out: the test needs differences only.
        base = lambda z: 0.5 * jnp.sum(z**2, axis=tuple(range(1, z.ndim)))
        local = langevin.LangevinState(z, state.value, frames.pull(state.gradient), base(z), z)
        local, info = _adjusted(move_keys, local, b, h, lambda z: self._work(frames.event(z)), base)
        # States that stay are kept as they were, so that coordinates never round them away.
        moved = info.accepted.reshape(-1, *[1] * (z.ndim - 1))
        x = jnp.where(moved, frames.event(local.x), state.x)
        gradient = jnp.where(moved, frames.push(local.gradient), state.gradient)
        return langevin.LangevinState(x, local.value, gradient, None, None), info, labels

    @property
    def num_step_sizes(self) -> int | None:
        """C of a mixture, one step size for each component; None for a single one."""
        return self.prior.log_weights.shape[0] if isinstance(self.prior, MixturePrior) else None

    def _base(self, z: Array) -> Array:
        return -self._log_density(self.event(z))

    def _work(self, z: Array) -> Array:
        x = self.event(z)
        return self._log_density(x) - boltzmann_log_density(self.potential, x, self.epsilon)

    def _log_density(self, x: Array) -> Array:
        return checks.model_output(self.prior.log_density(x), "prior.log_density", x.shape[:1])


def _adjusted(
    keys: Array, state: langevin.LangevinState, b: Array, h: Array, work: Potential, base: Potential
) -> tuple[langevin.LangevinState, langevin.LangevinInfo]:
    """A move of MALA at level b: at the temperature 1/b, with `base` in nats."""
    settings = methods.Settings(work, 1 / b, (base,), langevin.MALA(), None)
    return methods.move(keys, state, jnp.zeros(()), b * h, settings)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Chains of this device in whole groups: `split` makes [B, ...] into [groups, size, ...]."""

    groups: int
    size: int

    @classmethod
    def of(cls, num_chains: int, num_groups: int, axis_name: str | None) -> Layout:
        """The layout of N chains in G groups over the devices of an axis."""
        num_groups = checks.positive_int(num_groups, "num_groups", minimum=2)
        num_chains = checks.positive_int(num_chains, "num_chains", minimum=2 * num_groups)
        devices = collectives.axis_size(axis_name)
        if num_chains % num_groups:
            raise ValueError(f"num_chains must be a multiple of num_groups = {num_groups}, got {num_chains}")
        if num_groups % devices:
            raise ValueError(f"num_groups must be a multiple of the {devices} devices, got {num_groups}")
        return cls(num_groups // devices, num_chains // num_groups)

    @property
    def chains(self) -> int:
        """B."""
        return self.groups * self.size

    def split(self, a: Array) -> Array:
        """[groups, size, ...]."""
        return a.reshape(self.groups, self.size, *a.shape[1:])


def increment(state: langevin.LangevinState, b_from: Array, b: Array) -> Array:
    """[B] log-weight -(b - b_from) W of the step between two levels; -inf where W is no number."""
    log_w = -(b - b_from) * state.value
    return jnp.where(importance.nonfinite(-state.value), -jnp.inf, log_w)


def resample(keys: Array, weights: Array, where: Array, state: Any) -> Any:
    """Systematic resampling of the groups in `where`; the others keep their chains.

    Args:
      keys: [groups], one a group.
      weights: [groups, size] normalised.
      where: [groups] bool.
      state: pytree of [groups * size, ...].
    """
    groups, size = weights.shape
    offset = jax.vmap(lambda k: jax.random.uniform(k, (), weights.dtype))(keys)
    # In (0, 1]: the first place whose cumulative weight reaches a point has a weight above zero.
    points = (jnp.arange(1, size + 1, dtype=weights.dtype)[None] - offset[:, None]) / size
    cumulative = jnp.cumsum(weights, axis=1)
    total = jnp.where(where, cumulative[:, -1], 1.0)
    pick = jax.vmap(jnp.searchsorted)(cumulative / total[:, None], points)
    own = jnp.broadcast_to(jnp.arange(size)[None], pick.shape)
    index = jnp.where(where[:, None], jnp.minimum(pick, size - 1), own)
    index = (index + size * jnp.arange(groups)[:, None]).reshape(-1)
    return jax.tree.map(lambda a: a[index], state)


def levels(bridge: Bridge) -> tuple[np.ndarray, Array, Array, Array]:
    """What a scan over a bridge takes: index, level before, level, step size, each [K]."""
    return np.arange(bridge.step_sizes.shape[0]), bridge.schedule[:-1], bridge.schedule[1:], bridge.step_sizes


def check_bridge(bridge: Any, num_step_sizes: int | None = None) -> Bridge:
    """The bridge, checked: shapes, and where concrete that levels increase from 0 to 1."""
    if not isinstance(bridge, Bridge):
        raise TypeError(f"bridge must be a Bridge(schedule, step_sizes), got {bridge!r}")
    schedule = checks.float_array(bridge.schedule, "bridge.schedule")
    step_sizes = checks.float_array(bridge.step_sizes, "bridge.step_sizes")
    if schedule.ndim != 1 or schedule.size < 2:
        raise ValueError(f"bridge.schedule must be a vector of at least 2 levels, got shape {schedule.shape}")
    shape = (schedule.size - 1,)
    allowed = (shape,) if num_step_sizes is None else (shape, (*shape, num_step_sizes))
    if step_sizes.shape not in allowed:
        expected = " or ".join(map(str, allowed))
        raise ValueError(f"bridge.step_sizes must have shape {expected}, got shape {step_sizes.shape}")
    value = checks.concrete(schedule)
    if value is not None and not (
        value[0] == 0 < value[1] and value[-1] == 1 and np.all(np.diff(value) >= 0)
    ):
        raise ValueError(f"bridge.schedule must increase from 0 to 1, got {value}")
    value = checks.concrete(step_sizes)
    if value is not None and not np.all((value > 0) & np.isfinite(value)):
        raise ValueError(f"bridge.step_sizes must be finite and positive, got {value}")
    return Bridge(schedule, step_sizes)


def tune_bridge(
    key: Key,
    potential: Potential,
    *,
    epsilon: float,
    prior: Prior,
    num_chains: int = 1024,
    num_steps: int = 200,
    num_groups: int = 16,
    axis_name: str | None = None,
) -> Bridge:
    """Levels and step sizes found by a pilot run.

    The pilot goes from b = 0 to 1 by as large a level as leaves the weights of its chains an ESS of
    PILOT_ESS (by bisection), resamples, moves, and pulls the step size towards TARGET_ACCEPTANCE. So its
    levels are equally far apart in the distance that costs AIS accuracy; K + 1 of them follow by
    interpolation. It stops after PILOT_STEPS levels: the last one is then b = 1, and the error that
    `log_partition` reports shows it. Against equally spaced levels at K = 200 (root mean square errors of
    log Z): a steep quartic well from a prior 20 times as wide .05 for .28; two far modes and a
    64-dimensional Gaussian, whose priors fit them, no difference.

    Args, Raises: as `log_partition`; `num_steps` is K. The result is the same on all devices.
    """
    problem = Problem(potential, epsilon, prior)
    layout = Layout.of(num_chains, num_groups, axis_name)
    num_steps = checks.positive_int(num_steps, "num_steps")
    return pilot(random.example_keys(key, layout.chains, axis_name), problem, layout, num_steps, axis_name)


def pilot(keys: Array, problem: Problem, layout: Layout, num_steps: int, axis_name: str | None) -> Bridge:
    """`tune_bridge` of checked arguments, with [B] keys."""
    key_prior, key_moves, key_groups = random.split(keys, 3)
    key_groups = layout.split(key_groups)[:, 0]
    state = problem.start(key_prior)
    dtype = state.value.dtype
    gather = lambda a: collectives.all_gather(a, axis_name)

    def body(carry):
        index, b_from, h, state, found = carry
        b = _next_level(gather(state.value), b_from)
        b = jnp.where(index == PILOT_STEPS - 1, jnp.ones_like(b), b)
        weights = importance.snis(layout.split(increment(state, b_from, b)), axis=1).weights
        state = resample(fold(key_groups, index), weights, jnp.sum(weights, axis=1) > 0, state)

        def adapt(carry, move):
            state, h = carry
            state, acceptance, _, labels = problem.step(fold(key_moves, move), state, b, h)
            return (state, h * jnp.exp(_excess(gather(acceptance), gather(labels), h))), None

        (state, h), _ = jax.lax.scan(adapt, (state, h), index * PILOT_MOVES + jnp.arange(PILOT_MOVES))
        found = Bridge(found.schedule.at[index + 1].set(b), found.step_sizes.at[index].set(h))
        return index + 1, b, h, state, found

    first = _first_step(problem, layout, state, gather)
    empty = Bridge(jnp.zeros(PILOT_STEPS + 1, dtype), jnp.ones((PILOT_STEPS, *first.shape), dtype))
    start = (jnp.zeros((), jnp.int32), jnp.zeros((), dtype), first, state, empty)
    start = collectives.varying_like(start, jax.eval_shape(body, start))
    count, _, _, _, found = jax.lax.while_loop(lambda carry: carry[1] < 1, body, start)
    at = jnp.linspace(0.0, 1.0, num_steps + 1, dtype=dtype) * count.astype(dtype)
    places = jnp.arange(PILOT_STEPS + 1, dtype=dtype)
    schedule = jnp.interp(at, places, found.schedule).at[-1].set(1.0)
    log_h = jnp.log(found.step_sizes)
    between = lambda column: jnp.interp(at[1:], places[1:], column)
    log_h = between(log_h) if log_h.ndim == 1 else jax.vmap(between, 1, 1)(log_h)
    return Bridge(schedule, jnp.exp(log_h))


def _excess(acceptance: Array, labels: Array, h: Array) -> Array:
    """Mean acceptance [N] above the target, of all chains or, where h is [C], of each component's.

    A component's mean is drawn to that of all by as much as POOLED chains weigh: few say little.
    """
    excess = acceptance - TARGET_ACCEPTANCE
    if h.ndim == 0:
        return jnp.mean(excess)
    mine = (labels[:, None] == jnp.arange(h.size)[None]).astype(excess.dtype)
    total = jnp.sum(mine * excess[:, None], axis=0) + POOLED * jnp.mean(excess)
    return total / (jnp.sum(mine, axis=0) + POOLED)


def _first_step(problem: Problem, layout: Layout, state: langevin.LangevinState, gather: Any) -> Array:
    """MALA's step size for the prior: its variance times D^(-1/3); in a component's coordinates that is 1."""
    if problem.num_step_sizes is not None:
        size = np.prod(state.x.shape[1:])
        return jnp.full(problem.num_step_sizes, size ** (-1 / 3), state.value.dtype)
    z = layout.split(state.x)
    # Neighbours within a group are independent: half their squared distance is the variance.
    squares = 0.5 * (z - jnp.roll(z, 1, axis=1)) ** 2
    variance = jnp.mean(gather(jnp.mean(squares.reshape(layout.chains, -1), axis=1)))
    return (variance * np.prod(z.shape[2:]) ** (-1 / 3)).astype(state.value.dtype)


def _next_level(work: Array, b: Array) -> Array:
    """The next level after b by the work [N] of equally weighted chains: see `tune_bridge`."""
    alive = ~importance.nonfinite(-work) & (work < jnp.inf)
    work = jnp.where(alive, work, jnp.inf)
    count = jnp.maximum(jnp.sum(alive), 1)

    def ess(log_step):
        # Chains of no density weigh nothing whatever the step: the ESS is that of the others.
        log_w = jnp.where(alive, -jnp.exp(log_step) * jnp.where(alive, work, 0.0), -jnp.inf)
        return importance.snis(log_w).ess * work.size / count

    def halve(bounds, _):
        low, high = bounds
        middle = 0.5 * (low + high)
        enough = ess(middle) >= PILOT_ESS
        return (jnp.where(enough, middle, low), jnp.where(enough, high, middle)), None

    most = jnp.log1p(-b)
    (low, _), _ = jax.lax.scan(halve, (jnp.full_like(most, -80.0), most), None, length=30)
    # Where rounding would stop it, a level still moves on.
    smaller = jnp.maximum(b + jnp.exp(low), b * (1 + 4 * jnp.finfo(b.dtype).eps))
    return jnp.where(ess(most) >= PILOT_ESS, 1.0, jnp.minimum(smaller, 1.0))
