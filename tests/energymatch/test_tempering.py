"""Parallel tempering: masses of two wells, the joint law of all rungs, swaps, devices, bad input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from energymatch import langevin, tempering

KEY = jax.random.key(3)
EPSILON = 0.3
LADDER = tempering.geometric_temperatures(EPSILON, 2.0, 4)
B = 2000


def wells(x):
    """Two wells at -1 and 1, the right one .2 higher; a barrier of 3, ten times the coldest temperature."""
    return 3 * (x[:, 0] ** 2 - 1) ** 2 + 0.1 * x[:, 0]


def right_mass(temperature):
    grid = np.linspace(-5, 5, 200_001)
    density = np.exp(-np.asarray(3 * (grid**2 - 1) ** 2 + 0.1 * grid) / temperature)
    return density[grid > 0].sum() / density.sum()


@functools.partial(jax.jit, static_argnames="num_calls")
def ladders(key, x, num_calls):
    state = tempering.init(wells, x, LADDER)

    def body(state, k):
        return tempering.step(
            jax.random.fold_in(key, k), state, potential=wells, temperatures=LADDER, step_size=0.04,
            num_steps=10, num_swaps=3,
        )  # fmt: skip

    return jax.lax.scan(body, state, np.arange(num_calls))


def test_tempering_finds_the_masses_that_a_cold_chain_misses():
    """90 of 100 chains start on the right, where the density has a third of its mass."""
    x = jnp.where(jnp.arange(B) < 0.9 * B, 1.0, -1.0)[:, None]
    cold = jax.jit(
        lambda x: langevin.sample(
            KEY, wells, x, num_steps=600, step_size=0.04, temperature=EPSILON, method="mala"
        )
    )(x)
    assert np.mean(cold.x > 0) > 0.85
    state, info = ladders(KEY, x, 60)  # as many moves
    for rung, temperature in enumerate(LADDER):
        exact = right_mass(float(temperature))
        error = np.sqrt(exact * (1 - exact) / B)
        found = np.mean(state.x[rung, :, 0] > 0)
        assert abs(found - exact) <= 4 * error, (rung, found, exact)
    assert np.all(info.num_nonfinite == 0)
    assert np.all((info.acceptance > 0.3) & (info.acceptance < 0.999))
    assert np.all((info.swap_acceptance > 0.3) & (info.swap_acceptance < 0.999))
    np.testing.assert_allclose(state.value, wells(state.x.reshape(-1, 1)).reshape(4, B), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state.num_rounds, 180)


def test_swaps_keep_the_joint_density():
    """Normals: rung r starts at N(0, T_r) exactly; swaps alone must keep every variance, and move states.

    A swap rule that is wrong (gap or sign) changes the variances by far more than 4 standard errors.
    """
    V = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    n, temperatures = 20_000, tempering.geometric_temperatures(0.5, 2.0, 4)
    x = jax.random.normal(KEY, (4, n, 1)) * jnp.sqrt(temperatures)[:, None, None]
    gradient = x
    state = tempering.TemperingState(x, V(x.reshape(-1, 1)).reshape(4, n), gradient, jnp.int32(0))
    # A step size that moves nothing leaves the swaps alone.
    new, info = jax.jit(
        functools.partial(
            tempering.step, potential=V, temperatures=temperatures, step_size=1e-12, num_steps=1, num_swaps=6
        )
    )(KEY, state)
    variance = np.mean(np.asarray(new.x, np.float64) ** 2, axis=(1, 2))
    expected = np.asarray(temperatures, np.float64)
    assert np.all(np.abs(variance - expected) <= 4 * expected * np.sqrt(2 / n)), variance
    np.testing.assert_allclose(np.sort(new.x, axis=0), np.sort(x, axis=0), atol=1e-4)  # each ladder's own
    assert np.mean(np.abs(new.x[0] - x[0]) > 1e-3) > 0.5
    np.testing.assert_allclose(new.gradient, new.x, rtol=1e-5, atol=1e-5)
    # Probability of a swap, by quadrature over both energies a, b in units of their temperatures, each half
    # a chi-square of one degree: min(1, exp((1 - 1/2) (a - 2 b))).
    u = (np.arange(2000) + 0.5) / 2000
    energy = stats.chi2(1).ppf(u) / 2
    probability = np.mean(np.exp(np.minimum(0.0, 0.5 * (energy[:, None] - 2 * energy[None]))))
    # Standard error of the mean over 20,000 ladders is below .5/sqrt(n); rounds of one ladder only help.
    np.testing.assert_allclose(info.swap_acceptance, np.full(3, probability), atol=4 * 0.5 / np.sqrt(n))


def test_rounds_alternate_from_call_to_call():
    """One round a call: pairs (0, 1), (2, 3), then (1, 2). With the hottest rung lowest every pair swaps."""
    V = lambda x: jnp.sum(x, axis=-1)
    temperatures = jnp.array([1.0, 2.0, 3.0, 4.0])
    x = jnp.array([40.0, 30.0, 20.0, 10.0])[:, None, None]
    state = tempering.init(V, x[0], temperatures)._replace(x=x)
    step = jax.jit(
        functools.partial(
            tempering.step, potential=V, temperatures=temperatures, step_size=1e-9, num_steps=1, num_swaps=1
        )
    )
    orders = ([30, 40, 10, 20], [30, 10, 40, 20], [10, 30, 20, 40], [10, 20, 30, 40])
    for i, expected in enumerate(orders):
        state, _ = step(jax.random.fold_in(KEY, i), state)
        np.testing.assert_allclose(state.x[:, 0, 0], expected, atol=0.01)


def test_swap_probability_by_hand():
    """Two rungs at given energies: min(1, exp((1/T_0 - 1/T_1)(V_0 - V_1))) = exp(-.5 * .8), 20,000 times."""
    V = lambda x: x[:, 0]
    n, temperatures = 20_000, jnp.array([1.0, 2.0])
    x = jnp.stack([jnp.full((n, 1), 0.2), jnp.full((n, 1), 1.0)])
    state = tempering.init(V, x[0], temperatures)._replace(x=x)
    step = functools.partial(
        tempering.step, potential=V, temperatures=temperatures, step_size=1e-9, num_steps=1, num_swaps=1
    )
    new, info = jax.jit(step)(KEY, state)
    exact = np.exp(-0.4)
    np.testing.assert_allclose(info.swap_acceptance, [exact], rtol=1e-3)
    found = np.mean(new.x[0] > 0.6)
    assert abs(found - exact) <= 4 * np.sqrt(exact * (1 - exact) / n)


def test_the_potential_may_change_between_calls():
    """Values carried from another potential have no say: the call equals one from a fresh state."""
    x = jax.random.normal(KEY, (8, 1))
    state, _ = ladders(KEY, x, 2)
    other = lambda x: jnp.cosh(x[:, 0])
    step = jax.jit(functools.partial(tempering.step, potential=other, temperatures=LADDER, step_size=0.1))
    stale, _ = step(KEY, state)
    value = other(state.x.reshape(-1, 1)).reshape(4, 8)
    fresh, _ = step(KEY, state._replace(value=value, gradient=jnp.sinh(state.x)))
    chex.assert_trees_all_equal(stale, fresh)
    np.testing.assert_allclose(stale.value, other(stale.x.reshape(-1, 1)).reshape(4, 8), rtol=1e-5)


def test_one_device_and_eight(mesh8):
    x = jax.random.normal(KEY, (16, 4, 4, 1))  # images
    V = lambda x: 0.5 * jnp.sum(x**2, axis=(1, 2, 3))
    temperatures = tempering.geometric_temperatures(0.5, 1.2, 3)

    def fn(x, axis_name=None):
        return tempering.step(
            KEY, tempering.init(V, x, temperatures), potential=V, temperatures=temperatures, step_size=0.05,
            num_steps=2, num_swaps=3, bounds=(-3, 3), axis_name=axis_name,
        )  # fmt: skip

    one = jax.jit(fn)(x)
    assert np.any(one[0].x[0] != one[0].x[1])
    over = functools.partial(fn, axis_name="i")
    split = P(None, "i")
    specs = (tempering.TemperingState(split, split, split, P()), P())
    shard = jax.shard_map(over, mesh=mesh8, in_specs=P("i"), out_specs=specs)
    chex.assert_trees_all_close(jax.jit(shard)(x), one, rtol=1e-5, atol=1e-6)
    state, info = jax.pmap(over, axis_name="i")(x.reshape(8, 2, 4, 4, 1))
    np.testing.assert_allclose(jnp.moveaxis(state.x, 0, 1).reshape(one[0].x.shape), one[0].x, atol=1e-5)
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[5], info), one[1], rtol=1e-5)


def test_unadjusted_moves_have_their_known_bias():
    """Normals: variance T/(1 - h/2) on every rung; swaps by V/T would mend it, so there are none here."""
    V, n = lambda x: 0.5 * jnp.sum(x**2, axis=-1), 10_000
    h, temperatures = jnp.array([0.3, 0.6]), jnp.array([0.5, 1.0])
    state = tempering.init(V, jnp.zeros((n, 1)), temperatures)
    new, info = jax.jit(
        functools.partial(
            tempering.step, potential=V, temperatures=temperatures, step_size=h, num_steps=40, num_swaps=0,
            method="euler_maruyama",
        )
    )(KEY, state)  # fmt: skip
    expected = np.asarray(temperatures / (1 - h / 2), np.float64)
    variance = np.mean(np.asarray(new.x, np.float64) ** 2, axis=(1, 2))
    assert np.all(np.abs(variance - expected) <= 4 * expected * np.sqrt(2 / n)), variance
    np.testing.assert_array_equal(info.acceptance, np.ones(2))


def test_one_trace_and_a_single_rung():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def fn(key, state, temperatures, h, k):
        V = lambda x: k * jnp.sum(x**2, -1)
        return tempering.step(key, state, potential=V, temperatures=temperatures, step_size=h, num_steps=2)

    state = tempering.init(lambda x: jnp.sum(x**2, -1), jax.random.normal(KEY, (6, 2)), jnp.ones(1))
    for i in range(3):
        state, info = fn(jax.random.key(i), state, jnp.array([1.0 + i]), 0.1 * (i + 1), 1.0 + i)
    chex.assert_shape([state.x, state.value], [(1, 6, 2), (1, 6)])
    assert info.swap_acceptance.shape == (0,)


def test_what_is_not_finite_stays_and_is_counted():
    """V is NaN above .5: chains stay below; a rung that starts there keeps its state and never swaps."""
    V = lambda x: jnp.where(x[:, 0] > 0.5, jnp.nan, x[:, 0] ** 2)
    state = tempering.init(V, jnp.zeros((64, 1)), LADDER)
    state = state._replace(x=state.x.at[2, 0].set(2.0))
    step = jax.jit(functools.partial(tempering.step, potential=V, temperatures=LADDER, step_size=0.1))
    counts = 0
    for i in range(5):
        state, info = step(jax.random.fold_in(KEY, i), state)
        counts += info.num_nonfinite
    assert np.all(np.isfinite(state.x))
    assert state.x[2, 0, 0] == 2
    others = np.delete(np.asarray(state.x)[..., 0].ravel(), 2 * 64)
    assert np.all(others <= 0.5)
    assert counts[2] >= 50  # the state's own 5 * 10 moves
    assert np.all(counts > 0)
    assert np.all(np.isfinite(info.swap_acceptance))


def test_geometric_temperatures():
    np.testing.assert_allclose(LADDER, [0.3, 0.6, 1.2, 2.4], rtol=1e-6)
    traced = jax.jit(lambda e: tempering.geometric_temperatures(e, 2.0, 4))(0.3)
    np.testing.assert_allclose(traced, LADDER, rtol=1e-6)


def step(temperatures=LADDER, h=0.1, key=KEY, **options):
    state = tempering.init(wells, jnp.ones((2, 1)), LADDER)
    return tempering.step(key, state, potential=wells, temperatures=temperatures, step_size=h, **options)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: step(temperatures=np.array([1.0, 2.0])), ValueError, r"temperatures must have shape \(4,\)"),
        (lambda: step(temperatures=np.arange(4.0)), ValueError, "temperatures must be finite and positive"),
        (lambda: step(temperatures=np.arange(6.0, 2, -1)), ValueError, "temperatures must increase, got"),
        (lambda: step(temperatures=1.0), ValueError, r"temperatures must be a vector of at least 1, got"),
        (lambda: step(h=0.0), ValueError, "step_size must be finite and positive, got 0.0"),
        (lambda: step(h=np.ones(2)), ValueError, r"step_size must be a scalar or have shape \(4,\), got"),
        (lambda: step(num_steps=0), ValueError, "num_steps must be at least 1, got 0"),
        (lambda: step(num_swaps=-1), ValueError, "num_swaps must be at least 0, got -1"),
        (lambda: step(method="heun"), ValueError, "method must be one of .*, got 'heun'"),
        (lambda: step(key=1), TypeError, "key must be a typed PRNG key"),
        (lambda: step(bounds=(1, 1)), ValueError, r"bounds must be \(lo, hi\) with lo < hi"),
        (lambda: tempering.init(wells, np.ones((2, 1), int), LADDER), TypeError, "x must be floating point"),
        (lambda: tempering.init(wells, jnp.ones((2, 1)), np.array([2.0, 2.0])),
         ValueError, "temperatures must increase"),
        (lambda: tempering.geometric_temperatures(0.3, 1.0, 5), ValueError, "factor must be above 1"),
        (lambda: tempering.geometric_temperatures(0.3, 2.0, 0), ValueError, "num must be at least 1, got 0"),
        (lambda: tempering.geometric_temperatures(0.0, 2.0, 3),
         ValueError, "epsilon_max must be finite and positive, got 0.0"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()
