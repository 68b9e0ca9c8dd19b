"""One seed, one loss curve: jit with a mesh, pmap and shard_map on 1, 2, 4 and 8 devices; and split work.

Curves agree to 1e-4: float32 sums in another order, over a few steps of Adam.
"""

import functools
import pathlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_problems import KEY, ising, moons
from jax.sharding import PartitionSpec as P

from egm import collectives, devices

PROBLEMS = {
    "ising": (ising, 4),
    "moons, transport": (functools.partial(moons, 1), 3),
    "moons, density": (functools.partial(moons, 2), 3),
}
CASES = [(name, way, 8) for name in PROBLEMS for way in ("jit", "shard_map", "pmap")]
REST = [(name, way, n) for name in PROBLEMS for way in ("jit", "shard_map", "pmap") for n in (1, 2, 4)]
CASES += [pytest.param(*case, marks=pytest.mark.slow) for case in REST if case not in CASES]


def batch_of(batches, index):
    return () if batches is None else (batches(index),)


@functools.cache
def compiled(problem, way, num):
    """(first state, what steps, batches) on so many devices; way None is plain jit without a mesh."""
    mesh = devices.data_mesh(jax.devices()[:num])
    state, step, spec, batches = problem(axis_name="data" if way in ("shard_map", "pmap") else None)
    if way == "pmap":
        return state, devices.pmap_step(step, jax.devices()[:num], state=spec), batches
    if way is None:
        step = jax.jit(step)
    else:
        make = {"jit": devices.jit_step, "shard_map": devices.shard_map_step}[way]
        state, step = devices.put(state, mesh, spec), make(step, mesh, state=spec)
    return state, step.lower(KEY(1), state, *batch_of(batches, 0)).compile(), batches


@functools.cache
def curve(name, way, num):
    """(the last state, the metrics of every step)."""
    problem, num_steps = PROBLEMS[name]
    state, step, batches = compiled(problem, way, num)
    history = []
    for i in range(num_steps):
        state, metrics = step(jax.random.fold_in(KEY(1), i), state, *batch_of(batches, i))
        history.append(jax.device_get(metrics))
    return state, history


@pytest.mark.parametrize("name, way, num", CASES)
def test_the_loss_curve_is_that_of_one_device(name, way, num):
    state, history = curve(name, way, num)
    expected, expected_history = curve(name, None, 1)
    chex.assert_trees_all_close(history, expected_history, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(jax.device_get(state), jax.device_get(expected), rtol=1e-4, atol=1e-4)
    assert len({float(row["loss"]) for row in history}) == len(history)
    if name == "moons, density" and way != "pmap":
        chains = state.chains.x
        assert {s.data.shape for s in chains.addressable_shards} == {(2, 56 // num, 2)}


# Work that is split under jit: 56 examples, 7 a device, a number that no layer has.


def dot_sizes(program):
    """All sizes of the results of a program's matrix products, on one device."""
    found = re.findall(r"= \w+\[([\d,]+)\]\S* (?:dot|custom-call)\(", program.as_text())
    return {int(size) for shape in found for size in shape.split(",")}


def flops(program):
    cost = program.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


# The sampler as it is, and with evaluations at two states an example, where a masked site is revealed.
SAMPLERS = {
    "weighted": (ising, 1),
    "naive": (functools.partial(ising, algorithm="naive"), 1),
    "local_bootstrap": (functools.partial(ising, algorithm="local_bootstrap"), 2),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_network_sees_an_eighth_of_the_examples(name):
    """In the simulation and in the loss no product has 56 rows or a multiple of it."""
    problem, copies = SAMPLERS[name]
    sizes = dot_sizes(compiled(problem, "jit", 8)[1])
    assert {7, 7 * copies} <= sizes, sizes
    assert not {56, 56 * copies} & sizes, sizes


@pytest.mark.parametrize("name", ["ising", "moons, density"])
def test_a_device_has_a_fraction_of_the_operations(name):
    """Less than half of one device's: tables of weights, and for moons the coupling, are whole."""
    one, eight = (compiled(PROBLEMS[name][0], *how)[1] for how in ((None, 1), ("jit", 8)))
    ratio = flops(eight) / flops(one)
    print(f"{name}: {ratio:.3f}")
    assert 1 / 8 < ratio < 0.5
    if name == "moons, density":  # chains: 2 rungs of 56
        assert 14 in dot_sizes(eight)
        assert not {112} & dot_sizes(eight)


def test_without_a_mesh_nothing_is_constrained(mesh8):
    """Nor where the mesh has no axis "data", nor inside shard_map, nor where the size does not divide."""
    x = jnp.arange(16.0)

    def constraints(fn, *args):
        return str(jax.make_jaxpr(fn)(*args)).count("sharding_constraint")

    both = lambda x: collectives.whole(collectives.split(x))
    assert constraints(both, x) == 0
    with jax.set_mesh(mesh8):
        assert constraints(both, x) == 0
    mesh = devices.data_mesh()
    mapped = jax.shard_map(both, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert constraints(mapped, x) == 0
    with jax.set_mesh(mesh):
        assert constraints(both, x) == 2
        assert constraints(both, x[:9]) == 1
        assert both(x) is x  # outside jit


def test_merging_in_another_order_changes_nothing():
    """[K, B] to [K * B] and back, examples in front on a mesh."""
    x = np.arange(48).reshape(3, 16)
    np.testing.assert_array_equal(collectives.merge(x), x.reshape(-1))
    np.testing.assert_array_equal(collectives.unmerge(collectives.merge(x), 3), x)
    with jax.set_mesh(devices.data_mesh()):
        np.testing.assert_array_equal(collectives.merge(x), x.T.reshape(-1))
        np.testing.assert_array_equal(collectives.unmerge(collectives.merge(x), 3), x)


def test_the_loops_of_the_documentation_run(capsys):
    text = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "pods.md").read_text()
    helpers, plain = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    with jax.numpy_rank_promotion("allow"):  # as a reader has it
        exec(helpers, {})
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [way for way, _ in lines] == ["jit", "shard_map", "pmap"]
        np.testing.assert_allclose([float(loss) for _, loss in lines[1:]], float(lines[0][1]), rtol=1e-5)
        found = {}
        exec(plain, found)
    # Each step goes a tenth of the way to its batch's mean; 5 standard errors.
    error = np.sqrt(0.1 / 1.9 / (32 * jax.device_count()))
    mean = found["state"].params["mean"]
    assert np.all(np.abs(mean - (1 - 0.9**20)) < 5 * error), mean


def test_rows_of_processes_make_one_batch():
    """On one process the rows are all rows; two processes are in test_two_processes.py."""
    mesh = devices.data_mesh()
    tree = {"a": np.arange(16.0).reshape(8, 2), "b": np.arange(8)}
    for came in (devices.from_processes(tree, mesh), devices.put(tree, mesh, P("data"))):
        chex.assert_trees_all_equal(jax.device_get(came), tree)
        assert came["a"].sharding.spec == P("data")
        assert {s.data.shape for s in came["a"].addressable_shards} == {(1, 2)}
    key = devices.put(KEY(3), mesh)
    assert jax.random.uniform(key) == jax.random.uniform(KEY(3))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: devices.data_mesh(model=3), "model must divide the number of devices, got 3 and 8 devices"),
        (lambda: devices.data_mesh([]), "model must divide the number of devices, got 1 and 0 devices"),
        (
            lambda: devices.pmap_step(lambda k, s, b: (s, {}))(KEY(0), 0.0, jnp.ones((12, 2))),
            r"axis 0 must divide over 8 devices, got shape \(12, 2\)",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
