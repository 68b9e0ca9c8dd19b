"""`egm.fit` on problems with exact answers, small: results, errors, saving, refusals."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy import integrate

import egm
from egm import _questions, _saved, design, evidence, pilot, stopping
from egm.spaces import Interval, Layout, Positive, Real, Tokens
from egm.typing import Moments

SPACE = {"rate": Positive(), "share": Interval(-1.0, 1.0), "kind": Tokens((), 3)}


def log_density(s):
    """Of one state: a gamma rate, a share whose tilt hangs on the kind."""
    tilt = (s["kind"] - 1.0) * 2.0
    return 2.0 * jnp.log(s["rate"]) - 1.5 * s["rate"] + tilt * s["share"] - 0.3 * s["kind"]


def exact():
    """(log Z, mean rate, P(kind = 2), mean share)."""
    gamma = math.gamma(3.0) / 1.5**3
    kinds = np.arange(3)
    inside = [integrate.quad(lambda u, k=k: np.exp(2 * (k - 1) * u), -1, 1)[0] for k in kinds]
    first = [integrate.quad(lambda u, k=k: u * np.exp(2 * (k - 1) * u), -1, 1)[0] for k in kinds]
    mass = np.exp(-0.3 * kinds) * inside
    return (
        math.log(gamma * mass.sum()),
        3.0 / 1.5,
        mass[2] / mass.sum(),
        (np.exp(-0.3 * kinds) * first).sum() / mass.sum(),
    )


@pytest.fixture(scope="module")
def sampler():
    told = []
    found = egm.fit(
        jax.random.key(0), log_density=log_density, space=SPACE, iterations=4, callback=told.append,
        progress=False,
    )  # fmt: skip
    assert len(told) == len(found.history["ess"]) <= 4
    return found


def test_log_z_and_means_are_exact(sampler):
    log_z, rate, kind, share = exact()
    assert sampler.converged, sampler.reason
    assert abs(sampler.log_z - log_z) < 4 * sampler.log_z_error < 0.2
    draw = sampler.sample(jax.random.key(1), 5000)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), draw.x) == {
        "rate": ((5000,), jnp.float32), "share": ((5000,), jnp.float32), "kind": ((5000,), jnp.int32)
    }  # fmt: skip
    for function, wanted in (
        (lambda x: x["rate"], rate),
        (lambda x: x["kind"] == 2, kind),
        (lambda x: x["share"], share),
    ):
        mean, error = draw.expectation(function)
        assert abs(mean - wanted) < 4 * error < 0.3
    assert draw.ess > 0.3
    assert abs(jnp.sum(draw.weights) - 1) < 1e-4


def test_resampled_states_have_the_targets_mean(sampler):
    _, rate, _, _ = exact()
    x = sampler.sample(jax.random.key(2), 4000).resample(jax.random.key(3), 3000)
    # The variance of a gamma of shape 3 and rate 1.5 is 4/3; the ESS is at least half.
    assert abs(jnp.mean(x["rate"]) - rate) < 4 * math.sqrt(4 / 3 / 1500)


@pytest.mark.slow
def test_refined_states_need_no_weights(sampler):
    """A sampler of a wrong target, which the weights mend: its own samples are off, refined ones are not."""
    tilted = egm.Sampler(
        lambda s: sampler.energy(s) - 0.8 * (s["kind"] == 2), sampler.design, sampler.coordinates,
        sampler.moments, sampler.params,
    )  # fmt: skip
    log_z, rate, kind, _ = exact()
    odds = kind / (1 - kind) * math.exp(0.8)
    own = np.mean(np.asarray(tilted.sample(jax.random.key(3), 4000).x["kind"]) == 2)
    refined = egm.refine(jax.random.key(4), tilted, 4000, num_rounds=2)
    assert 0.3 < refined.acceptance.min() <= 1 and 0.2 < refined.distinct <= 1
    found = np.mean(np.asarray(refined.x["kind"]) == 2)
    # Of some thousand independent ancestors.
    assert abs(found - odds / (1 + odds)) < 4 * 0.5 / math.sqrt(2000) < abs(own - odds / (1 + odds))
    mean = np.mean(refined.x["rate"])
    assert abs(mean - rate) < 4 * math.sqrt(3.0) / 1.5 / math.sqrt(2000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num": 2}, "num must be"), ({"num_rounds": 0}, "num_rounds must be"), ({"sampler": 3}, "sampler")],
)
def test_what_refine_refuses(sampler, arguments, message):
    given = {"key": jax.random.key(0), "sampler": sampler, "num": 8} | arguments
    with pytest.raises((TypeError, ValueError), match=message):
        egm.refine(**given)


def test_what_is_saved_is_what_is_loaded(sampler, tmp_path):
    sampler.save(tmp_path / "sampler")
    json.loads((tmp_path / "sampler" / "sampler.json").read_text())
    loaded = egm.Sampler.load(tmp_path / "sampler", lambda s: -log_density(s))
    here, there = (s.sample(jax.random.key(4), 50) for s in (sampler, loaded))
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert loaded.log_z == sampler.log_z
    assert loaded.report() == sampler.report()
    assert loaded.space == SPACE
    with pytest.raises(ValueError, match="new or empty"):
        sampler.save(tmp_path / "sampler")
    with pytest.raises(ValueError, match="must hold a saved sampler"):
        egm.Sampler.load(tmp_path, lambda s: -log_density(s))


def test_the_report_is_a_table(sampler):
    text = sampler.report()
    assert "log Z" in text
    assert "converged" in text
    assert "yes" in text


def test_log_prob_is_normalised(sampler):
    x = {"rate": jnp.array([1.0]), "share": jnp.array([0.2]), "kind": jnp.array([1])}
    wanted = log_density(jax.tree.map(lambda a: a[0], x)) - exact()[0]
    assert abs(sampler.log_prob(x)[0] - wanted) < 4 * sampler.log_z_error


@pytest.mark.slow
def test_interrupted_it_returns_what_it_has():
    def stop(values):
        raise KeyboardInterrupt

    found = egm.fit(jax.random.key(0), lambda x: -2.0 * (x == jnp.roll(x, 1, -1)).sum(-1),
                    Tokens(4, 2), callback=stop, progress=False)  # fmt: skip
    assert not found.converged
    assert "interrupted" in found.reason
    # A ring of four spins: each bond is 2 where equal; Z is the trace of the transfer matrix's power.
    exact_z = np.log(np.trace(np.linalg.matrix_power(np.array([[np.exp(2.0), 1], [1, np.exp(2.0)]]), 4)))
    assert abs(found.log_z - exact_z) < 4 * found.log_z_error or not np.isfinite(found.log_z_error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"energy": lambda x: -0.5 * jnp.sum(x**2), "space": Real(2)}, "log-density passed"),
        ({"energy": lambda x: jnp.sum(jnp.cos(x)), "space": Real(2)}, "Circle"),
        ({"energy": lambda x: x[0] ** 2, "space": Real(2)}, "hardly depends on coordinate 1"),
        ({"energy": lambda x: jnp.sum(x) * jnp.nan, "space": Real(2)}, "NaN"),
        ({"energy": lambda x: jnp.sum(x**2)}, "space is needed"),
        ({"space": Real(2)}, "energy and log_density"),
        ({"energy": 3, "space": Real(2)}, "energy must be callable"),
        ({"energy": lambda x: x, "space": Real(2)}, "one number a state"),
        ({"energy": lambda x: jnp.sum(x**2), "space": Real(2), "seconds": -1}, "seconds"),
        ({"energy": lambda x: jnp.sum(x**2), "space": Real(2), "ess_target": 2}, "ess_target"),
        ({"energy": lambda x: jnp.sum(x**2), "space": Real(2), "iterations": 0}, "iterations"),
        ({"energy": lambda x: jnp.sum(x**2), "space": Real(2), "optimizer": "adam"}, "optimizer"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        egm.fit(jax.random.key(0), progress=False, **arguments)


@pytest.mark.parametrize(
    ("space", "sizes", "fewest"),
    [
        (Real(3), (1024, 512), (256, 128)),
        (Real(100), (512, 256), (256, 128)),
        (Tokens(6, 2), (512, 128), (512, 128)),
    ],
)
def test_an_iteration_is_as_large_as_there_is_time_for(space, sizes, fewest):
    made = design.Design(Layout(space), num_times=6)
    flat = lambda x: jnp.zeros(x.shape[0])
    parts = design.parts_of(made, flat)
    assert design.sizes_of(made, parts, flat) == sizes
    assert design.sizes_of(made, parts, flat, 1e6) == sizes
    assert design.sizes_of(made, parts, flat, 1e-6) == fewest


def test_heavy_tails_are_no_reason_to_refuse():
    """A Cauchy density falls as r^-2 in one dimension: a density, if only just."""
    layout = Layout(Real())
    energy = layout.energy(lambda x: jnp.log1p(x**2))
    found = pilot.explore(jax.random.key(0), energy, layout, num_chains=64)
    moved = found.coordinates.energy(energy)
    _questions.check_proper(jax.random.key(0), moved, layout, 300.0, 3000.0, 1.0)
    with pytest.raises(ValueError, match="must grow"):
        flatter = layout.energy(lambda x: 0.45 * jnp.log1p(x**2))
        _questions.check_proper(jax.random.key(0), flatter, layout, 300.0, 3000.0, 1.0)


def test_the_pilot_makes_the_target_standard():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(6, 6)) * 10.0 ** rng.uniform(-2, 2, 6)
    center = rng.normal(size=6) * 30
    precision = jnp.asarray(np.linalg.inv(root @ root.T), float)
    layout = Layout(Real(6))
    energy = layout.energy(
        jax.vmap(lambda x: 0.5 * jnp.einsum("i,ij,j->", x - center, precision, x - center))
    )
    found = pilot.explore(jax.random.key(0), energy, layout, num_chains=128)
    truth = 3 * np.log(2 * np.pi) + np.linalg.slogdet(root)[1]
    assert abs(np.median(found.log_z) - truth) < 1
    matrix = found.coordinates.matrix
    inside = np.linalg.solve(matrix.T, (root @ root.T)) @ np.linalg.inv(matrix)
    # Some hundred effective states of each of 12 populations: within a half of one in every direction.
    assert np.all(np.abs(np.linalg.eigvalsh((inside + inside.T) / 2) - 1) < 0.5)
    shift = np.linalg.solve(matrix.T, found.coordinates.center - center)
    assert np.linalg.norm(shift) < 0.5
    assert 0.7 < found.length_scale <= 1


@pytest.mark.slow
def test_axes_turn_only_towards_directions_that_stand_out():
    """Two far modes along (1, 1, 1, 1) of four coordinates, beside two coordinates of two wells each."""

    def energy(x):
        near, far = (jnp.sum((x[:, :4] - m) ** 2, axis=1) for m in (-4.0, 4.0))
        wells = jnp.sum((x[:, 4:] ** 2 - 4.0) ** 2, axis=1)
        return -jnp.logaddexp(-0.5 * near, -0.5 * far) + wells

    found = pilot.explore(jax.random.key(0), Layout(Real(6)).energy(energy), Layout(Real(6)), num_chains=128)
    rows = found.coordinates.matrix
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    along = np.array([0.5, 0.5, 0.5, 0.5, 0.0, 0.0])
    assert np.abs(rows @ along).max() > 0.99
    np.testing.assert_allclose(np.abs(rows[4:]), np.eye(6)[4:], atol=0.1)


def test_chains_are_fewer_where_a_level_takes_long():
    """By the same factor as their moves: 400 s of work in 100 s are half of each, or the least of both."""
    sizes = lambda level: pilot._Clock(100.0).sizes(1.0, level, 100, (384, 10), (64, 2))
    assert sizes(0.5) == (384, 10)
    chains, rounds = sizes(4.0)
    assert rounds in (4, 5) and abs(chains * rounds / 3840 - 0.25) < 0.01
    assert sizes(1e4) == (64, 2)


def test_a_state_stands_for_its_population_whatever_the_size_of_its_kind(monkeypatch):
    sizes = {pilot._FIRST: (64, 2), pilot._SECOND: (16, 2), 1.0: (32, 2)}
    monkeypatch.setattr(pilot._Clock, "sizes", lambda clock, share, *rest: sizes[share])
    monkeypatch.setattr(pilot, "_agree", lambda log_z: False)
    layout = Layout(Real(2))
    energy = layout.energy(lambda x: -jnp.logaddexp(*(-jnp.sum((x - m) ** 2, axis=-1) for m in (-6, 6))))
    found = pilot.explore(jax.random.key(0), energy, layout, num_chains=64)
    assert np.bincount(found.population).tolist() == [64] * 6 + [16] * 6 + [32] * 6
    assert found.kind.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    shares = pilot._shares(found.log_z, found.kind, np.arange(18))
    for p, share in enumerate(shares):
        assert scipy.special.logsumexp(found.log_shares[found.population == p]) == pytest.approx(share)
    there = found.coordinates.energy(energy)(jnp.asarray(found.states))
    np.testing.assert_allclose(there, found.energies, atol=1e-3)


def test_kinds_of_starts_count_by_their_precision():
    """Shares are log Z plus a weight of mean one: high for what agrees with itself, unless it is low."""
    rough, fine = np.array([[-1.0, 1.5], [0.5, -0.8]]), np.array([[0.01, -0.02], [0.0, 0.01]])
    both = lambda *runs: pilot._shares(
        np.concatenate(runs),
        np.repeat(np.arange(len(runs)), [run.size for run in runs]),
        np.arange(sum(run.size for run in runs)),
    )
    shares = both(rough, fine)
    weight = np.exp(shares - np.minimum(np.concatenate([rough.ravel(), fine.ravel()]), 1.3))
    np.testing.assert_allclose(weight[:4], weight[0], rtol=0.3)
    assert weight[4] > 10 * weight[3] and abs(np.mean(weight) - 1) < 0.2
    # One that has lost half of the mass agrees with itself as well.
    low = both(rough + 3.0, fine)
    assert np.exp(low[4:] - fine.ravel()).max() < 2.0
    alone = both(fine)
    np.testing.assert_allclose(alone, fine.ravel())
    none = both(np.full((1, 2), -np.inf))
    assert np.all(none == -np.inf)


def test_moved_states_stay_distributed_as_the_target():
    """Two normals of mass .3 and .7: exact states remain so, and states that were none become so."""
    path = egm.paths.VarianceExplodingPath(1.0, 10.0)
    logits = jnp.log(jnp.array([[0.3, 0.7]]))
    means = jnp.array([-1.5, 1.5])

    def energy(x):
        return -jax.nn.logsumexp(logits - 0.5 * (x - means[None]) ** 2, axis=-1)

    k_part, k_noise, k_move = jax.random.split(jax.random.key(0), 3)
    n = 1024
    part = jax.random.bernoulli(k_part, 0.7, (n, 1))
    x = means[part.astype(int)] + jax.random.normal(k_noise, (n, 1))
    start = Moments(jnp.zeros(1), jnp.full(1, 4.0))
    mean, second = 0.6, 1 + 1.5**2
    deviation = math.sqrt(second - mean**2)
    for states, rounds in ((x, 5), (jnp.full((n, 1), 1.5) + 0.1 * x, 60)):
        y, e = evidence.moved(k_move, energy, path, states, start, num_rounds=rounds)
        np.testing.assert_allclose(e, energy(y), rtol=1e-5)
        # Chains that share differences are not quite independent: four errors of a quarter of them.
        assert abs(jnp.mean(y) - mean) < 4 * deviation / math.sqrt(n / 4)
        assert abs(jnp.mean(y**2) - second) < 4 * 4 / math.sqrt(n / 4)
    with pytest.raises(ValueError, match="even number"):
        evidence.moved(k_move, energy, path, x[:5], start)


def test_every_space_is_one_that_a_saved_sampler_knows():
    """Each kind of egm.spaces comes back from the plain data of a saved sampler."""
    import egm.sampler

    kinds = (
        Real(2),
        Real((2, 2), periodic=True),
        Positive(3),
        Interval(-1.0, 2.0, (2,)),
        egm.spaces.Circle((3, 3), periodic=True),
        Tokens((2, 2), 3),
        egm.spaces.Particles(3, 2),
    )
    named = {name for name in egm.spaces.__all__ if name[0].isupper()} - {"Layout", "Continuous"}
    assert {type(kind).__name__ for kind in kinds} == named
    for kind in kinds:
        plain = json.loads(json.dumps(_saved.plain_space(kind)))
        assert _saved.KINDS[plain.pop("kind")](**_saved.tuples(plain)) == kind


def rule(**told):
    """A rule with an hour of time, told of iterations of these ESS."""
    budget = stopping.Budget(time.time(), 3600.0, None, 0.95)
    found = stopping.Rule(budget, True, 1024)
    for ess in told["ess"]:
        found.heard({"ess": ess, "level": 1.0})
    return found


def test_the_chains_are_asked_again_where_the_ess_falls_again():
    assert rule(ess=[0.1]).needs_chains()
    assert not rule(ess=[0.1, 0.6]).needs_chains()
    assert rule(ess=[0.1, 0.6, 0.05]).needs_chains()
    # Chains that have led nowhere are left.
    assert rule(ess=[0.001] * 59).needs_chains()
    assert not rule(ess=[0.001] * 60).needs_chains()


def test_training_ends_in_time_for_the_last_figures():
    """Of 100 seconds with iterations of 4 the last states (14 generations at half of 4 s) take at most 20."""
    found = rule(ess=[0.4, 0.4])
    for each, seconds, kept in ((1.0, 100.0, 7.0), (4.0, 100.0, 20.0)):
        found._seconds_each = each
        found._budget = stopping.Budget(time.time(), seconds, None, 0.95, 0.5 * each / 1024)
        assert abs(found._left - (seconds - kept)) < 1.0
    found._budget = stopping.Budget(time.time() - 75.0, 100.0, None, 0.95, 2.0 / 1024)
    assert not found.goes_on()
    assert found.stopped == "out of time"


def test_time_is_kept_for_compiling_the_last_figures(monkeypatch):
    """An iteration of 2 s after one of 9, which compiled: 7 s; never more than a tenth of the whole."""
    clock = [0.0]
    monkeypatch.setattr(stopping.time, "time", lambda: clock[0])
    for seconds, kept in ((100.0, 7.0), (50.0, 5.0)):
        clock[0] = 0.0
        budget = stopping.Budget(0.0, seconds, None, 0.95)
        found = stopping.Rule(budget, True, 1024)
        for clock[0] in (9.0, 11.0):
            found.heard({"ess": 0.5, "level": 1.0})
        # A generation simulates for half of 2 s, and the last figures are 14 of them.
        states = min(14.0, 0.2 * seconds)
        assert abs(budget.last - states - kept) < 1e-6
        assert abs(found._left - (seconds - 11.0 - states - kept)) < 1e-6


@pytest.mark.parametrize(("ess", "told"), [([0.1, 0.2, 0.3, 0.4], "out of time"), ([0.4] * 40, "")])
def test_a_rate_that_fell_for_want_of_time_is_told(ess, told):
    """Eight seconds with iterations of one: the rate falls at once, whether or not the ESS still rises."""
    found = rule(ess=ess)
    found._seconds_each, found._budget = 1.0, stopping.Budget(time.time(), 8.0, None, 0.95)
    for _ in range(20):
        if not found.goes_on():
            break
        found.heard({"ess": ess[-1], "level": 1.0})
    assert not found.goes_on()
    assert found.stopped == told
