"""Settings of the whole test run, made before jax starts, and fixtures for every test."""

import ctypes
import gc
import importlib.metadata
import os
import pathlib

# Eight CPU devices; little optimisation, since a test compiles for longer than it runs.
_FLAGS = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
# The older emitters compile in half the time. Newer versions of jaxlib do not have the flag, and stop at it.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for _flag in _FLAGS:
    if _flag not in os.environ.get("XLA_FLAGS", "").split():
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

# A test compiles what it runs: a cache on disk would hide what a change does to tracing.
jax.config.update("jax_enable_compilation_cache", False)
# [B] + [B, D] is an error, never a silent broadcast along the wrong axis.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The first example of a property compiles, so there is no deadline; the same examples every time.
hypothesis.settings.register_profile("egm", deadline=None, derandomize=True, max_examples=25, database=None)
hypothesis.settings.load_profile("egm")


_LONGEST = (
    "tests/test_readme.py",
    "tests/test_kill.py",
    "tests/egm/test_fit.py",
    "tests/test_two_processes.py",
    "tests/test_user_program.py",
    "tests/egm/test_pairs.py",
    "tests/egm/test_modes.py",
)
"""Files that take longest, first: a worker that began one last would keep the others waiting."""


def pytest_collection_modifyitems(items):
    """The cases of slow.txt are slow; the longest files come first."""
    place = {name: i for i, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.split("::")[0], len(place)))
    lines = (pathlib.Path(__file__).parent / "slow.txt").read_text().splitlines()
    names = {line for line in lines if line and not line.startswith("#")}
    for item in items:
        if item.nodeid in names:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def x64():
    """Float64 for one test; what was set before comes back afterwards."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def mesh8():
    """A mesh of eight CPU devices along the axis "i"."""
    return jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """Compiled programs go with their module: a worker that kept all of them grew to 5 GB."""
    yield
    jax.clear_caches()
    gc.collect()
    # What is freed goes back to the machine; glibc alone would keep it.
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
