"""The order in which modules may import each other, read from their imports with `ast`.

A module imports from floors below its own; parts of one folder (egm.paths.*) may import each other
and a folder's `__init__` everything in it. Networks stand apart: users import them, no other module
of the library does. The core imports the seven dependencies and the standard library.
"""

import ast
import importlib
import importlib.util
import pathlib
import sys
import tomllib

import pytest

LAYERS = [
    ["egm.typing", "egm.version"],
    ["egm.checks", "egm.collectives"],
    ["egm.random", "egm.summation"],
    ["egm.importance", "egm.divergences", "egm.smoothness"],
    ["egm.paths"],
    [
        "egm.target",
        "egm.processes",
        "egm.energies",
        "egm.horizons",
        "egm.symmetry",
        "egm.moves",
    ],
    ["egm.bootstrap", "egm.proposals"],
    ["egm.estimators"],
    ["egm.losses", "egm.heads"],
    ["egm.simulate"],
    ["egm.metrics", "egm.scales", "egm.closed_forms"],
    ["egm.evidence"],
    ["egm.networks"],
    ["egm.buffer"],
    ["egm.training", "egm.devices"],
    ["egm.annealing"],
    ["egm.algorithms", "egm.rejuvenation"],
    ["egm.iteration"],
    ["egm.checkpoint"],
    ["egm.spaces", "egm.transport"],
    ["egm.coordinates", "egm.batching", "egm.modules", "egm.stopping"],
    ["egm.pilot", "egm.design"],
    ["egm._questions", "egm._saved", "egm.curves", "egm.modes"],
    ["egm.sampler"],
    ["egm.fitting", "egm.refinement"],
    ["egm"],
    [
        "energymatch.schedules",
        "energymatch.couplings",
        "energymatch.images",
        "energymatch.preprocessing",
        "energymatch._frames",
    ],
    ["energymatch.potential"],
    ["energymatch.langevin"],
    ["energymatch.tempering", "energymatch.likelihood"],
    ["energymatch.losses"],
    ["energymatch.negatives"],
    ["energymatch.matching"],
    ["energymatch.curvature"],
    ["energymatch.posterior"],
    ["energymatch.networks"],
    ["energymatch.convert"],
    ["energymatch.model"],
    ["energymatch._mixtures"],
    ["energymatch.fitting"],
    ["energymatch", "energymatch.estimator"],
]
"""One entry a folder or a module of its own, the ground floor first."""
PACKAGES = ("egm", "energymatch")
NETWORKS = ("egm.networks", "energymatch.networks")
FRONT_DOOR = ("egm.design", "energymatch.fitting", "energymatch.model")
"""Who may choose a network for the user."""
CORE = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "numpy"}
"""Import names of the core dependencies."""
ALLOWED = {
    "egm.collectives": {"jax"},
    "egm.sampler": CORE | {"arviz", "matplotlib"},
    "energymatch.estimator": CORE | {"sklearn"},
}
"""Modules that may import fewer of them, or that use an extra where it is installed."""

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLOORS = {entry: floor for floor, entries in enumerate(LAYERS) for entry in entries}


def _module_name(file):
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {_module_name(f): f for p in PACKAGES for f in sorted((ROOT / p).rglob("*.py"))}


def _inside(module, package):
    return module == package or module.startswith(package + ".")


def _entry(module):
    """The table's entry for a module, or None; the two packages themselves match by name only."""
    if module in PACKAGES:
        return module
    return next((e for e in FLOORS if e not in PACKAGES and _inside(module, e)), None)


def _imports(module, source, is_package=False):
    """(imported module, whether with a star) for every import, nested ones included."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, False
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                is_module = name in SOURCES or name in FLOORS
                yield (name if is_module else base), alias.name == "*"


def violations(module, source, is_package=False):
    """What is wrong with the imports of one module, one sentence each."""
    entry = _entry(module)
    if entry is None:
        return [f"{module} stands on no floor: add it to LAYERS in tests/test_layers.py"]
    floor, found = FLOORS[entry], []
    for target, star in _imports(module, source, is_package):
        if star:
            found.append(f"{module} imports * from {target}")
        top = target.split(".")[0]
        if top not in PACKAGES:
            if top not in sys.stdlib_module_names and top not in ALLOWED.get(module, CORE):
                found.append(f"{module} imports {top}, which is no dependency it may use")
            continue
        at = _entry(target)
        network = next((n for n in NETWORKS if _inside(target, n)), None)
        if network and not _inside(module, network) and module not in FRONT_DOOR:
            found.append(f"{module} imports {target}: networks are imported by users only")
        elif is_package and _inside(target, module) and target != module:
            continue
        elif at is None:
            found.append(f"{module} imports {target}, which stands on no floor: add it to LAYERS")
        elif at == entry and target != at:
            continue
        elif FLOORS[at] >= floor:
            found.append(f"{module} (floor {floor}) imports {target} (floor {FLOORS[at]})")
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_imports_only_from_floors_below(module):
    file = SOURCES[module]
    found = violations(module, file.read_text(), file.name == "__init__.py")
    assert not found, "\n".join(found)


def private_imports(module, source, is_package=False):
    """Names with a leading underscore that a module imports from another folder."""
    folder = module if is_package else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            package = folder
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            if base.split(".")[0] not in PACKAGES:
                continue
            home = (
                base if base in SOURCES and SOURCES[base].name == "__init__.py" else base.rpartition(".")[0]
            )
            names = [*base.split(".")[1:], *(alias.name for alias in node.names)]
            if home != folder and any(n.startswith("_") for n in names):
                found.append(f"{module} imports {base}.{node.names[0].name}, private to {home}")
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_no_private_name_crosses_a_folder(module):
    file = SOURCES[module]
    assert not private_imports(module, file.read_text(), file.name == "__init__.py")


def test_catches_a_private_name():
    assert private_imports("egm.heads.score", "from egm.networks._features import Features")
    assert private_imports("egm.iteration", "from egm.paths.masked import _safe")
    assert not private_imports("egm.networks.mixed", "from egm.networks._features import Features")


def shown_and_defined(module, source):
    """(the names in `__all__`, None without one; the public functions and classes that a module defines)."""
    shown, defined = None, set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            defined.add(node.name)
        elif isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            shown = set(ast.literal_eval(node.value))
    return shown, defined


@pytest.mark.parametrize("module", [m for m in SOURCES if "._" not in m])
def test_a_public_module_shows_its_own_names(module):
    shown, defined = shown_and_defined(module, SOURCES[module].read_text())
    assert shown is not None, f"{module} has no __all__"
    defined -= {"__getattr__", "__dir__"}
    assert defined <= shown, f"{module} defines {sorted(defined - shown)} and does not show them"
    loaded = importlib.import_module(module)
    assert all(hasattr(loaded, name) for name in shown)


def test_both_packages_are_read():
    assert {_entry(m).split(".")[0] for m in SOURCES if _entry(m)} == set(PACKAGES)


def test_no_module_stands_twice():
    entries = [entry for floor in LAYERS for entry in floor]
    assert len(entries) == len(set(entries))


def test_core_dependencies_are_the_seven():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [requirement.split(">=")[0] for requirement in project["dependencies"]]
    assert sorted(names) == sorted((CORE - {"orbax"}) | {"orbax-checkpoint"})
    assert all(">=" in requirement for requirement in project["dependencies"])


def test_oldest_pins_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {requirement.replace(">=", "==") for requirement in project["dependencies"]}
    pins = set((ROOT / "tests" / "oldest.txt").read_text().splitlines())
    assert bounds <= pins, f"not pinned in tests/oldest.txt: {sorted(bounds - pins)}"


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("egm.paths.masked", "import egm.losses", "egm.paths.masked (floor 4) imports egm.losses"),
        ("egm.paths.masked", "from egm import losses as l", "(floor 8)"),
        ("egm.paths.masked", "from ..losses import f", "(floor 8)"),
        ("egm.paths.masked", "from .. import losses", "(floor 8)"),
        ("egm.processes.jump", "from egm.energies.ising import Ising", "(floor 5)"),
        ("egm.losses", "from egm import estimate", "imports egm (floor 25)"),
        ("egm.paths.masked", "from egm.paths import MaskedPath", "imports egm.paths (floor 4)"),
        ("egm.losses", "def f():\n  from egm import metrics", "imports egm.metrics"),
        ("egm.losses", "import energymatch.schedules", "imports energymatch.schedules"),
        ("egm.losses", "from egm.typing import *", "imports * from egm.typing"),
        ("egm.metrics", "import scipy.stats", "imports scipy"),
        ("egm.collectives", "import numpy as np", "imports numpy"),
        ("egm.training", "from egm.networks import MLP", "networks are imported by users only"),
        ("egm.novelty", "import jax", "egm.novelty stands on no floor: add it to LAYERS"),
        ("egm.training", "import egm.novelty", "egm.novelty, which stands on no floor"),
        ("energymatch.potential", "from energymatch import langevin", "(floor 27)"),
    ],
)
def test_catches(module, source, message):
    found = violations(module, source)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize("module", PACKAGES)
def test_catches_networks_in_a_package(module):
    for source in (f"from {module} import networks", "from . import networks"):
        (found,) = violations(module, source, is_package=True)
        assert "networks are imported by users only" in found


@pytest.mark.parametrize(
    ("module", "source", "is_package"),
    [
        ("egm.paths.product", "from egm.paths.schedules import LinearPath\nimport math", False),
        ("egm.paths.product", "from . import gaussian", False),
        ("egm.paths.product", "from ..checks import time", False),
        ("egm.paths", "from egm.paths.masked import MaskedPath\nfrom . import product", True),
        ("egm.paths", "from .. import checks\nfrom ..random import split", True),
        ("egm", "from egm import paths, simulate\nfrom .estimators import estimate", True),
        ("energymatch.likelihood", "import egm\nfrom egm import importance", False),
        ("egm.networks.cnn", "from egm.networks.mlp import MLP\nimport flax.linen as nn", False),
        ("egm.checkpoint", "from orbax.checkpoint import v1 as ocp", False),
    ],
)
def test_lets_pass(module, source, is_package):
    assert violations(module, source, is_package) == []
