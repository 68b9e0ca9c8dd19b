"""Tables in text, and results.json in the output folder."""

from __future__ import annotations

import json
import logging
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

# Without this absl prints which accelerators the machine does not have.
logging.getLogger("jax._src.xla_bridge").setLevel(logging.ERROR)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table as text."""

    def cell(value):
        return f"{value:.4g}" if isinstance(value, float | np.floating) else str(value)

    cells = [list(header)] + [[cell(v) for v in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join([title, *lines])


def with_error(value: float, error: float, digits: int = 4) -> str:
    """ "value +- error" for a table; an infinite error is none that could be stated."""
    shown = f"{value:.{digits}f}"
    return f"{shown} +- {error:.{digits}f}" if math.isfinite(error) else f"{shown}, error not known"


def write_results(output_dir: str, results: dict[str, Any]) -> pathlib.Path:
    """Write results.json (null where a figure is not finite or not known) and return its path."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, np.ndarray | jax.Array | np.generic | list | tuple):
            return (
                plain(np.asarray(value).tolist())
                if not isinstance(value, list)
                else [plain(v) for v in value]
            )
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.json"
    path.write_text(json.dumps(plain(results), indent=2) + "\n")
    return path
