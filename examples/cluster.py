"""One training on several processes: how they join, the mesh of all their devices, and how they end.

Slurm, TPU pods, GKE and Open MPI are detected; by hand it is one command a process:
python examples/ising.py --coordinator=localhost:9911 --num_processes=2 --process_id=0 &
python examples/ising.py --coordinator=localhost:9911 --num_processes=2 --process_id=1
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from egm import training

COORDINATOR = flags.DEFINE_string("coordinator", None, "Address of process 0, host:port, the same for all.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.", 1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", 0)

EXIT_LOST = 69
"""`EX_UNAVAILABLE` of sysexits.h: another process has ended; restart all of them with --resume."""

HEARTBEAT_SECONDS = 30
"""Silence after which a process counts as lost; a closed connection shows at once."""

REPORT_SECONDS = 3600
"""How long the other processes wait at the end, while process 0 makes tables and pictures."""


def run(main: Callable[[list[str]], Any]) -> None:
    """`app.run(main)` on every process: joined before, and none left waiting for one that failed."""

    def joined(argv):
        start()
        try:
            return main(argv)
        except Exception as error:
            if jax.process_count() == 1:
                raise
            traceback.print_exc()
            # An orderly exit would wait for the others, who wait for this one.
            _leave(EXIT_LOST if isinstance(error, jax.errors.JaxRuntimeError) else 1)

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
    return training.data_mesh()


def local(tree: Any) -> Any:
    """The arrays whole, on this process's first device."""
    whole = jax.jit(lambda t: t, out_shardings=NamedSharding(mesh(), P()))(tree)
    return jax.tree.map(lambda x: x.addressable_data(0), whole)


def _leave(status: int) -> None:
    if status == EXIT_LOST:
        print(
            f"process {jax.process_index()} of {jax.process_count()}: another process has ended. Start all "
            "of them again, with --resume to go on from the last checkpoint.",
            file=sys.stderr,
        )
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
