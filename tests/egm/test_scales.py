"""The scales of targets whose minima and curvatures are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egm.energies import GaussianMixture, JointGaussianMixture, LennardJones
from egm.heads import ScoreHead
from egm.paths import CenteredPath, VarianceExplodingPath
from egm.scales import find_scales

KEY = jax.random.key(6)
SMALL = {"num_starts": 64, "num_steps": 300}


def test_a_mixture():
    """Two modes: their width, and spread and centre by the share p of descents that each got."""
    energy = GaussianMixture(((-3.0, 1.0), (3.0, 1.0)), 0.5)
    found = find_scales(KEY, energy, (2,), 5.0, **SMALL)
    np.testing.assert_allclose(found.length_scale, 0.5, rtol=0.02)
    assert found.num_minima == 64
    share = (found.center[0] + 3) / 6
    assert abs(share - 0.5) < 4 * 0.5 / 8  # 4 standard errors of 64 starts on both sides
    np.testing.assert_allclose(found.center[1], 1.0, atol=0.05)
    variance = 36 * share * (1 - share)
    np.testing.assert_allclose(found.data_scale, np.sqrt(variance / 2 + 0.25), rtol=0.02)
    np.testing.assert_allclose(found.radius, 6 * max(share, 1 - share) + 1.5, rtol=0.02)


def test_minima_far_above_the_lowest_do_not_count():
    energy = GaussianMixture(((-3.0,), (3.0,)), 0.5, (1.0, 1e-9))
    found = find_scales(KEY, energy, (1,), 5.0, **SMALL)
    np.testing.assert_allclose(found.center, [-3.0], atol=0.02)
    np.testing.assert_allclose([found.data_scale, found.radius], [0.5, 1.5], rtol=0.05)
    assert 10 < found.num_minima < 54
    every = find_scales(KEY, energy, (1,), 5.0, energy_range=30.0, **SMALL)
    assert every.num_minima == 64
    assert every.data_scale > 2


def test_the_space_of_a_centred_path():
    """Two particles on a line at distance 2: x = +-1, curvature 18 along the subspace's one direction."""
    path = CenteredPath(VarianceExplodingPath(0.1, 1.0), 2, 1)
    energy = lambda x: 4.5 * (jnp.abs(x[:, 0] - x[:, 1]) - 2) ** 2
    found = find_scales(KEY, energy, (2,), 3.0, project=path.project, **SMALL)
    np.testing.assert_allclose(found.length_scale, 18**-0.5, rtol=1e-3)
    np.testing.assert_allclose(np.sum(found.center), 0.0, atol=1e-5)
    share = (found.center[0] + 1) / 2
    np.testing.assert_allclose(found.data_scale, np.sqrt(8 * share * (1 - share) + 1 / 18), rtol=1e-3)
    np.testing.assert_allclose(found.radius, 2 * max(share, 1 - share) + 3 * 18**-0.5, rtol=1e-3)


def test_tokens_are_drawn_and_held():
    energy = JointGaussianMixture(2, 1.5, 0.4)
    found = find_scales(KEY, energy, energy.event_shape, 3.0, vocab_size=2, **SMALL)
    np.testing.assert_allclose(found.length_scale, 0.4, rtol=1e-3)
    assert found.center.shape == (2,)
    assert np.all(np.abs(found.center) < 4 * 1.5 / 8)
    expected = np.sqrt(np.mean(1.5**2 - found.center**2) + 0.16)
    np.testing.assert_allclose(found.data_scale, expected, rtol=1e-2)


def test_energies_that_are_no_numbers_in_places():
    """Descents that start in the hole stay there and are left out."""

    def energy(x):
        return jnp.where(x[:, 0] < -1, jnp.nan, 0.5 * jnp.sum((x - 2.0) ** 2, axis=-1) / 0.09)

    found = find_scales(KEY, energy, (2,), 4.0, **SMALL)
    np.testing.assert_allclose(found.center, [2.0, 2.0], atol=1e-2)
    np.testing.assert_allclose(found.length_scale, 0.3, rtol=1e-3)
    assert 20 < found.num_minima < 64


def untrained_loss(energy, head, x_1, sigmas):
    """Mean over log sigma of sigma^2 E|score of an untrained head + noise / sigma|^2 / D, by the head."""
    path, total = head.path, 0.0
    for i, sigma in enumerate(sigmas):
        t = 1 - np.log1p((sigma / path.sigma_min) ** 2) / (2 * np.log(path.sigma_max / path.sigma_min))
        noise = jax.random.normal(jax.random.key(i), x_1.shape)
        x_t, times = x_1 + sigma * noise, jnp.full(len(x_1), t)
        score = head.generator(jnp.zeros((*x_t.shape, 2)), x_t, times, energy).score
        total += jnp.mean((sigma * score + noise) ** 2)
    return float(total) / len(sigmas)


def stiff(x):
    """A normal distribution with directions of width 1, 1, 1, .3 and .02."""
    return 0.5 * jnp.sum((x / STIFF[None]) ** 2, axis=-1)


def trapped_pair(x):
    """A particle on the line between walls like those of Lennard-Jones, x in (0, 3)."""
    near, far = jnp.maximum(x, 0.02)[:, 0], jnp.maximum(3 - x, 0.02)[:, 0]
    return 2 * (near**-12 - 2 * near**-6) + 2 * (far**-12 - 2 * far**-6)


STIFF = jnp.asarray([1.0, 1.0, 1.0, 0.3, 0.02])


def states_of_the_pair(num):
    """Quantiles of exp(-E) by quadrature."""
    grid = jnp.linspace(0.7, 2.3, 4001)
    total = jnp.cumsum(jnp.exp(-trapped_pair(grid[:, None]) - 2.0))
    return jnp.interp((jnp.arange(num) + 0.5) / num * total[-1], total, grid)[:, None]


@pytest.mark.parametrize("name", ["normal", "stiff", "pair"])
def test_the_length_has_the_smallest_loss_of_an_untrained_head(name):
    """Against the loss of `ScoreHead` on exact samples; its standard error is about .003."""
    num = 10_000
    noise = jax.random.normal(jax.random.key(3), (num, 5))
    energy, x_1 = {
        "normal": (lambda x: 0.5 * jnp.sum(x**2, axis=-1), noise),
        "stiff": (stiff, noise * STIFF[None]),
        "pair": (trapped_pair, states_of_the_pair(num)),
    }[name]
    found = find_scales(KEY, energy, x_1.shape[1:], 2.0, **SMALL)
    center = tuple(float(c) for c in found.center)
    path = VarianceExplodingPath(0.1 * found.width, 5 * found.data_scale)
    low, high = np.log(0.05 * found.width), np.log(2.5 * found.data_scale)
    sigmas = np.exp(low + (high - low) * (np.arange(24) + 0.5) / 24)
    losses = [
        untrained_loss(energy, ScoreHead(path, float(s), found.data_scale, center), x_1, sigmas)
        for s in found.lengths[:6]
    ]
    losses = np.asarray(losses) - min(losses)
    np.testing.assert_allclose(found.losses[:6], losses, atol=0.02, rtol=0.25)
    assert losses[list(found.lengths).index(found.length_scale)] < 0.012
    # Where E is that of one normal distribution of this width no length is better than that.
    assert (found.length_scale < 0.8 * found.width) == (name == "pair")


@pytest.mark.slow
def test_lennard_jones_takes_half_the_width_of_a_minimum():
    for num, gain in ((3, 0.05), (13, 0.1)):
        path = CenteredPath(VarianceExplodingPath(0.1, 1.0), num, 3)
        found = find_scales(KEY, LennardJones(num), (3 * num,), 1.0, project=path.project)
        np.testing.assert_allclose(found.length_scale, found.width / 2, rtol=1e-6)
        assert found.losses[0] > gain  # a dimension: 1.2 and 3.6 nats and more


def test_chains_widen_the_extent():
    """A narrow peak on a broad normal distribution: the minimum is narrow, the target is not."""

    def energy(x):
        narrow = jnp.log(0.1) + jnp.sum(-0.5 * (x / 0.2) ** 2 - jnp.log(0.2), axis=-1)
        return -jnp.logaddexp(narrow, jnp.log(0.9) - 0.5 * jnp.sum(x**2, axis=-1))

    found = find_scales(KEY, energy, (2,), 1.0, num_starts=256, num_steps=300)
    assert found.width < 0.5
    exact = np.sqrt(0.1 * 0.04 + 0.9)
    # 256 chains of two coordinates: a standard error of 4% or less.
    np.testing.assert_allclose(found.data_scale, exact, rtol=0.16)
