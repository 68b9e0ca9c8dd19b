"""Curvature: products and spectra against closed forms, exact counts, the errors of the estimated ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energymatch import curvature

KEY = jax.random.key(0)
EXACT = ("dense", "lanczos")


def rotation(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def symmetric(eigenvalues, seed=0):
    q = rotation(len(eigenvalues), seed)
    return ((q * eigenvalues) @ q.T).astype(np.float32)


def quadratic(matrix):
    """V = x A x / 2 of the flattened event; its Hessian is A everywhere."""

    def potential(x):
        x = x.reshape(x.shape[0], -1)
        return 0.5 * jnp.sum(x * jnp.dot(x, matrix, precision="highest"), axis=-1)

    return potential


def quartic(a):
    """V = sum x^4/12 + cos(a . x): H = diag(x^2) - cos(a . x) a a^T."""

    def potential(x):
        x = x.reshape(x.shape[0], -1)
        return jnp.sum(x**4, axis=-1) / 12 + jnp.cos(jnp.sum(a * x, axis=-1))

    return potential


def quartic_hessian(a, x):
    x = np.asarray(x, float).reshape(len(x), -1)
    return np.stack([np.diag(row**2) - np.cos(row @ a) * np.outer(a, a) for row in x])


@pytest.mark.parametrize("event", [(6,), (2, 3, 1)])
def test_product_and_spectrum_are_those_of_the_closed_form(x64, event):
    rng = np.random.default_rng(0)
    a = rng.normal(size=6)
    x, v = rng.normal(size=(2, 5, *event))
    potential, hessian = quartic(a[None]), quartic_hessian(a, x)
    product = jax.jit(lambda x, v: curvature.hessian_vector_product(potential, x, v))(x, v)
    expected = np.einsum("bij,bj->bi", hessian, v.reshape(5, 6)).reshape(x.shape)
    np.testing.assert_allclose(product, expected, rtol=1e-12, atol=1e-12)
    expected = np.linalg.eigvalsh(hessian)
    for chunk_size in (None, 4):
        found = curvature.spectrum(potential, x, chunk_size=chunk_size)
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)
    out = curvature.lanczos(KEY, potential, x, 6)
    diagonals = zip(np.asarray(out.diagonal), np.asarray(out.off_diagonal))
    whole = np.stack([np.diag(d) + np.diag(o, 1) + np.diag(o, -1) for d, o in diagonals])
    np.testing.assert_allclose(np.linalg.eigvalsh(whole), expected, rtol=1e-11, atol=1e-11)
    assert out.basis.shape == (5, 6, *event)


def test_product_of_one_number_an_event():
    x = jnp.array([0.5, -1.0, 2.0])
    product = curvature.hessian_vector_product(lambda x: x**4, x, jnp.full(3, 2.0))
    np.testing.assert_allclose(product, 24 * x**2, rtol=1e-6)
    np.testing.assert_allclose(curvature.spectrum(lambda x: x**4, x)[:, 0], 12 * x**2, rtol=1e-6)


def test_spectrum_in_float32_is_right_to_rounding_of_the_largest():
    eigenvalues = np.r_[-1e4, -30.0, 0.0, 0.0, 1e-2, 2.0, 2.0, 500.0, 3e3, 1e4]
    x = np.random.default_rng(1).normal(size=(3, 10)).astype(np.float32)
    found = jax.jit(lambda x: curvature.spectrum(quadratic(symmetric(eigenvalues)), x))(x)
    # Rounding of the matrix itself to float32 is 6e-8 an entry; 10 of them, and those of the solver.
    np.testing.assert_allclose(found, np.tile(eigenvalues, (3, 1)), atol=2e-6 * 1e4)


@pytest.mark.parametrize("method", EXACT)
def test_flat_directions_of_quadratics_are_counted(method):
    rng = np.random.default_rng(2)
    count = jax.jit(lambda a, x: curvature.eigenvalue_count(quadratic(a), x, 3.0, method=method, key=KEY))
    for k in range(1, 10):
        # Steep directions of both signs from 4 to 10^4, flat ones below 2.
        steep = np.exp(rng.uniform(np.log(4), np.log(1e4), 10 - k)) * rng.choice([-1, 1], 10 - k)
        eigenvalues = np.r_[rng.uniform(-2, 2, k), steep]
        out = count(symmetric(eigenvalues, seed=k), rng.normal(size=(4, 10)).astype(np.float32))
        np.testing.assert_array_equal(out.count, np.full(4, k))
        assert np.all(out.valid) and not np.any(out.standard_error) and not np.any(out.undecided)


@pytest.mark.parametrize("method", EXACT)
def test_dimension_of_spheres(method):
    """V = 40 (|y| - 1)^2 + 30 |z|^2 with (y, z) a rotation of x: on |y| = 1, z = 0 a sphere of dim y - 1."""
    q = jnp.asarray(rotation(10), jnp.float32)
    rng = np.random.default_rng(3)

    @jax.jit
    def dimension(mask, x):
        def potential(x):
            y = jnp.dot(x, q, precision="highest")
            radius = jnp.sqrt(jnp.sum(mask * y**2, axis=-1))
            return 40 * (radius - 1) ** 2 + 30 * jnp.sum((1 - mask) * y**2, axis=-1)

        return curvature.local_intrinsic_dimension(
            potential, x, threshold=1.0, method=method, key=KEY, chunk_size=3
        )

    for k in range(1, 10):
        y = rng.normal(size=(7, 10)) * (np.arange(10) <= k)
        x = (y / np.linalg.norm(y, axis=-1, keepdims=True)) @ np.asarray(q).T
        found = dimension(jnp.asarray(np.arange(10) <= k, jnp.float32)[None], jnp.asarray(x, jnp.float32))
        np.testing.assert_array_equal(found, np.full(7, k))


def reflected(eigenvalues, num=4, seed=0):
    """V = sum lambda (R x)^2 / 2, R a product of reflections: a rotation without a matrix."""
    mirrors = np.random.default_rng(seed).normal(size=(num, 1, len(eigenvalues)))
    mirrors = jnp.asarray(mirrors / np.linalg.norm(mirrors, axis=-1, keepdims=True), jnp.float32)
    values = jnp.asarray(eigenvalues, jnp.float32)[None]

    def potential(x):
        x = x.reshape(x.shape[0], -1)
        for m in mirrors:
            x = x - 2 * jnp.sum(x * m, axis=-1, keepdims=True) * m
        return 0.5 * jnp.sum(values * x**2, axis=-1)

    return potential


def test_32_flat_directions_of_an_image_of_784_pixels():
    rng = np.random.default_rng(4)
    steep = np.exp(rng.uniform(np.log(6), np.log(600), 752)) * np.where(rng.random(752) < 0.1, -1, 1)
    steep[:40] = 50.0  # a multiple eigenvalue among the steep ones, too
    potential = reflected(np.r_[np.zeros(32), steep])
    x = rng.normal(size=(1, 28, 28, 1)).astype(np.float32)
    count = jax.jit(lambda x, key: curvature.eigenvalue_count(potential, x, 3.0, method="lanczos", key=key))
    out = count(x, KEY)
    assert float(out.count[0]) == 32 and bool(out.valid[0])


def test_multiple_eigenvalues_restart_the_krylov_space():
    eigenvalues = np.r_[np.zeros(4), np.full(6, 7.0)]
    matrix = symmetric(eigenvalues)
    x = np.random.default_rng(5).normal(size=(3, 10)).astype(np.float32)
    start = rotation(10)[:, 2] * np.ones((3, 1))  # an eigenvector: its Krylov space has one dimension
    for given in (None, start.astype(np.float32)):
        out = curvature.lanczos(KEY, quadratic(matrix), x, 10, start=given)
        for b in range(3):
            t = np.diag(out.diagonal[b]) + np.diag(out.off_diagonal[b], 1) + np.diag(out.off_diagonal[b], -1)
            np.testing.assert_allclose(np.linalg.eigvalsh(t), eigenvalues, atol=2e-5)
            basis = np.asarray(out.basis[b], float)
            np.testing.assert_allclose(basis @ basis.T, np.eye(10), atol=2e-6)
            np.testing.assert_allclose(basis @ matrix @ basis.T, t, atol=2e-5)
        # Two distinct eigenvalues: no chain of directions is longer than two.
        exhausted = np.asarray(out.off_diagonal) <= 1e-4  # rounding of A splits its eigenvalues by 1e-6
        assert np.all(exhausted[:, :-1] | exhausted[:, 1:])
    np.testing.assert_allclose(np.abs(np.sum(out.basis[:, 0] * start, axis=-1)), 1.0, atol=1e-6)


@pytest.mark.parametrize("method", curvature.METHODS)
def test_a_flat_potential_and_a_zero_hessian(method):
    count = jax.jit(
        lambda x: curvature.eigenvalue_count(lambda x: jnp.sum(x, -1), x, 0.1, method=method, key=KEY)
    )
    out = count(jnp.ones((2, 5)))
    np.testing.assert_allclose(out.count, 5, rtol=1e-6)
    assert np.all(out.valid)


def test_steps_short_of_the_space():
    """m steps from a start with m distinct eigenvalues are a complete Krylov space: exact Ritz values."""
    eigenvalues = np.r_[np.full(5, -2.0), np.full(10, 1.0), np.full(15, 9.0)]
    x = jnp.zeros((2, 30))
    out = curvature.lanczos(KEY, quadratic(symmetric(eigenvalues)), x, 3)
    assert np.all(out.residual < 1e-4)
    t = jax.vmap(lambda d, o: jnp.diag(d) + jnp.diag(o, 1) + jnp.diag(o, -1))(out.diagonal, out.off_diagonal)
    np.testing.assert_allclose(np.linalg.eigvalsh(t), [[-2, 1, 9]] * 2, atol=1e-4)
    assert np.all(curvature.lanczos(KEY, quadratic(symmetric(eigenvalues)), x, 2).residual > 0.1)


def test_quadrature_is_unbiased_and_knows_its_error():
    """64 estimates of 8 probes each, of k = 12 in 40 dimensions, resolved by 40 steps.

    The weight of a random unit vector on k of D dimensions is Beta(k/2, (D - k)/2): D times it has mean k
    and variance 2 k (D - k) / (D + 2) = 16.
    """
    k, size, probes, batch = 12, 40, 8, 64
    eigenvalues = np.r_[np.linspace(-0.5, 0.5, k), np.linspace(2.0, 60.0, size - k)]
    potential, x = quadratic(symmetric(eigenvalues)), jnp.zeros((batch, size))
    out = jax.jit(
        lambda x: curvature.eigenvalue_count(
            potential, x, 1.0, method="quadrature", key=KEY, num_steps=size, num_probes=probes
        )
    )(x)
    variance = 2 * k * (size - k) / (size + 2)
    count, error = np.asarray(out.count, float), np.asarray(out.standard_error, float)
    assert abs(count.mean() - k) < 4 * math.sqrt(variance / (batch * probes))
    # Relative standard error of a variance from n degrees of freedom: sqrt(2 / n).
    assert abs(count.var(ddof=1) / (variance / probes) - 1) < 4 * math.sqrt(2 / (batch - 1))
    pooled = np.mean(error**2) / (variance / probes)
    assert abs(pooled - 1) < 4 * math.sqrt(2 / (batch * (probes - 1)))
    np.testing.assert_allclose(out.undecided, 0.0, atol=0.5)


def test_quadrature_needs_few_steps_at_the_end_of_the_spectrum_and_says_when_it_had_too_few():
    k, size = 20, 100
    edge = np.r_[np.zeros(k), np.linspace(50.0, 60.0, size - k)]
    inside = np.r_[np.zeros(k), np.linspace(2.0, 60.0, 40), np.linspace(-60.0, -2.0, 40)]
    x = jnp.zeros((8, size))

    @jax.jit
    def run(matrix):
        return curvature.eigenvalue_count(
            quadratic(matrix), x, 1.0, method="quadrature", key=KEY, num_steps=8, num_probes=16
        )

    out = run(symmetric(edge))
    z = (out.count - k) / out.standard_error
    assert np.all(np.abs(z) < 4.5) and np.all(out.undecided < 0.01)  # t of 15 degrees of freedom, 8 of them
    out = run(symmetric(inside))
    assert np.all(out.undecided > np.abs(out.count - k) - 4 * out.standard_error)
    assert np.all(out.undecided > 5)


def test_a_curvature_that_is_no_number_stays_with_its_example():
    """log x1 has no value at x1 < 0; |x|^1.5 at 0 has a value and a gradient, but no curvature."""
    x = jnp.array([[1.0, 0.5], [-1.0, 0.5], [1.0, 0.0], [2.0, 0.5]])

    def potential(x):
        return -jnp.log(x[:, 0]) + jnp.abs(x[:, 1]) ** 1.5

    for method in curvature.METHODS:
        count = jax.jit(
            lambda x, m=method: curvature.eigenvalue_count(
                potential, x, 0.5, method=m, key=KEY, num_probes=200
            )
        )
        out = count(x)
        np.testing.assert_array_equal(out.valid, [True, False, False, True])
        np.testing.assert_array_equal(np.isnan(out.count), [False, True, True, False])
        np.testing.assert_array_equal(np.isnan(out.standard_error), [False, True, True, False])
        # Curvature 1/x1^2 and .75/sqrt(x2): (1, 1.06), (.25, 1.06).
        expected = [0.0, 1.0]
        np.testing.assert_allclose(
            out.count[np.array([0, 3])], expected, atol=4 * float(out.standard_error[3])
        )
    found = curvature.local_intrinsic_dimension(potential, x, threshold=0.5, chunk_size=2)
    np.testing.assert_array_equal(found, [0, np.nan, np.nan, 1])
    spectrum = curvature.spectrum(potential, x)
    np.testing.assert_array_equal(np.isnan(spectrum).all(axis=1), [False, True, True, False])
    np.testing.assert_allclose(spectrum[0], [1.0, 0.75 / math.sqrt(0.5)], rtol=1e-5)


@pytest.mark.parametrize("method", curvature.METHODS)
def test_chunks_change_nothing_and_one_trace_serves_all_calls(method):
    traces = []
    a = np.random.default_rng(6).normal(size=(1, 6)).astype(np.float32)

    @jax.jit
    def dimension(x, key, threshold):
        traces.append(x.shape)
        return curvature.local_intrinsic_dimension(
            quartic(a), x, threshold=threshold, method=method, key=key, num_probes=4, chunk_size=4
        )

    x = np.random.default_rng(7).normal(size=(10, 2, 3)).astype(np.float32)
    found = dimension(x, KEY, 0.5)
    whole = curvature.eigenvalue_count(quartic(a), x, 0.5, method=method, key=KEY, num_probes=4)
    np.testing.assert_allclose(found, whole.count, rtol=1e-4, atol=1e-4)
    if method != "quadrature":
        exact = (np.abs(np.linalg.eigvalsh(quartic_hessian(a[0], x))) < 0.5).sum(1)
        np.testing.assert_array_equal(found, exact)
        assert len(set(exact)) > 1
    assert np.all(dimension(x, jax.random.key(1), 1e6) >= 5.99)
    assert len(traces) == 1


@pytest.mark.parametrize("method", curvature.METHODS)
def test_eight_devices_give_the_numbers_of_one(mesh8, method):
    a = np.random.default_rng(8).normal(size=(1, 5)).astype(np.float32)
    x = np.random.default_rng(9).normal(size=(16, 5)).astype(np.float32)

    def dimension(key, x, axis_name=None):
        return curvature.local_intrinsic_dimension(
            quartic(a), x, threshold=0.5, method=method, key=key, num_probes=4, axis_name=axis_name
        )

    spec = jax.sharding.PartitionSpec("i")
    sharded = jax.shard_map(lambda x: dimension(KEY, x, "i"), mesh=mesh8, in_specs=(spec,), out_specs=spec)
    one = jax.jit(lambda x: dimension(KEY, x))(x)
    np.testing.assert_allclose(jax.jit(sharded)(x), one, rtol=1e-4, atol=1e-4)
    mapped = jax.pmap(lambda x: dimension(KEY, x, "i"), axis_name="i")(x.reshape(8, 2, 5))
    np.testing.assert_allclose(mapped.reshape(-1), one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", EXACT)
def test_vmap_over_thresholds(method):
    eigenvalues = np.r_[0.0, 0.4, -2.0, 5.0, 30.0]
    potential, x = quadratic(symmetric(eigenvalues)), jnp.ones((2, 5))
    thresholds = jnp.array([0.1, 1.0, 4.0, 50.0])
    count = jax.vmap(lambda t: curvature.eigenvalue_count(potential, x, t, method=method, key=KEY).count)
    np.testing.assert_array_equal(count(thresholds), [[n] * 2 for n in (1, 2, 3, 5)])


X = jnp.ones((2, 3))
BOWL = lambda x: 0.5 * jnp.sum(x**2, axis=-1)


def dimension(x=X, potential=BOWL, threshold=1.0, **options):
    return curvature.local_intrinsic_dimension(potential, x, threshold=threshold, **options)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: dimension(threshold=0.0), ValueError, "threshold must be finite and positive, got 0.0"),
        (lambda: dimension(threshold=jnp.ones(2)),
         ValueError, r"threshold must be a scalar, got shape \(2,\)"),
        (lambda: dimension(threshold="3"), TypeError, "3"),
        (lambda: dimension(method="slq"), ValueError, "method must be one of .*'dense'.* got 'slq'"),
        (lambda: dimension(method="lanczos"), ValueError, "key is needed for method 'lanczos', got None"),
        (lambda: dimension(method="lanczos", key=0), TypeError, "key must be a typed PRNG key"),
        (lambda: dimension(method="lanczos", key=KEY, num_steps=3),
         ValueError, "num_steps is for method 'quadrature' only, got 3 for 'lanczos'"),
        (lambda: dimension(method="quadrature", key=KEY, num_steps=4),
         ValueError, "num_steps must be at most 3, the size of an event, got 4"),
        (lambda: dimension(method="quadrature", key=KEY, num_probes=1),
         ValueError, "num_probes must be at least 2, got 1"),
        (lambda: dimension(chunk_size=0), ValueError, "chunk_size must be at least 1, got 0"),
        (lambda: dimension(x=jnp.ones((2, 3), int)), TypeError, "x must be floating point, got dtype int32"),
        (lambda: dimension(x=jnp.ones(())), ValueError, "x must have at least 1 axes"),
        (lambda: dimension(potential=lambda x: x),
         ValueError, r"potential must return shape \(2,\), got \(2, 3\)"),
        (lambda: curvature.eigenvalue_count(BOWL, X, -1.0),
         ValueError, "threshold must be finite and positive, got -1.0"),
        (lambda: curvature.spectrum(BOWL, X, chunk_size=0),
         ValueError, "chunk_size must be at least 1, got 0"),
        (lambda: curvature.spectrum(lambda x: 0.0, X), TypeError, "potential must return an array"),
        (lambda: curvature.hessian_vector_product(BOWL, X, X[0]),
         ValueError, r"v must have the shape of x, \(2, 3\), got \(3,\)"),
        (lambda: curvature.hessian_vector_product(BOWL, X, X.astype(int)),
         TypeError, "v must be floating point, got dtype int32"),
        (lambda: curvature.lanczos(KEY, BOWL, X, 4),
         ValueError, "num_steps must be at most 3, the size of an event, got 4"),
        (lambda: curvature.lanczos(KEY, BOWL, X, 0), ValueError, "num_steps must be at least 1, got 0"),
        (lambda: curvature.lanczos(KEY, BOWL, X, 2, start=X[:1]),
         ValueError, r"start must have the shape of x, \(2, 3\), got \(1, 3\)"),
        (lambda: curvature.lanczos(jax.random.split(KEY, 3), BOWL, X, 2),
         ValueError, r"key must be one key or have shape \(2,\), got shape \(3,\)"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()


def test_a_name_stands_for_its_way_to_count():
    x = jax.random.normal(KEY, (3, 4))
    potential = lambda x: jnp.sum(x**4, axis=-1)
    options = dict(num_steps=2, num_probes=5)
    by_name = curvature.eigenvalue_count(potential, x, 2.0, method="quadrature", key=KEY, **options)
    by_object = curvature.eigenvalue_count(potential, x, 2.0, method=curvature.Quadrature(2, 5), key=KEY)
    np.testing.assert_array_equal(by_name.count, by_object.count)
    with pytest.raises(ValueError, match="num_steps is for method 'quadrature' only"):
        curvature.eigenvalue_count(potential, x, 2.0, method=curvature.Quadrature(2, 5), key=KEY, num_steps=2)
