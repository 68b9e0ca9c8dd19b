"""The head of jumps on R^d: the target as seen from x_t, a mixture of normal distributions, by likelihood."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.paths.gaussian import GaussianPath
from egm.typing import Array, Energy, HeadCounts, TargetMixture

__all__ = ["MixtureHead", "MixtureTarget"]

_SPREAD = 0.8
"""The share of a normal target's variance that the untrained parts' means have."""


class MixtureTarget(NamedTuple):
    """Data x_1 [B, D] whose likelihood given x_t a `MixtureHead` is trained by."""

    x_1: Array


@dataclasses.dataclass(frozen=True)
class MixtureHead:
    """[B, D, 3 K] that stand for a `TargetMixture` of K normal distributions on a Gaussian path.

    With the three blocks of K channels (F, G, H), S the extent of the target and m its centre,
      means m + S (e_k + F_k), variances S^2 (1 - q) exp(G_k), log-weights the mean of H_k over coordinates,
    e_k fixed points of mean 0 and mean square q = .8: an output of zero has the first two moments of
    N(m, S^2 I). Where the target is a mixture of K the best output does not depend on x_t or t at all.

    The loss is the Kullback-Leibler divergence from p(x_1 | x_t) to the mixture's, up to what no output
    changes, by maximum likelihood of x_1: so algorithms that draw x_1 train it (`Weighted`), while estimates
    of a velocity, which say nothing of where jumps lead, are refused.

    Attributes:
      path: the Gaussian path, on all of R^D.
      num_parts: K.
      data_scale: S.
      center: m, a number or a tuple of D.

    Raises:
      TypeError, ValueError: a field is none of these.

    Source: mixture density networks (Bishop, 1994), as destinations of the jumps of Generator Matching
    (arXiv 2410.20587).

    Examples:
      >>> path = egm.paths.VarianceExplodingPath(0.1, 5.0)
      >>> head = egm.heads.MixtureHead(path, num_parts=4, data_scale=2.0)
      >>> target = head.generator(jnp.zeros((5, 3, 12)), jnp.ones((5, 3)), jnp.full(5, 0.5))
      >>> target.log_weights.shape, target.means.shape
      ((5, 4), (5, 4, 3))
    """

    path: GaussianPath
    num_parts: int = 16
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0

    def __post_init__(self):
        if not isinstance(self.path, GaussianPath):
            raise TypeError(f"path must be a Gaussian path, got {self.path!r:.80}")
        checks.positive_int(self.num_parts, "num_parts")
        object.__setattr__(self, "data_scale", checks.positive_float(self.data_scale, "data_scale"))
        object.__setattr__(self, "center", checks.center(self.center, "center"))

    def generator(
        self, output: Array, x_t: Array, t: Array | None = None, energy: Energy | None = None
    ) -> TargetMixture:
        """The target as seen from x_t [B, D]; neither t nor the energy is needed."""
        del t, energy
        output, x_t = checks.float_array(output, "output"), checks.float_array(x_t, "x_t", min_ndim=2)
        shape = (*x_t.shape, 3 * self.num_parts)
        if output.shape != shape:
            raise ValueError(f"output must have shape {shape}, got {output.shape}")
        parts = checks.wide(output).reshape(*x_t.shape, 3, self.num_parts)
        shift, factor, logits = (jnp.moveaxis(parts[:, :, i], -1, 1) for i in range(3))
        center = jnp.broadcast_to(jnp.asarray(self.center, shift.dtype), shift.shape)
        offsets = jnp.asarray(_offsets(self.num_parts, x_t.shape[-1]), shift.dtype)
        # One part has no offset, and all of the variance.
        narrow = 1 - _SPREAD if self.num_parts > 1 else 1.0
        # Bounded so that no exponential overflows.
        spread = self.data_scale**2 * narrow * jnp.exp(16.0 * jnp.tanh(factor / 16.0))
        means = center + self.data_scale * (jnp.broadcast_to(offsets[None], shift.shape) + shift)
        return TargetMixture(jnp.mean(logits, axis=-1), means, spread)

    def conditional_target(
        self, x_1: Array, x_t: Array, t: Array, energy: Energy | None = None
    ) -> MixtureTarget:
        """x_1 itself."""
        del x_t, t, energy
        return MixtureTarget(x_1)

    def divergence(
        self, target: MixtureTarget, output: Array, x_t: Array, t: Array, energy: Energy | None = None
    ) -> Array:
        """[B] minus log p(x_1 | x_t) over D, up to what no output changes; finite at t = 1, where it is 0.

        Raises:
          TypeError: the target is no `MixtureTarget`.
        """
        if not isinstance(target, MixtureTarget):
            raise TypeError(
                "target must be data (the algorithm Weighted), as a velocity does not tell where jumps lead, "
                f"got {type(target).__name__}"
            )
        mixture = self.generator(output, x_t)
        time = checks.time(t, "t", x_t.shape[:1])
        schedule = self.path.alpha(time), self.path.variance(time)
        alpha, noise = (c.astype(x_t.dtype)[:, None, None] for c in schedule)
        one = jnp.ones_like(alpha)
        at_data = _log_density(mixture, jax.lax.stop_gradient(target.x_1), one, 0 * one)
        return (_log_density(mixture, x_t, alpha, noise) - at_data) / x_t.shape[-1]

    def metrics(self, target, output, x_t, t, energy=None) -> dict[str, Array]:
        """Nothing: no part is cut."""
        del target, output, x_t, t, energy
        return {}

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> HeadCounts:
        """None."""
        del energy, event_shape
        return HeadCounts(0, 0)


def _log_density(mixture: TargetMixture, x: Array, alpha: Array, noise: Array) -> Array:
    """[B] log of the mixture scaled by alpha and widened by noise, at x [B, D], up to (2 pi)^(-D/2)."""
    total = noise + alpha**2 * mixture.variances
    off = x[:, None] - alpha * mixture.means
    evidence = -0.5 * jnp.sum(off**2 / total + jnp.log(total), axis=-1)
    return jax.nn.logsumexp(jax.nn.log_softmax(mixture.log_weights, axis=-1) + evidence, axis=-1)


def _offsets(num_parts: int, size: int) -> np.ndarray:
    """[K, D] fixed numbers, each coordinate's of mean 0 and mean square `_SPREAD` over the parts."""
    if num_parts == 1:
        return np.zeros((1, size))
    points = np.random.default_rng(0).normal(size=(num_parts, size))
    points = points - points.mean(axis=0)
    return np.sqrt(_SPREAD) * points / np.sqrt(np.mean(points**2, axis=0))
