"""The 1,797 handwritten digits of 8x8 pixels that scikit-learn ships, standardised."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import sklearn.datasets

NUM_TRAIN, SHUFFLED = 1500, 0.25


class Digits(NamedTuple):
    """Standardised digits [N, 8, 8, 1]: grey levels less each pixel's mean, over one scale for all pixels."""

    train: np.ndarray
    train_labels: np.ndarray
    held_out: np.ndarray
    held_out_labels: np.ndarray
    mean: np.ndarray
    scale: float


def load_digits(seed):
    """The 1,797 digits in random order, 1,500 to train on; the mean variance of their pixels is 1."""
    x, labels = sklearn.datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, labels = x[order].reshape(-1, 8, 8, 1), labels[order]
    mean, scale = x[:NUM_TRAIN].mean(0), np.sqrt(x[:NUM_TRAIN].var(0).mean())
    z = ((x - mean) / scale).astype(np.float32)
    return Digits(z[:NUM_TRAIN], labels[:NUM_TRAIN], z[NUM_TRAIN:], labels[NUM_TRAIN:], mean, float(scale))


def shuffle_pixels(rng, x):
    """x with a quarter of the pixels of each digit permuted, a choice of its own each."""
    flat = x.reshape(len(x), -1).copy()
    for row in flat:
        chosen = rng.choice(row.size, round(SHUFFLED * row.size), replace=False)
        row[chosen] = row[rng.permutation(chosen)]
    return flat.reshape(x.shape)
