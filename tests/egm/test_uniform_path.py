"""The uniform path on tokens against enumeration in float64, beyond what the contract tests ask.

Sampled figures are held to 5 of their standard errors at a fixed key (probability 6e-7 a figure).
"""

import contract
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from own_parts import only
from token_problem import uniform_problem

import egm
from egm import algorithms, bootstrap, divergences, heads, horizons, iteration, networks, symmetry
from egm.paths import MaskedPath, UniformPath
from egm.processes import JumpProcess
from egm.typing import LocalPath, MaskingPath, TokenPath

KEY = jax.random.key(31)
PROBLEM = uniform_problem()
PATH, STATES = PROBLEM.path, PROBLEM.states
CONDITIONALS = egm.energies.WithConditionals(PROBLEM, 3)


def times(t, like=STATES):
    return jnp.full(len(like), t)


def pairs(x_t, x_r):
    """x_r [M, L] with each of x_t [N, L]: [M, N, L]."""
    return jnp.broadcast_to(jnp.asarray(x_r)[:, None], (len(x_r), *x_t.shape))


def test_protocols():
    for path in (PATH, MaskedPath(3)):
        assert isinstance(path, TokenPath) and isinstance(path, LocalPath)
    assert isinstance(MaskedPath(3), MaskingPath) and not isinstance(PATH, MaskingPath)
    with pytest.raises(ValueError, match="x must hold tokens 0..2, got 3"):
        PATH.batch_shape(jnp.array([0, 3]))
    with pytest.raises(ValueError, match="order must be None on a path without masks"):
        heads.DenoiserHead(PATH, egm.processes.orders.random_sites(3))
    with pytest.raises(ValueError, match="x_t must be given on a path without masks"):
        heads.DenoiserHead(PATH).conditional_target(jnp.asarray(STATES), energy=CONDITIONALS)
    with pytest.raises(TypeError, match="path must be a MaskedPath, got UniformPath"):
        egm.processes.AnyOrderProcess(PATH)


def derivative(path, states, x_r, r, rates):
    """(d/dt p_{t|r}(. | x_r) by central differences, what flows into each state by the rates), t = .3."""
    t, h = 0.3, 1e-5
    wide = pairs(states, x_r[None])
    p = lambda s: np.exp(np.asarray(path.log_noising(states, s, wide, r))[0])
    index = {tuple(x): i for i, x in enumerate(states)}
    flow = np.zeros(len(states))
    for i, x in enumerate(states):
        for site, v in np.ndindex(rates.shape[1:]):
            to = tuple(np.where(np.arange(x.size) == site, v, x))
            if to != tuple(x):
                flow[i] -= p(t)[i] * rates[i, site, v]
                flow[index[to]] += p(t)[i] * rates[i, site, v]
    return (p(t + h) - p(t - h)) / (2 * h), flow


@pytest.mark.parametrize("r", [1.0, 0.8])
@pytest.mark.parametrize("make", [UniformPath, MaskedPath])
def test_conditional_rates_move_the_conditional_path(x64, make, r):
    """The master equation, against finite differences of the kernel: its error is h^2 = 1e-10 in size."""
    path = make(3, power=1.4)
    nodes = contract.token_case(path, 2, masks=make is MaskedPath).space.nodes
    x_r = nodes[3]
    wide = jnp.broadcast_to(x_r, nodes.shape)
    t = times(0.3, nodes)
    rates = np.asarray(path.rates(path.conditional_generator(nodes, t, wide, times(r, nodes)), nodes, t))
    slope, flow = derivative(path, nodes, x_r, r, rates)
    assert np.abs(slope).max() > 0.1
    np.testing.assert_allclose(flow, slope, atol=1e-7)


def test_marginal_rates_are_ratios_of_the_marginal(x64):
    t = times(0.4)
    rates = np.asarray(PATH.rates(PROBLEM.denoiser(STATES, t), STATES, t))
    values = np.stack(
        [
            np.stack([PROBLEM.phi(jnp.asarray(STATES).at[:, i].set(v), t) for v in range(3)], axis=-1)
            for i in range(3)
        ],
        axis=1,
    )
    expected = np.exp(values - np.asarray(PROBLEM.phi(STATES, t))[:, None, None]) / (3 * 0.4)
    expected = np.where(np.arange(3) == STATES[..., None], 0.0, expected)
    np.testing.assert_allclose(rates, expected, rtol=1e-10)
    assert np.all(np.isinf(np.asarray(PATH.rates(PROBLEM.denoiser(STATES, t), STATES, 0.0)).max(axis=(1, 2))))


@pytest.mark.parametrize("t, r", [(0.0, 0.3), (0.3, 0.7), (0.7, 1.0)])
def test_the_forward_kernel_is_normalised_and_drawn(x64, t, r):
    """exp(log backward - log_jump_ratio) is the law of `jump`, for any denoiser: so E w = Z exactly."""
    denoiser = PROBLEM.random_denoiser(STATES, times(t))
    n = len(STATES)
    x_t = jnp.repeat(jnp.asarray(STATES), n, axis=0)
    x_r = jnp.tile(jnp.asarray(STATES), (n, 1))
    t_, r_ = times(t, x_t), times(r, x_t)
    ratio = PATH.log_jump_ratio(x_t, x_r, jnp.repeat(denoiser, n, axis=0), t_, r_)
    forward = np.exp(np.asarray(PATH.log_noising(x_t, t_, x_r, r_) - ratio)).reshape(n, n)
    np.testing.assert_allclose(forward.sum(axis=1), 1.0, rtol=1e-12)
    indicators = contract.token_case(PATH, 3, masks=False).features
    keys = jax.random.split(KEY, 20_000)
    for i in (0, 14):
        jump = lambda k, i=i: PATH.jump(
            k, jnp.asarray(STATES)[i], denoiser[i], jnp.asarray(t), jnp.asarray(r)
        )
        drawn = jax.vmap(jump)(keys)
        assert contract.max_z(drawn, indicators, forward[i], forward[i]) < 5


@pytest.mark.parametrize("num_steps", [1, 6])
def test_log_z_is_unbiased_with_an_untrained_network(num_steps):
    network = networks.MLPDenoiser(3, width=16, depth=1, visibility=PATH.kappa)
    params = network.init(KEY, jnp.asarray(STATES), times(0.5))
    params = jax.tree.map(lambda a: a + 0.3 * jax.random.normal(KEY, a.shape), params)
    algorithm = algorithms.Weighted(PATH, heads.DenoiserHead(PATH), network.apply)

    @jax.jit
    def run():
        process = JumpProcess(PATH)
        x_0 = egm.draw_prior(KEY, PATH, (8000, 3))
        generator = algorithm.generator(params, PROBLEM)
        trajectory = egm.simulate(KEY, process, generator, x_0, process.times(num_steps))
        return egm.path_log_weights(PROBLEM, PATH, trajectory)

    w = np.exp(np.asarray(run(), np.float64) - PROBLEM.log_z)
    assert w.std() > 0.3
    assert abs(w.mean() - 1) < 5 * w.std() / np.sqrt(w.size)


@pytest.mark.parametrize("t", [0.0, 0.6])
@pytest.mark.parametrize("energy", [CONDITIONALS, None], ids=["conditionals", "plain"])
def test_conditional_targets_average_to_the_denoiser(x64, t, energy):
    head, n = heads.DenoiserHead(PATH), len(STATES)
    x_t, x_1 = jnp.tile(jnp.asarray(STATES), (n, 1)), jnp.repeat(jnp.asarray(STATES), n, axis=0)
    target = head.conditional_target(x_1, x_t, times(t, x_t), energy).reshape(n, n, 3, 3)
    weights = jax.nn.softmax(PROBLEM._terms(jnp.asarray(STATES), times(t)), axis=-1)
    mean = jnp.einsum("ts,stlv->tlv", weights, target)
    np.testing.assert_allclose(mean, PROBLEM.denoiser(STATES, times(t)), atol=1e-6)
    spread = jnp.einsum("ts,stlv->", weights, (target - mean[None]) ** 2)
    if energy is None:
        better = head.conditional_target(x_1, x_t, times(t, x_t), CONDITIONALS).reshape(n, n, 3, 3)
        assert jnp.einsum("ts,stlv->", weights, (better - mean[None]) ** 2) < 0.9 * spread


def test_the_head_adds_what_a_token_says_of_itself(x64):
    """From logits of a site given the others alone: in a field alone they depend on neither x nor t."""
    head, field = heads.DenoiserHead(PATH), jnp.array([0.3, -0.5, 0.8])
    x, t = jnp.asarray(STATES), jnp.linspace(0.0, 1.0, len(STATES))
    logits = jnp.broadcast_to(field, (*x.shape, 3))
    prior = np.exp(field) / np.exp(field).sum()
    kernel = np.asarray(t)[:, None, None] * np.eye(3)[STATES] + (1 - np.asarray(t))[:, None, None] / 3
    expected = kernel * prior / (kernel * prior).sum(-1, keepdims=True)
    np.testing.assert_allclose(head.generator(logits, x, t), expected, rtol=1e-9)
    # At t = 1 there is nothing to learn, and at t = 0 nothing that counts.
    loss = np.asarray(head.divergence(jnp.full(logits.shape, 1 / 3), logits, x, t))
    assert loss[0] == loss[-1] == 0 and np.all(loss[1:-1] > 0)


@pytest.mark.parametrize("kappa, field", [(0.003, 0.0), (0.997, 1.0)])
def test_weights_make_the_loss_that_of_the_rates(x64, kappa, field):
    """A small error costs in the head's loss what it costs in the Poisson KL of the rates, at either end.

    On one site, to order kappa or 1 - kappa: the mean over x_t from its marginal of a law of three tokens,
    near t = 0 an even one (else a tenth is missing).
    """
    head, x, t = heads.DenoiserHead(PATH), jnp.array([[0], [1], [2]]), jnp.full(3, kappa)
    logits = jnp.broadcast_to(field * jnp.array([0.2, -0.1, 0.3]), (3, 1, 3))
    other = logits + 1e-3 * jnp.array([1.0, 0.3, -0.9])[None, None]
    exact, wrong = head.generator(logits, x, t), head.generator(other, x, t)
    marginal = kappa * jax.nn.softmax(logits[0, 0]) + (1 - kappa) / 3
    loss = head.divergence(exact, other, x, t) - head.divergence(exact, logits, x, t)
    a, b = PATH.rates(exact, x, t), PATH.rates(wrong, x, t)
    poisson = jnp.sum(jnp.where(a > 0, a * jnp.log(a / jnp.where(a > 0, b, 1.0)) - a + b, 0.0), axis=(1, 2))
    np.testing.assert_allclose(marginal @ loss, marginal @ poisson, rtol=0.03)


def test_signed_targets_have_their_minimum_at_the_denoiser(x64):
    """At r < 1 targets leave the simplex; the gradient's mean is 0 where the output is the exact denoiser."""
    head, t, r, n = heads.DenoiserHead(PATH), 0.3, 0.6, len(STATES)
    x_t = jnp.asarray(STATES)
    wide = pairs(x_t, STATES)
    log_w = PATH.log_noising(x_t, t, wide, r) + PROBLEM.phi(x_t, times(r))[:, None] * jnp.ones((n, n))
    weights = jax.nn.softmax(log_w, axis=0)
    targets = PATH.conditional_generator(x_t, t, wide, r)
    assert targets.min() < -0.1
    np.testing.assert_allclose(targets.sum(-1), 1.0, rtol=1e-9)
    exact = jnp.log(PROBLEM.denoiser(x_t, times(t))) - PATH.log_likelihood(x_t, t)

    def loss(output):
        each = jax.vmap(lambda target: head.divergence(target, output, x_t, times(t)))(targets)
        return jnp.sum(weights * each)

    np.testing.assert_allclose(jax.grad(loss)(exact), 0.0, atol=1e-9)
    assert np.abs(jax.grad(loss)(exact + 0.1 * jnp.arange(3.0)[None, None])).max() > 1e-3


@pytest.mark.parametrize("r", [1.0, 0.6])
def test_estimates_agree_with_enumeration(x64, r):
    """Standard errors from the ESS; a signed target's are larger by its largest size."""
    t, num_samples = times(0.3), 40_000
    phi = bootstrap.terminal(PROBLEM) if r == 1 else PROBLEM.phi
    estimate = jax.jit(lambda: egm.estimate(KEY, PATH, phi, STATES, t, r, num_samples=num_samples))()
    assert np.all(estimate.valid)
    effective = num_samples * np.asarray(estimate.ess)
    error = np.sqrt(1 / effective - 1 / num_samples)
    assert np.all(np.abs(estimate.log_marginal - PROBLEM.phi(STATES, t)) < 5 * error)
    wide = pairs(jnp.asarray(STATES), STATES)
    largest = np.abs(PATH.conditional_generator(STATES, t, wide, times(r))).max(axis=(0, 2, 3))
    off = np.abs(estimate.generator - PROBLEM.denoiser(STATES, t)).max(axis=(1, 2))
    assert np.all(off < 5 * largest / np.sqrt(effective))


def test_local_targets(x64):
    """Exact for sums over sites; else the error falls as the square of the step (16 for a quarter of it)."""
    t = times(0.5)
    field = jnp.asarray(np.random.default_rng(1).normal(size=(3, 3)))
    one_hot = lambda x: jax.nn.one_hot(x, 3, dtype=float)
    additive = lambda x, r: jnp.einsum("nlv,lv->n", one_hot(x), field) * (1 + r)
    a = np.float64(0.5 / 0.6)
    each = (
        a * jnp.exp(1.6 * field)[jnp.arange(3)[None], STATES] + (1 - a) * jnp.exp(1.6 * field).mean(-1)[None]
    )
    came = bootstrap.local_target(KEY, additive, PATH, STATES, t, num_steps=10)
    np.testing.assert_allclose(came, jnp.sum(jnp.log(each), axis=-1), rtol=1e-10)
    g = bootstrap.relative_boundary(PROBLEM, PROBLEM.phi, PATH)
    off = [
        np.abs(bootstrap.local_target(KEY, g, PATH, STATES, t, steps) - PROBLEM.phi(STATES, t)).max()
        for steps in (20, 80)
    ]
    assert off[0] < 0.02 and 10 < off[0] / off[1] < 25
    last = bootstrap.local_target(KEY, g, PATH, STATES, times(1.0), 20)
    np.testing.assert_allclose(last, -PROBLEM(STATES), rtol=1e-12)
    assert bootstrap.num_local_states(PATH, (3,)) == 7


def test_the_generator_of_a_phi_is_a_denoiser(x64):
    """Of any phi; at t = 0, where phi is flat, that of kappa = .001, which is .001 off at most."""
    wild = lambda x, t: jnp.sin(7.0 * jnp.sum(x * jnp.arange(1, 4)[None], axis=-1))
    p = PATH.local_generator(wild, STATES, times(0.2))
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-12)
    assert p.min() >= 0
    start = PATH.local_generator(PROBLEM.phi, STATES, times(0.0))
    np.testing.assert_allclose(start, PROBLEM.denoiser(STATES, times(0.0)), atol=3e-3)


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_entropy_is_lost_no_faster_than_the_bound(x64, scale):
    """H(x_t) - H(x_r) of a random target by enumeration; scale 30 is all but certain, where it is equal."""
    grid = jnp.linspace(0.0, 1.0, 12)

    def entropy(t):
        energy = -scale * jnp.asarray(PROBLEM.table)
        n = len(STATES)
        log_p = PATH.log_noising(STATES, t, pairs(jnp.asarray(STATES), STATES), 1.0)
        marginal = jax.nn.logsumexp(log_p + (jax.nn.log_softmax(energy))[:, None] * jnp.ones((n, n)), axis=0)
        return -jnp.sum(jnp.exp(marginal) * jnp.maximum(marginal, -700))

    lost = -np.diff([entropy(t) for t in np.asarray(grid[:-1])])
    bound = -np.diff(np.asarray(PATH.entropy_left(3, grid[:-1])))
    assert np.all(lost <= bound + 1e-9)
    if scale == 30:
        np.testing.assert_allclose(lost, bound, rtol=1e-2)
    r = horizons.Nats(1.0).look_ahead(PATH, jnp.asarray(STATES), times(0.3))
    stage = PATH.entropy_left(3, times(0.3)) - PATH.entropy_left(3, r)
    np.testing.assert_allclose(stage, 1.0, atol=1e-4)


@pytest.mark.parametrize("make", [networks.MLPDenoiser, networks.TorusDenoiser])
def test_networks_see_the_time_and_no_noise(make):
    """At t = 0 tokens are all noise and change nothing; after it they count. Flips are as without a time."""
    path = UniformPath(2)
    sizes = {"side": 2} if make is networks.TorusDenoiser else {"vocab_size": 2}
    network = make(**sizes, flip=True, visibility=path.kappa)
    x = jax.random.bernoulli(KEY, shape=(6, 4)).astype(jnp.int32)
    params = jax.jit(network.init)(KEY, x, jnp.zeros(6))
    params = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(KEY, a.shape), params)
    apply = jax.jit(network.apply)
    out = {t: apply(params, x, jnp.full(6, t)) for t in (0.0, 0.3, 0.8)}
    np.testing.assert_allclose(out[0.0], jnp.broadcast_to(out[0.0][:1], out[0.0].shape), atol=1e-6)
    assert np.abs(out[0.3] - out[0.8]).max() > 1e-3 and np.ptp(out[0.8], axis=0).max() > 1e-3
    flipped = apply(params, symmetry.flip(path, x), jnp.full(6, 0.8))
    np.testing.assert_allclose(flipped, out[0.8][..., ::-1], atol=1e-5)
    with pytest.raises(TypeError, match="t must be a floating point time"):
        network.apply(params, x)


def test_an_own_path_of_tokens():
    """Process and head ask for what `TokenPath` names and no more: the same numbers."""
    own, t = only(TokenPath, PATH), times(0.4)
    x = jnp.asarray(STATES)
    logits = jnp.sin(jnp.arange(x.size * 3.0)).reshape(*x.shape, 3)

    def run(path):
        head, process = heads.DenoiserHead(path), JumpProcess(path)
        generator = lambda x, t: head.generator(logits, x, t)
        trajectory = egm.simulate(KEY, process, generator, x, process.times(3))
        target = head.conditional_target(x, x[::-1], t, CONDITIONALS)
        return trajectory[:3], target, head.divergence(target, logits, x, t)

    jax.tree.map(np.testing.assert_array_equal, run(own), run(PATH))


def test_a_mixed_state_of_vectors_and_uniform_tokens():
    """log Z is unbiased for a wrong generator, whose score of x sees what the head makes of the tokens."""
    energy = egm.energies.JointGaussianMixture(dim=2, sigma=1.0)
    vector, tokens = egm.paths.VarianceExplodingPath(0.3, 3.0), UniformPath(2)
    process = egm.processes.ProductProcess(
        {"x": egm.processes.DiffusionProcess(vector), "h": JumpProcess(tokens)}
    )
    head = heads.ProductHead({"x": heads.ScoreHead(vector, 0.5, 1.0), "h": heads.DenoiserHead(tokens)})

    def output(s, t):
        logits = jnp.stack([jnp.zeros_like(s["x"]), 0.7 * s["x"]], axis=-1)
        return {"x": 0.1 * jnp.ones((*s["x"].shape, 2)), "h": logits}

    @jax.jit
    def run():
        x_0 = egm.draw_prior(KEY, process.path, {"x": (8000, 2), "h": (8000, 2)})
        generator = lambda s, t: head.generator(output(s, t), s, t, energy)
        trajectory = egm.simulate(KEY, process, generator, x_0, process.times(20))
        return egm.path_log_weights(energy, process.path, trajectory)

    w = np.exp(np.asarray(run(), np.float64) - energy.log_partition())
    assert abs(w.mean() - 1) < 5 * w.std() / np.sqrt(w.size) and w.std() > 0.05
    state = {"x": jnp.ones((3, 2)), "h": jnp.array([[0, 1], [1, 1], [0, 0]])}
    t = jnp.array([0.3, 0.3, 1.0])
    came = head.generator(output(state, t), state, t, energy)
    np.testing.assert_allclose(came["h"].sum(-1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(came["h"][2], jax.nn.one_hot(state["h"][2], 2))


def test_tempered_chains_take_the_path():
    """Chains know V and the space by it: the states are those of the masked path's, number for number."""
    run = lambda path: egm.evidence.tempered_chains(KEY, PROBLEM, path, (3,), num_chains=64, num_moves=2).x
    np.testing.assert_array_equal(run(PATH), run(MaskedPath(3)))


def make_algorithm(name):
    path = UniformPath(2)
    denoiser = networks.MLPDenoiser(2, width=32, depth=2, visibility=path.kappa)
    marginal = networks.MLPLogMarginal(2, width=32, depth=2, visibility=path.kappa)
    head, x = heads.DenoiserHead(path), jnp.zeros((1, 4), jnp.int32)
    start = lambda network: jax.jit(network.init)(KEY, x, jnp.zeros(1))
    if name == "weighted":
        return algorithms.Weighted(path, head, denoiser.apply), start(denoiser)
    if name == "naive":
        return algorithms.Naive(path, head, denoiser.apply, 64), start(denoiser)
    if name == "local":
        return algorithms.LocalBootstrap(path, marginal.apply, num_steps=20), start(marginal)
    both = {"generator": start(denoiser), "log_marginal": start(marginal)}
    return algorithms.Bootstrap(path, head, denoiser.apply, marginal.apply, 64), both


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("naive", "bootstrap", "local")]


@pytest.mark.parametrize("name", ["weighted", *SLOW])
def test_every_algorithm_learns_a_sampler(name):
    """Ising 2x2, beta .4 with a field, log Z by enumeration, its standard error from the ESS."""
    energy = egm.energies.Ising(2, 0.4, field=0.4)
    algorithm, params = make_algorithm(name)
    process = JumpProcess(algorithm.path)
    config = iteration.IterationConfig(
        num_simulated=512,
        buffer_size=2048,
        num_gradient_steps=60,
        batch_size=128,
        num_times=24,
        ema_decay=0.95,
    )
    init, step = iteration.make_iteration(
        algorithm, process, energy, optax.adam(5e-3), config, event_shape=(4,)
    )
    state, step = init(params), jax.jit(step)
    ess = []
    for i in range(14):
        state, report = step(jax.random.fold_in(KEY, i), state)
        ess.append(float(report["ess"]))
    assert ess[0] < 0.5 and np.mean(ess[-4:]) > 0.8, ess
    error = np.sqrt((1 / ess[-1] - 1) / 512)
    assert abs(report["log_z"] - energy.log_partition()) < 5 * error


def test_denoiser_kl_of_a_measure_with_negative_parts():
    target, logits = jnp.array([[[1.4, -0.4]]]), jnp.array([[[0.3, -0.2]]])
    came = divergences.denoiser_kl(target, logits)
    expected = -(target * jax.nn.log_softmax(logits, axis=-1)).sum()
    np.testing.assert_allclose(came, expected[None], rtol=1e-6)
