"""The Frechet distance of two normals, in float64 on the host: `egm.metrics` is the door to it."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = ["frechet_distance", "frechet_distance_of_moments"]


def frechet_distance(features_a: Any, features_b: Any) -> float:
    """Frechet distance of two samples' features, each taken for a normal (FID, with Inception's features).

    Args:
      features_a: [N, D] features that the user brings, N at least 2.
      features_b: [M, D].

    Returns:
      `frechet_distance_of_moments` of their means and their covariances (over N - 1, as numpy.cov). It is
      biased upwards in small samples: compare at equal N and M.

    Raises:
      TypeError: features are not floating. ValueError: a shape does not fit, or a value is not finite.

    Examples:
      >>> rng = np.random.default_rng(0)
      >>> a, b = rng.normal(size=(5000, 2)), 3.0 + rng.normal(size=(5000, 2))
      >>> print(f"{egm.metrics.frechet_distance(a, b):.0f}")  # means 3 apart in two coordinates
      18
    """
    a, b = _float64(features_a, "features_a", 2), _float64(features_b, "features_b", 2)
    for name, x in (("features_a", a), ("features_b", b)):
        if x.shape[0] < 2 or x.shape[1] != a.shape[1] or x.shape[1] == 0:
            raise ValueError(f"{name} must have shape [N, {a.shape[1]}] with N > 1, got {x.shape}")
    (mean_a, cov_a), (mean_b, cov_b) = (
        (x.mean(0), np.cov(x, rowvar=False).reshape(2 * x.shape[1:])) for x in (a, b)
    )
    return frechet_distance_of_moments(mean_a, cov_a, mean_b, cov_b)


def frechet_distance_of_moments(mean_a: Any, cov_a: Any, mean_b: Any, cov_b: Any) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), the squared W2 distance of two normals, in float64.

    With C = F^T F, from the eigenvectors of C, tr (C_a C_b)^(1/2) is the sum of the singular values of
    F_a F_b^T: real for covariances of any rank, and without the square roots of rounding errors that
    eigenvalues of a product would leave.

    Args:
      mean_a, mean_b: [D].
      cov_a, cov_b: [D, D] symmetric and positive semi-definite (eigenvalues below zero by rounding count
        as zero).

    Returns:
      A float, not below 0.

    Raises:
      TypeError: an argument is not floating. ValueError: a shape does not fit, a value is not finite, or a
        covariance is not symmetric or has an eigenvalue below zero by more than rounding.

    Source: Dowson and Landau (1982); FID: Heusel et al. (arXiv 1706.08500).
    """
    mean_a, mean_b = _float64(mean_a, "mean_a", 1), _float64(mean_b, "mean_b", 1)
    if mean_b.shape != mean_a.shape:
        raise ValueError(f"mean_b must have shape {mean_a.shape}, as mean_a has, got {mean_b.shape}")
    cov_a, factor_a = _factor(cov_a, "cov_a", mean_a.size)
    cov_b, factor_b = _factor(cov_b, "cov_b", mean_a.size)
    common = np.linalg.svd(factor_a @ factor_b.T, compute_uv=False).sum()
    spread = np.trace(cov_a) + np.trace(cov_b) - 2 * common
    return float(np.sum((mean_a - mean_b) ** 2) + max(spread, 0.0))


def _factor(cov, name, dim):
    """(C as an array, F [rank, D] with F^T F = C)."""
    cov = _float64(cov, name, 2)
    if cov.shape != (dim, dim):
        raise ValueError(f"{name} must have shape {(dim, dim)}, got {cov.shape}")
    scale = np.abs(cov).max()
    if not np.allclose(cov, cov.T, rtol=0, atol=1e-6 * scale):
        raise ValueError(
            f"{name} must be symmetric, got entries that differ by {np.abs(cov - cov.T).max():.3g}"
        )
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    # Covariances are often stored in float32.
    if values[0] < -1e-5 * max(values[-1], 0.0) - np.finfo(float).tiny:
        raise ValueError(f"{name} must be positive semi-definite, got eigenvalue {values[0]:.3g}")
    kept = values > dim * np.finfo(float).eps * values[-1]
    return cov, np.sqrt(values[kept])[:, None] * vectors[:, kept].T


def _float64(x, name, ndim):
    x = np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got dtype {x.dtype}")
    if x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {x.shape}")
    x = x.astype(np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError(f"{name} must be finite, got {np.sum(~np.isfinite(x))} values that are not")
    return x
