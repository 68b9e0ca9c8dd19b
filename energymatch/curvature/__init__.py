"""Curvature of a potential: Hessian-vector products, spectra, Lanczos, and the dimension it leaves flat.

H(x) is the Hessian of V (not of V/epsilon) in one example; its eigenvalues have the units of V per unit of
x squared and are positive across a valley of data. `local_intrinsic_dimension` counts those near zero.
Products are forward over reverse, so every operation inside V needs a forward derivative; on accelerators
with short products set `jax.default_matmul_precision("highest")`. Shape letters: B batch, *event the axes
of one state, D its size, m Lanczos steps, P probes.
"""

from energymatch.curvature.dimension import (
    METHODS,
    Count,
    CountMethod,
    Dense,
    Lanczos,
    Quadrature,
    eigenvalue_count,
    local_intrinsic_dimension,
)
from energymatch.curvature.hessian import hessian_vector_product, lanczos, spectrum
from energymatch.curvature.tridiagonal import Tridiagonal

__all__ = [
    "Count",
    "CountMethod",
    "Dense",
    "Lanczos",
    "METHODS",
    "Quadrature",
    "Tridiagonal",
    "eigenvalue_count",
    "hessian_vector_product",
    "lanczos",
    "local_intrinsic_dimension",
    "spectrum",
]
