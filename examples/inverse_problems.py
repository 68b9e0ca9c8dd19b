"""Inverse problems with a learned energy: what digits fit half a digit, its 2x down-sampling, its blur?

python examples/inverse_problems.py      # learns the energy of 8x8 digits first, as examples/digits.py does
Writes inverse_problems.png and results.json to --output_dir.
"""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from data.digits import load_digits
from reports.inverse_problems import report
from support import cluster
from support.digits import EPSILON_MAX, NOISE, TAU_STAR, learn

from energymatch import langevin, posterior, schedules, tempering
from energymatch.posterior import operators
from energymatch.potential import value_and_gradient

# Shorter than digits.py: held-out digits lie 3 nats above those trained on, there 8, and posteriors of an
# overfitted energy are too sure of themselves.
WARM_UP = flags.DEFINE_integer("warm_up", 600, "Steps of phase 1.")
ITERATIONS = flags.DEFINE_integer("iterations", 1500, "Steps of phase 2.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/inverse_problems", "Where figure and numbers go.")
NUM_DIGITS = flags.DEFINE_integer("num_digits", 64, "Held-out digits to measure.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 50, "Rounds of tempering, of 5 moves each.", lower_bound=1)
STRENGTH = flags.DEFINE_float("strength", 14.0, "Of the interaction, nats a pair.", lower_bound=0.0)
WIDTH = flags.DEFINE_float("width", 5.0, "Of the interaction, in standard deviations of a mean pixel.")

MEMBERS, SIZE = 8, 64
ZETA = 0.2
"""Standard deviation of the measurement's noise."""
RUNGS, FACTOR = 8, 1.3
"""Of the ladder of temperatures: neighbours swap a quarter of the time in 64 dimensions."""
STEP_SIZE, JOINT_STEP_SIZE, JOINT_STEPS = 0.07, 0.045, 250


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


def measurements():
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


@functools.partial(jax.jit, static_argnums=(0, 5))
def solve(apply, params, key, problems, strengths, num_rounds):
    """Members for `problems` = (matrices [O, 64, 64], y [O, digits, 64]) and interaction strengths [2].

    A ladder of temperatures for every member, so that members are independent; then moves of all members
    of a digit at once, which the interaction needs, with and without it from the same states and noise.
    """
    potential = functools.partial(apply, params)
    temperatures = tempering.geometric_temperatures(EPSILON_MAX, FACTOR, RUNGS)
    ramp = functools.partial(schedules.temperature, tau_star=TAU_STAR, epsilon_max=EPSILON_MAX)
    num = problems[1].shape[1]

    def one(inputs):
        index, matrix, y = inputs
        y, key_o = jnp.repeat(y, MEMBERS, axis=0), jax.random.fold_in(key, index)
        keys = jax.random.split(key_o, 4)

        def likelihood(copies):
            return posterior.gaussian_measurement(operators.linear(matrix), jnp.tile(y, (copies, 1)), ZETA)

        x = langevin.sample(
            keys[0], potential, jax.random.normal(keys[1], (num * MEMBERS, 8, 8, 1)), num_steps=30,
            step_size=0.05, temperature=ramp, energies=(likelihood(1),), method="mala",
        ).x  # fmt: skip
        target = lambda copies: posterior.with_energies(potential, (likelihood(copies),), EPSILON_MAX)

        def round_of_moves(ladders, k):
            return tempering.step(
                jax.random.fold_in(keys[2], k), ladders, potential=target(RUNGS), temperatures=temperatures,
                step_size=STEP_SIZE, num_steps=5, num_swaps=2,
            )  # fmt: skip

        ladders = tempering.init(target(1), x, temperatures)
        ladders, info = jax.lax.scan(round_of_moves, ladders, np.arange(num_rounds))

        def together(strength):
            repulsion = posterior.BoundedRepulsion(strength, WIDTH.value, group_size=MEMBERS)
            out = langevin.sample(
                keys[3], posterior.joint(potential), ladders.x[0].reshape(num, MEMBERS, 8, 8, 1),
                num_steps=JOINT_STEPS, step_size=JOINT_STEP_SIZE, temperature=EPSILON_MAX, method="mala",
                energies=(posterior.joint(likelihood(1)), posterior.joint(repulsion)),
            )  # fmt: skip
            x = out.x.reshape(-1, 8, 8, 1)
            value, slope = value_and_gradient(potential, x)
            return x, x - NOISE**2 / EPSILON_MAX * slope, value / EPSILON_MAX, jnp.mean(out.acceptance)

        x, clean, energy, acceptance = jax.lax.map(together, strengths)
        acceptance = jnp.append(jnp.mean(info.acceptance[-10:, 0]), acceptance)
        grouped = lambda a: a.reshape(strengths.size, num, MEMBERS, *(SIZE,) * (a.ndim > 2))
        return Members(*map(grouped, (x, clean, energy)), acceptance, jnp.mean(info.swap_acceptance[-10:]))

    return jax.lax.map(one, (np.arange(len(problems[0])), *problems))


def main(_):
    started = time.time()
    digits = load_digits(SEED.value)
    network, params, _, compile_seconds, train_seconds = learn(
        SEED.value, digits, WARM_UP.value, ITERATIONS.value
    )
    if not cluster.is_main():
        return
    matrices = measurements()
    keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED.value), 1), 3)
    clean = jnp.asarray(digits.held_out[: NUM_DIGITS.value]).reshape(-1, SIZE)
    truth = clean + NOISE * jax.random.normal(keys[0], clean.shape)  # what V is the energy of
    a = jnp.stack(list(matrices.values()))
    noise = ZETA * jax.random.normal(keys[1], (len(a), *truth.shape))
    # No noise on the rows of zeros, which measure nothing.
    y = jnp.einsum("omd,nd->onm", a, truth) + noise * jnp.any(a != 0, axis=2)[:, None]
    start = time.time()
    strengths = jnp.array([0.0, STRENGTH.value])
    members = jax.device_get(solve(network.apply, params, keys[2], (a, y), strengths, ROUNDS.value))
    held_out = digits.held_out + NOISE * np.random.default_rng(SEED.value).normal(size=digits.held_out.shape)
    energies = jax.jit(network.apply)(params, jnp.asarray(held_out, jnp.float32)) / EPSILON_MAX
    report(
        digits, {name: np.asarray(m) for name, m in matrices.items()}, np.asarray(y), np.asarray(clean),
        members, np.asarray(energies), ZETA, OUTPUT_DIR.value,
        {
            "seed": SEED.value, "num_digits": NUM_DIGITS.value, "members": MEMBERS, "zeta": ZETA,
            "noise": NOISE, "strength": STRENGTH.value, "width": WIDTH.value,
            "compile_seconds": compile_seconds, "train_seconds": train_seconds,
            "posterior_seconds": time.time() - start, "started": started,
        },
    )  # fmt: skip


if __name__ == "__main__":
    cluster.run(main)
