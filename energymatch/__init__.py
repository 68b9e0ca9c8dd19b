"""energymatch: learn an energy from data by Energy Matching (arXiv 2504.10612).

One time-independent potential V: -grad V carries noise to data along optimal-transport paths, and
exp(-V/epsilon) is the data's density.

    model = energymatch.fit(jax.random.key(0), table)                 # the front door: nothing to set
    model.log_prob(table), model.sample(jax.random.key(1), 1000)

    init, step = matching.make_warm_up(net.apply, optimizer)          # phase 1: transport
    state, info = jax.jit(training.scan_steps(step, draw_batch, 500))(key, init(params))
    init, step = matching.make_matching(net.apply, optimizer)         # phase 2: transport and density
    V = functools.partial(net.apply, state.train.ema_params)
    x = langevin.sample(key, V, x_0, num_steps=300, step_size=0.01, temperature=temperature)

Where to start: `fit` makes an `EnergyModel` of a table; README, "An energy from data", trains one by hand.

    before training     preprocessing (columns, noise), couplings (pairs, plans, costs)
    training            matching, losses, negatives, schedules, networks
    sampling            langevin, tempering
    densities           likelihood (log Z with both bounds; priors), potential (V as an energy for egm)
    inverse problems    posterior (measurements, operators, interactions)
    dimension           curvature
    images              images, convert (published weights)

`energymatch.networks` (Flax), `energymatch.convert` (orbax) and the front door are imported when first used.
"""

import importlib

from energymatch import (
    couplings,
    curvature,
    images,
    langevin,
    likelihood,
    losses,
    matching,
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

__all__ = [
    "contrastive_divergence_loss",
    "couplings",
    "curvature",
    "energy_matching_loss",
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
    "fitting": "fitting",
    "interactions": "posterior.interactions",
    "model": "model",
    "networks": "networks",
    "priors": "likelihood.priors",
}
_FRONT_DOOR = {"EnergyModel": "model", "fit": "fitting"}


def __getattr__(name: str):
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"{__name__}.{_ON_FIRST_USE[name]}")
    if name in _FRONT_DOOR:
        return getattr(importlib.import_module(f"{__name__}.{_FRONT_DOOR[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE, *_FRONT_DOOR})
