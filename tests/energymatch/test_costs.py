"""The line-of-sight cost against a brute-force march along every line, and what its coupling buys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energymatch import couplings
from energymatch.couplings import costs


def marched(x_0, x_1, landmarks, radius, strength, num=4001):
    """The cost by walking each line in float64: s is the first point within `radius` of a landmark."""
    x_0, x_1, landmarks = (np.asarray(x, float).reshape(len(x), -1) for x in (x_0, x_1, landmarks))
    s = np.linspace(0, 1, num)
    out = np.empty((len(x_0), len(x_1)))
    for i, a in enumerate(x_0):
        for j, b in enumerate(x_1):
            line = a + s[:, None] * (b - a)
            near = np.linalg.norm(line[:, None] - landmarks[None], axis=-1).min(axis=1) <= radius
            first = s[np.argmax(near)] if near.any() else 1.0
            out[i, j] = np.sum((b - a) ** 2) * (1 + strength * (1 - first) ** 2)
    return out


@pytest.mark.parametrize(("event", "radius"), [((2,), 0.8), ((3,), 0.8), ((2, 2, 1), 1.8)])
def test_cost_is_that_of_a_march_along_the_line(event, radius):
    keys = jax.random.split(jax.random.key(0), 3)
    x_0, x_1 = (3 * jax.random.normal(k, (12, *event)) for k in keys[:2])
    landmarks = 2 * jax.random.normal(keys[2], (9, *event))
    cost = costs.line_of_sight(landmarks, strength=7.0, radius=radius)(x_0, x_1)
    expected = marched(x_0, x_1, landmarks, radius, 7.0)
    squares = np.asarray(costs.squared_euclidean(x_0, x_1))
    assert 0.1 < np.mean(expected > 1.001 * squares) < 0.95  # some lines are met, some are not
    # The march stops up to 1/4000 of the line late; grazing lines it may miss altogether.
    close = np.isclose(cost, expected, rtol=2e-3 * 7, atol=0)
    grazing = expected < np.asarray(cost)
    assert np.all(close | grazing)
    assert np.mean(close) > 0.97


def test_zero_strength_is_the_squared_distance():
    x_0, x_1 = jax.random.normal(jax.random.key(0), (2, 20, 3)) * 5
    cost = costs.line_of_sight(x_1, strength=0.0)(x_0, x_1)
    np.testing.assert_allclose(cost, costs.squared_euclidean(x_0, x_1), rtol=1e-5, atol=1e-4)


def test_starting_inside_the_data_is_charged_in_full():
    x = jnp.zeros((1, 2))
    cost = costs.line_of_sight(jnp.array([[0.1, 0.0]]), strength=3.0, radius=0.5)(x, x + 2.0)
    np.testing.assert_allclose(cost, [[8.0 * 4.0]], rtol=1e-6)


def test_default_radius_is_the_distance_to_the_fifth_neighbour():
    landmarks = jnp.arange(40.0)[:, None]  # the fifth nearest other one is 3 away, but at the ends
    x_0, x_1 = jnp.array([[-20.0]]), jnp.array([[100.0]])
    cost = costs.line_of_sight(landmarks, strength=1.0)(x_0, x_1)
    first = (20.0 - 3.0) / 120.0
    np.testing.assert_allclose(cost, [[120.0**2 * (1 + (1 - first) ** 2)]], rtol=1e-5)


def test_nonfinite_landmarks_are_met_by_no_line():
    keys = jax.random.split(jax.random.key(1), 3)
    x_0, x_1, landmarks = (2 * jax.random.normal(k, (10, 2)) for k in keys)
    bad = landmarks.at[3].set(jnp.nan).at[5, 0].set(jnp.inf)
    kept = jnp.delete(landmarks, jnp.array([3, 5]), axis=0)
    found = costs.line_of_sight(bad, radius=0.5)(x_0, x_1)
    np.testing.assert_allclose(found, costs.line_of_sight(kept, radius=0.5)(x_0, x_1), rtol=1e-4, atol=1e-4)


def test_coupling_leaves_less_way_inside_the_data():
    # Eight Gaussians to two moons: the squared distance draws lines to one arm through the other.
    rng = np.random.default_rng(0)
    angle = np.pi / 4 * rng.integers(8, size=128)
    x_0 = 5 * np.stack([np.cos(angle), np.sin(angle)], axis=-1) + np.sqrt(0.1) * rng.normal(size=(128, 2))
    angle, upper = np.pi * rng.random(256), np.arange(256)[:, None] % 2 == 0
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    data = jnp.asarray(3 * (np.where(upper, arc, [[1, 0.5]] - arc) + 0.2 * rng.random((256, 1))) - 1)
    x_0, x_1, key = jnp.asarray(x_0), data[:128], jax.random.key(0)
    sighted = costs.line_of_sight(data[128:], strength=5.0)

    def way_inside(cost):
        a, b = jax.jit(lambda a, b: couplings.exact_ot(key, a, b, cost=cost))(x_0, x_1)
        charge = jnp.diagonal(sighted(a, b)) - jnp.sum((a - b) ** 2, axis=-1)
        return float(jnp.mean(jnp.sqrt(jnp.maximum(charge, 0.0) / 5.0)))

    # .85 at these sizes; half the width of an arm, some .4, is left whatever the plan.
    assert way_inside(sighted) < 0.92 * way_inside(costs.squared_euclidean)


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda x: costs.line_of_sight(x[0]), ValueError, "landmarks"),
        (lambda x: costs.line_of_sight(x[:4]), ValueError, "landmarks"),
        (lambda x: costs.line_of_sight(x.astype(int)), TypeError, "landmarks"),
        (lambda x: costs.line_of_sight(x, strength=-1.0), ValueError, "strength"),
        (lambda x: costs.line_of_sight(x, radius=0.0), ValueError, "radius"),
        (lambda x: costs.line_of_sight(x, radius="wide"), TypeError, "radius"),
        (lambda x: costs.line_of_sight(x)(x[:, :1], x), ValueError, "x_0"),
        (lambda x: costs.line_of_sight(x)(x, x[:, :1]), ValueError, "x_1"),
        (lambda x: costs.squared_euclidean(x, x[:, :1]), ValueError, "x_1"),
    ],
)
def test_bad_input_is_named(call, error, named):
    with pytest.raises(error, match=named):
        call(jnp.ones((8, 2)) * jnp.arange(8.0)[:, None])
