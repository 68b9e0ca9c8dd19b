"""Image data without a framework: readers of CIFAR-10 and ImageNet32, a resumable batch stream, export.

Images in memory are uint8 [N, H, W, C]; batches are float32 [B, H, W, C] in [-1, 1], the scale on which
`networks.UNetViTPotential` was published. numpy alone: what is drawn depends on a seed and a step, so that a
run resumes by its step number.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib

import numpy as np

from egm import checks
from energymatch.images import files

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

SIDE, COLORS = 32, 3
"""Of the images of both data sets."""


CIFAR10_FILES = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}


IMAGENET32_FILES = {
    "train": tuple(f"train_data_batch_{i}.npz" for i in range(1, 11)),
    "val": ("val_data.npz",),
}


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Images and their labels, in one array or in several (one a file), which may be memory-mapped.

    Attributes:
      parts: uint8 arrays [N_i, H, W, C], views of what is on disk where that is possible.
      labels: [N] integers, in the order of the parts.

    Raises:
      TypeError: a part is not uint8, or labels are no integers. ValueError: a shape does not fit.
    """

    parts: tuple[np.ndarray, ...]
    labels: np.ndarray

    def __post_init__(self):
        if not isinstance(self.parts, tuple | list):
            raise TypeError(f"parts must be a tuple of arrays, got {self.parts!r:.80}")
        if not self.parts:
            raise ValueError("parts must hold at least one array, got none")
        event = np.shape(self.parts[0])[1:]
        for i, part in enumerate(self.parts):
            if getattr(part, "dtype", None) != np.uint8:
                raise TypeError(
                    f"parts[{i}] must be uint8, got {getattr(part, 'dtype', type(part).__name__)}"
                )
            if part.ndim != 4 or part.shape[1:] != event or part.size == 0:
                expected = f"[N, {', '.join(map(str, event))}]" if len(event) == 3 else "[N, H, W, C]"
                raise ValueError(f"parts[{i}] must have shape {expected} with N > 0, got {part.shape}")
        labels = np.asarray(self.labels)
        if not np.issubdtype(labels.dtype, np.integer):
            raise TypeError(f"labels must be integers, got dtype {labels.dtype}")
        if labels.shape != (len(self),):
            raise ValueError(f"labels must have shape {(len(self),)}, got {labels.shape}")

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.parts[0].shape[1:]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The images [n, H, W, C] uint8 of indices [n], which raise IndexError where out of range."""
        indices = np.asarray(indices)
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices must lie in 0..{len(self) - 1}, got {indices.min()}..{indices.max()}")
        out, first = np.empty((indices.size, *self.shape), np.uint8), 0
        for part in self.parts:
            here = (first <= indices) & (indices < first + len(part))
            out[here] = part[indices[here] - first]
            first += len(part)
        return out


def read_cifar10(folder: str | os.PathLike, split: str = "train") -> ImageSet:
    """CIFAR-10, "binary version": records of one byte, the label, and 3 planes of 32 x 32 bytes.

    Args:
      folder: with data_batch_1.bin to data_batch_5.bin, or test_batch.bin.
      split: "train" or "test".

    Returns:
      ImageSet of memory-mapped images [N, 32, 32, 3], 10,000 a file in the original; labels 0..9.

    Raises:
      FileNotFoundError: a file is not there. ValueError: `split` is unknown, a file is no whole number of
        records, or holds another label.

    Source: the format's description at https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    record, parts, labels = 1 + COLORS * SIDE**2, [], []
    for file in files.find(folder, split, CIFAR10_FILES, "CIFAR-10's binary version"):
        size = file.stat().st_size
        if size == 0 or size % record:
            raise ValueError(
                f"{file} must hold records of {record} bytes, got {size} bytes ({size % record} left over)"
            )
        rows = np.memmap(file, np.uint8, "r").reshape(-1, record)
        label = rows[:, 0].astype(np.int32)
        if label.max() > 9:
            bad = int(np.argmax(label > 9))
            raise ValueError(f"{file} must hold labels 0 to 9, got {label[bad]} in record {bad}")
        labels.append(label)
        parts.append(_from_planes(rows[:, 1:]))
    return ImageSet(tuple(parts), np.concatenate(labels))


def read_imagenet32(folder: str | os.PathLike, split: str = "train") -> ImageSet:
    """ImageNet at 32 x 32 pixels, the .npz version: arrays data [N, 3072] (three planes), labels 1..1000.

    An array that its file stores as it is, is memory-mapped; a compressed one is read (3.9 GB in all). The
    mean that the training files carry is not subtracted. The pickled version is not read: unpickling a file
    runs what is in it.

    Args:
      folder: with train_data_batch_1.npz to train_data_batch_10.npz, or val_data.npz.
      split: "train" or "val".

    Returns:
      ImageSet of images [N, 32, 32, 3] and labels 0..999 (the file's less one).

    Raises:
      FileNotFoundError: a file is not there. TypeError: an array has another dtype. ValueError: `split` is
        unknown, a file is no .npz or lacks an array, or an array has another shape or other labels.

    Source: Chrabaszcz et al., A Downsampled Variant of ImageNet (arXiv 1707.08819).
    """
    parts, labels = [], []
    for file in files.find(folder, split, IMAGENET32_FILES, "ImageNet32's .npz version"):
        data, label = files.npz_array(file, "data"), np.asarray(files.npz_array(file, "labels"))
        size = COLORS * SIDE**2
        if data.dtype != np.uint8:
            raise TypeError(f"data of {file} must be uint8, got {data.dtype}")
        if data.ndim != 2 or data.shape[1] != size or len(data) == 0:
            raise ValueError(f"data of {file} must have shape [N, {size}] with N > 0, got {data.shape}")
        if not np.issubdtype(label.dtype, np.integer):
            raise TypeError(f"labels of {file} must be integers, got {label.dtype}")
        if label.shape != data.shape[:1] or label.min() < 1 or label.max() > 1000:
            came = label.shape if label.shape != data.shape[:1] else f"{label.min()}..{label.max()}"
            raise ValueError(f"labels of {file} must be {len(data)} numbers in 1..1000, got {came}")
        labels.append(label.astype(np.int32) - 1)
        parts.append(_from_planes(data))
    return ImageSet(tuple(parts), np.concatenate(labels))


@dataclasses.dataclass(frozen=True, eq=False)
class BatchStream:
    """Batches for training: `stream.batch(step)` is a pure function of the seed and the step.

    Each epoch is a permutation of the images with a coin for each whether it is mirrored; a batch may run
    from one epoch into the next, so that every image comes once an epoch. With several processes each
    holds its own rows of a global batch that does not depend on how many there are.

    Attributes:
      images: what is drawn from.
      batch_size: B, of all processes together; process_count divides it.
      seed: of permutations and coins, from 0 on.
      flip: mirror left and right at random.
      process_index: which rows: the process_index-th of process_count equal blocks.
      process_count: number of processes.
    """

    images: ImageSet
    batch_size: int
    seed: int = 0
    flip: bool = True
    process_index: int = 0
    process_count: int = 1

    def __post_init__(self):
        if not isinstance(self.images, ImageSet):
            raise TypeError(f"images must be an ImageSet, got {type(self.images).__name__}")
        checks.positive_int(self.batch_size, "batch_size")
        checks.positive_int(self.seed, "seed", minimum=0)
        checks.positive_int(self.process_count, "process_count")
        checks.positive_int(self.process_index, "process_index", minimum=0)
        if self.process_index >= self.process_count:
            raise ValueError(
                f"process_index must be below process_count = {self.process_count}, got {self.process_index}"
            )
        if self.batch_size % self.process_count:
            raise ValueError(
                f"batch_size must be divisible by process_count = {self.process_count}, got {self.batch_size}"
            )

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(indices [B / process_count] of this process's images, which of them are mirrored)."""
        step, num = checks.positive_int(step, "step", minimum=0), len(self.images)
        size = self.batch_size // self.process_count
        place = step * self.batch_size + self.process_index * size + np.arange(size, dtype=np.int64)
        index, mirrored = np.empty(size, np.int64), np.empty(size, bool)
        for epoch in np.unique(place // num):
            order, coin = _epoch(self.seed, int(epoch), num)
            here = place // num == epoch
            index[here], mirrored[here] = order[place[here] % num], coin[place[here] % num]
        return index, mirrored & self.flip

    def batch(self, step: int) -> np.ndarray:
        """[B / process_count, H, W, C] float32 in [-1, 1], the batch of a step from 0 on."""
        index, mirrored = self.rows(step)
        images = self.images.take(index)
        images[mirrored] = images[mirrored, :, ::-1]
        return to_float(images)


def to_float(images: np.ndarray) -> np.ndarray:
    """uint8 grey levels as float32 in [-1, 1]: u / 127.5 - 1."""
    if np.asarray(images).dtype != np.uint8:
        raise TypeError(f"images must be uint8, got {np.asarray(images).dtype}")
    return np.asarray(images, np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Floats as grey levels: clipped to [-1, 1], then (x + 1) 127.5 rounded to the nearest.

    The inverse of `to_float`. Published code often truncates instead, which darkens by half a level.

    Raises:
      TypeError: `x` is not floating. ValueError: it is not finite.
    """
    x = np.asarray(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(f"x must be floating point, got dtype {x.dtype}")
    num_bad = int(np.sum(~np.isfinite(x)))
    if num_bad:
        raise ValueError(f"x must be finite, got {num_bad} values of {x.size} that are not")
    return np.rint((np.clip(x, -1, 1).astype(np.float64) + 1) * 127.5).astype(np.uint8)


def save_samples(file: str | os.PathLike, x: np.ndarray) -> pathlib.Path:
    """Samples for the standard tools: an .npz file with uint8 [N, H, W, C] under arr_0.

    Written under another name and then renamed, so that there is a whole file or none.

    Args:
      file: its name, which ends in .npz.
      x: [N, H, W, C] floats on the scale of [-1, 1] (see `to_uint8`), or uint8.

    Returns:
      The path.

    Raises:
      TypeError, ValueError: `x` is of another kind or shape, or the name has another ending.
    """
    file, x = pathlib.Path(file), np.asarray(x)
    if file.suffix != ".npz":
        raise ValueError(f"file must end in .npz, got {file.name}")
    if x.ndim != 4 or x.size == 0:
        raise ValueError(f"x must have shape [N, H, W, C], got {x.shape}")
    images = x if x.dtype == np.uint8 else to_uint8(x)
    partial = file.with_name(f".{file.name}.partial.npz")
    np.savez(partial, arr_0=images)
    os.replace(partial, file)
    return file


@functools.lru_cache(maxsize=4)
def _epoch(seed: int, epoch: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """(permutation of num, num coins) of an epoch; RandomState's numbers are the same in every numpy."""
    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence((seed, epoch))))
    return random.permutation(num), random.randint(0, 2, num).astype(bool)


def _from_planes(rows: np.ndarray) -> np.ndarray:
    """[N, C H W] as a view [N, H, W, C]."""
    return rows.reshape(-1, COLORS, SIDE, SIDE).transpose(0, 2, 3, 1)
