"""log p(x) = -V(x)/epsilon - log Z, with log Z by annealed importance sampling (AIS).

The bridge pi_b has -log pi_b = -(1 - b) log p_0 + b V/epsilon, b from 0 (a prior p_0 with exact samples)
to 1 (the model). With the work W(x) = V(x)/epsilon + log p_0(x) that is -log p_0 + b W: Langevin's
target at the temperature 1/b with potential W and extra energy -log p_0, so one evaluation of V and its
gradient serves a move, the next weight -(b' - b) W and every b. Weights are unbiased for Z however few
the steps, because the moves are Metropolis-adjusted.

Shape letters: N chains (B on this device), M data, K bridge steps, G groups, *event the axes of one
state.

Source: Neal (2001), annealed importance sampling; Del Moral, Doucet and Jasra (2006), SMC samplers;
Grosse, Ghahramani and Adams (2015), the bound from above by running the bridge backwards.
"""

from energymatch.likelihood.bridge import Bridge, tune_bridge
from energymatch.likelihood.partition import (
    WIDER,
    Evidence,
    LogPartition,
    UpperBound,
    evidence,
    log_partition,
    log_partition_upper,
    log_prob,
    nll,
)
from energymatch.likelihood.priors import (
    GaussianPrior,
    MixturePrior,
    Prior,
    fit_gaussian,
    fit_mixture,
    gaussian_prior,
    mixture_prior,
)

__all__ = [
    "Bridge",
    "Evidence",
    "GaussianPrior",
    "LogPartition",
    "MixturePrior",
    "Prior",
    "UpperBound",
    "WIDER",
    "evidence",
    "fit_gaussian",
    "fit_mixture",
    "gaussian_prior",
    "log_partition",
    "log_partition_upper",
    "log_prob",
    "mixture_prior",
    "nll",
    "tune_bridge",
]
