"""Flax networks for generators and log-marginals; import them as `egm.networks`."""

from egm.closed_forms import energy_log_marginal, gaussian_log_marginal
from egm.networks.fields import TorusVector
from egm.networks.mixed import EGNNMixed, EGNNMixedLogMarginal, MLPMixed, MLPMixedLogMarginal
from egm.networks.particles import EGNN, EGNNLogMarginal
from egm.networks.tokens import MLPDenoiser, MLPLogMarginal, TorusDenoiser, TorusLogMarginal
from egm.networks.vectors import CoordinateVector, MLPVector, MLPVectorLogMarginal

__all__ = [
    "CoordinateVector",
    "EGNN",
    "EGNNLogMarginal",
    "EGNNMixed",
    "EGNNMixedLogMarginal",
    "MLPDenoiser",
    "MLPLogMarginal",
    "MLPMixed",
    "MLPMixedLogMarginal",
    "MLPVector",
    "MLPVectorLogMarginal",
    "TorusDenoiser",
    "TorusLogMarginal",
    "TorusVector",
    "energy_log_marginal",
    "gaussian_log_marginal",
]
