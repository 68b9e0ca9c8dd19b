"""`energymatch.fit`: densities with closed forms, imputation against exact conditionals, saving, refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import energymatch
from energymatch import _mixtures, fitting
from energymatch.likelihood import MixturePrior
from energymatch.model import EnergyModel, Whitening
from energymatch.networks import MLPPotential

RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(3, 3)) * np.array([0.1, 1.0, 30.0])[:, None]
MEAN = np.array([5.0, -2.0, 100.0])
COVARIANCE = ROOT @ ROOT.T
NORMAL = MEAN + RNG.normal(size=(600, 3)) @ ROOT.T


def normal_log_density(x):
    gap = np.asarray(x, np.float64) - MEAN
    square = np.einsum("ni,ij,nj->n", gap, np.linalg.inv(COVARIANCE), gap)
    return -0.5 * square - 0.5 * np.linalg.slogdet(2 * np.pi * COVARIANCE)[1]


@pytest.fixture(scope="module")
def model():
    return energymatch.fit(jax.random.key(0), NORMAL, steps=200, progress=False)


def test_the_density_of_a_normal_table_in_its_own_units(model):
    x = MEAN + np.random.default_rng(1).normal(size=(2000, 3)) @ ROOT.T
    gap = normal_log_density(x) - np.asarray(model.log_prob(x))
    # 9 numbers from 540 examples cost 9/1080 nats in the mean; the rest is the mixture's wide part.
    assert -0.02 < gap.mean() < 0.1
    assert model.converged, model.reason
    assert model.log_z_error < 0.02
    assert "held-out" in model.report()


def test_it_integrates_to_one(model):
    rng = np.random.default_rng(2)
    wide = MEAN + 1.5 * rng.normal(size=(20_000, 3)) @ ROOT.T
    log_q = -0.5 * np.einsum("ni,ij,nj->n", wide - MEAN, np.linalg.inv(COVARIANCE), wide - MEAN) / 1.5**2
    log_q -= 0.5 * np.linalg.slogdet(2 * np.pi * COVARIANCE)[1] + 3 * math.log(1.5)
    ratio = np.exp(np.asarray(model.log_prob(wide), np.float64) - log_q)
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio)) < 0.1


def test_samples_and_scores(model):
    x = np.asarray(model.sample(jax.random.key(1), 2000), np.float64)
    z = np.linalg.solve(ROOT, (x - MEAN).T).T
    assert np.all(np.abs(z.mean(0)) < 0.3)
    assert np.all(np.abs(z.std(0) - 1) < 0.15)
    score = np.asarray(model.score(NORMAL[:200].astype(np.float32)), np.float64)
    wanted = -(NORMAL[:200] - MEAN) @ np.linalg.inv(COVARIANCE)
    unit = np.sqrt(np.mean((wanted @ ROOT) ** 2))
    assert np.sqrt(np.mean(((score - wanted) @ ROOT) ** 2)) < 0.3 * unit


def test_imputed_columns_have_the_conditional_moments(model):
    observed = np.array([True, False, True])
    row = NORMAL[:3].copy()
    found = np.asarray(model.impute(jax.random.key(2), np.where(observed, row, np.nan), observed, num=1000))
    assert found.shape == (1000, 3, 3)
    np.testing.assert_allclose(
        found[:, :, observed], np.broadcast_to(row[:, observed], (1000, 3, 2)), rtol=1e-6
    )
    inner = COVARIANCE[np.ix_(observed, observed)]
    gain = np.linalg.solve(inner, COVARIANCE[observed][:, 1])
    mean = MEAN[1] + (row[:, observed] - MEAN[observed]) @ gain
    deviation = math.sqrt(COVARIANCE[1, 1] - COVARIANCE[1, observed] @ gain)
    # 540 examples leave the conditional moments uncertain by about 5% of a deviation, samples by 3%.
    assert np.all(np.abs(found[:, :, 1].mean(0) - mean) < 0.35 * deviation)
    assert np.all(np.abs(found[:, :, 1].std(0) / deviation - 1) < 0.2)


def test_what_is_saved_is_what_is_loaded(model, tmp_path):
    model.save(tmp_path / "model")
    loaded = EnergyModel.load(tmp_path / "model")
    np.testing.assert_array_equal(model.log_prob(NORMAL[:20]), loaded.log_prob(NORMAL[:20]))
    np.testing.assert_array_equal(model.sample(jax.random.key(3), 16), loaded.sample(jax.random.key(3), 16))
    assert loaded.report() == model.report()
    with pytest.raises(ValueError, match="new or empty"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="must hold a saved model"):
        EnergyModel.load(tmp_path)


def test_a_network_is_weighed_exactly():
    """A mixture with a network on top, on the line: its log Z, mean and conditional samples by quadrature."""
    base = MixturePrior(
        jnp.log(jnp.array([0.4, 0.6])),
        jnp.array([[-1.0], [1.5]]),
        jnp.full((2, 1), 0.7),
        jnp.full((2, 1), 1 / 0.7),
    )
    net = MLPPotential(width=8, depth=2)
    params = jax.tree.map(lambda a: 2.0 * a, net.init(jax.random.key(5), jnp.zeros((1, 1))))
    whitening = Whitening(np.array([3.0]), np.array([[2.0]]), np.array([[0.5]]), math.log(2.0))
    model = EnergyModel((1,), whitening, base, net, params, noise=np.zeros(1))
    log_z, error = energymatch.model.log_partition_of(jax.random.key(6), model, 20_000)
    grid = np.linspace(-20, 25, 40_001)
    density = np.exp(-np.asarray(model.energy(grid[:, None].astype(np.float32)), np.float64))
    mass = density.sum() * (grid[1] - grid[0])
    assert abs(log_z - math.log(mass)) < 4 * error < 0.1
    mean = (density * grid).sum() / density.sum()
    deviation = math.sqrt((density * (grid - mean) ** 2).sum() / density.sum())
    x = np.asarray(model.sample(jax.random.key(7), 4000))
    assert abs(x.mean() - mean) < 5 * deviation / math.sqrt(4000 / 2)
    # With nothing observed an imputation is a sample.
    free = np.asarray(model.impute(jax.random.key(8), np.full((1, 1), np.nan), np.array([False]), num=4000))
    assert abs(free.mean() - mean) < 5 * deviation / math.sqrt(4000 / 2)


class Well:
    """A network of the shape c z^2: beside N(0, 1) the density is N(0, 1/(1 + 2 c))."""

    def apply(self, c, z):
        return c * z[:, 0] ** 2


def well(c):
    base = MixturePrior(jnp.zeros(1), jnp.zeros((1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1)))
    whitening = Whitening(np.zeros(1), np.eye(1), np.eye(1), 0.0)
    return EnergyModel((1,), whitening, base, Well(), jnp.asarray(c, float), noise=np.zeros(1))


def test_more_is_drawn_where_few_draws_have_weight(recwarn):
    """Of 3,200 draws some 84 have weight at c = 500, fewer than two for each of 200 samples."""
    x = np.asarray(well(500.0).impute(jax.random.key(0), np.full((1, 1), np.nan), num=200))
    assert not [w for w in recwarn if "impute" in str(w.message)]
    # About 700 effective draws: the variance's error is (2 (1/200 + 1/700))^(1/2) of it, .11.
    assert abs(x.var() * 1001 - 1) < 4 * 0.11


def test_samples_that_repeat_are_told():
    with pytest.warns(UserWarning, match="impute: 4096 draws .* samples repeat"):
        well(5e6).impute(jax.random.key(0), np.full((1, 1), np.nan), num=32)


def test_whitening_has_its_determinant():
    whitening = _mixtures.whitening_of(NORMAL, 0.0)
    z = np.asarray(whitening.apply(jnp.asarray(NORMAL, float)))
    np.testing.assert_allclose(np.cov(z.T, bias=True), np.eye(3), atol=1e-2)
    assert abs(whitening.log_det - np.linalg.slogdet(whitening.root)[1]) < 1e-9
    np.testing.assert_allclose(whitening.root @ whitening.inverse, np.eye(3), atol=1e-9)


def test_columns_of_few_values_get_noise():
    table = np.stack([RNG.integers(0, 3, 200), RNG.normal(size=200)], 1)
    model = energymatch.fit(jax.random.key(0), table, steps=0, progress=False)
    assert model.noise[0] > 0
    assert model.noise[1] == 0
    assert np.all(np.isfinite(np.asarray(model.log_prob(table.astype(float)))))


def test_a_component_of_fewer_rows_than_columns_is_a_density():
    """Five places of 15 rows in 20 columns: their covariances alone are singular."""
    rng = np.random.default_rng(0)
    places = 3 * rng.normal(size=(5, 1, 20)) + 0.1 * rng.normal(size=(5, 20, 20))
    model = energymatch.fit(jax.random.key(0), places[:, :15].reshape(-1, 20), steps=0, progress=False)
    fresh = places[:, 15:].reshape(-1, 20)
    score = np.asarray(model.log_prob(fresh))
    flat = -0.5 * np.sum(((fresh - fresh.mean(0)) / fresh.std(0)) ** 2, 1) - np.sum(np.log(fresh.std(0)))
    assert np.all(np.isfinite(score))
    assert score.mean() > flat.mean() - 10 * np.log(2 * np.pi)


@pytest.mark.parametrize("correlated", [False, True])
def test_fewer_rows_than_columns_are_no_singular_density(correlated):
    """25 rows of 30 columns. Fresh rows: the true law has -42.6 nats, and no fit knows it within a few."""
    rng = np.random.default_rng(3)
    mix = np.eye(30)
    if correlated:  # one factor, of the same variance as what each column has for itself
        mix = np.linalg.cholesky(np.eye(30) + np.ones((30, 30)))
    draw = lambda n: rng.normal(size=(n, 30)) @ mix.T
    model = energymatch.fit(jax.random.key(0), draw(25), steps=0, progress=False)
    fresh = draw(500)
    truth = -15 * np.log(2 * np.pi) - 15 - np.linalg.slogdet(mix)[1]
    found = np.asarray(model.log_prob(fresh)).mean()
    assert truth - 8 < found < truth + 0.5
    assert truth - 15 < model.held_out < truth + 10  # of five rows


def test_tails_far_out_cost_no_more_than_their_share():
    """Student's t of 1.5 degrees, 600 rows of 2 columns: fresh rows reach some hundreds of widths."""
    rng = np.random.default_rng(4)
    model = energymatch.fit(jax.random.key(0), rng.standard_t(1.5, (600, 2)), steps=0, progress=False)
    fresh = rng.standard_t(1.5, (2000, 2))
    truth = scipy.stats.t(1.5).logpdf(fresh).sum(axis=1).mean()
    assert truth - 0.5 < np.asarray(model.log_prob(fresh)).mean() < truth + 0.05


@pytest.mark.parametrize("far", [1e3, 1e6, 1e12])
def test_one_row_far_out_takes_nothing_from_the_others(far):
    rng = np.random.default_rng(5)
    table = rng.normal(size=(300, 3))
    table[17, 1] = far
    model = energymatch.fit(jax.random.key(0), table, steps=0, progress=False)
    fresh = rng.normal(size=(2000, 3))
    truth = scipy.stats.norm.logpdf(fresh).sum(axis=1).mean()
    # 9 numbers from 300 rows cost .015 nats, wide normals of .3% each up to the far row .06 at most.
    assert truth - 0.1 < np.asarray(model.log_prob(fresh)).mean() < truth + 0.01
    assert model.noise.max() == 0 and np.isfinite(model.log_prob(table[17:18].astype(np.float32))[0])


@pytest.mark.parametrize("apart", [0.0, 20.0])
def test_two_clusters_of_other_widths(apart):
    """200 rows of 50 columns, widths .01 and 1, beside each other or one inside the other."""
    rng = np.random.default_rng(6)

    def draw(n):
        narrow = rng.integers(0, 2, n).astype(bool)
        x = np.where(narrow[:, None], 0.01, 1.0) * rng.normal(size=(n, 50))
        return x + np.where(narrow, 0.0, apart)[:, None], narrow

    def truth(x, narrow):
        width, middle = np.where(narrow, 0.01, 1.0)[:, None], np.where(narrow, 0.0, apart)[:, None]
        return scipy.stats.norm.logpdf(x, middle, width).sum(axis=1) - math.log(2)

    model = energymatch.fit(jax.random.key(0), draw(200)[0], steps=0, progress=False)
    x, narrow = draw(1000)
    lost = truth(x, narrow) - np.asarray(model.log_prob(x))
    # A normal of 100 numbers a cluster from 100 rows costs half a nat; the wide one, of 100 rows in 50
    # columns, is drawn towards what has more rows. One normal for both loses 150 nats a row.
    assert lost[narrow].mean() < 5
    assert lost[~narrow].mean() < 25


class Shell:
    """f of a shell of radius 30^(1/2) and the width c."""

    def apply(self, c, z):
        return 0.5 * ((jnp.linalg.norm(z, axis=1) - math.sqrt(30)) / c) ** 2


@pytest.mark.parametrize(("width", "known"), [(0.05, True), (1e-4, False)])
def test_a_score_wants_draws_where_the_model_is(width, known):
    """Rows on a shell, draws of N(0, I): 1,000 of 16,384 lie in the wider shell, 2 in the other.

    Those two make log Z tens of nats too low, and would make the score as much too high.
    """
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(200, 30))
    rows *= (math.sqrt(30) + width * rng.normal(size=(200, 1))) / np.linalg.norm(rows, axis=1, keepdims=True)
    base = MixturePrior(jnp.zeros(1), jnp.zeros((1, 30)), jnp.ones((1, 30)), jnp.ones((1, 30)))
    trained = fitting._Training(Shell(), base, None, rows, np.zeros(30), rows, 0.0)
    score = float(trained._score(jax.random.key(0), width))
    if not known:
        assert score == -math.inf
        return
    radius = np.linspace(0.01, 12, 200_001)
    kept = np.exp(scipy.stats.chi(30).logpdf(radius) - 0.5 * ((radius - math.sqrt(30)) / width) ** 2)
    log_z = math.log(kept.sum() * (radius[1] - radius[0]))
    truth = float(jnp.mean(-trained.potential(width, jnp.asarray(rows, float)))) - log_z
    # 1,000 draws of uneven weight.
    assert abs(score - truth) < 4 * 0.05


def test_without_time_it_says_that_nothing_was_trained():
    model = energymatch.fit(jax.random.key(0), NORMAL[:100], seconds=1e-3, progress=False)
    assert not model.converged and "out of time" in model.reason
    assert "not trained" in model.report() and np.isfinite(model.held_out)


def test_interrupted_it_returns_what_it_has():
    def stop(values):
        raise KeyboardInterrupt

    model = energymatch.fit(jax.random.key(0), NORMAL[:100], callback=stop, progress=False)
    assert not model.converged
    assert "interrupted" in model.reason
    assert np.isfinite(model.held_out)


def with_cell(value):
    table = NORMAL.copy()
    table[7, 2] = value
    return table


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_cell(np.nan), "row 7, column 2"),
        (with_cell(np.inf), "row 7, column 2"),
        (np.array([["a", "b"]] * 30), "data must be numbers"),
        (NORMAL[:10], "at least 20 examples"),
        (NORMAL[:, 0], "must have shape"),
        (np.c_[NORMAL, np.ones(600)], "column 3 is constant"),
        (np.c_[NORMAL, NORMAL[:, 1]], "column 3 is a copy of column 1"),
    ],
)
def test_tables_without_a_density_are_refused(data, message):
    with pytest.raises((TypeError, ValueError), match=message):
        energymatch.fit(jax.random.key(0), data, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds"),
        ({"steps": -1}, "steps"),
        ({"network": "mlp"}, "network"),
        ({"callback": 3}, "callback"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        energymatch.fit(jax.random.key(0), NORMAL, **options)
