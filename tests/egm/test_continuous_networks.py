"""Networks on vectors, particles and mixed states: shapes, bounds at every t, symmetries, closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egm import networks, paths
from egm.networks._features import Features

PATHS = {
    "linear": paths.LinearPath(2.0),
    "exploding": paths.VarianceExplodingPath(0.05, 30.0),
    "preserving": paths.VariancePreservingPath(),
}
KEY = jax.random.key(0)
SMALL = {"width": 8, "depth": 2}
PARTICLES, DIM, TYPES = 4, 3, 2
CENTERED = paths.CenteredPath(PATHS["exploding"], PARTICLES, DIM)


def edge_cases(path, size):
    """States of magnitude 0 to 1e3 at both ends, at t_min and in between: x [N, size], t [N]."""
    times = jnp.array([0.0, path.t_min, 0.5, 1.0])
    scales = jnp.array([0.0, 1.0, 1e3])
    x = scales[:, None, None] * jax.random.normal(KEY, (1, len(times), size))
    return x.reshape(-1, size), jnp.tile(times, len(scales))


def randomized(net, *args, dtype=float):
    """Parameters far from the near-zero start, so that a symmetry is no accident of it."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(net.init, KEY, *args))
    keys = jax.random.split(KEY, len(leaves))
    values = [0.3 * jax.random.normal(k, a.shape, dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, values)


def all_finite(tree):
    return all(np.all(np.isfinite(a)) for a in jax.tree.leaves(tree))


def mixed(x, sites):
    return {"x": x, "h": jax.random.randint(KEY, (x.shape[0], sites), 0, TYPES + 1)}  # some are masks


def generator_cases():
    linear, exploding, size = PATHS["linear"], PATHS["exploding"], PARTICLES * DIM
    vector = {"length_scale": 0.3, "data_scale": 3.0, **SMALL}
    particles = {"length_scale": 0.1, **SMALL}
    scales = {"length_scale": 0.3, "data_scale": 3.0}
    wrapped = paths.WrappedPath(0.3, 7.0, 0.3, (True, False, True))
    angles = paths.WrappedPath(0.3, 7.0, 0.3)
    return {
        "mlp": (linear, networks.MLPVector(linear, center=(0.0, 1.0, -2.0), **vector), 3, None),
        "coordinates": (linear, networks.CoordinateVector(linear, channels=4, context=2, **vector), 3, None),
        "torus": (linear, networks.TorusVector(linear, 2, channels=4, depth=2, **scales), 4, None),
        "angles": (wrapped, networks.MLPVector(wrapped, **vector), 3, None),
        "angles on a torus": (
            angles,
            networks.TorusVector(angles, 2, channels=4, depth=2, **scales),
            4,
            None,
        ),
        "egnn": (linear, networks.EGNN(linear, PARTICLES, DIM, **particles), size, None),
        "mixed": (exploding, networks.MLPMixed(exploding, TYPES, **vector), 3, 5),
        "egnn mixed": (
            CENTERED,
            networks.EGNNMixed(CENTERED, PARTICLES, DIM, TYPES, **particles),
            size,
            PARTICLES,
        ),
    }


@pytest.mark.parametrize("case", generator_cases().values(), ids=generator_cases())
def test_generators_have_their_shape_start_small_and_stay_finite(case):
    path, net, size, sites = case
    x, t = edge_cases(path, size)
    state = lambda x: x if sites is None else {**mixed(x, sites), "x": x}

    def total(params, x, t):
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(net.apply(params, state(x), t)))

    @jax.jit
    def evaluate(params, x, t):
        start = net.apply(net.init(KEY, state(x), t), state(x), t)
        return start, jax.grad(total, (0, 1, 2))(params, x, t)

    out, gradients = evaluate(randomized(net, state(x), t), x, t)
    expected = {"x": (len(t), size, 2)} | ({} if sites is None else {"h": (len(t), sites, TYPES)})
    out = {"x": out} if sites is None else out
    assert {k: v.shape for k, v in out.items()} == expected
    assert all(v.dtype == jnp.float32 and 0 < np.max(np.abs(v)) < 0.1 for v in out.values())
    assert all_finite(gradients)
    assert all(np.any(g != 0) for g in gradients[1:])  # it sees x and t


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_features_are_bounded_and_expectations(path):
    features = Features(path, 0.4, 3.0, 1.0)
    assert len(features.frequencies) == 4 and math.isclose(features.frequencies[0], math.pi / 6)
    x, t = edge_cases(path, 2)
    position = jax.jit(features.position)(x, t)
    assert position.shape == (len(t), 18) and np.max(np.abs(position)) <= 8.0

    @jax.jit
    @jax.grad
    def slopes(inputs):
        x, t = inputs
        out = features.position(x, t), features.time(t, x.dtype)
        return sum(jnp.sum(jnp.sin(3 * f)) for f in out)

    assert all_finite(slopes((x, t)))
    time = jax.jit(lambda t: features.time(t, jnp.float32))(jnp.linspace(0, 1, 50))
    time = np.asarray(time)
    assert np.max(np.abs(time)) <= 1 + 1e-6
    np.testing.assert_allclose(time[np.array([0, -1]), 0], [-1, 1], atol=1e-6)
    assert np.all(np.diff(time[:, 0]) > 0)

    # E[sin, cos of omega (x_1 - c) | x_t] for x_1 from N(1, 9), by quadrature over x_1.
    t = jnp.array([0.3, 0.7, 0.95])
    alpha, variance = (np.asarray(a, np.float64)[:, None] for a in (path.alpha(t), path.variance(t)))
    x_t = alpha * 1.5 + 0.3 * np.sqrt(variance)
    x_1 = np.linspace(-29, 31, 20001)[None]
    weights = np.exp(-((x_1 - 1) ** 2) / 18 - (x_t - alpha * x_1) ** 2 / (2 * variance))
    weights /= weights.sum(axis=1, keepdims=True)
    got = jax.jit(features.position)(jnp.asarray(x_t, jnp.float32), t)
    for k, omega in enumerate(features.frequencies):
        sines, cosines = np.sin(omega * (x_1 - 1)), np.cos(omega * (x_1 - 1))
        expected = np.stack([(weights * sines).sum(1), (weights * cosines).sum(1)], axis=1)
        # The squash moves x by less than 1e-3 standard deviations here, at frequencies S omega <= 13.
        np.testing.assert_allclose(got[:, 1 + 2 * k : 3 + 2 * k], expected, atol=2e-3)


def moved(x, matrix, order, shift=0.0):
    particles = np.asarray(x).reshape(-1, PARTICLES, DIM) @ matrix.T + shift
    return particles[:, order].reshape(x.shape)


@pytest.mark.parametrize("typed", [False, True], ids=["EGNN", "EGNNMixed"])
def test_symmetries_of_particles(typed, x64):
    """Motions and permutations (of types too) commute with the network, to rounding in float64."""
    x = np.asarray(jax.random.normal(KEY, (5, PARTICLES * DIM)))
    h, t = np.asarray(mixed(x, PARTICLES)["h"]), jnp.linspace(0.1, 1.0, 5)
    name, fields = ("EGNNMixed", {"vocab_size": TYPES}) if typed else ("EGNN", {})
    fields = {"length_scale": 0.2, **fields, **SMALL}
    nets = [
        getattr(networks, n)(PATHS["exploding"], PARTICLES, DIM, **fields)
        for n in (name, f"{name}LogMarginal")
    ]
    state = lambda x, h: {"x": x, "h": h} if typed else x
    params = [randomized(net, state(x, h), t, dtype=jnp.float64) for net in nets]

    @jax.jit
    def evaluate(x, h):
        out, g = (net.apply(p, state(x, h), t) for net, p in zip(nets, params))
        vectors, logits = (out["x"], out["h"]) if typed else (out, jnp.zeros((*h.shape, 1)))
        return vectors[..., 0], vectors[..., 1], logits, g

    field, scalar, logits, g = jax.tree.map(np.asarray, evaluate(x, h))
    assert g.shape == (5,) and g.dtype == np.float64 and np.std(g) > 1e-3 and np.std(field) > 1e-2
    np.testing.assert_allclose(field.reshape(5, PARTICLES, DIM).sum(1), 0, atol=1e-12)
    by_particle = scalar.reshape(5, PARTICLES, DIM)
    np.testing.assert_array_equal(by_particle, np.broadcast_to(by_particle[..., :1], by_particle.shape))
    if typed:
        other = evaluate(x, (h + 1) % (TYPES + 1))
        assert all(np.max(np.abs(a - b)) > 1e-3 for a, b in zip(other, (field, scalar, logits, g)))

    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0]
    order, shift = np.array([2, 0, 3, 1]), np.array([1.0, -2.0, 3.0])
    for matrix in (rotation, rotation @ np.diag([-1.0, 1.0, 1.0])):  # one of them a reflection
        got = evaluate(moved(x, matrix, order, shift), h[:, order])
        expected = moved(field, matrix, order), moved(scalar, np.eye(DIM), order), logits[:, order], g
        for a, b in zip(got, expected):
            np.testing.assert_allclose(a, b, atol=1e-9)


def log_marginal_cases():
    fields = {"length_scale": 0.3, "data_scale": 3.0, **SMALL}
    linear, preserving, size = PATHS["linear"], PATHS["preserving"], PARTICLES * DIM
    gaussian = networks.gaussian_log_marginal(linear, 0.5, 3.0)
    centered = networks.gaussian_log_marginal(CENTERED, 0.0, 3.0)
    own = lambda state, t: -0.5 * jnp.sum(state["x"] ** 2, axis=-1) + t
    particles = (CENTERED, PARTICLES, DIM)
    return {
        "mlp": (linear, networks.MLPVectorLogMarginal(linear, **fields, skip=gaussian), 3, None),
        "egnn": (CENTERED, networks.EGNNLogMarginal(*particles, **fields, skip=centered), size, None),
        "mixed": (preserving, networks.MLPMixedLogMarginal(preserving, TYPES, **fields, skip=own), 3, 5),
        "egnn mixed": (
            CENTERED,
            networks.EGNNMixedLogMarginal(*particles, TYPES, **fields, skip=own),
            size,
            PARTICLES,
        ),
    }


@pytest.mark.parametrize("case", log_marginal_cases().values(), ids=log_marginal_cases())
def test_log_marginals_start_at_their_skip_with_finite_second_derivatives(case):
    path, net, size, sites = case
    x, t = edge_cases(path, size)
    state = lambda x: x if sites is None else {**mixed(x, sites), "x": x}

    def penalty(params, x, t):
        score = jax.grad(lambda x: jnp.sum(net.apply(params, state(x), t)))(x)
        return jnp.sum(jnp.tanh(score) ** 2)

    @jax.jit
    def evaluate(params, x, t):
        start = net.apply(net.init(KEY, state(x), t), state(x), t)
        return start, net.skip(state(x), t), jax.grad(penalty, (0, 1, 2))(params, x, t)

    out, skip, gradients = evaluate(randomized(net, state(x), t), x, t)
    assert out.shape == t.shape and np.any(out != skip)
    np.testing.assert_allclose(out, skip, atol=0.1, rtol=1e-6)
    assert all_finite(gradients) and np.any(gradients[1] != 0)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_gaussian_log_marginal_against_quadrature(path):
    t, x = jnp.array([0.2, 0.6, 0.9, 0.99]), jnp.array([[0.7], [-1.0], [2.0], [3.0]])
    alpha, variance = np.asarray(path.alpha(t), float), np.asarray(path.variance(t), float)
    x_1 = np.linspace(-400, 400, 800001)

    def quadrature(mean, spread, center, scale):
        log = -((x_1 - mean) ** 2) / (2 * spread) - (x_1 - center) ** 2 / (2 * scale**2)
        return math.log(np.exp(log).sum() * 1e-3 / math.sqrt(2 * math.pi * spread))

    expected = [quadrature(x[i, 0] / alpha[i], variance[i] / alpha[i] ** 2, 0.5, 3.0) for i in range(4)]
    closed = networks.gaussian_log_marginal(path, 0.5, 3.0, offset=2.0)
    np.testing.assert_allclose(jax.jit(closed)(x, t), np.array(expected) + 2.0, rtol=2e-5, atol=2e-5)
    # Two particles on a line: one dimension, along (1, -1) / sqrt 2; a common center says nothing.
    centered = networks.gaussian_log_marginal(paths.CenteredPath(path, 2, 1), 0.5, 3.0)
    expected = [
        quadrature(math.sqrt(2) * x[i, 0] / alpha[i], variance[i] / alpha[i] ** 2, 0.0, 3.0) for i in range(4)
    ]
    np.testing.assert_allclose(
        jax.jit(centered)(jnp.concatenate([x, -x], 1), t), np.array(expected), rtol=2e-5, atol=2e-5
    )
    ends = jnp.array([0.0, path.t_min, 0.5, 1.0])
    assert all_finite(jax.jit(jax.grad(lambda t: jnp.sum(closed(1e3 * x, t))))(ends))
    as_array, as_tuple = (networks.gaussian_log_marginal(path, c) for c in (np.array([0.5]), (0.5,)))
    assert hash(as_array) == hash(as_tuple) and as_array == as_tuple


class Repulsion:
    """r^-12 + r^2 / 2: at 0 it is infinite and its gradient no number."""

    def __call__(self, x):
        square = jnp.sum(x**2, axis=-1)
        return square**-6 + square / 2


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_energy_log_marginal_between_its_limits(path):
    energy, direction = Repulsion(), jnp.array([[0.6, 0.8]])
    form = networks.energy_log_marginal(energy, path, 0.2, data_scale=1.5, max_energy=50.0)

    @jax.jit
    def evaluate(x, t):
        alpha, variance = path.alpha(t), path.variance(t)
        slopes = jax.grad(lambda x, t: jnp.sum(form(x, t)), (0, 1))(x, t)
        gaussian = networks.gaussian_log_marginal(path, 0.0, 1.5)(x, t)
        return form(x, t), slopes, gaussian, energy(x / alpha[:, None]), 0.04 / (0.04 + variance / alpha**2)

    x, one = jnp.linspace(0.9, 3.0, 8)[:, None] * direction, jnp.ones(8)
    values, _, _, energies, _ = evaluate(x, one)
    np.testing.assert_allclose(values, -energies, rtol=1e-6)
    values, _, gaussian, energies, gate = evaluate(x, 0.999 * one)
    np.testing.assert_allclose(values, (1 - gate) * gaussian - gate * energies, rtol=1e-5, atol=1e-5)
    values, _, gaussian, _, _ = evaluate(x, path.t_min * one)
    np.testing.assert_allclose(values, gaussian, atol=0.3, rtol=1e-2)

    # Above the limit energies grow more and more slowly, to twice the limit where they overflow.
    r = jnp.array([0.7, 0.68, 0.65, 0.6, 0.3, 1e-3, 1e-4, 0.0])
    values, slopes, _, energies, _ = evaluate(r[:, None] * direction, one)
    assert np.all(np.diff(values) <= 0) and values[-1] == -100.0 and not np.isfinite(energies[-1])
    np.testing.assert_allclose(values[0], -50 - 50 * math.tanh((energies[0] - 50) / 50), rtol=1e-5)
    assert all_finite((values, slopes))
    times = jnp.array([0.0, path.t_min, 0.5, 1.0] * 2)
    values, slopes, *_ = evaluate(1e3 * r[:, None] * direction, times)
    assert all_finite((values, slopes))


def test_bad_inputs_raise():
    linear, x, t = PATHS["linear"], jnp.ones((2, 3)), jnp.ones(2)
    state, h = {"x": x, "h": jnp.zeros((2, 4), int)}, jnp.zeros((2, 4), int)
    vector, mix = networks.MLPVector(linear), networks.MLPMixed(linear, TYPES)
    egnn, typed = networks.EGNN(linear, PARTICLES, DIM), networks.EGNN(linear, 3, 1, num_types=TYPES)
    cases = [
        (vector, (x[0], t), ValueError, r"x must have shape \[N, D\], got \(3,\)"),
        (vector, (x.astype(int), t), TypeError, "x must be floating point"),
        (vector, (x, jnp.ones(3)), ValueError, r"t must be a scalar or have shape \(2,\)"),
        (networks.MLPVector(linear, center=(0.0, 1.0)), (x, t), ValueError, "trailing size of x, 3"),
        (networks.MLPVector(linear, length_scale=0.0), (x, t), ValueError, "length_scale must be finite"),
        (networks.MLPVector(paths.MaskedPath(2)), (x, t), TypeError, "the path must be a Gaussian path"),
        (networks.MLPVector(CENTERED), (x, t), ValueError, "x has trailing size 3, this path"),
        (egnn, (x, t), ValueError, "x has trailing size 3, this network has 4 particles"),
        (networks.EGNN(linear, 3, 1), (x, t, h), ValueError, "num_types = 0"),
        (typed, (x, t), ValueError, r"types must be given, \[N, 3\]"),
        (typed, (x, t, h), ValueError, "types must have trailing size 3, the particles, got 4"),
        (typed, (x, t, x), TypeError, "types must be an integer array"),
        (mix, ({"x": x}, t), ValueError, "keys 'x' and 'h', got \\['x'\\]"),
        (mix, (x, t), TypeError, "must be a dict with keys"),
        (mix, ({**state, "h": h[:1]}, t), ValueError, r"h must have shape \[2, L\], got \(1, 4\)"),
        (mix, ({**state, "h": h + 3}, t), ValueError, r"tokens of h must be in 0..2, the mask, got 3..3"),
        (networks.EGNNMixed(linear, 3, 1, TYPES), (state, t), ValueError, "trailing size 3, the particles"),
    ]
    for net, args, error, message in cases:
        with pytest.raises(error, match=message):
            net.init(KEY, *args)
    with pytest.raises(ValueError, match="max_energy must be finite and positive"):
        networks.energy_log_marginal(Repulsion(), linear, max_energy=0.0)
    with pytest.raises(ValueError, match=r"energy must return shape \(2,\)"):
        networks.energy_log_marginal(lambda x: x, linear)(x, t)


def test_flip_is_exact(x64):
    """(x, h) -> (-x, 1 - h) turns F and the logits round and leaves G, for parameters far from the start."""
    path = paths.VarianceExplodingPath(0.3, 3.0)
    net = networks.MLPMixed(path, 2, 0.3, 1.0, flip=True)
    x = jax.random.normal(jax.random.key(0), (6, 3))
    h = jnp.array([[0, 1, 2, 2], [1, 1, 0, 2]] * 3)
    t = jnp.linspace(0.0, 1.0, 6)
    params = jax.tree.map(
        lambda p: jax.random.normal(jax.random.key(p.size), p.shape), net.init(KEY, {"x": x, "h": h}, t)
    )
    apply = jax.jit(net.apply)
    out, back = (
        apply(params, {"x": x, "h": h}, t),
        apply(params, {"x": -x, "h": jnp.where(h == 2, 2, 1 - h)}, t),
    )
    np.testing.assert_allclose(back["x"], out["x"] * jnp.array([[[-1.0, 1.0]]]), rtol=1e-9)
    np.testing.assert_allclose(back["h"], out["h"][..., ::-1], rtol=1e-9)
    assert np.std(out["x"][..., 0]) > 0.1
    for bad in (networks.MLPMixed(path, 3, flip=True), networks.MLPMixed(path, 2, center=0.5, flip=True)):
        with pytest.raises(ValueError, match="flip needs"):
            bad.init(KEY, {"x": x, "h": h}, t)
