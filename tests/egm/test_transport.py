"""Transport maps: bijections whatever they have learned, and what they are worth on curved targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import egm
from egm import spaces, transport
from egm.coordinates import Coordinates


def _map(dimension, scale=0.1, width=8):
    """A map with every parameter away from its start."""
    module = transport.CouplingMap(dimension, width)
    params = module.init(jax.random.key(0), jnp.zeros((1, dimension)))
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    shift = [scale * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves)]
    return transport.Transport(module, treedef.unflatten([a + b for a, b in zip(leaves, shift)]))


@pytest.mark.parametrize("dimension", [2, 3, 7])
def test_inverse_and_log_determinant(dimension, x64):
    found = _map(dimension)
    z = 1.5 * jax.random.normal(jax.random.key(2), (20, dimension), jnp.float64)
    x, log_det = found.apply(z)
    back, log_det_there = found.invert(x)
    np.testing.assert_allclose(back, z, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(log_det_there, log_det, rtol=1e-8, atol=1e-8)
    jacobian = jax.vmap(jax.jacfwd(lambda a: found.apply(a[None])[0][0]))(z)
    np.testing.assert_allclose(jnp.linalg.slogdet(jacobian)[1], log_det, rtol=1e-8, atol=1e-8)


def test_the_inverse_has_the_gradient_of_the_inverse(x64):
    found = _map(3)
    z = jax.random.normal(jax.random.key(2), (5, 3), jnp.float64)
    x = found.apply(z)[0]
    forward = jax.vmap(jax.jacfwd(lambda a: found.apply(a[None])[0][0]))(z)
    backward = jax.vmap(jax.jacrev(lambda a: found.invert(a[None])[0][0]))(x)
    product = jnp.einsum("nij,njk->nik", forward, backward)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), (5, 3, 3)), atol=1e-8)


def test_lambert_w_against_scipy():
    x = np.geomspace(1e-12, 1e37, 2000).astype(np.float32)
    exact = scipy.special.lambertw(x.astype(np.float64)).real
    np.testing.assert_allclose(transport._lambert_w(jnp.asarray(x)), exact, rtol=3e-6)
    assert transport._lambert_w(jnp.zeros(())) == 0


def test_every_coordinate_may_depend_on_every_other():
    found = _map(6)
    jacobian = jax.jacfwd(lambda a: found.apply(a[None])[0][0])(jnp.full(6, 0.3))
    assert np.all(np.abs(jacobian) > 1e-6)


def test_a_funnel_is_worth_what_it_is():
    """x_2..4 ~ N(0, e^v) given v ~ N(0, 1.5^2), standardised: KL(p | N(0, I)) = 3 (log E e^v - E v) / 2.

    The mean over 4,000 held states has its standard error; a learned map reaches nine tenths of it.
    """
    rng = np.random.default_rng(0)
    v = 1.5 * rng.normal(size=(12_000, 1))
    x = np.exp(v / 2) * rng.normal(size=(12_000, 3)) / np.exp(1.5**2 / 4)
    states = jnp.asarray(np.concatenate([v / 1.5, x], axis=1), float)
    exact = 3 * 1.5**2 / 4
    _, gain = transport.fit(jax.random.key(0), states[:8000], states[8000:])
    error = gain.std() / np.sqrt(len(gain))
    assert 0.9 * exact - 3 * error < gain.mean() < exact + 3 * error


def test_a_normal_has_nothing_to_gain():
    x = jax.random.normal(jax.random.key(0), (3000, 4))
    _, gain = transport.fit(jax.random.key(1), x[:2000], x[2000:])
    assert gain.mean() < 0.02 * 4


def test_tails_alone_leave_the_couplings():
    """Student's t of 3 degrees: strengths rise above those of a normal's states, all else stays."""
    x = jnp.asarray(np.random.default_rng(0).standard_t(3, size=(3000, 1)) / np.sqrt(3), jnp.float32)
    start = transport.near_identity(jax.random.key(0), transport.CouplingMap(1))
    found, gain = transport.fit(jax.random.key(1), x[1000:], x[:1000], start=start, tails_alone=True)
    assert gain.mean() > 0.02
    for name, value in found.params["params"].items():
        same = np.array_equal(value, start.params["params"][name])
        assert same == (name not in ("tails", "radial"))


@pytest.mark.slow
@pytest.mark.parametrize(("degrees", "dimension"), [(4, 5), (1, 2), (3, 1)])
def test_weights_of_heavy_tails_have_an_error(degrees, dimension):
    """Student's t, whose weights under a normal's tails have no variance: log Z within four finite errors."""
    power = (degrees + dimension) / 2
    energy = lambda x: power * jnp.log1p(jnp.sum(x**2, axis=-1) / degrees)
    log_z = scipy.special.gammaln(degrees / 2) - scipy.special.gammaln(power)
    log_z += dimension / 2 * np.log(degrees * np.pi)
    sampler = egm.fit(jax.random.key(0), energy, egm.spaces.Real(dimension), iterations=3, progress=False)
    assert sampler.converged and sampler.log_z_error < 0.2
    assert abs(sampler.log_z - log_z) < 4 * sampler.log_z_error


def test_the_coordinates_keep_log_z(x64):
    """Quadrature of exp(-E) on a grid, in x and in curved coordinates."""
    layout = spaces.Layout(spaces.Real(2))
    linear = Coordinates(layout, np.array([0.5, -0.2]), np.array([[1.2, 0.1], [0.0, 0.7]]), np.log(0.84))
    curved = Coordinates(layout, linear.center, linear.matrix, linear.log_det, _map(2))
    energy = lambda x: jnp.sum((x - 0.1) ** 2, axis=-1) + 0.3 * x[:, 0] ** 4
    axis = jnp.linspace(-12.0, 12.0, 2401)
    grid = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    log_z = [
        jax.nn.logsumexp(-function(grid)) + 2 * np.log(axis[1] - axis[0])
        for function in (energy, linear.energy(energy), curved.energy(energy))
    ]
    np.testing.assert_allclose(log_z, log_z[0], atol=1e-6)
    z = grid[::50_000]
    np.testing.assert_allclose(curved.invert(curved.apply(z)), z, atol=1e-6)


@pytest.mark.slow
def test_a_bent_ridge_is_straightened():
    """x_2 ~ N(x_1^2, .1^2) given x_1 ~ N(0, 1): log Z = log(2 pi .1)."""
    energy = lambda x: 0.5 * x[0] ** 2 + 0.5 * (x[1] - x[0] ** 2) ** 2 / 0.1**2
    sampler = egm.fit(jax.random.key(0), energy, spaces.Real(2), iterations=12, progress=False)
    assert sampler.coordinates.transport is not None
    exact = np.log(2 * np.pi * 0.1)
    assert abs(sampler.log_z - exact) < 4 * sampler.log_z_error < 0.2


def test_a_sampler_with_a_map_is_saved(tmp_path):
    energy = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    layout = spaces.Layout(spaces.Real(2))
    coordinates = Coordinates(layout, np.zeros(2), np.eye(2), 0.0, _map(2))
    design = egm.design.Design(layout, width=8, num_times=5)
    parts = egm.design.parts_of(design, coordinates.energy(energy))
    unit = egm.typing.Moments(jnp.zeros(2), jnp.ones(2))
    sampler = egm.Sampler(energy, design, coordinates, unit, jax.device_get(parts.init(jax.random.key(0))))
    sampler.save(tmp_path / "bent")
    again = egm.Sampler.load(tmp_path / "bent", energy)
    draws = [s.sample(jax.random.key(3), 500) for s in (sampler, again)]
    np.testing.assert_allclose(*[np.asarray(d.x) for d in draws], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(*[np.asarray(d.log_weights) for d in draws], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "held", "message"),
    [
        (np.zeros((5, 0), np.float32), np.zeros((5, 0), np.float32), "x must have shape"),
        (np.zeros((5, 3), np.float32), np.zeros((5, 2), np.float32), "held must have shape"),
    ],
)
def test_wrong_states(x, held, message):
    with pytest.raises(ValueError, match=message):
        transport.fit(jax.random.key(0), x, held)
