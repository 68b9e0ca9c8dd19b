"""Posteriors: measurement energies beside a potential, and samples of exactly what they define.

With U_j in nats the posterior of a model exp(-V/epsilon) is exp(-V/epsilon - sum_j U_j). The energies go
to `langevin.sample(..., energies=...)`, which is the published annealing: where eps(t) = 0 it moves in V
alone, so the relative mass of separate modes is that of V's basins, not the posterior's. `sample` here
draws from the posterior itself, by annealed importance sampling. Energies that couple the members of a
batch are in `energymatch.posterior.interactions`, operators A in `energymatch.posterior.operators`.

Shape letters: B batch, N chains, M members of a group, *event the axes of one state.

Source: Energy Matching (arXiv 2504.10612), inverse problems.
"""

from energymatch.posterior.interactions import BoundedRepulsion, QuadraticRepulsion, joint
from energymatch.posterior.measurements import gaussian_measurement, measurement, with_energies
from energymatch.posterior.samples import PosteriorSamples, sample

__all__ = [
    "BoundedRepulsion",
    "PosteriorSamples",
    "QuadraticRepulsion",
    "gaussian_measurement",
    "joint",
    "measurement",
    "sample",
    "with_energies",
]
