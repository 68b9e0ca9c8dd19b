"""Hook of mkdocs.yml: a page of reference for every public module, made of its `__all__`, and its place.

`pages()` is what the reference holds, so that a test can ask for each name.
"""

import ast
import importlib
import inspect
import pathlib
import types

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = ("egm", "energymatch")
FIRST = {
    "egm": ("fit", "refine", "Sampler", "Samples"),
    "energymatch": ("fit", "EnergyModel", "EnergyEstimator"),
}
"""What stands first on a package's own page."""
EXAMPLES = """\
The examples run as they stand after

```python
import jax, jax.numpy as jnp, numpy as np
import egm, energymatch
```

where `sampler` and `model` are those of the examples of [egm.fit][] and [energymatch.fit][]. They show how
a call is written: their sizes, trained networks above all, are far too small for use.
"""


def pages():
    """{module: the public names that it shows, modules aside}, the two packages first in their part."""
    found = {}
    for name in PACKAGES:
        package = importlib.import_module(name)
        members = {n: getattr(package, n) for n in dir(package) if not n.startswith("_")}
        modules = {m.__name__ for m in members.values() if isinstance(m, types.ModuleType)}
        modules = {m for m in modules if m.startswith(f"{name}.")} - {"egm.version"}
        # `egm.simulate` is a function, its module has the same name.
        modules |= {f"{name}.{f.stem}" for f in (ROOT / name).glob("[a-z]*.py") if f.stem != "version"}
        for module in (name, *sorted(modules)):
            loaded = importlib.import_module(module)
            shown = [n for n in loaded.__all__ if not n.startswith("_")]
            shown = [n for n in shown if not isinstance(getattr(loaded, n), types.ModuleType)]
            first = [n for n in FIRST.get(module, ()) if n in shown]
            found[module] = first + [n for n in shown if n not in first]
    return found


def said_of(module, name):
    """The docstring under the assignment of a constant or an alias, or nothing."""
    file = pathlib.Path(importlib.import_module(module).__file__ or "")
    files = file.parent.glob("*.py") if file.name == "__init__.py" else [file]
    for source in files:
        body = ast.parse(source.read_text()).body
        for node, after in zip(body, body[1:], strict=False):
            targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
            if name in (ast.unparse(t) for t in targets) and isinstance(after, ast.Expr):
                if isinstance(after.value, ast.Constant):
                    return str(after.value.value)
    return ""


def page(module, names):
    """The text of one page: the module's docstring, then an entry a name."""
    lines = [f"# {module}", "", f"::: {module}"]
    lines += ["    options:", "      members: []", "      show_root_heading: false", ""]
    for name in names:
        value = getattr(importlib.import_module(module), name)
        home = str(getattr(value, "__module__", "")).split(".")[0]
        if home in PACKAGES and (inspect.isclass(value) or inspect.isfunction(value)):
            lines += [f"::: {module}.{name}"]
            if inspect.isclass(value) and issubclass(value, tuple):
                lines += ["    options:", "      inherited_members: false"]
        else:
            lines += [f"## `{module}.{name}` {{#{module}.{name}}}", "", said_of(module, name), ""]
            if isinstance(value, int | float | str | tuple):
                lines += [f"    {value!r}"]
        lines += [""]
    return "\n".join(lines)


def index(found):
    """The page in front of the reference: each module with the first sentence of its docstring."""
    lines = ["# API reference", "", "Every public name of both packages, a page a module.", "", EXAMPLES, ""]
    for package in PACKAGES:
        lines += [f"## {package}", "", "| module | what it holds |", "|---|---|"]
        for module in found:
            if module.split(".")[0] == package:
                text = (importlib.import_module(module).__doc__ or "").strip().split("\n\n")[0]
                text = " ".join(text.split()).replace("|", "\\|")
                lines.append(f"| [{module}]({module}.md) | {text} |")
        lines.append("")
    return "\n".join(lines)


def on_config(config):
    """Puts the pages of the reference into the nav."""
    found = pages()
    parts = [{p: [{m: f"api/{m}.md"} for m in found if m.split(".")[0] == p]} for p in PACKAGES]
    for entry in config["nav"]:
        if "API reference" in entry:
            entry["API reference"] = [{"All modules": "api/index.md"}, *parts]
    return config


def on_files(files, config):
    """Makes the pages, and those of the files that lie beside README.md."""
    from mkdocs.structure.files import File

    found = pages()
    texts = {f"api/{module}.md": page(module, names) for module, names in found.items()}
    texts["api/index.md"] = index(found)
    for name in ("CHANGELOG", "CONTRIBUTING"):
        texts[f"{name.lower()}.md"] = (ROOT / f"{name}.md").read_text()
    for path, text in texts.items():
        files.append(File.generated(config, path, content=text))
    return files
