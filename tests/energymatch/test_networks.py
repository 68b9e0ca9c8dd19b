"""Networks for potentials: sizes by hand, second derivatives, the confining wall, bad input."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from energymatch import curvature, networks
from energymatch.networks import convolutional

KEY = jax.random.key(0)
NETS = {
    "mlp": (networks.MLPPotential(width=16, depth=2, confinement_radius=2.0), (3,)),
    "mlp on images": (networks.MLPPotential(width=16, depth=2, scale=(0.5,) * 8), (2, 4, 1)),
    "features": (networks.MLPPotential(width=16, depth=1, features=lambda z: jnp.sin(2 * z)), (2,)),
    "conv": (networks.ConvPotential(width=4, num_stages=1, head_width=8, confinement_radius=2.0), (4, 2, 3)),
    "conv with local energies": (
        networks.ConvPotential(width=4, num_stages=1, head_width=8, local_energies=True),
        (4, 2, 3),
    ),
}


def count(params):
    return sum(a.size for a in jax.tree.leaves(params))


def in_float64(net, event, batch=5):
    """x [B, *event], some of it beyond a radius of 2, and parameters away from their small start."""
    x = 1.5 * jax.random.normal(KEY, (batch, *event), jnp.float64)
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), jax.jit(net.init)(jax.random.key(1), x))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [a + 0.1 * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys)]
    return x, jax.tree.unflatten(structure, moved)


def test_published_network():
    """2-256-256-256-256-1: dense layers, SiLU between them, nothing else."""
    net = networks.MLPPotential(width=256, depth=4)
    x = 3 * jax.random.normal(KEY, (7, 2))
    params = jax.jit(net.init)(jax.random.key(1), x)
    assert count(params) == (2 * 256 + 256) + 3 * (256 * 256 + 256) + (256 + 1) == 198_401
    layers = params["params"]
    hidden = np.asarray(x, np.float64)
    for i in range(5):
        kernel, bias = (np.asarray(layers[f"Dense_{i}"][k], np.float64) for k in ("kernel", "bias"))
        hidden = hidden @ kernel + bias
        hidden = hidden / (1 + np.exp(-hidden)) if i < 4 else hidden
    # Five layers in float32: errors of a few 1e-7 a layer relative to values of order 1.
    np.testing.assert_allclose(net.apply(params, x), hidden[:, 0], rtol=1e-5, atol=1e-5)


def test_size_of_the_default_convolutional_network():
    params = jax.eval_shape(networks.ConvPotential().init, KEY, jnp.zeros((2, 8, 8, 1)))
    first = (4 * 1 * 32 + 32) + (9 * 32 * 32 + 32)
    second = (4 * 32 * 64 + 64) + (9 * 64 * 64 + 64)
    assert count(params) == first + second + (2 * 2 * 64 * 128 + 128) + (128 + 1) == 87_617


@pytest.mark.parametrize("net, event", NETS.values(), ids=NETS)
def test_each_example_alone(net, event, x64):
    x, params = in_float64(net, event)
    apply = jax.jit(net.apply)
    together = apply(params, x)
    alone = jnp.concatenate([apply(params, x[i : i + 1]) for i in range(len(x))])
    assert together.shape == (5,) and together.dtype == jnp.float64 and np.std(together) > 1e-3
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    one = jax.jit(jax.vmap(lambda e: net.apply(params, e[None])[0]))
    np.testing.assert_allclose(one(x), alone, rtol=1e-12)


@pytest.mark.parametrize("net, event", NETS.values(), ids=NETS)
def test_gradient_of_the_gradient_against_differences(net, event, x64):
    """Of mean (grad_x V)^2, along a random direction of the parameters and of x."""
    x, params = in_float64(net, event)

    @jax.jit
    def total(params, x):
        slope = jax.grad(lambda x: jnp.sum(net.apply(params, x)))(x)
        return jnp.mean(slope**2)

    arguments = params, x
    leaves, structure = jax.tree.flatten(arguments)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    direction = [jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves)]
    gradients = jax.tree.leaves(jax.jit(jax.grad(total, (0, 1)))(*arguments))
    assert all(np.all(np.isfinite(g)) for g in gradients)
    expected = sum(jnp.vdot(g, d) for g, d in zip(gradients, direction))

    def shifted(h):
        return total(*jax.tree.unflatten(structure, [a + h * d for a, d in zip(leaves, direction)]))

    # A central difference: its error is of order h^2 = 1e-10, rounding 1e-16 / h = 1e-11.
    h = 1e-5
    np.testing.assert_allclose((shifted(h) - shifted(-h)) / (2 * h), expected, rtol=1e-6)


@pytest.mark.parametrize("net, event", NETS.values(), ids=NETS)
def test_center_scale_and_output_scale(net, event, x64):
    """V(c + s x) of a standardised network is V(x) of the plain one; the factor is that of the output."""
    x, params = in_float64(net, event)
    size = math.prod(event)
    center, scale = tuple(np.linspace(-1, 1, size)), tuple(np.linspace(0.5, 2, size))
    plain = net.clone(center=0.0, scale=1.0, confinement_radius=None)
    moved = plain.clone(center=center, scale=scale, output_scale=3.0)
    inputs = x * np.reshape(scale, event)[None] + np.reshape(center, event)[None]
    expected = 3 * jax.jit(plain.apply)(params, x)
    np.testing.assert_allclose(jax.jit(moved.apply)(params, inputs), expected, rtol=1e-9)


def test_the_wall_by_hand(x64):
    plain = networks.MLPPotential(width=8, depth=1)
    walled = plain.clone(center=(1.0, 0.0), confinement_radius=2.0, confinement_strength=10.0)
    direction = np.array([[0.6, 0.8]])
    distance = np.array([0.0, 1.0, 1.999, 2.0, 2.001, 3.0, 6.0])
    x = jnp.asarray(distance[:, None] * direction + np.array([[1.0, 0.0]]))
    params = jax.jit(plain.init)(KEY, x)
    inner = plain.clone(center=(1.0, 0.0))
    wall = jax.jit(lambda x: walled.apply(params, x) - inner.apply(params, x))
    expected = 5 * np.maximum(distance / 2 - 1, 0) ** 2
    np.testing.assert_allclose(wall(x), expected, atol=1e-12)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(wall(x))))(x)
    # 10 (d/2 - 1) / 2 along the direction: zero at the radius from both sides, and at the center.
    expected = (5 * np.maximum(distance / 2 - 1, 0))[:, None] * direction
    np.testing.assert_allclose(slope, expected, atol=1e-12)


def test_confined_density_has_a_finite_integral(x64):
    """Z of exp(-V / epsilon) by quadrature on growing boxes; the plain network's grows for ever."""
    walled = networks.MLPPotential(width=16, depth=2, confinement_radius=3.0)
    x, params = in_float64(walled, (2,))

    def partition(net, half, epsilon, count=801):
        nodes = jnp.linspace(-half, half, count)
        grid = jnp.stack(jnp.meshgrid(nodes, nodes), axis=-1).reshape(-1, 2)
        log = jax.scipy.special.logsumexp(-jax.jit(net.apply)(params, grid) / epsilon)
        return float(log + 2 * jnp.log(nodes[1] - nodes[0]))

    # Beyond radius 8, V / epsilon > 50 (8/3 - 1)^2 / epsilon - slope: far below exp(-30) of the peak.
    for epsilon in (0.15, 1.0):
        inner, outer = (partition(walled, half, epsilon) for half in (8.0, 16.0))
        # Trapezoids of spacing .02 and .04 on a function of length > .1: their error is below 1e-4.
        assert abs(inner - outer) < 1e-3
    plain = walled.clone(confinement_radius=None)
    assert partition(plain, 16.0, 1.0) - partition(plain, 8.0, 1.0) > 0.5


def test_windows_and_patches_are_convolutions(x64):
    x = jax.random.normal(KEY, (2, 4, 6, 3))
    for rows, size, stride in ((convolutional.windows(x), 3, 1), (convolutional.patches(x), 2, 2)):
        kernel = jax.random.normal(KEY, (size, size, 3, 5))
        came = rows @ kernel.reshape(-1, 5)
        padding = "SAME" if stride == 1 else "VALID"
        numbers = ("NHWC", "HWIO", "NHWC")
        conv = jax.lax.conv_general_dilated(x, kernel, (stride,) * 2, padding, dimension_numbers=numbers)
        np.testing.assert_allclose(came, conv, rtol=1e-10, atol=1e-10)


def test_convolutional_potential_sees_the_whole_image():
    net = networks.ConvPotential()
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    params = jax.jit(net.init)(jax.random.key(1), x)
    slope = jax.jit(jax.grad(lambda x: jnp.sum(net.apply(params, x))))(x)
    assert slope.shape == x.shape and np.all(slope != 0)


def test_local_energies_add_a_linear_function_of_every_place():
    """V with them, less V of the same parameters without, is what their weights make of the activations."""
    net = networks.ConvPotential(width=3, num_stages=1, depth=0, head_width=4, output_scale=2.0)
    x = jax.random.normal(KEY, (2, 4, 6, 2))
    params = jax.jit(net.clone(local_energies=True).init)(jax.random.key(1), x)
    layers = params["params"] | {"local_0": {"kernel": jnp.array([[1.0], [-0.5], [2.0]])}}
    assert np.all(params["params"]["local_0"]["kernel"] == 0)  # they start as nothing
    params = {"params": layers}
    plain = {"params": {name: layers[name] for name in layers if not name.startswith("local")}}
    hidden = convolutional.patches(x) @ layers["Dense_0"]["kernel"]  # its bias is 0
    expected = 2.0 * jnp.sum(nn.silu(hidden) @ layers["local_0"]["kernel"], axis=(1, 2, 3))
    came = net.clone(local_energies=True).apply(params, x) - net.apply(plain, x)
    np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-4)
    assert np.all(np.abs(expected) > 1e-2)


def test_lanczos_counts_the_hessian_of_a_convolutional_potential():
    """The path that 28x28 digits take: forward over reverse, against the dense matrix."""
    net = networks.ConvPotential(width=4, head_width=8, local_energies=True, output_scale=30.0)
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    params = jax.jit(net.init)(jax.random.key(1), x)
    potential = functools.partial(net.apply, params)
    exact = np.asarray(jax.jit(lambda x: curvature.spectrum(potential, x))(x))
    for threshold in np.quantile(np.abs(exact), (0.25, 0.75)) + 1e-4 * np.abs(exact).max():
        count = functools.partial(
            curvature.local_intrinsic_dimension, potential, threshold=threshold, method="lanczos", key=KEY
        )
        np.testing.assert_array_equal(jax.jit(count)(x), np.sum(np.abs(exact) < threshold, axis=1))


X, IMAGE = jnp.ones((2, 3)), jnp.ones((2, 8, 8, 1))
MLP, CONV = networks.MLPPotential, networks.ConvPotential


@pytest.mark.parametrize(
    "net, x, error, message",
    [
        (MLP(), X.astype(int), TypeError, "x must be floating point, got dtype int32"),
        (MLP(), X[0], ValueError, r"x must have at least 2 axes, got shape \(3,\)"),
        (MLP(width=0), X, ValueError, "width must be at least 1, got 0"),
        (MLP(depth=1.5), X, TypeError, "depth must be an int, got 1.5"),
        (
            MLP(center=(0.0, 1.0)),
            X,
            ValueError,
            r"center must be a number or a tuple of 3.* shape \(2,\)",
        ),
        (MLP(center=math.nan), X, ValueError, "center must be finite, got nan"),
        (MLP(scale=(1.0, 1.0, 0.0)), X, ValueError, "scale must be finite and positive, got 0.0"),
        (MLP(scale="1"), X, TypeError, "scale must be a number, got '1'"),
        (MLP(output_scale=-1.0), X, ValueError, "output_scale must be finite and positive, got -1.0"),
        (MLP(confinement_radius=0.0), X, ValueError, "confinement_radius must be finite and positive"),
        (MLP(confinement_strength=0.0), X, ValueError, "confinement_strength must be finite and positive"),
        (MLP(features=jnp.sum), X, ValueError, r"features must return shape \[2, F\], got \(\)"),
        (
            CONV(),
            X,
            ValueError,
            r"x must have shape \[B, H, W, C\] with H and W .* by 4, got \(2, 3\)",
        ),
        (CONV(num_stages=4), IMAGE, ValueError, r"divisible by 16, got \(2, 8, 8, 1\)"),
        (CONV(num_stages=0), IMAGE, ValueError, "num_stages must be at least 1, got 0"),
        (CONV(depth=-1), IMAGE, ValueError, "depth must be at least 0, got -1"),
        (CONV(), IMAGE.astype(int), TypeError, "x must be floating point"),
        (CONV(local_energies=1), IMAGE, TypeError, "local_energies must be"),
        (CONV(head_width=2.0), IMAGE, TypeError, "head_width must be an int"),
        (CONV(scale=(1.0,) * 8), IMAGE, ValueError, "scale must be a number or a tuple of 64"),
    ],
)
def test_bad_input(net, x, error, message):
    with pytest.raises(error, match=message):
        net.init(KEY, x)


def test_networks_hash_and_compare():
    """A module is a static argument: equal fields are one trace."""
    assert hash(MLP(center=(0.0, 1.0))) == hash(MLP(center=(0.0, 1.0)))
    assert MLP(activation=nn.softplus) != MLP()
