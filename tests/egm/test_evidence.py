"""Lost modes, found by chains that start elsewhere: samplers in closed form that lack a known mass.

A sampler of a part of the target in closed form loses exactly the rest, so that every figure has a right
value. `check` must report an error of log Z of at least what is missing, and none where nothing is.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import egm
from egm import evidence, paths, processes
from egm.energies import Ising, JointGaussianMixture
from egm.evidence import _leaves
from egm.heads import NormalMixture
from egm.typing import Moments

KEY = jax.random.key(11)


def log_normal_mixture(x, blobs, variance=0.0):
    """[N] log sum_k w_k N(x; m_k, (diag v_k) + variance I); blobs = (m [M, D], v [M, D], w [M])."""
    means, variances, weights = blobs
    total = variances[None] + jnp.broadcast_to(variance, x.shape[:1])[:, None, None]
    normal = -0.5 * jnp.sum((x[:, None] - means[None]) ** 2 / total + jnp.log(2 * math.pi * total), axis=-1)
    return jax.nn.logsumexp(normal + jnp.log(weights)[None], axis=-1)


def check_blobs(key, target, known, start, *, path, num=4000, **chains):
    """Evidence of `target` and a sampler of `known`, its components a tenth too wide."""
    process = processes.DiffusionProcess(path, data_scale=1.0)
    wide = (known[0], 1.21 * known[1], known[2])

    def generator(x, t):
        log_density = lambda y: jnp.sum(log_normal_mixture(y, wide, path.variance(t)))
        return path.velocity_from_score(jax.grad(log_density)(x), x, t)

    energy = lambda x: -log_normal_mixture(x, target)
    times = process.times(60)
    mean = known[2] @ known[0]
    moments = Moments(mean, known[2] @ (known[1] + (known[0] - mean[None]) ** 2))
    k_0, k_forward, k_check = jax.random.split(key, 3)
    x_0 = egm.draw_prior(k_0, path, (num, mean.size), moments)
    trajectory = egm.simulate(k_forward, process, generator, x_0, times)
    return evidence.check(
        k_check, energy, process, generator, trajectory, times, start, moments=moments, **chains
    )


PLANE = jax.jit(
    functools.partial(
        check_blobs, path=paths.VarianceExplodingPath(0.5, 8.0, length_scale=0.5), num_chains=512
    )
)
"""One program for every case in the plane."""


def host(record):
    """The record with plain numbers."""
    return jax.tree.map(lambda a: a.item(), record)


def blobs(means, widths, weights):
    means = jnp.asarray(means, float)
    widths = jnp.broadcast_to(jnp.asarray(widths, float)[:, None], means.shape)
    return means, widths**2, jnp.asarray(weights, float)


def known_part(all_blobs, kept):
    weights = jnp.where(jnp.arange(3) < kept, all_blobs[2], 1e-30)
    return (*all_blobs[:2], weights / weights.sum())


def in_the_plane(places, widths, weights, kept, seed=0):
    """Evidence about a sampler that knows the first `kept` of three blobs on the diagonal."""
    target = blobs([[p, p] for p in places], widths, weights)
    known = known_part(target, kept)
    mean = known[2] @ known[0]
    variance = known[2] @ (known[1] + (known[0] - mean[None]) ** 2)
    start = Moments(mean, jnp.broadcast_to(jnp.max(variance), (2,)))
    return host(PLANE(jax.random.key(seed), target, known, start))


def assert_noticed(found, missing):
    """log Z is short by -log(1 - missing); the error covers that, and the message says it."""
    short = -math.log1p(-missing)
    assert found.lower == pytest.approx(-short, abs=4 * found.lower_error)
    assert found.error >= short - 2 * found.lower_error
    assert not found.converged
    assert "is missing" in evidence.message(found) and "lost modes" in evidence.message(found)


LOST = {
    "three of four equal modes": ((0, 1.5, 8), (0.5, 0.5, 0.5), (0.5, 0.25, 0.25), 2, 0.25),
    "masses .95 and .05": ((0, 0, 3), (0.5, 0.5, 0.5), (0.5, 0.45, 0.05), 2, 0.05),
    "most of the mass": ((0, 3, 3), (0.5, 0.5, 0.5), (0.1, 0.45, 0.45), 1, 0.9),
    "a spike of a fifth": ((0, 0, 3), (1.0, 1.0, 0.05), (0.4, 0.4, 0.2), 2, 0.2),
    "a wide one": ((0, 0, 6), (0.5, 0.5, 2.0), (0.4, 0.3, 0.3), 2, 0.3),
    "one far out": ((0, 0, -9), (1.0, 1.0, 0.7), (0.4, 0.4, 0.2), 2, 0.2),
}


@pytest.mark.parametrize("name", LOST)
def test_lost_modes_are_noticed(name):
    *case, missing = LOST[name]
    found = in_the_plane(*case)
    assert found.ess > 0.5 and found.lower_error < 0.02  # the sampler's own weights look healthy
    assert_noticed(found, missing)


HEALTHY = {
    "two modes, .95 and .05": ((0, 0, 3), (0.5, 0.5, 0.5), (0.5, 0.45, 0.05), 3),
    "one": ((0, 0, 0), (1.0, 1.0, 1.0), (0.4, 0.4, 0.2), 3),
    "three widths": ((0, 0, 0), (0.1, 1.0, 3.0), (0.4, 0.4, 0.2), 3),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_no_false_alarm(name):
    found = in_the_plane(*HEALTHY[name])
    assert found.converged
    assert found.error <= 1.5 * found.lower_error
    assert abs(found.lower) < 4 * found.lower_error
    assert "None of 6144" in evidence.message(found)


def test_what_no_chain_reaches_stays_unseen():
    """Three modes on a line, 140 widths apart: nothing here can tell, and the message does not claim to."""
    found = in_the_plane((0, 100, 200), (0.5, 0.5, 0.5), (0.4, 0.3, 0.3), 1)
    assert found.converged and found.num_missed == 0
    assert "remain unseen" in evidence.message(found)


@pytest.mark.slow
def test_twenty_dimensions():
    """A normal, one of condition number 1e3, and two modes of which one is lost: one program for all."""
    path = paths.VarianceExplodingPath(0.2, 20.0, length_scale=0.2)
    run = jax.jit(functools.partial(check_blobs, path=path, num_chains=512, num_moves=5))
    ones, zeros = jnp.ones((1, 20)), jnp.zeros((1, 20))
    thousand = jnp.asarray(np.logspace(0, 3, 20), float)[None] / 50
    both = lambda a, b: jnp.concatenate([a, b])
    apart = both(zeros, zeros.at[0, 0].set(8.0))
    weights = jnp.asarray([0.6, 0.4])
    alone = jnp.asarray([1 - 1e-30, 1e-30])
    start = Moments(zeros[0], ones[0])
    for variances, means, known, missing in (
        (both(ones, ones), both(zeros, zeros), weights, 0.0),
        (both(thousand, thousand), both(zeros, zeros), weights, 0.0),
        (both(ones, ones), apart, alone, 0.4),
    ):
        scale = jnp.max(variances)
        start = Moments(zeros[0], scale * ones[0])
        target = (means, variances, weights)
        found = host(run(KEY, target, (means, variances, known), start))
        if missing:
            assert_noticed(found, missing)
        else:
            assert found.converged and found.error <= 1.5 * found.lower_error


def test_a_lost_phase_of_the_ising_lattice():
    """A sampler of independent spins near +1 knows one phase of an ordered lattice, half of Z."""
    energy = Ising(4, 0.8, field=0.01)
    process = processes.AnyOrderProcess(paths.MaskedPath(2))
    up = 0.9985

    def generator(x, t):
        del t
        return jnp.broadcast_to(jnp.asarray([1 - up, up]), (*x.shape, 2))

    @jax.jit
    def run(k_forward, k_check):
        times = process.times(16)
        x_0 = process.path.sample_prior(KEY, (8000, 16))
        trajectory = egm.simulate(k_forward, process, generator, x_0, times)
        return evidence.check(
            k_check, energy, process, generator, trajectory, times, num_groups=8, num_chains=64, num_moves=2
        )

    found = host(run(*jax.random.split(KEY)))
    m, p = energy.magnetization_histogram()
    exact, minus = energy.log_partition(), p[m < 0].sum()
    assert found.lower == pytest.approx(exact + math.log1p(-minus), abs=0.03)
    assert found.upper == pytest.approx(exact, abs=0.25)
    assert found.error >= -math.log1p(-minus) - 0.02
    assert not found.converged and "lost modes" in evidence.message(found)


@pytest.mark.slow
def test_a_lost_half_of_a_mixed_state():
    """Tokens say which normal x comes from; the sampler knows only those with h_0 = 1."""
    energy = JointGaussianMixture(2, 1.5, 0.5)
    gaussian = paths.VarianceExplodingPath(0.5, 8.0, length_scale=0.5)
    path = paths.ProductPath({"x": gaussian, "h": paths.MaskedPath(2)})
    process = processes.ProductProcess(
        {
            "x": processes.DiffusionProcess(gaussian, data_scale=1.5),
            "h": processes.JumpProcess(paths.MaskedPath(2)),
        }
    )
    first = jnp.asarray([[True, False]])

    def generator(state, t):
        x, h = state["x"], state["h"]
        spread = 0.3 + gaussian.variance(t)[:, None]
        odds = 2 * energy.mode * x / spread
        mean_spin = jnp.where(h == 2, jnp.where(first, 1.0, jnp.tanh(odds / 2)), 2.0 * h - 1)
        score = (energy.mode * mean_spin - x) / spread
        up = jnp.where(first, 1 - 1e-6, jax.nn.sigmoid(odds))
        velocity = gaussian.velocity_from_score(score, x, t)
        return {"x": velocity, "h": jnp.stack([1 - up, up], axis=-1)}

    start = {"x": Moments(jnp.zeros(2), jnp.full(2, 1.5)), "h": None}

    @jax.jit
    def run(k_0, k_forward, k_check):
        times = process.times(60)
        x_0 = path.sample_prior(k_0, {"x": (4000, 2), "h": (4000, 2)})
        trajectory = egm.simulate(k_forward, process, generator, x_0, times)
        return evidence.check(k_check, energy, process, generator, trajectory, times, start, num_chains=128)

    found = host(run(*jax.random.split(KEY, 3)))
    assert found.lower == pytest.approx(energy.log_partition() - math.log(2), abs=0.05)
    assert_noticed(found._replace(lower=found.lower - energy.log_partition()), 0.5)
    # The error is one of four populations: Student's t with 3 degrees is beyond 6 in 1%.
    assert abs(found.upper - energy.log_partition()) < 6 * found.upper_error < 0.9, found


# The estimate from given weights.


def test_exact_samples_give_the_missing_mass():
    """q = N(0, 1) for p = .8 N(0, 1) + .2 N(30, 1): log w is log .8 where q is, huge elsewhere."""
    rng = np.random.default_rng(3)
    forward = jnp.full(1000, math.log(0.8))
    reverse = np.where(rng.random(5000) < 0.8, math.log(0.8), math.log(0.2) + 400.0)
    found = evidence.two_sided(forward, jnp.asarray(reverse, jnp.float32))
    error = math.sqrt(0.2 * 0.8 / 5000) / 0.8
    assert float(found.upper) == pytest.approx(0.0, abs=4 * error)
    assert float(found.upper_error) == pytest.approx(error, rel=0.1)
    assert float(found.missing_mass) == pytest.approx(0.2, abs=4 * error)
    assert float(found.error) >= math.log(1.25) and not found.converged
    assert float(found.eubo) == pytest.approx(reverse.mean(), rel=1e-5)
    # Infinite weights are missed states, those that are no number are none at all.
    odd = jnp.where(jnp.asarray(reverse) > 1, jnp.inf, jnp.asarray(reverse)).at[:10].set(jnp.nan)
    again = evidence.two_sided(forward, odd)
    assert int(again.num_nonfinite) == 10 and int(again.num_reference) == 4990
    assert float(again.missing_mass) == pytest.approx(0.2, abs=0.03) and np.isinf(again.eubo)


def test_both_sides_agree_where_nothing_is_lost():
    """log w ~ N(-s^2/2, s^2) forward is N(+s^2/2, s^2) backward, and Z = 1."""
    rng, s = np.random.default_rng(4), 0.7
    finds = [
        evidence.two_sided(
            jnp.asarray(rng.normal(-s * s / 2, s, 4000), jnp.float32),
            jnp.asarray(rng.normal(s * s / 2, s, 4000), jnp.float32),
        )
        for _ in range(40)
    ]
    assert all(bool(f.converged) for f in finds)
    assert np.mean([float(f.error / f.lower_error) for f in finds]) < 1.2
    assert np.mean([abs(float(f.lower)) < 2 * float(f.error) for f in finds]) > 0.85


def test_populations_count_by_their_own_evidence():
    """Of Z 3 and 1 a third and all of the states are missed: 1 a population, as much as they share."""
    forward = jnp.full(900, math.log(1.0))
    far = 100.0
    reverse = jnp.asarray([far, 0.0, 0.0] * 2 + [far] * 6, jnp.float32)
    found = evidence.two_sided(forward, reverse, jnp.log(jnp.asarray([[3.0, 1.0]])))
    assert float(found.upper) == pytest.approx(math.log(2.0), abs=1e-5)
    # The row that misses more counts, here the second: all of Z = 1.
    found = evidence.two_sided(forward, reverse, jnp.log(jnp.asarray([[0.3], [1.0]])))
    assert float(found.upper) == pytest.approx(math.log(2.0), abs=1e-5)
    with pytest.raises(ValueError, match=r"reference_log_z must have shape \[W, G\]"):
        evidence.two_sided(forward, reverse, jnp.zeros(3))
    with pytest.raises(ValueError, match="reverse_log_weights must hold as many"):
        evidence.two_sided(forward, reverse, jnp.zeros((1, 5)))


def test_split_over_devices():
    rng = np.random.default_rng(5)
    forward = jnp.asarray(rng.normal(size=800), jnp.float32)
    reverse = jnp.asarray(rng.normal(size=160) + 6 * (rng.random(160) < 0.3), jnp.float32)
    log_z = jnp.asarray(rng.normal(size=(2, 8)), jnp.float32)
    whole = jax.jit(evidence.two_sided)(forward, reverse, log_z)
    halves = lambda a: jnp.moveaxis(a.reshape(2, 2, 4, *a.shape[2:]), 1, 0)
    parts = jax.jit(jax.vmap(functools.partial(evidence.two_sided, axis_name="d"), axis_name="d"))(
        forward.reshape(2, -1), halves(reverse.reshape(2, 8, 10)).reshape(2, -1), halves(log_z)
    )
    for one, many in zip(whole, parts, strict=True):
        np.testing.assert_allclose(many, np.broadcast_to(one, (2,)), rtol=1e-4, atol=1e-5)


# The chains.


def test_chains_know_log_z_and_the_masses():
    """Independent populations: the mean of their Z and their masses within four standard errors."""
    target = blobs([[-2.0, 0.0], [3.0, 0.0], [3.0, 0.0]], (0.4, 0.8, 0.8), (0.3, 0.35, 0.35))
    path = paths.VarianceExplodingPath(0.5, 8.0)
    start = Moments(jnp.zeros(2), jnp.full(2, 4.0))
    energy = lambda x: -log_normal_mixture(x, target) + 5.0
    for gradient in (True, False):
        found = jax.jit(
            lambda k, g=gradient: evidence.tempered_chains(
                k, energy, path, (2,), start, num_groups=12, gradient=g
            )
        )(KEY)
        assert np.all(found.reached) and found.x.shape == (3 * 12 * 512, 2)
        z = np.exp(np.asarray(found.log_z) + 5.0)
        left = z * np.mean(np.asarray(found.x)[:, 0].reshape(3, 12, -1) < 0, axis=2)
        for row in range(3):  # the widths
            assert abs(z[row].mean() - 1) < 4 * z[row].std(ddof=1) / math.sqrt(12)
            assert abs(left[row].mean() - 0.3) < 4 * left[row].std(ddof=1) / math.sqrt(12)
        assert z.std() < 0.5


def _three_places():
    """Means, covariances of a mixture in three dimensions, and its log-density in float64."""
    rng = np.random.default_rng(3)
    means = 6.0 * rng.normal(size=(3, 3))
    roots = 0.3 * rng.normal(size=(3, 3, 3)) + 0.5 * np.eye(3)
    covariances = np.einsum("mij,mkj->mik", roots, roots)
    parts = [scipy.stats.multivariate_normal(m, c) for m, c in zip(means, covariances, strict=True)]
    log_density = lambda x: scipy.special.logsumexp([p.logpdf(x) - math.log(3) for p in parts], axis=0)
    return means, covariances, log_density


def test_the_density_of_known_places_is_that_of_their_draws():
    means, covariances, log_density = _three_places()
    start = NormalMixture(means, covariances)
    (part,) = _leaves.parts_of(paths.VarianceExplodingPath(0.5, 2.0), (3,), start)
    x = np.asarray(part.draw(KEY, 3000), np.float64)
    np.testing.assert_allclose(
        part.energy(jnp.asarray(x, jnp.float32)), -log_density(x), rtol=1e-3, atol=1e-3
    )
    # E_p[q / p] = 1 for a density q; here that of twice the width from draws of that width, q the other.
    wide = part.widened(2.0)
    y = np.asarray(wide.draw(KEY, 3000), np.float64)
    ratio = np.exp(log_density(y) + np.asarray(wide.energy(jnp.asarray(y, jnp.float32)), np.float64))
    assert abs(ratio.mean() - 1) < 4 * ratio.std() / math.sqrt(len(ratio))


def test_chains_from_known_places_find_the_masses():
    """Narrow normals of masses .2, .3 and .5 far apart, which chains from one normal rarely keep."""
    means, covariances, _ = _three_places()
    masses = jnp.log(jnp.array([0.2, 0.3, 0.5]))
    inverse = jnp.asarray(np.linalg.inv(covariances), jnp.float32)
    log_det = jnp.asarray(np.linalg.slogdet(covariances)[1], jnp.float32)

    def energy(x):
        d = x[:, None] - jnp.asarray(means, jnp.float32)[None]
        square = jnp.einsum("nmi,mij,nmj->nm", d, inverse, d)
        return -jax.nn.logsumexp(masses[None] - 0.5 * (square + log_det[None]), axis=-1)

    start = NormalMixture(means, 2.0 * covariances)  # places are known, widths roughly
    found = evidence.tempered_chains(
        KEY,
        energy,
        paths.VarianceExplodingPath(0.5, 8.0),
        (3,),
        start,
        widen=1.5,
        num_groups=4,
        num_chains=256,
    )
    z = np.exp(np.asarray(found.log_z).reshape(-1) - 1.5 * math.log(2 * math.pi))
    assert np.all(found.reached) and abs(z.mean() - 1) < 4 * z.std(ddof=1) / math.sqrt(z.size)
    nearest = np.argmin(np.sum((np.asarray(found.x)[:, None] - means) ** 2, -1), 1).reshape(z.size, -1)
    for place, mass in enumerate((0.2, 0.3, 0.5)):
        share = z * np.mean(nearest == place, axis=1)
        assert abs(share.mean() - mass) < 4 * share.std(ddof=1) / math.sqrt(z.size)


def test_chains_inside_walls_and_where_the_energy_is_no_number():
    """Uniform on a square of side 2 around (1, 1): log Z = log 4."""

    def energy(x):
        inside = jnp.all(jnp.abs(x - 1.0) < 1.0, axis=-1)
        return jnp.where(inside, 0.0, jnp.where(x[:, 0] > 0, jnp.inf, jnp.nan))

    path = paths.VarianceExplodingPath(0.5, 2.0)
    run = lambda key: evidence.tempered_chains(key, energy, path, (2,), num_chains=512, num_moves=5)
    found = jax.jit(jax.vmap(run))(jax.random.split(KEY, 5))
    # Of the widest start .0016 is inside: 64 rounds of 512 draws hold none with probability e^-52.
    assert np.all(found.reached) and not np.any(found.num_nonfinite)
    assert np.all(np.abs(np.asarray(found.x) - 1) < 1)
    for z in np.exp(np.asarray(found.log_z)).transpose(1, 0, 2).reshape(3, -1):  # the widths
        assert abs(z.mean() - 4) < 4 * z.std(ddof=1) / math.sqrt(z.size)


def test_chains_that_find_no_state_say_so():
    """A square of side 1e-3 far out: no draw of any width is inside."""
    energy = lambda x: jnp.where(jnp.all(jnp.abs(x - 50.0) < 5e-4, axis=-1), 0.0, jnp.inf)
    path = paths.VarianceExplodingPath(0.5, 2.0)
    found = evidence.tempered_chains(KEY, energy, path, (2,), num_chains=64, num_moves=2)
    assert not np.any(found.reached) and np.all(found.log_z == -np.inf)
    assert np.all(found.num_nonfinite == 64)


@pytest.mark.parametrize("colours", [(0, 1) * 8, (0,) * 8 + (1,) * 8], ids=["a colouring", "none"])
def test_tokens_that_move_by_colour_keep_the_target(colours):
    """A glass on a ring of 16, against enumeration; also where neighbours have one colour."""
    edges = tuple((i, (i + 1) % 16) for i in range(16))
    glass = egm.energies.SpinGlass(16, edges, np.linspace(-1, 1, 16), np.linspace(0.4, -0.2, 16), 1.2)
    energy = egm.energies.WithColouring(glass, colours)
    assert evidence.by_colour(energy, 16)
    found = evidence.tempered_chains(
        KEY, energy, paths.MaskedPath(2), (16,), num_groups=12, num_chains=256, num_moves=4
    )
    z = np.exp(np.asarray(found.log_z).reshape(-1) - glass.log_partition())
    assert np.all(found.reached) and abs(z.mean() - 1) < 4 * z.std(ddof=1) / math.sqrt(z.size)
    states, log_weights = glass._model.enumerated("states")
    exact = np.exp(log_weights - np.logaddexp.reduce(log_weights)) @ states
    share = z[:, None] * np.mean(np.asarray(found.x).reshape(z.size, -1, 16), axis=1)
    # Of 16 sites the largest of as many normals is below 4 standard errors with probability .999.
    assert np.all(np.abs(share.mean(0) - exact) < 4.5 * share.std(0, ddof=1) / math.sqrt(z.size))


def test_chains_on_the_centred_subspace_stay_there():
    path = paths.CenteredPath(paths.VarianceExplodingPath(0.3, 2.0), 3, 2)
    energy = lambda x: 0.5 * jnp.sum(path.project(x) ** 2, axis=-1) / 0.25
    found = evidence.tempered_chains(KEY, energy, path, (6,), num_chains=128, num_moves=5)
    np.testing.assert_allclose(path.project(found.x), found.x, atol=1e-4)
    # A normal on 4 dimensions.
    z = np.exp(np.asarray(found.log_z) - 2 * math.log(2 * math.pi * 0.25))
    assert abs(z.mean() - 1) < 4 * z.std(ddof=1) / math.sqrt(z.size)


def test_an_energy_that_is_nowhere_finite_is_said_to_be_unreached():
    path = paths.VarianceExplodingPath(0.5, 2.0)
    found = evidence.tempered_chains(
        KEY, lambda x: jnp.full(x.shape[0], jnp.inf), path, (2,), num_chains=8, num_moves=1
    )
    assert not np.any(found.reached) and np.all(np.asarray(found.log_z) == -np.inf)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_chains": 7}, ValueError, "num_chains must be even"),
        ({"num_groups": 1}, ValueError, "num_groups must be at least 2"),
        ({"start": 3.0}, TypeError, "start must be moments"),
        ({"start": Moments(jnp.zeros(3), jnp.ones(3))}, ValueError, r"start.mean must have shape \(2,\)"),
        (
            {"start": NormalMixture(np.zeros((1, 3)), np.eye(3)[None])},
            ValueError,
            r"start.means must have shape \[K, 2\]",
        ),
        ({"event_shape": 2}, TypeError, "event_shape must be a tuple"),
        ({"path": None}, TypeError, "path must be of Gaussian paths and paths of tokens"),
        ({"ess_target": 1.0}, ValueError, "ess_target must be in"),
    ],
)
def test_arguments(options, error, message):
    given = {"path": paths.VarianceExplodingPath(0.5, 2.0), "event_shape": (2,)} | options
    with pytest.raises(error, match=message):
        evidence.tempered_chains(
            KEY, lambda x: jnp.sum(x**2, -1), given.pop("path"), given.pop("event_shape"), **given
        )


@pytest.mark.slow
def test_exchanges_recombine_many_wells():
    """Eight double wells, right ones .2 of the mass each: every population has all marginals, and log Z.

    Without exchanges a few ancestors decide all wells: shares were off by up to .6 here.
    """
    dim, tilt = 8, 0.5 * math.log(0.2 / 0.8) / 3.0

    def energy(x):
        wells = jnp.logaddexp(-0.5 * ((x - 3) / 0.3) ** 2 + 3 * tilt, -0.5 * ((x + 3) / 0.3) ** 2 - 3 * tilt)
        return -jnp.sum(wells, axis=-1)

    path = paths.VarianceExplodingPath(0.3, 9.0, length_scale=0.3)
    start = Moments(jnp.zeros(dim), jnp.full(dim, 9.0))
    run = jax.jit(lambda k: evidence.tempered_chains(k, energy, path, (dim,), start, num_chains=256))
    found = jax.device_get(run(KEY))
    log_z = dim * (math.log(0.3 * math.sqrt(2 * math.pi)) + math.log(2 * math.cosh(3 * tilt)))
    assert abs(np.median(found.log_z) - log_z) < 0.5
    share = (np.asarray(found.x) > 0).reshape(-1, 256, dim).mean(axis=1)
    # A share drifts through some dozen resamplings: sd about .05 a population, 12 x 8 of them.
    assert np.abs(share - 0.2).max() < 0.2
    np.testing.assert_allclose(share.mean(axis=0), 0.2, atol=0.06)


def test_exchanges_keep_the_target():
    """Exact states of two correlated coordinates and a token stay distributed as they were."""
    k_x, k_y, k_move = jax.random.split(KEY, 3)
    n, rho = 20_000, 0.9
    x = jax.random.normal(k_x, (n, 2))
    x = jnp.stack([x[:, 0], rho * x[:, 0] + math.sqrt(1 - rho**2) * x[:, 1]], axis=1)
    h = (jax.random.uniform(k_y, (n, 3)) < jax.nn.sigmoid(x[:, :1])).astype(jnp.int32)

    def energy(state):
        a, b = state["x"][:, 0], state["x"][:, 1]
        quadratic = 0.5 * (a**2 - 2 * rho * a * b + b**2) / (1 - rho**2)
        signed = (2.0 * state["h"] - 1) * a[:, None]
        return quadratic - jnp.sum(jax.nn.log_sigmoid(signed), axis=1)

    path = paths.ProductPath({"x": paths.VarianceExplodingPath(1.0, 10.0), "h": paths.MaskedPath(2)})
    start = {"x": Moments(jnp.zeros(2), jnp.ones(2)), "h": None}
    moved = jax.jit(lambda k: evidence.moved(k, energy, path, {"x": x, "h": h}, start, num_rounds=3)[0])
    new = jax.device_get(moved(k_move))
    assert np.mean(np.any(new["x"] != np.asarray(x), axis=1)) > 0.5
    # Standard errors of N independent states: of a covariance sqrt((1 + rho^2) / N), of a share .5 / sqrt(N).
    error = 1 / math.sqrt(n)
    np.testing.assert_allclose(np.cov(new["x"].T), [[1, rho], [rho, 1]], atol=4 * 1.42 * error)
    np.testing.assert_allclose(new["h"].mean(axis=0), 0.5, atol=4 * 0.5 * error)
    up = np.mean(new["x"][:, 0] * (2 * new["h"][:, 0] - 1))
    exact = np.mean(np.asarray(x[:, 0]) * np.tanh(np.asarray(x[:, 0]) / 2))
    assert abs(up - exact) < 4 * 1.42 * error
