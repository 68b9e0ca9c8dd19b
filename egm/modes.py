"""Separate places of a target as a mixture of normals, from its minima and the chains' weighted states.

`separate` comes after `egm.pilot.explore`. What it finds is where a head starts from: far modes in many
dimensions, which a network would have to learn one by one, are then known to it before.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import evidence, heads, importance, paths, processes, random
from egm.pilot import MOST_MINIMA, Found, normals_at, with_chains
from egm.typing import Array, Energy, Key, Moments

__all__ = ["Separate", "fitted", "none", "reach_of", "separate"]

_REACHES = (2.5, 5.0, 10.0, 20.0, 40.0)
"""sigma_max over S, of which the first is taken that a normal prior is good enough for."""
_GOOD = 0.98
"""ESS of a normal for the noised mixture, from which it is a good prior."""
_LEAST = 1e-4
"""Share of a place by curvature and by chains below which it is left out."""
_MOST_NUMBERS = 400_000
"""K D^2 at most: what a head reads for each state."""
_TRUSTS = (1.0, 10.0, 100.0, 1e6)
"""In the curvature, of which states left out choose: from hardly any to all."""
_TURNS = 20
"""Of expectation and maximisation, at most."""
_SETTLED = 1e-4
"""Share of the states that still change their place, below which it ends."""
_NUM_COMPARED, _NUM_STEPS = 256, 50
"""States and steps by which two samplers that are not trained are compared."""


class Separate(NamedTuple):
    """What `separate` returns.

    Attributes:
      mixture: of the places found and of all together; None where a single normal does as well.
      reach: sigma_max over S from which a normal is a good prior.
      found: with chains more, from the mixture, where there is one.
      nats: KL divergence of the target from the mixture, by chains' states that it was not fitted to; inf
        without a mixture.
    """

    mixture: heads.NormalMixture | None
    reach: float
    found: Found
    nats: float = np.inf


def none(found: Found) -> Separate:
    """A single normal."""
    return Separate(None, _REACHES[0], found)


def separate(key: Key, energy: Energy, found: Found, seconds: float = np.inf) -> Separate:
    """The places of a target on R^D, where starting from them is better than from a normal.

    Mixtures are fitted to three quarters of the chains' states, which may move the places that curvature
    tells by little or by much: the others tell how much is best. The mixture is taken where, from those
    others, the paths of an untrained sampler that starts from it diverge less from the target's, by more than
    two standard errors. Chains that start from it then tell what mass each place has, better than those
    that had to find it, and it is fitted again to all states.

    Args:
      key: a typed key.
      energy: E in the coordinates of `found`.
      found: of `egm.pilot.explore`.
      seconds: about what the chains from the mixture may take.

    Returns:
      Separate; with (None, 2.5) where there are fewer than two minima, too many dimensions for their
      covariances, or where states are not numbers alone.
    """
    nothing = none(found)
    layout = found.coordinates.layout
    numbers_alone = layout.particles is None and not layout.num_sites and not layout.angles.any()
    minima = found.minima[: min(MOST_MINIMA, _MOST_NUMBERS // max(layout.num_coordinates, 1) ** 2)]
    if not numbers_alone or len(minima) < 2:
        return nothing
    z = found.coordinates.invert(jnp.asarray(minima, float))
    e = np.asarray(energy(z), np.float64)
    usable = np.isfinite(e) & np.all(np.isfinite(z), axis=1)
    if usable.sum() < 2:
        return nothing
    z = z[usable]
    covariances = normals_at(energy, z)
    by_curvature = -e[usable] + 0.5 * np.linalg.slogdet(2 * np.pi * covariances)[1]
    shares = np.where(np.isfinite(found.log_shares), found.log_shares, -np.inf)
    weights = np.exp(shares - shares.max())
    k_held, k_reach, k_compare = random.split(key, 3)
    held = np.asarray(jax.random.permutation(k_held, len(weights))) % 4 == 0
    start = np.asarray(z, np.float64), covariances, by_curvature
    candidates = [fitted(*start, found.states[~held], weights[~held], trust) for trust in _TRUSTS]
    worth = [_log_density(mixture, found.states[held]) @ weights[held] for mixture in candidates]
    best = int(np.argmax(worth))
    part = candidates[best]
    if len(part.means) < 3:
        return nothing
    reach = reach_of(k_reach, part)
    k_draw, k_back = random.split(k_compare)
    chosen = np.asarray(importance.systematic(k_draw, jnp.asarray(shares[held], float), _NUM_COMPARED))
    tested = jnp.asarray(found.states[held][chosen])
    s = found.length_scale
    nats = _nats(k_back, energy, part, reach, s, tested) - _nats(
        k_back, energy, None, nothing.reach, s, tested
    )
    if not nats.mean() < -2 * nats.std() / np.sqrt(len(nats)):
        return nothing
    off = _off(part, found, held)
    whole = fitted(*start, found.states, weights, _TRUSTS[best], for_chains=True)
    found = with_chains(random.derive(key, "chains"), energy, found, whole, seconds)
    weights = np.exp(found.log_shares - found.log_shares.max())
    mixture = fitted(*start, found.states, weights, _TRUSTS[best])
    return Separate(mixture, reach_of(k_reach, mixture), found, off)


def fitted(
    means: np.ndarray,
    covariances: np.ndarray,
    log_weights: np.ndarray,
    states: np.ndarray,
    weights: np.ndarray,
    trust: float = 1.0,
    *,
    for_chains: bool = False,
) -> heads.NormalMixture:
    """The most probable mixture of K places and of N(0, I) for all the rest, given weighted states.

    A place's mean by curvature counts as much as `trust` states of it, its covariance as D + 2 times as
    many, its weight as half a state, so that a place with few states keeps its curvature's.

    Args:
      means, covariances, log_weights: [K, D], [K, D, D], [K] of the places, by curvature.
      states: [N, D].
      weights: [N], >= 0, of any sum.
      trust: in the places, above 0.
      for_chains: to start chains from: places without a state are kept, and the weights are halfway between
        those by states and those by curvature, so that a place that no chain has reached yet has its chance.

    Returns:
      NormalMixture of at most K + 1 parts, that for all the rest last; places of less than one state are left
      out.
    """
    dim = means.shape[1]
    weights = np.asarray(weights, np.float64) / np.sum(weights)
    count = 1 / np.sum(weights**2)
    x = np.asarray(states, np.float64)
    # Half for all together, before anything is known.
    share = np.append(np.exp(log_weights - np.logaddexp.reduce(log_weights)) / 2, 0.5)
    means = np.concatenate([means, np.zeros((1, dim))])
    covariances = np.concatenate([covariances, np.eye(dim)[None]])
    belongs, _ = _responsibilities(x, means, covariances, share)
    kept = (share > _LEAST) | (weights @ belongs > _LEAST)
    kept[-1] = True
    means, covariances, share = means[kept], covariances[kept], share[kept]
    first_means, first, first_share = means, covariances, share / share.sum()
    number = np.zeros(len(share))
    for _ in range(_TURNS):
        belongs = _responsibilities(x, means, covariances, share)[0] * weights[:, None] * count
        before, number = number, belongs.sum(axis=0)
        share = (number + 0.5) / np.sum(number + 0.5)
        means = (belongs.T @ x + trust * first_means) / (number + trust)[:, None]
        scatter = np.stack([_scatter(each, mean, x) for each, mean in zip(belongs.T, means)])
        shift = (means - first_means)[:, :, None] * (means - first_means)[:, None]
        prior = trust * (dim + 2)
        covariances = (scatter + trust * shift + prior * first) / (number + prior)[:, None, None]
        if np.max(np.abs(number - before)) < _SETTLED * count:
            break
    if for_chains:
        return heads.NormalMixture(means, covariances, np.log((share + first_share) / 2))
    # Minima along a ridge or in a funnel are places of nothing.
    kept = np.append(number[:-1] >= 1, True)
    return heads.NormalMixture(means[kept], covariances[kept], np.log(share[kept]))


def _scatter(belongs: np.ndarray, mean: np.ndarray, x: np.ndarray) -> np.ndarray:
    """[D, D] the sum of squares about a mean, of the states that belong to it."""
    here = belongs > 0
    off = x[here] - mean
    return (off * belongs[here, None]).T @ off


def _responsibilities(x, means, covariances, share):
    """([N, K] the share of each part in the density at each state, [N] log of that up to a constant)."""
    roots = np.linalg.inv(np.linalg.cholesky(covariances))
    logs = np.empty((len(x), len(means)))
    for k, (mean, root) in enumerate(zip(means, roots, strict=True)):
        log_det = np.sum(np.log(np.diagonal(root)))
        logs[:, k] = np.log(share[k]) + log_det - 0.5 * np.sum(((x - mean) @ root.T) ** 2, axis=1)
    total = np.logaddexp.reduce(logs, axis=1)
    return np.exp(logs - total[:, None]), total


def _log_density(mixture: heads.NormalMixture, x: np.ndarray) -> np.ndarray:
    """[N] up to a constant."""
    share = np.exp(mixture.log_weights)
    return _responsibilities(np.asarray(x, np.float64), mixture.means, mixture.covariances, share)[1]


def _off(mixture: heads.NormalMixture, found: Found, held: np.ndarray) -> float:
    """KL of the target from a mixture by the states `held`, with log Z by the chains."""
    usable = held & np.isfinite(found.log_shares) & np.isfinite(found.energies)
    shares = found.log_shares[usable]
    weights = np.exp(shares - np.logaddexp.reduce(shares))
    log_q = _log_density(mixture, found.states[usable]) - 0.5 * mixture.means.shape[1] * np.log(2 * np.pi)
    log_z = np.logaddexp.reduce(found.log_shares) - np.log(found.log_z.size)
    return float(weights @ (-found.energies[usable] - log_q) - log_z)


def reach_of(key: Key, mixture: heads.NormalMixture, num: int = 4096) -> float:
    """The least sigma_max at which a normal has an ESS of .98 for the noised mixture, of 2.5 to 40.

    The mixture is one of about mean zero and unit covariance, so that sigma_max is in its widths.
    """
    dim = mixture.means.shape[1]

    @jax.jit
    def ess(key, reach):
        variance = jnp.full((num, 1), reach**2)
        x = jnp.sqrt(1 + reach**2) * jax.random.normal(key, (num, dim))
        log_q = -0.5 * jnp.sum(x**2, axis=-1) / (1 + reach**2) - 0.5 * dim * jnp.log(
            2 * jnp.pi * (1 + reach**2)
        )
        log_p = mixture.noised(x, jnp.ones((num, 1)), variance).log_density
        return importance.snis(log_p - log_q).ess

    for reach in _REACHES:
        if float(ess(key, reach)) >= _GOOD:
            return reach
    return _REACHES[-1]


def _nats(key: Key, energy: Energy, mixture: heads.NormalMixture | None, reach: float, s: float, x: Array):
    """[N] log-weights of paths backward from states of the target, by a sampler that is not trained.

    Their mean less log Z is the divergence of its paths from the target's.
    """
    path = paths.VarianceExplodingPath(s, reach, length_scale=s)
    process = processes.DiffusionProcess(path)
    head = heads.ScoreHead(path, s, 1.0, mixture=mixture)
    unit = Moments(jnp.zeros(x.shape[1]), jnp.ones(x.shape[1]))

    def backward(key, x):
        generator = lambda y, t: head.generator(jnp.zeros((*y.shape, 2)), y, t, energy)
        return evidence.from_states(key, energy, process, generator, x, process.times(_NUM_STEPS), unit)

    return np.asarray(jax.jit(backward)(key, x), np.float64)
