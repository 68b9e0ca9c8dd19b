"""energymatch: learn an energy from data by Energy Matching (arXiv 2504.10612).

`energymatch.networks` (Flax) and `energymatch.convert` (orbax) are imported when they are first used.
"""

import importlib

from energymatch import (
    couplings,
    curvature,
    images,
    langevin,
    likelihood,
    losses,
    matching,
    negatives,
    operators,
    plans,
    posterior,
    potential,
    preprocessing,
    schedules,
    tempering,
)
from energymatch.losses import contrastive_divergence_loss, energy_matching_loss, flow_matching_loss
from energymatch.schedules import flow_weight, temperature

__all__ = [
    "contrastive_divergence_loss",
    "couplings",
    "curvature",
    "energy_matching_loss",
    "flow_matching_loss",
    "flow_weight",
    "images",
    "langevin",
    "likelihood",
    "losses",
    "matching",
    "negatives",
    "operators",
    "plans",
    "posterior",
    "potential",
    "preprocessing",
    "schedules",
    "temperature",
    "tempering",
]

_ON_FIRST_USE = ("annealing", "convert", "costs", "interactions", "networks", "priors")


def __getattr__(name: str):
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
