"""One training on several processes: how they join, the mesh of all their devices, and how they end.

Slurm, TPU pods, GKE and Open MPI are detected; by hand it is one command a process:
python examples/ising.py --coordinator=localhost:9911 --num_processes=2 --process_id=0 &
python examples/ising.py --coordinator=localhost:9911 --num_processes=2 --process_id=1
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from absl import app, flags
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from egm import devices

COORDINATOR = flags.DEFINE_string("coordinator", None, "Address of process 0, host:port, the same for all.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.", 1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", 0)

EXIT_LOST = 69
"""`EX_UNAVAILABLE` of sysexits.h: another process has ended; restart all of them with --resume."""

LOST = "stopped, as another process seems to have ended. Start all of them again, with --resume."

HEARTBEAT_SECONDS = 30
"""Silence after which a process counts as lost."""

REPORT_SECONDS = 3600
"""How long the other processes wait at the end, while process 0 makes tables and pictures."""


def run(main: Callable[[list[str]], Any]) -> None:
    """`app.run(main)` on every process: joined before, and none left waiting for one that failed."""

    def joined(argv):
        start()
        if jax.process_count() == 1:
            return main(argv)
        who = f"process {jax.process_index()} of {jax.process_count()}"
        _on_abort(who)
        try:
            return main(argv)
        except Exception as error:
            traceback.print_exc()
            # An orderly exit would wait for the others, who wait for this one.
            lost = isinstance(error, jax.errors.JaxRuntimeError)
            _leave(EXIT_LOST if lost else 1, f"{who}: {LOST if lost else 'failed.'}")

    app.run(joined)


def start() -> None:
    """Join the other processes, where there are any. Before anything that asks jax for a device."""
    by_hand = (COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value)
    if None in by_hand and by_hand != (None, None, None):
        raise app.UsageError("--coordinator, --num_processes and --process_id go together")
    # Of no effect but on CPUs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            *by_hand,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=REPORT_SECONDS,
        )
    except ValueError:
        # No cluster that jax knows.
        if COORDINATOR.value is not None:
            raise


def is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


@functools.cache
def mesh() -> Mesh:
    """All devices of all processes along the axis "data"."""
    return devices.data_mesh()


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    if jax.process_count() == 1:
        return bool(flag)
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def _on_abort(who: str) -> None:
    """Leave with a sentence where jax aborts, as it does, without an exception, when another is silent."""
    faulthandler.disable()  # absl's, which would print every thread's stack
    _on_abort.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _leave(EXIT_LOST, f"{who}: {LOST}"))
    # Not `signal.signal`: its handlers run in the main thread, which may be waiting for the others.
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _on_abort.handler)


def _leave(status: int, text: str) -> None:
    os.write(2, f"\n{text}\n".encode())
    os._exit(status)
