"""What path weights and samples say about a sampler: ESS, log Z from both sides, means, distances.

ESS and ELBO come from simulated trajectories and cannot see lost modes; the EUBO, from exact samples
taken backward, can.
"""

from egm.metrics.distances import distance_floor, mode_masses, sample_distance, wasserstein_1d
from egm.metrics.frechet import frechet_distance, frechet_distance_of_moments
from egm.metrics.particles import aligned_squared_distances, interatomic_distances
from egm.metrics.path_weights import (
    PathWeightSummary,
    evidence_upper_bound,
    jackknife,
    log_mean_error,
    reason,
    reweighted_mean,
    summarize,
)

__all__ = [
    "PathWeightSummary",
    "aligned_squared_distances",
    "distance_floor",
    "evidence_upper_bound",
    "frechet_distance",
    "frechet_distance_of_moments",
    "interatomic_distances",
    "jackknife",
    "log_mean_error",
    "mode_masses",
    "reason",
    "reweighted_mean",
    "sample_distance",
    "summarize",
    "wasserstein_1d",
]
