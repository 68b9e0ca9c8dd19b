"""A user's own path, process, head, algorithm and energy work everywhere that the built-in ones do."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from own_parts import members, only

import egm
from egm import algorithms, bootstrap, heads, iteration, networks
from egm.paths import LinearPath, MaskedPath, ProductPath, VarianceExplodingPath
from egm.processes import DiffusionProcess, FlowProcess, JumpProcess, ProductProcess
from egm.typing import Algorithm, Energy, EnergyWithSites, Head, LocalPath, Path, Process

KEY = jax.random.key(11)
VE, TOKENS = VarianceExplodingPath(0.3, 3.0), MaskedPath(3)
FIELD = jnp.array([[0.0, 1.0, -0.5], [0.7, 0.0, 0.2]])


def normal(x):
    """N(1, .5^2) in two dimensions."""
    return 2 * jnp.sum((x - 1.0) ** 2, axis=-1)


def potts(x):
    """Two tokens with fields and a bond."""
    first, second = (jnp.take(FIELD[i], x[..., i], mode="clip") for i in range(2))
    return -first - second - 0.8 * (x[..., 0] == x[..., 1])


def both(state):
    return normal(state["x"]) + potts(state["h"]) + 0.3 * state["x"][..., 0] * (state["h"][..., 0] == 1)


CASES = {
    "vectors": (VE, (2,), normal),
    "linear": (LinearPath(), (2,), normal),
    "tokens": (TOKENS, (2,), potts),
}
PROCESSES = {
    "diffusion": (DiffusionProcess(VE), lambda x, t: -0.1 * x, (2,), normal),
    "flow": (FlowProcess(VE), lambda x, t: -0.1 * x, (2,), normal),
    "jump": (JumpProcess(TOKENS), lambda x, t: jnp.full((*x.shape, 3), 1 / 3), (2,), potts),
}


def test_own_parts_satisfy_their_protocols():
    for protocol, part in (
        (Path, VE),
        (LocalPath, TOKENS),
        (Process, DiffusionProcess(VE)),
        (Energy, normal),
    ):
        own = only(protocol, part)
        assert isinstance(own, protocol) and not isinstance(own, type(part))
    assert "sample" in members(Path) and not hasattr(only(Path, VE), "kernel")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("r", [1.0, 0.7])
def test_estimates_on_an_own_path(name, r):
    path, shape, energy = CASES[name]
    x_1 = jnp.ones((6, *shape), jnp.int32 if name == "tokens" else float)
    x_t = path.sample(KEY, x_1, 0.4)
    log_density = bootstrap.terminal(only(Energy, energy))
    run = lambda p: egm.estimate(KEY, p, log_density, x_t, jnp.full(6, 0.4), jnp.full(6, r), num_samples=32)
    expected, came = run(path), run(only(Path, path))
    jax.tree.map(np.testing.assert_array_equal, came, expected)


@pytest.mark.parametrize("name", CASES)
def test_local_targets_on_an_own_path(name):
    path, shape, energy = CASES[name]
    x_1 = jnp.ones((6, *shape), jnp.int32 if name == "tokens" else float)
    x_t, t = path.sample(KEY, x_1, 0.4), jnp.full(6, 0.4)
    g = bootstrap.relative_boundary(energy, lambda x, t: -0.1 * jnp.sum(1.0 * x**2, axis=-1), path)
    run = lambda p: bootstrap.local_target(KEY, g, p, x_t, t)
    np.testing.assert_array_equal(run(only(LocalPath, path)), run(path))
    assert bootstrap.num_local_states(only(LocalPath, path), shape) == bootstrap.num_local_states(path, shape)
    with pytest.raises(TypeError, match="path must offer local targets"):
        run(only(Path, path))
    # In a product with a part of the library's own.
    mixed = lambda p: ProductPath({"a": p, "b": LinearPath()})
    state = {"a": x_t, "b": jnp.ones((6, 1))}
    joint = lambda s, t: g(s["a"], t) - jnp.sum(s["b"] ** 2, axis=-1)
    run = lambda p: bootstrap.local_target(KEY, joint, mixed(p), state, t)
    assert np.all(np.isfinite(run(only(LocalPath, path))))


@pytest.mark.parametrize("name", PROCESSES)
def test_trajectories_of_an_own_process(name):
    process, generator, shape, energy = PROCESSES[name]

    def run(process, path, energy):
        x_0 = egm.draw_prior(KEY, path, (400, *shape))
        trajectory = egm.simulate(KEY, process, generator, x_0, process.times(20))
        back = egm.simulate_reverse(KEY, process, generator, trajectory.x_1, process.times(20))
        return trajectory[:3], *(egm.path_log_weights(energy, path, t) for t in (trajectory, back))

    expected = run(process, process.path, energy)
    came = run(only(Process, process), only(Path, process.path), only(Energy, energy))
    jax.tree.map(np.testing.assert_array_equal, came, expected)


def test_a_product_of_own_processes():
    """The mean weight is Z, 4 standard errors of 8,000 trajectories; Z by summation and quadrature."""
    process = ProductProcess(
        {"x": only(Process, DiffusionProcess(VE)), "h": only(Process, JumpProcess(TOKENS))}
    )
    generator = lambda s, t: {"x": 0.2 - 0.1 * s["x"], "h": jnp.full((*s["h"].shape, 3), 1 / 3)}

    @jax.jit
    def run():
        x_0 = egm.draw_prior(KEY, process.path, {"x": (8000, 2), "h": (8000, 2)})
        trajectory = egm.simulate(KEY, process, generator, x_0, process.times(30))
        return egm.path_log_weights(both, process.path, trajectory)

    edge = np.linspace(-3, 5, 401)
    tokens = np.stack(np.meshgrid(range(3), range(3), indexing="ij"), axis=-1).reshape(-1, 2)
    state = {
        "x": np.stack([np.broadcast_to(edge, (9, 401)), np.ones((9, 401))], axis=-1),
        "h": np.broadcast_to(tokens[:, None], (9, 401, 2)),
    }
    exact = float(np.exp(-np.asarray(both(state))).sum() * 0.02 * np.sqrt(np.pi / 2))
    w = np.exp(np.asarray(run()))
    assert abs(w.mean() - exact) < 4 * w.std() / np.sqrt(w.size)


SCORE, DENOISER = heads.ScoreHead(VE, 0.5, 1.0), heads.DenoiserHead(TOKENS)
VECTOR = networks.MLPVector(VE, 0.5, 1.0)
TOKEN, MARGINAL = (
    make(vocab_size=3, width=8, depth=1) for make in (networks.MLPDenoiser, networks.MLPLogMarginal)
)
TRAINED = {
    "weighted, vectors": (algorithms.Weighted, SCORE, VECTOR, DiffusionProcess(VE), normal),
    "naive, tokens": (algorithms.Naive, DENOISER, TOKEN, JumpProcess(TOKENS), potts),
    "local bootstrap, tokens": (algorithms.LocalBootstrap, None, MARGINAL, JumpProcess(TOKENS), potts),
}


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in list(TRAINED)[1:]]


@pytest.mark.parametrize("name", [list(TRAINED)[0], *SLOW])
def test_training_with_own_parts(name):
    """On an own path, with an own head, algorithm, process and energy: number for number the built-in's."""
    make, head, net, process, energy = TRAINED[name]
    path = process.path
    config = iteration.IterationConfig(
        num_simulated=64, buffer_size=128, num_gradient_steps=3, batch_size=32, num_times=8
    )

    def train(path, head, process, energy, hidden=lambda algorithm: algorithm):
        algorithm = hidden(make(path, *([] if head is None else [head]), net.apply))
        init, step = iteration.make_iteration(
            algorithm, process, energy, optax.adam(1e-3), config, event_shape=(2,)
        )
        x = path.sample_prior(KEY, (1, 2))
        state, step = init(net.init(KEY, x, jnp.zeros(1))), jax.jit(step)
        for i in range(2):
            state, report = step(jax.random.fold_in(KEY, i), state)
        return state.train.params, report["loss"]

    expected = train(path, head, process, energy)
    own = only(LocalPath if head is None else Path, path)
    own_head = None if head is None else only(Head, head, path=own)
    hidden = functools.partial(only, Algorithm)
    came = train(own, own_head, only(Process, process, path=own), only(Energy, energy), hidden)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), came, expected)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(came))


def test_wrappers_hand_on_what_an_energy_offers():
    from egm.energies import JointGaussianMixture, WithConditionals

    energy = JointGaussianMixture(dim=2)
    wrapped = WithConditionals(energy, 2, part="h")
    state = {"x": jnp.ones((3, 2)), "h": jnp.full((3, 2, 2), 0.5)}
    np.testing.assert_array_equal(wrapped.relaxed(state), energy.relaxed(state))
    assert not hasattr(WithConditionals(potts, 3), "relaxed")
    sites = only(EnergyWithSites, WithConditionals(potts, 3))
    target = heads.DenoiserHead(TOKENS).conditional_target(jnp.ones((3, 2), jnp.int32), energy=sites)
    np.testing.assert_allclose(np.sum(target, axis=-1), 1.0, rtol=1e-5)


def test_any_head_that_offers_a_stand_in_fills_a_product():
    """The energy skip of x sees the own head's probabilities, as it does the denoiser's."""
    own = heads.DenoiserHead(MaskedPath(2))

    class OwnHead:
        path = own.path
        generator, divergence, metrics = own.generator, own.divergence, own.metrics
        conditional_target, energy_evaluations = own.conditional_target, own.energy_evaluations
        stand_in = staticmethod(lambda output, x_t, t: jax.nn.softmax(output, axis=-1))

    energy = egm.energies.JointGaussianMixture(dim=2, sigma=1.0)
    state = {"x": jnp.ones((3, 2)), "h": jnp.full((3, 2), 2)}
    output = {"x": jnp.zeros((3, 2, 2)), "h": jnp.ones((3, 2, 2)).at[..., 1].set(2.0)}
    score = heads.ScoreHead(VE, 0.5, 1.0)
    run = lambda head: heads.ProductHead({"x": score, "h": head}).generator(
        output, state, jnp.full(3, 0.8), energy
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), run(OwnHead()), run(own))
