"""Moves that keep a target: of states that are distributed as it, and of weighted ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egm import moves
from egm.energies import GaussianMixture, JointGaussianMixture, LennardJones
from egm.paths import CenteredPath, MaskedPath, ProductPath, VarianceExplodingPath, WrappedPath

KEY = jax.random.key(4)
PATH = VarianceExplodingPath(0.3, 5.0)
NUM = 4096


def z_score(found, expected):
    """Largest |z| of means over states [N, K] against exact values [K]."""
    found = np.asarray(found, np.float64)
    return np.max(np.abs(found.mean(0) - expected) / (found.std(0, ddof=1) / np.sqrt(len(found))))


def test_exact_states_stay_exact():
    """Two modes of unequal mass and width: moments and the share of the right mode, 4 standard errors."""
    energy = GaussianMixture(((-1.0, 0.0), (1.0, 1.0)), 0.4, (1, 2))
    x = energy.sample(KEY, NUM)
    found = moves.moved(KEY, energy, PATH, x, jnp.log(0.5), num_rounds=20)
    y = found.states
    assert np.mean(np.any(np.asarray(x != y), axis=1)) > 0.99
    assert 0.4 < found.acceptance < 0.8
    seen = jnp.stack([y[:, 0], y[:, 1], y[:, 0] ** 2, y[:, 0] * y[:, 1]], axis=-1)
    assert z_score(seen, [1 / 3, 2 / 3, 1.16, 2 / 3]) < 4


def test_weighted_states_stay_weighted():
    """w = p / q of a wide q: E[w f] is that of p before and after, for w that stays where it is."""
    energy = GaussianMixture(((-1.0,), (1.0,)), 0.4, (1, 2))
    x = 2.0 * jax.random.normal(KEY, (NUM, 1))
    log_q = -0.5 * jnp.sum((x / 2.0) ** 2, axis=-1) - jnp.log(2.0 * np.sqrt(2 * np.pi))
    w = jnp.exp(-energy(x) - log_q)
    z = np.sqrt(2 * np.pi) * 0.4
    y = moves.moved(KEY, energy, PATH, x, jnp.log(0.5), num_rounds=10).states[:, 0]
    found = w[:, None] * jnp.stack([jnp.ones(NUM), y, y**2, y > 0], axis=-1)
    above = 2 / 3 * 0.99379 + 1 / 3 * 0.00621
    assert z_score(found, z * np.array([1.0, 1 / 3, 1.16, above])) < 4
    # Weights of another target than the one that is kept are not proper any more.
    wrong = moves.moved(KEY, lambda a: 0.0 * energy(a), PATH, x, jnp.log(0.5), num_rounds=10).states[:, 0]
    assert z_score((w * wrong**2)[:, None], [z * 1.16]) > 8


def test_tokens_and_numbers():
    energy = JointGaussianMixture(2, 0.5, 0.6)
    path = ProductPath({"x": PATH, "h": MaskedPath(2)})
    state = energy.sample(KEY, NUM)
    y = moves.moved(KEY, energy, path, state, jnp.log(0.5), num_rounds=10).states
    s = 2.0 * y["h"] - 1
    assert np.mean(np.asarray(y["h"] != state["h"])) > 0.3
    seen = jnp.concatenate([s, y["x"], y["x"] ** 2, s * y["x"], s[:, :1] * s[:, 1:]], axis=-1)
    assert z_score(seen, [0, 0, 0, 0, 0.61, 0.61, 0.5, 0.5, 0]) < 4


def test_angles_stay_within_a_turn():
    """E = -2 cos x: E[cos x] = I_1(2) / I_0(2)."""
    path = WrappedPath(0.3, 5.0, 0.3)
    energy = lambda x: -2 * jnp.sum(jnp.cos(x), axis=-1)
    start = jax.random.uniform(KEY, (NUM, 1), minval=-np.pi, maxval=np.pi)
    y = moves.moved(KEY, energy, path, start, jnp.log(0.5), num_rounds=60).states
    assert np.all(np.abs(np.asarray(y)) <= np.pi)
    assert z_score(jnp.concatenate([jnp.cos(y), jnp.sin(y)], axis=-1), [0.697775, 0.0]) < 4


def test_the_centred_subspace_and_states_without_density():
    """Virial theorem of three particles, E[x . grad E] = (N - 1) d; a start of +inf is left."""
    energy = LennardJones(3)
    path = CenteredPath(VarianceExplodingPath(0.1, 1.0), 3, 3)
    walled = lambda x: jnp.where(jnp.sum(x**2, axis=-1) > 50, jnp.inf, energy(x))
    start = jnp.concatenate([path.standard_normal(KEY, (1000, 9)), 20 * path.standard_normal(KEY, (24, 9))])
    found = moves.moved(KEY, walled, path, start, jnp.log(0.1), num_rounds=300)
    y = found.states[:1000]
    np.testing.assert_allclose(path.project(y), y, atol=1e-5)
    virial = jnp.sum(y * jax.grad(lambda a: jnp.sum(energy(a)))(y), axis=-1)
    assert z_score(virial[:, None], [6.0]) < 4
    assert np.all(np.isfinite(np.asarray(walled(found.states[:1000]))))


def test_size_adapts_from_both_sides():
    energy = lambda x: 0.5 * jnp.sum((x / 0.1) ** 2, axis=-1)
    x = 0.1 * jax.random.normal(KEY, (256, 10))
    sizes = [moves.moved(KEY, energy, PATH, x, jnp.log(h), num_rounds=60).log_size for h in (1e-3, 10.0)]
    np.testing.assert_allclose(sizes[0], sizes[1], atol=0.15)


@pytest.mark.parametrize("way", ["shard_map", "pmap"])
def test_devices_move_their_states_as_one_device_does(way, mesh8, x64):
    energy = GaussianMixture(((-1.0, 0.0), (1.0, 1.0)), 0.4, (1, 2))
    x = energy.sample(KEY, 64)
    one = moves.moved(KEY, energy, PATH, x, jnp.log(0.5), num_rounds=5)
    P = jax.sharding.PartitionSpec

    def step(x):
        return tuple(moves.moved(KEY, energy, PATH, x, jnp.log(0.5), num_rounds=5, axis_name="i"))

    if way == "pmap":
        many = jax.pmap(step, axis_name="i", out_axes=(0, None, None))(x.reshape(8, 8, 2))
        many = (many[0].reshape(64, 2), *many[1:])
    else:
        many = jax.jit(jax.shard_map(step, mesh=mesh8, in_specs=P("i"), out_specs=(P("i"), P(), P())))(x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), tuple(one), many)
