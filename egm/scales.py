"""The scales of a target from its energy alone: centre, extent and finest length, by descent to minima.

They set the path (sigma_min, sigma_max), the reference that annealing starts from, and the units of
networks and heads, before anything is trained.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egm import checks
from egm.typing import Array, Energy, Key, State


class Scales(NamedTuple):
    """Lengths of a target's continuous part.

    Attributes:
      center: [D] mean of the minima found.
      extent: root mean square over dimensions of their spread, the width of a minimum included.
      radius: largest coordinate of a minimum beyond `center`, three widths of a minimum included.
      length_scale: the width of a minimum, (dimension of the space / trace of the Hessian)^(1/2), the
        median over minima.
      num_minima: how many descents ended in a minimum low enough to count, of all that were started.
    """

    center: np.ndarray
    extent: float
    radius: float
    length_scale: float
    num_minima: int


def find_scales(
    key: Key,
    energy: Energy,
    event_shape: Any,
    search_radius: float,
    *,
    vocab_size: int | None = None,
    project: Callable[[Array], Array] | None = None,
    num_starts: int = 256,
    num_steps: int = 500,
    energy_range: float = 10.0,
) -> Scales:
    """Descend from N(0, search_radius^2 I) with Adam and measure the minima within reach of the lowest.

    A pilot for settings, not an answer: minima that no descent from within `search_radius` reaches stay
    unseen. Tokens are drawn uniformly and held.

    Args:
      key: a typed key.
      energy: E, `[N] = energy(x)`.
      event_shape: (D,), or a dict of shapes with one part (D,) named "x" and tokens.
      search_radius: how far out the target may reach, in its own units.
      vocab_size: V of the token parts.
      project: onto the space of a centred path (`path.project`); None for all of R^D.
      num_starts: descents.
      num_steps: of each.
      energy_range: minima count up to this much above the lowest.

    Returns:
      Scales, on the host.

    Raises:
      ValueError: no descent ended at a finite energy, or the curvature there is not positive.
    """
    checks.one_key(key)
    checks.function(energy, "energy")
    if project is not None:
        checks.function(project, "project")
    if vocab_size is not None:
        checks.positive_int(vocab_size, "vocab_size", 2)
    energy_range = checks.positive_float(energy_range, "energy_range")
    radius = checks.positive_float(search_radius, "search_radius")
    for name, value in (("num_starts", num_starts), ("num_steps", num_steps)):
        checks.positive_int(value, name)
    k_x, k_tokens = jax.random.split(key)
    project = (lambda x: x) if project is None else project
    shapes = event_shape if isinstance(event_shape, dict) else {"x": event_shape}
    if "x" not in shapes or np.ndim(shapes["x"]) != 1 or len(shapes["x"]) != 1:
        raise ValueError(f"event_shape must be (D,) or a dict with a part 'x' of it, got {event_shape!r:.80}")
    for shape in shapes.values():
        if not isinstance(shape, tuple | list):
            raise TypeError(f"event_shape must be a tuple of ints, got {event_shape!r:.80}")
        for n in shape:
            checks.positive_int(n, "every size in event_shape")
    if shapes.keys() - {"x"} and vocab_size is None:
        raise ValueError("vocab_size is needed for an event_shape with tokens, got None")
    start = project(radius * jax.random.normal(k_x, (num_starts, *shapes["x"])))
    tokens = {
        name: jax.random.randint(k, (num_starts, *shapes[name]), 0, vocab_size, jnp.int32)
        for name, k in zip(
            sorted(shapes.keys() - {"x"}), jax.random.split(k_tokens, max(len(shapes) - 1, 1)), strict=False
        )
    }
    whole = (
        (lambda x: energy(x)) if not isinstance(event_shape, dict) else lambda x: energy({"x": x} | tokens)
    )
    x, value, trace = _descend(whole, project, radius, num_steps, start)
    x, value, trace = (np.asarray(a, np.float64) for a in (x, value, trace))
    good = np.isfinite(value) & np.all(np.isfinite(x), axis=-1) & np.isfinite(trace)
    if not good.any():
        raise ValueError(f"energy was not finite at the end of any of {num_starts} descents")
    good &= value <= value[good].min() + energy_range
    basis = np.eye(x.shape[-1], dtype=np.float32)
    dimension = round(float(np.trace(np.asarray(project(jnp.asarray(basis))))))
    curvature = np.median(trace[good]) / dimension
    if not curvature > 0:
        raise ValueError(f"energy has mean curvature {curvature} at its minima; it must be positive")
    length = curvature**-0.5
    center = x[good].mean(axis=0)
    spread = x[good] - center
    return Scales(
        center,
        float(np.sqrt(np.mean(np.sum(spread**2, axis=-1)) / dimension + length**2)),
        float(np.max(np.abs(spread)) + 3 * length),
        float(length),
        int(good.sum()),
    )


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _descend(
    energy: Callable[[State], Array],
    project: Callable[[Array], Array],
    radius: float,
    num_steps: int,
    x: Array,
) -> tuple[Array, Array, Array]:
    """(x [M, D], E [M], trace of the Hessian [M]) after descent from x."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05 * radius, num_steps))

    def total(y):
        return jnp.sum(checks.model_output(energy(y), "energy", y.shape[:1]))

    gradient = jax.grad(total)

    def body(carry, _):
        y, state = carry
        g = gradient(y)
        updates, state = optimizer.update(jnp.where(jnp.isfinite(g), g, 0.0), state)
        return (project(y + updates), state), None

    (x, _), _ = jax.lax.scan(body, (x, optimizer.init(x)), None, num_steps)

    def curvature(direction):
        tangent = jnp.broadcast_to(direction, x.shape)
        return jnp.sum(tangent * jax.jvp(gradient, (x,), (tangent,))[1], axis=-1)

    trace = jnp.sum(jax.lax.map(curvature, jnp.eye(x.shape[-1], dtype=x.dtype)), axis=0)
    return x, energy(x), trace
