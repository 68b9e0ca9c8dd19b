"""Data and chains in bfloat16 and float16: dynamics, losses and couplings are those of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energymatch import couplings, curvature, langevin, losses, negatives, posterior, potential, tempering
from energymatch.likelihood import priors
from energymatch.posterior import interactions

KEY = jax.random.key(0)
HALVES = [jnp.bfloat16, jnp.float16]


def quadratic(x):
    return 0.5 * jnp.sum(x**2, axis=tuple(range(1, x.ndim)))


def same(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)  # two programs round differently


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_all_that_takes_states(dtype):
    """The same numbers as from the same states in float32, whatever draws or sums there are."""
    x = (jnp.arange(24.0).reshape(8, 3) / 8).astype(dtype)
    params, epsilon = jnp.ones(()), 0.5
    loss_potential = lambda p, x: p * quadratic(x)

    def everything(x):
        flat = lambda out: [a for a in jax.tree.leaves(out)]
        temperatures = tempering.geometric_temperatures(epsilon, 1.5, 3)
        ladder = tempering.init(quadratic, x, temperatures)
        batch = losses.Batch(x[::-1], x, x)
        draw = lambda source: source.draw(
            KEY, quadratic, epsilon, source.init(quadratic, x, epsilon), batch, None
        )
        short = negatives.ShortRun(num_steps=5)
        langevin_options = {"num_steps": 5, "step_size": 0.05, "temperature": 1.0}
        loss = losses.energy_matching_loss(loss_potential, params, KEY, batch, x, lambda_cd=1.0, sigma=0.1)
        return flat(
            [
                [langevin.sample(KEY, quadratic, x, method=m, **langevin_options) for m in langevin.METHODS],
                tempering.step(KEY, ladder, potential=quadratic, temperatures=temperatures, step_size=0.1),
                draw(short),
                draw(negatives.Tempered()),
                draw(negatives.Restarted()),
                losses.flow_matching_loss(loss_potential, params, KEY, x[::-1], x, sigma=0.1),
                loss,
                potential.value_and_gradient(quadratic, x),
                potential.boltzmann_log_density(quadratic, x, epsilon),
                curvature.spectrum(quadratic, x),
                curvature.local_intrinsic_dimension(quadratic, x, threshold=2.0, method="lanczos", key=KEY),
                interactions.QuadraticRepulsion(1.0, 2)(x),
                interactions.BoundedRepulsion(1.0, 1.0, 2)(x),
                priors.fit_gaussian(x),
                posterior.gaussian_measurement(lambda x: x, jnp.zeros(3), 0.1)(x),
            ]
        )

    same(jax.jit(everything)(x), jax.jit(everything)(x.astype(jnp.float32)))


@pytest.mark.parametrize("dtype", HALVES)
def test_pairs_of_narrow_data(dtype):
    """The same pairs as in float32, and the rows as they came."""
    x_0, x_1 = jax.random.normal(KEY, (2, 16, 3)).astype(dtype)
    for couple in (couplings.exact_ot, couplings.sinkhorn, couplings.independent):
        left, right = couple(KEY, x_0, x_1)
        assert left.dtype == right.dtype == dtype
        wide = couple(KEY, x_0.astype(jnp.float32), x_1.astype(jnp.float32))[1]
        np.testing.assert_array_equal(right.astype(jnp.float32), wide)


@pytest.mark.parametrize("method", langevin.METHODS)
def test_chains_from_narrow_states_reach_equilibrium(method):
    """N(0, 1) from bfloat16 zeros: mean 0 and acceptance 1 of 600 moves (a bfloat16 count stops at 256)."""
    x = jnp.zeros((4096, 1), jnp.bfloat16)
    run = jax.jit(
        lambda k: langevin.sample(
            k, quadratic, x, num_steps=600, step_size=0.01, temperature=1.0, method=method
        )
    )
    out = run(KEY)
    assert out.x.dtype == jnp.float32
    assert abs(jnp.mean(out.x)) < 4 / 64
    assert abs(jnp.std(out.x) - 1) < 4 / np.sqrt(2 * 4096) + 0.005  # and the bias of h = .01
    assert jnp.mean(out.acceptance) > 0.99


@pytest.mark.parametrize("dtype", HALVES)
def test_contrast_of_narrow_values(dtype):
    """66,000 equal values of 2 and of 1: a gap of 1, without overflow of the weights' sum."""
    ones = jnp.ones(66_000, dtype)
    loss, metrics = losses.contrastive_divergence_loss(2 * ones, ones)
    np.testing.assert_allclose(loss, 1.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["negative_ess"], 1.0, rtol=1e-5)
    assert loss.dtype == jnp.float32


def test_potentials_computed_in_bfloat16():
    """V in bfloat16 is a coarse V, but a chain in it still counts and adds in float32."""
    coarse = lambda x: quadratic(x.astype(jnp.bfloat16))
    out = langevin.sample(KEY, coarse, jnp.zeros((64, 2)), num_steps=5, step_size=0.1, temperature=1.0)
    assert out.x.dtype == out.acceptance.dtype == jnp.float32
    value, gradient = potential.value_and_gradient(coarse, jnp.ones((3, 2), jnp.bfloat16))
    assert value.dtype == gradient.dtype == jnp.float32
