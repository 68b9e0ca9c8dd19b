"""Flax networks for potentials; import them as `energymatch.networks`.

`module.apply(params, x) -> [B]` is V(x) for x [B, *event], lower on data: a potential as the losses take
it, `potential(params, x)`.
"""

from energymatch.networks.convolutional import ConvPotential
from energymatch.networks.mlp import MLPPotential
from energymatch.networks.unet_vit import UNetViTPotential

__all__ = ["ConvPotential", "MLPPotential", "UNetViTPotential"]
