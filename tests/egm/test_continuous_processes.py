"""Flows, diffusions and superpositions against the equations that they solve.

The problems are Gaussian mixtures whose marginals are closed forms. Statistical thresholds are 4
standard errors at fixed keys.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gaussian_problem import gaussian_problem

import egm
from egm.paths import CenteredPath, LinearPath, VarianceExplodingPath, VariancePreservingPath
from egm.processes import DiffusionProcess, FlowProcess, SuperpositionProcess

KEY = jax.random.key(12)
LINEAR, EXPLODING = LinearPath(), VarianceExplodingPath(0.5, 6.0)
PRESERVING = VariancePreservingPath(0.5, 6.0)
CENTERED = CenteredPath(LINEAR, 3, 2)


def bump(t):
    return 1.2 - 0.5 * t


def half(t):
    return 1 - 0.5 * t, 0.5 * t


def mixed(path):
    return SuperpositionProcess((FlowProcess(path), DiffusionProcess(path), DiffusionProcess(path, bump)),
                                (0.5, 0.2, 0.3))  # fmt: skip


def points(problem, n=5, t=0.4, seed=3):
    """[N, D] states of time t, in the default float dtype."""
    x_1 = problem.exact_samples(n, seed)
    return jnp.asarray(problem.path.sample(jax.random.key(seed), x_1, t), float)


# The equations of the marginals.


@pytest.mark.parametrize(
    "process, dim, record",
    [
        (FlowProcess(LINEAR), 1, "velocity"),
        pytest.param(FlowProcess(PRESERVING, "heun"), 2, "velocity", marks=pytest.mark.slow),
        (DiffusionProcess(LINEAR), 1, "variance"),
        pytest.param(DiffusionProcess(PRESERVING), 2, "variance", marks=pytest.mark.slow),
        (DiffusionProcess(EXPLODING), 2, "velocity"),
        (DiffusionProcess(PRESERVING, bump), 2, "score"),
        (mixed(LINEAR), 2, "velocity"),
    ],
    ids=["flow", "flow-heun", "g*-linear", "g*-preserving", "g*-exploding", "g", "superposition"],
)
def test_marginals_solve_the_fokker_planck_equation(x64, process, dim, record):
    """dp/dt = -div(p b) + Laplacian(g^2 p) / 2, b and g^2 read off a very short step's kernel.

    The left side is a difference in t of the closed-form density. The right side is differentiated in
    x; the kernel's mean and variance over a step of 1e-6 carry an error of that order.
    """
    problem = gaussian_problem(process.path, dim, record=record)
    h = 1e-6

    def density(x, t):
        return jnp.exp(problem.log_density(x, t))

    def moments(x, t):
        if isinstance(process, FlowProcess):
            x_r, _ = process.step(KEY, x[None], problem.exact_generator, t, t + h)
            return (x_r[0] - x) / h, jnp.zeros(dim)
        diffusion = process._diffusion if isinstance(process, SuperpositionProcess) else process
        mean, variance = diffusion._forward(x[None], problem.exact_generator, t[None], t[None] + h)
        return (mean[0] - x) / h, jnp.broadcast_to(variance[0] / h, (dim,))

    def flux(x, t):
        drift, _ = moments(x, t)
        spread = jax.jacfwd(lambda y: moments(y, t)[1] * density(y, t))(x)
        return density(x, t) * drift - 0.5 * jnp.diagonal(spread)

    @jax.jit
    @jax.vmap
    def both(x, t):
        left = (density(x, t + 1e-4) - density(x, t - 1e-4)) / 2e-4
        return left, -jnp.trace(jax.jacfwd(flux)(x, t))

    for time in (0.35, 0.8):
        x = points(problem, t=time)
        left, right = both(x, jnp.full(len(x), time))
        scale = np.max(np.abs(left))
        assert scale > 0.01
        np.testing.assert_allclose(left, right, atol=2e-4 * scale)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def simulate(problem, process, steps, n):
    shape = (n, problem.means.shape[1])
    x_0 = process.path.sample_prior(jax.random.fold_in(KEY, 1), shape)
    path = egm.simulate(KEY, process, problem.exact_generator, x_0, process.times(steps))
    return path.x_1, egm.path_log_weights(problem, process.path, path)


@pytest.mark.parametrize(
    "process, record, steps, floor",
    [
        (FlowProcess(LINEAR, "heun"), "velocity", (8, 64), 0.99),
        (DiffusionProcess(LINEAR), "variance", (8, 64), 0.9),
        (SuperpositionProcess((FlowProcess(LINEAR), DiffusionProcess(LINEAR, bump)), half),
         "velocity", (32, 256), 0.9),
    ],
    ids=["flow", "g*", "superposition"],
)  # fmt: skip
def test_exact_generators_keep_the_marginals(process, record, steps, floor):
    """Mean, variance and mode masses of x_1 within 4 standard errors, ESS near 1 and growing with steps.

    The time step's own bias is far below the standard errors of 4000 samples.
    """
    problem = gaussian_problem(LINEAR, 1, record=record, scale=1.5)
    n = 4000
    ess = []
    for count in steps:
        x_1, log_w = simulate(problem, process, count, n)
        ess.append(float(egm.importance.snis(log_w).ess))
    assert ess[0] < ess[1]
    assert ess[1] > floor
    w = np.exp(np.asarray(log_w, np.float64) - problem.log_z)
    assert abs(w.mean() - 1) < 4 * w.std() / np.sqrt(n) + 1e-4  # float32's share
    x = np.asarray(x_1[:, 0], np.float64)
    exact = problem.exact_samples(400_000)[:, 0]
    split = problem.means.mean()
    for values, reference in ((x, exact), (x**2, exact**2), (x > split, exact > split)):
        values, reference = np.asarray(values, float), np.asarray(reference, np.float64)
        error = np.sqrt(reference.var() * (1 / n + 1 / len(reference)))
        assert abs(values.mean() - reference.mean()) < 4 * error


def test_the_posterior_variance_keeps_the_ess_up():
    """In 8 dimensions and 20 steps the moment-matched forward variance wins over v / a^2."""
    ess = {}
    for record in ("velocity", "variance"):
        problem = gaussian_problem(EXPLODING, 8, record=record)
        _, log_w = simulate(problem, DiffusionProcess(EXPLODING), 20, 2000)
        ess[record] = float(egm.importance.snis(log_w).ess)
    assert ess["variance"] > ess["velocity"] + 0.1


# Flows.


@pytest.mark.parametrize("path", [LinearPath(), CenteredPath(VarianceExplodingPath(0.3, 3.0), 3, 2)])
def test_data_scale_stands_for_normal_data(x64, path):
    """A velocity alone with `data_scale` moves as the record with the posterior variance of N(0, l^2 I)."""
    size, scale = 6, 1.7
    x = path.sample_prior(jax.random.key(0), (5, size))
    t, r = 0.4, 0.55
    share = path.dimension(size) / size
    alpha, noise = path.alpha(t), path.variance(t)
    variance = share * scale**2 * noise / (noise + alpha**2 * scale**2)
    velocity = lambda y, s: jnp.sin(y)
    record = lambda y, s: egm.typing.Gaussian(velocity(y, s), posterior_variance=jnp.full(y.shape, variance))
    came = DiffusionProcess(path, data_scale=scale).step(jax.random.key(1), x, velocity, t, r)
    expected = DiffusionProcess(path).step(jax.random.key(1), x, record, t, r)
    for a, b in zip(came, expected):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    with pytest.raises(ValueError, match="data_scale"):
        DiffusionProcess(path, data_scale=0.0)


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2)])
def test_order_of_a_flow(x64, method, order):
    """The errors of x_1 and of the log-determinant fall by 2^order when the steps double.

    The reference is Heun's at 400 steps, whose own error is below 1/10 of those compared.
    """
    problem = gaussian_problem(PRESERVING, 2)
    x_0 = points(problem, t=0.0)

    def run(process, steps):
        step = jax.jit(lambda x, t, r: process.step(KEY, x, problem.exact_generator, t, r))
        x, total, times = x_0, 0.0, jnp.linspace(0.0, 1.0, steps + 1)
        for t, r in zip(times[:-1], times[1:]):
            x, term = step(x, t, r)
            total = total + term
        return np.concatenate([x, total[:, None]], axis=1)

    reference = run(FlowProcess(PRESERVING, "heun"), 400)
    errors = [np.linalg.norm(run(FlowProcess(PRESERVING, method), n) - reference) for n in (32, 64)]
    assert 0.85 * 2**order < errors[0] / errors[1] < 1.15 * 2**order


@pytest.mark.parametrize(
    "process",
    [FlowProcess(LINEAR), FlowProcess(LINEAR, "heun")],
    ids=["euler", "heun"],
)
def test_determinant_and_inverse_of_a_step(x64, process):
    """log_ratio is that of `jax.jacobian` of the whole step; reverse_step inverts it to 1e-10."""
    problem = gaussian_problem(LINEAR, 3, components=3)
    x = points(problem)
    generator = problem.random_generator
    step = jax.jit(lambda x: process.step(KEY, x, generator, 0.4, 0.55))
    x_r, log_ratio = step(x)
    one = lambda y: process.step(KEY, y[None], generator, 0.4, 0.55)[0][0]
    matrices = jax.jit(jax.vmap(jax.jacobian(one)))(x)
    np.testing.assert_allclose(log_ratio, np.log(np.abs(np.linalg.det(matrices))), rtol=1e-10)
    back = jax.jit(lambda x: process.reverse_step(KEY, x, generator, 0.4, 0.55))
    np.testing.assert_allclose(back(x_r), x, rtol=0, atol=1e-10)
    # In float32 as far as it goes.
    x_r, log_ratio = step(x.astype(np.float32))
    assert x_r.dtype == log_ratio.dtype == np.float32
    np.testing.assert_allclose(back(x_r), x, rtol=0, atol=1e-5)


def test_a_state_without_a_preimage_is_nan():
    """x -> x^2 + 1 reaches 5 from 2 and -1 from nowhere; such a trajectory counts as invalid."""
    process = FlowProcess(EXPLODING)
    generator = lambda x, t: (x**2 + 1 - x) / 0.5
    back = process.reverse_step(KEY, jnp.array([[5.0], [-1.0]]), generator, 0.0, 0.5)
    np.testing.assert_allclose(np.abs(back[0]), 2, rtol=1e-5)
    assert np.all(np.isnan(back[1]))


# Subspaces.


def subspace_basis():
    """[4, 6] an orthonormal basis of the positions of 3 particles in 2 dimensions that sum to zero."""
    particles = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
    return np.kron(particles, np.eye(2))


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_centred_determinant(x64, method):
    """The determinant is that of the step in coordinates on the subspace; the state stays centred."""
    problem = gaussian_problem(CENTERED, 6)
    process, basis = FlowProcess(CENTERED, method), subspace_basis()
    x = points(problem)

    def one(y):
        return basis @ process.step(KEY, (basis.T @ y)[None], problem.random_generator, 0.4, 0.6)[0][0]

    x_r, log_ratio = jax.jit(lambda x: process.step(KEY, x, problem.random_generator, 0.4, 0.6))(x)
    matrices = jax.jit(jax.vmap(jax.jacobian(one)))(x @ basis.T)
    np.testing.assert_allclose(log_ratio, np.linalg.slogdet(matrices)[1], rtol=1e-10)
    assert np.all(CENTERED.contains(x_r))


@pytest.mark.parametrize("record", ["score", "variance"])
def test_diffusion_densities_in_coordinates(x64, record):
    """Both kernels of g* as normals of 4 coordinates on the subspace, written out with scipy.

    Given x_1 too, x_r is normal with mean (v alpha_r x_1 + a sigma_r^2 x_t) / sigma_t^2 and variance
    v sigma_r^2 / sigma_t^2; its mixture over x_1 has the trace of the posterior variance added, or without
    it the variance of N(0, I) data, the prior's.
    """
    problem, basis = gaussian_problem(CENTERED, 6, record=record), subspace_basis()
    x, t, r = points(problem), 0.4, 0.7
    process = DiffusionProcess(CENTERED)
    x_r, log_ratio = jax.jit(lambda x: process.step(KEY, x, problem.exact_generator, t, r))(x)
    assert np.all(CENTERED.contains(x_r))
    a, sigma2 = t / r, lambda s: (1 - s) ** 2
    v = sigma2(t) - a**2 * sigma2(r)
    mean, spread = problem.moments(x, jnp.full(len(x), t))
    forward_mean = (v * r * mean + a * sigma2(r) * x) / sigma2(t)
    normal = np.full(len(x), sigma2(t) / (t**2 + sigma2(t)))
    spread = normal if record == "score" else np.sum(spread, -1) / 4
    variance = v * sigma2(r) / sigma2(t) + (r * v / sigma2(t)) ** 2 * spread
    for i in range(len(x)):
        normal = scipy.stats.multivariate_normal.logpdf
        backward = normal(basis @ x[i], a * basis @ x_r[i], v * np.eye(4))
        forward = normal(basis @ x_r[i], basis @ forward_mean[i], variance[i] * np.eye(4))
        np.testing.assert_allclose(log_ratio[i], backward - forward, rtol=1e-9)


# Generators and coefficients.


def test_a_score_says_no_more_than_the_velocity(x64):
    """Exact velocity and exact score make the same step, for g* and for another g."""
    for process in (DiffusionProcess(LINEAR), DiffusionProcess(LINEAR, bump)):
        made = [
            process.step(KEY, points(problem), problem.exact_generator, 0.4, 0.6)
            for problem in (gaussian_problem(LINEAR, 2, record=r) for r in ("velocity", "score"))
        ]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), *made)


def test_the_last_step_on_the_linear_path_is_finite():
    """At t = 1 the velocity no longer determines the score; weights stay finite, gradients too."""
    problem = gaussian_problem(LINEAR, 2)

    @jax.jit
    @jax.grad
    def slope(x, t, r):
        return jnp.sum(DiffusionProcess(LINEAR, bump).step(KEY, x, problem.exact_generator, t, r)[1])

    x = points(problem, t=0.9)
    assert np.all(np.isfinite(slope(x, 0.9, 1.0)))
