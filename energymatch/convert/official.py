"""What the official PyTorch image potential calls its weights, and what their shapes say of the network.

`configuration` reads the fields of `networks.UNetViTPotential` off a state dict; `table` lists every weight
of the official network of a configuration with its place in the Flax parameters.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ENCODER", "PARTS", "PATCHES", "POSITIONS", "Shapes", "Weight", "configuration", "some", "table"]

POSITIONS, PATCHES = "patch_embed.pos_embed", "patch_embed.patch_embed.weight"


ENCODER = "transformer_encoder.layers"


PARTS = ("weight", "bias")


class Weight(NamedTuple):
    """One weight of the official network and where it goes.

    Attributes:
      name: official.
      shape: official.
      axes: the official axes in the order that they have here.
      target: shape here.
      path: in the Flax parameters.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    target: tuple[int, ...]
    path: tuple[str, ...]


class Shapes(dict):
    """Shapes of the weights by name, and the questions that are asked of them.

    Raises:
      TypeError: `state_dict` is no mapping with names as keys.
    """

    def __init__(self, state_dict: Mapping[str, Any]):
        if not isinstance(state_dict, Mapping) or not all(isinstance(name, str) for name in state_dict):
            raise TypeError(f"state_dict must map names to arrays, got {type(state_dict).__name__}")
        super().__init__((name, tuple(np.shape(value))) for name, value in state_dict.items())

    def needed(self, name: str, ndim: int) -> tuple[int, ...]:
        """The shape of a weight; raises ValueError unless it is there and has that many axes."""
        if name not in self:
            raise ValueError(f"state_dict must hold official weights, got none called {name}: {some(self)}")
        if len(self[name]) != ndim:
            raise ValueError(f"{name} must have {ndim} axes, got shape {self[name]}")
        return self[name]

    def under(self, prefix: str) -> bool:
        """Whether there is a weight whose name starts so."""
        return any(name.startswith(prefix) for name in self)

    def count(self, prefix: str) -> int:
        """How many blocks prefix.0., prefix.1., ... there are in a row."""
        return next(k for k in range(len(self) + 1) if not self.under(f"{prefix}.{k}."))

    def vote(self, *places: tuple[str, int]) -> int:
        """The size that most of the places (name, axis) have; 0 where there are none."""
        sizes = [self[name][axis] for name, axis in places if len(self.get(name, ())) > axis]
        return collections.Counter(sizes).most_common(1)[0][0] if sizes else 0

    def image_side(self) -> int:
        """Height and width of the images that the network is for."""
        patch, count = self.needed(PATCHES, 4)[-1], self.needed(POSITIONS, 3)[1]
        if math.isqrt(count) ** 2 != count:
            raise ValueError(f"{POSITIONS} must have a square number of positions, got {self[POSITIONS]}")
        return math.isqrt(count) * patch

    def colors(self) -> int:
        """Channels of those images."""
        return self.vote((PATCHES, 1), ("input_blocks.0.0.weight", 1), ("out.2.weight", 0), ("out.2.bias", 0))


def configuration(shapes: Shapes) -> dict[str, Any]:
    """The fields of the network that shapes tell.

    Where weights contradict each other most of them decide, so that the odd one can be named later.

    Raises:
      ValueError: they are no official network's.
    """
    side, patch = shapes.image_side(), shapes[PATCHES][-1]
    blocks = shapes.count("input_blocks")
    halves = [k for k in range(blocks) if shapes.under(f"input_blocks.{k}.0.op.")]
    per_level = (halves[0] if halves else blocks) - 1
    channels = (
        shapes.vote(*((f"time_embed.{k}", 0) for k in ("0.weight", "0.bias", "2.weight", "2.bias"))) // 4
    )
    if per_level < 1 or channels < 1:
        raise ValueError(f"state_dict must hold the weights of an official U-Net, got {some(shapes)}")
    mult, attention = [], []
    for level in range(len(halves) + 1):
        first = f"input_blocks.{1 + level * (per_level + 1)}"
        parts = ("in_layers.2.bias", "emb_layers.1.bias", "out_layers.0.bias", "out_layers.3.bias")
        width = shapes.vote(*((f"{first}.0.{part}", 0) for part in parts))
        mult.append(width / channels if width % channels else width // channels)
        if shapes.under(f"{first}.1."):
            attention.append(side // 2**level)
    layers = shapes.count(ENCODER)
    norms = [(f"{ENCODER}.{i}.norm{k}.{part}", 0) for i in range(layers) for k in "12" for part in PARTS]
    return {
        "num_channels": channels,
        "num_res_blocks": per_level,
        "channel_mult": tuple(mult),
        "attention_resolutions": tuple(attention),
        "embed_dim": shapes.vote(*norms),
        "num_transformer_layers": layers,
        "patch_size": patch,
    }


def table(config: Mapping[str, Any], side: int, colors: int) -> Iterator[Weight]:
    """Every weight of the official network for images [colors, side, side]."""
    base, per_level = config["num_channels"], config["num_res_blocks"]
    widths = [int(mult * base) for mult in config["channel_mult"]]
    looking = {side // resolution for resolution in config["attention_resolutions"]}

    yield from _layer("time_embed.0", ("time_0",), base, 4 * base)
    yield from _layer("time_embed.2", ("time_1",), 4 * base, 4 * base)
    yield from _layer("input_blocks.0.0", ("conv_in",), colors, widths[0], 3)
    kept, size, index = [widths[0]], widths[0], 1
    for level, width in enumerate(widths):
        for i in range(per_level):
            path = f"down_{level}_{i}"
            yield from _residual(f"input_blocks.{index}.0", path, size, width, base)
            if 2**level in looking:
                yield from _attention(f"input_blocks.{index}.1", path, width)
            size = width
            kept.append(size)
            index += 1
        if level < len(widths) - 1:
            yield from _layer(f"input_blocks.{index}.0.op", (f"down_{level}_half",), size, size, 3)
            kept.append(size)
            index += 1
    yield from _residual("middle_block.0", "middle_0", size, size, base)
    yield from _attention("middle_block.1", "middle", size)
    yield from _residual("middle_block.2", "middle_1", size, size, base)
    index = 0
    for level, width in reversed(tuple(enumerate(widths))):
        for i in range(per_level + 1):
            name, path = f"output_blocks.{index}", f"up_{level}_{i}"
            yield from _residual(f"{name}.0", path, size + kept.pop(), width, base)
            if 2**level in looking:
                yield from _attention(f"{name}.1", path, width)
            if level and i == per_level:
                place = 2 if 2**level in looking else 1
                yield from _layer(f"{name}.{place}.conv", (f"up_{level}_double",), width, width, 3)
            size = width
            index += 1
    yield from _norm("out.0", ("norm_out",), size)
    yield from _layer("out.2", ("conv_out",), size, colors, 3)
    yield from _transformer(config, side, colors)


def _transformer(config, side, colors):
    patch, width = config["patch_size"], config["embed_dim"]
    count = (side // patch) ** 2
    yield Weight(POSITIONS, (1, count, width), (0, 1, 2), (count, width), ("position",))
    yield from _layer(PATCHES.removesuffix(".weight"), ("patches",), colors, width, patch)
    for i in range(config["num_transformer_layers"]):
        name, path = f"{ENCODER}.{i}", f"layer_{i}"
        yield from _layer(f"{name}.self_attn.in_proj", (path, "qkv"), width, 3 * width, joint="_")
        yield from _layer(f"{name}.self_attn.out_proj", (path, "out"), width, width)
        yield from _norm(f"{name}.norm1", (path, "norm_0"), width)
        yield from _layer(f"{name}.linear1", (path, "mlp_0"), width, 4 * width)
        yield from _layer(f"{name}.linear2", (path, "mlp_1"), 4 * width, width)
        yield from _norm(f"{name}.norm2", (path, "norm_1"), width)
    yield from _layer("final_linear", ("head",), width, 1)


def _residual(name, path, inputs, outputs, base):
    yield from _norm(f"{name}.in_layers.0", (path, "norm_0"), inputs)
    yield from _layer(f"{name}.in_layers.2", (path, "conv_0"), inputs, outputs, 3)
    yield from _layer(f"{name}.emb_layers.1", (path, "time"), 4 * base, outputs)
    yield from _norm(f"{name}.out_layers.0", (path, "norm_1"), outputs)
    yield from _layer(f"{name}.out_layers.3", (path, "conv_1"), outputs, outputs, 3)
    if inputs != outputs:
        yield from _layer(f"{name}.skip_connection", (path, "skip"), inputs, outputs, ones=(1, 1))


def _attention(name, path, size):
    path = f"{path}_attention"
    yield from _norm(f"{name}.norm", (path, "norm"), size)
    yield from _layer(f"{name}.qkv", (path, "qkv"), size, 3 * size, ones=(1,))
    yield from _layer(f"{name}.proj_out", (path, "out"), size, size, ones=(1,))


def _norm(name, path, size):
    yield Weight(f"{name}.weight", (size,), (0,), (size,), (*path, "scale"))
    yield Weight(f"{name}.bias", (size,), (0,), (size,), (*path, "bias"))


def _layer(name, path, inputs, outputs, window=0, *, ones=(), joint="."):
    """A linear layer; with a window a convolution; with ones a convolution that is a linear layer here."""
    shape = (window, window) if window else ()
    yield Weight(
        f"{name}{joint}weight",
        (outputs, inputs, *shape, *ones),
        (*range(2, 2 + len(shape + ones)), 1, 0),
        (*shape, inputs, outputs),
        (*path, "kernel"),
    )
    yield Weight(f"{name}{joint}bias", (outputs,), (0,), (outputs,), (*path, "bias"))


def some(names: Iterable[Any], limit: int = 20) -> str:
    """The names, or the first of them and how many more."""
    names = sorted(map(str, names))
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "") if names else "nothing"
