"""Weights for official image potentials that need no file: numpy's frozen generator, by name and shape.

tests/data/official_unet_vit.npz holds what the official network makes of them in float64; it was written
by `python tests/data/make_official_unet_vit.py`, which needs torch and torchcfm.
"""

import json
import pathlib

import numpy as np

DATA = pathlib.Path(__file__).parents[1] / "data" / "official_unet_vit.npz"

NETWORKS = {
    # Two of everything: levels, blocks, attention resolutions; gray; heads by their number.
    "gray": dict(
        num_channels=32,
        num_res_blocks=2,
        channel_mult=(1, 2, 1),
        attention_resolutions=(16, 4),
        num_heads=2,
        num_head_channels=None,
        embed_dim=24,
        num_transformer_heads=3,
        num_transformer_layers=2,
        patch_size=2,
        output_scale=100.0,
    ),
    # The published network made small: one attention resolution, heads by their channels.
    "color": dict(
        num_channels=32,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_resolutions=(8,),
        num_heads=4,
        num_head_channels=16,
        embed_dim=32,
        num_transformer_heads=4,
        num_transformer_layers=2,
        patch_size=4,
        output_scale=1000.0,
    ),
}
IMAGES = {"gray": (3, 1, 16, 16), "color": (3, 3, 16, 16)}
"""Shapes of the images [B, C, H, W]."""


def weights(shapes):
    """Float32 weights of those shapes by name: layers keep the scale of what goes in, nothing is 0 or 1."""
    random = np.random.RandomState(0)  # its numbers are the same in every version of numpy
    out = {}
    for name, shape in sorted(shapes.items()):
        draw = random.standard_normal(shape)
        if len(shape) > 1 and not name.endswith("pos_embed"):
            draw = draw / np.sqrt(np.prod(shape[1:]))
        elif name.endswith("weight"):
            draw = 1 + 0.2 * draw
        else:
            draw = 0.2 * draw
        out[name] = draw.astype(np.float32)
    return out


def images(name):
    """Float32 images [B, C, H, W] of the network of that name, between -1 and 1."""
    return np.random.RandomState(1).uniform(-1, 1, IMAGES[name]).astype(np.float32)


def official(name):
    """(weights, images, potential [B], velocity [B, C, H, W] in float64) of the network of that name."""
    with np.load(DATA) as data:
        shapes = {key: tuple(shape) for key, shape in json.loads(str(data[f"{name}_shapes"])).items()}
        return weights(shapes), images(name), data[f"{name}_potential"], data[f"{name}_velocity"]
