"""The pages of the tutorials are those of their scripts, and (slow) say what the scripts print today.

What a tutorial claims about exact values it asserts itself; here its page is held against it.
"""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNNER = ROOT / "docs" / "support" / "tutorials.py"
FOLDER = ROOT / "docs" / "tutorials"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
PICTURE = re.compile(r"^!\[([^\]]*)\]\(([^)]*)\)\n*", re.MULTILINE)
PRINTED = re.compile(r"^```text\n.*?\n```\n*", re.MULTILINE | re.DOTALL)


def runner():
    spec = importlib.util.spec_from_file_location("tutorials", RUNNER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


NAMES = runner().names()


def read(name, suffix):
    return (FOLDER / f"{name}{suffix}").read_text()


def agree(expected, found):
    """The same words, and numbers that a reader would call the same: within .1 and a tenth of them."""
    words = [NUMBER.sub("#", " ".join(text.split())) for text in (expected, found)]
    assert words[0] == words[1]
    for a, b in zip(NUMBER.findall(expected), NUMBER.findall(found), strict=True):
        assert abs(float(a) - float(b)) <= 0.1 + 0.1 * abs(float(a)), (expected, found)


def test_there_are_tutorials():
    assert {"own_loop", "table"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_that_of_its_script(name):
    """All words and all code; what is printed and drawn is left out here."""
    tutorials, script, markdown = runner(), read(name, ".py"), read(name, ".md")
    nothing = [("", ())] * len(tutorials.cells(script))
    bare = PICTURE.sub("", PRINTED.sub("", markdown))
    assert bare.strip() == tutorials.page(name, script, nothing).strip(), (
        f"python docs/support/tutorials.py {name} writes the page anew"
    )
    assert tutorials.printed(markdown), "a tutorial shows what it prints"
    pictures = PICTURE.findall(markdown)
    assert pictures and all(text and (FOLDER / file).stat().st_size > 2000 for text, file in pictures)
    assert f"tutorials/{name}.md" in (ROOT / "mkdocs.yml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_script_prints_what_its_page_says(name):
    """In an interpreter of its own, with the settings that a reader has: some thirty seconds on two cores."""
    code = (
        "import json, matplotlib, pathlib, sys; matplotlib.use('Agg'); sys.path.insert(0, sys.argv[1]); "
        "import tutorials; script = pathlib.Path(sys.argv[2]).read_text(); "
        "said = tutorials.run(script, lambda n, figure: None); "
        "print(json.dumps([text for text, _ in said if text]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(RUNNER.parent), str(FOLDER / f"{name}.py")],
        capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = runner().printed(read(name, ".md")), json.loads(done.stdout.splitlines()[-1])
    assert len(expected) == len(found)
    for a, b in zip(expected, found, strict=True):
        agree(a, b)


def test_numbers_that_differ_are_told():
    agree("ESS 0.92, log Z 3.40\n  a", "ESS 0.88, log Z 3.45  a")
    for other in ("ESS 0.5", "Ess 0.92", "ESS 0.92 1"):
        with pytest.raises(AssertionError):
            agree("ESS 0.92", other)
