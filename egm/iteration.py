"""One outer iteration of EGM as a pure function: simulate, weigh, insert, take n gradient steps.

`make_iteration` returns (init, step), as optax does. Nothing crosses to the host inside a step, and the
annealed temperature is part of the state, so that it changes without retracing.
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egm import buffer as buffers
from egm import checks, collectives, importance, metrics, random, rejuvenation, training
from egm.annealing import (
    LEVELS,
    AnnealedEnergy,
    Item,
    LevelRule,
    annealed_log_weights,
    choose_level,
    cut_largest,
)
from egm.simulate import draw_prior, path_log_weights, simulate
from egm.typing import (
    Algorithm,
    Array,
    CountedProcess,
    Energy,
    Key,
    Moments,
    Path,
    ProbingAlgorithm,
    Process,
    PyTree,
    State,
)

__all__ = ["IterationConfig", "IterationState", "make_iteration"]

_NUM_PROBED = 32
"""States of the buffer around which an iteration asks whether the energy is smooth."""
_BLOCKS = 4
"""Of the buffer's moves in an iteration: each after a choice of the level and a resampling."""


@dataclasses.dataclass(frozen=True)
class IterationConfig:
    """Sizes of one outer iteration; all are totals over all devices.

    Attributes:
      num_simulated: states simulated and inserted in an iteration.
      buffer_size: capacity of the buffer.
      num_gradient_steps: gradient steps an iteration.
      batch_size: terminal states drawn for each of them.
      num_times: steps of the simulation; on the any-order process the number of sites.
      ema_decay: of the parameters that simulate and give targets.
      weight_clip: drawing weights are cut at this multiple of their mean; None for no cut.
      ess_target: anneal: each iteration trains at the largest level <= 1 of the energy at which the
        buffer's ESS is at least this fraction of `num_simulated`; None trains at `state.level`. A level
        that no longer meets it is held where a few weights alone are to blame (`make_iteration`).
      fit_prior: give the prior the moments of the buffer at the level trained at (continuous parts).
      num_moves: resample the buffer by its weights and move its states by this many rounds of `egm.moves`
        an iteration, at the level trained at, which raises the level in up to four steps an iteration; 0
        leaves the states as they were simulated.
    """

    num_simulated: int = 256
    buffer_size: int = 2560
    num_gradient_steps: int = 100
    batch_size: int = 256
    num_times: int = 100
    ema_decay: float = 0.99
    weight_clip: float | None = 20.0
    ess_target: float | None = 0.2
    fit_prior: bool = True
    num_moves: int = 0

    def __post_init__(self):
        for name in (
            "num_simulated",
            "buffer_size",
            "num_gradient_steps",
            "batch_size",
            "num_times",
        ):
            checks.positive_int(getattr(self, name), name)
        if self.buffer_size < self.num_simulated:
            raise ValueError(
                f"buffer_size must be at least num_simulated = {self.num_simulated}, got {self.buffer_size}"
            )
        for name in ("weight_clip", "ess_target"):
            if getattr(self, name) is not None:
                checks.positive_float(getattr(self, name), name)
        checks.flag(self.fit_prior, "fit_prior")
        checks.below_one(self.ema_decay, "ema_decay")
        checks.positive_int(self.num_moves, "num_moves", 0)
        if self.weight_clip is not None and self.weight_clip < 1:
            raise ValueError(f"weight_clip must be at least 1, got {self.weight_clip}")


class IterationState(NamedTuple):
    """State of the outer loop.

    Attributes:
      train: parameters, EMA, optimiser.
      buffer: of `Item`s, the same on every device.
      level: factor on the energy in [0, 1], the annealed inverse temperature.
      moments: those that the prior is drawn with, in the path's form.
      num_energy_evaluations: float32, evaluations of E so far.
      num_held: int32, how many iterations in a row the level was held though it missed the ESS target.
      smooth: bool, False once the energy was found to jump, or its gradient to be none of it.
      log_step: log of the step size of the buffer's moves.
    """

    train: training.TrainState
    buffer: buffers.Buffer
    level: Array
    moments: Any
    num_energy_evaluations: Array
    num_held: Array
    smooth: Array
    log_step: Array


def make_iteration(
    algorithm: Algorithm,
    process: Process,
    energy: Energy,
    optimizer: optax.GradientTransformation,
    config: IterationConfig,
    *,
    event_shape: Any,
    reference: Any = None,
    axis_name: str | None = None,
) -> tuple[Callable[[PyTree], IterationState], Callable[..., tuple[IterationState, dict[str, Array]]]]:
    """The outer loop of EGM for any algorithm, process and energy.

    Args:
      algorithm: what to train.
      process: what simulates; shares the algorithm's path.
      energy: E, or `energy(energy_params, x)` where `step` gets energy_params.
      optimizer: an optax transformation.
      config: sizes.
      event_shape: shape of one state without batch axes (a pytree of shapes for a product).
      reference: moments in the path's form of a normal distribution that is about as wide as the
        target: annealing goes from it to E, along level E + (1 - level) reference. Without one it goes
        along level E, which on R^d has no normalisable beginning.
      axis_name: mapped axis that splits simulations and batches over devices; the buffer is replicated.

    Returns:
      (init, step): `state = init(params)`; `state, metrics = step(key, state, energy_params=None)`.
      Metrics are scalars: loss, grad_norm, skipped, of the iteration's gradient steps (means); those of
      `egm.metrics.summarize` of the simulated states at the full energy (log_z, log_z_error, ess, ...), but
      that log_z_error is inf and reliable False before the annealing has reached level 1
      (`metrics.reason` says so); buffer_ess (fraction of num_simulated) and clipped_mass at the level
      trained at; level; num_nonfinite; num_folded, steps that were refused because a flow's map is not
      injective there (make steps smaller);
      ess_alarm = 1 where the level trained at misses `ess_target`; num_held, for how many iterations in
      a row it was kept nevertheless; jump_alarm = 1 once the energy was found to jump, so that targets
      do without its gradient; num_energy_evaluations; where the buffer is moved move_acceptance and
      generation_share, as how many of its own states the new generation counted.

    Moved states (`config.num_moves`, `egm.rejuvenation`): the buffer is resampled by its clipped weights,
    each copy with what is left of its weight, and moved by kernels that keep the annealed target, so that
    weights stay proper at every level. A generation whose ESS is below .3 counts for that much less beside
    them. Raise `ess_target` with it, which is a fraction of a generation: at .2 a buffer of five generations
    goes on with 4% of its states.

    Which level is trained at: the largest that meets `ess_target`, never below the present one because
    of a few weights. Where the present one fails, its ESS is taken again with as many of the largest
    weights as the buffer holds generations cut to the next; if it passes so, it is held, and the states
    are drawn by the weights that are cut. Else the largest lower level that meets the target takes over.
    Where none does, it is held until the buffer has been renewed; then the level of the largest ESS takes
    over, so that a sampler that has degraded starts again lower.

    Raises:
      ValueError: the paths differ, a size does not divide over the devices, or `num_times` steps are too
        few for the process to finish.

    Examples:
      >>> import optax
      >>> energy = lambda x: -jnp.sum(x == jnp.roll(x, 1, axis=-1), axis=-1).astype(float)  # tokens [N, 4]
      >>> path, net = egm.paths.MaskedPath(2), egm.networks.MLPDenoiser(2, width=8, depth=1)
      >>> algorithm = egm.algorithms.Weighted(path, egm.heads.DenoiserHead(path), net.apply)
      >>> config = egm.iteration.IterationConfig(num_simulated=128, num_times=4, num_gradient_steps=10)
      >>> init, step = egm.iteration.make_iteration(
      ...     algorithm,
      ...     egm.processes.AnyOrderProcess(path),
      ...     egm.energies.WithConditionals(energy, vocab_size=2),
      ...     optax.adam(2e-3),
      ...     config,
      ...     event_shape=(4,),
      ... )
      >>> state = init(net.init(jax.random.key(0), jnp.zeros((1, 4), jnp.int32)))
      >>> state, info = jax.jit(step)(jax.random.key(1), state)
      >>> bool(info["ess"] > 0), bool(jnp.isfinite(info["log_z"]))
      (True, True)
    """
    if not all(hasattr(algorithm, name) for name in ("path", "generator", "loss", "draws_by_weight")):
        raise TypeError(f"algorithm must be an Algorithm, got {algorithm!r:.80}")
    checks.instance(process, Process, "process")
    checks.function(energy, "energy")
    training.check_optimizer(optimizer)
    checks.instance(config, IterationConfig, "config")
    event_shape = _as_tuples(event_shape)
    if process.path != algorithm.path:
        raise ValueError(f"process must share the algorithm's path {algorithm.path}, got {process.path}")
    _check_event(algorithm.path, event_shape, reference)
    if isinstance(process, CountedProcess):
        try:
            process.check_steps(config.num_times, event_shape)
        except ValueError as error:
            raise ValueError(f"config.num_times is too small: {error}") from error
    _check_energy(energy, algorithm.path, event_shape)
    run = _Run(algorithm, process, energy, optimizer, config, event_shape, reference, axis_name)
    return run.init, run.step


@dataclasses.dataclass(frozen=True, eq=False)
class _Run:
    """What `make_iteration` was given, checked; fields as its arguments."""

    algorithm: Algorithm
    process: Process
    energy: Energy
    optimizer: optax.GradientTransformation
    config: IterationConfig
    event_shape: Any
    reference: Any
    axis_name: str | None

    @property
    def path(self) -> Path:
        return self.algorithm.path

    @property
    def rule(self) -> LevelRule:
        return LevelRule(self.config.ess_target, self.config.num_simulated, self.config.buffer_size)

    @property
    def levels(self) -> np.ndarray:
        """Those that the annealing may take."""
        return LEVELS if self.reference is None else np.concatenate([np.zeros(1, np.float32), LEVELS])

    def init(self, params: PyTree) -> IterationState:
        shapes = jax.eval_shape(lambda: self.path.sample_prior(jax.random.key(0), self.event_shape))
        scalar = jnp.zeros(())
        items = buffers.init(self.config.buffer_size, Item(shapes, scalar, scalar, scalar))
        level = jnp.ones(()) if self.config.ess_target is None else jnp.asarray(self.levels[0])
        train = training.init_train_state(params, self.optimizer)
        count = jnp.zeros((), jnp.int32)
        moments = self._first_moments()
        return IterationState(
            train, items, level, moments if self.config.fit_prior else None, jnp.zeros(()), count,
            jnp.ones((), bool), _first_step(moments),
        )  # fmt: skip

    def _first_moments(self):
        """The reference's, else those that make the prior the path's own."""
        if self.reference is not None:
            return jax.tree.map(lambda a: jnp.asarray(a, float), self.reference)
        is_shape = lambda s: isinstance(s, tuple)
        x = jax.tree.map(lambda d: jnp.zeros((1, *d)), self.event_shape, is_leaf=is_shape)
        return self.path.moments(x, jnp.zeros(1))

    def step(
        self, key: Key, state: IterationState, energy_params: Any = None
    ) -> tuple[IterationState, dict[str, Array]]:
        energy: Any = self.energy
        bound = energy if energy_params is None else lambda x: energy(energy_params, x)
        self._check_shards()
        k_prior, k_simulate, k_train, k_probe = random.split(key, 4)
        item, num_folded = self._simulated(k_prior, k_simulate, state, bound)
        inserted = self._inserted(state, item)
        buffer, log_step, extra = inserted.buffer, state.log_step, {}
        if self.config.num_moves:
            buffer, at, log_step, extra = self._moved(random.derive(key, "moves"), inserted, state, bound)
        else:
            at = self._level(buffer, state.level, state.num_held)
        chosen = self._chosen(buffer, at)
        smooth, num_probed = self._smooth(k_probe, state.smooth, buffer, chosen, bound)
        target = self._annealed(bound, chosen.level, smooth)
        train, history = self._trained(k_train, state.train, buffer, chosen.probabilities, target)
        evaluations = state.num_energy_evaluations + self._evaluations() + num_probed
        report = (
            _report(history, inserted.summary, chosen)
            | extra
            | {
                "num_folded": num_folded,
                "jump_alarm": 1.0 - smooth,
                "num_energy_evaluations": evaluations,
            }
        )
        new = IterationState(
            train, buffer, chosen.level, chosen.moments, evaluations, chosen.num_held, smooth, log_step
        )
        return new, report

    def _check_shards(self):
        shards = collectives.axis_size(self.axis_name)
        for name in ("num_simulated", "batch_size"):
            size = getattr(self.config, name)
            if size % shards:
                raise ValueError(f"{name} must divide over {shards} devices, got {size}")
        if self.config.num_moves and self.config.buffer_size % shards:
            size = self.config.buffer_size
            raise ValueError(f"buffer_size must divide over {shards} devices to be moved, got {size}")

    def _here(self, size: int) -> int:
        """Of a total, what this device has."""
        return size // collectives.axis_size(self.axis_name)

    def _annealed(self, bound, level, smooth=None) -> AnnealedEnergy:
        about = None
        if self.reference is not None:
            about = lambda x: self.path.reference_energy(x, self.reference)
        return AnnealedEnergy(bound, level, about, smooth)

    def _grid(self):
        return self.process.times(self.config.num_times)

    def _simulated(self, k_prior, k_run, state, bound) -> tuple[Item, Array]:
        """(the states that all devices have simulated, how many steps a flow refused)."""
        path, axis, num = self.path, self.axis_name, self._here(self.config.num_simulated)
        x_0 = draw_prior(random.example_keys(k_prior, num, axis), path, self.event_shape, state.moments)
        keys = random.example_keys(k_run, num, axis)
        energy = self._annealed(bound, state.level)
        generator = self.algorithm.generator(training.average(state.train), energy)
        trajectory = simulate(keys, self.process, generator, x_0, self._grid())
        log_path = path_log_weights(lambda x: jnp.zeros(num), path, trajectory)
        item = self._item(path.data_state(trajectory.x_1), bound)._replace(log_path=log_path)
        folded = jnp.zeros((), jnp.int32)
        if trajectory.num_folded is not None:
            folded = collectives.psum(jnp.sum(trajectory.num_folded), axis)
        return collectives.all_gather(item, axis), folded

    def _item(self, x_1, bound) -> Item:
        """What is known of states [N, ...], but for their log_path."""
        num = jax.tree.leaves(x_1)[0].shape[0]
        value = checks.model_output(bound(x_1), "energy", (num,))
        about = jnp.zeros(num)
        if self.reference is not None:
            about = self.path.reference_energy(x_1, self.reference)
        return Item(x_1, value, about, jnp.zeros_like(value))

    def _level(self, buffer, level, num_held) -> _Level:
        """The level to train at, by the weights of the buffer."""
        return _Level(*choose_level(buffer, level, num_held, self.rule, self.levels))

    def _drawn(self, buffer, at: _Level) -> tuple[Array, Array]:
        """(probabilities by the clipped weights at the level, the mass that was clipped)."""
        weights = annealed_log_weights(buffer, at.level)
        # Where a few states outweigh all others, a multiple of the mean weight is no cut for them.
        cut, cut_mass = cut_largest(weights, self.rule)
        weights = jnp.where(at.alarm > 0, cut, weights)
        probabilities, clipped = importance.clipped_probabilities(weights, self.config.weight_clip)
        return probabilities, 1 - (1 - clipped) * (1 - jnp.where(at.alarm > 0, cut_mass, 0.0))

    def _chosen(self, buffer, at: _Level) -> _Chosen:
        """What to train with at the level."""
        probabilities, clipped = self._drawn(buffer, at)
        # Clipped weights: the moments must not hang on a single state.
        moments = None
        if self.config.fit_prior:
            moments = self.path.moments(buffer.items.x_1, probabilities)
        if not self.algorithm.draws_by_weight:
            occupied = buffers.filled(buffer)
            probabilities = occupied / jnp.maximum(jnp.sum(occupied), 1)
        return _Chosen(at.level, probabilities, moments, at.num_held, at.ess, at.alarm, clipped)

    def _inserted(self, state, item: Item) -> _Inserted:
        """The states of finite weight in the buffer, and what they count there."""
        log_weights = item.log_path - item.energy
        valid = ~importance.nonfinite(log_weights) & jnp.isfinite(item.log_path)
        share = jnp.ones(())
        if self.config.num_moves:
            there = item.log_path - state.level * item.energy - (1 - state.level) * item.reference
            share = rejuvenation.generation_share(jnp.where(valid, there, -jnp.inf))
            item = item._replace(log_path=item.log_path + jnp.log(share))
        safe = jax.tree.map(lambda a: jnp.where(checks.expanded(valid, a), a, jnp.zeros((), a.dtype)), item)
        old = jnp.minimum(state.buffer.num_added, self.config.buffer_size - jnp.sum(valid))
        count = old + share * jnp.sum(valid)
        return _Inserted(buffers.add(state.buffer, safe, valid), metrics.summarize(log_weights), share, count)

    def _moved(self, key, inserted: _Inserted, state, bound):
        """(buffer, level, log of the step size, report) after resampling and moves at ever higher levels."""
        num_blocks = min(_BLOCKS, self.config.num_moves)

        def block(carry, key):
            buffer, at, log_step, count = carry
            k_resample, k_move = random.split(key)
            at = self._level(buffer, at.level, state.num_held)
            buffer = rejuvenation.resampled(k_resample, buffer, self._drawn(buffer, at)[0], count)
            buffer, log_step, accepted = rejuvenation.walked(
                k_move, buffer, self._annealed(bound, at.level), self.path, log_step,
                num_rounds=-(-self.config.num_moves // num_blocks),
                item_of=lambda x: self._item(x, bound), axis_name=self.axis_name,
            )  # fmt: skip
            return (buffer, at, log_step, jnp.full_like(count, self.config.buffer_size)), accepted

        none = jnp.zeros(())
        start = (
            inserted.buffer,
            _Level(state.level, none, none, state.num_held),
            state.log_step,
            inserted.count,
        )
        end, accepted = jax.lax.scan(block, start, jax.random.split(key, num_blocks))
        report = {"move_acceptance": jnp.mean(accepted), "generation_share": inserted.share}
        return *end[:3], report

    def _smooth(self, key, before, buffer, chosen, bound) -> tuple[Array, Any]:
        """(whether the gradient of E may be used, evaluations spent); the same on all devices."""
        if not isinstance(self.algorithm, ProbingAlgorithm):
            return before, 0
        k_draw, k_time, k_noise = jax.random.split(key, 3)
        places = (jnp.arange(_NUM_PROBED) + jax.random.uniform(k_draw, (_NUM_PROBED,))) / _NUM_PROBED
        probed = buffers.sample(buffer, chosen.probabilities, places).x_1
        t = _on_grid(jax.random.permutation(k_time, places), self._grid())
        keys = random.example_keys(k_noise, _NUM_PROBED)
        energy = self._annealed(bound, chosen.level)
        found, count = self.algorithm.differentiable(keys, probed, t, energy)
        return before & (found | ~(jnp.sum(chosen.probabilities) > 0)), count

    def _trained(self, key, train, buffer, probabilities, target):
        """(the state after the gradient steps, their metrics)."""
        grid = self._grid()
        # A probability of zero everywhere means nothing to learn from: no loss.
        usable = jnp.sum(probabilities) > 0

        def loss_fn(params, target_params, step_key, batch):
            del batch
            keys, u_draw, u_time = self._strata(step_key)
            x_1 = buffers.sample(buffer, probabilities, u_draw).x_1
            # Uniform on the grid of the simulation, whose steps are where the marginals change.
            t = _on_grid(u_time, grid)
            loss, extra = self.algorithm.loss(keys, params, target_params, x_1, t, target)
            return jnp.where(usable, jnp.mean(loss), 0.0), extra

        step = training.make_train_step(
            loss_fn, self.optimizer, ema_decay=self.config.ema_decay, axis_name=self.axis_name
        )
        keys = jax.random.split(key, self.config.num_gradient_steps)
        return jax.lax.scan(lambda s, k: step(s, k, None), train, keys)

    def _strata(self, key):
        """(keys, places of the draws, places of the times) of this device's part of a batch.

        Strata of draws and of times are paired at random, by a shuffle of the global batch.
        """
        size, here = self.config.batch_size, self._here(self.config.batch_size)
        keys = random.example_keys(key, here, self.axis_name)
        k_draw, k_time, k_loss = random.split(keys, 3)
        index = collectives.axis_index(self.axis_name) * here + jnp.arange(here)
        order = jax.random.permutation(key, size)[index]
        u_draw, u_time = (jax.vmap(jax.random.uniform)(k) for k in (k_draw, k_time))
        return k_loss, (index + u_draw) / size, (order + u_time) / size

    def _evaluations(self) -> int:
        """Of E in one iteration, but for the probe's."""
        config = self.config
        simulated, call, example = self.algorithm.energy_evaluations(self.energy, self.event_shape)
        shapes = jax.eval_shape(lambda: self.path.sample_prior(jax.random.key(0), self.event_shape))
        sites = sum(a.size for a in jax.tree.leaves(shapes) if jnp.issubdtype(a.dtype, jnp.integer))
        return (
            config.num_moves * config.buffer_size * (1 + sites)
            + config.num_simulated * (1 + simulated + call * config.num_times)
            + config.num_gradient_steps * config.batch_size * example
        )


class _Inserted(NamedTuple):
    """The buffer with a generation in it, the summary of its weights, what it counts, and all together."""

    buffer: buffers.Buffer
    summary: metrics.PathWeightSummary
    share: Array
    count: Array


class _Level(NamedTuple):
    """What `choose_level` returns."""

    level: Array
    ess: Array
    alarm: Array
    num_held: Array


class _Chosen(NamedTuple):
    """What to train with: level, probabilities of the buffer, the prior's moments; and what to say of it."""

    level: Array
    probabilities: Array
    moments: Any
    num_held: Array
    ess: Array
    alarm: Array
    clipped: Array


def _first_step(moments: Any) -> Array:
    """Log of a tenth of the width of the narrowest part."""
    is_record = lambda m: isinstance(m, Moments)
    found = [m.variance for m in jax.tree.leaves(moments, is_leaf=is_record) if is_record(m)]
    variance = jnp.stack([jnp.mean(v) for v in found] or [jnp.ones(())])
    return jnp.log(0.1 * jnp.sqrt(jnp.min(jnp.maximum(variance, 1e-12)))).astype(float)


def _on_grid(place: Array, grid: Array) -> Array:
    """Times at places in [0, 1] of a grid, linear in between."""
    return jnp.interp(place, jnp.linspace(0.0, 1.0, grid.size), grid)


def _report(history, summary, chosen: _Chosen) -> dict[str, Array]:
    """Before the full energy ESS and log Z are of a sampler of something else."""
    return (
        jax.tree.map(jnp.mean, history)
        | summary._asdict()
        | {
            "log_z_error": jnp.where(chosen.level < 1, jnp.inf, summary.log_z_error),
            "reliable": summary.reliable & (chosen.level >= 1),
            "level": chosen.level,
            "buffer_ess": chosen.ess,
            "clipped_mass": chosen.clipped,
            "ess_alarm": chosen.alarm,
            "num_held": chosen.num_held,
        }
    )


def _as_tuples(event_shape: Any) -> Any:
    """Shapes given as lists of ints, as tuples, which are what a shape is in a pytree of them."""
    is_shape = lambda s: isinstance(s, list | tuple) and all(isinstance(n, numbers.Integral) for n in s)
    return jax.tree.map(lambda s: tuple(s) if is_shape(s) else s, event_shape, is_leaf=is_shape)


def _check_event(path: Path, event_shape: Any, reference: Any) -> None:
    """Raises unless the shape is that of a state of the path, and the reference its moments or None."""

    def state():
        x = path.sample_prior(jax.random.key(0), event_shape)
        path.batch_shape(x, "the state of this shape")
        if any(leaf.size == 0 for leaf in jax.tree.leaves(x)):
            raise ValueError("every size in shape must be at least 1, got 0")
        return x

    try:
        x = jax.eval_shape(state)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"event_shape must be that of a state of {path}, got {event_shape!r:.80}: {error}"
        ) from error
    if reference is None:
        return
    try:
        if jax.tree.structure(reference) != jax.tree.structure(path.moments(_zeros(x), jnp.zeros(1))):
            raise ValueError("of another structure")
        jax.eval_shape(lambda: path.draw_prior(jax.random.key(0), event_shape, reference))
        jax.eval_shape(lambda x: path.reference_energy(x, reference), x)
    except (AttributeError, TypeError, ValueError) as error:
        raise TypeError(
            f"reference must be moments of states of {path}, got {reference!r:.80}: {error}"
        ) from error


def _check_energy(energy: Energy, path: Path, event_shape: Any) -> None:
    """Raises where E says nothing at all: it is NaN or -inf at 64 states that the prior draws."""
    num_states = 64

    def value():
        keys = jax.random.split(jax.random.key(0), num_states)
        x = jax.vmap(lambda k: path.sample_prior(k, event_shape))(keys)
        return energy(path.data_state(x))

    try:
        found = checks.concrete(jax.jit(value)())
    except Exception:  # one that takes parameters, or belongs into a mapped axis: the step will tell
        return
    if found is None or np.shape(found) != (num_states,) or not jnp.issubdtype(found.dtype, jnp.floating):
        return
    if np.all(np.isnan(found) | (found == -np.inf)):
        raise ValueError(
            f"energy must be a number somewhere, got {found[0]} at all of {num_states} states that the prior "
            "draws (+inf is legal, and means a density of zero)"
        )


def _zeros(x: State) -> State:
    return jax.tree.map(lambda a: jnp.zeros((1, *a.shape), a.dtype), x)
