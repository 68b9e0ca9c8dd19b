"""What the contract tests run on: examples of every public path, process and energy.

A public class of `egm.paths`, `egm.processes` or `egm.energies` without an entry in `PATHS`,
`PROCESSES` or `ENERGIES` fails its contract test with the line to add. A path comes with a small
state space and quadrature weights (ones where it is enumerated), so that one test serves tokens,
vectors and mixtures of both.
"""

import dataclasses
import functools
import importlib
import inspect
import itertools
import pkgutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gaussian_problem import gaussian_problem, mixed_problem
from token_problem import token_problem, uniform_problem

import egm

# Discovery.


def public_classes(package):
    """{name: class} of the frozen dataclasses that a folder's modules define or it exports."""
    modules = [package] + [
        importlib.import_module(f"{package.__name__}.{info.name}")
        for info in pkgutil.iter_modules(package.__path__)
        # Orders are no processes, and have tests of their own (test_orders.py).
        if info.name != "orders" and not info.name.startswith("_")
    ]
    found = {}
    for module in modules:
        for name, value in vars(module).items():
            inside = getattr(value, "__module__", "").startswith(package.__name__ + ".")
            if inspect.isclass(value) and dataclasses.is_dataclass(value) and inside:
                if not name.startswith("_"):
                    found[name] = value
    return found


def missing_entries(package, table):
    """One sentence for every public class without an entry in the table of that name."""
    return [
        f'{package.__name__}.{name} has no example: add "{name}": lambda: [...] to {table} in '
        "tests/support/contract.py"
        for name in public_classes(package)
        if name not in globals()[table]
    ]


def cases(package, table):
    """(ids, cases) of every example of the public classes of a package."""
    entries = globals()[table]
    made = [
        (f"{name}-{i}", case)
        for name in public_classes(package)
        for i, case in enumerate(entries.get(name, list)())
    ]
    return [name for name, _ in made], [case for _, case in made]


# Paths.


class Space(NamedTuple):
    """States [M, *event] with log quadrature weights [M]; `data` [M] marks those of time 1."""

    nodes: Any
    log_weights: np.ndarray
    data: np.ndarray


class PathCase(NamedTuple):
    """A path, its state space, a few states [N, *event] to test at, and a target on the space.

    Attributes:
      energy: E(x) [...] of states [..., *event].
      features: [..., F] numbers of a state, whose means tell distributions apart.
    """

    path: Any
    space: Space
    points: Any
    energy: Any
    features: Any


def token_case(path, sites, masks=True):
    """A path on tokens, enumerated, its states with masks where it has them."""
    vocab = path.vocab_size
    nodes = np.array(list(itertools.product(range(vocab + masks), repeat=sites)), np.int32)
    data = np.all(nodes < vocab, axis=-1)
    return PathCase(path, Space(nodes, np.zeros(len(nodes)), data), nodes, _token_energy, _indicators(nodes))


def line_case(path, direction, width=20.0, step=0.1):
    """A Gaussian path on multiples of a unit vector of its space, which must be a line."""
    direction = np.asarray(direction) / np.linalg.norm(direction)
    s = np.arange(-width, width + step / 2, step)
    nodes = s[:, None] * direction
    points = np.array([-0.9, 0.2, 1.1])[:, None] * direction
    along = functools.partial(_along, direction)
    return PathCase(
        path,
        Space(nodes, np.full(len(s), np.log(step)), np.ones(len(s), bool)),
        points,
        lambda x: _line_energy(along(x)),
        lambda x: jnp.stack([along(x), along(x) ** 2], axis=-1),
    )


def product_case(path, line, tokens):
    """The mixture {"x": line, "h": tokens} with an energy that couples the two."""

    def pairs(x, h):
        return {"x": np.repeat(x, len(h), axis=0), "h": np.tile(h, (len(x), 1))}

    def energy(state):
        shift = 0.4 * jnp.sum(state["h"], axis=-1)
        return _token_energy(state["h"]) + _line_energy(state["x"][..., 0] - shift)

    def features(state):
        f = jnp.concatenate([jnp.ones_like(state["x"]), line.features(state["x"])], axis=-1)
        outer = f[..., :, None] * tokens.features(state["h"])[..., None, :]
        return outer.reshape(*outer.shape[:-2], -1)

    total = np.add.outer(line.space.log_weights, tokens.space.log_weights).ravel()
    data = np.logical_and.outer(line.space.data, tokens.space.data).ravel()
    space = Space(pairs(line.space.nodes, tokens.space.nodes), total, data)
    return PathCase(path, space, pairs(line.points, tokens.points[::3]), energy, features)


def _token_energy(x):
    place = jnp.arange(1.0, x.shape[-1] + 1)
    angle = x * jnp.broadcast_to(place, x.shape)
    return jnp.sum(jnp.sin(1.7 * angle), axis=-1) + jnp.cos(jnp.sum(angle, axis=-1))


def _line_energy(s):
    return 0.5 * (s**2 - 1) ** 2 + 0.3 * s


def _along(direction, x):
    return jnp.sum(x * jnp.broadcast_to(direction, x.shape), axis=-1)


def _indicators(nodes):
    def features(x):
        wide = np.broadcast_to(nodes, (*x.shape[:-1], *nodes.shape))
        return jnp.all(x[..., None, :] == wide, axis=-1).astype(float)

    return features


def _mixed():
    linear, masked = egm.paths.LinearPath(), egm.paths.MaskedPath(2)
    path = egm.paths.ProductPath({"x": linear, "h": masked})
    return product_case(path, line_case(linear, [1.0], step=0.2), token_case(masked, 2))


def circle_case(path, size=96):
    """A wrapped path of one angle: quadrature on the circle, functions that do not see whole turns."""
    nodes = (2 * np.pi * (np.arange(size) / size) - np.pi)[:, None]
    log_weights = np.full(size, np.log(2 * np.pi / size))
    return PathCase(
        path,
        Space(nodes, log_weights, np.ones(size, bool)),
        np.array([[-0.9], [0.2], [3.0]]),
        lambda x: -1.3 * jnp.cos(x[..., 0] - 0.4) + 0.3 * jnp.sin(2 * x[..., 0]),
        lambda x: jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(2 * x)], axis=-1),
    )


PATHS = {
    "WrappedPath": lambda: [circle_case(egm.paths.WrappedPath(0.5, 7.0))],
    "MaskedPath": lambda: [
        token_case(egm.paths.MaskedPath(3), 2),
        token_case(egm.paths.MaskedPath(2, power=2.0), 3),
    ],
    "UniformPath": lambda: [
        token_case(egm.paths.UniformPath(3), 2, masks=False),
        token_case(egm.paths.UniformPath(2, power=2.0), 3, masks=False),
    ],
    "LinearPath": lambda: [line_case(egm.paths.LinearPath(sigma=1.2), [1.0])],
    "VarianceExplodingPath": lambda: [line_case(egm.paths.VarianceExplodingPath(0.3, 3.0), [1.0])],
    "VariancePreservingPath": lambda: [line_case(egm.paths.VariancePreservingPath(0.1, 4.0), [1.0])],
    "CenteredPath": lambda: [
        line_case(
            egm.paths.CenteredPath(egm.paths.LinearPath(), 2, 1),
            [1.0, -1.0],
        )
    ],
    "ProductPath": lambda: [_mixed()],
}


# Processes.


class ProcessCase(NamedTuple):
    """A process, a problem on its path with log Z known, and numbers of steps to simulate it in.

    Attributes:
      problem: has `__call__` (E), `path`, `log_z` and `exact_samples`.
      generator: one that is random and untrained, far enough from the exact one for bounds to tell.
      event: shape of a state.
    """

    process: Any
    problem: Any
    generator: Any
    event: Any
    num_steps: tuple[int, ...]


def _on_tokens(process, num_steps, make=token_problem, **options):
    problem = make(**options)
    return ProcessCase(process(problem.path), problem, problem.random_denoiser, (problem.sites,), num_steps)


def _on_vectors(process, path, num_steps, dim=1, **options):
    """`process(path)` on a Gaussian mixture."""
    problem = gaussian_problem(path, dim, **options)
    return ProcessCase(process(path), problem, problem.random_generator, (dim,), num_steps)


def _on_mixtures(parts, gaussian, num_steps, sites=2, dim=1):
    """The product of `parts(path)` by name, on a mixture {"x", "h"}."""
    problem = mixed_problem(gaussian, sites, dim)
    process = egm.processes.ProductProcess({k: parts[k](p) for k, p in problem.path.paths.items()})
    event = {"x": (dim,), "h": (sites,)}
    return ProcessCase(process, problem, problem.random_generator, event, num_steps)


def _noise(t):
    return 0.9 + 0.2 * t


def _late_noise(t):
    """0 on some steps, which are then the flow's."""
    return jnp.where(t < 0.5, 0.0, _noise(t))


def _shares(t):
    return 0.7 - 0.4 * t, 0.3 + 0.4 * t


LINEAR, EXPLODING = egm.paths.LinearPath(), egm.paths.VarianceExplodingPath(0.5, 3.0)
CENTERED = egm.paths.CenteredPath(LINEAR, 3, 1)
_p = egm.processes
PROCESSES = {
    "JumpProcess": lambda: [
        _on_tokens(_p.JumpProcess, (1, 3, 10)),
        _on_tokens(_p.JumpProcess, (4,), vocab=2, sites=4, power=1.5),
        _on_tokens(_p.JumpProcess, (3, 1, 10), uniform_problem),
        _on_tokens(_p.JumpProcess, (4,), uniform_problem, vocab=2, sites=4, power=1.5),
    ],
    "AnyOrderProcess": lambda: [_on_tokens(_p.AnyOrderProcess, (3,))],
    "OrderedProcess": lambda: [
        _on_tokens(lambda path: _p.OrderedProcess(path, _p.orders.colouring((0, 1, 0))), (3,)),
        _on_tokens(lambda path: _p.OrderedProcess(path, _p.orders.random_sites(4, (1, 3))), (2,), sites=4),
        _on_tokens(
            lambda path: _p.OrderedProcess(path, _p.orders.DrawnOrder(((0, 1, 1), (1, 0, 1)))), (2, 4)
        ),
    ],
    "FlowProcess": lambda: [
        _on_vectors(_p.FlowProcess, EXPLODING, (8,), dim=2),
        _on_vectors(functools.partial(_p.FlowProcess, method="heun"), CENTERED, (6,), dim=3),
    ],
    "DiffusionProcess": lambda: [
        _on_vectors(_p.DiffusionProcess, EXPLODING, (2, 8)),
        _on_vectors(_p.DiffusionProcess, CENTERED, (5,), dim=3, record="variance"),
        _on_vectors(lambda p: _p.DiffusionProcess(p, _late_noise), LINEAR, (16,), dim=2),
        _on_vectors(lambda p: _p.DiffusionProcess(p, 0.6), EXPLODING, (16,), record="score"),
    ],
    "SuperpositionProcess": lambda: [
        _on_vectors(
            lambda p: _p.SuperpositionProcess((_p.FlowProcess(p), _p.DiffusionProcess(p, _noise)), _shares),
            LINEAR,
            (24,),
        ),
        _on_vectors(
            lambda p: _p.SuperpositionProcess((_p.VectorJumpProcess(p), _p.DiffusionProcess(p)), _shares),
            EXPLODING,
            (8,),
            record="mixture",
        ),
    ],
    "VectorJumpProcess": lambda: [
        _on_vectors(_p.VectorJumpProcess, EXPLODING, (8, 2), dim=2, record="mixture"),
        _on_vectors(_p.VectorJumpProcess, LINEAR, (12,), record="mixture"),
    ],
    "ProductProcess": lambda: [
        _on_mixtures({"x": lambda p: _p.DiffusionProcess(p, _noise), "h": _p.JumpProcess}, LINEAR, (24,)),
        _on_mixtures({"x": _p.DiffusionProcess, "h": _p.AnyOrderProcess}, LINEAR, (3,), 3, 2),
    ],
}


# Energies.


class EnergyCase(NamedTuple):
    """An energy, states [N, *event] to evaluate it at, and the space of its states if it is small.

    Attributes:
      space: all states with quadrature weights, or None; with it `log_partition` and `sample` are
        held to sums over the space.
      features: [..., F] of a state, as in `PathCase`; where `space` is None, None.
    """

    energy: Any
    states: Any
    space: Space | None
    features: Any


def lattice_case(energy, sites):
    """An energy on `sites` tokens, enumerated where there are few states."""
    vocab = energy.vocab_size
    rng = np.random.default_rng(0)
    if vocab**sites > 1024:
        return EnergyCase(energy, rng.integers(0, vocab, (6, sites), np.int32), None, None)
    nodes = np.array(list(itertools.product(range(vocab), repeat=sites)), np.int32)
    space = Space(nodes, np.zeros(len(nodes)), np.ones(len(nodes), bool))
    return EnergyCase(energy, nodes[rng.permutation(len(nodes))[:6]], space, _indicators(nodes))


def vector_case(energy, basis=None, scale=1.0, step=0.05, width=9.0, shapes=None):
    """An energy on vectors or {"x", "h"}; with a basis [k, D] of its space, quadrature on the grid of it."""
    shapes = energy.event_shape if shapes is None else shapes
    mixed, rng = isinstance(shapes, dict), np.random.default_rng(0)
    dim = shapes["x"][0] if mixed else shapes[0]
    # Representable in float32, so that both precisions see the same states.
    states = np.float32(scale * rng.normal(size=(6, dim))).astype(np.float64)
    if mixed:
        states = {"x": states, "h": rng.integers(0, energy.vocab_size, (6, *shapes["h"]), np.int32)}
    if basis is None:
        return EnergyCase(energy, states, None, None)
    basis = np.array(basis) / np.linalg.norm(basis, axis=1, keepdims=True)
    line = np.arange(-width, width + step / 2, step)
    x = np.array(list(itertools.product(line, repeat=len(basis)))) @ basis
    sites, vocab = (shapes["h"][0], energy.vocab_size) if mixed else (0, 1)
    tokens = np.array(list(itertools.product(range(vocab), repeat=sites)), np.int32)
    tokens = tokens.reshape(vocab**sites, sites)

    def features(state):
        x, h = (state["x"], state["h"]) if mixed else (state, jnp.zeros((len(state), 0)))
        x = jnp.asarray(x)
        y = x @ jnp.asarray(basis.T, x.dtype)
        powers = jnp.concatenate([jnp.ones_like(y[..., :1]), y, y**2], axis=-1)
        return (powers[..., None] * _indicators(tokens)(h)[..., None, :]).reshape(len(x), -1)

    every_x, every_h = np.repeat(x, len(tokens), axis=0), np.tile(tokens, (len(x), 1))
    nodes = {"x": every_x, "h": every_h} if mixed else x
    weights = np.full(len(every_x), len(basis) * np.log(step))
    return EnergyCase(energy, states, Space(nodes, weights, np.ones(len(weights), bool)), features)


def _rbm():
    return egm.energies.GaussianBernoulliRBM(((1.5, -2.0),), (0.3,), (-0.5, 0.4), 0.8)


_SHORT = egm.energies.ChainSettings(num_chains=128, num_kept=8192, num_warmup=300, thinning=20)
# For shapes alone: far too short to be held to anything.
# Two wells with 4.4 between them.
_COLD = _SHORT._replace(inverse_temperatures=(1.0, 0.5, 0.25))
_TINY = egm.energies.ChainSettings(num_chains=8, num_kept=32, num_warmup=1, thinning=1, max_r_hat=1e9)


def _with_pairs(energy, num_sites, vocab_size):
    """The pair terms that are found in an energy, without the rounding of float32: they have few digits."""
    found = egm.energies.pair_terms(energy, num_sites, vocab_size)
    assert found is not None
    return egm.energies.WithPairs(energy, *(np.round(a, 4) for a in found))


ENERGIES = {
    "Ising": lambda: [
        lattice_case(egm.energies.Ising(2, 0.3), 4),
        lattice_case(egm.energies.Ising(3, 0.4, coupling=-0.7, field=0.2), 9),
        lattice_case(egm.energies.Ising(4, 0.44), 16),
    ],
    "WithConditionals": lambda: [
        lattice_case(egm.energies.WithConditionals(egm.energies.Ising(2, 0.3, field=0.5), 2), 4),
        vector_case(egm.energies.WithConditionals(_rbm(), 2, part="h"), shapes=_rbm().event_shape),
    ],
    "WithColouring": lambda: [
        lattice_case(egm.energies.WithColouring(egm.energies.Ising(4, 0.3, field=0.5), (0, 1, 0, 1) * 4), 16),
    ],
    "WithPairs": lambda: [
        lattice_case(_with_pairs(egm.energies.Ising(4, 0.3, field=0.5), 16, 2), 16),
        lattice_case(_with_pairs(egm.energies.Potts(4, ((0, 1), (1, 2), (0, 3)), 3, 0.8, 0.4), 4, 3), 4),
    ],
    "SpinGlass": lambda: [
        lattice_case(egm.energies.SpinGlass(4, ((0, 1), (1, 2), (0, 3)), (0.5, -1.0, 0.7), 0.3, 0.8), 4),
        lattice_case(egm.energies.SpinGlass.edwards_anderson(jax.random.key(0), (3, 3), 0.7), 9),
        lattice_case(egm.energies.SpinGlass.edwards_anderson(jax.random.key(0), (2, 2, 3), 0.7), 12),
    ],
    "Potts": lambda: [
        lattice_case(egm.energies.Potts(4, egm.energies.lattices.square((2, 2)), 3, 0.8, 0.4), 4),
        lattice_case(egm.energies.Potts(9, egm.energies.lattices.square((3, 3)), 4), 9),
    ],
    "MaximumCut": lambda: [
        lattice_case(egm.energies.MaximumCut(4, ((0, 1), (1, 2), (0, 3)), (0.5, 1.0, -0.7), 0.8), 4),
    ],
    "IndependentSet": lambda: [
        lattice_case(egm.energies.IndependentSet(4, ((0, 1), (1, 2), (0, 3)), (0.5, 1.0, 0.0, 0.7)), 4),
        lattice_case(egm.energies.IndependentSet(9, egm.energies.lattices.square((3, 3)), 1.0, 1.5, 0.6), 9),
    ],
    "GaussianMixture": lambda: [
        vector_case(egm.energies.GaussianMixture(((-1.0,), (2.0,)), 0.7, (1, 3)), [[1.0]]),
        vector_case(egm.energies.GaussianMixture(), scale=5.0),
    ],
    "GaussianBernoulliRBM": lambda: [
        vector_case(_rbm(), [[1.0]]),
        vector_case(egm.energies.GaussianBernoulliRBM(), scale=2.0),
    ],
    "JointGaussianMixture": lambda: [
        vector_case(egm.energies.JointGaussianMixture(1, 1.2, 0.5), [[1.0]]),
        vector_case(egm.energies.JointGaussianMixture()),
    ],
    "CoupledJointMixture": lambda: [
        vector_case(egm.energies.CoupledJointMixture(2, 0.4, 0.8, 0.5, -0.6), np.eye(2), step=0.1, width=5.0),
        vector_case(egm.energies.CoupledJointMixture()),
    ],
    "JointDoubleWell": lambda: [
        vector_case(egm.energies.JointDoubleWell(2, 1, _SHORT), [[1.0, -1.0]], scale=2.0),
        vector_case(egm.energies.JointDoubleWell(3, 2, _TINY), scale=2.0),
    ],
    "DoubleWell4": lambda: [
        vector_case(egm.energies.DoubleWell4(2, 1, _COLD), [[1.0, -1.0]], scale=3.0, width=12.0),
        vector_case(egm.energies.DoubleWell4(3, 2, _TINY), scale=3.0),
    ],
    "LennardJones": lambda: [
        vector_case(egm.energies.LennardJones(2, 1, reference=_SHORT), [[1.0, -1.0]], scale=2.0),
        vector_case(egm.energies.LennardJones(3, 2, reference=_TINY), scale=2.0),
    ],
}


# Helpers of several tests.


def max_z(samples, features, expected, second):
    """Largest |z| of the mean features of N samples against exact means and second moments.

    Features of variance zero must agree to 1e-6 and count as z = 0; so do indicators of events that
    are expected fewer than 10 times, which are not close to normal.
    """
    mean = np.asarray(jnp.mean(features(samples), axis=0), np.float64)
    n = jax.tree.leaves(samples)[0].shape[0]
    error = np.sqrt(np.maximum(second - expected**2, 0) / n)
    certain, rare = error < 1e-7, n * second < 10
    np.testing.assert_allclose(mean[certain], expected[certain], atol=1e-6)
    z = np.abs(mean - expected) / np.maximum(error, 1e-7)
    return float(np.max(z[~certain & ~rare], initial=0.0))


def exact_moments(space, log_density, features):
    """(E f, E f^2) of the features under exp(log_density) on the space; also its total mass."""
    p = np.exp(np.asarray(log_density, np.float64) + space.log_weights)
    f = np.asarray(features(space.nodes), np.float64)
    return p @ f, p @ f**2, p.sum()


def take(tree, index):
    """The states `index` along the leading axis of every leaf."""
    return jax.tree.map(lambda a: a[index], tree)
