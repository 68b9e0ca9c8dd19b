"""egm.checkpoint: what is saved comes back bit for bit, on any number of devices, or is refused by name."""

import dataclasses
import functools
import os
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from egm import checkpoint, training
from egm.checkpoint import configuration, folder

CONFIGURATION = {"seed": 1, "network": {"width": 8, "layers": (2, 3)}}


class Chains(NamedTuple):
    x: jax.Array
    keys: jax.Array
    empty: Any = None


def make_state(value=1.0):
    """Everything that a training loop may carry."""
    params = {"w": jnp.full((4, 3), value), "b": jnp.full(3, value, jnp.bfloat16)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return {
        "train": training.init_train_state(params, optimizer),
        "chains": Chains(value * jnp.arange(16.0).reshape(8, 2), jax.random.split(jax.random.key(3), 8)),
        "key": jax.random.key(7),
        "other_key": jax.random.key(7, impl="rbg"),
        "tokens": np.arange(5, dtype=np.int32),
        "buffer": value * jax.random.normal(jax.random.key(1), (50, 40)),
        "rows": np.array([0.1, np.nan, -np.inf]),
        "calls": 3,
        "done": True,
        "rate": 0.1,
    }


def shards(count):
    return NamedSharding(Mesh(np.array(jax.devices()[:count]), ("i",)), P("i"))


def raw(leaf):
    """dtype, shape and bytes of a leaf."""
    if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(leaf.dtype), raw(jax.random.key_data(leaf))
    leaf = np.asarray(leaf)
    return str(leaf.dtype), leaf.shape, leaf.tobytes()


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for path, x in jax.tree.leaves_with_path(a):
        y = dict(jax.tree.leaves_with_path(b))[path]
        assert raw(x) == raw(y), path
        assert type(x) is type(y), path


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with step 5, which tests read only."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with checkpoint.Checkpoints(folder, CONFIGURATION) as checkpoints:
        checkpoints.save(5, make_state(2.0))
    return folder


def test_restores_every_kind_of_leaf_bit_for_bit(written):
    with checkpoint.Checkpoints(written, CONFIGURATION) as checkpoints:
        assert (checkpoints.latest, checkpoints.steps) == (5, (5,))
        found = checkpoints.restore(make_state())
    assert_same(found, make_state(2.0))
    # Free to follow the other arguments of a jitted function to any device, as before.
    assert not found["train"].params["w"].committed
    # It goes on as a state does.
    assert raw(jax.random.split(found["key"])) == raw(jax.random.split(jax.random.key(7)))


def test_restores_from_shapes_alone(written):
    like = jax.eval_shape(lambda: {k: v for k, v in make_state().items() if not isinstance(v, int | float)})
    like |= {"calls": 0, "done": False, "rate": 0.0, "tokens": np.zeros(5, np.int32), "rows": np.zeros(3)}
    like["other_key"] = jax.ShapeDtypeStruct((), jax.random.key(0, impl="rbg").dtype)
    with checkpoint.Checkpoints(written, CONFIGURATION) as checkpoints:
        assert_same(checkpoints.restore(like), make_state(2.0))


@pytest.mark.parametrize("before, after", [(8, 1), (1, 4), (8, 2)])
def test_restores_on_another_number_of_devices(tmp_path, before, after):
    place = lambda s, count: jax.device_put(s, shards(count))
    chains = make_state(2.0)["chains"]
    with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(0, {"chains": place(chains, before), "w": jnp.ones(3)})
        # A concrete state and its shapes, one on the first devices, the other on the last.
        found = checkpoints.restore({"chains": place(make_state()["chains"], after), "w": jnp.zeros(3)})
        last = NamedSharding(Mesh(np.array(jax.devices()[-after:]), ("i",)), P("i"))
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=last), chains)
        on_last = checkpoints.restore({"chains": like, "w": jnp.zeros(3)})["chains"]
    assert_same(found["chains"], chains)
    assert_same(on_last, chains)
    for leaves, sharding in ((found["chains"], shards(after)), (on_last, last)):
        assert leaves.x.sharding.is_equivalent_to(sharding, 2)
        assert leaves.keys.sharding.is_equivalent_to(sharding, 1)
        assert len({s.device for s in leaves.x.addressable_shards}) == after


def test_restores_onto_the_device_of_like(tmp_path):
    device = jax.devices()[3]
    with checkpoint.Checkpoints(tmp_path, {}) as checkpoints:
        checkpoints.save(0, {"x": jnp.arange(3.0)})
        found = checkpoints.restore({"x": jax.device_put(jnp.zeros(3), device)})["x"]
    assert found.sharding == SingleDeviceSharding(device) and found.tolist() == [0, 1, 2]


def test_keeps_the_last_and_the_best(tmp_path):
    losses = [5.0, np.nan, 1.0, 3.0, np.inf, 2.0, 4.0]
    with checkpoint.Checkpoints(tmp_path, {}, keep=2, best="loss") as checkpoints:
        assert checkpoints.latest is None and checkpoints.best_step is None
        for step, loss in enumerate(losses):
            checkpoints.save(step, {"step": jnp.array(step)}, {"loss": loss, "other": 1.0})
        checkpoints.wait()
        assert checkpoints.steps == (2, 5, 6)
    # The metrics are read again, and 2 stays the best.
    with checkpoint.Checkpoints(tmp_path, {}, keep=2, best="loss") as checkpoints:
        assert checkpoints.best_step == 2
        checkpoints.save(7, {"step": jnp.array(7)}, {"loss": 1.5})
        checkpoints.wait()
        assert (checkpoints.steps, checkpoints.latest) == ((2, 6, 7), 7)
        assert checkpoints.restore({"step": jnp.array(0)}, checkpoints.best_step)["step"] == 2
        with pytest.raises(ValueError, match="metrics must hold 'loss'"):
            checkpoints.save(8, {"step": jnp.array(8)})


def test_donated_and_changed_arrays_are_saved_as_they_were(tmp_path):
    step = jax.jit(lambda x: x + 1.0, donate_argnums=0)
    x, rows = jnp.zeros(100_000), np.zeros(100_000)
    with checkpoint.Checkpoints(tmp_path, {}, keep=10) as checkpoints:
        for index in range(4):
            checkpoints.save(index, {"x": x, "rows": rows})
            x = step(x)
            rows += 1.0
        for index in range(4):
            found = checkpoints.restore({"x": jnp.zeros(100_000), "rows": np.zeros(100_000)}, index)
            assert (found["x"] == index).all() and (found["rows"] == index).all()


OTHERS = [
    ({**CONFIGURATION, "seed": 2}, "seed is 1 there, and 2 was asked for"),
    ({"network": {"width": 9, "layers": [2, 4]}, "seed": 2}, "network.width is 8 there, and 9 was"),
    ({**CONFIGURATION, "network": {"width": 8, "layers": [2, 4]}}, "network.layers.1 is 3 there, and 4 was"),
    ({**CONFIGURATION, "network": {"width": 8, "layers": (2,)}}, "network.layers.1 is 3 there, and absent"),
    ({**CONFIGURATION, "rate": 0.1}, "rate is absent there, and 0.1 was asked for"),
    ({"seed": 1}, "network is {.*} there, and absent was asked for"),
    ({**CONFIGURATION, "seed": True}, "seed is 1 there, and True was asked for"),
]


@pytest.mark.parametrize("asked, message", OTHERS)
def test_refuses_another_configuration(written, asked, message):
    with pytest.raises(ValueError, match=f"{written.name} holds .* another configuration: {message}"):
        checkpoint.Checkpoints(written, asked)


def test_refuses_another_version(written, monkeypatch):
    monkeypatch.setattr(folder, "VERSION", 2)
    with pytest.raises(ValueError, match="version is 1 there, and 2 here"):
        checkpoint.Checkpoints(written, CONFIGURATION)


def test_the_same_configuration_in_other_containers(written):
    same = {"network": {"layers": np.array([2, 3]), "width": np.int32(8)}, "seed": 1}
    checkpoint.Checkpoints(written, same).close()


def changed(**leaves):
    return make_state() | leaves


LIKES = [
    (changed(extra=1.0), "like has extra, which the checkpoint lacks"),
    ({k: v for k, v in make_state().items() if k != "key"}, "like lacks key, which the checkpoint has"),
    (changed(tokens=np.zeros(6, np.int32)), r"tokens has shape \[5\] in the checkpoint, and \[6\] in like"),
    (changed(tokens=np.zeros(5)), "tokens has dtype int32 in the checkpoint, and float64 in like"),
    (changed(calls=3.0), "calls has dtype int64 in the checkpoint, and float64 in like"),
    (changed(key=jnp.zeros(2, jnp.uint32)), r"key has shape \[\] in the checkpoint, and \[2\] in like"),
    (changed(other_key=jax.random.key(1)), "other_key has dtype key<rbg> in the checkpoint, and key<fry>"),
    (changed(chains=make_state()["chains"]._replace(x=jnp.zeros((4, 2)))), r"chains.x has shape \[8, 2\]"),
]


@pytest.mark.parametrize("like, message", LIKES)
def test_refuses_another_structure_shape_or_dtype(written, like, message):
    with checkpoint.Checkpoints(written, CONFIGURATION) as checkpoints:
        with pytest.raises(ValueError, match=message):
            checkpoints.restore(like)


def test_bad_arguments(tmp_path):
    for arguments, error, message in [
        ({"keep": 0}, ValueError, "keep"),
        ({"best": 3}, TypeError, "best"),
        ({"configuration": 3}, TypeError, "configuration must be a mapping"),
        ({"configuration": {"a": {"b": object()}}}, TypeError, "configuration.a.b must be plain data"),
        ({"configuration": {3: 1}}, TypeError, "configuration must have strings"),
    ]:
        with pytest.raises(error, match=message):
            checkpoint.Checkpoints(tmp_path / "never", **{"configuration": {}, **arguments})
    with checkpoint.Checkpoints(tmp_path / "a", {}) as checkpoints:
        with pytest.raises(ValueError, match="no checkpoint in .*a"):
            checkpoints.restore({"x": 1})
        with pytest.raises(TypeError, match="a.text must be an array or a number, got str"):
            checkpoints.save(0, {"a": {"text": "x"}})
        with pytest.raises(ValueError, match="at least one array"):
            checkpoints.save(0, {"a": None, "b": ()})
        checkpoints.save(3, {"x": 1})
        for step in (3, 2):
            with pytest.raises(ValueError, match=f"step must be above 3, the last one saved, got {step}"):
                checkpoints.save(step, {"x": 1})
        with pytest.raises(ValueError, match=r"step must be one of \(3,\) to be restored, got 2"):
            checkpoints.restore({"x": 1}, 2)


@pytest.mark.parametrize("harm", ["removed", "cut"])
def test_a_torn_checkpoint_is_never_loaded(written, tmp_path, harm):
    """With any one of its files removed or cut in half it raises, or still gives every bit."""
    names = [p.relative_to(written) for p in sorted(written.rglob("*")) if p.is_file()]
    refused = []
    for index, name in enumerate(names):
        folder = tmp_path / str(index)
        shutil.copytree(written, folder)
        whole = (folder / name).read_bytes()
        os.remove(folder / name) if harm == "removed" else (folder / name).write_bytes(
            whole[: len(whole) // 2]
        )
        try:
            with checkpoint.Checkpoints(folder, CONFIGURATION) as checkpoints:
                found = checkpoints.restore(make_state())
        except ValueError:
            refused.append(name)
        else:
            assert_same(found, make_state(2.0))
    # The description, the index of the arrays and their data; orbax leaves some files that nothing reads.
    assert len(refused) >= 4, refused


def test_what_was_left_of_writing_or_deleting_is_no_checkpoint(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    # Died while writing step 7, and while deleting step 4.
    shutil.copytree(written / "5", tmp_path / "7.orbax-checkpoint-tmp")
    shutil.copytree(written / "5", tmp_path / "4")
    os.remove(tmp_path / "4" / "_CHECKPOINT_METADATA")
    with checkpoint.Checkpoints(tmp_path, CONFIGURATION) as checkpoints:
        assert checkpoints.steps == (5,)
        # A reader removes nothing, the writer what nobody else is writing.
        assert (tmp_path / "7.orbax-checkpoint-tmp").exists()
        checkpoints.save(7, make_state(3.0))
        checkpoints.wait()
        assert not (tmp_path / "7.orbax-checkpoint-tmp").exists()
        assert_same(checkpoints.restore(make_state()), make_state(3.0))


def test_nothing_is_pickled(written):
    for source in pathlib.Path(checkpoint.__file__).parent.glob("*.py"):
        assert "import pickle" not in source.read_text()
    # What pickle writes begins with its protocol.
    for path in written.rglob("*"):
        assert not path.is_file() or not path.read_bytes().startswith(b"\x80")


@dataclasses.dataclass(frozen=True)
class Settings:
    rate: float
    gate: Any
    hidden: Any = dataclasses.field(default=None, repr=False)


def test_configurations_as_plain_data():
    gate = functools.partial(make_state, value=2.0)
    found = configuration.plain({"s": Settings(0.1, gate, object()), "chains": Chains(1, (2, None), Chains)})
    assert found == {
        "s": {
            "class": "Settings",
            "rate": 0.1,
            "gate": {"func": "make_state", "args": [], "keywords": {"value": 2.0}},
        },
        "chains": {"class": "Chains", "x": 1, "keys": [2, None], "empty": "Chains"},
    }
    nan = configuration.plain({"a": [1, np.float32(np.nan)]})
    assert configuration.first_difference(nan, {"a": [1, float("nan")]}) is None
    assert configuration.first_difference(nan, {"a": [1, 2.0]}) == ("a.1", "nan", "2.0")


def test_the_loop_of_the_documentation_runs_and_resumes(tmp_path, monkeypatch):
    path = pathlib.Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"
    (code,) = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    whole, interrupted, resumed = {}, {}, {}
    with jax.numpy_rank_promotion("allow"):  # as a reader has it
        exec(code, whole)
        shutil.rmtree(tmp_path / "results")
        exec(code.replace("300", "150"), interrupted)
        exec(code, resumed)
    assert (interrupted["first"], resumed["first"]) == (0, 100)
    assert whole["checkpoints"].steps == resumed["checkpoints"].steps == (100, 200, 300)
    assert_same(resumed["state"], whole["state"])
