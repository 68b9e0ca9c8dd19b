"""Gaussian paths against closed forms, quadrature and automatic differentiation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egm.paths import (
    CenteredPath,
    LinearPath,
    VarianceExplodingPath,
    VariancePreservingPath,
)
from egm.typing import Path

PATHS = [
    LinearPath(),
    LinearPath(sigma=2.5, t_min=1e-2),
    VarianceExplodingPath(0.05, 4.0),
    VarianceExplodingPath(1e-3, 80.0, length_scale=0.5),
    VariancePreservingPath(),
    VariancePreservingPath(1.0, 1.0),
]
FLAT = [PATHS[0], PATHS[2], PATHS[4]]
CENTERED = [CenteredPath(path, 3, 2) for path in FLAT[:2]]
TIMES = [(0.2, 0.5), (0.45, 1.0), (0.9, 0.95)]
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)
every_flat = pytest.mark.parametrize("path", FLAT, ids=lambda p: type(p).__name__)
every_centred = pytest.mark.parametrize("path", CENTERED, ids=lambda p: type(p.path).__name__)
flat_and_centred = pytest.mark.parametrize("path", [FLAT[0], CENTERED[1]], ids=["Flat", "Centered"])
every_kind = pytest.mark.parametrize(
    "path",
    FLAT + CENTERED[1:2],
    ids=["Linear", "VarianceExploding", "VariancePreserving", "Centered"],
)


def make_key(seed):
    """A typed key of the generator that compiles fastest, which is what these tests wait for."""
    return jax.random.key(seed, impl="rbg")


def state(path, seed, *batch):
    """A random state of the path; 6 coordinates suit flat and centred paths alike."""
    return path.standard_normal(make_key(seed), (*batch, 6))


def grid_integral(fn, width, count=20001):
    x = jnp.linspace(-width, width, count)
    return jax.jit(lambda x: jnp.trapezoid(fn(x[:, None]), x))(x)


@every_kind
def test_is_a_path(path):
    assert isinstance(path, Path)
    assert path.event_ndim == 1


@every_path
def test_schedule_ends_and_derivatives(x64, path):
    assert path.alpha(1.0) == 1
    assert path.variance(1.0) == 0
    t = jnp.linspace(path.t_min, 1.0, 41)
    for value, dot in ((path.alpha, path.alpha_dot), (path.variance, path.variance_dot)):
        expected = jax.jit(jax.vmap(jax.jacfwd(value)))(t)
        np.testing.assert_allclose(dot(t), expected, rtol=1e-9, atol=1e-12)
    assert jnp.all(jnp.isfinite(path.variance_dot(t)))
    assert jnp.all(path.diffusion_coefficient(t) >= 0)


@every_path
def test_kernel_is_the_difference_of_variances(x64, path):
    t, r = (jnp.asarray(times) for times in zip(*TIMES, strict=True))
    a = path.alpha(t) / path.alpha(r)
    kernel = path.kernel(t, r)
    np.testing.assert_allclose(kernel.scale, a, rtol=1e-12)
    np.testing.assert_allclose(kernel.log_scale, jnp.log(a), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(kernel.variance, path.variance(t) - a**2 * path.variance(r), rtol=1e-9)


@every_flat
def test_diffusion_coefficient_is_the_growth_of_the_kernel(x64, path):
    r, h = 0.6, 1e-6
    kernel = path.kernel(r - h, r)
    np.testing.assert_allclose(kernel.variance / h, path.diffusion_coefficient(r) ** 2, rtol=1e-4)


@every_flat
def test_variance_keeps_its_precision_as_r_approaches_t(path):
    t = np.array([path.t_min + 0.01, 0.3, 0.9, 0.9998], np.float32)
    r = (t + np.float32(1e-4)).astype(np.float32)
    came = path.kernel(t, r)
    with jax.enable_x64(True):
        exact = path.kernel(jnp.asarray(t, jnp.float64), jnp.asarray(r, jnp.float64))
        exact = [np.asarray(part) for part in exact]
    np.testing.assert_allclose(came.variance, exact[2], rtol=1e-3 if _preserving(path) else 1e-5)
    np.testing.assert_allclose(came.log_scale, exact[1], atol=2e-7)


def _preserving(path):
    # 1 - t is rounded to 1e-7 in float32; what is left of it at t = .9998 is what counts.
    return isinstance(path, VariancePreservingPath)


@every_flat
def test_chapman_kolmogorov(x64, path):
    t, r = 0.3, 0.7
    x_t, x_1 = jnp.array([0.4]), jnp.array([-0.8])

    def through(x_r):
        return jnp.exp(
            jax.vmap(lambda y: path.log_noising(x_t, t, y, r) + path.log_noising(y, r, x_1, 1.0))(x_r)
        )

    direct = jax.jit(lambda: jnp.exp(path.log_noising(x_t, t, x_1, 1.0)))()
    np.testing.assert_allclose(grid_integral(through, 40.0), direct, rtol=1e-8)


@every_flat
@pytest.mark.parametrize("t, r", TIMES)
def test_log_normalizer_by_quadrature(x64, path, t, r):
    x_t = jnp.array([0.7])
    total = grid_integral(lambda x_r: jnp.exp(path.log_noising(x_t, t, x_r, r)), 60.0)
    np.testing.assert_allclose(path.log_normalizer(x_t, t, r), jnp.log(total), atol=1e-7)


@every_kind
def test_noising_kernel_over_its_normalizer_is_the_proposal(x64, path):
    """log p_{t|r} - log Z is a normal in x_r about x_t / a."""
    x_t, t, r = state(path, 0, 4), 0.4, 0.8
    x_r = path.propose(make_key(1), x_t, t, r, 3)
    a, _, v = path.kernel(t, r)
    log_q = path.normal_log_density(x_r, (x_t / a)[None], v / a**2)
    came = path.log_noising(x_t, t, x_r, r) - path.log_normalizer(x_t, t, r)[None]
    np.testing.assert_allclose(came, log_q, rtol=1e-9, atol=1e-9)


@every_flat
def test_moments_of_samples(path):
    """z-tests on mean and variance of propose, noise, sample and sample_prior."""
    count, t, r = 20000, 0.35, 0.8
    x = jnp.array([1.0, -2.0, 0.5])
    a, _, v = path.kernel(t, r)
    one = path.kernel(t, 1.0)
    many = jnp.broadcast_to(x, (count, 3))
    keys = jax.random.split(make_key(3), 4)
    cases = [
        (path.propose(keys[0], x, t, r, count), x / a, v / a**2),
        (path.noise(keys[1], many, r, t), a * x, v),
        (path.sample(keys[2], many, t), one.scale * x, one.variance),
        (path.sample_prior(keys[3], (count, 3)), 0.0, path.prior_variance),
    ]
    for samples, mean, variance in cases:
        assert samples.shape == (count, 3)
        z_mean = (samples.mean(0) - mean) / jnp.sqrt(variance / count)
        z_var = (samples.var(0) / variance - 1) / jnp.sqrt(2 / count)
        assert jnp.all(jnp.abs(z_mean) < 4), z_mean
        assert jnp.all(jnp.abs(z_var) < 4), z_var


@every_kind
def test_nothing_is_added_where_the_times_agree(path):
    x = state(path, 0, 4)
    np.testing.assert_array_equal(path.sample(make_key(0), x, 1.0), x)
    np.testing.assert_array_equal(path.noise(make_key(0), x, 0.5, 0.5), x)


@every_flat
@pytest.mark.parametrize("t, r", TIMES)
def test_conditional_velocity_satisfies_the_continuity_equation(x64, path, t, r):
    """d/dt p = -d/dx (u p) for p_{t|r}(. | x_r), in one dimension."""
    x_r = jnp.array([0.6])
    a, _, v = path.kernel(t, r)
    x = (a * x_r)[None] + jnp.sqrt(v) * jnp.linspace(-3, 3, 13)[:, None]

    def density(y, s):
        return jnp.exp(path.log_noising(y, s, x_r, r))

    def flux(y, s):
        return path.conditional_generator(y, s, x_r, r)[0] * density(y, s)

    in_time = jax.jit(jax.vmap(lambda y: jax.jacfwd(density, 1)(y, t)))(x)
    in_space = jax.jit(jax.vmap(lambda y: jax.grad(flux)(y, t)))(x)[:, 0]
    scale = jnp.max(jnp.abs(in_time))
    np.testing.assert_allclose(in_time / scale, -in_space / scale, atol=1e-9)


@every_kind
def test_conditional_score_is_the_gradient(x64, path):
    x_t, x_r = state(path, 0, 4), state(path, 1, 3, 4)
    t, r = jnp.array([0.1, 0.3, 0.5, 0.9]), jnp.array([0.2, 1.0, 0.7, 0.99])
    score = path.conditional_score(x_t, t, x_r, r)

    def one(x, t, y, r):
        return jax.grad(path.log_noising)(x, t, y, r)

    expected = jax.jit(jax.vmap(jax.vmap(one), in_axes=(None, None, 0, None)))(x_t, t, x_r, r)
    np.testing.assert_allclose(score, path.project(expected), rtol=1e-9, atol=1e-9)
    velocity = path.conditional_generator(x_t, t, x_r, r)
    assert velocity.shape == score.shape == x_r.shape


@every_kind
def test_velocity_and_score(x64, path):
    """At r = 1 the conversion maps the conditional score to the conditional velocity, and back."""
    x_t, x_1, t = state(path, 0, 4), state(path, 1, 3, 4), jnp.array([0.1, 0.3, 0.6, 0.999])
    score = path.conditional_score(x_t, t, x_1, 1.0)
    velocity = path.conditional_generator(x_t, t, x_1, 1.0)
    np.testing.assert_allclose(path.velocity_from_score(score, x_t, t), velocity, rtol=1e-7)
    back = path.score_from_velocity(velocity, x_t, t)
    np.testing.assert_allclose(back, score, rtol=1e-6)


@every_kind
def test_local_generator_of_a_normal_target(x64, path):
    """phi_t of N(0, s^2): the velocity is that of the proposal-weighted conditional ones."""
    s2, t = 0.3, jnp.array([[0.2, 0.5, 0.8]] * 2)
    x = state(path, 0, 2, 3)

    def phi(x, t):
        assert x.shape == (*t.shape, 6) and t.ndim == 1
        return -0.5 * jnp.sum(x**2, -1) / (path.alpha(t) ** 2 * s2 + path.variance(t))

    came = path.local_generator(phi, x, t)
    # x_1 | x_t is normal; the marginal velocity is the conditional one at its mean.
    gain = path.alpha(t) * s2 / (path.alpha(t) ** 2 * s2 + path.variance(t))
    expected = path.conditional_generator(x, t, gain[..., None] * x, 1.0)
    np.testing.assert_allclose(came, expected, rtol=1e-8)
    one = path.local_generator(phi, x[0, 1], 0.5)
    np.testing.assert_allclose(one, came[0, 1], rtol=1e-12)


@every_path
def test_prior_density_integrates_to_one(x64, path):
    width = 9 * path.prior_variance**0.5
    total = grid_integral(lambda x: jnp.exp(path.prior_log_density(x)), width)
    np.testing.assert_allclose(total, 1.0, rtol=1e-9)


@every_path
def test_times(path):
    for num_steps in (1, 7, 100):
        times = path.times(num_steps)
        assert times.shape == (num_steps + 1,) and times.dtype == jnp.result_type(float)
        assert times[0] == jnp.float32(path.t_min) and times[-1] == 1
        assert jnp.all(jnp.diff(times) > 0)
    assert jax.jit(lambda: path.times(7))().shape == (8,)
    if not isinstance(path, LinearPath):
        with jax.enable_x64(True):
            times = path.times(50)
            noise = path.variance(times) / path.alpha(times) ** 2 + path.length_scale**2
            steps = np.diff(np.log(noise))
        np.testing.assert_allclose(steps, steps[0], rtol=1e-6)


def test_times_that_rounding_would_merge():
    with pytest.raises(ValueError, match="larger length_scale"):
        VarianceExplodingPath(0.1, 10.0, length_scale=1e-6).times(200)


@every_centred
def test_centred_states_and_samples(path):
    def off_centre(x):
        return float(jnp.max(jnp.abs(x.reshape(*x.shape[:-1], 3, 2).sum(-2))))

    x_0 = path.sample_prior(make_key(0), (50, 6))
    x_1 = path.standard_normal(make_key(1), (50, 6))
    scale = float(path.prior_variance**0.5) + 1
    x_t = path.sample(make_key(2), x_1, 0.4)
    x_r = path.propose(make_key(3), x_t, 0.4, 0.8, 7)
    u = path.conditional_generator(x_t, 0.4, x_r, 0.8)
    local = path.local_generator(lambda x, t: -jnp.sum((x - 1) ** 4, -1), x_t, 0.4)
    for x in (x_0, x_1, x_t, x_r, path.noise(make_key(4), x_t, 0.4, 0.1), u):
        assert off_centre(x) < 1e-5 * scale
    assert off_centre(local) < 1e-5 * float(jnp.max(jnp.abs(local)))
    assert x_r.shape == (7, 50, 6)
    assert jnp.all(path.contains(x_0)) and not path.contains(x_0[0] + 0.1)
    assert not path.contains(x_0[0].at[0].set(jnp.nan))


@every_centred
def test_centred_densities_in_a_reduced_basis(x64, path):
    """In orthonormal coordinates z of the subspace they are the flat path's with (N - 1) d axes."""
    helmert = np.array([[1, -1, 0], [1, 1, -2]]) / np.sqrt([[2], [6]])
    basis = jnp.asarray(np.kron(helmert, np.eye(2)))
    z_t, z_r = jax.random.normal(make_key(0), (2, 5, 4))
    x_t, x_r, t, r = z_t @ basis, z_r @ basis, 0.4, 0.8
    flat = path.path
    np.testing.assert_allclose(path.project(x_t), x_t, atol=1e-14)
    for came, expected in (
        (path.log_noising(x_t, t, x_r, r), flat.log_noising(z_t, t, z_r, r)),
        (path.prior_log_density(x_t), flat.prior_log_density(z_t)),
        (path.log_normalizer(x_t, t, r), flat.log_normalizer(z_t, t, r)),
        (
            path.conditional_generator(x_t, t, x_r, r),
            flat.conditional_generator(z_t, t, z_r, r) @ basis,
        ),
    ):
        np.testing.assert_allclose(came, expected, rtol=1e-9, atol=1e-12)
    # One reduced dimension: two particles on a line.
    small = CenteredPath(flat, 2, 1)
    line = jnp.array([[1.0, -1.0]]) / jnp.sqrt(2)
    point = jnp.array([0.3]) @ line
    total = grid_integral(lambda z: jnp.exp(small.log_noising(point, t, z @ line, r)), 60.0)
    np.testing.assert_allclose(small.log_normalizer(point, t, r), jnp.log(total), atol=1e-7)
    noised = grid_integral(
        lambda z: jnp.exp(small.log_noising(z @ line, t, jnp.broadcast_to(point, (20001, 2)), r)),
        60.0,
    )
    np.testing.assert_allclose(noised, 1.0, rtol=1e-8)


def edge_times(path):
    first = path.t_min
    t = [first, first + 1e-4, 0.5, 0.5, 0.9998, 0.9999, 0.9999, first]
    r = [1.0, first + 2e-4, 0.5001, 1.0, 0.9999, 1.0, 0.99995, 0.001 + first]
    return jnp.array(t), jnp.array(r)


@every_kind
def test_values_and_gradients_are_finite_at_the_edges(path):
    t, r = edge_times(path)
    key = make_key(0)

    def everything(x_t, x_r, t, r):
        score = path.conditional_score(x_t, t, x_r, r)
        velocity = path.conditional_generator(x_t, t, x_r, r)
        values = [
            velocity,
            path.log_noising(x_t, t, x_r, r),
            path.log_normalizer(x_t, t, r),
            path.propose(key, x_t, t, r, 2),
            path.noise(key, x_t, r, t),
            path.velocity_from_score(score, x_t, t),
            path.score_from_velocity(velocity, x_t, t),
            path.local_generator(lambda x, t: -jnp.sum(x**2, -1), x_t, t),
            path.prior_log_density(x_t),
        ]
        # Example by example, so that what is not finite says at which times it is not.
        return sum(map(per_example, values))

    x_t = path.sample_prior(key, (8, 6))
    x_r = path.propose(key, x_t, t, r, 3)

    @jax.jit
    def value_and_gradients(*arguments):
        value, pull_back = jax.vjp(everything, *arguments)
        return value, *pull_back(jnp.ones_like(value))

    for leaf in value_and_gradients(x_t, x_r, t, r):
        assert jnp.all(jnp.isfinite(leaf)), leaf


def per_example(value):
    """[K, 8, 6], [K, 8], [8, 6] or [8] summed to [8]."""
    value = value.sum(-1) if value.shape[-1] == 6 else value
    return value.reshape(-1, 8).sum(0)


@every_flat
def test_float32_agrees_with_float64(path):
    # Times that float32 holds exactly, so that only the arithmetic differs.
    t, r = np.array([0.125, 0.5, 0.75, 0.984375]), np.array([0.25, 1.0, 0.875, 1.0])
    with jax.enable_x64(True):
        x_t = jax.random.normal(make_key(0), (4, 6)) * path.prior_variance**0.5
        x_r = path.propose(make_key(1), x_t, t, r, 3)
        x_t, x_r = (np.asarray(np.asarray(x, np.float32), np.float64) for x in (x_t, x_r))
        expected = [np.asarray(v) for v in _closed_forms(path, x_t, t, x_r, r)]
    came = _closed_forms(path, *(np.asarray(v, np.float32) for v in (x_t, t, x_r, r)))
    for value, exact in zip(came, expected, strict=True):
        assert value.dtype == jnp.float32
        # x_t - a x_r cancels: its rounding error over sqrt(v) is what the tolerance is for.
        np.testing.assert_allclose(value, exact, rtol=1e-3, atol=1e-3 * np.abs(exact).max())


def _closed_forms(path, x_t, t, x_r, r):
    return (
        path.log_normalizer(x_t, t, r),
        path.log_noising(x_t, t, x_r, r),
        path.conditional_generator(x_t, t, x_r, r),
        path.conditional_score(x_t, t, x_r, r),
    )


@flat_and_centred
def test_dtype_of_the_state_is_kept(x64, path):
    key = make_key(0)
    x = state(path, 0, 4).astype(jnp.float32)
    velocity = path.conditional_generator(x, 0.4, x, 0.8)
    score = path.score_from_velocity(velocity, x, 0.4)
    for out in (
        velocity,
        score,
        path.propose(key, x, 0.4, 0.8, 3),
        path.sample(key, x, 0.4),
        path.log_noising(x, 0.4, x, 0.8),
        path.log_normalizer(x, 0.4, 0.8),
        path.prior_log_density(x),
        path.conditional_score(x, 0.4, x, 0.8),
        path.local_generator(lambda x, t: -jnp.sum(x**2, -1), x, 0.4),
    ):
        assert out.dtype == jnp.float32


@flat_and_centred
def test_jit_and_vmap_agree_with_eager(path):
    key = make_key(5)
    x_t, x_r = state(path, 0, 4), state(path, 1, 3, 4)
    t, r = jnp.array([0.1, 0.3, 0.5, 0.7]), jnp.array([0.4, 1.0, 0.6, 0.9])

    def everything(x_t, t, x_r, r):
        return (
            path.log_noising(x_t, t, x_r, r),
            path.conditional_generator(x_t, t, x_r, r),
            path.conditional_score(x_t, t, x_r, r),
        )

    def near(came, expected):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), came, expected)

    eager = everything(x_t, t, x_r, r)
    near(jax.jit(everything)(x_t, t, x_r, r), eager)
    mapped = jax.vmap(everything, in_axes=(0, 0, 1, 0), out_axes=1)
    near(jax.jit(mapped)(x_t, t, x_r, r), eager)
    proposed = path.propose(key, x_t, t, r, 3)
    near(jax.jit(path.propose, static_argnums=4)(key, x_t, t, r, 3), proposed)
    # A scalar time is the same as that time for everyone; no batch axis the same as one of size 1.
    one = path.log_noising(x_t[0], 0.1, x_r[:, 0], 0.4)
    assert one.shape == (3,)
    near(one, eager[0][:, 0])
    assert path.propose(key, x_t[0], 0.1, 0.4, 3).shape == (3, 6)
    assert path.sample(key, x_t[0], 0.1).shape == (6,)
    assert path.contains(x_t[0]).shape == () and path.contains(x_r).shape == (3, 4)


@every_path
def test_hash_equality_and_one_trace(path):
    twin = dataclasses.replace(path)
    assert twin == path and hash(twin) == hash(path) and twin is not path
    traces = []

    @jax.jit
    def density(x, t):
        traces.append(path)
        return path.log_noising(x, t, x, 1.0)

    def static(path, x):
        traces.append(path)
        return path.prior_log_density(x)

    jitted = jax.jit(static, static_argnums=0)
    for seed in range(3):
        x = jax.random.normal(make_key(seed), (2, 3))
        density(x, 0.1 * seed + 0.1)
        jitted(dataclasses.replace(path), x)
    assert len(traces) == 2


def test_equal_values_of_other_types_make_equal_paths():
    assert LinearPath(2) == LinearPath(np.float64(2.0)) != LinearPath()
    assert hash(CenteredPath(LinearPath(), 3, np.int64(2))) == hash(CenteredPath(LinearPath(1), 3, 2))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: LinearPath(0.0), ValueError, "sigma must be finite and positive, got 0.0"),
        (lambda: LinearPath("1"), TypeError, "sigma must be a number"),
        (lambda: LinearPath(t_min=0.0), ValueError, "t_min must be finite and positive"),
        (lambda: LinearPath(t_min=1.0), ValueError, "t_min must be below 1, got 1.0"),
        (
            lambda: VarianceExplodingPath(3.0, 2.0),
            ValueError,
            "sigma_min = 3.0 and sigma_max = 2.0",
        ),
        (lambda: VarianceExplodingPath(1.0, np.inf), ValueError, "sigma_max must be finite"),
        (lambda: VarianceExplodingPath(1, 2, length_scale=-1), ValueError, "length_scale"),
        (lambda: VariancePreservingPath(2.0, 1.0), ValueError, "beta_min = 2.0 and beta_max = 1.0"),
        (lambda: VariancePreservingPath(0.0), ValueError, "beta_min must be finite and positive"),
        (lambda: CenteredPath(LinearPath(), 1, 2), ValueError, "num_particles must be at least 2"),
        (lambda: CenteredPath(LinearPath(), 3, 0), ValueError, "spatial_dim must be at least 1"),
        (lambda: CenteredPath(LinearPath(), 3.0, 2), TypeError, "num_particles must be an int"),
        (lambda: CenteredPath(CENTERED[0], 3, 2), TypeError, "not yet centred"),
        (lambda: CenteredPath("linear", 3, 2), TypeError, "path must be a Gaussian path"),
    ],
)
def test_errors_of_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


X = np.zeros((2, 7), np.float32)
KEY = make_key(0)
ERRORS = [
    (lambda p: p.batch_shape(np.zeros((2, 7), int)), TypeError, "x must be floating point"),
    (lambda p: p.batch_shape(np.float32(1.0), "x_1"), ValueError, "x_1 must have at least 1 axes"),
    (
        lambda p: p.log_noising(X, 0.1, X[:, :5], 0.5),
        ValueError,
        "x_t has trailing size 7, x_r has 5",
    ),
    (lambda p: p.conditional_generator(X, 0.1, X[0], 0.5), ValueError, r"x_r must end with x_t's"),
    (lambda p: p.conditional_score(X, 0.1, X[:1], 0.5), ValueError, r"\(2,\), got \(1,\)"),
    (lambda p: p.velocity_from_score(X[:, :5], X, 0.5), ValueError, "x has .* 7, score has 5"),
    (lambda p: p.score_from_velocity(X[:, :5], X, 0.5), ValueError, "x has .* 7, velocity has 5"),
    (lambda p: p.log_noising(X, 0.5, X, 0.5), ValueError, "t must be below r"),
    (lambda p: p.conditional_generator(X, 0.6, X, 0.5), ValueError, "t must be below r"),
    (lambda p: p.propose(KEY, X, 0.6, 0.5, 2), ValueError, "t must be below r"),
    (lambda p: p.log_normalizer(X, 0.6, 0.5), ValueError, "t must be below r"),
    (lambda p: p.noise(KEY, X, 0.5, 0.6), ValueError, "t must not be above r, got t = 0.6"),
    (lambda p: p.sample(KEY, X, 1.5), ValueError, r"t must lie in \[0, 1\], got 1.5"),
    (lambda p: p.sample(KEY, X, np.ones(3) / 2), ValueError, r"t must be a scalar or have shape"),
    (lambda p: p.propose(KEY, X, 0.2, 0.5, 0), ValueError, "num_samples must be at least 1, got 0"),
    (lambda p: p.propose(KEY, X, 0.2, 0.5, 2.0), TypeError, "num_samples must be an int"),
    (lambda p: p.sample(jax.random.PRNGKey(0), X, 0.5), TypeError, "key must be a typed PRNG key"),
    (lambda p: p.sample(jax.random.split(KEY), X, 0.5), ValueError, "key must be one key"),
    (lambda p: p.sample_prior(KEY, ()), ValueError, "shape must have at least 1 axis"),
    (lambda p: p.sample_prior(KEY, (2, -1)), ValueError, "every size in shape must be at least 0"),
    (lambda p: p.times(0), ValueError, "num_steps must be at least 1, got 0"),
    (
        lambda p: p.local_generator(lambda x, t: x, X, 0.5),
        ValueError,
        r"log_density must return shape \(2,\), got \(2, 7\)",
    ),
]


@every_flat
@pytest.mark.parametrize("call, error, message", ERRORS)
def test_errors_of_methods(path, call, error, message):
    with pytest.raises(error, match=message):
        call(path)


def test_errors_below_t_min_and_of_centred_sizes():
    linear = LinearPath(t_min=0.01)
    at_first = float(np.float32(0.01))
    for t in (0.01, at_first, linear.times(3)[0]):
        linear.propose(KEY, X, t, 0.5, 2)
    for call in (
        lambda: linear.propose(KEY, X, 0.0, 0.5, 2),
        lambda: linear.log_normalizer(X, np.array([0.5, 0.001]), 1.0),
        lambda: linear.velocity_from_score(X, X, 0.0),
        lambda: linear.local_generator(lambda x, t: x.sum(-1), X, 0.0),
    ):
        with pytest.raises(ValueError, match="t must be at least t_min = 0.01, got 0.0"):
            call()
    # The kernels themselves have no trouble there.
    assert jnp.all(jnp.isfinite(linear.sample(KEY, X, 0.0)))
    assert jnp.all(jnp.isfinite(linear.conditional_generator(X, 0.0, X, 0.5)))
    centred = CENTERED[0]
    with pytest.raises(ValueError, match="x_1 has trailing size 7, .* 3 particles .* 6 in all"):
        centred.sample(KEY, X, 0.5)
    with pytest.raises(ValueError, match="shape has trailing size 7"):
        centred.sample_prior(KEY, (2, 7))
