"""docs/interoperability.md: its programs run, and what they make is held against exact answers.

Where a package is not installed its tests are skipped; `pip install -e ".[interop]"` installs them all. The
budget of `egm.fit` is cut to a few iterations, so that what is asked is right and not how good it became.
"""

import importlib
import itertools
import math
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import egm
import energymatch
from egm import spaces
from egm.batching import batched_energy
from energymatch import couplings

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "interoperability.md").read_text()
SECTIONS = {
    title: re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
}
NUMPYRO = "numpyro and arviz"
BLACKJAX = "BlackJAX"
DENSITIES = "Log-densities of distrax, FlowJAX and TensorFlow Probability"
NETWORKS = "Networks of Flax NNX, Equinox and your own"
OTT = "Couplings of ott-jax"
SKLEARN = "scikit-learn"
FRAMES = "Frames of pandas and polars"
LOADERS = "Any loader of images"
LOGGERS = "Metrics to a logger"
JAX_MD = "Particles of jax-md"


def program(section, index=0, **given):
    """The names that a program of the page leaves, run with those of `given`."""
    names = {"__name__": "__main__", **given}
    # Other libraries broadcast as jax does by default.
    with jax.numpy_rank_promotion("allow"):
        exec(compile(SECTIONS[section][index], f"interoperability.md: {section}", "exec"), names)
    return types.SimpleNamespace(**names)


def small(iterations):
    """Options of `egm.fit`: iterations decide, however slow the machine is."""
    return {"iterations": iterations, "seconds": 3600.0, "progress": False}


@pytest.fixture
def few(monkeypatch, tmp_path):
    """A function that limits the fits of a program, which writes into a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def limit(iterations=None, steps=None):
        egm_fit, em_fit = egm.fit, energymatch.fit
        monkeypatch.setattr(egm, "fit", lambda *a, **k: egm_fit(*a, **small(iterations), **k))
        monkeypatch.setattr(energymatch, "fit", lambda *a, **k: em_fit(*a, steps=steps, progress=False, **k))

    return limit


def test_every_program_of_the_page_has_a_test():
    counts = {NUMPYRO: 1, BLACKJAX: 2, DENSITIES: 3, NETWORKS: 2, OTT: 1, SKLEARN: 1, FRAMES: 1}
    counts |= {LOADERS: 1, LOGGERS: 3, JAX_MD: 1, "Versions": 0}
    assert {title: len(programs) for title, programs in SECTIONS.items()} == counts


# numpyro, arviz, BlackJAX: one model.


def schools_exact(s, y):
    """(log evidence, E[mu], E[log tau]) of the eight schools: all but tau is normal."""

    def of(tau):
        covariance = np.diag(tau**2 + s**2) + 25.0
        r = np.linalg.solve(covariance, y)
        log_p = -0.5 * y @ r - 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
        return stats.halfcauchy(scale=5).pdf(tau) * np.exp(log_p), 25 * r.sum()

    total = lambda g: integrate.quad(lambda u: g(np.exp(u)) * np.exp(u), -14, 8, limit=400)[0]
    z = total(lambda t: of(t)[0])
    mean = total(lambda t: of(t)[0] * of(t)[1]) / z
    return math.log(z), mean, total(lambda t: of(t)[0] * np.log(t)) / z


@pytest.fixture(scope="module")
def schools():
    for name in ("numpyro", "arviz"):
        pytest.importorskip(name)
    with pytest.MonkeyPatch.context() as patch:
        fit = egm.fit
        patch.setattr(egm, "fit", lambda *a, **k: fit(*a, **small(6), **k))
        return program(NUMPYRO)


@pytest.mark.slow
def test_a_numpyro_model_has_its_evidence_and_means(schools):
    log_z, mu, log_tau = schools_exact(schools.s, schools.y)
    sampler, draw = schools.sampler, schools.draw
    assert sampler.ess > 0.1, sampler.report()
    assert abs(sampler.log_z - log_z) < 4 * sampler.log_z_error < 0.4
    assert np.all(np.asarray(draw.x["tau"]) > 0)
    for function, wanted in ((lambda x: x["mu"], mu), (lambda x: jnp.log(x["tau"]), log_tau)):
        mean, error = draw.expectation(function)
        assert abs(mean - wanted) < 4 * error < 1.0


@pytest.mark.slow
def test_samples_go_to_arviz(schools):
    import arviz

    data = schools.draw.to_arviz()
    posterior = data.posterior
    assert {n: a.shape for n, a in posterior.data_vars.items()} == {"mu": (1, 10_000), "tau": (1, 10_000)}
    mean = float(schools.draw.expectation(lambda x: x["mu"])[0])
    # Resampling adds what 10,000 draws of a deviation of about 3 add.
    assert abs(float(arviz.summary(data, kind="stats").loc["mu", "mean"]) - mean) < 0.15


@pytest.mark.parametrize("version", ["0.23.4", "1.3.0"])
def test_samples_go_to_either_arviz(version, monkeypatch):
    """By stand-ins with the signatures of both: 1.0 is for Python 3.12 and later."""
    stand_in = types.ModuleType("arviz")
    stand_in.__version__ = version
    if version < "1":
        stand_in.from_dict = lambda posterior=None, *, sample_stats=None: ("old", posterior)
    else:
        stand_in.from_dict = lambda data, *, name=None: ("new", data["posterior"])
    monkeypatch.setitem(sys.modules, "arviz", stand_in)
    x = {"a": jnp.arange(6.0).reshape(3, 2), "b": [jnp.arange(3), {"c": jnp.zeros((3, 1, 1))}]}
    which, found = egm.Samples(x, jnp.array([0.0, -jnp.inf, -jnp.inf]), None).to_arviz()
    assert which == ("old" if version < "1" else "new")
    assert {n: a.shape for n, a in found.items()} == {"a": (1, 3, 2), "b.0": (1, 3), "b.1.c": (1, 3, 1, 1)}
    np.testing.assert_array_equal(found["a"], [[[0, 1]] * 3])
    _, alone = egm.Samples(x["a"], jnp.zeros(3), None).to_arviz(jax.random.key(1))
    assert list(alone) == ["x"] and sorted(alone["x"][0, :, 0]) == [0, 2, 4]


@pytest.mark.slow
def test_blackjax_polishes_our_samples_and_its_smc_agrees(schools):
    pytest.importorskip("blackjax")
    given = {"found": schools.found, "sampler": schools.sampler}
    chains = program(BLACKJAX, 0, **given)
    log_z, mu, log_tau = schools_exact(schools.s, schools.y)
    assert jax.tree.map(jnp.shape, chains.polished) == jax.tree.map(jnp.shape, chains.starts)
    assert 0.6 < chains.acceptance.mean() <= 1
    # Of 256 chains, each worth one draw at least; the deviations are 3.3 and 1.2.
    assert abs(chains.polished["mu"].mean() - mu) < 4 * 3.3 / 16
    assert abs(chains.polished["tau"].mean() - log_tau) < 4 * 1.2 / 16
    reference = program(BLACKJAX, 1, spread=chains.spread, **given)
    # A step at ESS .9 has a variance of .11 / 2,000, and there are some twenty of them: .034, doubled for
    # particles that stay dependent.
    assert abs(float(reference.log_z) - log_z) < 4 * 0.07
    assert abs(float(reference.log_z) - schools.sampler.log_z) < 4 * 0.07 + 4 * schools.sampler.log_z_error


# Log-densities.


@pytest.fixture
def asked(monkeypatch):
    """The energy that `egm.fit` makes of its arguments, in place of a fit."""
    told = {}

    def fit(key, energy=None, space=None, *, log_density=None):
        layout = spaces.Layout(space)
        told["layout"], told["energy"] = layout, batched_energy(lambda x: -log_density(x), layout)

    monkeypatch.setattr(egm, "fit", fit)
    return told


@pytest.mark.slow
def test_a_sampler_of_a_distrax_mixture(few):
    pytest.importorskip("distrax")
    few(iterations=3)
    names = program(DENSITIES, 0)
    sampler = names.sampler
    assert abs(sampler.log_z) < 4 * sampler.log_z_error < 0.2
    with jax.numpy_rank_promotion("allow"):
        mean, error = sampler.sample(jax.random.key(1), 4000).expectation(lambda x: x)
    assert np.all(np.abs(np.asarray(mean) - [0.8, 0.7]) < 4 * np.asarray(error))


def test_a_flow_of_flowjax_is_an_energy(asked):
    pytest.importorskip("flowjax")
    flow = program(DENSITIES, 1).flow
    x, log_density = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32), []
    for row in x:
        log_density.append(float(flow.log_prob(jnp.asarray(row))))
    np.testing.assert_allclose(-asked["energy"](x), log_density, rtol=1e-5)
    # Its integral is 1: by a grid whose ends are 8 deviations away.
    grid = np.linspace(-8, 8, 161).astype(np.float32)
    points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
    mass = np.exp(-np.asarray(asked["energy"](points), np.float64)).sum() * 0.1**2
    assert abs(mass - 1) < 1e-3


def test_a_joint_distribution_of_tfp_is_an_energy_on_its_support(asked):
    pytest.importorskip("tensorflow_probability")
    program(DENSITIES, 2)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6, 2)).astype(np.float32)
    user, log_det = asked["layout"].to_user(z)
    rate, x = np.asarray(user["rate"], np.float64), np.asarray(user["x"], np.float64)
    wanted = stats.gamma.logpdf(rate, 3.0, scale=1 / 1.5) + stats.norm.logpdf(x, 0, 1 / rate)
    np.testing.assert_allclose(-asked["energy"](user), wanted, rtol=1e-4)
    inside = asked["layout"].energy(asked["energy"])(z)
    np.testing.assert_allclose(-inside, wanted + np.asarray(log_det), rtol=1e-4)


# Networks.


@pytest.mark.slow
def test_an_equinox_network_in_a_sampler(few):
    pytest.importorskip("equinox")
    few(iterations=6)
    names = program(NETWORKS, 0)
    before, after = jax.tree.leaves(names.params), jax.tree.leaves(names.sampler.params)
    assert jax.tree.structure(names.sampler.params) == jax.tree.structure(names.params)
    assert all(not np.array_equal(a, b) for a, b in zip(before, after))
    # x_1 given x_0 is normal about sin(x_0), so that the integral is 2 pi. Few iterations leave a tail of
    # weights, for which the library gives no error: by the ESS it is .011 of 8,192 samples where that is .5.
    assert names.sampler.ess > 0.5, names.sampler.report()
    assert abs(names.sampler.log_z - math.log(2 * math.pi)) < 4 * 0.011


@pytest.mark.slow
def test_an_nnx_network_in_a_model(few):
    few(steps=200)
    names = program(NETWORKS, 1)
    model, rng = names.model, np.random.default_rng(2)
    angle = rng.uniform(0, 2 * np.pi, (4000, 1))
    radius = 2 + 0.3 * rng.normal(size=(4000, 1))
    fresh = (np.c_[np.cos(angle), np.sin(angle)] * radius).astype(np.float32)
    # The entropy of the ring is log(2 pi) + E log radius + log(.3 sqrt(2 pi e)) = 2.73 nats.
    exact = -math.log(2 * math.pi) - np.log(radius).mean() - math.log(0.3 * math.sqrt(2 * math.pi * math.e))
    assert -0.3 < np.asarray(model.log_prob(fresh)).mean() - exact < 0.05
    if model.params is not None:
        assert jax.tree.structure(model.params) == jax.tree.structure(names.params)


# The rest.


def test_pairs_by_a_plan_of_ott():
    pytest.importorskip("ott")
    names = program(OTT)
    x_0, x_1, data = (np.asarray(a, np.float64) for a in names.batch[:3])
    cost = np.sum((x_0[:, None] - data[None]) ** 2, axis=-1)
    taken = np.argmax((x_1[:, None] == data[None]).all(-1), axis=1)
    np.testing.assert_array_equal(x_1, data[taken])
    # The plan is nearly the exact one; the pairs are draws of its rows.
    best = np.mean(cost[np.arange(128), couplings.exact_assignment(jnp.asarray(cost, jnp.float32))])
    with jax.numpy_rank_promotion("allow"):
        geometry = names.pointcloud.PointCloud(
            names.batch.x_0, names.batch.data, epsilon=0.01, relative_epsilon="mean"
        )
        plan = np.asarray(names.linear.solve(geometry).matrix, np.float64)
    mean, square = (plan * cost).sum(1) * 128, (plan * cost**2).sum(1) * 128
    error = math.sqrt(np.sum(square - mean**2)) / 128
    assert best - 1e-3 < mean.mean() < best + 0.1 * (cost.mean() - best)
    assert abs(cost[np.arange(128), taken].mean() - mean.mean()) < 4 * error + 1e-3


def test_an_estimator_of_scikit_learn(monkeypatch):
    sklearn = pytest.importorskip("sklearn")
    from sklearn.base import clone

    estimator = importlib.import_module("energymatch.estimator")
    fit = estimator.fit
    # The mixtures alone: training is tested elsewhere.
    monkeypatch.setattr(estimator, "fit", lambda *a, **k: fit(*a, **{**k, "steps": 0}))
    names = program(SKLEARN)
    assert set(names.search.best_params_) == {"energyestimator__steps"}
    assert names.log_density.shape == (150,) and names.fresh.shape == (100, 4)
    assert abs(names.best.score(names.table) - names.log_density.mean()) < 1e-6
    # The scaled table has means 0: that of 100 draws is .1 off.
    assert np.all(np.abs(names.fresh.mean(0) - names.table.mean(0)) < 0.5 * names.table.std(0))

    network = ({"w": jnp.ones(4)}, lambda p, z: z @ p["w"])
    copy = clone(energymatch.EnergyEstimator(seconds=5, network=network, random_state=jax.random.key(1)))
    assert copy.seconds == 5 and copy.network[1] is network[1]
    assert sklearn.utils.get_tags(copy).estimator_type == "density_estimator"


def test_an_estimator_is_pickled_for_joblib():
    joblib = pytest.importorskip("joblib")
    import io

    rows = np.random.default_rng(0).normal(size=(60, 2))
    estimator = energymatch.EnergyEstimator(steps=0).fit(rows)
    estimator.model_.impute(jax.random.key(0), rows[:1], np.array([True, False]))
    file = io.BytesIO()
    joblib.dump(estimator, file)
    file.seek(0)
    np.testing.assert_array_equal(joblib.load(file).score_samples(rows), estimator.score_samples(rows))


def test_a_frame_of_pandas(few):
    pandas = pytest.importorskip("pandas")
    few(steps=0)
    estimator = energymatch.EnergyEstimator(steps=0)
    names = program(FRAMES)
    assert list(estimator.fit(names.frame).feature_names_in_) == ["height", "weight"]
    model, frame, filled = names.model, names.frame, names.filled
    assert model.columns == ("height", "weight")
    turned = frame[["weight", "height"]]
    np.testing.assert_array_equal(model.log_prob(turned), model.log_prob(frame.to_numpy()))
    np.testing.assert_allclose(filled["height"], frame["height"][:3], rtol=1e-6)
    assert abs(filled["weight"][1] - (0.9 * frame["height"][1] - 85)) < 5 * 6
    assert filled["weight"][0] == pytest.approx(frame["weight"][0])

    sizes = pandas.Series([1, 2, None] * 100, dtype="Int64")
    with pytest.raises(ValueError, match="got nan at row 2, column 'size'"):
        energymatch.fit(jax.random.key(0), frame.assign(size=sizes))
    with pytest.raises(TypeError, match="column 'city' of data must hold numbers"):
        energymatch.fit(jax.random.key(0), frame.assign(city="here"))
    for bad in ("category", "datetime64[ns]"):
        with pytest.raises(TypeError, match="column 'odd' of data must hold numbers"):
            energymatch.fit(jax.random.key(0), frame.assign(odd=pandas.Series([1] * 300).astype(bad)))
    with pytest.raises(ValueError, match="different names, got 'height' twice"):
        energymatch.fit(jax.random.key(0), pandas.concat([frame, frame[["height"]]], axis=1))


def test_any_loader_of_images():
    names = program(LOADERS)
    assert int(names.state.step) == 3 and np.isfinite(names.info["loss"])


class Told(list):
    """Calls of a stand-in for a logger."""


def logger(index, module, monkeypatch):
    """(the callback of a program, what its logger was told), the logger's package a stand-in."""
    told = Told()

    class Writer:
        def __init__(self, logdir=None, experiment=None):
            told.append((logdir, experiment))

        def add_scalar(self, tag, scalar_value, global_step=None):
            told.append((tag, scalar_value, global_step))

        def track(self, value, name=None, step=None):
            told.append((name, value, step))

        def log(self, data, step=None):
            told.extend((name, value, step) for name, value in data.items())

    stand_in = types.ModuleType(module)
    stand_in.SummaryWriter = stand_in.Run = Writer
    stand_in.init = lambda project=None: Writer(project)
    monkeypatch.setitem(sys.modules, module, stand_in)
    names = vars(program(LOGGERS, index))
    return next(v for n, v in names.items() if n.startswith("to_")), told


def test_metrics_go_to_loggers(monkeypatch):
    modules = ("tensorboardX", "wandb", "aim")
    callbacks, told = zip(*(logger(i, name, monkeypatch) for i, name in enumerate(modules)))
    table = np.random.default_rng(0).normal(size=(60, 2))
    heard = []
    everyone = lambda values: [f(values) for f in (heard.append, *callbacks)]
    energymatch.fit(jax.random.key(0), table, steps=400, callback=everyone, progress=False)
    assert len(heard) == 2 and set(heard[0]) == {"steps", "held_out", "loss"}
    assert [len(t) for t in told] == [1 + 6] * 3
    flat = [(n, v) for values in heard for n, v in values.items()]
    for calls in told:
        assert [c[:2] for c in calls[1:]] == flat
        assert all(type(c[1]) is float for c in calls[1:])
    assert [c[2] for c in told[0][1:]] == list(itertools.chain([0] * 3, [1] * 3))


@pytest.mark.slow
def test_a_cluster_of_jax_md(few):
    pytest.importorskip("jax_md")
    few(iterations=3)
    names = program(JAX_MD)
    # Morse's pair energy in closed form, at one state.
    x = np.array([0.0, 0.0, 1.1, 0.1, 0.4, 1.0])
    places = x.reshape(3, 2)
    pairs = [np.linalg.norm(places[i] - places[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    morse = sum(2.0 * ((1 - math.exp(-3 * (r - 1))) ** 2 - 1) for r in pairs)
    wanted = (morse + 0.1 * (x**2).sum()) / 0.5
    assert float(names.at_temperature(jnp.asarray(x, jnp.float32))) == pytest.approx(wanted, rel=1e-3)
    # log Z on the centred plane of three points by importance sampling from a normal, 400,000 draws.
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(np.c_[np.ones(3), np.eye(3)[:, :2]])[0][:, 1:]
    u = rng.standard_t(4, size=(400_000, 2, 2))
    points = np.einsum("ik,nkd->nid", basis, u)
    distance = np.stack(
        [np.linalg.norm(points[:, i] - points[:, j], axis=1) for i, j in ((0, 1), (0, 2), (1, 2))]
    )
    e = (2.0 * ((1 - np.exp(-3 * (distance - 1))) ** 2 - 1)).sum(0) + 0.1 * (points**2).sum((1, 2))
    log_w = -e / 0.5 - stats.t.logpdf(u, 4).sum((1, 2))
    weight = np.exp(log_w - log_w.max())
    exact = log_w.max() + math.log(weight.mean())
    spread = weight.std() / weight.mean() / math.sqrt(len(weight))
    assert spread < 0.02
    assert abs(names.sampler.log_z - exact) < 4 * (names.sampler.log_z_error + spread) < 0.6
