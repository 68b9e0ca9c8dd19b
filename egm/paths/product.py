"""The product of paths: each part of a mixed state moves along its own, all at one time.

p_{t|r}, q_{r|t}, Z_{r|t} and the prior factorise over the parts, so log-probabilities add, and a
conditional or local generator is the pytree of the parts' generators. Used for mixed continuous and
discrete targets, e.g. `ProductPath({"x": LinearPath(), "h": MaskedPath(2)})`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp

from egm import checks, collectives, random
from egm.paths import local
from egm.paths.gaussian import GaussianPath
from egm.typing import Array, Key, ModelFn, Path, PriorDraw, PyTree, Time

__all__ = ["ProductPath"]


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class ProductPath:
    """A pytree of paths over a pytree of states of the same structure.

    All parts have the same batch axes and share t and r, scalars or of the batch shape.

    Args:
      paths: a dict of paths, or any other pytree of them; a product may be a part of a product.

    Raises:
      TypeError: a leaf is no `egm.typing.Path`. ValueError: there is none at all.

    Examples:
      >>> path = egm.paths.ProductPath({"x": egm.paths.LinearPath(), "h": egm.paths.MaskedPath(vocab_size=2)})
      >>> x_0 = path.sample_prior(jax.random.key(0), {"x": (5, 3), "h": (5, 4)})
      >>> x_0["x"].shape, x_0["h"].shape
      ((5, 3), (5, 4))
    """

    _leaves: tuple[Path, ...]
    _treedef: Any

    def __init__(self, paths: PyTree):
        leaves, treedef = jax.tree.flatten(paths, is_leaf=lambda p: isinstance(p, Path))
        for leaf in leaves:
            if isinstance(leaf, type) or not isinstance(leaf, Path):
                raise TypeError(f"every leaf of paths must be a path, got {leaf!r}")
        if not leaves:
            raise ValueError(f"paths must hold at least one path, got {paths!r}")
        object.__setattr__(self, "_leaves", tuple(leaves))
        object.__setattr__(self, "_treedef", treedef)

    def __repr__(self) -> str:
        return f"ProductPath({self.paths!r})"

    @property
    def paths(self) -> PyTree:
        """The parts, in the structure they were given in."""
        return self._treedef.unflatten(self._leaves)

    def leaves_with(self, tree: PyTree, name: str = "tree") -> tuple[list[Path], list[Any]]:
        """(the parts, the subtrees of `tree` at their places), both in the paths' order.

        Raises:
          ValueError: `tree`, called `name` in the message, has another structure.
        """
        return list(self._leaves), self._parts(tree, name)

    def unflatten(self, parts: Any) -> PyTree:
        """The pytree of what each part has, given in the paths' order."""
        return self._treedef.unflatten(parts)

    @property
    def t_min(self) -> float:
        """The largest `t_min` of the parts."""
        return max(path.t_min for path in self._leaves)

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times of the first Gaussian part, else the first, from `t_min` to 1."""
        path = self._leading()
        times, ours = path.times(num_steps), self.t_min
        if path.t_min == ours:
            return times
        # The part starts earlier: its grid shrunk towards 1, the ends exact.
        times = 1 - (1 - times) * ((1 - ours) / (1 - path.t_min))
        return times.at[0].set(ours)

    def _leading(self):
        """The part whose grid is used; it may be inside a product."""
        parts = [p._leading() if isinstance(p, ProductPath) else p for p in self._leaves]
        return next((p for p in parts if isinstance(p, GaussianPath)), parts[0])

    # States.

    def batch_shape(self, x: PyTree, name: str = "x") -> tuple[int, ...]:
        """The batch axes that all parts of a state share.

        Raises:
          ValueError: another structure than that of the paths, or parts whose batch axes differ.
            TypeError, ValueError: a part is no state of its path.
        """
        parts = self._parts(x, name)
        names = self._names(name)
        shapes = self._each("batch_shape", parts, names)
        if any(shape != shapes[0] for shape in shapes):
            came = ", ".join(f"{n} has {s}" for n, s in zip(names, shapes, strict=True))
            raise ValueError(f"the parts of {name} must have the same batch shape, got {came}")
        return shapes[0]

    def contains(self, x: PyTree) -> Array:
        """[...] bool, whether every part is legal."""
        return functools.reduce(operator.and_, self._each("contains", self._parts(x, "x")))

    def determined(self, x: PyTree, t: Time | None = None) -> Array:
        """[...] bool, whether every part fixes its x_1."""
        each = self._each("determined", self._parts(x, "x"), self._all(t))
        return functools.reduce(operator.and_, each)

    def data_state(self, x: PyTree) -> PyTree:
        """The state of the parts' data states."""
        return self._map("data_state", self._parts(x, "x"))

    def sample_prior(self, key: Key, shape: PyTree) -> PyTree:
        """States at the first time; `shape` is the pytree of the parts' full shapes."""
        return self.draw_prior(key, shape).x_0

    def draw_prior(self, key: Key, shape: PyTree, moments: PyTree = None) -> PriorDraw:
        """States at the first time and their log-density; `moments` is the pytree of the parts'."""
        parts = self._parts(shape, "shape"), self._moments(moments)
        draws = self._each("draw_prior", self._keys(key), *parts)
        x_0 = self.unflatten(draw.x_0 for draw in draws)
        self.batch_shape(x_0, "the state of this shape")
        return PriorDraw(x_0, functools.reduce(operator.add, (draw.log_density for draw in draws)))

    def num_local_states(self, event_shape: PyTree) -> int:
        """The sum over the parts."""
        return sum(self._each("num_local_states", self._parts(event_shape, "event_shape")))

    def local_target(self, key: Key, boundary_g: ModelFn, x_t: PyTree, t: Array, grid: Array) -> Array:
        """[B] targets, as `egm.typing.LocalPath` has them: the parts take turns at random."""
        return local.product_target(self, key, boundary_g, x_t, t, grid)

    def prior_log_density(self, x_0: PyTree, moments: PyTree = None) -> Array:
        """[...] normalised log-density of `draw_prior`, the sum over the parts."""
        self.batch_shape(x_0, "x_0")
        return self._total("prior_log_density", self._parts(x_0, "x_0"), self._moments(moments))

    def moments(self, x_1: PyTree, weights: Array) -> PyTree:
        """The pytree of the parts' moments."""
        return self._map("moments", self._parts(x_1, "x_1"), self._all(weights))

    def reference_energy(self, x_1: PyTree, moments: PyTree) -> Array:
        """[...] the sum over the parts."""
        return self._total("reference_energy", self._parts(x_1, "x_1"), self._moments(moments))

    # Kernels.

    def sample(self, key: Key, x_1: PyTree, t: Time) -> PyTree:
        """x_t ~ p_{t|1}(. | x_1), with independent noise for each part."""
        self.batch_shape(x_1, "x_1")
        return self._map("sample", self._keys(key), self._parts(x_1, "x_1"), self._all(t))

    def noise(self, key: Key, x_r: PyTree, r: Time, t: Time) -> PyTree:
        """x_t ~ p_{t|r}(. | x_r), for t <= r, with independent noise for each part."""
        self.batch_shape(x_r, "x_r")
        keys, parts = self._keys(key), self._parts(x_r, "x_r")
        return self._map("noise", keys, parts, self._all(r), self._all(t))

    def log_noising(self, x_t: PyTree, t: Time, x_r: PyTree, r: Time) -> Array:
        """[K, ...] log p_{t|r}(x_t | x_r), the sum over the parts; x_r may have extra axes K."""
        return self._total("log_noising", *self._pair(x_t, t, x_r, r))

    def propose(self, key: Key, x_t: PyTree, t: Time, r: Time, num_samples: int) -> PyTree:
        """x_r ~ q_{r|t}(. | x_t), every part with a new leading axis K = `num_samples`."""
        self.batch_shape(x_t, "x_t")
        keys, parts = self._keys(key), self._parts(x_t, "x_t")
        times = self._all(t), self._all(r)
        return self._map("propose", keys, parts, *times, self._all(num_samples))

    def log_normalizer(self, x_t: PyTree, t: Time, r: Time) -> Array:
        """[...] log Z_{r|t}(x_t), the sum over the parts."""
        self.batch_shape(x_t, "x_t")
        parts = self._parts(x_t, "x_t")
        return self._total("log_normalizer", parts, self._all(t), self._all(r))

    # Generators.

    def conditional_generator(self, x_t: PyTree, t: Time, x_r: PyTree, r: Time) -> PyTree:
        """The pytree of the parts' conditional generators; x_r may have extra leading axes."""
        return self._map("conditional_generator", *self._pair(x_t, t, x_r, r))

    def local_generator(self, log_density: ModelFn, x_t: PyTree, t: Time) -> PyTree:
        """The pytree of the parts' marginal generators, each from phi_t with the other parts held.

        A part may evaluate phi at M N points of its own for the N states of the flattened batch,
        flattened from [M, N, *event] by `collectives.merge`: the other parts are repeated M times.

        Args:
          log_density: phi, called as `log_density(x, t)` with one batch axis, once a part.
          x_t: the state, batch axes [...]. t: scalar or [...].

        Raises:
          ValueError: a part asks for phi at a number of points that is no multiple of N.
        """
        batch = self.batch_shape(x_t, "x_t")
        checks.function(log_density, "log_density")
        t, size = checks.time(t, "t", batch).reshape(-1), math.prod(batch)

        def flatten(leaf):
            leaf = jnp.asarray(leaf)
            return leaf.reshape(size, *leaf.shape[len(batch) :])

        parts = [jax.tree.map(flatten, part) for part in self._parts(x_t, "x_t")]

        def seen_by(index):
            def leaf_density(part, times):
                count = jax.tree.leaves(part)[0].shape[0]
                if size and count % size:
                    raise ValueError(
                        f"{self._names('x_t')[index]} is evaluated at {count} points, which is no "
                        f"multiple of the {size} states of the batch"
                    )
                repeats = count // size if size else 0

                def repeat(leaf):
                    return collectives.merge(jnp.broadcast_to(leaf, (repeats, *leaf.shape)))

                state = [jax.tree.map(repeat, other) for other in parts]
                state[index] = part
                return log_density(self._treedef.unflatten(state), times)

            return leaf_density

        densities = [seen_by(index) for index in range(len(parts))]
        generators = self._map("local_generator", densities, parts, self._all(t))
        return jax.tree.map(lambda g: g.reshape(*batch, *g.shape[1:]), generators)

    # The parts.

    def _each(self, method, *arguments):
        """The results of every part's `method`; each argument has an entry a part."""
        calls = zip(self._leaves, *arguments, strict=True)
        return [getattr(path, method)(*args) for path, *args in calls]

    def _map(self, method, *arguments):
        return self._treedef.unflatten(self._each(method, *arguments))

    def _total(self, method, *arguments):
        return functools.reduce(operator.add, self._each(method, *arguments))

    def _pair(self, x_t, t, x_r, r):
        """The arguments of a method on a pair of states, an entry a part."""
        batch, batch_r = self.batch_shape(x_t, "x_t"), self.batch_shape(x_r, "x_r")
        if len(batch_r) < len(batch) or batch_r[len(batch_r) - len(batch) :] != batch:
            raise ValueError(f"the batch axes of x_r must end with x_t's, {batch}, got {batch_r}")
        return self._parts(x_t, "x_t"), self._all(t), self._parts(x_r, "x_r"), self._all(r)

    def _all(self, value):
        return [value] * len(self._leaves)

    def _moments(self, moments):
        return self._all(None) if moments is None else self._parts(moments, "moments")

    def _keys(self, key):
        checks.one_key(key)
        return list(random.split(key, len(self._leaves)))

    def _names(self, name):
        paths_to = jax.tree_util.tree_flatten_with_path(self._treedef.unflatten(range(len(self._leaves))))[0]
        return [name + jax.tree_util.keystr(path_to) for path_to, _ in paths_to]

    def _parts(self, x, name):
        """The parts of a state in the order of the paths; raises where the structure differs."""
        try:
            return self._treedef.flatten_up_to(x)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name} must have the structure {self._treedef}, got {_describe(x)}") from error


def _describe(x):
    if isinstance(x, dict):
        return f"a dict with keys {sorted(map(str, x))}"
    if hasattr(x, "shape"):
        return f"an array of shape {tuple(x.shape)}"
    return f"a {type(x).__name__}: {jax.tree.structure(x)}"
