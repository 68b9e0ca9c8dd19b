"""Populations that are resampled along their path: unbiased whatever the network and the guess phi."""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_problem import gaussian_problem

import egm
from egm.paths import VarianceExplodingPath
from egm.processes import AnyOrderProcess, DiffusionProcess, FlowProcess

KEY = jax.random.key(8)
PATH = VarianceExplodingPath(0.3, 3.0, 0.3)
PROBLEM = gaussian_problem(PATH, 2, record="variance")
TOKENS = contract.token_problem()


def populations(problem, process, generator, phi, steps, threshold, num=400, size=16):
    """log of the mean weight of each of `num` populations, and how many starts each goes back to."""
    path = process.path

    @jax.jit
    def one(key):
        shape = (size, 2) if path == PATH else (size, TOKENS.sites)
        x_0 = path.sample_prior(key, shape)
        how = None if threshold is None else egm.Resampling(phi, threshold)
        found = egm.simulate(key, process, generator, x_0, process.times(steps), resampling=how)
        origins = jnp.zeros(()) if found.origin is None else jnp.sum(jnp.diff(jnp.sort(found.origin)) > 0) + 1
        return egm.importance.log_mean_exp(egm.path_log_weights(problem, path, found)), origins

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(KEY, num)))


def guess(x, t):
    """A crude one, of the wrong width and place, and with a hole where trajectories end."""
    wide = -0.5 * jnp.sum((x - 0.5) ** 2, axis=-1) / (2.0 + PATH.variance(t))
    return jnp.where(x[:, 0] > 6.0, -jnp.inf, wide)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["diffusion", pytest.param("flow", marks=pytest.mark.slow), "tokens"])
def test_the_mean_weight_is_unbiased(kind, threshold):
    """Untrained networks, populations of 16: the mean of 1,000 within 4 standard errors of Z."""
    if kind == "tokens":
        problem, process, generator = TOKENS, AnyOrderProcess(TOKENS.path), TOKENS.random_denoiser
        phi = lambda x, t: 3.0 * jnp.sum(x == 1, axis=-1) + 0.0 * t
        steps = TOKENS.sites
    else:
        process = DiffusionProcess(PATH) if kind == "diffusion" else FlowProcess(PATH)
        problem, generator, phi, steps = PROBLEM, PROBLEM.random_generator, guess, 6
    log_z, origins = populations(problem, process, generator, phi, steps, threshold, num=1000)
    weight = np.exp(log_z - problem.log_z)
    assert np.std(weight) < 8
    assert abs(weight.mean() - 1) < 4 * weight.std() / np.sqrt(len(weight))
    assert np.mean(origins) < 15


def test_a_good_guess_makes_it_better():
    """With phi the log-marginal itself the log of the mean weight varies less than without resampling."""
    process = DiffusionProcess(PATH)
    exact = lambda x, t: PROBLEM.log_density(x, t) + PROBLEM.log_z
    spread = [
        np.std(populations(PROBLEM, process, lambda x, t: jnp.zeros_like(x), exact, 12, threshold)[0])
        for threshold in (None, 0.5)
    ]
    assert spread[1] < 0.7 * spread[0], spread


def test_an_even_population_is_left_alone():
    """With the exact generator and phi nothing is due: the same trajectories as without."""
    process, times = DiffusionProcess(PATH), DiffusionProcess(PATH).times(50)
    x_0 = PATH.sample_prior(KEY, (64, 2))
    exact = lambda x, t: PROBLEM.log_density(x, t)
    plain = egm.simulate(KEY, process, PROBLEM.exact_generator, x_0, times)
    found = egm.simulate(
        KEY,
        process,
        PROBLEM.exact_generator,
        x_0,
        times,
        resampling=egm.Resampling(exact, 0.2),
        save_states=True,
    )
    np.testing.assert_array_equal(found.origin, np.arange(64))
    np.testing.assert_allclose(found.x_1, plain.x_1)
    np.testing.assert_allclose(found.log_ratio, plain.log_ratio, rtol=1e-6)
    assert found.states.shape == (51, 64, 2)


@pytest.mark.parametrize(
    "resampling, error, message",
    [
        (3, TypeError, "resampling must be"),
        (egm.Resampling(None), TypeError, "resampling.log_density must be"),
        (egm.Resampling(guess, 2.0), ValueError, "resampling.threshold must lie"),
        (egm.Resampling(lambda x, t: x), ValueError, "resampling.log_density must"),
    ],
)
def test_bad_input(resampling, error, message):
    process = DiffusionProcess(PATH)
    with pytest.raises(error, match=message):
        x_0 = PATH.sample_prior(KEY, (4, 2))
        egm.simulate(KEY, process, PROBLEM.exact_generator, x_0, process.times(3), resampling=resampling)
