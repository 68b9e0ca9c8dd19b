"""One call from data to an energy: `fit`. A thin composition of the package's public parts.

In order: checks the table and names what is wrong with it, dithers columns of few values, whitens, chooses a
mixture of normals by cross-validation (one normal, some, or one a point), adds a network's correction f
by Energy Matching (`energymatch.matching`, negatives drawn from the mixture and weighted), keeps the
parameters that were best on a held-out part, and computes log Z from both sides. Where the network is no
better on the held-out part than the mixture, the mixture is the model.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egm import checks, metrics, modules, random, training
from egm.typing import Array, Key
from energymatch import _frames, _mixtures, couplings, losses, matching, preprocessing
from energymatch.likelihood import log_partition, log_partition_upper
from energymatch.model import EnergyModel, log_partition_of, network_of
from energymatch.negatives import Proposed
from energymatch.networks import MLPPotential

__all__ = ["fit"]

_HELD_OUT = 0.1
_BATCH = 256
_STEPS = 200
"""Gradient steps between two looks at the held-out part."""
_PATIENCE = 6
_NUM_Z = 16_384
"""Draws for log Z."""
_MOST_PAIRS = 2048


def fit(
    key: Key,
    data: Any,
    *,
    seconds: float = 300.0,
    steps: int | None = None,
    network: Any = None,
    callback: Callable[[dict[str, float]], None] | None = None,
    progress: bool = True,
) -> EnergyModel:
    """Learn the density of a table, as an energy, from the table alone; nothing has to be set.

    Args:
      key: a typed key.
      data: [N, D] or [N, *event] numbers, N at least 20, finite, no constant or duplicated columns; or a
        frame of pandas or polars, whose names of columns stay with the model and stand in messages.
      seconds: after which training ends, whatever it has reached.
      steps: most gradient steps; None for as many as help.
      network: in place of an MLP: any object with `init(key, z)` and `apply(params, z) -> [N]`, of
        whitened, flattened examples z [N, D], or (params, apply), with which NNX, Equinox and plain
        functions come in (docs/interoperability.md). Of zeros the model is the mixture.
      callback: told of every look at the held-out part, as floats.
      progress: say on stderr what is being done.

    Returns:
      EnergyModel. `converged` False and `reason` where figures may not be trusted; interrupted by the
      keyboard it returns what it has.

    Raises:
      TypeError, ValueError: `data` are no numbers, too few, or have columns without a density; the message
        names them and the cure.

    Examples:
      >>> rng = np.random.default_rng(0)
      >>> height = rng.normal(170.0, 10.0, 500)
      >>> table = np.stack([height, 0.9 * height - 85 + rng.normal(0.0, 6.0, 500)], axis=1)
      >>> model = energymatch.fit(jax.random.key(0), table, steps=0, progress=False)  # no network
      >>> model.event_shape, model.converged
      ((2,), True)
      >>> print(f"{-model.held_out:.1f} nats an example")
      6.8 nats an example
    """
    began = time.time()
    checks.one_key(key)
    seconds = checks.positive_float(seconds, "seconds")
    if steps is not None:
        checks.positive_int(steps, "steps", 0)
    if callback is not None:
        checks.function(callback, "callback")
    module = None if network is None else modules.given(network)
    say = _Voice(checks.flag(progress, "progress"), began)
    columns = _frames.names_of(data, "data")
    table, event = _table(_frames.values_of(data, "data"), columns)
    if module is not None:
        modules.check_output(module, (jnp.zeros((3, table.shape[1])),), (3,))
    noise = _noise(table)
    k_split, k_noise, k_base, k_params, k_train, k_z, k_bound = random.split(key, 7)
    order = np.random.default_rng(np.asarray(jax.random.key_data(k_split))).permutation(len(table))
    # A row far out is never held out: nothing could be said of it, and its log-density would be the score.
    order = order[np.argsort(~_mixtures.ordinary(table[order]), kind="stable")]
    table = table[order]
    rng = np.random.default_rng(np.asarray(jax.random.key_data(k_noise)))
    table_noisy = table + noise * rng.normal(size=table.shape)
    num_held = max(5, round(_HELD_OUT * len(table)))
    shrink = _mixtures.shrinkage(table_noisy[num_held:])
    whitening = _mixtures.whitening_of(table_noisy[num_held:], shrink)
    z_all = np.asarray(whitening.apply(jnp.asarray(table_noisy, float)), np.float64)
    held, train = z_all[:num_held], z_all[num_held:]

    say.phase("choosing a mixture by cross-validation")
    kind = _mixtures.choose(k_base, table_noisy[num_held:], shrink, began + 0.2 * seconds)
    base = _mixtures.mixture_of(k_base, train, kind, shrink)
    say.phase(f"{kind}: {base.log_weights.size} components")
    net = _network(train.shape) if module is None else network if _is_mlp(network) else module
    base_score = float(np.mean(np.asarray(base.log_density(jnp.asarray(held, float)))))
    trained = _Training(net, base, whitening, table[num_held:], noise, held, base_score)
    params, history, stopped = trained.run(k_params, k_train, began + 0.8 * seconds, steps, callback, say)
    if params is None:
        # Nothing was held back from the mixture where the network is left out.
        base = _mixtures.mixture_of(k_base, z_all, kind, shrink)
    model = EnergyModel(event, whitening, base, net, params, noise=noise, history=history, columns=columns)
    return _finished(k_z, k_bound, model, held, base_score, stopped, began, say)


class _Voice:
    """Says what is being done, on stderr."""

    def __init__(self, on: bool, began: float):
        self._on, self._began = on, began

    def phase(self, text: str) -> None:
        if self._on:
            print(f"[{time.time() - self._began:6.1f} s] {text}", file=sys.stderr, flush=True)


def _table(data: Any, columns: tuple[str, ...] | None = None) -> tuple[np.ndarray, tuple[int, ...]]:
    """([N, D] float64, the event's shape); raises where it is no table of numbers with a density."""
    known = np.asarray(data)
    if known.dtype.kind not in "fiub":
        raise TypeError(f"data must be numbers, got dtype {known.dtype}: encode text as numbers, or drop it")
    if known.ndim < 2:
        raise ValueError(f"data must have shape [N, D], one row an example, got {known.shape}")
    if known.shape[0] < 20:
        raise ValueError(f"data must hold at least 20 examples, got {known.shape[0]}")
    table = known.reshape(known.shape[0], -1).astype(np.float64)
    bad = np.argwhere(~np.isfinite(table))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"data must be finite, got {table[row, column]} at row {row}, "
            f"{_frames.label(columns, column)} and {len(bad)} such cells in all: drop those rows, or fit to "
            "the others and `impute` these"
        )
    report = preprocessing.check_columns(table[_mixtures.ordinary(table)], columns)
    broken = [*report.constant, *report.dependent]
    if known.ndim == 2 and broken:
        told = [p for p in report.problems if "constant" in p or "copy of" in p or "linear in" in p]
        raise ValueError(f"data have columns without a density: {'; '.join(told[:5])}")
    return table, known.shape[1:]


def _noise(table: np.ndarray) -> np.ndarray:
    """[D] standard deviations of the noise for columns of few values, 0 for others."""
    table = table[_mixtures.ordinary(table)]
    report = preprocessing.check_columns(table)
    scales = np.asarray(preprocessing.noise_scales(table), np.float64).reshape(-1)
    bare = np.zeros(table.shape[1], bool)
    bare[[*report.discrete, *report.constant, *report.dependent]] = True
    return np.where(bare, scales, 0.0)


def _is_mlp(network: Any) -> bool:
    return isinstance(network, MLPPotential)


def _network(shape: tuple[int, int]) -> MLPPotential:
    return network_of(shape[1], 64 if shape[0] < 1000 else 128)


# The network's part.


_NO_TIME = "out of time before the network's first look: the mixture alone"
_STILL_RISING = "out of time: the held-out log-density still rose"


class _Look(NamedTuple):
    params: Any
    score: float


class _Training:
    """Energy Matching of V = -log q + f, looked at every so many steps on the held-out part."""

    def __init__(self, net, base, whitening, table, noise, held, base_score):
        self._net, self._base, self._noise = net, base, jnp.asarray(noise, float)
        self._whitening, self._held, self._base_score = whitening, jnp.asarray(held, float), base_score
        self._table = jnp.asarray(table, float)
        self._batch = min(_BATCH, len(table))

    def potential(self, params: Any, z: Array) -> Array:
        """[N] V."""
        return self._net.apply(params, z) - self._base.log_density(z)

    def run(self, k_params, k_train, until, steps, callback, say):
        """(the best parameters, None where none beat the mixture; history; why it stopped early)."""
        history: dict[str, list[float]] = {"held_out": [], "loss": [], "steps": []}
        stopped, best = "", _Look(None, self._base_score)
        if steps == 0:
            return None, {}, stopped
        if time.time() >= until:
            return None, {}, _NO_TIME
        params = self._start(k_params)
        say.phase("compiling the training step")
        rate, since, done, count, rising = 2e-3, 0, 0, 0, False
        optimizer = _adam()
        init, several = self._steps(k_train, optimizer)
        state = init(params, self._held)
        k_z = random.derive(k_train, "log z")
        try:
            while time.time() < until and (steps is None or done < steps):
                state.train.opt_state.hyperparams["learning_rate"] = jnp.asarray(rate, jnp.float32)
                state, info = several(random.derive(k_train, f"look {count}"), state)
                done, count = done + _STEPS, count + 1
                score = float(self._score(k_z, state.train.ema_params))
                values = {"steps": float(done), "held_out": score, "loss": float(info["loss"])}
                for name in history:
                    history[name].append(values[name])
                told = (
                    f"{score:.4f}" if np.isfinite(score) else "unknown, too far from the mixture to be judged"
                )
                say.phase(f"step {done}: held-out {told} (mixture {self._base_score:.4f})")
                if callback is not None:
                    callback(values)
                rising = score > best.score + 1e-4
                if rising:
                    best, since = _Look(jax.device_get(state.train.ema_params), score), 0
                else:
                    since += 1
                if since >= _PATIENCE:
                    # Once more from the best, finer; then enough.
                    if rate < 2e-4:
                        break
                    rate, since = rate / 4, 0
                    if best.params is not None:
                        state = state._replace(train=training.init_train_state(best.params, optimizer))
            if not count:
                stopped = _NO_TIME
            elif rising and time.time() >= until:
                stopped = _STILL_RISING
        except KeyboardInterrupt:
            stopped = "interrupted"
        return best.params, {k: np.asarray(v) for k, v in history.items()}, stopped

    def _steps(self, key: Key, optimizer: optax.GradientTransformation) -> tuple[Callable, Callable]:
        """(init, several steps in one call) of Energy Matching with the mixture's draws as negatives."""
        config = matching.MatchingConfig(
            epsilon_max=1.0,
            negatives=Proposed(_mixtures.broader(self._base), 4 * self._batch),
            gate=losses.energy_gate,
        )
        init, step = matching.make_matching(self.potential, optimizer, config, ema_decay=0.99)
        return init, jax.jit(training.scan_steps(step, self._draw(key), _STEPS))

    def _start(self, key: Key) -> Any:
        """Parameters at which the correction is nearly 0."""
        if not _is_mlp(self._net):
            return self._net.init(key, self._held[:1])
        params: Any = jax.jit(self._net.init)(key, self._held[:1])
        last = f"Dense_{self._net.depth}"
        small = jax.tree.map(lambda a: 0.01 * a, params["params"][last])
        return {"params": params["params"] | {last: small}}

    def _draw(self, key: Key) -> Callable[[Key], losses.Batch]:
        """Batches: noise coupled with data once, and data for the contrast, with fresh noise."""
        k_rows, k_noise, k_pair = random.split(random.derive(key, "pairs"), 3)
        num = min(_MOST_PAIRS, len(self._table))
        rows = jax.random.permutation(k_rows, len(self._table))[:num]
        x_0, x_1 = jax.jit(couplings.exact_ot)(
            k_pair,
            jax.random.normal(k_noise, (num, self._table.shape[1])),
            self._whiten(k_pair, self._table[rows]),
        )

        def draw(k):
            k_x, k_p, k_n = jax.random.split(k, 3)
            pick = jax.random.randint(k_p, (self._batch,), 0, num)
            data = self._table[jax.random.randint(k_x, (self._batch,), 0, len(self._table))]
            return losses.Batch(x_0[pick], x_1[pick], self._whiten(k_n, data))

        return draw

    def _whiten(self, key: Key, x: Array) -> Array:
        return self._whitening.apply(x + self._noise[None] * jax.random.normal(key, x.shape))

    @functools.cached_property
    def _score(self):
        """Mean held-out log-density in whitened coordinates; -inf where the weights do not tell log Z.

        Too few draws where the model is make log Z too low: the farther it has left the mixture, the better
        it would seem.
        """

        @jax.jit
        def score(key, params):
            found = metrics.summarize(-self._net.apply(params, self._base.sample(key, _NUM_Z)))
            value = jnp.mean(-self.potential(params, self._held)) - found.log_z
            return jnp.where(jnp.isfinite(found.log_z_error), value, -jnp.inf)

        return score


@optax.inject_hyperparams
def _adam_with(learning_rate):
    return optax.chain(
        optax.clip_by_global_norm(10.0), optax.adamw(learning_rate, b2=0.99, weight_decay=1e-4)
    )


def _adam() -> optax.GradientTransformation:
    return _adam_with(learning_rate=1e-3)


def _finished(k_z, k_bound, model, held, base_score, stopped, began, say) -> EnergyModel:
    """The model with log Z from both sides."""
    say.phase("log Z from both sides")
    log_det = model.whitening.log_det
    if model.params is None:
        log_z, error, upper, gap = log_det, 0.0, log_det, 0.0
    else:
        log_z, error = log_partition_of(k_z, model, 4 * _NUM_Z)
        upper, gap = _upper(k_bound, model, held, log_z)
    error = max(error, gap / 2)
    reason = stopped
    if not np.isfinite(error):
        reason = "; ".join(
            filter(None, [reason, "the model has left the mixture: its weights do not tell log Z"])
        )
    model._figures = {
        "log_z": log_z,
        "log_z_error": error,
        "log_z_upper": upper,
        "held_out": float(np.mean(-np.asarray(model.potential(jnp.asarray(held, float))))) - log_z,
        "base_held_out": base_score - log_det,
        "converged": bool(np.isfinite(error)) and not reason,
        "reason": reason,
        "seconds": time.time() - began,
    }
    if model.params is None:
        model._figures["held_out"] = base_score - log_det
    say.phase(f"held-out {model.held_out:.4g} nats, log Z {log_z:.4g} +- {error:.2g}")
    return model


def _upper(key: Key, model: EnergyModel, held: np.ndarray, log_z: float) -> tuple[float, float]:
    """(log Z by the held-out data, taken backward along a bridge from the mixture; what it lies above)."""
    k_down, k_up = random.split(key)
    options: dict[str, Any] = {"epsilon": 1.0, "prior": model.base}
    below = jax.jit(lambda k: log_partition(k, model.potential, num_chains=256, num_steps=40, **options))(
        k_down
    )
    z = jnp.asarray(held[:512], float)
    above = jax.jit(lambda k: log_partition_upper(k, model.potential, z, bridge=below.bridge, **options))(
        k_up
    )
    upper = float(above.log_z_inverse) + model.whitening.log_det
    spread = float(above.log_z_inverse_error)
    gap = max(0.0, abs(upper - log_z) - 2 * spread) if np.isfinite(spread) else 0.0
    return upper, gap
