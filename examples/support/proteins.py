"""Regressors of fitness, an ensemble of one's own, and what is measured of proposals."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from data.proteins import VOCAB, WIDTH, levenshtein

NUM_PROPOSED = 128


class Regressor(NamedTuple):
    """Fitness of a sequence: the maximum over windows of linear features, cut at zero, then a sum.

    The published encoder and embedding have no nonlinearity between them, so that their product is one
    table: what residue v at place k of a window adds to each feature.

    Attributes:
      table: [5, 20, F].
      bias, weight: [F].
      offset: scalar.
    """

    table: jax.Array
    bias: jax.Array
    weight: jax.Array
    offset: jax.Array


def read_regressor(arrays, scale=1.0):
    """A published regressor from its arrays by name, its value divided by `scale`."""
    layer = np.asarray(arrays["embedding.layer.weight"], np.float64)
    table = np.einsum("fc,cvk->kvf", layer, np.asarray(arrays["encoder.weight"], np.float64))
    bias = layer @ arrays["encoder.bias"] + arrays["embedding.layer.bias"]
    weight, offset = arrays["decoder.weight"][0] / scale, arrays["decoder.bias"][0] / scale
    return Regressor(*(jnp.asarray(a, jnp.float32) for a in (table, bias, weight, offset)))


def predict(regressor, x):
    """[N] fitness of tokens [N, 28], or of probabilities [N, 28, 20] in their place."""
    if x.ndim == 2:
        x = jax.nn.one_hot(x, VOCAB)
    num = x.shape[1] - WIDTH + 1
    windows = jnp.stack([x[:, k : k + num] for k in range(WIDTH)], axis=2)
    flat = regressor.table.reshape(WIDTH * VOCAB, -1)
    features = jnp.max(windows.reshape(len(x), num, -1) @ flat, axis=1) + regressor.bias[None]
    return jax.nn.relu(features) @ regressor.weight + regressor.offset


def values(regressor, x):
    """[N] NumPy fitness of any number of sequences."""
    return _in_chunks(lambda part: _predict(regressor, part), x)


def _in_chunks(function, x, size=512):
    """[..., N] of `function` on tokens [N, L], always as many at a time, so that it is compiled once."""
    filled = np.concatenate([x, np.zeros((-len(x) % size, x.shape[1]), x.dtype)])
    parts = [np.asarray(function(part)) for part in np.split(filled, len(filled) // size)]
    return np.concatenate(parts, axis=-1)[..., : len(x)]


_predict = jax.jit(predict)


# An ensemble trained on the task's variants alone, against proposals that please one predictor only.

MEMBERS, FEATURES, STEPS, BATCH = 4, 64, 300, 128


@functools.partial(jax.jit, static_argnames=("steps",))
def fit_ensemble(key, x, y, steps=STEPS):
    """`MEMBERS` regressors [M, ...] of the same form, each on a bootstrap of variants x [N, 28], y [N]."""
    center, spread = jnp.mean(y), jnp.std(y)

    def member(key):
        k_table, k_weight, k_rows, k_steps = jax.random.split(key, 4)
        table = jax.random.normal(k_table, (WIDTH, VOCAB, FEATURES)) / jnp.sqrt(WIDTH)
        weight = jax.random.normal(k_weight, (FEATURES,)) / jnp.sqrt(FEATURES)
        start = Regressor(table, jnp.zeros(FEATURES), weight, jnp.zeros(()))
        rows = jax.random.randint(k_rows, (len(x),), 0, len(x))
        adam = optax.adamw(optax.cosine_decay_schedule(2e-3, steps), weight_decay=1e-2)

        def loss(regressor, batch):
            return jnp.mean((predict(regressor, x[batch]) - (y[batch] - center) / spread) ** 2)

        def step(carry, key):
            regressor, state = carry
            batch = rows[jax.random.randint(key, (min(BATCH, len(x)),), 0, len(x))]
            updates, state = adam.update(jax.grad(loss)(regressor, batch), state, regressor)
            return (optax.apply_updates(regressor, updates), state), None

        (found, _), _ = jax.lax.scan(step, (start, adam.init(start)), jax.random.split(k_steps, steps))
        return found._replace(weight=found.weight * spread, offset=found.offset * spread + center)

    return jax.lax.map(member, jax.random.split(key, MEMBERS))


def opinions(ensemble, x):
    """[M, N] fitness by each member."""
    return jax.vmap(predict, (0, None))(ensemble, x)


class Judges(NamedTuple):
    """All that may rank proposals: the predictor, the ensemble, and log p_data of the sites."""

    predictor: Regressor
    ensemble: Regressor
    log_site: jax.Array

    def scores(self, x):
        """[3, N] of tokens [N, 28]: predictor, mean of the ensemble, log p_data."""
        return _in_chunks(lambda part: _scores(self, part), x)


@jax.jit
def _scores(judges, x):
    mean = jnp.mean(opinions(judges.ensemble, x), axis=0)
    return jnp.stack([predict(judges.predictor, x), mean, log_prob(judges.log_site, x)])


def log_prob(log_site, x):
    """[N] log p of tokens [N, L] under a product over sites, log_site [L, V]."""
    return jnp.sum(jnp.take_along_axis(log_site[None], x[:, :, None], axis=2)[..., 0], axis=1)


RANKINGS = {
    "by predictor": (1.0, 0.0, 0.0),
    "by predictor and ensemble": (1.0, 1.0, 0.0),
    "by all three": (1.0, 1.0, 1 / 3),
}
"""How the best are found: by a sum of their ranks by predictor, ensemble and log p_data, so weighted."""
GUARDED = "by all three"


def best(judges, x, ranking, num=NUM_PROPOSED):
    """[num, 28] of the distinct sequences in x those that rank first: not what pleases one judge only."""
    x = np.unique(np.asarray(x), axis=0)
    ranks = judges.scores(x).argsort(1).argsort(1)
    total = np.asarray(RANKINGS[ranking]) @ ranks
    return x[np.argsort(-total, kind="stable")[:num]]


def measure(x, oracle, judges, seen):
    """Figures of proposals x [N, 28]: fitness by the oracle, which nothing above has seen, and the rest."""
    pairs = np.asarray(levenshtein(x, x))[np.triu_indices(len(x), 1)]
    fitness, scores = values(oracle, x), judges.scores(x)
    return {
        "fitness": float(np.median(fitness)),
        "low": float(np.quantile(fitness, 0.1)),
        "high": float(np.quantile(fitness, 0.9)),
        "predictor": float(np.median(scores[0])),
        "ensemble": float(np.median(scores[1])),
        "diversity": float(pairs.mean()),
        "novelty": float(np.median(np.asarray(levenshtein(x, seen)).min(1))),
        "num": len(x),
    }
