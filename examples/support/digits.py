"""The potential of handwritten digits: what `digits.py` trains and `inverse_problems.py` uses."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from support import potentials

from energymatch import couplings, losses, matching, negatives, networks

BATCH_SIZE = 256
POOL = (64, 512)  # batches of couplings made ahead, and their size
NOISE = 0.2
"""Standard deviation of the noise on digits (0.87 of 16 grey levels): grey levels are discrete and the
border is constant, so digits have no density without it, and with less of it a stiff one."""
EPSILON_MAX = 0.15
"""Transport sets the slope of V from the prior to digits: at this temperature they lie 260 nats apart."""
STEP_SIZE, TAU_STAR = 0.1, 0.8


def batches(key, digits):
    """`draw_batch(key) -> losses.Batch`: pairs coupled ahead, digits for the contrast, and the prior."""
    event = digits.shape[1:]

    def draw_data(key, num):
        row_key, noise_key = jax.random.split(key)
        rows = jax.random.randint(row_key, (num,), 0, digits.shape[0])
        return digits[rows] + NOISE * jax.random.normal(noise_key, (num, *event))

    def pair(key):
        keys = jax.random.split(key, 3)
        x_0 = jax.random.normal(keys[0], (POOL[1], *event))
        return couplings.exact_ot(keys[1], x_0, draw_data(keys[2], POOL[1]))

    pairs = jax.jit(lambda keys: jax.lax.map(pair, keys))(jax.random.split(key, POOL[0]))
    x_0, x_1 = (x.reshape(-1, *event) for x in pairs)

    def draw(key):
        keys = jax.random.split(key, 3)
        rows = jax.random.randint(keys[0], (BATCH_SIZE,), 0, x_0.shape[0])
        prior = jax.random.normal(keys[1], (BATCH_SIZE, *event))
        return losses.Batch(x_0[rows], x_1[rows], draw_data(keys[2], BATCH_SIZE), prior)

    return draw


def learn(seed, digits, warm_up, iterations):
    """(network, parameters, history, seconds of compilation, of training) of the potential of `digits`."""
    train = jnp.asarray(digits.train)
    network = networks.ConvPotential(width=32, confinement_radius=14.0)
    source = negatives.Restarted(
        num_steps=5, step_size=STEP_SIZE, tau_star=TAU_STAR, restart=0.05, burn_in=4.0
    )
    config = matching.MatchingConfig(epsilon_max=EPSILON_MAX, lambda_cd=1.0, negatives=source)
    keys = jax.random.split(jax.random.key(seed), 5)
    draw = batches(keys[4], train)
    run = {"seed": seed, "noise": NOISE, "network": network, "matching": config}

    def fit(make, start, key, num_steps, rate, label, shown):
        adam = potentials.optimizer(rate, num_steps, warm_up=min(200, num_steps // 5))
        init, step = make(network.apply, adam, ema_decay=0.999)
        return potentials.fit(
            step, init(*start), key, draw, num_steps, label=label, shown=shown, configuration=run
        )

    start = (network.init(keys[0], train[:1]),)
    state, _, compile_1, train_1 = fit(
        matching.make_warm_up, start, keys[1], warm_up, 1e-3, "transport", ("flow_loss",)
    )
    make = functools.partial(matching.make_matching, config=config)
    start, shown = (state.ema_params, train[:BATCH_SIZE]), ("flow_loss", "energy_gap")
    state, history, compile_2, train_2 = fit(
        make, start, keys[2], iterations, 5e-4, "transport and density", shown
    )
    return network, state.train.ema_params, history, compile_1 + compile_2, train_1 + train_2
