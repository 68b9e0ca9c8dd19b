"""How far ahead a bootstrapped estimate looks: r(t), as small objects that `Bootstrap` takes.

`horizon.look_ahead(path, x_t, t)` returns r [B], t < r <= 1. Many short stages are easy for
the samples and hard for phi, which is behind by a moving average at each of them; few long ones are the
other way round, and r = 1 is the naive estimate.

Source: r = t + h is that of EGM (arXiv 2505.19646); the others are this library's.
"""

from __future__ import annotations

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp

from egm import checks
from egm.paths.gaussian import GaussianPath
from egm.paths.masked import MaskedPath
from egm.paths.product import ProductPath
from egm.typing import Array, Path, State, TokenPath

__all__ = ["FixedStep", "MatchingTime", "Nats", "nats"]


@dataclasses.dataclass(frozen=True)
class FixedStep:
    """r = min(t + step, 1), the paper's.

    Attributes:
      step: h, in (0, 1].
    """

    step: float = 0.01

    def __post_init__(self):
        if checks.positive_float(self.step, "step") > 1:
            raise ValueError(f"step must be in (0, 1], got {self.step}")

    def look_ahead(self, path: Path, x_t: State, t: Array) -> Array:
        """[B] r."""
        del path, x_t
        return jnp.minimum(t + self.step, 1.0)


@dataclasses.dataclass(frozen=True)
class MatchingTime:
    """The time at which a masked path's own proposal is the marginal's: kappa_r = V/(V+1); after it r = 1.

    There q_{r|t} reveals a masked site with the marginal's odds from every t, so that its weights are
    exp g alone. In a product the first masked part decides.
    """

    def look_ahead(self, path: Path, x_t: State, t: Array) -> Array:
        """[B] r."""
        del x_t
        masked = next((p for p in _leaves(path) if isinstance(p, MaskedPath)), None)
        if masked is None:
            raise TypeError(f"a matching time needs tokens, got {path!r:.80}: take another horizon")
        kappa = masked.vocab_size / (masked.vocab_size + 1)
        r = kappa ** (1 / masked.power)
        return jnp.where(t < r, r, 1.0)


@dataclasses.dataclass(frozen=True)
class Nats:
    """As far ahead as the marginal may gain `nats` of information: a few times that is log K.

    The Kullback-Leibler divergence from proposal to p_{r|t} is the entropy that is lost between t and r. It
    is at most L log V (kappa_r - kappa_t) on the masked path, L times what one certain token loses on the
    uniform one (`TokenPath.entropy_left`), and on Gaussian paths about D/2 times the change of
    log(sigma^2/alpha^2 + s^2), s the path's length scale; in a product the parts add up.

    Attributes:
      nats: what one stage may gain by this bound.
    """

    nats: float = 2.5

    def __post_init__(self):
        checks.positive_float(self.nats, "nats")

    def look_ahead(self, path: Path, x_t: State, t: Array) -> Array:
        """[B] r."""
        budget = nats(path, x_t, t) - self.nats

        def halve(_, ends):
            near, far = ends
            middle = 0.5 * (near + far)
            enough = nats(path, x_t, middle) > budget
            return jnp.where(enough, middle, near), jnp.where(enough, far, middle)

        # r is the far end of the last interval: above t, and 1 where that is within reach.
        far = jax.lax.fori_loop(0, _HALVINGS, halve, (t, jnp.ones_like(t) + 0 * t))[1]
        return jnp.where(budget <= 0, 1.0, far)


_HALVINGS = 22


def nats(path: Path, x: State, t: Array) -> Array:
    """[T] what a state like `x` may at most gain between the times t [T] and 1, in nats.

    Raises:
      TypeError: a path that is neither one of tokens nor Gaussian nor a product of them.
    """
    return functools.reduce(operator.add, [_nats_left(p, part, t) for p, part in _parts(path, x)])


def _leaves(path: Path) -> list[Path]:
    """The paths of a product, products inside it included; of any other path itself."""
    if not isinstance(path, ProductPath):
        return [path]
    return [leaf for p in path.leaves_with(path.paths)[0] for leaf in _leaves(p)]


def _parts(path, x):
    if not isinstance(path, ProductPath):
        return [(path, x)]
    rows = zip(*path.leaves_with(x), strict=True)
    return [pair for p, part in rows for pair in _parts(p, part)]


def _nats_left(path, x, t):
    """[T] what the bound allows between t and 1, zero at 1."""
    if isinstance(path, TokenPath):
        return path.entropy_left(x.shape[-1], t)
    if isinstance(path, GaussianPath):
        inner = getattr(path, "path", path)
        s = getattr(inner, "length_scale", 1.0)
        t = jnp.maximum(t, path.t_min)
        ratio = path.variance(t) / path.alpha(t) ** 2
        return 0.5 * path.dimension(x.shape[-1]) * jnp.log1p(ratio / s**2)
    raise TypeError(f"this horizon knows paths of tokens, Gaussian ones and products, got {path!r:.80}")
