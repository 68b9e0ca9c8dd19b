"""Interaction energies: by hand, one group at a time, the closed-form law of normals, quadrature, devices.

For V/eps = x^T L x / 2 and the paper's W the joint law of M members is normal: the mean over the members
times sqrt(M) has precision L, each of the M - 1 differences orthogonal to it L - (M / sigma^2) B^T B.
Euler-Maruyama with step h at temperature eps has the stationary covariance (P (I - h eps P / 2))^-1 where
the law's is P^-1, exactly, in each of these modes.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from energymatch import langevin, posterior
from energymatch.likelihood import Bridge, gaussian_prior
from energymatch.posterior import BoundedRepulsion, QuadraticRepulsion, joint

KEY = jax.random.key(3)
RNG = np.random.default_rng(0)
PROJECTION = RNG.normal(size=(2, 6))
projection = lambda x: x.reshape(x.shape[0], 6) @ jnp.asarray(PROJECTION.T, x.dtype)
MAKE = {
    "quadratic": lambda m, b=None: QuadraticRepulsion(1.7, m, b),
    "bounded": lambda m, b=None: BoundedRepulsion(2.5, 1.7, m, b),
}
PAIR = {
    "quadratic": lambda d2: -d2 / (2 * 1.7**2),
    "bounded": lambda d2: 2.5 * np.exp(-d2 / (2 * 1.7**2)),
}


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("kind", MAKE)
def test_by_hand(x64, kind, projected):
    """The total over pairs k < m of each group by loops; its gradient by central differences."""
    x = RNG.normal(size=(12, 3, 2))
    energy = MAKE[kind](4, projection if projected else None)

    def totals(x):
        features = x.reshape(12, 6) @ (PROJECTION.T if projected else np.eye(6))
        groups = features.reshape(3, 4, -1)
        pairs = [(k, m) for k in range(4) for m in range(k + 1, 4)]
        return np.array([sum(PAIR[kind](np.sum((g[k] - g[m]) ** 2)) for k, m in pairs) for g in groups])

    value = np.asarray(jax.jit(energy)(x))
    np.testing.assert_allclose(value.reshape(3, 4), np.tile(totals(x)[:, None] / 4, (1, 4)), rtol=1e-12)
    state = langevin.init(lambda x: jnp.zeros(12), x, energies=(energy,))
    np.testing.assert_allclose(state.energy.sum(), totals(x).sum(), rtol=1e-12)  # each pair counted once
    slopes = np.empty(x.shape)
    for index in np.ndindex(*x.shape):
        shift = np.zeros(x.shape)
        shift[index] = 1e-5
        slopes[index] = (totals(x + shift).sum() - totals(x - shift).sum()) / 2e-5
    np.testing.assert_allclose(state.energy_gradient, slopes, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", MAKE)
def test_groups_are_apart_and_members_are_alike(x64, kind):
    x = RNG.normal(size=(12, 2))
    energy = MAKE[kind](4)
    push = jax.jit(jax.grad(lambda x: jnp.sum(energy(x))))
    other = x.copy()
    other[4:8] += 3 * RNG.normal(size=(4, 2))
    keep = np.r_[0:4, 8:12]
    np.testing.assert_array_equal(energy(other)[keep], energy(x)[keep])
    np.testing.assert_array_equal(push(other)[keep], push(x)[keep])
    assert np.all(np.abs(push(other)[4:8] - push(x)[4:8]) > 1e-6)
    order = np.r_[2, 0, 3, 1, 4:12]
    np.testing.assert_allclose(push(x[order]), push(x)[order], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(energy(x[order]), energy(x), rtol=1e-12)
    blocks = np.r_[8:12, 0:8]  # whole groups change places
    np.testing.assert_allclose(push(x[blocks]), push(x)[blocks], rtol=1e-12)
    # Pushes sum to zero in each group, and point away from the others' mean at two members.
    np.testing.assert_allclose(push(x).reshape(3, 4, 2).sum(1), 0, atol=1e-12)
    two = MAKE[kind](2)
    x = np.array([[0.0, 0.0], [1.0, 0.5]])
    assert np.all(jax.grad(lambda x: jnp.sum(two(x)))(x)[1] < 0)  # -gradient moves member 1 further out


L = np.array([[1.0, 0.3], [0.3, 2.0]])
B = np.array([[0.6, -0.8]])
M, SIGMA, EPS = 4, 3.0, 0.4
normal = lambda x: 0.5 * EPS * jnp.sum(x @ jnp.asarray(L, x.dtype) * x, axis=-1)
W = QuadraticRepulsion(SIGMA, M, lambda x: x @ jnp.asarray(B.T, x.dtype))


def stationary(h):
    """Covariances of one member and between two, h = 0 for those of the law itself."""
    modes = [L, L - M / SIGMA**2 * B.T @ B]
    assert np.linalg.eigvalsh(modes[1]).min() > 0.1
    mean, difference = (np.linalg.inv(p @ (np.eye(2) - h * EPS * p / 2)) for p in modes)
    return mean / M + difference * (1 - 1 / M), (mean - difference) / M


def assert_covariances(x, h):
    """x [G, M, 2] of independent groups: each entry within 4 standard errors over the groups."""
    x = np.asarray(x, np.float64)
    own, between = stationary(h)
    total = x.sum(1)
    squares = lambda a, b: np.einsum("gi,gj->gij", a, b)
    own_g = np.mean([squares(x[:, k], x[:, k]) for k in range(M)], axis=0)
    between_g = (squares(total, total) - M * own_g) / (M * (M - 1))
    for got, exact in ((own_g, own), (between_g, between)):
        error = got.std(0, ddof=1) / np.sqrt(len(x))
        assert np.all(np.abs(got.mean(0) - exact) < 4 * error), (got.mean(0), exact, error)
    assert np.all(np.abs(x.mean((0, 1))) < 4 * total.std(0) / M / np.sqrt(len(x)))


def test_the_papers_energy_spreads_a_normal_as_computed():
    """5,000 groups of 4 members; h eps times the stiffest mode is .48, so the step's bias shows as well."""
    h = 0.6
    run = jax.jit(
        lambda x: (
            langevin.sample(KEY, normal, x, num_steps=120, step_size=h, temperature=EPS, energies=(W,)).x
        )
    )
    x = run(jnp.zeros((5000 * M, 2)))
    assert_covariances(x.reshape(5000, M, 2), h)
    with pytest.raises(AssertionError):
        assert_covariances(x.reshape(5000, M, 2), 0.0)  # the test sees the bias
    spread = lambda c: np.trace(c[0] - c[1])
    alone = np.trace(np.linalg.inv(L))
    assert spread(stationary(0.0)) > 1.3 * alone  # what the interaction is for


def test_joint_states_make_adjusted_moves_exact():
    """The same law by "mala" on whole groups: no bias at the same step."""
    run = jax.jit(
        lambda x: langevin.sample(
            KEY,
            joint(normal),
            x,
            num_steps=120,
            step_size=0.6,
            temperature=EPS,
            energies=(joint(W),),
            method="mala",
        )  # fmt: skip
    )
    out = run(jnp.zeros((5000, M, 2)))
    assert_covariances(out.x, 0.0)
    assert 0.3 < out.acceptance.mean() < 0.98


def test_joint_posterior_with_a_bounded_repulsion_against_quadrature():
    """Two members in one dimension, V/eps = x^2/2, U = (x - 1)^2/2, W = 3 exp(-(x - x')^2/(2 .8^2))."""
    potential = lambda x: 0.25 * jnp.sum(x**2, axis=-1)
    measured = posterior.gaussian_measurement(lambda x: x, jnp.ones(1), 1.0)
    bridge = Bridge(jnp.linspace(0, 1, 21), jnp.full(20, 0.5))
    terms = (joint(measured), joint(BoundedRepulsion(3.0, 0.8, 2)))
    run = jax.jit(
        lambda key: posterior.sample(
            key,
            joint(potential),
            energies=terms,
            epsilon=0.5,
            prior=gaussian_prior(jnp.full((2, 1), 0.5), 1.2),
            num_samples=4096,
            bridge=bridge,
        )  # fmt: skip
    )
    out = run(KEY)
    grid = np.linspace(-7, 8, 601)
    a, b = np.meshgrid(grid, grid, indexing="ij")
    energy = (a**2 + b**2 + (a - 1) ** 2 + (b - 1) ** 2) / 2 + 3 * np.exp(-((a - b) ** 2) / (2 * 0.64))
    density = np.exp(-energy)
    log_z = np.log(density.sum() * (grid[1] - grid[0]) ** 2)
    assert abs(out.partition.log_z - log_z) < 4 * out.partition.log_z_error < 0.1
    x = np.asarray(out.x, np.float64)[..., 0]
    # n ess samples' worth before the last resampling, which adds the error of n draws.
    worth = 4096 / (1 + 1 / float(out.partition.ess))
    for f in (lambda a, b: (a - b) ** 2, lambda a, b: a, lambda a, b: a * b):
        exact, got = np.sum(density * f(a, b)) / density.sum(), f(x[:, 0], x[:, 1])
        assert abs(got.mean() - exact) < 4 * got.std() / np.sqrt(worth)
    assert np.sum(density * (a - b) ** 2) / density.sum() > 1.5  # 1.0 without the interaction


@pytest.mark.parametrize("kind", [QuadraticRepulsion, BoundedRepulsion])
def test_adjusted_moves_refuse_coupled_examples(kind):
    energy = kind(scale=1.0, group_size=2) if kind is QuadraticRepulsion else kind(1.0, 1.0, 2)
    x, potential = jnp.ones((4, 2)), lambda x: jnp.sum(x**2, axis=-1)
    options = {"num_steps": 1, "step_size": 0.1, "temperature": 1.0, "energies": (energy,)}
    with pytest.raises(ValueError, match=r"energies\[0\] couples examples.*posterior.joint"):
        langevin.sample(jax.random.key(0), potential, x, method="mala", **options)
    assert jnp.all(jnp.isfinite(langevin.sample(jax.random.key(0), potential, x, **options).x))


@pytest.mark.parametrize("kind", MAKE)
def test_eight_devices_and_one(mesh8, kind):
    x = jax.random.normal(KEY, (32, 2))

    def fn(x, axis_name=None):
        return langevin.sample(
            KEY, normal, x, num_steps=5, step_size=0.1, temperature=EPS, energies=(MAKE[kind](2),),
            method="heun", axis_name=axis_name,
        ).x  # fmt: skip

    one = jax.jit(fn)(x)
    over = functools.partial(fn, axis_name="i")
    shard = jax.jit(jax.shard_map(over, mesh=mesh8, in_specs=P("i"), out_specs=P("i")))
    chex.assert_trees_all_close(shard(x), one, rtol=1e-5, atol=1e-6)
    mapped = jax.pmap(over, axis_name="i")(x.reshape(8, 4, 2)).reshape(32, 2)
    chex.assert_trees_all_close(mapped, one, rtol=1e-5, atol=1e-6)


def test_a_bad_group_is_held_alone():
    """Features that overflow in one group stop that group, and are counted; the others move as without."""

    def features(x):
        return jnp.where(x[:, :1] > 5, jnp.inf, x)

    x = jax.random.normal(KEY, (8, 2)).at[5, 0].set(60.0)  # four steps lead no lower than 35
    run = lambda x: langevin.sample(
        KEY, normal, x, num_steps=4, step_size=0.1, temperature=EPS,
        energies=(QuadraticRepulsion(SIGMA, 2, features),),
    )  # fmt: skip
    out, calm = jax.jit(run)(x), jax.jit(run)(x.at[5, 0].set(1.0))
    np.testing.assert_array_equal(out.x[4:6], x[4:6])
    np.testing.assert_array_equal(out.num_nonfinite, np.array([0, 0, 0, 0, 4, 4, 0, 0]))
    keep = np.r_[0:4, 6:8]
    np.testing.assert_allclose(out.x[keep], calm.x[keep], rtol=1e-6)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: QuadraticRepulsion(0.0, 2), ValueError, "scale must be finite and positive, got 0.0"),
        (lambda: QuadraticRepulsion(np.ones(2), 2), ValueError, r"scale must be a scalar, got shape \(2,\)"),
        (lambda: QuadraticRepulsion(1.0, 1), ValueError, "group_size must be at least 2, got 1"),
        (lambda: QuadraticRepulsion(1.0, 2.0), TypeError, "group_size must be an int, got 2.0"),
        (lambda: QuadraticRepulsion(1.0, 2, 3), TypeError, "projection must be None or callable, got 3"),
        (lambda: QuadraticRepulsion(1.0, 3)(jnp.zeros((4, 2))),
         ValueError, "x must hold whole groups of group_size = 3, got a batch of 4"),
        (lambda: QuadraticRepulsion(1.0, 2)(jnp.zeros((4, 2), int)), TypeError, "x must be floating point"),
        (lambda: QuadraticRepulsion(1.0, 2, lambda x: x[0])(jnp.zeros((4, 2))),
         ValueError, r"projection must return 4 features, got shape \(2,\)"),
        (lambda: BoundedRepulsion(-1.0, 1.0, 2), ValueError, "strength must be finite and positive"),
        (lambda: BoundedRepulsion(1.0, np.nan, 2), ValueError, "scale must be finite and positive, got nan"),
        (lambda: joint(2), TypeError, "function must be callable, got 2"),
        (lambda: joint(normal)(jnp.zeros(4)), ValueError, "x must have at least 2 axes"),
        (lambda: joint(lambda x: x)(jnp.zeros((2, 2, 2))), ValueError, r"function must return shape \(4,\)"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
