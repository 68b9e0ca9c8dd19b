"""How the level of the annealed energy is chosen when the buffer's ESS misses its target.

A network that says nothing samples tokens uniformly, so that all path weights of a generation are equal
and what is put into the buffer by hand, or into the energy, decides.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egm import algorithms, annealing, buffer, heads, iteration
from egm.paths import LinearPath, MaskedPath
from egm.processes import AnyOrderProcess, DiffusionProcess, JumpProcess, ProductProcess

KEY = jax.random.key(6)
SITES, NUM, GENERATIONS = 4, 64, 4
PATH = MaskedPath(3)
CONFIG = iteration.IterationConfig(
    num_simulated=NUM, buffer_size=GENERATIONS * NUM, num_gradient_steps=1, batch_size=8, num_times=SITES
)
LEVEL = np.float32(0.7**2)


def silent(params, x, t):
    return jnp.zeros((*x.shape, 3)) + 0.0 * params


ALGORITHM = algorithms.Weighted(PATH, heads.DenoiserHead(PATH), silent)
ANY = AnyOrderProcess(PATH)


@functools.cache
def compiled():
    """(init, jitted step) of the energy `table[index of x]`."""

    def energy(table, x):
        return table[jnp.sum(x * jnp.array([[27, 9, 3, 1]]), axis=-1)]

    init, step = iteration.make_iteration(
        ALGORITHM, ANY, energy, optax.sgd(0.0), CONFIG, event_shape=(SITES,)
    )
    return init, jax.jit(step)


def start(log_path):
    """A state at LEVEL whose full buffer has these path terms beside those of a uniform sampler."""
    init, _ = compiled()
    state = init(jnp.zeros(()))
    n = len(log_path)
    x = jax.random.randint(KEY, (n, SITES), 0, 3)
    zero = jnp.zeros(n)
    items = annealing.Item(x, zero, zero, SITES * jnp.log(3.0) + jnp.asarray(log_path, jnp.float32))
    return state._replace(buffer=buffer.add(state.buffer, items), level=jnp.asarray(LEVEL))


def follow(state, table, count):
    """(levels, reports) of some iterations."""
    _, step = compiled()
    reports = []
    for i in range(count):
        state, report = step(jax.random.fold_in(KEY, i), state, jnp.asarray(table, jnp.float32))
        reports.append(jax.tree.map(float, report))
    return np.float32([r["level"] for r in reports]), reports


@pytest.mark.parametrize("outliers", [1, 3])
def test_an_outlier_does_not_throw_the_level_back(outliers):
    """No level meets the target while weights e^30 times the others' are there: the level is held.

    It went to the lowest one, 2.5e-5. The newest of them leaves after 4 generations: then all is well.
    """
    log_path = np.zeros(GENERATIONS * NUM)
    log_path[-outliers:] = 30.0
    levels, reports = follow(start(log_path), np.zeros(81), GENERATIONS + 1)
    np.testing.assert_array_equal(levels[:3], LEVEL)
    assert [r["num_held"] for r in reports[:3]] == [1, 2, 3]
    assert all(r["ess_alarm"] == 1 for r in reports[:3])
    assert all(r["buffer_ess"] < CONFIG.ess_target for r in reports[:3])
    # The outliers are not what is trained on meanwhile.
    assert all(r["clipped_mass"] > 0.9 for r in reports[:3])
    assert levels[-1] == 1
    assert reports[-1]["ess_alarm"] == reports[-1]["num_held"] == 0


def test_a_level_that_is_too_high_is_left_at_once():
    """Energies of spread 100: at LEVEL a handful of states has all the weight, but a lower level will do."""
    table = 100 * np.random.default_rng(0).normal(size=81)
    levels, reports = follow(start(np.zeros(GENERATIONS * NUM)), table, 6)
    # The states put in by hand, of energy 0, stay until the last generation.
    assert 0 < levels[-1] < 0.1 * LEVEL
    assert reports[-1]["buffer_ess"] >= CONFIG.ess_target
    assert reports[-1]["ess_alarm"] == 0


def test_a_degraded_sampler_is_no_trap():
    """Path terms so different that no level will do, for good: held until the buffer is new, then left."""
    table = 1e7 * np.random.default_rng(1).normal(size=81)
    init, _ = compiled()
    state = init(jnp.zeros(()))._replace(level=jnp.asarray(LEVEL))
    levels, reports = follow(state, table, GENERATIONS + 2)
    np.testing.assert_array_equal(levels[:GENERATIONS], LEVEL)
    assert [r["num_held"] for r in reports[:GENERATIONS]] == [1, 2, 3, 4]
    assert levels[GENERATIONS] < 1e-3
    assert reports[GENERATIONS]["num_held"] == 0
    assert all(r["ess_alarm"] == 1 for r in reports)


def test_too_few_steps_are_refused():
    """Any-order unmasking of 144 sites in 100 steps never shows the last: it must be said at once."""
    masked, linear = MaskedPath(2), LinearPath()
    config = iteration.IterationConfig(num_times=100)
    denoiser = heads.DenoiserHead(masked)

    def make(process, head, event_shape, config=config):
        algorithm = algorithms.Weighted(process.path, head, silent)
        energy = lambda x: jnp.zeros(3)
        return iteration.make_iteration(
            algorithm, process, energy, optax.sgd(1.0), config, event_shape=event_shape
        )

    match = "config.num_times is too small: num_steps must be at least the 144 sites"
    with pytest.raises(ValueError, match=match):
        make(AnyOrderProcess(masked), denoiser, (144,))
    product = ProductProcess({"x": DiffusionProcess(linear), "h": AnyOrderProcess(masked)})
    both = heads.ProductHead({"x": heads.ScoreHead(linear), "h": denoiser})
    with pytest.raises(ValueError, match=match):
        make(product, both, {"x": (2,), "h": (144,)})
    make(AnyOrderProcess(masked), denoiser, (100,))
    make(AnyOrderProcess(masked), denoiser, (81,))
    make(JumpProcess(masked), denoiser, (144,))
