"""The temperature and the flow weight at their corners, against values by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import energymatch
from energymatch import flow_weight, temperature

TIMES = np.array([0.0, 0.4, 0.8, 0.85, 0.9, 1.0, 1.5, 3.25], np.float32)


def test_temperature_by_hand():
    expected = np.array([0, 0, 0, 0.25, 0.5, 1, 1, 1]) * 0.15
    came = temperature(TIMES, 0.8, 0.15)
    np.testing.assert_allclose(came, expected, atol=1e-7)
    assert came.dtype == np.float32
    assert came[5] == came[7] == np.float32(0.15)  # exactly, from t = 1 on
    np.testing.assert_allclose(temperature(TIMES, 0.0, 2.0), 2 * np.minimum(TIMES, 1), rtol=1e-6)
    np.testing.assert_array_equal(temperature(TIMES, 0.8, 0.0), np.zeros(8))


def test_flow_weight_by_hand():
    expected = np.array([1, 1, 1, 0.75, 0.5, 0, 0, 0])
    np.testing.assert_allclose(flow_weight(TIMES, 0.8), expected, atol=1e-6)
    np.testing.assert_allclose(flow_weight(TIMES, 0.0), np.maximum(1 - TIMES, 0), atol=1e-7)


def test_tau_star_of_one():
    t = np.array([0.0, 0.5, np.nextafter(np.float32(1), np.float32(0)), 1.0, 2.0], np.float32)
    np.testing.assert_array_equal(temperature(t, 1.0, 0.25), [0, 0, 0, 0.25, 0.25])
    np.testing.assert_array_equal(flow_weight(t, 1), np.ones(5))


@pytest.mark.parametrize("tau_star", [1 - 1e-9, 1 - 1e-6, 1e-9])
def test_tau_star_next_to_a_corner(tau_star):
    """t - tau_star has no digits left in float32 here; t = 1 is the full temperature all the same."""
    np.testing.assert_array_equal(temperature(np.float32([0, 1, 2]), tau_star, 0.25), [0, 0.25, 0.25])
    np.testing.assert_array_equal(flow_weight(np.float32([0, 1, 2]), tau_star), [1, 0, 0])


def test_shapes_and_kinds_of_times():
    grid = TIMES.reshape(2, 2, 2)
    np.testing.assert_array_equal(
        temperature(grid, 0.8, 0.15), temperature(TIMES, 0.8, 0.15).reshape(2, 2, 2)
    )
    assert temperature(2, 0.8, 0.5) == 0.5
    assert flow_weight(0, 0.8) == 1
    assert temperature(jnp.float32(0.9), 0.8, 1.0).shape == ()


@pytest.mark.parametrize("tau_star, slopes", [(0.8, [0, 0.75, 0]), (0.0, [0.15, 0.15, 0]), (1.0, [0, 0, 0])])
def test_gradients(tau_star, slopes):
    """At t = .5, .9 and 1.5: the slope is epsilon_max / (1 - tau_star) between tau_star and 1."""
    for t, slope in zip((0.5, 0.9, 1.5), slopes):
        in_t, in_epsilon = jax.grad(temperature, (0, 2))(t, tau_star, 0.15)
        np.testing.assert_allclose(in_t, slope, rtol=1e-6)
        np.testing.assert_allclose(in_epsilon, temperature(t, tau_star, 1.0), rtol=1e-6)
        weight_slope = jax.grad(flow_weight)(t, tau_star)
        np.testing.assert_allclose(weight_slope, -slope / 0.15, rtol=1e-6)


@pytest.mark.parametrize("tau_star", [0.0, 0.8, 1.0])
def test_gradients_are_finite_at_the_corners(tau_star):
    for t in (0.0, 0.8, 1.0):
        assert np.isfinite(jax.grad(temperature)(t, tau_star, 0.15))
        assert np.isfinite(jax.grad(flow_weight)(t, tau_star))


def test_under_jit_and_vmap():
    fn = jax.jit(lambda t, epsilon: temperature(t, 0.8, epsilon))
    np.testing.assert_allclose(fn(TIMES, 0.15), temperature(TIMES, 0.8, 0.15), rtol=1e-6)
    many = jax.vmap(fn, (None, 0))(TIMES, jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(many[1], temperature(TIMES, 0.8, 0.2), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda t: flow_weight(t, 0.8))(TIMES), flow_weight(TIMES, 0.8))
    assert energymatch.temperature is temperature


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: temperature(-0.1, 0.8, 1.0), ValueError, "t must be at least 0, got -0.1"),
        (lambda: temperature(np.nan, 0.8, 1.0), ValueError, "t must be at least 0, got nan"),
        (
            lambda: jax.jit(lambda: temperature(-0.1, 0.8, 1.0))(),
            ValueError,
            "t must be at least 0, got -0.1",
        ),
        (lambda: flow_weight(TIMES - 0.5, 0.8), ValueError, "t must be at least 0, got -0.5"),
        (lambda: flow_weight(True, 0.8), TypeError, "t must be floating point, got dtype bool"),
        (lambda: flow_weight(0.5, 1.1), ValueError, r"tau_star must lie in \[0, 1\], got 1.1"),
        (lambda: temperature(0.5, -0.1, 1.0), ValueError, r"tau_star must lie in \[0, 1\], got -0.1"),
        (lambda: temperature(0.5, None, 1.0), TypeError, "tau_star must be a number, got None"),
        (
            lambda: temperature(0.5, 0.8, -1.0),
            ValueError,
            "epsilon_max must be finite and non-negative, got -1",
        ),
        (lambda: temperature(0.5, 0.8, jnp.inf), ValueError, "epsilon_max must be finite and non-negative"),
        (
            lambda: temperature(0.5, 0.8, jnp.ones(2)),
            ValueError,
            r"epsilon_max must be a scalar, got shape \(2,\)",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
