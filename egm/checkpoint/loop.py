"""A training loop for any pure step: on all devices, resumable bit for bit, and stopped in order.

`run` compiles `state, metrics = call(key, state, *feed(n))` once and repeats it. Call number n gets
`fold_in(key, n)`, so that a resumed run draws what an uninterrupted one would have drawn. SIGTERM finishes
the present call, saves, and returns with `stopped`. The loop knows no flags and prints nothing: `on_call` is
told of every call.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from egm import checks, devices
from egm.checkpoint.folder import Checkpoints
from egm.typing import Key, PyTree

__all__ = ["Call", "Run", "run"]


class Call(NamedTuple):
    """What `on_call` is told after each call of the step.

    Attributes:
      index: how many calls are behind, resumed ones included.
      done: the fraction of the run that is behind, at most 1.
      seconds: of training so far, over all resumed parts.
      metrics: this call's, as Python floats.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    done: float
    seconds: float
    metrics: Mapping[str, float]


class Run(NamedTuple):
    """What `run` returns.

    Attributes:
      state: the last state, whole on this process's first device.
      history: the metrics of every call by name, and its `seconds`, [calls] float64 each.
      seconds: of training, over all resumed parts.
      compile_seconds: of this part; 0 where a finished run was only restored.
      resumed: the call that a checkpoint was restored from, 0 for none.
      stopped: whether SIGTERM ended it before the last call (a checkpoint was saved where there is a folder).
    """

    state: Any
    history: dict[str, np.ndarray]
    seconds: float
    compile_seconds: float
    resumed: int
    stopped: bool


def run(
    call: Callable[..., tuple[Any, dict[str, jax.Array]]],
    state: PyTree,
    key: Key,
    *,
    calls: int,
    seconds: float | None = None,
    checkpoints: Checkpoints | None = None,
    save_every: int | None = None,
    save_seconds: float = 60.0,
    prepare: Callable[[Any, float], Any] | None = None,
    feed: Callable[[int], tuple[Any, ...]] | None = None,
    on_call: Callable[[Call], None] | None = None,
    mesh: Mesh | None = None,
    layout: Any = devices.WHOLE,
    feed_layout: Any = devices.SPLIT,
) -> Run:
    """Repeat a training step on all devices, from the newest checkpoint where there is one.

    Args:
      call: `state, metrics = call(key, state, *feed(n))`, pure; metrics are scalars. A step of
        `make_iteration`, or of `make_matching` with a scan (`egm.training.scan_steps`).
      state: to start from; it stays the caller's own.
      key: one key; call number n gets `fold_in(key, n)`.
      calls: how many.
      seconds: how long instead, over all resumed parts; `calls` then only names the run.
      checkpoints: an open folder; None keeps none.
      save_every: save after so many calls; None goes by `save_seconds`. The last call is always saved.
      save_seconds: save after so many seconds of training.
      prepare: `state = prepare(state, done)` before each call, done the fraction that is behind.
      feed: further arguments of call number n, such as batches that the host reads; of one shape.
      on_call: told of every call, on every process.
      mesh: by default all devices of all processes along the axis "data".
      layout: of the state on the mesh, as for `egm.devices.jit_step`.
      feed_layout: of the further arguments, likewise.

    Returns:
      Run.

    Raises:
      TypeError, ValueError: an argument has a wrong type or value, or the checkpoints do not fit.
    """
    _check_run(call, calls, seconds, save_every, save_seconds)
    feed = feed or (lambda index: ())
    mesh = devices.data_mesh() if mesh is None else mesh
    began = time.time()
    # Copies, so that the caller's arrays stay its own where the first call donates.
    key, state = devices.put(key, mesh), devices.put(state, mesh, layout)
    step: Any = devices.jit_step(call, mesh, state=layout, batch=feed_layout, donate=True)
    lowered = step.lower(key, state, *feed(0))
    history = {name: [] for name in (*sorted(lowered.out_info[1]), "seconds")}
    state, key, history, resumed = _restore(checkpoints, state, key, history)
    clock = _Clock(calls, seconds, history["seconds"])
    compile_seconds, compiled = 0.0, None
    with _asked_to_stop(checkpoints is not None) as asked:
        if clock.done < 1:
            compiled = lowered.compile()
            compile_seconds = time.time() - began
        stop = clock.start(asked)
        saved_at = clock.spent
        while compiled is not None and clock.done < 1 and not stop:
            index = len(history["seconds"])
            ready = state if prepare is None else prepare(state, clock.done)
            state, metrics = compiled(jax.random.fold_in(key, index), ready, *feed(index))
            now = {name: float(value) for name, value in jax.device_get(metrics).items()}
            stop = clock.tick(asked)
            for name, value in (now | {"seconds": clock.spent}).items():
                history[name].append(value)
            if on_call is not None:
                on_call(Call(index + 1, clock.done, clock.spent, now))
            due = (index + 1) % save_every == 0 if save_every else clock.spent - saved_at >= save_seconds
            if checkpoints is not None and (due or stop or clock.done >= 1):
                checkpoints.save(index + 1, {"state": state, "key": key, "history": _arrays(history)})
                saved_at = clock.spent
    return Run(
        _local(state, mesh), _arrays(history), clock.spent, compile_seconds, resumed, stop and clock.done < 1
    )


def _check_run(
    call: Any, calls: int, seconds: float | None, save_every: int | None, save_seconds: float
) -> None:
    checks.function(call, "call")
    checks.positive_int(calls, "calls")
    if seconds is not None:
        checks.positive_float(seconds, "seconds")
    if save_every is not None:
        checks.positive_int(save_every, "save_every")
    checks.positive_float(save_seconds, "save_seconds", allow_zero=True)


def _arrays(history: dict[str, list]) -> dict[str, np.ndarray]:
    return {name: np.array(values) for name, values in history.items()}


class _Clock:
    """How far a run is, the same on every process."""

    def __init__(self, calls: int, limit: float | None, seconds: list[float]):
        self._calls, self._limit = calls, limit
        self._count, self.spent = len(seconds), (seconds[-1] if seconds else 0.0)

    @property
    def done(self) -> float:
        return min(1.0, self._count / self._calls if self._limit is None else self.spent / self._limit)

    def start(self, asked: list[bool]) -> bool:
        """Go on from what was spent; whether to stop at once."""
        stop, self.spent = _agree(bool(asked), self.spent)
        self._zero = time.time() - self.spent
        return stop

    def tick(self, asked: list[bool]) -> bool:
        """One call is behind; whether any process was asked to stop."""
        self._count += 1
        stop, self.spent = _agree(bool(asked), time.time() - self._zero)
        return stop


def _restore(checkpoints: Checkpoints | None, state: Any, key: Key, history: dict[str, list]) -> tuple:
    """(state, key, history, number of calls behind) of the newest checkpoint, or as they were given."""
    index = None if checkpoints is None else checkpoints.latest
    if checkpoints is None or index is None:
        return state, key, history, 0
    # As many rows as calls.
    like = {"state": state, "key": key, "history": {name: np.zeros(index) for name in history}}
    found = checkpoints.restore(like)
    rows = {name: found["history"][name].tolist() for name in history}
    return found["state"], found["key"], rows, index


@contextlib.contextmanager
def _asked_to_stop(listen: bool) -> Iterator[list[bool]]:
    """A list that is empty until this process gets SIGTERM; what handled it before comes back at the end."""
    asked: list[bool] = []
    if not listen:
        yield asked
        return
    # After jax.distributed.initialize, which has a handler of its own.
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def _agree(stop: bool, spent: float) -> tuple[bool, float]:
    """The largest of the processes' values."""
    if jax.process_count() == 1:
        return stop, spent
    # As bytes: without x64 the exchange would round float64.
    mine = np.array([stop, spent], np.float64)
    rows = np.ascontiguousarray(multihost_utils.process_allgather(mine.view(np.uint8))).view(np.float64)
    return bool(rows[:, 0].max()), float(rows[:, 1].max())


def _local(tree: Any, mesh: Mesh) -> Any:
    """The arrays whole, on this process's first device."""
    whole = jax.jit(lambda t: t, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)
