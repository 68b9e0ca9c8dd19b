"""Whether exp(-V/epsilon) has a finite integral, and whether mass lies where no chain of a bridge looks.

No finite set of evaluations proves either; what is seen here is certain in one direction only. A prior
drawn out by a factor rho about its centre gives an unbiased estimate of Z by importance sampling: one far
above the bridge's shows mass beyond it. And a ray along which V does not outgrow log r is a tube of
infinite mass. Used by `energymatch.likelihood`. Shape letters: R rays, D numbers a state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, importance
from egm.typing import Array
from energymatch.langevin.scans import scan
from energymatch.likelihood.priors import Prior
from energymatch.potential import Potential, boltzmann_log_density, value_and_gradient

__all__ = [
    "FACTORS",
    "MOMENTUM",
    "NUM_DESCENTS",
    "NUM_RAYS",
    "POLISH",
    "Reach",
    "SURPLUS",
    "TUBE",
    "TURN",
    "probe",
]

NUM_RAYS = 64
"""R, or the number of chains if that is less."""
NUM_DESCENTS = 16
"""Of them turn towards least V."""
FACTORS = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 2000.0)
"""By which the prior is drawn out; growth is judged between the last two."""
TURN, POLISH = (0.5, 0.9, 120), (0.02, 0.85, 60)
"""First step, factor and number of steps on the unit sphere, of the descents to the direction of least V:
both at the last factor but one, the second again at the last and back."""
TUBE = 0.5
"""Growth of -log density with log r along such a ray below which a tube is no tail: 1 is the limit of a
straight one, and what a descent does not quite reach is near as large as the rest."""
MOMENTUM = 0.9
"""Of these descents: valleys are narrow so far out."""
SURPLUS = 5.0
"""Nats above the bridge's log Z that a drawn-out prior's may reach by chance: e^-5 at most, by Markov."""


class Reach(NamedTuple):
    """What lies beyond the prior.

    Attributes:
      log_mass: estimate of log Z from the prior drawn out, the largest over all factors; errs low, mostly
        by far, so it matters only where it is above the bridge's log Z.
      grows: bool, False where V stops growing along a ray: exp(-V/epsilon) has no finite integral.
    """

    log_mass: Array
    grows: Array


def probe(
    keys: Array, potential: Potential, *, epsilon: float, prior: Prior, axis_name: str | None = None
) -> Reach:
    """Rays from the middle of a prior through its samples, out to 2,000 times its width.

    V = NaN or infinite and p_0 = 0 stand for no density, as everywhere.

    Args:
      keys: [B], one a chain of this device; the first ones over all devices make the rays.
      potential, epsilon, prior: as in `likelihood.log_partition`.
      axis_name: mapped axis over which the chains are split. The result is the same on all devices.
    """
    data = collectives.all_gather(jax.random.key_data(keys), axis_name)[:NUM_RAYS]
    keys = jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))
    x = checks.float_array(prior.sample(keys, keys.shape[0]), "prior.sample", min_ndim=1)
    log_p = prior.log_density(x)
    center = jnp.mean(x, axis=0)
    ray = x - center[None]
    dim = math.prod(x.shape[1:])

    def at(ray, factor):
        """[R] -V/epsilon at center + factor * ray, -inf where there is no density."""
        y = center[None] + factor * ray
        log_q = boltzmann_log_density(potential, y, epsilon)
        inside = jnp.isfinite(log_q) & jnp.isfinite(prior.log_density(y))
        return jnp.where(inside, log_q, -jnp.inf)

    factors = jnp.asarray(FACTORS, x.dtype)
    log_q = jax.lax.map(lambda factor: at(ray, factor), factors)
    log_w = log_q - log_p[None] + dim * jnp.log(factors)[:, None]
    log_mass = jnp.max(importance.log_mean_exp(log_w, axis=1))
    # Growth is judged on rays of one length, in units of the prior's widths: none is short and still inside.
    width = jnp.maximum(jnp.std(x, axis=0), jnp.finfo(x.dtype).tiny)
    direction = _unit((ray / width[None]).reshape(-1, dim))
    out = lambda direction: math.sqrt(dim) * direction.reshape(-1, *ray.shape[1:]) * width[None]
    # In a cone the mass between r and 2 r must fall; in a tube the density must.
    near, far = FACTORS[-2:]
    cone = _rises(at(out(direction), near), at(out(direction), far), dim)

    def lowest(direction, factor, descent):
        slope = lambda u: value_and_gradient(potential, center[None] + factor * out(u))[1] * width[None]
        return _descend(slope, direction, *descent)

    near_lowest = lowest(lowest(direction[:NUM_DESCENTS], near, TURN), near, POLISH)
    far_lowest = lowest(near_lowest, far, POLISH)
    # What the second one found the first may have missed: it must not look like growth that stops.
    again = lowest(far_lowest, near, POLISH)
    best = jnp.maximum(jnp.max(at(out(near_lowest), near)), jnp.max(at(out(again), near)))
    tube = _rises(best, jnp.max(at(out(far_lowest), far)), TUBE)
    return Reach(log_mass, ~(jnp.any(cone) | tube))


def _rises(near: Array, far: Array, dim: float) -> Array:
    """Whether r^dim exp(-V/epsilon) does not fall from the last factor but one to the last."""
    both = jnp.isfinite(near) & jnp.isfinite(far)
    change = jnp.where(both, far, 0.0) - jnp.where(both, near, 0.0)
    return both & (change + dim * math.log(FACTORS[-1] / FACTORS[-2]) >= 0)


def _descend(
    gradient: Callable[[Array], Array], direction: Array, first: float, factor: float, num_steps: int
) -> Array:
    """[R, D] unit vectors turned towards least V, by its gradient [R, *event] at a unit vector."""

    def body(carry, step):
        u, v = carry
        along = lambda a: jnp.sum(a * u, axis=1, keepdims=True) * u
        g = gradient(u).reshape(u.shape)
        g = _unit(jnp.where(jnp.isfinite(g), g, 0.0))
        v = MOMENTUM * v + _unit(g - along(g))
        v = v - along(v)
        return (_unit(u - step * _unit(v)), v), None

    steps = jnp.asarray(first * factor ** np.arange(num_steps), direction.dtype)
    start = (direction, jnp.zeros_like(direction))
    return scan(body, start, steps)[0][0]


def _unit(v: Array) -> Array:
    """[R, D] of length 1; what has no direction becomes zero."""
    peak = jnp.max(jnp.abs(v), axis=1, keepdims=True)
    v = v / jnp.where(peak > 0, peak, 1.0)
    norm = jnp.linalg.norm(v, axis=1, keepdims=True)
    return v / jnp.where(norm > 0, norm, 1.0)
