"""What a user meets before the first call: the version, the names, and what an import costs."""

import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys
import types

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


@pytest.fixture
def hook(monkeypatch):
    """hatch_build.py, whose functions need nothing of hatchling."""
    stand_in = types.SimpleNamespace(MetadataHookInterface=object)
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", stand_in)
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TARGET = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def test_the_description_for_an_index_has_no_target_that_it_cannot_follow(hook):
    text = (ROOT / "README.md").read_text()
    relative = [t for t in TARGET.findall(text) if ":" not in t]
    assert len(relative) > 5 and any(t.endswith(".png") for t in relative)
    assert hook.repository({}) is None
    bare = hook.description(text, None)
    assert all(t.startswith("https://") for t in TARGET.findall(bare))
    assert "![" not in bare and "docs/sampler.md" in bare
    known = hook.repository({"GITHUB_REPOSITORY": "owner/name", "GITHUB_SHA": "0a1b"})
    full = hook.description(text, known)
    for target in relative:
        kind = "raw" if target.endswith(".png") else "blob"
        assert f"](https://github.com/owner/name/{kind}/0a1b/{target})" in full
    assert all(t.startswith("https://") for t in TARGET.findall(full))
    assert CODE.findall(bare) == CODE.findall(full) == CODE.findall(text)


def test_the_description_of_a_small_text(hook):
    text = "a [b](c.md), [d](https://e)\n\n![f](g.png)\n\n```python\nx[0](y)\n```\nh\n"
    assert hook.description(text, None) == "a b, [d](https://e)\n\n```python\nx[0](y)\n```\nh\n"
    assert hook.description(text, ("P/", "F/")) == text.replace("(c.md)", "(P/c.md)").replace(
        "(g.png)", "(F/g.png)"
    )


def test_the_list_of_slow_cases_names_tests_that_there_are():
    lines = (ROOT / "tests" / "slow.txt").read_text().splitlines()
    for line in (line for line in lines if not line.startswith("#")):
        file, name = line.split("::", 1)
        assert f"def {name.split('[')[0]}(" in (ROOT / file).read_text(), line
