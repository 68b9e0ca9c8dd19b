"""Proposals of an estimate other than the path's own q_{r|t}, with the weights that mend them.

With x_r ~ q and log w = phi_r(x_r) + log p_{t|r}(x_t | x_r) - log Z_{r|t}(x_t) - log q(x_r) every
proposal estimates the same generator and log-marginal (`egm.estimate`); the last three terms are
`log_weight`, zero for the path's own. On tokens what a proposal chooses is which masked sites it reveals;
tokens are uniform. The marginal itself reveals each with probability (kappa_r - kappa_t)/(1 - kappa_t),
whatever the tokens, and a proposal that does so leaves w = exp g alone, g = phi - log Z_{1|.}: nothing
of the weights' spread is due to how many sites were revealed. On Gaussian paths it chooses the normal
distribution of x_r: the path's own or, `Guided`, a model's.

Source: the estimators are those of EGM (arXiv 2505.19646); these proposals are this library's.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, random
from egm.paths.gaussian import GaussianPath
from egm.paths.masked import MaskedPath
from egm.paths.product import ProductPath
from egm.processes.diffusion import DiffusionProcess, NormalKernel
from egm.typing import Array, Draw, Key, ModelFn, Path, Proposal, State

__all__ = ["Guided", "IndependentReveal", "SharedReveal", "matched_probability"]


@dataclasses.dataclass(frozen=True)
class IndependentReveal:
    """Each sample reveals each masked site by itself with a probability of one's own.

    Parts of a product that are not masked paths use their own q_{r|t}.

    Attributes:
      probability: of a reveal, in (0, 1]; None for the marginal's, (kappa_r - kappa_t)/(1 - kappa_t).
        At r = 1 every site is revealed.
    """

    probability: float | None = None

    def __post_init__(self):
        if self.probability is not None and checks.positive_float(self.probability, "probability") > 1:
            raise ValueError(f"probability must be in (0, 1], got {self.probability}")

    def propose(self, draw: Draw, path: Path, x_t: State, t: Array, r: Array) -> State:
        """See `egm.typing.Proposal`."""
        return _each(self._tokens, draw, path, x_t, t, r)

    def log_weight(self, path: Path, x_t: State, t: Array, x_r: State, r: Array) -> Array:
        """See `egm.typing.Proposal`."""
        return _reveal_log_weight(path, x_t, t, x_r, r, self._probability)

    def _probability(self, path: MaskedPath, t: Array, r: Array) -> Array:
        if self.probability is None:
            return matched_probability(path, t, r)
        return jnp.where(r >= 1, 1.0, self.probability)

    def _tokens(self, draw: Draw, path: MaskedPath, x_t: Array, t: Array, r: Array) -> Array:
        k_reveal, k_token = random.split(draw.key)
        wide = _repeat(_int32(path, x_t), draw.size)
        probability = jnp.broadcast_to(self._probability(path, t, r)[..., None], x_t.shape)
        reveal = jax.random.uniform(k_reveal, wide.shape) < _repeat(probability, draw.size)
        token = jax.random.randint(k_token, wide.shape, 0, path.vocab_size, jnp.int32)
        return jnp.where(path.masked(wide) & reveal, token, wide)


@dataclasses.dataclass(frozen=True)
class SharedReveal:
    """All samples of an estimate reveal the same sites, and their tokens are spread evenly.

    Of n masked sites a random set S of about n (kappa_r - kappa_t)/(1 - kappa_t) is revealed, drawn once
    an example; g(x) = log E exp g(x with S <- uniform tokens) holds for every S, so that the choice of S
    adds nothing to the spread of the weights. The first sites of S, as many as K samples can, take all
    combinations of tokens equally often: where V^|S| <= K the sum over S is exact. The denoiser's target
    is zero at the sites that are not in S, where cross-entropy then learns nothing from it.

    Parts of a product that are not masked paths use their own q_{r|t}.
    """

    def propose(self, draw: Draw, path: Path, x_t: State, t: Array, r: Array) -> State:
        """See `egm.typing.Proposal`."""
        return _each(self._tokens, draw, path, x_t, t, r)

    def log_weight(self, path: Path, x_t: State, t: Array, x_r: State, r: Array) -> Array:
        """See `egm.typing.Proposal`: of samples that reveal by themselves; S is the same for all."""
        return _reveal_log_weight(path, x_t, t, x_r, r, matched_probability)

    def _tokens(self, draw: Draw, path: MaskedPath, x_t: Array, t: Array, r: Array) -> Array:
        k_order, k_count, k_shift = random.split(draw.shared_key, 3)
        hidden = path.masked(x_t)
        # The place of each masked site in a random order, the same for all samples.
        score = jnp.where(hidden, jax.random.uniform(k_order, x_t.shape), 2.0)
        rank = jnp.argsort(jnp.argsort(score, axis=-1), axis=-1)
        expected = jnp.sum(hidden, axis=-1) * matched_probability(path, t, r)
        size = jnp.floor(expected + jax.random.uniform(k_count, expected.shape))
        size = jnp.where(r >= 1, x_t.shape[-1], size)  # whatever the rounding
        vocab, count = path.vocab_size, min(draw.num_samples, draw.size)
        even = next(m for m in itertools.count() if vocab ** (m + 1) > count)
        shift = jax.random.randint(k_shift, x_t.shape, 0, vocab, jnp.int32)
        # Site number m of S has digit m of the sample's index, in base V: all combinations, equally often.
        power = vocab ** jnp.minimum(rank, max(even - 1, 0))
        wide, rank, power, shift, size = (
            _repeat(a, draw.size)
            for a in (_int32(path, x_t), rank, power, shift, jnp.broadcast_to(size[..., None], x_t.shape))
        )
        index = jnp.broadcast_to(jnp.arange(draw.size).reshape(-1, *(1,) * x_t.ndim), wide.shape)
        free = jax.random.randint(draw.key, wide.shape, 0, vocab, jnp.int32)
        token = jnp.where(rank < even, (index // power + shift) % vocab, free)
        return jnp.where(path.masked(wide) & (rank < size), token, wide)


@dataclasses.dataclass(frozen=True)
class Guided:
    """Gaussian parts of x_r drawn by a model's own diffusion step, in pairs; tokens by another proposal.

    The path's own q_{r|t} is what x_r would be under a flat density, and its weights cost about D/2 nats for
    each factor e of the variance. A step of the model, N(E[x_r | x_t], Var[x_r | x_t]) by its score and
    posterior variance, has equal weights where p_{r|t} is normal with independent coordinates, whatever the
    dimension; elsewhere the weights mend what the model has wrong. Samples come in pairs on both sides of the
    mean, so that what is linear in them has no noise. Where the model is not finite the path's own q_{r|t}
    is used.

    Attributes:
      generator: the model, `generator(x [B, *event], t [B])` as a process takes it; `Bootstrap` puts the
        average of its own in the place of None.
      tokens: the proposal of all other parts; what it would do of the Gaussian ones must be the path's own
        q_{r|t}, as it is with the proposals here.

    Raises:
      ValueError: in `prepare`, for a path with a Gaussian part and without a generator.
    """

    generator: ModelFn | None = None
    tokens: Proposal = SharedReveal()

    def __post_init__(self):
        if self.generator is not None:
            checks.function(self.generator, "generator")
        checks.instance(self.tokens, Proposal, "tokens")

    def prepare(self, path: Path, x_t: State, t: Array, r: Array) -> list[NormalKernel] | None:
        """See `egm.typing.PreparedProposal`: the kernel of every Gaussian part."""
        if not self.calls(path):
            return None
        if self.generator is None:
            raise ValueError(
                f"generator must be a function where a part of the path is Gaussian, got None: {path}"
            )
        rows = _leaves(path, x_t, self.generator(x_t, t), names=("x_t", "generator"))
        return [_kernel(p, x, out, t, r) for p, x, out in rows if isinstance(p, GaussianPath)]

    def calls(self, path: Path) -> int:
        """How often `prepare` calls the generator: once if a part of the path is Gaussian, else never."""
        return int(any(isinstance(p, GaussianPath) for p in _parts(path)))

    def propose(self, draw: Draw, path: Path, x_t: State, t: Array, r: Array) -> State:
        """See `egm.typing.PreparedProposal`."""
        other = self.tokens.propose(draw, path, x_t, t, r)
        if draw.context is None:
            return other
        kernels = iter(draw.context)
        parts = [
            _pairs(random.derive(jax.random.fold_in(draw.key, i), "guided"), p, next(kernels), draw)
            if isinstance(p, GaussianPath)
            else part
            for i, (p, part) in enumerate(_leaves(path, other))
        ]
        return _rebuilt(path, iter(parts))

    def log_weight(
        self, path: Path, x_t: State, t: Array, x_r: State, r: Array, context: Any = None
    ) -> Array:
        """See `egm.typing.PreparedProposal`."""
        total = self.tokens.log_weight(path, x_t, t, x_r, r)
        if context is None:
            return total
        rows = [row for row in _leaves(path, x_t, x_r) if isinstance(row[0], GaussianPath)]
        for (p, before, after), kernel in zip(rows, context, strict=True):
            own = p.log_noising(before, t, after, r) - p.log_normalizer(before, t, r)[None]
            total = total + own - _log_density(p, after, kernel)
        return total


def matched_probability(path: MaskedPath, t: Array, r: Array) -> Array:
    """(kappa_r - kappa_t)/(1 - kappa_t): the marginal's probability to reveal a masked site from t to r."""
    left = 1 - path.kappa(t)
    share = (path.kappa(r) - path.kappa(t)) / jnp.where(left > 0, left, 1.0)
    return jnp.where(r >= 1, 1.0, jnp.clip(share, 0.0, 1.0))


def _repeat(a: Array, size: int) -> Array:
    return jnp.broadcast_to(a[None], (size, *a.shape))


def _int32(path: MaskedPath, x: Array) -> Array:
    return checks.tokens(x, path.vocab_size)


def _leaves(path: Path, *states: Any, names: tuple[str, ...] = ()) -> list[tuple]:
    """(path, part of each state) of the parts of a product, or of the path alone."""
    if not isinstance(path, ProductPath):
        return [(path, *states)]
    names = names or ("state",) * len(states)
    parts = (path.leaves_with(s, name)[1] for s, name in zip(states, names, strict=True))
    rows = zip(path.leaves_with(path.paths)[0], *parts, strict=True)
    return [leaf for p, *row in rows for leaf in _leaves(p, *row, names=names)]


def _parts(path: Path) -> list[Path]:
    """The paths of `_leaves`."""
    if not isinstance(path, ProductPath):
        return [path]
    return [leaf for p in path.leaves_with(path.paths)[0] for leaf in _parts(p)]


def _rebuilt(path: Path, parts: Iterator[State]) -> State:
    """The state whose leaves come in the order of `_leaves`."""
    if not isinstance(path, ProductPath):
        return next(parts)
    return path.unflatten(_rebuilt(p, parts) for p in path.leaves_with(path.paths)[0])


def _kernel(path: GaussianPath, x: Array, out: Any, t: Array, r: Array) -> NormalKernel:
    """The model's step from x by what it said there; q_{r|t} where that is not finite."""
    mean, variance = DiffusionProcess(path).forward_kernel(x, lambda x, t: out, t, r)
    scale, _, noise = (c.astype(mean.dtype)[:, None] for c in path.kernel(checks.wide(t), checks.wide(r)))
    fits = jnp.all(jnp.isfinite(mean), axis=-1, keepdims=True)
    fits = fits & jnp.all(jnp.isfinite(variance) & (variance > 0), axis=-1, keepdims=True)
    return NormalKernel(
        jnp.where(fits, mean, checks.wide(x) / scale), jnp.where(fits, variance, noise / scale**2)
    )


def _pairs(key: Key, path: GaussianPath, kernel: NormalKernel, draw: Draw) -> Array:
    """[size, ...] normal states, those of the second half of the samples reflections of the first.

    Half a number of samples apart: there `SharedReveal` has the same tokens where V and K are powers of two
    and V^|S| <= K/2.
    """
    half = min(draw.num_samples, draw.size) // 2
    noise = path.standard_normal(key, (draw.size - half, *kernel.mean.shape), kernel.mean.dtype)
    noise = jnp.concatenate([noise[:half], -noise[:half], noise[half:]])
    return kernel.mean[None] + jnp.sqrt(kernel.variance)[None] * noise


def _log_density(path: GaussianPath, x: Array, kernel: NormalKernel) -> Array:
    """[K, B] of x [K, B, D]."""
    mean, variance = (jnp.broadcast_to(a[None], (x.shape[0], *a.shape)) for a in kernel)
    if variance.shape[-1] == 1:
        return path.normal_log_density(x, mean, variance[..., 0])
    return jnp.sum(path.coordinate_log_density(x, mean, variance), axis=-1)


def _each(tokens, draw: Draw, path: Path, x_t: State, t: Array, r: Array) -> State:
    if isinstance(path, ProductPath):
        paths, parts = path.leaves_with(x_t)
        keys, shared = random.split(draw.key, len(paths)), random.split(draw.shared_key, len(paths))
        rows = zip(keys, shared, paths, parts, strict=True)
        return path.unflatten(
            _each(tokens, draw._replace(key=k, shared_key=s), p, part, t, r) for k, s, p, part in rows
        )
    if isinstance(path, MaskedPath):
        return tokens(draw, path, x_t, t, r)
    return path.propose(draw.key, x_t, t, r, draw.size)


def _reveal_log_weight(path, x_t, t, x_r, r, probability) -> Array:
    parts = [
        _masked_log_weight(p, a, t, b, r, probability(p, t, r))
        for p, a, b in _leaves(path, x_t, x_r)
        if isinstance(p, MaskedPath)
    ]
    return functools.reduce(operator.add, parts) if parts else jnp.zeros(jax.tree.leaves(x_r)[0].shape[:-1])


def _masked_log_weight(path, x_t, t, x_r, r, probability) -> Array:
    """Log of the path's reveal probabilities over the proposal's, summed over the masked sites of x_t."""
    # With odds o = V (kappa_r - kappa_t)/kappa_r the path reveals with probability o/(1 + o).
    kappa_r = jnp.where(r > 0, path.kappa(r), 1.0)
    difference = path.vocab_size * (path.kappa(r) - path.kappa(t))
    total = kappa_r + difference
    to_data = r >= 1
    open_ = ~to_data & (probability < 1)
    stay = jnp.log(kappa_r / total) - jnp.log1p(-jnp.where(open_, probability, 0.0))
    some = ~to_data & (probability > 0)
    reveal = jnp.log(jnp.where(some, difference / total, 1.0)) - jnp.log(jnp.where(some, probability, 1.0))
    # A mask in x_r is one in x_t.
    num_left = jnp.sum(path.masked(x_r), axis=-1)
    lead = (1,) * (num_left.ndim - (x_t.ndim - 1))
    num_hidden, stay, reveal = (
        jnp.broadcast_to(jnp.broadcast_to(a, x_t.shape[:-1]).reshape(*lead, *x_t.shape[:-1]), num_left.shape)
        for a in (jnp.sum(path.masked(x_t), axis=-1), jnp.where(open_, stay, 0.0), reveal)
    )
    return num_left * stay + (num_hidden - num_left) * reveal
