"""egm: learn a sampler from an energy by Energy-based Generator Matching (arXiv 2505.19646).

    import jax, jax.numpy as jnp, egm
    energy = lambda x: 0.5 * jnp.sum(x**4)  # of one state; p(x) is proportional to exp(-energy(x))
    sampler = egm.fit(jax.random.key(0), energy, egm.spaces.Real(10))
    draw = sampler.sample(jax.random.key(1), 1000)  # draw.x, draw.log_weights, draw.ess
    sampler.log_z, sampler.log_z_error, draw.expectation(lambda x: x**2), print(sampler.report())

One estimate is under everything: with proposals x_r ~ q_{r|t}(. | x_t) and weights w ~ exp phi_r(x_r),
F_t(x) ~ sum_k w_k F_{t|r}^{x_r^k}(x) and phi_t = log Z_{r|t} + log E_q exp phi_r (`estimate`).

    path, energy = egm.paths.MaskedPath(2), egm.energies.Ising(3, 0.4)
    x_t = path.sample(key, energy.sample(key, 16), 0.3)
    phi_1 = egm.bootstrap.terminal(energy)
    estimate = egm.estimate(key, path, phi_1, x_t, 0.3, 1.0, num_samples=1000)
    estimate.generator, estimate.log_marginal, estimate.ess

Where to start: `fit` makes a `Sampler` of an energy and its space (`spaces`), with nothing to set. To build
one by hand, `iteration.make_iteration` trains any path, process and network.

    the front door      fit, Sampler, spaces, refine; pilot: what is found of an energy before training
    the paper's parts   paths, processes, heads, bootstrap (horizons, proposals), losses, divergences,
                        importance
    algorithms          weighted, naive, bootstrapped, local; annealing of the energy
    the outer loop      iteration, buffer (rejuvenation: resampled, moved), training, devices (many of
                        them), checkpoint (and a loop)
    targets             energies; scales finds a target's lengths from its energy alone
    a trained sampler   simulate, path_log_weights, metrics, evidence (has it lost modes?), moves
    networks            Flax modules; closed_forms to add them to
    your own parts      typing has the Protocols; smoothness tells whether grad E may be used,
                        symmetry whether E is even

`networks` (Flax), `checkpoint` (orbax), `training`, `iteration`, `scales` (optax) and the front door
are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING

from egm import (
    algorithms,
    bootstrap,
    buffer,
    collectives,
    divergences,
    energies,
    evidence,
    heads,
    horizons,
    importance,
    losses,
    metrics,
    moves,
    paths,
    processes,
    proposals,
    random,
    smoothness,
    summation,
    symmetry,
    version,
)
from egm.estimators import estimate
from egm.simulate import Resampling, draw_prior, path_log_weights, simulate, simulate_reverse
from egm.typing import SNIS, Energy, Estimate, Path, PriorDraw, Process, Trajectory

if TYPE_CHECKING:
    from egm import iteration, scales, spaces, training
    from egm.fitting import fit
    from egm.refinement import refine
    from egm.sampler import Sampler, Samples

__version__ = version.__version__

__all__ = [
    "SNIS",
    "Energy",
    "Estimate",
    "Path",
    "PriorDraw",
    "Process",
    "Resampling",
    "Sampler",
    "Samples",
    "Trajectory",
    "__version__",
    "algorithms",
    "bootstrap",
    "buffer",
    "collectives",
    "divergences",
    "draw_prior",
    "energies",
    "estimate",
    "evidence",
    "fit",
    "heads",
    "horizons",
    "importance",
    "iteration",
    "losses",
    "metrics",
    "moves",
    "path_log_weights",
    "paths",
    "processes",
    "proposals",
    "random",
    "refine",
    "scales",
    "simulate",
    "simulate_reverse",
    "smoothness",
    "spaces",
    "summation",
    "symmetry",
    "training",
]

_ON_FIRST_USE = (
    "batching",
    "checkpoint",
    "checks",
    "closed_forms",
    "devices",
    "estimators",
    "fitting",
    "iteration",
    "modules",
    "networks",
    "pilot",
    "refinement",
    "rejuvenation",
    "sampler",
    "scales",
    "spaces",
    "target",
    "training",
    "typing",
)
_FRONT_DOOR = {"fit": "fitting", "refine": "refinement", "Sampler": "sampler", "Samples": "sampler"}


def __getattr__(name: str):
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _FRONT_DOOR:
        return getattr(importlib.import_module(f"{__name__}.{_FRONT_DOOR[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE, *_FRONT_DOOR})
