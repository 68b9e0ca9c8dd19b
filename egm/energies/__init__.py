"""Targets: energies E(x), beta inside, with exact samples and log Z where they are known."""

from egm.energies.conditionals import WithConditionals
from egm.energies.ising import Ising

__all__ = ["Ising", "WithConditionals"]
