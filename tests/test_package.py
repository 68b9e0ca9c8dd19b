"""What a user meets before the first call: the version, the names, and what an import costs."""

import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

import egm
import energymatch

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEAVY = ("optax", "flax", "orbax", "chex", "scipy", "matplotlib", "sklearn", "tqdm", "torch", "pandas")
"""What `import egm, energymatch` leaves to the call that needs it."""


def test_one_version_everywhere():
    version = egm.__version__
    assert energymatch.__version__ == version == importlib.metadata.version("energymatch")
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("package", ["egm", "energymatch"])
def test_import_leaves_the_heavy_ones_out(package):
    code = f"import jax, sys; old = set(sys.modules); import {package}; print(*(set(sys.modules) - old))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name.split(".")[0] for name in done.stdout.split()}
    assert not new & set(HEAVY), sorted(new & set(HEAVY))


@pytest.mark.parametrize("package", [egm, energymatch])
def test_every_name_that_is_shown_is_there(package):
    shown = set(dir(package))
    assert set(package.__all__) <= shown
    assert package.__all__ == list(dict.fromkeys(package.__all__))
    assert all(getattr(package, name) is not None for name in shown)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name
