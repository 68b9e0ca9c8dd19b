"""benchmarks/peers.py: its figures are right, its tables say them, and a method that fails is a line of them.

The peers themselves are not needed; benchmarks are run by hand.
"""

import importlib
import math
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmark, importable as when it is run."""
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("peers", "peers_table", "peers_energies", "peers_data")
    return types.SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def test_figures_as_text(bench):
    table = bench.peers_table
    assert [table.short(v) for v in (None, 0.0123456, -0.5, 12.345, 61_000, 2e-5)] == [
        "",
        ".0123",
        "-.5",
        "12.3",
        "61,000",
        "2.0e-5",
    ]
    assert table.short(float("inf")) == "inf"
    assert table.off(1.015, 0.01, 1.0) == "+.015 ± .01"
    assert table.off(1.03, 0.01, 1.0) == "+.03 ± .01 (!)"
    assert table.off(0.5, float("inf"), 1.0) == "-.5 ± inf"
    assert table.off(0.5, None, 1.0) == "-.5" and table.off(None, None, 1.0) == ""
    assert table.agrees(0.5, None) is None and table.agrees(0.5, float("inf")) is None


def test_mode_figures_and_means_of_groups(bench):
    table = bench.peers_table
    index, weights = np.repeat([0, 0, 1, 3], 100), np.repeat([0.5, 0.25, 0.24, 0.01], 100) / 100
    found = table.mode_figures(index, weights, np.full(4, 0.25))
    assert found[:2] == [2, 4]
    np.testing.assert_allclose(found[2:], [0.0, 3.0])
    # By their own masses, and where 400 states tell them: not the last, of 40 states.
    found = table.mode_figures(index, weights, np.array([0.5, 0.3, 0.1, 0.1]))
    assert found[:2] == [2, 2]
    np.testing.assert_allclose(found[2:], [0.8, 1.5])
    values = np.random.default_rng(0).normal(2.0, 1.0, (50, 400))
    mean, error = table.group_mean(values)
    # The error is 1 / sqrt(20,000) up to its own, 1 / sqrt(2 * 49) of it: four of these.
    assert abs(error * math.sqrt(20_000) - 1) < 4 / math.sqrt(98)
    assert abs(mean - 2.0) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("name", ["gaussian", "banana", "ring"])
def test_added_facts_are_those_of_exact_states(bench, name):
    target, rng = bench.peers_energies.target_of(name), np.random.default_rng(0)
    if name == "gaussian":
        turn = np.linalg.qr(np.random.default_rng(0).normal(size=(50, 50)))[0]
        x = (rng.normal(size=(20_000, 50)) * np.sqrt(np.geomspace(1.0, 1e4, 50))) @ turn.T
    elif name == "banana":
        a = 1 + rng.normal(size=(20_000, 5))
        x = np.stack([a, a**2 + rng.normal(size=a.shape) / math.sqrt(20)], -1).reshape(-1, 10)
    else:  # radii have the density r exp(-(r - 4)^2 / .08): normal ones are kept with probability r / 8
        r = 4 + 0.2 * rng.normal(size=80_000)
        r = r[rng.uniform(size=len(r)) < r / 8]
        angle = rng.uniform(0, 2 * np.pi, len(r))
        x = np.stack([r * np.cos(angle), r * np.sin(angle)], -1)
    for function, exact in target.facts.values():
        values = np.asarray(function(jnp.asarray(x, jnp.float32)), np.float64)
        assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(len(values))


def test_figures_of_weighted_states(bench):
    """A ring by importance sampling from a normal: log Z, its error, the mean radius."""
    energies = bench.peers_energies
    target = energies.target_of("ring")
    x = 4.0 * jax.random.normal(jax.random.key(0), (40_000, 2))
    log_q = jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.0, 4.0), -1)
    row = energies.weighted(target, x, -target.energy(x) - log_q, 40_000, "draws")
    assert abs(row["log_z"] - row["exact"]) < 4 * row["error"] < 0.2
    mean, error, exact = row["facts"]["radius"]
    assert abs(mean - exact) < 4 * error < 0.1
    assert 0 < row["ess"] < 0.2 and row["modes"] is None and row["evaluations"] == 40_000


def test_a_method_of_ones_own_and_one_that_fails(bench, monkeypatch):
    peers, table, energies = bench.peers, bench.peers_table, bench.peers_energies

    def exact_draws(target, width, seconds, seed):
        assert width == 40.0 and seconds == 1.0
        rng = np.random.default_rng(seed)
        means = np.random.default_rng(0).uniform(-40, 40, (40, 2))
        x = means[rng.integers(40, size=4000)] + rng.normal(size=(4000, 2))
        x = x.reshape(4, 1000, 2)
        return energies.figures(target, x, groups=table.group_mean, log_z=0.01, error=0.02, note="own")

    own = types.ModuleType("own_methods")
    own.METHODS = {"own": exact_draws}
    monkeypatch.setitem(sys.modules, "own_methods", own)
    monkeypatch.setitem(peers.METHODS["energy"], "own", "own_methods")
    (row,) = peers.run_here("own", "mixture_2d", 1.0, 0)
    assert row["modes"][:2] == [40, 40] and row["seconds"] >= 0
    # The other process does not know it.
    (failed,) = peers.run_apart("own", "mixture_2d", 1.0, 0)
    assert "KeyError: 'own'" in failed["failed"]
    text = table.energy_table([row, failed])
    assert text.splitlines()[2].startswith("| mixture_2d | own | +.01 ± .02 |")
    assert "40 of 40" in text and "| own | failed: KeyError: 'own' |" in text
    widths = {line.count("|") for line in text.splitlines()}
    assert widths == {len(table.ENERGY_HEAD) + 1}


def test_the_tables_of_data_and_the_page(bench):
    table = bench.peers_table
    start = {"kind": "data", "seed": 0, "seconds": 1.0, "floor": None, "w2": None, "steps": None, "note": ""}
    rows = [
        start | {"target": "rings", "method": "a", "nats": -3.0, "w2": 0.2, "floor": 0.1, "steps": 1000},
        start | {"target": "rings", "method": "b", "nats": None, "w2": 0.15, "floor": 0.1},
        start | {"target": "iris", "method": "a", "nats": -1.5},
        {"kind": "data", "target": "iris", "method": "c", "seed": 0, "seconds": 1.0, "failed": "no"},
    ]
    text = table.tables({"about": "a machine", "rows": rows, "steps": []})
    assert "| rings | **-3.000** |  |" in text and "| iris | **-1.500** | failed: no |" in text
    assert "| rings | .100 | .200 | **.150** |" in text and "| rings | 1,000 |" in text
    page = "before\n<!-- peers: begin -->\nold\n<!-- peers: end -->\nafter\n"
    made = table.between(page, text)
    assert made.startswith("before\n") and made.endswith("\nafter\n") and "old" not in made
    assert table.between(made, text) == made
    with pytest.raises(ValueError, match="peers: begin"):
        table.between("no markers", text)


def test_w2_of_two_shifted_sets(bench):
    x = np.random.default_rng(0).normal(size=(50, 2))
    shift = np.array([0.3, -0.4])
    assert bench.peers_data.w2(x, x[::-1] + shift) == pytest.approx(0.5, rel=1e-6)


def test_the_rows_of_em_step_and_what_runs_where(bench):
    step = {"step": "main", "peer": "published", "/call": 1, "ms": 158.0, "x ours": 1.5, "GFLOP/s": 1.0}
    text = bench.peers_table.step_table([step | {"share of the limit": 0.34}])
    assert text.splitlines()[-1] == "| main | published | 1 | 158 | 1.5 | .34 |"
    options = types.SimpleNamespace(targets=["rings", "iris"], methods=None, seed=[0, 1])
    found = list(bench.peers.wanted(options))
    # Generators without a density are for the plane alone.
    assert ("torchebm", "rings", 1) in found and ("flowjax", "iris", 0) in found
    assert not any(method == "torchebm" and target == "iris" for method, target, _ in found)
