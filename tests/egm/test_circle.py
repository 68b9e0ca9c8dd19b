"""Angles: the wrapped path against closed forms, and samplers on the circle against quadrature."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import egm
from egm import evidence, metrics, paths, processes, spaces
from egm.typing import Gaussian, Moments

KEY = jax.random.key(5)
PATH = paths.WrappedPath(0.3, 5.0, 0.3)


@pytest.mark.parametrize("variance", [0.01, 0.5, 1.9, 2.1, 10.0, 100.0])
def test_the_wrapped_density_is_the_sum_over_many_images(x64, variance):
    gap = np.linspace(-9.0, 9.0, 37)
    lifts = 2 * math.pi * np.arange(-30, 31)[:, None]
    exact = scipy.special.logsumexp(-0.5 * (gap + lifts) ** 2 / variance, axis=0)
    exact -= 0.5 * math.log(2 * math.pi * variance)
    found = PATH.coordinate_log_density(jnp.asarray(gap), jnp.zeros(37), jnp.asarray(variance))
    np.testing.assert_allclose(found, exact, atol=1e-12)


def test_nothing_depends_on_whole_turns(x64):
    """Of angles; the number beside them is one of the line."""
    path = paths.WrappedPath(0.3, 5.0, 0.3, (True, False))
    x_t, x_r = jax.random.normal(KEY, (2, 5, 2))
    turn = 2 * math.pi * jnp.array([[3.0, 0.0]])
    for name in ("log_noising", "conditional_score", "conditional_generator"):
        arguments = (x_t, 0.2, x_r, 0.7)
        moved = (x_t + turn, 0.2, x_r - turn, 0.7)
        np.testing.assert_allclose(getattr(path, name)(*moved), getattr(path, name)(*arguments), atol=1e-10)
    np.testing.assert_allclose(path.prior_log_density(x_t + turn), path.prior_log_density(x_t), atol=1e-12)
    plain = paths.VarianceExplodingPath(0.3, 5.0, 0.3)
    line = plain.conditional_score(x_t[:, 1:], 0.2, x_r[:, 1:], 0.7)
    np.testing.assert_allclose(path.conditional_score(x_t, 0.2, x_r, 0.7)[:, 1:], line, atol=1e-12)


def von_mises(kappa=2.0, count=12):
    """(score and posterior variance of x_1 on the wrapped path, log Z) for exp(kappa cos x)."""
    shares = jnp.asarray(scipy.special.iv(np.arange(1, count + 1), kappa) / scipy.special.iv(0, kappa))
    k = jnp.arange(1.0, count + 1)

    def log_p(x, variance):
        return jnp.log1p(2 * jnp.sum(shares * jnp.exp(-0.5 * k**2 * variance) * jnp.cos(k * x)))

    first, second = jax.vmap(jax.grad(log_p)), jax.vmap(jax.grad(jax.grad(log_p)))

    def generator(x, t):
        variance = PATH.variance(t)
        score = first(x[:, 0], variance)[:, None]
        # Tweedie's formula on the lifts.
        spread = (variance + variance**2 * second(x[:, 0], variance))[:, None]
        return Gaussian(PATH.velocity_from_score(score, x, t), score, spread)

    return generator, math.log(2 * math.pi * scipy.special.iv(0, kappa))


def test_the_exact_generator_has_even_weights_and_the_exact_log_z():
    generator, log_z = von_mises()
    process, n = processes.DiffusionProcess(PATH), 4000

    @jax.jit
    def run(key):
        k_prior, k_run, k_back = jax.random.split(key, 3)
        x_0 = egm.draw_prior(jax.random.split(k_prior, n), PATH, (1,))
        energy = lambda x: -2.0 * jnp.cos(x[:, 0])
        forward = egm.simulate(jax.random.split(k_run, n), process, generator, x_0, process.times(50))
        weights = egm.path_log_weights(energy, PATH, forward)
        # The same paths backward, from states that are some turns away.
        states = forward.x_1 + 2 * math.pi * jnp.round(3 * jax.random.normal(k_back, (n, 1)))
        back = egm.simulate_reverse(k_back, process, generator, states, process.times(50))
        return weights, egm.path_log_weights(energy, PATH, back)

    weights, back = run(KEY)
    found = metrics.summarize(weights)
    assert found.ess > 0.99
    assert abs(found.log_z - log_z) < 4 * found.log_z_error < 0.01
    assert abs(np.mean(back) - log_z) < 0.02


def test_chains_start_everywhere_on_the_circle():
    """log Z and the masses of two modes, .2 and .8, a half turn apart."""

    def energy(x):
        return -jnp.logaddexp(math.log(0.8) + 8 * jnp.cos(x[:, 0]), math.log(0.2) - 8 * jnp.cos(x[:, 0]))

    start = Moments(jnp.zeros(1), jnp.ones(1))
    run = jax.jit(lambda k: evidence.tempered_chains(k, energy, PATH, (1,), start, num_chains=256))
    found = run(KEY)
    log_z = math.log(2 * math.pi * scipy.special.iv(0, 8.0))
    # Twelve populations of 256: sd about .05 each.
    np.testing.assert_allclose(np.mean(found.log_z), log_z, atol=0.06)
    assert np.all(np.abs(found.x) <= math.pi)
    assert abs(np.mean(np.cos(found.x) > 0) - 0.8) < 0.05


@pytest.mark.slow
def test_fit_on_angles():
    """A ring of six coupled angles in a field: log Z by the transfer operator on a grid."""

    def energy(a):
        return -2.0 * jnp.sum(jnp.cos(a - jnp.roll(a, 1, -1)), -1) - jnp.sum(jnp.cos(a), -1)

    grid = 2 * np.pi * np.arange(256) / 256
    step = np.exp(2 * np.cos(grid[:, None] - grid) + 0.5 * np.cos(grid)[:, None] + 0.5 * np.cos(grid))
    log_z = np.log(np.sum(np.linalg.eigvalsh(step * 2 * np.pi / 256) ** 6))
    sampler = egm.fit(KEY, energy, spaces.Circle(6), seconds=90, progress=False)
    assert sampler.converged and sampler.ess > 0.6
    assert abs(sampler.log_z - log_z) < 4 * sampler.log_z_error < 0.1
    assert np.all(np.abs(sampler.sample(KEY, 100).x) <= math.pi)
