"""Bad input: every error names the argument, what came and what was expected.

Gaussian and product paths and the Ising model test their own; here are the masked path, the kernel
and what is built on it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import token_problem

import egm
from egm import (
    algorithms,
    bootstrap,
    buffer,
    checks,
    divergences,
    heads,
    importance,
    iteration,
    metrics,
    scales,
    training,
)
from egm.energies import Ising
from egm.paths import CenteredPath, LinearPath, MaskedPath, ProductPath, VarianceExplodingPath
from egm.processes import AnyOrderProcess, JumpProcess
from egm.typing import Moments

PROBLEM = token_problem()
PATH = PROBLEM.path  # V = 3, mask 3
KEY = jax.random.key(0)
X = jnp.array([[3, 1, 3], [0, 3, 2]])
UNIFORM = lambda x, t: jnp.full((*x.shape, 3), 1 / 3)
ANY, JUMP = AnyOrderProcess(PATH), JumpProcess(PATH)


def raises(call, error, message):
    return pytest.param(call, error, message, id=message)


def check(call, error, message):
    with pytest.raises(error, match=message):
        call()


def estimate(x=X, t=0.3, r=0.8, key=KEY, log_density=PROBLEM.phi, num_samples=8, **options):
    return egm.estimate(key, PATH, log_density, x, t, r, num_samples=num_samples, **options)


@pytest.mark.parametrize(
    "call, error, message",
    [
        raises(lambda: estimate(num_samples=0), ValueError, "num_samples must be at least 1, got 0"),
        raises(lambda: estimate(num_samples=8.0), TypeError, "num_samples must be an int, got 8.0"),
        raises(lambda: estimate(num_samples=True), TypeError, "num_samples must be an int, got True"),
        raises(lambda: estimate(chunk_size=0), ValueError, "chunk_size must be at least 1, got 0"),
        raises(lambda: estimate(chunk_size=-128), ValueError, "chunk_size must be at least 1, got -128"),
        raises(lambda: estimate(chunk_size=100),
               ValueError, "chunk_size must be a multiple of 128, got 100"),
        raises(lambda: estimate(t=0.8), ValueError, "t must be below r, got t = 0.8.* and r = 0.8"),
        raises(lambda: estimate(t=np.array([0.1, 0.9])),
               ValueError, "t must be below r, got t = 0.9 and r = 0.8"),
        raises(lambda: estimate(t=-0.1), ValueError, r"t must lie in \[0, 1\], got -0.1"),
        raises(lambda: estimate(t=np.nan), ValueError, r"t must lie in \[0, 1\], got nan"),
        raises(lambda: estimate(r=1.5), ValueError, r"r must lie in \[0, 1\], got 1.5"),
        raises(lambda: estimate(t=jnp.full(3, 0.1)),
               ValueError, r"t must be a scalar or have shape \(2,\), got shape \(3,\)"),
        raises(lambda: estimate(r=jnp.ones((2, 1))),
               ValueError, r"r must be a scalar or have shape \(2,\), got shape \(2, 1\)"),
        raises(lambda: estimate(t=True), TypeError, "t must be a floating point time, got dtype bool"),
        raises(lambda: estimate(X + 1), ValueError, r"x_t must hold tokens 0..2 or the mask 3, got 4"),
        raises(lambda: estimate(X - 1), ValueError, r"x_t must hold tokens 0..2 or the mask 3, got -1"),
        raises(lambda: estimate(X * 1.0), TypeError, "x_t must hold integer tokens, got float32"),
        raises(lambda: estimate([[3, 1]]), TypeError, "x_t must hold integer tokens, got list"),
        raises(lambda: estimate(X[0]), ValueError, r"x_t must have one batch axis, got batch shape \(\)"),
        raises(lambda: estimate(X[None]),
               ValueError, r"x_t must have one batch axis, got batch shape \(1, 2\)"),
        raises(lambda: estimate(key=jax.random.PRNGKey(0)),
               TypeError, "key must be a typed PRNG key, as jax.random.key.* makes, got dtype uint32"),
        raises(lambda: estimate(key=0), TypeError, "key must be a typed PRNG key, .* got 0"),
        raises(lambda: estimate(key=jax.random.split(KEY, 3)),
               ValueError, r"key must be one key or have shape \(2,\), got shape \(3,\)"),
        raises(lambda: estimate(log_density=lambda x, r: 0.0 * x),
               ValueError, r"log_density must return shape \(16,\), got \(16, 3\)"),
        raises(lambda: estimate(log_density=lambda x, r: x[:, 0]),
               TypeError, "log_density must return a floating dtype, got int32"),
        raises(lambda: estimate(log_density=lambda x, r: 0.0),
               TypeError, r"log_density must return an array of shape \(16,\), got float"),
        raises(lambda: estimate(r=1.0, log_density=bootstrap.terminal(lambda x: jnp.zeros((16, 1)))),
               ValueError, r"energy must return shape \(16,\), got \(16, 1\)"),
        raises(lambda: estimate(r=1.0, log_density=bootstrap.terminal(lambda x: jnp.sum(x, -1))),
               TypeError, "energy must return a floating dtype, got int32"),
        raises(lambda: estimate(log_density=bootstrap.boundary(PROBLEM, lambda x, t: jnp.zeros(3), PATH)),
               ValueError, r"g must return shape \(16,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_estimate(call, error, message):
    check(call, error, message)


def test_estimate_checks_static_facts_under_jit():
    """Shapes, sizes and dtypes raise while tracing; values are no error there."""
    check(lambda: jax.jit(lambda x: estimate(x * 1.0))(X), TypeError, "x_t must hold integer tokens")
    check(lambda: jax.jit(lambda x: estimate(x[0]))(X), ValueError, "x_t must have one batch axis")
    bad = lambda t: estimate(t=jnp.stack([t, t, t]))
    check(lambda: jax.jit(bad)(0.5), ValueError, r"t must be a scalar or have shape \(2,\)")
    assert not np.any(jax.jit(lambda t: estimate(t=t).valid)(0.9))


@pytest.mark.parametrize(
    "call, error, message",
    [
        raises(lambda: MaskedPath(1), ValueError, "vocab_size must be at least 2, got 1"),
        raises(lambda: MaskedPath(2.0), TypeError, "vocab_size must be an int, got 2.0"),
        raises(lambda: MaskedPath(2, 0.0), ValueError, "power must be finite and positive, got 0.0"),
        raises(lambda: MaskedPath(2, np.nan), ValueError, "power must be finite and positive, got nan"),
        raises(lambda: VarianceExplodingPath(2.0, 1.0),
               ValueError, "sigma_min must be below sigma_max, got sigma_min = 2.0 and sigma_max = 1.0"),
        raises(lambda: Ising(1, 0.4), ValueError, "side must be at least 2, got 1"),
        raises(lambda: PATH.times(0), ValueError, "num_steps must be at least 1, got 0"),
        raises(lambda: PATH.batch_shape(jnp.zeros((2, 0), jnp.int32)),
               ValueError, r"x must have shape \[..., L\] with L >= 1, got \(2, 0\)"),
        raises(lambda: PATH.sample(KEY, X + 1, 0.5),
               ValueError, "x_1 must hold tokens 0..2 or the mask 3, got 4"),
        raises(lambda: PATH.log_noising(X, 0.2, X[:, :2], 0.5),
               ValueError, "x_t has trailing size 3, x_r has 2"),
        raises(lambda: PATH.conditional_generator(X, 0.2, X[:, :2], 0.5),
               ValueError, "x_t has trailing size 3, x_r has 2"),
        raises(lambda: PATH.sample(KEY, X, 1.2), ValueError, r"t must lie in \[0, 1\], got 1.2"),
        raises(lambda: PATH.noise(KEY, X, 0.2, 0.5),
               ValueError, "t must not be above r, got t = 0.5 and r = 0.2"),
        raises(lambda: PATH.noise(jax.random.PRNGKey(0), X, 0.5, 0.2),
               TypeError, "key must be a typed PRNG key"),
        raises(lambda: PATH.propose(jax.random.PRNGKey(0), X, 0.2, 0.5, 2),
               TypeError, "key must be a typed PRNG key"),
        raises(lambda: PATH.log_normalizer(X, 0.5, 0.5), ValueError, "t must be below r"),
        raises(lambda: PATH.propose(KEY, X, 0.1, 0.5, 0),
               ValueError, "num_samples must be at least 1, got 0"),
        raises(lambda: PATH.prior_log_density(X * 1.0),
               TypeError, "x_0 must hold integer tokens, got float32"),
        raises(lambda: PATH.local_generator(lambda x, t: x, X, 0.5),
               ValueError, r"log_density must return shape \(18,\), got \(18, 3\)"),
    ],
)  # fmt: skip
def test_paths(call, error, message):
    check(call, error, message)


def simulate(process=ANY, generator=UNIFORM, x=X, times=(0.0, 0.4, 0.7, 1.0), key=KEY):
    return egm.simulate(key, process, generator, x, jnp.asarray(times))


def trajectory():
    return egm.Trajectory(X, jnp.asarray(PROBLEM.states[:2]), jnp.zeros(2), None, jnp.zeros(2))


@pytest.mark.parametrize(
    "call, error, message",
    [
        raises(lambda: simulate(times=[0.0, 0.6, 0.5]),
               ValueError, r"times must increase strictly within \[0, 1\], got \[0"),
        raises(lambda: simulate(times=[0.0, 0.5, 0.5]), ValueError, "times must increase strictly"),
        raises(lambda: simulate(times=[0.0, 1.5]), ValueError, "times must increase strictly"),
        raises(lambda: simulate(times=[0.0, np.nan]), ValueError, "times must increase strictly"),
        raises(lambda: simulate(times=[0.0]),
               ValueError, r"times must be a vector of at least 2 times, got shape \(1,\)"),
        raises(lambda: simulate(times=[[0.0, 1.0]]),
               ValueError, r"times must be a vector of at least 2 times, got shape \(1, 2\)"),
        raises(lambda: simulate(times=[0, 1]), TypeError, "times must be floating point, got dtype int32"),
        raises(lambda: simulate(x=X[0]), ValueError, r"x_0 must have one batch axis, got batch shape \(\)"),
        raises(lambda: simulate(x=X * 1.0), TypeError, "x_0 must hold integer tokens"),
        raises(lambda: simulate(x=X + 1), ValueError, "x_0 must hold tokens 0..2 or the mask 3, got 4"),
        raises(lambda: simulate(key=jax.random.split(KEY, 5)),
               ValueError, r"key must be one key or have shape \(2,\), got shape \(5,\)"),
        raises(lambda: simulate(key=jax.random.PRNGKey(0)), TypeError, "key must be a typed PRNG key"),
        raises(lambda: simulate(generator=lambda x, t: x * 1.0),
               ValueError, r"generator must return shape \(2, 3, 3\), got \(2, 3\)"),
        raises(lambda: simulate(JUMP, lambda x, t: jnp.zeros((2, 3, 4))),
               ValueError, r"generator must return shape \(2, 3, 3\), got \(2, 3, 4\)"),
        raises(lambda: egm.simulate_reverse(KEY, ANY, UNIFORM, X * 1.0, jnp.linspace(0, 1, 4)),
               TypeError, "x_1 must hold integer tokens"),
        raises(lambda: JUMP.step(KEY, X[0], UNIFORM, 0.1, 0.5),
               ValueError, r"x_t must have shape \[N, L\], got \(3,\)"),
        raises(lambda: JUMP.step(KEY, X, UNIFORM, 0.5, 0.1),
               ValueError, "t must be below r, got t = 0.5 and r = 0.1"),
        raises(lambda: egm.path_log_weights(lambda x: x * 1.0, PATH, trajectory()),
               ValueError, r"energy must return shape \(2,\), got \(2, 3\)"),
        raises(lambda: egm.path_log_weights(lambda x: x[:, 0], PATH, trajectory()),
               TypeError, "energy must return a floating dtype, got int32"),
    ],
)  # fmt: skip
def test_processes_and_simulation(call, error, message):
    check(call, error, message)


FILLED = buffer.init(3, {"x": jnp.zeros(2), "w": jnp.zeros(())})


@pytest.mark.parametrize(
    "call, error, message",
    [
        raises(lambda: importance.snis(jnp.arange(3)),
               TypeError, "log_weights must be floating point, got dtype int32"),
        raises(lambda: importance.snis(0.5),
               ValueError, r"log_weights must have at least 1 axes, got shape \(\)"),
        raises(lambda: importance.snis(jnp.zeros(3), axis=1),
               ValueError, "axis must be one of the 1 axes of log_weights, got 1"),
        raises(lambda: importance.snis(jnp.zeros((0, 2))),
               ValueError, r"log_weights must have samples along axis 0, got \(0, 2\)"),
        raises(lambda: importance.clipped_probabilities(jnp.zeros(3), 0.0),
               ValueError, "clip must be finite and positive, got 0.0"),
        raises(lambda: importance.clipped_probabilities(jnp.zeros(3), "2"),
               TypeError, "clip must be a number, got '2'"),
        raises(lambda: divergences.squared_error(jnp.zeros((2, 3)), jnp.zeros((2, 1))),
               ValueError, r"target has shape \(2, 3\), the prediction has shape \(2, 1\)"),
        raises(lambda: divergences.denoiser_kl(jnp.zeros((2, 3, 3)), jnp.zeros((2, 3, 2))),
               ValueError, r"target has shape \(2, 3, 3\)"),
        raises(lambda: divergences.denoiser_kl(jnp.zeros((2, 3, 3)), jnp.zeros((2, 3, 3)), jnp.zeros(3)),
               ValueError, r"site_weights must have shape \(2, 3\), got \(3,\)"),
        raises(lambda: divergences.rate_kl(jnp.zeros((2, 3)), jnp.zeros(2)),
               ValueError, r"target has shape \(2, 3\)"),
        raises(lambda: divergences.exponential(jnp.zeros(3), jnp.zeros((3, 1))),
               ValueError, r"target has shape \(3,\), the prediction has shape \(3, 1\)"),
        raises(lambda: buffer.init(0, jnp.zeros(2)), ValueError, "capacity must be at least 1, got 0"),
        raises(lambda: buffer.add(FILLED, {"x": jnp.zeros((4, 2)), "w": jnp.zeros(4)}),
               ValueError, "items must be at most the capacity 3, got 4"),
        raises(lambda: buffer.add(FILLED, {"x": jnp.zeros((2, 3)), "w": jnp.zeros(2)}),
               ValueError, r"items have shapes .*\(3,\).* the buffer holds .*\(2,\)"),
        raises(lambda: buffer.add(FILLED, {"x": jnp.zeros((2, 2))}),
               ValueError, "items have shapes .* the buffer holds"),
        raises(lambda: buffer.add(FILLED, {"x": jnp.zeros((2, 2)), "w": jnp.zeros(3)}),
               ValueError, r"items must share their leading size, got \[2, 3\]"),
        raises(lambda: buffer.add(FILLED, {"x": jnp.zeros((2, 2)), "w": jnp.zeros(2)}, jnp.ones(3, bool)),
               ValueError, r"valid must have shape \(2,\), got \(3,\)"),
        raises(lambda: bootstrap.intermediate_time(0.5, 0.0),
               ValueError, "step must be finite and positive, got 0.0"),
        raises(lambda: bootstrap.intermediate_time(0.5, 2.0),
               ValueError, r"step must be in \(0, 1\], got 2.0"),
        raises(lambda: bootstrap.local_target(KEY, lambda x, t: x, PATH, X, jnp.full(2, 0.5)),
               ValueError, r"log_density must return shape \(6,\), got \(6, 3\)"),
        raises(lambda: metrics.reweighted_mean(jnp.zeros(3), jnp.zeros(4)),
               ValueError, r"values must have leading size 4, .* got shape \(3,\)"),
        raises(lambda: metrics.wasserstein_1d(jnp.zeros(3), jnp.zeros(4)),
               ValueError, r"a and b must be vectors of one size, got shapes \(3,\) and \(4,\)"),
    ],
)  # fmt: skip
def test_kernel(call, error, message):
    check(call, error, message)


LINEAR = LinearPath()
HEAD, DENOISER = heads.ScoreHead(LINEAR), heads.DenoiserHead(MaskedPath(2))
PRODUCT = heads.ProductHead({"x": HEAD, "h": DENOISER})
MIXED = {"x": jnp.zeros((2, 3)), "h": jnp.zeros((2, 4), jnp.int32)}
OUTPUT = {"x": jnp.zeros((2, 3, 2)), "h": jnp.zeros((2, 4, 2))}
HALF, KNOWN = jnp.full(2, 0.5), Moments(jnp.zeros(3), jnp.ones(3))
BOWL = lambda x: jnp.sum(x**2, axis=-1)


def find(key=KEY, energy=BOWL, shape=(2,), radius=1.0, **options):
    return scales.find_scales(key, energy, shape, radius, **({"num_starts": 4, "num_steps": 3} | options))


@pytest.mark.parametrize(
    "call, error, message",
    [
        raises(lambda: heads.ScoreHead(LINEAR, 0.0),
               ValueError, "length_scale must be finite and positive, got 0.0"),
        raises(lambda: heads.ScoreHead(LINEAR, data_scale="1"),
               TypeError, "data_scale must be a number, got '1'"),
        raises(lambda: heads.ScoreHead(LINEAR, max_target_norm=-1.0),
               ValueError, "max_target_norm must be finite and positive, got -1.0"),
        raises(lambda: heads.ScoreHead(LINEAR, max_drift_norm=np.inf),
               ValueError, "max_drift_norm must be finite and positive, got inf"),
        raises(lambda: HEAD.generator(jnp.zeros((2, 3)), jnp.zeros((2, 3)), HALF),
               ValueError, r"output must have shape \(2, 3, 2\), got \(2, 3\)"),
        raises(lambda: HEAD.divergence(jnp.zeros((2, 4)), OUTPUT["x"], MIXED["x"], HALF),
               ValueError, "x has trailing size 3, velocity has 4"),
        raises(lambda: HEAD.generator(OUTPUT["x"], MIXED["x"], HALF, lambda x: x),
               ValueError, r"energy must return shape \(2,\), got \(2, 3\)"),
        raises(lambda: heads.ProductHead({"x": LINEAR}),
               TypeError, "every leaf of heads must be a head, got LinearPath"),
        raises(lambda: heads.ProductHead({"x": HEAD, "h": DENOISER}, {"x": 1.0, "h": -1.0}),
               ValueError, "weights must be finite and non-negative, got -1.0"),
        raises(lambda: heads.ProductHead({"x": HEAD, "h": DENOISER}, {"x": 1.0}),
               ValueError, r"weights must have the structure .*'h': \*, .* got a dict with keys \['x'\]"),
        raises(lambda: PRODUCT.generator(OUTPUT["x"], MIXED, HALF),
               ValueError, r"output must have the structure .* got an array of shape \(2, 3, 2\)"),
        raises(lambda: PRODUCT.generator({"x": OUTPUT["x"]}, MIXED, HALF),
               ValueError, r"output must have the structure .* got a dict with keys \['x'\]"),
        raises(lambda: PRODUCT.divergence(OUTPUT, OUTPUT, {"x": MIXED["x"]}, HALF),
               ValueError, r"x_t must have the structure .* got a dict with keys \['x'\]"),
        raises(lambda: PRODUCT.divergence(None, OUTPUT, MIXED, HALF),
               ValueError, "target must have the structure"),
        raises(lambda: PRODUCT.conditional_target(MIXED["x"], MIXED, HALF),
               ValueError, "x_1 must have the structure"),
        raises(lambda: divergences.itakura_saito(jnp.zeros((2, 3)), jnp.zeros(2)),
               ValueError, r"target has shape \(2, 3\), the log_prediction has shape \(2,\)"),
        raises(lambda: bootstrap.local_target(KEY, lambda x, t: x, LINEAR, MIXED["x"], HALF, 10),
               ValueError, r"log_density must return shape \(2,\), got \(2, 3\)"),
        raises(lambda: bootstrap.local_target(KEY, lambda x, t: t, LINEAR, MIXED["x"], HALF, 0),
               ValueError, "num_steps must be at least 1, got 0"),
        raises(lambda: LINEAR.draw_prior(KEY, (2, 3), KNOWN._replace(mean=jnp.zeros(2))),
               ValueError, r"moments.mean must have shape \(3,\), got \(2,\)"),
        raises(lambda: LINEAR.prior_log_density(MIXED["x"], KNOWN._replace(variance=1.0)),
               ValueError, r"moments.variance must have shape \(3,\), got \(\)"),
        raises(lambda: ProductPath({"x": LINEAR, "h": MaskedPath(2)}).prior_log_density(MIXED, KNOWN),
               ValueError, "moments must have the structure .* got a Moments"),
        raises(lambda: CenteredPath(LINEAR, 3, 1).draw_prior(KEY, (2, 4), KNOWN),
               ValueError, "shape has trailing size 4, this path has 3 particles"),
        raises(lambda: find(key=0), TypeError, "key must be a typed PRNG key, .* got 0"),
        raises(lambda: find(radius=-1.0), ValueError, "search_radius must be finite and positive, got -1.0"),
        raises(lambda: find(num_starts=0), ValueError, "num_starts must be at least 1, got 0"),
        raises(lambda: find(num_steps=2.0), TypeError, "num_steps must be an int, got 2.0"),
        raises(lambda: find(shape={"x": (2,), "h": (3,)}),
               ValueError, "vocab_size is needed for an event_shape with tokens, got None"),
        raises(lambda: find(energy=lambda x: BOWL(x) * jnp.nan),
               ValueError, "energy was not finite at the end of any of 4 descents"),
        raises(lambda: find(energy=lambda x: -BOWL(x)),
               ValueError, "energy has mean curvature -2.0 at its minima; it must be positive"),
    ],
)  # fmt: skip
def test_heads_and_scales(call, error, message):
    check(call, error, message)


WEIGHTED = algorithms.Weighted(PATH, heads.DenoiserHead(PATH), lambda params, x, t: UNIFORM(x, t))


def make(process=ANY, energy=PROBLEM, **sizes):
    sizes = {"num_simulated": 4, "num_times": 3, "num_gradient_steps": 1, "batch_size": 4} | sizes
    config = iteration.IterationConfig(**sizes)
    return iteration.make_iteration(WEIGHTED, process, energy, optax.sgd(0.1), config, event_shape=(3,))


def one_step(**options):
    init, step = make(**options)
    return jax.eval_shape(step, KEY, init({"w": jnp.zeros(())}))


@pytest.mark.parametrize(
    "call, error, message",
    [
        raises(lambda: training.make_train_step(None, optax.sgd(1), ema_decay=1.0),
               ValueError, r"ema_decay must be in \[0, 1\), got 1.0"),
        raises(lambda: training.make_train_step(None, optax.sgd(1), ema_decay=-1.0),
               ValueError, r"ema_decay must be in \[0, 1\), got -1.0"),
        raises(lambda: training.make_train_step(None, optax.sgd(1), ema_decay=None),
               TypeError, "ema_decay must be a number, got None"),
        raises(lambda: make(num_simulated=0), ValueError, "num_simulated must be at least 1, got 0"),
        raises(lambda: make(batch_size=2.5), TypeError, "batch_size must be an int, got 2.5"),
        raises(lambda: make(num_gradient_steps=0),
               ValueError, "num_gradient_steps must be at least 1, got 0"),
        raises(lambda: make(buffer_size=3),
               ValueError, "buffer_size must be at least num_simulated = 4, got 3"),
        raises(lambda: make(weight_clip=0.5), ValueError, "weight_clip must be at least 1, got 0.5"),
        raises(lambda: make(ess_target=0.0), ValueError, "ess_target must be finite and positive, got 0.0"),
        raises(lambda: make(process=AnyOrderProcess(MaskedPath(2))),
               ValueError, r"process must share the algorithm's path .*vocab_size=3.*, got .*vocab_size=2"),
        raises(lambda: one_step(energy=lambda x: x * 1.0),
               ValueError, r"energy must return shape \(4,\), got \(4, 3\)"),
        raises(lambda: one_step(energy=lambda x: jnp.sum(x, -1)),
               TypeError, "energy must return a floating dtype, got int32"),
    ],
)  # fmt: skip
def test_training(call, error, message):
    check(call, error, message)


def test_sizes_must_divide_over_the_devices(mesh8):
    config = iteration.IterationConfig(num_simulated=12, batch_size=16)
    init, step = iteration.make_iteration(
        WEIGHTED, ANY, PROBLEM, optax.sgd(0.1), config, event_shape=(3,), axis_name="i"
    )
    state, spec = init({"w": jnp.zeros(())}), jax.sharding.PartitionSpec()
    fn = jax.shard_map(step, mesh=mesh8, in_specs=spec, out_specs=spec)
    check(lambda: fn(KEY, state), ValueError, "num_simulated must divide over 8 devices, got 12")


def test_checks():
    assert checks.positive_int(np.int64(3), "n") == 3
    assert checks.positive_float(0, "a", allow_zero=True) == 0.0
    check(
        lambda: checks.positive_float(-1, "a", allow_zero=True),
        ValueError,
        "a must be finite and non-negative, got -1",
    )
    check(lambda: checks.finite_float(np.inf, "a"), ValueError, "a must be finite, got inf")
    assert checks.time(1, "t", (2,)).dtype == jnp.zeros(()).dtype
