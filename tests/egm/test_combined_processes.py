"""Superpositions and products of processes, and what continuous processes refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_problem import gaussian_problem, mixed_problem

import egm
from egm.networks import MLPMixed
from egm.paths import LinearPath, MaskedPath, VarianceExplodingPath
from egm.processes import (
    AnyOrderProcess,
    DiffusionProcess,
    FlowProcess,
    JumpProcess,
    ProductProcess,
    SuperpositionProcess,
)
from egm.typing import Gaussian

KEY = jax.random.key(12)
LINEAR, EXPLODING = LinearPath(), VarianceExplodingPath(0.5, 6.0)


def bump(t):
    return 1.2 - 0.5 * t


def test_superposition_is_the_diffusion_of_its_mean_square():
    """g^2 = sum of w_i g_i^2: each state's own time and weights, some of them without any noise."""
    problem = gaussian_problem(LINEAR, 2)
    x, t = problem.exact_samples(5), jnp.array([0.2, 0.3, 0.5, 0.6, 0.7])
    share = lambda t: jnp.where(t < 0.4, 0.0, t)
    process = SuperpositionProcess(
        (FlowProcess(LINEAR), DiffusionProcess(LINEAR, bump), DiffusionProcess(LINEAR)),
        lambda t: (1 - share(t), 0.25 * share(t), 0.75 * share(t)),
    )
    g2 = np.where(t < 0.4, 0.0, t * (0.25 * (1.2 - 0.5 * t) ** 2 + 0.75 * 2 * (1 - t) / t))
    np.testing.assert_allclose(process.diffusion_coefficient(t) ** 2, g2, rtol=1e-5)
    same = DiffusionProcess(LINEAR, lambda t: jnp.sqrt(jnp.asarray(g2, t.dtype)))

    generator = problem.random_generator
    x_r, ratio = jax.jit(lambda x: process.step(KEY, x, generator, t, t + 0.1))(x)
    x_r_same, ratio_same = jax.jit(lambda x: same.step(KEY, x, generator, t, t + 0.1))(x)
    np.testing.assert_allclose(x_r, x_r_same, rtol=1e-5)
    np.testing.assert_allclose(ratio, ratio_same, rtol=1e-4, atol=1e-5)
    back = jax.jit(lambda x: process.reverse_step(KEY, x, generator, t, t + 0.1))(x_r)
    back_same = jax.jit(lambda x: same.reverse_step(KEY, x, generator, t, t + 0.1))(x_r)
    np.testing.assert_allclose(back, back_same, rtol=1e-4)


def test_weights_that_are_not_convex_are_invalid():
    """Traced weights cannot raise: the step is NaN instead."""
    process = SuperpositionProcess((FlowProcess(LINEAR), DiffusionProcess(LINEAR, bump)), lambda t: (t, t))
    step = jax.jit(lambda t: process.step(KEY, jnp.ones((1, 1)), lambda x, t: x, t, 0.9)[1])
    assert np.isfinite(step(0.5))
    assert np.isnan(step(0.6))


# Products.


def test_product_asks_each_part_given_the_others():
    """x moves first and sees h_t; h sees x_r, at time r; the backward kernel of x sees h_t again."""
    problem = mixed_problem(LINEAR)
    process = ProductProcess({"h": JumpProcess(MaskedPath(2)), "x": DiffusionProcess(LINEAR, 0.5)})
    calls = []

    def spy(state, t):
        calls.append((state, t))
        return problem.random_generator(state, t)

    x_t = {"x": jnp.array([[0.3], [-0.4]]), "h": jnp.array([[2, 2], [0, 2]])}
    x_r, log_ratio = process.step(KEY, x_t, spy, 0.4, 0.8)
    expected = [(x_t["x"], x_t["h"], 0.4), (x_r["x"], x_t["h"], 0.8), (x_r["x"], x_t["h"], 0.8)]
    assert len(calls) == 3
    assert np.any(x_r["h"] != x_t["h"])
    for (state, time), (x, h, wanted) in zip(calls, expected):
        np.testing.assert_array_equal(state["x"], x)
        np.testing.assert_array_equal(state["h"], h)
        np.testing.assert_allclose(time, wanted, rtol=1e-6)
    # The terms by hand, each part given the same other part.
    jump, diffusion = process.processes["h"], process.processes["x"]
    term = diffusion.log_ratio(
        x_t["x"],
        x_r["x"],
        lambda x, t: problem.random_generator({"x": x, "h": x_t["h"]}, t)["x"],
        0.4,
        0.8,
    )
    at_r = problem.random_generator({"x": x_r["x"], "h": x_t["h"]}, jnp.full(2, 0.8))["h"]
    term = term + jump.log_ratio(x_t["h"], x_r["h"], lambda h, t: at_r, 0.4, 0.8)
    np.testing.assert_allclose(log_ratio, term, rtol=1e-5)
    # Backward: h first, from x_r; then x, at r, given the h_t just drawn.
    calls.clear()
    back = process.reverse_step(KEY, x_r, spy, 0.4, 0.8)
    ((state, time),) = calls
    np.testing.assert_array_equal(state["x"], x_r["x"])
    np.testing.assert_array_equal(state["h"], back["h"])
    np.testing.assert_allclose(time, 0.8, rtol=1e-6)


def test_product_ends_in_its_prior():
    """The first time is the linear path's, above 0; the tokens' prior is all masks all the same."""
    problem = mixed_problem(LinearPath(t_min=0.3))
    process = ProductProcess({"x": DiffusionProcess(LinearPath(t_min=0.3)), "h": JumpProcess(MaskedPath(2))})
    assert float(process.times(3)[0]) == np.float32(0.3)
    times, seen = process.times(1), []

    def generator(state, t):
        jax.debug.callback(lambda least: seen.append(float(least)), jnp.min(t))
        return problem.random_generator(state, t)

    back = jax.jit(lambda x: egm.simulate_reverse(KEY, process, generator, x, times))(
        problem.exact_samples(300)
    )
    assert np.all(back.x_0["h"] == 2)
    assert np.all(np.isfinite(back.log_ratio))
    jax.effects_barrier()
    assert min(seen) >= np.float32(0.3)


@pytest.mark.parametrize("max_drift_norm", [pytest.param(None, marks=pytest.mark.slow), 0.3])
def test_a_mixed_flow_weighs_the_whole_derivative_of_a_head(x64, max_drift_norm):
    """log|det| against central differences: the score's skip sees x through the denoiser and the clipping."""
    energy, vocab = egm.energies.JointGaussianMixture(dim=3), 2
    path, tokens = VarianceExplodingPath(0.3, 3.0, length_scale=0.3), MaskedPath(vocab)
    shape = {"length_scale": 0.3, "data_scale": 1.0}
    score = egm.heads.ScoreHead(path, **shape, max_drift_norm=max_drift_norm)
    head = egm.heads.ProductHead({"x": score, "h": egm.heads.DenoiserHead(tokens)})
    net = MLPMixed(path, vocab, **shape, width=16)
    x = {"x": jax.random.normal(KEY, (6, 3)), "h": jnp.array([[2, 2, 2], [0, 2, 2], [2, 1, 0]] * 2)}
    params = net.init(KEY, x, jnp.zeros(6))
    noise = iter(jax.random.split(KEY, 100))
    params = jax.tree.map(lambda p: p + 0.3 * jax.random.normal(next(noise), p.shape, p.dtype), params)

    def generator(state, t):
        return head.generator(net.apply(params, state, t), state, t, energy)

    process = ProductProcess({"x": FlowProcess(path, "heun"), "h": JumpProcess(tokens)})
    flow = FlowProcess(path, "heun")

    @jax.jit
    def leads_to(position):
        part = lambda y, t: generator({"x": y, "h": x["h"]}, t)["x"]
        return flow.step(KEY, position, part, 0.7, 0.8)[0]

    step = 1e-5 * jnp.eye(3)
    columns = [(leads_to(x["x"] + e[None]) - leads_to(x["x"] - e[None])) / 2e-5 for e in step]
    expected = jnp.linalg.slogdet(jnp.stack(columns, axis=-1))[1]
    x_r, ratio = jax.jit(lambda x: process.step(KEY, x, generator, 0.7, 0.8))(x)
    np.testing.assert_allclose(x_r["x"], leads_to(x["x"]), atol=1e-12)
    # The product's ratio less that of the tokens, which stand over the new x.
    given = lambda h, _: generator({"x": x_r["x"], "h": h}, jnp.full(6, 0.8))["h"]
    found = ratio - JumpProcess(tokens).log_ratio(x["h"], x_r["h"], given, 0.7, 0.8)
    # Central differences of step 1e-5 in float64 are good to about 1e-9.
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_products_nest():
    """A product inside a product is the flat one, with other keys: the same log_ratio of a pair."""
    problem = mixed_problem(LINEAR)
    x, h = DiffusionProcess(LINEAR, bump), JumpProcess(MaskedPath(2))
    flat, nested = ProductProcess({"x": x, "h": h}), ProductProcess([ProductProcess({"x": x, "h": h})])
    assert nested.path.times(4)[0] == flat.path.times(4)[0]
    x_t = {"x": jnp.array([[0.3], [-0.4]]), "h": jnp.array([[2, 2], [0, 2]])}
    generator = problem.random_generator
    x_r, log_ratio = flat.step(KEY, x_t, generator, 0.4, 0.8)
    inside = nested.log_ratio([x_t], [x_r], lambda s, t: [generator(s[0], t)], 0.4, 0.8)
    np.testing.assert_allclose(inside, log_ratio, rtol=1e-5)


# Errors.

X = jnp.zeros((2, 3))
FLOW, NOISE = FlowProcess(LINEAR), DiffusionProcess(LINEAR, bump)
MIXED = ProductProcess({"x": FLOW, "h": AnyOrderProcess(MaskedPath(2))})
STATE = {"x": X, "h": jnp.zeros((2, 2), jnp.int32)}
still = lambda x, t: jnp.zeros_like(x)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: FlowProcess(MaskedPath(2)), TypeError, "path must be a Gaussian path, got MaskedPath"),
        (lambda: FlowProcess(LINEAR, "rk4"), ValueError, "method must be one of .*'heun'.*, got 'rk4'"),
        (lambda: FlowProcess(LINEAR, max_dimension=0), ValueError, "max_dimension must be at least 1, got 0"),
        (lambda: FlowProcess(LINEAR, max_dimension=2).step(KEY, X, still, 0.1, 0.2),
         ValueError, "x_t has trailing size 3, above max_dimension = 2"),
        (lambda: FLOW.step(KEY, X[0], still, 0.1, 0.2),
         ValueError, r"x_t must have shape \[N, D\], got \(3,\)"),
        (lambda: FLOW.step(KEY, X, still, 0.3, 0.2), ValueError, "t must be below r"),
        (lambda: FLOW.step(KEY, X, lambda x, t: x[:, 0], 0.1, 0.2),
         ValueError, r"generator must return shape \(2, 3\), got \(2,\)"),
        (lambda: FLOW.log_ratio(X, X[:, :2], still, 0.1, 0.2),
         ValueError, r"x_r must have the shape of x_t, \(2, 3\), got \(2, 2\)"),
        (lambda: NOISE.step(KEY, X, lambda x, t: Gaussian(x, x[:1]), 0.1, 0.2),
         ValueError, r"generator's score must return shape \(2, 3\), got \(1, 3\)"),
        (lambda: NOISE.step(KEY, X, lambda x, t: {"x": x}, 0.1, 0.2),
         TypeError, "generator must return an array"),
        (lambda: DiffusionProcess(LINEAR, "g"),
         TypeError, "coefficient must be None, a number or a function"),
        (lambda: DiffusionProcess(LINEAR, -1.0), ValueError, "coefficient must be finite and non-negative"),
        (lambda: DiffusionProcess(LINEAR, lambda t: t[:1]).step(KEY, X, still, 0.1, 0.2),
         ValueError, r"coefficient must return a scalar or shape \(2,\), got \(1,\)"),
        (lambda: DiffusionProcess(LINEAR, lambda t: -t).step(KEY, X, still, 0.1, 0.2),
         ValueError, "coefficient must return values >= 0"),
        (lambda: SuperpositionProcess((), ()), ValueError, "processes must hold at least one"),
        (lambda: SuperpositionProcess((JumpProcess(MaskedPath(2)),), (1.0,)),
         TypeError, r"processes must be flows, diffusions, jumps on R\^d .*, got JumpProcess"),
        (lambda: SuperpositionProcess((FLOW, FlowProcess(EXPLODING)), (0.5, 0.5)),
         ValueError, "processes must share one path"),
        (lambda: SuperpositionProcess((FLOW, NOISE), (1.0,)), ValueError, "one a process, 2 in all, got 1"),
        (lambda: SuperpositionProcess((FLOW, NOISE), (0.5, 0.6)),
         ValueError, "weights must be >= 0 and sum to 1"),
        (lambda: SuperpositionProcess((FLOW, NOISE), lambda t: (-t, 1 + t)).step(KEY, X, still, 0.1, 0.2),
         ValueError, "weights must be >= 0 and sum to 1"),
        (lambda: ProductProcess({}), ValueError, "processes must hold at least one process"),
        (lambda: ProductProcess({"x": LINEAR}), TypeError, "every leaf of processes must be a process"),
        (lambda: MIXED.step(KEY, {"x": X}, still, 0.1, 0.2), ValueError, "x_t must have the structure"),
        (lambda: MIXED.step(KEY, STATE, lambda s, t: s["x"], 0.1, 0.2),
         ValueError, "what the generator returns must have the structure"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
