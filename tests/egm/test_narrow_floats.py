"""Networks, states and parameters in bfloat16 and float16: draws, weights and averages are in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import egm
from egm import bootstrap, heads, importance, metrics, paths, processes, training

KEY = jax.random.key(0)
HALVES = [jnp.bfloat16, jnp.float16]


class Denoiser:
    """softmax of fixed logits [V], computed and returned in a narrow dtype, for every site."""

    def __init__(self, logits, dtype):
        self.logits, self.dtype = logits, dtype

    def __call__(self, x, t):
        p = jax.nn.softmax(jnp.asarray(self.logits, self.dtype))
        return jnp.broadcast_to(p, (*x.shape, p.size))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("process", [processes.JumpProcess, processes.AnyOrderProcess])
def test_tokens_are_drawn_with_the_probabilities_that_the_weight_knows(process, dtype):
    """E[w] = Z = V^L for E = 0, and each token's frequency is its normalised probability.

    200,000 tokens of each kind of draw; four standard errors. Before: the first of 16 equal tokens +7%,
    and log Z off by -.029 at L = 16, whose standard error here is 0 for a uniform denoiser.
    """
    sites, n = 16, 4096
    for vocab, logits in ((16, np.zeros(16)), (3, np.array([0.0, 0.3, -1.0]))):
        path = paths.MaskedPath(vocab)
        chain, denoiser = process(path), Denoiser(logits, dtype)
        run = jax.jit(lambda k: egm.simulate(k, chain, denoiser, x_0, chain.times(sites)))  # noqa: B023
        x_0 = path.sample_prior(KEY, (n, sites))
        trajectory = run(KEY)
        log_w = egm.path_log_weights(lambda x: jnp.zeros(x.shape[0]), path, trajectory)
        summary = metrics.summarize(log_w)
        assert abs(summary.log_z - sites * np.log(vocab)) < 4 * summary.log_z_error + 1e-4
        p = np.asarray(denoiser(jnp.zeros((1, 1)), 0.0), np.float64)[0, 0]
        p /= p.sum()
        found = np.bincount(np.asarray(trajectory.x_1).ravel(), minlength=vocab) / (n * sites)
        np.testing.assert_array_less(np.abs(found - p), 4 * np.sqrt(p * (1 - p) / (n * sites)))


def test_log_ratio_of_a_pair_is_that_of_its_step():
    path = paths.MaskedPath(5)
    x_t = jnp.full((64, 6), 5)
    denoiser = Denoiser(np.arange(5.0), jnp.bfloat16)
    for process in (processes.JumpProcess(path), processes.AnyOrderProcess(path)):
        x_r, ratio = process.step(KEY, x_t, denoiser, 0.2, 0.6)
        np.testing.assert_allclose(process.log_ratio(x_t, x_r, denoiser, 0.2, 0.6), ratio, rtol=1e-6)
        assert ratio.dtype == jnp.float32


@pytest.mark.parametrize("scale", [2.0, 1e-3])
def test_unnormalised_probabilities_are_normalised(scale):
    """A denoiser whose rows sum to anything draws as its shares, and the weight is of those."""
    path = paths.MaskedPath(4)
    process = processes.AnyOrderProcess(path)
    x_0 = path.sample_prior(KEY, (8, 4))
    fn = lambda x, t: jnp.full((*x.shape, 4), 0.25 * scale)
    trajectory = egm.simulate(KEY, process, fn, x_0, process.times(4))
    np.testing.assert_allclose(trajectory.log_ratio, 4 * np.log(4), rtol=1e-6)


@pytest.mark.parametrize("dtype", HALVES)
def test_head_computes_in_float32(dtype):
    path = paths.MaskedPath(16)
    head = heads.DenoiserHead(path)
    x, logits = jnp.full((2, 3), 16), jnp.linspace(0, 3, 96, dtype=dtype).reshape(2, 3, 16)
    p = head.generator(logits, x)
    assert p.dtype == jnp.float32
    np.testing.assert_allclose(jnp.sum(p, -1), 1.0, rtol=1e-6)
    wide = head.divergence(p, logits.astype(jnp.float32), x)
    np.testing.assert_array_equal(head.divergence(p, logits, x), wide)


@pytest.mark.parametrize("dtype", HALVES)
def test_gaussian_paths_draw_in_float32(dtype):
    """Noise, densities and moments of narrow states are those of the same states in float32."""
    path = paths.VarianceExplodingPath(0.1, 3.0)
    x = jnp.linspace(-1, 1, 12).reshape(4, 3).astype(dtype)
    wide = x.astype(jnp.float32)
    weights = jnp.full(4, 0.25)

    def everything(x):
        t, r = 0.4, 0.8
        velocity = lambda x, t: (-x).astype(dtype)
        flow, diffusion = processes.FlowProcess(path), processes.DiffusionProcess(path)
        times = path.times(3)
        return (
            path.sample(KEY, x, t),
            path.noise(KEY, x, r, t),
            path.log_noising(x, t, x[::-1], r),
            path.propose(KEY, x, t, r, 4),
            path.log_normalizer(x, t, r),
            path.conditional_generator(x, t, x, r),
            path.conditional_score(x, t, x, r),
            path.prior_log_density(x),
            path.moments(x, weights),
            path.reference_energy(x, path.moments(x, weights)),
            egm.simulate(KEY, flow, velocity, x, times)[1:3],
            egm.simulate(KEY, diffusion, velocity, x, times)[1:3],
            egm.estimate(KEY, path, lambda x, r: -0.5 * jnp.sum(x**2, -1), x, t, r, num_samples=8),
        )

    for a, b in zip(jax.tree.leaves(everything(x)), jax.tree.leaves(everything(wide)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", HALVES)
def test_energies_in_a_narrow_dtype_become_float32_sums(dtype):
    """A user's energy may be computed in half precision; what is made of it is not."""
    path = paths.MaskedPath(3)
    energy = lambda x: jnp.sum(x, axis=-1).astype(dtype)
    x_t = jnp.full((2, 4), 3)
    out = egm.estimate(KEY, path, bootstrap.terminal(energy), x_t, 0.2, 1.0, num_samples=70_000)
    exact = 4 * np.log(np.sum(np.exp(-np.arange(3.0))) * 0.8)
    assert out.log_marginal.dtype == jnp.float32
    np.testing.assert_allclose(out.log_marginal, exact, atol=0.02)  # a relative error of .3% at K = 70,000
    mixture = egm.energies.GaussianMixture()
    x = mixture.sample(KEY, 5).astype(dtype)
    np.testing.assert_array_equal(mixture(x), mixture(x.astype(jnp.float32)))


@pytest.mark.parametrize("dtype", HALVES)
def test_weights_of_many_samples(dtype):
    log_w = jnp.zeros(66_000, dtype)
    weights, log_mean, ess = importance.snis(log_w)
    assert weights.dtype == log_mean.dtype == jnp.float32
    np.testing.assert_allclose(jnp.sum(weights), 1.0, rtol=1e-5)
    np.testing.assert_allclose(log_mean, 0.0, atol=1e-5)
    np.testing.assert_allclose(ess, 1.0, rtol=1e-5)
    record = importance.running_chunk(log_w[:, None], jnp.ones((66_000, 1), dtype))
    mean, log_mean, ess = importance.running_finish(record, 66_000)
    np.testing.assert_allclose([mean[0], log_mean[0], ess[0]], [1, 0, 1], atol=1e-5)
    summary = metrics.summarize(jnp.full(66_000, -3.0, dtype))
    np.testing.assert_allclose([summary.log_z, summary.elbo], -3.0, rtol=1e-5)


def train(params, gradient, steps=1, ema_decay=0.999, optimizer=None):
    """The state and metrics after steps of a constant gradient."""
    optimizer = optimizer or optax.sgd(0.0)
    loss = lambda p, target, key, batch: (jnp.sum(p["w"] * jnp.asarray(gradient, p["w"].dtype)), {})
    step = training.make_train_step(loss, optimizer, ema_decay=ema_decay)
    state = training.init_train_state(params, optimizer)._replace(step=jnp.asarray(10**6))
    body = lambda s, _: step(s, KEY, None)
    return jax.jit(lambda s: jax.lax.scan(body, s, None, length=steps))(state)


@pytest.mark.parametrize("dtype", [*HALVES, jnp.float32])
@pytest.mark.parametrize("decay", [0.9, 0.999, 0.9999])
def test_the_average_of_a_constant_is_that_constant(dtype, decay):
    """In bfloat16 -.3 became -.25 at .999; in float32 share * new + (1 - share) * old drifts too."""
    state, _ = train({"w": jnp.full(3, -0.3, dtype)}, 0.0, 3000, decay)
    np.testing.assert_array_equal(state.ema_params["w"], state.params["w"].astype(jnp.float32))
    assert training.average(state)["w"].dtype == dtype


@pytest.mark.parametrize("dtype", HALVES)
def test_the_average_follows_narrow_parameters(dtype):
    """From 0 to 1 in 2,000 steps of decay .999: 1 - .999^2000."""
    state, _ = train({"w": jnp.zeros(2, dtype)}, 0.0)
    state = state._replace(params={"w": jnp.ones(2, dtype)})
    step = training.make_train_step(
        lambda p, *_: (0.0 * jnp.sum(p["w"]), {}), optax.sgd(0.0), ema_decay=0.999
    )
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: step(s, KEY, None), s, None, length=2000)[0])
    np.testing.assert_allclose(run(state).ema_params["w"], 1 - 0.999**2000, rtol=1e-4)


@pytest.mark.parametrize("dtype", [*HALVES, jnp.float32])
def test_gradient_norms_do_not_overflow(dtype):
    """1,024 gradients of 100: 3,200, where float16 squares sum to infinity and every step was skipped."""
    _, metrics = train({"w": jnp.zeros(1024, dtype)}, 100.0)
    np.testing.assert_allclose(metrics["grad_norm"], 3200.0)
    assert metrics["skipped"] == 0


@pytest.mark.parametrize("dtype", HALVES)
def test_the_optimisers_averages_are_in_float32(dtype):
    """Adam's second moment after 4,000 gradients of .1: .01 (1 - .999^4000); in bfloat16 it stops early."""
    state, _ = train({"w": jnp.zeros(2, dtype)}, 0.1, 4000, optimizer=optax.adam(1e-3))
    nu = state.opt_state[0].nu["w"]
    assert nu.dtype == jnp.float32
    gradient = float(jnp.asarray(0.1, dtype))
    np.testing.assert_allclose(nu, gradient**2 * (1 - 0.999**4000), rtol=1e-3)


def test_a_state_made_by_hand_keeps_its_dtypes():
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    optimizer = optax.adam(1e-3)
    state = training.TrainState(params, params, optimizer.init(params), jnp.zeros((), jnp.int32))
    step = training.make_train_step(lambda p, *_: (jnp.sum(p["w"]), {}), optimizer)
    after, _ = step(state, KEY, None)
    assert jax.tree.map(lambda a: a.dtype, after) == jax.tree.map(lambda a: a.dtype, state)
