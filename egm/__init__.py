"""egm: learn a sampler from an energy by Energy-based Generator Matching (arXiv 2505.19646).

`egm.networks` (Flax) and `egm.checkpoint` (orbax) are imported when they are first used.
"""

import importlib

from egm import (
    algorithms,
    bootstrap,
    buffer,
    collectives,
    divergences,
    energies,
    evidence,
    heads,
    importance,
    iteration,
    losses,
    metrics,
    paths,
    processes,
    random,
    scales,
    smoothness,
    summation,
    training,
)
from egm.estimators import estimate
from egm.simulate import draw_prior, path_log_weights, simulate, simulate_reverse
from egm.typing import SNIS, Energy, Estimate, Path, PriorDraw, Process, Trajectory

__all__ = [
    "SNIS",
    "Energy",
    "Estimate",
    "Path",
    "PriorDraw",
    "Process",
    "Trajectory",
    "algorithms",
    "bootstrap",
    "buffer",
    "collectives",
    "divergences",
    "draw_prior",
    "energies",
    "estimate",
    "evidence",
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
    "smoothness",
    "summation",
    "training",
]

_ON_FIRST_USE = ("checkpoint", "checks", "configuration", "estimators", "networks", "typing")


def __getattr__(name: str):
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
