"""What training on images adds: the published negatives, data made on the spot, batches read ahead."""

import pathlib
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energymatch import images, losses, matching, negatives


@pytest.fixture
def example_folder(monkeypatch):
    monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2] / "examples")


def test_made_data_are_in_the_format(tmp_path, example_folder):
    """The example's own data: every shape comes, and pooling to 8 x 8 keeps the mean of each colour."""
    from data import image_data
    from support import image_presets

    data = images.read_cifar10(image_data.write(tmp_path / "data", 32))
    assert len(data) == 160 and set(data.labels) == set(range(10))
    np.testing.assert_array_equal(data.take([5]), image_data.draw(np.random.RandomState(0), 32)[0][5:6])
    pooled = image_presets.read_pooled(tmp_path / "data")
    assert pooled.shape == (8, 8, 3)
    means = [s.take(np.arange(160)).mean((1, 2), dtype=float) for s in (data, pooled)]
    # Each of 64 values is rounded by at most a half.
    np.testing.assert_allclose(*means, atol=0.5)


def test_prefetch_reads_one_ahead(example_folder):
    """In order, repeated or with gaps, from the thread; the next one is read before it is asked for."""
    from support import image_presets

    read, second = [], threading.Event()

    def batch(n):
        read.append((n, threading.current_thread() is threading.main_thread()))
        if n == 1:
            second.set()
        return 10 * n

    with image_presets.Prefetch(batch) as feed:
        assert feed(0) == 0
        assert second.wait(timeout=60)
        assert [feed(n) for n in (0, 1, 2, 7, 8)] == [0, 10, 20, 70, 80]
    assert not any(in_main for _, in_main in read)

    def broken(n):
        raise ValueError(f"no batch {n}")

    with image_presets.Prefetch(broken) as feed, pytest.raises(ValueError, match="no batch 3"):
        feed(3)


def test_published_negatives():
    """V = .1 |x|^2: a gradient step multiplies by .998; 100 steps without noise, then 100 at eps = .01.

    Half from the prior, half from data, clipped to [-1, 1] once, at the end.
    """
    config = matching.published_images()
    data, prior = jnp.full((8, 8, 8, 3), -0.5), jnp.full((8, 8, 8, 3), 0.3).at[0, 0, 0, 0].set(5.0)
    draw = jax.jit(
        lambda key: config.negatives.draw(
            key,
            lambda x: 0.1 * jnp.sum(x**2, axis=(1, 2, 3)),
            config.epsilon_max,
            None,
            losses.Batch(prior, data),
        )
    )
    x = np.asarray(draw(jax.random.key(0)).x)
    assert x[0, 0, 0, 0] == 1.0  # 5 shrinks to 3.35; clipped at every step it would be .67
    shrunk = 0.998**200 * np.where(np.arange(8) % 2 == 0, 0.3, -0.5)
    rest = (x - shrunk[:, None, None, None]).ravel()[1:]
    variance = 2 * 0.01 * 0.01 * np.sum(0.998 ** (2 * np.arange(100)))
    # 1,535 normals: 4 standard errors of their mean and of their mean square, sqrt(2/1535) of the variance.
    assert abs(rest.mean()) < 4 * np.sqrt(variance / rest.size)
    assert abs(np.mean(rest**2) / variance - 1) < 4 * np.sqrt(2 / rest.size)


def test_a_schedule_must_reach_its_full_temperature():
    with pytest.raises(ValueError, match="end_time must be at least 1, .* got 0.5"):
        negatives.ShortRun(end_time=0.5)
