"""Energy Matching as (init, step): the warm-up by transport alone, then transport and contrast together.

Everything is pure and runs under jit, pmap and shard_map (`axis_name`). The defaults make exp(-V/epsilon_max)
the density of the data; `published_2d` and `published_images` are the paper's recipes. Shape
letters: B batch, M chains, *event the axes of one state.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from egm import checks, devices, random, training
from egm.typing import Array, Key, PyTree
from energymatch import losses, preprocessing
from energymatch.losses import Batch, Gate, contrast
from energymatch.negatives import NegativeSource, ShortRun, Tempered
from energymatch.potential import ParametricPotential

__all__ = [
    "MatchingConfig",
    "MatchingState",
    "Step",
    "make_matching",
    "make_warm_up",
    "published_2d",
    "published_images",
    "state_spec",
]

Step = Callable[[Key, Any, Batch], tuple[Any, dict[str, Array]]]
"""`state, metrics = step(key, state, batch)`."""


@dataclasses.dataclass(frozen=True)
class MatchingConfig:
    """What phase 2 is.

    Attributes:
      epsilon_max: the temperature of the learned density exp(-V/epsilon_max).
      lambda_cd: weight of the contrastive term.
      gate: makes the gate of the flow loss from epsilon_max, for instance `losses.energy_gate`, a partial
        of it, or `lambda epsilon: losses.time_gate(tau_star)`; None for no gate.
      negatives: where the model's samples come from.
      sigma: noise about the lines of transport.
      data_noise: standard deviation of the noise that is added to data in every step, a number or one an
        element of the flattened event (`tuple(preprocessing.noise_scales(data))`). exp(-V/epsilon_max) is
        then the density of the data with that noise; what has none (columns of few values) gets one.
      trim, floor, energy_l2: as for `losses.contrastive_divergence_loss`.
      guard: factor of `contrast.negative_limit`, the `limit` of the contrast; None for none. Without it a
        contrast whose chains cannot follow V runs away.
    """

    epsilon_max: float = 1.0
    lambda_cd: float = 4.0
    gate: Callable[[float], Gate] | None = losses.energy_gate
    negatives: NegativeSource = Tempered()
    sigma: float = 0.0
    trim: float = 0.0
    floor: float | None = None
    energy_l2: float = 0.0
    guard: float | None = 1.0
    data_noise: float | tuple[float, ...] = 0.0

    def __post_init__(self):
        checks.positive_float(self.epsilon_max, "epsilon_max")
        checks.positive_float(self.lambda_cd, "lambda_cd", allow_zero=True)
        _check_noise(self.data_noise)
        for name in ("sigma", "energy_l2"):
            checks.positive_float(getattr(self, name), name, allow_zero=True)
        checks.below_one(self.trim, "trim")
        if self.floor is not None:
            checks.positive_float(self.floor, "floor", allow_zero=True)
        if self.guard is not None:
            checks.positive_float(self.guard, "guard")
        if self.gate is not None and not callable(self.gate):
            raise TypeError(f"gate must be callable or None, got {self.gate!r}")
        if not all(callable(getattr(self.negatives, name, None)) for name in ("init", "draw")):
            raise TypeError(f"negatives must have init and draw, got {self.negatives!r}")


def _check_noise(noise: Any) -> None:
    """Raises unless it is a non-negative number or a tuple of them: a config is static, hence hashable."""
    for value in noise if isinstance(noise, tuple) else (noise,):
        checks.positive_float(value, "data_noise", allow_zero=True)


def _dithered(key: Key, batch: Batch, noise: float | tuple[float, ...], axis_name: str | None) -> Batch:
    """The batch with noise on its data, by a key that the rest of the step does not use."""
    if not np.any(np.asarray(noise)):
        return batch
    keys = random.split(random.derive(key, "dither"), 3)
    names = ("x_1", "data", "starts")
    given = {name: (k, getattr(batch, name)) for name, k in zip(names, keys)}
    noisy = {
        name: preprocessing.dither(k, x, noise, axis_name) for name, (k, x) in given.items() if x is not None
    }
    return batch._replace(**noisy)


def _warn_of_columns(x: Array, noise: float | tuple[float, ...]) -> None:
    """A warning that names the columns of a known table in which the data have no density."""
    known = checks.concrete(x)
    if known is None or known.ndim != 2 or known.shape[0] < 16 or not np.all(np.isfinite(known)):
        return
    report = preprocessing.check_columns(known)
    scales = np.broadcast_to(np.asarray(noise), known.shape[1:])
    bare = [j for j in (*report.constant, *report.discrete, *report.dependent) if scales[j] == 0]
    if bare:
        warnings.warn(
            "the data have no density, so that the likelihood has no bound: "
            + "; ".join(report.problems[:8])
            + ". Give MatchingConfig(data_noise=tuple(preprocessing.noise_scales(data)))",
            stacklevel=3,
        )


def published_2d() -> MatchingConfig:
    """The paper's settings for two-dimensional data: losses and negatives as in its published notebook.

    What goes with them there: batches of 128, Adam at 1e-4 without clipping, whose state goes on from the
    warm-up's 20,000 steps into 2,000 of phase 2 (`MatchingState(state, None)`), no average (ema_decay 0),
    `MLPPotential(width=256, depth=4, first_activation=flax.linen.relu)`, `couplings.exact_ot` of squared
    distances, and a `Batch` of six independent draws: pairs, data, prior and starts.

    What differs: the first weights of the network are Flax's, not torch's; torchcfm draws its pairs from
    the plan with replacement, `exact_ot` takes each once; chains alternate between prior and data, where
    the notebook has the data first.

    Source: Energy Matching (arXiv 2504.10612), two-dimensional experiments.
    """
    return MatchingConfig(
        epsilon_max=0.15,
        lambda_cd=2.0,
        gate=_published_gate,
        negatives=ShortRun(num_steps=200, step_size=0.01, tau_star=0.8, at_step_end=True),
        sigma=0.1,
        guard=None,
    )


def _published_gate(epsilon):
    del epsilon
    return losses.time_gate(0.8)


def published_images(num_steps: int = 200, step_size: float = 0.01) -> MatchingConfig:
    """The paper's settings for CIFAR-10 and ImageNet32: no gate (tau* = 1), negatives as published there.

    The chains of the negatives, half from data and half from the prior, go through the temperatures of
    sampling in their own time (none before t = 1) and are clipped to [-1, 1] at their end. The warm-up's
    whole state goes on into phase 2, as `MatchingState(state, None)`; rates and averages are in
    docs/images.md.

    Args:
      num_steps: Langevin steps of a negative.
      step_size: of each.

    Source: Energy Matching (arXiv 2504.10612), image experiments.
    """
    checks.positive_int(num_steps, "num_steps")
    checks.positive_float(step_size, "step_size")
    source = ShortRun(
        num_steps,
        step_size,
        tau_star=1.0,
        bounds=(-1.0, 1.0),
        anneal_data=True,
        end_time=max(1.0, num_steps * step_size),
        clip_at_end=True,
    )
    return MatchingConfig(
        epsilon_max=0.01, lambda_cd=1e-3, gate=None, negatives=source, trim=0.1, floor=0.02, guard=None
    )


class MatchingState(NamedTuple):
    """What phase 2 carries.

    Attributes:
      train: parameters, EMA, optimiser state and step.
      chains: of the source of negatives; a pytree, or None.
    """

    train: training.TrainState
    chains: Any


def state_spec(config: MatchingConfig | None = None, axis: str = devices.DATA) -> MatchingState:
    """How phase 2 lies on a mesh: chains split along `axis`, the rest the same on all devices.

    Args:
      config: None for the defaults.
      axis: name of the mesh axis.

    Returns:
      A prefix tree of PartitionSpecs, for `egm.devices.jit_step` and the like.
    """
    known = MatchingConfig() if config is None else config
    checks.instance(known, MatchingConfig, "config")
    whole: Any = P()
    return MatchingState(whole, known.negatives.spec(axis))


def make_warm_up(
    potential: ParametricPotential,
    optimizer: optax.GradientTransformation,
    *,
    sigma: float = 0.0,
    data_noise: float | tuple[float, ...] = 0.0,
    ema_decay: float = 0.995,
    axis_name: str | None = None,
) -> tuple[Callable[[PyTree], training.TrainState], Step]:
    """Phase 1: flow matching of -grad V, without gate.

    Args:
      potential: `potential(params, x) -> [B]`.
      optimizer: any optax transformation.
      sigma: noise about the lines of transport.
      data_noise: as in `MatchingConfig`.
      ema_decay: as for `egm.training.make_train_step`.
      axis_name: mapped axis over which the batch is split.

    Returns:
      `init(params) -> TrainState` and `step(key, state, batch) -> (state, metrics)`, which reads batch.x_0
      and batch.x_1; metrics are flow_loss and those of the train step and of `flow_matching_loss`.
    """
    checks.function(potential, "potential")
    sigma = checks.positive_float(sigma, "sigma", allow_zero=True)
    _check_noise(data_noise)

    def loss_fn(params, target_params, key, batch):
        del target_params
        loss, metrics = losses.flow_matching_loss(
            potential, params, key, batch.x_0, batch.x_1, sigma=sigma, axis_name=axis_name
        )
        return jnp.mean(loss), metrics | {"flow_loss": jnp.mean(loss)}

    train_step = training.make_train_step(loss_fn, optimizer, ema_decay=ema_decay, axis_name=axis_name)
    return (
        lambda params: training.init_train_state(params, optimizer),
        lambda key, state, batch: train_step(state, key, _dithered(key, batch, data_noise, axis_name)),
    )


def make_matching(
    potential: ParametricPotential,
    optimizer: optax.GradientTransformation,
    config: MatchingConfig | None = None,
    *,
    ema_decay: float = 0.995,
    axis_name: str | None = None,
) -> tuple[Callable[[PyTree, Array], MatchingState], Step]:
    """Phase 2: negatives at the present parameters, then one step of `losses.energy_matching_loss`.

    Args:
      potential: `potential(params, x) -> [B]`.
      optimizer: any optax transformation (clipping, schedules and warm-up included).
      config: None for the defaults.
      ema_decay: as for `egm.training.make_train_step`.
      axis_name: mapped axis over which batches and chains are split.

    Returns:
      `init(params, x) -> MatchingState`, x [M, *event] data to start the chains at, from the parameters of
      the warm-up (its EMA); it warns where x is a known table with columns that have no density. And
      `step(key, state, batch) -> (state, metrics)`, metrics those of the losses, of the train step and of
      the negatives.

    Raises:
      TypeError: `potential` is not callable, `config` is no MatchingConfig.
    """
    checks.function(potential, "potential")
    config = MatchingConfig() if config is None else config
    checks.instance(config, MatchingConfig, "config")
    train_step = training.make_train_step(
        _matching_loss(potential, config, axis_name), optimizer, ema_decay=ema_decay, axis_name=axis_name
    )

    def init(params: PyTree, x: Array) -> MatchingState:
        x = checks.float_array(x, "x", min_ndim=2)
        _warn_of_columns(x, config.data_noise)
        chains = config.negatives.init(lambda z: potential(params, z), x, config.epsilon_max)
        return MatchingState(training.init_train_state(params, optimizer), chains)

    def step(key: Key, state: MatchingState, batch: Batch) -> tuple[MatchingState, dict[str, Array]]:
        loss_key, chain_key = random.split(checks.key_array(key))
        params = jax.lax.stop_gradient(state.train.params)
        batch = _dithered(key, batch, config.data_noise, axis_name)
        negatives = config.negatives.draw(
            chain_key,
            lambda z: potential(params, z),
            config.epsilon_max,
            state.chains,
            batch,
            axis_name,
        )
        train, metrics = train_step(state.train, loss_key, (batch, negatives.x, negatives.log_weights))
        return MatchingState(train, negatives.chains), metrics | negatives.metrics

    return init, step


def _matching_loss(
    potential: ParametricPotential, config: MatchingConfig, axis_name: str | None
) -> Callable[..., tuple[Array, dict[str, Array]]]:
    """The loss of a train step on (batch, negatives, their log-weights)."""
    gate = None if config.gate is None else config.gate(config.epsilon_max)

    def loss_fn(params, target_params, key, batch_and_negatives):
        del target_params
        batch, negatives, log_weights = batch_and_negatives
        limit = None
        if config.guard is not None:
            dim = math.prod(batch.x_1.shape[1:])
            limit = config.guard * contrast.negative_limit(dim, config.epsilon_max)
        return losses.energy_matching_loss(
            potential,
            params,
            key,
            batch,
            negatives,
            lambda_cd=config.lambda_cd,
            gate=gate,
            sigma=config.sigma,
            trim=config.trim,
            floor=config.floor,
            limit=limit,
            log_weights=log_weights,
            energy_l2=config.energy_l2,
            axis_name=axis_name,
        )

    return loss_fn
