"""What the examples share: the loop with its progress bar, tables, and the output folder."""

from __future__ import annotations

import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
import scipy.optimize
import scipy.spatial
import tqdm

from egm.iteration import IterationState

# Without this absl prints which accelerators the machine does not have.
logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)


def optimizer(b2: float = 0.99, max_norm: float = 1.0) -> optax.GradientTransformation:
    """Adam with a clipped gradient norm, its learning rate set from outside between iterations."""

    @optax.inject_hyperparams
    def make(learning_rate):
        return optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(learning_rate, b2=b2))

    return make(learning_rate=0.0)


def train(
    step: Callable[..., Any],
    state: IterationState,
    key: jax.Array,
    *,
    learning_rate: float,
    iterations: int,
    seconds: float | None,
) -> tuple[IterationState, list[dict[str, float]], float]:
    """Compile and run an outer iteration under a cosine rate, for so many iterations or seconds.

    Returns the last state, the metrics of every iteration, each with `seconds` of training so far, and
    the seconds of compilation.
    """
    start = time.time()
    step = jax.jit(step).lower(key, state).compile()
    compile_seconds = time.time() - start
    history, start, done, index = [], time.time(), 0.0, 0
    with tqdm.tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}{postfix}") as bar:
        while done < 1.0:
            rate = learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
            opt_state = state.train.opt_state
            old = opt_state.hyperparams["learning_rate"]
            opt_state.hyperparams["learning_rate"] = jax.numpy.asarray(rate, old.dtype)
            state, metrics = step(jax.random.fold_in(key, index), state)
            row = {k: float(v) for k, v in jax.device_get(metrics).items()}
            index += 1
            row["seconds"] = time.time() - start
            history.append(row)
            done = index / iterations if seconds is None else row["seconds"] / seconds
            bar.n = min(100, round(100 * done))
            shown = {"loss": "loss", "ESS": "ess", "log Z": "log_z", "scale": "scale"}
            bar.set_postfix({k: f"{row[v]:.3f}" for k, v in shown.items()})
    return state, history, compile_seconds


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
