"""Figures, tables and the page of peers.py: pure functions of rows, that need no peer to be installed.

A row is a dict: kind ("energy" or "data"), target, method, seed, seconds, and either `failed`, the last
line of what went wrong, or figures. Those of energies: log_z, error, exact, ess, facts {name: [mean, error,
exact]}, modes [found, count, least share, largest share], evaluations, note. Those of data: nats, w2,
floor, steps, note. What a method does not give is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

FOUND = 0.05
"""Share of its mass from which a mode counts as found."""
TOLD = 100
"""States that a mode must have by its mass, so that these samples can tell its share."""


def mode_figures(index: np.ndarray, weights: np.ndarray, masses: np.ndarray) -> list[float]:
    """[modes found, modes, least share, largest share] of the modes that so many states tell, 1 being exact.

    Args:
      index: [N] the mode of each state.
      weights: [N] normalised weights.
      masses: [K] of the modes, of sum 1.
    """
    told = masses * len(index) >= TOLD
    share = np.bincount(np.asarray(index), np.asarray(weights), len(masses))[told] / masses[told]
    return [int(np.sum(share > FOUND)), int(told.sum()), float(share.min()), float(share.max())]


def group_mean(values: np.ndarray) -> tuple[float, float]:
    """(mean, standard error) of [G, N] values of G independent runs, from the spread of their means."""
    means = np.mean(np.asarray(values, np.float64), axis=1)
    return float(means.mean()), float(means.std(ddof=1) / math.sqrt(len(means)))


def agrees(difference: float, error: float | None) -> bool | None:
    """Whether a difference is within two stated errors; None where no finite error is stated."""
    if error is None or not math.isfinite(error):
        return None
    return bool(abs(difference) <= 2 * error)


def short(value: float | int | None, digits: int = 3) -> str:
    """A figure as text: significant digits, no leading zero, thousands apart."""
    if value is None:
        return ""
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.{digits}g}"
    if "e" in text:
        text = f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    return re.sub(r"^(-?)0\.", r"\1.", text)


def off(mean: float | None, error: float | None, exact: float | None) -> str:
    """What a figure is off by, its stated error, and a mark where it is more than two of these."""
    if mean is None:
        return ""
    if exact is None:
        return short(mean) + ("" if error is None else f" ± {short(error, 2)}")
    difference = mean - exact
    text = ("+" if difference >= 0 else "") + short(difference, 2)
    text += "" if error is None else f" ± {short(error, 2)}"
    return text + (" (!)" if agrees(difference, error) is False else "")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def energy_cells(row: dict[str, Any]) -> list[str]:
    """The cells of one method on one energy."""
    start = [row["target"], row["method"]]
    if row.get("failed"):
        return [*start, f"failed: {row['failed']}", "", "", "", "", "", short(row["seconds"]), ""]
    facts = "; ".join(f"{name} {off(*values)}" for name, values in row["facts"].items())
    found = "" if row["modes"] is None else f"{row['modes'][0]} of {row['modes'][1]}"
    shares = "" if row["modes"] is None else " to ".join(short(float(s), 2) for s in row["modes"][2:])
    log_z = off(row["log_z"], row["error"], row["exact"])
    cells = [log_z, short(row["ess"], 3), facts, found, shares]
    return [*start, *cells, short(row["evaluations"]), f"{row['seconds']:.0f}", row["note"]]


ENERGY_HEAD = [
    "target",
    "method",
    "log Z - exact",
    "ESS",
    "facts - exact",
    "modes",
    "shares",
    "evaluations",
    "seconds",
    "what it says of itself",
]


def energy_table(rows: Sequence[dict[str, Any]]) -> str:
    """One line a method and target; the target is named once."""
    cells, last = [], None
    for row in rows:
        line = energy_cells(row)
        line[0], last = ("" if line[0] == last else line[0]), line[0]
        cells.append(line)
    return markdown(ENERGY_HEAD, cells)


def pivot(
    rows: Sequence[dict[str, Any]],
    value: Callable[[dict[str, Any]], float | None],
    best: Callable[[Sequence[float]], float] | None,
    digits: int = 3,
    first: Callable[[dict[str, Any]], tuple[str, float]] | None = None,
) -> str:
    """A table with a line a target and a column a method, the best of a line in bold.

    Args:
      rows: of several targets and methods.
      value: the figure of a row, None for none.
      best: max or min of the figures of a line; None for no mark.
      digits: after the point; 0 for counts.
      first: (head, figure) of a column before the methods', of any row of the line.
    """
    tell = lambda v: re.sub(r"^(-?)0\.", r"\1.", f"{v:,.{digits}f}")
    shown = [row for row in rows if row.get("failed") or value(row) is not None]
    targets, methods = (list(dict.fromkeys(r[k] for r in shown)) for k in ("target", "method"))
    lines = []
    for target in targets:
        here = {r["method"]: r for r in shown if r["target"] == target}
        found = {name: value(r) for name, r in here.items() if not r.get("failed")}
        top = best(list(found.values())) if best and found else None
        line = [target]
        if first is not None:
            line.append(next((tell(first(r)[1]) for r in here.values() if not r.get("failed")), ""))
        for name in methods:
            if name not in here:
                line.append("")
            elif name not in found:
                line.append(f"failed: {here[name]['failed']}")
            else:
                line.append(f"**{tell(found[name])}**" if found[name] == top else tell(found[name]))
        lines.append(line)
    heads = ["data"] + ([] if first is None else [first({"floor": 0.0})[0]]) + methods
    return markdown(heads, lines)


def step_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of em_step.py's results.json."""
    head = ["step", "peer", "steps a call", "ms a step", "x ours", "share of the limit"]
    keys = ["ms", "x ours", "share of the limit"]
    return markdown(
        head, [[r["step"], r["peer"], str(r["/call"]), *(short(r[k]) for k in keys)] for r in rows]
    )


def tables(results: dict[str, Any]) -> str:
    """All tables of a run, under the line that tells what it was."""
    rows = results["rows"]
    energies = [r for r in rows if r["kind"] == "energy"]
    data = [r for r in rows if r["kind"] == "data"]
    parts = [results["about"]]
    if energies:
        parts += ["### Energies, no data", energy_table(energies)]
    if data:
        parts += ["### Held-out log-density, nats", pivot(data, lambda r: r["nats"], max)]
        floor = lambda r: ("two sets of data", r["floor"] if r["floor"] is not None else math.nan)
        planar = [r for r in data if r.get("failed") or r["w2"] is not None]
        planar = [r for r in planar if any(q.get("w2") for q in data if q["target"] == r["target"])]
        parts += ["### W2 of samples to held-out data", pivot(planar, lambda r: r["w2"], min, 3, floor)]
        parts += ["### Gradient steps made in that time", pivot(data, lambda r: r["steps"], None, 0)]
    if results.get("steps"):
        parts += ["### Time of a step of Energy Matching", step_table(results["steps"])]
    return "\n\n".join(parts) + "\n"


def between(page: str, text: str, name: str = "peers") -> str:
    """The page with the text between its markers.

    Raises:
      ValueError: the page has no such pair of markers.
    """
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
        raise ValueError(f"the page must have {start!r} and {end!r} once each, in this order")
    before, rest = page.split(start)
    return f"{before}{start}\n\n{text.strip()}\n\n{end}{rest.split(end)[1]}"
