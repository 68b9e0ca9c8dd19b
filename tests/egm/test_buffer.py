"""The replay buffer: what enters, where it sits, what is drawn, and that counts stay in bounds."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from egm import buffer as buffers

EXAMPLE = {"x": jnp.zeros((2,), jnp.int32), "w": jnp.zeros(())}
add = jax.jit(buffers.add)
draw = jax.jit(buffers.draw)


def items(values):
    values = np.asarray(values)
    return {
        "x": jnp.asarray(np.stack([values, -values], axis=-1), jnp.int32),
        "w": jnp.asarray(values, jnp.float32) / 2,
    }


def held(buffer):
    return np.asarray(buffer.items["x"][:, 0])[np.asarray(buffers.filled(buffer))]


def test_an_empty_buffer():
    buffer = buffers.init(5, EXAMPLE)
    assert not np.any(buffers.filled(buffer))
    assert buffer.items["x"].shape == (5, 2)
    assert buffer.items["x"].dtype == jnp.int32
    shapes = jax.eval_shape(lambda: EXAMPLE)
    assert jax.tree.map(jnp.shape, buffers.init(5, shapes)) == jax.tree.map(jnp.shape, buffer)


def test_the_first_batch_is_stored_once():
    buffer = add(buffers.init(6, EXAMPLE), items([1, 2, 3]))
    assert buffer.num_added == 3
    np.testing.assert_array_equal(held(buffer), [1, 2, 3])
    np.testing.assert_array_equal(buffer.items["x"], [[1, -1], [2, -2], [3, -3]] + [[0, 0]] * 3)
    np.testing.assert_array_equal(buffer.items["w"], [0.5, 1, 1.5, 0, 0, 0])


def test_invalid_items_never_enter():
    valid = jnp.array([False, True, False, True])
    buffer = add(buffers.init(6, EXAMPLE), items([1, 2, 3, 4]), valid)
    np.testing.assert_array_equal(held(buffer), [2, 4])
    same = add(buffer, items([5, 6, 7, 8]), jnp.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, same, buffer)


def test_the_oldest_give_way():
    buffer = buffers.init(4, EXAMPLE)
    for first in (1, 4, 7):
        buffer = add(buffer, items(range(first, first + 3)))
    np.testing.assert_array_equal(sorted(held(buffer)), [6, 7, 8, 9])
    np.testing.assert_array_equal(buffer.items["x"][:, 0], [9, 6, 7, 8])  # item j at j modulo C
    whole = add(buffer, items([20, 21, 22, 23]))
    np.testing.assert_array_equal(sorted(held(whole)), [20, 21, 22, 23])


@hypothesis.given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=8))
def test_it_holds_the_last_valid_items(batches):
    """Whatever is added, the buffer is the tail of the list of valid items."""
    buffer, expected = buffers.init(5, EXAMPLE), []
    for i, valid in enumerate(batches):
        values = np.arange(3) + 3 * i + 1
        buffer = add(buffer, items(values), np.array(valid))
        expected += [v for v, ok in zip(values, valid) if ok]
    assert sorted(held(buffer)) == expected[-5:]
    np.testing.assert_array_equal(buffer.items["w"], buffer.items["x"][:, 0] / 2)


def test_counts_do_not_overflow():
    """num_added stays below 3 C - 1 + C however long it runs, and the order goes on."""
    fill = jax.jit(lambda b, i: (buffers.add(b, {"x": jnp.full((3, 2), i), "w": jnp.zeros(3)}), b.num_added))
    buffer, counts = jax.lax.scan(fill, buffers.init(4, EXAMPLE), jnp.arange(1000, dtype=jnp.int32))
    assert np.max(counts) < 8
    assert sorted(held(buffer)) == [998, 999, 999, 999]
    assert np.all(buffers.filled(buffer))


def test_draw_frequencies():
    """Chi-square of 20,000 draws above the 1e-4 quantile; never a place of probability zero."""
    p = jnp.array([0.0, 0.1, 0.0, 0.6, 0.3, 0.0])
    index = np.asarray(draw(p, jax.random.uniform(jax.random.key(0), (20_000,))))
    counts = np.bincount(index, minlength=6)
    assert np.all(counts[[0, 2, 5]] == 0)
    expected = 20_000 * np.array([0.1, 0.6, 0.3])
    assert scipy.stats.chisquare(counts[[1, 3, 4]], expected).pvalue > 1e-4
    # Unnormalised probabilities will do, and stratified uniforms give counts within one.
    strata = (np.arange(100) + 0.5) / 100
    counts = np.bincount(draw(7 * p, strata), minlength=6)
    np.testing.assert_array_equal(counts, [0, 10, 0, 60, 30, 0])


def test_ends_of_the_uniforms():
    below_one = np.nextafter(np.float32(1), np.float32(0))
    p = jnp.array([0.0, 0.5, 0.0, 0.5, 0.0])
    np.testing.assert_array_equal(draw(p, jnp.array([0.0, below_one, 0.5])), [1, 3, 3])
    np.testing.assert_array_equal(draw(jnp.zeros(5), jnp.array([0.0, 0.7])), [0, 0])


@pytest.mark.parametrize("seed", range(3))
def test_rounding_draws_no_place_of_probability_zero(seed):
    """Uniforms exactly at the partial sums, where a sum that rounds differently would show."""
    rng = np.random.default_rng(seed)
    p = rng.gamma(0.1, size=2560).astype(np.float32) * (rng.uniform(size=2560) < 0.3)
    p = jnp.asarray(p / p.sum())
    cumulative = np.asarray(jax.jit(jnp.cumsum)(p))
    edges = cumulative / cumulative[-1]
    near = np.concatenate([edges, np.nextafter(edges, np.float32(0)), np.nextafter(edges, np.float32(2))])
    index = draw(p, jnp.asarray(np.clip(near, 0, np.nextafter(np.float32(1), np.float32(0)))))
    assert np.all(np.asarray(p)[np.asarray(index)] > 0)


def test_sample():
    buffer = add(buffers.init(6, EXAMPLE), items([1, 2, 3]))
    p = jnp.array([0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    came = buffers.sample(buffer, p, jnp.array([0.1, 0.9]))
    np.testing.assert_array_equal(came["x"], [[2, -2], [2, -2]])
    np.testing.assert_array_equal(came["w"], [1, 1])


def test_under_jit_it_traces_once():
    count = 0

    @jax.jit
    def fn(buffer, batch, valid):
        nonlocal count
        count += 1
        return buffers.add(buffer, batch, valid)

    buffer = buffers.init(4, EXAMPLE)
    for i in range(4):
        buffer = fn(buffer, items([i, i + 1]), jnp.array([True, i % 2 == 0]))
    assert count == 1
