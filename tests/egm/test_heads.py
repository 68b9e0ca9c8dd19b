"""Heads: closed forms, quadrature over x_1 given x_t, and products part by part, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_problem import GaussianProblem, gaussian_problem

from egm import heads, losses
from egm.energies import JointGaussianMixture
from egm.paths import (
    CenteredPath,
    LinearPath,
    MaskedPath,
    ProductPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from egm.typing import Estimate

KEY = jax.random.key(21)
LINEAR, EXPLODING = LinearPath(1.3), VarianceExplodingPath(0.3, 3.0)
PRESERVING = VariancePreservingPath(0.1, 6.0)
FLAT = [LINEAR, EXPLODING, PRESERVING]
LINE = CenteredPath(EXPLODING, 2, 1)
NAMES = ["linear", "exploding", "preserving", "centred"]


def broadened(head, t):
    """b = (sigma^2 + alpha^2 s^2)^(1/2), [B, 1]."""
    path = head.path
    return jnp.sqrt(path.variance(t) + (path.alpha(t) * head.length_scale) ** 2)[:, None]


@pytest.mark.parametrize("path", [*FLAT, CenteredPath(EXPLODING, 3, 1)], ids=NAMES)
def test_zero_output_is_exact_for_a_normal_distribution(x64, path):
    """At every t; with its energy for s = S, without one for any s. On a subspace too."""
    scale, mean = 1.4, np.asarray(path.project(jnp.array([0.5, -1.0, 0.3])))
    problem = GaussianProblem(path, mean[None], np.array([scale]), np.ones(1))
    t = jnp.array([path.t_min, 0.05, 0.4, 0.9, 1.0])
    x, zero = path.sample(KEY, problem.exact_samples(5), t), jnp.zeros((5, 3, 2))
    head = heads.ScoreHead(path, scale, scale, tuple(mean))
    for one, energy in ((head, problem), (dataclasses.replace(head, length_scale=0.4), None)):
        came = jax.jit(lambda one=one, energy=energy: one.generator(zero, x, t, energy))()
        np.testing.assert_allclose(came.score, problem.score(x, t), rtol=1e-9)
        np.testing.assert_allclose(came.velocity, problem.velocity(x, t), rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(came.posterior_variance, problem.moments(x, t)[1], rtol=1e-9)


def test_at_the_end_the_score_is_the_energys(x64):
    """For any target, and a bounded push from the energy where it is steep."""
    problem, t = gaussian_problem(EXPLODING, 2, 3), jnp.array([1.0, 1.0, 0.5])
    x = jnp.array([[0.3, -1.0], [4.0, 2.0], [1.0, 0.0]])
    head = heads.ScoreHead(EXPLODING, 0.6, 1.0)
    came = head.generator(jnp.zeros((3, 2, 2)), x, t, problem).score
    np.testing.assert_allclose(came[:2], problem.score(x, t)[:2], rtol=1e-9)
    steep = head.generator(jnp.zeros((3, 2, 2)), x, t, lambda y: 1e30 * jnp.sum(y**2, axis=-1)).score
    norms = jnp.linalg.norm(steep * broadened(head, t), axis=-1)
    np.testing.assert_allclose(norms[:2], 10 * np.sqrt(2), rtol=1e-9)
    assert norms[2] < 11 * np.sqrt(2)


def posterior(problem, x, t, size=2001, width=9.0):
    """(x_1 [M, B, D], weights [M, B]) of x_1 given x [B, D], on a grid of the line that the space is."""
    dim = x.shape[-1]
    direction = problem.path.project(jnp.eye(dim)[:1])
    line = jnp.linspace(-width, width, size)[:, None] * (direction / jnp.linalg.norm(direction))
    wide = jnp.broadcast_to(line[:, None], (size, *x.shape))
    log_w = problem.path.log_noising(x, t, wide, 1.0) - problem(wide)
    return wide, jax.nn.softmax(log_w, axis=0)


@pytest.mark.parametrize("path", [*FLAT, LINE], ids=NAMES)
def test_targets_and_minimisers_by_quadrature(x64, path):
    """The mean target is the score; the mean gradient vanishes at the exact score and log variance.

    Both forms of a conditional target and the velocities of an estimate, for two modes.
    """
    dim = 2 if path is LINE else 1
    problem = gaussian_problem(path, dim, 2, scale=1.2)
    t = jnp.array([0.1, 0.3, 0.5, 0.7, 0.9])
    x = path.sample(KEY, problem.exact_samples(5), t)
    head = heads.ScoreHead(path, 0.5, 1.4, 0.0)

    @jax.jit
    def everything(x, t):
        x_1, weights = posterior(problem, x, t)
        size, zero = len(x_1), jnp.zeros((*x.shape, 2))
        rows = lambda a: jnp.broadcast_to(a[None], (size, *a.shape)).reshape(-1, *a.shape[1:])
        score, variance = problem.score(x, t), problem.moments(x, t)[1]
        found = []
        for energy in (problem, None):
            start = head.generator(zero, x, t, energy)
            change = broadened(head, t) * (score - start.score)
            factor = 8 * jnp.arctanh(jnp.log(variance / start.posterior_variance) / 8)
            exact = jnp.stack([change, factor], axis=-1)
            target = head.conditional_target(x_1.reshape(-1, dim), rows(x), rows(t), energy)
            mean = jnp.einsum("mb,mbd->bd", weights, target.score.reshape(x_1.shape))
            flow = path.conditional_generator(x, t, x_1, 1.0).reshape(-1, dim)

            def total(output, target, energy=energy):
                each = head.divergence(target, rows(output), rows(x), rows(t), energy)
                return jnp.sum(weights.reshape(-1) * each)

            slopes = [
                jax.grad(total)(o, wanted)
                for wanted in (target, flow)
                for o in (exact, exact + 0.3 * x[..., None])
            ]
            found.append((mean, head.generator(exact, x, t, energy), slopes))
        return found, score, variance

    found, score, variance = everything(x, t)
    for mean, told, (both, away, flow, flow_away) in found:
        np.testing.assert_allclose(mean, score, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(told.score, score, rtol=1e-9)
        np.testing.assert_allclose(told.posterior_variance, variance, rtol=1e-9)
        np.testing.assert_allclose(both, 0.0, atol=1e-7)
        np.testing.assert_allclose(flow, 0.0, atol=1e-7)
        assert np.all(np.max(np.abs(away), axis=(0, 1)) > 0.05)
        assert np.max(np.abs(flow_away[..., 0])) > 0.05


def test_the_variance_is_learned_around_the_models_own_mean(x64):
    """With a wrong score its minimiser is the mean square of the residual, the error included."""
    problem, t, x = gaussian_problem(LINEAR, 1, 2), jnp.array([0.6]), jnp.array([[0.4]])
    head, output = heads.ScoreHead(LINEAR, 0.5, 1.4), jnp.array([[[0.7, 0.0]]])

    @jax.jit
    def slopes(x, t):
        x_1, weights = posterior(problem, x, t)
        told = head.generator(output, x, t)
        wrong = (x + LINEAR.variance(t)[:, None] * told.score) / LINEAR.alpha(t)[:, None]
        square = jnp.sum(weights[..., None] * (x_1 - wrong[None]) ** 2)
        factor = 8 * jnp.arctanh(jnp.log(square / told.posterior_variance[0, 0]) / 8)
        rows = lambda a: jnp.broadcast_to(a, (len(x_1), *a.shape[1:]))
        target = head.conditional_target(x_1[:, 0], rows(x), rows(t))

        def total(g):
            out = output.at[..., 1].set(g)
            return jnp.sum(weights[:, 0] * head.divergence(target, rows(out), rows(x), rows(t)))

        return jax.grad(total)(factor), jax.grad(total)(0.0)

    at_minimum, away = slopes(x, t)
    assert abs(at_minimum) < 1e-7
    assert abs(away) > 0.01


def test_clipping(x64):
    """Norms are cut exactly at the limit and counted; below it nothing changes."""
    x, t, limit = jnp.array([[0.2, -0.4]] * 4), jnp.full(4, 0.5), 1.5
    free = heads.ScoreHead(EXPLODING, 0.5, 1.0)
    cut = dataclasses.replace(free, max_target_norm=limit, max_drift_norm=limit)
    b, unit = broadened(free, t), jnp.array([[0.6, 0.8]])
    output = jnp.zeros((4, 2, 2))
    norms = jnp.array([0.5, 1.0, 3.0, 1e6]) * limit * np.sqrt(2)
    at_most = jnp.minimum(norms, limit * np.sqrt(2))
    score, expected = (n[:, None] * unit / b for n in (norms, at_most))
    for wrap in (lambda s: EXPLODING.velocity_from_score(s, x, t), lambda s: heads.ConditionalScore(s, x)):
        came = cut.divergence(wrap(score), output, x, t)
        np.testing.assert_allclose(came, free.divergence(wrap(expected), output, x, t), rtol=1e-6)
        assert cut.metrics(wrap(score), output, x, t)["target_clipped"] == 0.5
        assert cut.metrics(wrap(score * jnp.nan), output, x, t)["target_clipped"] == 1.0
    assert free.metrics(score, output, x, t) == {}
    output = output.at[:, :, 0].set(jnp.array([0.1, 0.2, 5.0, 1e6])[:, None])
    own, plain = (b * h.generator(output, x, t).score for h in (cut, free))
    np.testing.assert_allclose(jnp.linalg.norm(own[2:], axis=-1), limit * np.sqrt(2), rtol=1e-9)
    np.testing.assert_allclose(own[2:] / plain[2:], (own[2:] / plain[2:])[:, :1].repeat(2, 1), rtol=1e-9)
    np.testing.assert_array_equal(own[:2], plain[:2])
    assert cut.metrics(score, output, x, t)["drift_clipped"] == 0.5


@pytest.mark.parametrize("path", FLAT, ids=NAMES[:3])
def test_everything_is_finite_at_the_ends_and_for_bad_gradients(path):
    """t = t_min and 1, in float32; an energy that is NaN on half of the space, one that is infinite at 0."""
    t = jnp.array([path.t_min, path.t_min, 1.0, 1.0, 0.5, 0.5])
    x = jnp.array([[0.0, 0.0], [-1.0, 2.0]] * 3)
    head = heads.ScoreHead(path, 0.5, 1.4, max_target_norm=5.0)
    nan = lambda y: jnp.sum(y**2, axis=-1) * jnp.where(y[:, 0] < 0, jnp.nan, 1.0)
    steep = lambda y: jnp.sum(y**2, axis=-1) ** -6

    @jax.jit
    def everything(output):
        found = []
        for energy in (nan, steep):
            target = head.conditional_target(x, x, t, energy)
            loss = lambda o, target=target, energy=energy: jnp.sum(head.divergence(target, o, x, t, energy))
            told = lambda o, energy=energy: jax.tree.reduce(
                lambda a, b: a + jnp.sum(b), head.generator(o, x, t, energy), 0.0
            )
            found += [jax.value_and_grad(loss)(output), jax.value_and_grad(told)(output)]
        # An estimate at t = 1 is invalid: the linear path's velocity says nothing of the score there.
        est = Estimate(jnp.zeros_like(x), t, t, t < 1, t)
        free = dataclasses.replace(head, max_target_norm=None)
        each = lambda o: losses.generator_loss(lambda a, b: free.divergence(a, b, x, t, nan), est, o)
        return found, jax.value_and_grad(lambda o: jnp.sum(each(o)))(output)

    for value in (0.0, 1e3, -1e3):
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(everything(jnp.full((6, 2, 2), value))))


ENERGY = JointGaussianMixture(2, 1.0, 0.5)
PARTS = {"x": heads.ScoreHead(EXPLODING, 0.5, 1.1), "h": heads.DenoiserHead(MaskedPath(2))}
STATE = {
    "x": jnp.array([[0.5, -1.2], [0.1, 0.7], [2.0, 0.3]]),
    "h": jnp.array([[0, 1], [1, 1], [1, 0]], jnp.int32),
}
T = jnp.array([0.2, 0.6, 0.95])
OUTPUT = {
    "x": jnp.sin(jnp.arange(12.0)).reshape(3, 2, 2),
    "h": jnp.cos(jnp.arange(12.0)).reshape(3, 2, 2),
}


def held(energy, h):
    return lambda x: energy({"x": x, "h": h})


def close(a, b, **options):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, **options)


def test_a_product_sums_its_parts_by_weight():
    head = heads.ProductHead(PARTS, {"x": 2.0, "h": 0.5})
    assert head.path == ProductPath({"x": EXPLODING, "h": MaskedPath(2)})
    assert hash(head) == hash(heads.ProductHead(dict(PARTS), {"x": 2, "h": 0.5}))
    x_t = {"x": STATE["x"] + 0.3, "h": jnp.array([[2, 1], [2, 2], [1, 0]], jnp.int32)}
    target = head.conditional_target(STATE, x_t, T)
    np.testing.assert_array_equal(target["h"], jax.nn.one_hot(STATE["h"], 2))
    each = {name: PARTS[name].divergence(target[name], OUTPUT[name], x_t[name], T) for name in "xh"}
    came = head.divergence(target, OUTPUT, x_t, T)
    np.testing.assert_allclose(came, 2.0 * each["x"] + 0.5 * each["h"], rtol=1e-6)
    assert head.energy_evaluations(ENERGY, {"x": (2,), "h": (2,)}) == (1, 2)
    limited = heads.ProductHead(PARTS | {"x": dataclasses.replace(PARTS["x"], max_target_norm=1e-3)})
    assert limited.metrics(target, OUTPUT, x_t, T)["target_clipped"] == 1.0


def test_the_start_of_a_products_score_is_the_relaxed_energys():
    """Visible tokens are certain, masked ones have the denoiser's probabilities; without it no start."""
    head = heads.ProductHead(PARTS)
    visible = head.generator(OUTPUT, STATE, T, ENERGY)
    close(visible["x"], PARTS["x"].generator(OUTPUT["x"], STATE["x"], T, held(ENERGY, STATE["h"])), rtol=1e-5)
    np.testing.assert_array_equal(visible["h"], jax.nn.one_hot(STATE["h"], 2))
    x_t = STATE | {"h": jnp.array([[2, 1], [2, 2], [1, 0]], jnp.int32)}
    came = head.generator(OUTPUT, x_t, T, ENERGY)
    # The mean of E over the tokens, summed by hand.
    mean = lambda x: sum(
        came["h"][:, 0, a]
        * came["h"][:, 1, b]
        * held(ENERGY, jnp.tile(jnp.array([[a, b]], jnp.int32), (3, 1)))(x)
        for a in range(2)
        for b in range(2)
    )
    close(came["x"], PARTS["x"].generator(OUTPUT["x"], STATE["x"], T, mean), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(came["h"][1], jax.nn.softmax(OUTPUT["h"][1]), rtol=1e-6)
    plain = head.generator(OUTPUT, x_t, T, lambda state: ENERGY(state))
    close(plain["x"], PARTS["x"].generator(OUTPUT["x"], STATE["x"], T), rtol=1e-6)
    assert np.max(np.abs(plain["x"].score - came["x"].score)) > 0.1
    # The score follows the denoiser (a flow's determinant needs that), but its loss does not train it.
    slope = jax.grad(lambda h: jnp.sum(head.generator(OUTPUT | {"h": h}, x_t, T, ENERGY)["x"].score))
    assert np.max(np.abs(slope(OUTPUT["h"]))) > 0.1
    target = head.conditional_target(STATE, x_t, T)
    whole = jax.grad(lambda h: jnp.sum(head.divergence(target, OUTPUT | {"h": h}, x_t, T, ENERGY)))
    alone = jax.grad(lambda h: jnp.sum(PARTS["h"].divergence(target["h"], h, x_t["h"], T)))
    np.testing.assert_allclose(whole(OUTPUT["h"]), alone(OUTPUT["h"]), atol=1e-6)


def test_conditional_targets_of_a_product():
    """Tokens: the conditionals by enumeration of one site; x: the gradient at fixed tokens."""
    head = heads.ProductHead(PARTS)
    x_t = STATE | {"x": STATE["x"] + 0.1}
    came = head.conditional_target(STATE, x_t, T, ENERGY)
    for site in range(2):
        values = [held(ENERGY, STATE["h"].at[:, site].set(v))(STATE["x"]) for v in range(2)]
        expected = jax.nn.softmax(-jnp.stack(values, axis=-1), axis=-1)
        np.testing.assert_allclose(came["h"][:, site], expected, rtol=1e-4, atol=1e-6)
    own = PARTS["x"].conditional_target(STATE["x"], x_t["x"], T, held(ENERGY, STATE["h"]))
    close(came["x"], own, rtol=1e-6)


def test_clipping_of_several_gaussian_parts_is_averaged():
    path = LinearPath()
    tight, loose = (heads.ScoreHead(path, max_drift_norm=limit) for limit in (1e-3, 1e3))
    product = heads.ProductHead({"a": tight, "b": loose})
    x = {name: jax.random.normal(jax.random.key(i), (8, 2)) for i, name in enumerate("ab")}
    t, output = jnp.full(8, 0.5), {name: jnp.ones((8, 2, 2)) for name in "ab"}
    target = product.conditional_target(x, x, t)
    np.testing.assert_allclose(product.metrics(target, output, x, t)["drift_clipped"], 0.5)
