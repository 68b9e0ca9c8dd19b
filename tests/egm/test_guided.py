"""Guided proposals, and what estimates say of the posterior variance: against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_problem import gaussian_problem, mixed_problem

import egm
from egm import algorithms, bootstrap, heads, horizons, paths, proposals
from egm.typing import Draw, Gaussian

KEY = jax.random.key(3)
EXPLODING, LINEAR = paths.VarianceExplodingPath(0.3, 4.0), paths.LinearPath()
CENTRED = paths.CenteredPath(EXPLODING, 3, 1)


def log_scale(path, t, size):
    """D log alpha: what a density of x_t is under q_{1|t}, which is one of x_1."""
    return path.dimension(size) * jnp.log(path.alpha(t))


def mixed_g(problem):
    """g = log E_{q_{1|t}} exp(-E) of a `MixedProblem`, by the sum over completions."""

    def g(state, t):
        x, h = state["x"], state["h"]
        joint = jnp.where(problem._agrees(h), problem.mixture.posterior(x, t)[0], -jnp.inf)
        tokens = jnp.sum(h == 2, axis=-1) * np.log(2)
        alpha = log_scale(problem.mixture.path, t, x.shape[-1])
        return problem.log_z + jax.nn.logsumexp(joint, axis=-1) - tokens + alpha

    return g


def plain_g(problem):
    return lambda x, t: problem.log_z + problem.log_density(x, t) + log_scale(problem.path, t, x.shape[-1])


def mixed_points(problem, t):
    x_1 = problem.exact_samples(len(t))
    hidden = jnp.array([[1, 0], [1, 1], [0, 1], [1, 1]])[jnp.arange(len(t)) % 4] == 1
    x = problem.path.paths["x"].sample(KEY, x_1["x"], t)
    return {"x": x, "h": jnp.where(hidden, 2, x_1["h"])}


def means(path, phi, x_t, t, r, proposal, score, expected, num=300):
    """Unnormalised weights and scores of `num` estimates with K = 9, in units of their standard errors.

    exp(phi_t) and exp(phi_t) F_t have no bias at any K, whatever the proposal.
    """
    log_z = path.log_normalizer(x_t, t, jnp.ones_like(t))

    @jax.jit
    def one(key):
        found = egm.estimate(key, path, phi, x_t, t, r, num_samples=9, proposal=proposal)
        weight = jnp.exp(found.log_marginal - log_z - expected)
        return found.valid, weight, weight[:, None] * score(found.generator)

    valid, weights, scores = jax.lax.map(one, jax.random.split(KEY, num), batch_size=50)
    assert np.all(valid)
    return weights, scores


def close(came, expected):
    error = np.std(came, axis=0) / np.sqrt(len(came))
    assert np.all(np.abs(np.mean(came, axis=0) - expected) < 5 * error + 1e-9)


@pytest.mark.parametrize("gaussian", [EXPLODING, LINEAR], ids=["exploding", "linear"])
def test_unnormalised_estimates_are_unbiased(x64, gaussian):
    """A mixture coupled to tokens, the generator a wrong one; r just after t, between, and 1."""
    problem = mixed_problem(gaussian, dim=3)
    t = jnp.array([0.4, 0.4, 0.2, 0.3, 0.6, 0.5])
    r = jnp.array([0.43, 0.7, 1.0, 0.5, 0.62, 1.0])
    g = mixed_g(problem)
    phi = bootstrap.boundary(problem, g, problem.path)

    @jax.jit
    def points():
        x_t = mixed_points(problem, t)
        slope = jax.grad(lambda x: jnp.sum(g({"x": x, "h": x_t["h"]}, t)))(x_t["x"])
        return x_t, problem.exact_generator(x_t, t)["x"].score, slope, g(x_t, t)

    x_t, exact, slope, at_t = points()
    np.testing.assert_allclose(slope, exact, rtol=1e-9, atol=1e-9)  # of g and of the generator

    def crude(state, t):
        out, alpha = problem.random_generator(state, t), gaussian.alpha(t)[:, None]
        u, s, spread = out["x"]
        return out | {"x": Gaussian(u, s - 0.2 * alpha * jnp.cos(state["x"]), 1.4 * spread)}

    score = lambda out: gaussian.score_from_velocity(out["x"], x_t["x"], t)
    came = means(problem.path, phi, x_t, t, r, proposals.Guided(crude), score, at_t)
    close(came[0], np.ones(len(t)))
    close(came[1], exact)


@pytest.mark.parametrize("path", [LINEAR, paths.CenteredPath(LINEAR, 10, 2)], ids=["linear", "centred"])
def test_weights_are_equal_where_the_target_is_normal(x64, path):
    """In 20 dimensions at any r, first time too: an ESS of 1, phi and the velocity without any error."""
    problem = gaussian_problem(path, dim=20, components=1, record="variance")
    t = jnp.array([path.t_min, 0.3, 0.3, 0.9, 0.7])
    r = jnp.array([0.5, 0.3001, 0.8, 1.0, 0.95])
    g = plain_g(problem)
    phi = bootstrap.boundary(problem, g, path)
    guided = proposals.Guided(problem.exact_generator)

    @jax.jit
    def points():
        x_t = path.sample(KEY, problem.exact_samples(5), t)
        return x_t, g(x_t, t) + path.log_normalizer(x_t, t, jnp.ones_like(t)), problem.velocity(x_t, t)

    x_t, at_t, velocity = points()
    run = functools.partial(egm.estimate, KEY, path, phi, x_t, t, r, proposal=guided)
    even, single = jax.jit(lambda: (run(num_samples=10), run(num_samples=1)))()
    np.testing.assert_allclose(even.ess, 1.0, atol=1e-8)
    np.testing.assert_allclose(even.log_marginal, at_t, rtol=1e-9)
    np.testing.assert_allclose(even.generator, velocity, rtol=1e-6, atol=1e-6)
    # Without a partner the noise of a sample is left.
    assert np.max(np.abs(single.generator - velocity)) > 0.05


@pytest.mark.parametrize("name", ["angles", "wall", "nothing known"])
def test_densities_are_those_of_the_draws(x64, name):
    """On the circle with 1 + .8 cos; beside a wall of infinite energy; where the model says NaN."""
    x_t, t = jnp.array([[0.3], [2.0], [-3.0], [7.5]]), jnp.array([0.3, 0.6, 0.1, 0.8])
    r, nothing = jnp.array([1.0, 0.9, 0.5, 1.0]), jnp.full_like(x_t, jnp.nan)
    path = EXPLODING if name == "wall" else paths.WrappedPath(0.3, 4.0)

    def on_circle(x, t):
        return jnp.log1p(0.8 * jnp.exp(-0.5 * path.variance(t)) * jnp.cos(x[:, 0]))

    def beside_wall(x, t):  # E = x^2 / 2 for x > 0
        n = path.variance(t)
        mean, spread = x[:, 0] / (1 + n), jnp.sqrt(n / (1 + n))
        inside = jax.scipy.special.log_ndtr(mean / jnp.where(n > 0, spread, 1.0))
        return -0.5 * (jnp.square(x[:, 0]) / (1 + n) + jnp.log1p(n)) + inside

    def walled(x):
        return jnp.where(x[:, 0] > 0, 0.5 * x[:, 0] ** 2, jnp.inf)

    g = beside_wall if name == "wall" else on_circle
    energy = walled if name == "wall" else lambda x: -on_circle(x, jnp.ones(x.shape[:1]))
    phi = bootstrap.boundary(energy, g, path)
    record = Gaussian(nothing, jnp.sin(x_t) / 3, 0.5 + 0 * x_t)
    out = nothing if name == "nothing known" else record
    guided = proposals.Guided(lambda x, t: out)
    exact, at_t = jax.jit(lambda x: (jax.grad(lambda y: jnp.sum(g(y, t)))(x), g(x, t)))(x_t)
    score = lambda velocity: path.score_from_velocity(velocity, x_t, t)
    num = 1200 if name == "wall" else 300  # few estimates carry the weight
    came = means(path, phi, x_t, t, r, guided, score, at_t, num)
    close(came[0], np.ones(len(t)))
    close(came[1], exact)
    if name == "nothing known":
        own = lambda k: guided.log_weight(
            path, x_t, t, path.propose(k, x_t, t, r, 5), r, guided.prepare(path, x_t, t, r)
        )
        np.testing.assert_allclose(jax.jit(own)(KEY), 0.0, atol=1e-9)


@pytest.mark.parametrize("count", [7, 300])
def test_samples_come_in_pairs(count):
    """About the model's mean, half of K apart; half of a block of 128 where K is more."""
    x_t, t, r = jnp.array([[0.3, 1.0]]), jnp.array([0.3]), jnp.array([0.7])
    guided = proposals.Guided(lambda x, t: Gaussian(-x, -0.5 * x, 1.0 + 0 * x))

    @jax.jit
    def draw():
        (kernel,) = guided.prepare(EXPLODING, x_t, t, r)
        one = jax.tree.map(lambda a: a[0], [kernel])
        return kernel, guided.propose(Draw(KEY, KEY, 128, count, one), EXPLODING, x_t[0], t[0], r[0])

    kernel, drawn = draw()
    half = min(count, 128) // 2
    np.testing.assert_allclose(
        drawn[:half] + drawn[half : 2 * half], np.broadcast_to(2 * kernel.mean, (half, 2)), rtol=1e-4
    )
    assert len(np.unique(np.asarray(drawn)[:, 0])) == 128


def test_chunks_and_devices_do_not_change_the_numbers(x64):
    """K = 300 in one piece, by chunks, and over two shards; a product in a product."""
    inner = paths.ProductPath({"c": EXPLODING, "d": LINEAR})
    path = paths.ProductPath({"a": paths.MaskedPath(2), "b": inner})
    x_t = {"a": jnp.array([[2, 0], [2, 2]]), "b": {"c": jnp.array([[0.3], [1.0]]), "d": jnp.ones((2, 2))}}
    t, r = jnp.array([0.3, 0.5]), jnp.array([0.6, 1.0])

    def generator(x, t):
        told = Gaussian(-x["b"]["c"], -0.2 * x["b"]["c"], 0.5 + 0 * x["b"]["c"])
        return {"a": None, "b": {"c": told, "d": -x["b"]["d"]}}

    def phi(x, r):
        b = x["b"]
        return -0.5 * jnp.sum(b["c"] ** 2, -1) - jnp.sum(b["d"] ** 2, -1) * (1 + jnp.sum(x["a"], -1))

    fn = functools.partial(egm.estimate, KEY, num_samples=300, proposal=proposals.Guided(generator))
    call = functools.partial(fn, path, phi, x_t, t, r)
    shards = jax.vmap(lambda _: call(axis_name="k", chunk_size=128), axis_name="k")
    whole, *others = jax.jit(
        lambda: (call(), call(chunk_size=128), jax.tree.map(lambda a: a[1], shards(jnp.arange(2))))
    )()
    assert np.all(whole.valid) and jnp.min(whole.ess) > 0.1
    for other in others:
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), other, whole)


def test_tokens_alone_are_those_of_shared_reveals():
    path, x_t = paths.MaskedPath(2), jnp.array([[2, 2, 0], [2, 1, 2]])
    phi = lambda x, r: jnp.sum(jnp.where(x == 1, 0.7, 0.0), axis=-1)
    t, r = jnp.array([0.2, 0.3]), jnp.array([0.6, 1.0])
    run = functools.partial(egm.estimate, KEY, path, phi, x_t, t, r, num_samples=40)
    each = proposals.Guided(), proposals.SharedReveal()
    came, other = jax.jit(lambda: [run(proposal=p) for p in each])()
    jax.tree.map(np.testing.assert_array_equal, came, other)


def test_a_gaussian_part_needs_a_generator():
    run = functools.partial(egm.estimate, KEY, x_t=jnp.ones((2, 1)), t=0.2, r=0.5, num_samples=4)
    with pytest.raises(ValueError, match="generator must be a function where a part of the path is Gaussian"):
        jax.eval_shape(lambda: run(path=LINEAR, log_density=lambda x, r: 0 * r, proposal=proposals.Guided()))
    state, path = {"x": jnp.ones((2, 1)), "h": jnp.zeros((2, 1), int)}, mixed_problem(LINEAR).path
    with pytest.raises(ValueError, match="generator has another structure|generator must"):
        guided = proposals.Guided(lambda x, t: x["x"])
        jax.eval_shape(lambda: run(path=path, x_t=state, log_density=lambda x, r: 0 * r, proposal=guided))


def test_values_are_averaged_in_place_of_generators(x64):
    """The mean of x_r itself, which is E[x_1 | x_t] at r = 1; and of a wrong shape."""
    problem = gaussian_problem(EXPLODING, dim=2, components=1, record="variance")
    x_t, t = jnp.array([[0.2, 1.0]]), jnp.array([0.5])
    run = functools.partial(
        egm.estimate, KEY, EXPLODING, bootstrap.terminal(problem), x_t, t, 1.0, num_samples=10,
        proposal=proposals.Guided(problem.exact_generator),
    )  # fmt: skip
    came, expected = jax.jit(lambda: (run(values=lambda x, r: x).generator, problem.moments(x_t, t)[0]))()
    np.testing.assert_allclose(came, expected, rtol=1e-9)
    with pytest.raises(
        ValueError, match=r"values must return arrays of shape \[10, 1, ...\], got shape \(1, 10"
    ):
        jax.eval_shape(lambda: run(values=lambda x, r: jnp.swapaxes(x, 0, 1)))


# What an estimate says of the posterior variance.


def test_squares_are_the_posterior_variance_and_what_is_left_open(x64):
    """A mixture on the line, x_r by quadrature: sigma^4 E(s_k - s)^2 = beside + alpha^2 E(x_1 - m)^2."""
    path = LINEAR
    problem = gaussian_problem(path, dim=1, components=2)
    x_t, t = jnp.array([[0.2], [1.0], [-2.0], [0.5]]), jnp.full(4, 0.4)
    times, output = jnp.array([0.45, 0.7, 1.0, 0.401]), jax.random.normal(KEY, (4, 1, 2))
    head = heads.ScoreHead(path, data_scale=1.5, energy_skip=False)
    alpha, noise = path.alpha(t)[:, None], path.variance(t)[:, None]

    @jax.jit
    def moments():
        x_r = jnp.broadcast_to(jnp.linspace(-12.0, 12.0, 12001)[:, None, None], (12001, 4, 1))
        later = jnp.broadcast_to(times[None], (12001, 4))
        log_w = problem.log_density(x_r, later) + path.log_noising(x_t, t, x_r, times)
        w = jax.nn.softmax(log_w, axis=0)[..., None]
        found = head.estimated_values(output, x_t, t)(x_r, times)
        own = (x_t + noise * head.generator(output, x_t, t).score) / alpha
        base = head.generator(output.at[..., 1].set(0.0), x_t, t).posterior_variance
        first, spread = problem.moments(x_t, t)
        square = spread + (first - own) ** 2
        return jax.tree.map(lambda a: jnp.sum(w * a, axis=0), found), problem.score(x_t, t), square, base

    found, score, square, base = moments()
    np.testing.assert_allclose(found.score, score, rtol=1e-6)
    np.testing.assert_allclose(found.square, found.beside + alpha**2 * square, rtol=1e-6)
    np.testing.assert_array_equal(found.beside[:, 0] == 0, times == 1)

    # The divergence is least where exp(G) says that.
    best = 8 * np.arctanh(np.log(square / base) / 8)
    loss = lambda channel: jnp.sum(head.divergence(found, output.at[..., 1].set(channel), x_t, t))
    below, at, above = jax.jit(jax.vmap(jax.grad(loss)))(np.stack([best - 0.5, best, best + 0.5]))
    np.testing.assert_allclose(at, 0.0, atol=1e-6)
    # At r = t + .001 next to nothing is seen of it.
    assert np.all(below[:3] < -0.001) and np.all(above[:3] > 0.001)


def train_step(algorithm, target, batch=400):
    """grad(mean loss) in G at -.5, 0, .5, with standard errors; 0 is right."""
    problem_keys = egm.random.example_keys(KEY, batch)
    t = jnp.linspace(0.2, 0.8, batch)

    def gradient(shift):
        def loss(channels, key, x, t):
            params = channels if not target else {"generator": channels, "log_marginal": None}
            ours = jnp.full(1, 0.2) if not target else {"generator": jnp.full(1, 0.2), "log_marginal": None}
            found, _ = algorithm.loss(key[None], params, ours, x[None], t[None], ENERGY)
            return found[0]

        x_1 = algorithm.path.standard_normal(KEY, (batch, 3))
        return jax.vmap(jax.grad(loss), (None, 0, 0, 0))(jnp.full(1, shift), problem_keys, x_1, t)

    return jax.lax.map(gradient, jnp.array([-0.5, 0.0, 0.5]))


def ENERGY(x):
    return 0.5 * jnp.sum(x**2, axis=-1)


def channels(params, x, t):
    """F = 0, with which the score is exact for N(0, I), and one number for G."""
    return jnp.stack([jnp.zeros_like(x), jnp.broadcast_to(params[None], x.shape)], axis=-1)


@pytest.mark.parametrize(
    "name, path",
    [("naive", EXPLODING), ("own proposal", EXPLODING), ("bootstrap", CENTRED)],
    ids=["naive", "own proposal", "bootstrap, centred"],
)
def test_losses_train_the_variance(x64, name, path):
    """The gradient in G vanishes at the exact variance and leads there from both sides."""
    head = heads.ScoreHead(path)
    g = egm.closed_forms.gaussian_log_marginal(path)
    if name == "naive":
        algorithm = algorithms.Naive(path, head, channels, num_samples=256)
    else:
        guide = {} if name == "bootstrap" else {"proposal": None, "num_samples": 256}
        algorithm = algorithms.Bootstrap(path, head, channels, lambda p, x, t: g(x, t), step=0.25, **guide)
    below, at, above = train_step(algorithm, name != "naive")
    error = np.std(at) / np.sqrt(len(at))
    assert abs(np.mean(at)) < 5 * error + (0.02 if name != "bootstrap" else 0.005)
    assert np.mean(below) < -0.1 and np.mean(above) > 0.1


def test_angles_and_other_heads_keep_their_generators():
    """A velocity for angles; the denoiser's for tokens."""
    circle = paths.WrappedPath(0.3, 4.0)
    x_t, t, r = jnp.array([[0.3, 1.0]]), jnp.array([0.3]), jnp.array([0.7])
    output, x_r = jnp.zeros((1, 2, 2)), jnp.ones((5, 1, 2))
    path = mixed_problem(LINEAR).path
    head = heads.ProductHead({"x": heads.ScoreHead(LINEAR), "h": heads.DenoiserHead(path.paths["h"])})
    state, after = {"x": x_t, "h": jnp.array([[2, 0]])}, {"x": x_r, "h": jnp.zeros((5, 1, 2), int)}

    @jax.jit
    def values():
        outputs = {"x": output, "h": jnp.zeros((1, 2, 2))}
        return (
            heads.ScoreHead(circle).estimated_values(output, x_t, t, ENERGY)(x_r, r),
            circle.conditional_generator(x_t, t, x_r, r),
            head.estimated_values(outputs, state, t)(after, r),
            path.paths["h"].conditional_generator(state["h"], t, after["h"], r),
        )

    angles, velocity, mixed, denoiser = values()
    np.testing.assert_array_equal(angles, velocity)
    assert isinstance(mixed["x"], heads.EstimatedScore)
    np.testing.assert_array_equal(mixed["h"], denoiser)


def test_gradients_are_finite_at_both_ends():
    """t = 1, where an estimate is not valid, and t = 0, before the linear path's t_min."""
    g = egm.closed_forms.gaussian_log_marginal(LINEAR)
    algorithm = algorithms.Bootstrap(LINEAR, heads.ScoreHead(LINEAR), channels, lambda p, x, t: p * g(x, t))
    x_1, keys = jnp.ones((3, 3)), egm.random.example_keys(KEY, 3)

    @jax.jit
    def gradients(params, t):
        return jax.grad(lambda p: jnp.sum(algorithm.loss(keys, p, params, x_1, t, ENERGY)[0]))(params)

    found = gradients({"generator": jnp.zeros(1), "log_marginal": jnp.ones(())}, jnp.array([0.0, 0.5, 1.0]))
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(found))


def test_evaluations_of_the_guide_are_counted():
    """The head's gradient of E once more an example, on paths with a Gaussian part only."""
    make = functools.partial(algorithms.Bootstrap, apply=channels, apply_log_marginal=channels, num_samples=8)
    head = heads.ScoreHead(LINEAR)
    count = lambda a: a.energy_evaluations(ENERGY, (3,)).example
    assert count(make(LINEAR, head)) == 2 + 8
    assert count(make(LINEAR, head, proposal=None)) == 1 + 8
    assert count(make(LINEAR, head, proposal=proposals.Guided(channels))) == 1 + 8
    tokens = paths.MaskedPath(2)
    assert proposals.Guided().calls(tokens) == 0
    assert proposals.Guided().calls(paths.ProductPath({"a": mixed_problem(LINEAR).path, "b": tokens})) == 1
    assert isinstance(make(LINEAR, head).proposal, proposals.Guided)
    assert horizons.Nats() == make(LINEAR, head).step
    assert algorithms.Bootstrap.published(LINEAR, head, channels, channels).proposal is None
