"""The potential of the 28x28 digits: batches, network and the two phases that mnist.py trains."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from support import potentials

from energymatch import couplings, losses, matching, negatives, networks

WATCHED = 32
"""Held-out digits and training digits whose energies are looked at in every step."""


class Settings(NamedTuple):
    """What a run is.

    Attributes:
      noise: standard deviation of the noise on digits, in those of a mean pixel (.2 are 13 of 255 levels):
        without noise digits have no density.
      epsilon_max: the temperature at which exp(-V/epsilon_max) is the density. Transport makes V a cone
        of slope |x_1 - x_0|, about 33, around the digits; at epsilon .2 exp(-cone/epsilon) is as wide as
        digits with noise .2 are: 784 epsilon/33 = noise 28.
      step_size: of the chains, in training and in sampling.
      lambda_cd, batch_size: of phase 2, of both.
      pool: batches of couplings made ahead, and their size.
      burn_in: time from which a chain from the prior weighs as a negative.
    """

    noise: float = 0.2
    epsilon_max: float = 0.2
    step_size: float = 0.04
    tau_star: float = 0.8
    lambda_cd: float = 0.02
    batch_size: int = 64
    pool: tuple[int, int] = (32, 512)
    burn_in: float = 2.0
    chain_steps: int = 5


class Potential(NamedTuple):
    """V, callable on x [B, 28, 28, 1]; `apply` and the parameters apart, so that a program serves several."""

    apply: Callable[..., jax.Array]
    params: Any

    def __call__(self, x):
        return self.apply(self.params, x)


class Learned(NamedTuple):
    """V with averaged parameters after phase 1 and after both, and what training said and cost."""

    transport: Potential
    density: Potential
    history: list[list[dict[str, float]]]
    compile_seconds: float
    train_seconds: float


class Draw(NamedTuple):
    """A batch, and as many undistorted digits with noise of both kinds, to watch."""

    batch: losses.Batch
    train: jax.Array
    held_out: jax.Array


def make_network():
    """V: 28x28 to 14x14 to 7x7, one residual convolution each, a dense layer and a wall far out."""
    return networks.ConvPotential(width=24, local_energies=True, output_scale=30.0, confinement_radius=80.0)


def batches(key, digits, settings):
    """`draw_batch(key) -> Draw`: pairs coupled ahead, digits for the contrast, the prior."""
    event = digits.train.shape[1:]
    copies, train, held_out = (jnp.asarray(x) for x in (digits.copies, digits.train, digits.held_out))

    def draw_from(key, data, num, noise=settings.noise):
        row_key, noise_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (num,), 0, data.shape[0])
        return data[rows] + noise * jax.random.normal(noise_key, (num, *event))

    def pair(key):
        keys = jax.random.split(key, 3)
        x_0 = jax.random.normal(keys[0], (settings.pool[1], *event))
        return couplings.exact_ot(keys[1], x_0, draw_from(keys[2], copies, settings.pool[1], 0.0))

    pairs = jax.jit(lambda keys: jax.lax.map(pair, keys))(jax.random.split(key, settings.pool[0]))
    x_0, x_1 = (x.reshape(-1, *event) for x in pairs)

    def draw(key):
        keys, num = jax.random.split(key, 5), settings.batch_size
        rows = jax.random.randint(keys[0], (num,), 0, x_0.shape[0])
        prior = jax.random.normal(keys[1], (num, *event))
        batch = losses.Batch(x_0[rows], x_1[rows], draw_from(keys[2], copies, num), prior)
        return Draw(batch, draw_from(keys[3], train, WATCHED), draw_from(keys[4], held_out, WATCHED))

    return draw


def gaps(history):
    """[(step, gap, its standard error)] of V/epsilon from training to held-out digits, at most 30."""
    rows = [row for phase in history for row in phase]
    steps = np.cumsum([row["num_steps"] for row in rows])
    gap, spread = (np.array([row[k] for row in rows]) for k in ("held_out_gap", "value_sd"))
    error = spread * np.sqrt(2 / (WATCHED * np.array([row["num_steps"] for row in rows])))
    parts = np.array_split(np.arange(len(rows)), min(30, len(rows)))
    return [
        (int(steps[p[-1]]), float(gap[p].mean()), float(np.sqrt(np.sum(error[p] ** 2)) / len(p)))
        for p in parts
    ]


def watched(step, apply, params_of, epsilon):
    """The step with V/epsilon of held-out digits less that of training digits among its metrics."""

    def run(key, state, drawn):
        state, metrics = step(key, state, drawn.batch)
        values = apply(params_of(state), jnp.concatenate([drawn.held_out, drawn.train])) / epsilon
        held_out, train = jnp.split(values, 2)
        gap = {"held_out_gap": jnp.mean(held_out) - jnp.mean(train), "value_sd": jnp.std(held_out)}
        return state, metrics | gap

    return run


def learn(seed, digits, settings, warm_up, iterations, chunk=50):
    """Both phases: `Learned`."""
    network, epsilon = make_network(), settings.epsilon_max
    source = negatives.Restarted(
        num_steps=settings.chain_steps, step_size=settings.step_size, tau_star=settings.tau_star,
        restart=0.05, burn_in=settings.burn_in,
    )  # fmt: skip
    config = matching.MatchingConfig(epsilon_max=epsilon, lambda_cd=settings.lambda_cd, negatives=source)
    keys = jax.random.split(jax.random.key(seed), 4)
    draw = batches(keys[0], digits, settings)
    run = {"seed": seed, "network": network, "settings": settings, "copies": len(digits.copies)}

    def fit(make, start, params_of, key, num_steps, rate, label, shown):
        adam = potentials.optimizer(rate, num_steps, warm_up=min(100, num_steps // 5))
        init, step = make(network.apply, adam, ema_decay=0.995)
        return potentials.fit(
            watched(step, network.apply, params_of, epsilon), init(*start), key, draw, num_steps,
            label=label, shown=shown, configuration=run, chunk=chunk,
        )  # fmt: skip

    rows = lambda out, num: [row | {"num_steps": num // len(out.history)} for row in out.history]
    params = jax.jit(network.init)(keys[1], jnp.asarray(digits.train[:1]))
    first = fit(
        matching.make_warm_up, (params,), lambda state: state.params, keys[2], warm_up, 4e-3,
        "transport", ("flow_loss", "held_out_gap"),
    )  # fmt: skip
    transport = first.state.ema_params
    second = fit(
        functools.partial(matching.make_matching, config=config),
        (transport, jnp.asarray(digits.train[: settings.batch_size])), lambda state: state.train.params,
        keys[3], iterations, 1e-4, "transport and density", ("flow_loss", "energy_gap", "held_out_gap"),
    )  # fmt: skip
    return Learned(
        Potential(network.apply, transport),
        Potential(network.apply, second.state.train.ema_params),
        [rows(first, warm_up), rows(second, iterations)],
        first.compile_seconds + second.compile_seconds,
        first.train_seconds + second.train_seconds,
    )
