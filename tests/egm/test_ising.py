"""The Ising energy against loops, and its exact answers against one another."""

import decimal
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egm.energies import Ising
from egm.energies.ising import (
    arrays,
    closed_form,
    coupling_from_the_past,
    density_of_states,
    enumeration,
    transfer,
)

KEY = jax.random.key(15)
CRITICAL = math.log(1 + math.sqrt(2)) / 2
MODELS = [
    Ising(2, 0.4),
    Ising(2, 0.3, coupling=-0.7, field=0.2),
    Ising(3, 0.5, coupling=-1.0),
    Ising(3, 0.7, coupling=1.3, field=-0.4),
    Ising(4, CRITICAL),
    Ising(4, 1.1, coupling=0.5, field=0.3),
    Ising(5, 0.0, field=1.0),
]


def tokens_of(energy, n, vocab=2, seed=0):
    return np.random.default_rng(seed).integers(vocab, size=(n, energy.num_sites)).astype(np.int32)


def loop_energy(energy, x):
    """E(x) of one configuration, bond by bond in float64."""
    side, total = energy.side, 0.0
    s = 2.0 * x.reshape(side, side) - 1.0
    for i in range(side):
        for j in range(side):
            total -= energy.coupling * s[i, j] * (s[(i + 1) % side, j] + s[i, (j + 1) % side])
            total -= energy.field * s[i, j]
    return energy.inverse_temperature * total


def all_states(sites):
    return (np.arange(2**sites)[:, None] >> np.arange(sites) & 1).astype(np.int32)


def assert_follows(values, support, probabilities, threshold=4.0):
    """Chi-square of `values` on bins of expected count >= 10; its normal score stays below 4."""
    found = np.argmin(np.abs(values[:, None] - support), axis=1)
    assert np.max(np.abs(values - support[found])) < 1e-4
    expected = probabilities * len(values)
    group = np.floor((np.cumsum(expected) - expected / 2) / 10).astype(int)
    group = np.unique(group, return_inverse=True)[1]
    expected = np.bincount(group, weights=expected)
    counts = np.bincount(group[found], minlength=len(expected))
    bins = expected > 3
    assert np.sum(bins) >= 4
    chi_square = np.sum((counts - expected)[bins] ** 2 / expected[bins])
    freedom = np.sum(bins) - 1
    assert (chi_square - freedom) / math.sqrt(2 * freedom) < threshold


@pytest.mark.parametrize("energy", MODELS, ids=str)
def test_energy_is_the_sum_over_bonds(energy):
    x = tokens_of(energy, 6)
    expected = [loop_energy(energy, row) for row in x]
    value = energy(jnp.asarray(x))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(energy)(x.reshape(2, 3, -1).astype(np.uint8)).ravel(), value, rtol=1e-6
    )
    np.testing.assert_allclose(jax.vmap(energy)(x), value, rtol=1e-6)


def test_energy_in_float64(x64):
    energy = Ising(5, 0.1 + 1e-12, coupling=1 / 3, field=0.2)
    x = tokens_of(energy, 4)
    value = energy(jnp.asarray(x))
    assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, [loop_energy(energy, row) for row in x], rtol=1e-14)


def test_side_two_counts_each_pair_twice():
    k = 0.3
    assert float(Ising(2, k)(jnp.ones(4, jnp.int32))) == pytest.approx(-8 * k)
    expected = math.log(2 * math.exp(8 * k) + 12 + 2 * math.exp(-8 * k))
    assert Ising(2, k).log_partition() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("energy", MODELS, ids=str)
def test_single_site_conditionals_are_energy_differences(energy):
    x = tokens_of(energy, 3, seed=1)
    logits = np.asarray(energy.single_site_conditionals(jnp.asarray(x)))
    assert logits.shape == (3, energy.num_sites, 2)
    for row, logit in zip(x, logits):
        for site in range(energy.num_sites):
            pair = []
            for token in (0, 1):
                changed = row.copy()
                changed[site] = token
                pair.append(loop_energy(energy, changed))
            np.testing.assert_allclose(logit[site, 1] - logit[site, 0], pair[0] - pair[1], atol=1e-5)


def test_masked_conditionals():
    energy = Ising(4, 0.6, coupling=1.2, field=0.3)
    x = jnp.asarray(tokens_of(energy, 8))
    np.testing.assert_array_equal(energy.masked_conditionals(x), energy.single_site_conditionals(x))
    # The logits are affine in each neighbour's spin: a masked one is the mean of its two tokens.
    site = 5
    mean = sum(energy.single_site_conditionals(x.at[:, site].set(v)) for v in (0, 1)) / 2
    masked = energy.masked_conditionals(x.at[:, site].set(2))
    np.testing.assert_allclose(masked, mean, atol=1e-6)
    everything = energy.masked_conditionals(jnp.full((16,), 2, jnp.int32))
    np.testing.assert_allclose(everything, np.tile([-0.18, 0.18], (16, 1)), rtol=1e-6)


@pytest.mark.parametrize("energy", [m for m in MODELS if m.side > 2], ids=str)
def test_masked_log_marginal_is_exact_where_hidden_spins_are_apart(energy):
    x = tokens_of(energy, 4, seed=2)
    hidden = [0, energy.side + 1]  # no neighbours, on the torus too
    energies = []
    for tokens in itertools.product((0, 1), repeat=2):
        x[:, hidden] = tokens
        energies.append([loop_energy(energy, row) for row in x])
    expected = np.log(np.mean(np.exp(-np.array(energies)), axis=0))
    x[:, hidden] = 2
    np.testing.assert_allclose(energy.masked_log_marginal(jnp.asarray(x)), expected, rtol=1e-5, atol=1e-5)
    x[:, hidden] = 1
    minus = [-loop_energy(energy, row) for row in x]
    np.testing.assert_allclose(energy.masked_log_marginal(jnp.asarray(x)), minus, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("energy", [m for m in MODELS if m.side < 4], ids=str)
def test_log_partition_and_histograms_by_brute_force(energy):
    x = all_states(energy.num_sites)
    energies = np.array([loop_energy(energy, row) for row in x])
    weights = np.exp(-energies)
    assert energy.log_partition() == pytest.approx(math.log(weights.sum()), rel=1e-12)
    support, p = energy.energy_histogram()
    assert np.all(np.diff(support) > 0)
    nearest = np.argmin(np.abs(energies[:, None] - support), axis=1)
    np.testing.assert_allclose(energies, support[nearest], atol=1e-12)
    np.testing.assert_allclose(p, np.bincount(nearest, weights=weights) / weights.sum(), rtol=1e-10)
    m, p = energy.magnetization_histogram()
    up = x.sum(axis=1)
    np.testing.assert_allclose(p, np.bincount(up, weights=weights) / weights.sum(), rtol=1e-10)
    np.testing.assert_allclose(m[up], (2 * x - 1).mean(axis=1), atol=1e-14)
    spins = 2.0 * x - 1
    expected = [weights @ (spins[:, 0] * spins[:, r]) / weights.sum() for r in range(2)]
    np.testing.assert_allclose(energy.correlation_function(), expected, atol=1e-12)


@pytest.mark.parametrize("side", [2, 3, 4, 5])
@pytest.mark.parametrize("bond", [-0.6, 0.0, 0.2, CRITICAL, 1.5])
def test_four_routes_to_log_partition_agree(side, bond):
    enumerated = enumeration.enumerated_log_partition(side, bond, 0.0)
    assert transfer.row_distribution(side, bond, 0.0)[1] == pytest.approx(enumerated, rel=1e-12)
    assert density_of_states.density_log_partition(side, bond) == pytest.approx(enumerated, rel=1e-12)
    if bond >= 0:
        assert closed_form.kaufman_log_partition(side, bond) == pytest.approx(enumerated, rel=1e-12)
    with_field = enumeration.enumerated_log_partition(side, bond, 0.35)
    assert transfer.row_distribution(side, bond, 0.35)[1] == pytest.approx(with_field, rel=1e-12)


@pytest.mark.parametrize("side", [6, 7, 10, 11])
@pytest.mark.parametrize("bond", [-0.3, 0.25, CRITICAL, 0.8])
def test_transfer_matrix_agrees_with_closed_forms(side, bond):
    log_z = Ising(side, 1.0, coupling=bond).log_partition()
    assert transfer.row_distribution(side, bond, 0.0)[1] == pytest.approx(log_z, rel=1e-12)
    # A field so weak that log Z does not notice takes the other branches.
    assert Ising(side, 1.0, bond, field=1e-9).log_partition() == pytest.approx(log_z, rel=1e-11)


def test_log_partition_a_site_reaches_onsager():
    catalan = 0.9159655941772190
    onsager = math.log(2) / 2 + 2 * catalan / math.pi
    # At criticality the torus differs from the plane by the logarithm of a constant.
    a, b = (Ising(side, CRITICAL).log_partition() - side**2 * onsager for side in (64, 256))
    assert a == pytest.approx(b, abs=1e-4) and a == pytest.approx(0.6399, abs=1e-3)


@pytest.mark.parametrize("side", [2, 3, 4, 5])
def test_density_of_states_is_the_enumerated_one(side):
    assert (
        density_of_states.density_of_states(side) == enumeration.joint_counts(side).sum(axis=1)[::-1].tolist()
    )


def test_density_of_states():
    known = [2, 0, 32, 64, 424, 1728, 6688, 13568, 20524, 13568, 6688, 1728, 424, 64, 32, 0, 2]
    assert density_of_states.density_of_states(4) == known
    for side in (7, 10, 16, 20):
        counts = density_of_states.density_of_states(side)
        assert min(counts) >= 0 and sum(counts) == 2 ** (side * side)
        assert counts[:3] == [2, 0, 2 * side * side]
        for bond in (0.1, CRITICAL, 1.0):
            kaufman = closed_form.kaufman_log_partition(side, bond)
            assert density_of_states.density_log_partition(side, bond) == pytest.approx(kaufman, rel=1e-13)


@pytest.mark.parametrize("energy", [Ising(4, 0.5, 0.9, 0.1), Ising(5, 0.4, -1.0), Ising(10, 0.4)])
def test_moments_are_derivatives_of_log_partition(energy):
    moments, h = energy.exact_moments(), 1e-3
    beta = energy.inverse_temperature
    log_z = [
        Ising(energy.side, beta * (1 + d), energy.coupling, energy.field).log_partition()
        for d in (-2 * h, -h, 0, h, 2 * h)
    ]
    first = (log_z[0] - 8 * log_z[1] + 8 * log_z[3] - log_z[4]) / (12 * h)
    second = (-log_z[0] + 16 * log_z[1] - 30 * log_z[2] + 16 * log_z[3] - log_z[4]) / (12 * h * h)
    assert moments["mean_energy"] == pytest.approx(-first, rel=1e-8)
    assert moments["heat_capacity"] * energy.num_sites == pytest.approx(second, rel=1e-5)


def test_magnetization_by_transfer_matches_enumeration_and_the_field_derivative():
    for bond, field in ((0.4, 0.0), (0.4, 0.2), (-0.5, 0.3)):
        for side in (4, 5):
            np.testing.assert_allclose(
                transfer.magnetization_probabilities(side, bond, field),
                enumeration.enumerated_magnetization(side, bond, field),
                rtol=1e-10,
            )
    side, bond, h = 8, 0.4, 1e-2
    m, p = Ising(side, bond).magnetization_histogram()
    np.testing.assert_allclose(p, p[::-1], rtol=1e-12)
    # log Z(h) - log Z(0) is the log of the moment generating function of M.
    grown = math.log(p @ np.exp(h * side**2 * m))
    log_z = [transfer.row_distribution(side, bond, field)[1] for field in (h, 0.0)]
    assert grown == pytest.approx(log_z[0] - log_z[1], rel=1e-9)


def test_exact_moments_at_ten():
    energy = Ising(10, CRITICAL)
    moments, correlation = energy.exact_moments(), energy.correlation_function()
    assert correlation.shape == (6,) and correlation[0] == pytest.approx(1)
    assert moments["mean_energy"] == pytest.approx(-2 * 100 * CRITICAL * correlation[1], rel=1e-12)
    # The limit for large lattices at criticality is 0.61069 (Salas and Sokal, 2000).
    assert moments["binder_cumulant"] == pytest.approx(0.61069, abs=2e-3)
    assert sorted(Ising(13, 0.4).exact_moments()) == ["heat_capacity", "mean_energy"]
    assert Ising(13, 0.4, field=0.1).exact_moments() == {}


@pytest.mark.parametrize(
    "energy",
    [
        Ising(2, 0.3),
        Ising(3, 0.5, coupling=-1.0),
        Ising(4, 0.4, field=0.2),
        Ising(5, 0.35, coupling=-1.0, field=0.5),
        Ising(9, 0.4),
        Ising(10, CRITICAL),
    ],
    ids=str,
)
def test_samples_follow_the_exact_histograms(energy):
    n = 20_000
    x = energy.sample(jax.random.key(7), n)
    assert x.shape == (n, energy.num_sites) and x.dtype == jnp.int32
    if energy.side > 2:
        if energy.side <= 5 or not energy.field:
            assert_follows(np.asarray(energy(x), float), *energy.energy_histogram())
        m = np.asarray(2 * x - 1, float).mean(axis=1)
        assert_follows(m, *energy.magnetization_histogram())
    if energy.side <= 3:  # every configuration
        states = all_states(energy.num_sites)
        p = np.exp([-loop_energy(energy, s) - energy.log_partition() for s in states])
        index = np.asarray(x) @ (1 << np.arange(energy.num_sites))
        assert_follows(index.astype(float), np.arange(len(p), dtype=float), p)
    # Both directions, every site: the row is drawn in another way than the columns.
    s = np.asarray(2 * x - 1, float).reshape(n, energy.side, energy.side)
    error = 4 / math.sqrt(n)
    for axis in (1, 2):
        for r, expected in enumerate(energy.correlation_function()):
            found = np.mean(s * np.roll(s, r, axis), axis=0)
            assert np.max(np.abs(found - expected)) < 1.3 * error
    assert np.max(np.ptp(s.mean(axis=0))) < 2.3 * error


def test_samples_depend_on_the_key_alone():
    energy = Ising(6, 0.4)
    a, b = (energy.sample(jax.random.key(seed), 50) for seed in (0, 0))
    np.testing.assert_array_equal(a, b)
    assert np.any(np.asarray(a) != np.asarray(energy.sample(jax.random.key(1), 50)))


@pytest.mark.parametrize(
    "energy",
    [Ising(6, 0.4), Ising(5, 0.3, field=-0.3), Ising(4, 0.35, coupling=-1.0, field=0.4)],
    ids=str,
)
def test_coupling_from_the_past_follows_the_exact_histograms(energy):
    beta = energy.inverse_temperature
    x = coupling_from_the_past.couple_from_the_past(
        jax.random.key(3), 4000, energy.side, beta * energy.coupling, beta * energy.field
    )
    assert_follows(np.asarray(energy(x), float), *energy.energy_histogram())
    assert_follows(np.asarray(2 * x - 1, float).mean(axis=1), *energy.magnetization_histogram())


def test_samples_of_large_lattices():
    energy = Ising(17, 0.3)
    x = energy.sample(jax.random.key(0), 2000)
    assert x.shape == (2000, 289) and x.dtype == jnp.int32
    moments = energy.exact_moments()
    error = math.sqrt(moments["heat_capacity"] * 289 / 2000)
    assert abs(float(energy(x).mean()) - moments["mean_energy"]) < 4 * error


def test_equal_energies_share_a_trace():
    count = 0

    def value(energy, x):
        nonlocal count
        count += 1
        return energy(x)

    jitted = jax.jit(value, static_argnums=0)
    x = jnp.zeros((3, 16), jnp.int32)
    for energy in (Ising(4, 0.5), Ising(4, 0.5, 1), Ising(np.int64(4), np.float32(0.5), field=0)):
        jitted(energy, x)
    assert count == 1
    jitted(Ising(4, 0.6), x)
    assert count == 2
    energy = Ising(4, 0.5)
    assert (energy.num_sites, energy.vocab_size, energy.event_shape) == (16, 2, (16,))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Ising(1, 0.4), ValueError, "side must be at least 2, got 1"),
        (lambda: Ising(4.0, 0.4), TypeError, "side must be an int, got 4.0"),
        (
            lambda: Ising(4, -0.1),
            ValueError,
            "inverse_temperature must be .* non-negative, got -0.1",
        ),
        (lambda: Ising(4, 0.4, math.inf), ValueError, "coupling must be finite, got inf"),
        (lambda: Ising(4, 0.4, field="1"), TypeError, "field must be a number, got '1'"),
        (
            lambda: Ising(5, 0.4)(jnp.zeros((2, 7), jnp.int32)),
            ValueError,
            "x has trailing size 7, this energy has 25 sites",
        ),
        (
            lambda: Ising(2, 0.4)(jnp.zeros(4)),
            TypeError,
            "x must hold integer tokens, got dtype float32",
        ),
        (lambda: Ising(2, 0.4)(jnp.int32(1)), ValueError, "x must have at least 1 axis"),
        (
            lambda: Ising(2, 0.4).masked_conditionals(jnp.zeros((3,), jnp.int32)),
            ValueError,
            "x has trailing size 3, this energy has 4 sites",
        ),
        (lambda: Ising(4, 0.4).sample(0, 5), TypeError, "key must be a typed PRNG key"),
        (
            lambda: Ising(4, 0.4).sample(jax.random.key(0), 0),
            ValueError,
            "n must be at least 1, got 0",
        ),
        (
            lambda: Ising(4, 0.4).sample(jax.random.split(jax.random.key(0)), 5),
            ValueError,
            r"key must be one key, got shape \(2,\)",
        ),
        (
            lambda: jax.jit(lambda key: Ising(4, 0.4).sample(key, 5))(jax.random.key(0)),
            TypeError,
            "key must be concrete",
        ),
        (
            lambda: Ising(17, 0.4, -1.0).sample(jax.random.key(0), 5),
            ValueError,
            "got side 17 and coupling -1.0",
        ),
        (
            lambda: Ising(17, 0.4, field=0.1).log_partition(),
            ValueError,
            "any side at zero field, or side up to 16 at any field, got side 17 and field 0.1",
        ),
        (
            lambda: Ising(6, 0.4, field=0.1).energy_histogram(),
            ValueError,
            "side up to 5 at any field, got side 6 and field 0.1",
        ),
        (lambda: Ising(33, 0.4).energy_histogram(), ValueError, "side up to 32, got side 33"),
        (lambda: Ising(13, 0.4).magnetization_histogram(), ValueError, "up to 12, got side 13"),
        (lambda: Ising(17, 0.4).correlation_function(), ValueError, "up to 16, got side 17"),
    ],
)
def test_errors_say_what_came_and_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_coupling_from_the_past_gives_up_loudly(monkeypatch):
    monkeypatch.setattr(coupling_from_the_past, "_MAX_SWEEPS", 64)
    with pytest.raises(RuntimeError, match="did not coalesce within 64 sweeps at side 17"):
        Ising(17, 2.0).sample(jax.random.key(0), 4)


def test_extreme_couplings_stay_finite():
    cold = Ising(6, 20.0)
    assert cold.log_partition() == pytest.approx(20 * 72 + math.log(2), rel=1e-14)
    x = np.asarray(cold.sample(jax.random.key(0), 200)).mean(axis=1)
    assert set(x) == {0.0, 1.0}
    hot = Ising(6, 0.0)
    assert hot.log_partition() == pytest.approx(36 * math.log(2), rel=1e-14)
    energies, p = hot.energy_histogram()
    assert energies.tolist() == [0.0] and p == pytest.approx([1.0])


# Strong couplings.

STRONG = (-1000.0, -50.0, -7.0, -0.6, -1e-13, 0.0, 1e-13, CRITICAL, 7.0, 50.0, 355.0, 1000.0)


def decimal_log_partition(side, bond, field):
    """log Z from the enumerated counts in 50 digits."""
    counts = enumeration.joint_counts(side)
    with decimal.localcontext(prec=50):
        bonds, fields = decimal.Decimal(bond), decimal.Decimal(field)
        logs = [
            (bonds * int(4 * a - 2 * side * side) + fields * int(2 * u - side * side), int(counts[a, u]))
            for a, u in np.argwhere(counts)
        ]
        top = max(log for log, _ in logs)
        return float(top + sum(count * (log - top).exp() for log, count in logs).ln())


@pytest.mark.parametrize("side", [2, 3, 4, 5])
def test_every_route_at_every_coupling(side):
    """Enumeration, transfer matrix (weights or logarithms), closed form and density of states."""
    for bond, field in itertools.product(STRONG, (0.0, 1e-9, -0.3, 25.0, 1000.0)):
        right = pytest.approx(decimal_log_partition(side, bond, field), rel=1e-13)
        assert enumeration.enumerated_log_partition(side, bond, field) == right
        probabilities, log_z = transfer.row_distribution(side, bond, field)
        assert log_z == right
        row_logs, top = transfer._row_logs(side, bond, field)
        logs = transfer._log_diagonal_in_logs(side, bond, field, row_logs)
        assert arrays.logsumexp(logs) + side * (top + abs(bond) * side) == right
        np.testing.assert_allclose(np.exp(logs - arrays.logsumexp(logs)), probabilities, atol=1e-13)
        enumerated = enumeration.enumerated_magnetization(side, bond, field)
        for found in (
            transfer.magnetization_probabilities(side, bond, field),
            magnetization_in_logs(side, bond, field, row_logs),
        ):
            np.testing.assert_allclose(found, enumerated, rtol=1e-8, atol=1e-16)
        if field == 0:
            assert density_of_states.density_log_partition(side, bond) == right
            if bond >= 0 or side % 2 == 0:
                assert closed_form.kaufman_log_partition(side, abs(bond)) == right


def magnetization_in_logs(side, bond, field, row_logs):
    up = np.sum(arrays.row_spins(side) > 0, axis=1)
    logs = transfer._log_polynomials_in_logs(side, bond, field, row_logs, up)
    p = np.exp(logs - logs.max()).sum(axis=0)
    p = p + p[::-1] if field == 0 else p
    return p / p.sum()


@pytest.mark.parametrize(
    ("side", "bond", "field"), [(8, 12.0, 0.0), (9, -16.0, 1.0), (7, -22.0, 0.3), (8, 9.0, -3.0)]
)
def test_logarithms_agree_with_weights_where_both_serve(side, bond, field):
    assert transfer._fits(side, bond, field)
    row_logs, _ = transfer._row_logs(side, bond, field)
    a, b = (f(side, bond, field, row_logs) for f in (transfer._log_diagonal, transfer._log_diagonal_in_logs))
    assert arrays.logsumexp(a) == pytest.approx(arrays.logsumexp(b), abs=1e-12)


@pytest.mark.parametrize(
    ("energy", "log_z"),
    [
        (Ising(8, 50.0, 1.0, 0.5), 8000.0),
        (Ising(8, 50.0), 6400 + math.log(2)),
        (Ising(8, 1000.0, -1.0, 0.5), 128_000 + math.log(2)),
        (Ising(16, 1000.0, 1.0, 0.25), 512_000 + 64_000),
        (Ising(32, 1000.0), 2_048_000 + math.log(2)),
        (Ising(33, 400.0), 2 * 33**2 * 400 + math.log(2)),
        (Ising(8, 40.0, 0.0, 1.0), 64 * 40.0),
    ],
    ids=str,
)
def test_ground_states(energy, log_z):
    """Deep in the cold everything is its ground states."""
    assert energy.log_partition() == pytest.approx(log_z, rel=1e-14)
    if energy.side > 16:
        return
    ferro, sites = energy.coupling >= 0, energy.num_sites
    r = np.arange(energy.side // 2 + 1)
    np.testing.assert_allclose(energy.correlation_function(), 1.0 if ferro else (-1.0) ** r, atol=1e-12)
    x = np.asarray(energy.sample(KEY, 200))
    np.testing.assert_array_equal(x.sum(axis=1) % sites, 0 if ferro else sites // 2)
    if energy.side <= 12:
        m, p = energy.magnetization_histogram()
        assert p @ np.abs(m) == pytest.approx(1.0 if ferro else 0.0, abs=1e-12)
        moments = energy.exact_moments()
        assert not any(np.isnan(v) for v in moments.values())
        assert moments["binder_cumulant"] == (pytest.approx(2 / 3) if ferro else -np.inf)


def test_a_frustrated_lattice_in_the_cold():
    """Side 5, antiferromagnetic: the ground states by enumeration, their samples and correlations."""
    energy = Ising(5, 300.0, -1.0)
    counts = enumeration.joint_counts(5).sum(axis=1)
    lowest = np.flatnonzero(counts)[0]
    bond_sum = 4 * lowest - 50
    assert energy.log_partition() == pytest.approx(-300.0 * bond_sum + math.log(counts[lowest]), rel=1e-14)
    x = energy.sample(KEY, 4000)
    np.testing.assert_array_equal(np.asarray(energy(x)), 300.0 * bond_sum)
    m, p = energy.magnetization_histogram()
    assert_follows(np.asarray(2 * x - 1, float).mean(axis=1), m, p)
    s = np.asarray(2 * x - 1, float).reshape(-1, 5, 5)
    for axis in (1, 2):
        found = [np.mean(s * np.roll(s, r, axis)) for r in range(3)]
        np.testing.assert_allclose(found, energy.correlation_function(), atol=0.02)


def test_ordered_lattices_beyond_the_transfer_matrix_are_refused_in_seconds(monkeypatch):
    monkeypatch.setattr(coupling_from_the_past, "_MAX_SWEEPS", 2**10)
    with pytest.raises(RuntimeError, match="8 samples did not coalesce .* the lattice is ordered"):
        Ising(17, 1.0).sample(KEY, 5000)


def test_energies_beyond_float32_are_refused():
    for arguments in ((4, 1e38), (4, 1.0, 1e38), (4, 1.0, 1.0, 1e38), (4, 1e300, 1e300)):
        with pytest.raises(ValueError, match="the range of float32 energies"):
            Ising(*arguments)
    assert np.all(np.isfinite(Ising(4, 1e35)(jnp.ones((1, 16), jnp.int32))))
