"""The contract of every energy: shapes, tracing, conditionals, and sums over its states.

Samples are held to the exact distribution by the largest |z| of the frequency of each state, below 5
at a fixed key.
"""

import itertools

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import egm

IDS, CASES = contract.cases(egm.energies, "ENERGIES")
every_case = pytest.mark.parametrize("case", CASES, ids=IDS)
KEY = jax.random.key(31)
energy_of = jax.jit(lambda energy, x: energy(x), static_argnums=0)


def test_every_energy_has_an_example():
    missing = contract.missing_entries(egm.energies, "ENERGIES")
    assert not missing, "\n".join(missing)


def test_every_energy_is_exported():
    # The settings of reference chains are exported too, and what lattices are made of: no energies.
    others = {"ChainSettings", "check_colouring", "lattices", "pair_terms"}
    assert {*contract.public_classes(egm.energies), *others} == set(egm.energies.__all__)


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    """Reference chains leave no files in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EGM_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def tokens_of(state):
    return state["h"] if isinstance(state, dict) else state


def with_tokens(state, tokens):
    """The state with other tokens [..., N, L], its other parts repeated."""
    if not isinstance(state, dict):
        return tokens
    lead = tokens.shape[:-2]
    rest = {k: np.broadcast_to(a, (*lead, *a.shape)) for k, a in state.items() if k != "h"}
    return rest | {"h": tokens}


@every_case
def test_is_an_energy(case):
    assert isinstance(case.energy, egm.Energy)
    assert hash(case.energy) == hash(case.energy)
    e = energy_of(case.energy, case.states)
    n = jax.tree.leaves(case.states)[0].shape[0]
    assert e.shape == (n,)
    assert jnp.issubdtype(e.dtype, jnp.floating)
    assert not np.any(np.isnan(e))


@every_case
def test_any_batch_axes(case):
    """None, one and two of them, and vmap, give the numbers of one batch."""
    e = energy_of(case.energy, case.states)
    grid = jax.tree.map(lambda a: a.reshape(2, 3, *a.shape[1:]), contract.take(case.states, np.s_[:6]))
    np.testing.assert_allclose(energy_of(case.energy, grid).ravel(), e[:6], rtol=1e-6)
    one = energy_of(case.energy, contract.take(case.states, 4))
    assert one.shape == ()
    np.testing.assert_allclose(one, e[4], rtol=1e-6)
    mapped = jax.jit(jax.vmap(case.energy))(case.states)
    np.testing.assert_allclose(mapped, e, rtol=1e-6)
    np.testing.assert_allclose(case.energy(contract.take(case.states, np.s_[:2])), e[:2], rtol=1e-6)


@every_case
def test_float32_agrees_with_float64(case):
    single = np.asarray(energy_of(case.energy, case.states))
    with jax.enable_x64(True):
        double = energy_of(case.energy, case.states)
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(single, np.asarray(double), rtol=1e-5, atol=1e-5)


@every_case
def test_equal_energies_share_a_trace(case):
    twin = contract.cases(egm.energies, "ENERGIES")[1][[c is case for c in CASES].index(True)].energy
    assert twin == case.energy
    assert hash(twin) == hash(case.energy)
    count = 0

    def fn(energy, x):
        nonlocal count
        count += 1
        return energy(x)

    jitted = jax.jit(fn, static_argnums=0)
    jitted(case.energy, case.states)
    jitted(twin, case.states)
    assert count == 1


@every_case
def test_single_site_conditionals_are_energy_differences(x64, case):
    if not hasattr(case.energy, "single_site_conditionals"):
        return
    x, vocab = tokens_of(case.states), case.energy.vocab_size
    logits = jax.jit(case.energy.single_site_conditionals)(case.states)
    assert logits.shape == (*x.shape, vocab)
    changed = np.stack(
        [
            np.stack([np.where(np.arange(x.shape[1]) == i, v, x) for v in range(vocab)])
            for i in range(x.shape[1])
        ]
    )  # [L, V, N, L]
    every = with_tokens(case.states, changed.reshape(-1, *x.shape))
    e = np.asarray(energy_of(case.energy, every)).reshape(x.shape[1], vocab, len(x))
    e = np.moveaxis(e, -1, 0)
    np.testing.assert_allclose(
        scipy.special.softmax(logits, axis=-1), scipy.special.softmax(-e, axis=-1), atol=1e-10
    )


@every_case
def test_relaxed_energy_is_the_mean_over_independent_tokens(x64, case):
    """At probabilities by enumeration (at most 2^10 configurations), at one-hot ones E itself."""
    if not hasattr(case.energy, "relaxed"):
        return
    x, vocab = tokens_of(case.states), case.energy.vocab_size
    p = np.random.default_rng(1).dirichlet(np.ones(vocab), size=x.shape)
    every = np.array(list(itertools.product(range(vocab), repeat=x.shape[1])), np.int32)
    chance = np.prod(p[:, np.arange(x.shape[1]), every], axis=-1)  # [N, configurations]
    repeated = np.broadcast_to(every[:, None], (len(every), *x.shape))
    e = np.asarray(energy_of(case.energy, with_tokens(case.states, repeated)))
    relaxed = jax.jit(case.energy.relaxed)
    np.testing.assert_allclose(relaxed(case.states | {"h": p}), np.sum(chance.T * e, axis=0), rtol=1e-9)
    certain = np.eye(vocab)[x]
    np.testing.assert_allclose(
        relaxed(case.states | {"h": certain}), energy_of(case.energy, case.states), rtol=1e-9
    )


@every_case
def test_gradient_agrees_with_differences(x64, case):
    """Of the continuous part, in float64; finite in float32 too."""
    x = case.states["x"] if isinstance(case.states, dict) else case.states
    if not np.issubdtype(x.dtype, np.floating):
        return

    def energy(x):
        return case.energy(case.states | {"x": x} if isinstance(case.states, dict) else x)

    gradient = jax.jit(jax.grad(lambda x: jnp.sum(energy(x))))
    assert np.all(np.isfinite(gradient(x.astype(np.float32))))
    direction = np.random.default_rng(2).normal(size=x.shape)
    step = 1e-6
    slope = (energy(x + step * direction) - energy(x - step * direction)) / (2 * step)
    np.testing.assert_allclose(np.sum(gradient(x) * direction, axis=-1), slope, rtol=1e-5, atol=1e-5)


@every_case
def test_log_partition_is_the_sum_over_states(x64, case):
    if case.space is None or not hasattr(case.energy, "log_partition"):
        return
    terms = case.space.log_weights - np.asarray(energy_of(case.energy, case.space.nodes))
    np.testing.assert_allclose(case.energy.log_partition(), scipy.special.logsumexp(terms), atol=1e-7)


@every_case
def test_samples(case):
    """Legal states of the right shape that depend on the key alone and follow exp(-E)."""
    if not hasattr(case.energy, "sample"):
        return
    n = 4000 if case.space is not None else 16
    x = case.energy.sample(KEY, n)
    expected = jax.tree.map(lambda a: ((n, *a.shape[1:]), jnp.asarray(a).dtype), case.states)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), x) == expected
    assert np.all(np.isfinite(energy_of(case.energy, x)))
    jax.tree.map(np.testing.assert_array_equal, x, case.energy.sample(KEY, n))
    other = case.energy.sample(jax.random.key(32), n)
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(x), jax.tree.leaves(other)))
    if case.space is None:
        return
    log_p = -np.asarray(energy_of(case.energy, case.space.nodes), np.float64)
    log_p -= scipy.special.logsumexp(log_p + case.space.log_weights)
    mean, second, _ = contract.exact_moments(case.space, log_p, case.features)
    assert contract.max_z(x, case.features, mean, second) < 5
