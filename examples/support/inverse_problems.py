"""What inverse_problems.py measures of a digit, and the record of its answers."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from support.digits import EPSILON_MAX, NOISE

from energymatch.posterior import operators

MEMBERS, SIZE = 8, 64
ZETA = 0.2
"""Standard deviation of the measurement's noise."""


class Members(NamedTuple):
    """Posterior samples of O operators, without and with the interaction: [O, 2, digits, MEMBERS, ...].

    Attributes:
      x: [..., 64] as drawn: the energy is that of digits with noise.
      clean: [..., 64] the digit's mean given x, x - noise^2 grad V/epsilon (Tweedie's formula).
      energy: [...] V(x)/epsilon, nats.
      acceptance: [O, 3] of the coldest rung, and of the last moves without and with the interaction.
      swaps: [O] mean probability of a swap.
    """

    x: jax.Array
    clean: jax.Array
    energy: jax.Array
    acceptance: jax.Array
    swaps: jax.Array


def operator_matrices():
    """{name: [64, 64] matrix of the operator, rows of zeros at its end}; the last one measures nothing."""
    seen = jnp.broadcast_to(jnp.arange(8)[:, None, None] < 4, (8, 8, 1))
    maps = {
        "lower half missing": operators.inpainting(seen),
        "2x down-sampling": operators.downsampling(2),
        "blur of width 1.5": operators.gaussian_blur(1.5),
        "nothing": operators.inpainting(jnp.zeros((8, 8, 1), bool)),
    }
    unit = jnp.eye(SIZE).reshape(SIZE, 8, 8, 1)
    columns = {name: a(unit).reshape(SIZE, -1) for name, a in maps.items()}
    return {name: jnp.pad(c, ((0, 0), (0, SIZE - c.shape[1]))).T for name, c in columns.items()}


def measured(keys, digits, matrices):
    """(digits [N, 64] without noise, y [O, N, 64]): each operator's measurement of each digit."""
    clean = jnp.asarray(digits).reshape(-1, SIZE)
    truth = clean + NOISE * jax.random.normal(keys[0], clean.shape)  # what V is the energy of
    a = jnp.stack(list(matrices.values()))
    noise = ZETA * jax.random.normal(keys[1], (len(a), *truth.shape))
    # No noise on the rows of zeros, which measure nothing.
    return clean, jnp.einsum("omd,nd->onm", a, truth) + noise * jnp.any(a != 0, axis=2)[:, None]


def energies_of(apply, params, digits, seed):
    """V/epsilon of digits with noise, in nats."""
    noisy = digits + NOISE * np.random.default_rng(seed).normal(size=digits.shape)
    return np.asarray(jax.jit(apply)(params, jnp.asarray(noisy, jnp.float32)) / EPSILON_MAX)
