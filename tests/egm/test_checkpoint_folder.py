"""Folders of checkpoints: readers beside a writer, names of folders, and every state that jax can flatten."""

import collections
import os
import pathlib
import subprocess
import sys

import hypothesis
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

from egm import checkpoint

ROOT = pathlib.Path(__file__).resolve().parents[2]
Pair = collections.namedtuple("Pair", "a b")
TEMPORARY = "99.orbax-checkpoint-tmp"


def raw(leaf):
    """Type, dtype, shape and bytes of a leaf."""
    kind = type(leaf)
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        kind, leaf = str(leaf.dtype), jax.random.key_data(leaf)
    leaf = np.asarray(leaf)
    return kind, str(leaf.dtype), leaf.shape, leaf.tobytes()


def round_trip(folder, state):
    with checkpoint.Checkpoints(folder, {}) as checkpoints:
        checkpoints.save(0, state)
        found = checkpoints.restore(state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert [raw(x) for x in jax.tree.leaves(found)] == [raw(x) for x in jax.tree.leaves(state)]


READER = """
import sys
import numpy as np
from egm import checkpoint

folder, count, last = sys.argv[1], 0, -1
print("ready", flush=True)
while last < 20:
    with checkpoint.Checkpoints(folder, {}, keep=1, best="loss") as reader:
        for _ in range(3):
            found = reader.restore({"x": np.zeros(1000)})["x"]
            assert (found == found[0]).all() and found[0] >= last, (last, found)
            last, count = int(found[0]), count + 1
            assert reader.latest >= last and reader.best_step is not None and reader.steps
print(count)
"""


def test_a_reader_beside_a_writer_loses_nothing(tmp_path):
    """Another process opens and reads the folder all the while; the training there notices nothing."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    state = lambda step: {"x": np.full(1000, float(step))}
    with checkpoint.Checkpoints(tmp_path, {}, keep=1, best="loss") as checkpoints:
        checkpoints.save(0, state(0), {"loss": 1.0})
        checkpoints.wait()
        (tmp_path / TEMPORARY).mkdir()
        command = [sys.executable, "-c", READER, str(tmp_path)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as reader:
            assert reader.stdout.readline() == "ready\n"
            step = 0
            while reader.poll() is None and step < 2000:
                step += 1
                checkpoints.save(step, state(step), {"loss": 1.0 / step})
            out = reader.communicate(timeout=60)[0]
        checkpoints.wait()
        assert reader.returncode == 0 and int(out) >= 3
        assert checkpoints.steps == (step,)
        assert (checkpoints.restore(state(0))["x"] == step).all()
    assert (tmp_path / TEMPORARY).exists()


def test_leftovers_go_when_the_only_writer_starts_and_not_before(tmp_path):
    state = {"x": jnp.ones(2)}
    with checkpoint.Checkpoints(tmp_path, {}) as first:
        first.save(0, state)
        first.wait()
        (tmp_path / TEMPORARY).mkdir()
        with checkpoint.Checkpoints(tmp_path, {}) as second:  # another writer lives: it keeps its hands off
            second.save(1, state)
            second.wait()
            assert (tmp_path / TEMPORARY).exists()
            # What the other is writing now is not overwritten either.
            (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
            with pytest.raises(ValueError, match="step 2 in folder .* is being written by another process"):
                second.save(2, state)
    with checkpoint.Checkpoints(tmp_path, {}) as alone:
        assert alone.steps == (0, 1) and (tmp_path / TEMPORARY).exists()
        alone.save(3, state)
        assert not (tmp_path / TEMPORARY).exists()
    assert alone.steps == (0, 1, 3)


def test_reading_writes_nothing(tmp_path):
    with checkpoint.Checkpoints(tmp_path, {}, best="loss") as checkpoints:
        checkpoints.save(0, {"x": jnp.ones(2)}, {"loss": 1.0})
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    with checkpoint.Checkpoints(tmp_path, {}, best="loss") as checkpoints:
        assert checkpoints.latest == checkpoints.best_step == 0
        checkpoints.restore({"x": jnp.zeros(2)})
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_a_read_only_folder_can_be_read(tmp_path, monkeypatch):
    round_trip(tmp_path, {"x": jnp.ones(2)})
    # root may write anywhere, so the answer of the system is given here.
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.R_OK)
    with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
        assert checkpoints.restore({"x": jnp.zeros(2)})["x"].tolist() == [1, 1]
        with pytest.raises(ValueError, match="folder .* cannot be written to"):
            checkpoints.save(1, {"x": jnp.ones(2)})


NAMES = [
    "a b",
    "%41",
    "a{b,c}",
    "#",
    ":",
    "日本",
    "é",
    "a'b",
    '"',
    "a\nb",
    "-x",
    "..a",
    "$HOME",
    "!",
    "a;b&c|d",
]


@pytest.mark.parametrize("name", NAMES)
def test_folders_of_odd_names(tmp_path, name):
    round_trip(tmp_path / name / "run", {"x": jnp.arange(3.0)})
    assert (tmp_path / name / "run" / "0").is_dir()


@pytest.mark.parametrize("name", ["gs:", "a[b", "a]b", "[0-9]", "a\\b", "a*", "a?b"])
def test_folders_that_orbax_cannot_read_are_refused_at_the_door(tmp_path, name):
    with pytest.raises(ValueError, match=r"folder must have (none of|no part that ends in 'gs:')"):
        checkpoint.Checkpoints(tmp_path / name / "run", {})
    assert not (tmp_path / name).exists()


def test_converted_potentials_lie_in_the_same_folders(tmp_path, monkeypatch):
    from energymatch import convert

    monkeypatch.setenv("HOME", str(tmp_path))
    convert.save("~/a b", {"width": 3}, {"w": jnp.ones(2)})
    config, params = convert.load(f"file://{tmp_path}/a%20b")
    assert config == {"width": 3} and params["w"].tolist() == [1, 1]
    for call in (lambda: convert.save(tmp_path / "a[b", {}, {"w": jnp.ones(2)}), lambda: convert.load("a[b")):
        with pytest.raises(ValueError, match="folder must have none of"):
            call()


def test_other_ways_to_name_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for given, where in [
        ("~/home", "home"),
        (pathlib.Path("~") / "path", "path"),
        (f"file://{tmp_path}/with%20space", "with space"),
        (f"file://localhost{tmp_path}/host", "host"),
        (f"file:{tmp_path}/short", "short"),
        ("relative/../here", "here"),
        (".", "."),
    ]:
        round_trip(given, {"x": jnp.ones(1)})
        assert (tmp_path / where / "0").is_dir()
    # A relative path stays where it was, wherever the process goes.
    (tmp_path / "elsewhere").mkdir()
    with checkpoint.Checkpoints("moved", {}) as checkpoints:
        monkeypatch.chdir(tmp_path / "elsewhere")
        checkpoints.save(0, {"x": jnp.ones(1)})
    assert (tmp_path / "moved" / "0").is_dir()


def test_what_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for given, error, message in [
        (3, TypeError, "folder must be a path as text or a pathlib.Path, got 3"),
        (b"x", TypeError, "folder must be a path as text or a pathlib.Path, got b'x'"),
        ("", ValueError, "folder must be a path, got an empty text"),
        ("a\0b", ValueError, "folder must have none of"),
        ("a\ud800", ValueError, "folder must be one that orbax can open"),
        (tmp_path / "file", ValueError, "folder .* cannot be made: there is a file of that name"),
        (tmp_path / "file" / "x", ValueError, "folder .* cannot be made: Not a directory"),
        ("~nobody-of-this-name/x", ValueError, "folder must not start with the name of an unknown user"),
        ("file://host/x", ValueError, "folder must be an absolute path after `file://`"),
        ("file://x", ValueError, "folder must be an absolute path after `file://`"),
        (pathlib.Path("gs://bucket/x"), ValueError, "pathlib.Path drops a slash of an address"),
        ("nosuch://bucket/x", ValueError, "folder must be one that orbax can open, got 'nosuch://bucket/x'"),
    ]:
        with pytest.raises(error, match=message):
            checkpoint.Checkpoints(given, {})


STATES = {
    "array": jnp.arange(3.0),
    "numpy": np.arange(3),
    "key": jax.random.key(1),
    "float": 1.5,
    "int": 3,
    "complex": 2j,
    "numpy numbers": [np.float32(2), np.bool_(True), np.int8(3), np.float64(0.1), ml_dtypes.bfloat16(1.5)],
    "empty": {"x": jnp.zeros((0, 3)), "y": np.zeros((2, 0), np.int8), "z": jnp.ones(2)},
    "only empty": (jnp.zeros((0,), jnp.bfloat16), jax.random.split(jax.random.key(0, impl="rbg"), 1)[:0]),
    "empty keys of dicts": {"": {"": jnp.ones(2)}, "a": {"": jnp.ones(1)}},
    "an empty key": {"": jnp.ones(2)},
    "separators": {
        "a/b": jnp.ones(2),
        "/": 1,
        "..": 2,
        "a.b": 3,
        "a[0]": 4,
        "*": 5,
        "\\": 6,
        "%2f": 7,
        "a\n": 8,
    },
    "numbers as keys": {1: jnp.ones(2), -2: jnp.ones(3)},
    "tuples as keys": {(1, 2): jnp.ones(2)},
    "nothing": {"a": None, "b": {}, "c": [(), {"d": jnp.ones(1)}]},
    "named": Pair(jnp.ones(2), {"c": Pair(1.0, None)}),
    "big-endian": np.arange(3, dtype=">i2"),
    "narrow": [jnp.arange(3).astype(d) for d in ("bfloat16", "int4", "uint8", "bool", "float8_e4m3fn")],
    "keys": [
        jax.random.split(jax.random.key(2, impl=i), (2, 1)) for i in ("threefry2x32", "rbg", "unsafe_rbg")
    ],
    "zarr's own names": {"x": jnp.ones(1), "x/zarr.json": jnp.ones(2), "c": {"0": jnp.ones(3)}},
}


@pytest.mark.parametrize("name", STATES)
def test_states_come_back(tmp_path, name):
    round_trip(tmp_path, STATES[name])


def test_empty_arrays_where_they_are_wanted(tmp_path):
    """On another device, from shapes alone, and refused where the shape differs."""
    with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(0, {"x": jnp.zeros((0, 2)), "k": jax.random.split(jax.random.key(0), 1)[:0]})
        place = jax.sharding.SingleDeviceSharding(jax.devices()[3])
        like = jax.eval_shape(
            lambda: {"x": jnp.zeros((0, 2)), "k": jax.random.split(jax.random.key(0), 1)[:0]}
        )
        like["x"] = jax.ShapeDtypeStruct((0, 2), jnp.float32, sharding=place)
        found = checkpoints.restore(like)
        assert found["x"].sharding == place and found["k"].shape == (0,)
        assert jax.random.key_impl(found["k"]) == "threefry2x32"
        with pytest.raises(ValueError, match=r"x has shape \[0, 2\] in the checkpoint, and \[0, 3\] in like"):
            checkpoints.restore(like | {"x": jnp.zeros((0, 3))})


def test_states_that_cannot_be_stored_are_refused_at_the_door(tmp_path):
    donated = jnp.ones(3)
    donated.delete()
    with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
        for state, error, message in [
            (
                {"a": jnp.arange(3).astype("uint4")},
                TypeError,
                "a must have a dtype that can be stored, got uint4",
            ),
            (
                {"a": np.zeros(2, np.longdouble)},
                TypeError,
                "a must have a dtype that can be stored, got float128",
            ),
            ({"a": np.zeros(2, [("b", "f4")])}, TypeError, "a must have a dtype that can be stored"),
            (
                {"a": np.array([None])},
                TypeError,
                "a must be an array or a number, got ndarray of dtype object",
            ),
            ({"a": np.ma.array([1.0])}, TypeError, "a must be an array or a number, got MaskedArray"),
            ({"a": "text"}, TypeError, "a must be an array or a number, got str"),
            ({"a": 2**70}, TypeError, "a must be an array or a number, got int"),
            ({"a": len}, TypeError, "a must be an array or a number, got builtin_function_or_method"),
            (
                {"a": jax.ShapeDtypeStruct((2,), float)},
                TypeError,
                "a must be an array or a number, got a jax.Sh",
            ),
            (
                {"a": {"b": donated}},
                ValueError,
                "a.b must hold values, got an array that was deleted or donated",
            ),
            (
                {"a.b": 1, "a": {"b": 2}},
                ValueError,
                "state must have one leaf for every dotted path, .*'a.b'",
            ),
            ({1: 2, "1": 3}, ValueError, "state must be a pytree, got one that jax cannot flatten"),
            ({}, ValueError, "state must hold at least one array"),
        ]:
            with pytest.raises(error, match=message):
                checkpoints.save(0, state)
        with pytest.raises(TypeError, match="x must be an array or a number, got a traced value"):
            jax.jit(lambda x: checkpoints.save(0, {"x": x}))(jnp.ones(2))
        for metrics in ({"loss": "low"}, {1: 2.0}, [1.0], {"loss": [1.0, 2.0]}):
            with pytest.raises(TypeError, match="metrics must"):
                checkpoints.save(0, {"x": 1}, metrics)
    assert checkpoints.steps == ()
    assert not list(tmp_path.iterdir())


def test_a_structure_that_changed_is_named(tmp_path):
    with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(0, {"a": [jnp.ones(2), jnp.ones(3)], "n": None})
        for like, message in [
            ({"a": [jnp.ones(2)]}, "like lacks a.1, which the checkpoint has"),
            ({"a": [jnp.ones(2), {"b": jnp.ones(3)}]}, "like has a.1.b, which the checkpoint lacks"),
            (jnp.ones(2), "like has state, which the checkpoint lacks"),
            (
                {"a": [jnp.ones(2), jnp.ones((0,))]},
                r"a.1 has shape \[3\] in the checkpoint, and \[0\] in like",
            ),
        ]:
            with pytest.raises(ValueError, match=message):
                checkpoints.restore(like)


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)
LEAVES = st.one_of(
    st.builds(
        lambda shape, dtype, make: make(np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)),
        SHAPES,
        st.sampled_from(["float32", "int8", "uint32", "bool", "complex64", "bfloat16", "float16"]),
        st.sampled_from([np.asarray, jnp.asarray]),
    ),
    st.builds(
        lambda n, impl: jax.random.split(jax.random.key(n, impl=impl), 3)[:n],
        st.integers(0, 2),
        st.sampled_from(["threefry2x32", "rbg"]),
    ),
    st.floats(),
    st.integers(-(2**40), 2**40),
    st.booleans(),
    st.none(),
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
TREES = st.recursive(
    LEAVES,
    lambda inside: st.one_of(
        st.lists(inside, max_size=3),
        st.tuples(inside, inside),
        st.builds(Pair, inside, inside),
        st.dictionaries(TEXT, inside, max_size=3),
    ),
    max_leaves=5,
)


@hypothesis.settings(max_examples=40)
@hypothesis.given(state=TREES, name=TEXT)
def test_every_state_and_folder_comes_back_or_is_refused_at_the_door(tmp_path_factory, state, name):
    folder = tmp_path_factory.mktemp("run") / f"x{name}"
    try:
        checkpoints = checkpoint.Checkpoints(folder, {"name": name})
    except ValueError as error:
        assert str(error).startswith("folder must")
        assert set(name) & set("*?[]\\\0") or "://" in name
        return
    with checkpoints:
        try:
            checkpoints.save(0, state)
        except ValueError as error:
            assert "at least one array" in str(error) or "one leaf for every dotted path" in str(error)
            return
        found = checkpoints.restore(state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    assert [raw(x) for x in jax.tree.leaves(found)] == [raw(x) for x in jax.tree.leaves(state)]
