"""The image potential: the official network's numbers, second derivatives, precision, dropout, bad input."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import official_weights
import pytest
from jax.sharding import PartitionSpec as P

from egm import random
from energymatch import convert, networks
from energymatch.networks import _unet_vit_blocks as blocks

FIXTURE = pathlib.Path(__file__).resolve().parents[3] / "shared" / "fixtures" / "official_unet_vit_small"
KEY = jax.random.key(0)
TINY = networks.UNetViTPotential(
    num_channels=32,
    num_res_blocks=1,
    channel_mult=(1, 2),
    attention_resolutions=(),
    num_head_channels=16,
    embed_dim=8,
    num_transformer_heads=2,
    num_transformer_layers=1,
    output_scale=3.0,
)
LEVEL = TINY.clone(channel_mult=(1,))
"""Less to compile: one level, so only the resampling, which is linear, is not in it."""


def known(name):
    """(network, params, x [B, H, W, C], V, velocity) of an official network of that name."""
    if name == "fixture":
        with np.load(f"{FIXTURE}_weights.npz") as weights, np.load(f"{FIXTURE}.npz") as data:
            weights, x = dict(weights), data["x"]
            potential, velocity = data["potential"], data["velocity"]
        given = {"num_head_channels": 16}
    else:
        weights, x, potential, velocity = official_weights.official(name)
        fields = ("num_heads", "num_head_channels", "num_transformer_heads", "output_scale")
        given = {field: official_weights.NETWORKS[name][field] for field in fields}
    network = networks.UNetViTPotential(**convert.configuration(weights, **given))
    to_ours = lambda images: np.transpose(images, (0, 2, 3, 1))
    params = convert.from_official(weights)
    return network, params, jnp.asarray(to_ours(x)), potential, to_ours(velocity)


def drawn(shapes, seed):
    """Normal numbers of those shapes, float64 where it is enabled; layers keep the scale of their input."""
    generator = np.random.default_rng(seed)
    scaled = lambda shape: generator.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
    return jax.tree.map(lambda a: jnp.asarray(scaled(a.shape), float), shapes)


def away_from_zero(network, shape=(5, 8, 8, 3)):
    """Images between -1 and 1, and parameters of which none is at its start at 0."""
    x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), float)
    return x, drawn(jax.eval_shape(network.init, KEY, x), 1)


def with_velocity(network):
    @jax.jit
    def both(params, x):
        total, pull = jax.vjp(lambda x: network.apply(params, x), x)
        return total, -pull(jnp.ones_like(total))[0]

    return both


def relative(came, expected):
    return np.linalg.norm(came - expected) / np.linalg.norm(expected)


# The first two are in this repository; the third, of the paper's own code, lies beside some checkouts.
@pytest.mark.parametrize("name", ["gray", "color"] + ["fixture"] * FIXTURE.with_suffix(".npz").exists())
def test_numbers_of_the_official_network(name):
    network, params, x, potential, velocity = known(name)
    came, pull = with_velocity(network)(params, x)
    # Float32 through 30 layers; measured 1e-6 to 3e-6.
    assert relative(came, potential) < 2e-5 and relative(pull, velocity) < 2e-5


def test_size_of_the_published_network():
    shapes = jax.eval_shape(networks.UNetViTPotential().init, KEY, jnp.zeros((1, 32, 32, 3)))
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    assert count(shapes) == 49_985_796
    head = ("patches", "position", "head", *(f"layer_{i}" for i in range(8)))
    width = 384
    layer = 12 * width**2 + 13 * width  # 3 + 1 + 4 + 4 of width^2; 3 + 1 + 4 + 1 biases, 4 of two norms
    expected = (48 * width + width) + 64 * width + 8 * layer + width + 1
    assert count({name: shapes["params"][name] for name in head}) == expected


def test_starts_flat_and_can_learn():
    """V is the same number for all images at first, as in the published network; its gradient is not 0."""
    x, _ = away_from_zero(LEVEL, (2, 8, 8, 3))
    params = jax.jit(LEVEL.init)(KEY, x)

    def loss(params):
        total, pull = jax.vjp(lambda x: LEVEL.apply(params, x), x)
        return jnp.sum(jnp.square(pull(jnp.ones_like(total))[0] + x)), total

    slopes, total = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert np.ptp(total) == 0
    assert np.linalg.norm(slopes["params"]["conv_out"]["kernel"]) > 1e-3


def test_gradient_of_the_gradient_against_differences(x64):
    """Of mean (grad_x V)^2, along a random direction of the parameters and of x."""
    x, params = away_from_zero(LEVEL, (2, 8, 8, 1))

    def total(params, x):
        return jnp.mean(jax.grad(lambda x: jnp.sum(LEVEL.apply(params, x)))(x) ** 2)

    both = jax.jit(jax.value_and_grad(total, (0, 1)))  # compiled once, for its values too

    direction = drawn((params, x), 3)
    _, gradients = both(params, x)
    expected = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradients, direction)))

    def difference(h):
        at = lambda h: both(*jax.tree.map(lambda a, d: a + h * d, (params, x), direction))[0]
        return (at(h) - at(-h)) / (2 * h)

    # Two central differences, the error of order h^2 eliminated: order h^4, and rounding 1e-16 / h.
    h = 1e-4
    np.testing.assert_allclose((4 * difference(h) - difference(2 * h)) / 3, expected, rtol=1e-6)


def test_groups_without_variance():
    """A flat image: the normalisation has finite second derivatives there too, and they are as by hand."""
    norm = blocks.group_norm("norm", None)
    flat = jnp.ones((1, 2, 2, blocks.GROUPS))
    params = {"params": {"scale": jnp.ones(blocks.GROUPS), "bias": jnp.zeros(blocks.GROUPS)}}
    step = jnp.zeros_like(flat).at[0, 0, 0, 0].set(1.0)
    moved = lambda h: jnp.sum(step * norm.apply(params, flat + h * step))
    # One of four pixels moved by h: deviation 3 h / 4, variance 3 h^2 / 16; three derivatives of
    # 3 h / 4 / sqrt(3 h^2 / 16 + epsilon) at 0.
    first, second = jax.grad(moved), jax.grad(jax.grad(moved))
    first, second, third = jax.jit(lambda h: (first(h), second(h), jax.grad(second)(h)))(0.0)
    slope = 0.75 / np.sqrt(blocks.EPSILON)
    np.testing.assert_allclose([first, second], [slope, 0], rtol=1e-5)
    np.testing.assert_allclose(third, -3 * slope * 3 / 16 / blocks.EPSILON, rtol=1e-4)


def test_each_example_alone(x64):
    x, params = away_from_zero(TINY, (3, 8, 8, 3))
    together = jax.jit(TINY.apply)(params, x)
    alone = jax.jit(jax.vmap(lambda image: TINY.apply(params, image[None])[0]))(x)
    assert together.shape == (3,) and np.std(together) > 1e-2
    np.testing.assert_allclose(together, alone, rtol=1e-11)


def test_images_need_not_be_square():
    """Rows and columns exchanged in image, windows and positions: the same V."""
    network = TINY.clone(attention_resolutions=(8, 4), patch_size=2)
    x, params = away_from_zero(network, (2, 8, 8, 3))
    wide = x[:, :4]
    params["params"]["position"] = params["params"]["position"][:8]
    turned = jax.tree.map(lambda a: a.swapaxes(0, 1) if a.ndim == 4 else a, params)
    turned["params"]["position"] = params["params"]["position"].reshape(2, 4, 8).swapaxes(0, 1).reshape(8, 8)
    # Both have attention everywhere: of the width 8 at all levels, of 4 at the first and (16 // 8) second.
    tall = network.clone(attention_resolutions=(4, 2))
    came = jax.jit(tall.apply)(turned, wide.swapaxes(1, 2))
    np.testing.assert_allclose(came, jax.jit(network.apply)(params, wide), rtol=1e-4, atol=1e-4)


def test_bfloat16_keeps_float32_outside():
    network, params, x, potential, velocity = known("color")
    half = network.clone(dtype=jnp.bfloat16)
    came, pull = with_velocity(half)(params, x)
    assert came.dtype == pull.dtype == jnp.float32
    # 8 bits: 2e-3 a rounding, through 30 layers; measured .01 and .03. And it does compute in 8 bits.
    assert 1e-4 < relative(came, potential) < 0.05 and 1e-4 < relative(pull, velocity) < 0.1
    slopes = jax.eval_shape(jax.grad(lambda p: jnp.sum(half.apply(p, x))), params)
    assert {a.dtype for a in jax.tree.leaves(slopes)} == {jnp.dtype(jnp.float32)}
    initial = jax.eval_shape(half.init, KEY, x)
    assert {a.dtype for a in jax.tree.leaves(initial)} == {jnp.dtype(jnp.float32)}


def test_dropout_by_hand():
    x = jnp.full((4, 50_000), 3.0)
    came = np.asarray(blocks.dropped(x, 0.25, jax.random.split(KEY, 4)))
    assert set(np.unique(came)) == {0.0, 4.0}
    # A share of 3/4 stays: standard error sqrt(3/16 / 5e4) = .0019 an example, five of them.
    np.testing.assert_allclose(np.mean(came > 0, axis=1), 0.75, atol=0.01)
    assert not np.array_equal(came[0], came[1])
    assert blocks.dropped(x, 0.25, None) is x and blocks.dropped(x, 0.0, jax.random.split(KEY, 4)) is x


def test_dropout_of_the_network():
    x, params = away_from_zero(LEVEL, (4, 8, 8, 3))
    dropping = LEVEL.clone(dropout=0.2)
    apply = jax.jit(dropping.apply)
    keys = random.example_keys(KEY, 4)
    plain = apply(params, x)
    without_rate = jax.jit(lambda params, x: LEVEL.apply(params, x, KEY))
    np.testing.assert_array_equal(plain, without_rate(params, x))
    dropped = apply(params, x, keys)
    assert np.all(np.abs(dropped - plain) > 1e-6)
    assert np.all(np.abs(dropped - apply(params, x, random.example_keys(jax.random.key(1), 4))) > 1e-6)
    # One key stands for those of all examples.
    one = jax.jit(lambda params, x: dropping.apply(params, x, KEY))
    np.testing.assert_array_equal(one(params, x), dropped)
    # Every example follows its own key: equal images and keys give equal numbers, other keys others.
    same = jnp.stack([x[0]] * 4)
    came = apply(params, same, keys[jnp.array([0, 0, 1, 1])])
    np.testing.assert_allclose(came, [dropped[0], dropped[0], came[2], came[2]], rtol=1e-5, atol=1e-5)
    assert abs(came[0] - came[2]) > 1e-3


def test_rematerialisation_keeps_little_for_a_gradient_of_a_gradient():
    """Numbers kept for it, beside the parameters: an eighth; half of them with one checkpoint a block."""
    x = jnp.zeros((8, 8, 8, 3))

    def kept(network):
        params = jax.eval_shape(network.init, KEY, x)
        loss = lambda p: jnp.sum(jax.grad(lambda x: jnp.sum(network.apply(p, x)))(x) ** 2)
        pull = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
        sizes = [sum(a.size for a in jax.tree.leaves(tree)) for tree in (pull, params)]
        return sizes[0] - sizes[1]

    plain, again = kept(LEVEL), kept(LEVEL.clone(remat=True))
    assert 0 < again < plain / 5, (again, plain)


@pytest.mark.slow
def test_eight_devices_and_rematerialisation_change_no_number(mesh8, x64):
    """V, with dropout, and the parameters' gradient of mean (grad_x V)^2: 8 devices with, one without."""
    plain = LEVEL.clone(dropout=0.2)
    again = plain.clone(remat=True)
    x, params = away_from_zero(plain, (8, 4, 4, 3))
    assert str(jax.eval_shape(again.init, KEY, x)) == str(jax.eval_shape(plain.init, KEY, x))

    def local(network, params, x, keys):
        total = lambda x: jnp.sum(network.apply(params, x, keys))
        return jnp.mean(jax.grad(total)(x) ** 2)

    def step(params, x):
        keys = random.example_keys(KEY, x.shape[0], "i")
        mean = lambda params: jax.lax.pmean(local(again, params, x, keys), "i")
        return again.apply(params, x, keys), jax.grad(mean)(params)

    def single(params, x):
        keys = random.example_keys(KEY, x.shape[0])
        return plain.apply(params, x, keys), jax.grad(lambda p: local(plain, p, x, keys))(params)

    sharded = jax.jit(jax.shard_map(step, mesh=mesh8, in_specs=(P(), P("i")), out_specs=(P("i"), P())))
    single = jax.jit(single)
    assert "remat" in str(jax.make_jaxpr(sharded)(params, x))
    assert "remat" not in str(jax.make_jaxpr(single)(params, x))
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
    jax.tree.map(same, sharded(params, x), single(params, x))


def test_time_features():
    """torchcfm's: frequencies 10^(-4 k / half), cosines before sines, an odd size padded."""
    came = np.asarray(blocks.time_features(0.5, 5))
    angles = 0.5 * np.array([1.0, 1e-2])
    np.testing.assert_allclose(came, [*np.cos(angles), *np.sin(angles), 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "shape", "error", "message"),
    [
        ({}, (2, 8, 8), ValueError, r"x must have shape \[B, H, W, C\] with H and W divisible by 4"),
        ({}, (2, 6, 8, 3), ValueError, "divisible by 4, got"),
        ({"channel_mult": (1,) * 4}, (2, 12, 12, 3), ValueError, "divisible by 8, got"),
        ({}, (2, 8, 8, 0), ValueError, "x must have shape"),
        (
            {"num_channels": 48},
            (2, 8, 8, 3),
            ValueError,
            r"num_channels and channel_mult .* of 32 .*\[48, 96\]",
        ),
        ({"num_channels": 32.0}, (2, 8, 8, 3), TypeError, "num_channels must be an int"),
        ({"num_res_blocks": 0}, (2, 8, 8, 3), ValueError, "num_res_blocks must be at least 1"),
        ({"channel_mult": ()}, (2, 8, 8, 3), ValueError, "channel_mult must have one entry a level"),
        ({"channel_mult": 2}, (2, 8, 8, 3), TypeError, "channel_mult must be a tuple"),
        ({"channel_mult": (1, -1)}, (2, 8, 8, 3), ValueError, "channel_mult must be finite and positive"),
        ({"attention_resolutions": "4"}, (2, 8, 8, 3), TypeError, "attention_resolutions must be a tuple"),
        ({"attention_resolutions": (0,)}, (2, 8, 8, 3), ValueError, "attention_resolutions must be at least"),
        (
            {"num_head_channels": 48},
            (2, 8, 8, 3),
            ValueError,
            "num_head_channels must divide the 64 channels",
        ),
        (
            {"num_head_channels": None, "num_heads": 5},
            (2, 8, 8, 3),
            ValueError,
            "num_heads must divide the 64",
        ),
        (
            {"num_transformer_heads": 3},
            (2, 8, 8, 3),
            ValueError,
            "num_transformer_heads must divide embed_dim",
        ),
        (
            {"num_transformer_layers": 0},
            (2, 8, 8, 3),
            ValueError,
            "num_transformer_layers must be at least 1",
        ),
        ({"patch_size": 3}, (2, 8, 8, 3), ValueError, "divisible by 6, got"),
        ({"output_scale": 0.0}, (2, 8, 8, 3), ValueError, "output_scale must be finite and positive"),
        ({"dropout": 1.0}, (2, 8, 8, 3), ValueError, "dropout must be below 1"),
        ({"dropout": -0.1}, (2, 8, 8, 3), ValueError, "dropout must be finite and non-negative"),
        ({"dtype": jnp.int32}, (2, 8, 8, 3), TypeError, "dtype must be floating point"),
        ({"remat": 1}, (2, 8, 8, 3), TypeError, "remat must be True or False"),
    ],
)
def test_wrong_sizes(fields, shape, error, message):
    with pytest.raises(error, match=message):
        jax.eval_shape(TINY.clone(**fields).init, KEY, jnp.zeros(shape))


def test_wrong_arguments():
    x, params = away_from_zero(TINY, (2, 8, 8, 3))
    with pytest.raises(TypeError, match="x must be floating point, got dtype int32"):
        TINY.apply(params, jnp.zeros((2, 8, 8, 3), int))
    with pytest.raises(TypeError, match="key must be a typed PRNG key"):
        TINY.apply(params, x, 0)
    with pytest.raises(ValueError, match=r"key must be one key or have shape \(2,\)"):
        TINY.apply(params, x, jax.random.split(KEY, 3))
