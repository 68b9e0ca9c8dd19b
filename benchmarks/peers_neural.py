"""Samplers with networks in them from the package index, for peers.py: nautilus and pocoMC.

Both ask for a prior and a likelihood: the prior is N(0, width^2 I), the likelihood the target over it. All
settings are their defaults. nautilus has a time limit; pocoMC ends when it has the samples it is asked for.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from peers_energies import figures
from scipy import stats


def log_likelihood(target, width):
    """f([N, D] NumPy) -> [N]: log target - log prior, padded so that few sizes are compiled."""
    dim = target.space.shape[0]

    @jax.jit
    def of(x):
        log_prior = -0.5 * jnp.sum((x / width) ** 2, -1) - dim * np.log(width * np.sqrt(2 * np.pi))
        return -target.energy(x) - log_prior

    def padded(x):
        size = 1 << max(len(x) - 1, 127).bit_length()
        filled = np.zeros((size, dim), np.float32)
        filled[: len(x)] = x
        return np.asarray(of(filled), np.float64)[: len(x)]

    return padded


def nautilus(target, width, seconds, seed):
    """Importance nested sampling with networks; its error of log Z is 1 / sqrt(effective sample size)."""
    from nautilus import Sampler

    dim = target.space.shape[0]
    prior = lambda u: width * stats.norm.ppf(u)
    sampler = Sampler(prior, log_likelihood(target, width), n_dim=dim, vectorized=True, seed=seed)
    ended = sampler.run(timeout=seconds, verbose=False)
    x, log_weights, _ = sampler.posterior()
    keep = np.isfinite(log_weights)
    number = float(sampler.n_eff)
    return figures(
        target,
        x[keep],
        log_weights=np.asarray(log_weights[keep], np.float32),
        log_z=float(sampler.log_z),
        error=number**-0.5 if ended else float("inf"),
        ess=number / max(int(np.sum(keep)), 1),
        evaluations=int(sampler.n_like),
        note=f"effective number {number:,.0f}" + ("" if ended else ", time was over before it had ended"),
    )


def pocomc(target, width, seconds, seed):
    """Preconditioned Monte Carlo: tempering with a flow that is fitted to the particles on the way."""
    import pocomc as pc

    del seconds
    dim = target.space.shape[0]
    prior = pc.Prior([stats.norm(0.0, width)] * dim)
    like = log_likelihood(target, width)
    sampler = pc.Sampler(prior=prior, likelihood=like, vectorize=True, random_state=seed)
    sampler.run(progress=False)
    x, weights, _, _ = sampler.posterior()
    log_z, error = sampler.evidence()
    with np.errstate(divide="ignore"):
        log_weights = np.log(np.asarray(weights))
    return figures(
        target,
        x,
        log_weights=np.asarray(log_weights, np.float32),
        log_z=float(log_z),
        error=None if error is None else float(error),
        ess=float(1 / np.sum(weights**2) / len(weights)),
        evaluations=int(sampler.results["calls"][-1]),
        note=f"{len(weights):,} samples",
    )


METHODS = {"nautilus": nautilus, "pocoMC": pocomc}
