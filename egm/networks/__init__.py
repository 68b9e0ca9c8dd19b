"""Flax networks for generators and log-marginals; import them as `egm.networks`."""

from egm.networks.tokens import MLPDenoiser, MLPLogMarginal, TorusDenoiser, TorusLogMarginal

__all__ = ["MLPDenoiser", "MLPLogMarginal", "TorusDenoiser", "TorusLogMarginal"]
