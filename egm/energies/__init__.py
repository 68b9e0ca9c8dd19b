"""Targets: energies E(x), beta inside, with exact samples and log Z where they are known."""

from egm.energies.ising import Ising

__all__ = ["Ising"]
