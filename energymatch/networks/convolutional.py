"""A small convolutional potential for images, with convolutions as windows times a matrix.

XLA's convolutions are slow on a CPU, above all in the backward pass of a backward pass. Written as a
concatenation of shifted images and a matrix product they are 6x as fast for the gradient in x and 2x for
the gradient of its square in the parameters (128 images of 8x8, 88,000 parameters, 2 cores).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from egm import checks
from egm.typing import Array
from energymatch.networks._fields import Numbers, Picklable, flattened, wall

__all__ = ["ConvPotential", "patches", "windows"]


class ConvPotential(Picklable, nn.Module):
    """V [B] of images x [B, H, W, C]: stages that halve the image, then a dense layer on all of it.

    A stage is a 2x2 convolution with stride 2 and `depth` residual 3x3 convolutions, padded by zeros; the
    first has `width` channels and each later one twice as many. The dense layer sees where things
    are: V is not invariant to translations. No normalisation layers: V(x) does not depend on the rest of
    the batch.

    Attributes:
      width: channels of the first stage.
      num_stages: S; H and W must be divisible by 2^S.
      depth: residual convolutions a stage.
      head_width: of the dense layer.
      activation: a smooth function (training takes the gradient of a gradient).
      center: a number or a tuple of H W C, subtracted from the image.
      scale: a number or a tuple of H W C by which it is then divided.
      output_scale: factor of the network's output (not of the wall).
      confinement_radius: R, the Euclidean distance from `center` over all pixels, in the units of x,
        beyond which strength/2 (|x - center| / R - 1)^2 is added; None adds nothing.
      confinement_strength: of the wall.
      local_energies: whether each stage adds to V, at every place, a linear function of its activations
        there, summed over places; 0 to begin with. Fine detail then has a way to V that does not pass the
        later stages.

    Raises:
      TypeError, ValueError: an attribute or x is of the wrong kind, size or range.
    """

    width: int = 32
    num_stages: int = 2
    depth: int = 1
    head_width: int = 128
    activation: Callable[[Array], Array] = nn.silu
    center: Numbers = 0.0
    scale: Numbers = 1.0
    output_scale: float = 1.0
    confinement_radius: float | None = None
    confinement_strength: float = 100.0
    local_energies: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for name in ("width", "num_stages", "head_width"):
            checks.positive_int(getattr(self, name), name)
        checks.positive_int(self.depth, "depth", minimum=0)
        checks.positive_float(self.output_scale, "output_scale")
        checks.function(self.activation, "activation")
        checks.flag(self.local_energies, "local_energies")
        shape = checks.float_array(x, "x").shape
        if len(shape) != 4 or any(side % 2**self.num_stages or not side for side in shape[1:3]):
            raise ValueError(
                f"x must have shape [B, H, W, C] with H and W divisible by {2**self.num_stages}, got {shape}"
            )
        offset, hidden = flattened(x, self.center, self.scale)
        hidden, local = hidden.reshape(shape), 0.0
        for stage in range(self.num_stages):
            channels = self.width * 2**stage
            hidden = nn.Dense(channels)(patches(hidden))
            for _ in range(self.depth):
                hidden = hidden + nn.Dense(channels)(windows(self.activation(hidden)))
            if self.local_energies:
                each = nn.Dense(1, use_bias=False, kernel_init=nn.initializers.zeros, name=f"local_{stage}")(
                    self.activation(hidden)
                )
                local = local + jnp.sum(each, axis=(1, 2, 3))
        hidden = self.activation(hidden).reshape(shape[0], math.prod(hidden.shape[1:]))
        hidden = self.activation(nn.Dense(self.head_width)(hidden))
        out = self.output_scale * (nn.Dense(1)(hidden)[:, 0] + local)
        return out + wall(offset, self.confinement_radius, self.confinement_strength)


def patches(x: Array) -> Array:
    """[B, H/2, W/2, 4 C] the 2x2 patches of x [B, H, W, C], which do not overlap.

    Times the kernel [2, 2, C, F] of a convolution with stride 2, reshaped to [4 C, F], they are that
    convolution.
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, height // 2, width // 2, 4 * channels)


def windows(x: Array) -> Array:
    """[B, H, W, 9 C] the 3x3 windows around the pixels of x [B, H, W, C], zeros beyond the edge.

    Times the kernel [3, 3, C, F] of a convolution, reshaped to [9 C, F], they are that convolution.
    """
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, axis=-1)
