"""Losses of Energy Matching: closed forms on a quadratic, gates, trimming, floors, weights, bad values.

V(x) = a |x - m|^2 / 2 has grad V = a (x - m), so every loss and every gradient in a and m is a sum that
numpy does in float64. exp(-V/epsilon) is N(m, epsilon/a).
"""

import fractions

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from egm import collectives, random
from energymatch import losses, schedules

KEY = jax.random.key(11)
B = 64


def flat_sum(x):
    return jnp.sum(x.reshape(x.shape[0], -1), axis=-1)


def quadratic(params, x):
    return 0.5 * params["a"] * flat_sum((x - params["m"][None]) ** 2)


def parameters(event, dtype=np.float32):
    m = np.linspace(-0.5, 1.0, np.prod(event)).reshape(event)
    return {"a": jnp.asarray(1.7, dtype), "m": jnp.asarray(m, dtype)}


def draws(key, batch, event, sigma, dtype=jnp.float32):
    """t and eta of every example, by the rule that the docstrings state."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(batch))
    time_keys, noise_keys = random.split(keys)
    t = jax.vmap(lambda k: jax.random.uniform(k, dtype=dtype))(time_keys)
    eta = jax.vmap(lambda k: jax.random.normal(k, event, dtype))(noise_keys)
    return np.asarray(t, np.float64), sigma * np.asarray(eta, np.float64)


def pairs(event, batch=B, seed=0):
    rng = np.random.default_rng(seed)
    x_0, x_1 = rng.normal(size=(2, batch, *event)).astype(np.float32)
    return x_0, 0.5 * x_1 + 1


def flow(params, x_0, x_1, **options):
    return losses.flow_matching_loss(quadratic, params, KEY, x_0, x_1, **options)


# flow_matching_loss


@pytest.mark.parametrize("sigma", [0.0, 0.3])
@pytest.mark.parametrize("event", [(3,), (2, 3, 1)])
def test_flow_loss_and_its_gradient_on_a_quadratic(event, sigma):
    """A mean over the elements of an event, at x_t on the line and about it; float32 to 1e-5."""
    x_0, x_1 = pairs(event)
    params = parameters(event)
    a, m = np.float64(params["a"]), np.asarray(params["m"], np.float64)
    t, eta = draws(KEY, B, event, sigma)
    t = t.reshape(B, *(1,) * len(event))
    x_t = (1 - t) * x_0 + t * x_1 + eta
    residual = a * (x_t - m) + x_1 - x_0
    elements = np.prod(event)

    fn = lambda p: (jnp.mean(flow(p, x_0, x_1, sigma=sigma)[0]), flow(p, x_0, x_1, sigma=sigma))
    (_, (loss, metrics)), gradient = jax.jit(jax.value_and_grad(fn, has_aux=True))(params)
    np.testing.assert_allclose(
        loss, np.sum(residual.reshape(B, -1) ** 2, -1) / elements, rtol=1e-5, atol=1e-5
    )
    norm = a * np.sqrt(np.sum((x_t - m).reshape(B, -1) ** 2, -1)).mean()
    np.testing.assert_allclose(metrics["velocity_norm"], norm, rtol=1e-5)
    assert (metrics["flow_weight"], metrics["nonfinite_flow"]) == (1, 0)

    expected = {
        "a": np.sum(2 * residual * (x_t - m)) / elements / B,
        "m": np.sum(2 * residual * -a, axis=0) / elements / B,
    }
    chex.assert_trees_all_close(gradient, jax.tree.map(np.float32, expected), rtol=1e-4, atol=1e-5)


def test_the_noise_moves_the_points_and_not_the_velocity():
    """With V constant the loss is the mean of (x_1 - x_0)^2 whatever sigma is."""
    x_0, x_1 = pairs((3,))
    params = parameters((3,)) | {"a": jnp.zeros(())}
    for sigma in (0.0, 2.0):
        np.testing.assert_allclose(
            flow(params, x_0, x_1, sigma=sigma)[0], np.mean((x_1 - x_0) ** 2, -1), rtol=1e-6
        )


def test_float32_stays_float32_under_x64(x64):
    x_0, x_1 = pairs((3,))
    for sigma in (0.0, 0.1):
        out = jax.eval_shape(lambda: flow(parameters((3,)), x_0, x_1, sigma=sigma)[0])  # noqa: B023
        assert out.dtype == np.float32


def test_time_gate_is_the_flow_weight():
    x_0, x_1 = pairs((3,))
    params = parameters((3,))
    free, _ = flow(params, x_0, x_1)
    gated, metrics = flow(params, x_0, x_1, gate=losses.time_gate(0.4))
    t, _ = draws(KEY, B, (3,), 0)
    weight = np.clip((1 - t) / 0.6, 0, 1)
    np.testing.assert_allclose(gated, weight * free, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["flow_weight"], weight.mean(), rtol=1e-5)
    np.testing.assert_allclose(weight, schedules.flow_weight(t, 0.4), rtol=1e-5, atol=1e-6)
    assert 0.2 < np.mean(weight < 1) < 0.9


def test_energy_gate_by_hand():
    """A ramp in (V - q)/epsilon about the margin, q a quantile of the finite values on data."""
    x_0, x_1 = pairs((3,))
    params = parameters((3,))
    data_values = np.random.default_rng(1).exponential(size=40).astype(np.float32)
    bad = data_values.copy()
    bad[[3, 7, 11]] = np.nan, np.inf, -np.inf
    gate = losses.energy_gate(0.7, margin=2.0, width=5.0, quantile=0.75)
    free, _ = flow(params, x_0, x_1)
    t, _ = draws(KEY, B, (3,), 0)
    x_t = (1 - t[:, None]) * x_0 + t[:, None] * x_1
    values = 0.5 * 1.7 * np.sum((x_t - np.asarray(params["m"])) ** 2, -1)
    for given in (data_values, bad):
        q = np.quantile(given[np.isfinite(given)], 0.75)
        weight = np.clip(((values - q) / 0.7 - 2 + 2.5) / 5, 0, 1)
        gated, metrics = flow(params, x_0, x_1, gate=gate, data_values=given)
        np.testing.assert_allclose(gated, weight * free, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(metrics["flow_weight"], weight.mean(), rtol=1e-4)
        assert weight.std() > 0.05


def test_a_gate_carries_no_gradient():
    x_0, x_1 = pairs((3,))
    params = parameters((3,))
    gate = losses.energy_gate(0.7, margin=0.0)

    def gated(p, g):
        return flow(p, x_0, x_1, gate=g, data_values=quadratic(p, x_1))[0]

    weight = gated(params, gate) / flow(params, x_0, x_1)[0]
    constant = lambda t, values, data_values: weight
    came, expected = (jax.grad(lambda p: jnp.mean(gated(p, g)))(params) for g in (gate, constant))  # noqa: B023
    chex.assert_trees_all_close(came, expected, rtol=1e-5, atol=1e-6)


# contrastive_divergence_loss


def contrast(data_values, negative_values, **options):
    return losses.contrastive_divergence_loss(
        jnp.asarray(data_values, float), jnp.asarray(negative_values, float), **options
    )


def test_exact_gradient_with_known_moments(x64):
    """lambda (d/da, d/dm) (E_data V - E_neg V) = lambda (difference of mean |x - m|^2 / 2, -a (means))."""
    params = parameters((2,), np.float64)
    data = np.array([[1.0, 0.0], [0.0, 2.0], [-1.0, 1.0]])
    negatives = np.array([[0.5, 0.5], [3.0, -1.0]])

    def loss(p):
        return losses.contrastive_divergence_loss(quadratic(p, data), quadratic(p, negatives), weight=2.5)[0]

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    a, m = 1.7, np.asarray(params["m"])
    half_square = lambda x: np.mean(np.sum((x - m) ** 2, -1)) / 2
    np.testing.assert_allclose(value, 2.5 * a * (half_square(data) - half_square(negatives)), rtol=1e-12)
    np.testing.assert_allclose(gradient["a"], 2.5 * (half_square(data) - half_square(negatives)), rtol=1e-12)
    np.testing.assert_allclose(gradient["m"], -2.5 * a * (data.mean(0) - negatives.mean(0)), rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_is_minus_epsilon_times_the_likelihoods(x64, weighted):
    """Negatives drawn from the model, or from a wider normal with their importance weights.

    log p = -a |x - m|^2/(2 eps) + (D/2) log a + constants has the gradient, times -eps, of mean |x - m|^2/2
    - eps D/(2a) in a and of -a (mean x - m) in m. Within 4 standard errors: of a mean of n, sqrt(var/n),
    with weights w by the delta method sqrt(sum w^2 (f - mean)^2).
    """
    n, D, epsilon = 20_000, 2, 0.6
    params = parameters((D,), np.float64)
    a, m = 1.7, np.asarray(params["m"])
    rng = np.random.default_rng(5)
    data = rng.normal(size=(50, D)) + 1
    scale = 1.4 if weighted else 1.0
    eta = rng.normal(size=(n, D))
    negatives = m + scale * np.sqrt(epsilon / a) * eta
    log_weights = 0.5 * np.sum(eta**2, -1) * (1 - scale**2) + 123.0 if weighted else None

    def loss(p):
        return losses.contrastive_divergence_loss(
            quadratic(p, data), quadratic(p, negatives), log_weights=log_weights
        )[0]

    gradient = jax.jit(jax.grad(loss))(params)
    expected_a = np.mean(np.sum((data - m) ** 2, -1)) / 2 - epsilon * D / (2 * a)
    expected_m = -a * (data.mean(0) - m)
    w = np.ones(n) if log_weights is None else np.exp(log_weights - 123)
    w /= w.sum()
    f = np.concatenate([np.sum((negatives - m) ** 2, -1, keepdims=True) / 2, a * (negatives - m)], -1)
    error = np.sqrt(np.sum(w[:, None] ** 2 * (f - w @ f) ** 2, 0))
    assert abs(gradient["a"] - expected_a) <= 4 * error[0]
    assert np.all(np.abs(gradient["m"] - expected_m) <= 4 * error[1:])
    if weighted:  # without its weights the proposal's own moments would show
        plain = epsilon * D / (2 * a) * (scale**2 - 1)
        assert plain > 20 * error[0]


TRIMS = [
    ([3.0, 1.0, 2.0, 5.0, 4.0], 0.2),
    ([3.0, 1.0, 2.0, 5.0, 4.0], 0.39),
    ([2.0, 2.0, 1.0, 2.0, 2.0], 0.4),  # ties: the first of the equal ones stay
    ([np.nan, 1.0, np.inf, 5.0, 4.0, -np.inf, 0.0], 0.5),
    ([1.0], 0.9),
    (list(np.arange(25.0)), 0.4),  # (1 - .4) * 25 is above 15 in float32
    (list(np.arange(30.0)), 0.1),
    (list(np.arange(100.0)), 0.29),
]


@pytest.mark.parametrize("values, trim", TRIMS)
def test_trimmed_mean_by_hand(values, trim):
    """Of n finite values the floor(trim n) highest go; the gradient shows which: -1/kept each."""
    finite = [(v, i) for i, v in enumerate(values) if np.isfinite(v)]
    num_dropped = int(fractions.Fraction(str(trim)) * len(finite))
    kept = sorted(finite)[: len(finite) - num_dropped]
    expected = np.zeros(len(values))
    expected[[i for _, i in kept]] = -1 / len(kept)
    fn = jax.value_and_grad(lambda v: contrast([0.0], v, trim=trim), has_aux=True)
    (loss, metrics), gradient = jax.jit(fn)(jnp.array(values))
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)
    np.testing.assert_allclose(loss, -np.mean([v for v, _ in kept]), rtol=1e-6)
    np.testing.assert_allclose(metrics["negative_ess"], len(kept) / len(values), rtol=1e-6)


def test_floor_by_hand():
    """weight * gap = .5 * (1 - 4) = -1.5: cut at -1, not at -2; above 0 never."""
    loss = lambda v, floor: contrast(v, [3.0, 5.0], weight=0.5, floor=floor)
    for values, floor, expected, slope in [
        ([0.0, 2.0], 1.0, -1.0, 0.0),
        ([0.0, 2.0], 2.0, -1.5, 0.25),
        ([0.0, 2.0], 0.0, 0.0, 0.0),
        ([9.0, 9.0], 1.0, 2.5, 0.25),
    ]:
        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.array(values), floor)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        np.testing.assert_allclose(gradient, [slope, slope])
        assert metrics["floored"] == (slope == 0)
        np.testing.assert_allclose(metrics["energy_gap"], np.mean(values) - 4)  # the gap itself is not cut


def test_log_weights_by_hand():
    """Self-normalised, at any scale; those that are no weights weigh nothing; none carries a gradient."""
    data, negatives = [1.0, 2.0], [4.0, 0.0, 7.0, 100.0]
    log_weights = jnp.array([np.log(3.0), 0.0, -np.inf, np.nan]) + 50
    loss, metrics = contrast(data, negatives, log_weights=log_weights)
    np.testing.assert_allclose(loss, 1.5 - 3.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["negative_ess"], 16 / 10 / 4, rtol=1e-5)
    gradient = jax.grad(lambda w: contrast(data, negatives, log_weights=w)[0])(
        jnp.array([1.0, 0.0, 2.0, 1.0])
    )
    np.testing.assert_array_equal(gradient, np.zeros(4))


def test_log_weights_and_trim_together():
    """The highest value goes whatever it weighs; the others keep their proportions."""
    loss, _ = contrast([0.0], [1.0, 2.0, 9.0], log_weights=jnp.log(jnp.array([1.0, 3.0, 1000.0])), trim=0.34)
    np.testing.assert_allclose(loss, -7 / 4, rtol=1e-6)


def test_energy_l2_by_hand():
    """.1 (mean of 1, 4 + mean of 9, 25), beside a floor that it is no part of."""
    loss, metrics = contrast([1.0, -2.0], [3.0, 5.0], energy_l2=0.1)
    np.testing.assert_allclose(loss, -0.5 - 4 + 0.1 * (2.5 + 17), rtol=1e-6)
    np.testing.assert_allclose(metrics["data_energy"], -0.5)
    np.testing.assert_allclose(metrics["negative_energy"], 4.0)
    gradient = jax.grad(lambda v: contrast([1.0], v, floor=0.5, energy_l2=0.1)[0])(jnp.array([3.0, 5.0]))
    np.testing.assert_allclose(gradient, [0.3, 0.5], rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"trim": 0.25, "log_weights": True, "energy_l2": 0.1}])
def test_a_tenth_not_finite(options):
    """The loss of the finite ones, finite gradients, the fractions reported."""
    rng = np.random.default_rng(2)
    data, negatives = rng.normal(size=(2, 40)).astype(np.float32)
    bad_data, bad_negatives = data.copy(), negatives.copy()
    at = np.array([0, 13, 22, 39])
    bad_data[at] = np.nan, np.inf, -np.inf, np.nan
    bad_negatives[at] = -np.inf, np.nan, np.inf, np.nan
    log_weights = rng.normal(size=40).astype(np.float32) if options.get("log_weights") else None
    rest = {k: v for k, v in options.items() if k != "log_weights"}
    subset = lambda x: None if x is None else np.delete(x, at)

    def loss(values, log_weights):
        return losses.contrastive_divergence_loss(*values, log_weights=log_weights, **rest)

    fn = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, metrics), gradient = fn((jnp.array(bad_data), jnp.array(bad_negatives)), log_weights)
    fewer = (jnp.array(subset(data)), jnp.array(subset(negatives)))
    (expected, _), expected_gradient = fn(fewer, subset(log_weights))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for came, exact in zip(gradient, expected_gradient):
        np.testing.assert_allclose(subset(came), exact, rtol=1e-5, atol=1e-7)
        np.testing.assert_array_equal(np.asarray(came)[at], 0)
    np.testing.assert_allclose([metrics["nonfinite_data"], metrics["nonfinite_negatives"]], 0.1, rtol=1e-5)


def test_nothing_left_on_one_side_is_no_contrast():
    """One mean alone would push V up or down without end."""
    for data, negatives in (([1.0, 2.0], [np.nan, np.inf]), ([np.nan, np.nan], [1.0, 2.0])):
        fn = jax.value_and_grad(lambda *v: contrast(*v, weight=3.0)[0], argnums=(0, 1))
        value, gradient = fn(jnp.array(data), jnp.array(negatives))
        assert value == 0
        np.testing.assert_array_equal(np.stack(gradient), 0)


# energy_matching_loss


def make_batch(event=(3,), seed=3):
    x_0, x_1 = pairs(event, seed=seed)
    data, prior = pairs(event, seed=seed + 1)
    return losses.Batch(x_0, x_1, data, prior), pairs(event, seed=seed + 2)[0]


def matching(params, batch, negatives, potential=quadratic, **options):
    options = {"lambda_cd": 2.0, "gate": losses.energy_gate(0.5, margin=0.0), "sigma": 0.1} | options
    return losses.energy_matching_loss(potential, params, KEY, batch, negatives, **options)


def test_it_is_the_sum_of_both():
    batch, negatives = make_batch((2, 3, 1))
    params = parameters((2, 3, 1))
    loss, metrics = matching(params, batch, negatives, trim=0.1, energy_l2=0.01)
    values = quadratic(params, batch.data)
    first, flow_metrics = flow(
        params, batch.x_0, batch.x_1, sigma=0.1, gate=losses.energy_gate(0.5, margin=0.0), data_values=values
    )
    second, contrast_metrics = losses.contrastive_divergence_loss(
        values, quadratic(params, negatives), weight=2.0, trim=0.1, energy_l2=0.01
    )
    np.testing.assert_allclose(loss, first.mean() + second, rtol=1e-5)
    expected = flow_metrics | contrast_metrics | {"flow_loss": first.mean(), "contrastive_loss": second}
    norm = lambda x: 1.7 * np.mean(np.linalg.norm((x - np.asarray(params["m"])).reshape(B, -1), axis=-1))
    expected |= {"data_gradient_norm": norm(batch.data), "negative_gradient_norm": norm(negatives)}
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    without = matching(params, batch._replace(data=None), negatives)[1]
    np.testing.assert_allclose(without["data_energy"], quadratic(params, batch.x_1).mean(), rtol=1e-5)


def test_a_constant_added_to_the_potential_changes_nothing_but_the_l2(x64):
    batch, negatives = jax.tree.map(np.float64, make_batch())
    params = parameters((3,), np.float64)
    shifted = lambda p, x: quadratic(p, x) + 7.0

    def grad(V, **options):
        fn = lambda p: matching(p, batch, negatives, V, trim=0.2, floor=50.0, **options)[0]
        return jax.jit(jax.value_and_grad(fn))(params)

    chex.assert_trees_all_close(grad(quadratic), grad(shifted), rtol=1e-10)
    assert abs(grad(quadratic, energy_l2=1.0)[0] - grad(shifted, energy_l2=1.0)[0]) > 1


def test_rows_that_are_not_finite_do_not_reach_the_parameters():
    """NaN x_0, x_1, data and negatives through matrix products, where a weight of 0 still gives 0 * NaN."""

    def network(params, x):
        return jnp.sum(jnp.tanh(x @ params), axis=-1)

    params = jnp.array(np.random.default_rng(6).normal(size=(3, 5)), jnp.float32)
    batch, negatives = make_batch()
    at = np.array([0, 9, 33, 50, 62, 63])
    bad = batch._replace(**{k: np.copy(getattr(batch, k)) for k in ("x_0", "x_1", "data")})
    bad.x_0[at[:2], 0], bad.x_1[at[2:], 1], bad.data[at, 2] = np.nan, np.inf, np.nan
    bad_negatives = negatives.copy()
    bad_negatives[at, 0] = np.nan
    both = lambda p, *args: matching(p, *args, network, gate=None)
    fn = jax.jit(lambda *args: jax.value_and_grad(both, has_aux=True)(params, *args))
    (loss, metrics), gradient = fn(bad, bad_negatives)
    np.testing.assert_allclose(metrics["nonfinite_flow"], 6 / 64, rtol=1e-5)
    np.testing.assert_allclose(metrics["nonfinite_data"], 6 / 64, rtol=1e-5)
    np.testing.assert_allclose(metrics["nonfinite_negatives"], 6 / 64, rtol=1e-5)

    # The same with those examples left out: the flow loss divides by B all the same.
    def expected(p):
        per_example, _ = losses.flow_matching_loss(network, p, KEY, batch.x_0, batch.x_1, sigma=0.1)
        first = jnp.sum(jnp.delete(per_example, at)) / B
        keep = lambda x: network(p, np.delete(x, at, axis=0))
        return first + 2 * (jnp.mean(keep(batch.data)) - jnp.mean(keep(negatives)))

    chex.assert_trees_all_close(
        (loss, gradient), jax.jit(jax.value_and_grad(expected))(params), rtol=1e-4, atol=1e-5
    )
    (loss, metrics), gradient = fn(jax.tree.map(lambda x: x * jnp.nan, batch), negatives * jnp.nan)
    assert loss == 0
    assert metrics["nonfinite_flow"] == metrics["nonfinite_data"] == 1
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, "gradient"])
def test_regions_where_the_potential_is_not_finite(bad):
    """Beyond x[0] = 1 V is bad, or its gradient alone: weight zero, counted, and finite gradients."""

    def region(p, x):
        if bad == "gradient":
            return quadratic(p, x) + jnp.where(x[:, 0] > 1, jnp.sqrt(jnp.maximum(1 - x[:, 0], 0)), 0)
        return jnp.where(x[:, 0] > 1, bad, quadratic(p, x))

    batch, negatives = make_batch()
    fn = jax.jit(jax.value_and_grad(lambda p: matching(p, batch, negatives, region), has_aux=True))
    (loss, metrics), gradient = fn(parameters((3,)))
    t, eta = draws(KEY, B, (3,), 0.1)
    x_t = (1 - t[:, None]) * batch.x_0 + t[:, None] * batch.x_1 + eta
    np.testing.assert_allclose(metrics["nonfinite_flow"], np.mean(x_t[:, 0] > 1), rtol=1e-5)
    by_value = bad != "gradient"  # the contrast takes values alone
    for name, x in (("nonfinite_data", batch.data), ("nonfinite_negatives", negatives)):
        np.testing.assert_allclose(metrics[name], by_value * np.mean(x[:, 0] > 1), rtol=1e-5)
    assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves((loss, metrics, gradient)))
    assert np.any(gradient["m"] != 0)


@pytest.mark.parametrize("how", ["shard_map", "pmap"])
def test_eight_devices_compute_what_one_does(mesh8, how):
    """Loss, gradient and metrics to 1e-5: gate, trim, weights, floor (on and off) and uneven bad values."""
    batch, negatives = make_batch()
    batch.data[:8] = np.nan  # the whole first shard
    negatives = 3 * negatives
    negatives[60:62] = np.nan
    log_weights = np.random.default_rng(4).normal(size=B).astype(np.float32)
    params = parameters((3,))

    def fn(params, batch, negatives, log_weights, floor, axis_name=None):
        def loss(p):
            value, metrics = matching(
                p, batch, negatives, trim=0.3, floor=floor, log_weights=log_weights, energy_l2=0.01,
                axis_name=axis_name,
            )  # fmt: skip
            return collectives.pmean(value, axis_name), metrics

        out = jax.value_and_grad(loss, has_aux=True)(params)
        return collectives.pmean(out, axis_name)

    for floor in (1.0, 22.0):  # of 2 |gap| = 21.1, by which not every device's share would go
        inputs = (batch, negatives, log_weights)
        one = jax.jit(fn, static_argnums=4)(params, *inputs, floor)
        assert one[0][1]["floored"] == (floor < 21.1)
        over = lambda *args: fn(*args, floor, axis_name="i")  # noqa: B023
        if how == "shard_map":
            specs = (P(), P("i"), P("i"), P("i"))
            eight = jax.jit(jax.shard_map(over, mesh=mesh8, in_specs=specs, out_specs=P()))(params, *inputs)
        else:
            split = jax.tree.map(lambda x: x.reshape(8, -1, *x.shape[1:]), inputs)
            eight = jax.pmap(over, axis_name="i", in_axes=(None, 0, 0, 0))(params, *split)
            eight = jax.tree.map(lambda x: x[5], eight)
        chex.assert_trees_all_close(eight, one, rtol=1e-5, atol=1e-5)


def raises(call, error, message):
    return pytest.param(call, error, message, id=message)


PARAMS = parameters((3,))
X = jnp.ones((4, 3))
V = jnp.ones(4)


@pytest.mark.parametrize(
    "call, error, message",
    [
        raises(lambda: flow(PARAMS, X, X[:2]),
               ValueError, r"x_1 must have the shape of x_0, \(4, 3\), got \(2, 3\)"),
        raises(lambda: flow(PARAMS, V, V), ValueError, r"x_0 must have at least 2 axes, got shape \(4,\)"),
        raises(lambda: flow(PARAMS, X, X.astype(int)),
               TypeError, "x_1 must be floating point, got dtype int32"),
        raises(lambda: flow(PARAMS, X, X, sigma=-1.0),
               ValueError, "sigma must be finite and non-negative, got -1.0"),
        raises(lambda: losses.flow_matching_loss(quadratic, PARAMS, 0, X, X),
               TypeError, "key must be a typed PRNG key, .* got 0"),
        raises(lambda: losses.flow_matching_loss(lambda p, x: x, PARAMS, KEY, X, X),
               ValueError, r"potential must return shape \(4,\), got \(4, 3\)"),
        raises(lambda: losses.time_gate(1.5), ValueError, r"tau_star must lie in \[0, 1\], got 1.5"),
        raises(lambda: losses.energy_gate(0.0), ValueError, "epsilon must be finite and positive, got 0.0"),
        raises(lambda: losses.energy_gate(1.0, margin="m"), TypeError, "margin must be a number, got 'm'"),
        raises(lambda: losses.energy_gate(1.0, width=0.0), ValueError, "width must be finite and positive"),
        raises(lambda: losses.energy_gate(1.0, quantile=1.5),
               ValueError, r"quantile must lie in \[0, 1\], got 1.5"),
        raises(lambda: losses.contrastive_divergence_loss(X, V),
               ValueError, r"data_values must be a vector of at least 1, got shape \(4, 3\)"),
        raises(lambda: losses.contrastive_divergence_loss(V, V[:0]),
               ValueError, r"negative_values must be a vector of at least 1, got shape \(0,\)"),
        raises(lambda: losses.contrastive_divergence_loss(V, jnp.arange(4)),
               TypeError, "negative_values must be floating point, got dtype int32"),
        raises(lambda: contrast(V, V, weight=-1.0),
               ValueError, "weight must be finite and non-negative, got -1.0"),
        raises(lambda: contrast(V, V, trim=1.0), ValueError, r"trim must be in \[0, 1\), got 1.0"),
        raises(lambda: contrast(V, V, trim="1"), TypeError, "trim must be a number, got '1'"),
        raises(lambda: contrast(V, V, floor=-1.0),
               ValueError, "floor must be finite and non-negative, got -1.0"),
        raises(lambda: contrast(V, V, energy_l2=np.nan), ValueError, "energy_l2 must be finite .*, got nan"),
        raises(lambda: contrast(V, V, log_weights=V[:2]),
               ValueError, r"log_weights must have shape \(4,\), got \(2,\)"),
        raises(lambda: matching(PARAMS, losses.Batch(X, X, X.astype(int)), X),
               TypeError, "batch.data must be floating point, got dtype int32"),
        raises(lambda: matching(PARAMS, losses.Batch(X, X), X[:, :2]),
               ValueError, r"negatives must have event shape \(3,\), got \(2,\)"),
        raises(lambda: matching(PARAMS, losses.Batch(X, X), V),
               ValueError, "negatives must have at least 2 axes"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()
