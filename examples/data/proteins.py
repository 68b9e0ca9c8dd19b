"""Variants of a region of the AAV capsid with measured fitness, and the task set on them.

python examples/data/proteins.py FOLDER      # a small made-up problem in the same files, without a download

Measured by Bryant et al. (Nature Biotechnology, 2021); the task and the regressors are those of GGS
(Kirjner et al., arXiv 2307.00494).
"""

from __future__ import annotations

import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ALPHABET = "ARNDCQEGHILKMFPSTWYV"
LENGTH, VOCAB, WIDTH = 28, len(ALPHABET), 5
"""Residues of the region, amino acids, and residues that a window of the regressors sees."""
FILES = ("ground_truth.csv", "oracle.npz", "predictor_medium.npz", "predictor_hard.npz")
SPLITS = {"medium": (0.2, 0.4, 6), "hard": (0.0, 0.3, 7)}
"""Quantiles of fitness between which variants are shown, and their least distance from every top variant."""
TOP = 0.99


class Task(NamedTuple):
    """What a method is shown: tokens x [N, 28] and measured fitness y [N] over the largest measured."""

    name: str
    x: np.ndarray
    y: np.ndarray


class Variants(NamedTuple):
    """All measured variants: tokens [N, 28], fitness [N] as measured, and the largest."""

    x: np.ndarray
    y: np.ndarray
    largest: float


def check_folder(folder):
    """The folder as a path; raises FileNotFoundError that says where its files are to be had."""
    folder = pathlib.Path(folder or "(none given)")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"--data_dir must be a folder with {', '.join(FILES)}, and {folder} lacks {', '.join(missing)}: "
            "the variants are data/AAV/ground_truth.csv of the repository kirjner/GGS, the .npz files the "
            "weights of its AAV regressors under ckpt/AAV (cnn_oracle.ckpt, unsmoothed predictors of "
            "mutations_6 and mutations_7) as float32 arrays of the same names; python "
            "examples/data/proteins.py FOLDER makes a small made-up problem to try the program with"
        )
    return folder


def tokens(sequences):
    """[N, L] int32 of strings of one length."""
    index = {letter: i for i, letter in enumerate(ALPHABET)}
    return np.array([[index[letter] for letter in s] for s in sequences], np.int32)


def letters(x):
    """Strings of tokens [N, L]."""
    return ["".join(ALPHABET[i] for i in row) for row in np.asarray(x)]


def load_variants(folder):
    """All variants of the file, as they come: some sequences were measured more than once."""
    lines = (check_folder(folder) / "ground_truth.csv").read_text().split()
    names = lines[0].split(",")
    rows = [line.split(",") for line in lines[1:]]
    x = tokens(row[names.index("sequence")] for row in rows)
    y = np.array([float(row[names.index("score")]) for row in rows])
    return Variants(x, y, float(y.max()))


def load_regressor(path):
    """The arrays of a regressor's file, by name."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def make_task(variants, name):
    """The variants between two quantiles of fitness that lie far from all top ones."""
    low, high, distance = SPLITS[name]
    least, most, top = np.quantile(variants.y, [low, high, TOP])
    best = np.unique(variants.x[variants.y >= top], axis=0)
    rows = np.flatnonzero((variants.y >= least) & (variants.y <= most))
    parts = [
        np.asarray(levenshtein(variants.x[part], best)).min(1)
        for part in np.array_split(rows, max(1, len(rows) // 1024))
    ]
    rows = rows[np.concatenate(parts) >= distance]
    return Task(name, variants.x[rows], variants.y[rows] / variants.largest)


@jax.jit
def levenshtein(a, b):
    """[N, M] edit distances of tokens a [N, L] and b [M, K], L at most 32, all pairs at once.

    One column of the dynamic programme is a machine word: bit i says whether its entry is one above
    (or below) that of the row before, and a column follows from the last by a dozen operations.

    Source: Myers, "A fast bit-vector algorithm for approximate string matching" (1999), in the form of
    Hyyro (2003).
    """
    length = a.shape[1]
    if not 1 <= length <= 32:
        raise ValueError(f"a must hold sequences of 1 to 32 tokens, got {length}")
    bits = jnp.uint32(1) << jnp.arange(length, dtype=jnp.uint32)
    last = bits[-1]
    one = jnp.uint32(1)

    def column(j, carry):
        above, below, score = carry
        same = jnp.sum(jnp.where(a[:, None] == b[None, :, j, None], bits, 0), axis=-1, dtype=jnp.uint32)
        vertical = same | below
        horizontal = (((same & above) + above) ^ above) | same
        up, down = below | ~(horizontal | above), above & horizontal
        score = score + ((up & last) != 0).astype(jnp.int32) - ((down & last) != 0).astype(jnp.int32)
        up, down = (up << one) | one, down << one
        return down | ~(vertical | up), up & vertical, score

    shape = (a.shape[0], b.shape[0])
    full = jnp.full(shape, np.uint32(2**length - 1), jnp.uint32)
    start = (full, jnp.zeros_like(full), jnp.full(shape, length, jnp.int32))
    return jax.lax.fori_loop(0, b.shape[1], column, start)[2]


def write(folder, num=2000, seed=0):
    """A made-up problem in the files of the true one: mutants of one sequence, fitness a small regressor's.

    The predictors are that regressor with errors in its weights.
    """
    folder, rng = pathlib.Path(folder), np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    wild = rng.integers(0, VOCAB, LENGTH)
    mutated = rng.random((num, LENGTH)) < rng.uniform(0.1, 0.5, (num, 1))
    x = np.where(mutated, rng.integers(0, VOCAB, (num, LENGTH)), wild)
    hidden, channels = 16, 8
    arrays = {
        "encoder.weight": rng.normal(size=(channels, VOCAB, WIDTH)),
        "encoder.bias": np.zeros(channels),
        "embedding.layer.weight": rng.normal(size=(hidden, channels)),
        "embedding.layer.bias": np.zeros(hidden),
        "decoder.weight": rng.normal(size=(1, hidden)) / 20,
        "decoder.bias": np.full(1, 8.0),
    }
    for name in ("oracle", "predictor_medium", "predictor_hard"):
        noise = 0.0 if name == "oracle" else 0.1
        noisy = {k: (v + noise * v.std() * rng.normal(size=v.shape)) for k, v in arrays.items()}
        np.savez(folder / f"{name}.npz", **{k: v.astype(np.float32) for k, v in noisy.items()})
    windows = np.stack([x[:, k : k + LENGTH - WIDTH + 1] for k in range(WIDTH)])
    channel = sum(arrays["encoder.weight"][:, :, k].T[windows[k]] for k in range(WIDTH))
    features = np.maximum(channel @ arrays["embedding.layer.weight"].T, 0.0).max(1)
    y = np.maximum(features @ arrays["decoder.weight"][0] + 8.0 + 0.1 * rng.normal(size=num), 0.0)
    lines = [f"{s},{value:.6f}" for s, value in zip(letters(x), y, strict=True)]
    (folder / "ground_truth.csv").write_text("sequence,score\n" + "\n".join(lines) + "\n")
    return folder


if __name__ == "__main__":
    print(f"Wrote {write(sys.argv[1])}")
