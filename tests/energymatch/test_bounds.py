"""Chains in a box: reflection, exactness against quadrature up to the walls, starts outside.

Histograms are compared by chi-square: of n independent chains in b cells it has mean b - 1 and deviation
sqrt(2 (b - 1)); the bound is 4.5 deviations above the mean.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energymatch import langevin, tempering
from energymatch.losses import Batch
from energymatch.negatives import Restarted, ShortRun, Tempered

KEY = jax.random.key(5)
N = 20_000
flat = lambda x: 0.0 * x[:, 0]


def chi_square(counts, probability):
    expected = counts.sum() * probability
    return float(np.sum((counts - expected) ** 2 / expected))


def assert_histogram(counts, probability):
    counts, probability = np.ravel(counts), np.ravel(probability)
    degrees = counts.size - 1
    found = chi_square(counts, probability)
    assert found <= degrees + 4.5 * np.sqrt(2 * degrees), found


def chains(method, h, potential, start, bounds, num_steps, temperature=1.0, energies=()):
    run = functools.partial(
        langevin.sample, KEY, potential, num_steps=num_steps, step_size=h, temperature=temperature,
        method=method, bounds=bounds, energies=energies,
    )  # fmt: skip
    return jax.jit(run)(start)


# Reflection


def test_reflection_folds_any_number_of_times():
    x = np.array([0.3, 1.2, -0.1, 2.4, 3.1, -7.25, 0.0, 1.0, 100.25])
    y = langevin.reflect(jnp.asarray(x, jnp.float32), (0.0, 1.0))
    np.testing.assert_allclose(y, [0.3, 0.8, 0.1, 0.4, 0.9, 0.75, 0.0, 1.0, 0.25], atol=2e-5)
    shifted = langevin.reflect(jnp.asarray(2 * x - 3, jnp.float32), (-3.0, -1.0))
    np.testing.assert_allclose(shifted, 2 * np.asarray(y) - 3, atol=4e-5)
    inner = jnp.linspace(-0.7, 0.2, 1001)
    np.testing.assert_array_equal(langevin.reflect(inner, (-0.7, 0.2)), inner)  # bit for bit
    assert langevin.reflect(inner, None) is inner
    wild = langevin.reflect(jax.random.normal(KEY, (4096,)) * 1e4, (-0.7, 0.2))
    assert np.all((wild >= np.float32(-0.7)) & (wild <= np.float32(0.2)))


@pytest.mark.parametrize("method", langevin.METHODS)
@pytest.mark.parametrize("h", [0.02, 0.6])
def test_a_uniform_density_is_flat_up_to_the_walls(method, h):
    """V = 0 on [-1, 1/2]: uniform after enough steps, in 30 cells, none of it on a wall."""
    bounds = (-1.0, 0.5)
    start = jnp.linspace(-0.9, 0.4, N)[:, None]
    out = chains(method, h, flat, start, bounds, 60 if h < 0.1 else 10)
    x = np.asarray(out.x)[:, 0]
    assert np.all((x >= -1) & (x <= 0.5))
    assert np.sum((x == -1) | (x == 0.5)) <= 2  # float32 puts about 1e-7 of the mass there
    counts = np.histogram(x, 30, bounds)[0]
    assert_histogram(counts, np.full(30, 1 / 30))
    np.testing.assert_array_equal(out.acceptance, np.ones(N))
    np.testing.assert_array_equal(out.num_outside, np.zeros(N))


def test_adjusted_moves_are_exact_in_one_dimension():
    """V = .8 cos(2x) - 1.5 x at eps = .7 with U = x^2 in nats, on [-1, 1.3]; steps as large as the box."""
    bounds, epsilon = (-1.0, 1.3), 0.7
    V, U = lambda x: 0.8 * jnp.cos(2 * x[:, 0]) - 1.5 * x[:, 0], lambda x: x[:, 0] ** 2
    grid = np.linspace(*bounds, 24 * 400 + 1)
    middle = 0.5 * (grid[1:] + grid[:-1])
    density = np.exp(-(0.8 * np.cos(2 * middle) - 1.5 * middle) / epsilon - middle**2)
    probability = density.reshape(24, 400).sum(1) / density.sum()
    for h, num_steps in ((0.05, 300), (0.5, 60)):
        start = jnp.linspace(-0.9, 1.2, N)[:, None]
        out = chains("mala", h, V, start, bounds, num_steps, epsilon, (U,))
        counts = np.histogram(np.asarray(out.x)[:, 0], 24, bounds)[0]
        assert_histogram(counts, probability)
    assert out.acceptance.mean() < 0.98


def test_adjusted_moves_are_exact_in_two_dimensions():
    """A correlated normal in a corner of its box, 8x8 cells against quadrature."""
    precision = np.array([[2.0, -1.5], [-1.5, 3.0]])
    V = lambda x: 0.5 * jnp.sum((x @ jnp.asarray(precision, x.dtype)) * x, axis=-1)
    bounds = (-0.4, 1.2)
    out = chains("mala", 0.15, V, jnp.full((N, 2), 0.1), bounds, 80)
    grid = np.linspace(*bounds, 8 * 40 + 1)
    middle = 0.5 * (grid[1:] + grid[:-1])
    points = np.stack(np.meshgrid(middle, middle, indexing="ij"), axis=-1)
    density = np.exp(-0.5 * np.einsum("ijk,kl,ijl->ij", points, precision, points))
    probability = density.reshape(8, 40, 8, 40).sum((1, 3)) / density.sum()
    counts = np.histogram2d(*np.asarray(out.x, np.float64).T, 8, [bounds, bounds])[0]
    assert_histogram(counts, probability)
    assert out.acceptance.mean() > 0.8


def test_many_dimensions_near_walls_still_move():
    """Uniform in [-1, 1]^200: every move leaves the box somewhere; none of them may be lost."""
    start = jax.random.uniform(KEY, (64, 200), minval=-1.0)
    out = chains("mala", 0.05, flat, start, (-1.0, 1.0), 20)
    np.testing.assert_array_equal(out.acceptance, np.ones(64))
    assert np.all(np.abs(out.x) <= 1)
    assert_histogram(np.histogram(np.asarray(out.x), 20, (-1, 1))[0], np.full(20, 1 / 20))


def test_without_noise_the_flow_stops_at_a_wall():
    """V = -x at temperature 0: every method goes up to the wall and stays."""
    for method in langevin.METHODS:
        out = chains(method, 0.3, lambda x: -x[:, 0], jnp.zeros((3, 1)), (-1.0, 1.0), 10, 0.0)
        np.testing.assert_array_equal(out.x, np.ones((3, 1)))


# Starts outside


@pytest.mark.parametrize("method", langevin.METHODS)
def test_starts_outside(method):
    """Known ones raise; traced ones are reflected in, counted, and end with the density in the box."""
    start = jnp.full((N, 1), 3.2)
    options = dict(num_steps=40, step_size=0.3, temperature=1.0, method=method, bounds=(-1.0, 1.0))
    with pytest.raises(ValueError, match=r"x_0 must lie in bounds \(-1.0, 1.0\), got 3.2"):
        langevin.sample(KEY, flat, start, **options)
    with pytest.raises(ValueError, match="x_0 must lie in bounds"):  # known under jit as well
        jax.jit(lambda: langevin.sample(KEY, flat, np.asarray(start), **options))()
    out = jax.jit(lambda x: langevin.sample(KEY, flat, x, save_every=40, **options))(start)
    np.testing.assert_allclose(out.states[0], -0.8, atol=1e-5)  # 3.2 -> 2 - 3.2 -> -2 + 1.2
    np.testing.assert_array_equal(out.num_outside, np.ones(N))
    np.testing.assert_array_equal(out.num_nonfinite, np.zeros(N))
    assert_histogram(np.histogram(np.asarray(out.x), 20, (-1, 1))[0], np.full(20, 1 / 20))


@pytest.mark.parametrize("method", langevin.METHODS)
def test_a_step_moves_a_stray_chain_in(method):
    """In a loop of one's own: chain 0 stands outside, is moved in once, and moves from then on."""
    V = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    x = jnp.array([[5.5, 0.1], [0.2, 0.3]])
    step = jax.jit(
        functools.partial(
            langevin.step, potential=V, temperature=1.0, step_size=0.1, method=method, bounds=(-1.0, 1.0)
        )
    )
    state, info = step(KEY, langevin.init(V, x), 0.0)
    np.testing.assert_allclose(state.x[0], [0.5, 0.1], atol=1e-6)
    np.testing.assert_array_equal(info.num_outside, [1, 0])
    assert info.accepted[0]
    chex.assert_trees_all_close(state, langevin.init(V, state.x), rtol=1e-6)
    _, info = step(jax.random.fold_in(KEY, 1), state, 0.1)
    np.testing.assert_array_equal(info.num_outside, [0, 0])
    held = langevin.init(V, x.at[1].set(jnp.nan))
    state, info = step(KEY, held, 0.0)
    np.testing.assert_array_equal(info.num_nonfinite, [0, 1])  # what is no number is no start outside


def test_tempering_and_negatives_start_inside():
    V = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    temperatures, bounds = jnp.array([0.5, 1.0]), (-1.0, 1.0)
    x = jnp.full((512, 2), 2.5)
    with pytest.raises(ValueError, match="x must lie in bounds"):
        tempering.init(V, x, temperatures, bounds=bounds)
    with pytest.raises(ValueError, match="x must lie in bounds"):
        Tempered(bounds=bounds).init(V, x, 1.0)
    with pytest.raises(ValueError, match="x must lie in bounds"):
        Restarted(bounds=bounds).init(V, x, 1.0)

    @jax.jit
    def ladders(x):
        state = tempering.init(V, x, temperatures)
        return tempering.step(
            KEY, state, potential=V, temperatures=temperatures, step_size=0.3, bounds=bounds
        )

    state, info = ladders(x)
    assert np.all(np.abs(state.x) <= 1)
    np.testing.assert_array_equal(info.num_outside, [512, 512])
    assert np.all(info.acceptance > 0.5)
    prior = x + jax.random.uniform(KEY, x.shape)  # outside, as much of a normal prior is
    batch = Batch(x, x / 4, None, prior)
    for source in (
        ShortRun(num_steps=5, bounds=bounds), Restarted(restart=1.0, burn_in=0.0, bounds=bounds),
    ):  # fmt: skip
        out = source.draw(KEY, V, 1.0, source.init(V, x / 4, 1.0), batch)
        assert np.all(np.abs(out.x) <= 1)
        assert len(np.unique(out.x)) > 900  # no atoms on the walls
