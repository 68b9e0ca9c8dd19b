"""Cuts, independent sets and cliques as energies, against enumeration over all subsets of small graphs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from like_networkx import LikeNetworkx

import egm
from egm.energies import IndependentSet, MaximumCut, _pairwise

NUM = 9
STATES = np.array(list(itertools.product((0, 1), repeat=NUM)))


def graph(seed, share=0.4):
    """(edges, their weights, the nodes' weights) of a random graph."""
    rng = np.random.default_rng(seed)
    edges = [pair for pair in itertools.combinations(range(NUM), 2) if rng.random() < share]
    return tuple(edges), tuple(rng.normal(size=len(edges))), tuple(rng.uniform(0.1, 1, NUM))


def of(function, x):
    """In chunks of one compiled call, float64 on the host."""
    return np.asarray(jax.jit(function)(jnp.asarray(x)), np.float64)


@pytest.mark.parametrize("seed", range(3))
def test_the_energy_of_a_cut_is_its_weight(seed):
    edges, weights, _ = graph(seed)
    energy = MaximumCut(NUM, edges, weights, inverse_temperature=0.7)
    cut = sum(w * (STATES[:, i] != STATES[:, j]) for (i, j), w in zip(edges, weights, strict=True))
    np.testing.assert_allclose(of(energy.cut, STATES), cut, atol=1e-5)
    np.testing.assert_allclose(of(energy, STATES), -0.7 * cut, atol=1e-5)
    assert energy.log_partition() == pytest.approx(np.logaddexp.reduce(0.7 * cut), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_the_lowest_energy_is_that_of_a_heaviest_independent_set(seed):
    edges, _, weights = graph(seed)
    i, j = np.array(edges).T
    conflicts = np.sum(STATES[:, i] * STATES[:, j], axis=1)
    size = STATES @ np.array(weights)
    energy = IndependentSet(NUM, edges, weights, inverse_temperature=1.3)
    expected = -1.3 * (size - 2 * max(weights) * conflicts)
    np.testing.assert_allclose(of(energy, STATES), expected, atol=1e-4)
    assert energy.log_partition() == pytest.approx(np.logaddexp.reduce(-expected), abs=1e-9)
    best = STATES[np.argmin(of(energy, STATES))]
    assert conflicts[np.argmin(expected)] == 0
    assert size[conflicts == 0].max() == pytest.approx(float(energy.size(jnp.asarray(best))), abs=1e-5)


def test_repaired_states_are_independent_and_cannot_grow():
    edges, _, weights = graph(3)
    energy = IndependentSet(NUM, edges, weights)
    joined = np.zeros((NUM, NUM), int)
    for i, j in edges:
        joined[i, j] = joined[j, i] = 1
    x = of(energy.repaired, STATES).astype(int)
    neighbours = x @ joined
    assert not np.any((x == 1) & (neighbours > 0))  # independent
    assert not np.any((x == 0) & (neighbours == 0))  # and no node could come in
    independent = np.all((STATES == 0) | (STATES @ joined == 0), axis=1)
    assert np.all(x[independent] >= STATES[independent])  # nothing is taken from a set that is one
    assert energy.repaired(jnp.asarray(STATES).reshape(2, -1, NUM)).shape == (2, len(STATES) // 2, NUM)


def test_graphs_of_networkx_come_in_by_their_nodes_order():
    given = LikeNetworkx(4, ((0, 1), (1, 2), (2, 2), (3, 1)), weights=(2.0, 0.5), names="bdca")
    energy = MaximumCut.from_graph(given, inverse_temperature=0.5)
    # The loop cuts nothing, and an edge without a weight has 1.
    assert energy == MaximumCut(4, ((0, 1), (1, 2), (3, 1)), (2.0, 0.5, 1.0), 0.5)
    assert IndependentSet.from_graph(given).edges == energy.edges
    assert set(IndependentSet.cliques(given).edges) == {(0, 2), (0, 3), (2, 3)}


def test_a_clique_is_an_independent_set_of_the_complement():
    edges, _, _ = graph(4, share=0.6)
    energy = IndependentSet.cliques(LikeNetworkx(NUM, edges))
    joined = np.zeros((NUM, NUM), int)
    for i, j in edges:
        joined[i, j] = joined[j, i] = 1
    others = STATES.sum(1)[:, None] - STATES - STATES @ joined  # chosen nodes that a node is not joined to
    clique = np.all((STATES == 0) | (others == 0), axis=1)
    best = STATES[np.argmin(of(energy, STATES))]
    assert clique[np.argmin(of(energy, STATES))] and best.sum() == STATES.sum(1)[clique].max()


def test_bonds_as_a_matrix_are_bonds_by_edges(monkeypatch):
    """Of visible and hidden nodes; an edge that is there twice counts twice."""
    edges, weights, _ = graph(6)
    edges, weights = (*edges, edges[0]), (*weights, 0.3)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 3, (200, NUM)))
    found = []
    for most in (256, 0):
        monkeypatch.setattr(_pairwise, "_DENSE", most)
        monkeypatch.setattr(_pairwise, "_DENSE_SHARE", 0)
        energy = MaximumCut(NUM, edges, weights)
        assert (energy._model.dense is None) == (most == 0)
        found.append(energy.revealed_conditionals(x, 0.7, 0))
    np.testing.assert_allclose(*(logits for logits, _ in found), atol=1e-5)
    np.testing.assert_array_equal(*(exact for _, exact in found))


@pytest.mark.slow
def test_a_sampler_of_cuts_finds_the_best_one():
    """Of 512 states the best is the largest cut of a graph of 16 nodes, by enumeration."""
    rng = np.random.default_rng(5)
    edges = tuple(pair for pair in itertools.combinations(range(16), 2) if rng.random() < 0.35)
    energy = MaximumCut(16, edges, inverse_temperature=1.5)
    sampler = egm.fit(jax.random.key(0), energy, iterations=5, progress=False)
    best = float(jnp.max(energy.cut(sampler.sample(jax.random.key(1), 512).x)))
    states = np.array(list(itertools.product((0, 1), repeat=16)))
    i, j = np.array(edges).T
    assert best == np.sum(states[:, i] != states[:, j], axis=1).max()
    assert abs(sampler.log_z - energy.log_partition()) < 4 * sampler.log_z_error + 0.05
