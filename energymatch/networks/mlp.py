"""The MLP potential: a plain network on the flattened event, with an optional confining wall.

`MLPPotential(width=256, depth=4, first_activation=flax.linen.relu)` on [B, 2] is the published network
2-256-256-256-256-1, but for its first weights, which are Flax's.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax

from egm import checks
from egm.typing import Array
from energymatch.networks._fields import Numbers, Picklable, flattened, wall

__all__ = ["MLPPotential"]


class MLPPotential(Picklable, nn.Module):
    """V [B] of x [B, *event], D numbers an event: `depth` dense layers with activations, then one output.

    Training takes the gradient of a gradient: the activation must have a second derivative, as SiLU has
    and ReLU has not. exp(-V) of such a network has no finite integral in general; with a confinement
    radius it has.

    Attributes:
      width: of every hidden layer.
      depth: number of hidden layers.
      activation: applied after each of them, a smooth function.
      first_activation: after the first of them in its place; None for the same. It may have a kink, as the
        published ReLU has, where smooth layers follow.
      features: of the standardised [B, D], `features(z) -> [B, F]`, seen by the first layer in its place;
        None for the standardised event itself. Their growth bounds that of V.
      center: a number or a tuple of D, subtracted from the event.
      scale: a number or a tuple of D by which it is then divided.
      output_scale: factor of the network's output (not of the wall).
      confinement_radius: R, the Euclidean distance from `center`, in the units of x, beyond which
        strength/2 (|x - center| / R - 1)^2 is added; None adds nothing.
      confinement_strength: of the wall.

    Raises:
      TypeError, ValueError: an attribute or x is of the wrong kind, size or range.

    Source: Energy Matching (arXiv 2504.10612), two-dimensional experiments.

    Examples:
      >>> net = energymatch.networks.MLPPotential(width=16, depth=2)
      >>> params = net.init(jax.random.key(0), jnp.zeros((1, 2)))
      >>> net.apply(params, jnp.zeros((5, 2))).shape  # V
      (5,)
    """

    width: int = 128
    depth: int = 3
    activation: Callable[[Array], Array] = nn.silu
    first_activation: Callable[[Array], Array] | None = None
    features: Callable[[Array], Array] | None = None
    center: Numbers = 0.0
    scale: Numbers = 1.0
    output_scale: float = 1.0
    confinement_radius: float | None = None
    confinement_strength: float = 100.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        checks.positive_int(self.width, "width")
        checks.positive_int(self.depth, "depth")
        checks.function(self.activation, "activation")
        first = self.activation if self.first_activation is None else self.first_activation
        checks.function(first, "first_activation")
        checks.positive_float(self.output_scale, "output_scale")
        offset, hidden = flattened(x, self.center, self.scale)
        if self.features is not None:
            hidden = _featured(self.features, hidden)
        for i in range(self.depth):
            hidden = (self.activation if i else first)(nn.Dense(self.width)(hidden))
        out = self.output_scale * nn.Dense(1)(hidden)[:, 0]
        return out + wall(offset, self.confinement_radius, self.confinement_strength)


def _featured(features, z):
    out = jax.eval_shape(checks.function(features, "features"), z)
    if out.ndim != 2 or out.shape[0] != z.shape[0]:
        raise ValueError(f"features must return shape [{z.shape[0]}, F], got {out.shape}")
    return features(z)
