"""`egm.modules`: networks of Flax's two interfaces and of plain functions, at both doors and on disk."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import egm
import energymatch
from egm import modules
from egm.coordinates import Coordinates
from egm.design import Design, check_network
from egm.sampler import Sampler
from egm.spaces import Layout, Real, Tokens
from energymatch.likelihood import MixturePrior
from energymatch.model import EnergyModel, Whitening, network_of
from energymatch.networks import MLPPotential

LAYOUT = Layout(Real(2))


class Score(nnx.Module):
    """[N, D, 2] of x [N, D] and t [N], with a dropout whose stream of keys is no parameter."""

    def __init__(self, dim, rngs):
        # The names are not in the order in which a dict would have them.
        self.second, self.first = nnx.Linear(16, 2 * dim, rngs=rngs), nnx.Linear(dim + 1, 16, rngs=rngs)
        self.drop = nnx.Dropout(0.0, rngs=rngs)

    def __call__(self, x, t):
        hidden = nnx.silu(self.first(jnp.concatenate([x, t[:, None]], axis=1)))
        return self.second(self.drop(hidden)).reshape(*x.shape, 2)


def pair_of(module):
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    return params, lambda params, *inputs: nnx.merge(graph, params, rest)(*inputs)


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, t):
        return nn.Dense(2 * x.shape[1])(x).reshape(*x.shape, 2)


class Transformed(NamedTuple):
    """What haiku makes: a tuple with two names, which is no pair (params, apply)."""

    init: object
    apply: object


PLAIN = {"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}


def plain(params, x, t):
    del t
    return jnp.stack([x @ params["w"], jnp.broadcast_to(params["b"][None], x.shape)], axis=-1)


WAYS = {
    "linen": Linen(),
    "nnx": pair_of(Score(2, nnx.Rngs(0))),
    "params and apply": (PLAIN, plain),
    "init and apply": (lambda key, x, t: PLAIN, plain),
    "named init and apply": Transformed(lambda key, x, t: PLAIN, plain),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_parameters_and_outputs(way):
    module = modules.given(WAYS[way])
    inputs = (jnp.ones((3, 2)), jnp.full(3, 0.5))
    params = module.init(jax.random.key(0), *inputs)
    assert jax.tree.leaves(params)
    assert module.apply(params, *inputs).shape == (3, 2, 2)
    check_network(WAYS[way], LAYOUT)


@pytest.mark.parametrize("way", WAYS)
def test_parameters_come_back_in_their_own_structure(way):
    module = modules.given(WAYS[way])
    inputs = (jnp.ones((3, 2)), jnp.full(3, 0.5))
    params = module.init(jax.random.key(1), *inputs)
    # Every number another, so that two arrays of one shape cannot change places unseen.
    leaves, structure = jax.tree.flatten(params)
    params = structure.unflatten([i + jnp.arange(a.size).reshape(a.shape) for i, a in enumerate(leaves)])
    found = modules.with_leaves(module, inputs, modules.named_leaves(params))
    assert jax.tree.structure(found) == jax.tree.structure(params)
    np.testing.assert_array_equal(module.apply(found, *inputs), module.apply(params, *inputs))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("mlp", r"network must be an object with init and apply.*nnx\.split.*equinox\.partition"),
        (Score(2, nnx.Rngs(0)), r"network must be an object with init and apply.*nnx\.split"),
        (Linen, "network must be"),
        ((PLAIN, plain, plain), "network must be"),
        ((PLAIN, PLAIN), "network must be"),
        (({"w": jnp.ones(2), "act": jnp.tanh}, plain), r"floating arrays, got .* at \['act'\]"),
        (({"w": jnp.arange(2)}, plain), r"floating arrays, got dtype int32 at \['w'\]"),
        ((nnx.split(Score(2, nnx.Rngs(0)))[1], plain), "floating arrays, got dtype"),
    ],
)
def test_what_is_no_network_is_named_and_told_how_to_become_one(network, message):
    with pytest.raises(TypeError, match=message):
        modules.given(network)


def test_outputs_of_another_shape_are_refused_at_the_front_door():
    for network in ((PLAIN, lambda p, x, t: x), (PLAIN, lambda p, x, t: x[0])):
        with pytest.raises(ValueError, match=r"network must return shape \(3, 2, 2\)"):
            egm.fit(jax.random.key(0), lambda x: jnp.sum(x**2), Real(2), network=network, progress=False)
    mixed = Layout({"a": Real(), "b": Tokens(2, 3)})
    with pytest.raises(ValueError, match=r"network must return shape \{'x': \(3, 1, 2\), 'h': \(3, 2, 3\)\}"):
        check_network((PLAIN, lambda p, state, t: state), mixed)
    table = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.raises(ValueError, match=r"network must return shape \(3,\)"):
        energymatch.fit(
            jax.random.key(0), table, network=({"w": jnp.ones((2, 1))}, lambda p, z: z @ p["w"]),
            progress=False,
        )  # fmt: skip


def energy(x):
    return 0.5 * jnp.sum(x**2, axis=-1)


def test_a_sampler_with_an_nnx_network_is_saved_and_loaded(tmp_path):
    network = pair_of(Score(2, nnx.Rngs(0)))
    made = Sampler(
        energy, Design(LAYOUT, num_times=5), Coordinates(LAYOUT, np.zeros(2), 1.0, 0.0), None, network[0],
        network=network,
    )  # fmt: skip
    made.moments = egm.typing.Moments(jnp.zeros(2), jnp.ones(2))
    made.save(tmp_path / "sampler")
    other = pair_of(Score(2, nnx.Rngs(1)))
    loaded = Sampler.load(tmp_path / "sampler", energy, network=other)
    draws = [s.sample(jax.random.key(3), 8) for s in (made, loaded)]
    np.testing.assert_array_equal(draws[0].x, draws[1].x)
    np.testing.assert_array_equal(draws[0].log_weights, draws[1].log_weights)
    with pytest.raises(ValueError, match="network must be that of the sampler.*one was given"):
        Sampler.load(tmp_path / "sampler", energy)
    with pytest.raises(ValueError, match="network must have the parameters that were saved"):
        Sampler.load(tmp_path / "sampler", energy, network=(PLAIN, plain))


class Correction(nnx.Module):
    def __init__(self, dim, rngs):
        self.second, self.first = nnx.Linear(8, 1, rngs=rngs), nnx.Linear(dim, 8, rngs=rngs)

    def __call__(self, z):
        return self.second(nnx.silu(self.first(z)))[:, 0]


def test_a_model_with_an_nnx_network_is_saved_and_loaded(tmp_path):
    base = MixturePrior(jnp.zeros(1), jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2)))
    whitening = Whitening(np.zeros(2), np.eye(2), np.eye(2), 0.0)
    network = pair_of(Correction(2, nnx.Rngs(0)))
    figures = {"log_z": 0.5}
    made = EnergyModel(
        (2,), whitening, base, modules.given(network), network[0], noise=np.zeros(2), figures=figures
    )
    made.save(tmp_path / "model")
    loaded = EnergyModel.load(tmp_path / "model", network=pair_of(Correction(2, nnx.Rngs(1))))
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    np.testing.assert_array_equal(made.log_prob(x), loaded.log_prob(x))
    with pytest.raises(ValueError, match="network must be the one"):
        EnergyModel.load(tmp_path / "model")


def test_a_model_with_the_librarys_network_in_other_sizes_asks_for_it(tmp_path):
    """Rebuilt from two sizes it would have had other features and another activation."""
    base = MixturePrior(jnp.zeros(1), jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones((1, 2)))
    whitening = Whitening(np.zeros(2), np.eye(2), np.eye(2), 0.0)
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    for name, net in (("own", MLPPotential(width=8, depth=2)), ("default", network_of(2, 8, 2))):
        params = net.init(jax.random.key(0), x)
        made = EnergyModel((2,), whitening, base, net, params, noise=np.zeros(2), figures={"log_z": 0.0})
        made.save(tmp_path / name)
        given = {"network": net} if name == "own" else {}
        loaded = EnergyModel.load(tmp_path / name, **given)
        np.testing.assert_array_equal(made.log_prob(x), loaded.log_prob(x))
        other = {} if name == "own" else {"network": net}
        with pytest.raises(ValueError, match="network must be"):
            EnergyModel.load(tmp_path / name, **other)
