"""Exact samples of large lattices by monotone coupling from the past (Propp and Wilson, 1996)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from egm.energies.ising import transfer
from egm.typing import Array, Key

__all__ = ["couple_from_the_past", "site_colours"]

_MAX_SWEEPS = 2**16


_LANES = (2048, 512, 128)  # replicas at once: few shapes, so few compilations


_ORDERS = 0.4407  # |beta J| above which the infinite lattice orders


_PILOTS = 8  # replicas that show within seconds whether the others can coalesce


@functools.lru_cache(maxsize=8)
def site_colours(side: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Classes of sites without bonds inside: ([S] sites, [4, S] their neighbours) each.

    Two classes (a checkerboard) at an even side, three at an odd one.
    """
    line = np.arange(side) % 2
    if side % 2:
        line[-1] = 2
    site = np.arange(side * side).reshape(side, side)
    colour = (line[:, None] + line) % (2 + side % 2)
    near = np.stack([np.roll(site, shift, axis) for axis in (0, 1) for shift in (1, -1)])
    masks = [colour == c for c in range(2 + side % 2)]
    return tuple((site[mask], near[:, mask]) for mask in masks)


@functools.partial(jax.jit, static_argnames="side")
def _run_from_extremes(keys: Array, thresholds: Array, num_sweeps: Array, side: int) -> tuple[Array, Array]:
    """Sweeps at times num_sweeps, ..., 1 before the present, from all up and from all down.

    Args:
      keys: [R] one key a replica; the numbers of a sweep depend on the key and its time alone.
      thresholds: [colours, 5] uint32 probability of spin up times 2^32, by number of up neighbours.
      num_sweeps: how far back to start.
      side: the lattice side.

    Returns:
      ([L, R] int8 tokens reached from all up, [R] whether all down reached the same).
    """

    def sweep(i, lattices):  # two of [L, R]
        fold = jax.vmap(lambda key: jax.random.fold_in(key, num_sweeps - i))
        draw = jax.vmap(lambda key: jax.random.bits(key, (side * side,), jnp.uint32), out_axes=1)
        bits = draw(fold(keys))
        upper, lower = lattices
        for c, (sites, near) in enumerate(site_colours(side)):
            # The spin goes up where at least `need` neighbours are up: thresholds increase.
            mine = bits[sites]
            need = sum((mine >= thresholds[c, k]).astype(jnp.int8) for k in range(5))
            upper = upper.at[sites].set(jnp.asarray(sum(upper[j] for j in near) >= need, jnp.int8))
            lower = lower.at[sites].set(jnp.asarray(sum(lower[j] for j in near) >= need, jnp.int8))
        return upper, lower

    shape = (side * side, *keys.shape)
    start = (jnp.ones(shape, jnp.int8), jnp.zeros(shape, jnp.int8))
    upper, lower = jax.lax.fori_loop(0, num_sweeps, sweep, start)
    return upper, jnp.all(upper == lower, axis=0)


def couple_from_the_past(key: Key, n: int, side: int, bond: float, field: float) -> Array:
    """[n, L] int32 exact samples; bond < 0 only at an even side, where flipping a sublattice helps.

    Every replica starts twice as far back until both extremes meet; those that did are put aside.

    Source: J. Propp and D. Wilson, Random Structures & Algorithms 9, 223 (1996).
    """
    colours = site_colours(side)
    signs = np.array([1.0, np.sign(bond) or 1.0, 1.0])[: len(colours), None]
    push = 2 * (abs(bond) * (2 * np.arange(5) - 4) + signs * field)
    probability = 0.5 * (1 + np.tanh(push / 2))
    thresholds = np.minimum(np.round(probability * 2.0**32), 2.0**32 - 1).astype(np.uint32)
    keys = jax.random.split(key, n)
    tokens = np.empty((n, side * side), np.int8)

    def run(waiting, sizes):
        num_sweeps = 32
        while len(waiting):
            if num_sweeps > _MAX_SWEEPS:
                raise RuntimeError(
                    f"coupling from the past: {len(waiting)} samples did not coalesce within "
                    f"{_MAX_SWEEPS} sweeps at side {side}, beta J = {bond:.4g}, beta h = {field:.4g}: the "
                    f"lattice is ordered (critical at zero field: 0.4407); exact samples at any temperature "
                    f"go up to side {transfer.MAX_TRANSFER_SIDE}"
                )
            padded = np.resize(waiting, min(size for size in sizes if size >= len(waiting)))
            state, met = _run_from_extremes(keys[padded], thresholds, num_sweeps, side)
            met = np.asarray(met)[: len(waiting)]
            tokens[waiting[met]] = np.asarray(state).T[: len(waiting)][met]
            waiting, num_sweeps = waiting[~met], 2 * num_sweeps

    if 4 * abs(bond) > abs(field) and abs(bond) > _ORDERS:
        # Some 130,000 sweeps of all lanes would take many minutes to end in an error.
        run(np.arange(min(_PILOTS, n)), (_PILOTS,))
    for start in range(0, n, _LANES[0]):
        run(np.arange(start, min(start + _LANES[0], n)), _LANES)
    if bond < 0:
        tokens[:, colours[1][0]] ^= 1
    return jnp.asarray(tokens, jnp.int32)
