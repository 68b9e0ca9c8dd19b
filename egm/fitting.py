"""One call from an energy to a sampler: `fit`. A thin composition of the package's public parts.

What it does, in order: makes the user's pytree one state (`egm.spaces`), finds coordinates, lengths and
weighted states by descents and tempered chains (`egm.pilot`), fills the buffer with them, trains the
generator by weighted conditional targets (`egm.iteration`) until the ESS has reached its target or rises
no more, lets the learning rate fall, chooses the number of steps, and compares the evidence of its own
weights with that of the chains (`egm.evidence`).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egm import (
    _questions,
    algorithms,
    batching,
    buffer,
    checks,
    curves,
    energies,
    evidence,
    importance,
    iteration,
    metrics,
    modes,
    pilot,
    random,
    stopping,
)
from egm.annealing import Item
from egm.design import GRADIENT_STEPS, Design, Sizes, check_network, num_reveals, parts_of, sizes_of
from egm.sampler import Sampler, summarize
from egm.spaces import Layout, of
from egm.typing import Array, Energy, Key, Moments, PyTree

__all__ = ["fit"]

_FOR_PILOT = 0.3
"""Share of the time that descents and chains may take, about."""
_FOR_MODES = 0.1
"""Share of the time that chains from a mixture of places may take, about."""
_LATEST = 0.5
"""Share of the time after which no mixture is looked for in curved coordinates."""
_NEAR = 1.0
"""Nats of a mixture of places off the target, up to which no curved coordinates are looked for."""
_FOR_CURVES = 0.25
"""Share of the time after which no further map for curved coordinates is begun."""
_WORTH_A_STEP = 0.1
"""Share of the sites of the last colour from which an order reveals it at once."""
_NUM_TRIED = 2048
"""States by which a number of steps is judged."""
_ROUNDS = 4
"""Of moves of the chains' states between iterations."""


def fit(
    key: Key,
    energy: Callable[[PyTree], Array] | None = None,
    space: PyTree = None,
    *,
    log_density: Callable[[PyTree], Array] | None = None,
    batched: bool | None = None,
    seconds: float = 300.0,
    iterations: int | None = None,
    ess_target: float = 0.95,
    network: Any = None,
    optimizer: optax.GradientTransformation | None = None,
    callback: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> Sampler:
    """Learn a sampler of exp(-energy) from the energy alone; nothing has to be set.

    Args:
      key: a typed key.
      energy: E, minus the log-density up to a constant, of one state or of a batch (found by trying).
        A log-density with respect to the volume of the space itself: for `Positive` and `Interval` the
        change of variables is added here.
      space: of `egm.spaces`, or a pytree of them, as the energy takes its states; None for an energy of
        `egm.energies`, which knows.
      log_density: instead of `energy`, its negative.
      batched: whether the energy takes a batch; None tries.
      seconds: after which training ends whatever the ESS; compilation and what comes before are counted.
        How many chains go before it and how many states an iteration has also depend on this and on the
        machine's speed: the same key gives the same sampler only where there was time for all.
      iterations: most iterations; None for as many as there is time for.
      ess_target: the ESS at which training is good enough.
      network: in place of the space's own: a Flax module or any object with `init(key, x, t)` and
        `apply(params, x, t)`, or (params, apply), with which NNX, Equinox and plain functions come in
        (docs/interoperability.md). Its states are numbers x [N, D], about 1 wide and noisy up to 2.5 of it,
        or tokens [N, L] with the mask V, or {"x", "h"} of both, t [N]; raw outputs are those that the head
        takes, [N, D, 2], logits [N, L, V], or both: of zeros the sampler is that of a normal.
      optimizer: in place of Adam with a falling learning rate and a clipped norm.
      callback: told the metrics of every iteration, as floats.
      progress: say on stderr what is being done.

    Returns:
      Sampler. Where it has not converged, `converged` is False, `reason` says why, and errors are what
      they must be. Interrupted by the keyboard it returns what it has.

    Raises:
      TypeError, ValueError: an argument is wrong, the energy is no number anywhere, or exp(-energy) is no
        density on the space: it does not fall off in some directions.

    Examples:
      >>> energy = lambda x: 0.5 * jnp.sum((x - 1.0) ** 2)  # of one state
      >>> sampler = egm.fit(jax.random.key(0), energy, egm.spaces.Real(2), iterations=1, progress=False)
      >>> print(f"log Z {sampler.log_z:.1f}")  # exact: log(2 pi)
      log Z 1.8
      >>> sampler.converged
      True
    """
    began = time.time()
    checks.one_key(key)
    function, layout = _target(energy, log_density, space, batched)
    seconds = checks.positive_float(seconds, "seconds")
    if iterations is not None:
        checks.positive_int(iterations, "iterations")
    ess_target = checks.below_one(ess_target, "ess_target")
    if optimizer is not None and not hasattr(optimizer, "update"):
        raise TypeError(f"optimizer must be an optax.GradientTransformation, got {optimizer!r:.80}")
    if callback is not None:
        checks.function(callback, "callback")
    if network is not None:
        check_network(network, layout)
    say = stopping.Voice(checks.flag(progress, "progress"), began)
    k_check, k_pilot, k_params, k_train, k_final = random.split(key, 5)
    k_curve = random.derive(key, "curved coordinates")

    canonical = layout.energy(function)
    _questions.check_finite(k_check, canonical, layout)
    canonical = batching.with_pairs(canonical, layout)
    _questions.check_proper(k_check, canonical, layout, 1e5, 1e7, 1e3)
    found = pilot.explore(k_pilot, canonical, layout, seconds=_FOR_PILOT * seconds, say=say.phase)
    spread = max(1.0, float(np.std(found.energies[np.isfinite(found.log_shares)])))
    _questions.check_proper(k_check, found.coordinates.energy(canonical), layout, 300.0, 3000.0, spread)
    say.phase("separate modes")
    k_modes = random.derive(key, "separate modes")
    for_modes = _FOR_MODES * seconds
    places = modes.separate(k_modes, found.coordinates.energy(canonical), found, for_modes)
    if places.nats > _NEAR:
        # No mixture of normals is what it is: a map may make it one, or nearly so.
        curved = curves.straightened(k_curve, canonical, found, _FOR_CURVES * seconds, say.phase)
        if curved.coordinates is not found.coordinates:
            places = modes.none(curved)
            if time.time() - began < _LATEST * seconds:
                say.phase("separate modes in those coordinates")
                places = modes.separate(k_modes, curved.coordinates.energy(canonical), curved, for_modes)
    found = places.found
    energy_there = found.coordinates.energy(canonical)
    moved = batching.with_conditionals(energy_there, layout)
    design = _design(k_check, found, moved, layout)
    design = dataclasses.replace(
        design,
        pairs=isinstance(canonical, energies.WithPairs),
        mixture=places.mixture,
        reach=places.reach,
    )
    parts = parts_of(design, moved, network)
    # Asked for iterations, it takes the same sizes on every machine.
    sizes = sizes_of(design, parts, moved, seconds if iterations is None else None)
    training = _Training(design, sizes, parts, moved, found, optimizer)
    state = training.start(parts.init(k_params))
    budget = stopping.Budget(began, seconds, iterations, ess_target)
    state, history, stopped = training.run(k_train, state, budget, callback, say)

    params = jax.device_get(state.train.ema_params)
    sampler = Sampler(
        function, design, found.coordinates, jax.device_get(state.moments), params, network=network,
        history=history, canonical=energy_there,
    )  # fmt: skip
    return _finished(k_final, sampler, found, float(state.level), stopped, budget, say)


def _target(energy, log_density, space, batched) -> tuple[Callable[[PyTree], Array], Layout]:
    """The batched energy on the user's states, and their layout."""
    if (energy is None) == (log_density is None):
        raise TypeError("give one of energy and log_density, and not both")
    if energy is None:
        given = checks.function(log_density, "log_density")
        energy = lambda x: -given(x)
    checks.function(energy, "energy")
    layout = Layout(of(energy) if space is None else space)
    return batching.batched_energy(energy, layout, batched), layout


def _design(key: Key, found: pilot.Found, energy: Energy, layout: Layout) -> Design:
    """Sizes by dimension, lengths as found, a symmetry where the energy has it."""
    size = layout.num_coordinates + layout.num_sites
    width = 128 if size <= 16 else 192 if size <= 64 else 256
    if layout.particles is not None:
        width = 64
    colours = _colours(energy, layout)
    times = 100 if layout.num_coordinates else num_reveals(layout, colours)
    shifts = _questions.shift_invariant(random.derive(key, "shifts"), found, energy, layout)
    free = layout.particles is None and not layout.angles.any()
    flip = layout.vocab_size == 2 and free and _questions.flips(key, found, energy, layout)
    return Design(
        layout, found.length_scale, 1.0, width=width, num_times=times, flip=flip, shifts=shifts,
        colours=colours,
    )  # fmt: skip


def _colours(energy: Energy, layout: Layout) -> tuple[int, ...]:
    """Colours of tokens alone whose conditionals are known; () where a step of the last one saves little."""
    if layout.num_coordinates or not hasattr(energy, "revealed_conditionals"):
        return ()
    colours = tuple(getattr(energy, "colouring", ()))
    enough = len(set(colours)) > 1 and np.bincount(colours).max() >= _WORTH_A_STEP * len(colours)
    return colours if enough else ()


class _Training:
    """The outer iterations of a design, from the pilot's states on."""

    def __init__(
        self, design: Design, sizes: Sizes, parts: Any, energy: Energy, found: pilot.Found, optimizer: Any
    ):
        layout = design.layout
        self._found, self._layout = found, layout
        self._num, batch = sizes
        self._capacity = len(found.log_shares) + 4 * self._num
        config = iteration.IterationConfig(
            num_simulated=self._num,
            buffer_size=self._capacity,
            num_gradient_steps=GRADIENT_STEPS,
            batch_size=batch,
            num_times=design.num_times,
            ema_decay=0.99,
        )
        self._falls = optimizer is None
        optimizer = _adam() if optimizer is None else optimizer
        # NumPy arrays, which no donation of a state can take away.
        zero: Any = np.zeros(layout.num_coordinates, np.float32)
        unit = Moments(zero, zero + 1)
        self._reference = layout.joined(unit, None) if layout.num_coordinates else None
        self._path, self._energy = parts.path, energy
        algorithm = algorithms.Weighted(parts.path, parts.head, parts.apply)
        self._init, step = iteration.make_iteration(
            algorithm,
            parts.process,
            energy,
            optimizer,
            config,
            event_shape=layout.event_shape,
            reference=self._reference,
        )
        self._step = jax.jit(step, donate_argnums=1)
        self._chains = jax.jit(self._refresh, donate_argnums=(1, 2))

    def start(self, params: PyTree) -> iteration.IterationState:
        """The state with the chains' states in the buffer: each stands for its population's Z / C."""
        found = self._found
        weights = found.log_shares + np.log(len(found.log_shares) / found.log_z.size)
        x, energy = jax.tree.map(jnp.asarray, found.states), jnp.asarray(found.energies, float)
        start = jax.jit(lambda params, *chains: self._added(self._init(params), *chains))
        return start(params, x, energy, jnp.asarray(weights, float))

    def _refresh(self, key, state, held, ess):
        """(state with as many of the chains' states more as a generation has, the chains' states).

        They are drawn by what they stand for and moved by kernels that keep exp(-E), so that each of
        them stands for the same share of Z, and none is learned by heart.
        """
        k_draw, k_move = jax.random.split(key)
        shares = jnp.asarray(self._found.log_shares, float)
        chosen = importance.systematic(k_draw, shares, self._num)
        drawn = jax.tree.map(lambda a: a[chosen], held)
        x, energy = evidence.moved(
            k_move,
            self._energy,
            self._path,
            drawn,
            self._reference,
            num_rounds=_ROUNDS,
            gradient=self._found.smooth,
        )
        held = jax.tree.map(lambda a, b: a.at[chosen].set(b), held, x)
        log_z = jax.nn.logsumexp(shares) - np.log(self._found.log_z.size)
        # Two unbiased estimates are best added by their precision, which the ESS is a measure of.
        log_z = log_z + jnp.log(jnp.maximum(stopping.OWN_ESS / jnp.maximum(ess, 1e-4), 1.0))
        return self._added(state, x, energy, jnp.full(self._num, log_z)), held

    def _added(self, state, x, energy, log_weights):
        """The state with weighted states of the full energy in the buffer."""
        reference = jnp.zeros(energy.shape)
        if self._reference is not None:
            reference = self._path.reference_energy(x, self._reference)
        items = Item(x, energy, reference, log_weights + energy)
        valid = jnp.isfinite(items.log_path) & jnp.isfinite(energy)
        safe = lambda a: jnp.where(valid.reshape(-1, *[1] * (a.ndim - 1)), a, jnp.zeros((), a.dtype))
        return state._replace(buffer=buffer.add(state.buffer, jax.tree.map(safe, items), valid))

    def run(self, key, state, budget, callback, say):
        """(state, history, why it stopped before it was done)."""
        history: dict[str, list[float]] = {}
        rule, stopped = stopping.Rule(budget, self._falls, self._num), ""
        held = jax.tree.map(jnp.asarray, self._found.states)
        say.phase("compiling the training step")
        try:
            while rule.goes_on():
                if self._falls:
                    state.train.opt_state.hyperparams["learning_rate"] = jnp.asarray(rule.rate, jnp.float32)
                new, report = self._step(random.derive(key, f"iteration {rule.count}"), state)
                values = {k: float(v) for k, v in jax.device_get(report).items()}
                state = new
                for name, value in values.items():
                    history.setdefault(name, []).append(value)
                rule.heard(values)
                if rule.needs_chains():
                    k_moves = random.derive(key, f"moves {rule.count}")
                    state, held = self._chains(k_moves, state, held, report["ess"])
                if callback is not None:
                    callback(values)
                say.often(
                    f"iteration {rule.count}: ESS {values['ess']:.3f}, log Z {values['log_z']:.4g}, "
                    f"loss {values['loss']:.3g}"
                    + ("" if values["level"] >= 1 else f", level {values['level']:.2f}")
                )
        except KeyboardInterrupt:
            stopped = "interrupted"
        return state, {k: np.asarray(v) for k, v in history.items()}, stopped or rule.stopped


@optax.inject_hyperparams
def _adam_with(learning_rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(learning_rate, b2=0.99))


def _adam() -> optax.GradientTransformation:
    return _adam_with(learning_rate=stopping.LEARNING_RATE)


def _finished(key, sampler, found, level, stopped, budget, say) -> Sampler:
    """The sampler with its number of steps and its figures, from both sides."""
    k_steps, k_draw, k_back = random.split(key, 3)
    say.phase("the number of steps")
    if sampler.design.layout.num_coordinates:
        chosen = _steps(k_steps, sampler, budget)
        budget.seconds_a_state *= chosen / sampler.design.num_times
        sampler.design = dataclasses.replace(sampler.design, num_times=chosen)
    say.phase("evidence from both sides")
    num_times = sampler.design.num_times
    chunks = max(1, round(4 * budget.share_of_last))
    drawn = [
        sampler._run(k, sampler.params, sampler.moments, 2048, num_times)
        for k in random.split(k_draw, 4)[:chunks]
    ]
    log_weights = jnp.concatenate([w for _, w in drawn])
    summary = jax.device_get(summarize(log_weights))
    both = jax.device_get(_both_sides(k_back, sampler, found, log_weights, num_times, 1024 * chunks))
    sampler.evidence = both
    reached = level >= 1 - 1e-6
    error = float(both.error) if reached else np.inf
    reasons = [stopped] if stopped == "interrupted" else []
    why = metrics.reason(summary, level)
    if why:
        reasons.append(why)
    elif not bool(both.converged):
        reasons.append(
            f"{100 * float(both.missing_mass):.2g}% of the mass was found where the sampler has none"
        )
    elif float(summary.ess) < 0.5 * budget.ess_target and stopped:
        reasons.append(stopped)
    sampler._figures = {
        "log_z": float(summary.log_z),
        "log_z_error": error,
        "ess": float(summary.ess),
        "converged": not reasons and bool(np.isfinite(error)),
        "reason": "; ".join(reasons),
        "seconds": time.time() - budget.began,
    }
    say.phase(f"log Z {summary.log_z:.5g} +- {error:.2g}, ESS {summary.ess:.3f}")
    return sampler


_ess = jax.jit(lambda log_weights: importance.snis(log_weights).ess)


def _steps(key, sampler, budget) -> int:
    """The fewest steps of 100, 200 and 400 that come near the ESS target or the best there is time for.

    The budget learns what a state takes.
    """
    best, chosen = 0.0, sampler.design.num_times
    for num_times in (100, 200, 400):
        if best > 0 and not budget.affords(_NUM_TRIED, num_times / sampler.design.num_times):
            break
        arguments = (key, sampler.params, sampler.moments, _NUM_TRIED, num_times)
        sampler._run.lower(*arguments).compile()  # which the call then finds
        began = time.time()
        _, log_weights = jax.block_until_ready(sampler._run(*arguments))
        # Better than what the training's clock tells.
        taken = (time.time() - began) / _NUM_TRIED
        budget.seconds_a_state = taken * sampler.design.num_times / num_times
        ess = float(_ess(log_weights))
        if ess > best * 1.1:
            best, chosen = ess, num_times
        else:
            break
        if best >= budget.ess_target - 0.05:
            break
    return chosen


def _both_sides(key, sampler, found, log_weights, num_times, most) -> evidence.Evidence:
    """The sampler's weights against about `most` of the chains' states, taken backward."""
    first = np.searchsorted(found.population, np.arange(found.log_z.size))
    keep = min(np.bincount(found.population).min(), max(32, most // found.log_z.size))
    pick = (first[:, None] + np.arange(keep)).reshape(-1)
    states = jax.tree.map(lambda a: jnp.asarray(a[pick]), found.states)

    @jax.jit
    def backward(key, params, moments, states):
        generator = sampler._generator(params)
        times = sampler.parts.process.times(num_times)
        process, energy = sampler.parts.process, sampler._canonical
        return evidence.from_states(key, energy, process, generator, states, times, moments)

    reverse = backward(key, sampler.params, sampler.moments, states)
    return jax.jit(evidence.two_sided)(log_weights, reverse, jnp.asarray(found.log_z, float))
