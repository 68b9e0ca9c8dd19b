"""A mixture of normal distributions under the noise of a Gaussian path, in closed form."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.typing import Array

__all__ = ["Noised", "NormalMixture"]


class Noised(NamedTuple):
    """What is known of x_1 from x_t = alpha x_1 + sigma noise, where x_1 is of a mixture.

    Attributes:
      log_density: [B] of x_t.
      score: [B, D] its gradient.
      mean: [B, D] E[x_1 | x_t].
      variance: [B, D] Var[x_1 | x_t], each coordinate's.
    """

    log_density: Array
    score: Array
    mean: Array
    variance: Array


@dataclasses.dataclass(frozen=True, eq=False)
class NormalMixture:
    """sum_k w_k N(mu_k, C_k) on R^D, a few separate places: what a `ScoreHead` may start from.

    Attributes:
      means: [K, D].
      covariances: [K, D, D], symmetric and positive definite.
      log_weights: [K], normalised here; None for an even mixture.

    Raises:
      TypeError, ValueError: shapes do not fit, a number is not finite, or a covariance is none.

    Examples:
      >>> modes = egm.heads.NormalMixture(np.array([[-3.0], [3.0]]), np.ones((2, 1, 1)))
      >>> found = modes.noised(jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1)))  # x_1 + noise is at 0
      >>> print(f"{found.mean[0, 0]:.1f} +- {found.variance[0, 0] ** 0.5:.2f}")  # halfway to either, +- .71
      0.0 +- 1.66
    """

    means: np.ndarray
    covariances: np.ndarray
    log_weights: Any = None

    def __post_init__(self):
        means = _numbers(self.means, "means", 2)
        covariances = _numbers(self.covariances, "covariances", 3)
        num, dim = means.shape
        if covariances.shape != (num, dim, dim):
            raise ValueError(f"covariances must have shape {(num, dim, dim)}, got {covariances.shape}")
        off = np.abs(covariances - np.swapaxes(covariances, 1, 2)).max()
        if off > 1e-4 * np.abs(covariances).max() or not np.linalg.eigvalsh(covariances).min() > 0:
            raise ValueError("covariances must be symmetric and positive definite")
        log_weights = np.zeros(num) if self.log_weights is None else self.log_weights
        log_weights = _numbers(log_weights, "log_weights", 1)
        if log_weights.shape != (num,):
            raise ValueError(f"log_weights must have shape {(num,)}, got {log_weights.shape}")
        log_weights = log_weights - np.logaddexp.reduce(log_weights)
        for name, value in (("means", means), ("covariances", covariances), ("log_weights", log_weights)):
            object.__setattr__(self, name, value)

    @functools.cached_property
    def _axes(self) -> tuple[np.ndarray, np.ndarray]:
        """(variances [K, D] along the axes of each, [K, D, D] the axes as columns)."""
        return np.linalg.eigh((self.covariances + np.swapaxes(self.covariances, 1, 2)) / 2)

    def noised(self, x: Array, alpha: Array, variance: Array) -> Noised:
        """The mixture scaled by alpha and widened by the noise's variance, at x.

        Args:
          x: [B, D].
          alpha, variance: [B, 1] of the path at each state's time.

        Returns:
          Noised; at variance 0 its own density and score, and x / alpha without a variance.
        """
        x = checks.float_array(x, "x", min_ndim=2)
        num, dim = self.means.shape
        if x.shape[1] != dim:
            raise ValueError(f"x must have shape [B, {dim}], got {x.shape}")
        spreads, axes = (jnp.asarray(a, x.dtype) for a in self._axes)
        product = functools.partial(jnp.matmul, precision="highest")
        own = jnp.asarray(np.einsum("kde,kd->ke", self._axes[1], self.means), x.dtype)[:, None]
        spreads, back, centres = spreads[:, None], jnp.swapaxes(axes, 1, 2), jnp.asarray(self.means, x.dtype)
        # [K, B, D] throughout: a product for each part, without transposes.
        alpha, noise = alpha[None], variance[None]
        off = product(x[None], axes) - alpha * own
        total = noise + alpha**2 * spreads
        logs = jnp.asarray(self.log_weights, x.dtype)[:, None]
        logs = logs - 0.5 * jnp.sum(off**2 / total + jnp.log(2 * jnp.pi * total), axis=-1)
        share = jax.nn.softmax(logs, axis=0)[..., None]
        # Means of x_1 as each part tells them.
        means = centres[:, None] + product(alpha * spreads * off / total, back)
        mean = jnp.sum(share * means, axis=0)
        within = product(share * spreads * noise / total, back**2)
        between = share * (means - mean[None]) ** 2
        return Noised(
            jax.nn.logsumexp(logs, axis=0),
            jnp.sum(product(share * -off / total, back), axis=0),
            mean,
            jnp.sum(within + between, axis=0),
        )


def _numbers(value, name, ndim):
    """A float64 array of this many axes, finite."""
    value = np.asarray(value)
    if not np.issubdtype(value.dtype, np.number) or np.iscomplexobj(value):
        raise TypeError(f"{name} must be real numbers, got {value.dtype}")
    if value.ndim != ndim or value.size == 0:
        raise ValueError(f"{name} must have {ndim} axes and at least one element, got {value.shape}")
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{name} must be finite")
    return value.astype(np.float64)
