"""What the trained Ising samplers must reach, by running the example as a user would (`pytest -m slow`)."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).resolve().parents[2] / "examples" / "ising.py"


def run(folder, **flags):
    """The figures of one run with the example's default settings, each flag as --name=value."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, str(EXAMPLE), f"--output_dir={folder}"]
    subprocess.run(
        command + [f"--{k}={v}" for k, v in flags.items()], env=environment, check=True, capture_output=True
    )
    assert (folder / "ising.png").stat().st_size > 10_000
    return json.loads((folder / "results.json").read_text())


def check(results, worst_ratio, quantities):
    for name in quantities:
        assert results[f"{name}_w1"] <= worst_ratio * results[f"{name}_w1_floor"], name
    assert results["ess"] >= 0.9
    assert abs(results["log_z"] - results["log_z_exact"]) < 4 * results["log_z_error"]
    assert results["log_z_error"] <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("algorithm", ["weighted", "local_bootstrap"])
def test_5x5(tmp_path, algorithm, seed):
    results = run(tmp_path, algorithm=algorithm, seed=seed)
    check(results, 1.4, ["energy", "magnetization"])
    assert results["eubo"] - results["elbo"] <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize("inverse_temperature", [0.2, 0.4, 0.4407])
def test_10x10(tmp_path, inverse_temperature):
    check(run(tmp_path, side=10, inverse_temperature=inverse_temperature), 1.7, ["energy"])
