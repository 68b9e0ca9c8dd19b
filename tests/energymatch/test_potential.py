"""Potentials: gradient against the closed form, densities, an energy for `egm`, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm
from energymatch import potential


def quartic(x):
    """V = sum x^4/4 - x over the event, grad V = x^3 - 1."""
    return jnp.sum((x**4 / 4 - x).reshape(x.shape[0], -1), axis=-1)


@pytest.mark.parametrize("event", [(3,), (4, 4, 1), ()])
def test_value_and_gradient_of_any_event(event):
    x = np.random.default_rng(0).normal(size=(5, *event)).astype(np.float32)
    value, gradient = jax.jit(lambda x: potential.value_and_gradient(quartic, x))(x)
    expected = (x.astype(np.float64) ** 4 / 4 - x).reshape(5, -1).sum(-1)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gradient, x**3 - 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(potential.velocity(quartic, x), 1 - x**3, rtol=1e-5, atol=1e-5)


def test_one_evaluation_serves_value_and_gradient():
    calls = []

    def counted(x):
        calls.append(x.shape)
        return quartic(x)

    potential.value_and_gradient(counted, jnp.ones((2, 3)))
    assert calls == [(2, 3)]


def test_a_value_that_is_no_number_stays_with_its_example():
    x = jnp.array([[1.0], [0.0], [2.0]])
    value, gradient = potential.value_and_gradient(lambda x: x[:, 0] / x[:, 0] + x[:, 0] ** 2, x)
    assert np.isnan(value[1])
    np.testing.assert_allclose(gradient[np.array([0, 2]), 0], [2, 4])


def test_boltzmann_density_and_energy():
    x = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
    flat = x.reshape(6, 4)
    log_density = potential.boltzmann_log_density(quartic, flat, 0.15)
    np.testing.assert_allclose(log_density, -quartic(flat) / 0.15, rtol=1e-6)
    energy = potential.boltzmann_energy(quartic, 0.15)
    assert isinstance(energy, egm.Energy)
    np.testing.assert_allclose(energy(x), -log_density.reshape(2, 3), rtol=1e-6)
    np.testing.assert_allclose(energy(x[0, 0]), -log_density[0], rtol=1e-6)
    images = potential.boltzmann_energy(quartic, 0.5, event_ndim=2)
    np.testing.assert_allclose(images(x), quartic(x) / 0.5, rtol=1e-6)
    traced = jax.jit(lambda e: potential.boltzmann_energy(quartic, e)(x))(0.15)
    np.testing.assert_allclose(traced, energy(x), rtol=1e-6)


def test_the_energy_goes_through_an_estimate_of_egm():
    """`egm.estimate` at r = 1 of a normal: E = V/eps with V = |x|^2/2 is N(0, eps)."""
    epsilon, t = 0.25, 0.6
    path = egm.paths.LinearPath()
    energy = potential.boltzmann_energy(lambda x: 0.5 * jnp.sum(x**2, -1), epsilon)
    x = jnp.array([[0.3, -0.2], [0.1, 0.5]])
    fn = lambda x, r: -energy(x)
    out = jax.jit(lambda k: egm.estimate(k, path, fn, x, t, 1.0, num_samples=20_000))(jax.random.key(0))
    # x_t = t x_1 + (1 - t) x_0: velocity x (t eps - (1 - t)) / (t^2 eps + (1 - t)^2). The proposal's variance
    # of x_1 is s^2 = ((1 - t)/t)^2 a coordinate, the weights' ESS is at least .3: 4 standard errors of
    # (x_1 - x_t)/(1 - t) are below 4 s / (1 - t) / sqrt(.3 * 20000) = .09.
    variance = t**2 * epsilon + (1 - t) ** 2
    assert np.all(out.ess > 0.3)
    np.testing.assert_allclose(out.generator, x * (t * epsilon - (1 - t)) / variance, atol=0.09)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: potential.velocity(lambda x: x, jnp.ones((2, 3))),
         ValueError, r"potential must return shape \(2,\), got \(2, 3\)"),
        (lambda: potential.velocity(lambda x: jnp.sum(x), jnp.ones((2, 3))),
         ValueError, r"potential must return shape \(2,\), got \(\)"),
        (lambda: potential.velocity(lambda x: 0.0, jnp.ones((2, 3))),
         TypeError, "potential must return an array of shape"),
        (lambda: potential.velocity(quartic, jnp.ones((2, 3), int)), TypeError, "x must be floating point"),
        (lambda: potential.velocity(quartic, jnp.ones(())), ValueError, "x must have at least 1 axes"),
        (lambda: potential.boltzmann_log_density(quartic, jnp.ones((2, 3)), 0.0),
         ValueError, "epsilon must be finite and positive, got 0.0"),
        (lambda: potential.boltzmann_log_density(quartic, jnp.ones((2, 3)), jnp.ones(2)),
         ValueError, r"epsilon must be a scalar, got shape \(2,\)"),
        (lambda: potential.boltzmann_energy(3, 1.0), TypeError, "potential must be callable, got 3"),
        (lambda: potential.boltzmann_energy(quartic, -1), ValueError, "epsilon must be finite and positive"),
        (lambda: potential.boltzmann_energy(quartic, 1.0, event_ndim=0), ValueError, "event_ndim must be"),
        (lambda: potential.boltzmann_energy(quartic, 1.0, event_ndim=3)(jnp.ones((2, 3))),
         ValueError, "x must have at least 3 axes"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()
