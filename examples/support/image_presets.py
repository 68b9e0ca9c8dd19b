"""Presets of image_potential.py with their flags, and batches that a thread reads ahead."""

from __future__ import annotations

import concurrent.futures
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import app, flags
from data import image_data

from energymatch import images


@dataclasses.dataclass(frozen=True)
class Preset:
    """Settings of a run; by default those published for CIFAR-10.

    `chunk` steps of each phase are one compiled call, for which the host reads the images at once.
    """

    network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warm_up: int = 145_000
    iterations: int = 2_000
    chunk: tuple[int, int] = (20, 1)
    batch_size: int = 128
    learning_rate: float = 1.2e-3
    rate_warm_up: int = 10_000
    num_langevin: int = 200
    tau_s: float = 3.25
    num_samples: int = 64


def read_pooled(folder):
    """CIFAR-10 as 8 x 8 pixels, the means of squares of 16: what a short run on a CPU can bear."""
    data = images.read_cifar10(folder)
    x = data.take(np.arange(len(data))).reshape(-1, 8, 4, 8, 4, 3).mean((2, 4))
    return images.ImageSet((np.rint(x).astype(np.uint8),), data.labels)


READERS: dict[str, Callable[[str], images.ImageSet]] = {
    "cifar10": images.read_cifar10,
    "imagenet32": images.read_imagenet32,
    "tiny": read_pooled,
}
PRESETS = {
    "cifar10": Preset(),
    "imagenet32": Preset(warm_up=640_000, iterations=1_000, learning_rate=6e-4, tau_s=2.5),
    "tiny": Preset(
        network={
            "num_channels": 32,
            "num_res_blocks": 1,
            "channel_mult": (1,),
            "attention_resolutions": (),
            "num_head_channels": 32,
            "embed_dim": 32,
            "num_transformer_layers": 1,
            "output_scale": 10.0,
        },
        warm_up=6,
        iterations=2,
        chunk=(1, 1),
        batch_size=4,
        learning_rate=3e-5,
        rate_warm_up=2,
        num_langevin=2,
        tau_s=0.03,
        num_samples=16,
    ),
}


PRESET = flags.DEFINE_enum("preset", "tiny", list(PRESETS), "Data and settings.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data set; tiny makes its own without it.")
OVERRIDES = [
    flags.DEFINE_integer("warm_up", None, "Steps of phase 1, in place of the preset's.", lower_bound=0),
    flags.DEFINE_integer("iterations", None, "Steps of phase 2, likewise.", lower_bound=0),
    flags.DEFINE_integer("batch_size", None, "Of all devices together, likewise.", lower_bound=2),
    flags.DEFINE_integer("num_langevin", None, "Steps of a negative, likewise.", lower_bound=1),
    flags.DEFINE_float("tau_s", None, "Time at which samples are taken, likewise.", lower_bound=0.0),
    flags.DEFINE_integer("num_samples", None, "Likewise; 50000 for an FID.", lower_bound=1),
]


def chosen_preset(num_devices):
    """The preset of the flags with what they replace in it; exits where its batches do not divide."""
    given = {flag.name: flag.value for flag in OVERRIDES if flag.value is not None}
    preset = dataclasses.replace(PRESETS[PRESET.value], **given)
    if preset.batch_size % num_devices:
        raise app.UsageError(f"--batch_size must divide over {num_devices} devices, got {preset.batch_size}")
    return preset


def read_data(made):
    """The data set of the flags; tiny makes its own in the folder `made`."""
    if not DATA_DIR.value and PRESET.value != "tiny":
        raise app.UsageError("--data_dir is needed: where the data set's files are")
    return READERS[PRESET.value](DATA_DIR.value or image_data.write(made, 64))


class Prefetch:
    """`feed(n)` returns read(n); meanwhile a thread makes read(n + 1), so that the device need not wait."""

    def __init__(self, read: Callable[[int], Any]):
        self._read, self._next = read, {}
        self._pool = concurrent.futures.ThreadPoolExecutor(1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, n: int) -> Any:
        now = self._next.pop(n, None) or self._pool.submit(self._read, n)
        self._next = {n + 1: self._pool.submit(self._read, n + 1)}
        return now.result()
