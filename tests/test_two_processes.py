"""Two processes over loopback, two CPU devices each: the numbers of one, and what happens when one dies.

Collectives go through gloo, as between the hosts of a cluster.
"""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import two_process_worker

from egm import devices

HERE = pathlib.Path(__file__).resolve().parent / "support"
ROOT = HERE.parents[1]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def processes(folder, command, environment=()):
    """Two of them, `command(process_id)` each, with their output in files; none outlives the block."""
    flags = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path} | dict(environment)
    with contextlib.ExitStack() as stack:
        started = []
        for i in range(2):
            out = stack.enter_context(open(folder / f"{i}.log", "w"))
            args = [sys.executable, *map(str, command(i))]
            started.append(subprocess.Popen(args, env=env, stdout=out, stderr=subprocess.STDOUT))
        try:
            yield started
        finally:
            for process in started:
                if process.poll() is None:
                    process.kill()
                process.wait()


def said(folder):
    return "\n".join(f"--- {i}\n{(folder / f'{i}.log').read_text()[-3000:]}" for i in range(2))


def test_two_processes_train_as_one(tmp_path):
    """50 steps of each: losses to 1e-3 and parameters to 1e-2 (float32 through Adam, 250 gradient steps)."""
    address, out = f"localhost:{free_port()}", tmp_path / "out.npz"
    command = lambda i: [HERE / "two_process_worker.py", out, 50, address, 2, i]
    with processes(tmp_path, command) as started:
        expected = two_process_worker.train_all(devices.data_mesh(jax.devices()[:4]), 50)
        for process in started:
            assert process.wait(timeout=600) == 0, said(tmp_path)
    came = np.load(out)
    assert came["devices"] == expected["devices"] == 4
    assert set(came) == set(expected)
    for name, value in expected.items():
        tolerance = 1e-3 if name.endswith("losses") else 1e-2
        np.testing.assert_allclose(came[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.slow
def test_one_of_two_is_killed(tmp_path):
    """The other ends within a minute, with status 69 and a sentence; both again go on from the checkpoint."""
    checkpoints, out = tmp_path / "checkpoints", tmp_path / "out"
    cache = {"JAX_COMPILATION_CACHE_DIR": tmp_path / "cache", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": 0}
    cache = {name: str(value) for name, value in cache.items()}

    def command(*more):
        address = f"--coordinator=localhost:{free_port()}"
        return lambda i: [
            *[ROOT / "examples" / "ising.py", "--side=3", "--iterations=12", "--checkpoint_every=2"],
            *[f"--checkpoint_dir={checkpoints}", f"--output_dir={out}", address],
            *["--num_processes=2", f"--process_id={i}", *more],
        ]

    for killed in (1, 0):
        with processes(tmp_path, command("--resume"), cache) as started:
            before, deadline = steps(checkpoints), time.time() + 400
            while steps(checkpoints) <= before:
                assert time.time() < deadline, said(tmp_path)
                assert all(process.poll() is None for process in started), said(tmp_path)
                time.sleep(0.2)
            started[killed].send_signal(signal.SIGKILL)
            other = started[1 - killed]
            start = time.time()
            status = other.wait(timeout=60)
            print(f"killed {killed}: the other left with {status} after {time.time() - start:.1f} s")
            log = (tmp_path / f"{1 - killed}.log").read_text()
            assert status == 69, said(tmp_path)
            assert "another process seems to have ended. Start all of them again, with --resume" in log, log
            assert steps(checkpoints) < 12
    with processes(tmp_path, command("--resume"), cache) as started:
        for process in started:
            assert process.wait(timeout=600) == 0, said(tmp_path)
    assert "resumed after call" in (tmp_path / "0.log").read_text()
    # Only process 0 speaks and writes.
    assert "W1 of the energy" not in (tmp_path / "1.log").read_text()
    results = json.loads((out / "results.json").read_text())
    assert results["iterations"] == 12
    assert abs(results["log_z"] - results["log_z_exact"]) < 5 * results["log_z_error"]


def steps(folder):
    """The number of the newest complete checkpoint, 0 where there is none."""
    found = [int(p.name) for p in folder.glob("sampler/*") if p.name.isdigit()]
    return max(found, default=0)
