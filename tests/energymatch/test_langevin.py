"""Langevin dynamics: exact moments on normals, Metropolis' test, ways to run, what may go wrong.

With V = k (x - m)^2/2 a step is linear: x' - m = a (x - m) + c sqrt(v) eta, so mean and variance follow
m' - m = a (mean - m), var' = a^2 var + c^2 v exactly. Euler-Maruyama: a = 1 - hk, c = 1, v = 2 eps(t) h.
Heun: a = 1 - hk + (hk)^2/2, c = 1 - hk/2, v = (eps(t) + eps(t + h)) h.
Bounds are 4 standard errors of n independent chains: sqrt(var/n) of a mean, var sqrt(2/n) of a variance
of normals.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from energymatch import langevin

N = 20_000
K = np.array([1.0, 4.0])  # stiffness of two coordinates
M = np.array([0.5, -1.0])
START = np.array([1.0, 0.2])
KEY = jax.random.key(7)
normal = lambda x: 0.5 * jnp.sum(jnp.asarray(K, x.dtype)[None] * (x - jnp.asarray(M, x.dtype)[None]) ** 2, -1)
ramp = lambda t: 0.5 * jnp.clip((t - 0.8) / 0.2, 0.0, 1.0)  # tau_star = .8, epsilon_max = .5


def coefficients(method, h, k):
    z = h * k
    return (1 - z, 1.0) if method == "euler_maruyama" else (1 - z + z * z / 2, 1 - z / 2)


def recursion(method, num_steps, h, temperature, k, mean, variance, target, t_0=0.0):
    """Mean and variance after num_steps, in float64."""
    a, c = coefficients(method, h, k)
    for i in range(num_steps):
        t = t_0 + i * h
        v = (
            2 * temperature(t) * h
            if method == "euler_maruyama"
            else (temperature(t) + temperature(t + h)) * h
        )
        mean, variance = target + a * (mean - target), a * a * variance + c * c * v
    return mean, variance


@functools.partial(jax.jit, static_argnames=("potential", "temperature", "num_steps", "method", "options"))
def run(key, x_0, h, t_0=0.0, *, potential, temperature, num_steps, method, options=()):
    return langevin.sample(
        key, potential, x_0, num_steps=num_steps, step_size=h, temperature=temperature, t_0=t_0,
        method=method, **dict(options),
    )  # fmt: skip


def assert_moments(x, mean, variance):
    x = np.asarray(x, np.float64)
    n = len(x)
    assert np.all(np.abs(x.mean(0) - mean) <= 4 * np.sqrt(variance / n)), (x.mean(0), mean)
    assert np.all(np.abs(x.var(0) - variance) <= 4 * variance * np.sqrt(2 / n)), (x.var(0), variance)


@pytest.mark.parametrize("method", ["euler_maruyama", "heun"])
def test_unadjusted_moments_with_their_known_bias(method):
    h, epsilon = 0.2, 0.3
    start = jnp.tile(jnp.asarray(START, jnp.float32), (N, 1))
    for num_steps in (2, 40):  # on the way and at equilibrium
        out = run(KEY, start, h, potential=normal, temperature=epsilon, num_steps=num_steps, method=method)
        mean, variance = recursion(method, num_steps, h, lambda t: epsilon, K, START, 0.0, M)
        assert_moments(out.x, mean, variance)
        assert np.all(out.acceptance == 1)
        assert np.all(out.num_nonfinite == 0)
    a, c = coefficients(method, h, K)
    stationary = c**2 * 2 * epsilon * h / (1 - a**2)
    if method == "euler_maruyama":
        np.testing.assert_allclose(stationary, epsilon / (K * (1 - h * K / 2)))
    assert_moments(out.x, M, stationary)
    exact = epsilon / K  # the bias shows: > 4 standard errors away in the stiff coordinate
    assert abs(np.var(out.x[:, 1]) - exact[1]) > 4 * exact[1] * np.sqrt(2 / N)


@pytest.mark.parametrize("h", [0.1, 0.4])
def test_adjusted_moments_have_no_bias(h):
    """At h = .4 the stiff coordinate has hk = 1.6: Euler-Maruyama's variance there is 5 times too large."""
    start = jnp.tile(jnp.asarray(START, jnp.float32), (N, 1))
    out = run(KEY, start, h, potential=normal, temperature=0.3, num_steps=100, method="mala")
    assert_moments(out.x, M, 0.3 / K)
    assert 0.2 < out.acceptance.mean() < 0.99


def quadrature(energy, lo=-8.0, hi=8.0):
    """Mean of x and of x^2 under exp(-energy) on [lo, hi], in float64."""
    grid = np.linspace(lo, hi, 20_001)
    density = np.exp(-energy(grid))
    density[[0, -1]] /= 2
    density /= density.sum()
    return density @ grid, density @ grid**2


def assert_mean_and_square(x, moments):
    x = np.asarray(x, np.float64)[:, 0]
    for values, exact in zip((x, x**2), moments):
        assert abs(values.mean() - exact) <= 4 * values.std() / np.sqrt(len(x)), (values.mean(), exact)


def test_adjusted_on_a_skewed_density_with_a_likelihood():
    """V = x^4/4 - x at eps = .5 and U = (x - 1)^2/(2 .6^2) in nats, against quadrature."""
    out = run(
        KEY, jnp.zeros((N, 1)), 0.15, potential=lambda x: x[:, 0] ** 4 / 4 - x[:, 0], temperature=0.5,
        num_steps=60, method="mala", options=(("energies", (lambda x: (x[:, 0] + 1) ** 2 / 0.72,)),),
    )  # fmt: skip
    exact = quadrature(lambda x: (x**4 / 4 - x) / 0.5 + (x + 1) ** 2 / 0.72)
    assert_mean_and_square(out.x, exact)
    assert abs(exact[0] - quadrature(lambda x: (x**4 / 4 - x) / 0.5)[0]) > 0.3  # the likelihood shows


@pytest.mark.parametrize("method", langevin.METHODS)
def test_posterior_of_a_normal(method):
    """Two terms, one of them scalar where it may be: precision k/eps + 2/zeta^2 at the mean of both."""
    h, epsilon, y, zeta = 0.1, 0.5, 1.5, 0.8
    term = lambda x: jnp.sum((x - y) ** 2, axis=-1) / (2 * zeta**2)
    last = term if method == "mala" else lambda x: jnp.sum(term(x))
    start = jnp.zeros((N, 2))
    out = run(
        KEY, start, h, potential=normal, temperature=epsilon, num_steps=60, method=method,
        options=(("energies", (term, last)),),
    )  # fmt: skip
    k = K + 2 * epsilon / zeta**2  # stiffness of V + eps (U_1 + U_2)
    target = (K * M + 2 * epsilon * y / zeta**2) / k
    if method == "mala":
        assert_moments(out.x, target, epsilon / k)
    else:
        assert_moments(out.x, *recursion(method, 60, h, lambda t: epsilon, k, np.zeros(2), 0.0, target))


@pytest.mark.parametrize("method", ["euler_maruyama", "heun"])
def test_time_dependent_temperature_and_two_clocks(method):
    """Half of the chains start at t = 0, half at t = 1: each follows its own recursion."""
    h, num_steps = 0.05, 24
    start = jnp.tile(jnp.asarray(START, jnp.float32), (2 * N, 1))
    clock = jnp.repeat(jnp.array([0.0, 1.0]), N)
    ways = dict(potential=normal, temperature=ramp, method=method)
    out = run(KEY, start, h, clock, num_steps=num_steps, **ways)
    eps = lambda t: 0.5 * np.clip((t - 0.8) / 0.2, 0.0, 1.0)
    for half, t_0 in ((out.x[:N], 0.0), (out.x[N:], 1.0)):
        assert_moments(half, *recursion(method, num_steps, h, eps, K, START, 0.0, M, t_0))
    # Two seeds on one trajectory: the same up to t = .8, where the noise begins.
    few = jax.jit(
        lambda key: langevin.sample(
            key, normal, start[:9], num_steps=18, step_size=h, temperature=ramp, method=method, save_every=2
        )
    )
    one, other = few(jax.random.key(0)), few(jax.random.key(1))
    np.testing.assert_array_equal(one.states[:9], other.states[:9])
    np.testing.assert_allclose(one.times[8], 0.8, rtol=1e-6)
    exact, _ = recursion(method, 16, h, eps, K, START, 0.0, M)
    np.testing.assert_allclose(one.states[8], np.tile(exact, (9, 1)), rtol=1e-5)
    assert np.all(one.x != other.x)


def test_acceptance_is_the_metropolis_ratio(x64):
    """From accepted moves x -> y, whose log-ratio is computed here from densities of normals."""
    V = lambda x: x[:, 0] ** 4 / 4 + jnp.cos(3 * x[:, 1]) + 0.5 * jnp.sum(x**2, -1)
    U = lambda x: jnp.abs(x[:, 0] - 1) ** 3
    gradient = lambda x: np.stack([x[:, 0] ** 3 + x[:, 0], -3 * np.sin(3 * x[:, 1]) + x[:, 1]], -1)
    slope = lambda x: np.stack([3 * (x[:, 0] - 1) * np.abs(x[:, 0] - 1), 0 * x[:, 1]], -1)
    rng = np.random.default_rng(3)
    x, h = rng.normal(size=(512, 2)), rng.uniform(0.05, 0.4, 512)
    epsilon = rng.uniform(0.1, 2.0, 512)
    state = langevin.init(V, x, energies=(U,))
    step = functools.partial(langevin.step, potential=V, energies=(U,), method="mala")
    new, info = jax.jit(step)(KEY, state, 0.0, temperature=epsilon, step_size=h)
    y = np.asarray(new.x)
    drift = lambda z: gradient(z) + epsilon[:, None] * slope(z)
    log_pi = lambda z: -np.asarray(V(z)) / epsilon - np.asarray(U(z))
    log_q = lambda b, a: -np.sum((b - a + h[:, None] * drift(a)) ** 2, -1) / (4 * epsilon * h)
    ratio = np.exp(np.minimum(0.0, log_pi(y) + log_q(x, y) - log_pi(x) - log_q(y, x)))
    moved = np.asarray(info.accepted)
    assert 100 < moved.sum() < 450
    assert np.sum(ratio[moved] < 0.9) > 30
    np.testing.assert_allclose(info.acceptance[moved], ratio[moved], rtol=1e-9)
    np.testing.assert_array_equal(y[~moved], x[~moved])
    chex.assert_trees_all_close(new, langevin.init(V, y, energies=(U,)), rtol=1e-12)  # what is carried


def test_adjusted_at_temperature_zero_is_gradient_descent():
    x = jnp.tile(jnp.asarray(START, jnp.float32), (6, 1))
    epsilon = jnp.array([0.0, 0.3, 0.0, 0.3, 0.0, 0.3])
    step = functools.partial(langevin.step, potential=normal, step_size=0.1, method="mala")
    new, info = jax.jit(step)(KEY, langevin.init(normal, x), 0.0, temperature=epsilon)
    expected = START - 0.1 * K * (START - M)
    np.testing.assert_allclose(new.x[::2], np.tile(expected, (3, 1)), rtol=1e-6)
    np.testing.assert_array_equal(info.acceptance[::2], np.ones(3))
    assert np.all(np.asarray(new.x[1::2]) != expected.astype(np.float32))


@pytest.mark.parametrize("wall", ["bounds", "+inf"])
def test_adjusted_in_a_box_samples_the_cut_density(wall):
    """N(0, .5) cut at -.3 and .6, by bounds or by a V of +inf outside, which is no failure."""
    inside = lambda x: (x[:, 0] >= -0.3) & (x[:, 0] <= 0.6)
    V = lambda x: 0.5 * x[:, 0] ** 2
    hard = V if wall == "bounds" else lambda x: jnp.where(inside(x), V(x), jnp.inf)
    options = (("bounds", (-0.3, 0.6)),) if wall == "bounds" else ()
    out = run(
        KEY, jnp.zeros((N, 1)), 0.1, potential=hard, temperature=0.5, num_steps=50, method="mala",
        options=options,
    )  # fmt: skip
    assert np.all(inside(out.x))
    assert_mean_and_square(out.x, quadrature(lambda x: x**2, -0.3, 0.6))
    assert np.all(out.num_nonfinite == 0)
    if wall == "+inf":
        assert out.acceptance.mean() < 0.9  # what lies outside is rejected: .98 without the box
    else:
        assert out.acceptance.mean() > 0.95  # reflected instead


@pytest.mark.parametrize("method", ["euler_maruyama", "heun"])
def test_unadjusted_in_a_box_is_reflected(method):
    ways = dict(potential=normal, temperature=2.0, num_steps=5, method=method)
    free = run(KEY, jnp.zeros((500, 2)), 0.2, **ways).x
    boxed = run(KEY, jnp.zeros((500, 2)), 0.2, options=(("bounds", (-0.5, 0.25)),), **ways).x
    assert np.any(np.abs(free) > 0.5)
    assert boxed.min() >= -0.5
    assert boxed.max() <= 0.25
    inner = np.mean((boxed > -0.5) & (boxed < 0.25))
    assert inner == 1.0


@pytest.mark.parametrize("method", langevin.METHODS)
def test_what_is_not_finite_holds_its_chain_and_is_counted(method):
    """V bad above .5, where chain 0 starts; its gradient bad below -.5, where chain 1 starts and stays."""
    x_0 = jnp.zeros((64, 1)).at[0].set(1.0).at[1].set(-1.0)
    bounds = None if method == "heun" else (-3.0, 3.0)

    @jax.jit
    def fn(bad):
        def V(x):
            slope = jnp.where(x[:, 0] < -0.5, jnp.sqrt(jnp.minimum(x[:, 0] + 0.5, 0.0)), 0.0)
            return jnp.where(x[:, 0] > 0.5, bad, 0.5 * x[:, 0] ** 2) + slope

        return langevin.sample(
            KEY, V, x_0, num_steps=40, step_size=0.1, temperature=1.0, method=method, bounds=bounds,
            save_every=1,
        )  # fmt: skip

    for bad in (np.nan, np.inf, -np.inf):
        out = fn(bad)
        states = np.asarray(out.states)[..., 0]
        assert np.all(np.isfinite(states))
        assert np.all(np.abs(states[:, 2:]) <= 0.5)
        np.testing.assert_array_equal(states[:, 1], -1.0)
        held = np.sum(states[1:] == states[:-1], axis=0)
        if method != "mala":
            np.testing.assert_array_equal(out.num_nonfinite, held)
            np.testing.assert_allclose(out.acceptance, 1 - held / 40, rtol=1e-5)
        assert np.all(out.num_nonfinite <= held)  # Metropolis' test holds some more
        assert out.num_nonfinite[1] == 40
        assert np.mean(out.num_nonfinite[2:]) > 4


@pytest.mark.parametrize("method", ["heun", "mala"])
def test_one_device_and_eight(mesh8, method):
    x = jax.random.normal(KEY, (16, 2, 3))
    V = lambda x: 0.5 * jnp.sum(x**2, axis=(1, 2))
    U = lambda x: jnp.sum(x, axis=(1, 2)) ** 2
    clock = jnp.repeat(jnp.array([0.0, 1.0]), 8)

    def fn(x, clock, axis_name=None):
        return langevin.sample(
            KEY, V, x, num_steps=6, step_size=0.2, temperature=ramp, t_0=clock, energies=(U,),
            method=method, save_every=3, axis_name=axis_name,
        )  # fmt: skip

    one = jax.jit(fn)(x, clock)
    assert one.times.shape == (3, 16)
    over = functools.partial(fn, axis_name="i")
    specs = langevin.Samples(P("i"), P(None, "i"), P(None, "i"), P("i"), P("i"))
    shard = jax.shard_map(over, mesh=mesh8, in_specs=P("i"), out_specs=specs)
    chex.assert_trees_all_close(jax.jit(shard)(x, clock), one, rtol=1e-5, atol=1e-6)
    mapped = jax.pmap(over, axis_name="i")(x.reshape(8, 2, 2, 3), clock.reshape(8, 2))
    np.testing.assert_allclose(mapped.x.reshape(16, 2, 3), one.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mapped.acceptance.reshape(16), one.acceptance, rtol=1e-5)


@pytest.mark.parametrize("method", ["heun", "mala"])
def test_sample_is_a_loop_of_steps(method):
    h, x_0 = 0.1, jax.random.normal(KEY, (4, 2))
    energies = (lambda x: x[:, 0],)
    ways = dict(temperature=ramp, energies=energies, method=method)
    run = functools.partial(langevin.sample, KEY, normal, num_steps=6, step_size=h, t_0=0.7, **ways)
    out = jax.jit(functools.partial(run, save_every=2))(x_0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(KEY, np.arange(4))
    step = jax.jit(functools.partial(langevin.step, potential=normal, step_size=h, **ways))
    state, states, acceptance = langevin.init(normal, x_0, energies=energies), [x_0], 0
    for k in range(6):
        state, info = step(jax.vmap(jax.random.fold_in, (0, None))(keys, k), state, 0.7 + k * h)
        acceptance += info.acceptance / 6
        states += [state.x] if k % 2 else []
    np.testing.assert_allclose(out.states, jnp.stack(states), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.x, out.states[-1])
    np.testing.assert_allclose(out.times, [0.7, 0.9, 1.1, 1.3], rtol=1e-6)
    np.testing.assert_allclose(out.acceptance, acceptance, rtol=1e-5)
    end = jax.jit(run)(x_0)
    np.testing.assert_allclose(end.x, out.x, rtol=1e-6)
    assert end.states is None
    assert end.times is None


@pytest.mark.parametrize("method", langevin.METHODS)
def test_images_are_vectors_of_another_shape(method):
    x = jax.random.normal(KEY, (6, 4, 4, 1))

    @jax.jit
    def both(x):
        V = lambda x: jnp.sum(x.reshape(x.shape[0], -1) ** 4, axis=-1) / 4
        ways = dict(num_steps=5, step_size=0.05, temperature=0.5, method=method)
        return [langevin.sample(KEY, V, x_0, **ways) for x_0 in (x, x.reshape(6, 16))]

    images, vectors = both(x)
    chex.assert_shape(images.x, (6, 4, 4, 1))
    np.testing.assert_allclose(images.x.reshape(6, 16), vectors.x, rtol=1e-5, atol=1e-6)
    assert np.mean(images.x != x) > 0.5


def test_one_trace_for_every_value():
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def fn(key, x, h, t_0, epsilon, stiffness):
        V = lambda x: stiffness * jnp.sum(x**2, -1)
        temperature = lambda t: epsilon * jnp.clip(t, 0, 1)
        return langevin.sample(key, V, x, num_steps=3, step_size=h, t_0=t_0, temperature=temperature).x

    for i in range(3):
        x = jax.random.normal(jax.random.key(i), (4, 2))
        assert np.all(np.isfinite(fn(KEY, x, 0.1 * (i + 1), 0.5 * i, 0.2 * i, 1.0 + i)))


def test_vmap_over_seeds_and_a_step_size_each():
    x = jax.random.normal(KEY, (3, 4, 2))
    keys = jax.random.split(KEY, 3)
    fn = lambda key, x, h: (
        langevin.sample(key, normal, x, num_steps=4, step_size=h, temperature=0.3, method="mala").x
    )
    one = jax.jit(fn)
    together = jax.jit(jax.vmap(fn))(keys, x, jnp.array([0.1, 0.2, 0.3]))
    for i in range(3):
        np.testing.assert_allclose(together[i], one(keys[i], x[i], 0.1 * (i + 1)), rtol=1e-5, atol=1e-6)
    steps = jnp.array([0.1, 0.1, 0.3, 0.3])  # an array [B]
    mixed = one(keys[0], x[0], steps)
    np.testing.assert_allclose(mixed[:2], one(keys[0], x[0], 0.1)[:2], rtol=1e-5)
    np.testing.assert_allclose(mixed[2:], one(keys[0], x[0], 0.3)[2:], rtol=1e-5)


def test_gradients_through_a_chain(x64):
    """At t < .8 there is no noise: d x_T/dk by hand; after it x_T is linear in sqrt(epsilon_max)."""
    x_0 = jnp.full((3, 1), 2.0)

    def end(k, scale, num_steps):
        V = lambda x: 0.5 * k * jnp.sum(x**2, -1)
        temperature = lambda t: scale * ramp(t)
        return langevin.sample(KEY, V, x_0, num_steps=num_steps, step_size=0.1, temperature=temperature).x[
            :, 0
        ]

    slope = jax.jit(jax.jacfwd(end), static_argnums=2)(3.0, 1.0, 7)
    np.testing.assert_allclose(slope, np.full(3, -0.1 * 7 * 0.7**6 * 2.0), rtol=1e-9)
    total = lambda scale: jnp.sum(end(3.0, scale, 12))
    high, slope = jax.jit(jax.value_and_grad(total))(0.5)  # backwards
    np.testing.assert_allclose(slope, (high - jax.jit(total)(0.0)) / (2 * 0.5), rtol=1e-9)
    assert slope != 0


X_0 = START[None].repeat(3, 0)


def sample(key=KEY, V=normal, x_0=X_0, num_steps=2, h=0.1, eps=0.3, **options):
    return langevin.sample(key, V, x_0, num_steps=num_steps, step_size=h, temperature=eps, **options)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: sample(key=0), TypeError, "key must be a typed PRNG key"),
        (lambda: sample(key=jax.random.split(KEY, 2)), ValueError, r"key must be one key or have shape \(3"),
        (lambda: sample(V=1.0), TypeError, "potential must be callable, got 1.0"),
        (lambda: sample(V=lambda x: x), ValueError, r"potential must return shape \(3,\), got \(3, 2\)"),
        (lambda: sample(x_0=np.ones((3, 2), int)), TypeError, "x_0 must be floating point, got dtype int64"),
        (lambda: sample(x_0=np.float32(1)), ValueError, "x_0 must have at least 1 axes"),
        (lambda: sample(num_steps=0), ValueError, "num_steps must be at least 1, got 0"),
        (lambda: sample(num_steps=2.0), TypeError, "num_steps must be an int, got 2.0"),
        (lambda: sample(num_steps=6, save_every=4), ValueError, "save_every must divide num_steps = 6"),
        (lambda: sample(save_every=0), ValueError, "save_every must be at least 1, got 0"),
        (lambda: sample(h=0.0), ValueError, "step_size must be finite and positive, got 0.0"),
        (lambda: sample(h=np.nan), ValueError, "step_size must be finite and positive, got nan"),
        (lambda: sample(h=np.ones(2)), ValueError, r"step_size must be a scalar or have shape \(3,\), got"),
        (lambda: sample(h=True), TypeError, "step_size must be floating point, got dtype bool"),
        (lambda: sample(eps=-0.1), ValueError, "temperature must be finite and non-negative, got -0.1"),
        (lambda: sample(eps=np.ones(4)), ValueError, r"temperature must be a scalar or have shape \(3,\)"),
        (lambda: sample(eps=lambda t: jnp.ones(4)), ValueError, "temperature must be a scalar or have"),
        (lambda: sample(t_0=np.ones(4)), ValueError, r"t_0 must be a scalar or have shape \(3,\)"),
        (lambda: sample(t_0=np.inf), ValueError, "t_0 must be finite, got inf"),
        (lambda: sample(method="MALA"), ValueError, "method must be one of .*, got 'MALA'"),
        (lambda: sample(energies=normal), TypeError, "energies must be a tuple of functions, got"),
        (lambda: sample(energies=(lambda x: x,)),
         ValueError, r"energies\[0\] must return shape \(3,\), got \(3, 2\)"),
        (lambda: sample(energies=(normal, jnp.sum), method="mala"),
         ValueError, r"energies\[1\] must return shape \(3,\) with method 'mala', got \(\)"),
        (lambda: sample(bounds=1.0), TypeError, r"bounds must be None or a pair \(lo, hi\), got 1.0"),
        (lambda: sample(bounds=(1.0, -1.0)), ValueError, r"bounds must be \(lo, hi\) with lo < hi"),
        (lambda: langevin.init(normal, np.ones((3, 2), int)), TypeError, "x must be floating point"),
        (lambda: langevin.step(KEY, langevin.init(normal, jnp.ones((3, 2))), 0.0, potential=normal,
                               temperature=0.1, step_size=0.1, energies=(normal,)),
         ValueError, "energies must be those that the state was made with by init"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
    with pytest.raises(error, match=message):
        jax.jit(call)()


def test_a_traced_temperature_below_zero_is_counted():
    out = jax.jit(lambda e: sample(eps=e, x_0=jnp.ones((3, 2))))(-0.1)
    np.testing.assert_array_equal(out.x, np.ones((3, 2)))
    np.testing.assert_array_equal(out.num_nonfinite, [2, 2, 2])


@pytest.mark.parametrize(
    "name, method",
    [("euler_maruyama", langevin.EulerMaruyama()), ("heun", langevin.Heun()), ("mala", langevin.MALA())],
)
def test_a_name_stands_for_its_method(name, method):
    x = jax.random.normal(jax.random.key(1), (8, 2))
    quadratic = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    options = dict(num_steps=3, step_size=0.1, temperature=0.5)
    by_name, by_object = (
        langevin.sample(jax.random.key(0), quadratic, x, method=m, **options) for m in (name, method)
    )
    np.testing.assert_array_equal(by_name.x, by_object.x)


class Still:
    """A method of a user's own: chains that stay, with odds of one half."""

    adjusted = True

    def propose(self, walk, state):
        return langevin.Proposal(state, jnp.ones(state.value.shape, bool), None)

    def log_acceptance(self, walk, old, proposal):
        return jnp.full(old.value.shape, jnp.log(0.5))


def test_a_method_of_ones_own():
    x = jax.random.normal(jax.random.key(1), (8, 2))
    quadratic = lambda x: 0.5 * jnp.sum(x**2, axis=-1)
    out = langevin.sample(
        jax.random.key(0), quadratic, x, num_steps=3, step_size=0.1, temperature=0.5, method=Still()
    )
    np.testing.assert_array_equal(out.x, x)
    np.testing.assert_allclose(out.acceptance, 0.5)
    with pytest.raises(ValueError, match="method must be one of"):
        langevin.sample(
            jax.random.key(0), quadratic, x, num_steps=3, step_size=0.1, temperature=0.5, method=Still
        )
