"""The mixture head: what zero stands for, its loss against the posterior written out, training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian_problem import gaussian_problem

import egm
from egm.heads import MixtureHead
from egm.paths import LinearPath, VarianceExplodingPath
from egm.typing import Moments

KEY = jax.random.key(4)
EXPLODING, LINEAR = VarianceExplodingPath(0.5, 6.0), LinearPath()


@pytest.mark.parametrize("num_parts", [1, 5])
def test_zero_has_the_moments_of_the_reference(x64, num_parts):
    head = MixtureHead(EXPLODING, num_parts, data_scale=1.7, center=(0.5, -1.0, 2.0))
    found = head.generator(jnp.zeros((2, 3, 3 * num_parts)), jnp.ones((2, 3)))
    p = jax.nn.softmax(found.log_weights, axis=-1)[..., None]
    mean = jnp.sum(p * found.means, axis=1)
    np.testing.assert_allclose(mean, np.broadcast_to([0.5, -1.0, 2.0], (2, 3)), atol=1e-12)
    square = jnp.sum(p * (found.variances + (found.means - mean[:, None]) ** 2), axis=1)
    np.testing.assert_allclose(square, 1.7**2, rtol=1e-12)


@pytest.mark.parametrize("path", [EXPLODING, LINEAR], ids=["exploding", "linear"])
def test_the_loss_is_minus_log_p_of_x_1_given_x_t(x64, path):
    """Up to log p_{t|1}(x_t | x_1), which no output changes; Bayes' rule with scipy-like normals by hand."""
    head = MixtureHead(path, 3, data_scale=1.5)
    output = jax.random.normal(KEY, (6, 2, 9))
    t = jnp.linspace(0.2, 0.9, 6)
    x_1 = jax.random.normal(jax.random.key(1), (6, 2))
    x_t = path.sample(jax.random.key(2), x_1, t)
    loss = head.divergence(head.conditional_target(x_1, x_t, t), output, x_t, t)

    def log_normal(x, mean, variance):
        return -0.5 * np.sum((x - mean) ** 2 / variance + np.log(2 * np.pi * variance), axis=-1)

    weights, means, variances = (np.asarray(a) for a in head.generator(output, x_t))
    p = np.exp(weights) / np.sum(np.exp(weights), axis=1, keepdims=True)
    alpha, noise = (np.asarray(a)[:, None, None] for a in (path.alpha(t), path.variance(t)))
    prior = np.sum(p * np.exp(log_normal(np.asarray(x_1)[:, None], means, variances)), axis=1)
    total = alpha**2 * variances + noise
    evidence = np.sum(p * np.exp(log_normal(np.asarray(x_t)[:, None], alpha * means, total)), axis=1)
    np.testing.assert_allclose(loss, -(np.log(prior) - np.log(evidence)) / 2, rtol=1e-9)
    # At t = 1 both are at the same state.
    end = head.divergence(head.conditional_target(x_1, x_1, t), output, x_1, jnp.ones(6))
    np.testing.assert_allclose(end, 0.0, atol=1e-12)


def test_gradients_are_finite_at_both_ends():
    head = MixtureHead(LINEAR, 4)
    x_1 = jax.random.normal(KEY, (5, 2))
    for time in (LINEAR.t_min, 1 - 1e-6, 1.0):
        t = jnp.full(5, time)
        x_t = LINEAR.sample(jax.random.key(1), x_1, t)
        grad = jax.grad(lambda o, x=x_t, s=t: jnp.sum(head.divergence(egm.heads.MixtureTarget(x_1), o, x, s)))
        assert np.all(np.isfinite(grad(0.3 * jax.random.normal(KEY, (5, 2, 12)))))


def test_velocities_are_refused():
    head, x = MixtureHead(LINEAR, 2), jnp.zeros((3, 2))
    with pytest.raises(TypeError, match="target must be data .* got ArrayImpl"):
        head.divergence(x, jnp.zeros((3, 2, 6)), x, jnp.full(3, 0.5))
    with pytest.raises(ValueError, match=r"output must have shape \(3, 2, 6\)"):
        head.generator(jnp.zeros((3, 2, 5)), x)


@pytest.mark.slow
def test_weighted_training_finds_two_modes_that_jumps_go_between():
    """From the energy alone, simulating jumps: ESS above .9, log Z to 4 errors, the masses to .05."""
    path = VarianceExplodingPath(0.5, 12.0)
    problem = gaussian_problem(path, 2, scale=4.0)
    head = MixtureHead(path, 6, data_scale=5.0)
    network = egm.networks.MLPVector(path, data_scale=5.0, width=32, depth=2, num_outputs=18)
    process = egm.processes.VectorJumpProcess(path)
    algorithm = egm.algorithms.Weighted(path, head, network.apply)
    config = egm.iteration.IterationConfig(
        num_simulated=1000, buffer_size=4000, num_gradient_steps=100, batch_size=256, num_times=20,
        ema_decay=0.98, ess_target=0.2,
    )  # fmt: skip
    reference = Moments(jnp.zeros(2), jnp.full(2, 25.0))
    init, step = egm.iteration.make_iteration(
        algorithm, process, problem, optax.adam(3e-3), config, event_shape=(2,), reference=reference
    )
    state, step = init(network.init(KEY, jnp.zeros((1, 2)), jnp.zeros(1))), jax.jit(step)
    for i in range(25):
        state, _ = step(jax.random.fold_in(KEY, i), state)
    generator = algorithm.generator(state.train.ema_params, problem)
    x_0 = egm.draw_prior(KEY, path, (4000, 2), state.moments)
    run = jax.jit(lambda x: egm.simulate(KEY, process, generator, x, process.times(20)))
    trajectory = run(x_0)
    found = egm.metrics.summarize(egm.path_log_weights(problem, path, trajectory))
    assert found.ess > 0.9
    assert abs(found.log_z - problem.log_z) < 4 * found.log_z_error
    near = jnp.linalg.norm(trajectory.x_1[:, None] - problem.means[None], axis=-1)
    share = np.mean(np.asarray(jnp.argmin(near, axis=1)) == 0)
    exact = np.linalg.norm(problem.exact_samples(20_000)[:, None] - problem.means[None], axis=-1)
    assert abs(share - np.mean(np.argmin(exact, axis=1) == 0)) < 0.05
