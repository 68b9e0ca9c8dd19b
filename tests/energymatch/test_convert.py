"""Official weights to parameters: each used once, errors that name them, configurations, files.

That the numbers are the official network's is in test_em_unet_vit.py.
"""

import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import official_weights
import pytest

from energymatch import convert, networks
from energymatch.convert import official

COLOR = official_weights.official("color")[0]
FIELDS = ("num_heads", "num_head_channels", "num_transformer_heads", "output_scale")
PUBLISHED = networks.UNetViTPotential()


def empty(weights):
    """The same names and shapes without memory."""
    return {name: np.broadcast_to(np.float32(0), np.shape(value)) for name, value in weights.items()}


def published():
    """Names and shapes of the published network's weights."""
    names = convert.configuration(COLOR).keys()
    config = {name: getattr(PUBLISHED, name) for name in names}
    table = official.table(config, side=32, colors=3)
    return {weight.name: np.broadcast_to(np.float32(0), weight.shape) for weight in table}


@pytest.mark.parametrize("name", official_weights.NETWORKS)
def test_configuration(name):
    weights = official_weights.official(name)[0]
    expected = official_weights.NETWORKS[name]
    came = convert.configuration(weights, **{field: expected[field] for field in FIELDS})
    assert came == {**expected, "attention_resolutions": came["attention_resolutions"]}
    # (16, 4) or (8,), the widths themselves, in the order of the levels.
    assert came["attention_resolutions"] == expected["attention_resolutions"]
    x = jnp.zeros(np.array(official_weights.IMAGES[name])[[0, 2, 3, 1]])
    shapes = jax.eval_shape(networks.UNetViTPotential(**came).init, jax.random.key(0), x)
    same = jax.tree.map(
        lambda a, b: a.shape == b.shape and a.dtype == b.dtype, shapes, convert.from_official(weights)
    )
    assert all(jax.tree.leaves(same))


def test_configuration_of_the_published_network():
    weights = published()
    assert sum(a.size for a in weights.values()) == 49_985_796
    config = convert.configuration(weights)
    assert networks.UNetViTPotential(**config) == PUBLISHED


@pytest.mark.parametrize("name", official_weights.NETWORKS)
def test_every_weight_is_used_once(name):
    """Weight k is full of k; so is one parameter."""
    weights = official_weights.official(name)[0]
    marked = {key: np.full_like(value, k) for k, (key, value) in enumerate(weights.items())}
    leaves = jax.tree.leaves(convert.from_official(marked))
    assert all(np.ptp(a) == 0 for a in leaves)
    assert sorted(float(np.ravel(a)[0]) for a in leaves) == list(range(len(weights)))
    assert sum(a.size for a in leaves) == sum(a.size for a in weights.values())


def test_each_missing_weight_is_named():
    weights = empty(COLOR)
    for name in weights:
        with pytest.raises(ValueError) as caught:
            convert.from_official({key: value for key, value in weights.items() if key != name})
        assert name in str(caught.value), name
        # Nothing else is blamed, save for the two without which the size of the images is not known.
        if "patch_embed.p" not in name or name.endswith("bias"):
            assert str(caught.value).endswith(f"missing: {name}"), str(caught.value)


def test_each_misshaped_weight_is_named():
    weights = empty(COLOR)
    for name, value in weights.items():
        for axis in range(value.ndim):
            shape = [size + (i == axis) for i, size in enumerate(value.shape)]
            with pytest.raises(ValueError) as caught:
                convert.from_official({**weights, name: np.broadcast_to(np.float32(0), shape)})
            assert name in str(caught.value) and str(tuple(shape)) in str(caught.value), (name, shape)
        with pytest.raises(ValueError) as caught:
            convert.from_official({**weights, name: np.float32(0)})
        assert name in str(caught.value) and "got shape ()" in str(caught.value).replace(
            "got ()", "got shape ()"
        )


def test_surplus_weights_are_named():
    extra = {"energy_clamp": np.zeros(1), "input_blocks.1.0.in_layers.9.weight": np.zeros(3)}
    with pytest.raises(ValueError, match="surplus: energy_clamp, input_blocks.1.0.in_layers.9.weight$"):
        convert.from_official({**empty(COLOR), **extra})


def test_all_that_is_wrong_is_said_at_once():
    weights = {**empty(COLOR), "more": np.zeros(1), "out.2.bias": np.zeros(7, np.float32)}
    del weights["time_embed.0.bias"], weights["final_linear.weight"]
    message = (
        "missing: final_linear.weight, time_embed.0.bias; surplus: more; misshaped: out.2.bias must have"
    )
    with pytest.raises(ValueError, match=message):
        convert.from_official(weights)


def test_wrong_values_are_named():
    name = "middle_block.1.qkv.bias"
    with pytest.raises(TypeError, match=rf"floating point weights, got {name} \(int64\)"):
        convert.from_official({**COLOR, name: np.zeros(192, np.int64)})
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match=f"finite weights, got others in {name}"):
            convert.from_official({**COLOR, name: np.full(192, bad, np.float32)})


def test_wrong_mappings():
    for wrong in ([1], {1: np.zeros(2)}):
        with pytest.raises(TypeError, match="state_dict must map names to arrays"):
            convert.from_official(wrong)
    with pytest.raises(ValueError, match="none called patch_embed.patch_embed.weight: nothing"):
        convert.from_official({})
    with pytest.raises(ValueError, match="none called patch_embed.patch_embed.weight: ema_model, net_model"):
        convert.configuration({"net_model": {}, "ema_model": {}})
    unet = {
        name: value for name, value in COLOR.items() if name.startswith(("patch", "transformer", "final"))
    }
    with pytest.raises(ValueError, match="weights of an official U-Net"):
        convert.from_official(unet)
    crop = {**COLOR, "patch_embed.pos_embed": np.zeros((1, 12, 32), np.float32)}
    with pytest.raises(ValueError, match="patch_embed.pos_embed must have a square number of positions"):
        convert.from_official(crop)


def test_half_precision_becomes_float32():
    half = {name: value.astype(jnp.bfloat16) for name, value in COLOR.items()}
    leaves = jax.tree.leaves(convert.from_official(half))
    assert {a.dtype for a in leaves} == {jnp.dtype(jnp.float32)}


def test_select():
    net, ema = {"module.a": 1, "b": 2}, {"a": 3, "module.b": 4}
    both = {"net_model": net, "ema_model": ema, "step": 5, "optim": {}}
    assert convert.select(both) == {"a": 3, "b": 4} == convert.select(both, "ema_model")
    assert convert.select(both, "net_model") == {"a": 1, "b": 2} == convert.select({"net_model": net})
    assert convert.select(net) == {"a": 1, "b": 2}
    with pytest.raises(
        ValueError, match="weights must be in the checkpoint, got 'ema_model', not in: net_model"
    ):
        convert.select({"net_model": net}, "ema_model")
    with pytest.raises(TypeError, match="checkpoint must be a mapping, got list"):
        convert.select([])


def test_folder_and_back(tmp_path):
    config, params = convert.configuration(COLOR, num_head_channels=16), convert.from_official(COLOR)
    convert.save(tmp_path / "new" / "one", config, params)
    again, restored = convert.load(tmp_path / "new" / "one")
    assert again == config
    assert hash(networks.UNetViTPotential(**again)) == hash(networks.UNetViTPotential(**config))
    jax.tree.map(np.testing.assert_array_equal, restored, params)
    assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(restored))
    with pytest.raises(FileExistsError, match="folder must not hold params yet"):
        convert.save(tmp_path / "new" / "one", config, params)
    with pytest.raises(FileNotFoundError, match="folder must hold network.json"):
        convert.load(tmp_path)
    with pytest.raises(TypeError):  # found out before anything is written
        convert.save(tmp_path / "two", {"dtype": jnp.float32}, params)
    assert not (tmp_path / "two").exists()


def test_parameters_of_other_devices_are_read(tmp_path, mesh8):
    """Saved as replicated over eight devices, read onto the default one."""
    everywhere = jax.sharding.NamedSharding(mesh8, jax.sharding.PartitionSpec())
    params = jax.device_put({"params": {"a": jnp.arange(8.0)}}, everywhere)
    convert.save(tmp_path, {}, params)
    (leaf,) = jax.tree.leaves(convert.load(tmp_path)[1])
    assert leaf.devices() == {jax.devices()[0]}
    np.testing.assert_array_equal(leaf, np.arange(8.0))


def fake_torch(checkpoint):
    """As much of torch as the command line uses; its tensors are numpy arrays."""

    def load(file, map_location, weights_only):
        assert (file, map_location, weights_only) == ("official.pt", "cpu", True)
        return checkpoint

    return types.SimpleNamespace(load=load, Tensor=np.ndarray, bfloat16=jnp.dtype(jnp.bfloat16))


def test_command_line(tmp_path, monkeypatch, capsys):
    ema = {f"module.{name}": 2 * value for name, value in COLOR.items()}
    monkeypatch.setitem(sys.modules, "torch", fake_torch({"net_model": COLOR, "ema_model": ema, "step": 3}))
    flags = ["--num_head_channels=16", "--output_scale=100"]
    convert.main(["official.pt", str(tmp_path / "ema"), *flags])
    convert.main(["official.pt", str(tmp_path / "net"), "--weights=net_model", "--num_head_channels=0"])
    assert f"{sum(a.size for a in COLOR.values()):,} parameters" in capsys.readouterr().out
    expected = convert.from_official(COLOR)
    config, params = convert.load(tmp_path / "ema")
    assert config == convert.configuration(COLOR, num_head_channels=16, output_scale=100.0)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), params, expected)
    config, params = convert.load(tmp_path / "net")
    assert config["num_head_channels"] is None and config["output_scale"] == 1000.0
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert json.loads((tmp_path / "net" / "network.json").read_text())["channel_mult"] == [1, 2]


def test_command_line_without_torch(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="needs PyTorch: pip install torch"):
        convert.main(["official.pt", str(tmp_path)])
