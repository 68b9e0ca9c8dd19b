"""Negatives drawn from a prior and weighted: the contrast's gradient is the likelihood's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energymatch.likelihood import gaussian_prior
from energymatch.losses import Batch
from energymatch.negatives import Proposed

PRIOR = gaussian_prior(jnp.zeros(2), 1.5)


def potential(x):
    return 0.5 * jnp.sum((x - jnp.array([[1.0, -0.5]])) ** 2, axis=-1)


def test_weighted_means_are_the_models():
    source = Proposed(PRIOR, 20_000)
    x = jnp.zeros((4, 2))
    drawn = source.draw(jax.random.key(0), potential, 1.0, source.init(potential, x, 1.0), Batch(x, x, x))
    weights = np.asarray(jax.nn.softmax(drawn.log_weights), np.float64)
    values = np.asarray(drawn.x, np.float64)
    mean = weights @ values
    error = np.sqrt(weights**2 @ (values - mean) ** 2)
    assert np.all(np.abs(mean - [1.0, -0.5]) < 4 * error)
    assert np.all(error < 0.05)
    assert drawn.chains is None
    # The share of the weights for N(m, I) from N(0, 1.5^2 I): two dimensions, in closed form.
    assert 0.3 < float(drawn.metrics["proposal_ess"]) < 0.8


def test_an_infinite_potential_weighs_nothing():
    wall = lambda x: jnp.where(x[:, 0] > 0, jnp.inf, potential(x))
    x = jnp.zeros((4, 2))
    drawn = Proposed(PRIOR, 64).draw(jax.random.key(0), wall, 1.0, None, Batch(x, x, x))
    assert np.all((np.asarray(drawn.log_weights) == -np.inf) == (np.asarray(drawn.x)[:, 0] > 0))


@pytest.mark.parametrize("arguments", [("prior", 8), (PRIOR, 0), (PRIOR, 2.5)])
def test_messages(arguments):
    with pytest.raises((TypeError, ValueError), match="prior|num"):
        Proposed(*arguments)
