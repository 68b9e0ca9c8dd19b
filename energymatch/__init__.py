"""Learn an energy from data."""

from energymatch import couplings, plans, schedules
from energymatch.schedules import flow_weight, temperature

__all__ = ["couplings", "flow_weight", "plans", "schedules", "temperature"]
