"""The numbers of a target that head, network and closed forms share: its lengths about its centre.

s is the finest length of the target, S its standard deviation about c. All of them enter through
b_s^2 = sigma^2 + alpha^2 s^2 and b_S^2 = sigma^2 + alpha^2 S^2, which vanish nowhere on a Gaussian path.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp

from egm import checks
from egm.paths.gaussian import GaussianPath
from egm.typing import Array

__all__ = ["TargetScale"]


@dataclasses.dataclass(frozen=True)
class TargetScale:
    """The lengths of a target on a Gaussian path.

    Attributes:
      path: the Gaussian path.
      length_scale: s, the finest length of the target.
      data_scale: S, its standard deviation about `center`.
      center: c, a number or D numbers.

    Raises:
      TypeError: `path` is no Gaussian path, or another field no number.
      ValueError: a scale is not positive.
    """

    path: GaussianPath
    length_scale: float
    data_scale: float
    center: float | tuple[float, ...] = 0.0

    def __post_init__(self):
        if not isinstance(self.path, GaussianPath):
            raise TypeError(f"path or gaussian_path: the path must be a Gaussian path, got {self.path!r:.80}")
        checks.positive_float(self.data_scale, "data_scale")
        checks.positive_float(self.length_scale, "length_scale")
        # An array is no hashable field.
        object.__setattr__(self, "center", checks.center(self.center, "center"))

    def inputs(self, x: Any, t: Any, name: str = "x") -> tuple[Array, Array]:
        """x [N, D] and t [N] (float32 or wider), checked.

        Raises:
          TypeError: x is not floating point. ValueError: x is not [N, D] with the path's D, or t is
            neither a scalar nor [N].
        """
        batch = self.path.batch_shape(x, name)
        if len(batch) != 1:
            raise ValueError(f"{name} must have shape [N, D], got {jnp.shape(x)}")
        t = checks.time(t, "t", batch)
        return jnp.asarray(x), t.astype(jnp.promote_types(t.dtype, jnp.float32))

    def variances(self, t: Array) -> tuple[Array, Array]:
        """[N] sigma^2 + alpha^2 s^2 and sigma^2 + alpha^2 S^2."""
        alpha, variance = self.path.alpha(t), self.path.variance(t)
        fine, coarse = (variance + jnp.square(alpha * s) for s in (self.length_scale, self.data_scale))
        return fine, coarse

    def centers(self, x: Array) -> Array:
        """[N, D] c, for x [N, D].

        Raises:
          ValueError: `center` has neither one nor D entries.
        """
        center = jnp.asarray(self.center, x.dtype)
        if center.shape not in ((), x.shape[-1:]):
            raise ValueError(
                f"center must be a number or have the trailing size of x, {x.shape[-1]}, "
                f"got shape {center.shape}"
            )
        return jnp.broadcast_to(center.reshape((1,) * (2 - center.ndim) + center.shape), x.shape)

    def floored_alpha(self, t: Array) -> Array:
        """[N] alpha_t, and that at the path's t_min before it."""
        return jnp.maximum(self.path.alpha(t), self.path.alpha(jnp.asarray(self.path.t_min, t.dtype)))
