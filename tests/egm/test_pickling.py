"""Networks, paths, processes, energies, heads and algorithms survive pickle and deepcopy."""

import copy
import inspect
import pickle
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bad_input_generated import ENTRIES

import egm
import energymatch
from egm import algorithms, heads, networks
from energymatch.networks import ConvPotential, MLPPotential, UNetViTPotential

KEY = jax.random.key(0)


def skip(energy):
    return energy


def made():
    """An instance of every public class in the tables, from its valid arguments."""
    for entry in ENTRIES:
        module, _, name = entry.names[0].rpartition(".")
        kind = getattr(sys.modules.get(module), name, None)
        if not inspect.isclass(kind):
            continue
        values = {n: a.value for n, a in entry.arguments.items()}
        if issubclass(kind, nn.Module):
            values = {n: v for n, v in values.items() if n in kind.__dataclass_fields__}
        # A lambda of the tables pickles no more than any other.
        yield entry.names[0], kind(**{n: skip if n == "skip" and v else v for n, v in values.items()})


CASES = dict(made()) | {
    "MLPPotential": MLPPotential(),
    "ConvPotential": ConvPotential(activation=jax.nn.gelu),
    "UNetViTPotential": UNetViTPotential(dtype=jnp.bfloat16),
    "features": MLPPotential(features=jnp.sin),
    "Weighted": algorithms.Weighted(
        egm.paths.MaskedPath(2),
        heads.DenoiserHead(egm.paths.MaskedPath(2)),
        networks.MLPDenoiser(vocab_size=2).apply,
    ),
    "MatchingConfig": energymatch.matching.MatchingConfig(gate=energymatch.losses.time_gate(0.5)),
}


def same(a, b):
    def equal(x, y):
        if callable(x) and not isinstance(x, jax.Array):
            return repr(x).split(" at ")[0] == repr(y).split(" at ")[0]
        return np.array_equal(np.asarray(x), np.asarray(y), equal_nan=False)

    assert type(a) is type(b)
    if hasattr(a, "__dataclass_fields__"):
        for field in a.__dataclass_fields__:
            if field != "parent":
                x, y = getattr(a, field), getattr(b, field)
                assert x is y or str(x) == str(y) or equal(x, y), field


@pytest.mark.parametrize("name", CASES)
def test_survives_pickle_and_deepcopy(name):
    value = CASES[name]
    for found in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value), copy.copy(value)):
        same(found, value)


def test_a_pickled_network_is_the_network():
    x = jax.random.normal(KEY, (3, 2))
    for network in (
        MLPPotential(width=4, depth=1, activation=jnp.tanh),
        MLPPotential(width=4, depth=1, features=jnp.sin, name="inner"),
    ):
        again = pickle.loads(pickle.dumps(network))
        assert again == network and hash(again) == hash(network) and again.activation is network.activation
        params = network.init(KEY, x)
        np.testing.assert_array_equal(again.apply(params, x), network.apply(params, x))


class Outer(nn.Module):
    inner: nn.Module

    def __call__(self, x):
        return self.inner(x)


def test_a_network_inside_another_pickles():
    outer, x = Outer(MLPPotential(width=4, depth=1)), jnp.ones((3, 2))
    params = outer.init(KEY, x)
    again = pickle.loads(pickle.dumps(outer))
    np.testing.assert_array_equal(again.apply(params, x), outer.apply(params, x))
