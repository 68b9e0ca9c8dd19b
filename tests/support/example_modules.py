"""The folder of the examples, whose modules import each other as when one of them is run."""

import contextlib
import pathlib
import sys

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"


@contextlib.contextmanager
def importable():
    """`from data import ...`, `from support import ...` work inside."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield
    finally:
        sys.path.remove(str(EXAMPLES))
