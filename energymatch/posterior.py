"""Posteriors: measurement energies beside a potential, and samples of exactly what they define.

With U_j in nats the posterior of a model exp(-V/epsilon) is exp(-V/epsilon - sum_j U_j). The energies go
to `langevin.sample(..., energies=...)`, which is the published annealing: where eps(t) = 0 it moves in V
alone, so the relative mass of separate modes is that of V's basins, not the posterior's. `sample` here
draws from the posterior itself, by annealed importance sampling. Energies that couple the members of a
batch are in `energymatch.interactions`, operators A in `energymatch.operators`.

Shape letters: B batch, N chains, M members of a group, *event the axes of one state.

Source: Energy Matching (arXiv 2504.10612), inverse problems.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives, importance, random
from egm.typing import Array, Key
from energymatch._checks import number
from energymatch.annealing import Bridge, Problem
from energymatch.interactions import BoundedRepulsion, QuadraticRepulsion, joint
from energymatch.likelihood import LogPartition, log_partition
from energymatch.operators import Operator
from energymatch.potential import Potential
from energymatch.priors import Prior

__all__ = [
    "BoundedRepulsion",
    "PosteriorSamples",
    "QuadraticRepulsion",
    "gaussian_measurement",
    "joint",
    "measurement",
    "sample",
    "with_energies",
]


def measurement(
    operator: Operator, y: Any, negative_log_likelihood: Callable[[Array, Any], Array]
) -> Potential:
    """U(x) = -log p(y | A(x)) for any likelihood.

    Args:
      operator: A(x) -> [B, *measurement], linear or not: `energymatch.operators` or one's own.
      y: what was measured, handed on as it is.
      negative_log_likelihood: (A(x), y) -> [B] in nats, constants left out or not; differentiable in
        A(x). Where it is +inf the likelihood is zero.

    Returns:
      U(x) -> [B].

    Raises:
      TypeError: a function is not callable. TypeError, ValueError (from U): its output is no float [B].
    """
    for name, function in (("operator", operator), ("negative_log_likelihood", negative_log_likelihood)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, got {function!r}")

    def energy(x: Array) -> Array:
        x = checks.float_array(x, "x", min_ndim=1)
        value = negative_log_likelihood(operator(x), y)
        return checks.model_output(value, "negative_log_likelihood", x.shape[:1])

    return energy


def gaussian_measurement(operator: Operator, y: Array, scale: float | Array) -> Potential:
    """U(x) = |y - A(x)|^2 / (2 zeta^2), of y = A(x) + zeta n with n standard normal.

    zeta is the standard deviation of the noise of each measured number, in the units of y; the
    normaliser (size of y)/2 log(2 pi zeta^2) is left out.

    Args:
      operator: A(x) -> [B, *measurement], linear or not.
      y: [B, *measurement], or [*measurement]: one measurement for all of the batch. For G measurements
        with M members each: `jnp.repeat(y, M, axis=0)`.
      scale: zeta, a positive number, a traced scalar or [B].

    Returns:
      U(x) -> [B].

    Raises:
      TypeError, ValueError: an argument has a wrong type or value, a known y is not finite, or (from U)
        A(x) does not fit y.
    """
    y = checks.float_array(y, "y")
    known = checks.concrete(y)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(f"y must be finite, got {known[~np.isfinite(known)].ravel()[0]}")
    shape = checks.as_array(scale, "scale").shape
    if len(shape) > 1:
        raise ValueError(f"scale must be a scalar or have shape [B], got shape {shape}")
    number(scale, "scale", "finite and positive", shape)

    def squares(prediction: Array, y: Array) -> Array:
        prediction = checks.wide(checks.float_array(prediction, "operator(x)", min_ndim=1))
        if y.shape not in (prediction.shape, prediction.shape[1:]):
            raise ValueError(
                f"y must have shape {prediction.shape} or {prediction.shape[1:]}, as operator(x) has, "
                f"got {y.shape}"
            )
        zeta = number(scale, "scale", "finite and positive", prediction.shape[:1]).astype(prediction.dtype)
        difference = jnp.broadcast_to(y.astype(prediction.dtype), prediction.shape) - prediction
        return jnp.sum(difference**2, axis=tuple(range(1, difference.ndim))) / (2 * zeta**2)

    return measurement(operator, y, squares)


def with_energies(potential: Potential, energies: Sequence[Potential], epsilon: float | Array) -> Potential:
    """V + epsilon sum_j U_j, the potential whose Boltzmann density at epsilon is the posterior.

    For `likelihood`, `tempering` and all else that takes a potential. (`langevin.sample` takes the
    energies apart, because its epsilon changes with time.)

    Args:
      potential: V(x) -> [B].
      energies: U_j(x) -> [B] in nats, each of one example alone.
      epsilon: temperature of the model, a positive number or a traced scalar.

    Raises:
      TypeError, ValueError: an argument has a wrong type or value, or an energy couples examples.
    """
    if not callable(potential):
        raise TypeError(f"potential must be callable, got {potential!r}")
    if not isinstance(energies, (tuple, list)) or not all(callable(u) for u in energies):
        raise TypeError(f"energies must be a tuple of functions, got {energies!r}")
    for i, energy in enumerate(energies):
        if getattr(energy, "couples_examples", False):
            raise ValueError(
                f"energies[{i}] couples examples: wrap potential and energies with joint, got {energy}"
            )
    epsilon = number(epsilon, "epsilon", "finite and positive")

    def total(x: Array) -> Array:
        value = checks.model_output(potential(x), "potential", x.shape[:1])
        for i, energy in enumerate(energies):
            term = checks.model_output(energy(x), f"energies[{i}]", x.shape[:1])
            value = value + epsilon.astype(value.dtype) * term.astype(value.dtype)
        return value

    return total


class PosteriorSamples(NamedTuple):
    """What `sample` returns.

    Attributes:
      x: [B, *event] samples of equal weight.
      acceptance: mean acceptance probability of the last moves.
      num_nonfinite: int32, proposals of the last moves that were not finite (rejected).
      partition: the annealed run: `log_z` of exp(-V/epsilon - sum_j U_j) with its error, the ESS, and
        the weighted samples (x, log_weights) from which `x` was drawn. log p(y) is this log_z less that
        of exp(-V/epsilon), less the normaliser of the likelihood where U leaves it out. Its ESS counts
        from the last resampling on: chains that share an ancestor look independent in it.
    """

    x: Array
    acceptance: Array
    num_nonfinite: Array
    partition: LogPartition


def sample(
    key: Key,
    potential: Potential,
    *,
    energies: Sequence[Potential],
    epsilon: float,
    prior: Prior,
    num_samples: int = 4096,
    num_steps: int = 200,
    num_moves: int = 1,
    num_last_moves: int = 20,
    bridge: Bridge | None = None,
    resample_below: float | None = 0.5,
    num_groups: int = 16,
    axis_name: str | None = None,
) -> PosteriorSamples:
    """Samples of exp(-V/epsilon - sum_j U_j), with the right mass in each mode.

    `likelihood.log_partition` from the prior to the posterior (V and the measurement come in together),
    then resampling by weight over all chains, then adjusted moves that set copies apart and leave the
    posterior as it is. Exact in the limit of many chains; `partition.ess` and `partition.log_z_error`
    tell how far the run was from it, but samples that share an ancestor are not independent, which the
    ESS after a resampling does not show: for a few independent samples make as many runs.

    All chains share one measurement: several of them by `jax.vmap` over keys and y.

    Args:
      key: a typed key, or [B] keys (one a chain).
      potential: V(x) -> [B], lower on data.
      energies: U_j(x) -> [B] in nats, each of one example alone, the same for every example; () for the
        model itself.
      epsilon: temperature of the model.
      prior: p_0, must cover the posterior: `priors.fit_gaussian(data)` does where the model is the
        data's.
      num_samples: N, chains and samples over all devices, a multiple of `num_groups`.
      num_last_moves: moves after the last resampling, with the step size of the last level.
      num_steps, num_moves, bridge, resample_below, num_groups: as in `likelihood.log_partition`.
      axis_name: mapped axis over which the chains are split. The last resampling gathers all of them.

    Returns:
      PosteriorSamples. Where no chain has weight (log_z = -inf) x are the chains as they ended.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value.
    """
    checks.positive_float(epsilon, "epsilon")
    num_last_moves = checks.positive_int(num_last_moves, "num_last_moves", 0)
    num_samples = checks.positive_int(num_samples, "num_samples")
    target = with_energies(potential, energies, epsilon)
    size = collectives.axis_size(axis_name)
    if num_samples % size:
        raise ValueError(f"num_samples must be a multiple of the {size} devices, got {num_samples}")
    keys = random.example_keys(key, num_samples // size, axis_name)
    run_keys, pick_keys, move_keys = random.split(keys, 3)
    partition = log_partition(
        run_keys, target, epsilon=epsilon, prior=prior, num_chains=num_samples, num_steps=num_steps,
        num_moves=num_moves, bridge=bridge, resample_below=resample_below, num_groups=num_groups,
        axis_name=axis_name,
    )  # fmt: skip
    x = _draw(pick_keys, partition.log_weights, partition.x, axis_name)
    if num_last_moves == 0:
        return PosteriorSamples(x, jnp.ones((), x.dtype), jnp.zeros((), jnp.int32), partition)
    problem = Problem(target, epsilon, prior)
    state = problem.init(problem.coordinates(x))
    last = (jnp.ones((), x.dtype), partition.bridge.step_sizes[-1])
    state, (acceptance, num_bad) = problem.move(move_keys, state, *last, num_last_moves)
    acceptance = collectives.pmean(jnp.mean(acceptance), axis_name)
    num_bad = collectives.psum(jnp.sum(num_bad), axis_name)
    return PosteriorSamples(problem.event(state.x), acceptance, num_bad, partition)


def _draw(keys: Array, log_weights: Array, x: Array, axis_name: str | None) -> Array:
    """[B, *event] stratified resampling over all N chains: place i draws at (i + u_i)/N, u_i by its key."""
    batch = log_weights.shape[0]
    weights = importance.snis(log_weights, 0, axis_name).weights
    cumulative = jnp.cumsum(collectives.all_gather(weights, axis_name))
    place = collectives.axis_index(axis_name) * batch + jnp.arange(batch)
    # 1 - u is in (0, 1]: the first place whose cumulative weight reaches a point has a weight above zero.
    u = 1 - random.per_example(lambda k: jax.random.uniform(k, (), weights.dtype), keys)
    total = cumulative[-1]
    points = (place.astype(weights.dtype) + u) / cumulative.size * total
    pick = jnp.minimum(jnp.searchsorted(cumulative, points), cumulative.size - 1)
    return collectives.all_gather(x, axis_name)[jnp.where(total > 0, pick, place)]
