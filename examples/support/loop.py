"""The flags and the progress bar of every training example, around `egm.checkpoint.run`.

SIGTERM finishes the present call, saves, and leaves with status 75 (`EX_TEMPFAIL` of sysexits.h: try again,
with --resume).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import tqdm
from absl import flags, logging
from etils import epath
from support import cluster

from egm import checkpoint, devices

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
    prepare: Callable[[Any, float], Any] | None = None,
    feed: Callable[[int], tuple[Any, ...]] | None = None,
    layout: Any = devices.WHOLE,
    feed_layout: Any = devices.SPLIT,
    shown: Mapping[str, str] | None = None,
) -> Trained:
    """`egm.checkpoint.run` as the flags say, with a bar.

    Args:
      label: of the bar, and of this phase's folder in --checkpoint_dir.
      configuration: what defines the run, to be the same when it is resumed.
      shown: what the bar shows: metrics by their titles; the loss by default.
      call, state, key, calls, seconds, prepare, feed, layout, feed_layout: as there.

    Raises:
      SystemExit: with status 75, after SIGTERM and a checkpoint.
      ValueError: --checkpoint_dir holds something and --resume is not given, or another configuration.
    """
    shown = {"loss": "loss"} if shown is None else shown
    configuration = dict(configuration) | {"label": label, "calls": calls, "seconds": seconds}
    every = CHECKPOINT_EVERY.value
    often = {"save_seconds": float(every[:-1])} if every.endswith("s") else {"save_every": int(every)}
    bar_format = "{l_bar}{bar}| {elapsed}{postfix}"
    with (
        _checkpoints(label, configuration) as checkpoints,
        tqdm.tqdm(total=100, desc=label, bar_format=bar_format, disable=not cluster.is_main()) as bar,
    ):

        def on_call(behind: checkpoint.Call) -> None:
            bar.n = int(100 * behind.done)
            bar.set_postfix({title: f"{behind.metrics[name]:.3f}" for title, name in shown.items()})

        if RESUME.value and checkpoints.latest is None:
            say(f"{label}: no checkpoint to resume from, training starts from scratch.")
        elif RESUME.value:
            say(f"{label}: resumed after call {checkpoints.latest}.")
        run = checkpoint.run(
            call, state, key, calls=calls, seconds=seconds, checkpoints=checkpoints, prepare=prepare,
            feed=feed, on_call=on_call, mesh=cluster.mesh(), layout=layout, feed_layout=feed_layout, **often,
        )  # fmt: skip
    if run.stopped:
        done = len(run.history["seconds"]) / calls if seconds is None else run.seconds / seconds
        say(f"{label}: SIGTERM at {100 * done:.0f}%: saved for --resume, exit status {EXIT_PREEMPTED}.")
        raise SystemExit(EXIT_PREEMPTED)
    columns = {name: column.tolist() for name, column in run.history.items()}
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return Trained(run.state, rows, run.compile_seconds, run.seconds)


@contextlib.contextmanager
def _checkpoints(label: str, configuration: Mapping[str, Any]):
    """The open folder of a phase, None without --checkpoint_dir."""
    if not CHECKPOINT_DIR.value:
        if RESUME.value:
            raise ValueError("--resume needs --checkpoint_dir")
        yield None
        return
    # orbax tells every step of a save at the level that app.run switches on.
    if logging.get_verbosity() == logging.INFO:
        logging.set_verbosity(logging.WARNING)
    folder = epath.Path(CHECKPOINT_DIR.value) / re.sub(r"\W+", "_", label)
    # One process looks, before any of them writes.
    if cluster.any_process(
        not RESUME.value and cluster.is_main() and folder.exists() and any(folder.iterdir())
    ):
        raise ValueError(
            f"--checkpoint_dir {folder} is not empty: give --resume to go on from it, or another folder"
        )
    checkpoints = checkpoint.Checkpoints(folder, configuration)
    try:
        yield checkpoints
    except BaseException:
        # Where this process fails, another may be gone: nothing to wait for together.
        if jax.process_count() == 1:
            checkpoints.close()
        raise
    checkpoints.close()


def values(*holders: flags.FlagHolder) -> dict[str, Any]:
    """Flags by name, for a `configuration`."""
    return {holder.name: holder.value for holder in holders}


def say(text: str) -> None:
    """Print on one process."""
    if cluster.is_main():
        print(text, flush=True)
