"""Reference samples of particle systems from long Metropolis-adjusted chains, checked and kept on disk.

Many chains at several inverse temperatures (parallel tempering) run at once on the centred subspace.
A step is Hamiltonian Monte Carlo of the positions (a few leapfrog steps, then a Metropolis test on the
change of total energy), a Gibbs sweep over the tokens if there are any, and a swap test between
neighbouring temperatures. Step sizes adapt during warm-up only. States kept at inverse temperature 1
get a random rotation (or reflection) and a random permutation of particles, exact symmetries of these
targets, so that mixing need only be judged on invariant observables: split R-hat over the chains of each
of them must be below the limit. `_reference_pool` keeps the result and draws from it.

Sources: Neal, "MCMC using Hamiltonian dynamics" (arXiv 1206.1901); Geyer (1991) for the swaps; Gelman et
al., "Bayesian Data Analysis" (3rd ed.), 11.4, for split R-hat.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.energies import particles as particle_systems
from egm.typing import Array

__all__ = ["ChainSettings", "Reference", "check_settings", "run", "split_r_hat"]

_TARGET_ACCEPTANCE = 0.8


class ChainSettings(NamedTuple):
    """How reference samples are made.

    Attributes:
      inverse_temperatures: decreasing, the first 1, which is the target.
      num_chains: chains at each temperature.
      num_warmup: steps before the first kept state; step sizes adapt in them.
      num_kept: states kept altogether, a multiple of 2 * num_chains: the size of the pool.
      thinning: steps between kept states of a chain.
      num_leapfrog: leapfrog steps in a step.
      seed: of the chains.
      max_r_hat: split R-hat of every observable must be below it.
    """

    inverse_temperatures: tuple[float, ...] = (1.0,)
    num_chains: int = 100
    num_warmup: int = 1000
    num_kept: int = 50_000
    thinning: int = 10
    num_leapfrog: int = 5
    seed: int = 0
    max_r_hat: float = 1.01


class Reference(NamedTuple):
    """A pool of states and what its chains looked like.

    Attributes:
      states: {"x": [num_kept, N * d] float32} and, for mixed states, "h" [num_kept, N] int32.
      r_hat: split R-hat by observable.
      acceptance: [T] mean acceptance probability of moves at each temperature, after warm-up.
      swap_acceptance: [T - 1] mean acceptance probability of swaps of neighbouring temperatures.
    """

    states: dict[str, np.ndarray]
    r_hat: dict[str, float]
    acceptance: np.ndarray
    swap_acceptance: np.ndarray


def check_settings(settings: Any) -> None:
    """Raises TypeError or ValueError unless the settings make sense."""
    if not isinstance(settings, ChainSettings):
        raise TypeError(f"reference must be ChainSettings, got {settings!r}")
    betas = settings.inverse_temperatures
    if not isinstance(betas, tuple) or not betas:
        raise TypeError(f"inverse_temperatures must be a tuple of floats, got {betas!r}")
    for beta in betas:
        checks.positive_float(beta, "inverse_temperatures")
    if betas[0] != 1 or any(a <= b for a, b in zip(betas, betas[1:])):
        raise ValueError(f"inverse_temperatures must start at 1 and decrease, got {betas}")
    for name, minimum in (("num_chains", 2), ("num_warmup", 1), ("num_kept", 1), ("thinning", 1)):
        checks.positive_int(getattr(settings, name), name, minimum)
    checks.positive_int(settings.num_leapfrog, "num_leapfrog")
    checks.positive_int(settings.seed, "seed", 0)
    checks.positive_float(settings.max_r_hat, "max_r_hat")
    halves = 2 * settings.num_chains
    if settings.num_kept % halves or settings.num_kept < 2 * halves:
        raise ValueError(
            f"num_kept must be a multiple of 2 * num_chains = {halves} and twice that at least, "
            f"got {settings.num_kept}"
        )


def run(energy: Any) -> Reference:
    """The chains, without the disk.

    Raises:
      RuntimeError: an observable's split R-hat is not below the limit.
    """
    settings = energy.reference
    x, h, observed, accepted, swapped = jax.tree.map(np.asarray, _run(energy))
    r_hat = {name: split_r_hat(values) for name, values in observed.items()}
    bad = {name: value for name, value in r_hat.items() if not value < settings.max_r_hat}
    if bad:
        raise RuntimeError(
            f"the reference chains of {energy!r} have not mixed: split R-hat must be below "
            f"{settings.max_r_hat}, got {bad}; raise num_warmup, thinning or num_kept"
        )
    return Reference(_symmetrised(energy, x, h), r_hat, accepted, swapped)


def split_r_hat(values: np.ndarray) -> float:
    """Split R-hat of one observable [steps, chains], NaN where a value is not finite.

    Every chain counts as two, its first and second half; W is the mean variance inside them, B / n the
    variance of their means; R-hat = sqrt((n - 1) / n + B / (n W)).
    """
    values = np.asarray(values, np.float64)
    n = len(values) // 2
    halves = np.concatenate([values[:n], values[-n:]], axis=1)
    within = np.mean(np.var(halves, axis=0, ddof=1))
    between = np.var(np.mean(halves, axis=0), ddof=1)
    if within == 0 and between == 0:
        return 1.0
    return float(np.sqrt((n - 1) / n + between / within)) if within else math.inf


@functools.partial(jax.jit, static_argnums=0)
def _run(energy: Any) -> tuple[Array, Array, dict[str, Array], Array, Array]:
    """(x [S, C, N d], h [S, C, N or 0], observables [S, C], acceptance [T], swaps [T - 1])."""
    settings = energy.reference
    moves = _Moves(energy)
    seed = jax.random.key(settings.seed, impl="threefry2x32")
    start_key, token_key, chain_key = jax.random.split(seed, 3)
    x, h = moves.start(start_key, token_key)
    carry = (x, h, jnp.full(moves.temps, math.log(0.05), jnp.float32))

    def keep(carry, start):
        step = lambda carry, index: moves.step(chain_key, carry, index)
        carry, rates = jax.lax.scan(step, carry, start + jnp.arange(settings.thinning))
        x, h = carry[0][0], carry[1][0]
        return carry, (x, h, _observables(energy, x, h), jax.tree.map(lambda a: a.mean(0), rates))

    # Warm-up runs in the same scan, its blocks dropped: the step is compiled once.
    dropped = -(-settings.num_warmup // settings.thinning)
    starts = settings.thinning * jnp.arange(dropped + settings.num_kept // settings.num_chains)
    _, out = jax.lax.scan(keep, carry, starts)
    x, h, observed, rates = jax.tree.map(lambda a: a[dropped:], out)
    accepted, swapped = (jnp.mean(rate, axis=0) for rate in rates)
    return x, h, observed, accepted, swapped


class _Moves:
    """What the chains do: states x [T, C, N d] and tokens h [T, C, N or 0] at T temperatures."""

    def __init__(self, energy: Any):
        settings = energy.reference
        self._energy, self._settings = energy, settings
        self.temps, self._chains = len(settings.inverse_temperatures), settings.num_chains
        self._beta = jnp.array(settings.inverse_temperatures, jnp.float32)
        self._mixed = isinstance(energy.event_shape, dict)
        self._sites = energy.num_particles if self._mixed else 0

    def start(self, key: Array, token_key: Array) -> tuple[Array, Array]:
        """Random positions overlap: a little gradient descent of bounded length first."""
        size = (self.temps, self._chains, self._sites)
        vocab_size = self._energy.vocab_size if self._mixed else 1
        h = jax.random.randint(token_key, size, 0, vocab_size, jnp.int32)

        def descend(_, x):
            f, _ = self._force(x, h)
            longest = jnp.max(jnp.abs(f), axis=-1, keepdims=True)
            return x + 0.02 * f / jnp.maximum(1.0, longest)

        return jax.lax.fori_loop(0, 200, descend, 1.5 * self._normal(key)), h

    def step(self, key: Array, carry: tuple, index: Array) -> tuple[tuple, tuple[Array, Array]]:
        """One move, Gibbs sweep and swap; ((x, h, log step), (acceptance, swap acceptance))."""
        x, h, log_step = carry
        keys = jax.random.split(jax.random.fold_in(key, index), 3)
        x, e, accepted = self._hamiltonian(keys[0], x, h, log_step)
        if self._mixed:
            h = self._gibbs(keys[1], x, h)
            e = self._potential(x, h)
        swapped = jnp.zeros(0)
        if self.temps > 1:
            x, h, swapped = self._swap(keys[2], index, x, h, e)
        # Fast at first, fine towards the end of warm-up, then nothing: an adapting chain is biased.
        progress = index / self._settings.num_warmup
        gain = jnp.where(progress < 1, 0.3 * jnp.exp(-3 * progress), 0.0).astype(jnp.float32)
        return (x, h, log_step + gain * (accepted - _TARGET_ACCEPTANCE)), (accepted, swapped)

    def _hamiltonian(self, key: Array, x: Array, h: Array, log_step: Array) -> tuple[Array, Array, Array]:
        """Hamiltonian Monte Carlo; the step size is random, but does not depend on the state."""
        momentum_key, step_key, accept_key = jax.random.split(key, 3)
        eps = (jnp.exp(log_step)[:, None] * (0.7 + 0.6 * self._uniform(step_key)))[..., None]
        p = self._normal(momentum_key)

        def leapfrog(_, carry):
            y, p, f, _ = carry
            p = p + 0.5 * eps * f
            y = y + eps * p
            f, e = self._force(y, h)
            return y, p + 0.5 * eps * f, f, e

        f, before = self._force(x, h)
        y, q, _, after = jax.lax.fori_loop(0, self._settings.num_leapfrog, leapfrog, (x, p, f, before))
        y = self._centre(y)  # rounding would drift off the subspace
        log_ratio = self._beta[:, None] * (before - after) + 0.5 * jnp.sum(p**2 - q**2, axis=-1)
        log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
        accept = jnp.log1p(-self._uniform(accept_key)) < log_ratio
        probability = jnp.mean(jnp.exp(jnp.minimum(log_ratio, 0.0)), axis=1)
        return jnp.where(accept[..., None], y, x), jnp.where(accept, after, before), probability

    def _gibbs(self, key: Array, x: Array, h: Array) -> Array:
        """Every token in turn from its conditional."""

        def site(i, h):
            conditionals = self._energy.single_site_conditionals({"x": x, "h": h})
            weights = jax.nn.softmax(self._beta[:, None, None] * conditionals[..., i, :], axis=-1)
            token = random.categorical(jax.random.fold_in(key, i), weights).astype(h.dtype)
            return h.at[..., i].set(token)

        return jax.lax.fori_loop(0, self._sites, site, h)

    def _swap(self, key: Array, index: Array, x: Array, h: Array, e: Array) -> tuple[Array, Array, Array]:
        """Exchange of neighbouring temperatures, even and odd pairs in turn."""
        beta = self._beta
        log_ratio = (beta - jnp.roll(beta, -1))[:, None] * (e - jnp.roll(e, -1, axis=0))
        pair = np.arange(self.temps)
        eligible = ((pair % 2) == index % 2) & (pair < self.temps - 1)
        up = eligible[:, None] & (jnp.log1p(-self._uniform(key)) < log_ratio)
        down = jnp.roll(up, 1, axis=0)

        def exchange(a):
            lifted = jnp.where(up[..., None], jnp.roll(a, -1, axis=0), a)
            return jnp.where(down[..., None], jnp.roll(a, 1, axis=0), lifted)

        probability = jnp.mean(jnp.exp(jnp.minimum(log_ratio, 0.0)), axis=1)
        return exchange(x), exchange(h), probability[: self.temps - 1]

    def _potential(self, x: Array, h: Array) -> Array:
        return self._energy({"x": x, "h": h} if self._mixed else x)

    def _force(self, x: Array, h: Array) -> tuple[Array, Array]:
        """(-beta grad E [T, C, N d], E [T, C])."""

        def total(x):
            e = self._potential(x, h)
            return jnp.sum(self._beta[:, None] * e), e

        gradient, e = jax.grad(total, has_aux=True)(x)
        return self._centre(-gradient), e

    def _centre(self, x: Array) -> Array:
        return particle_systems.centered(x, self._energy.num_particles, self._energy.spatial_dim)

    def _normal(self, key: Array) -> Array:
        size = self._energy.num_particles * self._energy.spatial_dim
        return self._centre(jax.random.normal(key, (self.temps, self._chains, size), jnp.float32))

    def _uniform(self, key: Array) -> Array:
        return jax.random.uniform(key, (self.temps, self._chains), jnp.float32)


def _observables(energy: Any, x: Array, h: Array) -> dict[str, Array]:
    """[C] each: invariant under permutation and rotation, on which mixing is judged."""
    r = particle_systems.distances(particle_systems.split(x, energy.num_particles, energy.spatial_dim))
    pairs = energy.num_particles * (energy.num_particles - 1) / 2
    found = {
        "energy": energy({"x": x, "h": h}) if h.shape[-1] else energy(x),
        "mean_distance": particle_systems.pair_sum(r) / pairs,
        "mean_squared_distance": particle_systems.pair_sum(r**2) / pairs,
        "smallest_distance": jnp.min(jnp.where(particle_systems.pair_mask(r), r, jnp.inf), axis=(-2, -1)),
        "largest_distance": jnp.max(r, axis=(-2, -1)),
    }
    if h.shape[-1]:
        found["token_sum"] = jnp.sum(h, axis=-1).astype(x.dtype)
    return found


def _symmetrised(energy: Any, x: np.ndarray, h: np.ndarray) -> dict[str, np.ndarray]:
    """All kept states in one axis, each under its own random orthogonal map and permutation."""
    n, dim = energy.reference.num_kept, energy.spatial_dim
    rng = np.random.default_rng(energy.reference.seed)
    q, r = np.linalg.qr(rng.normal(size=(n, dim, dim)))
    # Signs of R's diagonal make Q uniform (Haar) on the orthogonal group.
    q = (q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]).astype(np.float32)
    order = np.argsort(rng.random((n, energy.num_particles)), axis=1)
    positions = x.reshape(n, energy.num_particles, dim) @ q
    positions = np.take_along_axis(positions, order[..., None], axis=1)
    positions -= positions.mean(axis=1, keepdims=True)
    states = {"x": positions.reshape(n, -1)}
    if h.shape[-1]:
        states["h"] = np.take_along_axis(h.reshape(n, -1), order, axis=1)
    return states
