"""Measurement operators against dense matrices, SciPy's filters, and their adjoints."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from energymatch.posterior import operators

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
MASK = RNG.random((4, 6, 2)) < 0.5
MATRIX = RNG.normal(size=(3, 48))
VECTORS, IMAGES = (6,), (4, 6, 2)


def blurred(width, truncate=4.0):
    """SciPy's blur of one vector [D] or image [height, width, channels]."""

    def apply(x):
        widths = width if x.ndim == 1 else (width, width, 0)
        return scipy.ndimage.gaussian_filter(x, widths, mode="reflect", truncate=truncate)

    return apply


def block_means(x):
    if x.ndim == 1:
        return np.array([x[i : i + 2].mean() for i in range(0, len(x), 2)])
    rows, columns = (range(0, n, 2) for n in x.shape[:2])
    return np.array([[x[i : i + 2, j : j + 2].mean((0, 1)) for j in columns] for i in rows])


CASES = {
    "mask": (lambda: operators.inpainting(MASK), IMAGES, lambda x: np.diag(MASK.ravel()) @ x.ravel()),
    "mask of vectors": (lambda: operators.inpainting(MASK[0, :, 0]), VECTORS, lambda x: MASK[0, :, 0] * x),
    "matrix": (lambda: operators.linear(MATRIX), IMAGES, lambda x: MATRIX @ x.ravel()),
    "means of vectors": (lambda: operators.downsampling(2), VECTORS, block_means),
    "means of images": (lambda: operators.downsampling(2), IMAGES, block_means),
    "blur of vectors": (lambda: operators.gaussian_blur(0.8), VECTORS, blurred(0.8)),
    "blur of images": (lambda: operators.gaussian_blur(0.8), IMAGES, blurred(0.8)),
    # Its radius of 10 goes several times over the 4 rows.
    "wide blur": (lambda: operators.gaussian_blur(5.0, truncate=2.0), IMAGES, blurred(5.0, 2.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_against_dense_matrices_and_scipy(x64, case):
    make, event, reference = CASES[case]
    operator = make()
    x = RNG.normal(size=(3, *event))
    out = np.asarray(jax.jit(operator)(x))
    for got, one in zip(out, x, strict=True):
        np.testing.assert_allclose(got.ravel(), np.ravel(reference(one)), rtol=1e-12, atol=1e-12)
    # Adjoint: <A x, y> = <x, A^T y>, and A^T is the transpose of the reference's dense matrix.
    size = int(np.prod(event))
    dense = np.stack([np.ravel(reference(e.reshape(event))) for e in np.eye(size)], axis=1)
    y = RNG.normal(size=out.shape)
    (adjoint,) = jax.vjp(operator, jnp.asarray(x))[1](jnp.asarray(y))
    np.testing.assert_allclose(adjoint.reshape(3, size), y.reshape(3, -1) @ dense, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(np.sum(out * y), np.sum(x * np.asarray(adjoint)), rtol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_dtype_stays_and_ways_to_run_agree(case):
    make, event, _ = CASES[case]
    operator = make()
    x = jnp.asarray(RNG.normal(size=(4, *event)), jnp.float32)
    out = jax.jit(operator)(x)
    assert out.dtype == jnp.float32
    one_by_one = jax.jit(jax.vmap(lambda x: operator(x[None])[0]))(x)
    chex.assert_trees_all_close(one_by_one, out, rtol=1e-6, atol=1e-6)
    assert operator(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_random_projection_keeps_lengths_on_average():
    """|A x|^2/|x|^2 is chi^2 with M degrees over M: over 2,000 keys mean 1 +- sqrt(2/(M 2000))."""
    x = jnp.asarray(RNG.normal(size=(1, *IMAGES)), jnp.float32)

    @jax.jit
    @jax.vmap
    def ratio(key):
        y = operators.random_projection(key, IMAGES, 5)(x)
        assert y.shape == (1, 5)
        return jnp.sum(y**2) / jnp.sum(x**2)

    ratios = np.asarray(ratio(jax.random.split(KEY, 2000)))
    assert abs(ratios.mean() - 1) < 4 * np.sqrt(2 / 5 / 2000)
    # A sample variance of chi^2_M/M has a relative error of sqrt((2 + 12/M)/n).
    assert abs(ratios.var() / (2 / 5) - 1) < 4 * np.sqrt((2 + 12 / 5) / 2000)


def test_a_mask_may_be_traced():
    x = jnp.asarray(RNG.normal(size=(2, *IMAGES)), jnp.float32)
    out = jax.jit(lambda mask, x: operators.inpainting(mask)(x))(MASK, x)
    np.testing.assert_array_equal(out, np.where(MASK[None], x, 0))
    # What is not seen may be anything: 0 times NaN would be NaN.
    np.testing.assert_array_equal(operators.inpainting(MASK)(jnp.where(MASK[None], x, jnp.nan)), out)


X = jnp.zeros((2, *IMAGES))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: operators.inpainting(MASK * 1.0), TypeError, "mask must be boolean, got dtype float"),
        (lambda: operators.inpainting(MASK)(jnp.zeros((2, 4, 6))),
         ValueError, r"x must have event shape \(4, 6, 2\), that of the mask, got \(4, 6\)"),
        (lambda: operators.inpainting(MASK)(jnp.zeros((2, *IMAGES), int)), TypeError, "x must be floating"),
        (lambda: operators.linear(MATRIX[0]), ValueError, r"matrix must have shape \[M, D\], got shape"),
        (lambda: operators.linear(MATRIX > 0), TypeError, "matrix must be floating point, got dtype bool"),
        (lambda: operators.linear(MATRIX)(jnp.zeros((2, 5))), ValueError, "x must have events of size 48"),
        (lambda: operators.random_projection(0, IMAGES, 3), TypeError, "key must be a typed PRNG key"),
        (lambda: operators.random_projection(jax.random.split(KEY), IMAGES, 3),
         ValueError, r"key must be one key, got shape \(2,\)"),
        (lambda: operators.random_projection(KEY, 48, 3), TypeError, "event_shape must be a tuple of ints"),
        (lambda: operators.random_projection(KEY, (4, 0), 3), ValueError, "event_shape must be at least 1"),
        (lambda: operators.random_projection(KEY, IMAGES, 0), ValueError, "num_measurements must be at"),
        (lambda: operators.downsampling(2.0), TypeError, "factor must be an int, got 2.0"),
        (lambda: operators.downsampling(4)(X),
         ValueError, r"x must have spatial axes that factor = 4 divides, got \(2, 4, 6, 2\)"),
        (lambda: operators.downsampling(2)(X[0]), ValueError, r"x must be vectors \[B, D\] or images"),
        (lambda: operators.gaussian_blur(0.0), ValueError, "width must be finite and positive, got 0.0"),
        (lambda: operators.gaussian_blur(1.0, truncate=-1.0), ValueError, "truncate must be finite"),
        (lambda: operators.gaussian_blur(1.0)(X[0]), ValueError, r"x must be vectors \[B, D\] or images"),
        (lambda: operators.gaussian_blur(1.0)(np.zeros((2, 3), int)), TypeError, "x must be floating point"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
