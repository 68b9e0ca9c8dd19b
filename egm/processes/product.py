"""The product of processes: each part of a mixed state moves in its turn, given the others.

Used for mixed continuous and discrete targets, e.g.
`ProductProcess({"x": DiffusionProcess(LinearPath()), "h": JumpProcess(MaskedPath(2))})`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, random
from egm.paths.product import ProductPath
from egm.typing import Array, CountedProcess, FoldingProcess, Key, ModelFn, Process, PyTree

__all__ = ["ProductProcess"]


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class ProductProcess:
    """A pytree of processes over a pytree of states of the same structure.

    A step moves the parts one after another from t to r: those on Gaussian paths first, tokens last,
    else in the order of the tree. A part sees `generator(state, time)` of the state in which earlier
    parts stand at r and later ones at t, and takes its own leaf of the result, an array or a `Gaussian`.
    Tokens with masks ask at time r, at which the parts that they look at stand; other tokens at t, where
    their own noise stands, and Gaussian parts at the times of their kernels. The backward step undoes the
    parts in reverse order, each given what its forward step was given, so log_ratio is the sum over the parts
    and path weights are exact. A part whose path has an earlier `t_min` than the product's starts its first
    step there.

    Args:
      processes: a dict of processes, or any other pytree of them; a product may be a part.

    Raises:
      TypeError: a leaf is no `egm.typing.Process`. ValueError: there is none at all.

    Examples:
      >>> gaussian, masked = egm.paths.LinearPath(), egm.paths.MaskedPath(vocab_size=2)
      >>> process = egm.processes.ProductProcess(
      ...     {"x": egm.processes.DiffusionProcess(gaussian), "h": egm.processes.JumpProcess(masked)}
      ... )
      >>> jax.tree.map(jnp.shape, process.path.sample_prior(jax.random.key(0), {"x": (5, 3), "h": (5, 4)}))
      {'h': (5, 4), 'x': (5, 3)}
    """

    _leaves: tuple[Process, ...]
    _treedef: Any

    def __init__(self, processes: PyTree):
        leaves, treedef = jax.tree.flatten(processes, is_leaf=lambda p: isinstance(p, Process))
        for leaf in leaves:
            if isinstance(leaf, type) or not isinstance(leaf, Process):
                raise TypeError(f"every leaf of processes must be a process, got {leaf!r}")
        if not leaves:
            raise ValueError(f"processes must hold at least one process, got {processes!r}")
        object.__setattr__(self, "_leaves", tuple(leaves))
        object.__setattr__(self, "_treedef", treedef)

    def __repr__(self) -> str:
        return f"ProductProcess({self.processes!r})"

    @property
    def processes(self) -> PyTree:
        """The parts, in the structure they were given in."""
        return self._treedef.unflatten(self._leaves)

    @property
    def path(self) -> ProductPath:
        """The product of the parts' paths."""
        return ProductPath(self._treedef.unflatten([p.path for p in self._leaves]))

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times from the path."""
        return self.path.times(num_steps)

    def step(self, key: Key, x_t: PyTree, generator: ModelFn, t: Array, r: Array) -> tuple[PyTree, Array]:
        """One step forward.

        Args:
          key: a typed key, or [N] of them.
          x_t: the state, one batch axis N.
          generator: `fn(state, t)` that returns the pytree of the parts' generators.
          t: scalar or [N], before r.
          r: scalar or [N].

        Returns:
          (x_r, log_ratio [N], the sum over the parts).

        Raises:
          ValueError: the state or what the generator returns has another structure or shape.
        """
        return self.step_with_folds(key, x_t, generator, t, r)[:2]

    def step_with_folds(
        self, key: Key, x_t: PyTree, generator: ModelFn, t: Array, r: Array
    ) -> tuple[PyTree, Array, Array]:
        """(x_r, log_ratio, folded [N] int32): `step`, and how many parts refused to move a state."""
        t, r, size = self._times(x_t, t, r, "x_t")
        checks.function(generator, "generator")
        keys = random.split(random.example_keys(key, size), len(self._leaves))
        total: Any = 0.0
        state, folded = self._parts(x_t, "x_t"), jnp.zeros(size, jnp.int32)
        for i in self._order:
            seen = self._seen_by(i, state, generator, r)
            process, start = self._leaves[i], self._start(i, t)
            if isinstance(process, FoldingProcess):
                state[i], term, here = process.step_with_folds(keys[i], state[i], seen, start, r)
                folded = folded + here
            else:
                state[i], term = process.step(keys[i], state[i], seen, start, r)
            total = total + term
        return self._treedef.unflatten(state), total, folded

    def check_steps(self, num_steps: int, event_shape: PyTree) -> None:
        """Raises ValueError where a part cannot finish in so many steps."""
        for process, shape in zip(self._leaves, self._parts(event_shape, "event_shape"), strict=True):
            if isinstance(process, CountedProcess):
                process.check_steps(num_steps, shape)

    def reverse_step(self, key: Key, x_r: PyTree, generator: ModelFn, t: Array, r: Array) -> PyTree:
        """x_t ~ backward(. | x_r), the parts in reverse order."""
        t, r, size = self._times(x_r, t, r, "x_r")
        keys = random.split(random.example_keys(key, size), len(self._leaves))
        state = self._parts(x_r, "x_r")
        for i in reversed(self._order):
            seen = self._seen_by(i, state, generator, r)
            state[i] = self._leaves[i].reverse_step(keys[i], state[i], seen, self._start(i, t), r)
        return self._treedef.unflatten(state)

    def log_ratio(self, x_t: PyTree, x_r: PyTree, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward - log forward of a given pair, the sum over the parts."""
        self.path.batch_shape(x_r, "x_r")
        t, r, _ = self._times(x_t, t, r, "x_t")
        checks.function(generator, "generator")
        total: Any = 0.0
        state, after = self._parts(x_t, "x_t"), self._parts(x_r, "x_r")
        for i in self._order:
            seen = self._seen_by(i, state, generator, r)
            total = total + self._leaves[i].log_ratio(state[i], after[i], seen, self._start(i, t), r)
            state[i] = after[i]
        return total

    @property
    def _order(self):
        """Gaussian parts, then products and others, then tokens; each kind in the tree's order."""

        def rank(i):
            path = self._leaves[i].path
            return 2 if hasattr(path, "vocab_size") else 0 if hasattr(path, "project") else 1

        return sorted(range(len(self._leaves)), key=rank)

    def _seen_by(self, i, state, generator, r):
        """The generator of part i with the other parts held where they stand in `state`."""
        # With masks a denoiser needs no time of its own; noise without a mask is known by its time alone.
        held, at_r = tuple(state), hasattr(self._leaves[i].path, "mask_token")
        first = self.path.t_min

        def leaf(x, time):
            whole = self._treedef.unflatten([*held[:i], x, *held[i + 1 :]])
            out = generator(whole, r if at_r else jnp.maximum(time, first))
            return self._parts(out, "what the generator returns")[i]

        return leaf

    def _start(self, i, t):
        """t, or at the first time that of part i: its prior stands there, and its backward must end in it."""
        first, ours = self._leaves[i].path.t_min, self.path.t_min
        return t if first == ours else jnp.where(t <= ours, first, t)

    def _times(self, x, t, r, name):
        batch = self.path.batch_shape(x, name)
        if len(batch) != 1:
            raise ValueError(f"{name} must have one batch axis, got batch shape {batch}")
        return *checks.time_pair(t, r, batch), batch[0]

    def _parts(self, x, name):
        """The parts in the order of the processes, as a list; raises where the structure differs."""
        try:
            return self._treedef.flatten_up_to(x)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} must have the structure {self._treedef}, got {x!r:.80}") from error
