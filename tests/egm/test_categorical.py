"""`random.categorical` against the weights it was given: every one right to float32's resolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from egm import random

KEY = jax.random.key(0)
draw = jax.jit(random.categorical, static_argnums=2)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16, 100])
def test_frequencies(size):
    """A chi-square test of 200,000 draws in each of two rows, at a level of 1e-4."""
    weights = np.random.default_rng(size).gamma(1.0, size=(2, size)).astype(np.float32)
    found = np.asarray(draw(KEY, weights, (200_000,)))
    assert found.dtype == np.int32
    assert found.shape == (200_000, 2)
    for row, w in zip(found.T, weights):
        counts = np.bincount(row, minlength=size)
        assert counts.size == size
        if size > 1:
            expected = 200_000 * w.astype(float) / w.astype(float).sum()
            assert scipy.stats.chisquare(counts, expected).pvalue > 1e-4


def test_rare_tokens_of_a_large_vocabulary():
    """20,000 tokens of 5e-8: a mass of 1e-3, where `jax.random.categorical` gives them 2.4e-4."""
    weights = np.full(20_001, 5e-8, np.float32)
    weights[777] = 0.999
    n = 250_000
    found = np.asarray(draw(KEY, weights, (n,)))
    rare = np.sum(found != 777)
    mass = 20_000 * 5e-8 / (0.999 + 20_000 * 5e-8)
    assert abs(rare / n - mass) < 4 * np.sqrt(mass / n)  # four standard errors: .00025
    # And they are spread evenly: by halves of their places.
    assert abs(np.mean(found[found != 777] > 10_000) - 0.5) < 4 * 0.5 / np.sqrt(rare)


def leaf_probabilities(size, weights, monkeypatch):
    """The exact probability of each index: the measure of the uniforms that lead to it, by bisection."""
    depth = (size - 1).bit_length()
    words = np.zeros((2, depth, 1), np.uint32)
    monkeypatch.setattr(jax.random, "bits", lambda key, shape, dtype: jnp.asarray(words))

    def index(level, number):
        words[0, level, 0], words[1, level, 0] = number >> 32, number & (2**32 - 1)
        return int(random.categorical(KEY, weights)) >> (depth - 1 - level)

    probability = np.zeros(size)

    def walk(level, prefix, mass):
        """The state of `words` above this level leads to the node `prefix`."""
        if level == depth:
            probability[prefix] += mass
            return
        first = index(level, 0)
        low, high = 0, 2**64 - 1
        if index(level, high) != first:
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if index(level, middle) == first else (low, middle)
        share = (low + 1) / 2**64 if index(level, 2**64 - 1) != first else 1.0
        for node, part, number in ((first, share, 0), (first ^ 1, 1 - share, 2**64 - 1)):
            if part > 0:
                words[0, level, 0], words[1, level, 0] = number >> 32, number & (2**32 - 1)
                walk(level + 1, node, mass * part)

    walk(0, 0, 1.0)
    return probability


def test_every_probability_exactly(monkeypatch):
    """Weights over twelve orders of magnitude, each within 1e-6 of its own value: no draw is random here."""
    weights = np.array([1.0, 3e-12, 0.2, 5e-8, 0.0, 1e-5], np.float32)
    found = leaf_probabilities(6, jnp.asarray(weights), monkeypatch)
    exact = weights.astype(float) / weights.astype(float).sum()
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=0)


def test_nothing_of_no_weight_is_drawn():
    weights = np.array([0.0, np.nan, -1.0, 2.0, 0.0, 1e-30, 0.0], np.float32)
    assert set(np.unique(draw(KEY, weights, (10_000,)))) == {3}
    assert np.all(draw(KEY, np.zeros((3, 5), np.float32), ()) == 0)
    allowed = np.arange(12) % 5 == 4
    assert set(np.unique(draw(KEY, allowed, (1000,)))) == {4, 9}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_weights_are_summed_in_float32(dtype):
    """4,000 equal weights, whose sum in bfloat16 stops at 256: the mean index within four standard errors."""
    found = np.asarray(draw(KEY, jnp.ones(4000, dtype), (20_000,)))
    assert abs(np.mean(found) - 1999.5) < 4 * 4000 / np.sqrt(12 * 20_000)


def test_maps_like_any_function_of_keys():
    keys = jax.random.split(KEY, 6)
    weights = jax.random.uniform(KEY, (6, 3, 9))
    mapped = jax.vmap(random.categorical)(keys, weights)
    single = jnp.stack([random.categorical(k, w) for k, w in zip(keys, weights)])
    np.testing.assert_array_equal(mapped, single)
    assert mapped.shape == (6, 3)
    assert random.categorical(KEY, weights[0], (2, 4)).shape == (2, 4, 3)


def test_bad_arguments():
    with pytest.raises(ValueError, match="weights must have shape"):
        random.categorical(KEY, jnp.ones(()))
    with pytest.raises(ValueError, match="key must be one key"):
        random.categorical(jax.random.split(KEY), jnp.ones(3))
