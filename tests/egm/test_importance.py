"""Self-normalised importance sampling: scale, extremes, streams, shards and clipping."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from egm import importance

LOG_W = np.array([0.3, -2.0, 1.7, -np.inf, 0.0])
numbers = st.one_of(st.floats(-50, 50, width=32), st.sampled_from([-np.inf, np.inf, np.nan, -1e30, 80.0]))


def reference(log_w):
    """(weights, log_mean, ess) in float64 by their definitions."""
    log_w = np.asarray(log_w, np.float64)
    usable = ~(np.isnan(log_w) | np.isposinf(log_w))
    w = np.where(usable, np.exp(np.where(usable, log_w, -np.inf)), 0.0)
    if w.sum() == 0:
        return w, -np.inf, 0.0
    return w / w.sum(), np.log(w.mean()), w.sum() ** 2 / (w**2).sum() / len(w)


@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0, 1e6])
def test_scale_invariance(x64, shift):
    a, b = importance.snis(LOG_W), importance.snis(LOG_W + shift)
    np.testing.assert_allclose(a.weights, b.weights, rtol=1e-9)
    np.testing.assert_allclose(a.ess, b.ess, rtol=1e-9)
    np.testing.assert_allclose(a.log_mean + shift, b.log_mean, rtol=1e-9)
    weights, log_mean, ess = reference(LOG_W)
    np.testing.assert_allclose(a.weights, weights, rtol=1e-12)
    np.testing.assert_allclose(a.log_mean, log_mean, rtol=1e-12)
    np.testing.assert_allclose(a.ess, ess, rtol=1e-12)


def test_extremes_of_the_ess():
    assert importance.snis(jnp.full(8, -3.0)).ess == 1
    np.testing.assert_allclose(importance.snis(jnp.array([90.0] + [-90.0] * 7)).ess, 1 / 8)
    for value in (-jnp.inf, jnp.nan, jnp.inf):
        weights, log_mean, ess = importance.snis(jnp.full((8, 2), value))
        assert np.all(weights == 0)
        assert np.all(log_mean == -np.inf)
        assert np.all(ess == 0)


def test_axes_and_a_single_sample():
    x = jnp.asarray(np.stack([LOG_W, LOG_W + 1, LOG_W * 2]))
    for axis in (1, -1):
        out = importance.snis(x, axis=axis)
        np.testing.assert_allclose(out.weights, importance.snis(x.T).weights.T)
        chex.assert_shape([out.log_mean, out.ess], (3,))
    np.testing.assert_allclose(importance.log_mean_exp(x, 1), importance.snis(x, 1).log_mean)
    one = importance.snis(jnp.array([[-7.0]]))
    assert (one.weights, one.log_mean, one.ess) == (1, -7, 1)


def test_gradient_of_the_log_mean_is_the_weights_and_finite_at_zeros():
    log_w = jnp.array([0.3, jnp.nan, 1.7, -jnp.inf, jnp.inf])
    gradient = jax.grad(importance.log_mean_exp)(log_w)
    np.testing.assert_allclose(gradient, importance.snis(log_w).weights, rtol=1e-6)
    dead = jax.grad(importance.log_mean_exp)(jnp.full(3, -jnp.inf))
    np.testing.assert_array_equal(dead, jnp.zeros(3))


@jax.jit
def _batch(log_w, values):
    out = importance.snis(log_w)
    mean = jnp.sum(jnp.where(out.weights > 0, out.weights * values, 0), axis=0)
    return mean, out.log_mean, out.ess


@jax.jit
def _stream(log_w, values, chunk_of, order):
    """Four chunks, of which some may be empty, merged in the given order, once as a tree."""
    records = [
        importance.running_chunk(log_w[:, None], values[:, None], (chunk_of == c)[:, None]) for c in range(4)
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    a, b, c, d = (jax.tree.map(lambda leaf: leaf[order[i]], stacked) for i in range(4))  # noqa: B023
    merge = importance.running_merge
    left = merge(merge(merge(merge(importance.running_empty(a), a), b), c), d)
    tree = merge(merge(a, b), merge(c, d))
    finish = lambda record: importance.running_finish(record, log_w.shape[0])
    return finish(left), finish(tree), left.num_nonfinite


@hypothesis.given(
    st.lists(numbers, min_size=12, max_size=12),
    st.lists(st.integers(0, 3), min_size=12, max_size=12),
    st.permutations(range(4)),
)
def test_stream_is_batch_under_any_merges(log_w, chunk_of, order):
    log_w = np.array(log_w, np.float32)
    values = np.linspace(-1, 1, 12, dtype=np.float32)
    values[np.isnan(log_w)] = np.nan  # what has no weight may be anything
    left, tree, bad = _stream(log_w, values, np.array(chunk_of), np.array(order))
    direct = _batch(log_w, values)
    for came in (left, tree):
        for a, b in zip(came, direct):
            np.testing.assert_allclose(a[0], b, rtol=1e-5, atol=1e-6)
    weights, log_mean, ess = reference(log_w)
    np.testing.assert_allclose(direct[1], log_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(direct[2], ess, rtol=1e-4)
    assert bad[0] == np.sum(np.isnan(log_w) | np.isposinf(log_w))


def test_samples_split_over_devices(mesh8):
    log_w = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32) * 3
    log_w[:8, 0], log_w[:, 1], log_w[17, 2] = -np.inf, np.nan, np.inf  # a whole shard without weight
    whole = importance.snis(log_w)
    fn = lambda w: importance.snis(w, axis_name="i")
    specs = importance.SNIS(P("i"), P(), P())
    came = jax.jit(jax.shard_map(fn, mesh=mesh8, in_specs=P("i"), out_specs=specs))(log_w)
    mapped = jax.pmap(fn, axis_name="i")(log_w.reshape(8, 8, 3))
    np.testing.assert_allclose(came.weights, whole.weights, rtol=1e-5)
    np.testing.assert_allclose(mapped.weights.reshape(64, 3), whole.weights, rtol=1e-5)
    for name in ("log_mean", "ess"):
        np.testing.assert_allclose(getattr(came, name), getattr(whole, name), rtol=1e-5)
        np.testing.assert_allclose(getattr(mapped, name)[3], getattr(whole, name), rtol=1e-5)


def test_clipped_probabilities_by_hand():
    log_w = jnp.log(jnp.array([8.0, 1.0, 1.0, 0.0, 0.0]))  # mean of the positive ones: 10 / 3
    probabilities, cut = importance.clipped_probabilities(log_w, 1.5)  # cut at 5: 5, 1, 1
    np.testing.assert_allclose(probabilities, np.array([5, 1, 1, 0, 0]) / 7, rtol=1e-6)
    np.testing.assert_allclose(cut, 3 / 10, rtol=1e-6)
    probabilities, cut = importance.clipped_probabilities(log_w, None)
    np.testing.assert_allclose(probabilities, np.array([8, 1, 1, 0, 0]) / 10, rtol=1e-6)
    assert cut == 0
    probabilities, cut = importance.clipped_probabilities(log_w, 3.0)  # 8 < 10: nothing is cut
    np.testing.assert_allclose(probabilities, np.array([8, 1, 1, 0, 0]) / 10, rtol=1e-6)
    np.testing.assert_allclose(cut, 0, atol=1e-6)


@pytest.mark.parametrize("value", [-np.inf, np.nan, np.inf])
def test_clipped_probabilities_of_nothing(value):
    probabilities, cut = importance.clipped_probabilities(jnp.full(4, value), 2.0)
    np.testing.assert_array_equal(probabilities, np.zeros(4))
    assert cut == 0


def test_systematic_counts_are_even_and_unbiased():
    log_w = jnp.log(jnp.array([0.05, 0.4, 0.0, 0.31, 0.24])).at[2].set(jnp.nan)
    exact = 7 * np.array([0.05, 0.4, 0.0, 0.31, 0.24])
    draw = jax.vmap(lambda k: importance.systematic(k, log_w, 7))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(5), 4000)))
    counts = np.stack([np.sum(drawn == i, axis=1) for i in range(5)], axis=1)
    assert np.all((counts >= np.floor(exact)) & (counts <= np.ceil(exact)))
    # A count is one of two neighbours: its standard deviation is at most 1/2.
    np.testing.assert_allclose(counts.mean(axis=0), exact, atol=4 * 0.5 / np.sqrt(4000))


def test_systematic_without_a_positive_weight_takes_all_in_turn():
    log_w = jnp.array([-jnp.inf, jnp.nan, jnp.inf])
    np.testing.assert_array_equal(importance.systematic(jax.random.key(0), log_w, 4), [0, 1, 2, 0])
