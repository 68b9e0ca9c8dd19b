"""log Z and posteriors of densities with separate modes, from a mixture and from three sides; infinite Z."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from energymatch import likelihood, networks, posterior
from energymatch.likelihood import (
    Bridge,
    MixturePrior,
    evidence,
    fit_gaussian,
    fit_mixture,
    gaussian_prior,
    log_partition,
    mixture_prior,
)

KEY = jax.random.key(0)


class Modes:
    """exp(-V) a mixture of round normals, log Z = 0."""

    def __init__(self, masses, means, widths):
        self.masses, self.means, self.widths = (np.asarray(a, np.float64) for a in (masses, means, widths))

    def sample(self, seed, num):
        rng = np.random.default_rng(seed)
        which = rng.choice(self.masses.size, num, p=self.masses)
        noise = self.widths[which, None] * rng.normal(size=(num, self.means.shape[1]))
        return (self.means[which] + noise).astype(np.float32)

    def log_joint(self, x):
        squares = jnp.sum((x[:, None] - jnp.asarray(self.means, x.dtype)[None]) ** 2, axis=-1)
        constant = np.log(self.masses) - self.means.shape[1] * np.log(math.sqrt(2 * math.pi) * self.widths)
        widths = jnp.asarray(self.widths, x.dtype)[None]
        return jnp.asarray(constant, x.dtype)[None] - squares / (2 * widths**2)

    def __call__(self, x):
        return -jax.nn.logsumexp(self.log_joint(x), axis=-1)


def at(dim, value):
    return np.eye(dim)[0] * value


PLACES = np.random.default_rng(5).normal(size=(5, 20)) * 2
CASES = {
    "two in 10-D": Modes([0.5, 0.5], [at(10, 4), at(10, -4)], [0.3, 1.0]),
    "apart": Modes([0.1, 0.9], [[3.0, 0.0], [-1.0, 0.0]], [0.1, 1.0]),
    "overlapping": Modes([0.1, 0.9], [[0.5, 0.5], [0.0, 0.0]], [0.1, 1.0]),
    "three in 1-D": Modes([0.3, 0.5, 0.2], [[-4.0], [0.0], [3.0]], [0.2, 1.0, 0.5]),
    "five in 20-D": Modes([0.5, 0.3, 0.1, 0.05, 0.05], PLACES, [0.3, 1.0, 0.5, 0.7, 0.2]),
    "unequal in 5-D": Modes([0.95, 0.05], [at(5, 0), at(5, 6)], [1.0, 0.5]),
}


def stacked(priors):
    """Priors of any numbers of components as one, for a mapped run: the rest have weight zero."""
    most = max(p.log_weights.size for p in priors)

    def fill(prior):
        missing = most - prior.log_weights.size
        more = [jnp.concatenate([a, jnp.repeat(a[:1], missing, axis=0)]) for a in prior[1:]]
        return MixturePrior(jnp.pad(prior.log_weights, (0, missing), constant_values=-jnp.inf), *more)

    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(fill, priors))


def runs_of(modes, seeds, num_data=4000, **options):
    """`log_partition` from a mixture fitted to other data for each seed."""
    priors = stacked([fit_mixture(jax.random.key(s), modes.sample(s, num_data)) for s in seeds])
    keys = jnp.stack([jax.random.key(1000 + s) for s in seeds])
    run = lambda key_and_prior: log_partition(
        key_and_prior[0], modes, epsilon=1.0, prior=key_and_prior[1], **options
    )
    return jax.jit(lambda *a: jax.lax.map(run, a))(keys, priors)


def check_rows(out, capsys, name):
    log_z, error = np.asarray(out.log_z, np.float64), np.asarray(out.log_z_error, np.float64)
    finite = np.isfinite(error)
    with capsys.disabled():
        print(
            f"\n{name}: bias {log_z.mean():+.4f}, error {np.median(error):.4f}, finite {finite.sum()} of "
            f"{finite.size}, |z| < 2 in {np.mean(np.abs(log_z / error)[finite] < 2):.2f}"
        )
    assert finite.mean() >= 0.8
    assert abs(log_z.mean()) < 0.05
    return np.abs(log_z / error)[finite]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_table_of_24_seeds(name, capsys):
    """|z| < 2 in 90% of those with a finite error, at least 80% of the 24; bias at most .05."""
    scores = check_rows(runs_of(CASES[name], range(24)), capsys, name)
    assert np.mean(scores < 2) >= 0.9


def test_two_modes_of_different_widths(capsys):
    """A bridge from one normal is off by -.57 here; a z-score of 4 is one in a thousand (t, 15 degrees)."""
    options = dict(num_data=2000, num_chains=512, num_steps=100)
    out = runs_of(CASES["two in 10-D"], range(3), **options)
    assert check_rows(out, capsys, "two in 10-D, 512 chains").max() < 4
    assert np.all(out.log_z_error < 0.1)
    # The mass of the narrow mode, with the groups' spread as its error.
    weights = np.exp(out.log_weights - out.log_z[:, None]).reshape(3 * 16, 32) / 32
    masses = (weights * (np.asarray(out.x)[..., 0] > 0).reshape(3 * 16, 32)).sum(1)
    assert abs(masses.mean() - 0.5) < 4 * masses.std(ddof=1) / math.sqrt(48) < 0.1


@pytest.mark.parametrize("step_size", [0.02, 1.5])
def test_unbiased_however_bad_the_moves_in_components(step_size):
    """E[mean of w f(x)] = Z E_model[f] over 8,000 runs: overlapping components, a step size for each."""
    prior = mixture_prior(
        jnp.array([0.3, 0.6, 0.1]), jnp.array([[0.5], [-0.4], [0.0]]), jnp.array([[0.3], [1.0], [2.5]])
    )
    potential = lambda x: 0.5 * jnp.sum((x - 0.7) ** 2, axis=-1) / 0.25
    log_z = 0.5 * math.log(2 * math.pi * 0.25)
    step_sizes = step_size * jnp.array([[1.0, 0.3, 0.1], [2.0, 1.0, 0.5], [0.2, 0.5, 1.0]])
    bridge = Bridge(jnp.array([0.0, 0.3, 0.8, 1.0]), step_sizes)

    def run(key):
        out = log_partition(
            key, potential, epsilon=1.0, prior=prior, num_chains=8, num_groups=2, bridge=bridge,
            num_moves=2,
        )  # fmt: skip
        w = jnp.exp(out.log_weights - log_z)
        return jnp.exp(out.log_z - log_z), jnp.mean(w * out.x[:, 0]), jnp.mean(w * out.x[:, 0] ** 2)

    out = [np.asarray(a) for a in jax.jit(jax.vmap(run))(jax.random.split(KEY, 8000))]
    for a, exact in zip(out, (1.0, 0.7, 0.49 + 0.25), strict=True):
        assert abs(a.mean() - exact) < 4 * a.std() / math.sqrt(8000) < 0.05


@pytest.mark.slow
def test_a_lost_mode_is_in_the_error():
    """A prior about one of two modes loses the other: half of the mass, log Z low by log 2."""
    modes = Modes([0.5, 0.5], [[0.0, 0.0], [12.0, 12.0]], [0.5, 0.5])
    x = modes.sample(0, 512)
    bad = gaussian_prior(jnp.zeros(2), 1.0)
    run = jax.jit(lambda key: evidence(key, modes, x, epsilon=1.0, prior=bad, num_chains=256, num_steps=50))
    out = run(KEY)
    assert out.lower.log_z_error < 0.05  # what the bridge itself believes
    assert abs(out.lower.log_z + math.log(2)) < 0.1
    # log Z = 0 from the data's side, up to the number of data that fell into the first mode.
    assert abs(out.upper.log_z_inverse) < 4 * out.upper.log_z_inverse_error < 0.3
    assert abs(out.log_z) < 2 * out.log_z_error
    good = fit_mixture(KEY, x)
    out = jax.jit(lambda key: evidence(key, modes, x, epsilon=1.0, prior=good, num_chains=512, num_steps=50))(
        KEY
    )
    assert abs(out.log_z) < 3 * out.log_z_error < 0.3


def test_mass_outside_of_the_data_is_in_the_error():
    """Data of one mode only, the other within reach of the wider prior alone."""
    modes = Modes([0.5, 0.5], [[0.0], [5.0]], [0.5, 0.5])
    x = 0.5 * np.random.default_rng(0).normal(size=(512, 1)).astype(np.float32)
    prior = gaussian_prior(jnp.zeros(1), 1.0)
    out = jax.jit(
        lambda key: evidence(key, modes, x, epsilon=1.0, prior=prior, num_chains=512, num_steps=100)
    )(KEY)
    assert abs(out.log_z) < 2.5 * out.log_z_error


def test_posterior_samples_have_the_modes_masses():
    """.1 and .9, narrow and wide: 2,048 draws of a run worth n ess / (1 + ess) of them."""
    modes = CASES["apart"]
    prior = fit_mixture(KEY, modes.sample(0, 2000))
    out = jax.jit(
        lambda key: posterior.sample(
            key, modes, energies=(), epsilon=1.0, prior=prior, num_samples=2048, num_steps=60
        )
    )(KEY)
    narrow = np.asarray(jax.nn.softmax(modes.log_joint(out.x), axis=1))[:, 0]
    worth = 2048 / (1 + 1 / float(out.partition.ess))
    assert abs(narrow.mean() - 0.1) < 4 * narrow.std() / math.sqrt(worth)
    inside = narrow > 0.5
    deviations = np.asarray(out.x)[inside] - np.array([[3.0, 0.0]])
    # Variance of a normal: a standard error of sqrt(2/n) (two coordinates, so n = 2 * .1 * worth).
    assert abs(deviations.var() / 0.01 - 1) < 4 * math.sqrt(2 / (0.2 * worth))


square = lambda x: jnp.sum(x**2, axis=-1)
mlp = networks.MLPPotential(width=16, depth=2)
MLP = mlp.init(jax.random.key(1), jnp.zeros((1, 20)))
walled = networks.MLPPotential(width=16, depth=2, confinement_radius=5.0)
UNCONFINED = {
    "nothing": lambda x: 0 * x[:, 0],
    "bounded": lambda x: 10 * jnp.tanh(square(x)),
    "down a slope": lambda x: x[:, 0],
    "down an exponential": lambda x: -jnp.exp(x[:, 0]),
    "flat along one axis": lambda x: square(x[:, 1:]),
    "flat along half of one": lambda x: square(x[:, 1:]) + jnp.maximum(x[:, 0], 0) ** 2,
    "a tail as 1/r^(D - .1)": lambda x: 0.5 * (x.shape[1] - 0.1) * jnp.log1p(square(x)),
    "a network": lambda x: mlp.apply(MLP, x),
}
CONFINED = {
    "normal": lambda x: 0.5 * square(x),
    "norm": lambda x: jnp.sum(jnp.abs(x), axis=-1),
    "Student's t": lambda x: 0.5 * (x.shape[1] + 1) * jnp.log1p(square(x)),
    "product of Cauchy": lambda x: jnp.sum(jnp.log1p(x**2), axis=-1),
    "a wall": lambda x: jnp.where(square(x) < 9, 0.0, jnp.inf),
    "not a number far out": lambda x: jnp.where(square(x) < 9, square(x), jnp.nan),
    "a network with a wall": lambda x: walled.apply(MLP, x),
}


@pytest.mark.parametrize("name", [*UNCONFINED, *CONFINED])
def test_infinite_partition_functions_are_noticed(name):
    potential = UNCONFINED.get(name) or CONFINED[name]
    dim = 20 if "network" in name else 3
    bridge = Bridge(jnp.linspace(0, 1, 11), jnp.full(10, 0.1))
    run = lambda key: log_partition(
        key, potential, epsilon=1.0, prior=gaussian_prior(jnp.zeros(dim), 2.0), num_chains=512, bridge=bridge
    )
    out = jax.jit(run)(KEY)
    assert out.confined == (name in CONFINED)
    if name in UNCONFINED:
        assert out.log_z_error == np.inf
        assert "does not confine" in out.reason() or "mass beyond" in out.reason()


def test_mass_far_beyond_the_prior_is_noticed():
    """A well of e^30 at 40 prior widths, 8 wide: no chain sees it, the drawn-out prior does."""
    potential = lambda x: -jnp.logaddexp(-0.5 * square(x), 30 - 0.5 * square((x - 40.0) / 8))
    bridge = Bridge(jnp.linspace(0, 1, 11), jnp.full(10, 0.1))
    prior = gaussian_prior(jnp.zeros(1), 1.0)
    out = jax.jit(
        lambda key: log_partition(key, potential, epsilon=1.0, prior=prior, num_chains=512, bridge=bridge)
    )(KEY)
    assert out.reach.grows and not out.confined
    assert out.log_z_error == np.inf
    assert "mass beyond the prior" in out.reason()


def mapped(run, mesh8, *args):
    """(what eight devices give, what one gives) of run(key, x, axis_name)."""
    over = functools.partial(run, axis_name="i")
    sharded = jax.jit(jax.shard_map(over, mesh=mesh8, in_specs=(P(), P("i")), out_specs=P()))
    return sharded(*args), jax.jit(run)(*args)


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_eight_devices_and_one(mesh8):
    modes = CASES["apart"]
    x = modes.sample(0, 64)
    prior = fit_mixture(KEY, x, max_components=3)
    count = prior.log_weights.size
    bridge = Bridge(jnp.linspace(0, 1, 6), jnp.linspace(0.1, 0.5, 5 * count).reshape(5, count))

    def run(key, x, axis_name=None):
        options = dict(epsilon=1.0, prior=prior, bridge=bridge, axis_name=axis_name)
        out = log_partition(key, modes, num_chains=64, num_groups=8, **options)
        upper = likelihood.log_partition_upper(key, modes, x, **options)
        return out.log_z, out.log_z_error, out.reach, upper.log_z, upper.log_z_inverse_error

    jax.tree.map(close, *mapped(run, mesh8, KEY, x))


@pytest.mark.slow
def test_evidence_on_eight_devices_and_one(mesh8):
    modes = CASES["apart"]
    x = modes.sample(0, 64)
    prior = fit_mixture(KEY, x, max_components=3)

    def run(key, x, axis_name=None):
        out = evidence(
            key, modes, x, epsilon=1.0, prior=prior, num_chains=64, num_steps=6, num_groups=8,
            axis_name=axis_name,
        )  # fmt: skip
        return out.log_z, out.log_z_error, out.lower.bridge, out.lower.reach, out.upper.log_z, out.wide.log_z

    jax.tree.map(close, *mapped(run, mesh8, KEY, x))


def test_bad_input():
    modes, x = CASES["apart"], CASES["apart"].sample(0, 64)
    prior = fit_mixture(KEY, x, max_components=2)
    num = prior.log_weights.size
    options = dict(epsilon=1.0, prior=prior)
    with pytest.raises(
        ValueError, match=rf"step_sizes must have shape \(2,\) or \(2, {num}\), got shape \(2, 9\)"
    ):
        log_partition(KEY, modes, bridge=Bridge(jnp.array([0.0, 0.5, 1.0]), jnp.ones((2, 9))), **options)
    with pytest.raises(ValueError, match=r"x must have event shape \(2,\), got \(3,\)"):
        likelihood.log_partition_upper(
            KEY, modes, jnp.zeros((4, 3)), bridge=Bridge(jnp.array([0.0, 1.0]), jnp.ones(1)), **options
        )
    with pytest.raises(TypeError, match="x must be known data, outside jit"):
        jax.jit(lambda x: evidence(KEY, modes, x, epsilon=1.0))(x)
    own = fit_gaussian(x)._asdict()
    with pytest.raises(TypeError, match="prior must be a GaussianPrior or a MixturePrior, got {'mean'"):
        evidence(KEY, modes, x, epsilon=1.0, prior=own)
