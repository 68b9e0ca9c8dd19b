"""Metropolis-adjusted moves of a population: Langevin steps, differences, exchanges, tokens."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.evidence._leaves import Flat
from egm.typing import Array, Energy


def moves(flat, gradient, key, leaves, e, beta, rounds):
    """(leaves, E, mean acceptance) after rounds that leave p_0^(1 - b) exp(-b E) invariant."""
    target = _Annealed(flat, beta, gradient)
    kinds = []
    for i, part in enumerate(flat.parts):
        alone = len(flat.parts) == 1
        tokens = _coloured if alone and by_colour(flat.function, math.prod(part.shape)) else _tokens
        own = (tokens,) if part.is_tokens else (_langevin, _differences)
        # On a subspace coordinates are not free of each other.
        bound = not part.is_tokens and part.path.dimension(part.shape[-1]) < part.shape[-1]
        for kind in own if bound else (*own, _exchange):
            kinds.append(functools.partial(kind, target, i))

    def once(index, carry):
        leaves, e, rate = carry
        for k, kind in enumerate(kinds):
            leaves, e, a = kind(jax.random.fold_in(jax.random.fold_in(key, index), k), leaves, e)
            rate = rate + a / (rounds * len(kinds))
        return leaves, e, rate

    return jax.lax.fori_loop(0, rounds, once, (leaves, e, jnp.zeros(())))


class _Annealed(NamedTuple):
    """p_0^(1 - b) exp(-b E) on the leaves of states, and the Metropolis test on it."""

    flat: Flat
    beta: Array
    gradient: bool

    def log_density(self, leaves, e):
        """[C] of states whose E is known."""
        # b = 0 is over before the first move, so an infinite E has no density.
        weighed = jnp.where(e == jnp.inf, -jnp.inf, -self.beta * e)
        return weighed - (1 - self.beta) * self.flat.reference(leaves)

    def decide(self, key, leaves, e, proposed, log_q):
        """(leaves, E, mean acceptance), Metropolis-Hastings with log_q = log q(back) - log q(there)."""
        e_new = self.flat.energy(proposed)
        ratio = self.log_density(proposed, e_new) - self.log_density(leaves, e) + log_q
        # From a state without density every other is accepted.
        ratio = jnp.where(e == jnp.inf, jnp.where(e_new == jnp.inf, -jnp.inf, 0.0), ratio)
        return _taken(key, ratio, leaves, e, proposed, e_new)

    def score(self, i, leaves, x):
        """The gradient of the log-density in leaf i at x."""

        def total(y):
            now = _replaced(leaves, i, y)
            return jnp.sum(-self.beta * self.flat.energy(now) - (1 - self.beta) * self.flat.reference(now))

        return jax.grad(total)(x)


def _taken(key, ratio, leaves, e, proposed, e_new):
    """(leaves, E, mean acceptance) after the test; NaN is refused."""
    ratio = jnp.where(jnp.isnan(ratio), -jnp.inf, ratio)
    take = jnp.log1p(-jax.random.uniform(key, ratio.shape)) < ratio
    leaves = [
        jnp.where(checks.expanded(take, old), new, old) for new, old in zip(proposed, leaves, strict=True)
    ]
    return leaves, jnp.where(take, e_new, e), jnp.mean(jnp.exp(jnp.minimum(ratio, 0.0)))


def _replaced(leaves, i, x):
    return [*leaves[:i], x, *leaves[i + 1 :]]


def by_colour(energy: Energy, num_sites: int) -> bool:
    """Whether tokens move a colour at a time: E offers a colouring, and cheap conditionals."""
    colours = getattr(energy, "colouring", None)
    if colours is None or not hasattr(energy, "single_site_conditionals"):
        return False
    # Conditionals before and after, and E itself, for each colour.
    count = 2 * getattr(energy, "conditional_evaluations", lambda num_sites: 1)(num_sites) + 1
    return count * len(set(colours)) <= num_sites


def _coloured(target, i, key, leaves, e):
    """All sites of one colour after another drawn anew, given the others: the moves of a Gibbs sampler.

    A Metropolis test with the conditionals before and after keeps the target whatever they are: rounded, or
    of a colouring that is none.
    """
    energy = target.flat.function
    colours = np.asarray(energy.colouring)
    kinds = jnp.asarray(np.unique(colours))

    def one(index, carry):
        leaves, e, rate = carry
        k_token, k_accept = jax.random.split(jax.random.fold_in(key, index))
        x = leaves[i]
        log_p = lambda a: jax.nn.log_softmax(target.beta * energy.single_site_conditionals(a), axis=-1)
        of = lambda log_p, token: jnp.take_along_axis(log_p, token[..., None], axis=-1)[..., 0]
        there = log_p(x)
        here = (jnp.asarray(colours) == kinds[index])[None]
        y = jnp.where(here, jax.random.categorical(k_token, there), x).astype(x.dtype)
        log_q = jnp.sum(jnp.where(here, of(log_p(y), x) - of(there, y), 0.0), axis=-1)
        leaves, e, a = target.decide(k_accept, leaves, e, _replaced(leaves, i, y), log_q)
        return leaves, e, rate + a / kinds.size

    return jax.lax.fori_loop(0, kinds.size, one, (leaves, e, jnp.zeros(())))


def _tokens(target, i, key, leaves, e):
    """L proposals of another token at a random site."""
    part = target.flat.parts[i]
    sites, vocab = math.prod(part.shape), part.path.vocab_size

    def one(site_index, carry):
        leaves, e, rate = carry
        k_site, k_token, k_accept = jax.random.split(jax.random.fold_in(key, site_index), 3)
        x = leaves[i].reshape(leaves[i].shape[0], -1)
        site = jax.random.randint(k_site, e.shape, 0, sites)[:, None]
        other = jax.random.randint(k_token, (e.shape[0], 1), 1, vocab)
        here = jnp.arange(sites)[None] == site
        y = jnp.where(here, (x + other) % vocab, x).reshape(leaves[i].shape)
        leaves, e, a = target.decide(k_accept, leaves, e, _replaced(leaves, i, y), 0.0)
        return leaves, e, rate + a / sites

    return jax.lax.fori_loop(0, sites, one, (leaves, e, jnp.zeros(())))


def _langevin(target, i, key, leaves, e):
    """A step of random size over four decades: some size suits every level and every mode."""
    part, x = target.flat.parts[i], leaves[i]
    k_size, k_noise, k_accept = jax.random.split(key, 3)
    size = jnp.sqrt(part.variance) * 10 ** (-4 * jax.random.uniform(k_size, (x.shape[0], 1)))
    dimension = part.path.dimension(x.shape[-1])

    def drift(x):
        if not target.gradient:
            return jnp.zeros_like(x)
        g = part.path.project(target.score(i, leaves, x))
        g = jnp.where(jnp.all(jnp.isfinite(g), axis=-1, keepdims=True), 0.5 * size**2 * g, 0.0)
        # No longer than the noise: a function of the state like any other to the Metropolis test.
        longest = size * math.sqrt(dimension)
        norm = jnp.sqrt(jnp.sum((g / longest) ** 2, axis=-1, keepdims=True))
        return g / jnp.maximum(norm, 1.0)

    noise = part.path.standard_normal(k_noise, x.shape, x.dtype)
    y = part.path.project(x + drift(x) + size * noise)
    back = (x - y - drift(y)) / size
    log_q = 0.5 * jnp.sum(noise**2 - back**2, axis=-1)
    return target.decide(k_accept, leaves, e, _replaced(leaves, i, part.lifted(y)), log_q)


def _differences(target, i, key, leaves, e):
    """Each half of the chains moves along differences of the other, which fit any covariance."""
    half, rates = e.shape[0] // 2, []
    for number, own in enumerate((slice(0, half), slice(half, None))):
        k_pair, k_length, k_accept = jax.random.split(jax.random.fold_in(key, number), 3)
        mine, mine_e = [a[own] for a in leaves], e[own]
        others = leaves[i][half:] if number == 0 else leaves[i][:half]
        first = jax.random.randint(k_pair, (half,), 0, half)
        second = (first + jax.random.randint(random.derive(k_pair, "second"), (half,), 1, half)) % half
        u = jax.random.uniform(k_length, (2, half, 1))
        dimension = target.flat.parts[i].path.dimension(others.shape[-1])
        length = 2.38 / math.sqrt(2 * dimension) * 10 ** (0.5 * u[1] - 0.4)
        # Whole differences, one time in ten, carry a chain from mode to mode.
        length = jnp.where(u[0] < 0.1, 1.0, length)
        y = target.flat.parts[i].lifted(mine[i] + length * (others[first] - others[second]))
        mine, mine_e, rate = target.decide(k_accept, mine, mine_e, _replaced(mine, i, y), 0.0)
        leaves = [a.at[own].set(b) for a, b in zip(leaves, mine, strict=True)]
        e = e.at[own].set(mine_e)
        rates.append(rate)
    return leaves, e, 0.5 * (rates[0] + rates[1])


def _exchange(target, i, key, leaves, e):
    """Pairs of chains exchange some of their coordinates, at random places or in a row.

    It keeps the product of their densities. Where coordinates have little to do with each other it is
    always accepted, and modes of one recombine with modes of another: selection among a few hundred
    chains alone loses most combinations of many wells.
    """
    k_pair, k_share, k_place, k_kind, k_accept = jax.random.split(key, 5)
    half = e.shape[0] // 2
    order = jnp.roll(jnp.arange(half), jax.random.randint(k_pair, (), 0, half))
    a, b = [x[:half] for x in leaves], [x[half:][order] for x in leaves]
    e_a, e_b = e[:half], e[half:][order]
    size = math.prod(a[i].shape[1:])
    share = 0.5 * jax.random.uniform(k_share, (half, 1))
    scattered = jax.random.uniform(k_place, (half, size)) < share
    begin = jax.random.randint(random.derive(k_place, "row"), (half, 1), 0, size)
    row = (jnp.arange(size)[None] - begin) % size < share * size
    chosen = jnp.where(jax.random.bernoulli(k_kind, 0.5, (half, 1)), scattered, row).reshape(a[i].shape)
    new_a = _replaced(a, i, jnp.where(chosen, b[i], a[i]))
    new_b = _replaced(b, i, jnp.where(chosen, a[i], b[i]))
    energies = target.flat.energy([jnp.concatenate(pair) for pair in zip(new_a, new_b, strict=True)])
    new_e_a, new_e_b = energies[:half], energies[half:]
    now = target.log_density(a, e_a) + target.log_density(b, e_b)
    then = target.log_density(new_a, new_e_a) + target.log_density(new_b, new_e_b)
    ratio = jnp.where(jnp.isneginf(now), jnp.where(jnp.isneginf(then), -jnp.inf, 0.0), then - now)
    a, e_a, rate = _taken(k_accept, ratio, a, e_a, new_a, new_e_a)
    b, e_b, _ = _taken(k_accept, ratio, b, e_b, new_b, new_e_b)
    leaves = [jnp.concatenate([x, y]) for x, y in zip(a, b, strict=True)]
    return leaves, jnp.concatenate([e_a, e_b]), rate
