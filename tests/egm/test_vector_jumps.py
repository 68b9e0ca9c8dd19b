"""Jumps on R^d: their conditional and marginal equations, both kernels by quadrature, and two far modes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_problem import GaussianProblem, gaussian_problem

import egm
from egm.paths import CenteredPath, LinearPath, VarianceExplodingPath, VariancePreservingPath, WrappedPath
from egm.processes import DiffusionProcess, FlowProcess, SuperpositionProcess, VectorJumpProcess
from egm.typing import TargetMixture

KEY = jax.random.key(3)
LINEAR, EXPLODING, PRESERVING = (
    LinearPath(),
    VarianceExplodingPath(0.5, 3.0),
    VariancePreservingPath(0.5, 6.0),
)
PATHS = pytest.mark.parametrize(
    "path",
    [
        pytest.param(LINEAR, id="linear"),
        pytest.param(EXPLODING, id="exploding"),
        pytest.param(PRESERVING, id="preserving", marks=pytest.mark.slow),
    ],
)
GRID = np.arange(-14.0, 14.0, 0.01)[:, None]


def quadrature(values):
    return np.sum(np.asarray(values), axis=0) * 0.01


def both(path):
    """Half jumps, half diffusion."""
    return SuperpositionProcess((VectorJumpProcess(path), DiffusionProcess(path)), (0.5, 0.5))


@PATHS
def test_conditional_jumps_keep_the_conditional_marginals(x64, path):
    """d/dt p_{t|r} = -rate p_{t|r} + N times the mean rate, N = p_{t|r}: the master equation.

    The left side is a central difference over 2e-5, whose error is of the order of its square.
    """
    x_r = jnp.full(GRID.shape, 0.7)
    for t, r in ((0.4, 1.0), (0.3, 0.6)):

        def density(time, last=r):
            return np.asarray(jnp.exp(path.log_noising(GRID, time, x_r, last)))

        p = density(t)
        rate = np.asarray(path.conditional_rate(GRID, t, x_r, r))
        assert np.all(rate >= 0)
        right = -rate * p + quadrature(rate * p) * p
        left = (density(t + 1e-5) - density(t - 1e-5)) / 2e-5
        np.testing.assert_allclose(left, right, atol=1e-6 * np.max(np.abs(left)))


@PATHS
def test_an_snis_mean_of_rates_is_the_marginal_one(path):
    """`egm.estimate`'s weights on conditional rates against `VectorJumpProcess.rate`, by 200,000 samples."""
    problem = gaussian_problem(path, 2, record="mixture")
    x_t = path.sample(KEY, jnp.asarray(problem.exact_samples(3), float), 0.6)
    x_1 = path.propose(jax.random.key(1), x_t, 0.6, 1.0, 200_000)
    weights = egm.importance.snis(-problem(x_1)).weights
    rates = path.conditional_rate(x_t, 0.6, x_1, 1.0)
    mean = jnp.sum(weights * rates, axis=0)
    error = jnp.sqrt(jnp.sum(weights**2 * (rates - mean[None]) ** 2, axis=0))
    exact = VectorJumpProcess(path).rate(x_t, problem.exact_generator, 0.6)
    assert np.all(np.abs(mean - exact) < 4 * error)
    assert np.all(error < 0.05 * exact)


@PATHS
def test_both_kernels_have_mass_one(x64, path):
    """In one dimension by quadrature, forward and back, of a wrong mixture; nobody stays in the last step."""
    generator = gaussian_problem(path, 1, record="mixture").random_generator
    # One point against the whole grid, which it does not lie on; last the point itself.
    point = jnp.full((len(GRID) + 1, 1), 0.3337)
    grid = jnp.concatenate([GRID, point[:1]])
    run = jax.jit(lambda a, b, t, r: VectorJumpProcess(path).log_kernels(a, b, generator, generator, t, r))
    for t, r in ((0.5, 0.6), (0.7, 1.0)):
        for which, pair in enumerate(((point, grid), (grid, point))):
            stays, *kernels = run(*pair, t, r)
            mass = np.exp(kernels[which])
            atom = mass[-1] if stays[-1] else 0.0
            assert not np.any(stays[:-1])
            assert (0.3 < atom < 1) if r < 1 else atom == 0
            np.testing.assert_allclose(quadrature(mass[:-1]) + atom, 1.0, atol=1e-6)


@PATHS
@pytest.mark.parametrize("make", [VectorJumpProcess, both], ids=["jumps", "superposition"])
def test_the_exact_mixture_has_the_exact_ratio(x64, path, make):
    """log p_t - log p_r for jumps, and up to what the moments of the diffusion's kernels leave out."""
    problem, process = gaussian_problem(path, 1, record="mixture"), make(path)
    step = jax.jit(lambda x, t, r: process.step(jax.random.key(1), x, problem.exact_generator, t, r))
    for t, r in ((0.5, 0.6), (0.7, 1.0)):
        x_t = path.sample(KEY, problem.exact_samples(20), t)
        x_r, ratio = step(x_t, t, r)
        times = (jnp.full(20, s) for s in (t, r))
        before, after = (problem.log_density(x, s) for x, s in zip((x_t, x_r), times))
        error = np.max(np.abs(ratio - (before - after)))
        assert error < (1e-8 if make is VectorJumpProcess else 0.2)
        assert np.any(x_t == x_r) == (r < 1)


@pytest.mark.parametrize("path", [LINEAR, pytest.param(EXPLODING, marks=pytest.mark.slow)])
def test_steps_draw_from_their_kernels(path):
    """The share that stays and the first two moments of the rest, forward and back, to 4 standard errors."""
    problem, process, n = gaussian_problem(path, 1, record="mixture"), VectorJumpProcess(path), 20_000
    generator, t, r = problem.random_generator, 0.5, 0.6
    start = jnp.full((n, 1), 0.3337)
    forward = jax.jit(lambda x: process.step(KEY, x, generator, t, r)[0])(start)
    back = jax.jit(lambda x: process.reverse_step(KEY, x, generator, t, r))(start)
    grid = jnp.asarray(GRID, float)
    point = jnp.broadcast_to(start[:1], grid.shape)
    kernels = (
        process.log_kernels(point, grid, generator, generator, t, r)[1],
        process.log_kernels(grid, point, generator, generator, t, r)[2],
    )
    for ended, kernel in zip((forward, back), kernels):
        stays = np.asarray(ended == start)[:, 0]
        p = np.exp(np.asarray(kernel, np.float64))
        mass = quadrature(p)
        assert abs(stays.mean() - (1 - mass)) < 4 * np.sqrt(mass * (1 - mass) / n)
        moved = np.asarray(ended, np.float64)[~stays, 0]
        for power in (1, 2):
            first, second = (quadrature(p * GRID[:, 0] ** k) / mass for k in (power, 2 * power))
            error = np.sqrt((second - first**2) / len(moved))
            assert abs(np.mean(moved**power) - first) < 4 * error


@pytest.mark.parametrize("dim", [pytest.param(2, marks=pytest.mark.slow), 10])
def test_two_far_modes_of_unequal_mass(dim):
    """20 apart a coordinate, masses .8 and .2, by exact mixtures in 25 steps from the exact marginal at 0.

    Jumps: log w is log Z for every state. Half a diffusion loses what 25 steps of it lose. The mass to 4
    standard errors.
    """
    path, n = VarianceExplodingPath(1.0, 40.0), 2000
    means = np.stack([np.full(dim, -10.0), np.full(dim, 10.0)])
    problem = GaussianProblem(path, means, np.ones(2), np.array([0.8, 0.2]), "mixture")
    x_0 = path.sample(jax.random.fold_in(KEY, 1), jnp.asarray(problem.exact_samples(n), float), 0.0)
    start = egm.PriorDraw(x_0, problem.log_density(x_0, jnp.zeros(n)))
    for process in (VectorJumpProcess(path), both(path)):
        run = jax.jit(lambda x, p=process: egm.simulate(KEY, p, problem.exact_generator, x, p.times(25)))
        trajectory = run(start)
        log_w = np.asarray(egm.path_log_weights(problem, path, trajectory), np.float64) - problem.log_z
        if isinstance(process, VectorJumpProcess):
            # Sums of 26 differences of logs of float32.
            np.testing.assert_allclose(log_w, 0.0, atol=2e-3)
        w = np.exp(log_w)
        assert w.mean() ** 2 / (w**2).mean() > 0.9
        assert abs(w.mean() - 1) < 4 * w.std() / n**0.5 + 1e-4
        share = np.average(np.asarray(trajectory.x_1[:, 0] < 0, float), weights=w)
        assert abs(share - 0.8) < 4 * np.sqrt(0.16 / (n * 0.9))


def test_every_process_takes_a_mixture(x64):
    """Velocity, score and variance of the record are the closed forms, at t = 1 too."""
    problem = gaussian_problem(LINEAR, 2, components=3, record="mixture")
    told = gaussian_problem(LINEAR, 2, components=3, record="variance")
    x = problem.exact_samples(5)
    for process in (FlowProcess(LINEAR), DiffusionProcess(LINEAR, 0.5)):
        steps = [
            jax.jit(lambda t, r, p=p, q=process: q.step(KEY, x, p.exact_generator, t, r))
            for p in (problem, told)
        ]
        for t, r in ((0.3, 0.4), (0.8, 1.0)):
            made = (step(t, r) for step in steps)
            jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), *made)


def test_weights_of_a_superposition_with_jumps():
    """g^2 of the whole mixture, and the end points: all jumps, and none."""
    problem = gaussian_problem(EXPLODING, 2, record="mixture")
    jumps, noise = VectorJumpProcess(EXPLODING), DiffusionProcess(EXPLODING)
    x, t = jnp.asarray(problem.exact_samples(6), float), jnp.linspace(0.2, 0.7, 6)
    process = SuperpositionProcess((jumps, FlowProcess(EXPLODING), noise), (0.4, 0.3, 0.3))
    expected = 0.3 * EXPLODING.diffusion_coefficient(t) ** 2
    np.testing.assert_allclose(process.diffusion_coefficient(t) ** 2, expected, rtol=1e-5)
    generator = problem.random_generator
    for share, alone in ((1.0, jumps), (0.0, noise)):
        whole = SuperpositionProcess((jumps, noise), (share, 1 - share))
        x_r, ratio = whole.step(KEY, x, generator, t, t + 0.1)
        assert np.any(x_r == x) == (share == 1)
        np.testing.assert_allclose(
            ratio, alone.log_ratio(x, x_r, generator, t, t + 0.1), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: VectorJumpProcess(CenteredPath(LINEAR, 3, 1)), TypeError, "path must be .* on all of R"),
        (lambda: VectorJumpProcess(WrappedPath(0.5, 7.0)), TypeError, "path must be .* on all of R"),
        (lambda: WrappedPath(0.5, 7.0).conditional_rate(jnp.zeros(1), 0.5, jnp.zeros(1), 1.0),
         ValueError, "path must have no angles"),
        (lambda: VectorJumpProcess(LINEAR).step(KEY, jnp.zeros((2, 1)), lambda x, t: x, 0.1, 0.2),
         TypeError, "generator must return a TargetMixture for jumps"),
        (lambda: VectorJumpProcess(LINEAR).step(
            KEY, jnp.zeros((2, 1)), lambda x, t: TargetMixture(jnp.zeros((2, 3)), x, x), 0.1, 0.2),
         ValueError, r"generator's means must return shape \(2, 3, 1\), got \(2, 1\)"),
        (lambda: SuperpositionProcess((both(LINEAR),), (1.0,)), TypeError, "superpositions without jumps"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
