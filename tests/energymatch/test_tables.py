"""Energy Matching on tables: columns without a density, dithering, the guard of the contrast, its flags."""

import functools
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from scipy import stats

from energymatch import couplings, losses, matching, preprocessing
from energymatch.losses import Batch
from energymatch.losses.contrast import negative_limit
from energymatch.negatives import Tempered
from energymatch.networks import MLPPotential

KEY = jax.random.key(11)


def table(num=400, seed=0):
    """Columns: normal, two values, a copy of the first, integers 0..4, constant, many zeros, a sum."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, num))
    zeros = np.where(rng.uniform(size=num) < 0.4, 0.0, rng.normal(size=num))
    columns = [a, rng.integers(0, 2, num) * 2.0 - 1, a, rng.integers(0, 5, num), np.full(num, 3.0), zeros, b]
    return np.stack([*columns, a + 2 * b], axis=1).astype(np.float32)


# Columns and their noise


def test_columns_without_a_density_are_named():
    names = ["a", "sex", "copy", "children", "unit", "dose", "b", "total"]
    report = preprocessing.check_columns(table(), names)
    assert report.discrete == (1, 3, 5)
    assert report.constant == (4,)
    assert report.dependent == (2, 7)
    np.testing.assert_array_equal(report.num_distinct[[1, 3, 4]], [2, 5, 1])
    np.testing.assert_allclose(report.spacing[[1, 3]], [2, 1])
    text = "\n".join(report.problems)
    for part in (
        "'unit' is constant", "'sex' has 2 distinct values", "'children' has 5", "'dose' has one value",
        "'copy' is a copy of column 'a'", "'total' is linear in column",
    ):  # fmt: skip
        assert part in text, text
    assert "'b'" not in text.replace("in column 'b'", "").replace(", column 'b'", "")


def test_columns_with_a_density_pass():
    """Also heavy tails, few examples, rows drawn again with replacement, values rounded to 3 digits."""
    rng = np.random.default_rng(2)
    for x in (
        rng.normal(size=(500, 8)), rng.standard_t(1.2, size=(500, 3)), rng.normal(size=(12, 30)),
        rng.normal(size=(331, 5))[rng.integers(0, 331, 600)], np.round(rng.normal(size=(300, 2)), 2),
    ):  # fmt: skip
        assert preprocessing.check_columns(x.astype(np.float32)).problems == ()


def test_noise_scales():
    scale = preprocessing.noise_scales(table())
    x = table()
    np.testing.assert_allclose(scale[[1, 3]], [1 / 3, 1 / 6], rtol=1e-6)
    np.testing.assert_allclose(scale[0], 0.02 * x[:, 0].std(), rtol=1e-5)
    np.testing.assert_allclose(scale[2], 0.1 * x[:, 0].std(), rtol=1e-5)
    assert np.all(scale > 0)
    assert preprocessing.noise_scales(np.zeros((10, 2, 3), np.float32)).shape == (2, 3)


def test_dithered_density_and_the_bound_on_discrete_values():
    """Two values with p = .3, .7: log P from p_s, above it by the overlap alone."""
    n, s = 200_000, 1 / 3
    value = jnp.where(jnp.arange(n) < 0.3 * n, -1.0, 1.0)[:, None]
    x = np.asarray(preprocessing.dither(KEY, value, s), np.float64)[:, 0]
    density = lambda x: 0.3 * stats.norm(-1, s).pdf(x) + 0.7 * stats.norm(1, s).pdf(x)
    cumulative = lambda x: 0.3 * stats.norm(-1, s).cdf(x) + 0.7 * stats.norm(1, s).cdf(x)
    assert stats.kstest(x, cumulative).pvalue > 1e-4
    entropy = np.log(s * np.sqrt(2 * np.pi * np.e))
    for v, p in ((-1, 0.3), (1, 0.7)):
        here = x[np.asarray(value)[:, 0] == v]
        bound = np.mean(np.log(density(here))) + entropy
        # 4 standard errors of the mean of log-densities, whose deviation is sqrt(1/2).
        error = 4 * np.sqrt(0.5 / len(here))
        assert -error < bound - np.log(p) < 0.02 + error, (bound, np.log(p))
        mass = cumulative(0.0) if v < 0 else 1 - cumulative(0.0)
        assert abs(mass - p) < 0.001  # .13% of each lies on the other's side


def test_noise_a_column_may_be_traced():
    x = jnp.zeros((50_000, 3))
    noise = jnp.array([0.0, 0.1, 2.0])
    out = jax.jit(preprocessing.dither)(KEY, x, noise)
    np.testing.assert_array_equal(out[:, 0], 0)
    np.testing.assert_allclose(out.std(0)[1:], noise[1:], rtol=4 / np.sqrt(2 * 50_000))
    chex.assert_trees_all_close(out, preprocessing.dither(KEY, x, np.asarray(noise)), rtol=1e-6)
    images = preprocessing.dither(KEY, jnp.zeros((4, 2, 3)), tuple(range(6)))
    assert images.shape == (4, 2, 3)
    assert images[0, 0, 0] == 0


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: preprocessing.check_columns(np.zeros((3, 2), int)), TypeError, "x must be floating point"),
        (lambda: jax.jit(preprocessing.noise_scales)(jnp.ones((3, 2))), TypeError, "x must be known data"),
        (lambda: preprocessing.check_columns(np.full((3, 2), np.nan)), ValueError, "x must be finite"),
        (lambda: preprocessing.check_columns(np.zeros((0, 2))), ValueError, "at least one element"),
        (lambda: preprocessing.check_columns(np.ones((3, 2)), ["a"]), ValueError, "names must be 2"),
        (lambda: preprocessing.dither(KEY, jnp.ones((3, 2)), -1.0), ValueError, "noise must be finite"),
        (lambda: preprocessing.dither(KEY, jnp.ones((3, 2)), np.ones(3)), ValueError, "noise must broadcast"),
        (lambda: matching.MatchingConfig(data_noise=-1.0), ValueError, "data_noise must be finite and non-"),
        (lambda: matching.MatchingConfig(data_noise=[1.0]), TypeError, "data_noise must be a number"),
        (lambda: matching.MatchingConfig(guard=0.0), ValueError, "guard must be finite and positive"),
        (lambda: negative_limit(0, 1.0), ValueError, "dim must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The recipe


def test_the_recipe_names_columns_at_the_door():
    x = table(64)
    net = MLPPotential(width=8, depth=1)
    params = net.init(KEY, x)
    init = lambda **config: matching.make_matching(
        net.apply, optax.adam(1e-3), matching.MatchingConfig(**config)
    )[0]
    with pytest.warns(UserWarning, match="no density.*column 1 has 2 distinct values.*data_noise"):
        init()(params, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        init(data_noise=tuple(map(float, preprocessing.noise_scales(x))))(params, x)
        init()(params, np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32))


def test_noise_is_new_in_every_step_and_the_same_on_any_number_of_devices(mesh8):
    """The losses of a potential that is the identity of the data, with and without noise."""
    potential = lambda p, x: p * jnp.sum(x**2, axis=-1)
    source = Tempered(num_rungs=2, num_steps=1)
    config = matching.MatchingConfig(data_noise=(0.0, 0.5), negatives=source, gate=None)
    x = np.zeros((4096, 2), np.float32)

    def one(axis_name=None):
        init, step = matching.make_matching(potential, optax.sgd(0.0), config, axis_name=axis_name)

        def run(key, x):
            return step(key, init(jnp.float32(1.0), x), Batch(x, x, x))[1]

        return run

    metrics = [jax.jit(one())(jax.random.fold_in(KEY, i), x) for i in range(2)]
    assert metrics[0]["data_energy"] != metrics[1]["data_energy"]
    # E (.5 eta)^2 = .25 with deviation .25 sqrt(2/4096).
    np.testing.assert_allclose([m["data_energy"] for m in metrics], 0.25, atol=4 * 0.25 * np.sqrt(2 / 4096))
    eight = jax.shard_map(one("i"), mesh=mesh8, in_specs=(P(), P("i")), out_specs=P())
    chex.assert_trees_all_close(
        jax.jit(eight)(jax.random.fold_in(KEY, 0), x), metrics[0], rtol=2e-4, atol=2e-4
    )


# The guard


def contrast(data, negatives, limit=5.0, log_weights=None):
    def loss(d, n):
        return losses.contrastive_divergence_loss(d, n, limit=limit, log_weights=log_weights)

    f = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (value, metrics), gradient = f(jnp.asarray(data, jnp.float32), jnp.asarray(negatives, jnp.float32))
    return float(value), metrics, gradient


def test_the_limit_by_hand():
    """Data at 0 (so is their quantile), limit 5: a negative at 9 has no say, the data three quarters."""
    value, metrics, (on_data, on_negatives) = contrast(np.zeros(5), [1.0, 2.0, 3.0, 9.0])
    np.testing.assert_allclose(value, 0.75 * (0 - 2), rtol=1e-6)
    np.testing.assert_allclose(on_data, np.full(5, 0.75 / 5), rtol=1e-6)
    np.testing.assert_allclose(on_negatives, [-0.25, -0.25, -0.25, 0.0], atol=1e-7)
    assert (metrics["contrast_kept"], metrics["diverging"]) == (0.75, 0)
    np.testing.assert_allclose(metrics["energy_gap"], -15 / 4)
    # As long as nothing is beyond it the limit changes nothing.
    plain = contrast(np.arange(4.0), [1.0, 2.0, 3.0, 4.0], None)
    chex.assert_trees_all_equal(plain, contrast(np.arange(4.0), [1.0, 2.0, 3.0, 4.0], 50.0))


def test_a_contrast_beyond_the_limit_waits_and_says_so():
    for negatives in ([6.0, 7.0, 8.0], [0.0, 9.0, 9.0, 9.0], [np.inf, 40.0, 40.0]):
        value, metrics, gradient = contrast(np.zeros(3), negatives)
        assert value == 0
        assert metrics["diverging"] == 1
        assert all(np.all(g == 0) for g in gradient)
    # One chain of 64 that is far away decides nothing.
    value, metrics, gradient = contrast(np.zeros(8), np.append(np.zeros(63), 1e8))
    assert metrics["diverging"] == 0
    np.testing.assert_allclose(metrics["contrast_kept"], 63 / 64, rtol=1e-6)
    assert gradient[1][-1] == 0
    # Chains far below the data: V is wrong there, and lifting it is the cure.
    value, metrics, gradient = contrast(np.zeros(3), [-50.0, -60.0])
    assert metrics["diverging"] == 1
    assert np.all(gradient[1] < 0)
    # Nothing known is no divergence.
    assert contrast(np.full(2, np.nan), [0.0, 1.0])[1]["diverging"] == 0


def test_the_limit_on_eight_devices(mesh8):
    rng = np.random.default_rng(3)
    data, negatives = rng.normal(size=32).astype(np.float32), rng.normal(2, 4, size=64).astype(np.float32)
    log_weights = rng.normal(size=64).astype(np.float32)

    def fn(d, n, w, axis_name=None):
        loss, metrics = losses.contrastive_divergence_loss(
            d, n, limit=4.0, trim=0.1, log_weights=w, axis_name=axis_name
        )
        mean = lambda a: a if axis_name is None else jax.lax.pmean(a, axis_name)
        return mean(loss), jax.tree.map(mean, metrics)

    one = jax.jit(fn)(data, negatives, log_weights)
    assert 0 < one[1]["contrast_kept"] < 1
    eight = jax.shard_map(
        functools.partial(fn, axis_name="i"), mesh=mesh8, in_specs=(P("i"),) * 3, out_specs=P()
    )
    drop = lambda m: {k: v for k, v in m.items() if not k.startswith("nonfinite")}
    out = jax.jit(eight)(data, negatives, log_weights)
    np.testing.assert_allclose(out[0], one[0], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(drop(out[1]), drop(one[1]), rtol=1e-4, atol=1e-5)


def train(data, config, num_steps, seed=0, width=32, rate=3e-3):
    """README's recipe on a table: (metrics [num_steps], V)."""
    net, key, dim = MLPPotential(width=width), jax.random.key(seed), data.shape[1]
    data = jnp.asarray(data)

    def draw(key):
        keys = jax.random.split(key, 3)
        x_0, (x_1, x) = jax.random.normal(keys[0], (64, dim)), jax.random.choice(keys[1], data, (2, 64))
        return Batch(*couplings.independent(keys[2], x_0, x_1), x)

    def phase(init, step, start, num):
        body = lambda state, k: step(k, state, draw(jax.random.fold_in(k, 1)))
        return jax.jit(lambda s: jax.lax.scan(body, s, jax.random.split(key, num)))(init(*start))

    state, _ = phase(*matching.make_warm_up(net.apply, optax.adam(2e-3)), (net.init(key, data[:1]),), 200)
    make = matching.make_matching(net.apply, optax.adam(rate), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, metrics = phase(*make, (state.ema_params, data[:64]), num_steps)
    return jax.tree.map(np.asarray, metrics), functools.partial(net.apply, state.train.ema_params)


def standardised(x):
    deviation = x.std(0)
    return ((x - x.mean(0)) / np.where(deviation > 0, deviation, 1)).astype(np.float32)


@pytest.mark.slow
def test_chains_that_cannot_follow_do_not_carry_v_away():
    """A table of 331 people, 10 columns, one of two values (`sex`), whose valleys moves of fixed length miss.

    The gap ran away without a word (-143 at step 3,000 of README's recipe). With the guard it is held and
    said; with moves that adapt, the default, there is nothing to hold.
    """
    from sklearn import datasets

    x = standardised(datasets.load_diabetes().data[:331])
    assert 1 in preprocessing.check_columns(x).discrete
    limit = negative_limit(10, 1.0)
    fixed = Tempered(num_rungs=4, factor=1.7, adapt=False)
    options = dict(num_steps=2000, width=64, rate=2e-3)
    free, _ = train(x, matching.MatchingConfig(guard=None, negatives=fixed), **options)
    assert free["energy_gap"][-100:].mean() < -5 * limit
    held, _ = train(x, matching.MatchingConfig(negatives=fixed), **options)
    assert held["energy_gap"][-500:].mean() > -4 * limit
    assert held["energy_gap"][-500:].min() > -12 * limit
    assert held["diverging"][-500:].mean() > 0.5
    followed, _ = train(x, matching.MatchingConfig(), **options)
    assert np.all(np.abs(followed["energy_gap"]) < limit)
    assert followed["diverging"].mean() < 0.02
    assert np.all(np.abs(followed["cold_acceptance"][-200:] - 0.57) < 0.1)


@pytest.mark.slow
def test_dithering_bounds_the_slope():
    """A column of two values: V becomes steeper without end, with noise it does not."""
    rng = np.random.default_rng(4)
    x = standardised(np.stack([rng.normal(size=400), rng.integers(0, 2, 400)], axis=1))
    noise = tuple(map(float, preprocessing.noise_scales(x)))
    slopes = {}
    for name, config in (("bare", {}), ("dithered", {"data_noise": noise})):
        metrics, _ = train(x, matching.MatchingConfig(negatives=Tempered(num_steps=4), **config), 2000)
        slopes[name] = metrics["negative_gradient_norm"][-100:].mean()
        assert np.all(metrics["diverging"][-500:] == 0)
    # Of a normal of deviation s the mean slope is sqrt(2/pi)/s: 2.4 at s = 1/3.
    assert slopes["bare"] > 2 * slopes["dithered"], slopes
    assert slopes["dithered"] < 6
