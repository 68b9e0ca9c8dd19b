"""Networks on tokens: their symmetries hold exactly, whatever the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egm import energies, networks
from egm.networks.tokens import torus_convolution

SIDE = 4
KEY = jax.random.key(0)
X = jax.random.randint(jax.random.key(1), (6, SIDE**2), 0, 3)
T = jnp.full(6, 0.5)
FLIPPED = jnp.where(X == 2, 2, 1 - X)


def randomized(net):
    """Parameters far from the near-zero start, so that a symmetry is no accident of it."""
    params = net.init(KEY, X, T)
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    noise = [jax.random.normal(k, a.shape) * 0.3 for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, noise)


def shifted(x):
    return jnp.roll(x.reshape(6, SIDE, SIDE), (1, 2), axis=(1, 2)).reshape(6, -1)


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("kind", ["MLP", "Torus"])
def test_symmetries(kind, flip):
    fields = {"vocab_size": 2, "flip": flip} | ({"side": SIDE} if kind == "Torus" else {"width": 32})
    denoiser = getattr(networks, f"{kind}Denoiser")(**fields)
    log_marginal = getattr(networks, f"{kind}LogMarginal")(**fields)
    for net, shape in ((denoiser, (6, SIDE**2, 2)), (log_marginal, (6,))):
        params = randomized(net)
        out = net.apply(params, X, T)
        assert out.shape == shape
        np.testing.assert_array_equal(out, net.apply(params, X, 1 - T))  # time-free
        other = net.apply(params, FLIPPED, T)
        mirrored = other[..., ::-1] if out.ndim == 3 else other
        if flip:
            np.testing.assert_allclose(out, mirrored, atol=1e-5)
        else:
            assert np.max(np.abs(out - mirrored)) > 1e-2
        if kind == "Torus":
            moved = net.apply(params, shifted(X), T)
            back = moved if out.ndim == 1 else jnp.stack([shifted(out[..., v]) for v in (0, 1)], -1)
            np.testing.assert_allclose(moved, out if out.ndim == 1 else back, atol=1e-4)


@pytest.mark.parametrize("side", [3, 16])
def test_torus_convolution_by_its_definition(side):
    """Both routes (products up to 15, the FFT above) against the sum over displacements."""
    kernel, h = jax.random.normal(KEY, (2, side**2)), jax.random.normal(KEY, (2, 3, side**2))
    grid = np.asarray(h).reshape(2, 3, side, side)
    k = np.asarray(kernel).reshape(2, side, side)
    expected = sum(
        k[:, a, b][:, None, None, None] * np.roll(grid, (-a, -b), axis=(2, 3))
        for a in range(side)
        for b in range(side)
    )
    np.testing.assert_allclose(torus_convolution(kernel, h, side), expected.reshape(h.shape), atol=2e-4)


def test_skip_is_added_and_wrong_sizes_raise():
    ising = energies.Ising(SIDE, 0.4)
    plain = networks.TorusDenoiser(SIDE, flip=True)
    skipping = networks.TorusDenoiser(SIDE, flip=True, skip=ising.masked_conditionals)
    params = plain.init(KEY, X, T)
    difference = skipping.apply(params, X, T) - plain.apply(params, X, T)
    np.testing.assert_allclose(difference, ising.masked_conditionals(X), atol=1e-5)
    with pytest.raises(ValueError, match="x has trailing size 9, this network of side = 4 has 16"):
        plain.init(KEY, X[:, :9], T)
    with pytest.raises(ValueError, match="flip needs vocab_size = 2, got 3"):
        networks.MLPDenoiser(3, flip=True).init(KEY, X, T)


def test_conditionals_by_evaluation_are_the_energys_own():
    ising = energies.Ising(SIDE, 0.4, field=0.3)
    x = ising.sample(KEY, 5)
    generic = energies.WithConditionals(ising, 2).single_site_conditionals(x)
    np.testing.assert_allclose(
        jax.nn.softmax(generic), jax.nn.softmax(ising.single_site_conditionals(x)), atol=1e-6
    )
