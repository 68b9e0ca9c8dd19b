"""The head on R^d: score and posterior variance about the closed form of a normal target.

score = c [c (-grad E)(x/alpha)/alpha] + (1 - c) (alpha m - x)/(sigma_t^2 + alpha_t^2 S^2) + F/b, with F the
network's output (see `ScoreHead`); conditional targets mix the energy's score with the noise's. A mixture of
normals may stand in for the one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, divergences, smoothness
from egm.heads.normals import NormalMixture
from egm.paths.gaussian import GaussianPath
from egm.typing import Array, Energy, Gaussian, HeadCounts

__all__ = [
    "ConditionalScore",
    "EstimatedScore",
    "Level",
    "ScoreHead",
    "clipped",
    "level_at",
    "normal_score",
    "untrained",
]

_MOST = 10.0
"""The skip's bracket is cut at this multiple of sqrt(D)."""


class ConditionalScore(NamedTuple):
    """A conditional target on a Gaussian path.

    Attributes:
      score: [B, D].
      x_1: [B, D] the data that it comes from.
      weight: [B] of its loss, a function of t: that of the noise alone is as wide as b / sigma, so that
        a mean over t would hang on its end. None for ones.
    """

    score: Array
    x_1: Array
    weight: Array | None = None


class EstimatedScore(NamedTuple):
    """What an estimate says of the marginal at (x_t, t): weighted means over its samples x_r.

    With s_k the score of p_{t|r}(. | x_r^k) at x_t and s the model's, sigma_t^4 E (s_k - s)^2 is
    `beside` + alpha_t^2 E[(x_1 - m)^2 | x_t] at any r, m the model's own mean of x_1: the posterior
    variance, where m is right.

    Attributes:
      score: [B, D] the mean of s_k.
      square: [B, D] the mean of sigma_t^4 (s_k - s)^2.
      beside: [B, 1] sigma_t^2 (sigma_t^2 - v)/v, v the variance of p_{t|r}: what x_r leaves open of x_1. On
        a subspace its dimension over D of that.
    """

    score: Array
    square: Array
    beside: Array


@dataclasses.dataclass(frozen=True)
class ScoreHead:
    """[B, D, 2] that stand for the score and for the posterior variance on a Gaussian path.

    With b^2 = sigma_t^2 + alpha_t^2 s^2, c = alpha_t^2 s^2 / b^2 and (F, G) the two channels,
      score = c [c (-grad E)(x/alpha)/alpha] + (1 - c) (alpha m - x)/(sigma_t^2 + alpha_t^2 S^2) + F/b,
      Var[x_1 | x_t] = S^2 sigma_t^2 / (sigma_t^2 + alpha_t^2 S^2) exp(G),
    the bracket being the score where E is that of a normal distribution of scale s (on a subspace the
    variance is that times its dimension over D). So an output of zero is exact for a normal target
    N(m, S^2 I) at every t, with its energy where s = S, and for any target at t = 1. Of angles
    (`WrappedPath`) S counts as infinite. With a `mixture` q
      score = grad log q_t + c [c (-grad E - grad log q)(E_q[x_1 | x_t])/alpha] + F/b,
    q_t being the noised q, and the variance is q's: an output of zero is exact where the target is q, so that
    what a network would have to learn of far modes in many dimensions is known before. The same c mixes
    the two forms of a conditional score: grad E at x_1 (target-score form) and the noise.

    Attributes:
      path: the Gaussian path.
      length_scale: s, the scale below which E is close to a normal distribution's.
      data_scale: S, the extent of the target (of the annealing's reference).
      center: m, a number or a tuple of D.
      mixture: in place of N(m, S^2 I), on a path on all of R^D without angles; None for that.
      energy_skip: start from the energy's own score; without it c = 0 in the score's first two terms.
      target_score: use grad E in conditional targets where exp(-E) has no jump (below).
      max_target_norm: cut b |score| of targets at this multiple of sqrt(D); None for no cut.
      max_drift_norm: the same for the model's score, and always at most 10 for the skip's bracket.

    The target-score form has the right mean only where exp(-E) is continuous and grad E its gradient:
    where E jumps or has a wall (+inf), is constant by pieces, or hides its gradient, the mean lacks what
    the jump adds, and stays wrong however much is trained. So a conditional target asks first, by
    `differentiable`, and is the noise alone for the whole batch where the answer is no. (The mixing
    weight may depend on x_t and t, but a choice by x_1 would bias smooth energies.) An energy answers
    for itself by an attribute `differentiable`, a bool; `make_iteration` asks once an iteration.

    Source: preconditioning after arXiv 2206.00364; target score matching, arXiv 2402.08667.

    Examples:
      >>> path = egm.paths.VarianceExplodingPath(0.1, 5.0)
      >>> head = egm.heads.ScoreHead(path, length_scale=1.0, data_scale=1.0)
      >>> x_t, t = jnp.ones((1, 3)), jnp.full(1, 0.5)
      >>> energy = lambda x: 0.5 * jnp.sum(x**2, axis=-1)  # of N(0, 1), for which an output of zero is exact
      >>> found = head.generator(jnp.zeros((1, 3, 2)), x_t, t, energy)
      >>> bool(jnp.allclose(found.score, -x_t / (1 + path.variance(t)), rtol=1e-4))
      True
    """

    path: GaussianPath
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
    mixture: NormalMixture | None = None
    energy_skip: bool = True
    target_score: bool = True
    max_target_norm: float | None = None
    max_drift_norm: float | None = None

    def __post_init__(self):
        for name in ("length_scale", "data_scale"):
            object.__setattr__(self, name, checks.positive_float(getattr(self, name), name))
        for name in ("max_target_norm", "max_drift_norm"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, checks.positive_float(getattr(self, name), name))
        if not isinstance(self.path, GaussianPath):
            raise TypeError(f"path must be a Gaussian path, got {self.path!r:.80}")
        for name in ("energy_skip", "target_score"):
            checks.flag(getattr(self, name), name)
        object.__setattr__(self, "center", checks.center(self.center, "center"))
        if self.mixture is not None:
            self._check_mixture(self.mixture)

    def _check_mixture(self, mixture):
        checks.instance(mixture, NormalMixture, "mixture")
        dim = mixture.means.shape[1]
        if self.path.dimension(dim) != dim or not np.all(np.asarray(self.path.confinement(dim)) == 1):
            raise ValueError(f"mixture needs a path on all of R^{dim} without angles, got {self.path}")

    def generator(self, output: Array, x_t: Array, t: Array, energy: Energy | None = None) -> Gaussian:
        """The velocity, score and posterior variance, [B, D] each; without E the skip has c = 0."""
        level = self._level(t, x_t)
        normalised, _ = self._clip(self._normalised(output, x_t, level, energy), self.max_drift_norm)
        score = normalised / level.spread
        velocity = self.path.velocity_from_score(score, x_t, t)
        return Gaussian(velocity, score, self._base_variance(level, x_t) * jnp.exp(_log_factor(output)))

    def conditional_target(
        self, x_1: Array, x_t: Array, t: Array, energy: Energy | None = None
    ) -> ConditionalScore:
        """The mix of the two forms of the conditional score.

        Without E, where it is not `differentiable`, and where its gradient is not finite, it is the noise
        alone; at t = 1, where there is none, what is left of the mix.
        """
        level = self._level(t, x_t)
        noisy = level.variance > 0
        score = (level.alpha * x_1 - x_t) / jnp.where(noisy, level.variance, 1.0)
        share = (level.variance / level.spread**2)[:, 0]
        if energy is not None and self.target_score:
            smooth = self.differentiable(x_1, x_t, t, energy)
            # (1 - c)/sigma^2 = 1/b^2: finite at t = 1.
            noise = (level.alpha * x_1 - x_t) / level.spread**2
            own = _score(energy, x_1, self.path)
            finite = jnp.all(jnp.isfinite(own), axis=-1, keepdims=True)
            mix = level.gate * jnp.where(finite, own, 0.0) / level.alpha + noise
            score = jnp.where(finite & (smooth | ~noisy), mix, score)
            # By the choice for the whole batch: a weight that went by x_1 would move the mean.
            share = jnp.where(smooth, 1.0, share)
        return ConditionalScore(score, x_1, share)

    def estimated_values(
        self, output: Array, x_t: Array, t: Array, energy: Energy | None = None
    ) -> Callable[[Array, Array], Any]:
        """What `egm.estimate` averages for this head: of each x_r an `EstimatedScore`.

        With angles, which have no variance of x_1, the velocity alone.
        """
        if not self._learns_variance(x_t):
            return lambda x_r, r: self.path.conditional_generator(x_t, t, x_r, r)
        x_t = checks.wide(x_t)
        level = self._level(t, x_t)
        own = self._normalised(output, x_t, level, energy) / level.spread
        # A coordinate of isotropic noise on a subspace has less variance than one of the whole space.
        share = self._dimension(x_t) / x_t.shape[-1]

        def values(x_r: Array, r: Array) -> EstimatedScore:
            score = self.path.conditional_score(x_t, t, x_r, r)
            times = (checks.wide(c) for c in checks.time_pair(t, r, x_t.shape[:1]))
            left = self._left_open(*times).astype(x_t.dtype)[:, None]
            square = jnp.square(level.variance[None] * (score - own[None]))
            return EstimatedScore(score, square, jnp.broadcast_to(share * left, (*score.shape[:-1], 1)))

        return values

    def differentiable(self, x_1: Array, x_t: Array, t: Array, energy: Energy) -> Array:
        """Whether conditional targets may use grad E: a scalar bool, by what E says of itself or a probe.

        The probe (`egm.smoothness`) follows E from up to 64 of the x_1 through x_t / alpha to as far on
        the other side, which is where the noise of their times reaches.
        """
        if not self.target_score:
            return jnp.ones((), bool)
        told = getattr(energy, "differentiable", None)
        if told is not None:
            return jnp.asarray(told, bool)
        batch = x_1.shape[0]
        rows = jnp.asarray(_spread(batch))
        level = self._level(t, x_t)
        start = x_1[rows]
        stop = 2 * x_t[rows] / level.alpha[rows] - start
        rows_of = getattr(energy, "rows", None)
        part = energy if rows_of is None else rows_of(rows)
        start, stop = jax.lax.stop_gradient((start, stop))
        return jax.lax.stop_gradient(smoothness.is_smooth(smoothness.probe_segments(part, start, stop)))

    def divergence(
        self,
        target: Array | ConditionalScore | EstimatedScore,
        output: Array,
        x_t: Array,
        t: Array,
        energy: Energy | None = None,
    ) -> Array:
        """[B] b^2 |score - target|^2 / D, and for a conditional target that of the variance too.

        A conditional target may bring a weight for the first: sigma^2 / b^2 where it is the noise alone.

        The variance's is the Itakura-Saito divergence from the squared residual of x_1, whose minimiser
        is the mean square around the model's own posterior mean (its error included). Of an
        `EstimatedScore` it is the same of that mean square, with what x_r leaves open added on both sides.

        Args:
          target: velocities [B, D], an `EstimatedScore` (both of an `Estimate`) or a `ConditionalScore`.
          output: [B, D, 2]. x_t: [B, D]. t: [B]. energy: E or None, as for `generator`.
        """
        level = self._level(t, x_t)
        prediction = self._normalised(output, x_t, level, energy)
        wanted, _ = self._target(target, x_t, t, level)
        loss = divergences.squared_error(wanted, prediction) / self._dimension(x_t)
        base = level.alpha**2 * self._base_variance(level, x_t)
        if isinstance(target, EstimatedScore):
            beside = jax.lax.stop_gradient(target.beside)
            total = base + beside
            # Nothing is left to learn at t = 1.
            known = jnp.where(total > 0, total, 1.0)
            ratio = jnp.where(total > 0, target.square / known, 1.0)
            log_ratio = jnp.log1p(base / known * jnp.expm1(_log_factor(output)))
            return loss + divergences.itakura_saito(ratio, log_ratio) / x_t.shape[-1]
        if not isinstance(target, ConditionalScore):
            return loss
        if target.weight is not None:
            loss = loss * target.weight
        residual = level.alpha * target.x_1 - x_t - level.variance / level.spread * prediction
        # At t = 1 there is nothing to learn: no variance is left.
        ratio = jnp.where(base > 0, residual**2 / jnp.where(base > 0, base, 1.0), 1.0)
        return loss + divergences.itakura_saito(ratio, _log_factor(output)) / x_t.shape[-1]

    def metrics(self, target, output, x_t, t, energy=None) -> dict[str, Array]:
        """The fractions of targets and of the model's scores that were cut."""
        level, found = self._level(t, x_t), {}
        if self.max_target_norm is not None:
            found["target_clipped"] = jnp.mean(self._target(target, x_t, t, level)[1])
        if self.max_drift_norm is not None:
            prediction = self._normalised(output, x_t, level, energy)
            found["drift_clipped"] = jnp.mean(self._clip(prediction, self.max_drift_norm)[1])
        return found

    def probe_evaluations(self, energy: Energy) -> int:
        """Evaluations of E an example in `differentiable`."""
        known = not self.target_score or getattr(energy, "differentiable", None) is not None
        return 0 if known else smoothness.NUM_EVALUATIONS

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> HeadCounts:
        """One gradient each."""
        return HeadCounts(int(self.energy_skip), int(self.target_score))

    def _level(self, t, x):
        batch = self.path.batch_shape(x, "x_t")
        if len(batch) != 1:
            raise ValueError(f"x_t must have shape [B, D], got {x.shape}")
        t = checks.time(t, "t", batch)[:, None]
        alpha, variance = self.path.alpha(t).astype(x.dtype), self.path.variance(t).astype(x.dtype)
        return level_at(alpha, variance, self.length_scale)

    def _base_variance(self, level, x):
        if self.mixture is not None:
            return self.mixture.noised(x, level.alpha, level.variance).variance
        # A coordinate of isotropic noise on a subspace has less variance than one of the whole space.
        share = self._dimension(x) / x.shape[-1]
        return level.variance / (level.variance * self._precision(x) + level.alpha**2) * share

    def _precision(self, x):
        """[1, D] 1 / S^2, 0 for angles."""
        confined = self.path.confinement(x.shape[-1]) / self.data_scale**2
        return jnp.asarray(confined, x.dtype)[None]

    def _normalised(self, output, x, level, energy):
        """[B, D] b times the score."""
        output = checks.float_array(output, "output")
        if output.shape != (*x.shape, 2):
            raise ValueError(f"output must have shape {(*x.shape, 2)}, got {output.shape}")
        center = jnp.broadcast_to(jnp.asarray(self.center, x.dtype), x.shape)
        energy = energy if self.energy_skip else None
        limit = min(self.max_drift_norm or _MOST, _MOST)
        if self.mixture is None:
            own = None if energy is None else _score(energy, x / level.alpha, self.path)
            base = normal_score(x - level.alpha * center, level, self._precision(x))
            skip = untrained(own, base, level, self._dimension(x), limit)
        else:
            skip = self._beside_mixture(self.mixture, energy, x, level, limit)
        return self.path.project(skip + checks.wide(output)[..., 0])

    def _beside_mixture(self, mixture, energy, x, level, limit):
        """[B, D] b times the mixture's noised score, with what E's differs by from its own as t goes to 1."""
        seen = mixture.noised(x, level.alpha, level.variance)
        skip = level.spread * seen.score
        if energy is None:
            return skip
        # Not at x / alpha, which is outside of every narrow place, where neither says anything.
        one = jnp.ones_like(level.alpha)
        more = _score(energy, seen.mean, self.path) - mixture.noised(seen.mean, one, 0 * one).score
        more, _ = clipped(level.gate * level.spread / level.alpha * more, limit, self._dimension(x))
        return skip + level.gate * more

    def _target(self, target, x, t, level):
        """(b times the target score [B, D], whether it was cut [B])."""
        if isinstance(target, ConditionalScore | EstimatedScore):
            score = target.score
        else:
            # No estimate is valid at t = 1, where the linear path's velocity does not tell the score.
            score = jnp.where(level.variance > 0, self.path.score_from_velocity(target, x, t), 0.0)
        return self._clip(jax.lax.stop_gradient(level.spread * score), self.max_target_norm)

    def _clip(self, normalised, limit):
        if limit is None:
            return normalised, jnp.zeros(normalised.shape[0], bool)
        return clipped(normalised, limit, self._dimension(normalised))

    def _left_open(self, t, r):
        """[B] sigma_t^2 (sigma_t^2 - v)/v: 0 at r = 1, infinite as r comes to t."""
        kernel = self.path.kernel(t, r)
        return self.path.variance(t) * kernel.scale**2 * self.path.variance(r) / kernel.variance

    def _learns_variance(self, x):
        return bool(np.all(np.asarray(self.path.confinement(x.shape[-1])) == 1))

    def _dimension(self, x):
        return self.path.dimension(x.shape[-1])


class Level(NamedTuple):
    """alpha, sigma^2, b and c at the times of a batch, [B, 1] each."""

    alpha: Array
    variance: Array
    spread: Array
    gate: Array


def level_at(alpha: Array, variance: Array, length_scale: Any) -> Level:
    """The level of a head with this s, from alpha and sigma^2, [B, 1] each."""
    signal = alpha**2 * length_scale**2
    return Level(alpha, variance, jnp.sqrt(variance + signal), signal / (variance + signal))


def normal_score(x: Array, level: Level, precision: Array) -> Array:
    """[B, D] noised score of N(m, S^2 I) at x = x_t - alpha m, of precision 1 / S^2 [1, D], 0 for angles."""
    return -x * precision / (level.variance * precision + level.alpha**2)


def untrained(own: Array | None, base: Array, level: Level, dimension: int, limit: float = _MOST) -> Array:
    """[B, D] b times the score of a head whose network says zero.

    Args:
      own: [B, D] -grad E at x_t / alpha; None for a head without it.
      base: [B, D] the noised score of what stands for the target far from the data.
      level: of the times.
      dimension: of the space.
      limit: the bracket is cut at this multiple of sqrt(dimension).
    """
    skip = level.spread * base
    if own is None:
        return skip
    own, _ = clipped(level.gate * level.spread / level.alpha * own, limit, dimension)
    return level.gate * own + (1 - level.gate) * skip


def clipped(normalised: Array, limit: float, dimension: int) -> tuple[Array, Array]:
    """([B, D] no longer than limit sqrt(dimension), [B] whether it was cut); NaN is cut to 0, and counts."""
    # The factor is differentiated too: a flow's determinant needs it.
    finite = jnp.all(jnp.isfinite(normalised), axis=-1, keepdims=True)
    normalised = jnp.where(finite, normalised, 0.0)
    most = limit * dimension**0.5
    # Scaled first, so that squares do not overflow.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(normalised), axis=-1, keepdims=True))
    unit = jnp.maximum(largest, most)
    square = jnp.sum(jnp.square(normalised / unit), axis=-1, keepdims=True)
    share = (most / unit) ** 2
    factor = jnp.where(square > share, jnp.sqrt(share / jnp.maximum(square, share)), 1.0)
    return normalised * factor, ~(finite & (square <= share))[:, 0]


def _spread(batch: int, most: int = 64) -> np.ndarray:
    """Indices of up to `most` examples, evenly over the batch."""
    return np.arange(min(batch, most)) * batch // min(batch, most) if batch else np.zeros(0, np.int32)


def _score(energy: Callable[[Array], Array], x: Array, path: GaussianPath) -> Array:
    """[B, D] -grad E on the path's space."""
    checks.function(energy, "energy")

    def total(y):
        return jnp.sum(checks.model_output(energy(y), "energy", y.shape[:1]))

    return -path.project(jax.grad(total)(x))


def _log_factor(output: Array) -> Array:
    """G, bounded so that no exponential overflows."""
    return 8.0 * jnp.tanh(checks.wide(output)[..., 1] / 8.0)
