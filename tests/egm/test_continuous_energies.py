"""The continuous and mixed targets against quadrature, enumeration and explicit loops in float64.

Means of n independent samples are held to exact ones by the largest |z|, below 5 at a fixed key.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from egm import energies

KEY = jax.random.key(5)


def bits(sites):
    return np.array(list(itertools.product((0, 1), repeat=sites)), np.int32)


def assert_means(values, expected, second=None):
    """Column means [n, F] within 5 standard errors of exact ones; errors from the sample by default."""
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    expected = np.ravel(expected)
    error = values.std(axis=0) if second is None else np.sqrt(np.ravel(second) - expected**2)
    assert np.max(np.abs(values.mean(axis=0) - expected) / (error / np.sqrt(len(values)))) < 5


# Gaussian mixture.


def test_mixture_is_its_formula(x64):
    energy = energies.GaussianMixture(((0.0, 1.0, 2.0), (-1.0, 0.5, 3.0)), 0.7, (1, 4))
    x = np.random.default_rng(0).normal(size=(5, 3))
    density = [w * scipy.stats.multivariate_normal(m, 0.49).pdf(x) for w, m in zip((0.2, 0.8), energy.modes)]
    np.testing.assert_allclose(-energy(x) - energy.log_partition(), np.log(sum(density)), rtol=1e-10)


def test_mixture_of_the_grid():
    energy = energies.GaussianMixture()
    assert energy.event_shape == (2,)
    assert energy.modes.shape == (25, 2) and set(energy.modes.ravel()) == {-10, -5, 0, 5, 10}
    np.testing.assert_allclose(energy.mode_masses, 1 / 25)
    # A mode's own weight is all there is: its neighbours are five standard deviations away.
    np.testing.assert_allclose(energy(jnp.array([5.0, -10.0])), np.log(25), atol=1e-4)
    x = energy.sample(KEY, 20_000)
    nearest = np.argmin(np.sum((np.asarray(x)[:, None] - energy.modes) ** 2, axis=-1), axis=1)
    counts = np.bincount(nearest, minlength=25)
    assert scipy.stats.chisquare(counts, 20_000 * energy.mode_masses).pvalue > 1e-4
    # Cells cut 1.2% of a coordinate off; the standard deviation then shrinks by less than .05.
    assert_means(x, [0, 0], [51, 51])
    np.testing.assert_allclose(np.std(np.asarray(x) - energy.modes[nearest]), 1, atol=0.05)


def test_mixture_marginals_are_convolutions(x64):
    """Against quadrature over x_1, at a scalar time and at one a state; gradients are the score."""
    energy = energies.GaussianMixture(((-1.0,), (2.0,)), 0.5, (3, 1))
    y = np.linspace(-8, 9, 4001)
    log_p = -np.asarray(energy(y[:, None])) - energy.log_partition()

    def by_quadrature(x, alpha, variance):
        terms = log_p + scipy.stats.norm.logpdf(x, alpha * y, np.sqrt(variance))
        return scipy.special.logsumexp(terms) + np.log(y[1] - y[0])

    x, alpha, variance = np.array([-1.3, 0.2, 2.5]), np.array([0.3, 0.7, 1.0]), np.array([0.9, 0.4, 0.1])
    expected = [by_quadrature(*each) for each in zip(x, alpha, variance)]
    marginal = jax.jit(energy.marginal_log_density)
    found = marginal(x[:, None], alpha, variance)
    np.testing.assert_allclose(found, expected, atol=1e-8)
    one = marginal(x[1:2, None], 0.7, 0.4)
    np.testing.assert_allclose(one, expected[1:2], atol=1e-8)
    score = jax.jit(jax.grad(lambda z: energy.marginal_log_density(z, 0.7, 0.4)))(x[1:2])
    slope = (by_quadrature(0.2 + 1e-5, 0.7, 0.4) - by_quadrature(0.2 - 1e-5, 0.7, 0.4)) / 2e-5
    np.testing.assert_allclose(score, [slope], atol=1e-7)


# Gaussian-Bernoulli RBM.


def test_rbm_against_quadrature(x64):
    """The six modes: log Z, marginal and masses from a sum over tokens of a quadrature over x."""
    energy = energies.GaussianBernoulliRBM()
    step, tokens = 0.25, bits(3)
    line = np.arange(-14, 14 + step / 2, step)
    x = np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)
    w = np.array([[5, 0, -5], [0, 5, 0.0]])
    e = np.sum(x**2, axis=1)[:, None] / 2 + 12 * tokens.sum(axis=1) - x @ w @ tokens.T
    log_z = scipy.special.logsumexp(-e) + 2 * np.log(step)
    np.testing.assert_allclose(energy.log_partition(), log_z, atol=1e-9)
    every = {"x": np.repeat(x[::97], 8, axis=0), "h": np.tile(tokens, (len(x[::97]), 1))}
    np.testing.assert_allclose(energy(every).reshape(-1, 8), e[::97], atol=1e-9)
    marginal = -scipy.special.logsumexp(-e[::97], axis=1)
    np.testing.assert_allclose(energy.marginal_energy(x[::97]), marginal, atol=1e-9)
    masses = np.exp(scipy.special.logsumexp(-e, axis=0) + 2 * np.log(step) - log_z)
    assert len(energy.modes) == 6
    for centre, mass in zip(energy.modes, energy.mode_masses):
        np.testing.assert_allclose(mass, masses[np.all(tokens @ w.T == centre, axis=1)].sum(), atol=1e-6)
    np.testing.assert_allclose(energy.mode_masses.sum(), 1)


def test_rbm_samples():
    """Of a machine with biases and sigma: means of h, x and products, from the 2^L Gaussians."""
    w, b, c, sigma = np.array([[1.0, -0.5, 0.3], [0.4, 0.8, -1.0]]), [0.3, -0.2], [0.1, -0.4, 0.5], 0.8
    energy = energies.GaussianBernoulliRBM(w, b, c, sigma)
    h = bits(3)
    shift = h @ w.T
    p = np.exp(h @ np.array(c) + (0.5 * np.sum(shift**2, axis=1) + shift @ b) / sigma**2)
    p, centre = p / p.sum(), shift + b
    s = energy.sample(KEY, 20_000)
    x, h_found = np.asarray(s["x"], np.float64), np.asarray(s["h"])
    assert_means(h_found, p @ h)
    assert_means(x, p @ centre)
    second = np.einsum("k,ki,kj->ij", p, centre, centre) + sigma**2 * np.eye(2)
    assert_means(np.einsum("ni,nj->nij", x, x), second)
    assert_means(np.einsum("ni,nl->nil", x, h_found), np.einsum("k,ki,kl->il", p, centre, h))


def test_modes_with_one_centre_are_one():
    energy = energies.GaussianBernoulliRBM(((1.0, 1.0),), (0.0,), (0.0, 0.0))
    np.testing.assert_allclose(energy.modes[:, 0], [0, 1, 2])
    weights = np.exp([0, 0.5, 2.0]) * [1, 2, 1]
    np.testing.assert_allclose(energy.mode_masses, weights / weights.sum())


# Joint mixtures.

JOINT = [
    energies.JointGaussianMixture(3, 0.8, 0.5),
    energies.CoupledJointMixture(5, 0.6, 0.7, 0.5, 0.6),
    energies.CoupledJointMixture(3, -0.4, 0.9, 0.6, -0.7),
]


def joint_gaussians(energy):
    """(spins, log weights, covariance) by the definition, in float64."""
    spins = 2.0 * bits(energy.dim) - 1
    if isinstance(energy, energies.JointGaussianMixture):
        return spins, np.zeros(len(spins)), energy.sigma**2 * np.eye(energy.dim)
    weight = energy.coupling * sum(spins[:, i] * spins[:, (i + 1) % energy.dim] for i in range(energy.dim))
    gap = np.abs(np.subtract.outer(np.arange(energy.dim), np.arange(energy.dim)))
    return spins, weight, energy.sigma**2 * energy.correlation**gap


@pytest.mark.parametrize("energy", JOINT, ids=str)
def test_joint_mixtures_against_enumeration(x64, energy):
    spins, weight, covariance = joint_gaussians(energy)
    x = np.random.default_rng(0).normal(size=(len(spins), energy.dim))
    y = x - energy.mode * spins
    e = 0.5 * np.einsum("ni,ij,nj->n", y, np.linalg.inv(covariance), y) - weight
    np.testing.assert_allclose(energy({"x": x, "h": bits(energy.dim)}), e, rtol=1e-10)
    log_z = scipy.special.logsumexp(weight) + 0.5 * np.linalg.slogdet(2 * np.pi * covariance)[1]
    np.testing.assert_allclose(energy.log_partition(), log_z, rtol=1e-12)
    p = np.exp(weight - scipy.special.logsumexp(weight))
    one, two = energy.token_marginals()
    np.testing.assert_allclose(one, p @ spins, atol=1e-12)
    np.testing.assert_allclose(two, np.einsum("k,ki,kj->ij", p, spins, spins), atol=1e-12)
    mass = {tuple(m): q for m, q in zip(np.sign(energy.modes), energy.mode_masses)}
    np.testing.assert_allclose([mass[tuple(s)] for s in spins], p, rtol=1e-12)
    if hasattr(energy, "marginal_energy"):
        log_p = -0.5 * np.sum((x[:, None] - energy.mode * spins) ** 2, axis=-1) / energy.sigma**2
        np.testing.assert_allclose(energy.marginal_energy(x), -scipy.special.logsumexp(log_p, axis=1))


@pytest.mark.parametrize("energy", JOINT, ids=str)
def test_joint_mixtures_samples(energy):
    spins, weight, covariance = joint_gaussians(energy)
    p = np.exp(weight - scipy.special.logsumexp(weight))
    found = energy.sample(KEY, 20_000)
    s, x = 2.0 * np.asarray(found["h"]) - 1, np.asarray(found["x"], np.float64)
    index = np.argmax(np.all(s[:, None] == spins, axis=-1), axis=1)
    counts = np.bincount(index, minlength=len(spins))
    assert scipy.stats.chisquare(counts, 20_000 * p).pvalue > 1e-4
    y = x - energy.mode * s
    assert_means(y, np.zeros(energy.dim))
    assert_means(np.einsum("ni,nj->nij", y, y), covariance)
    assert_means(np.einsum("ni,nj->nij", y, s), np.zeros((energy.dim, energy.dim)))


def test_large_mixtures_have_no_list_of_modes():
    assert not hasattr(energies.JointGaussianMixture(13), "modes")
    assert not hasattr(energies.CoupledJointMixture(40), "mode_masses")
    assert np.isfinite(energies.CoupledJointMixture(400, 30.0).log_partition())


# Particles.


def particle_loops(energy, x, h=None):
    """E of one state, pair by pair."""
    r = x.reshape(energy.num_particles, energy.spatial_dim)
    total = 0.0 if h is not None else 0.5 * np.sum((r - r.mean(axis=0)) ** 2)
    for i, j in itertools.combinations(range(len(r)), 2):
        d = np.linalg.norm(r[i] - r[j])
        if h is None:
            total += 2 * (d**-12 - 2 * d**-6)
        else:
            a, b = {0: (0.8, -3.0), 1: (0.4, -2.5), 2: (0.6, -2.8)}[h[i] + h[j]]
            total += 0.5 * (a * (d - 2) ** 4 + b * (d - 2) ** 2)
    return total


def test_particle_energies_are_their_sums_over_pairs(x64):
    rng = np.random.default_rng(1)
    well, h = energies.JointDoubleWell(), rng.integers(0, 2, (4, 4), np.int32)
    x = rng.normal(size=(4, 8)) * 2
    expected = [particle_loops(well, *each) for each in zip(x, h)]
    np.testing.assert_allclose(well({"x": x, "h": h}), expected, rtol=1e-10)
    four = energies.DoubleWell4()
    x = 2 * x
    gaps = [[np.linalg.norm(a - b) - 4 for a, b in itertools.combinations(y.reshape(4, 2), 2)] for y in x]
    expected = [sum(0.9 * g**4 - 4 * g**2 for g in each) for each in gaps]
    np.testing.assert_allclose(four(x), expected, rtol=1e-10)
    # Two pairs of wells: the value there, and no slope.
    well = 4 + np.array([-1, 1]) * np.sqrt(20 / 9)
    pair = energies.DoubleWell4(2, 1)
    value, slope = jax.vmap(jax.value_and_grad(lambda r: pair(jnp.stack([r, 0.0 * r]))))(jnp.asarray(well))
    np.testing.assert_allclose(value, -40 / 9, rtol=1e-12)
    np.testing.assert_allclose(slope, 0, atol=1e-10)
    cluster = energies.LennardJones()
    grid = np.array(list(itertools.product(range(3), repeat=3)))[:13]
    x = (1.1 * grid + 0.1 * rng.normal(size=(4, 13, 3))).reshape(4, 39)
    np.testing.assert_allclose(cluster(x), [particle_loops(cluster, y) for y in x], rtol=1e-10)


@pytest.mark.parametrize(
    "energy",
    [energies.JointDoubleWell(), energies.LennardJones(5, 3), energies.DoubleWell4()],
    ids=["well", "cluster", "four"],
)
def test_particle_energies_are_invariant(x64, energy):
    """Under translations, orthogonal maps, and permutations (of kinds too)."""
    n, d = energy.num_particles, energy.spatial_dim
    rng = np.random.default_rng(2)
    x, h = 1.5 * rng.normal(size=(3, n, d)), rng.integers(0, 2, (3, n), np.int32)
    order = rng.permutation(n)
    q = np.linalg.qr(rng.normal(size=(d, d)))[0]
    moved = [(x + rng.normal(size=d), h), (x @ q, h), (x[:, order], h[:, order])]

    def evaluate(x, h):
        x = x.reshape(3, n * d)
        return np.asarray(energy({"x": x, "h": h}) if isinstance(energy.event_shape, dict) else energy(x))

    for state in moved:
        np.testing.assert_allclose(evaluate(*state), evaluate(x, h), rtol=1e-9)


def test_overlapping_particles_stay_finite():
    """In float32, at r = .05, at 0, and all of them in one point; the core joins with equal slope."""
    energy = energies.LennardJones(2, 1)
    pair = jax.jit(jax.vmap(jax.value_and_grad(lambda r: energy(jnp.stack([r, 0.0 * r])))))
    value, slope = pair(jnp.array([0.0, 0.05, 0.4999, 0.5001, 0.6]))
    assert np.all(np.isfinite(value)) and np.all(np.isfinite(slope))
    np.testing.assert_allclose(value[2:4], 2 * (2.0**12 - 2 * 2.0**6), rtol=0.01)
    np.testing.assert_allclose(slope[2], slope[3], rtol=0.01)
    np.testing.assert_allclose(value[4], 2 * (0.6**-12 - 2 * 0.6**-6) + 0.09, rtol=1e-5)
    well, h = energies.JointDoubleWell(), jnp.zeros(4, jnp.int32)
    for function, dim in ((energies.LennardJones(), 39), (lambda x: well({"x": x, "h": h}), 8)):
        value, slope = jax.jit(jax.value_and_grad(function))(jnp.zeros(dim))
        assert np.isfinite(value) and np.all(np.isfinite(slope))


# Conditionals, devices, bad input.


def test_generic_conditionals_of_a_mixed_state():
    energy = energies.CoupledJointMixture(4)
    generic = energies.WithConditionals(energy, 2, part="h")
    state = energy.sample(KEY, 6)
    logits = jax.jit(generic.single_site_conditionals)(state)
    assert logits.shape == (6, 4, 2) and generic.conditional_evaluations(4) == 8
    closed = jax.jit(energy.single_site_conditionals)(state)
    np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(closed), atol=1e-5)
    np.testing.assert_array_equal(generic(state), energy(state))


def test_energies_on_a_mesh(mesh8):
    """Under shard_map and pmap the numbers of one device, for each energy and its gradient."""
    targets = [
        energies.GaussianMixture(),
        energies.GaussianBernoulliRBM(),
        energies.JointGaussianMixture(4),
        energies.CoupledJointMixture(4),
        energies.JointDoubleWell(),
        energies.LennardJones(4, 2),
    ]
    rng = np.random.default_rng(3)
    states = []
    for energy in targets:
        shapes = energy.event_shape
        mixed = isinstance(shapes, dict)
        x = rng.normal(size=(16, *(shapes["x"] if mixed else shapes))).astype(np.float32)
        states.append({"x": x, "h": rng.integers(0, 2, (16, *shapes["h"]), np.int32)} if mixed else x)

    def with_gradient(energy, state):
        if not isinstance(state, dict):
            return energy(state), jax.grad(lambda x: jnp.sum(energy(x)))(state)
        return energy(state), jax.grad(lambda x: jnp.sum(energy(state | {"x": x})))(state["x"])

    def every(states):
        return [with_gradient(*each) for each in zip(targets, states)]

    expected = jax.jit(every)(states)
    spec = jax.sharding.PartitionSpec("i")
    sharded = jax.jit(jax.shard_map(every, mesh=mesh8, in_specs=(spec,), out_specs=spec))(states)
    split = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), states)
    mapped = jax.tree.map(lambda a: a.reshape(16, *a.shape[2:]), jax.pmap(every)(split))
    for found in (sharded, mapped):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


MIX, RBM, RING = energies.GaussianMixture(), energies.GaussianBernoulliRBM(), energies.CoupledJointMixture(3)
X3, H3 = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int32)
BAD = [
    (lambda: energies.GaussianMixture(((0.0,), (1.0, 2.0))), TypeError, "means must be a rectangular"),
    (lambda: energies.GaussianMixture((0.0, 1.0)), ValueError, "means must have 2 axes"),
    (lambda: energies.GaussianMixture(weights=(1.0,)), ValueError, "weights must be 25 positive"),
    (lambda: energies.GaussianMixture(((0.0,), (1.0,)), weights=(1, -1)), ValueError, "weights must be 2"),
    (lambda: energies.GaussianMixture(sigma=0.0), ValueError, "sigma must be finite and positive, got 0"),
    (lambda: energies.GaussianMixture(((np.nan,),)), ValueError, "means must be finite"),
    (lambda: MIX(np.zeros((2, 3), np.float32)), ValueError, "x has trailing size 3, this energy has dim 2"),
    (lambda: MIX(np.zeros((2, 2), np.int32)), TypeError, "x must be floating point, got dtype int32"),
    (lambda: MIX.marginal_log_density(jnp.zeros((3, 2)), jnp.ones(2), 1.0), ValueError, "alpha must be"),
    (lambda: MIX.sample(KEY, 0), ValueError, "n must be at least 1, got 0"),
    (lambda: MIX.sample(0, 5), TypeError, "key must be a typed PRNG key"),
    (lambda: MIX.sample(jax.random.split(KEY), 5), ValueError, "key must be one key"),
    (lambda: energies.GaussianBernoulliRBM(visible_bias=(0.0,)), ValueError, "visible_bias must have size 2"),
    (lambda: energies.GaussianBernoulliRBM(((0.0,) * 17,), (0.0,), (0.0,) * 17).log_partition(),)
    + (ValueError, "up to 16 tokens, got 17"),
    (lambda: RBM({"x": X3[:, :2]}), TypeError, 'parts "x" and "h", got'),
    (lambda: RBM(X3), TypeError, "state must be a dict"),
    (lambda: RBM({"x": X3[:, :2], "h": H3[:1]}), ValueError, "must have shape"),
    (lambda: RBM({"x": X3[:, :2], "h": X3}), TypeError, "must hold integer tokens, got dtype float32"),
    (lambda: RBM({"x": X3, "h": H3}), ValueError, "has trailing size 3, this energy has dim 2"),
    (lambda: RBM.relaxed({"x": X3[:, :2], "h": X3}), ValueError, "must have shape"),
    (lambda: RING.relaxed({"x": X3, "h": np.zeros((2, 3, 2), int)}), TypeError, "must be floating point"),
    (lambda: energies.JointGaussianMixture(0), ValueError, "dim must be at least 1"),
    (lambda: energies.CoupledJointMixture(1), ValueError, "dim must be at least 2"),
    (lambda: energies.CoupledJointMixture(correlation=1.0), ValueError, "correlation must lie strictly"),
    (lambda: energies.CoupledJointMixture(coupling="a"), TypeError, "coupling must be a number"),
    (lambda: energies.JointDoubleWell(1), ValueError, "num_particles must be at least 2"),
    (lambda: energies.JointDoubleWell(reference=3), TypeError, "reference must be ChainSettings"),
    (lambda: energies.LennardJones(core_radius=1.0), ValueError, "core_radius must be in"),
    (lambda: energies.LennardJones()(X3), ValueError, "trailing size 3, this energy has dim 39"),
    (
        lambda: energies.LennardJones(reference=energies.ChainSettings(num_kept=300)),
        ValueError,
        "num_kept must be a mult",
    ),
    (
        lambda: energies.LennardJones(reference=energies.ChainSettings((0.5,))),
        ValueError,
        "start at 1",
    ),
    (
        lambda: energies.WithConditionals(RBM, 2, "h").single_site_conditionals(X3),
        TypeError,
        "x must be a dict",
    ),
    (
        lambda: energies.WithConditionals(RBM, 2, "k").single_site_conditionals({"x": X3}),
        ValueError,
        "part 'k'",
    ),
    (
        lambda: energies.WithConditionals(RBM, 2, "x").single_site_conditionals({"x": X3}),
        TypeError,
        "integer",
    ),
]


@pytest.mark.parametrize("call, error, message", BAD, ids=[message for _, _, message in BAD])
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Extreme parameters.


@pytest.mark.parametrize("coupling", [-1000.0, -50.0, -3.0, -0.3, 0.0, 0.3, 3.0, 50.0, 400.0])
@pytest.mark.parametrize("dim", [4, 5])
def test_the_ring_of_tokens_at_any_coupling(dim, coupling):
    """log Z, correlations and samples by enumeration; a frustrated ring has its defect anywhere."""
    energy = energies.CoupledJointMixture(dim, coupling)
    spins = 2.0 * bits(dim) - 1
    logs = coupling * np.sum(spins * np.roll(spins, -1, axis=1), axis=1)
    gaussian = 0.5 * np.linalg.slogdet(2 * np.pi * energy.covariance())[1]
    assert energy.log_partition() == pytest.approx(scipy.special.logsumexp(logs) + gaussian, rel=1e-13)
    p = scipy.special.softmax(logs)
    expected = np.einsum("n,ni,nj->ij", p, spins, spins)
    np.testing.assert_allclose(energy.token_marginals()[1], expected, atol=1e-12)
    s = 2.0 * np.asarray(energy.sample(KEY, 4000)["h"]) - 1
    found = np.mean(s[:, :, None] * s[:, None], axis=0)
    error = np.sqrt(np.maximum(1 - expected**2, 0) / 4000)
    assert np.all(np.abs(found - expected) <= 5 * error + 1e-6)


def test_nearly_equal_coordinates_are_sampled():
    x = energies.CoupledJointMixture(10, correlation=1 - 1e-15).sample(KEY, 5)
    noise = np.asarray(x["x"]) - (2.0 * np.asarray(x["h"]) - 1)
    np.testing.assert_allclose(noise, np.broadcast_to(noise[:, :1], noise.shape), atol=1e-5)


@pytest.mark.parametrize("scale", [5.0, 100.0, 1000.0, 1e5])
def test_rbm_energies_do_not_cancel(scale):
    """Against float64; with biases of -1.5 W^2 the terms are of order W^2 and the energies of order 1."""
    energy = energies.GaussianBernoulliRBM(
        ((scale, 0.0), (0.0, scale)), (scale, scale), (-1.5 * scale**2, -1.5 * scale**2)
    )
    state = energy.sample(KEY, 500)
    x, h = (np.asarray(state[name], np.float64) for name in ("x", "h"))
    w, b, c = (np.array(v) for v in (energy.weights, energy.visible_bias, energy.hidden_bias))

    def exact(h):
        return 0.5 * np.sum((x - b) ** 2, axis=-1) - h @ c - np.sum((x @ w) * h, axis=-1)

    assert len(np.unique(h, axis=0)) >= 3
    np.testing.assert_allclose(energy(state), exact(h), atol=3e-6)
    every = np.stack([exact(np.broadcast_to(bit, h.shape)) for bit in bits(2)])
    marginal = -scipy.special.logsumexp(-every, axis=0)
    np.testing.assert_allclose(energy.marginal_energy(state["x"]), marginal, atol=3e-5)
    # Logits are as exact as x lets them be: W times the last digit of x.
    logits = np.asarray(energy.single_site_conditionals(state), np.float64)
    for site in range(2):
        low, high = (exact(np.where(np.arange(2) == site, v, h)) for v in (0, 1))
        near = np.abs(low - high) < 20
        np.testing.assert_allclose(
            (logits[:, site, 1] - logits[:, site, 0])[near], (low - high)[near], rtol=0.1
        )


def test_rbm_marginal_has_the_gradient_of_its_formula(x64):
    energy = energies.GaussianBernoulliRBM()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)) * 4)
    x = x.at[0].set(jnp.asarray([2.4, 0.0]))  # where a token's odds are even: c + 5 x = 0

    def plain(x):
        field = x @ jnp.asarray(energy.weights) + jnp.asarray(energy.hidden_bias)[None]
        return 0.5 * jnp.sum(x**2, axis=-1) - jnp.sum(jnp.logaddexp(0.0, field), axis=-1)

    grads = [jax.grad(lambda x, f=f: jnp.sum(f(x)))(x) for f in (energy.marginal_energy, plain)]
    np.testing.assert_allclose(*grads, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: energies.GaussianMixture(sigma=1e-19), "sigma must be between 1e-18 and 1e\\+18"),
        (lambda: energies.GaussianMixture(((0.0,), (1.0,)), 1.0, (1e-320, 1e308)), "range of float64"),
        (lambda: energies.JointGaussianMixture(2, 1.0, 1e20), "sigma must be between"),
        (lambda: energies.JointGaussianMixture(2, 1e20, 1.0), "mode must be between"),
        (lambda: energies.CoupledJointMixture(2, sigma=1e-30), "sigma must be between"),
        (lambda: energies.GaussianBernoulliRBM(sigma=1e-30), "sigma must be between"),
        (lambda: energies.GaussianBernoulliRBM(((1e200,),), (0.0,), (0.0,)), "range of float32 energies"),
        (lambda: energies.LennardJones(core_radius=1e-3), "core_radius must keep E"),
    ],
)
def test_parameters_that_leave_float32_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_parameters_at_the_edge_give_finite_energies():
    for sigma in (1e-18, 1e18):
        energy = energies.GaussianMixture(((0.0, 0.0),), sigma, (1e308,))
        assert np.all(np.isfinite(energy(energy.sample(KEY, 10))))
        assert energy.log_partition() == pytest.approx(np.log(2 * np.pi) + 2 * np.log(sigma))
    far = energies.GaussianMixture(((0.0,), (1e25,)))
    assert np.all(np.isfinite(far(far.sample(KEY, 10))))
    np.testing.assert_allclose(energies.GaussianMixture(((0.0,), (1.0,)), 1.0, (1e308, 1e308)).weights, 0.5)
    jones = energies.LennardJones(core_radius=0.004)
    x = 1e-3 * jax.random.normal(KEY, (4, 39))
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(jones(x)))(x)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
