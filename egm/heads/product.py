"""The head of a product of paths: one head a part, their divergences added."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egm import checks
from egm.paths.product import ProductPath
from egm.typing import Array, Energy, EstimatingHead, HeadCounts, PyTree, State

__all__ = ["ProductHead"]


@dataclasses.dataclass(frozen=True, init=False)
class ProductHead:
    """A pytree of heads over a pytree of outputs and states: one divergence a leaf, summed by weight.

    The score of a Gaussian part starts from the gradient of `energy.relaxed`, the energy with
    probabilities in place of tokens, where the energy has it: visible tokens are certain, masked ones
    have the denoiser's probabilities.

    Args:
      heads: a dict (or any pytree) of heads.
      weights: the same structure of floats; None weighs every leaf 1.

    Examples:
      >>> x, h = egm.paths.LinearPath(), egm.paths.MaskedPath(vocab_size=2)
      >>> head = egm.heads.ProductHead({"x": egm.heads.ScoreHead(x), "h": egm.heads.DenoiserHead(h)})
      >>> sorted(head.path.paths)
      ['h', 'x']
    """

    path: ProductPath
    _heads: tuple[Any, ...]
    _weights: tuple[float, ...]
    _treedef: Any

    def __init__(self, heads: PyTree, weights: PyTree = None):
        if not jax.tree.leaves(heads, is_leaf=lambda h: hasattr(h, "conditional_target")):
            raise ValueError(f"heads must hold at least one head, got {heads!r:.80}")
        leaves, treedef = jax.tree.flatten(heads, is_leaf=lambda h: hasattr(h, "conditional_target"))
        for leaf in leaves:
            if not hasattr(leaf, "conditional_target"):
                raise TypeError(f"every leaf of heads must be a head, got {leaf!r}")
        object.__setattr__(self, "path", ProductPath(treedef.unflatten([h.path for h in leaves])))
        values = [1.0] * len(leaves) if weights is None else self._parts(weights, "weights")
        values = tuple(checks.positive_float(w, "weights", allow_zero=True) for w in values)
        object.__setattr__(self, "_heads", tuple(leaves))
        object.__setattr__(self, "_weights", values)
        object.__setattr__(self, "_treedef", treedef)

    def generator(self, output: PyTree, x_t: State, t: Array, energy: Energy | None = None) -> PyTree:
        """The pytree of the leaves' generators."""
        # A flow's determinant needs the derivative by way of the denoiser as well.
        leaves = self._each(output, x_t, t, energy, lambda p: p)
        return self._treedef.unflatten(head.generator(out, x, t, leaf) for head, out, x, leaf in leaves)

    def conditional_target(self, x_1: State, x_t: State, t: Array, energy: Energy | None = None) -> PyTree:
        """The pytree of the leaves' targets, each given all of x_1."""
        parts_1, parts_t = self._parts(x_1, "x_1"), self._parts(x_t, "x_t")
        found = []
        for i, head in enumerate(self._heads):
            leaf = None if energy is None else _LeafEnergy(energy, self._treedef, tuple(parts_1), i)
            found.append(head.conditional_target(parts_1[i], parts_t[i], t, leaf))
        return self._treedef.unflatten(found)

    def estimated_values(
        self, output: PyTree, x_t: State, t: Array, energy: Energy | None = None
    ) -> Callable[[State, Array], PyTree]:
        """The pytree of what the leaves ask for, of the others' their conditional generators."""
        leaves = [
            head.estimated_values(out, x, t, leaf)
            if isinstance(head, EstimatingHead)
            else functools.partial(head.path.conditional_generator, x, t)
            for head, out, x, leaf in self._each(output, x_t, t, energy, jax.lax.stop_gradient)
        ]

        def values(x_r: State, r: Array) -> PyTree:
            parts = zip(leaves, self._parts(x_r, "x_r"), strict=True)
            return self._treedef.unflatten([leaf(part, r) for leaf, part in parts])

        return values

    def differentiable(self, x_1: State, x_t: State, t: Array, energy: Energy) -> Array:
        """Whether the targets of all leaves may use the energy's gradient: a scalar bool."""
        parts_1, parts_t = self._parts(x_1, "x_1"), self._parts(x_t, "x_t")
        smooth = jnp.ones((), bool)
        for i, head in enumerate(self._heads):
            if hasattr(head, "differentiable"):
                leaf = _LeafEnergy(energy, self._treedef, tuple(parts_1), i)
                smooth = smooth & head.differentiable(parts_1[i], parts_t[i], t, leaf)
        return smooth

    def divergence(
        self, target: PyTree, output: PyTree, x_t: State, t: Array, energy: Energy | None = None
    ) -> Array:
        """[B] sum over the leaves of their weight times their divergence."""
        total: Any = 0.0
        parts = self._each(output, x_t, t, energy, jax.lax.stop_gradient)
        leaves = zip(self._weights, self._parts(target, "target"), parts, strict=True)
        for weight, wanted, (head, out, x, leaf) in leaves:
            total = total + weight * head.divergence(wanted, out, x, t, leaf)
        return total

    def metrics(self, target, output, x_t, t, energy=None) -> dict[str, Array]:
        """Those of the leaves; the mean over the leaves that report one."""
        found = {}
        parts = self._each(output, x_t, t, energy, jax.lax.stop_gradient)
        for wanted, (head, out, x, leaf) in zip(self._parts(target, "target"), parts, strict=True):
            for name, value in head.metrics(wanted, out, x, t, leaf).items():
                found.setdefault(name, []).append(value)
        return {name: jnp.mean(jnp.stack(values)) for name, values in found.items()}

    def probe_evaluations(self, energy: Energy) -> int:
        """The sum over the leaves."""
        return sum(h.probe_evaluations(energy) for h in self._heads if hasattr(h, "probe_evaluations"))

    def energy_evaluations(self, energy: Energy, event_shape: Any) -> HeadCounts:
        """The sums over the leaves."""
        shapes = self._parts(event_shape, "event_shape")
        each = [h.energy_evaluations(energy, s) for h, s in zip(self._heads, shapes, strict=True)]
        return HeadCounts(*map(sum, zip(*each, strict=True)))

    def _parts(self, tree, name):
        """The subtrees at the heads' places; raises ValueError where the structure differs."""
        return self.path.leaves_with(tree, name)[1]

    def _each(self, output, x_t, t, energy, hold):
        """(head, output, state, energy of the part with the others held) of every leaf.

        `hold` is applied to what stands for other parts (`stand_in`): a loss of one part trains no other.
        """
        outputs, parts = self._parts(output, "output"), self._parts(x_t, "x_t")
        relaxed, filled = getattr(energy, "relaxed", None), list(parts)
        for i, head in enumerate(self._heads):
            if hasattr(head, "stand_in"):
                filled[i] = hold(head.stand_in(outputs[i], parts[i], t))
        for i, head in enumerate(self._heads):
            leaf = None if relaxed is None else _LeafEnergy(relaxed, self._treedef, tuple(filled), i)
            yield head, outputs[i], parts[i], leaf


class _LeafEnergy(NamedTuple):
    """An energy as a function of one part of a product state, the others held."""

    energy: Any
    treedef: Any
    parts: tuple[Any, ...]
    number: int

    def _state(self, part):
        return self.treedef.unflatten([*self.parts[: self.number], part, *self.parts[self.number + 1 :]])

    def __call__(self, part: State) -> Array:
        return self.energy(self._state(part))

    def rows(self, index: Array) -> _LeafEnergy:
        """That of some of the states."""
        return self._replace(parts=jax.tree.map(lambda a: a[index], self.parts))

    def __getattr__(self, name: str):
        # Offered only where the energy itself offers it, as `hasattr` must tell.
        if name == "single_site_conditionals":
            conditionals = self.energy.single_site_conditionals
            return lambda part: conditionals(self._state(part))
        if name == "differentiable":
            return self.energy.differentiable
        raise AttributeError(name)
