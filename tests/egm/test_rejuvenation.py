"""A buffer that is resampled and moved: its weights stay proper, on every number of devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egm import algorithms, annealing, buffer, devices, heads, iteration, rejuvenation, smoothness
from egm.energies import GaussianMixture
from egm.paths import VarianceExplodingPath
from egm.processes import DiffusionProcess
from egm.typing import Moments

KEY = jax.random.key(11)
PATH = VarianceExplodingPath(0.3, 4.0, 0.3)
TARGET = GaussianMixture(((-1.0,), (1.0,)), 0.4, (1, 2))
REFERENCE = Moments(np.zeros(1, np.float32), np.full(1, 1.5, np.float32))
HEAD = heads.ScoreHead(PATH, 0.4, 1.0, 0.3)
Z = np.sqrt(2 * np.pi) * 0.4
ABOVE = 2 / 3 * 0.99379 + 1 / 3 * 0.00621
EXACT = np.array([1.0, 1 / 3, 1.16, ABOVE])


SMALL = iteration.IterationConfig(
    num_simulated=32, buffer_size=64, num_gradient_steps=1, batch_size=16, num_times=8
)


def output(params, x, t):
    """Next to nothing: an untrained network."""
    return params["a"] * jnp.stack([jnp.sin(x), jnp.cos(x)], axis=-1) * (1 - t[:, None, None])


def seen(x):
    x = x[:, 0]
    return jnp.stack([jnp.ones_like(x), x, x**2, x > 0], axis=-1)


def of_config(config, reference=REFERENCE, axis_name=None):
    return iteration.make_iteration(
        algorithms.Weighted(PATH, HEAD, output), DiffusionProcess(PATH), TARGET, optax.sgd(1e-3), config,
        event_shape=(1,), reference=reference, axis_name=axis_name,
    )  # fmt: skip


@pytest.mark.parametrize("num_moves", [0, 6])
def test_the_weights_of_the_buffer_stay_proper(num_moves):
    """E[mean over the buffer of w f(x)] = Z E_p[f] after three iterations, at the full energy.

    400 independent runs of an untrained sampler (whose ESS is about .6), 4 standard errors. The level is
    1 from the start, so that nothing but the weights has to be right.
    """
    init, step = of_config(dataclasses.replace(SMALL, ess_target=None, num_moves=num_moves))
    first = init({"a": jnp.full((), 0.3)})

    def run(key):
        state = first
        for k in jax.random.split(key, 3):
            state, report = step(k, state)
        w = jnp.exp(annealing.annealed_log_weights(state.buffer, state.level))
        return jnp.mean(w[:, None] * seen(state.buffer.items.x_1), axis=0), report["ess"]

    found, ess = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(jax.random.split(KEY, 400)))
    assert 0.3 < ess.mean() < 0.9
    z = (found.mean(0) - Z * EXACT) / (found.std(0, ddof=1) / np.sqrt(len(found)))
    assert np.all(np.abs(z) < 4), z


@pytest.mark.slow
def test_annealing_by_moves_alone():
    """From a narrow reference far to the left, with a bad sampler; the moments are the target's."""
    far = iteration.IterationConfig(
        num_simulated=128, buffer_size=1024, num_gradient_steps=1, batch_size=16, num_times=4, num_moves=40,
        ess_target=4.0,
    )  # fmt: skip
    init, step = of_config(far, Moments(np.full(1, -3.0, np.float32), np.full(1, 0.5, np.float32)))
    state, step = init({"a": jnp.full((), 5.0)}), jax.jit(step)
    levels = []
    for i in range(6):
        state, report = step(jax.random.fold_in(KEY, i), state)
        levels.append(float(report["level"]))
    assert levels[0] < levels[-1] == 1, levels
    assert 0.4 < report["move_acceptance"] < 0.8
    w = np.exp(np.asarray(annealing.annealed_log_weights(state.buffer, state.level), np.float64))
    found = (w / w.sum()) @ np.asarray(seen(state.buffer.items.x_1))
    # 1,024 states with few ancestors, 40 moves an iteration apart: 4 standard errors of some 200.
    np.testing.assert_allclose(found[1:], EXACT[1:], atol=4 * np.sqrt(1.1 / 200))
    # 6 iterations: 1,024 states x 40 moves, 128 simulations of 4 steps and their ends, 16 examples twice,
    # and the probe.
    probe = 32 * smoothness.NUM_EVALUATIONS
    assert report["num_energy_evaluations"] == 6 * (1024 * 40 + 128 * 5 + 32 + probe)


def test_resampling_keeps_the_weighted_sum():
    """In expectation over the draw, by hand for 2,000 draws; clipped probabilities leave a rest."""
    x = jnp.linspace(-2.0, 2.0, 8)[:, None]
    item = annealing.Item(x, TARGET(x), jnp.zeros(8), jnp.linspace(0.0, 3.0, 8))
    held = buffer.add(buffer.init(16, jax.tree.map(lambda a: a[0], item)), item)
    log_w = annealing.annealed_log_weights(held, jnp.ones(()))
    p = jnp.where(buffer.filled(held), jnp.maximum(jax.nn.softmax(log_w), 0.02), 0.0)
    p = p / jnp.sum(p)

    def one(key):
        new = rejuvenation.resampled(key, held, p, jnp.asarray(8.0))
        w = jnp.exp(annealing.annealed_log_weights(new, jnp.ones(())))
        return jnp.mean(w[:, None] * seen(new.items.x_1), axis=0), new.num_added

    found, added = jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, 2000)))
    assert np.all(added == 16)
    expected = np.mean(np.exp(log_w[:8])[:, None] * seen(x), axis=0)
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert np.all(np.abs(found.mean(0) - expected) < 4 * error + 1e-6)
    none = rejuvenation.resampled(KEY, held, jnp.zeros(16), jnp.asarray(8.0))
    jax.tree.map(np.testing.assert_array_equal, none, held)


def test_a_collapsed_generation_counts_for_little():
    assert rejuvenation.generation_share(jnp.zeros(100)) == 1
    one = jnp.where(jnp.arange(100) == 3, 0.0, -50.0)
    np.testing.assert_allclose(rejuvenation.generation_share(one), 0.01 / 0.3, rtol=1e-5)


@pytest.mark.parametrize(
    "way", ["shard_map", *(pytest.param(way, marks=pytest.mark.slow) for way in ("pmap", "jit"))]
)
def test_devices_move_the_buffer_as_one_device_does(way, x64):
    mesh = devices.data_mesh()
    run = {
        "shard_map": lambda step: devices.shard_map_step(step, mesh),
        "pmap": devices.pmap_step,
        "jit": lambda step: devices.jit_step(step, mesh),
    }[way]
    config = dataclasses.replace(SMALL, num_moves=2, num_times=3)
    init, one = of_config(config)
    _, many = of_config(config, axis_name=None if way == "jit" else devices.DATA)
    state = init({"a": jnp.full((), 0.3)})
    a, report_a = jax.jit(one)(KEY, state)
    b, report_b = run(many)(KEY, state)
    for left, right in zip(jax.tree.leaves((a, report_a)), jax.tree.leaves((b, report_b)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-8)


def test_bad_sizes():
    with pytest.raises(ValueError, match="num_moves must be at least 0"):
        dataclasses.replace(SMALL, num_moves=-1)
    odd = dataclasses.replace(SMALL, num_moves=1, buffer_size=60)
    init, step = of_config(odd, axis_name=devices.DATA)
    with pytest.raises(ValueError, match="buffer_size must divide over 8 devices"):
        devices.shard_map_step(step, devices.data_mesh())(KEY, init({"a": jnp.zeros(())}))
