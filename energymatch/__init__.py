"""Learn an energy from data."""

from energymatch import couplings, langevin, plans, potential, schedules, tempering
from energymatch.schedules import flow_weight, temperature

__all__ = [
    "couplings",
    "flow_weight",
    "langevin",
    "plans",
    "potential",
    "schedules",
    "temperature",
    "tempering",
]
