"""Inverse problems with a learned energy: what digits fit half a digit, its 2x down-sampling, its blur?

python examples/inverse_problems.py      # learns the energy of 8x8 digits first, as examples/digits.py does
Writes inverse_problems.png and results.json to --output_dir.
"""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from data.digits import load_digits
from reports.inverse_problems import report
from support import cluster
from support.digits import EPSILON_MAX, NOISE, TAU_STAR, learn
from support.inverse_problems import MEMBERS, SIZE, ZETA, Members, energies_of, measured, operator_matrices

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

RUNGS, FACTOR = 8, 1.3
"""Of the ladder of temperatures: neighbours swap a quarter of the time in 64 dimensions."""
STEP_SIZE, JOINT_STEP_SIZE, JOINT_STEPS = 0.07, 0.045, 250


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
    network, params, _, *seconds = learn(SEED.value, digits, WARM_UP.value, ITERATIONS.value)
    if not cluster.is_main():
        return
    matrices = operator_matrices()
    keys = jax.random.split(jax.random.fold_in(jax.random.key(SEED.value), 1), 3)
    clean, y = measured(keys, digits.held_out[: NUM_DIGITS.value], matrices)
    a = jnp.stack(list(matrices.values()))
    start = time.time()
    strengths = jnp.array([0.0, STRENGTH.value])
    members = jax.device_get(solve(network.apply, params, keys[2], (a, y), strengths, ROUNDS.value))
    energies = energies_of(network.apply, params, digits.held_out, SEED.value)
    report(
        digits, {name: np.asarray(m) for name, m in matrices.items()}, np.asarray(y), np.asarray(clean),
        members, energies, ZETA, OUTPUT_DIR.value,
        {flag.name: flag.value for flag in (SEED, NUM_DIGITS, STRENGTH, WIDTH)} | {
            "members": MEMBERS, "zeta": ZETA, "noise": NOISE, "compile_seconds": seconds[0],
            "train_seconds": seconds[1], "posterior_seconds": time.time() - start, "started": started,
        },
    )  # fmt: skip


if __name__ == "__main__":
    cluster.run(main)
