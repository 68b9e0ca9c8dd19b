"""Simulation of a process on a grid of times, and the path weights of its trajectories.

log w = -E(x_1) - log p_0(x_0) + sum over steps of log backward(x_t | x_r) - log forward(x_r | x_t)
is an unbiased weight for the partition function whatever the step size and however the generator was
trained: E[w] = Z over simulated trajectories. The sum over steps is compensated: it is the sum of the
steps' terms rounded once, however many there are.

A population may be resampled along its path (`Resampling`): where a guess phi_t of the log-marginal tells
that few trajectories will carry all weight, these go on and the others end. The mean weight stays unbiased.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, importance, random, summation
from egm.typing import (
    Array,
    CountedProcess,
    Energy,
    FoldingProcess,
    Key,
    ModelFn,
    Path,
    PriorDraw,
    Process,
    State,
    Trajectory,
)

__all__ = ["Resampling", "draw_prior", "path_log_weights", "simulate", "simulate_reverse"]


class Resampling(NamedTuple):
    """When `simulate` resamples its population, and by what.

    After each step but the last the weights are those of a simulation that ends there with the density
    exp phi_t: log w = phi_t(x_t) - log p_0(x_0) + log_ratio so far. Where their ESS is below the threshold,
    states are drawn by them (systematically), each with the mean weight.

    Attributes:
      log_density: phi, `[N] = phi(x [N, *event], t [N])`, unnormalised; -inf where a trajectory may end.
        Any function gives unbiased weights; the nearer to the log-marginal, the better. Examples:
        `closed_forms.energy_log_marginal`, `bootstrap.boundary`.
      threshold: the ESS, a fraction of N, below which they are resampled; 1 for every step.
    """

    log_density: ModelFn
    threshold: float = 0.5


def draw_prior(key: Key, path: Path, shape: Any, moments: Any = None) -> PriorDraw:
    """States at the first time together with the density that they were drawn from.

    `simulate` takes the record in place of plain states and keeps the density in the trajectory, so
    that a prior that was fitted to data (`moments`) cannot be forgotten in the path weights.

    Args:
      key: a typed key, or [N] keys (one a state; `shape` is then that of one state).
      path: gives the prior.
      shape: full shape of the states (a pytree of shapes for a product), as for `path.draw_prior`.
      moments: of the data, in the path's form: the prior takes those of the marginal. None: the path's own.

    Returns:
      PriorDraw.
    """
    checks.instance(path, Path, "path")
    if checks.key_array(key).ndim > 1:
        raise ValueError(f"key must be one key or a vector of keys, got shape {key.shape}")
    if key.ndim:
        return jax.vmap(lambda k: path.draw_prior(k, shape, moments))(key)
    return path.draw_prior(key, shape, moments)


def simulate(
    key: Key,
    process: Process,
    generator_fn: ModelFn,
    x_0: State | PriorDraw,
    times: Array,
    *,
    save_states: bool = False,
    resampling: Resampling | None = None,
) -> Trajectory:
    """Simulate forward from x_0.

    Args:
      key: a typed key, or [N] keys (one an example).
      process: how the generator moves a state.
      generator_fn: `fn(x, t)` with x [N, *event] and t [N], in the form of the process's path.
      x_0: states at the first time, one batch axis N, from the path's own prior (`path.sample_prior`);
        from any other, with their density: `draw_prior` or a `PriorDraw` by hand.
        What is narrower than float32 or int32 goes on in those.
      times: [T] increasing, from `process.times(num_steps)` or `path.times(num_steps)`.
      save_states: also return the states at all T times (with `resampling` before it, at each).
      resampling: resample the N trajectories, of this device, along their path. The mean of
        their weights exp(`path_log_weights`) stays an unbiased estimate of Z, the product of the mean
        incremental weights; as they share ancestors (`origin`), its error is to be had from several
        populations.

    Returns:
      Trajectory.

    Raises:
      TypeError, ValueError: the times are not a strictly increasing vector in [0, 1], a shape does not
        fit, or the steps from the first time to 1 are fewer than the process needs to finish (`check_steps`).

    Examples:
      >>> path = egm.paths.MaskedPath(vocab_size=2)
      >>> process = egm.processes.JumpProcess(path)
      >>> denoiser = lambda x, t: jnp.full((*x.shape, 2), 0.5)  # exact for an energy of zero
      >>> x_0 = path.sample_prior(jax.random.key(0), (8, 4))
      >>> trajectory = egm.simulate(jax.random.key(1), process, denoiser, x_0, process.times(10))
      >>> log_weights = egm.path_log_weights(lambda x: jnp.zeros(len(x)), path, trajectory)
      >>> print(f"{jnp.exp(egm.importance.log_mean_exp(log_weights)):.1f}")  # Z: the number of states
      16.0
    """
    log_prior = None
    if isinstance(x_0, PriorDraw):
        x_0, log_prior = x_0
    x_0, times, keys = _prepare(key, process, generator_fn, x_0, times, save_states, "x_0")
    counts = isinstance(process, FoldingProcess)
    if resampling is not None:
        checks.instance(resampling, Resampling, "resampling")
        checks.function(resampling.log_density, "resampling.log_density")
        checks.unit_interval(resampling.threshold, "resampling.threshold")
    if log_prior is None:
        log_prior = process.path.prior_log_density(x_0)
    log_prior = checks.model_output(log_prior, "x_0, the PriorDraw's log_density,", keys.shape)

    def body(here, step):
        index, t, r = step
        x, keys_here, folded = here.x, _step_keys(keys, index), here.folded
        if isinstance(process, FoldingProcess):
            x_r, term, refused = process.step_with_folds(keys_here, x, generator_fn, t, r)
            folded = folded + refused
        else:
            x_r, term = process.step(keys_here, x, generator_fn, t, r)
        x_r = jax.tree.map(lambda new, old: new.astype(old.dtype), x_r, x)
        here = here._replace(x=x_r, log_ratio=_add(here.log_ratio, term), folded=folded)
        if resampling is not None:
            here = _resampled(keys_here, here, resampling, r)
        return here, (x_r if save_states else None)

    start = _Here(x_0, summation.start(_zeros(keys)), jnp.zeros(keys.shape, jnp.int32) if counts else None)
    if resampling is not None:
        start = start._replace(x_0=x_0, log_prior=log_prior, origin=jnp.arange(keys.shape[0]))
    end, states = _scan(body, start, (np.arange(times.size - 1), times[:-1], times[1:]))
    if save_states:
        states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x_0, states)
    if resampling is not None:
        x_0, log_prior = end.x_0, end.log_prior
    log_ratio = summation.finish(end.log_ratio)
    return Trajectory(x_0, end.x, log_ratio, states, log_prior, num_folded=end.folded, origin=end.origin)


class _Here(NamedTuple):
    """Trajectories so far; the last three where they are resampled."""

    x: State
    log_ratio: summation.Sum
    folded: Any
    x_0: State = None
    log_prior: Any = None
    origin: Any = None


def _resampled(keys: Array, here: _Here, resampling: Resampling, r: Array) -> _Here:
    """The trajectories resampled where their weights at time r are too uneven; never at the end."""
    num = keys.shape[0]
    phi = resampling.log_density(here.x, jnp.full(num, r))
    phi = checks.model_output(phi, "resampling.log_density", (num,))
    log_w = phi + summation.finish(here.log_ratio) - here.log_prior
    record = importance.snis(log_w)
    due = (record.ess < resampling.threshold) & (record.ess > 0) & (r < 1)
    index = importance.systematic(random.derive(keys[0], "resampling"), log_w, num)
    picked = jax.tree.map(lambda a: a[index], here._replace(log_ratio=None))
    ratio = summation.start(
        (record.log_mean + picked.log_prior - phi[index]).astype(here.log_ratio.high.dtype)
    )
    new = picked._replace(log_ratio=ratio)
    return jax.tree.map(lambda a, b: jnp.where(due, a, b), new, here)


def simulate_reverse(
    key: Key,
    process: Process,
    generator_fn: ModelFn,
    x_1: State,
    times: Array,
    moments: Any = None,
    *,
    save_states: bool = False,
) -> Trajectory:
    """Simulate backward kernels from x_1 to the first time, keeping the same path terms.

    From exact samples x_1 the mean of the path log-weights bounds log Z from above (EUBO), as it bounds
    it from below when simulated forward (ELBO). Args, returns and errors as for `simulate`; `times` is
    the same increasing grid and `states` are in the order of time. `moments` are those of the forward
    run's prior, whose density is recorded where each trajectory ends; None for the path's own.
    """
    x_1, times, keys = _prepare(key, process, generator_fn, x_1, times, save_states, "x_1")

    def body(carry, step):
        x, log_ratio = carry
        index, t, r = step
        x_t = process.reverse_step(_step_keys(keys, index), x, generator_fn, t, r)
        x_t = jax.tree.map(lambda new, old: new.astype(old.dtype), x_t, x)
        term = process.log_ratio(x_t, x, generator_fn, t, r)
        return (x_t, _add(log_ratio, term)), (x_t if save_states else None)

    steps = (np.arange(times.size - 1), times[:-1], times[1:])
    (x_0, log_ratio), states = _scan(body, (x_1, summation.start(_zeros(keys))), steps, reverse=True)
    if save_states:
        states = jax.tree.map(lambda last, rest: jnp.concatenate([rest, last[None]]), x_1, states)
    log_prior = process.path.prior_log_density(x_0, moments)
    return Trajectory(x_0, x_1, summation.finish(log_ratio), states, log_prior)


def path_log_weights(energy: Energy, path: Path, trajectory: Trajectory) -> Array:
    """Path log-weights: -E(x_1) - log p_0(x_0) + log_ratio.

    Args:
      energy: E, evaluated on the N terminal states.
      path: says which terminal states are data.
      trajectory: from `simulate` (or `simulate_reverse`); it holds log p_0 of its own start.

    Returns:
      [N]; NaN and +inf mark invalid ones (+inf also a start that its prior cannot give), which
      `egm.importance` counts and gives weight zero. NaN where x_1 is no data: a mask is left because the
      steps were too few.
    """
    checks.instance(trajectory, Trajectory, "trajectory")
    checks.instance(path, Path, "path")
    checks.function(energy, "energy")
    n = trajectory.log_ratio.shape
    data = path.data_state(trajectory.x_1)
    e = checks.model_output(energy(data), "energy", n)
    log_weights = trajectory.log_ratio - e - trajectory.log_prior
    return jnp.where(_same(trajectory.x_1, data), log_weights, jnp.nan)


def _prepare(
    key: Key, process: Process, generator: ModelFn, x: State, times: Array, save_states: bool, name: str
):
    checks.instance(process, Process, "process")
    checks.function(generator, "generator_fn")
    checks.flag(save_states, "save_states")
    batch = process.path.batch_shape(x, name)
    if len(batch) != 1:
        raise ValueError(f"{name} must have one batch axis, got batch shape {batch}")
    times = checks.float_array(times, "times")
    if times.ndim != 1 or times.size < 2:
        raise ValueError(f"times must be a vector of at least 2 times, got shape {times.shape}")
    value = checks.concrete(times)
    if value is not None and not (np.all(np.diff(value) > 0) and 0 <= value[0] and value[-1] <= 1):
        raise ValueError(f"times must increase strictly within [0, 1], got {value}")
    # A part of the way may have any number of steps: times that are known not to span it.
    partial = value is not None and (value[0] > process.path.t_min * (1 + 1e-6) or value[-1] < 1)
    if isinstance(process, CountedProcess) and not partial:
        process.check_steps(times.size - 1, jax.tree.map(lambda a: tuple(jnp.shape(a)[1:]), x))
    keys = random.derive(random.example_keys(key, batch[0]), "simulate")
    return jax.tree.map(checks.wide, x), times, keys


def _add(total: summation.Sum, term: Array) -> summation.Sum:
    return summation.add(total, term.astype(jnp.result_type(term.dtype, total.high.dtype)))


def _same(x: State, data: State) -> Array:
    """[N] bool, whether all values agree; a NaN agrees with anything, as it shows by itself."""

    def agree(a, b):
        return jnp.all(((a == b) | (a != a)).reshape(a.shape[0], math.prod(a.shape[1:])), axis=-1)

    return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(agree, x, data))), axis=0)


def _step_keys(keys: Array, index: Array) -> Array:
    return jax.vmap(lambda k: jax.random.fold_in(k, index))(keys)


def _zeros(keys: Array) -> Array:
    return jnp.zeros(keys.shape)


def _scan(body, start, steps, reverse: bool = False):
    like, _ = jax.eval_shape(body, start, jax.tree.map(lambda a: a[0], steps))
    start = jax.tree.map(lambda s, ref: s.astype(ref.dtype), start, like)
    return jax.lax.scan(body, collectives.varying_like(start, like), steps, reverse=reverse)
