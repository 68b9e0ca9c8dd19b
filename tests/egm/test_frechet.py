"""The Frechet distance against closed forms, SciPy's matrix square root, and the distribution of samples."""

import numpy as np
import pytest
import scipy.linalg

from egm import metrics

RANDOM = np.random.RandomState(0)


def covariance(dim, rank):
    factor = RANDOM.standard_normal((rank, dim))
    return factor.T @ factor / rank


def rotation(dim):
    return np.linalg.qr(RANDOM.standard_normal((dim, dim)))[0]


def test_diagonal_covariances():
    """sum (m_a - m_b)^2 + (s_a - s_b)^2, in any basis."""
    mean_a, mean_b = RANDOM.standard_normal((2, 6))
    s_a, s_b = RANDOM.uniform(0, 2, (2, 6))
    s_a[0] = s_b[0] = s_a[1] = 0.0
    expected = np.sum((mean_a - mean_b) ** 2 + (s_a - s_b) ** 2)
    for q in (np.eye(6), rotation(6)):
        got = metrics.frechet_distance_of_moments(
            q @ mean_a, q @ np.diag(s_a**2) @ q.T, q @ mean_b, q @ np.diag(s_b**2) @ q.T
        )
        np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("dim", [1, 5, 40])
def test_scipys_square_root(dim):
    a, b = covariance(dim, 2 * dim), covariance(dim, 3 * dim)
    m_a, m_b = RANDOM.standard_normal((2, dim))
    root = scipy.linalg.sqrtm(a @ b)
    expected = np.sum((m_a - m_b) ** 2) + np.trace(a) + np.trace(b) - 2 * np.trace(np.real(root))
    np.testing.assert_allclose(metrics.frechet_distance_of_moments(m_a, a, m_b, b), expected, rtol=1e-9)
    np.testing.assert_allclose(metrics.frechet_distance_of_moments(m_b, b, m_a, a), expected, rtol=1e-9)


def test_covariances_without_full_rank():
    """C and (1 + c)^2 C of rank 10 in 60 dimensions: c^2 tr C, with zeros for the null space.

    Square roots of eigenvalues of the product would leave 50 times 1e-8 there, more than the answer.
    """
    cov, zero, c = covariance(60, 10), np.zeros(60), 1e-4
    got = metrics.frechet_distance_of_moments(zero, cov, zero, (1 + c) ** 2 * cov)
    np.testing.assert_allclose(got, c**2 * np.trace(cov), rtol=1e-4)
    assert metrics.frechet_distance_of_moments(zero, cov, zero, cov) <= 1e-12 * np.trace(cov)
    # Two subspaces that are orthogonal to each other share nothing.
    basis = rotation(60)
    a, b = basis[:, :3] @ basis[:, :3].T, 4 * basis[:, 3:8] @ basis[:, 3:8].T
    np.testing.assert_allclose(metrics.frechet_distance_of_moments(zero, a, zero, b), 3 + 20, rtol=1e-12)
    np.testing.assert_allclose(metrics.frechet_distance_of_moments(zero, a, zero, 0 * a), 3, rtol=1e-12)
    assert metrics.frechet_distance_of_moments(zero, 0 * a, zero, 0 * a) == 0


def test_scale():
    """Quadratic in the unit of the features, however small or large it is."""
    a, b, m = covariance(7, 9), covariance(7, 9), RANDOM.standard_normal((2, 7))
    expected = metrics.frechet_distance_of_moments(m[0], a, m[1], b)
    for unit in (1e-60, 1e60):
        got = metrics.frechet_distance_of_moments(unit * m[0], unit**2 * a, unit * m[1], unit**2 * b)
        np.testing.assert_allclose(got, unit**2 * expected, rtol=1e-10)


def test_features():
    """By hand in one dimension; a shift and a mirror image of one sample in several."""
    a, b = np.array([[0.0], [2.0]]), np.array([[1.0], [7.0]])
    # Means 1 and 4, variances over N - 1 2 and 18, deviations sqrt(2) and 3 sqrt(2).
    np.testing.assert_allclose(metrics.frechet_distance(a, b), 9 + 8, rtol=1e-12)
    x = RANDOM.standard_normal((30, 50))  # fewer samples than dimensions
    shift = RANDOM.standard_normal(50)
    np.testing.assert_allclose(metrics.frechet_distance(x, x + shift), shift @ shift, rtol=1e-10)
    assert metrics.frechet_distance(x, 2 * x.mean(0) - x) < 1e-10
    half = metrics.frechet_distance(x.astype(np.float32), (x + shift).astype(np.float32))
    np.testing.assert_allclose(half, shift @ shift, rtol=1e-5)


def test_distance_of_large_samples():
    """Two samples of 20,000 of normals with deviations 1 and 1.5 along 4 axes, a mean of .3 apart.

    d = sum of m^2 + (s_a - s_b)^2 = 4 (.09 + .25). To first order, with variances s^2/N of a mean and
    s^2/(2N) of a deviation, its variance is 4 [4 m^2 + 4 (s_a - s_b)^2 / 2] (1 + 2.25) / N.
    """
    num = 20_000
    a = RANDOM.standard_normal((num, 4))
    b = 0.3 + 1.5 * RANDOM.standard_normal((num, 4))
    error = np.sqrt(4 * (4 * 0.3**2 * 3.25 + 4 * 0.5**2 * 3.25 / 2) / num)
    assert abs(metrics.frechet_distance(a, b) - 1.36) < 4 * error


E = np.eye(3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: metrics.frechet_distance(E[:1], E), ValueError, r"features_a must .* N > 1, got \(1, 3\)"),
        (lambda: metrics.frechet_distance(E, E[:, :2]), ValueError, r"features_b must have shape \[N, 3\]"),
        (lambda: metrics.frechet_distance(E[0], E), ValueError, "features_a must have 2 axes"),
        (lambda: metrics.frechet_distance(E, E.astype(int)), TypeError, "features_b must be floating"),
        (lambda: metrics.frechet_distance(E, E * np.nan), ValueError, "features_b must be finite, got 9"),
        (
            lambda: metrics.frechet_distance_of_moments(E[0], E, E[0, :2], E),
            ValueError,
            r"mean_b must have shape \(3,\)",
        ),
        (
            lambda: metrics.frechet_distance_of_moments(E[0], E, E[0], E[:2]),
            ValueError,
            r"cov_b must have shape \(3, 3\), got \(2, 3\)",
        ),
        (
            lambda: metrics.frechet_distance_of_moments(E[0], np.triu(np.ones((3, 3))), E[0], E),
            ValueError,
            "cov_a must be symmetric, got entries that differ by 1",
        ),
        (
            lambda: metrics.frechet_distance_of_moments(E[0], E, E[0], np.diag([1.0, 1, -0.1])),
            ValueError,
            "cov_b must be positive semi-definite, got eigenvalue -0.1",
        ),
        (
            lambda: metrics.frechet_distance_of_moments(E[0], E, E[0], -E),
            ValueError,
            "cov_b must be positive semi-definite, got eigenvalue -1",
        ),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
