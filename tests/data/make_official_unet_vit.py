"""Writes official_unet_vit.npz: potentials and velocities of official networks in float64.

The U-Net is torchcfm's, the encoder torch's: as the published network is put together. Run once, with
torch 2.13.0 and torchcfm 1.0.7; given the weights of an official checkpoint in a folder, it is compared
with their potential and velocity instead.

    python tests/data/make_official_unet_vit.py [folder with official_unet_vit_small*.npz]
"""

import json
import pathlib
import sys

import numpy as np
import torch
from torchcfm.models.unet.unet import UNetModelWrapper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import official_weights


class Patches(torch.nn.Module):
    def __init__(self, colors, size, patch, width):
        super().__init__()
        self.pos_embed = torch.nn.Parameter(torch.zeros(1, (size // patch) ** 2, width))
        self.patch_embed = torch.nn.Conv2d(colors, width, patch, patch)

    def forward(self, x):
        return self.patch_embed(x).flatten(2).mT + self.pos_embed


class Potential(UNetModelWrapper):
    def __init__(self, config, shape):
        super().__init__(
            dim=shape,
            num_channels=config["num_channels"],
            num_res_blocks=config["num_res_blocks"],
            channel_mult=list(config["channel_mult"]),
            attention_resolutions=",".join(map(str, config["attention_resolutions"])),
            num_heads=config["num_heads"],
            num_head_channels=config["num_head_channels"] or -1,
        )
        width = config["embed_dim"]
        self.patch_embed = Patches(shape[0], shape[-1], config["patch_size"], width)
        layer = torch.nn.TransformerEncoderLayer(
            width, config["num_transformer_heads"], 4 * width, activation="gelu", batch_first=True
        )
        self.transformer_encoder = torch.nn.TransformerEncoder(layer, config["num_transformer_layers"])
        self.final_linear = torch.nn.Linear(width, 1)
        self.scale = config["output_scale"]

    def forward(self, x):
        image = super().forward(torch.full((len(x),), 0.5, dtype=x.dtype), x)
        tokens = self.transformer_encoder(self.patch_embed(image))
        return self.scale * self.final_linear(tokens.mean(1))[:, 0]


def results(config, weights, x, dtype):
    torch.set_default_dtype(dtype)
    net = Potential(config, x.shape[1:]).eval()
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    weights = weights or official_weights.weights(shapes)
    net.load_state_dict({name: torch.as_tensor(value, dtype=dtype) for name, value in weights.items()})
    x = torch.as_tensor(x, dtype=dtype).requires_grad_()
    # torchcfm computes groups in float32 unless it is told that float64 is float. (The frequencies of its
    # time features stay float32: the results are good to 1e-6 or so.)
    net.dtype, torch.Tensor.float = dtype, lambda self: self.to(dtype)
    potential = net(x)
    (slope,) = torch.autograd.grad(potential.sum(), x)
    return shapes, potential.detach().numpy(), -slope.numpy()


def main():
    if len(sys.argv) > 1:
        stem = pathlib.Path(sys.argv[1]) / "official_unet_vit_small"
        given, weights = np.load(f"{stem}.npz"), dict(np.load(f"{stem}_weights.npz"))
        config = {**official_weights.NETWORKS["color"], "attention_resolutions": (16,)}
        _, potential, velocity = results(config, weights, given["x"], torch.float64)
        for name, value in (("potential", potential), ("velocity", velocity)):
            print(name, np.linalg.norm(value - given[name]) / np.linalg.norm(given[name]))
        return
    data = {}
    for name, config in official_weights.NETWORKS.items():
        shapes, potential, velocity = results(config, None, official_weights.images(name), torch.float64)
        print(name, potential, np.abs(velocity).max())
        data |= {f"{name}_shapes": json.dumps(shapes), f"{name}_potential": potential}
        data |= {f"{name}_velocity": velocity}
    np.savez_compressed(official_weights.DATA, **data)


if __name__ == "__main__":
    main()
