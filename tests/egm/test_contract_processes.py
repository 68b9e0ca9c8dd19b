"""The contract of every process: path weights that are exact for any generator, on every way to run.

With N trajectories the mean weight has a standard error from its own sample; the threshold is |z| < 4
at a fixed key, for a generator that is random and untrained.
"""

import copy

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm

IDS, CASES = contract.cases(egm.processes, "PROCESSES")
every_case = pytest.mark.parametrize("case", CASES, ids=IDS)
first_of_each_class = pytest.mark.parametrize(
    "case", [case for name, case in zip(IDS, CASES) if name.endswith("-0")]
)
RUNS = [
    pytest.param(case, steps, id=f"{name}-{steps}", marks=[pytest.mark.slow] * (steps != case.num_steps[0]))
    for name, case in zip(IDS, CASES)
    for steps in case.num_steps
]
every_run = pytest.mark.parametrize("case, steps", RUNS)
KEY = jax.random.key(21)
N = 8000


def prior(case, n):
    shape = jax.tree.map(lambda d: (n, *d), case.event, is_leaf=lambda e: isinstance(e, tuple))
    return case.process.path.sample_prior(jax.random.fold_in(KEY, 1), shape)


def forward(case, generator, steps, n=N, save_states=False):
    """(trajectory, log-weights) of n simulations."""

    @jax.jit
    def run(key, x_0):
        times = case.process.times(steps)
        path = egm.simulate(key, case.process, generator, x_0, times, save_states=save_states)
        return path, egm.path_log_weights(case.problem, case.process.path, path)

    return run(KEY, prior(case, n))


def z_of_mean(values, expected):
    values = np.asarray(values, np.float64)
    return (values.mean() - expected) / (values.std() / np.sqrt(len(values)))


def test_every_process_has_an_example():
    missing = contract.missing_entries(egm.processes, "PROCESSES")
    assert not missing, "\n".join(missing)


def test_every_process_is_exported():
    assert {*contract.public_classes(egm.processes), "orders"} == set(egm.processes.__all__)


@every_case
def test_is_a_process(case):
    process = case.process
    assert isinstance(process, egm.Process)
    assert isinstance(process.path, egm.Path)
    twin = copy.deepcopy(process)
    assert twin == process
    assert hash(twin) == hash(process)
    times = np.asarray(process.times(5))
    assert times.shape == (6,)
    assert np.all(np.diff(times) > 0)
    assert (times[0], times[-1]) == (np.float32(process.path.t_min), 1)


@every_run
def test_path_weights_average_to_the_partition_function(case, steps):
    _, log_w = forward(case, case.generator, steps)
    assert np.all(np.isfinite(log_w))
    assert abs(z_of_mean(np.exp(log_w - case.problem.log_z), 1.0)) < 4


@every_run
def test_reverse_path_weights_average_to_its_inverse(case, steps):
    """E over reverse simulations from exact samples of exp(-log w) is 1/Z, and the bounds hold."""
    problem, generator = case.problem, case.generator

    @jax.jit
    def run(key, x_1):
        times = case.process.times(steps)
        path = egm.simulate_reverse(key, case.process, generator, x_1, times)
        return egm.path_log_weights(problem, case.process.path, path)

    reverse = np.asarray(run(KEY, problem.exact_samples(N)))
    assert np.all(np.isfinite(reverse))
    assert abs(z_of_mean(np.exp(problem.log_z - reverse), 1.0)) < 4
    _, log_w = forward(case, generator, steps)
    assert z_of_mean(reverse, problem.log_z) > 4  # EUBO: a random generator is far from the target
    assert z_of_mean(log_w, problem.log_z) < -4  # ELBO


@every_run
def test_log_ratio_is_what_step_returned(case, steps):
    generator = case.generator
    path, _ = forward(case, generator, steps, n=64, save_states=True)
    times = case.process.times(steps)
    log_ratio = jax.jit(lambda x_t, x_r, t, r: case.process.log_ratio(x_t, x_r, generator, t, r))
    total = 0.0
    for i in range(steps):
        pair = (contract.take(path.states, j) for j in (i, i + 1))
        total = total + np.asarray(log_ratio(*pair, times[i], times[i + 1]))
    np.testing.assert_allclose(total, path.log_ratio, rtol=1e-5, atol=1e-5)
    for end, state in ((0, path.x_0), (-1, path.x_1)):
        jax.tree.map(np.testing.assert_array_equal, contract.take(path.states, end), state)


@every_case
def test_reverse_step_undoes_a_step(case):
    """What `reverse_step` draws is a pair that `log_ratio` knows: finite both ways."""
    problem, process = case.problem, case.process
    steps = case.num_steps[-1]
    t, r = (process.times(steps)[i] for i in (steps - 1, steps))
    x_1 = problem.exact_samples(32)

    @jax.jit
    def back(key):
        x_t = process.reverse_step(key, x_1, case.generator, t, r)
        return x_t, process.log_ratio(x_t, x_1, case.generator, t, r)

    x_t, log_ratio = back(KEY)
    assert jax.tree.map(jnp.shape, x_t) == jax.tree.map(jnp.shape, x_1)
    assert np.all(np.isfinite(log_ratio))


@first_of_each_class
def test_jit_is_vmap_is_eager_is_sharded(case, mesh8):
    spec = jax.sharding.PartitionSpec("i")
    process, generator = case.process, case.generator
    times = process.times(case.num_steps[-1])
    t, r = times[0], times[1]
    keys, x_0 = egm.random.example_keys(KEY, 16), prior(case, 16)

    def step(keys, x):
        return process.step(keys, x, generator, t, r)

    jitted = jax.jit(step)(keys, x_0)
    first = contract.take((keys, x_0), np.s_[:2])
    same = {
        "one key": jax.jit(step)(KEY, x_0),
        "vmap": jax.vmap(lambda k, x: contract.take(step(k[None], contract.take(x, None)), 0))(keys, x_0),
        "pmap": jax.tree.map(
            lambda a: a.reshape(16, *a.shape[2:]),
            jax.pmap(step)(*jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), (keys, x_0))),
        ),
        "shard_map": jax.jit(jax.shard_map(step, mesh=mesh8, in_specs=spec, out_specs=spec))(keys, x_0),
        "eager": step(*first),
    }
    for name, came in same.items():
        for a, b in zip(jax.tree.leaves(came), jax.tree.leaves(jitted)):
            np.testing.assert_allclose(a, b[: len(a)], rtol=1e-5, atol=1e-5, err_msg=name)
