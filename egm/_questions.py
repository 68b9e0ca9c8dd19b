"""What an energy is asked before it is trained on: has it a density, and which symmetries has it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from egm import pilot, random
from egm.spaces import Layout
from egm.typing import Energy, Key

__all__ = ["check_finite", "check_proper", "flips", "shift_invariant"]


def check_finite(key: Key, energy: Energy, layout: Layout) -> None:
    """Raises where E says nothing at all, at states around the origin at several scales."""
    k_x, k_h = random.split(key)
    scale = 10.0 ** jnp.repeat(jnp.arange(-2.0, 3.0), 16)[:, None]
    x = scale * jax.random.normal(k_x, (80, layout.num_coordinates))
    sizes = jnp.asarray(layout.vocab_sizes, jnp.float32)[None]
    h = (jax.random.uniform(k_h, (80, layout.num_sites)) * sizes).astype(jnp.int32)
    e = np.asarray(jax.jit(energy)(layout.joined(x, h)))
    if np.all(np.isnan(e)):
        raise ValueError("energy is NaN at all of 80 states around the origin; +inf is legal, NaN is not")
    if np.all(np.isnan(e) | (e == -np.inf)):
        raise ValueError("energy is NaN or -inf at all of 80 states around the origin: it has no density")


def check_proper(key: Key, energy: Energy, layout: Layout, near: float, far: float, spread: float) -> None:
    """Raises where E does not grow from `near` to `far`: exp(-E) has no finite integral there.

    A density falls faster than r^-D along nearly every ray, and than r^-1 along each axis: E grows by more
    than D, or 1, for each factor e of the distance. Where it falls first (a funnel's) the growth comes
    later: by 100 times `far` it must be there. `spread` is that of E where the target is.
    """
    dim = layout.num_coordinates
    if layout.angles.all() or layout.particles is not None:
        return
    k_x, k_h = random.split(key)
    line = ~layout.angles
    axes = np.eye(dim)[line]
    rays = np.asarray(jax.random.normal(k_x, (64, dim))) * line
    rays = np.concatenate([rays, axes, -axes]).astype(np.float32)
    least = np.concatenate([np.full(64, line.sum()), np.ones(2 * len(axes))])
    sizes = jnp.asarray(layout.vocab_sizes, jnp.float32)[None]
    h = (jax.random.uniform(k_h, (len(rays), layout.num_sites)) * sizes).astype(jnp.int32)
    function = jax.jit(energy)
    at = lambda r: np.asarray(function(layout.joined(jnp.asarray(r * rays), h)), np.float64)
    low, flat = at(near), np.ones(len(rays), bool)
    for distance in (100 * far, 10 * far, far):
        high = at(distance)
        known = np.isfinite(low) & ~np.isnan(high)
        growth = np.where(known, high, 0.0) - np.where(known, low, 0.0)
        flat &= known & (growth < least * np.log(distance / near) * 0.98)
    if not flat.any():
        return
    hint = ""
    if np.median(growth[known]) < -10 * spread:
        hint = " Was a log-density passed as energy?"
    elif np.abs(growth[known]).max() < 10 * spread:
        hint = " Where states are angles, the space is egm.spaces.Circle."
    elif flat[64:].any() and not flat[:64].any():
        first = int(np.flatnonzero(line)[np.flatnonzero(flat[64:])[0] % len(axes)])
        hint = f" It hardly depends on coordinate {first}: give that a prior, or leave it out."
    raise ValueError(
        f"energy must grow with distance, so that exp(-energy) is a density; along {flat.sum()} of "
        f"{len(rays)} rays it grows by {np.median(growth[flat]):.3g} from {near:g} to {far:g}.{hint}"
    )


def shift_invariant(key: Key, found: pilot.Found, energy: Energy, layout: Layout) -> bool:
    """Whether E is the same after shifts of the periodic grid that is the whole state."""
    grid = layout.grid
    if not grid:
        return False
    chosen = jax.random.randint(key, (32,), 0, len(found.energies))
    x = jnp.asarray(found.states)[chosen]
    if layout.num_sites:
        others = jax.random.randint(random.derive(key, "tokens"), x.shape, 0, layout.vocab_size, x.dtype)
        x = jnp.concatenate([x, others])
    here = np.asarray(energy(x), np.float64)
    for axis in (1, 2):
        there = jnp.roll(x.reshape(-1, *grid), 1, axis).reshape(x.shape)
        if not np.allclose(here, energy(there), rtol=1e-4, atol=1e-3 * max(1.0, np.nanstd(here))):
            return False
    return True


def flips(key: Key, found: pilot.Found, energy: Energy, layout: Layout) -> bool:
    """Whether E(x, h) = E(-x, 1 - h) in the sampler's coordinates, at states of the chains and at others."""
    chosen = jax.random.randint(key, (64,), 0, len(found.energies))
    state = jax.tree.map(lambda a: jnp.asarray(a)[chosen], found.states)
    x, h = layout.split(state)
    h = jnp.concatenate([h, jax.random.randint(random.derive(key, "h"), h.shape, 0, 2, h.dtype)])
    x = None if x is None else jnp.concatenate([x, x])
    here = np.asarray(energy(layout.joined(x, h)), np.float64)
    there = np.asarray(energy(layout.joined(None if x is None else -x, 1 - h)), np.float64)
    return bool(np.allclose(here, there, rtol=1e-4, atol=1e-3 * max(1.0, np.nanstd(here))))
