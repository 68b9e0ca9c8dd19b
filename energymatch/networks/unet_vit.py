"""The image potential of the paper: a U-Net whose output a small vision transformer turns into a number.

`UNetViTPotential()` is the published CIFAR-10 and ImageNet32 network, 49,985,796 parameters for images
[32, 32, 3]; `energymatch.convert` turns its published weights into `params`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.typing import Array
from energymatch.networks import _unet_vit_blocks as blocks

__all__ = ["TIME", "UNetViTPotential"]

TIME = 0.5
"""The U-Net knows a time; a potential has none, so it is always told this one."""


class UNetViTPotential(nn.Module):
    """V [B] of images x [B, H, W, C], on the scale that the images were trained on (-1 to 1).

    A U-Net maps the image to one of its own shape; patches of that are embedded, learned positions added,
    and `num_transformer_layers` encoder layers, the mean over the tokens and a linear layer make a number,
    times `output_scale`. Smooth everywhere. Positions belong to the size of the image: parameters made for
    one H and W serve only that.

    `apply(params, x)` is deterministic. In training `apply(params, x, key)` drops: `key` is one key or [B]
    keys (`egm.random.example_keys`), and a device's numbers do not depend on how the batch is split.

    Attributes:
      num_channels: C_0, of the U-Net's first level; a multiple of 32.
      num_res_blocks: residual blocks a level on the way down (one more on the way up).
      channel_mult: of the levels, one after the other: level l has channel_mult[l] C_0 channels and images
        of H / 2^l by W / 2^l; H and W are divisible by 2^(levels - 1).
      attention_resolutions: widths in pixels; levels with W / 2^l among them have attention after each
        residual block. The middle block always has.
      num_heads: of the U-Net's attention, used where `num_head_channels` is None.
      num_head_channels: channels of one head of it, or None.
      embed_dim: E, width of the tokens.
      num_transformer_heads: heads of the encoder layers.
      num_transformer_layers: encoder layers.
      patch_size: H and W are divisible by it.
      output_scale: factor of the output.
      dropout: rate in residual blocks and encoder layers when a key is given; .1 in the published training.
      dtype: of the computation, e.g. jnp.bfloat16; None for that of x and the parameters. Parameters, V
        and gradients in the parameters stay float32, gradients in x have the dtype of x.
      remat: whether each block's values are computed again in the backward passes rather than kept, in
        those of a gradient of a gradient too. XLA's CPU compiler undoes it unless told to keep barriers:
        `jax.jit(f, compiler_options={"xla_disable_hlo_passes": "cse_barrier_expander"})`.

    Raises:
      TypeError, ValueError: an attribute, x or key is of the wrong kind, size or range.

    Source: Energy Matching (arXiv 2504.10612), image experiments; the U-Net is that of Diffusion Models
    Beat GANs (arXiv 2105.05233).
    """

    num_channels: int = 128
    num_res_blocks: int = 2
    channel_mult: tuple[float, ...] = (1, 2, 2, 2)
    attention_resolutions: tuple[int, ...] = (16,)
    num_heads: int = 4
    num_head_channels: int | None = 64
    embed_dim: int = 384
    num_transformer_heads: int = 4
    num_transformer_layers: int = 8
    patch_size: int = 4
    output_scale: float = 1000.0
    dropout: float = 0.0
    dtype: Any = None
    remat: bool = False

    @nn.compact
    def __call__(self, x: Array, key: jax.Array | None = None) -> Array:
        widths = self._checked_widths()
        x = self._checked_images(x, len(widths))
        rate = checks.positive_float(self.dropout, "dropout", allow_zero=True)
        if rate >= 1:
            raise ValueError(f"dropout must be below 1, got {rate}")
        keys = None if key is None else random.example_keys(key, x.shape[0])
        # Twice: a derivative uses one up, and the next would keep all that the backward pass computes.
        wrapped = (lambda block: nn.remat(nn.remat(block))) if self.remat else lambda block: block
        site = iter(range(10_000))

        def fresh():
            """[B] keys that no other block has."""
            index = next(site)
            return None if keys is None else jax.vmap(lambda k: jax.random.fold_in(k, index))(keys)

        image = self._unet(x, widths, wrapped, fresh)
        tokens = self._patches(image)
        for i in range(checks.positive_int(self.num_transformer_layers, "num_transformer_layers")):
            layer = wrapped(blocks.EncoderLayer)
            tokens = layer(self.num_transformer_heads, rate, self.dtype, name=f"layer_{i}")(tokens, fresh())
        # Few numbers, and V is their small difference times a large factor: in float32 at least.
        mean = jnp.mean(tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32)), axis=1)
        return self.output_scale * blocks.dense(1, "head", None)(mean)[:, 0]

    def _unet(self, x, widths, wrapped, fresh):
        """[B, H, W, C] what the U-Net makes of x."""
        side = x.shape[2]
        rates = {side // resolution for resolution in self.attention_resolutions}
        residual, attention = wrapped(blocks.ResidualBlock), wrapped(blocks.AttentionBlock)

        def block(h, width, name):
            return residual(width, self.dropout, self.dtype, name=name)(h, time, fresh())

        def looked(h, name):
            return attention(self._heads(h.shape[-1]), self.dtype, name=f"{name}_attention")(h)

        time = blocks.time_features(TIME, self.num_channels)[None]
        time = nn.silu(blocks.dense(4 * self.num_channels, "time_0", self.dtype)(time))
        time = nn.silu(blocks.dense(4 * self.num_channels, "time_1", self.dtype)(time))
        h = blocks.conv(widths[0], "conv_in", self.dtype)(x)
        kept = [h]
        for level, width in enumerate(widths):
            for i in range(self.num_res_blocks):
                h = block(h, width, f"down_{level}_{i}")
                if 2**level in rates:
                    h = looked(h, f"down_{level}_{i}")
                kept.append(h)
            if level < len(widths) - 1:
                h = blocks.conv(width, f"down_{level}_half", self.dtype, stride=2)(h)
                kept.append(h)
        h = block(h, widths[-1], "middle_0")
        h = block(looked(h, "middle"), widths[-1], "middle_1")
        for level, width in reversed(tuple(enumerate(widths))):
            for i in range(self.num_res_blocks + 1):
                h = block(jnp.concatenate((h, kept.pop()), axis=-1), width, f"up_{level}_{i}")
                if 2**level in rates:
                    h = looked(h, f"up_{level}_{i}")
            if level:
                h = blocks.conv(width, f"up_{level}_double", self.dtype)(blocks.doubled(h))
        h = nn.silu(blocks.group_norm("norm_out", self.dtype)(h))
        return blocks.conv(x.shape[-1], "conv_out", self.dtype, kernel_init=nn.initializers.zeros)(h)

    def _patches(self, image):
        """[B, T, E] embedded patches of the image, with their positions."""
        size, width = self.patch_size, self.embed_dim
        embed = nn.Conv(
            width,
            (size, size),
            size,
            "VALID",
            name="patches",
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
        )
        tokens = embed(image)
        tokens = tokens.reshape(tokens.shape[0], -1, width)
        position = self.param("position", nn.initializers.zeros, tokens.shape[1:])
        return tokens + position.astype(tokens.dtype)[None]

    def _heads(self, channels):
        """Heads of the U-Net's attention at a level of that many channels."""
        if self.num_head_channels is None:
            name, heads, rest = "num_heads", self.num_heads, channels % self.num_heads
        else:
            name, size = "num_head_channels", self.num_head_channels
            heads, rest = channels // size, channels % size
        if rest:
            raise ValueError(
                f"{name} must divide the {channels} channels of a level with attention, "
                f"got {getattr(self, name)}"
            )
        return heads

    def _checked_widths(self):
        """Channels of the levels; raises unless the attributes go together."""
        counts = "num_channels num_res_blocks num_heads embed_dim num_transformer_heads patch_size"
        for name in counts.split():
            checks.positive_int(getattr(self, name), name)
        if self.dtype is not None and not _is_floating(self.dtype):
            raise TypeError(f"dtype must be floating point or None, got {self.dtype!r}")
        checks.flag(self.remat, "remat")
        if self.num_head_channels is not None:
            checks.positive_int(self.num_head_channels, "num_head_channels")
        for name in ("channel_mult", "attention_resolutions"):
            if not isinstance(getattr(self, name), tuple | list):
                raise TypeError(f"{name} must be a tuple of numbers, got {getattr(self, name)!r}")
        for resolution in self.attention_resolutions:
            checks.positive_int(resolution, "attention_resolutions")
        if not self.channel_mult:
            raise ValueError("channel_mult must have one entry a level, got none")
        checks.positive_float(self.output_scale, "output_scale")
        if self.embed_dim % self.num_transformer_heads:
            raise ValueError(
                f"num_transformer_heads must divide embed_dim, {self.embed_dim}, "
                f"got {self.num_transformer_heads}"
            )
        widths = [
            int(checks.positive_float(m, "channel_mult") * self.num_channels) for m in self.channel_mult
        ]
        if any(width % blocks.GROUPS or not width for width in widths):
            raise ValueError(
                f"num_channels and channel_mult must give multiples of {blocks.GROUPS} channels, got {widths}"
            )
        return widths

    def _checked_images(self, x, levels):
        x = checks.float_array(x, "x")
        factor = np.lcm(2 ** (levels - 1), self.patch_size)
        if x.ndim != 4 or 0 in x.shape[1:] or any(side % factor for side in x.shape[1:3]):
            raise ValueError(
                f"x must have shape [B, H, W, C] with H and W divisible by {factor}, got {x.shape}"
            )
        return x


def _is_floating(dtype):
    try:
        return jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        return False
