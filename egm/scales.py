"""The scales of a target from its energy alone: centre, extent and finest length, by descent to minima.

They set the path (sigma_min, sigma_max), the reference that annealing starts from, and the units of
networks and heads, before anything is trained. Short Metropolis-adjusted chains from the minima give states
of the target's own spread; on these the length is the one with which an untrained head does best.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egm import checks, moves, random
from egm.heads.score import level_at, normal_score, untrained
from egm.typing import Array, Energy, Key, State

__all__ = ["Length", "Scales", "as_argument", "find_length", "find_scales"]

_REACH = 2.5  # S from the centre beyond which the beginning of annealing would lose a minimum
_WIDER = 1.05  # times S by the minima, from which S is that of the chains
_BLOCKS, _KEPT, _ROUNDS = 10, 5, 40  # of the chains: blocks, those that are kept, moves a block
_RATIOS = 2.0 ** (0.5 * np.arange(0, -9, -1))  # lengths tried, in widths of a minimum
_NUM_NOISES = 24
_TIE = 0.005  # of the loss a dimension: the longest length this near to the best one is taken


class Scales(NamedTuple):
    """Lengths of a target's continuous part.

    Attributes:
      center: [D] mean of the minima found, each by the number of descents that ended there; where a
        minimum would then lie beyond 2.5 S, each counts once.
      data_scale: S, root mean square over dimensions of their spread, the width of a minimum included; that
        of chains from the minima where it is larger by a twentieth.
      radius: largest coordinate of a minimum beyond `center`, three widths of a minimum included.
      length_scale: s, the length with which a score head (`egm.heads.ScoreHead`) that is not trained has
        the smallest loss, of those from the width of a minimum to a sixteenth of it; of equals the longest.
      num_minima: how many descents ended in a minimum low enough to count, of all that were started.
      search_radius: of the widest search that found something new; above the one that was asked for
        where the target reaches further than that.
      minima: [M, D] the distinct ones among them, lowest first, at most 256.
      energies: [M] their energies.
      width: of a minimum, (dimension of the space / trace of the Hessian)^(1/2), the median over minima.
      lengths: [K] those that were tried for s.
      losses: [K] the loss of the untrained head with each, its mean over log sigma less that of the
        smallest one.
    """

    center: np.ndarray
    data_scale: float
    radius: float
    length_scale: float
    num_minima: int
    search_radius: float = 0.0
    minima: np.ndarray = np.zeros((0, 0))
    energies: np.ndarray = np.zeros(0)
    width: float = 0.0
    lengths: np.ndarray = np.zeros(0)
    losses: np.ndarray = np.zeros(0)


def find_scales(
    key: Key,
    energy: Energy,
    event_shape: Any,
    search_radius: float,
    *,
    vocab_size: int | None = None,
    project: Callable[[Array], Array] | None = None,
    num_starts: int = 256,
    num_steps: int = 500,
    energy_range: float = 10.0,
    max_widenings: int = 3,
) -> Scales:
    """Descend from N(0, search_radius^2 I) with Adam and measure the minima within reach of the lowest.

    Then descend again from three times as far. Where that finds a lower minimum, or low ones away from
    all others, they count too and the search goes on three times further; where it does not, the first
    search's figures stay as they are.

    A pilot for settings, not an answer: minima that no descent reaches stay unseen, those beyond some
    three times `search_radius` and those whose basin no start meets (a basin of a share p of the starts'
    volume is met with probability 1 - (1 - p)^num_starts). A sampler set up by these scales does not see
    them either, and neither its ESS nor its log Z tells: see `egm.evidence`. Tokens are drawn uniformly
    and held.

    Args:
      key: a typed key.
      energy: E, `[N] = energy(x)`.
      event_shape: (D,), or a dict of shapes with one part (D,) named "x" and tokens.
      search_radius: how far out the target may reach, in its own units.
      vocab_size: V of the token parts.
      project: onto the space of a centred path (`path.project`); None for all of R^D.
      num_starts: descents of a search.
      num_steps: of each.
      energy_range: minima count up to this much above the lowest.
      max_widenings: searches at most beyond the first; 0 for that one alone.

    Returns:
      Scales, on the host.

    Raises:
      ValueError: no descent ended at a finite energy, or the curvature there is not positive, as of a
        log-density, whose sign is the other one.
    """
    energy_range = checks.positive_float(energy_range, "energy_range")
    radius = search_radius = checks.positive_float(search_radius, "search_radius")
    checks.positive_int(max_widenings, "max_widenings", 0)
    search = _Search.of(key, energy, event_shape, vocab_size, project, num_starts, num_steps)
    ends, values = search.ends(key, radius)
    if not len(ends.value):
        raise ValueError(_nowhere_finite(values, num_starts, radius))
    dimension = search.space.size
    for widening in range(1, max_widenings + 1):
        wide, _ = search.ends(random.derive(key, f"widening {widening}"), 3.0**widening * search_radius)
        # Far out an energy may fall for ever or not at all: that is no minimum.
        wide = wide.where(wide.trace > 0)
        if not _adds(ends, wide, dimension, energy_range):
            break
        ends, radius = ends.joined(wide), 3.0**widening * search_radius
    low = ends.where(ends.value <= ends.value.min() + energy_range)
    curvature = np.median(low.trace) / dimension
    if not curvature > 0:
        raise ValueError(
            f"energy has mean curvature {curvature} at its minima; it must be positive. Was a log-density "
            "passed? The energy is minus that"
        )
    return _measured(key, search, low, float(curvature**-0.5), radius)


def _measured(key: Key, search: _Search, low: _Ends, width: float, radius: float) -> Scales:
    """The scales of the minima that count and of chains from them."""
    dimension, project = search.space.size, search.space.project
    distinct = _distinct(low, 3 * width * dimension**0.5)
    center, data_scale = _normal(low.x, width, dimension)
    if np.max(np.linalg.norm(distinct.x - center, axis=-1)) > _REACH * data_scale * dimension**0.5:
        center, data_scale = _normal(distinct.x, width, dimension)
    k_chains, k_noise = random.split(random.derive(key, "chains"))
    rows = low.where(np.arange(search.num_starts) % len(low.value))
    x, tokens = jnp.asarray(rows.x, float), jax.tree.map(jnp.asarray, rows.tokens)
    states = _chains(search.whole, search.space, k_chains, x, tokens, jnp.asarray(width, float))
    beyond = np.asarray(states, np.float64) - center
    thermal = float(np.sqrt(np.mean(np.sum(beyond**2, axis=-1)) / dimension))
    if np.isfinite(thermal) and thermal > _WIDER * data_scale:
        data_scale = thermal
    found = find_length(k_noise, search.whole, states, tokens, width, center, data_scale, project)
    return Scales(
        center,
        data_scale,
        float(np.max(np.abs(low.x - center)) + 3 * width),
        found.length,
        len(low.value),
        radius,
        distinct.x,
        distinct.value,
        width,
        found.lengths,
        found.losses,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Search:
    """Descents of an energy of x [M, D] and tokens that are held."""

    whole: Callable[[Array, State], Array]
    shapes: dict[str, Any]
    vocab_size: int | None
    space: _Space
    num_starts: int
    num_steps: int

    @classmethod
    def of(cls, key, energy, event_shape, vocab_size, project, num_starts, num_steps) -> _Search:
        """Of checked arguments of `find_scales`."""
        checks.one_key(key)
        checks.function(energy, "energy")
        if project is not None:
            checks.function(project, "project")
        if vocab_size is not None:
            checks.positive_int(vocab_size, "vocab_size", 2)
        for name, value in (("num_starts", num_starts), ("num_steps", num_steps)):
            checks.positive_int(value, name)
        shapes = event_shape if isinstance(event_shape, dict) else {"x": event_shape}
        if "x" not in shapes or np.ndim(shapes["x"]) != 1 or len(shapes["x"]) != 1:
            raise ValueError(
                f"event_shape must be (D,) or a dict with a part 'x' of it, got {event_shape!r:.80}"
            )
        for shape in shapes.values():
            if not isinstance(shape, tuple | list):
                raise TypeError(f"event_shape must be a tuple of ints, got {event_shape!r:.80}")
            for n in shape:
                checks.positive_int(n, "every size in event_shape")
        if shapes.keys() - {"x"} and vocab_size is None:
            raise ValueError("vocab_size is needed for an event_shape with tokens, got None")

        def whole(x, tokens):
            return energy({"x": x} | tokens) if isinstance(event_shape, dict) else energy(x)

        space = _space(_identity if project is None else project, shapes["x"][0])
        return cls(as_argument(whole), shapes, vocab_size, space, num_starts, num_steps)

    def ends(self, key: Key, radius: float) -> tuple[_Ends, np.ndarray]:
        """(the descents' ends that are numbers, all energies)."""
        k_x, k_tokens = random.split(key)
        start = self.space.project(radius * jax.random.normal(k_x, (self.num_starts, *self.shapes["x"])))
        names = sorted(self.shapes.keys() - {"x"})
        keys = random.split(k_tokens, max(len(names), 1))
        tokens = {
            name: jax.random.randint(
                k, (self.num_starts, *self.shapes[name]), 0, self.vocab_size or 1, jnp.int32
            )
            for name, k in zip(names, keys, strict=False)
        }
        out = _descend(
            self.whole, self.space.project, self.num_steps, jnp.asarray(radius, float), start, tokens
        )
        x, value, trace = (np.asarray(a, np.float64) for a in out)
        found = _Ends(x, value, trace, jax.tree.map(np.asarray, tokens))
        finite = np.isfinite(value) & np.all(np.isfinite(x), axis=-1) & np.isfinite(trace)
        return found.where(finite), value


class Length(NamedTuple):
    """What `find_length` returns: s, and those tried [K] with their losses [K] above the smallest."""

    length: float
    lengths: np.ndarray
    losses: np.ndarray


def find_length(
    key: Key,
    energy: Callable[[Array, State], Array],
    states: Array,
    tokens: State,
    longest: float,
    center: Any = 0.0,
    data_scale: float = 1.0,
    project: Callable[[Array], Array] | None = None,
) -> Length:
    """The length s with which a score head that is not trained has the smallest loss on states of the target.

    Args:
      key: a typed key.
      energy: E, `[M] = energy(x [M, D], tokens)`.
      states: [K, M, D], roughly distributed as the target.
      tokens: with a leading axis M, held; an empty dict without any.
      longest: it and shorter ones down to a sixteenth are tried; of equals the longest is taken.
      center: c, a number or [D]. data_scale: S of the head.
      project: onto the space of a centred path.

    Returns:
      Length, on the host. Where no loss is a number, `longest`.
    """
    project = _identity if project is None else project
    size = states.shape[-1]
    lengths = longest * _RATIOS
    center = jnp.broadcast_to(jnp.asarray(center, states.dtype), (size,))
    losses = _losses(
        as_argument(energy), _space(project, size), key, states, tokens, center, data_scale, longest, lengths
    )
    losses = np.asarray(losses, np.float64)
    losses = losses - np.min(losses, initial=np.inf, where=np.isfinite(losses))
    length = float(np.max(lengths[losses <= _TIE], initial=0.0)) or float(longest)
    return Length(length, lengths, losses)


def as_argument(energy: Callable[..., Array]) -> Any:
    """E as an argument of compiled functions: arrays inside a `jax.tree_util.Partial` do not compile anew."""
    if isinstance(energy, jax.tree_util.Partial):
        return energy
    # By its identity: an energy with arrays of its own has no hash.
    return jax.tree_util.Partial(lambda *states: energy(*states))


def _identity(x: Array) -> Array:
    return x


class _Ends(NamedTuple):
    """Where descents ended: x [M, D], E [M], trace of the Hessian [M], and the tokens that were held."""

    x: np.ndarray
    value: np.ndarray
    trace: np.ndarray
    tokens: State

    def where(self, mask: np.ndarray) -> _Ends:
        return jax.tree.map(lambda a: a[mask], self)

    def joined(self, other: _Ends) -> _Ends:
        return jax.tree.map(lambda a, b: np.concatenate([a, b]), self, other)


@dataclasses.dataclass(frozen=True)
class _Space:
    """What `egm.moves` asks of a path."""

    project: Callable[[Array], Array]
    size: int

    def dimension(self, trailing_size: int) -> int:
        del trailing_size
        return self.size

    def standard_normal(self, key: Key, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.project(jax.random.normal(key, shape, dtype))

    def confinement(self, trailing_size: int) -> np.ndarray:
        return np.ones(trailing_size)


def _space(project: Callable[[Array], Array], size: int) -> _Space:
    """The image of R^size under a projection."""
    basis = np.eye(size, dtype=np.float32)
    return _Space(project, round(float(np.trace(np.asarray(project(jnp.asarray(basis)))))))


def _normal(x: np.ndarray, length: float, dimension: int) -> tuple[np.ndarray, float]:
    """(mean [D], root mean square a dimension) of minima [M, D] of this width."""
    center = x.mean(axis=0)
    return center, float(np.sqrt(np.mean(np.sum((x - center) ** 2, axis=-1)) / dimension + length**2))


def _adds(ends: _Ends, wide: _Ends, dimension: int, energy_range: float) -> bool:
    """Whether a wider search found a lower minimum, or a low one away from all that were known."""
    if not len(wide.value):
        return False
    lowest = min(ends.value.min(), wide.value.min())
    if wide.value.min() < ends.value.min() - 1:
        return True
    known = ends.where(ends.value <= lowest + energy_range)
    low = wide.where(wide.value <= lowest + energy_range)
    apart = 3 * (np.median(np.maximum(known.trace, 1e-300)) / dimension) ** -0.5 * dimension**0.5
    nearest = np.array([np.min(np.linalg.norm(known.x - x, axis=-1)) for x in low.x])
    return bool(np.any(nearest > apart))


def _distinct(low: _Ends, apart: float, most: int = 256) -> _Ends:
    """The minima further than `apart` from every lower one."""
    order, kept = np.argsort(low.value, kind="stable"), []
    for i in order:
        if len(kept) < most and all(np.linalg.norm(low.x[i] - low.x[k]) > apart for k in kept):
            kept.append(i)
    return low.where(np.array(kept))


def _nowhere_finite(value: np.ndarray, num_starts: int, radius: float) -> str:
    """The message where no descent has a finite energy in the end."""
    kinds = {"NaN": np.isnan(value), "-inf": np.isneginf(value), "+inf": np.isposinf(value)}
    seen = [f"{name} in {np.sum(found)}" for name, found in kinds.items() if found.any()]
    return (
        f"energy was not finite at the end of any of {num_starts} descents, with its derivatives"
        + (f" ({', '.join(seen)})" if seen else "")
        + f"; it must be finite somewhere within the search_radius of {radius:g}"
    )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _descend(
    energy: Any,
    project: Callable[[Array], Array],
    num_steps: int,
    radius: Array,
    x: Array,
    tokens: State,
) -> tuple[Array, Array, Array]:
    """(x [M, D], E [M], trace of the Hessian [M]) after descent from x."""
    decay = optax.cosine_decay_schedule(0.05, num_steps)
    optimizer = optax.adam(lambda count: radius * decay(count))

    def total(y):
        return jnp.sum(checks.model_output(energy(y, tokens), "energy", y.shape[:1]))

    gradient = jax.grad(total)

    def body(carry, _):
        y, state = carry
        g = gradient(y)
        updates, state = optimizer.update(jnp.where(jnp.isfinite(g), g, 0.0), state)
        return (project(y + updates), state), None

    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), None, num_steps)

    def curvature(direction):
        tangent = jnp.broadcast_to(direction, x.shape)
        return jnp.sum(tangent * jax.jvp(gradient, (x,), (tangent,))[1], axis=-1)

    trace = jnp.sum(jax.lax.map(curvature, jnp.eye(x.shape[-1], dtype=x.dtype)), axis=0)
    return x, energy(x, tokens), trace


@functools.partial(jax.jit, static_argnums=1)
def _chains(energy: Any, space: Any, key: Key, x: Array, tokens: State, scale: Array) -> Array:
    """[K, M, D] states of short Metropolis-adjusted chains from x [M, D], the last blocks of them."""

    def block(carry, key):
        y, log_size = carry
        found = moves.moved(
            key, lambda y: energy(y, tokens), space, y, log_size, num_rounds=_ROUNDS, scale=scale
        )
        return (found.states, found.log_size), found.states

    start = (x, jnp.asarray(-1.0, x.dtype))
    _, states = jax.lax.scan(block, start, jax.random.split(key, _BLOCKS))
    return states[-_KEPT:]


@functools.partial(jax.jit, static_argnums=1)
def _losses(energy, space, key, states, tokens, center, data_scale, width, lengths) -> Array:
    """[K] of lengths: the loss of a head that is not trained, up to what does not depend on s.

    The mean over log sigma of sigma^2 E|score - target|^2 / D with the noise itself as the target, so that
    its variance is the same for every s. That is the training loss b^2 |score - target|^2 / D under times
    that are uniform in log(sigma^2 + s^2), and the head's share of the divergence of the paths.
    """
    precision = jnp.full((1, states.shape[-1]), data_scale**-2.0)
    low, high = jnp.log(0.05 * width), jnp.log(2.5 * data_scale)
    center = center[None]

    def total(y):
        return jnp.sum(checks.model_output(energy(y, tokens), "energy", y.shape[:1]))

    def at(index):
        sigma = jnp.exp(low + (high - low) * (index + 0.5) / _NUM_NOISES).astype(states.dtype)
        keys = jax.random.split(jax.random.fold_in(key, index), states.shape[0])

        def one(found):
            x_1, key = found
            noise = space.standard_normal(key, x_1.shape, x_1.dtype)
            x = x_1 + sigma * noise
            own = -space.project(jax.grad(total)(x))
            ones = jnp.ones((x.shape[0], 1), x.dtype)

            def loss(s):
                level = level_at(ones, sigma**2 * ones, s)
                base = normal_score(x - center, level, precision)
                scaled = sigma / level.spread * untrained(own, base, level, space.size)
                return jnp.mean(jnp.sum(scaled * (scaled + 2 * noise), axis=-1)) / space.size

            return jax.lax.map(loss, jnp.asarray(lengths, x.dtype))

        return jnp.mean(jax.lax.map(one, (states, keys)), axis=0)

    return jnp.mean(jax.lax.map(at, jnp.arange(_NUM_NOISES)), axis=0)
