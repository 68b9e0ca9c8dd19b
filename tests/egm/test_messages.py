"""What a newcomer reads after a natural mistake: which argument, what came, what was expected."""

import importlib
import pkgutil
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import egm
import energymatch
from egm import algorithms, heads, iteration, paths, processes
from energymatch.networks import MLPPotential

KEY = jax.random.key(0)
MASKED = paths.MaskedPath(3)
PRODUCT = paths.ProductPath({"x": paths.LinearPath(), "h": MASKED})
CONFIG = iteration.IterationConfig(
    num_simulated=8, buffer_size=16, num_gradient_steps=1, batch_size=4, num_times=4
)
TOKENS, X = jnp.full((2, 3), 3), jnp.zeros((2, 2))


def bowl(x):
    return 0.5 * jnp.sum(x**2, axis=-1)


def count(x):
    return jnp.sum(x, axis=-1).astype(float)


def logits(params, x, t):
    return jnp.zeros((*x.shape, 3)) + params["a"][0]


def make(energy=count, event_shape=(4,), apply=logits):
    algorithm = algorithms.Weighted(MASKED, heads.DenoiserHead(MASKED), apply)
    process = processes.AnyOrderProcess(MASKED)
    return iteration.make_iteration(
        algorithm, process, energy, optax.adam(1e-3), CONFIG, event_shape=event_shape
    )


def scales(energy):
    return egm.scales.find_scales(KEY, energy, [2], 3.0, num_starts=16, num_steps=20)


def estimate(key, path=MASKED, x=TOKENS):
    return egm.estimate(key, path, lambda x, t: 0.0 * t, x, 0.1, 1.0, num_samples=4)


def chains(potential, **changed):
    settings = {"num_steps": 2, "step_size": 0.1, "temperature": 1.0} | changed
    return energymatch.langevin.sample(KEY, potential, X, **settings)


NET = MLPPotential(width=4, depth=1)
FLAX = "must be a function, got the Flax module .* itself: pass its `module.apply`"
MESSAGES = {
    "event_shape": (
        lambda: make(event_shape=4),
        ValueError,
        "event_shape must be .*, got 4: shape must be a tuple",
    ),
    "no event": (
        lambda: make(event_shape=()),
        ValueError,
        r"event_shape must be .*, got \(\): the state of this",
    ),
    "event of 0": (
        lambda: make(event_shape=(0,)),
        ValueError,
        r"event_shape must be .*, got \(0,\): .* L >= 1",
    ),
    "NaN": (
        lambda: make(lambda x: count(x) * jnp.nan),
        ValueError,
        "energy must be a number somewhere, got nan at all",
    ),
    "-inf": (
        lambda: make(lambda x: count(x) - jnp.inf),
        ValueError,
        "energy must be a number somewhere, got -inf",
    ),
    "[B, 1]": (
        lambda: chains(lambda x: bowl(x)[:, None]),
        ValueError,
        r"potential must return shape \(2,\), got \(2, 1\): leave out its last axis, `out\[..., 0\]`",
    ),
    "module as apply": (lambda: make(apply=nn.Dense(3)), TypeError, f"apply {FLAX}"),
    "module class": (
        lambda: make(apply=nn.Dense),
        TypeError,
        "apply must be a function, got the class Dense",
    ),
    "module as energy": (lambda: make(NET), TypeError, f"energy {FLAX}"),
    "module as potential": (lambda: chains(NET), TypeError, f"potential {FLAX}"),
    "module to match": (
        lambda: energymatch.matching.make_matching(NET, optax.adam(1e-3)),
        TypeError,
        f"potential {FLAX}",
    ),
    "sign": (
        lambda: scales(lambda x: -bowl(x)),
        ValueError,
        "energy has mean curvature -1.0 at its minima; it must be positive. Was a log-density passed?",
    ),
    "NaN to scales": (
        lambda: scales(lambda x: bowl(x) * jnp.nan),
        ValueError,
        r"energy was not finite at the end of any of 16 .* \(NaN in 16\); .* within the search_radius of 3",
    ),
    "constant data": (
        lambda: energymatch.likelihood.priors.fit_gaussian(jnp.full((5, 2), 0.1)),
        ValueError,
        "x must vary, got 5 examples that are all the same",
    ),
    "NaN data": (
        lambda: energymatch.likelihood.priors.fit_gaussian(jnp.array([[1.0], [jnp.nan]])),
        ValueError,
        "x must be finite",
    ),
    "objects": (
        lambda: energymatch.likelihood.priors.fit_gaussian(np.array([[1.0], [None]])),
        TypeError,
        r"x must be an array of floats, got Python objects \(dtype object\)",
    ),
    "old key": (
        lambda: estimate(jax.random.PRNGKey(0)),
        TypeError,
        "key must be a typed PRNG key, as jax.random.key.seed. makes, got dtype uint32, an untyped key",
    ),
    "seed": (lambda: estimate(0), TypeError, "key must be a typed PRNG key, .*, got 0"),
    "text": (lambda: paths.LinearPath(sigma="1"), TypeError, "sigma must be a number, got '1'"),
    "array": (
        lambda: paths.LinearPath(sigma=jnp.float32(1)),
        TypeError,
        r"sigma must be a number, got Array\(1., dtype=float32\) \(float\(\) makes",
    ),
    "text step": (
        lambda: chains(bowl, step_size="0.1"),
        TypeError,
        "step_size must be a number .*, got '0.1'",
    ),
    "text time": (
        lambda: paths.LinearPath().sample(KEY, X, "0.5"),
        TypeError,
        "t must be .* time, got '0.5'",
    ),
    "missing part": (
        lambda: estimate(KEY, PRODUCT, {"x": X}),
        ValueError,
        r"x_t must have the structure .*'h': .*'x': .*, got a dict with keys \['x'\]",
    ),
    "array for parts": (
        lambda: estimate(KEY, PRODUCT, X),
        ValueError,
        "x_t must have the structure .*, got an array of shape",
    ),
    "generator of paths": (
        lambda: paths.ProductPath(p for p in [MASKED]),
        TypeError,
        "paths must be a path, got <generator",
    ),
    "generator of energies": (
        lambda: chains(bowl, energies=(e for e in [bowl])),
        TypeError,
        "energies must be a tuple of functions, got <generator",
    ),
    "generator of numbers": (
        lambda: MLPPotential(center=(c for c in [0.0])).init(KEY, X),
        TypeError,
        "center must be a number or a tuple of 2, got a generator",
    ),
    "batch of x_r": (
        lambda: MASKED.log_noising(TOKENS, 0.1, jnp.zeros((1, 4, 3), int), 0.5),
        ValueError,
        r"x_r must end in the batch shape \(2,\) of x_t, got \(1, 4\)",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_message(name):
    call, error, message = MESSAGES[name]
    with pytest.raises(error, match=message):
        call()


def test_lists_of_sizes_are_shapes():
    init, step = make(event_shape=[4])
    _, metrics = jax.eval_shape(step, KEY, init({"a": jnp.ones(1)}))
    assert metrics["loss"].shape == ()


def test_energies_with_parameters_infinite_walls_and_bound_modules_are_accepted():
    make(lambda params, x: params * count(x))
    make(lambda x: jnp.where(count(x) >= 0, jnp.inf, 0.0))
    params = NET.init(KEY, X)
    chains(NET.bind(params))
    chains(lambda x: NET.apply(params, x))


@pytest.mark.parametrize("package", [egm, energymatch])
def test_every_public_module_is_an_attribute(package):
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            assert info.name in dir(package)
            # A function may have the name of its module: egm.simulate.
            assert hasattr(package, info.name) and importlib.import_module(f"{package.__name__}.{info.name}")
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'nothing'"):
        _ = package.nothing


def test_imports_leave_out_what_is_used_later():
    code = (
        "import sys, egm, energymatch; a = {'flax', 'orbax'} & set(sys.modules); "
        "egm.networks.MLPDenoiser, egm.checkpoint.Checkpoints, egm.typing.Path; "
        "energymatch.networks.MLPPotential, energymatch.convert.select; "
        "assert not a and {'flax', 'orbax'} <= set(sys.modules), a"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
