"""egm: learn a sampler from an energy by Energy-based Generator Matching (arXiv 2505.19646)."""

from egm import (
    algorithms,
    bootstrap,
    buffer,
    collectives,
    divergences,
    energies,
    heads,
    importance,
    iteration,
    losses,
    metrics,
    paths,
    processes,
    random,
    scales,
    training,
)
from egm.estimators import estimate
from egm.simulate import path_log_weights, simulate, simulate_reverse
from egm.typing import SNIS, Energy, Estimate, Path, Process, Trajectory

__all__ = [
    "SNIS",
    "Energy",
    "Estimate",
    "Path",
    "Process",
    "Trajectory",
    "algorithms",
    "bootstrap",
    "buffer",
    "collectives",
    "divergences",
    "energies",
    "estimate",
    "heads",
    "importance",
    "iteration",
    "losses",
    "metrics",
    "path_log_weights",
    "paths",
    "processes",
    "random",
    "scales",
    "simulate",
    "simulate_reverse",
    "training",
]
