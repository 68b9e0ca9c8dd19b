"""Targets of the examples that `.ci/run` leaves out, a short run each: slow, since each compiles a minute."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        (["--target=coupled_joint_mixture", "--process=superposition"], {"log_z_exact", "token_max_z"}),
        (["--target=joint_double_well"], {"composition_max_z", "distance_w1"}),
        (["--target=joint_mixture", "--algorithm=bootstrap"], {"log_z_exact"}),
    ],
)
def test_a_target_of_mixed(flags, keys, tmp_path):
    short = ["--iterations=2", "--set_size=200", "--num_times=20", f"--output_dir={tmp_path}"]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / "mixed.py"), *flags, *short]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert keys | {"ess", "log_z", "log_z_error", "energy_w1"} <= set(results)
    assert list(tmp_path.glob("*.png"))
