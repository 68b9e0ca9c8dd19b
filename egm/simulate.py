"""Simulation of a process on a grid of times, and the path weights of its trajectories.

log w = -E(x_1) - log p_0(x_0) + sum over steps of log backward(x_t | x_r) - log forward(x_r | x_t)
is an unbiased weight for the partition function whatever the step size and however the generator was
trained: E[w] = Z over simulated trajectories.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, random
from egm.typing import Array, Energy, Key, ModelFn, Path, Process, State, Trajectory


def simulate(
    key: Key,
    process: Process,
    generator_fn: ModelFn,
    x_0: State,
    times: Array,
    *,
    save_states: bool = False,
) -> Trajectory:
    """Simulate forward from x_0.

    Args:
      key: a typed key, or [N] keys (one an example).
      process: how the generator moves a state.
      generator_fn: `fn(x, t)` with x [N, *event] and t [N], in the form of the process's path.
      x_0: states at the first time, one batch axis N.
      times: [T] increasing, from `process.times(num_steps)` or `path.times(num_steps)`.
      save_states: also return the states at all T times.

    Returns:
      Trajectory.

    Raises:
      ValueError: the times are not a strictly increasing vector in [0, 1], or a shape does not fit.
    """
    x_0, times, keys = _prepare(key, process, generator_fn, x_0, times, save_states, "x_0")

    def body(carry, step):
        x, log_ratio = carry
        index, t, r = step
        x_r, term = process.step(_step_keys(keys, index), x, generator_fn, t, r)
        x_r = jax.tree.map(lambda new, old: new.astype(old.dtype), x_r, x)
        return (x_r, log_ratio + term), (x_r if save_states else None)

    start = (x_0, _zeros(keys))
    (x_1, log_ratio), states = _scan(body, start, (np.arange(times.size - 1), times[:-1], times[1:]))
    if save_states:
        states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), x_0, states)
    return Trajectory(x_0, x_1, log_ratio, states)


def simulate_reverse(
    key: Key,
    process: Process,
    generator_fn: ModelFn,
    x_1: State,
    times: Array,
    *,
    save_states: bool = False,
) -> Trajectory:
    """Simulate backward kernels from x_1 to the first time, keeping the same path terms.

    From exact samples x_1 the mean of the path log-weights bounds log Z from above (EUBO), as it bounds
    it from below when simulated forward (ELBO). Args, returns and errors as for `simulate`; `times` is
    the same increasing grid and `states` are in the order of time.
    """
    x_1, times, keys = _prepare(key, process, generator_fn, x_1, times, save_states, "x_1")

    def body(carry, step):
        x, log_ratio = carry
        index, t, r = step
        x_t = process.reverse_step(_step_keys(keys, index), x, generator_fn, t, r)
        x_t = jax.tree.map(lambda new, old: new.astype(old.dtype), x_t, x)
        term = process.log_ratio(x_t, x, generator_fn, t, r)
        return (x_t, log_ratio + term), (x_t if save_states else None)

    steps = (np.arange(times.size - 1), times[:-1], times[1:])
    (x_0, log_ratio), states = _scan(body, (x_1, _zeros(keys)), steps, reverse=True)
    if save_states:
        states = jax.tree.map(lambda last, rest: jnp.concatenate([rest, last[None]]), x_1, states)
    return Trajectory(x_0, x_1, log_ratio, states)


def path_log_weights(energy: Energy, path: Path, trajectory: Trajectory, moments: Any = None) -> Array:
    """Path log-weights: -E(x_1) - log p_0(x_0) + log_ratio.

    Args:
      energy: E, evaluated on the N terminal states.
      path: gives p_0, the normalised density of the prior.
      trajectory: from `simulate` (or `simulate_reverse`).
      moments: those that x_0 was drawn with, as in `path.sample_prior`.

    Returns:
      [N]; NaN and +inf mark invalid ones, which `egm.importance` counts and gives weight zero. NaN
      where x_1 is no data: a mask is left because the steps were too few.
    """
    checks.instance(trajectory, Trajectory, "trajectory")
    checks.instance(path, Path, "path")
    checks.function(energy, "energy")
    n = trajectory.log_ratio.shape
    data = path.data_state(trajectory.x_1)
    e = checks.model_output(energy(data), "energy", n)
    log_weights = trajectory.log_ratio - e - path.prior_log_density(trajectory.x_0, moments)
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
    return jax.tree.map(jnp.asarray, x), times, random.example_keys(key, batch[0])


def _same(x: State, data: State) -> Array:
    """[N] bool, whether all values agree; a NaN agrees with anything, as it shows by itself."""

    def agree(a, b):
        return jnp.all(((a == b) | (a != a)).reshape(a.shape[0], -1), axis=-1)

    return jnp.all(jnp.stack(jax.tree.leaves(jax.tree.map(agree, x, data))), axis=0)


def _step_keys(keys: Array, index: Array) -> Array:
    return jax.vmap(lambda k: jax.random.fold_in(k, index))(keys)


def _zeros(keys: Array) -> Array:
    return jnp.zeros(keys.shape)


def _scan(body, start, steps, reverse: bool = False):
    like, _ = jax.eval_shape(body, start, jax.tree.map(lambda a: a[0], steps))
    start = jax.tree.map(lambda s, ref: s.astype(ref.dtype), start, like)
    return jax.lax.scan(body, collectives.varying_like(start, like), steps, reverse=reverse)
