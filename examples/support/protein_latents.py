"""With `energymatch`, as published: a variational autoencoder, a potential on its latents, posterior samples.

Source: Energy Matching (arXiv 2504.10612), protein design: 16 latents, tau* .9, eps_max .1, zeta .01, times
1.7 (medium) and 1.3 (hard), interaction of width 14 and 11.
"""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from data.proteins import LENGTH, VOCAB
from support import potentials
from support.proteins import predict

import egm
from egm import training
from energymatch import couplings, langevin, losses, matching, negatives, networks, posterior, schedules

LATENTS, TAU_STAR, EPSILON_MAX, ZETA = 16, 0.9, 0.1, 0.01
TIMES, WIDTHS = {"medium": 1.7, "hard": 1.3}, {"medium": 14.0, "hard": 11.0}
DECODED_WIDTH = 6.0
"""Of the interaction between decoded sequences; the published widths are of latents."""
NUM_SAMPLES, STEP_SIZE = 512, 0.02
KL_WEIGHT = 3.0


class Autoencoder(nn.Module):
    """Tokens to the mean and log-deviation of 16 latents, and back to logits."""

    width: int = 256

    def setup(self):
        self.encoder = nn.Sequential([nn.Dense(self.width), nn.silu, nn.Dense(2 * LATENTS)])
        self.decoder = nn.Sequential([nn.Dense(self.width), nn.silu, nn.Dense(LENGTH * VOCAB)])

    def __call__(self, x, noise):
        mean, log_deviation = self.encode(x)
        return self.decode(mean + jnp.exp(log_deviation) * noise), mean, log_deviation

    def encode(self, x):
        """(mean, log of the deviation), [N, 16] each, of tokens [N, 28]."""
        return jnp.split(self.encoder(jax.nn.one_hot(x, VOCAB).reshape(len(x), -1)), 2, axis=-1)

    def decode(self, z):
        """Logits [N, 28, 20] of z [N, 16]."""
        return self.decoder(z).reshape(len(z), LENGTH, VOCAB)


AUTOENCODER = Autoencoder()
POTENTIAL = networks.MLPPotential(width=128, depth=3, confinement_radius=8.0)


def decode(params, z):
    """Logits [N, 28, 20]."""
    return AUTOENCODER.apply(params, z, method="decode")


@functools.partial(jax.jit, static_argnames="steps")
def fit_autoencoder(key, x, steps, kl_weight=KL_WEIGHT):
    """(parameters, latents [N, 16] of the variants: one draw of each one's posterior)."""
    k_init, k_steps, k_draw = jax.random.split(key, 3)
    params = AUTOENCODER.init(k_init, x[:1], jnp.zeros((1, LATENTS)))
    adam = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

    def loss(params, key):
        k_rows, k_noise = jax.random.split(key)
        batch = x[jax.random.randint(k_rows, (128,), 0, len(x))]
        logits, mean, log_deviation = AUTOENCODER.apply(
            params, batch, jax.random.normal(k_noise, (128, LATENTS))
        )
        fit = optax.softmax_cross_entropy_with_integer_labels(logits, batch).sum(1)
        kl = 0.5 * (mean**2 + jnp.exp(2 * log_deviation) - 1) - log_deviation
        return jnp.mean(fit + kl_weight * kl.sum(1))

    def step(carry, key):
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params, key)
        updates, state = adam.update(slope, state)
        return (optax.apply_updates(params, updates), state), value

    (params, _), history = jax.lax.scan(step, (params, adam.init(params)), jax.random.split(k_steps, steps))
    mean, log_deviation = AUTOENCODER.apply(params, x, method="encode")
    return params, mean + jnp.exp(log_deviation) * jax.random.normal(k_draw, mean.shape), history


@functools.partial(jax.jit, static_argnames=("warm_up", "steps"))
def fit_potential(key, z, warm_up, steps):
    """Parameters of V on latents z [N, 16], and the mean metrics of the second phase."""
    keys = jax.random.split(key, 4)
    batch = 128

    def pair(key):
        k = jax.random.split(key, 3)
        rows = z[jax.random.randint(k[0], (256,), 0, len(z))]
        return couplings.exact_ot(k[1], jax.random.normal(k[2], rows.shape), rows)

    # Coupled ahead: a coupling in each step would cost more than the rest of it.
    x_0, x_1 = (a.reshape(-1, LATENTS) for a in jax.lax.map(pair, jax.random.split(keys[3], 32)))

    def draw(key):
        k = jax.random.split(key, 3)
        rows = jax.random.randint(k[0], (batch,), 0, len(x_0))
        data = z[jax.random.randint(k[1], (batch,), 0, len(z))]
        return losses.Batch(x_0[rows], x_1[rows], data, jax.random.normal(k[2], (batch, LATENTS)))

    apply = POTENTIAL.apply
    init, step = matching.make_warm_up(apply, potentials.optimizer(1e-3, warm_up))
    state = init(POTENTIAL.init(keys[0], z[:1]))
    state, _ = training.scan_steps(step, draw, warm_up)(keys[1], state)
    config = matching.MatchingConfig(
        epsilon_max=EPSILON_MAX,
        lambda_cd=1.0,
        gate=lambda epsilon: losses.time_gate(TAU_STAR),
        negatives=negatives.Restarted(num_steps=5, step_size=0.2, tau_star=TAU_STAR),
    )
    init, step = matching.make_matching(apply, potentials.optimizer(5e-4, steps), config)
    matched, metrics = training.scan_steps(step, draw, steps)(keys[2], init(state.ema_params, z[:batch]))
    return matched.train.ema_params, metrics


@functools.partial(jax.jit, static_argnames=("name", "num"))
def sample(key, autoencoder, potential, regressor, name, widths, num=NUM_SAMPLES):
    """([num, 28] tokens, latents) of posterior samples towards a fitness of 1.

    The members repel each other as latents and as what is decoded of them, with these two widths; inf for
    not at all.
    """
    keys = jax.random.split(key, 3)
    v = functools.partial(POTENTIAL.apply, potential)
    ramp = functools.partial(schedules.temperature, tau_star=TAU_STAR, epsilon_max=EPSILON_MAX)

    def sequence(z):
        return jax.nn.softmax(decode(autoencoder, z))

    def fitness(z):
        return predict(regressor, sequence(z))[:, None]

    def features(z):
        return jnp.concatenate([z / widths[0], sequence(z).reshape(num, -1) / widths[1]], axis=1)

    energies = (
        posterior.gaussian_measurement(fitness, jnp.ones(1), ZETA),
        posterior.QuadraticRepulsion(1.0, num, features),
    )
    steps = [round(t / STEP_SIZE) for t in (TAU_STAR, TIMES[name])]
    # Below tau* the temperature is 0 and energies do nothing.
    z = langevin.sample(
        keys[0], v, jax.random.normal(keys[1], (num, LATENTS)), num_steps=steps[0], step_size=STEP_SIZE,
        temperature=ramp,
    ).x  # fmt: skip
    z = langevin.sample(
        keys[2], v, z, num_steps=steps[1] - steps[0], step_size=STEP_SIZE, temperature=ramp, t_0=TAU_STAR,
        energies=energies,
    ).x  # fmt: skip
    return jnp.argmax(decode(autoencoder, z), axis=-1), z


def join(key, autoencoder, potential, regressor, beta, seconds, num=NUM_SAMPLES):
    """([num, 28] tokens, figures) by `egm` from exp(-V/eps_max + beta fitness) of latents, weights exact.

    The fitness is of the decoded probabilities; the draws are resampled by weight.
    """

    def energy(z):
        fitness = predict(regressor, jax.nn.softmax(decode(autoencoder, z)))
        return POTENTIAL.apply(potential, z) / EPSILON_MAX - beta * fitness

    k_fit, k_draw, k_pick = jax.random.split(key, 3)
    space = egm.spaces.Real(LATENTS)
    sampler = egm.fit(k_fit, energy, space, batched=True, seconds=seconds, progress=False)
    draw = sampler.sample(k_draw, num)
    x = jnp.argmax(decode(autoencoder, draw.resample(k_pick)), axis=-1)
    figures = {
        "ess": sampler.ess,
        "log_z": sampler.log_z,
        "log_z_error": sampler.log_z_error,
        "converged": sampler.converged,
        "reason": sampler.reason,
    }
    return np.asarray(x), figures
