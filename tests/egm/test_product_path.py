"""The product path against its parts, and against enumeration and quadrature on a mixed target."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egm.paths import CenteredPath, LinearPath, VarianceExplodingPath
from egm.paths.masked import MaskedPath
from egm.paths.product import ProductPath
from egm.typing import Path

V, L = 3, 2
X, H = VarianceExplodingPath(0.1, 3.0), MaskedPath(V)
MIXED = ProductPath({"x": X, "h": H})


def make_key(seed):
    """A typed key of the generator that compiles fastest."""
    return jax.random.key(seed, impl="rbg")


def state(*batch, masked=False):
    x = jax.random.normal(make_key(0), (*batch, 2))
    h = jax.random.randint(make_key(1), (*batch, L), 0, V + 1 if masked else V, jnp.int32)
    return {"x": x, "h": h}


def log_density(state, t):
    """A phi that couples tokens and coordinates, defined for masks too."""
    x, h = state["x"], state["h"]
    assert x.shape == (*t.shape, 2) and h.shape == (*t.shape, L)
    return -jnp.sum(jnp.square(x - 0.7 * h), -1) * (1 + t) - 0.3 * h[:, 0] * h[:, 1]


def test_is_a_path():
    assert isinstance(MIXED, Path)
    assert MIXED.paths == {"x": X, "h": H}
    assert repr(MIXED) == f"ProductPath({MIXED.paths!r})"


def test_probabilities_add():
    x_1, t, r = state(3, 4), jnp.array([0.1, 0.3, 0.5, 0.7]), jnp.array([0.2, 1.0, 0.8, 0.9])
    x_t = MIXED.sample(make_key(2), jax.tree.map(lambda a: a[0], x_1), t)
    x_r = MIXED.propose(make_key(3), x_t, t, r, 3)
    parts = ((X, "x"), (H, "h"))
    for came, method in (
        (MIXED.log_noising(x_t, t, x_r, r), lambda p, n: p.log_noising(x_t[n], t, x_r[n], r)),
        (MIXED.log_normalizer(x_t, t, r), lambda p, n: p.log_normalizer(x_t[n], t, r)),
        (MIXED.contains(x_r), lambda p, n: p.contains(x_r[n])),
    ):
        expected = [method(path, name) for path, name in parts]
        total = expected[0] & expected[1] if came.dtype == bool else expected[0] + expected[1]
        np.testing.assert_allclose(came, total, rtol=1e-6)
    x_0 = MIXED.sample_prior(make_key(4), {"x": (5, 2), "h": (5, L)})
    assert jnp.all(x_0["h"] == V) and x_0["x"].shape == (5, 2)
    np.testing.assert_allclose(MIXED.prior_log_density(x_0), X.prior_log_density(x_0["x"]))
    generator = MIXED.conditional_generator(x_t, t, x_r, r)
    for path, name in parts:
        expected = path.conditional_generator(x_t[name], t, x_r[name], r)
        np.testing.assert_array_equal(generator[name], expected)
    assert generator["h"].shape == (3, 4, L, V)


def test_normalizer_by_quadrature_and_enumeration(x64):
    """Z_{r|t} is the integral over x_r and the sum over h_r of p_{t|r}."""
    path = ProductPath({"x": X, "h": H})
    x_t, t, r = {"x": jnp.array([0.4]), "h": jnp.array([V, 1])}, 0.3, 0.7
    tokens = jnp.array(list(itertools.product(range(V + 1), repeat=L)))
    grid = jnp.linspace(-30, 30, 4001)
    shape = (len(tokens), len(grid))
    x_r = {
        "x": jnp.broadcast_to(grid[None, :, None], (*shape, 1)),
        "h": jnp.broadcast_to(tokens[:, None], (*shape, L)),
    }
    density = jnp.exp(path.log_noising(x_t, t, x_r, r))
    total = jnp.trapezoid(density.sum(0), grid)
    np.testing.assert_allclose(path.log_normalizer(x_t, t, r), jnp.log(total), atol=1e-7)


def test_parts_are_drawn_with_keys_of_their_own():
    path = ProductPath({"a": LinearPath(), "b": LinearPath()})
    x = {"a": jnp.zeros((4000, 1)), "b": jnp.zeros((4000, 1))}
    for out in (
        path.sample_prior(make_key(0), {"a": (4000, 1), "b": (4000, 1)}),
        path.sample(make_key(1), x, 0.5),
        path.noise(make_key(2), x, 0.9, 0.5),
        jax.tree.map(lambda a: a[0], path.propose(make_key(3), x, 0.5, 0.9, 1)),
    ):
        correlation = np.corrcoef(out["a"][:, 0], out["b"][:, 0])[0, 1]
        assert abs(correlation) < 4 / np.sqrt(4000)


@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_local_generator_holds_the_other_part(batch):
    """Each part is the local form of phi with the other part a constant of that example."""
    x_t = state(*batch, masked=True)
    size = int(np.prod(batch))
    t = (jnp.arange(size) / 10 + 0.2).reshape(batch)
    came = MIXED.local_generator(log_density, x_t, t)
    assert came["x"].shape == (*batch, 2) and came["h"].shape == (*batch, L, V)
    flat = jax.tree.map(lambda a: a.reshape(size, a.shape[-1]), x_t)
    for i, time in enumerate(t.reshape(-1)):
        x, h = flat["x"][i], flat["h"][i]

        def phi(x, h, time=time):
            return log_density({"x": x[None], "h": h[None]}, time[None])[0]

        velocity = X.velocity_from_score(jax.jit(jax.grad(phi))(x, h), x, time)
        np.testing.assert_allclose(came["x"].reshape(size, 2)[i], velocity, rtol=1e-5, atol=1e-6)
        for site in range(L):
            if h[site] == V:
                logits = jnp.stack([phi(x, h.at[site].set(v)) for v in range(V)])
                expected = jax.nn.softmax(logits)
            else:
                expected = jax.nn.one_hot(h[site], V)
            denoiser = came["h"].reshape(size, L, V)[i, site]
            np.testing.assert_allclose(denoiser, expected, rtol=1e-5, atol=1e-6)


def test_determined_and_data_states():
    """All parts must be determined; the tokens' masks are all that is replaced."""
    x = state(6, masked=True)
    assert not jnp.any(MIXED.determined(x)) and MIXED.determined(x).shape == (6,)
    data = MIXED.data_state(x)
    np.testing.assert_array_equal(data["x"], x["x"])
    np.testing.assert_array_equal(data["h"], H.data_state(x["h"]))
    tokens = ProductPath({"a": H, "b": H})
    pair = {"a": jnp.array([[0, 1], [0, V]]), "b": jnp.array([[2, 2], [2, 2]])}
    np.testing.assert_array_equal(tokens.determined(pair), [True, False])


def test_times_come_from_the_gaussian_part():
    np.testing.assert_array_equal(MIXED.times(10), X.times(10))
    first, second = LinearPath(t_min=0.05), VarianceExplodingPath(0.1, 9.0)
    assert ProductPath([H, first]).t_min == 0.05
    np.testing.assert_array_equal(ProductPath([H, first]).times(5), first.times(5))
    np.testing.assert_array_equal(ProductPath((H, MaskedPath(4))).times(5), H.times(5))
    nested = ProductPath({"a": H, "b": ProductPath([H, second])})
    np.testing.assert_array_equal(nested.times(5), second.times(5))
    moved = ProductPath([second, first]).times(20)
    assert moved[0] == jnp.float32(0.05) and moved[-1] == 1 and jnp.all(jnp.diff(moved) > 0)
    np.testing.assert_allclose((1 - moved)[:-1] / (1 - second.times(20))[:-1], 0.95, rtol=1e-4)


def test_other_structures_and_nesting():
    """Lists, tuples and products inside products; a centred part keeps its subspace."""
    inner = ProductPath((CenteredPath(LinearPath(), 3, 2), H))
    path = ProductPath({"cloud": inner, "y": LinearPath()})
    shape = {"cloud": ((4, 6), (4, L)), "y": (4, 1)}
    x_0 = path.sample_prior(make_key(0), shape)
    assert path.batch_shape(x_0) == (4,)
    assert jnp.max(jnp.abs(x_0["cloud"][0].reshape(4, 3, 2).sum(1))) < 1e-5
    x_r = path.propose(make_key(1), x_0, 0.2, 0.6, 3)
    assert path.log_noising(x_0, 0.2, x_r, 0.6).shape == (3, 4)
    expected = inner.log_normalizer(x_0["cloud"], 0.2, 0.6) + LinearPath().log_normalizer(x_0["y"], 0.2, 0.6)
    np.testing.assert_allclose(path.log_normalizer(x_0, 0.2, 0.6), expected, rtol=1e-6)

    def phi(x, t):
        cloud, h = x["cloud"]
        return -jnp.sum(cloud**2, -1) - jnp.sum(x["y"] ** 2, -1) + jnp.sum(h, -1) * t

    generator = path.local_generator(phi, x_0, 0.2)
    assert generator["cloud"][0].shape == (4, 6) and generator["cloud"][1].shape == (4, L, V)
    np.testing.assert_allclose(
        generator["y"], LinearPath().velocity_from_score(-2 * x_0["y"], x_0["y"], 0.2), rtol=1e-6
    )
    np.testing.assert_allclose(
        generator["cloud"][1][..., 1], jax.nn.softmax(0.2 * jnp.arange(V))[1], rtol=1e-6
    )


def test_jit_and_vmap_agree_with_eager():
    t, r, key = jnp.array([0.1, 0.3, 0.5]), jnp.array([0.4, 1.0, 0.6]), make_key(7)
    x_t = MIXED.sample(make_key(2), state(3), t)
    x_r = MIXED.propose(key, x_t, t, r, 2)

    def everything(x_t, t, x_r, r):
        return (
            MIXED.log_noising(x_t, t, x_r, r),
            MIXED.conditional_generator(x_t, t, x_r, r),
        )

    def local(x_t, t):
        return MIXED.local_generator(log_density, x_t, t)

    def near(came, expected):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), came, expected)

    eager = everything(x_t, t, x_r, r)
    near(jax.jit(everything)(x_t, t, x_r, r), eager)
    near(jax.jit(jax.vmap(everything, (0, 0, 1, 0), 1))(x_t, t, x_r, r), eager)
    near(jax.jit(MIXED.propose, static_argnums=4)(key, x_t, t, r, 2), x_r)
    expected = local(x_t, t)
    near(jax.jit(local)(x_t, t), expected)
    near(jax.jit(jax.vmap(local))(x_t, t), expected)


def test_gradients_are_finite_at_the_edges():
    path = ProductPath({"x": LinearPath(), "h": H})
    t = jnp.array([path.t_min, 0.5, 0.9999])
    r = jnp.array([1.0, 0.5001, 1.0])
    x_t = path.sample(make_key(0), state(3), t)
    x_r = path.propose(make_key(1), x_t, t, r, 2)

    @jax.jit
    @jax.value_and_grad
    def value(x, t, r):
        x_t_, x_r_ = {**x_t, "x": x}, x_r
        generator = path.conditional_generator(x_t_, t, x_r_, r)
        return (
            path.log_noising(x_t_, t, x_r_, r).sum()
            + path.log_normalizer(x_t_, t, r).sum()
            + generator["x"].sum()
            + generator["h"].sum()
        )

    for leaf in jax.tree.leaves(value(x_t["x"], t, r)):
        assert jnp.all(jnp.isfinite(leaf))


def test_hash_equality_and_one_trace():
    twin = ProductPath({"h": MaskedPath(V), "x": VarianceExplodingPath(0.1, 3)})
    assert twin == MIXED and hash(twin) == hash(MIXED)
    assert ProductPath({"x": X, "z": H}) != MIXED and ProductPath([H, X]) != MIXED
    traces = []

    def total(path, x):
        traces.append(path)
        return path.log_normalizer(x, 0.2, 0.5)

    jitted = jax.jit(total, static_argnums=0)
    for path in (MIXED, twin, ProductPath(MIXED.paths)):
        jitted(path, state(2))
    assert len(traces) == 1


class OneTooMany(MaskedPath):
    """A path that evaluates phi at a number of points that is no multiple of the batch."""

    def local_generator(self, log_density, x_t, t):
        return log_density(x_t[:2], t[:2])


S = state(3)
KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: ProductPath({}), ValueError, "paths must hold at least one path"),
        (lambda: ProductPath({"x": 1.0}), TypeError, "every leaf of paths must be a path, got 1.0"),
        (lambda: ProductPath({"x": LinearPath}), TypeError, "must be a path, got <class"),
        (
            lambda: MIXED.batch_shape({"x": S["x"]}),
            ValueError,
            r"x must have the structure PyTreeDef\(\{'h': \*, 'x': \*\}\), got a dict with keys "
            r"\['x'\]",
        ),
        (
            lambda: MIXED.sample(KEY, S["x"], 0.5),
            ValueError,
            r"x_1 must have the structure .* got an array of shape \(3, 2\)",
        ),
        (
            lambda: MIXED.sample_prior(KEY, (3, 2)),
            ValueError,
            "shape must have the structure .* got a tuple",
        ),
        (
            lambda: MIXED.batch_shape({**S, "x": S["x"][:2]}, "x_t"),
            ValueError,
            r"same batch shape, got x_t\['h'\] has \(3,\), x_t\['x'\] has \(2,\)",
        ),
        (
            lambda: MIXED.sample_prior(KEY, {"x": (3, 2), "h": (4, 2)}),
            ValueError,
            "must have the same batch shape",
        ),
        (
            lambda: MIXED.batch_shape({**S, "h": S["x"]}, "x_t"),
            TypeError,
            r"x_t\['h'\] must hold integer tokens",
        ),
        (
            lambda: MIXED.log_noising(S, 0.2, jax.tree.map(lambda a: a[0], S), 0.5),
            ValueError,
            r"x_r must end with x_t's, \(3,\), got \(\)",
        ),
        (lambda: MIXED.log_normalizer(S, 0.5, 0.2), ValueError, "t must be below r"),
        (lambda: MIXED.sample(KEY, S, 1.2), ValueError, "t must lie in"),
        (lambda: MIXED.sample(jax.random.PRNGKey(0), S, 0.2), TypeError, "typed PRNG key"),
        (lambda: MIXED.sample(jax.random.split(KEY, 3), S, 0.2), ValueError, "key must be one key"),
        (lambda: MIXED.propose(KEY, S, 0.2, 0.5, 0), ValueError, "num_samples must be at least 1"),
        (
            lambda: ProductPath({"x": X, "h": OneTooMany(V)}).local_generator(log_density, S, 0.2),
            ValueError,
            r"x_t\['h'\] is evaluated at 2 points, which is no multiple of the 3 states",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
