"""egm: learn a sampler from an energy by Energy-based Generator Matching (arXiv 2505.19646)."""

from egm import (
    algorithms,
    bootstrap,
    buffer,
    collectives,
    divergences,
    energies,
    importance,
    iteration,
    losses,
    metrics,
    paths,
    processes,
    random,
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
    "importance",
    "iteration",
    "losses",
    "metrics",
    "path_log_weights",
    "paths",
    "processes",
    "random",
    "simulate",
    "simulate_reverse",
    "training",
]
