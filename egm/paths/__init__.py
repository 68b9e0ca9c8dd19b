"""Probability paths: noising kernels, proposals and conditional generators in closed form."""

from egm.paths.centered import CenteredPath
from egm.paths.gaussian import GaussianPath
from egm.paths.masked import MaskedPath
from egm.paths.product import ProductPath
from egm.paths.schedules import LinearPath, VarianceExplodingPath, VariancePreservingPath
from egm.paths.uniform import UniformPath
from egm.paths.wrapped import WrappedPath

__all__ = [
    "CenteredPath",
    "GaussianPath",
    "LinearPath",
    "MaskedPath",
    "ProductPath",
    "UniformPath",
    "VarianceExplodingPath",
    "VariancePreservingPath",
    "WrappedPath",
]
