"""Separate places of a target: the mixture under noise by quadrature, a head that starts from it, its fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import egm
from egm import heads, modes, paths, pilot
from egm.simulate import draw_prior, path_log_weights
from egm.spaces import Circle, Layout, Real

MEANS = np.array([[-1.5, 0.5], [1.0, -1.0], [0.2, 1.4]])
COVARIANCES = np.array([[[0.3, 0.1], [0.1, 0.2]], [[0.1, -0.05], [-0.05, 0.4]], [[0.2, 0.0], [0.0, 0.1]]])
MASSES = np.array([0.5, 0.3, 0.2])
MIXTURE = heads.NormalMixture(MEANS, COVARIANCES, np.log(MASSES) + 3.0)
POINTS = np.array([[0.0, 0.0], [-1.2, 0.6], [0.9, 0.3], [4.0, -3.0]])


def _log_density(x):
    parts = [
        np.log(m) + scipy.stats.multivariate_normal(mean, c).logpdf(x)
        for m, mean, c in zip(MASSES, MEANS, COVARIANCES, strict=True)
    ]
    return scipy.special.logsumexp(parts, axis=0)


def _by_quadrature(x_t, alpha, variance):
    """(log density, score, mean, variance) of x_1 given x_t on a grid of 600 x 600 points."""
    line = np.linspace(-6, 6, 600)
    grid = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    log_p = _log_density(grid) - 0.5 * np.sum((x_t - alpha * grid) ** 2, axis=1) / variance
    log_p -= np.log(2 * np.pi * variance)
    log_z = scipy.special.logsumexp(log_p)
    weight = np.exp(log_p - log_z)
    mean = weight @ grid
    score = (alpha * mean - x_t) / variance
    return log_z + 2 * np.log(line[1] - line[0]), score, mean, weight @ (grid - mean) ** 2


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 0.05), (0.8, 0.5), (0.3, 9.0)])
def test_a_noised_mixture_by_quadrature(alpha, variance):
    ones = jnp.ones((len(POINTS), 1))
    found = MIXTURE.noised(jnp.asarray(POINTS, jnp.float32), alpha * ones, variance * ones)
    for i, x in enumerate(POINTS):
        exact = _by_quadrature(x, alpha, variance)
        for mine, other in zip(found, exact, strict=True):
            np.testing.assert_allclose(mine[i], other, rtol=2e-4, atol=2e-4)


def test_a_mixture_without_noise_is_itself():
    ones = jnp.ones((len(POINTS), 1))
    found = MIXTURE.noised(jnp.asarray(POINTS, jnp.float32), ones, 0 * ones)
    np.testing.assert_allclose(found.log_density, _log_density(POINTS), rtol=1e-4)
    np.testing.assert_allclose(found.mean, POINTS, atol=1e-5)
    np.testing.assert_allclose(found.variance, 0.0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"means": MEANS[0]}, ValueError, "means must have 2 axes"),
        ({"means": [["a", "b"]]}, TypeError, "means must be real numbers"),
        ({"means": MEANS * np.nan}, ValueError, "means must be finite"),
        ({"covariances": COVARIANCES[:2]}, ValueError, r"covariances must have shape \(3, 2, 2\)"),
        ({"covariances": -COVARIANCES}, ValueError, "covariances must be symmetric and positive"),
        ({"covariances": COVARIANCES + np.triu(np.ones((2, 2)), 1)}, ValueError, "covariances must be symm"),
        ({"log_weights": np.zeros(2)}, ValueError, r"log_weights must have shape \(3,\)"),
    ],
)
def test_what_is_no_mixture(given, error, message):
    with pytest.raises(error, match=message):
        heads.NormalMixture(**({"means": MEANS, "covariances": COVARIANCES} | given))


def test_an_untrained_head_with_the_targets_own_mixture_is_exact():
    energy = lambda x: -MIXTURE.noised(x, jnp.ones((len(x), 1)), jnp.zeros((len(x), 1))).log_density
    path = paths.VarianceExplodingPath(0.2, 5.0, length_scale=0.3)
    head = heads.ScoreHead(path, 0.3, 1.0, mixture=MIXTURE)
    x = jnp.asarray(POINTS, jnp.float32)
    for t in (0.1, 0.5, 0.8, 0.95):
        time = jnp.full(len(x), t)
        found = head.generator(jnp.zeros((*x.shape, 2)), x, time, energy)
        noise = float(path.variance(jnp.asarray(t)))
        for i, point in enumerate(POINTS[:3]):
            _, score, _, variance = _by_quadrature(point, 1.0, noise)
            np.testing.assert_allclose(found.score[i], score, rtol=2e-3, atol=2e-3)
            np.testing.assert_allclose(found.posterior_variance[i], variance, rtol=2e-3, atol=1e-4)


def test_a_head_with_a_mixture_ends_at_the_energys_own_score():
    """Whatever the mixture: at t = 1 the score is -grad E where it is not cut."""
    energy = lambda x: jnp.sum(0.25 * x**4 - 0.3 * x, axis=-1)
    head = heads.ScoreHead(paths.LinearPath(), 0.3, 1.0, mixture=MIXTURE)
    x = jnp.asarray(POINTS[:3], jnp.float32)
    found = head.generator(jnp.zeros((3, 2, 2)), x, jnp.ones(3), energy)
    np.testing.assert_allclose(found.score, -(x**3) + 0.3, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.posterior_variance, 0.0, atol=1e-12)
    alone = head.generator(jnp.zeros((3, 2, 2)), x, jnp.full(3, 0.5))
    ones = jnp.ones((3, 1))
    seen = MIXTURE.noised(x, 0.5 * ones, 0.25 * ones)
    np.testing.assert_allclose(alone.score, seen.score, rtol=1e-4)


@pytest.mark.parametrize(
    ("path", "mixture", "error", "message"),
    [
        (paths.LinearPath(), 3.0, TypeError, "mixture"),
        (paths.WrappedPath(0.2, 5.0), MIXTURE, ValueError, "mixture needs a path on all of"),
        (paths.CenteredPath(paths.LinearPath(), 2, 1), MIXTURE, ValueError, "mixture needs a path on all of"),
    ],
)
def test_a_mixture_where_it_has_no_place(path, mixture, error, message):
    with pytest.raises(error, match=message):
        heads.ScoreHead(path, mixture=mixture)


def _normals(masses, means, widths):
    """The energy of isotropic normals in D dimensions."""
    dim = len(means[0])
    masses, means, widths = (jnp.asarray(a, jnp.float32) for a in (masses, means, widths))

    def energy(x):
        square = jnp.sum((x[:, None] - means[None]) ** 2, axis=-1) / widths[None] ** 2
        logs = jnp.log(masses)[None] - 0.5 * square - dim * jnp.log(widths * np.sqrt(2 * np.pi))[None]
        return -jax.nn.logsumexp(logs, axis=-1)

    return energy


def _places(dim, num, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dim)) * 5.0


def test_a_fitted_mixture_has_the_masses_of_weighted_states():
    """Even draws of three normals, weighted by .1, .3 and .6, and a place that none of them is at."""
    rng = np.random.default_rng(1)
    dim, masses = 4, np.array([0.1, 0.3, 0.6])
    means = np.array([[4.0, 0, 0, 0], [0, 4.0, 0, 0], [0, 0, -4.0, 0], [0, 0, 0, 9.0]])
    states = np.concatenate([m + 0.5 * rng.normal(size=(800, dim)) for m in means[:3]])
    weights = np.repeat(masses, 800)
    curvature = np.tile(0.16 * np.eye(dim), (4, 1, 1))
    found = modes.fitted(means, curvature, np.zeros(4), states, weights, 1.0)
    share = np.exp(found.log_weights)
    # 2,400 weighted states count as 1,740; half of one more in each part. The rest is N(0, I)'s.
    np.testing.assert_allclose(share[:3], masses, atol=0.02)
    assert len(share) == 4 and share[3] < 0.01  # the place of nothing is left out
    np.testing.assert_allclose(found.covariances[:3, range(dim), range(dim)], 0.25, rtol=0.2)
    # Fully trusted, the places stay as their curvature has them.
    kept = modes.fitted(means, curvature, np.zeros(4), states, weights, 1e6)
    np.testing.assert_allclose(kept.means[:3], means[:3], atol=1e-3)
    np.testing.assert_allclose(kept.covariances[:3], curvature[:3], atol=1e-3)
    np.testing.assert_allclose(np.exp(kept.log_weights)[:3], masses, atol=0.05)


def test_the_prior_reaches_as_far_as_the_places_need():
    """One normal: at once. Forty points sqrt(50) from the middle of 50 dimensions: further."""
    key = jax.random.key(0)
    one = heads.NormalMixture(np.zeros((1, 50)), np.eye(50)[None])
    assert modes.reach_of(key, one) == 2.5
    points = np.random.default_rng(0).normal(size=(40, 50))
    narrow = heads.NormalMixture(points, np.tile(0.002 * np.eye(50), (40, 1, 1)))
    assert modes.reach_of(key, narrow) > 5.0


@pytest.fixture(scope="module")
def separated():
    """(energy, layout, what is found) of three normals of masses .5, .3, .2 in 10 dimensions."""
    layout, masses = Layout(Real(10)), np.array([0.5, 0.3, 0.2])
    means = _places(10, 3)
    energy = _normals(masses, means, np.array([0.8, 0.7, 0.6]))
    found = pilot.explore(jax.random.key(0), energy, layout, num_chains=96)
    there = found.coordinates.energy(energy)
    return masses, means, found, modes.separate(jax.random.key(1), there, found)


def test_separate_places_are_found_with_their_masses(separated):
    masses, means, before, found = separated
    assert found.mixture is not None
    share = np.exp(found.mixture.log_weights)
    at = np.asarray(before.coordinates.apply(jnp.asarray(found.mixture.means, jnp.float32)))
    for mass, mean in zip(masses, means, strict=True):
        near = np.linalg.norm(at - mean, axis=1) < 1.5
        # Six populations of 96 chains and more: a standard error of .02 at most.
        assert abs(share[near].sum() - mass) < 0.08
    more = found.found
    assert len(more.states) > len(before.states) and more.kind.max() == before.kind.max() + 1
    # What all states stand for is what the populations' Z are: of a density, 1 each.
    z = np.exp(scipy.special.logsumexp(more.log_shares) - np.log(more.log_z.size))
    assert abs(np.log(z)) < 0.2
    assert np.bincount(more.population).sum() == len(more.states) == len(more.energies)
    # The target is a mixture of normals: off it by no more than what the chains' log Z, and places and widths
    # learned from some hundred states (66 numbers each), leave. fit then looks for no curved coordinates.
    assert -0.3 < found.nats < 1.0


def test_an_untrained_sampler_of_separate_places_is_nearly_exact(separated):
    """With the mixture ESS above .5, log Z within four errors; from a normal it is below .1."""
    masses, means, before, found = separated
    energy = before.coordinates.energy(_normals(masses, means, np.array([0.8, 0.7, 0.6])))
    s, dim = before.length_scale, 10

    def summary(mixture, reach):
        path = paths.VarianceExplodingPath(s, reach, length_scale=s)
        process = egm.processes.DiffusionProcess(path)
        head = heads.ScoreHead(path, s, 1.0, mixture=mixture)
        generator = lambda x, t: head.generator(jnp.zeros((*x.shape, 2)), x, t, energy)
        moments = egm.typing.Moments(jnp.zeros(dim), jnp.ones(dim))
        x_0 = draw_prior(jax.random.split(jax.random.key(2), 2048), path, (dim,), moments)
        keys = jax.random.split(jax.random.key(3), 2048)
        trajectory = egm.simulate(keys, process, generator, x_0, process.times(100))
        return egm.metrics.summarize(path_log_weights(energy, path, trajectory))

    own, plain = summary(found.mixture, found.reach), summary(None, 2.5)
    assert float(own.ess) > 0.5 > 0.1 > float(plain.ess)
    assert abs(float(own.log_z)) < 4 * float(own.log_z_error)


def test_one_place_needs_no_mixture():
    layout = Layout(Real(3))
    energy = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    found = pilot.explore(jax.random.key(0), energy, layout, num_chains=32)
    separate = modes.separate(jax.random.key(1), energy, found)
    assert separate.mixture is None and separate.reach == 2.5 and separate.found is found
    assert separate.nats == np.inf
    # No descents where there are angles.
    circle = found._replace(coordinates=pilot.explore(
        jax.random.key(0), lambda x: -jnp.cos(x[:, 0]), Layout(Circle(1)), num_chains=16
    ).coordinates, minima=np.zeros((2, 1)))  # fmt: skip
    assert modes.separate(jax.random.key(1), energy, circle).mixture is None


@pytest.mark.slow
def test_fit_keeps_far_modes_and_so_does_its_folder(tmp_path, capsys):
    """Twelve modes of unequal masses in 20 dimensions, from which a network alone would learn a few.

    They are what a mixture is, and no time goes into curved coordinates.
    """
    rng = np.random.default_rng(5)
    masses = rng.dirichlet(np.full(12, 3.0))
    means = rng.uniform(-12, 12, size=(12, 20))
    energy = _normals(masses, means, rng.uniform(0.8, 1.0, size=12))
    sampler = egm.fit(jax.random.key(0), energy, Real(20), iterations=4)
    said = capsys.readouterr().err
    assert "separate modes" in said and "curved" not in said
    assert sampler.design.mixture is not None and sampler.ess > 0.3
    assert abs(sampler.log_z) < 4 * sampler.log_z_error < 0.4
    sampler.save(tmp_path / "one")
    again = egm.Sampler.load(tmp_path / "one", energy)
    draw, same = (s.sample(jax.random.key(1), 4000) for s in (sampler, again))
    np.testing.assert_array_equal(draw.x, same.x)
    nearest = np.argmin(np.linalg.norm(np.asarray(draw.x)[:, None] - means, axis=-1), axis=1)
    share = np.bincount(nearest, np.asarray(draw.weights), 12)
    error = np.sqrt(masses / (draw.ess * 4000))
    assert np.all(np.abs(share - masses) < 5 * error)


def test_places_that_are_no_normals_are_off_by_what_they_differ():
    """Four wells of quartic walls against quadrature of the same divergence."""
    layout = Layout(Real(2))
    energy = lambda x: jnp.sum(x**4 - 8 * x**2, axis=-1) / 4
    found = pilot.explore(jax.random.key(0), energy, layout, num_chains=256)
    there = found.coordinates.energy(energy)
    separate = modes.separate(jax.random.key(1), there, found)
    assert separate.mixture is not None
    edge = np.linspace(-5.0, 5.0, 401)
    points = np.stack(np.meshgrid(edge, edge), -1).reshape(-1, 2)
    z = np.asarray(found.coordinates.invert(jnp.asarray(points, jnp.float32)), np.float64)
    cell = (edge[1] - edge[0]) ** 2 / np.abs(np.linalg.det(found.coordinates.matrix))
    e = np.asarray(there(jnp.asarray(z, jnp.float32)), np.float64)
    log_p = -e - np.log(np.sum(np.exp(-e)) * cell)
    log_q = modes._log_density(separate.mixture, z) - np.log(2 * np.pi)
    exact = np.sum(np.exp(log_p) * cell * (log_p - log_q))
    # The figure is of the mixture before the last chains and of a quarter of 768 states, and has the error of
    # the chains' log Z: .05 each at most.
    assert 0 < exact < 1 and abs(separate.nats - exact) < 0.3


def test_chains_start_at_places_that_no_chain_has_reached():
    """Of two places chains have seen one: the other is a start of chains, but no place of the target yet."""
    means, covariances = np.array([[-9.0, 0.0], [9.0, 0.0]]), np.tile(np.eye(2), (2, 1, 1))
    states = np.random.default_rng(0).normal(size=(400, 2)) - np.array([9.0, 0.0])
    arguments = means, covariances, np.log([0.8, 0.2]), states, np.ones(400)
    seen = modes.fitted(*arguments)
    assert np.linalg.norm(seen.means - means[1], axis=1).min() > 5
    start = modes.fitted(*arguments, for_chains=True)
    there = np.linalg.norm(start.means - means[1], axis=1) < 1
    # Half of its weight by curvature, which is half of .2 as the rest has the other half.
    assert there.sum() == 1 and np.exp(start.log_weights[there][0]) > 0.2 / 4
