"""Langevin dynamics in a potential at a temperature that may change with time.

dx = -grad[V(x) + eps(t) sum_j U_j(x)] dt + sqrt(2 eps(t)) dW, V the potential and U_j extra energies in
nats (a likelihood, an interaction): at a fixed eps its equilibrium is exp(-V/eps - sum_j U_j). `sample`
runs chains in one `lax.scan`; `init` and `step` are for loops of one's own. Shape letters: B chains,
*event the axes of one state, T saved states.
"""

from energymatch.langevin.chains import Samples, init, reflect, sample, step
from energymatch.langevin.methods import MALA, METHODS, EulerMaruyama, Heun
from energymatch.langevin.state import LangevinInfo, LangevinState, Method, Proposal, Temperature

__all__ = [
    "EulerMaruyama",
    "Heun",
    "LangevinInfo",
    "LangevinState",
    "MALA",
    "METHODS",
    "Method",
    "Proposal",
    "Samples",
    "Temperature",
    "init",
    "reflect",
    "sample",
    "step",
]
