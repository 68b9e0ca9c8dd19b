"""Heads: how a network's output stands for the marginal generator of a path, and what trains it.

A head turns the output into what a process takes (`generator`), says which Bregman divergence compares
it with a target (`divergence`), and makes conditional targets for states drawn by path weight
(`conditional_target`). A target is the `generator` of an `Estimate`, or what `conditional_target` gives.
The energy that a head is handed is the one that training is at (annealed); where it is differentiable
it is a starting point for the score near t = 1 and a target there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, divergences, importance, smoothness
from egm.paths._gaussian_base import GaussianPath
from egm.paths.masked import MaskedPath
from egm.paths.product import ProductPath
from egm.typing import Array, Energy, Gaussian, Path, PyTree, State


class Head(Protocol):
    """What an algorithm asks of a head; states have one batch axis, t is [B]."""

    @property
    def path(self) -> Path:
        """The path of the generator."""
        ...

    def generator(self, output: PyTree, x_t: State, t: Array, energy: Energy) -> PyTree:
        """The generator in the path's form, as a process takes it."""
        ...

    def conditional_target(self, x_1: State, x_t: State, t: Array, energy: Energy | None) -> PyTree:
        """A target given x_1, its mean over x_1 given x_t the marginal one; without E the plain one."""
        ...

    def divergence(self, target: PyTree, output: PyTree, x_t: State, t: Array, energy: Energy) -> Array:
        """[B] Bregman divergence, up to terms of the target alone; no gradient flows into the target."""
        ...

    def metrics(
        self, target: PyTree, output: PyTree, x_t: State, t: Array, energy: Energy
    ) -> dict[str, Array]:
        """Scalars to report beside the divergence: what was clipped."""
        ...

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int]:
        """Evaluations of E (a gradient is one) for each call of (generator, conditional_target)."""
        ...


@dataclasses.dataclass(frozen=True)
class DenoiserHead:
    """Logits [B, L, V] that stand for the denoiser of a masked path.

    Attributes:
      path: the masked path.
    """

    path: MaskedPath

    def __post_init__(self):
        if not isinstance(self.path, MaskedPath):
            raise TypeError(f"path must be a MaskedPath, got {self.path!r:.80}")

    def generator(self, output: Array, x_t: Array, t: Array | None = None, energy: Any = None) -> Array:
        """[B, L, V] probabilities: softmax at masked sites, 1 at the token of a visible one."""
        del t, energy
        x_t, output = self._checked(x_t, output)
        visible = jax.nn.one_hot(x_t, self.path.vocab_size, dtype=output.dtype)
        hidden = self.path.masked(x_t)[..., None]
        return jnp.where(hidden, jax.nn.softmax(output, axis=-1), visible)

    def divergence(
        self, target: Array, output: Array, x_t: Array, t: Array | None = None, energy: Any = None
    ) -> Array:
        """[B] mean over the masked sites of the KL divergence; 0 where no site is masked.

        With t uniform and kappa_t = t this is, up to a factor, the time integral of the Poisson KL
        between the rates of the chain, which weighs the sum over masked sites by 1/(1 - kappa_t):
        given the number n of masked sites that weight has mean (L + 1)/n.
        """
        del t, energy
        x_t, output = self._checked(x_t, output)
        hidden = self.path.masked(x_t)
        count = jnp.sum(hidden, axis=-1, keepdims=True)
        weights = hidden / jnp.maximum(count, 1).astype(output.dtype)
        return divergences.denoiser_kl(target, output, weights)

    def conditional_target(self, x_1: Array, x_t: Any = None, t: Any = None, energy: Any = None) -> Array:
        """[B, L, V] denoiser targets given x_1: its mean given all other sites where that is cheap.

        With `energy.single_site_conditionals` the softmax of the energy differences (Rao-Blackwell:
        the same mean, less variance), else x_1 itself.
        """
        del x_t, t
        conditionals = getattr(energy, "single_site_conditionals", None)
        plain = jax.nn.one_hot(checks.tokens(x_1, self.path.vocab_size), self.path.vocab_size)
        if conditionals is None:
            return plain
        logits = conditionals(x_1)
        # A token that makes the energy NaN or -inf weighs zero, as in an estimate; x_1 where none is left.
        logits = jnp.where(importance.nonfinite(logits), -jnp.inf, logits)
        some = jnp.any(logits > -jnp.inf, axis=-1, keepdims=True)
        return jnp.where(some, jax.nn.softmax(jnp.where(some, logits, 0.0), axis=-1), plain)

    def metrics(self, target, output, x_t, t=None, energy=None) -> dict[str, Array]:
        """Nothing: tokens are not clipped."""
        del target, output, x_t, t, energy
        return {}

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int]:
        """What the energy's `conditional_evaluations` says, one where it says nothing."""
        if not hasattr(energy, "single_site_conditionals"):
            return 0, 0
        count = getattr(energy, "conditional_evaluations", lambda num_sites: 1)
        return 0, count(event_shape[-1])

    def _checked(self, x_t, output):
        if len(self.path.batch_shape(x_t, "x_t")) != 1:
            raise ValueError(f"x_t must have shape [B, L], got {x_t.shape}")
        shape = (*x_t.shape, self.path.vocab_size)
        output = checks.float_array(output, "output")
        if output.shape != shape:
            raise ValueError(f"output must have shape {shape} for x_t {x_t.shape}, got {output.shape}")
        return checks.tokens(x_t, self.path.vocab_size), checks.wide(output)


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


@dataclasses.dataclass(frozen=True)
class ScoreHead:
    """[B, D, 2] that stand for the score and for the posterior variance on a Gaussian path.

    With b^2 = sigma_t^2 + alpha_t^2 s^2, c = alpha_t^2 s^2 / b^2 and (F, G) the two channels,
      score = c [c (-grad E)(x/alpha)/alpha] + (1 - c) (alpha m - x)/(sigma_t^2 + alpha_t^2 S^2) + F/b,
      Var[x_1 | x_t] = S^2 sigma_t^2 / (sigma_t^2 + alpha_t^2 S^2) exp(G),
    the bracket being the score where E is that of a normal distribution of scale s (on a subspace the
    variance is that times its dimension over D). So an output of zero is exact for a normal target
    N(m, S^2 I) at every t, with its energy where s = S, and for any target at t = 1. The same c mixes
    the two forms of a conditional score: grad E at x_1 (target-score form) and the noise.

    Attributes:
      path: the Gaussian path.
      length_scale: s, the scale below which E is close to a normal distribution's.
      data_scale: S, the extent of the target (of the annealing's reference).
      center: m, a number or a tuple of D.
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
    """

    path: Path
    length_scale: float = 1.0
    data_scale: float = 1.0
    center: float | tuple[float, ...] = 0.0
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
        part = energy.rows(rows) if hasattr(energy, "rows") else energy
        start, stop = jax.lax.stop_gradient((start, stop))
        return jax.lax.stop_gradient(smoothness.is_smooth(smoothness.probe_segments(part, start, stop)))

    def divergence(
        self,
        target: Array | ConditionalScore,
        output: Array,
        x_t: Array,
        t: Array,
        energy: Energy | None = None,
    ) -> Array:
        """[B] b^2 |score - target|^2 / D, and for a conditional target that of the variance too.

        A conditional target may bring a weight for the first: sigma^2 / b^2 where it is the noise alone.

        The variance's is the Itakura-Saito divergence from the squared residual of x_1, whose minimiser
        is the mean square around the model's own posterior mean (its error included).

        Args:
          target: velocities [B, D] (an `Estimate`'s) or a `ConditionalScore`.
          output: [B, D, 2]. x_t: [B, D]. t: [B]. energy: E or None, as for `generator`.
        """
        level = self._level(t, x_t)
        prediction = self._normalised(output, x_t, level, energy)
        wanted, _ = self._target(target, x_t, t, level)
        loss = divergences.squared_error(wanted, prediction) / self._dimension(x_t)
        if not isinstance(target, ConditionalScore):
            return loss
        if target.weight is not None:
            loss = loss * target.weight
        residual = level.alpha * target.x_1 - x_t - level.variance / level.spread * prediction
        base = level.alpha**2 * self._base_variance(level, x_t)
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

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int]:
        """One gradient each."""
        return int(self.energy_skip), int(self.target_score)

    def _level(self, t, x):
        batch = self.path.batch_shape(x, "x_t")
        if len(batch) != 1:
            raise ValueError(f"x_t must have shape [B, D], got {x.shape}")
        t = checks.time(t, "t", batch)[:, None]
        alpha, variance = self.path.alpha(t).astype(x.dtype), self.path.variance(t).astype(x.dtype)
        signal = alpha**2 * self.length_scale**2
        return _Level(alpha, variance, jnp.sqrt(variance + signal), signal / (variance + signal))

    def _base_variance(self, level, x):
        broad = level.variance + level.alpha**2 * self.data_scale**2
        # A coordinate of isotropic noise on a subspace has less variance than one of the whole space.
        share = self._dimension(x) / x.shape[-1]
        return self.data_scale**2 * level.variance / broad * share

    def _normalised(self, output, x, level, energy):
        """[B, D] b times the score."""
        output = checks.float_array(output, "output")
        if output.shape != (*x.shape, 2):
            raise ValueError(f"output must have shape {(*x.shape, 2)}, got {output.shape}")
        center = jnp.broadcast_to(jnp.asarray(self.center, x.dtype), x.shape)
        broad = level.variance + level.alpha**2 * self.data_scale**2
        skip = level.spread * (level.alpha * center - x) / broad
        if self.energy_skip and energy is not None:
            own = level.gate * level.spread / level.alpha * _score(energy, x / level.alpha, self.path)
            own, _ = self._clip(own, min(self.max_drift_norm or 10.0, 10.0))
            skip = level.gate * own + (1 - level.gate) * skip
        return self.path.project(skip + checks.wide(output)[..., 0])

    def _target(self, target, x, t, level):
        """(b times the target score [B, D], whether it was cut [B])."""
        score = target.score if isinstance(target, ConditionalScore) else None
        if score is None:
            # No estimate is valid at t = 1, where the linear path's velocity does not tell the score.
            score = jnp.where(level.variance > 0, self.path.score_from_velocity(target, x, t), 0.0)
        return self._clip(jax.lax.stop_gradient(level.spread * score), self.max_target_norm)

    def _clip(self, normalised, limit):
        if limit is None:
            return normalised, jnp.zeros(normalised.shape[0], bool)
        # NaN is cut to 0, and counts. The factor is differentiated too: a flow's determinant needs it.
        finite = jnp.all(jnp.isfinite(normalised), axis=-1, keepdims=True)
        normalised = jnp.where(finite, normalised, 0.0)
        most = limit * self._dimension(normalised) ** 0.5
        # Scaled first, so that squares do not overflow.
        largest = jax.lax.stop_gradient(jnp.max(jnp.abs(normalised), axis=-1, keepdims=True))
        unit = jnp.maximum(largest, most)
        square = jnp.sum(jnp.square(normalised / unit), axis=-1, keepdims=True)
        share = (most / unit) ** 2
        factor = jnp.where(square > share, jnp.sqrt(share / jnp.maximum(square, share)), 1.0)
        return normalised * factor, ~(finite & (square <= share))[:, 0]

    def _dimension(self, x):
        return self.path.dimension(x.shape[-1])


@dataclasses.dataclass(frozen=True, init=False)
class ProductHead:
    """A pytree of heads over a pytree of outputs and states: one divergence a leaf, summed by weight.

    The score of a Gaussian part starts from the gradient of `energy.relaxed`, the energy with
    probabilities in place of tokens, where the energy has it: visible tokens are certain, masked ones
    have the denoiser's probabilities.

    Args:
      heads: a dict (or any pytree) of heads.
      weights: the same structure of floats; None weighs every leaf 1.
    """

    path: ProductPath
    _heads: tuple[Any, ...]
    _weights: tuple[float, ...]
    _treedef: Any

    def __init__(self, heads: PyTree, weights: PyTree = None):
        if not jax.tree.leaves(heads, is_leaf=lambda h: hasattr(h, "conditional_target")):
            raise ValueError(f"heads must hold at least one head, got {heads!r:.80}")
        leaves, treedef = jax.tree.flatten(heads, is_leaf=lambda h: hasattr(h, "conditional_target"))
        for leaf in leaves:
            if not hasattr(leaf, "conditional_target"):
                raise TypeError(f"every leaf of heads must be a head, got {leaf!r}")
        object.__setattr__(self, "path", ProductPath(treedef.unflatten([h.path for h in leaves])))
        values = [1.0] * len(leaves) if weights is None else self._parts(weights, "weights")
        values = tuple(checks.positive_float(w, "weights", allow_zero=True) for w in values)
        object.__setattr__(self, "_heads", tuple(leaves))
        object.__setattr__(self, "_weights", values)
        object.__setattr__(self, "_treedef", treedef)

    def generator(self, output: PyTree, x_t: State, t: Array, energy: Energy | None = None) -> PyTree:
        """The pytree of the leaves' generators."""
        # A flow's determinant needs the derivative by way of the denoiser as well.
        leaves = self._each(output, x_t, energy, lambda p: p)
        return self._treedef.unflatten(head.generator(out, x, t, leaf) for head, out, x, leaf in leaves)

    def conditional_target(self, x_1: State, x_t: State, t: Array, energy: Energy | None = None) -> PyTree:
        """The pytree of the leaves' targets, each given all of x_1."""
        parts_1, parts_t = self._parts(x_1, "x_1"), self._parts(x_t, "x_t")
        found = []
        for i, head in enumerate(self._heads):
            leaf = None if energy is None else _LeafEnergy(energy, self._treedef, tuple(parts_1), i)
            found.append(head.conditional_target(parts_1[i], parts_t[i], t, leaf))
        return self._treedef.unflatten(found)

    def differentiable(self, x_1: State, x_t: State, t: Array, energy: Energy) -> Array:
        """Whether the targets of all leaves may use the energy's gradient: a scalar bool."""
        parts_1, parts_t = self._parts(x_1, "x_1"), self._parts(x_t, "x_t")
        smooth = jnp.ones((), bool)
        for i, head in enumerate(self._heads):
            if hasattr(head, "differentiable"):
                leaf = _LeafEnergy(energy, self._treedef, tuple(parts_1), i)
                smooth = smooth & head.differentiable(parts_1[i], parts_t[i], t, leaf)
        return smooth

    def divergence(
        self, target: PyTree, output: PyTree, x_t: State, t: Array, energy: Energy | None = None
    ) -> Array:
        """[B] sum over the leaves of their weight times their divergence."""
        total = 0.0
        parts = self._each(output, x_t, energy, jax.lax.stop_gradient)
        leaves = zip(self._weights, self._parts(target, "target"), parts, strict=True)
        for weight, wanted, (head, out, x, leaf) in leaves:
            total = total + weight * head.divergence(wanted, out, x, t, leaf)
        return total

    def metrics(self, target, output, x_t, t, energy=None) -> dict[str, Array]:
        """Those of the leaves; the mean over the leaves that report one."""
        found = {}
        parts = self._each(output, x_t, energy, jax.lax.stop_gradient)
        for wanted, (head, out, x, leaf) in zip(self._parts(target, "target"), parts, strict=True):
            for name, value in head.metrics(wanted, out, x, t, leaf).items():
                found.setdefault(name, []).append(value)
        return {name: jnp.mean(jnp.stack(values)) for name, values in found.items()}

    def probe_evaluations(self, energy: Energy) -> int:
        """The sum over the leaves."""
        return sum(h.probe_evaluations(energy) for h in self._heads if hasattr(h, "probe_evaluations"))

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> tuple[int, int]:
        """The sums over the leaves."""
        shapes = self._parts(event_shape, "event_shape")
        each = [h.energy_evaluations(energy, s) for h, s in zip(self._heads, shapes, strict=True)]
        return sum(a for a, _ in each), sum(b for _, b in each)

    def _parts(self, tree, name):
        """The subtrees at the heads' places; raises ValueError where the structure differs."""
        return self.path.leaves_with(tree, name)[1]

    def _each(self, output, x_t, energy, hold):
        """(head, output, state, energy of the part with the others held) of every leaf.

        `hold` is what becomes of the denoiser's probabilities: a loss of one part trains no other.
        """
        outputs, parts = self._parts(output, "output"), self._parts(x_t, "x_t")
        relaxed, filled = getattr(energy, "relaxed", None), list(parts)
        for i, head in enumerate(self._heads):
            if isinstance(head, DenoiserHead):
                filled[i] = hold(head.generator(outputs[i], parts[i]))
        for i, head in enumerate(self._heads):
            leaf = None if relaxed is None else _LeafEnergy(relaxed, self._treedef, tuple(filled), i)
            yield head, outputs[i], parts[i], leaf


class _LeafEnergy(NamedTuple):
    """An energy as a function of one part of a product state, the others held."""

    energy: Any
    treedef: Any
    parts: tuple[Any, ...]
    index: int

    def _state(self, part):
        return self.treedef.unflatten([*self.parts[: self.index], part, *self.parts[self.index + 1 :]])

    def __call__(self, part: State) -> Array:
        return self.energy(self._state(part))

    def rows(self, index: Array) -> _LeafEnergy:
        """That of some of the states."""
        return self._replace(parts=jax.tree.map(lambda a: a[index], self.parts))

    def __getattr__(self, name: str):
        # Offered only where the energy itself offers it, as `hasattr` must tell.
        if name == "single_site_conditionals":
            conditionals = self.energy.single_site_conditionals
            return lambda part: conditionals(self._state(part))
        if name == "differentiable":
            return self.energy.differentiable
        raise AttributeError(name)


class _Level(NamedTuple):
    """alpha, sigma^2, b and c at the times of a batch, [B, 1] each."""

    alpha: Array
    variance: Array
    spread: Array
    gate: Array


def _spread(batch: int, most: int = 64) -> np.ndarray:
    """Indices of up to `most` examples, evenly over the batch."""
    return np.arange(min(batch, most)) * batch // min(batch, most) if batch else np.zeros(0, np.int32)


def _score(energy: Callable[[Array], Array], x: Array, path: Path) -> Array:
    """[B, D] -grad E on the path's space."""
    checks.function(energy, "energy")

    def total(y):
        return jnp.sum(checks.model_output(energy(y), "energy", y.shape[:1]))

    return -path.project(jax.grad(total)(x))


def _log_factor(output: Array) -> Array:
    """G, bounded so that no exponential overflows."""
    return 8.0 * jnp.tanh(checks.wide(output)[..., 1] / 8.0)
