"""The parts of examples/mnist.py: its data, judges, dimensions and posteriors."""

import json
import os
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from example_modules import EXAMPLES, importable


@pytest.fixture(scope="module")
def parts():
    """The example's modules."""
    with importable():
        from data import digits28
        from reports import mnist as report
        from support import digits28 as training
        from support import digits28_dimension, digits28_judges, digits28_posteriors
    return types.SimpleNamespace(
        data=digits28, report=report, dimension=digits28_dimension, judges=digits28_judges,
        posteriors=digits28_posteriors, training=training,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    return parts.data.write(tmp_path_factory.mktemp("made_up"), num=200)


def test_digits_are_standardised_and_split(parts, folder):
    digits = parts.data.load(folder, 0, num_copies=2)
    assert digits.train.shape == (160, 28, 28, 1) and digits.held_out.shape == (40, 28, 28, 1)
    assert digits.copies.shape == (480, 28, 28, 1) and np.array_equal(digits.copies[:160], digits.train)
    assert abs(digits.train.mean()) < 1e-5 and digits.train.var(0).mean() == pytest.approx(1, abs=1e-4)
    images, labels = parts.data.read(folder)
    whole = np.concatenate([digits.train, digits.held_out])
    levels = np.rint(digits.levels(whole)[..., 0]).astype(np.uint8)
    key = lambda x, y: sorted((one.tobytes(), int(label)) for one, label in zip(x, y, strict=True))
    assert key(levels, np.r_[digits.train_labels, digits.held_out_labels]) == key(images, labels)


def test_the_loader_says_what_is_wrong(parts, tmp_path):
    with pytest.raises(FileNotFoundError, match="npm registry"):
        parts.data.load(None, 0, 0)
    images, labels = np.zeros((3, 28, 28), np.uint8), np.arange(3)
    for arrays, message in (
        ({"images": images}, "must hold images and labels"),
        ({"images": images[:, 1:], "labels": labels}, r"uint8 \[N, 28, 28\], got uint8 \(3, 27, 28\)"),
        ({"images": images, "labels": labels + 8}, "3 numbers in 0..9"),
    ):
        np.savez(tmp_path / parts.data.FILE, **arrays)
        with pytest.raises(ValueError, match=message):
            parts.data.load(tmp_path, 0, 0)


def test_distortions_keep_a_digit_about_where_it_was(parts, folder):
    """Ink and its centre: stretching by at most 12% a side, shifting by at most 1.4 pixels and a turn."""
    images, _ = parts.data.read(folder)
    out = parts.data.distorted(np.random.default_rng(0), images)
    ink = out.sum((1, 2), dtype=float) / images.sum((1, 2), dtype=float)
    assert 0.7 < ink.min() and ink.max() < 1.4 and abs(np.log(ink)).mean() < 0.15
    place = np.arange(28.0)
    for axis in (1, 2):
        centre = lambda x, axis=axis: x.sum(3 - axis) @ place / x.sum((1, 2), dtype=float)
        assert np.abs(centre(out.astype(float)) - centre(images.astype(float))).max() < 4
    assert np.mean(np.any(out != images, axis=(1, 2))) > 0.99


def test_spectra_count_flat_directions(parts):
    """V = (1/2) sum of c_i x_i^2 in 16 dimensions: its eigenvalues are the c_i."""
    c = np.r_[np.zeros(5), np.linspace(1, 3, 11)].astype(np.float32)
    potential = lambda x: 0.5 * jnp.sum(c[None] * x.reshape(x.shape[0], 16) ** 2, axis=1)
    x = np.asarray(jax.random.normal(jax.random.key(0), (3, 4, 4, 1)))
    found, seconds = parts.dimension.spectra(jax.random.key(1), potential, x)
    np.testing.assert_allclose(np.sort(found), np.tile(np.sort(c), (3, 1)), atol=1e-4)
    assert parts.dimension.counts(found, 0.5).tolist() == [5, 5, 5] and seconds > 0


def test_the_threshold_is_the_one_whose_counts_follow_the_sizes(parts):
    """Sample n has n eigenvalues of .3, the others are 2 or more at random: .3 < threshold < 2 counts n."""
    rng = np.random.default_rng(0)
    eigenvalues = rng.uniform(2, 3, (12, 20))
    for n in range(12):
        eigenvalues[n, :n] = 0.3
    threshold, tried = parts.dimension.choose_threshold(eigenvalues, np.arange(12), unit=2.0)
    assert 0.3 < threshold <= 2.0 and tried.max() == pytest.approx(1.0)


def test_denoising_with_the_exact_potential_of_normal_digits(parts):
    """Digits N(0, s^2 I) plus noise: V = epsilon |x|^2/(2 (s^2 + noise^2)), mean x s^2/(s^2 + noise^2)."""
    settings, s = parts.training.Settings(noise=0.5, epsilon_max=0.3), 1.5
    total = s**2 + settings.noise**2
    apply = lambda params, x: params * jnp.sum(x**2, axis=(1, 2, 3)) / (2 * total)
    potential = parts.training.Potential(apply, settings.epsilon_max)
    x = np.asarray(jax.random.normal(jax.random.key(0), (7, 28, 28, 1)))
    np.testing.assert_allclose(parts.judges.cleaned(potential, x, settings), x * s**2 / total, rtol=1e-4)


def test_measurements_have_noise_where_something_is_measured(parts):
    digits = np.ones((50, 28, 28, 1), np.float32)
    y = parts.posteriors.measured(jax.random.key(0), digits, noise=0.0)
    assert [v.shape[1:3] for v in y.values()] == [(28, 28), (7, 7), (28, 28)]
    half = np.asarray(y["lower half missing"])
    assert np.all(half[:, 14:] == 0)
    for v in (half[:, :14], *list(y.values())[1:]):
        v = np.asarray(v)
        assert abs(v.mean() - 1) < 5 * parts.posteriors.ZETA / np.sqrt(v.size)
        assert v.std() == pytest.approx(parts.posteriors.ZETA, rel=5 / np.sqrt(2 * v.size))


def test_members_follow_the_posterior_of_a_normal_potential(parts):
    """V/epsilon = |x|^2/2: the seen half has mean y/(1 + zeta^2), the other one is N(0, 1), in each arm."""
    settings = parts.training.Settings(noise=0.2, epsilon_max=0.5, step_size=0.2)
    apply = lambda params, x: params * jnp.sum(x**2, axis=(1, 2, 3)) / 2
    lengths = parts.posteriors.Lengths(annealing=60, moves=40, step_size=0.04, joint_step_size=0.005)
    operator = parts.posteriors.make_operators()["lower half missing"]
    y = operator(jnp.ones((2, 28, 28, 1)))
    args = (apply, settings.epsilon_max, jax.random.key(0), y, operator, settings, lengths, 1e-3, 1.0)
    out = parts.posteriors.solve(*args)
    x = np.asarray(out.x)
    assert x.shape == (3, 2, 8, 28, 28, 1) and np.all(np.asarray(out.acceptance) > 0.3)
    # 16 members of 392 pixels: the mean's error is 1/sqrt(6272) = .013; 5 of it are .07.
    expected = 1 / (1 + parts.posteriors.ZETA**2)
    for arm in x:
        assert arm[:, :, :14].mean() == pytest.approx(expected, abs=0.07)
        assert abs(arm[:, :, 14:].mean()) < 0.07
    np.testing.assert_allclose(out.clean, x * (1 - settings.noise**2), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(out.energy, (x**2).sum((3, 4, 5)) / 2, rtol=1e-3)


@pytest.mark.slow
def test_the_example_runs_on_made_up_digits(folder, tmp_path):
    command = [sys.executable, str(EXAMPLES / "mnist.py"), f"--data_dir={folder}", "--quick"]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "MPLBACKEND": "Agg",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    subprocess.run([*command, f"--output_dir={tmp_path}"], check=True, env=environment, timeout=600)
    results = json.loads((tmp_path / "results.json").read_text())
    for picture in ("mnist.png", "mnist_posteriors.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    assert set(results["samples"]["density"]) == {"t1", "t2", "t4"}
    assert results["energies"]["auroc"].keys() >= {"inverted", "noise of the prior"}
    for row in results["posteriors"].values():
        assert row.keys() >= {"published annealing", "posterior", "with interaction"}
