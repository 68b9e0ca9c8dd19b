"""Orders: chains on sets of visible sites and their reversals, by enumeration; weights that they cancel in.

Statistical thresholds are |z| < 4 at a fixed key, with the standard error of the sample.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from own_parts import only

import egm
from egm.annealing import AnnealedEnergy
from egm.energies import lattices
from egm.processes import orders
from egm.typing import Order

KEY = jax.random.key(11)
CORNERS = orders.blocks([[0, 3], [1], [2]])


def two_sequences(key):
    first = int(jax.random.randint(key, (), 0, 4))
    rest = [i for i in range(4) if i != first]
    return [[first], rest[:2], rest[2:]]


EVERY = {
    "random": orders.random_sites(4),
    "pairs": orders.random_sites(5, (1, 2, 2)),
    "colouring": orders.colouring((0, 1, 1, 0, 2)),
    "blocks": CORNERS,
    "coarse to fine": orders.coarse_to_fine((2, 2), 1),
    "stages": orders.StagedOrder((orders.Stage((2, 0, 4), (1, 2)), orders.Stage((1, 3), (1, 1)))),
    "drawn": orders.drawn(KEY, two_sequences, 5),
    "equal draws": orders.DrawnOrder(((0, 1, 2, 2), (0, 1, 2, 2), (0, 2, 1, 2), (2, 1, 0, 0))),
}
every_order = pytest.mark.parametrize("order", EVERY.values(), ids=EVERY)


def test_every_order_here_is_one_and_every_class_is_here():
    classes = {getattr(orders, n) for n in orders.__all__ if isinstance(getattr(orders, n), type)}
    assert classes - {orders.Stage} == {type(order) for order in EVERY.values()}
    for order in EVERY.values():
        assert isinstance(order, Order)
        assert hash(order) == hash(order)


def subsets(order):
    return np.array(list(itertools.product([False, True], repeat=order.num_sites)))


def frequencies(draw, states, n=6000):
    """[M, 2^L] how often `draw(key, visible)` of each of M states gives each of all states."""
    keys = jax.random.split(KEY, n)
    draws = jax.jit(jax.vmap(lambda s: jax.vmap(lambda k: draw(k, s))(keys)))(states)
    place = 2 ** np.arange(states.shape[1])[::-1]
    index = np.asarray(draws) @ place
    return np.stack([np.bincount(row, minlength=2 ** states.shape[1]) for row in index]) / n


def passed(order):
    """([M, L] the sets of visible sites, [M] at which step a trajectory may be there)."""
    states = subsets(order)
    reached = {tuple(states[0])}
    every = set(reached)
    joins = jax.jit(jax.vmap(order.joins, (None, 0)))
    for _ in range(order.num_steps):
        reached = {tuple(s) for b in reached for s in states[np.asarray(joins(np.array(b), states))]}
        every |= reached
    assert reached == {(True,) * order.num_sites}  # in that many steps, and in no fewer
    return states, np.array([tuple(s) in every for s in states])


@every_order
def test_hide_is_the_time_reversal_of_reveal(order):
    """The flow of probability from set to set is the same in both directions of time."""
    states, visited = passed(order)
    n = 6000
    forward = frequencies(lambda k, s: s | order.reveal(k, s), states, n)
    backward = frequencies(lambda k, s: s & ~order.hide(k, s), states, n)
    up = np.zeros(len(states))
    up[0], flows = 1, []
    for _ in range(order.num_steps):
        flows.append(up[:, None] * forward)
        up = flows[-1].sum(0)
    down = np.zeros(len(states))
    down[-1] = 1
    for flow in reversed(flows):
        back = down[:, None] * backward
        error = np.sqrt(order.num_steps / n)
        assert np.max(np.abs(back.T - flow)) < 4 * error / 2
        down = back.sum(0)
    assert np.isclose(up[-1], 1)
    assert np.isclose(down[0], 1)
    # Both move along the steps that `joins` knows, and along all of them (and stay at the ends).
    moves = ~np.eye(len(states), dtype=bool)[visited][:, visited]
    joins = np.asarray(jax.jit(jax.vmap(jax.vmap(order.joins, (None, 0)), (0, None)))(states, states))
    np.testing.assert_array_equal((forward > 0)[visited], joins[visited])
    undone = (backward.T > 0)[visited][:, visited]
    np.testing.assert_array_equal(undone & moves, joins[visited][:, visited] & moves)
    assert joins[-1, -1]


@every_order
def test_visible_draws_what_reveal_leads_to(order):
    states = subsets(order)
    here = states[:1]
    forward = frequencies(lambda k, s: s | order.reveal(k, s), states)
    law = np.eye(len(states))[0]
    n = 6000
    for step in range(order.num_steps):
        draw = frequencies(lambda k, s, step=step: order.visible(k, jnp.int32(step)), here, n)[0]
        assert draw.shape == law.shape
        assert np.max(np.abs(draw - law)) < 4 * np.sqrt(0.25 * (1 + order.num_steps) / n)
        np.testing.assert_array_equal(draw > 0, law > 0)
        law = law @ forward
    assert np.isclose(law[-1], 1)


@every_order
def test_weights_are_the_probabilities_of_the_sites(order):
    states, visited = passed(order)
    states = states[visited]
    keys = jax.random.split(KEY, 6000)
    drawn = jax.jit(jax.vmap(lambda s: jax.vmap(lambda k: order.reveal(k, s))(keys)))(states)
    weights = np.asarray(jax.jit(jax.vmap(order.weights))(states))
    np.testing.assert_allclose(np.mean(drawn, axis=1), weights, atol=4 * 0.5 / np.sqrt(6000))
    assert np.all(weights[-1] == 0)
    np.testing.assert_allclose(
        weights.sum(-1), np.sum(drawn, axis=(1, 2)) / 6000, atol=4 * 0.5 / np.sqrt(6000)
    )


def test_random_sites_are_those_of_any_order_unmasking():
    order = orders.random_sites(4)
    visible = np.array([True, False, True, False])
    np.testing.assert_allclose(order.weights(visible), [0, 0.5, 0, 0.5])
    assert order.num_steps == 4
    seen = frequencies(lambda k, s: order.visible(k, jnp.int32(2)), np.zeros((1, 4), bool), 20000)
    counts = seen[0][seen[0] > 0]
    assert len(counts) == 6
    np.testing.assert_allclose(counts, 1 / 6, atol=0.012)


def test_coarse_to_fine_goes_from_sublattice_to_sublattice():
    order = orders.coarse_to_fine((4, 4), 1)
    sizes = [len(stage.sites) for stage in order.stages]
    assert sizes == [1, 1, 2, 4, 8]
    assert order.stages[-1].sites == tuple(i for i in range(16) if sum(divmod(i, 4)) % 2)
    seen: list[int] = []
    for stage in order.stages[:-1]:
        seen += stage.sites
        coordinates = [complex(*divmod(i, 4)) for i in seen]
        gaps = {abs(a - b) for a in coordinates for b in coordinates if a != b}
        assert not gaps or min(gaps) >= 4 / math.sqrt(len(seen)) - 1e-9
    assert orders.coarse_to_fine((4, 4), (1, 1, 2, 4)).num_steps == 5
    assert orders.coarse_to_fine((4, 4), 3, closed=False).num_closed == 0
    assert orders.coarse_to_fine((6, 10), 1).num_sites == 60


def test_growing_sizes_have_the_sum_and_do_not_fall():
    for sites, steps in ((128, 32), (32, 32), (7, 3), (100, 1), (12, 5)):
        sizes = orders.growing(sites, steps)
        assert sum(sizes) == sites
        assert len(sizes) == steps
        assert list(sizes) == sorted(sizes)
        assert sizes[0] >= 1


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: orders.Stage((0, 0), (2,)), "each site once"),
        (lambda: orders.Stage((0, 1), (1,)), "sum 2"),
        (lambda: orders.StagedOrder((orders.Stage((1,), (1,)),)), "0..L-1"),
        (lambda: orders.StagedOrder((orders.Stage((0,), (1,)),), 1), "below the 1 steps"),
        (lambda: orders.colouring((2, 2)), "at least two"),
        (lambda: orders.coarse_to_fine((3, 4)), "even sides"),
        (lambda: orders.growing(3, 4), "at most 3"),
        (lambda: orders.DrawnOrder(((0, 1), (0, 0))), "same number of steps"),
        (lambda: orders.DrawnOrder(((0, 2),)), "leave out no step"),
        (lambda: egm.processes.OrderedProcess(egm.paths.MaskedPath(2), "checkerboard"), "must be a Order"),
        (
            lambda: egm.processes.OrderedProcess(egm.paths.MaskedPath(2), CORNERS).check_steps(2, (4,)),
            "at least the 3 steps",
        ),
        (
            lambda: egm.processes.OrderedProcess(egm.paths.MaskedPath(2), CORNERS).check_steps(9, (5,)),
            "this order has 4",
        ),
    ],
)
def test_messages(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


# In path weights.

GRID = lattices.square((3, 3))
GLASS = egm.energies.SpinGlass(
    9, GRID, tuple(np.random.default_rng(0).normal(size=len(GRID)).tolist()), 0.2, 0.6
)
FOUR = egm.energies.SpinGlass.edwards_anderson(jax.random.key(3), (4, 4), 0.5, "normal")
POTTS = egm.energies.Potts(9, GRID, 3, inverse_temperature=0.8, field=0.3)
OWN = only(Order, orders.random_sites(9, (1, 3, 5)))
CASES = {
    "glass random": (GLASS, orders.random_sites(9)),
    "glass colouring": (GLASS, orders.colouring(GLASS.colouring)),
    "glass blocks": (GLASS, orders.blocks([[0, 4, 8], [1, 5, 6], [2, 3, 7]])),
    "glass own": (GLASS, OWN),
    "glass drawn": (
        GLASS,
        orders.drawn(KEY, lambda k: np.asarray(jax.random.permutation(k, 9)).reshape(3, 3).tolist(), 7),
    ),
    "4x4 checkerboard": (FOUR, orders.colouring(FOUR.colouring)),
    "4x4 coarse to fine": (FOUR, orders.coarse_to_fine((4, 4), (1, 1, 2, 2))),
    "Potts colouring": (POTTS, orders.colouring(POTTS.colouring)),
    "Potts growing": (POTTS, orders.random_sites(9, orders.growing(9, 4))),
}


def setting(energy, order):
    """(process, generator): an untrained network's, with what the energy knows in closed form."""
    vocab, sites = energy.vocab_size, energy.num_sites
    path = egm.paths.MaskedPath(vocab)
    kernel = 0.7 * np.random.default_rng(2).normal(size=((vocab + 1) * sites, sites * vocab))

    def apply(params, x, t):
        del t
        seen = jax.nn.one_hot(x, vocab + 1).reshape(len(x), -1)
        return 0.3 * (seen @ jnp.asarray(params, seen.dtype)).reshape(len(x), sites, vocab)

    head = egm.heads.DenoiserHead(path, order)
    algorithm = egm.algorithms.Weighted(path, head, apply)
    return egm.processes.OrderedProcess(path, order), algorithm.generator(kernel, energy)


def both_ways(energy, order, n):
    process, generator = setting(energy, order)
    times = process.times(order.num_steps)

    @jax.jit
    def run(key, exact):
        x_0 = process.path.sample_prior(key, (n, energy.num_sites))
        forward = egm.simulate(key, process, generator, x_0, times)
        reverse = egm.simulate_reverse(key, process, generator, exact, times)
        return [egm.path_log_weights(energy, process.path, path) for path in (forward, reverse)]

    return run(KEY, energy.sample(KEY, n))


@pytest.mark.parametrize("energy, order", CASES.values(), ids=CASES)
def test_log_z_is_unbiased_from_both_sides_with_an_untrained_network(energy, order):
    log_z = energy.log_partition()
    forward, reverse = (np.asarray(w, np.float64) for w in both_ways(energy, order, 8000))
    for values in (np.exp(forward - log_z), np.exp(log_z - reverse)):
        assert np.all(np.isfinite(values))
        assert abs((values.mean() - 1) / (values.std() / np.sqrt(len(values)))) < 4
    # Far from the target, so that the bounds tell.
    assert forward.mean() < log_z - 4 * forward.std() / np.sqrt(len(forward))
    assert reverse.mean() > log_z + 4 * reverse.std() / np.sqrt(len(reverse))


def test_the_same_path_has_the_same_weight_both_ways():
    process, generator = setting(FOUR, CASES["4x4 coarse to fine"][1])
    order = process.order
    times = process.times(order.num_steps)
    x_0 = process.path.sample_prior(KEY, (50, 16))
    path = egm.simulate(KEY, process, generator, x_0, times, save_states=True)
    total = sum(
        process.log_ratio(path.states[k], path.states[k + 1], generator, times[k], times[k + 1])
        for k in range(order.num_steps)
    )
    np.testing.assert_allclose(total, path.log_ratio, rtol=1e-5, atol=1e-5)
    back = process.log_ratio(path.states[1], path.states[0], generator, times[0], times[1])
    assert np.all(np.isneginf(back))


def exact_conditional(energy, x, site, scale):
    """p(x_site | visible tokens of x [L]) under exp(-scale E), by enumeration, float64."""
    every = np.array(list(itertools.product(range(energy.vocab_size), repeat=len(x))), np.int8)
    log_w = -scale * np.asarray(energy(jnp.asarray(every)), np.float64)
    log_w = np.where(np.all((x == energy.vocab_size) | (every == x), axis=1), log_w, -np.inf)
    sums = [scipy.special.logsumexp(log_w[every[:, site] == v]) for v in range(energy.vocab_size)]
    return scipy.special.softmax(sums)


ISING = egm.energies.Ising(3, 0.5, field=0.2)
DOUBLE = egm.energies.SpinGlass(4, ((0, 1), (0, 1), (1, 2), (2, 3)), (0.3, 0.4, 1.0, -2.0))
CLOSED = {
    "Ising": (ISING, (0, 1, 4)),
    "Ising 4x4": (egm.energies.Ising(4, 0.44, coupling=-0.8), (1, 2)),
    "Ising 2x2": (egm.energies.Ising(2, 0.44, field=0.1), (0, 3)),
    "glass": (GLASS, (0, 1, 4)),
    "Potts": (egm.energies.Potts(8, lattices.square((2, 4), False), 3, 0.7, 0.2), (0, 1, 3)),
    "double edges": (DOUBLE, (1, 3)),
}  # fmt: skip


@pytest.mark.parametrize("energy, depths", CLOSED.values(), ids=CLOSED)
def test_revealed_conditionals_are_exact_where_they_say_so(x64, energy, depths):
    rng, scale, vocab = np.random.default_rng(1), 0.7, energy.vocab_size
    for depth in depths:
        found = 0
        for share in (0.3, 0.5, 0.7):
            hidden = rng.random((6, energy.num_sites)) < share
            x = np.where(hidden, vocab, rng.integers(0, vocab, hidden.shape)).astype(np.int32)
            logits, exact = energy.revealed_conditionals(jnp.asarray(x), scale, depth)
            assert not np.any(exact & ~hidden)
            p = scipy.special.softmax(logits, axis=-1)
            for n, site in zip(*np.nonzero(exact)):
                np.testing.assert_allclose(
                    p[n, site], exact_conditional(energy, x[n], site, scale), atol=1e-12
                )
                found += 1
        assert found >= 3


@pytest.mark.parametrize("energy", [egm.energies.Ising(4, 0.44, field=0.1), FOUR], ids=["Ising", "glass"])
def test_the_last_colour_is_exact_and_asks_no_network(x64, energy):
    """Its probabilities are those of the target given the others, and a NaN network is not seen."""
    order = orders.colouring(energy.colouring)
    last = np.array(energy.colouring) == 1
    path = egm.paths.MaskedPath(2)
    called = []

    def apply(params, x, t):
        jax.debug.callback(lambda: called.append(1))
        return jnp.full((*x.shape, 2), jnp.nan)

    head = egm.heads.DenoiserHead(path, order)
    generator = egm.algorithms.Weighted(path, head, apply).generator(None, energy)
    tokens = np.random.default_rng(0).integers(0, 2, (3, 16))
    x = jnp.asarray(np.where(last, 2, tokens), jnp.int32)
    p = np.asarray(jax.jit(generator)(x, jnp.zeros(3)))
    jax.effects_barrier()
    assert not called
    for n in range(3):
        for site in np.flatnonzero(last)[:3]:
            expected = exact_conditional(energy, np.asarray(x[n]), site, 1.0)
            np.testing.assert_allclose(p[n, site], expected, atol=1e-12)
    jax.jit(generator)(jnp.full((3, 16), 2, jnp.int32), jnp.zeros(3))
    jax.effects_barrier()
    assert called


def test_a_colouring_alone_gives_an_energy_its_last_step(x64):
    """`WithColouring` of conditionals that were made by evaluating: the same as the energy's own."""
    made = egm.energies.WithColouring(egm.energies.WithConditionals(FOUR, 2), FOUR.colouring)
    assert made.energy.vocab_size == 2
    last = np.array(FOUR.colouring) == 1
    x = np.random.default_rng(0).integers(0, 2, (4, 16))
    x = jnp.asarray(np.where(last, 2, x), jnp.int32)
    logits, exact = made.revealed_conditionals(x, 0.6)
    own, known = FOUR.revealed_conditionals(x, 0.6, 0)
    np.testing.assert_array_equal(exact, np.broadcast_to(last, (4, 16)))
    np.testing.assert_array_equal(exact, known)
    difference = jax.nn.log_softmax(logits) - jax.nn.log_softmax(own)
    np.testing.assert_allclose(difference[:, last], 0, atol=1e-12)
    assert not np.any(made.revealed_conditionals(jnp.full((1, 16), 2), 1.0)[1])


def test_check_colouring_names_the_site_that_interacts():
    egm.energies.check_colouring(KEY, FOUR, FOUR.colouring, 2)
    egm.energies.check_colouring(KEY, POTTS, POTTS.colouring, 3)
    with pytest.raises(ValueError, match=r"colour 1 at site \d+, whose conditional changes"):
        egm.energies.check_colouring(KEY, FOUR, (1, 1) + FOUR.colouring[2:], 2)
    with pytest.raises(TypeError, match="must offer single_site_conditionals"):
        egm.energies.check_colouring(KEY, lambda x: jnp.sum(x, axis=-1), (0, 1), 2)


@pytest.mark.parametrize(
    "num_sites, edges, number",
    [
        (16, lattices.square((4, 4)), 2),
        (9, lattices.square((3, 3)), 3),
        (27, lattices.square((3, 3, 3)), 3),
        (8, lattices.square((2, 2, 2), False), 2),
        (5, tuple(itertools.combinations(range(5), 2)), 5),
    ],
)
def test_colourings_join_no_two_of_a_colour(num_sites, edges, number):
    colours = lattices.colouring(num_sites, edges)
    assert all(colours[i] != colours[j] for i, j in edges)
    assert len(set(colours)) == number
    counts = np.bincount(colours)
    assert counts[-1] == counts.max()


def test_the_spin_glass_on_a_lattice_is_the_ising_model(x64):
    ising = egm.energies.Ising(4, 0.44, coupling=-0.7, field=0.3)
    glass = egm.energies.SpinGlass(16, lattices.square((4, 4)), -0.7, 0.3, 0.44)
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (20, 16)))
    np.testing.assert_allclose(glass(x), ising(x), atol=1e-12)
    assert abs(glass.log_partition() - ising.log_partition()) < 1e-10
    masked = jnp.where(jnp.asarray(np.random.default_rng(1).random((20, 16)) < 0.5), 2, x)
    for depth in (0, 1, 3):
        ours, theirs = (e.revealed_conditionals(masked, 0.9, depth) for e in (glass, ising))
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_allclose(jax.nn.log_softmax(ours[0]), jax.nn.log_softmax(theirs[0]), atol=1e-10)


def test_training_draws_the_states_of_the_order_and_learns_what_comes_next():
    energy = FOUR
    order = orders.coarse_to_fine((4, 4), (1, 1, 2, 4))
    head = egm.heads.DenoiserHead(egm.paths.MaskedPath(2), order)
    n = 4000
    keys, x_1 = jax.random.split(KEY, n), energy.sample(KEY, n)
    t = (jnp.arange(n) + 0.5) / n
    x_t = head.training_states(keys, x_1, t)
    visible = np.asarray(x_t != 2)
    np.testing.assert_array_equal(np.where(visible, x_t, x_1), x_1)
    # The four steps before the closed one, each as often: 0, 1, 2, 4 sites are visible.
    shown, counts = np.unique(visible.sum(1), return_counts=True)
    np.testing.assert_array_equal(shown, [0, 1, 2, 4])
    np.testing.assert_allclose(counts, n / 4, atol=1)
    # The loss sees the next sites alone: another output elsewhere does not change it.
    output = jax.random.normal(KEY, (n, 16, 2))
    target = jax.nn.softmax(jax.random.normal(jax.random.key(5), (n, 16, 2)))
    weights = np.asarray(jax.vmap(order.weights)(visible))
    changed = jnp.where(jnp.asarray(weights > 0)[..., None], output, 3.0 * output)
    loss = head.divergence(target, output, x_t, t, energy)
    np.testing.assert_array_equal(loss, head.divergence(target, changed, x_t, t, energy))
    # Its mean over steps is the divergence of trajectories, times steps, a site.
    cross = -np.sum(np.asarray(target) * np.asarray(jax.nn.log_softmax(output)), axis=-1)
    np.testing.assert_allclose(loss, np.sum(weights * cross, axis=1) * order.num_steps / 16, rtol=1e-4)


def test_a_short_training_learns_the_4x4_lattice_along_the_checkerboard():
    """From ESS below .9 of the skip alone to above .97, in 8 calls and a closed step."""
    energy = egm.energies.Ising(4, 0.44)
    order = orders.colouring(energy.colouring)
    path = egm.paths.MaskedPath(2)
    network = egm.networks.TorusDenoiser(4, channels=8, expansion=1, flip=True)
    algorithm = egm.algorithms.Weighted(path, egm.heads.DenoiserHead(path, order), network.apply)
    process = egm.processes.OrderedProcess(path, order)
    config = egm.iteration.IterationConfig(500, 2500, 50, 128, order.num_steps, ema_decay=0.9)
    init, step = egm.iteration.make_iteration(
        algorithm, process, energy, optax.adam(3e-3), config, event_shape=(16,)
    )
    state = init(network.init(KEY, jnp.zeros((1, 16), jnp.int32), jnp.zeros(1)))
    step = jax.jit(step)
    ess = []
    for i in range(8):
        state, metrics = step(jax.random.fold_in(KEY, i), state)
        ess.append(float(metrics["ess"]))
    assert ess[0] < 0.9
    assert ess[-1] > 0.97
    assert abs(float(metrics["log_z"]) - energy.log_partition()) < 4 * float(metrics["log_z_error"]) + 0.01


def test_conditionals_that_are_made_of_evaluations_of_the_energy_are_counted():
    energy = egm.energies.Ising(4, 0.4)
    plain = egm.energies.WithConditionals(energy, 2)
    coloured = egm.energies.WithColouring(plain, energy.colouring)
    head, count = egm.heads.DenoiserHead(egm.paths.MaskedPath(2)), plain.conditional_evaluations(16)
    assert count > 1
    assert tuple(head.energy_evaluations(energy, (16,))) == (0, 1)
    assert tuple(head.energy_evaluations(plain, (16,))) == (0, count)
    assert tuple(head.energy_evaluations(coloured, (16,))) == (count, 2 * count)
    # Through the annealing as well.
    annealed = AnnealedEnergy(coloured, jnp.ones(()))
    assert tuple(head.energy_evaluations(annealed, (16,))) == (count, 2 * count)
