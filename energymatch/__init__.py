"""Learn an energy from data."""

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
    "schedules",
    "temperature",
    "tempering",
]
