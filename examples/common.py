"""What the examples share: the optimiser of samplers, tables, and the output folder."""

from __future__ import annotations

import json
import logging
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
import scipy.optimize
import scipy.spatial

from egm.iteration import IterationState

# Without this absl prints which accelerators the machine does not have.
logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)


def optimizer(b2: float = 0.99, max_norm: float = 1.0) -> optax.GradientTransformation:
    """Adam with a clipped gradient norm, its learning rate set from outside between iterations."""

    @optax.inject_hyperparams
    def make(learning_rate):
        return optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(learning_rate, b2=b2))

    return make(learning_rate=0.0)


SHOWN = {"loss": "loss", "ESS": "ess", "log Z": "log_z", "scale": "scale"}
"""What the progress bar of `loop.train` shows of an outer iteration."""


def cosine(learning_rate: float) -> Callable[[IterationState, float], IterationState]:
    """The `prepare` of `loop.train` that gives `optimizer` a cosine rate."""

    def prepare(state, done):
        rate = learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        hyperparams = state.train.opt_state.hyperparams
        # On the host, as every process has it.
        hyperparams["learning_rate"] = np.asarray(rate, hyperparams["learning_rate"].dtype)
        return state

    return prepare


def w2(a, b):
    """Exact W2 between two equally large sets of points, (min mean ||a_i - b_pi(i)||^2)^(1/2)."""
    cost = scipy.spatial.distance.cdist(a, b, "sqeuclidean")
    return np.sqrt(np.mean(cost[scipy.optimize.linear_sum_assignment(cost)]))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table as text."""

    def cell(value):
        return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)

    cells = [list(header)] + [[cell(v) for v in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join([title, *lines])


def with_error(value: float, error: float, digits: int = 4) -> str:
    """ "value +- error" for a table; an infinite error is none that could be stated."""
    shown = f"{value:.{digits}f}"
    return f"{shown} +- {error:.{digits}f}" if math.isfinite(error) else f"{shown}, error not known"


def write_results(output_dir: str, results: dict[str, Any]) -> pathlib.Path:
    """Write results.json (null where a figure is not finite or not known) and return its path."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, np.ndarray | jax.Array | np.generic | list | tuple):
            return (
                plain(np.asarray(value).tolist())
                if not isinstance(value, list)
                else [plain(v) for v in value]
            )
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(plain(results), indent=2) + "\n")
    return path
