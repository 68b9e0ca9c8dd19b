"""Ladders and step sizes that fit the problem: swaps by dimension, acceptance by adaptation, devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import special

from energymatch import matching, tempering
from energymatch.losses import Batch
from energymatch.negatives import Tempered

KEY = jax.random.key(17)


def test_the_factor_is_that_of_the_incomplete_beta_law():
    """A = 2 I_{1/(1 + f)}(D/2, D/2), the mean acceptance of swaps between gamma variates of shape D/2."""
    for dim in (1, 2, 3, 10, 30, 100, 3072, 10**6):
        for target in (0.2, 0.4, 0.7):
            factor = tempering.factor_for(dim, target)
            found = 2 * special.betainc(dim / 2, dim / 2, 1 / (1 + factor))
            assert abs(found - target) < 1e-4, (dim, target, found)
    c = [(tempering.factor_for(d) - 1) * np.sqrt(d) for d in (1000, 10**5)]
    np.testing.assert_allclose(c, 1.7, atol=0.05)


def run(source, potential, x, num_draws, epsilon=1.0):
    batch = Batch(x, x)

    def body(chains, k):
        out = source.draw(jax.random.fold_in(KEY, k), potential, epsilon, chains, batch)
        return out.chains, (out.metrics, out.x)

    scan = jax.jit(lambda x: jax.lax.scan(body, source.init(potential, x, epsilon), np.arange(num_draws)))
    chains, (metrics, states) = scan(x)
    return chains, jax.tree.map(np.asarray, metrics), np.asarray(states)


@pytest.mark.parametrize(
    "dim, num_rungs", [(2, 4), (10, 4), (30, 6), pytest.param(100, 8, marks=pytest.mark.slow)]
)
def test_default_ladders_swap_and_move_in_any_dimension(dim, num_rungs):
    """Wells of widths from .3 to 3 at the default settings: swaps, moves, variances of the coldest rung.

    A factor of 1.7 has a swap acceptance of .15 in 30 dimensions and .008 in 100.
    """
    widths = np.geomspace(0.3, 3.0, dim).astype(np.float32)
    V = lambda x: 0.5 * jnp.sum((x / widths[None]) ** 2, axis=-1)
    num = 256
    source = Tempered()
    assert source.ladder(dim)[0] == num_rungs
    chains, metrics, states = run(source, V, widths[None] * jax.random.normal(KEY, (num, dim)), 60)
    assert chains.x.shape == (num_rungs, num, dim)
    swaps = metrics["swap_acceptance"][-20:].mean()
    assert 0.35 < swaps < 0.75, swaps
    assert np.all(np.abs(metrics["cold_acceptance"][-20:] - 0.57) < 0.05)
    # 256 chains of the last draw alone: 4.5 standard errors of each of D variances.
    variance = np.mean((states[-1] / widths[None]) ** 2, axis=0)
    assert np.all(np.abs(variance - 1) < 4.5 * np.sqrt(2 / num)), variance


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("step_size", [1e-4, 10.0])
def test_step_sizes_find_the_acceptance_whatever_the_units(scale, step_size):
    """From steps too small and too large by orders of magnitude, in other units."""
    V = lambda x: 0.5 * jnp.sum((x / scale) ** 2, axis=-1)
    x = scale * jax.random.normal(KEY, (128, 5))
    source = Tempered(num_rungs=2, num_steps=5, step_size=step_size * scale**2)
    _, metrics, _ = run(source, V, x, 80)
    assert np.all(np.abs(metrics["cold_acceptance"][-10:] - 0.57) < 0.06)
    # With the well's own curvature 1/scale^2 the step is of the order of scale^2.
    assert 0.3 < metrics["step_size"][-1] / scale**2 < 2


def test_a_flat_potential_does_not_let_the_steps_grow():
    """Every move is accepted: the noise of a step stays below sqrt(2) deviations of the data."""
    x = 3.0 * jax.random.normal(KEY, (256, 2))
    chains, metrics, _ = run(Tempered(num_rungs=2, num_steps=1), lambda x: 0.0 * x[:, 0], x, 60)
    np.testing.assert_allclose(metrics["step_size"][-1], np.var(x, axis=0).mean(), rtol=1e-4)


def test_fixed_steps_stay():
    x = jax.random.normal(KEY, (64, 2))
    V = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    for source in (Tempered(num_rungs=2, adapt=False), Tempered(num_rungs=2, method="euler_maruyama")):
        chains, metrics, _ = run(source, V, x, 3)
        np.testing.assert_allclose(metrics["step_size"], 0.01, rtol=1e-5)
        np.testing.assert_allclose(
            jnp.exp(chains.log_step_sizes), 0.01 * 1.7 ** np.array([0, -0.5]), rtol=1e-5
        )


def test_adaptation_is_the_same_on_one_device_and_eight(mesh8):
    V = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    x = jax.random.normal(KEY, (32, 3))
    source = Tempered(num_steps=3)

    def fn(x, axis_name=None):
        chains = source.init(V, x, 1.0)
        for k in range(3):
            out = source.draw(jax.random.fold_in(KEY, k), V, 1.0, chains, Batch(x, x), axis_name)
            chains = out.chains
        return chains, out.metrics

    one = jax.jit(fn)(x)
    specs = (source.spec("i"), P())
    eight = jax.shard_map(functools.partial(fn, axis_name="i"), mesh=mesh8, in_specs=P("i"), out_specs=specs)
    chex.assert_trees_all_close(jax.jit(eight)(x), one, rtol=1e-4, atol=1e-5)
    assert np.all(one[0].log_step_sizes != source.init(V, x, 1.0).log_step_sizes)
    _, metrics = jax.pmap(functools.partial(fn, axis_name="i"), axis_name="i")(x.reshape(8, 4, 3))
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[3], metrics), one[1], rtol=1e-4, atol=1e-5)
    spec = matching.state_spec(matching.MatchingConfig(negatives=source), "i")
    assert spec.chains == source.spec("i")


def test_ladders_of_ones_own_adapt_too():
    V = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    temperatures = jnp.array([0.5, 1.0])
    state = tempering.init(V, jnp.zeros((64, 2)), temperatures, step_size=np.array([1e-3, 10.0]))
    step = jax.jit(functools.partial(tempering.step, potential=V, temperatures=temperatures))
    for k in range(60):
        state, info = step(jax.random.fold_in(KEY, k), state)
    assert np.all(np.abs(info.acceptance - 0.57) < 0.06)
    with pytest.raises(ValueError, match="step_size must be given where the state was made without"):
        step(KEY, tempering.init(V, jnp.zeros((4, 2)), temperatures))
    with pytest.raises(ValueError, match="acceptance must be below 1"):
        tempering.factor_for(3, 1.0)
