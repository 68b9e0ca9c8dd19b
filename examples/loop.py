"""The training loop of every example: compiled calls, a progress bar, checkpoints, and an orderly stop.

The key of a call is folded with the call's index, so that a resumed run draws what an uninterrupted one would
have drawn: on one device it ends with the same parameters, bit for bit. SIGTERM finishes the present call,
saves, and leaves with status 75 (`EX_TEMPFAIL` of sysexits.h: try again, with --resume).
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import cluster
import jax
import numpy as np
import tqdm
from absl import flags, logging
from cluster import is_main
from etils import epath
from jax.experimental import multihost_utils

from egm import checkpoint, training

CHECKPOINT_DIR = flags.DEFINE_string(
    "checkpoint_dir", None, "Where checkpoints go; without it none are kept."
)
RESUME = flags.DEFINE_boolean("resume", False, "Go on from the newest checkpoint in --checkpoint_dir.")
CHECKPOINT_EVERY = flags.DEFINE_string(
    "checkpoint_every",
    "60s",
    "How often to save: after a number of compiled calls (10), or of seconds (60s).",
)
flags.register_validator(
    "checkpoint_every",
    lambda text: re.fullmatch(r"[1-9]\d*|\d+(\.\d+)?s", text) is not None,
    message="must be a number of calls (10) or of seconds (60s)",
)
EXIT_PREEMPTED = 75


class Trained(NamedTuple):
    """What training leaves: the state on one device, the metrics of every call, and what it cost.

    A row of `history` has `seconds` besides, those of training so far. A finished phase that was restored
    has compiled nothing.
    """

    state: Any
    history: list[dict[str, float]]
    compile_seconds: float
    train_seconds: float


def train(
    call: Callable[..., tuple[Any, dict[str, jax.Array]]],
    state: Any,
    key: jax.Array,
    *,
    label: str,
    calls: int,
    configuration: Mapping[str, Any],
    seconds: float | None = None,
    prepare: Callable[[Any, float], Any] = lambda state, done: state,
    feed: Callable[[int], tuple[Any, ...]] = lambda index: (),
    layout: Any = training.WHOLE,
    feed_layout: Any = training.SPLIT,
    shown: Mapping[str, str] | None = None,
) -> Trained:
    """Run `state, metrics = call(key, state, *feed(n))`, on all devices, so many times, or for so long.

    Args:
      call: pure; metrics are scalars.
      state: to start from; it stays the caller's own.
      key: call number n gets `fold_in(key, n)`.
      label: of the bar, and of this phase's folder in --checkpoint_dir.
      calls: how many.
      configuration: what defines the run, to be the same when it is resumed.
      seconds: how long instead, over all resumed parts.
      prepare: `state = prepare(state, done)` before each call, done the fraction that is behind.
      feed: further arguments of call number n, such as batches that the host reads; of one shape.
      layout: of the state on the mesh of all devices, as for `egm.training.jit_step`.
      feed_layout: of the further arguments, likewise.
      shown: what the bar shows: metrics by their titles; the loss by default.

    Raises:
      SystemExit: with status 75, after SIGTERM and a checkpoint.
      ValueError: --checkpoint_dir holds something and --resume is not given, or another configuration.
    """
    shown = {"loss": "loss"} if shown is None else shown
    compile_start = time.time()
    mesh = cluster.mesh()
    # Copies, so that the caller's arrays stay its own where the first call donates.
    key, state = training.put(key, mesh), training.put(state, mesh, layout)
    step = training.jit_step(call, mesh, state=layout, batch=feed_layout, donate=True)
    lowered = step.lower(key, state, *feed(0))
    history = {name: [] for name in (*sorted(lowered.out_info[1]), "seconds")}
    spent, compile_seconds, stop = 0.0, 0.0, False

    def done():
        return len(history["seconds"]) / calls if seconds is None else spent / seconds

    configuration = dict(configuration) | {"label": label, "calls": calls, "seconds": seconds}
    with _Saver(label, configuration) as saver:
        state, key, history = saver.restore(state, key, history)
        spent = history["seconds"][-1] if history["seconds"] else 0.0
        if done() < 1.0:
            run = lowered.compile()
            compile_seconds = time.time() - compile_start
            stop, spent = saver.agree(spent)
        start, bar_format = time.time() - spent, "{l_bar}{bar}| {elapsed}{postfix}"
        percent = lambda: min(100, int(100 * done()))
        with tqdm.tqdm(
            total=100, initial=percent(), desc=label, bar_format=bar_format, disable=not is_main()
        ) as bar:
            while done() < 1.0 and not stop:
                index = len(history["seconds"])
                state, metrics = run(jax.random.fold_in(key, index), prepare(state, done()), *feed(index))
                for name, value in jax.device_get(metrics).items():
                    history[name].append(float(value))
                stop, spent = saver.agree(time.time() - start)
                history["seconds"].append(spent)
                bar.n = percent()
                bar.set_postfix({title: f"{history[name][-1]:.3f}" for title, name in shown.items()})
                saver.after_call(state, key, history, last=stop or done() >= 1.0)
    stop = saver.agree(spent)[0]
    if stop:
        say(f"{label}: SIGTERM at {100 * done():.0f}%: saved for --resume, exit status {EXIT_PREEMPTED}.")
        raise SystemExit(EXIT_PREEMPTED)
    rows = [dict(zip(history, values, strict=True)) for values in zip(*history.values(), strict=True)]
    return Trained(cluster.local(state), rows, compile_seconds, spent)


class _Saver:
    """Checkpoints of a phase as the flags say, and SIGTERM; without --checkpoint_dir it does nothing."""

    def __init__(self, label: str, configuration: Mapping[str, Any]):
        self._label, self._configuration = label, configuration
        self._asked, self._checkpoints, self._saved_at = False, None, 0.0

    def __enter__(self):
        if not CHECKPOINT_DIR.value:
            if RESUME.value:
                raise ValueError("--resume needs --checkpoint_dir")
            return self
        # orbax tells every step of a save at the level that app.run switches on.
        if logging.get_verbosity() == logging.INFO:
            logging.set_verbosity(logging.WARNING)
        folder = epath.Path(CHECKPOINT_DIR.value) / re.sub(r"\W+", "_", self._label)
        # One process looks, before any of them writes.
        if _largest(not RESUME.value and is_main() and folder.exists() and any(folder.iterdir())):
            raise ValueError(
                f"--checkpoint_dir {folder} is not empty: give --resume to go on from it, or another folder"
            )
        self._checkpoints = checkpoint.Checkpoints(folder, self._configuration)
        # After jax.distributed.initialize, which has a handler of its own.
        self._old_handler = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, kind, *_):
        if self._checkpoints is None:
            return
        # Where this process fails, another may be gone: nothing to wait for together.
        if kind is None or jax.process_count() == 1:
            self._checkpoints.close()
        signal.signal(signal.SIGTERM, self._old_handler)

    def _ask(self, *_):
        self._asked = True

    def restore(self, state: Any, key: jax.Array, history: dict[str, list[float]]) -> tuple[Any, ...]:
        """The newest state, key and history, or those given where there is none."""
        if self._checkpoints is None:
            return state, key, history
        index = self._checkpoints.latest
        if index is None:
            if RESUME.value:
                say(f"{self._label}: no checkpoint to resume from, training starts from scratch.")
            return state, key, history
        # As many rows as calls.
        like = {"state": state, "key": key, "history": {name: np.zeros(index) for name in history}}
        found = self._checkpoints.restore(like)
        rows = {name: found["history"][name].tolist() for name in history}
        self._saved_at = rows["seconds"][-1]
        say(f"{self._label}: resumed after call {index}.")
        return found["state"], found["key"], rows

    def agree(self, spent: float) -> tuple[bool, float]:
        """(whether to stop, seconds of training so far), the same on every process."""
        stop, spent = _largest([self._asked, spent])
        return bool(stop), float(spent)

    def after_call(self, state: Any, key: jax.Array, history: dict[str, list[float]], last: bool) -> None:
        """Save where it is time to."""
        if self._checkpoints is None:
            return
        every, index, spent = CHECKPOINT_EVERY.value, len(history["seconds"]), history["seconds"][-1]
        if every.endswith("s"):
            due = spent - self._saved_at >= float(every[:-1])
        else:
            due = index % int(every) == 0
        if due or last:
            rows = {name: np.array(values) for name, values in history.items()}
            self._checkpoints.save(index, {"state": state, "key": key, "history": rows})
            self._saved_at = spent


def _largest(values: Any) -> np.ndarray:
    """The largest of the processes' values, element by element."""
    values = np.asarray(values, np.float64)
    if jax.process_count() == 1:
        return values
    # As bytes: without x64 the exchange would round float64.
    rows = multihost_utils.process_allgather(np.atleast_1d(values).view(np.uint8))
    return np.ascontiguousarray(rows).view(np.float64).max(axis=0).reshape(values.shape)


def values(*holders: flags.FlagHolder) -> dict[str, Any]:
    """Flags by name, for a `configuration`."""
    return {holder.name: holder.value for holder in holders}


def say(text: str) -> None:
    """Print on one process."""
    if is_main():
        print(text, flush=True)
