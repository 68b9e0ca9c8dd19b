"""Proposals with their weights, horizons and the flip: against exact enumeration."""

import functools
import itertools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm
from egm import algorithms, bootstrap, horizons, paths, proposals, symmetry
from egm.typing import Draw

THREE = contract.token_problem()  # 3 sites of 3 tokens, a random energy
ISING, PAIRS = egm.energies.Ising(3, 0.4), paths.MaskedPath(2, power=1.5)
STATES = np.array(list(itertools.product((0, 1), repeat=9)), np.int32)
MIXED = paths.ProductPath({"x": paths.VarianceExplodingPath(0.5, 4.0), "h": paths.MaskedPath(2)})
EVERY = [proposals.IndependentReveal(), proposals.IndependentReveal(0.4), proposals.SharedReveal()]
KEY = jax.random.key(4)


@functools.cache
def ising_table():
    """[3^9] log mean over completions of exp(-E), for every state with masks."""
    table = -np.asarray(ISING(jnp.asarray(STATES)), np.float64).reshape((2,) * 9)
    for axis in range(9):
        masked = np.logaddexp.reduce(table, axis=axis, keepdims=True) - np.log(2)
        table = np.concatenate([table, masked], axis=axis)
    return table.ravel()


def ising_g(x, t):
    del t
    place = jnp.broadcast_to(3 ** jnp.arange(9)[::-1], x.shape)
    return jnp.asarray(ising_table())[jnp.sum(x * place, axis=-1)]


def ising_points():
    noisy = jax.random.bernoulli(KEY, 0.6, (6, 9))
    return jnp.where(noisy, 2, jnp.asarray(STATES)[jax.random.randint(KEY, (6,), 0, 512)])


def problems(name):
    """(path, energy, g, states) of a target whose g is a table."""
    if name == "three":
        return THREE.path, THREE, lambda x, t: THREE.g(x), jnp.asarray(THREE.partial)[20::6]
    return PAIRS, ISING, ising_g, ising_points()


def exact(path, g, x, t):
    """(the denoiser, g) at x."""
    return path.local_generator(lambda s, u: g(s, u), x, t), g(x, t)


@pytest.mark.parametrize(
    "name, proposal",
    [("ising", EVERY[0]), ("three", EVERY[1]), ("three", EVERY[2]), ("ising", EVERY[2])],
    ids=lambda a: a if isinstance(a, str) else repr(a),
)
def test_unnormalised_estimates_are_unbiased(x64, name, proposal):
    """exp(phi_t) and exp(phi_t) F_t have no bias at any K: means of 600 estimates within 5 standard errors.

    r is its own for every state, 1 among them; t too.
    """
    path, energy, g, x = problems(name)
    t = jnp.linspace(0.05, 0.6, len(x))
    r = jnp.where(jnp.arange(len(x)) % 3 == 0, 1.0, t + 0.3)
    phi = bootstrap.boundary(energy, g, path)
    denoiser, at_t = exact(path, g, x, t)
    log_z = path.log_normalizer(x, t, jnp.ones_like(t))

    @jax.jit
    def one(key):
        estimate = egm.estimate(key, path, phi, x, t, r, num_samples=16, proposal=proposal)
        weight = jnp.exp(estimate.log_marginal - log_z - at_t)
        return weight, weight[:, None, None] * estimate.generator

    weights, generators = jax.lax.map(one, jax.random.split(KEY, 600), batch_size=50)
    for came, expected in ((weights, jnp.ones(len(x))), (generators, denoiser)):
        error = np.std(came, axis=0) / np.sqrt(len(came))
        assert np.all(np.abs(np.mean(came, axis=0) - expected) < 5 * error + 1e-9)


@pytest.mark.parametrize("proposal", EVERY[::2], ids=repr)
def test_matched_reveals_leave_exp_g_alone(x64, proposal):
    """log p_{t|r} - log Z_{r|t} - log q + phi_r = g + log Z_{1|t} - log Z_{r|t}, whatever was revealed."""
    path, _, g, x = problems("ising")
    t, r = jnp.full(len(x), 0.2), jnp.full(len(x), 0.7)
    x_r = proposal.propose(Draw(KEY, KEY, 20, 20), path, x, t, r)
    phi = lambda s: g(s, None) + path.log_normalizer(s, 0.7, 1.0)
    log_weight = proposal.log_weight(path, x, t, x_r, r)
    assert log_weight.shape == (20, len(x))
    came = jax.vmap(phi)(x_r) + log_weight
    expected = np.asarray(jax.vmap(lambda s: g(s, None))(x_r)) + np.asarray(path.log_normalizer(x, t, 1.0))
    np.testing.assert_allclose(came, expected - np.asarray(path.log_normalizer(x, t, r)), atol=1e-12)


def test_a_proposal_of_the_path_has_no_weight(x64):
    """With the path's own probability the weights are 1; at the matching time that is the marginal's."""
    path, _, _, x = problems("three")
    t, r = jnp.full(len(x), 0.1), jnp.full(len(x), 0.4)
    odds = 3 * (0.4 - 0.1) / 0.4
    own = proposals.IndependentReveal(odds / (1 + odds))
    x_r = own.propose(Draw(KEY, KEY, 50, 50), path, x, t, r)
    np.testing.assert_allclose(own.log_weight(path, x, t, x_r, r), 0.0, atol=1e-12)
    matching = horizons.MatchingTime().look_ahead(path, x, t)
    np.testing.assert_allclose(matching, 0.75)
    came = proposals.IndependentReveal().log_weight(path, x, t, x_r, matching)
    np.testing.assert_allclose(came, 0.0, atol=1e-12)


def test_shared_reveals_are_exact_where_samples_take_all_combinations(x64):
    """4 sites of 2 tokens and K = 16: no error in phi, and the denoiser's at the sites revealed."""
    path, energy, g, x = problems("ising")
    x = jnp.where((jnp.arange(9) < 8)[None], 2, x % 2)  # 8 masked sites
    t = jnp.full(len(x), 0.1)
    r = (path.kappa(t) + 0.5 * (1 - path.kappa(t))) ** (1 / path.power)
    phi = bootstrap.boundary(energy, g, path)
    fn = functools.partial(egm.estimate, num_samples=16, proposal=proposals.SharedReveal())
    came = jax.jit(lambda key: fn(key, path, phi, x, t, r))(KEY)
    denoiser, at_t = exact(path, g, x, t)
    log_z = path.log_normalizer(x, t, jnp.ones_like(t))
    np.testing.assert_allclose(came.log_marginal - log_z, at_t, atol=1e-10)
    revealed = np.sum(np.asarray(came.generator), axis=-1) > 1.5  # half of the sites, twice the mass
    assert np.all(np.sum(revealed[:, :8], axis=-1) == 4)
    np.testing.assert_allclose(came.generator[revealed], 2 * denoiser[revealed], atol=1e-10)


@pytest.mark.parametrize("proposal", EVERY[1:], ids=repr)
def test_chunks_and_products(x64, proposal):
    """Chunked estimates are the same; the Gaussian part of a product keeps its own proposal."""
    state = {"x": jnp.array([[0.3, -1.0], [2.0, 0.1]]), "h": jnp.array([[2, 0, 2], [2, 2, 1]])}
    t, r = jnp.array([0.2, 0.5]), jnp.array([0.6, 1.0])
    phi = lambda s, u: -0.5 * jnp.sum(s["x"] ** 2, -1) - u * jnp.sum(s["h"], -1)
    fn = functools.partial(egm.estimate, KEY, MIXED, phi, state, t, r, num_samples=300, proposal=proposal)
    whole, parts = jax.jit(lambda: (fn(), fn(chunk_size=128)))()
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert np.all(whole.valid)


# Horizons.


def test_horizons_look_ahead():
    x = jnp.full((50, 9), 2)
    t = jnp.linspace(0.0, 0.99, 50)
    for horizon in (horizons.FixedStep(0.2), horizons.MatchingTime(), horizons.Nats(2.0)):
        r = jax.jit(lambda u, h=horizon: h.look_ahead(PAIRS, x, u))(t)
        assert np.all(r > t), horizon
        assert np.all(r <= 1), horizon
        assert hash(horizon) == hash(type(horizon)(**vars(horizon)))
    np.testing.assert_allclose(
        horizons.FixedStep(0.2).look_ahead(PAIRS, x, t), np.minimum(t + 0.2, 1), rtol=1e-6
    )
    np.testing.assert_allclose(
        PAIRS.kappa(horizons.MatchingTime().look_ahead(PAIRS, x, t)[0]), 2 / 3, rtol=1e-6
    )


def test_nats_are_those_of_the_bound():
    """Tokens: L log V (kappa_r - kappa_t); Gaussian: D/2 the change of log(n^2 + s^2); a product: both."""
    t = jnp.linspace(0.0, 0.5, 5)
    state = {"x": jnp.zeros((5, 2)), "h": jnp.full((5, 6), 2)}
    for path, x in ((MIXED, state), (paths.MaskedPath(2), state["h"]), (paths.LinearPath(), state["x"])):
        start = jnp.maximum(t, path.t_min)
        r = horizons.Nats(0.5).look_ahead(path, x, start)
        gained = horizons.nats(path, x, start) - horizons.nats(path, x, r)
        np.testing.assert_allclose(gained, 0.5, rtol=0.02)
        assert np.all(horizons.Nats(1e9).look_ahead(path, x, start) == 1)


def test_a_matching_time_needs_tokens():
    with pytest.raises(TypeError, match="needs tokens"):
        horizons.MatchingTime().look_ahead(paths.LinearPath(), jnp.zeros((1, 2)), jnp.zeros(1))
    np.testing.assert_allclose(
        horizons.MatchingTime().look_ahead(MIXED, None, jnp.array([0.1, 0.9])), [2 / 3, 1.0], rtol=1e-6
    )


def test_published_settings_by_name():
    head = egm.heads.DenoiserHead(PAIRS)
    fn = lambda params, x, t: params
    published = algorithms.Bootstrap.published(PAIRS, head, fn, fn)
    assert (published.num_samples, published.step, published.proposal) == (1000, 0.01, None)
    assert published.divergence is egm.divergences.exponential
    assert algorithms.Bootstrap.published(PAIRS, head, fn, fn, num_samples=10).num_samples == 10


# The flip.


@pytest.mark.parametrize(
    "energy, path, expected",
    [
        (egm.energies.Ising(3, 0.4, field=0.1), paths.MaskedPath(2), False),
        (egm.energies.GaussianMixture(), paths.VarianceExplodingPath(1.0, 20.0), True),
        (egm.energies.JointGaussianMixture(4), MIXED, True),
        (egm.energies.GaussianBernoulliRBM(), MIXED, False),
        (lambda x: jnp.sum(x == 1, axis=-1) * 1.0, paths.MaskedPath(3), False),
    ],
    ids=["field", "mixture", "joint", "rbm", "three tokens"],
)
def test_flips_is_found_by_asking(energy, path, expected):
    assert symmetry.flips(KEY, energy, path, getattr(energy, "event_shape", (4,))) is expected


def test_even_log_marginals_are_even():
    state = {"x": jnp.array([[0.3, -1.0], [2.0, 0.1]]), "h": jnp.array([[2, 0, 1], [2, 2, 1]])}
    apply = lambda params, s, t: params * jnp.sum(s["x"], -1) + jnp.sum(s["h"] == 1, -1) * t
    g = symmetry.even(apply, MIXED)
    t, flipped = jnp.array([0.2, 0.5]), symmetry.flip(MIXED, state)
    np.testing.assert_array_equal(flipped["h"], [[2, 1, 0], [2, 2, 0]])
    np.testing.assert_allclose(g(1.5, state, t), g(1.5, flipped, t), rtol=1e-6)
    assert hash(g) is not None
