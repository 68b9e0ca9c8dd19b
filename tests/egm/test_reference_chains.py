"""The sampler of reference states against quadrature and identities, its diagnostics, its cache.

Kept states are correlated in time: standard errors come from the means of whole chains, which start
independently; means stay within 5 of them at a fixed seed.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from egm import energies
from egm.energies.reference import chains, pool

KEY = jax.random.key(5)


def assert_means(values, expected):
    """Column means of [C, F] within 5 standard errors of the exact ones."""
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    assert np.max(np.abs(values.mean(axis=0) - np.ravel(expected)) / error) < 5


def settings(**options):
    base = dict(num_chains=128, num_kept=16_384, num_warmup=400, thinning=20, num_leapfrog=4)
    return energies.ChainSettings(**(base | options))


def by_chain(energy, values):
    """[C, F] means over each chain of values [num_kept, F], which come step by step."""
    values = np.asarray(values, np.float64).reshape(-1, energy.reference.num_chains, np.shape(values)[-1])
    return values.mean(axis=0)


@pytest.fixture(scope="module")
def well_pair():
    """Two particles in the plane, two temperatures."""
    energy = energies.JointDoubleWell(2, 2, settings(inverse_temperatures=(1.0, 0.5)))
    return energy, chains.run(energy)


def test_chains_follow_the_radial_density_of_two_particles(well_pair):
    """p(r, kinds) is proportional to r exp(-u(r)): masses of the kinds, moments of r in each."""
    energy, found = well_pair
    x, h = found.states["x"], found.states["h"]
    np.testing.assert_allclose(x[:, :2], -x[:, 2:], atol=1e-5)
    r = np.linalg.norm(x[:, :2] - x[:, 2:], axis=1)
    kind = h.sum(axis=1)
    grid = np.linspace(1e-6, 9, 9001)
    tables = {0: (0.8, -3.0, 1), 1: (0.4, -2.5, 2), 2: (0.6, -2.8, 1)}
    u = {k: 0.5 * (a * (grid - 2) ** 4 + b * (grid - 2) ** 2) for k, (a, b, _) in tables.items()}
    density = np.array([tables[k][2] * grid * np.exp(-u[k]) for k in range(3)])
    density /= scipy.integrate.simpson(density, x=grid).sum()
    powers = np.stack([grid**0, grid, grid**2, np.cos(2 * grid)])
    expected = scipy.integrate.simpson(density[:, None] * powers, x=grid)  # [kind, power]
    values = np.stack([r**0, r, r**2, np.cos(2 * r)], axis=-1)
    values = (kind[:, None] == np.arange(3))[:, :, None] * values[:, None]
    assert_means(by_chain(energy, values.reshape(len(r), -1)), expected)
    # The random rotation and permutation leave no direction and no label.
    angle = np.arctan2(x[:, 1], x[:, 0])
    label = h[:, 0] - h[:, 1]
    means = [np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle), label]
    assert_means(by_chain(energy, np.stack(means, axis=1)), np.zeros(5))
    assert max(found.r_hat.values()) < 1.01
    assert 0.7 < found.acceptance[0] < 0.9
    assert found.swap_acceptance.shape == (1,)


def test_chains_obey_the_virial_identity():
    """E[x . grad E] = (N - 1) d, by parts on the centred subspace: three Lennard-Jones particles."""
    energy = energies.LennardJones(3, 2, reference=settings(thinning=40))
    found = chains.run(energy)
    virial = jax.jit(lambda x: jnp.sum(x * jax.grad(lambda y: jnp.sum(energy(y)))(x), axis=-1))
    values = np.asarray(virial(found.states["x"]))
    assert_means(by_chain(energy, values[:, None]), [4.0])


def test_split_r_hat():
    """1 for independent draws up to chance, its formula by hand, large where chains or halves differ."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1000, 20))
    assert abs(chains.split_r_hat(values) - 1) < 0.005
    assert chains.split_r_hat(values + np.arange(20) % 2) > 1.05
    assert chains.split_r_hat(values + (np.arange(1000) > 500)[:, None]) > 1.05
    # Halves (0, 1) and (2, 5): W = (1/2 + 9/2) / 2, B / n = Var(1/2, 7/2) = 9/2, n = 2.
    np.testing.assert_allclose(chains.split_r_hat(np.array([[0.0], [1], [2], [5]])), np.sqrt(0.5 + 4.5 / 2.5))
    assert chains.split_r_hat(np.ones((4, 2))) == 1
    assert chains.split_r_hat(np.tile([1.0, 2.0], (4, 1))) == np.inf
    assert np.isnan(chains.split_r_hat(np.full((4, 2), np.nan)))


def test_unmixed_chains_are_refused(monkeypatch):
    energy = energies.LennardJones(2, 1, reference=settings())
    steps = energy.reference.num_kept // 128
    apart = np.arange(128) + np.random.default_rng(0).normal(size=(steps, 128))
    out = (np.zeros((steps, 128, 2)), np.zeros((steps, 128, 0)), {"energy": apart}, np.ones(1), np.ones(0))
    monkeypatch.setattr(chains, "_run", lambda energy: out)
    with pytest.raises(RuntimeError, match="split R-hat must be below 1.01, got {'energy'"):
        chains.run(energy)


def test_pool_on_disk(well_pair, monkeypatch, tmp_path):
    """Written once, read back, made anew where damaged or of other settings, done without where barred."""
    energy, made = well_pair
    runs = []
    monkeypatch.setattr(pool, "run", lambda e: runs.append(e) or made)
    monkeypatch.setenv("EGM_CACHE_DIR", str(tmp_path / "a" / "b"))

    def same(found):
        jax.tree.map(np.testing.assert_array_equal, found._asdict(), made._asdict())

    same(pool.load_or_run(energy))
    path = pool.cache_path(energy)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    same(pool.load_or_run(energy))
    assert len(runs) == 1
    whole = path.read_bytes()
    for damage in (b"", b"no archive", whole[: len(whole) // 2]):
        path.write_bytes(damage)
        same(pool.load_or_run(energy))
        assert path.read_bytes()[:2] == b"PK"
    assert len(runs) == 4
    other = energies.JointDoubleWell(2, 2, energy.reference._replace(seed=1))
    assert pool.cache_path(other) != path
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EGM_CACHE_DIR", str(tmp_path / "file" / "c"))
    same(pool.load_or_run(energy))
    assert len(runs) == 5


def test_draws_from_the_pool(well_pair, monkeypatch):
    """Without replacement, all of it if asked; more raises, and so does a traced key."""
    energy, made = well_pair
    monkeypatch.setattr(pool, "reference", lambda e: made)
    every = energy.sample(KEY, energy.reference.num_kept)
    ordered = lambda x: x[np.lexsort(x.T)]
    np.testing.assert_array_equal(ordered(np.asarray(every["x"])), ordered(made.states["x"]))
    with pytest.raises(ValueError, match="n must be at most 16384, the pool's size, got 16385"):
        energy.sample(KEY, 16_385)
    with pytest.raises(TypeError, match="key must be concrete"):
        jax.jit(lambda key: energy.sample(key, 3))(KEY)
