"""What judges the potential of the 28x28 digits: a classifier's features, outliers, samples."""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from data.digits import shuffle_pixels

from energymatch import langevin, schedules
from energymatch.networks.convolutional import patches, windows
from energymatch.potential import value_and_gradient

TIMES = (1, 2, 4)
CHUNK = 250
"""Images at a time."""


class Classifier(nn.Module):
    """x [B, 28, 28, 1] -> (features [B, 64], logits [B, 10])."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16)(windows(x)))
        x = nn.relu(nn.Dense(32)(windows(nn.Dense(32)(patches(x)))))
        x = nn.relu(nn.Dense(48)(patches(x)))
        features = nn.relu(nn.Dense(64)(x.reshape(x.shape[0], -1)))
        return features, nn.Dense(10)(features)


class Judge(NamedTuple):
    """A trained classifier: features [N, 64], classes [N] of images, and its accuracy on held-out digits."""

    features: object
    classes: object
    accuracy: float


def fit_classifier(key, digits, num_steps, batch_size=128):
    """`Judge` trained on the training digits and their distorted copies."""
    network, keys = Classifier(), jax.random.split(key)
    copies = jnp.asarray(digits.copies)
    labels = jnp.asarray(np.resize(digits.train_labels, len(digits.copies)))
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, num_steps, 0.02))

    def loss(params, rows):
        logits = network.apply(params, copies[rows])[1]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]))

    def step(carry, key):
        params, state = carry
        rows = jax.random.randint(key, (batch_size,), 0, copies.shape[0])
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(key):
        params = network.init(keys[0], copies[:1])
        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, num_steps))[0][0]

    params = run(keys[1])
    apply = jax.jit(functools.partial(network.apply, params))
    both = lambda x: chunked(apply, x)
    classes = lambda x: both(x)[1].argmax(-1)
    accuracy = float(np.mean(classes(digits.held_out) == digits.held_out_labels))
    return Judge(lambda x: both(x)[0].astype(np.float64), classes, accuracy)


def chunked(function, x):
    """The arrays that `function` makes of x [N, ...], `CHUNK` rows at a time, the last ones filled up."""
    x = np.asarray(x, np.float32)
    size = min(CHUNK, len(x))
    rows = np.minimum(np.arange(-(-len(x) // size) * size), len(x) - 1).reshape(-1, size)
    parts = [jax.device_get(function(x[part])) for part in rows]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(x)], *parts)


@functools.partial(jax.jit, static_argnums=0)
def _value_and_slope(apply, params, x):
    return value_and_gradient(functools.partial(apply, params), x)


def energies_of(potential, x, settings):
    """[N] V/epsilon, nats."""
    run = functools.partial(_value_and_slope, *potential)
    return chunked(run, x)[0] / settings.epsilon_max


def cleaned(potential, x, settings):
    """[N, 28, 28, 1] the digit's mean given x: x - noise^2 grad V/epsilon (Tweedie's formula)."""
    run = functools.partial(_value_and_slope, *potential)
    return x - settings.noise**2 / settings.epsilon_max * chunked(run, x)[1]


def outliers(rng, digits, num):
    """{name: images} that are no digits, made of the first `num` held-out ones or of nothing."""
    x = digits.held_out[:num]
    standard = lambda levels: (levels - digits.mean) / digits.scale
    return {
        "a quarter of the pixels shuffled": shuffle_pixels(rng, x),
        "all pixels shuffled": np.stack([rng.permuted(one.ravel()).reshape(one.shape) for one in x]),
        "rotated by 90 degrees": np.rot90(x, axes=(1, 2)),
        "inverted": standard(255.0 - digits.levels(x)),
        "noise of the prior": rng.normal(size=x.shape),
        "uniform grey levels": standard(rng.uniform(0, 255, x.shape)),
    }


def draw_samples(key, potential, settings, num):
    """({t: [num, 28, 28, 1] states of chains from the prior}, mean acceptance), by "mala"."""
    keys = jax.random.split(key, 2)
    chain_keys, size, parts = jax.random.split(keys[1], num), min(CHUNK, num), []
    x_0 = jax.random.normal(keys[0], (num, 28, 28, 1))
    for start in range(0, num, size):
        rows = np.minimum(np.arange(start, start + size), num - 1)
        parts.append(
            jax.device_get(_chains(potential.apply, settings, potential.params, chain_keys[rows], x_0[rows]))
        )
    states, acceptance = (np.concatenate(leaves)[:num] for leaves in zip(*parts, strict=True))
    return {t: states[:, i] for i, t in enumerate(TIMES)}, float(acceptance.mean())


@functools.partial(jax.jit, static_argnums=(0, 1))
def _chains(apply, settings, params, keys, x_0):
    """([B, times, 28, 28, 1] states at TIMES, [B] acceptance)."""
    every = round(1 / settings.step_size)
    ramp = functools.partial(
        schedules.temperature, tau_star=settings.tau_star, epsilon_max=settings.epsilon_max
    )
    out = langevin.sample(
        keys, functools.partial(apply, params), x_0, num_steps=every * max(TIMES),
        step_size=settings.step_size, temperature=ramp, method="mala", save_every=every,
    )  # fmt: skip
    return jnp.stack([out.states[t] for t in TIMES], axis=1), out.acceptance
