"""Small coloured shapes in the format of CIFAR-10's binary version, for runs without a download.

python examples/data/image_data.py FOLDER      # the six files, 256 images each
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np

SIDE = 32
SHAPES = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) < 0.9,
    "diamond": lambda u, v: abs(u) + abs(v) < 1.1,
    "ring": lambda u, v: (u**2 + v**2 < 1.2) & (u**2 + v**2 > 0.5),
    "cross": lambda u, v: (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1),
    "bar": lambda u, v: (abs(v) < 0.35) & (abs(u) < 1.2),
    "column": lambda u, v: (abs(u) < 0.35) & (abs(v) < 1.2),
    "half": lambda u, v: (u**2 + v**2 < 1) & (v > 0),
    "wedge": lambda u, v: (abs(u) < 0.5 * (v + 1)) & (v < 1),
    "four dots": lambda u, v: (abs(u) - 0.6) ** 2 + (abs(v) - 0.6) ** 2 < 0.16,
}


def draw(random, num):
    """([num, 32, 32, 3] uint8 images, [num] labels): a shape of one colour on a slope of another."""
    labels = random.randint(0, len(SHAPES), num)
    y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    images = np.empty((num, SIDE, SIDE, 3))
    for image, label in zip(images, labels, strict=True):
        center, radius = random.uniform(-5, 5, 2), random.uniform(6, 11)
        slope, ground, color = random.uniform(-0.5, 0.5, (2, 3)), *random.uniform(40, 215, (2, 3))
        inside = list(SHAPES.values())[label]((x - center[0]) / radius, (y - center[1]) / radius)
        image[:] = ground + 2 * (x[..., None] * slope[0] + y[..., None] * slope[1])
        image[inside] = color
    images += 4 * random.standard_normal(images.shape)
    return np.clip(np.rint(images), 0, 255).astype(np.uint8), labels


def write(folder, num=256, seed=0):
    """Six files of `num` records in `folder`: the label, then the planes of red, green and blue."""
    folder, random = pathlib.Path(folder), np.random.RandomState(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        images, labels = draw(random, num)
        planes = images.transpose(0, 3, 1, 2).reshape(num, -1)
        (folder / name).write_bytes(np.concatenate([labels[:, None].astype(np.uint8), planes], 1).tobytes())
    return folder


if __name__ == "__main__":
    print(f"Wrote {write(sys.argv[1])}")
