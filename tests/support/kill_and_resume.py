"""Kill a training run again and again, resume it each time, and compare it with one that nobody disturbed.

python tests/support/kill_and_resume.py --kills=20        # about five minutes; status 0 where all agrees

A small Ising sampler is trained by examples/ising.py, a checkpoint after every call. It is killed (SIGKILL)
at random moments: while it starts, while it trains, and while a checkpoint is being written. Every resumed
run must start from the newest complete checkpoint. Before that one SIGTERM, to a run that would not have
saved by itself, must save and leave with status 75. In the end every array of the last checkpoint
(parameters, EMA, optimiser, buffer, key, metrics) must equal that of the undisturbed run, bit for bit; only
the seconds may differ.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXIT_PREEMPTED = 75
LIMIT = 180.0
"""Seconds that a run may take to do what is waited for."""


def worker(arguments: list[str]) -> None:
    """examples/ising.py with less work in an iteration, and without its report."""
    sys.path.insert(0, str(ROOT / "examples"))
    import types

    sys.modules["reports.ising"] = types.SimpleNamespace(report=lambda *args: print("finished"))
    import ising
    from absl import app

    from egm import iteration

    def settings(side, algorithm, num_times):
        sizes = dict(num_simulated=64, buffer_size=320, num_gradient_steps=10, batch_size=32)
        return iteration.IterationConfig(**sizes, num_times=num_times), 4e-3, 1

    assert callable(ising.lattices.settings)
    ising.lattices.settings = settings
    app.run(ising.main, argv=["ising", *arguments])


class Interrupted(NamedTuple):
    """One interruption, the exit status, and what it left.

    Attributes:
      moment: what the run was doing.
      status: of the process, minus the signal where one ended it.
      resumed: the call that the run went on from, None for a start from scratch.
      newest: the newest complete checkpoint afterwards, None for none.
      unfinished: whether a checkpoint that was being written was left.
    """

    moment: str
    status: int
    resumed: int | None
    newest: int | None
    unfinished: bool


class Runs:
    """Runs of the worker in one folder of checkpoints."""

    def __init__(self, folder: pathlib.Path, cache: pathlib.Path, calls: int):
        self.folder, self.calls = folder / "sampler", calls
        self._arguments = ["--side=3", f"--iterations={calls}", f"--checkpoint_dir={folder}", "--resume"]
        # One device; compiled once, then read from the cache by the runs that follow.
        self._environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }

    @contextlib.contextmanager
    def start(self, every: str = "1"):
        """(process, file of its output), the process gone afterwards whatever happens."""
        command = [sys.executable, __file__, "--worker", *self._arguments, f"--checkpoint_every={every}"]
        with tempfile.NamedTemporaryFile("r", suffix=".log") as output:
            process = subprocess.Popen(
                command, env=self._environment, stdout=output.fileno(), stderr=subprocess.STDOUT
            )
            try:
                yield process, pathlib.Path(output.name)
            finally:
                process.kill()
                process.wait()

    def complete(self) -> list[int]:
        """The steps of the complete checkpoints: those under their final names."""
        names = os.listdir(self.folder) if self.folder.exists() else []
        return sorted(int(name) for name in names if name.isdigit())

    def unfinished(self) -> set[tuple[str, int]]:
        """Name and inode of everything that is no complete checkpoint."""
        found = set()
        with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
            for entry in os.scandir(self.folder):
                if not entry.name.isdigit():
                    found.add((entry.name, entry.inode()))
        return found

    def finish(self) -> str:
        """Run to the end; what it printed."""
        with self.start() as (process, output):
            status = process.wait(LIMIT)
            text = output.read_text()
        if status != 0:
            raise RuntimeError(f"a run ended with status {status}:\n{text}")
        return text

    def interrupt(self, moment: str, rng: random.Random) -> Interrupted:
        """Start a run and kill it while "starting", "training" or "writing", or send it "SIGTERM"."""
        old, left, new = max(self.complete(), default=0), self.unfinished(), rng.randint(1, 3)
        terminate = moment == "SIGTERM"
        with self.start("1000" if terminate else "1") as (process, output):

            def reached():
                if terminate:
                    return "loss=" in output.read_text()
                made = sum(step > old for step in self.complete())
                if moment == "training":
                    return made >= new
                return made >= new - 1 and bool(self.unfinished() - left)

            start = time.time()
            longest = rng.uniform(0.0, 6.0) if moment == "starting" else LIMIT
            while process.poll() is None and time.time() - start < longest:
                if moment != "starting" and reached():
                    break
                time.sleep(0.002)
            time.sleep(rng.uniform(0.0, 0.05 if moment == "writing" else 0.3))
            process.send_signal(signal.SIGTERM if terminate else signal.SIGKILL)
            status = process.wait(LIMIT)
            resumed = re.search(r"resumed after call (\d+)", output.read_text())
        newest = max(self.complete(), default=None)
        return Interrupted(
            moment, status, int(resumed[1]) if resumed else None, newest, bool(self.unfinished() - left)
        )


def arrays(runs: Runs) -> dict[str, bytes]:
    """Every array of the last checkpoint as bytes, with its dtype and shape; not the seconds."""
    from orbax.checkpoint import v1 as ocp

    stored = ocp.load_checkpointables(runs.folder / str(runs.calls), {"state": None})["state"]
    import numpy as np

    values = {name: np.asarray(value) for name, value in stored.items() if name != "history.seconds"}
    return {name: f"{v.dtype} {v.shape} ".encode() + v.tobytes() for name, v in values.items()}


def check(kills: int, folder: pathlib.Path, seed: int = 0) -> tuple[list[Interrupted], list[str]]:
    """Run, kill, resume and compare; the interruptions and what went wrong."""
    rng, wrong, done = random.Random(seed), [], []
    calls = 6 * kills + 6
    whole = Runs(folder / "whole", folder / "cache", calls)
    print(whole.finish().splitlines()[-1], f"the undisturbed run of {calls} calls", flush=True)
    runs = Runs(folder / "killed", folder / "cache", calls)
    moments = [["writing", "training", "writing", "starting"][i % 4] for i in range(kills)]
    rng.shuffle(moments)
    for number, moment in enumerate(["SIGTERM", *moments]):
        expected = max(runs.complete(), default=None)
        one = runs.interrupt(moment, rng)
        print(f"{number}: {one}", flush=True)
        status = EXIT_PREEMPTED if moment == "SIGTERM" else -signal.SIGKILL
        if one.status != status:
            wrong.append(f"interruption {number} ended with status {one.status}, not {status}")
        # A run killed while it started has not said what it resumed.
        if one.resumed != expected and not (moment == "starting" and one.resumed is None):
            wrong.append(f"interruption {number} resumed after {one.resumed}, the newest was {expected}")
        if moment == "SIGTERM" and one.newest is None:
            wrong.append("SIGTERM left no checkpoint")
        done.append(one)
    runs.finish()
    a, b = arrays(whole), arrays(runs)
    wrong += [f"{name} differs" for name in sorted(a.keys() | b.keys()) if a.get(name) != b.get(name)]
    print(f"{len(a)} arrays compared, {sum(map(len, a.values()))} bytes")
    return done, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        done, wrong = check(arguments.kills, pathlib.Path(folder), arguments.seed)
    left = sum(one.unfinished for one in done)
    print(f"{len(done)} interruptions in {time.time() - start:.0f} s, {left} left an unfinished checkpoint")
    print("\n".join(wrong) if wrong else "equal to the undisturbed run, bit for bit")
    return bool(wrong)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(sys.argv[2:])
    else:
        sys.exit(main())
