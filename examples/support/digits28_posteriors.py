"""Posteriors of the 28x28 digits' energy: guided annealing, then moves of a digit's members together."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from data.digits28 import SIDE

from energymatch import langevin, posterior, schedules
from energymatch.posterior import operators
from energymatch.potential import value_and_gradient

MEMBERS = 8
ZETA = 0.2
"""Standard deviation of the measurement's noise."""
ARMS = ("published annealing", "posterior", "with interaction")


@functools.cache
def make_operators():
    """{name: A(x) of images [N, 28, 28, 1]}. The half that is missing is zero in y."""
    upper = np.broadcast_to(np.arange(SIDE)[:, None, None] < SIDE // 2, (SIDE, SIDE, 1))
    return {
        "lower half missing": operators.inpainting(jnp.asarray(upper)),
        "4x down-sampling": operators.downsampling(4),
        "blur of width 2": operators.gaussian_blur(2.0),
    }


class Lengths(NamedTuple):
    """Steps of the annealing and of the moves after it, and their sizes.

    Attributes:
      annealing: steps from the prior; t at their end is annealing * step_size.
      moves: adjusted moves at epsilon_max after it, of all members of a digit at once.
      joint_step_size: of those, shorter as a move of eight members is accepted as a whole.
    """

    annealing: int = 100
    moves: int = 200
    step_size: float = 0.04
    joint_step_size: float = 0.015


class Members(NamedTuple):
    """Posterior samples of an operator, for each of ARMS: [3, digits, MEMBERS, ...].

    Attributes:
      x: [..., 28, 28, 1] as drawn: the energy is that of digits with noise.
      clean: the digit's mean given x, x - noise^2 grad V/epsilon (Tweedie's formula).
      energy: V(x)/epsilon, nats.
      acceptance: [3] of the last moves.
    """

    x: np.ndarray
    clean: np.ndarray
    energy: np.ndarray
    acceptance: np.ndarray


def measured(key, digits, noise):
    """({operator: y [N, ...]}): each operator's measurement of digits [N, 28, 28, 1] with V's noise."""
    keys = jax.random.split(key, 1 + len(make_operators()))
    truth = jnp.asarray(digits) + noise * jax.random.normal(keys[0], digits.shape)
    out = {}
    for k, (name, operator) in zip(keys[1:], make_operators().items(), strict=True):
        seen = operator(jnp.ones_like(truth)) != 0  # no noise where nothing is measured
        y = operator(truth)
        out[name] = y + ZETA * seen * jax.random.normal(k, y.shape)
    return out


@functools.partial(jax.jit, static_argnums=(0, 4, 5, 6))
def solve(apply, params, key, y, operator, settings, lengths, strength, width):
    """`Members` of measurements y [N, ...] of an operator.

    The published annealing multiplies the measurement's gradient by eps(t), so that V alone decides which
    digit a chain comes to; `posterior` keeps the measurement at its full weight from the start (the
    potential is V + epsilon_max U while the temperature goes through the same schedule). Both
    then take as many adjusted moves at epsilon_max, the latter with and without the
    interaction from the same states and noise.
    """
    potential, epsilon, num = functools.partial(apply, params), settings.epsilon_max, y.shape[0]
    ramp = functools.partial(schedules.temperature, tau_star=settings.tau_star, epsilon_max=epsilon)
    measurement = posterior.gaussian_measurement(operator, jnp.repeat(y, MEMBERS, axis=0), ZETA)
    keys = jax.random.split(key, 3)
    x_0 = jax.random.normal(keys[0], (num * MEMBERS, SIDE, SIDE, 1))
    # Unadjusted, as published: from a minimum, where the cold part of the schedule ends, adjusted steps of
    # this size are refused one after the other.
    anneal = functools.partial(
        langevin.sample, keys[1], x_0=x_0, num_steps=lengths.annealing, step_size=lengths.step_size,
        temperature=ramp,
    )  # fmt: skip
    published = anneal(potential, energies=(measurement,)).x
    guided = anneal(posterior.with_energies(potential, (measurement,), epsilon)).x

    def together(inputs):
        x, strength = inputs
        repulsion = posterior.BoundedRepulsion(strength, width, group_size=MEMBERS)
        out = langevin.sample(
            keys[2], posterior.joint(potential), x.reshape(num, MEMBERS, SIDE, SIDE, 1),
            num_steps=lengths.moves, step_size=lengths.joint_step_size, temperature=epsilon, method="mala",
            energies=(posterior.joint(measurement), posterior.joint(repulsion)),
        )  # fmt: skip
        x = out.x.reshape(-1, SIDE, SIDE, 1)
        value, slope = value_and_gradient(potential, x)
        return x, x - settings.noise**2 / epsilon * slope, value / epsilon, jnp.mean(out.acceptance)

    starts = jnp.stack([published, guided, guided]), jnp.array([0.0, 0.0, 1.0]) * strength
    x, clean, energy, acceptance = jax.lax.map(together, starts)
    grouped = lambda a: a.reshape(len(ARMS), num, MEMBERS, *a.shape[2:])
    return Members(grouped(x), grouped(clean), grouped(energy), acceptance)
