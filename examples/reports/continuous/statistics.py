"""Numbers about a sampler of continuous or mixed states beside the exact ones."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from support.distances import assigned, w2

import egm
from egm import metrics

SET_SIZE = flags.DEFINE_integer("set_size", 2000, "States in each of the sets whose distances are measured.")
NUM_SETS, NUM_FLOOR_PAIRS = 20, 50
# An assignment of 2,000 points to 2,000 takes .5 to 1 s on a CPU core.
NUM_W2_SETS, NUM_W2_FLOOR_PAIRS = 10, 20
NUM_MODE_DRAWS = 10  # of 40,000 exact samples: what nearest-mode fractions should be, to a few percent
MIN_MODE_COUNT = 20  # below a quarter of 20 expected samples falls one Poisson count in 60,000

w1 = jax.jit(metrics.wasserstein_1d)
energy_w2 = jax.jit(functools.partial(metrics.wasserstein_1d, p=2.0))


class Samples(NamedTuple):
    """What the figures and numbers are made of, on the host.

    Attributes:
      state: 40,000 raw samples, a set of 2,000 after the other.
      log_w: [40,000] their path log-weights.
      energy: [40,000] E.
      exact: 40,000 exact (or reference) samples.
      exact_energy: [40,000] E.
      reverse: [2,000] reverse path log-weights of the first of them.
    """

    state: Any
    log_w: np.ndarray
    energy: np.ndarray
    exact: Any
    exact_energy: np.ndarray
    reverse: np.ndarray


def draw(key, energy, process, generator, moments, num_times) -> Samples:
    """Simulate forward from the prior and backward from exact samples."""
    path, times = process.path, process.times(num_times)
    shape = jax.tree.map(
        lambda event: (SET_SIZE.value, *event), energy.event_shape, is_leaf=lambda s: isinstance(s, tuple)
    )

    @jax.jit
    def forward(k):
        k_prior, k_simulate = jax.random.split(k)
        x_0 = egm.draw_prior(k_prior, path, shape, moments)
        trajectory = egm.simulate(k_simulate, process, generator, x_0, times)
        log_w = egm.path_log_weights(energy, path, trajectory)
        return path.data_state(trajectory.x_1), log_w

    @jax.jit
    def backward(k, x_1):
        trajectory = egm.simulate_reverse(k, process, generator, x_1, times, moments)
        return egm.path_log_weights(energy, path, trajectory)

    k_forward, k_exact, k_backward = jax.random.split(key, 3)
    sets = [jax.device_get(forward(k)) for k in jax.random.split(k_forward, NUM_SETS)]
    state, log_w = jax.tree.map(lambda *parts: np.concatenate(parts), *sets)
    exact = jax.device_get(energy.sample(k_exact, NUM_SETS * SET_SIZE.value))
    evaluate = jax.jit(energy)
    value, exact_value = (np.concatenate([np.asarray(evaluate(s)) for s in split(a)]) for a in (state, exact))
    reverse = np.asarray(backward(k_backward, next(split(exact))))
    return Samples(state, log_w, value, exact, exact_value, reverse)


def num_weighted(data: Samples) -> int:
    """How many samples ESS, log Z, reweighted means and z-scores are made of: half, 20,000 by default."""
    return len(data.log_w) // 2


def split(state):
    """Sets of 2,000 of a state, in turn."""
    for start in range(0, NUM_SETS * SET_SIZE.value, SET_SIZE.value):
        yield jax.tree.map(lambda a, i=start: a[i : i + SET_SIZE.value], state)


def position(state):
    """[N, D] the continuous part."""
    return state["x"] if isinstance(state, dict) else state


def spins(state):
    """[N, L] spins of the tokens of a mixed state with V = 2."""
    return 2.0 * state["h"] - 1


def particle_distances(energy, x):
    """[N, pairs] distances between particles."""
    return np.asarray(metrics.interatomic_distances(jnp.asarray(x), energy.num_particles, energy.spatial_dim))


def aligned_w2(a, b, energy):
    """W2 of clusters, permutations, rotations and reflections taken out."""
    cost = jax.jit(metrics.aligned_squared_distances, static_argnums=(2, 3))
    return assigned(np.asarray(cost(a, b, energy.num_particles, energy.spatial_dim)))


def pooled_w1(a, b):
    """W1 between all numbers of two samples."""
    return w1(a.ravel(), b.ravel())


def distances_to_exact(energy, data):
    """Wasserstein distances between sets of 2,000 and what two exact sets give (the floor).

    The energy always. W2 of x in two dimensions and, with its symmetries taken out, of few particles, on 10
    sets and 20 floor pairs, the others being on 20 and 50. W1 of each coordinate over its floor in more
    dimensions. Of particles W2 of the energy and W1 of the pooled distances.
    """
    results = {}

    def compare(name, distance, generated, exact, num_sets=NUM_SETS, num_pairs=NUM_FLOOR_PAIRS):
        n = num_sets * SET_SIZE.value
        results[name] = metrics.sample_distance(distance, generated[:n], exact[:n], num_sets)
        results[f"{name}_floor"] = metrics.distance_floor(distance, exact, SET_SIZE.value, num_pairs)

    x, exact = position(data.state), position(data.exact)
    compare("energy_w1", w1, data.energy, data.exact_energy)
    if hasattr(energy, "num_particles"):
        compare("energy_w2", energy_w2, data.energy, data.exact_energy)
        compare("distance_w1", pooled_w1, *(particle_distances(energy, a) for a in (x, exact)))
        if energy.num_particles <= metrics.particles.MAX_PERMUTED and np.all(np.isfinite(x)):
            aligned = functools.partial(aligned_w2, energy=energy)
            compare("x_w2", aligned, x, exact, NUM_W2_SETS, NUM_W2_FLOOR_PAIRS)
    elif x.shape[1] == 2:
        if np.all(np.isfinite(x)):  # no assignment otherwise
            compare("x_w2", w2, x, exact, NUM_W2_SETS, NUM_W2_FLOOR_PAIRS)
    else:
        ratios = []
        for a, b in zip(x.T, exact.T, strict=True):
            compare("one", w1, a, b)
            ratios.append(results.pop("one") / results.pop("one_floor"))
        results |= {
            "coordinate_w1_ratio_max": float(np.max(ratios)),
            "coordinate_w1_ratio_mean": float(np.mean(ratios)),
        }
    return results


def token_statistics(energy, data):
    """(E[s_i], E[s_i s_j] for i < j) of 20,000 raw samples, the exact ones, and the standard error.

    Where the energy has no `token_marginals`, those of the exact samples, whose error is added in
    quadrature (as of independent samples, which those of a reference chain are not quite).
    """
    i, j = np.triu_indices(energy.event_shape["h"][0], 1)

    def statistics(state):
        s = spins(state)
        return np.concatenate([np.mean(s, axis=0), (s.T @ s / len(s))[i, j]])

    n = num_weighted(data)
    found = statistics({"h": data.state["h"][:n]})
    if hasattr(energy, "token_marginals"):
        one, two = energy.token_marginals()
        truth, inverse = np.concatenate([one, two[i, j]]), 1 / n
    else:
        truth, inverse = statistics(data.exact), 1 / n + 1 / len(data.exact["h"])
    return found, truth, np.sqrt(np.maximum(1 - truth**2, 1 / n) * inverse)


def composition(data):
    """Frequencies [L + 1] of the number of tokens 1: 20,000 raw, the reference's, the standard error."""
    n = num_weighted(data)
    generated, exact = np.sum(data.state["h"][:n], axis=1), np.sum(data.exact["h"], axis=1)
    bins = data.exact["h"].shape[1] + 1
    found, truth = (np.bincount(a, minlength=bins) / len(a) for a in (generated, exact))
    spread = np.maximum(truth * (1 - truth), 1 / n)
    return found, truth, np.sqrt(spread * (1 / n + 1 / len(exact)))


def mode_masses(key, energy, data):
    """(raw, floor, truth, M): nearest-mode fractions of 40,000 raw and as many exact samples, and the exact.

    The truth is from 400,000 exact samples, as component masses are not those of nearest-mode regions
    where modes overlap. Of the M modes only those that 40,000 samples should hold 20 times are given.
    None where the energy has no modes.
    """
    try:
        modes = getattr(energy, "modes", None)
    except ValueError:  # too many to list
        modes = None
    if modes is None:
        return None
    fractions = jax.jit(lambda state: metrics.mode_masses(position(state), jnp.asarray(modes, float)))

    def mean(state):
        return np.mean([np.asarray(fractions(s)) for s in split(state)], axis=0)

    truth = np.mean(
        [mean(energy.sample(k, NUM_SETS * SET_SIZE.value)) for k in jax.random.split(key, NUM_MODE_DRAWS)],
        axis=0,
    )
    keep = truth * NUM_SETS * SET_SIZE.value >= MIN_MODE_COUNT
    return *(a[keep] for a in (mean(data.state), mean(data.exact), truth)), truth.size


def weight_results(energy, data):
    """ESS and log Z from 20,000 path weights, bounds on both sides, mean energies with errors.

    A raw mean is NaN where any raw state is, and so are the distances above: nothing is left out.
    """
    n = num_weighted(data)
    log_w, value = jnp.asarray(data.log_w[:n]), data.energy[:n]
    summary = metrics.summarize(log_w)
    eubo, eubo_error = (float(v) for v in metrics.evidence_upper_bound(jnp.asarray(data.reverse)))
    try:
        exact = float(energy.log_partition()) if hasattr(energy, "log_partition") else None
    except ValueError:  # out of reach
        exact = None
    log_z, error = float(summary.log_z), float(summary.log_z_error)
    # A state without weight may have any energy.
    weighted = np.where(np.isfinite(data.log_w[:n]), value, 0.0)
    some = 1.0 if summary.ess > 0 else np.nan  # without any weight there is nothing to say
    means = {
        "raw": metrics.reweighted_mean(value, jnp.zeros(n)),
        "reweighted": metrics.reweighted_mean(some * weighted, log_w),
        "exact": metrics.reweighted_mean(data.exact_energy, jnp.zeros(data.exact_energy.size)),
    }
    return {
        "ess": float(summary.ess),
        "log_z": log_z,
        "log_z_error": error,
        "log_z_reason": metrics.reason(summary),
        "tail_index": float(summary.tail_index),
        "log_z_exact": exact,
        "log_z_z": None if exact is None else (log_z - exact) / error,
        "elbo": some * float(summary.elbo),
        "eubo": eubo if np.isfinite(eubo) else None,
        "eubo_error": eubo_error if np.isfinite(eubo) else None,
        "num_nonfinite": int(summary.num_nonfinite),
        "mean_energy": {name: tuple(float(v) for v in pair) for name, pair in means.items()},
    }


def largest_z(name, found, truth, error):
    """The largest |z| of some statistics and their number."""
    z = np.abs(found - truth) / error
    return {f"{name}_max_z": float(np.max(z)), f"{name}_num_statistics": z.size}
