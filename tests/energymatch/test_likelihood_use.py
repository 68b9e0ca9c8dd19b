"""Annealed importance sampling on many devices, log-probabilities, bad input."""

import math
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec as P

from energymatch import likelihood
from energymatch.likelihood import Bridge, gaussian_prior, log_partition, log_partition_upper

KEY = jax.random.key(0)


@pytest.mark.slow
def test_devices_and_one_trace(mesh8):
    potential = lambda x: jnp.sum(jnp.array([[1.0, 0.25]]) * (x - jnp.array([[0.5, 0.0]])) ** 2, axis=-1)
    prior = gaussian_prior(jnp.zeros(2), 2.0)
    data = np.random.default_rng(0).normal(size=(32, 2)).astype(np.float32)

    def run(key, x, bridge=None, axis_name=None):
        options = dict(epsilon=0.5, prior=prior, axis_name=axis_name)
        out = log_partition(
            key, potential, num_chains=64, num_steps=10, num_groups=8, bridge=bridge, **options
        )
        upper = log_partition_upper(key, potential, x, bridge=out.bridge, **options)
        nll = likelihood.nll(potential, x, epsilon=0.5, log_z=out.log_z, axis_name=axis_name)
        return out._asdict(), upper._asdict(), nll

    one = jax.jit(chex.assert_max_traces(run, n=1))
    expected = one(KEY, data)
    one(jax.random.key(1), data)
    split = lambda record, names: {k: P("i") if k in names else P() for k in record}
    specs = (split(expected[0], ("x", "log_weights")), split(expected[1], ("log_weights",)), P())
    on_eight = lambda k, x: run(k, x, axis_name="i")
    sharded = jax.shard_map(on_eight, mesh=mesh8, in_specs=(P(), P("i")), out_specs=specs)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, jax.jit(sharded)(KEY, data), expected)

    def with_bridge(key, x):  # the pilot under pmap would only compile once more
        return run(key, x, jax.tree.map(jnp.asarray, expected[0]["bridge"]), "i")

    out, upper, nll = jax.pmap(with_bridge, axis_name="i", in_axes=(None, 0))(KEY, data.reshape(8, 4, 2))
    close(out["log_z"], np.full(8, expected[0]["log_z"]))
    close(out["x"].reshape(64, 2), expected[0]["x"])
    close(upper["log_weights"].reshape(32), expected[1]["log_weights"])
    close(nll, np.full(8, expected[2]))


def test_log_prob(x64):
    # N((1, 2), diag(1/4, 4)) at the temperature 1/2; log Z = log(2 pi) + log(1/2 * 2).
    potential = lambda x: (x[:, 0] - 1) ** 2 + (x[:, 1] - 2) ** 2 / 16
    log_z = math.log(2 * math.pi)
    x = np.random.default_rng(1).normal(size=(6, 2))
    expected = scipy.stats.norm.logpdf(x, [1.0, 2.0], [0.5, 2.0]).sum(1)
    log_p = likelihood.log_prob(potential, x, epsilon=0.5, log_z=log_z)
    np.testing.assert_allclose(log_p, expected, rtol=1e-12)
    np.testing.assert_allclose(
        likelihood.nll(potential, x, epsilon=0.5, log_z=log_z), -expected.mean(), rtol=1e-12
    )


V = lambda x: jnp.sum(x**2, axis=-1)
PRIOR = gaussian_prior(jnp.zeros(2), 1.0)
BRIDGE = Bridge(jnp.array([0.0, 0.5, 1.0]), jnp.ones(2))


def forward(key=KEY, potential=V, epsilon=1.0, prior=PRIOR, **options):
    return log_partition(key, potential, epsilon=epsilon, prior=prior, bridge=BRIDGE, **options)


def with_bridge(schedule, step_sizes):
    bridge = Bridge(jnp.asarray(schedule), jnp.asarray(step_sizes))
    return log_partition(KEY, V, epsilon=1.0, prior=PRIOR, bridge=bridge)


def backward(x, bridge=BRIDGE):
    return log_partition_upper(KEY, V, x, epsilon=1.0, prior=PRIOR, bridge=bridge)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: forward(0), TypeError, "key must be a typed PRNG key"),
        (lambda: forward(potential=3), TypeError, "potential must be callable, got 3"),
        (lambda: forward(potential=lambda x: x), ValueError, r"potential must return shape \(1024,\)"),
        (lambda: forward(epsilon=0.0), ValueError, "epsilon must be finite and positive, got 0"),
        (lambda: forward(prior=None), TypeError, "prior must have sample and log_density, got None"),
        (lambda: forward(prior=types.SimpleNamespace(sample=lambda k, n: jnp.zeros((3, 2)), log_density=V)),
         ValueError, r"prior.sample must return 1024 states, got shape \(3, 2\)"),
        (lambda: forward(prior=types.SimpleNamespace(sample=PRIOR.sample, log_density=lambda x: 0.0)),
         TypeError, "prior.log_density must return an array"),
        (lambda: forward(num_chains=100), ValueError, "num_chains must be a multiple of num_groups = 16"),
        (lambda: forward(num_chains=16), ValueError, "num_chains must be at least 32, got 16"),
        (lambda: forward(num_groups=1), ValueError, "num_groups must be at least 2, got 1"),
        (lambda: forward(num_moves=0), ValueError, "num_moves must be at least 1, got 0"),
        (lambda: forward(resample_below=1.5),
         ValueError, r"resample_below must be in \(0, 1\] or None, got 1.5"),
        (lambda: log_partition(KEY, V, epsilon=1.0, prior=PRIOR, num_steps=2.0),
         TypeError, "num_steps must be an int, got 2.0"),
        (lambda: log_partition(KEY, V, epsilon=1.0, prior=PRIOR, bridge=(1, 2)),
         TypeError, "bridge must be a Bridge"),
        (lambda: with_bridge([0.0, 0.5, 0.9], [1.0, 1.0]),
         ValueError, "bridge.schedule must increase from 0 to 1"),
        (lambda: with_bridge([0.0, 0.0, 1.0], [1.0, 1.0]),
         ValueError, "bridge.schedule must increase from 0 to 1"),
        (lambda: with_bridge([0.0, 0.5, 1.0], [1.0]),
         ValueError, r"bridge.step_sizes must have shape \(2,\), got shape \(1,\)"),
        (lambda: with_bridge([0.0, 0.5, 1.0], [1.0, 0.0]),
         ValueError, "bridge.step_sizes must be finite and positive"),
        (lambda: with_bridge([0.0], []), ValueError, "bridge.schedule must be a vector of at least 2"),
        (lambda: backward(jnp.zeros((4, 2), int)), TypeError, "x must be floating point"),
        (lambda: backward(jnp.zeros(())), ValueError, "x must have at least 1 axes"),
        (lambda: backward(jnp.zeros((4, 3))), ValueError, r"x must have event shape \(2,\), got \(3,\)"),
        (lambda: backward(jnp.zeros((4, 2)), bridge=None), TypeError, "bridge must be a Bridge"),
        (lambda: likelihood.log_prob(V, jnp.zeros((4, 2)), epsilon=-1.0, log_z=0.0),
         ValueError, "epsilon must be finite and positive, got -1"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_groups_fill_the_devices(mesh8):
    run = lambda k: forward(k, num_groups=4, num_chains=64, axis_name="i").log_z
    with pytest.raises(ValueError, match="num_groups must be a multiple of the 8 devices, got 4"):
        jax.shard_map(run, mesh=mesh8, in_specs=P(), out_specs=P())(KEY)
