"""With `egm`: sequences themselves from exp(-E), E = -beta predictor(x) - gamma log p_data(x), weights exact.

p_data is a product over sites. Its power is one too, so that at beta = 0 the denoiser is known in closed form
and the sampler exact; as beta rises step by step a network learns what the predictor adds to it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from data.proteins import LENGTH, VOCAB
from support.optimizers import optimizer
from support.proteins import log_prob, predict

import egm
from egm import algorithms, heads, importance, iteration, networks, paths, processes

PSEUDO = 0.5
"""Count that every residue has at every site beside the data's."""
DIVERSITY = {"medium": 5.75, "hard": 5.0}
"""Expected number of sites in which two sequences of p_data^gamma differ; it fixes gamma."""
TILTS = (0.0, 1.0, 2.0, 4.0, 8.0)
"""beta times the standard deviation of the predictor over the variants: one unit for all tasks."""
TILT = {"medium": 4.0, "hard": 1.0}
"""The one that is proposed from."""
NUM_DRAWN = 2048


class Draw(NamedTuple):
    """Sequences of one tilt: as many of equal weight, what their weights say, and beta."""

    x: np.ndarray
    summary: egm.metrics.PathWeightSummary
    beta: float


def fit_sites(x):
    """[L, V] log frequencies with pseudo-counts."""
    counts = np.eye(VOCAB)[x].sum(0) + PSEUDO
    return jnp.asarray(np.log(counts / counts.sum(1, keepdims=True)), jnp.float32)


def sharpness(log_site, diversity):
    """gamma at which two sequences of p^gamma differ in so many sites, by bisection."""

    def differ(gamma):
        p = np.exp(gamma * np.asarray(log_site, np.float64))
        p /= p.sum(1, keepdims=True)
        return float(np.sum(1 - np.sum(p**2, axis=1)))

    low, high = 0.01, 20.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if differ(middle) > diversity else (low, middle)
    return 0.5 * (low + high)


class _Parts(NamedTuple):
    path: paths.MaskedPath
    process: processes.AnyOrderProcess
    algorithm: algorithms.Weighted
    network: networks.MLPDenoiser


@functools.cache
def _parts():
    """Path, process, algorithm and network; the closed form comes with the parameters."""
    path = paths.MaskedPath(VOCAB)
    network = networks.MLPDenoiser(VOCAB, width=96, depth=1)

    def apply(params, x, t):
        # Not learned: what p_data^gamma says of each site.
        return network.apply(params["network"], x, t) + jax.lax.stop_gradient(params["closed"])[None]

    algorithm = algorithms.Weighted(path, heads.DenoiserHead(path), apply)
    return _Parts(path, processes.AnyOrderProcess(path), algorithm, network)


def energy(settings, x):
    """E of tokens [N, 28] with settings (regressor, beta, gamma log_site)."""
    regressor, beta, closed = settings
    return -beta * predict(regressor, x) - log_prob(closed, x)


CONFIG = iteration.IterationConfig(
    num_simulated=512,
    buffer_size=512,
    num_gradient_steps=40,
    batch_size=256,
    num_times=LENGTH,
    ema_decay=0.95,
    ess_target=None,
)


@functools.cache
def _compiled():
    path, process, algorithm, _ = _parts()
    init, step = iteration.make_iteration(
        algorithm, process, energy, optimizer(), CONFIG, event_shape=(LENGTH,)
    )

    @functools.partial(jax.jit, static_argnames="num")
    def draw(key, params, settings, num):
        k_path, k_pick = jax.random.split(key)
        generator = algorithm.generator(params, None)
        x_0 = path.sample_prior(k_path, (num, LENGTH))
        trajectory = egm.simulate(k_path, process, generator, x_0, process.times(LENGTH))
        log_weights = egm.path_log_weights(lambda x: energy(settings, x), path, trajectory)
        chosen = importance.systematic(k_pick, log_weights, num)
        return trajectory.x_1[chosen], egm.metrics.summarize(log_weights)

    return init, jax.jit(step), draw


def sample(key, regressor, log_site, gamma, spread, tilts=TILTS, iterations=6, num=NUM_DRAWN):
    """[Draw of each tilt]: the sampler is trained at one after the other, from the closed form on."""
    init, step, draw = _compiled()
    closed = gamma * log_site
    k_params, key = jax.random.split(key)
    network = _parts().network.init(k_params, jnp.zeros((1, LENGTH), jnp.int32))
    state = init({"network": network, "closed": closed})
    state.train.opt_state.hyperparams["learning_rate"] = jnp.asarray(2e-3, jnp.float32)
    draws = []
    for i, tilt in enumerate(tilts):
        settings = (regressor, jnp.asarray(tilt / spread, jnp.float32), closed)
        for j in range(iterations if tilt else 0):
            state, _ = step(jax.random.fold_in(key, 100 * i + j), state, settings)
        k_draw = jax.random.fold_in(key, 100 * i + 99)
        x, summary = draw(k_draw, state.train.ema_params, settings, num=num)
        draws.append(Draw(np.asarray(x), jax.device_get(summary), tilt / spread))
    return draws


def closed_log_z(log_site, gamma):
    """log Z at beta = 0."""
    return float(jnp.sum(jax.nn.logsumexp(gamma * log_site, axis=1)))
