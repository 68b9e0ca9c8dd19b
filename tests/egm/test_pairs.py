"""Pair terms found in energies of tokens, against their construction and enumeration in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm

SITES, VOCAB = 5, 3


def _model(seed=0, joined=((0, 1), (1, 2), (2, 3), (0, 4))):
    """(biases [L, V], tables [L, V, L, V], E) of random terms, the energy with a constant."""
    rng = np.random.default_rng(seed)
    biases = rng.normal(size=(SITES, VOCAB))
    tables = np.zeros((SITES, VOCAB, SITES, VOCAB))
    for i, j in joined:
        tables[i, :, j, :] = rng.normal(size=(VOCAB, VOCAB))
        tables[j, :, i, :] = tables[i, :, j, :].T

    def energy(x):
        hot = jax.nn.one_hot(x, VOCAB)
        pairs = 0.5 * jnp.einsum("...ia,iajb,...jb->...", hot, jnp.asarray(tables, jnp.float32), hot)
        return 7.0 - jnp.einsum("...ia,ia->...", hot, jnp.asarray(biases, jnp.float32)) - pairs

    return biases, tables, energy


def _states():
    return np.array(list(itertools.product(range(VOCAB), repeat=SITES)))


def _minus_energy(biases, tables):
    """[V^L] -E of all states but for the constant, in float64."""
    hot = np.eye(VOCAB)[_states()]
    return np.einsum("nia,ia->n", hot, biases) + 0.5 * np.einsum("nia,iajb,njb->n", hot, tables, hot)


def _found(energy):
    found = egm.energies.pair_terms(energy, SITES, VOCAB)
    assert found is not None
    return egm.energies.WithPairs(energy, *found)


def test_the_terms_give_the_energy():
    biases, tables, energy = _model()
    found = egm.energies.pair_terms(energy, SITES, VOCAB)
    assert found is not None
    # Float32 rounds E, about 10, to 1e-6; a mixed difference holds four of them.
    ours, theirs = _minus_energy(*found), _minus_energy(biases, tables)
    np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=1e-4)
    np.testing.assert_array_equal(np.any(found[1] != 0, (1, 3)), np.any(tables != 0, (1, 3)))


def test_conditionals_are_those_of_all_states():
    biases, tables, energy = _model(1)
    exact = _minus_energy(biases, tables).reshape((VOCAB,) * SITES)
    logits = np.asarray(_found(energy).single_site_conditionals(jnp.asarray(_states())), np.float64)
    for n, state in enumerate(_states()):
        for i in range(SITES):
            column = exact[tuple(slice(None) if k == i else state[k] for k in range(SITES))]
            gap = logits[n, i] - column
            np.testing.assert_allclose(gap - gap[0], 0, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_revealed_conditionals_are_exact_where_they_say_so(scale):
    biases, tables, energy = _model(2)
    wrapped = _found(energy)
    log_weight = scale * _minus_energy(biases, tables)
    rng = np.random.default_rng(0)
    some = 0
    for _ in range(40):
        x = rng.integers(0, VOCAB + 1, SITES)
        logits, exact = wrapped.revealed_conditionals(jnp.asarray(x[None], jnp.int32), scale)
        fits = np.all((_states() == x) | (x == VOCAB), axis=1)
        for i in np.flatnonzero(np.asarray(exact)[0]):
            assert x[i] == VOCAB
            mass = [np.logaddexp.reduce(log_weight[fits & (_states()[:, i] == a)]) for a in range(VOCAB)]
            np.testing.assert_allclose(
                jax.nn.softmax(logits[0, i]), jax.nn.softmax(np.array(mass)), atol=1e-5
            )
            some += 1
    assert some > 20


def test_no_site_next_to_a_hidden_one_is_exact():
    _, tables, energy = _model(3)
    joined = np.any(tables != 0, (1, 3))
    x = np.random.default_rng(1).integers(0, VOCAB + 1, (64, SITES))
    exact = np.asarray(_found(energy).revealed_conditionals(jnp.asarray(x, jnp.int32))[1])
    hidden = x == VOCAB
    np.testing.assert_array_equal(exact, hidden & ~((hidden @ joined.astype(int)) > 0))


@pytest.mark.parametrize(
    "energy",
    [
        lambda x: jnp.prod(1.0 * x, axis=-1),
        lambda x: jnp.where(x[..., 0] == x[..., 1], jnp.inf, 0.0),
        lambda x: jnp.where(x[..., 0] == 0, jnp.nan, 1.0 * x[..., 1]),
        lambda x: 1e7 + 1.0 * x[..., 0] * x[..., 1],  # whose rounding hides everything
        lambda x: 0.3 * x[..., 0] * x[..., 2] * x[..., 4],
    ],
    ids=["all sites", "walls", "NaN", "a large constant", "three sites"],
)
def test_what_is_no_sum_of_pairs_is_left_alone(energy):
    assert egm.energies.pair_terms(energy, SITES, VOCAB) is None


def test_the_colouring_is_one():
    _, _, energy = _model(4, joined=tuple(itertools.combinations(range(4), 2)))
    wrapped = _found(energy)
    assert len(set(wrapped.colouring)) == 4
    egm.energies.check_colouring(jax.random.key(0), wrapped, wrapped.colouring, VOCAB)


def test_too_many_pairs_are_not_looked_for():
    calls = []
    energy = lambda x: calls.append(1) or jnp.sum(1.0 * x, -1)
    assert egm.energies.pair_terms(energy, 3000, 2) is None and not calls


def test_fit_finds_the_pairs_and_reveals_the_last_colour_at_once(tmp_path):
    """A black box on a 4x4 grid: log Z within four errors of enumeration, and the same after loading."""
    model = egm.energies.Ising(4, 0.4, field=0.1)
    space = egm.spaces.Tokens((4, 4), 2, periodic=True)
    energy = lambda x: model(x.reshape(*x.shape[:-2], 16))
    sampler = egm.fit(jax.random.key(0), energy, space, iterations=2, progress=False)
    assert sampler.design.pairs and sampler.design.num_times == 9
    assert isinstance(sampler.parts.process, egm.processes.OrderedProcess)
    draw = sampler.sample(jax.random.key(1), 4096)
    assert draw.ess > 0.5
    summary = draw.summary
    assert abs(float(summary.log_z) - model.log_partition()) < 4 * float(summary.log_z_error)
    sampler.save(tmp_path / "saved")
    same = egm.Sampler.load(tmp_path / "saved", energy)
    assert same.design == sampler.design
    np.testing.assert_array_equal(
        same.sample(jax.random.key(1), 64).x, sampler.sample(jax.random.key(1), 64).x
    )
