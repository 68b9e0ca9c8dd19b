"""A user's network as `init` and `apply`, whatever library it was written in, and its parameters on disk.

Taken are an object with both (Flax linen, `haiku.without_apply_rng`), and a pair (params, apply), params any
pytree of floating arrays: what `nnx.split` and `equinox.partition` make of a module of theirs. A pair of
functions (init, apply) will do as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm.typing import Array, PyTree

__all__ = ["Module", "check_output", "given", "named_leaves", "with_leaves"]

_WAYS = (
    "an object with init and apply, or a pair (params, apply): of an NNX module, "
    "`graph, params, rest = nnx.split(module, nnx.Param, ...)` and an apply that calls "
    "`nnx.merge(graph, params, rest)`; of an Equinox module, "
    "`params, static = equinox.partition(module, equinox.is_inexact_array)` and one that calls "
    "`equinox.combine(params, static)`"
)


class Module(NamedTuple):
    """A network.

    Attributes:
      init: `params = init(key, *inputs)`, inputs an example of what apply takes.
      apply: `apply(params, *inputs)`, pure.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Any]


def given(network: Any, name: str = "network") -> Module:
    """What a user gave as a network.

    Args:
      network: an object with `init` and `apply`, a pair (params, apply) or a pair (init, apply).
      name: of the argument.

    Returns:
      Module; of a pair with parameters `init` returns these.

    Raises:
      TypeError: it is nothing of that kind; the message says how modules of NNX and Equinox become it.
    """
    if hasattr(network, "init") and hasattr(network, "apply") and not isinstance(network, type):
        return Module(network.init, network.apply)
    if not isinstance(network, tuple) or len(network) != 2 or not callable(network[1]):
        raise TypeError(f"{name} must be {_WAYS}; got {network!r:.80}")
    first, apply = network
    if callable(first) and jax.tree.leaves(first) == [first]:
        return Module(first, apply)
    for path, leaf in jax.tree_util.tree_leaves_with_path(first):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            came = f"{leaf!r:.60}" if dtype is None else f"dtype {dtype}"
            raise TypeError(
                f"{name}[0], the parameters, must be a pytree of floating arrays, got {came} at "
                f"{jax.tree_util.keystr(path)}: keep in apply what is not trained. A network is {_WAYS}"
            )
    return Module(lambda key, *inputs: first, apply)


def check_output(module: Module, inputs: tuple[PyTree, ...], expected: PyTree, name: str = "network") -> None:
    """Raises ValueError unless `module` makes arrays of the `expected` shapes of the inputs.

    Nothing is computed. Errors that the network raises itself are left as they are.

    Args:
      module: from `given`.
      inputs: an example of what `apply` takes, of more than one state.
      expected: a shape, or a pytree of shapes as the output's.
      name: of the argument.
    """
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    out = jax.eval_shape(module.apply, params, *inputs)
    shapes = jax.tree.map(lambda a: tuple(a.shape), out)
    if shapes != expected:
        came = jax.tree.map(lambda a: tuple(a.shape), inputs)
        raise ValueError(f"{name} must return shape {expected} for inputs of shapes {came}, got {shapes}")


def named_leaves(params: PyTree) -> dict[str, np.ndarray]:
    """The leaves of any pytree by their number, so that a file needs nothing of its classes."""
    return {f"{i:06d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(params))}


def with_leaves(module: Module, inputs: tuple[PyTree, ...], leaves: dict[str, Array]) -> PyTree:
    """The parameters of a network in its own structure, from `named_leaves`.

    Args:
      module: from `given`.
      inputs: an example of what `apply` takes.
      leaves: as saved.

    Raises:
      ValueError: they are not those of this network.
    """
    params = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    wanted, structure = jax.tree.flatten(params)
    found = [leaves[name] for name in sorted(leaves)]
    if [tuple(a.shape) for a in found] != [tuple(a.shape) for a in wanted]:
        raise ValueError(
            f"network must have the parameters that were saved, {len(found)} arrays of shapes "
            f"{[tuple(a.shape) for a in found]!r:.120}, got {[tuple(a.shape) for a in wanted]!r:.120}"
        )
    return structure.unflatten(found)
