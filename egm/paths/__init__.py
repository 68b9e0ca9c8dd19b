"""Probability paths: noising kernels, proposals and conditional generators in closed form."""

from egm.paths.masked import MaskedPath

__all__ = ["MaskedPath"]
