"""energymatch: learn an energy from data by Energy Matching (arXiv 2504.10612).

One time-independent potential V: -grad V carries noise to data along optimal-transport paths, and
exp(-V/epsilon) is the data's density.

    import jax, energymatch
    model = energymatch.fit(jax.random.key(0), table)                 # [N, D] rows; nothing to set
    print(model.report())
    model.log_prob(table), model.score(table), model.sample(jax.random.key(1), 1000)
    model.impute(jax.random.key(2), table[:1], observed, 100)         # observed: [D] of True and False

    init, step = matching.make_warm_up(net.apply, optimizer)          # phase 1: transport
    state, info = jax.jit(training.scan_steps(step, draw_batch, 500))(key, init(params))
    init, step = matching.make_matching(net.apply, optimizer)         # phase 2: transport and density
    V = functools.partial(net.apply, state.train.ema_params)
    x = langevin.sample(key, V, x_0, num_steps=300, step_size=0.01, temperature=temperature)

Where to start: `fit` makes an `EnergyModel` of a table, `EnergyEstimator` is the same for scikit-learn;
docs/by_hand.md trains one by hand.

    before training     preprocessing (columns, noise), couplings (pairs, plans, costs)
    training            matching, losses, negatives, schedules, networks
    sampling            langevin, tempering
    densities           likelihood (log Z with both bounds; priors), potential (V as an energy for egm)
    inverse problems    posterior (measurements, operators, interactions)
    dimension           curvature
    images              images, convert (published weights)

`matching` (optax), `networks` (Flax), `convert` (orbax) and the front door are imported when first used.
"""

import importlib
from typing import TYPE_CHECKING

from egm import version
from energymatch import (
    couplings,
    curvature,
    images,
    langevin,
    likelihood,
    losses,
    negatives,
    posterior,
    potential,
    preprocessing,
    schedules,
    tempering,
)
from energymatch.couplings import plans
from energymatch.losses import contrastive_divergence_loss, energy_matching_loss, flow_matching_loss
from energymatch.posterior import operators
from energymatch.schedules import flow_weight, temperature

if TYPE_CHECKING:
    from energymatch import matching
    from energymatch.estimator import EnergyEstimator
    from energymatch.fitting import fit
    from energymatch.model import EnergyModel

__version__ = version.__version__

__all__ = [
    "EnergyEstimator",
    "EnergyModel",
    "__version__",
    "contrastive_divergence_loss",
    "couplings",
    "curvature",
    "energy_matching_loss",
    "fit",
    "flow_matching_loss",
    "flow_weight",
    "images",
    "langevin",
    "likelihood",
    "losses",
    "matching",
    "negatives",
    "operators",
    "plans",
    "posterior",
    "potential",
    "preprocessing",
    "schedules",
    "temperature",
    "tempering",
]

_ON_FIRST_USE = {
    "convert": "convert",
    "costs": "couplings.costs",
    "estimator": "estimator",
    "fitting": "fitting",
    "interactions": "posterior.interactions",
    "matching": "matching",
    "model": "model",
    "networks": "networks",
    "priors": "likelihood.priors",
}
_FRONT_DOOR = {"EnergyEstimator": "estimator", "EnergyModel": "model", "fit": "fitting"}


def __getattr__(name: str):
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}")
    if name in _FRONT_DOOR:
        return getattr(importlib.import_module(f"{__name__}.{_FRONT_DOOR[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE, *_FRONT_DOOR})
