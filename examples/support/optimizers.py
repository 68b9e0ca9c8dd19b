"""The optimisers of the examples, and what their progress bars show."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import optax

from egm.iteration import IterationState


def optimizer(b2: float = 0.99, max_norm: float = 1.0) -> optax.GradientTransformation:
    """Adam with a clipped gradient norm, its learning rate set from outside between iterations."""

    @optax.inject_hyperparams
    def make(learning_rate):
        return optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(learning_rate, b2=b2))

    return make(learning_rate=0.0)


SHOWN = {"loss": "loss", "ESS": "ess", "log Z": "log_z", "level": "level"}
"""What the progress bar of `support.loop.train` shows of an outer iteration."""


def cosine(learning_rate: float) -> Callable[[IterationState, float], IterationState]:
    """The `prepare` of `support.loop.train` that gives `optimizer` a cosine rate."""

    def prepare(state, done):
        rate = learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        hyperparams = state.train.opt_state.hyperparams
        # On the host, as every process has it.
        hyperparams["learning_rate"] = np.asarray(rate, hyperparams["learning_rate"].dtype)
        return state

    return prepare
