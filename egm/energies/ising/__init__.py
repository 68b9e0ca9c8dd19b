"""The Ising model on a periodic square lattice, with four exact routes that check each other."""

from egm.energies.ising.model import Ising

__all__ = ["Ising"]
