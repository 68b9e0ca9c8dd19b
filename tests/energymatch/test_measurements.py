"""Measurement energies against NumPy, SciPy and differences; what the functions of `posterior` refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from energymatch import langevin, posterior
from energymatch.likelihood import gaussian_prior

KEY = jax.random.key(0)
RNG = np.random.default_rng(1)
V = lambda x: jnp.sum(x**2, axis=-1)


def test_gaussian_energy_by_hand_and_its_gradient_by_differences(x64):
    """A non-linear A on images; y for all or one each, zeta for all or one each."""
    operator = lambda x: jnp.sin(x[:, ::2]) * jnp.sum(x**2, axis=(1, 2, 3), keepdims=True)
    hand = lambda x: np.sin(x[:, ::2]) * np.sum(x**2, axis=(1, 2, 3), keepdims=True)
    x = RNG.normal(size=(3, 4, 2, 1))
    for y in (RNG.normal(size=(2, 2, 1)), RNG.normal(size=(3, 2, 2, 1))):
        for zeta in (0.7, np.array([0.5, 1.0, 2.0])):
            expected = lambda x, y=y, zeta=zeta: np.sum((y - hand(x)) ** 2, axis=(1, 2, 3)) / (2 * zeta**2)
            energy = posterior.gaussian_measurement(operator, y, zeta)
            np.testing.assert_allclose(jax.jit(energy)(x), expected(x), rtol=1e-12)
            slopes = np.empty(x.shape)
            for index in np.ndindex(*x.shape):
                shift = np.zeros(x.shape)
                shift[index] = 1e-5
                slopes[index] = np.sum(expected(x + shift) - expected(x - shift)) / 2e-5
            gradient = jax.jit(jax.grad(lambda x, energy=energy: jnp.sum(energy(x))))(x)
            np.testing.assert_allclose(gradient, slopes, rtol=1e-6, atol=1e-6)


def test_any_likelihood(x64):
    """Poisson counts, against SciPy up to the constant that is left out."""
    counts = np.array([[3, 0, 5], [1, 2, 7]])
    x = RNG.uniform(0.5, 2.0, size=(2, 3))
    energy = posterior.measurement(
        lambda x: x**2, counts, lambda rate, y: jnp.sum(rate - y * jnp.log(rate), axis=-1)
    )
    log_factorials = scipy.special.gammaln(counts + 1).sum(-1)
    np.testing.assert_allclose(
        energy(x), -scipy.stats.poisson(x**2).logpmf(counts).sum(-1) - log_factorials, rtol=1e-10
    )


def test_with_energies_adds_in_nats(x64):
    x = RNG.normal(size=(5, 4))
    first, second = (posterior.gaussian_measurement(lambda x: x, y, 1.0) for y in (np.zeros(4), np.ones(4)))
    total = posterior.with_energies(V, (first, second), 0.15)
    expected = np.sum(x**2, axis=-1) / 0.15 + np.sum(x**2 + (x - 1) ** 2, axis=-1) / 2
    np.testing.assert_allclose(total(x) / 0.15, expected, rtol=1e-12)
    np.testing.assert_array_equal(posterior.with_energies(V, (), 0.15)(x), V(x))


def test_many_measurements_with_members_each():
    """G posteriors of N(0, 1) in one call of `langevin`: means y/(1 + zeta^2), y repeated for the members."""
    y = jnp.array([[-1.0, 0.5], [0.0, 3.0], [2.0, 1.0]])
    members, zeta = 4000, 0.5
    energy = posterior.gaussian_measurement(lambda x: x, jnp.repeat(y, members, axis=0), zeta)
    run = lambda key: langevin.sample(
        key, lambda x: V(x) / 4, jnp.zeros((3 * members, 2)), num_steps=60, step_size=0.2, temperature=0.5,
        energies=(energy,), method="mala",
    )  # fmt: skip
    x = np.asarray(jax.jit(run)(KEY).x, np.float64).reshape(3, members, 2)
    variance = zeta**2 / (1 + zeta**2)
    assert np.all(np.abs(x.mean(1) - y / (1 + zeta**2)) < 4 * np.sqrt(variance / members))
    assert np.all(np.abs(x.var(1) - variance) < 4 * variance * np.sqrt(2 / members))


X = jnp.zeros((4, 2))
IDENTITY = lambda x: x


def gaussian(y=None, scale=1.0, operator=IDENTITY):
    return posterior.gaussian_measurement(operator, np.zeros(2, np.float32) if y is None else y, scale)


def sample(energies=(V,), **options):
    options = dict(epsilon=1.0, prior=gaussian_prior(jnp.zeros(2), 1.0)) | options
    return posterior.sample(KEY, V, energies=energies, **options)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: posterior.measurement(3, X, V), TypeError, "operator must be callable, got 3"),
        (lambda: posterior.measurement(IDENTITY, X, 3), TypeError, "negative_log_likelihood must be"),
        (lambda: posterior.measurement(IDENTITY, X, lambda a, y: a)(X),
         ValueError, r"negative_log_likelihood must return shape \(4,\), got \(4, 2\)"),
        (lambda: gaussian(np.zeros(2, int)), TypeError, "y must be floating point, got dtype int64"),
        (lambda: gaussian(np.array([0.0, np.nan])), ValueError, "y must be finite, got nan"),
        (lambda: gaussian(np.zeros(3, np.float32))(X),
         ValueError, r"y must have shape \(4, 2\) or \(2,\), as operator\(x\) has, got \(3,\)"),
        (lambda: gaussian(scale=0.0), ValueError, "scale must be finite and positive, got 0.0"),
        (lambda: gaussian(scale=np.ones((4, 2))), ValueError, r"scale must be a scalar or have shape \[B\]"),
        (lambda: gaussian(scale=np.ones(3))(X), ValueError, r"scale must be a scalar or have shape \(4,\)"),
        (lambda: gaussian()(np.zeros((4, 2), int)), TypeError, "x must be floating point"),
        (lambda: gaussian(operator=lambda x: x > 0)(X), TypeError, r"operator\(x\) must be floating point"),
        (lambda: posterior.with_energies(3, (), 1.0), TypeError, "potential must be callable, got 3"),
        (lambda: posterior.with_energies(V, (), 0.0), ValueError, "epsilon must be finite and positive"),
        (lambda: posterior.with_energies(V, (jnp.sum,), 1.0)(X),
         ValueError, r"energies\[0\] must return shape \(4,\), got \(\)"),
        (lambda: sample(energies=V), TypeError, "energies must be a tuple of functions"),
        (lambda: sample(energies=(V, posterior.QuadraticRepulsion(1.0, 2))),
         ValueError, r"energies\[1\] couples examples: wrap potential and energies with joint"),
        (lambda: sample(epsilon=-1.0), ValueError, "epsilon must be finite and positive, got -1.0"),
        (lambda: sample(num_samples=100), ValueError, "num_chains must be a multiple of num_groups = 16"),
        (lambda: sample(num_samples=64.0), TypeError, "num_samples must be an int, got 64.0"),
        (lambda: sample(num_last_moves=-1), ValueError, "num_last_moves must be at least 0, got -1"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
