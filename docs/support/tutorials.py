"""Runs the tutorials and writes their pages: python docs/support/tutorials.py [NAME ...]

docs/tutorials/NAME.py, a script in percent format, becomes NAME.md beside it, with what each cell prints,
and its pictures as NAME_1.png and on. A cell is `# %% TITLE` with code, or `# %% [markdown]` with comments
(jupytext and editors read the same); the title of a cell that draws is what the picture shows, in words.
Pages are kept in the repository, since running them takes minutes; `tests/test_tutorials.py` compares them
with the scripts, and (slow) with what the scripts print today.
"""

import contextlib
import io
import pathlib
import re
import sys
from typing import Any, NamedTuple

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "tutorials"


class Cell(NamedTuple):
    """What lies between two marks: a title (of code) or "[markdown]", and its text."""

    title: str
    text: str


def cells(script):
    """The cells of a script."""
    parts = re.split(r"^# %%(.*)\n", script, flags=re.MULTILINE)[1:]
    return [
        Cell(title.strip(), text.strip("\n")) for title, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def is_text(cell):
    return cell.title == "[markdown]"


def prose(cell):
    """The markdown of a cell of comments."""
    return re.sub(r"^# ?", "", cell.text, flags=re.MULTILINE)


def run(script, draw):
    """What each cell prints; `draw(n, pyplot)` is called for every figure, n = 1, 2, ... in order."""
    from matplotlib import pyplot

    known: dict[str, Any] = {"__name__": "__main__"}
    said, drawn = [], 0
    for cell in cells(script):
        out, before = io.StringIO(), drawn
        if not is_text(cell):
            with contextlib.redirect_stdout(out):
                exec(compile(cell.text, cell.title or "cell", "exec"), known)
            for number in pyplot.get_fignums():
                drawn += 1
                draw(drawn, pyplot.figure(number))
            pyplot.close("all")
        said.append((out.getvalue().rstrip(), range(before + 1, drawn + 1)))
    return said


def page(name, script, said):
    """The markdown of a tutorial with what its cells said."""
    blocks = []
    for cell, (text, pictures) in zip(cells(script), said, strict=True):
        blocks.append(prose(cell) if is_text(cell) else f"```python\n{cell.text}\n```")
        if text:
            blocks.append(f"```text\n{text}\n```")
        blocks += [f"![{cell.title}]({name}_{n}.png)" for n in pictures]
    return "\n\n".join(blocks) + "\n"


def printed(markdown):
    """What a page says that its script prints, block by block."""
    return re.findall(r"^```text\n(.*?)\n```$", markdown, re.MULTILINE | re.DOTALL)


def names():
    return sorted(file.stem for file in FOLDER.glob("*.py"))


def main(chosen):
    import matplotlib

    matplotlib.use("Agg")
    for name in chosen or names():
        script = (FOLDER / f"{name}.py").read_text()
        save = lambda n, figure, name=name: figure.savefig(FOLDER / f"{name}_{n}.png", dpi=90)
        (FOLDER / f"{name}.md").write_text(page(name, script, run(script, save)))
        print(f"{name}.md")


if __name__ == "__main__":
    main(sys.argv[1:])
