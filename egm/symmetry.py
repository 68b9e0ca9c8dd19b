"""Whether an energy has the flip symmetry, found by asking it, and a log-marginal that then keeps it.

The flip takes x to -x on R^d and exchanges the two tokens of a vocabulary of two (a mask stays), all
parts of a mixed state at once. An energy that is even under it has log-marginals that are, on the paths
of tokens and on every Gaussian path whose prior is centred at 0.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.paths.gaussian import GaussianPath
from egm.paths.product import ProductPath
from egm.typing import Apply, Array, Energy, Key, Path, PyTree, State, TokenPath

__all__ = ["even", "flip", "flips"]


def flip(path: Path, x: State) -> State:
    """The flipped state; raises ValueError where the path has tokens of a vocabulary that is not two."""
    checks.instance(path, Path, "path")
    if isinstance(path, ProductPath):
        return path.unflatten(flip(p, part) for p, part in zip(*path.leaves_with(x, "x"), strict=True))
    if isinstance(path, GaussianPath):
        return -x
    if not isinstance(path, TokenPath) or path.vocab_size != 2:
        raise ValueError(f"a flip needs Gaussian paths and tokens of a vocabulary of 2, got {path!r:.80}")
    return jnp.where(checks.tokens(x, 2) == 2, x, 1 - x)


def flips(key: Key, energy: Energy, path: Path, event_shape: PyTree, num_states: int = 64) -> bool:
    """Whether E(x) = E(flip of x) on random states of the prior and nearer to 0; on the host.

    Args:
      key: a typed key.
      energy: E, `[N] = energy(x)`.
      path: the path.
      event_shape: of one state, a pytree of shapes for a product.
      num_states: how many states are tried.

    Returns:
      False also where a flip makes no sense (three tokens), or where no state has a finite energy.
    """
    checks.one_key(key)
    checks.function(energy, "energy")
    checks.instance(path, Path, "path")
    num_states = checks.positive_int(num_states, "num_states")
    k_prior, k_data = jax.random.split(key)
    shapes, tree = jax.tree.flatten(event_shape, is_leaf=lambda s: isinstance(s, tuple))
    if not shapes or not all(isinstance(s, tuple) for s in shapes):
        raise TypeError(f"event_shape must be a tuple of ints or a pytree of them, got {event_shape!r:.80}")
    shape = tree.unflatten((num_states, *s) for s in shapes)
    x = path.sample_prior(k_prior, shape)
    # A proposal at r = 1 turns masks into tokens; what is continuous is shrunk by several factors.
    t = jnp.full(num_states, max(path.t_min, 0.5))
    x = jax.tree.map(lambda a: a[0], path.propose(k_data, x, t, jnp.ones(num_states), 1))
    factor = jnp.linspace(0.05, 1.0, num_states)
    shrunk = lambda a: a * factor.reshape(-1, *(1,) * (a.ndim - 1))
    floating = lambda a: jnp.issubdtype(a.dtype, jnp.floating)
    x = jax.tree.map(lambda a: shrunk(a) if floating(a) else a, x)
    try:
        flipped = flip(path, x)
    except ValueError:
        return False
    ours, theirs = np.asarray(energy(x), np.float64), np.asarray(energy(flipped), np.float64)
    finite = np.isfinite(ours) & np.isfinite(theirs)
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)) or not finite.any():
        return False
    scale = np.abs(ours[finite]).max() + 1.0
    return bool(np.all(np.abs(ours - theirs)[finite] <= 1e-5 * scale))


def even(apply: Apply, path: Path) -> Apply:
    """The mean of `apply(params, x, t)` [N] at x and at its flip: a log-marginal that is exactly even."""
    checks.function(apply, "apply")
    checks.instance(path, Path, "path")
    return functools.partial(_even, apply, path)


def _even(apply: Apply, path: Path, params: PyTree, x: State, t: Array) -> Array:
    return 0.5 * (apply(params, x, t) + apply(params, flip(path, x), t))
