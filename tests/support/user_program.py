"""A user's program, typed: a sampler of a mixed state trained with checkpoints."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

import egm
from egm import algorithms, checkpoint, heads, iteration, networks, paths, processes
from egm.typing import Array, Moments, State


def energy(state: State) -> Array:
    """[N] of {"x": [N, 2], "h": [N, 1]}: two normals of unequal mass, told apart by a token."""
    side = 2.0 * state["h"][:, 0] - 1.0
    mean = side[:, None] * jnp.array([[1.0, 0.5]])
    return 0.5 * jnp.sum((state["x"] - mean) ** 2, axis=-1) - 0.5 * side


def train(folder: str, calls: int) -> tuple[checkpoint.Run, egm.Trajectory, Array]:
    """The run, 2,000 trajectories of the trained sampler and their log-weights."""
    x = paths.VarianceExplodingPath(sigma_min=1.0, sigma_max=4.0)
    h = paths.MaskedPath(vocab_size=2)
    head = heads.ProductHead({"x": heads.ScoreHead(x, 1.0, 1.5), "h": heads.DenoiserHead(h)})
    network = networks.MLPMixed(x, 2, length_scale=1.0, data_scale=1.5, width=32, depth=2)
    algorithm = algorithms.Weighted(head.path, head, network.apply)
    process = processes.ProductProcess({"x": processes.DiffusionProcess(x), "h": processes.JumpProcess(h)})
    config = iteration.IterationConfig(
        num_simulated=256, buffer_size=1024, num_gradient_steps=20, batch_size=64, num_times=10
    )
    shape = {"x": (2,), "h": (1,)}
    reference = {"x": Moments(jnp.zeros(2), jnp.full(2, 2.0)), "h": None}
    init, step = iteration.make_iteration(
        algorithm, process, energy, optax.adam(3e-3), config, event_shape=shape, reference=reference
    )
    start = {"x": jnp.zeros((1, 2)), "h": jnp.zeros((1, 1), jnp.int32)}
    state = init(network.init(jax.random.key(0), start, jnp.zeros(1)))
    with checkpoint.Checkpoints(folder, {"config": config}) as checkpoints:
        run = checkpoint.run(
            step, state, jax.random.key(1), calls=calls, checkpoints=checkpoints, save_every=2
        )
    generator = algorithm.generator(run.state.train.ema_params, energy)
    keys = jax.random.split(jax.random.key(2), 2000)
    x_0 = egm.draw_prior(keys, head.path, shape, run.state.moments)
    trajectory = egm.simulate(keys, process, generator, x_0, process.times(10))
    return run, trajectory, egm.path_log_weights(energy, head.path, trajectory)
