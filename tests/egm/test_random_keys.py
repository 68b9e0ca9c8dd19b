"""No function of the library draws with a key that a loop around it makes of the same key, or twice with one.

Every draw is intercepted: `jax.random`'s samplers report the key that they are called with.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import egm
from egm import algorithms, energies, heads, iteration, networks, paths, processes, random
from energymatch import (
    couplings,
    curvature,
    langevin,
    likelihood,
    losses,
    matching,
    negatives,
    posterior,
    tempering,
)
from energymatch.likelihood import priors

KEY = jax.random.key(7)
SAMPLERS = "bits uniform normal randint permutation categorical bernoulli exponential choice gumbel".split()


def natural_keys(key, width=40):
    """What a user makes of a key: folds and splits of it, and folds and splits of those."""
    folds = [jax.random.fold_in(key, i) for i in range(width)]
    folds += list(jax.random.split(key, 3)) + list(jax.random.split(key))
    keys = jnp.stack([key, *folds])
    nested = jax.vmap(lambda k: jax.vmap(lambda i: jax.random.fold_in(k, i))(jnp.arange(width)))(keys)
    return {
        tuple(k)
        for part in (keys, nested.reshape(-1))
        for k in np.asarray(jax.random.key_data(part)).tolist()
    }


@pytest.fixture
def drawn(monkeypatch):
    """A list that fills with (sampler, key data) of every draw, from traced code as well."""
    found = []

    def record(name, data):
        found.extend((name, tuple(k)) for k in np.asarray(data).reshape(-1, 2).tolist())

    def wrap(name, sampler):
        @functools.wraps(sampler)
        def reporting(key, *args, **kwargs):
            jax.debug.callback(functools.partial(record, name), jax.random.key_data(key))
            return sampler(key, *args, **kwargs)

        return reporting

    for name in SAMPLERS:
        monkeypatch.setattr(jax.random, name, wrap(name, getattr(jax.random, name)))
    return found


def quadratic(x):
    return 0.5 * jnp.sum(x**2, axis=-1)


X = jnp.linspace(-1.0, 1.0, 12).reshape(6, 2)
MASKED, GAUSSIAN = paths.MaskedPath(3), paths.VarianceExplodingPath(0.1, 3.0)
POTENTIAL = lambda p, x: p * quadratic(x)
BATCH = losses.Batch(X, X[::-1], X)


def _iteration(path, process, net, event_shape, energy, head):
    config = iteration.IterationConfig(
        num_simulated=4, buffer_size=8, num_gradient_steps=2, batch_size=4, num_times=3
    )
    init, step = iteration.make_iteration(
        algorithms.Weighted(path, head, net.apply),
        process,
        energy,
        optax.sgd(0.1),
        config,
        event_shape=event_shape,
    )
    x = jnp.zeros((1, *event_shape), jnp.int32 if path is MASKED else float)
    state = init(net.init(jax.random.key(0), x, jnp.zeros(1)))
    return lambda key: step(key, state)


def _tokens_iteration():
    energy = energies.WithConditionals(lambda x: jnp.sum(x, -1).astype(float), 3)
    net = networks.MLPDenoiser(vocab_size=3, width=4, depth=1)
    return _iteration(
        MASKED, processes.AnyOrderProcess(MASKED), net, (3,), energy, heads.DenoiserHead(MASKED)
    )


def _vector_iteration():
    net = networks.MLPVector(GAUSSIAN, width=4, depth=1)
    process = processes.DiffusionProcess(GAUSSIAN)
    return _iteration(GAUSSIAN, process, net, (2,), quadratic, heads.ScoreHead(GAUSSIAN))


def _matching(source):
    config = matching.MatchingConfig(negatives=source, sigma=0.1)
    init, step = matching.make_matching(POTENTIAL, optax.sgd(0.1), config)
    state = init(jnp.ones(()), X)
    return lambda key: step(key, state, BATCH)


def _warm_up():
    init, step = matching.make_warm_up(POTENTIAL, optax.sgd(0.1), sigma=0.1)
    state = init(jnp.ones(()))
    return lambda key: step(key, state, BATCH)


def _denoiser(x, t):
    return jnp.full((*x.shape, 3), 1 / 3)


def _mixed_generator(state, t):
    return {"h": _denoiser(state["h"], t), "x": -state["x"]}


def _jump_step(key):
    return processes.JumpProcess(MASKED).step(key, MASKS, _denoiser, 0.1, 0.6)


def _estimate(path, x):
    density = lambda x, r: -jnp.sum(x, -1).astype(float)
    return lambda key: egm.estimate(key, path, density, x, 0.3, 1.0, num_samples=200, chunk_size=128)


def _simulate(process, generator, x_0, reverse=False):
    run = egm.simulate_reverse if reverse else egm.simulate
    return lambda key: run(key, process, generator, x_0, process.times(4))


def _tempering(key):
    temperatures = tempering.geometric_temperatures(1.0, 1.5, 3)
    state = tempering.init(quadratic, X, temperatures)
    options = {"potential": quadratic, "temperatures": temperatures, "step_size": 0.1, "num_steps": 2}
    return tempering.step(key, state, **options)


def _langevin_step(key):
    options = {"potential": quadratic, "temperature": 1.0, "step_size": 0.1, "method": "mala"}
    return langevin.step(key, langevin.init(quadratic, X), 0.0, **options)


PRIOR = priors.gaussian_prior(jnp.zeros(2), 1.5)
AIS = {"epsilon": 1.0, "prior": PRIOR, "num_steps": 3, "num_groups": 2}
MASKS, STATES = jnp.full((5, 4), 3), jnp.zeros((5, 4), jnp.int32)
VELOCITY = lambda x, t: -x
LANGEVIN = {"num_steps": 3, "step_size": 0.1, "temperature": 1.0}
PRODUCT = processes.ProductProcess(
    {"h": processes.JumpProcess(MASKED), "x": processes.DiffusionProcess(GAUSSIAN)}
)
BOTH = {"h": jnp.full((6, 4), 3), "x": X}
CALLS = {
    "make_iteration, tokens": _tokens_iteration,
    "make_iteration, vectors": _vector_iteration,
    "make_matching, Tempered": lambda: _matching(negatives.Tempered(num_steps=2)),
    "make_matching, ShortRun": lambda: _matching(negatives.ShortRun(num_steps=2)),
    "make_matching, Restarted": lambda: _matching(negatives.Restarted(num_steps=2)),
    "make_warm_up": _warm_up,
    "langevin.sample": lambda: lambda key: langevin.sample(key, quadratic, X, **LANGEVIN),
    "langevin.sample, mala": lambda: (
        lambda key: langevin.sample(key, quadratic, X, method="mala", **LANGEVIN)
    ),
    "langevin.step": lambda: _langevin_step,
    "tempering.step": lambda: _tempering,
    "simulate, any order": lambda: _simulate(processes.AnyOrderProcess(MASKED), _denoiser, MASKS),
    "simulate, jump": lambda: _simulate(processes.JumpProcess(MASKED), _denoiser, MASKS),
    "simulate, diffusion": lambda: _simulate(processes.DiffusionProcess(GAUSSIAN), VELOCITY, X),
    "simulate, product": lambda: _simulate(
        PRODUCT, lambda s, t: {"h": _denoiser(s["h"], t), "x": -s["x"]}, BOTH
    ),
    "simulate_reverse": lambda: _simulate(processes.JumpProcess(MASKED), _denoiser, STATES, True),
    "JumpProcess.step": lambda: (
        lambda key: processes.JumpProcess(MASKED).step(key, MASKS, _denoiser, 0.1, 0.6)
    ),
    "estimate, tokens": lambda: _estimate(MASKED, MASKS),
    "estimate, vectors": lambda: _estimate(GAUSSIAN, X),
    "flow_matching_loss": lambda: lambda key: losses.flow_matching_loss(POTENTIAL, 1.0, key, X, X, sigma=0.1),
    "independent": lambda: lambda key: couplings.independent(key, X, X),
    "sinkhorn": lambda: lambda key: couplings.sinkhorn(key, X, X),
    "log_partition": lambda: lambda key: likelihood.log_partition(key, quadratic, num_chains=8, **AIS),
    "posterior.sample": lambda: (
        lambda key: posterior.sample(key, quadratic, energies=(), num_samples=8, num_last_moves=2, **AIS)
    ),
    "prior.sample": lambda: lambda key: PRIOR.sample(key, 6),
    "curvature": lambda: (
        lambda key: curvature.eigenvalue_count(
            quadratic, X, 0.5, method="quadrature", key=key, num_probes=2, num_steps=2
        )
    ),
    "find_scales": lambda: (
        lambda key: egm.scales.find_scales(
            key,
            lambda s: quadratic(s["x"]),
            {"x": (2,), "h": (3,)},
            2.0,
            vocab_size=2,
            num_starts=4,
            num_steps=20,
            max_widenings=0,
        )
    ),
    "mixture.sample": lambda: lambda key: energies.GaussianMixture().sample(key, 5),
    "rbm.sample": lambda: lambda key: energies.GaussianBernoulliRBM().sample(key, 5),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_draw_uses_a_key_that_a_user_may_hold(name, drawn):
    call = CALLS[name]()
    jax.effects_barrier()
    drawn.clear()
    jax.block_until_ready(jax.tree.leaves(call(KEY)))
    jax.effects_barrier()
    assert drawn, "nothing was drawn: the interception missed it"
    used = [key for _, key in drawn]
    assert not set(used) & natural_keys(KEY)
    # `permutation` and the like draw by calls of their own, which are other functions.
    assert len(set(drawn)) == len(drawn), "a key was drawn with twice"


def test_derived_keys():
    keys = jax.random.split(KEY, 4)
    derived = random.derive(keys, "a")
    np.testing.assert_array_equal(
        jax.random.key_data(derived[2]), jax.random.key_data(random.derive(keys[2], "a"))
    )
    other = random.derive(keys, "b")
    assert not np.any(np.all(jax.random.key_data(derived) == jax.random.key_data(other), axis=-1))
    first, second = random.split(keys)
    assert first.shape == second.shape == (4,)
    one = jnp.stack(random.split(keys[1]))
    np.testing.assert_array_equal(
        jax.random.key_data(one), jax.random.key_data(jnp.stack([first[1], second[1]]))
    )


def test_a_batch_of_keys_is_the_folds_of_one():
    """The documented rule stays: one key stands for `fold_in(key, i)`, i the index of the example."""
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(6))
    one = langevin.sample(KEY, quadratic, X, num_steps=3, step_size=0.1, temperature=1.0)
    many = langevin.sample(keys, quadratic, X, num_steps=3, step_size=0.1, temperature=1.0)
    np.testing.assert_array_equal(one.x, many.x)
