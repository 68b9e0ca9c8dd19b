"""README.md does what it says: its Python blocks run, and the files that it names are there."""

import pathlib
import re
import shlex
import tomllib

import jax
import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TEXT = README.read_text() if README.exists() else ""
SUFFIXES = {".py", ".sh", ".md", ".txt", ".toml", ".ipynb"}
"""A word of a command with one of these endings names a file of the repository."""


def blocks(text, *languages):
    """(line of the first line of code, code) for every fenced block in one of the languages."""
    fence = rf"^```(?:{'|'.join(languages)})[^\n]*\n(.*?)^```"
    found = re.finditer(fence, text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, m.start(1)) + 1, m.group(1)) for m in found]


def commands(text):
    """The commands of the shell blocks, each a list of words, comments and prompts removed."""
    for _, code in blocks(text, "bash", "sh", "shell", "console"):
        for line in code.replace("\\\n", " ").splitlines():
            line = line.removeprefix("$ ")
            if line.strip():
                yield shlex.split(line, comments=True)


def named_files(words):
    """The words of a command that name a file of the repository, not one that it writes (--x=y)."""
    for word in words:
        path = pathlib.PurePosixPath(word.split("::")[0])
        if word.startswith(("-", "/", "~", "$", ".venv")) or "://" in word or "=" in word:
            continue
        first = path.parts[0] if path.parts else ""
        in_a_folder = len(path.parts) > 1 and first != "results"
        if path.suffix in SUFFIXES or in_a_folder:
            yield str(path)


# Without a README (or without code in it) there is one case, which fails.
PYTHON = blocks(TEXT, "python") or [None]


SHORTER = {"iterations=12": "iterations=2", "steps=800": "steps=200"}
"""The programs train for a minute; that they run is seen from less."""


@pytest.mark.parametrize("short", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_python_block_runs(index, short, tmp_path, monkeypatch):
    assert PYTHON[index] is not None, f"{README} is missing or shows no ```python block"
    line, code = PYTHON[index]
    monkeypatch.chdir(tmp_path)
    for whole, less in SHORTER.items() if short else ():
        code = code.replace(whole, less)
    # Blank lines in front, so that a traceback shows the README's own line numbers.
    program = compile("\n" * (line - 1) + code, str(README), "exec")
    # A reader has jax's default, not the strict setting of conftest.py.
    with jax.numpy_rank_promotion("allow"):
        exec(program, {"__name__": "__main__"})


def test_it_is_read_at_one_sitting():
    assert 0 < len(TEXT.splitlines()) <= 120


def test_commands_name_files_that_exist():
    found = list(commands(TEXT))
    assert found, f"{README} is missing or shows no ```bash block"
    missing = [f for words in found for f in named_files(words) if not (ROOT / f).exists()]
    assert not missing, f"README.md names files that are not there: {missing}"


def test_installed_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    words = " ".join(word for words in commands(TEXT) for word in words)
    named = re.findall(r"(?:\.|\benergymatch)\[([\w,-]+)\]", words)
    extras = {extra.strip() for group in named for extra in group.split(",")}
    assert extras, f"{README} is missing or installs no extra"
    assert extras <= set(project["optional-dependencies"]), extras


BY_HAND = blocks((ROOT / "docs" / "by_hand.md").read_text(), "python")


@pytest.mark.slow
@pytest.mark.parametrize("index", range(4))
def test_a_program_of_the_page_for_own_loops_runs(index, tmp_path, monkeypatch):
    line, code = BY_HAND[index]
    monkeypatch.chdir(tmp_path)
    program = compile("\n" * (line - 1) + code, "by_hand.md", "exec")
    with jax.numpy_rank_promotion("allow"):
        exec(program, {"__name__": "__main__"})


def test_relative_links_exist():
    assert TEXT, f"{README} is missing"
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)|(?:src|href)=\"([^\"#]+)", TEXT)
    links = {a or b for a, b in targets}
    missing = sorted(x for x in links if ":" not in x and not (ROOT / x).exists())
    assert not missing, f"README.md links to files that are not there: {missing}"


def test_reads_blocks_and_commands():
    text = (
        "a\n```python\nx = 1\n```\nb\n```bash\n"
        '$ pip install -e ".[test]"  # once\n'
        "python examples/a.py \\\n  --output_dir=results/a data.py\n"
        ". .venv/bin/activate && .ci/run\n```\n"
    )
    assert blocks(text, "python") == [(3, "x = 1\n")]
    assert [f for words in commands(text) for f in named_files(words)] == [
        "examples/a.py",
        "data.py",
        ".ci/run",
    ]
