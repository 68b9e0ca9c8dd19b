"""Bregman divergences: gradients affine in the target, minimisers, and what an SNIS target biases.

The bias at finite K is computed exactly, as a sum over the compositions of K samples of three
states, so no statistical threshold is needed.
"""

import itertools
import math

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from egm import divergences, heads, importance, losses

RNG = np.random.default_rng(0)
SHAPE = (2, 3, 4)


# name: (divergence, targets [100, B, ...], the statistic the gradient is affine in, its inverse).
CASES = {
    "squared_error": (
        divergences.squared_error,
        RNG.normal(size=(100, 2, 4)),
        lambda y: y,
        lambda m: m,
        lambda m: m,
    ),
    "denoiser_kl": (
        divergences.denoiser_kl,
        scipy.special.softmax(3 * RNG.normal(size=(100, *SHAPE)), axis=-1),
        lambda y: y,
        lambda m: m,
        np.log,
    ),
    "rate_kl": (
        divergences.rate_kl,
        RNG.gamma(1.0, size=(100, *SHAPE)) * (RNG.uniform(size=(100, *SHAPE)) < 0.5),
        lambda y: y,
        lambda m: m,
        np.log,
    ),
    "exponential": (divergences.exponential, RNG.normal(size=(100, 5)), np.exp, np.log, np.log),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_is_affine_in_the_target(x64, name):
    """The mean gradient over targets is the gradient at their mean, wherever the prediction is."""
    divergence, targets, statistic, inverse, link = CASES[name]
    gradient = jax.jit(jax.grad(lambda p, y: jnp.sum(divergence(y, p))))
    mean = np.mean(statistic(targets), axis=0)
    prediction = RNG.normal(size=targets.shape[1:])
    each = jax.vmap(gradient, in_axes=(None, 0))(prediction, targets)
    np.testing.assert_allclose(np.mean(each, axis=0), gradient(prediction, inverse(mean)), atol=1e-12)
    # The minimiser for a random target is its mean: the gradient is zero there, and there only.
    np.testing.assert_allclose(gradient(link(mean), inverse(mean)), 0, atol=1e-12)
    each = jax.vmap(gradient, in_axes=(None, 0))(link(mean), targets)
    np.testing.assert_allclose(np.mean(each, axis=0), 0, atol=1e-12)
    assert np.max(np.abs(gradient(link(mean) + 0.1 * prediction, inverse(mean)))) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_no_gradient_flows_into_a_target(name):
    divergence, targets, *_, link = CASES[name]
    prediction = jnp.asarray(RNG.normal(size=targets.shape[1:]), jnp.float32)
    target = jnp.asarray(targets[0], jnp.float32)
    gradient = jax.grad(lambda y: jnp.sum(divergence(y, prediction)))(target)
    np.testing.assert_array_equal(gradient, jnp.zeros_like(gradient))
    assert divergence(target, prediction).shape == (targets.shape[1],)


def test_values_by_hand(x64):
    np.testing.assert_allclose(
        divergences.squared_error(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, -1.0]])), [13.0]
    )
    target, logits = jnp.array([[[0.25, 0.75], [1.0, 0.0]]]), jnp.array([[[0.0, 0.0], [2.0, -700.0]]])
    np.testing.assert_allclose(divergences.denoiser_kl(target, logits), [np.log(2)], atol=1e-12)
    weights = jnp.array([[0.5, 0.0]])
    np.testing.assert_allclose(divergences.denoiser_kl(target, logits, weights), [np.log(2) / 2])
    np.testing.assert_allclose(
        divergences.rate_kl(jnp.array([[2.0, 0.0]]), jnp.array([[1.0, -1e4]])), [np.e - 2]
    )
    d = jnp.array([0.0, 1e-5, 2.0, -3.0])
    came = divergences.exponential(d, jnp.zeros(4))
    np.testing.assert_allclose(came, [0, 5e-11, np.exp(2) - 3, np.exp(-3) + 2], rtol=1e-5)


def test_exponential_goes_on_as_a_tangent():
    fn = jax.value_and_grad(lambda p: divergences.exponential(jnp.zeros(1), p)[0])
    value, gradient = fn(jnp.array([-200.0]))
    np.testing.assert_allclose(value, np.exp(20.0) * 181 - 201, rtol=1e-5)
    np.testing.assert_allclose(gradient, 1 - np.exp(20.0), rtol=1e-5)


def compositions(total, parts):
    """[C, parts] all counts that sum to `total`, and their multinomial log-probabilities at 1/parts."""
    bars = itertools.combinations(range(total + parts - 1), parts - 1)
    counts = np.array([np.diff([-1, *bar, total + parts - 1]) - 1 for bar in bars])
    log_factorial = np.array([math.lgamma(n + 1) for n in range(total + 1)])
    return counts, log_factorial[total] - log_factorial[counts].sum(1) - total * np.log(parts)


def test_snis_bias_is_of_order_one_over_k(x64):
    """One masked site, three tokens: E over all draws of the estimate, exactly, at K, 2K, 4K."""
    log_w = np.array([0.0, 1.2, -1.5])
    exact = np.exp(log_w) / np.exp(log_w).sum()
    log_z = np.log(np.mean(np.exp(log_w)))
    bias, low = [], []
    for k in (16, 32, 64):
        counts, log_p = compositions(k, 3)
        p = np.exp(log_p)
        states = np.stack([np.repeat(np.arange(3), c) for c in counts], axis=1)  # [K, C]
        weights, log_mean, ess = importance.snis(jnp.asarray(log_w[states]))
        estimate = np.stack([np.sum(np.where(states == v, weights, 0), 0) for v in range(3)], -1)
        mean = p @ estimate
        bias.append(mean - exact)
        low.append(log_z - p @ np.asarray(log_mean))
        np.testing.assert_allclose(p @ np.exp(log_mean), np.exp(log_z), rtol=1e-12)  # unbiased
        # The minimisers: of the denoiser's loss the biased mean, of `exponential` the exact log Z.
        gradient = jax.grad(
            lambda b: jnp.sum(p * divergences.denoiser_kl(estimate[:, None], b * jnp.ones((len(p), 1, 1))))  # noqa: B023
        )(np.log(mean)[None, None])
        np.testing.assert_allclose(gradient, 0, atol=1e-12)
        phi = jnp.full(len(p), log_z)
        slope = lambda fn: jax.grad(lambda a: jnp.sum(p * fn(log_mean, phi + a)))(0.0)  # noqa: B023
        np.testing.assert_allclose(slope(divergences.exponential), 0, atol=1e-12)
        # Squared error would settle at the mean of the log, which is lower by low[-1].
        np.testing.assert_allclose(slope(lambda a, b: (b - a) ** 2), 2 * low[-1], rtol=1e-9)
    bias, low = np.abs(bias), np.array(low)
    assert np.all(bias > 0)
    assert np.all(low > 0)
    for ratio in (bias[0] / bias[1], bias[1] / bias[2], low[0] / low[1], low[1] / low[2]):
        np.testing.assert_allclose(ratio, 2.0, rtol=0.12)  # the next order is relative 1/K


# The head of a denoiser, and the losses built on the divergences.


def test_denoiser_head(x64):
    problem = contract.token_problem()
    head, x = heads.DenoiserHead(problem.path), jnp.asarray(problem.partial)
    logits = jnp.asarray(RNG.normal(size=(*x.shape, 3)))
    p = head.generator(logits, x)
    np.testing.assert_allclose(jnp.sum(p, -1), 1)
    np.testing.assert_allclose(jnp.where(x[..., None] < 3, p, 0), jax.nn.one_hot(x, 3))
    loss, gradient = jax.value_and_grad(lambda l: jnp.sum(head.divergence(problem.denoiser(x), l, x)))(logits)
    assert np.isfinite(loss)
    assert np.all(np.asarray(gradient)[np.asarray(x) < 3] == 0)
    each = head.divergence(problem.denoiser(x), logits, x)
    np.testing.assert_array_equal(each[jnp.all(x < 3, -1)], 0)
    # All masked: the mean over sites, so a uniform target and equal logits give log V.
    np.testing.assert_allclose(
        head.divergence(jnp.full((1, 3, 3), 1 / 3), jnp.zeros((1, 3, 3)), x[-1:]), np.log(3)
    )


def test_conditional_targets():
    problem = contract.token_problem()
    head, x = heads.DenoiserHead(problem.path), jnp.asarray(problem.states)
    np.testing.assert_array_equal(head.conditional_target(x, energy=problem), jax.nn.one_hot(x, 3))
    np.testing.assert_array_equal(head.conditional_target(x), jax.nn.one_hot(x, 3))

    class WithConditionals:
        def single_site_conditionals(self, x):
            return jnp.log(1.0 + jax.nn.one_hot(x, 3))

    came = head.conditional_target(x, energy=WithConditionals())
    np.testing.assert_allclose(came, (1 + jax.nn.one_hot(x, 3)) / 4, rtol=1e-6)


def test_log_marginal_loss_skips_what_is_no_target():
    target = jnp.array([0.5, jnp.nan, -jnp.inf, jnp.inf, 0.5])
    valid = jnp.array([True, True, True, True, False])
    fn = lambda p: losses.log_marginal_loss(target, p, valid)
    prediction = jnp.array([0.0, 1.0, 2.0, 3.0, jnp.inf])
    np.testing.assert_allclose(fn(prediction)[:4], [np.exp(0.5) - 1.5, 0, 0, 0], rtol=1e-5)
    gradient = jax.grad(lambda p: jnp.sum(fn(p)))(jnp.arange(5.0))
    np.testing.assert_allclose(gradient, [1 - np.exp(0.5), 0, 0, 0, 0], rtol=1e-5)
