"""Energies between the members of a batch: they spread the samples of a posterior.

The batch is G groups of M members each, side by side (B = G M). `langevin.sample(..., energies=...)`
takes an interaction next to the measurement energies; `joint` makes a group one state for the methods
that are exact. Shape letters besides: *event the axes of one state, F features.

Source: Energy Matching (arXiv 2504.10612), the interaction energy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.checks import number
from egm.typing import Array
from energymatch.potential import Potential

__all__ = ["BoundedRepulsion", "QuadraticRepulsion", "joint"]


@dataclasses.dataclass(frozen=True)
class QuadraticRepulsion:
    """The paper's W(x_k, x_m) = -|B(x_k) - B(x_m)|^2 / (2 sigma^2) between the members of each group.

    Unbounded below: the group has a density only where V/epsilon (with the measurement) grows faster. If
    its curvature tends to Lambda far out, that is where Lambda - (M / sigma^2) B^T B is positive definite
    (B linear): sigma^2 must be above M times the variance of B(x) under exp(-V/epsilon). Bounds on x
    (images in [-1, 1]) make it a density always, with the members at the walls where it is not one
    without.

    Attributes:
      scale: sigma, a positive number or a traced scalar.
      group_size: M, at least 2; must divide the batch, on each device where devices split it.
      projection: B(x) -> [B, *feature]; None for x itself.

    Called on x [B, *event] it returns [B]: each member's equal share of its group's sum over pairs
    k < m. The sum over the batch is thus the total energy with every pair counted once, and its gradient
    what `langevin` takes. Groups do not act on each other. Its method "mala", whose
    test of one example alone would be wrong, refuses it: see `joint`.
    """

    scale: float | Array
    group_size: int
    projection: Callable[[Array], Array] | None = None

    couples_examples: ClassVar[bool] = True

    def __post_init__(self):
        _check_interaction(self)

    def __call__(self, x: Array) -> Array:
        """[B] shares of the energy of x [B, *event]."""
        features = _features(self, x)
        # sum_{k < m} |f_k - f_m|^2 = M sum_k |f_k - mean|^2
        centred = features - jnp.mean(features, axis=1, keepdims=True)
        squares = self.group_size * jnp.sum(centred**2, axis=(1, 2))
        return _share(self, -squares / (2 * jnp.asarray(self.scale, features.dtype) ** 2))


@dataclasses.dataclass(frozen=True)
class BoundedRepulsion:
    """W(x_k, x_m) = a exp(-|B(x_k) - B(x_m)|^2 / (2 sigma^2)) between the members of each group.

    Between 0 and a: the group has a density wherever exp(-V/epsilon) has one, and far members feel
    nothing. The push is largest at the distance sigma, a / (sigma sqrt(e)) nats per unit of length.

    Attributes:
      strength: a > 0 in nats, a number or a traced scalar.
      scale: sigma, a positive number or a traced scalar, of the order of the distances wanted.
      group_size, projection: as in `QuadraticRepulsion`. Memory grows with M^2 features a group.

    Called on x [B, *event] it returns [B], shared out as by `QuadraticRepulsion`.
    """

    strength: float | Array
    scale: float | Array
    group_size: int
    projection: Callable[[Array], Array] | None = None

    couples_examples: ClassVar[bool] = True

    def __post_init__(self):
        number(self.strength, "strength", "finite and positive")
        _check_interaction(self)

    def __call__(self, x: Array) -> Array:
        """[B] shares of the energy of x [B, *event]."""
        features = _features(self, x)
        first, second = np.triu_indices(self.group_size, 1)
        squares = jnp.sum((features[:, first] - features[:, second]) ** 2, axis=-1)
        pairs = jnp.exp(-squares / (2 * jnp.asarray(self.scale, features.dtype) ** 2))
        return _share(self, jnp.asarray(self.strength, features.dtype) * jnp.sum(pairs, axis=1))


def joint(function: Potential) -> Potential:
    """A potential or energy of single states as one of whole groups, x [G, M, *event] -> [G].

    With the groups as states, `langevin` with "mala", `tempering` and `sample` are exact for energies
    that couple their members: `sample(key, joint(V), energies=(joint(U), joint(W)), ...)` with a prior
    over [M, *event].

    Args:
      function: [B, *event] -> [B]; an interaction's group_size must divide M. With one measurement a
        group, its y is [G M, *measurement].

    Raises:
      TypeError: it is not callable. TypeError, ValueError (from the result): x has fewer than 2 axes, or
        the function's output is no float [B].
    """
    checks.function(function, "function")

    def of_groups(x: Array) -> Array:
        x = checks.float_array(x, "x", min_ndim=2)
        groups, members = x.shape[:2]
        value = function(x.reshape(groups * members, *x.shape[2:]))
        value = checks.model_output(value, "function", (groups * members,))
        return jnp.sum(value.reshape(groups, members), axis=1)

    return of_groups


def _check_interaction(interaction: Any) -> None:
    number(interaction.scale, "scale", "finite and positive")
    checks.positive_int(interaction.group_size, "group_size", 2)
    if interaction.projection is not None and not callable(interaction.projection):
        raise TypeError(f"projection must be None or callable, got {interaction.projection!r}")


def _features(interaction: Any, x: Array) -> Array:
    """[G, M, F] features of the members."""
    x = checks.wide(checks.float_array(x, "x", min_ndim=1))
    batch, members = x.shape[0], interaction.group_size
    if batch % members:
        raise ValueError(f"x must hold whole groups of group_size = {members}, got a batch of {batch}")
    out = x if interaction.projection is None else interaction.projection(x)
    out = checks.wide(checks.float_array(out, "projection(x)", min_ndim=1))
    if out.shape[0] != batch:
        raise ValueError(f"projection must return {batch} features, got shape {out.shape}")
    return out.reshape(batch // members, members, math.prod(out.shape[1:]))


def _share(interaction: Any, energies: Array) -> Array:
    """[B] each member's part of its group's energy [G]."""
    return jnp.repeat(energies / interaction.group_size, interaction.group_size)
