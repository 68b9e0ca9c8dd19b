"""Parameters split over a "model" axis train as on one device, the second-order gradient included.

Flow matching takes the gradient in the parameters of a loss of the gradient in x.
"""

import functools

import chex
import jax
import numpy as np
import pytest
from device_problems import KEY, moons
from jax.sharding import PartitionSpec as P

from egm import devices

MESH = functools.cache(lambda: devices.data_mesh(model=2))  # 4 x 2


def spec_of(phase, state, chains):
    """Kernels over the model axis, in the parameters, their average and Adam's moments; chains over data."""
    if phase == 1:
        return devices.kernel_spec(state, MESH())
    return state._replace(train=devices.kernel_spec(state.train, MESH()), chains=chains)


@pytest.mark.parametrize("phase", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_split_kernels_train_as_on_one_device(phase):
    """Three steps, parameters, average, moments and chains to 1e-4 (float32 sums in another order)."""
    state, step, spec, batches = moons(phase)
    spec = spec_of(phase, state, None if phase == 1 else spec.chains)
    sharded, expected = devices.put(state, MESH(), spec), state
    many, one = devices.jit_step(step, MESH(), state=spec), jax.jit(step)
    for i in range(3):
        key = jax.random.fold_in(KEY(1), i)
        sharded, metrics = many(key, sharded, batches(i))
        expected, expected_metrics = one(key, expected, batches(i))
        chex.assert_trees_all_close(metrics, expected_metrics, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(jax.device_get(sharded), jax.device_get(expected), rtol=1e-4, atol=1e-4)
    train = sharded if phase == 1 else sharded.train
    moments = train.opt_state[0]
    for tree in (train.params, train.ema_params, moments.mu, moments.nu):
        tree = tree["params"]
        for name, whole, part in (("Dense_0", (2, 16), (2, 8)), ("Dense_1", (16, 16), (16, 8))):
            kernel = tree[name]["kernel"]
            assert kernel.shape == whole
            assert kernel.sharding.is_equivalent_to(devices.put(kernel, MESH(), P(None, "model")).sharding, 2)
            assert {s.data.shape for s in kernel.addressable_shards} == {part}
        # One output: its kernel is split along the inputs.
        assert {s.data.shape for s in tree["Dense_2"]["kernel"].addressable_shards} == {(8, 1)}
        assert {s.data.shape for s in tree["Dense_1"]["bias"].addressable_shards} == {(16,)}
    if phase == 2:
        assert {s.data.shape for s in sharded.chains.x.addressable_shards} == {(2, 14, 2)}
    start = jax.tree.leaves(state if phase == 1 else state.train)
    assert any(np.any(a != b) for a, b in zip(start, jax.tree.leaves(jax.device_get(train))))


def test_layout_of_kernels():
    tree = {"a": np.ones((3, 4)), "b": np.ones((4, 3)), "c": np.ones((3, 3)), "d": np.ones(4), "e": 1.0}
    expected = {"a": P(None, "model"), "b": P("model", None), "c": P(), "d": P(), "e": P()}
    assert devices.kernel_spec(tree, MESH()) == expected
