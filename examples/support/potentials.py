"""What the examples that learn a potential share: steps in chunks for the loop, and the optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from support import loop

from egm import devices, training


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
    configuration: Mapping[str, Any],
    layout: Any = devices.WHOLE,
    shown: tuple[str, ...] = ("loss",),
    chunk: int = 100,
) -> loop.Trained:
    """`num_steps` of `state, metrics = step(key, state, draw_batch(key))`, `chunk` of them a call.

    The metrics of a call are means over it. See `loop.train` for the rest.
    """
    chunk = min(chunk, num_steps)

    return loop.train(
        training.scan_steps(step, draw_batch, chunk),
        state,
        key,
        label=label,
        calls=num_steps // chunk,
        configuration=dict(configuration) | {"num_steps": num_steps, "chunk": chunk},
        layout=layout,
        shown={name: name for name in shown},
    )
