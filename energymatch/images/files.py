"""Files of image data sets: which there must be, and arrays of .npz files as they lie on disk."""

from __future__ import annotations

import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["find", "npz_array"]


def find(
    folder: str | os.PathLike, split: str, names: Mapping[str, Sequence[str]], what: str
) -> list[pathlib.Path]:
    """The files of a split; raises ValueError or FileNotFoundError that names what is missing."""
    if split not in names:
        raise ValueError(f"split must be one of {tuple(names)}, got {split!r}")
    folder = pathlib.Path(folder)
    missing = [name for name in names[split] if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"folder must hold {', '.join(missing)} ({what}), got {folder}")
    return [folder / name for name in names[split]]


def npz_array(file: pathlib.Path, name: str) -> np.ndarray:
    """One array of an .npz file, memory-mapped where the file stores it as it is."""
    try:
        with zipfile.ZipFile(file) as archive:
            if f"{name}.npy" not in archive.namelist():
                held = [n.removesuffix(".npy") for n in archive.namelist()]
                raise ValueError(f"{file} must hold an array {name}, got {held}")
            info = archive.getinfo(f"{name}.npy")
            with archive.open(info) as member:
                version = np.lib.format.read_magic(member)
                read = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }
                shape, fortran, dtype = read[version](member)
                header = member.tell()
        if dtype.hasobject:
            raise TypeError(f"{name} of {file} must hold numbers, got dtype object (pickled)")
        if info.compress_type != zipfile.ZIP_STORED or fortran:
            with np.load(file, allow_pickle=False) as arrays:
                return arrays[name]
        with open(file, "rb") as raw:
            raw.seek(info.header_offset + 26)  # of the local header: lengths of the name and of the extra
            start = info.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4))) + header
        return np.memmap(file, dtype, "r", start, shape)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        raise ValueError(f"{file} must be a whole .npz file, got {error!r}") from error
