"""Negatives and both phases of Energy Matching: exact moments, devices, bad values, a density learned.

With V = k (x - m)^2/2 an Euler-Maruyama step is x' - m = (1 - hk)(x - m) + sqrt(2 eps h) eta: mean and
variance follow mean' - m = (1 - hk)(mean - m), var' = (1 - hk)^2 var + 2 eps h. Statistical bounds are 4
standard errors of n independent chains: sqrt(var/n) of a mean, var sqrt(2/n) of a variance of normals.
"""

import dataclasses
import functools
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from egm import training
from energymatch import losses, matching, tempering
from energymatch.losses import Batch
from energymatch.negatives import ShortRun, Tempered
from energymatch.networks import MLPPotential

KEY = jax.random.key(21)
K, M = 1.5, 0.5
normal = lambda x: 0.5 * K * jnp.sum((x - M) ** 2, axis=-1)


def assert_moments(x, mean, variance):
    x = np.asarray(x, np.float64)
    n = len(x)
    assert np.all(np.abs(x.mean(0) - mean) <= 4 * np.sqrt(variance / n)), (x.mean(0), mean)
    assert np.all(np.abs(x.var(0) - variance) <= 4 * variance * np.sqrt(2 / n)), (x.var(0), variance)


# ShortRun


@pytest.mark.parametrize("anneal_data", [False, True])
def test_short_run_moments_of_both_halves(anneal_data):
    """Odd chains from data 2 at epsilon_max all along, even ones from the prior -1 by the schedule."""
    n, num_steps, h, tau_star, epsilon = 20_000, 20, 0.1, 0.6, 0.4
    source = ShortRun(num_steps=num_steps, step_size=h, tau_star=tau_star, anneal_data=anneal_data)
    batch = Batch(jnp.zeros((n, 1)), jnp.zeros((n, 1)), jnp.full((n, 1), 2.0), jnp.full((n, 1), -1.0))
    out = jax.jit(lambda b: source.draw(KEY, normal, epsilon, None, b))(batch)
    assert out.x.shape == (n, 1)
    assert out.log_weights is None
    assert out.chains is None
    ramp = epsilon * np.clip((np.arange(num_steps) / num_steps - tau_star) / (1 - tau_star), 0, 1)
    assert ramp[-1] < epsilon  # time 1 is the end of the last step, not its start
    for half, start, temperatures in (
        (out.x[::2], -1.0, ramp),
        (out.x[1::2], 2.0, ramp if anneal_data else np.full(num_steps, epsilon)),
    ):
        mean, variance = start, 0.0
        for eps in temperatures:
            mean = M + (1 - h * K) * (mean - M)
            variance = (1 - h * K) ** 2 * variance + 2 * eps * h
        assert_moments(half[:, 0], mean, variance)
    assert (out.metrics["chain_acceptance"], out.metrics["chain_held"]) == (1, 0)


@pytest.mark.parametrize("num, num_prior", [(8, 4), (8, 6), (8, 8), (8, 20), (7, 4), (2, 1)])
def test_short_run_starts(num, num_prior):
    """Without noise a chain shows where it started: data at its own place, the prior's spread over all."""
    data = 100.0 + jnp.arange(num)[:, None]
    prior = 1.0 * jnp.arange(num_prior)[:, None]
    source = ShortRun(num_steps=1, step_size=0.1)
    out = source.draw(KEY, lambda x: 0.0 * x[:, 0], 1e-12, None, Batch(data, data, data, prior))
    start = np.round(np.asarray(out.x)[:, 0])
    np.testing.assert_array_equal(start[1::2], 100 + np.arange(num)[1::2])
    assert len(start) == num
    chosen = start[::2]
    np.testing.assert_array_equal(chosen, np.arange(len(chosen)) * num_prior // len(chosen))
    assert len(set(chosen)) == len(chosen)


def test_short_run_falls_back_to_the_pairs():
    x = jnp.arange(4.0)[:, None]
    out = ShortRun(1, 0.1).draw(KEY, lambda x: 0.0 * x[:, 0], 1e-12, None, Batch(x, x + 100))
    np.testing.assert_array_equal(np.round(out.x[:, 0]), [0, 101, 2, 103])


def test_short_run_with_tau_star_1_is_gradient_descent_from_the_prior():
    """The published image setting: temperature 0 below t = 1, epsilon_max for the runs from data."""
    source = ShortRun(num_steps=10, step_size=0.1, tau_star=1.0)
    x = jnp.full((8, 1), 3.0)
    out = source.draw(KEY, normal, 0.3, None, Batch(x, x, x, x))
    np.testing.assert_allclose(out.x[::2, 0], M + (1 - 0.1 * K) ** 10 * (3 - M), rtol=1e-5)
    assert np.std(out.x[1::2]) > 0.05


# Tempered


def test_tempered_coldest_rung_has_the_moments():
    """Metropolis-adjusted, so N(m, eps/k) without bias at any step: 12 draws from a start that is far off."""
    n, epsilon = 2_000, 0.6
    source = Tempered(num_steps=5, step_size=0.4)
    x = jnp.full((n, 2), 3.0)
    batch = Batch(x, x)

    def body(chains, k):
        out = source.draw(jax.random.fold_in(KEY, k), normal, epsilon, chains, batch)
        return out.chains, (out.metrics, jnp.all(out.x == out.chains.x[0]))

    chains = source.init(normal, x, epsilon)
    assert chains.x.shape == (4, n, 2)
    chains, (metrics, coldest) = jax.jit(lambda c: jax.lax.scan(body, c, np.arange(12)))(chains)
    assert np.all(coldest)
    for rung, temperature in enumerate(epsilon * 1.7 ** np.arange(4)):
        assert_moments(chains.x[rung], M, temperature / K)
    assert set(metrics) == {
        "chain_acceptance",
        "chain_held",
        "cold_acceptance",
        "step_size",
        "swap_acceptance",
    }
    assert np.all(metrics["chain_held"] == 0)
    assert 0.3 < metrics["chain_acceptance"][-1] < 0.99
    assert 0.3 < metrics["swap_acceptance"][-1] < 0.99


def test_tempered_of_one_rung_is_a_persistent_chain():
    source = Tempered(num_rungs=1, num_steps=2)
    x = jnp.zeros((4, 2))
    out = source.draw(KEY, normal, 1.0, source.init(normal, x, 1.0), Batch(x, x))
    assert set(out.metrics) == {"chain_acceptance", "chain_held", "cold_acceptance", "step_size"}
    np.testing.assert_array_equal(out.x, out.chains.x[0])
    assert np.any(out.x != x)


# make_warm_up and make_matching

NET = MLPPotential(width=16, depth=2)
PARAMS = NET.init(jax.random.key(0), jnp.zeros((1, 2)))
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2, eps=1e-3))
RECIPES = {
    "published": dataclasses.replace(
        matching.published_2d(), negatives=ShortRun(num_steps=20, step_size=0.05)
    ),
    "tempered": matching.MatchingConfig(trim=0.1, floor=5.0, energy_l2=0.01),
}


def make_batch(seed=0, num=64):
    rng = np.random.default_rng(seed)
    x_0, x_1, data, prior = rng.normal(size=(4, num, 2)).astype(np.float32)
    return Batch(x_0, 0.5 * x_1 + 1, 0.5 * data + 1, prior)


def train_three_and_three(config, axis_name=None, how=lambda init, step: step):
    """Three steps of the warm-up, three of phase 2; the states and metrics on the way."""
    init, step = matching.make_warm_up(NET.apply, OPTIMIZER, sigma=0.1, axis_name=axis_name)
    step = how("warm_up", step)
    state, history = init(PARAMS), []
    for k in range(3):
        state, metrics = step(jax.random.fold_in(KEY, k), state, make_batch(k))
        history.append(metrics)
    init, step = matching.make_matching(NET.apply, OPTIMIZER, config, axis_name=axis_name)
    step = how("matching", step)
    state = init(state.params, make_batch(9).data)
    for k in range(3):
        state, metrics = step(jax.random.fold_in(KEY, 3 + k), state, make_batch(3 + k))
        history.append(metrics)
    return state, history


@functools.cache
def on_one_device(recipe):
    def how(name, step):
        chex.clear_trace_counter()
        return jax.jit(chex.assert_max_traces(step, n=1))  # from the first state to the third

    return train_three_and_three(RECIPES[recipe], how=how)


def state_specs(recipe, name, whole, axis):
    """A tree for each argument's or result's state: what is the same on all devices, and axis 1 of chains."""
    if name == "warm_up":
        return whole
    chains = tempering.TemperingState(axis, axis, axis, whole, whole) if recipe == "tempered" else whole
    return matching.MatchingState(whole, chains)


@pytest.mark.parametrize("how", ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
@pytest.mark.parametrize("recipe", RECIPES)
def test_eight_devices_take_the_steps_of_one(mesh8, recipe, how):
    """Loss, parameters and chains within 2e-4 after six steps (sums in another order, through Adam)."""

    def shard_map(name, step):
        specs = state_specs(recipe, name, P(), P(None, "i"))
        ins, outs = (P(), specs, P("i")), (specs, P())
        return jax.jit(jax.shard_map(step, mesh=mesh8, in_specs=ins, out_specs=outs))

    def pmap(name, step):
        axes = state_specs(recipe, name, None, 1)
        fn = jax.pmap(step, axis_name="i", in_axes=(None, axes, 0), out_axes=(axes, None))
        split = lambda x: x.reshape(x.shape[0], 8, -1, *x.shape[2:])
        join = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])

        def on_chains(f, state):
            if name == "warm_up" or state.chains is None:
                return state
            c = state.chains
            return state._replace(chains=c._replace(x=f(c.x), value=f(c.value), gradient=f(c.gradient)))

        def run(key, state, batch):
            batch = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), batch)
            state, metrics = fn(key, on_chains(split, state), batch)
            return on_chains(join, jax.device_get(state)), metrics

        return run

    one, history = on_one_device(recipe)
    eight, eight_history = train_three_and_three(
        RECIPES[recipe], axis_name="i", how={"shard_map": shard_map, "pmap": pmap}[how]
    )
    chex.assert_trees_all_close(eight, one, rtol=2e-4, atol=2e-4)
    chex.assert_trees_all_close(eight_history, history, rtol=2e-4, atol=2e-4)
    assert one.train.step == 3
    if recipe == "tempered":
        assert np.all(np.any(np.asarray(one.chains.x) != make_batch(9).data, axis=-1).mean(axis=1) > 0.9)


def test_both_phases_move_the_parameters_and_report():
    for recipe in RECIPES:
        state, history = on_one_device(recipe)
        assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves((state, history)))
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.train.params, PARAMS)["params"]
        bias = moved["Dense_2"].pop("bias")  # a constant added to V, which the penalty alone can tell
        assert all(v > 1e-4 for v in jax.tree.leaves(moved))
        assert (bias > 1e-4) if RECIPES[recipe].energy_l2 else (bias < 1e-6)
        assert {"flow_loss", "loss", "grad_norm", "skipped", "nonfinite_flow"} <= set(history[0])
        assert {"data_energy", "negative_energy", "contrastive_loss", "chain_held"} <= set(history[-1])
        assert history[-1]["skipped"] == 0


def test_settings_are_the_published():
    """The two-dimensional experiments of arXiv 2504.10612."""
    config = matching.published_2d()
    assert (config.epsilon_max, config.lambda_cd, config.sigma) == (0.15, 2.0, 0.1)
    assert (config.trim, config.floor, config.energy_l2) == (0.0, None, 0.0)
    run = config.negatives
    assert (run.num_steps, run.step_size, run.tau_star) == (200, 0.01, 0.8)
    assert (run.method, run.anneal_data, run.bounds, run.at_step_end) == ("euler_maruyama", False, None, True)
    assert config.guard is None
    assert config.data_noise == 0
    t = jnp.array([0.0, 0.8, 0.9, 1.0])
    weight = config.gate(config.epsilon_max)(t, 0 * t, 0 * t)
    np.testing.assert_allclose(weight, [1, 1, 0.5, 0], atol=1e-6)
    assert isinstance(matching.MatchingConfig().negatives, Tempered)
    assert hash(config) == hash(matching.published_2d())  # one trace for equal settings


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_region_of_nan_does_not_stop_training(recipe):
    """V is NaN beyond x[0] = 1.3, where a quarter of the data are."""
    potential = lambda p, x: jnp.where(x[:, 0] > 1.3, jnp.nan, NET.apply(p, x))
    config = dataclasses.replace(RECIPES[recipe], floor=None)
    init, step = matching.make_matching(potential, OPTIMIZER, config)
    batch, step = make_batch(), jax.jit(step)
    state = init(PARAMS, batch.data)
    beyond = np.mean(batch.data[:, 0] > 1.3)
    assert beyond > 0.1
    for k in range(3):
        before = state.train.params
        state, metrics = step(jax.random.fold_in(KEY, k), state, batch)
        assert metrics["skipped"] == 0
        np.testing.assert_allclose(metrics["nonfinite_data"], beyond, rtol=1e-5)
        assert metrics["nonfinite_flow"] > 0.02
        assert metrics["nonfinite_negatives"] > 0.02
        assert metrics["chain_held"] > 0.02
        assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves((state.train, metrics)))
        moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), state.train.params, before)
        assert max(jax.tree.leaves(moved)) > 1e-4


def test_a_potential_that_is_nan_everywhere_leaves_the_parameters():
    init, step = matching.make_matching(lambda p, x: NET.apply(p, x) * jnp.nan, OPTIMIZER)
    state, metrics = jax.jit(step)(KEY, init(PARAMS, make_batch().data), make_batch())
    chex.assert_trees_all_equal(state.train.params, PARAMS)
    assert metrics["nonfinite_data"] == metrics["nonfinite_negatives"] == metrics["nonfinite_flow"] == 1
    assert metrics["skipped"] == 1


def nothing(t, values, data_values):
    """A gate that shuts out the flow loss."""
    return jnp.zeros_like(t)


@pytest.mark.parametrize("gate, tolerance", [(losses.energy_gate, 0.025), (lambda epsilon: nothing, 0.025)])
def test_learns_the_energy_of_a_normal(gate, tolerance):
    """exp(-V/epsilon_max) by quadrature against data N(.7, .5^2), mean and deviation.

    What is left is the noise of the last iterates: within .006 on four seeds without the flow loss. The
    default gate lets none of it through where the data are. The warm-up's V alone is far off.
    """
    mean, deviation, num = 0.7, 0.5, 256
    net = MLPPotential(width=16, depth=2, confinement_radius=5.0)
    params = net.init(jax.random.key(1), jnp.zeros((1, 1)))
    negatives = Tempered(num_rungs=2, num_steps=5, step_size=0.2)
    config = matching.MatchingConfig(gate=gate, negatives=negatives)
    steps = 150, 400

    def phase(make, num_steps, *options):
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
        init, step = make(net.apply, optimizer, *options, ema_decay=0.98)

        def body(state, k):
            key = jax.random.fold_in(KEY, k)
            x = jax.random.normal(key, (4, num, 1))
            x_0, x_1 = jnp.sort(x[0], axis=0), jnp.sort(mean + deviation * x[1], axis=0)  # the 1-D plan
            batch = Batch(x_0, x_1, mean + deviation * x[2], x[3])
            state, metrics = step(key, state, batch)
            return state, metrics["skipped"]

        return init, jax.jit(lambda state: jax.lax.scan(body, state, np.arange(num_steps)))

    grid = np.linspace(-6, 8, 4001)

    def moments(params):
        V = np.asarray(net.apply(params, jnp.asarray(grid, jnp.float32)[:, None]), np.float64)
        density = np.exp(-(V - V.min()) / config.epsilon_max)
        density /= density.sum()
        m = density @ grid
        return m, np.sqrt(density @ (grid - m) ** 2)

    init, run = phase(matching.make_warm_up, steps[0])
    warm, skipped = run(init(params))
    assert not np.any(skipped)
    before = moments(warm.ema_params)
    assert abs(before[1] - deviation) > 0.2
    init, run = phase(matching.make_matching, steps[1], config)
    state, skipped = run(init(warm.ema_params, mean + deviation * jax.random.normal(KEY, (num, 1))))
    assert not np.any(skipped)
    came = moments(state.train.ema_params)
    np.testing.assert_allclose(came, (mean, deviation), rtol=0, atol=tolerance)


def test_import_starts_no_backend():
    """jax.distributed.initialize() must still be possible after the import: defaults make no arrays."""
    code = (
        "import energymatch.matching, jax\n"
        "energymatch.matching.published_2d(), energymatch.matching.published_images()\n"
        "energymatch.matching.MatchingConfig(negatives=energymatch.negatives.Restarted())\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, list(xla_bridge._backends)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# bad input


def raises(call, error, message):
    return pytest.param(call, error, message, id=message)


X = jnp.ones((4, 2))
BATCH = Batch(X, X, X, X)
Config = matching.MatchingConfig


def draw(source=None, batch=BATCH, axis_name=None):
    source = ShortRun(num_steps=2) if source is None else source
    return jax.eval_shape(lambda: source.draw(KEY, normal, 1.0, None, batch, axis_name))


def one_step(config, key=KEY, batch=BATCH, potential=NET.apply):
    init, step = matching.make_matching(potential, OPTIMIZER, config)
    return jax.eval_shape(lambda: step(key, init(PARAMS, X), batch))


@pytest.mark.parametrize(
    "call, error, message",
    [
        raises(lambda: ShortRun(num_steps=0), ValueError, "num_steps must be at least 1, got 0"),
        raises(lambda: ShortRun(step_size=-0.1),
               ValueError, "step_size must be finite and positive, got -0.1"),
        raises(lambda: ShortRun(tau_star=2.0), ValueError, r"tau_star must lie in \[0, 1\], got 2.0"),
        raises(lambda: draw(ShortRun(method="rk4")), ValueError, "method must be one of .*, got 'rk4'"),
        raises(lambda: draw(ShortRun(bounds=(1, 0))), ValueError, r"bounds must be .* lo < hi, got \(1, 0\)"),
        raises(lambda: draw(batch=BATCH._replace(prior=X[:1])),
               ValueError, "batch.prior must hold at least 2 examples and batch.data 2, got 1 and 4"),
        raises(lambda: draw(batch=Batch(X, X, X[:1])), ValueError, "batch.data 2, got 4 and 1"),
        raises(lambda: draw(batch=BATCH._replace(prior=X[:, :1])),
               ValueError, r"batch.prior must have event shape \(2,\), got \(1,\)"),
        raises(lambda: draw(batch=BATCH._replace(data=X[:3]), axis_name="i"),
               ValueError, "batch.data must hold an even number on each device, got 3"),
        raises(lambda: Tempered(num_rungs=0), ValueError, "num_rungs must be at least 1, got 0"),
        raises(lambda: Tempered(factor=1.0), ValueError, "factor must be above 1, got 1.0"),
        raises(lambda: Tempered(step_size=0.0), ValueError, "step_size must be finite and positive, got 0.0"),
        raises(lambda: one_step(Config(negatives=Tempered(method="heun"))),
               ValueError, "method must be one of .*, got 'heun'"),
        raises(lambda: one_step(Config(negatives=Tempered(num_steps=0))),
               ValueError, "num_steps must be at least 1, got 0"),
        raises(lambda: Config(epsilon_max=0.0),
               ValueError, "epsilon_max must be finite and positive, got 0.0"),
        raises(lambda: Config(lambda_cd=-1.0),
               ValueError, "lambda_cd must be finite and non-negative, got -1.0"),
        raises(lambda: Config(sigma="s"), TypeError, "sigma must be a number, got 's'"),
        raises(lambda: Config(gate=0.8), TypeError, "gate must be callable or None, got 0.8"),
        raises(lambda: Config(negatives=200), TypeError, "negatives must have init and draw, got 200"),
        raises(lambda: one_step(Config(trim=1.0)), ValueError, r"trim must be in \[0, 1\), got 1.0"),
        raises(lambda: one_step(Config(floor=-1.0)), ValueError, "floor must be .* non-negative, got -1.0"),
        raises(lambda: one_step(Config(), key=7), TypeError, "key must be a typed PRNG key, .* got 7"),
        raises(lambda: one_step(Config(), potential=lambda p, x: x),
               ValueError, r"potential must return shape \(4,\), got \(4, 2\)"),
        raises(lambda: one_step({"epsilon_max": 1.0}), TypeError, "config must be a MatchingConfig, got {"),
        raises(lambda: matching.make_warm_up(None, OPTIMIZER),
               TypeError, "potential must be callable, got None"),
        raises(lambda: matching.make_matching(3, OPTIMIZER), TypeError, "potential must be callable, got 3"),
        raises(lambda: matching.make_warm_up(NET.apply, OPTIMIZER, ema_decay=1.0),
               ValueError, r"ema_decay must be in \[0, 1\), got 1.0"),
        raises(lambda: matching.make_matching(NET.apply, OPTIMIZER)[0](PARAMS, jnp.arange(4)),
               TypeError, "x must be floating point, got dtype int32"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_no_gate_is_allowed():
    out, metrics = one_step(Config(gate=None))
    assert isinstance(out.train, training.TrainState)
    assert metrics["loss"].shape == ()
    assert losses.energy_gate is Config().gate
