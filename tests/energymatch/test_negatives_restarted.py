"""Chains that restart at the prior: their clocks, their equilibrium, devices, bad values, a density learned.

V = k (x - m)^2/2. Where the schedule is cold a Metropolis-adjusted step is the gradient step
x' - m = (1 - hk)(x - m), always accepted; at epsilon the chains keep N(m, epsilon/k) without bias.
Statistical bounds are 4 standard errors of n independent chains: sqrt(p (1 - p)/n) of a share,
sqrt(var/n) of a mean, var sqrt(2/n) of a variance of normals.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from energymatch import matching
from energymatch.losses import Batch
from energymatch.negatives import Negatives, Restarted, RestartedState

KEY = jax.random.key(31)
K, M, EPSILON = 1.5, 0.5, 0.6
normal = lambda x: 0.5 * K * jnp.sum((x - M) ** 2, axis=-1)


def run(source, x, prior, num_draws):
    """`num_draws` draws from chains at x: (the last, [draws] metrics, [draws, M] ages before and after)."""

    def body(chains, k):
        out = source.draw(jax.random.fold_in(KEY, k), normal, EPSILON, chains, Batch(prior, prior))
        return out.chains, (out._replace(chains=None), chains.age, out.chains.age)

    @jax.jit
    def several(x):
        chains = source.init(normal, x, EPSILON)
        return jax.lax.scan(body, chains, np.arange(num_draws))[1]

    outs, before, after = several(x)
    return jax.tree.map(lambda a: a[-1], outs._replace(metrics=None)), outs.metrics, before, after


@pytest.fixture(scope="module")
def long_run():
    """4,000 chains from data 40 standard deviations away, 60 draws with restarts from near that place."""
    n = 4000
    source = Restarted(num_steps=5, step_size=0.2, tau_star=0.5, restart=0.1, burn_in=9.9)
    x = jnp.full((n, 2), 25.0)
    return source, n, run(source, x, x - 0.5, 60)


def test_restarts_and_ages(long_run):
    """A chain is 5 steps old where it restarted, else 5 older; burn_in = 9.9 is 50 steps, hence .9^9."""
    source, n, (last, metrics, before, after) = long_run
    restarted = np.asarray(after == 5)
    np.testing.assert_array_equal(np.where(restarted, 0, before) + 5, after)
    share = restarted.mean()
    assert abs(share - 0.1) <= 4 * np.sqrt(0.09 / restarted.size), share
    # No chain's restarts depend on another's: the share over draws varies as independent ones do.
    assert abs(restarted.mean(1).var() / (0.09 / n) - 1) <= 4 * np.sqrt(2 / 60)
    weighing = np.asarray(after[-1] >= 50)
    np.testing.assert_array_equal(last.log_weights, np.where(weighing, 0.0, -np.inf))
    assert abs(weighing.mean() - 0.9**9) <= 4 * np.sqrt(0.9**9 * (1 - 0.9**9) / n), weighing.mean()
    np.testing.assert_allclose(metrics["chain_weighing"], np.mean(after >= 50, axis=1), rtol=1e-5)
    assert set(metrics) == {"chain_acceptance", "chain_held", "chain_weighing"}
    assert np.all(metrics["chain_held"] == 0)
    assert np.all((metrics["chain_acceptance"] > 0.3) & (metrics["chain_acceptance"] <= 1))


def test_weighing_chains_are_at_equilibrium_and_young_ones_are_not(long_run):
    _, _, (last, _, _, _) = long_run
    x, weighs = np.asarray(last.x, np.float64), np.isfinite(last.log_weights)
    old, n, variance = x[weighs], weighs.sum(), EPSILON / K
    assert np.all(np.abs(old.mean(0) - M) <= 4 * np.sqrt(variance / n)), old.mean(0)
    assert np.all(np.abs(old.var(0) - variance) <= 4 * variance * np.sqrt(2 / n)), old.var(0)
    assert np.all(x.mean(0) - M > 20 * np.sqrt(variance / n))  # with the young ones: far off


def test_a_restarted_chain_runs_through_the_schedule():
    """tau_star = 1: gradient steps below t = 1 (10 steps) from the prior's state at the chain's place."""
    n, h = 512, 0.1
    source = Restarted(num_steps=5, step_size=h, tau_star=1.0, restart=0.3, burn_in=4.0)
    prior = 3.0 + jnp.arange(2.0 * n).reshape(n, 2) / n
    out, _, before, after = run(source, jnp.zeros((n, 2)), prior, 2)
    age = np.asarray(after[-1])
    assert set(age) == {5, 10, 50}
    descent = lambda steps: M + (1 - h * K) ** steps * (np.asarray(prior) - M)
    for steps in (5, 10):
        np.testing.assert_allclose(out.x[age == steps], descent(steps)[age == steps], rtol=1e-5)
    warm = np.asarray(out.x)[age == 50]
    assert np.all(np.std(warm, axis=0) > 0.5 * np.sqrt(EPSILON / K))  # from one point, at epsilon
    np.testing.assert_array_equal(np.isfinite(out.log_weights), age >= 40)


def test_burn_in_counts_steps():
    """12 draws of 3 steps of .1 are 3.6, which the sum of twelve .3 in float32 is not."""
    source = Restarted(num_steps=3, step_size=0.1, restart=0.0, burn_in=3.6)
    x = jnp.zeros((4, 1))
    chains = source.init(normal, x, 1.0)
    np.testing.assert_array_equal(chains.age, 36)
    chains = RestartedState(x, jnp.array([32, 33, 34, 0], jnp.int32))
    out = jax.jit(lambda c: source.draw(KEY, normal, 1.0, c, Batch(x, x)))(chains)  # prior: x_0
    np.testing.assert_array_equal(out.log_weights, [-np.inf, 0, 0, -np.inf])
    assert np.all(np.isfinite(Restarted(burn_in=0.0, restart=1.0).init(normal, x, 1.0).age))


def test_same_draws_on_eight_devices(mesh8):
    source = Restarted(num_steps=2, restart=0.5, burn_in=0.3)
    x = jnp.linspace(0.0, 1.0, 64).reshape(32, 2)
    batch = Batch(x, x + 1, prior=x + 2)

    def draws(x, batch, axis_name=None):
        def body(chains, k):
            out = source.draw(jax.random.fold_in(KEY, k), normal, EPSILON, chains, batch, axis_name)
            return out.chains, out

        return jax.lax.scan(body, source.init(normal, x, EPSILON), np.arange(4))[1]

    specs = Negatives(P(None, "i"), P(None, "i"), RestartedState(P(None, "i"), P(None, "i")), P())
    sharded = jax.shard_map(
        lambda x, b: draws(x, b, "i"), mesh=mesh8, in_specs=(P("i"), P("i")), out_specs=specs
    )
    one, eight = jax.jit(draws)(x, batch), jax.jit(sharded)(x, batch)
    chex.assert_trees_all_close(one, eight, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(one.chains.age, eight.chains.age)
    assert 0 < one.metrics["chain_weighing"][-1] < 1


def test_phase_2_learns_a_density_with_them():
    """V = a |x - m|^2/2 from 512 normal data of variance s^2: the minimiser has m the mean, epsilon/a = s^2.

    The parameters hover about it with the noise of 256 chains a step, averaged by the EMA over some 50
    steps: 5% is wide, and the start is 140% (of s) and 300% off.
    """
    data = 1.2 + 0.5 * jax.random.normal(jax.random.key(1), (512, 1))

    def potential(params, x):
        return 0.5 * jnp.exp(params["log_a"]) * jnp.sum((x - params["m"]) ** 2, axis=-1)

    source = Restarted(num_steps=5, step_size=0.3, restart=0.05, burn_in=2.0)
    config = matching.MatchingConfig(lambda_cd=4.0, negatives=source)
    init, step = matching.make_matching(potential, optax.adam(0.03), config, ema_decay=0.98)

    def body(state, k):
        rows, prior = jax.random.split(jax.random.fold_in(KEY, k))
        x = data[jax.random.randint(rows, (256,), 0, 512)]
        # Pairs that do not move: the gate is shut at data, so that the contrast learns alone.
        return step(rows, state, Batch(x, x, x, jax.random.normal(prior, (256, 1))))

    start = init({"log_a": jnp.zeros(()), "m": jnp.full((1, 1), 0.5)}, data[:256])
    state, metrics = jax.jit(lambda s: jax.lax.scan(body, s, np.arange(300)))(start)
    params = state.train.ema_params
    assert abs(params["m"].item() - data.mean()) < 0.05 * 0.5, params
    assert abs(np.exp(-params["log_a"]) / data.var() - 1) < 0.05, params
    assert np.all(metrics["chain_held"] == 0)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_steps": 0}, "num_steps"),
        ({"step_size": -1.0}, "step_size"),
        ({"tau_star": 1.5}, "tau_star"),
        ({"restart": 1.1}, "restart must lie in"),
        ({"restart": -0.1}, "restart"),
        ({"burn_in": -1.0}, "burn_in"),
        ({"burn_in": np.inf}, "burn_in"),
        ({"restart": 1.0}, "no chain would ever weigh"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Restarted(**settings)


def test_bad_draws():
    x = jnp.zeros((4, 2))
    source = Restarted()
    chains = source.init(normal, x, 1.0)
    with pytest.raises(ValueError, match=r"batch.prior must have the chains' shape \(4, 2\), got \(6, 2\)"):
        source.draw(KEY, normal, 1.0, chains, Batch(x, x, prior=jnp.zeros((6, 2))))
    with pytest.raises(TypeError, match="key must be a typed"):
        source.draw(jnp.zeros(2, jnp.uint32), normal, 1.0, chains, Batch(x, x))
    with pytest.raises(ValueError, match="method"):
        Restarted(method="gibbs").draw(KEY, normal, 1.0, chains, Batch(x, x))


def test_non_finite_chains_are_held_and_counted():
    """NaN where x > 2: a chain restarted there stays and is counted; the others go on."""
    potential = lambda x: jnp.where(x[:, 0] > 2, jnp.nan, normal(x))
    x = jnp.zeros((8, 1))
    prior = jnp.where(jnp.arange(8) < 4, 5.0, 0.2)[:, None]
    source = Restarted(num_steps=2, restart=1.0, burn_in=0.0)
    chains = source.init(potential, x, EPSILON)
    out = jax.jit(lambda c: source.draw(KEY, potential, EPSILON, c, Batch(x, x, prior=prior)))(chains)
    np.testing.assert_array_equal(out.x[:4], 5.0)
    assert np.all(np.isfinite(out.x))
    assert np.all(out.x[4:] != prior[4:])
    np.testing.assert_allclose(out.metrics["chain_held"], 0.5)
