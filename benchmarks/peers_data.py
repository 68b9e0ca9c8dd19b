"""The methods of peers.py that are given a table or points: held-out log-densities, and distances of samples.

A method is `run(train, test, seconds, seed) -> {name of the row: {"nats", "sample", "steps", "note"}}`, the
clock begun when it is called, compilation counted; there is no `sample` from methods that do not generate,
and no `nats` from those without a density.
"""

from __future__ import annotations

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import tables
from scipy import optimize
from scipy.spatial import distance

import energymatch

SET = 2000
"""Points a set for W2."""


def w2(a, b):
    """Exact W2 of two sets of as many points."""
    cost = distance.cdist(np.asarray(a, np.float64), np.asarray(b, np.float64), "sqeuclidean")
    return float(np.sqrt(cost[optimize.linear_sum_assignment(cost)].mean()))


def sets_of(x):
    """The two sets of points that W2 is a mean over."""
    return x[:SET], x[SET : 2 * SET]


def figures(found, test, planar):
    """The figures of a row, W2 in the plane alone: where rows are few the floor hides all differences."""
    row = {"nats": found.get("nats"), "steps": found.get("steps"), "note": found.get("note", "")}
    row |= {"w2": None, "floor": None}
    if planar and found.get("sample") is not None:
        drawn = np.asarray(found["sample"](2 * SET))
        row["w2"] = float(np.mean([w2(a, b) for a, b in zip(sets_of(drawn), sets_of(test))]))
    if planar:
        row["floor"] = w2(*sets_of(test))
    return row


def energymatch_fit(train, test, seconds, seed):
    model = energymatch.fit(jax.random.key(seed), train, seconds=seconds, progress=False)
    nats = float(np.mean(model.log_prob(test)))
    note = f"log Z error {model.log_z_error:.1g}"
    return {
        "energymatch.fit": {
            "nats": nats,
            "sample": lambda num: model.sample(jax.random.key(1000 + seed), num),
            "note": note,
        }
    }


def flowjax_fit(train, test, seconds, seed):
    """A coupling flow of splines on standardised data, stopped early by its own validation."""
    import equinox as eqx
    import optax
    from flowjax.bijections import RationalQuadraticSpline
    from flowjax.distributions import StandardNormal
    from flowjax.flows import coupling_flow
    from flowjax.train import fit_to_data
    from flowjax.train.losses import MaximumLikelihoodLoss

    began = time.perf_counter()
    mean, std = train.mean(0), train.std(0)
    z = jnp.asarray((train - mean) / std, jnp.float32)
    k_flow, k_time, k_fit, k_draw = jax.random.split(jax.random.key(seed), 4)
    spline = RationalQuadraticSpline(knots=8, interval=5)
    flow = coupling_flow(k_flow, base_dist=StandardNormal((z.shape[1],)), transformer=spline)
    # One optimiser and one loss, so that the step is compiled once.
    one = {"loss_fn": MaximumLikelihoodLoss(), "optimizer": optax.adam(1e-3)}
    fit = functools.partial(fit_to_data, max_patience=20, show_progress=False, **one)
    fit(k_time, flow, z, max_epochs=1)
    start = time.perf_counter()
    fit(k_time, flow, z, max_epochs=2)
    each = (time.perf_counter() - start) / 2
    most = max(2, int(0.9 * (seconds - (time.perf_counter() - began)) / each))
    flow, losses = fit(k_fit, flow, z, max_epochs=most)
    log_prob = eqx.filter_jit(lambda f, x: f.log_prob(x))(flow, jnp.asarray((test - mean) / std, jnp.float32))
    draw = lambda num: np.asarray(eqx.filter_jit(lambda f: f.sample(k_draw, (num,)))(flow)) * std + mean
    epochs = len(losses["train"])
    nats = float(np.mean(log_prob)) - float(np.sum(np.log(std)))
    note = f"{epochs} of {most} epochs"
    return {"flowjax": {"nats": nats, "sample": draw, "steps": epochs * -(-len(z) * 9 // 1000), "note": note}}


def scikit_learn(train, test, seconds, seed):
    """KDE and Gaussian mixture by cross-validation, and one Gaussian, as in tables.py; no time limit."""
    del seconds, seed
    return {name: {"nats": float(value)} for name, value in tables.peers(train, test).items()}


METHODS = {"energymatch.fit": energymatch_fit, "flowjax": flowjax_fit, "scikit-learn": scikit_learn}
