"""Outer iterations on continuous and mixed targets: to the end, with bad energies, on many devices.

The targets are small mixtures whose log Z is known; networks are two small layers.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gaussian_problem import gaussian_problem
from jax.sharding import PartitionSpec as P

import egm
from egm import algorithms, annealing, heads, iteration, metrics
from egm.energies import GaussianMixture, Ising, JointGaussianMixture
from egm.paths import CenteredPath, LinearPath, MaskedPath, VarianceExplodingPath
from egm.processes import AnyOrderProcess, DiffusionProcess, JumpProcess, ProductProcess
from egm.typing import Moments

KEY = jax.random.key(9)
PATH = VarianceExplodingPath(0.5, 6.0, 0.5)
TARGET = GaussianMixture(((-2.5,), (3.0,)), 0.4, (1, 2))
# Twice too wide, around the smaller mode.
REFERENCE = Moments(np.full(1, -3.0, np.float32), np.full(1, 16.0, np.float32))
HEAD = heads.ScoreHead(PATH, 0.4, 2.6, 1.2)
MIXED = JointGaussianMixture(2, 1.0, 0.5)
MIXED_REFERENCE = {"x": Moments(np.zeros(2, np.float32), np.full(2, 2.0, np.float32)), "h": None}
MIXED_HEAD = heads.ProductHead(
    {"x": heads.ScoreHead(PATH, 0.5, 1.1, max_target_norm=10.0), "h": heads.DenoiserHead(MaskedPath(2))}
)


def two_layers(num_in, num_out, width=32):
    k1, k2 = jax.random.split(jax.random.key(num_in))
    return {
        "in": jax.random.normal(k1, (num_in, width)),
        "bias": jnp.linspace(-2.0, 2.0, width)[None],
        "out": 0.01 * jax.random.normal(k2, (width, num_out)),
    }


def features(x, t):
    """A state of any kind as [N, F]: x over the noise of its time, one-hot tokens, t."""
    parts = x if isinstance(x, dict) else {"x": x}
    columns = [parts["x"] / jnp.sqrt(PATH.variance(t) + 0.3)[:, None], t[:, None]]
    if "h" in parts:
        columns.append(jax.nn.one_hot(parts["h"], 3, dtype=columns[0].dtype).reshape(len(t), -1))
    return jnp.concatenate(columns, axis=-1)


def network(params, x, t):
    return jnp.tanh(features(x, t) @ params["in"] + params["bias"]) @ params["out"]


def vector_output(params, x, t):
    return network(params, x, t).reshape(*x.shape, 2)


def mixed_output(params, state, t):
    out = network(params, state, t)
    return {"x": out[:, :4].reshape(-1, 2, 2), "h": out[:, 4:].reshape(-1, 2, 2)}


def log_marginal(params, x, t):
    return network(params, x, t)[:, 0]


def skip(energy):
    """A start for g that shows the annealed energy: -E, bounded."""
    return lambda x, t: -5 * jnp.tanh(energy(x) / 5) if not isinstance(x, dict) else 0.0 * t


CONFIG = iteration.IterationConfig(
    num_simulated=512,
    buffer_size=2048,
    num_gradient_steps=60,
    batch_size=256,
    num_times=20,
    ema_decay=0.9,
    ess_target=0.3,
)
SMALL = iteration.IterationConfig(
    num_simulated=32, buffer_size=64, num_gradient_steps=2, batch_size=16, num_times=4, ess_target=0.2
)
WEIGHTED = algorithms.Weighted(PATH, HEAD, vector_output)
DIFFUSION = DiffusionProcess(PATH)


def on_line(algorithm=WEIGHTED, config=SMALL, energy=TARGET, **options):
    return iteration.make_iteration(
        algorithm,
        DIFFUSION,
        energy,
        optax.adam(1e-2),
        config,
        event_shape=(1,),
        reference=REFERENCE,
        **options,
    )


def on_mixture(algorithm, config=SMALL, energy=MIXED, tokens=AnyOrderProcess, **options):
    process = ProductProcess({"x": DIFFUSION, "h": tokens(MaskedPath(2))})
    return iteration.make_iteration(
        algorithm, process, energy, optax.adam(1e-2), config,
        event_shape=MIXED.event_shape, reference=MIXED_REFERENCE, **options,
    )  # fmt: skip


def finite(tree):
    return all(np.all(np.isfinite(a)) for a in jax.tree.leaves(tree))


def test_from_a_bad_reference_to_the_target():
    """Five iterations reach scale 1, an ESS above .55 (from .2), log Z and the target's moments."""
    init, step = on_line(config=CONFIG)
    state, step = init(two_layers(2, 2)), jax.jit(step)
    np.testing.assert_array_equal(state.moments.mean, REFERENCE.mean)
    scales = [float(state.level)]
    for i in range(5):
        state, report = step(jax.random.fold_in(KEY, i), state)
        scales.append(float(report["level"]))
        if i == 0:
            first, first_report = state.buffer.items, report
    assert scales[0] == 0
    assert scales[1] < 1
    # What is simulated before the full energy is reached states no error of log Z, and says why.
    assert (first_report["log_z_error"], first_report["reliable"]) == (np.inf, False)
    assert "the annealing has reached" in metrics.reason(jax.device_get(first_report))
    assert scales[-1] == 1, scales
    assert report["reliable"]
    assert metrics.reason(jax.device_get(report)) == ""
    assert report["ess"] > 0.55, float(report["ess"])
    assert abs(report["log_z"] - TARGET.log_partition()) < 4 * report["log_z_error"]
    assert report["ess_alarm"] == report["num_nonfinite"] == report["skipped"] == 0
    mean = (-2.5 + 2 * 3.0) / 3
    variance = 0.4**2 + (2.5**2 + 2 * 3.0**2) / 3 - mean**2
    # 4 standard errors of what the buffer is worth in independent states; its second moment's is 4%.
    error = np.sqrt(variance / (report["buffer_ess"] * CONFIG.num_simulated))
    np.testing.assert_allclose(state.moments.mean, [mean], atol=4 * error)
    np.testing.assert_allclose(state.moments.variance, [variance], rtol=0.12)
    # The weights of the first, annealed generation by hand, its places being the first of the buffer.
    x, s = np.asarray(first.x_1[:512, 0], np.float64), scales[1]
    log_w = first.log_path[:512] - s * TARGET(first.x_1[:512]) - (1 - s) * (x + 3) ** 2 / 32
    w = np.exp(np.asarray(log_w, np.float64))
    np.testing.assert_allclose(first_report["buffer_ess"], w.sum() ** 2 / (w**2).sum() / 512, rtol=1e-3)
    # E: one each for 512 ends, 512 x 20 calls (the gradient in the skip), 60 x 256 x 2 examples, and 32
    # segments to see whether it jumps; 5 times.
    probe = 32 * egm.smoothness.NUM_EVALUATIONS
    assert report["num_energy_evaluations"] == 5 * (512 * 21 + 60 * 256 * 2 + probe)
    # A prior of four times the variance: its density is in the weights.
    wide = state._replace(moments=Moments(jnp.full(1, 1.0), jnp.full(1, 30.0)))
    _, other = step(KEY, wide)
    assert other["ess"] < report["ess"]
    assert abs(other["log_z"] - TARGET.log_partition()) < 4 * other["log_z_error"]
    assert other["log_z_error"] < 0.5


def test_a_reference_is_where_annealing_starts():
    """At scale 0 the weights are the reference's; without one the first scale is above 0."""
    init, _ = on_line()
    assert init(two_layers(2, 2)).level == 0
    bare = iteration.make_iteration(WEIGHTED, DIFFUSION, TARGET, optax.sgd(0.1), SMALL, event_shape=(1,))[0]
    state = bare(two_layers(2, 2))
    assert 0 < state.level < 1e-4
    np.testing.assert_array_equal(state.moments.variance, 0.0)  # the path's own prior
    kept = iteration.IterationConfig(num_simulated=4, buffer_size=4, fit_prior=False)
    assert on_line(config=kept)[0](two_layers(2, 2)).moments is None


BOTH = {"generator": two_layers(2, 2), "log_marginal": two_layers(2, 1)}
BOTH_MIXED = {"generator": two_layers(9, 8), "log_marginal": two_layers(9, 1)}
MIXED_PATH = MIXED_HEAD.path
EVERY = {
    "naive": (algorithms.Naive(PATH, HEAD, vector_output, 20), BOTH["generator"]),
    "bootstrap": (algorithms.Bootstrap(PATH, HEAD, vector_output, log_marginal, 20, 0.1, skip=skip), BOTH),
    "local": (algorithms.LocalBootstrap(PATH, log_marginal, 10, skip=skip), BOTH["log_marginal"]),
}
EVERY_MIXED = {
    "naive": (algorithms.Naive(MIXED_PATH, MIXED_HEAD, mixed_output, 20), BOTH_MIXED["generator"]),
    "bootstrap": (
        algorithms.Bootstrap(MIXED_PATH, MIXED_HEAD, mixed_output, log_marginal, 20, 0.1), BOTH_MIXED),
    "local": (algorithms.LocalBootstrap(MIXED_PATH, log_marginal, 10), BOTH_MIXED["log_marginal"]),
}  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("mixed", [False, True], ids=["line", "mixed"])
def test_every_algorithm_takes_an_iteration(name, mixed):
    """Parameters move and stay finite, no step is skipped, and the evaluations of E are counted."""
    algorithm, params = (EVERY_MIXED if mixed else EVERY)[name]
    # The local generator gives tokens one site at a time to a jump process only.
    init, step = on_mixture(algorithm, tokens=JumpProcess) if mixed else on_line(algorithm)
    state, report = jax.jit(step)(KEY, init(params))
    assert finite((state.train, report["loss"], report["log_z"], state.moments))
    assert report["skipped"] == report["num_nonfinite"] == 0
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), state.train.params, params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    assert report["num_energy_evaluations"] >= 32


def nan_in_places(table, state):
    """`MIXED`, NaN on about a tenth of the states (stripes of x), so that gradients are clean elsewhere."""
    bad = jnp.sin(20 * state["x"][..., 0]) > 0.95
    return jnp.where(bad, table, MIXED(state))


class Holes:
    """`nan_in_places` with what the heads use of an energy."""

    def __init__(self, hole):
        self.hole = hole

    def __call__(self, state):
        return nan_in_places(self.hole, state)

    def single_site_conditionals(self, state):
        return MIXED.single_site_conditionals(state)

    def relaxed(self, state):
        bad = jnp.sin(20 * state["x"][..., 0]) > 0.95
        return jnp.where(bad, self.hole, MIXED.relaxed(state))


def test_energies_that_are_no_numbers():
    """NaN on a tenth of the states: counted, kept out of the buffer, nothing else breaks."""
    weighted = algorithms.Weighted(MIXED_PATH, MIXED_HEAD, mixed_output)
    init, step = on_mixture(weighted, energy=Holes(jnp.nan))
    state, bad, step = init(two_layers(9, 8)), 0, jax.jit(step)
    for i in range(4):
        state, report = step(jax.random.fold_in(KEY, i), state)
        bad += int(report["num_nonfinite"])
        assert finite((state.train, state.moments, report["loss"], report["log_z"]))
        assert report["skipped"] == 0
    # 128 states: a tenth is 13, with 4 standard errors.
    assert 0 < bad < 27
    assert state.buffer.num_added == 128 - bad
    assert not np.any(np.isnan(state.buffer.items.energy))


@pytest.mark.slow
def test_an_iteration_on_eight_devices_is_that_of_one(x64, mesh8):
    """Two iterations under shard_map, in float64: states, moments and parameters to 1e-9."""
    weighted = algorithms.Weighted(MIXED_PATH, MIXED_HEAD, mixed_output)
    params = jax.tree.map(lambda a: a.astype(float), two_layers(9, 8))
    (init, one), (_, sharded) = on_mixture(weighted), on_mixture(weighted, axis_name="i")
    eight = jax.jit(jax.shard_map(sharded, mesh=mesh8, in_specs=P(), out_specs=P()))
    a = b = init(params)
    for i in range(2):
        key = jax.random.fold_in(KEY, i)
        (a, report_a), (b, report_b) = jax.jit(one)(key, a), eight(key, b)
    assert set(report_a) == set(report_b)
    for left, right in zip(jax.tree.leaves((a, report_a)), jax.tree.leaves((b, report_b)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "path, dim, moments",
    [
        (PATH, 1, Moments(jnp.array([0.8]), jnp.array([1.5]))),
        (LinearPath(), 1, Moments(jnp.array([0.8]), jnp.array([1.5]))),
        (CenteredPath(PATH, 3, 1), 3, Moments(jnp.zeros(3), jnp.full(3, 0.9))),
    ],
    ids=["exploding", "linear", "centred"],
)
def test_path_weights_with_fitted_priors_average_to_z(x64, path, dim, moments):
    """Whatever the moments: an untrained generator, 4000 states, 4 standard errors of the mean weight."""
    problem = gaussian_problem(path, dim, record="variance")
    process, n = DiffusionProcess(path), 4000

    @jax.jit
    def weigh(moments):
        x_0 = egm.draw_prior(KEY, path, (n, dim), moments)
        trajectory = egm.simulate(KEY, process, problem.random_generator, x_0, process.times(12))
        return egm.path_log_weights(problem, path, trajectory)

    for given in (moments, moments._replace(variance=3 * moments.variance)):
        weights = np.exp(weigh(given) - problem.log_z)
        assert np.std(weights) < 10
        assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(n)


def test_a_tempered_energy_goes_from_the_reference_to_e():
    """Scale 0 is the reference, 1 is E; the relaxed energy and the conditionals follow."""
    state = {"x": jnp.array([[0.5, -1.2], [0.1, 0.7]]), "h": jnp.array([[0, 1], [1, 1]], jnp.int32)}
    soft = state | {"h": jax.nn.one_hot(state["h"], 2)}
    about = lambda x: MIXED_PATH.reference_energy(x, MIXED_REFERENCE)
    by_hand = 0.25 * np.sum(np.square(state["x"]), axis=-1)
    np.testing.assert_allclose(about(state), by_hand, rtol=1e-6)
    np.testing.assert_allclose(about(soft), by_hand, rtol=1e-6)
    for scale in (0.0, 0.3, 1.0):
        energy = annealing.AnnealedEnergy(MIXED, jnp.float32(scale), about)
        expected = scale * MIXED(state) + (1 - scale) * by_hand
        np.testing.assert_allclose(energy(state), expected, rtol=1e-6)
        np.testing.assert_allclose(energy.relaxed(soft), expected, rtol=1e-6)
        # Differences of the annealed energy in one token, the reference's being none.
        logits = energy.single_site_conditionals(state)
        flipped = state | {"h": state["h"].at[:, 0].set(1)}, state | {"h": state["h"].at[:, 0].set(0)}
        np.testing.assert_allclose(
            logits[:, 0, 1] - logits[:, 0, 0], energy(flipped[1]) - energy(flipped[0]), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_allclose(annealing.AnnealedEnergy(MIXED, 0.5)(state), 0.5 * MIXED(state), rtol=1e-6)


def test_a_tempered_energy_offers_what_its_energy_offers():
    names = ["single_site_conditionals", "relaxed", "conditional_evaluations"]
    wrapped = egm.energies.WithConditionals(Ising(2, 0.3), 2)
    for energy in (MIXED, TARGET, Ising(2, 0.3), wrapped, lambda x: jnp.sum(x, axis=-1)):
        tempered = annealing.AnnealedEnergy(energy, 0.5)
        assert [hasattr(tempered, n) for n in names] == [hasattr(energy, n) for n in names]
    assert annealing.AnnealedEnergy(wrapped, 0.5).conditional_evaluations(
        4
    ) == wrapped.conditional_evaluations(4)
