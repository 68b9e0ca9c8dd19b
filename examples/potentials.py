"""What the examples that learn a potential share: the loop with its progress bar, and optimisers."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import optax
import tqdm


def optimizer(
    learning_rate: float, num_steps: int, *, warm_up: int = 0, final: float = 0.02, b2: float = 0.99
) -> optax.GradientTransformation:
    """Adam with a clipped gradient norm, a cosine rate and, before it, a linear warm-up."""
    rate = optax.cosine_decay_schedule(learning_rate, num_steps - warm_up, final)
    if warm_up:
        rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warm_up), rate], [warm_up])
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(rate, b2=b2))


def fit(
    step: Callable[..., Any],
    state: Any,
    key: jax.Array,
    draw_batch: Callable[[jax.Array], Any],
    num_steps: int,
    *,
    label: str,
    shown: tuple[str, ...] = ("loss",),
    chunk: int = 100,
) -> tuple[Any, list[dict[str, float]], float, float]:
    """`num_steps` of `state, metrics = step(key, state, draw_batch(key))`, `chunk` of them a call.

    Returns the last state, the metrics at the end of every chunk (a mean over it), the seconds of
    compilation and those of training.
    """

    def several(key, state):
        def body(state, key):
            batch_key, step_key = jax.random.split(key)
            return step(step_key, state, draw_batch(batch_key))

        state, metrics = jax.lax.scan(body, state, jax.random.split(key, min(chunk, num_steps)))
        return state, jax.tree.map(lambda m: m.mean(), metrics)

    start = time.time()
    run = jax.jit(several, donate_argnums=1).lower(key, state).compile()
    compile_seconds, start, history = time.time() - start, time.time(), []
    # The caller's arrays stay its own: the first call donates a copy.
    state = jax.tree.map(lambda x: x.copy(), state)
    with tqdm.tqdm(total=num_steps, desc=label, bar_format="{l_bar}{bar}| {elapsed}{postfix}") as bar:
        for index in range(max(1, num_steps // chunk)):
            state, metrics = run(jax.random.fold_in(key, index), state)
            history.append({k: float(v) for k, v in jax.device_get(metrics).items()})
            bar.update(min(chunk, num_steps))
            bar.set_postfix({k: f"{history[-1][k]:.3f}" for k in shown})
    jax.block_until_ready(state)
    return state, history, compile_seconds, time.time() - start
