"""How a user's pytree of spaces becomes the library's state: one vector, one row of tokens, or both.

The vector [N, D] holds the unconstrained numbers of all continuous leaves in the order of `jax.tree.leaves`,
the tokens [N, L] those of all token leaves, with V the largest vocabulary; a token that a leaf does not
have has infinite energy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.spaces.circle import Circle
from egm.spaces.particles import Particles
from egm.spaces.real import Continuous, Real
from egm.spaces.tokens import Tokens
from egm.typing import TOKEN_OFFERS, Array, PyTree, State

__all__ = ["Layout", "SpaceEnergy", "like", "of"]


def _is_space(value: Any) -> bool:
    return isinstance(value, Tokens | Particles | Continuous) and not isinstance(value, type)


@dataclasses.dataclass(frozen=True, init=False)
class Layout:
    """A pytree of spaces and the library's state for it.

    States of the user are pytrees of the spaces' structure with leaves [N, *shape]; the library's are an
    array [N, D], tokens [N, L], or {"x": [N, D], "h": [N, L]}.

    Args:
      spaces: a space, or a pytree of them.

    Raises:
      TypeError: a leaf is no space. ValueError: there is none, or particles beside anything but one tuple
        of N tokens.

    Examples:
      >>> layout = egm.spaces.Layout({"rate": egm.spaces.Positive(), "spin": egm.spaces.Tokens(3)})
      >>> layout.num_coordinates, layout.num_sites, layout.vocab_size
      (1, 3, 2)
      >>> state = layout.from_user({"rate": jnp.array([1.0]), "spin": jnp.array([[0, 1, 1]])})
      >>> print(state["x"], state["h"])  # the library's own: log rate, and the tokens
      [[0.]] [[0 1 1]]
    """

    leaves: tuple[Any, ...]
    treedef: Any

    def __init__(self, spaces: PyTree):
        leaves, treedef = jax.tree.flatten(spaces, is_leaf=_is_space)
        for leaf in leaves:
            if not _is_space(leaf):
                raise TypeError(f"space must be a space of egm.spaces or a pytree of them, got {leaf!r:.80}")
        if not leaves:
            raise ValueError(f"space must hold at least one space, got {spaces!r:.80}")
        object.__setattr__(self, "leaves", tuple(leaves))
        object.__setattr__(self, "treedef", treedef)
        if self.particles is not None:
            rest = [leaf for leaf in leaves if not isinstance(leaf, Particles)]
            fits = all(isinstance(s, Tokens) and s.shape == (self.particles.num_particles,) for s in rest)
            if len(leaves) - len(rest) > 1 or len(rest) > 1 or not fits:
                raise ValueError(
                    "Particles stand alone, or beside Tokens with one token a particle, got "
                    f"{self.spaces!r:.120}"
                )

    @property
    def spaces(self) -> PyTree:
        """The spaces in the structure that they were given in."""
        return self.treedef.unflatten(self.leaves)

    @property
    def particles(self) -> Particles | None:
        """The particles of the state, None where there are none."""
        return next((leaf for leaf in self.leaves if isinstance(leaf, Particles)), None)

    @property
    def num_coordinates(self) -> int:
        """D, 0 where the state has tokens alone."""
        return sum(math.prod(s.shape) for s in self.leaves if not isinstance(s, Tokens))

    @property
    def angles(self) -> np.ndarray:
        """[D] bool, which coordinates are angles."""
        numbers = [s for s in self.leaves if not isinstance(s, Tokens)]
        kinds = [np.full(math.prod(s.shape), isinstance(s, Circle)) for s in numbers]
        return np.concatenate(kinds) if kinds else np.zeros(0, bool)

    @property
    def grid(self) -> tuple[int, ...]:
        """The two equal axes of the periodic grid that is the whole state; () where it is none."""
        space: Any = self.leaves[0]
        periodic = space.shape if getattr(space, "periodic", False) else ()
        found: tuple[int, ...] = getattr(space, "grid", periodic)
        alone = len(self.leaves) == 1 and len(found) == 2 and len(set(found)) == 1
        return found if alone else ()

    @property
    def num_sites(self) -> int:
        """L, 0 where the state has no tokens."""
        return sum(s.num_sites for s in self.leaves if isinstance(s, Tokens))

    @property
    def vocab_size(self) -> int:
        """V, the largest of the leaves; 0 without tokens."""
        return max((s.vocab_size for s in self.leaves if isinstance(s, Tokens)), default=0)

    @property
    def event_shape(self) -> Any:
        """The shape of one of the library's states: (D,), (L,), or {"x": (D,), "h": (L,)}."""
        return self.joined((self.num_coordinates,), (self.num_sites,))

    @property
    def vocab_sizes(self) -> np.ndarray:
        """[L] the vocabulary of each site."""
        sizes = [np.full(s.num_sites, s.vocab_size) for s in self.leaves if isinstance(s, Tokens)]
        return np.concatenate(sizes) if sizes else np.zeros(0, int)

    def joined(self, x: Any, h: Any) -> Any:
        """What a state is of the vector's part and of the tokens' part."""
        if not self.num_sites:
            return x
        return {"x": x, "h": h} if self.num_coordinates else h

    def split(self, state: State) -> tuple[Any, Any]:
        """(the vector's part, the tokens'), None where there is none."""
        if not self.num_sites:
            return state, None
        return (state["x"], state["h"]) if self.num_coordinates else (None, state)

    def to_user(self, state: State) -> tuple[PyTree, Array]:
        """(states of the user, log |det| [N] of the map from the library's) of the library's states."""
        x, h = self.split(state)
        n = jax.tree.leaves(state)[0].shape[0]
        found, log_det, at, site = [], jnp.zeros(n), 0, 0
        for space in self.leaves:
            if isinstance(space, Tokens):
                found.append(h[:, site : site + space.num_sites].reshape(n, *space.shape))
                site += space.num_sites
                continue
            size = math.prod(space.shape)
            part = x[:, at : at + size].reshape(n, *space.shape)
            at += size
            if not isinstance(space, Particles):
                part, term = space.constrain(part)
                log_det = log_det + term
            found.append(part)
        return self.treedef.unflatten(found), log_det

    def from_user(self, x: PyTree) -> State:
        """The library's states of states [N, ...] of the user."""
        try:
            parts = self.treedef.flatten_up_to(x)
        except (TypeError, ValueError) as error:
            raise ValueError(f"x must have the structure of {self.spaces!r:.80}, got {x!r:.80}") from error
        vector, tokens = [], []
        for space, part in zip(self.leaves, parts, strict=True):
            part = checks.as_array(part, "x")
            if part.shape[1:] != space.shape or not part.ndim:
                raise ValueError(f"x must have shape [N, *{space.shape}] on {space}, got {part.shape}")
            flat = lambda a: a.reshape(a.shape[0], -1)
            if isinstance(space, Tokens):
                tokens.append(flat(part).astype(jnp.int32))
            elif isinstance(space, Particles):
                vector.append(space.centred(flat(checks.wide(part.astype(float)))))
            else:
                vector.append(flat(space.unconstrain(checks.wide(part.astype(float)))))
        join = lambda a: jnp.concatenate(a, axis=1) if a else None
        return self.joined(join(vector), join(tokens))

    def example(self, num: int = 1) -> PyTree:
        """`num` states of the user, for shapes and dtypes: zeros of R^D and the first token."""
        x, h = jnp.zeros((num, self.num_coordinates)), jnp.zeros((num, self.num_sites), jnp.int32)
        return self.to_user(self.joined(x, h))[0]

    def energy(self, function: Callable[[PyTree], Array]) -> SpaceEnergy:
        """E on the library's states, the log-determinant inside, of a batched energy on the user's."""
        return SpaceEnergy(self, function)


@dataclasses.dataclass(frozen=True)
class SpaceEnergy:
    """The energy of the library's states: `function` of the user's, less the log-determinant."""

    layout: Layout
    function: Callable[[PyTree], Array]

    def __call__(self, x: State) -> Array:
        """[N] E, +inf where a site has a token that its leaf does not have."""
        user, log_det = self.layout.to_user(x)
        e = checks.model_output(self.function(user), "energy", log_det.shape)
        e = checks.wide(e) - log_det
        sizes = self.layout.vocab_sizes
        if sizes.size and sizes.min() < self.layout.vocab_size:
            tokens = self.layout.split(x)[1]
            e = jnp.where(jnp.all(tokens < jnp.asarray(sizes)[None], axis=-1), e, jnp.inf)
        return e

    def __getattr__(self, name: str):
        # What an energy of flat tokens alone offers stays offered.
        flat = len(self.layout.leaves) == 1 and self.layout.leaves[0].shape == (self.layout.num_sites,)
        if name in TOKEN_OFFERS and flat:
            return getattr(self.function, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def like(example: PyTree) -> PyTree:
    """Real spaces of the shapes of an example of one state, such as a numpyro model's parameters.

    Examples:
      >>> egm.spaces.like({"weight": jnp.zeros((3, 2)), "bias": 0.0})
      {'bias': Real(shape=(), periodic=False), 'weight': Real(shape=(3, 2), periodic=False)}
    """
    return jax.tree.map(lambda a: Real(np.shape(a)), example)


def of(energy: Any) -> PyTree:
    """The space of one of the energies of `egm.energies`, by its `event_shape` and `vocab_size`.

    Raises:
      TypeError: it has no `event_shape`.

    Examples:
      >>> egm.spaces.of(egm.energies.Ising(side=4, inverse_temperature=0.4))
      Tokens(shape=(16,), vocab_size=2, periodic=(4, 4))
      >>> egm.spaces.of(egm.energies.LennardJones())
      Particles(num_particles=13, spatial_dim=3)
    """
    event = getattr(energy, "event_shape", None)
    if event is None:
        raise TypeError(f"space is needed for an energy without an event_shape, got {energy!r:.80}")
    vocab, particles = getattr(energy, "vocab_size", None), getattr(energy, "num_particles", None)

    def one(name, shape):
        if name == "x":
            dim = getattr(energy, "spatial_dim", 2)
            return Real(shape) if particles is None else Particles(particles, dim)
        side = getattr(energy, "side", None)
        square = side is not None and (side**2,) == tuple(shape)
        return Tokens(shape, vocab or 0, periodic=(side, side) if square else False)

    if isinstance(event, dict):
        return {name: one(name, shape) for name, shape in event.items()}
    return one("x" if vocab is None else "h", event)
