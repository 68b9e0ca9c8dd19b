"""Generated bad input: one argument of a public function goes wrong, and the error names it.

`bad_input_egm` and `bad_input_energymatch` list the public callables with valid arguments and the kind of
each; hypothesis makes a wrong value of that kind. The error must be a ValueError or TypeError that a
`raise` of the library's own makes (not jax, numpy or Python on the library's behalf) and whose message has
the argument's name. `test_bad_input` has cases by hand, with their messages in full.
"""

import importlib
import inspect
import linecache
import pathlib
import pkgutil
import re
import traceback

import bad_input_egm
import bad_input_energymatch
import hypothesis
import pytest
from hypothesis import strategies as st

import egm
import energymatch

ENTRIES = bad_input_egm.ENTRIES + bad_input_energymatch.ENTRIES
EXCLUDED = bad_input_egm.EXCLUDED | bad_input_energymatch.EXCLUDED
"""Public names that are not in the table, with the reason."""
ROOTS = tuple(str(pathlib.Path(p.__file__).parent) for p in (egm, energymatch))
FOLDERS = {
    info.name
    for package in (egm, energymatch)
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
    if info.ispkg
}
OPEN = {"energymatch.posterior.operators"}
"""Modules of folders that users import by themselves."""
IDS = [f"{e.names[0]}-{i}" for i, e in enumerate(ENTRIES)]


def where_raised(error):
    """(file and line number, the line itself) of what raised it."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{where.filename}:{where.lineno}", linecache.getline(where.filename, where.lineno)


def outcome(entry, name, value):
    """None where the error is as it must be, else what is wrong with it."""
    try:
        entry.run(**{name: value})
    except (TypeError, ValueError) as error:
        where, line = where_raised(error)
        labels = (name, *entry.aliases.get(name, ()))
        if not where.startswith(ROOTS) or "raise" not in line:
            return f"a foreign {type(error).__name__} at {where}: {error}"
        if not any(re.search(rf"(?<!\w){re.escape(label)}(?!\w)", str(error)) for label in labels):
            return f"the message does not name {name}: {error}"
        return None
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {where.filename}:{where.lineno}: {error}"
    return "no error at all"


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_valid_arguments_are_accepted(entry):
    entry.run_valid()


def check(entry, data):
    name = data.draw(st.sampled_from(sorted(entry.arguments)), label="argument")
    value = data.draw(entry.arguments[name].bad, label="value")
    wrong = outcome(entry, name, value)
    assert wrong is None, f"{entry.names[0]}({name} = {value!r:.200}): {wrong}"


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
@hypothesis.settings(max_examples=5)
@hypothesis.given(data=st.data())
def test_a_bad_argument_raises_and_is_named(entry, data):
    check(entry, data)


@pytest.mark.slow
@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
@hypothesis.settings(max_examples=40)
@hypothesis.given(data=st.data())
def test_a_bad_argument_raises_and_is_named_at_length(entry, data):
    check(entry, data)


def in_a_folder(module):
    """Whether a module stands in a folder that shows its public names itself, as `egm.heads` does."""
    parts = module.split(".")[:-1]
    return any(".".join(parts[:n]) in FOLDERS for n in range(2, len(parts) + 1))


def public_names():
    """Every public function and class, by the name under which a user finds it; records and Protocols apart.

    A folder's names are those that its `__init__` shows, and those of its modules that are in `OPEN`; what
    its other modules hold besides is the folder's own.
    """
    found = set()
    for package in (egm, energymatch):
        for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if "._" in info.name or (in_a_folder(info.name) and info.name not in OPEN):
                continue
            module = importlib.import_module(info.name)
            shown = set(getattr(module, "__all__", ())) if info.name in FOLDERS else set(vars(module))
            for name in shown:
                value = getattr(module, name)
                inside = getattr(value, "__module__", None) or ""
                home = inside == info.name or (info.name in FOLDERS and inside.startswith(info.name + "."))
                if name.startswith("_") or not home:
                    continue
                if hasattr(value, "_fields") or getattr(value, "_is_protocol", False):
                    continue
                if inspect.isfunction(value) or inspect.isclass(value):
                    found.add(f"{info.name}.{name}")
    return found


def excluded(name):
    return any(name == e or name.startswith(e + ".") for e in EXCLUDED)


def test_every_public_name_is_in_the_table_or_excluded_with_a_reason():
    listed = {name for e in ENTRIES for name in e.names}
    public = public_names()
    missing = sorted(n for n in public if n not in listed and not excluded(n))
    assert not missing, f"add to tests/bad_input_*.py, or to EXCLUDED with a reason: {missing}"
    stale = sorted(n for n in EXCLUDED if not any(p == n or p.startswith(n + ".") for p in public))
    assert not stale, f"these are public no more: {stale}"
    assert all(EXCLUDED.values())


def test_there_are_two_hundred_examples_and_more():
    assert 5 * len(ENTRIES) >= 200
