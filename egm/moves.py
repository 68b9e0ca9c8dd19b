"""Metropolis-adjusted Langevin moves of independent states, each by itself, so that weights stay proper.

A kernel that keeps exp(-E) may move weighted states without a change of their weights: where
E[w f(x)] = Z E_p[f] before, it is so after. That needs moves of each state that know nothing of the
others, as these are (`egm.evidence.moved` moves a population along its own differences). Only the step size
is shared: it goes by the mean acceptance of the rounds before, as in any adaptive sequential Monte Carlo.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, random
from egm.paths import MaskedPath, ProductPath
from egm.paths.wrapped import wrapped
from egm.typing import Array, Energy, Key, Path, State

__all__ = ["Moved", "moved"]

_TARGET = 0.6
"""Mean acceptance: .574 is best for many independent coordinates (Roberts and Rosenthal 1998)."""
_GAIN = 0.3
_JITTER = 0.5
"""Sizes are spread over this factor to both sides, in logarithms: stiff states need short steps."""


class Moved(NamedTuple):
    """What `moved` returns.

    Attributes:
      states: [N, *event] after the moves.
      log_size: scalar, the log of the step size after adaptation, in units of `scale`.
      acceptance: scalar, mean acceptance of the Langevin steps (0 where there are none).
    """

    states: State
    log_size: Array
    acceptance: Array


def moved(
    key: Key,
    energy: Energy,
    path: Path,
    states: State,
    log_size: Array,
    *,
    num_rounds: int,
    scale: float | Array = 1.0,
    counted: Array | None = None,
    axis_name: str | None = None,
) -> Moved:
    """States after rounds of moves that keep exp(-energy), each state for itself.

    A round is one Langevin step of all numbers together, y = x - (h^2/2) grad E + h noise, the drift no
    longer than the noise, and of tokens L proposals of another token at a random site, each with its
    Metropolis test. A state without density (E = +inf or no number) takes any other.

    Args:
      key: a typed key, or [N] of them, one a state.
      energy: E, `[N] = energy(states)`; its gradient only guides.
      path: of Gaussian and masked parts: says which parts are tokens, and the space.
      states: [N, *event] those of this device.
      log_size: scalar, log of the step size h / scale to begin with.
      num_rounds: how many.
      scale: unit of the step size.
      counted: [N] bool, whose acceptance adapts the size; None for all.
      axis_name: mapped axis that splits the states.

    Returns:
      Moved.

    Source: Roberts and Tweedie (1996) for Langevin proposals with a Metropolis test.
    """
    num = jax.tree.leaves(states)[0].shape[0]
    keys = random.derive(random.example_keys(key, num, axis_name), "moves")
    leaves, treedef = jax.tree.flatten(states)
    walk = _Walk(_parts(path, states), treedef, energy, scale)
    counted = jnp.ones(num, bool) if counted is None else counted
    total = jnp.maximum(collectives.psum(jnp.sum(counted), axis_name), 1)

    def mean(a):
        return collectives.psum(jnp.sum(jnp.where(counted, a, 0.0)), axis_name) / total

    def once(index, carry):
        here, log_size, rate = carry
        k = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
        if walk.numbers:
            here, accepted = walk.langevin(k, here, log_size)
            accepted = mean(accepted)
            log_size, rate = log_size + _GAIN * (accepted - _TARGET), rate + accepted / num_rounds
        for i in walk.tokens:
            here = walk.relabelled(k, here, i)
        return here, log_size, rate

    start = walk.at([checks.wide(a) for a in leaves])
    log_size = jnp.asarray(log_size, float)
    first = (start, log_size, jnp.zeros_like(log_size))
    like = jax.eval_shape(lambda c: once(0, c), first)
    first = collectives.varying_like(first, like)
    here, log_size, rate = jax.lax.fori_loop(0, num_rounds, once, first)
    return Moved(walk.whole(here.leaves), log_size, rate)


class _At(NamedTuple):
    """Leaves of states, -E there, and its gradient in each leaf of numbers (None for tokens)."""

    leaves: list[Array]
    log_density: Array
    gradient: list[Any]


class _Walk:
    """The moves of states with these parts."""

    def __init__(self, paths: list[Any], treedef: Any, energy: Energy, scale: float | Array):
        self.paths, self._treedef, self._energy, self._scale = paths, treedef, energy, scale
        self.tokens = [i for i, p in enumerate(paths) if isinstance(p, MaskedPath)]
        self.numbers = [i for i in range(len(paths)) if i not in self.tokens]

    def whole(self, leaves: list[Array]) -> State:
        return jax.tree.unflatten(self._treedef, leaves)

    def at(self, leaves: list[Array]) -> _At:
        """-E and its gradients; where E is no number or infinite -inf and zeros."""

        def total(numbers):
            value = self._log_density(_with(leaves, self.numbers, numbers))
            return jnp.sum(jnp.where(jnp.isfinite(value), value, 0.0)), value

        gradients = [None] * len(leaves)
        if not self.numbers:
            return _At(leaves, self._log_density(leaves), gradients)
        found, value = jax.grad(total, has_aux=True)([leaves[i] for i in self.numbers])
        for i, g in zip(self.numbers, found, strict=True):
            finite = jnp.all(jnp.isfinite(g), axis=-1, keepdims=True)
            gradients[i] = self.paths[i].project(jnp.where(finite, g, 0.0))
        return _At(leaves, value, gradients)

    def langevin(self, keys: Array, here: _At, log_size: Array) -> tuple[_At, Array]:
        """(after one step of all numbers, acceptance probabilities [N])."""
        k_size, k_noise, k_accept = random.split(keys, 3)
        spread = jax.vmap(jax.random.uniform)(k_size)
        size = self._scale * jnp.exp(log_size + _JITTER * (2 * spread - 1))[:, None]
        noises, moves, log_q = {}, {}, 0.0
        for i in self.numbers:
            path, x = self.paths[i], here.leaves[i]
            k = random.derive(k_noise, f"leaf {i}")
            noises[i] = random.per_example(lambda k, a, p=path: p.standard_normal(k, a.shape, a.dtype), k, x)
            moves[i] = path.project(x + self._drift(i, here, size) + size * noises[i])
        there = self.at(_with(here.leaves, self.numbers, [self._lifted(i, moves[i]) for i in self.numbers]))
        for i in self.numbers:
            back = (here.leaves[i] - moves[i] - self._drift(i, there, size)) / size
            log_q = log_q + 0.5 * jnp.sum(noises[i] ** 2 - back**2, axis=-1)
        return _taken(k_accept, here, there, log_q)

    def relabelled(self, keys: Array, here: _At, i: int) -> _At:
        """After L proposals of another token in leaf i."""
        sites, vocab = math.prod(here.leaves[i].shape[1:]), self.paths[i].vocab_size

        def proposal(key, x):
            k_site, k_token = jax.random.split(key)
            site = jax.random.randint(k_site, (), 0, sites)
            other = jax.random.randint(k_token, (), 1, vocab)
            flat = x.reshape(sites)
            return jnp.where(jnp.arange(sites) == site, (flat + other) % vocab, flat).reshape(x.shape)

        def once(index, here):
            k = jax.vmap(lambda key: jax.random.fold_in(key, index))(random.derive(keys, f"leaf {i}"))
            k_move, k_accept = random.split(k, 2)
            leaves = _with(here.leaves, [i], [jax.vmap(proposal)(k_move, here.leaves[i])])
            there = here._replace(leaves=leaves, log_density=self._log_density(leaves))
            return _taken(k_accept, here, there, 0.0)[0]

        here = jax.lax.fori_loop(0, sites, once, here)
        return self.at(here.leaves) if self.numbers else here

    def _log_density(self, leaves):
        e = checks.model_output(self._energy(self.whole(leaves)), "energy", leaves[0].shape[:1])
        return jnp.where(jnp.isnan(e) | jnp.isinf(e), -jnp.inf, -e).astype(float)

    def _drift(self, i, at, size):
        """No longer than the noise: a function of the state like any other to the Metropolis test."""
        g = 0.5 * size**2 * at.gradient[i]
        longest = size * math.sqrt(max(self.paths[i].dimension(g.shape[-1]), 1))
        norm = jnp.sqrt(jnp.sum((g / longest) ** 2, axis=-1, keepdims=True))
        return g / jnp.maximum(norm, 1.0)

    def _lifted(self, i, x):
        angles = self.paths[i].confinement(x.shape[-1]) == 0
        return jnp.where(jnp.asarray(angles)[None], wrapped(x), x) if np.any(angles) else x


def _parts(path: Path, states: State) -> list[Any]:
    """The Gaussian and masked parts of a path, in the order of the leaves of states."""
    if not isinstance(path, ProductPath):
        return [path]
    paths, parts = path.leaves_with(states, "states")
    return [one for p, x in zip(paths, parts, strict=True) for one in _parts(p, x)]


def _with(leaves: list[Array], places: list[int], values: list[Array]) -> list[Array]:
    leaves = list(leaves)
    for i, value in zip(places, values, strict=True):
        leaves[i] = value
    return leaves


def _taken(keys: Array, here: _At, there: _At, log_q: Any) -> tuple[_At, Array]:
    """(after the Metropolis-Hastings test, acceptance probabilities [N]); what is no number is refused."""
    ratio = there.log_density - here.log_density + log_q
    ratio = jnp.where(jnp.isnan(ratio) | jnp.isneginf(there.log_density), -jnp.inf, ratio)
    ratio = jnp.where(jnp.isneginf(here.log_density) & ~jnp.isneginf(there.log_density), 0.0, ratio)
    take = jnp.log1p(-jax.vmap(jax.random.uniform)(keys)) < ratio
    chosen: Callable = lambda new, old: jnp.where(checks.expanded(take, old), new, old)
    return jax.tree.map(chosen, there, here), jnp.exp(jnp.minimum(ratio, 0.0))
