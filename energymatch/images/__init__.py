"""Image data without a framework: readers of CIFAR-10 and ImageNet32, a resumable batch stream, export.

Images in memory are uint8 [N, H, W, C]; batches are float32 [B, H, W, C] in [-1, 1], the scale on which
`networks.UNetViTPotential` was published. numpy alone: what is drawn depends on a seed and a step, so that a
run resumes by its step number.
"""

from energymatch.images.data import (
    CIFAR10_FILES,
    COLORS,
    IMAGENET32_FILES,
    SIDE,
    BatchStream,
    ImageSet,
    read_cifar10,
    read_imagenet32,
    save_samples,
    to_float,
    to_uint8,
)

__all__ = [
    "BatchStream",
    "CIFAR10_FILES",
    "COLORS",
    "IMAGENET32_FILES",
    "ImageSet",
    "SIDE",
    "read_cifar10",
    "read_imagenet32",
    "save_samples",
    "to_float",
    "to_uint8",
]
