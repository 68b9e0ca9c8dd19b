"""Probability paths: noising kernels, proposals and conditional generators in closed form."""

from egm.paths.centered import CenteredPath
from egm.paths.gaussian import LinearPath, VarianceExplodingPath, VariancePreservingPath
from egm.paths.masked import MaskedPath
from egm.paths.product import ProductPath

__all__ = [
    "CenteredPath",
    "LinearPath",
    "MaskedPath",
    "ProductPath",
    "VarianceExplodingPath",
    "VariancePreservingPath",
]
