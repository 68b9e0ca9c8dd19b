"""The scales of targets whose minima and curvatures are known."""

import jax
import jax.numpy as jnp
import numpy as np

from egm.energies import GaussianMixture, JointGaussianMixture
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
