"""What a sampler is made of: sizes and lengths that `egm.fit` has chosen, and parts that follow from them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from egm import (
    heads,
    modules,
    networks,
    paths,
    processes,
)
from egm.spaces import Layout
from egm.typing import Array, Energy, Key, PyTree, State

__all__ = [
    "GRADIENT_STEPS",
    "Design",
    "Parts",
    "Sizes",
    "check_network",
    "inputs",
    "num_reveals",
    "parts_of",
    "sizes_of",
]

_UNIFORM = 4.5
"""Noise after which an angle is uniform to 1e-4."""
_LARGEST = 10.0
"""b |score| over sqrt(D) at which a target is cut: one state on a cliff must not outweigh a batch."""
_MIXED_FROM = 6
"""Dimensions from which a network has channels for each coordinate."""
GRADIENT_STEPS = 100
"""Of an iteration."""
_CALLS = 40_000
"""Network calls of an iteration's simulation of tokens, about those of its training."""
_ITERATIONS = 30
"""For which there is to be time: an iteration has fewer states until there is, down to the fewest."""
_FEWEST, _FEWEST_A_STEP = 256, 128
"""States of an iteration and of a gradient step below which they are not halved."""


@dataclasses.dataclass(frozen=True)
class Design:
    """What was found of a target and decided for its sampler: plain numbers, from which it is rebuilt.

    Attributes:
      layout: of the states.
      length_scale, data_scale: s and S in the sampler's coordinates.
      reach: sigma_max over S.
      mixture: of separate places that the head starts from; None for a normal.
      width, depth: of the network.
      num_times: steps of a simulation.
      flip: whether the network keeps the symmetry of exchanged tokens (with x -> -x on mixed states).
      shifts: whether it keeps that of shifts of a periodic grid.
      pairs: whether the energy is made of pair terms that `egm.energies.pair_terms` finds.
      colours: [L] of tokens alone, the last of which is revealed at once; () for one site a step.
    """

    layout: Layout
    length_scale: float = 1.0
    data_scale: float = 1.0
    reach: float = 2.5
    width: int = 128
    depth: int = 3
    num_times: int = 100
    flip: bool = False
    shifts: bool = False
    pairs: bool = False
    colours: tuple[int, ...] = ()
    mixture: heads.NormalMixture | None = None


class Parts(NamedTuple):
    """The library's parts of a design.

    Attributes:
      path, process, head: as `make_iteration` and `simulate` take them.
      init, apply: of the network.
    """

    path: Any
    process: Any
    head: Any
    init: Callable[[Key], PyTree]
    apply: Callable[..., Any]


def parts_of(design: Design, energy: Energy, network: Any = None) -> Parts:
    """Path, process, head and network of a design.

    Args:
      design: as found.
      energy: E in the sampler's coordinates; a masked skip is taken from it where it offers one.
      network: None for the space's own; or as `egm.modules.given` takes it, of (x, t).

    Returns:
      Parts.
    """
    layout, scale = design.layout, (design.length_scale, design.data_scale)
    vector: Any = None
    tokens: Any = None
    if layout.num_coordinates:
        path = _gaussian_path(design)
        if layout.particles is not None:
            path = paths.CenteredPath(path, layout.particles.num_particles, layout.particles.spatial_dim)
        process = processes.DiffusionProcess(path, data_scale=design.data_scale)
        head = heads.ScoreHead(path, *scale, mixture=design.mixture, max_target_norm=_LARGEST)
        vector = (path, process, head)
    if layout.num_sites:
        tokens = _tokens_part(design)
    if vector is not None and tokens is not None:
        head = heads.ProductHead({"x": vector[2], "h": tokens[2]})
        process = processes.ProductProcess({"x": vector[1], "h": tokens[1]})
        path = head.path
    else:
        alone: Any = tokens if vector is None else vector
        path, process, head = alone
    own = _network(design, vector[0] if vector else None, energy) if network is None else network
    module = modules.given(own)
    init = lambda key: module.init(key, *inputs(layout, 1))
    # One program where nothing of the user's is in it; operations one by one compile for seconds.
    init = jax.jit(init) if network is None else init
    return Parts(path, process, head, init, _legal(module.apply, layout))


class Sizes(NamedTuple):
    """Of an iteration of training.

    Attributes:
      num_simulated: states of a generation.
      batch_size: of a gradient step.
    """

    num_simulated: int
    batch_size: int


def sizes_of(design: Design, parts: Parts, energy: Energy, seconds: float | None = None) -> Sizes:
    """Sizes by dimension; with `seconds`, halved until thirty iterations would take no longer.

    What the generator takes for a state, the energy and a mixture of places included, is measured here, on
    this machine.
    """
    layout = design.layout
    size = layout.num_coordinates + layout.num_sites
    only_tokens = bool(layout.num_sites) and not layout.num_coordinates
    num, batch = (1024, 512) if size <= 64 else (512, 256)
    if layout.particles is not None or only_tokens:
        num, batch = 512, 128
    if only_tokens:
        # Where there are many steps, simulating takes no longer than training.
        num = int(np.clip(64 * (_CALLS // (64 * design.num_times)), 128, 512))
    if seconds is None or batch <= _FEWEST_A_STEP:
        return Sizes(num, batch)
    forward, gradient = (cost / batch for cost in _costs(parts, energy, *inputs(layout, batch)))
    while batch > _FEWEST_A_STEP:
        taken = GRADIENT_STEPS * batch * (forward + gradient) + num * design.num_times * forward
        if taken <= seconds / _ITERATIONS:
            break
        num, batch = max(num // 2, _FEWEST), batch // 2
    return Sizes(num, batch)


def _costs(parts: Parts, energy: Energy, x: State, t: Array) -> tuple[float, float]:
    """Seconds of the generator at these states and of its gradient by the parameters, the least of three."""
    params = parts.init(jax.random.key(0))

    def total(params, x, t):
        made = parts.head.generator(parts.apply(params, x, t), x, t, energy)
        return sum(jnp.sum(a**2) for a in jax.tree.leaves(made))

    found = []
    for function in (jax.jit(total), jax.jit(jax.grad(total))):
        jax.block_until_ready(function(params, x, t))
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            jax.block_until_ready(function(params, x, t))
            taken.append(time.perf_counter() - began)
        found.append(min(taken))
    return found[0], found[1]


def num_reveals(layout: Layout, colours: tuple[int, ...]) -> int:
    """Steps from masks to tokens alone."""
    return processes.orders.colouring(colours).num_steps if colours else layout.num_sites


def _tokens_part(design: Design) -> tuple[Any, Any, Any]:
    """(path, process, head) of the tokens."""
    path = paths.MaskedPath(design.layout.vocab_size)
    if design.layout.num_coordinates:
        return path, processes.JumpProcess(path), heads.DenoiserHead(path)
    if not design.colours:
        return path, processes.AnyOrderProcess(path), heads.DenoiserHead(path)
    order = processes.orders.colouring(design.colours)
    return path, processes.OrderedProcess(path, order), heads.DenoiserHead(path, order)


def check_network(network: Any, layout: Layout) -> None:
    """Raises TypeError or ValueError unless it may stand for the network of this layout's states."""
    num = 3
    vector = (num, layout.num_coordinates, 2)
    tokens = (num, layout.num_sites, layout.vocab_size)
    modules.check_output(modules.given(network), inputs(layout, num), layout.joined(vector, tokens))


def inputs(layout: Layout, num: int) -> tuple[State, Array]:
    """(the library's states, times) as a network is given them, zeros."""
    x = jnp.zeros((num, layout.num_coordinates))
    return layout.joined(x, jnp.zeros((num, layout.num_sites), jnp.int32)), jnp.zeros(num)


def _gaussian_path(design: Design) -> Any:
    """The path of the vector's part, as wide as the design says; wide enough for angles to be uniform."""
    s, sigma_max, angles = design.length_scale, design.reach * design.data_scale, design.layout.angles
    if not angles.any():
        return paths.VarianceExplodingPath(s, sigma_max, length_scale=s)
    circular = None if angles.all() else tuple(angles.tolist())
    return paths.WrappedPath(s, max(sigma_max, _UNIFORM), s, circular)


def _network(design: Design, path: Any, energy: Any) -> Any:
    """The network of the space."""
    layout = design.layout
    scale: dict[str, Any] = {"length_scale": design.length_scale, "data_scale": design.data_scale}
    size: dict[str, Any] = {"width": design.width, "depth": design.depth}
    if layout.particles is not None:
        args = (path, layout.particles.num_particles, layout.particles.spatial_dim)
        if layout.num_sites:
            return networks.EGNNMixed(*args, layout.vocab_size, **scale, **size)
        return networks.EGNN(*args, **scale, **size)
    if layout.num_coordinates and layout.num_sites:
        return networks.MLPMixed(path, layout.vocab_size, **scale, **size, flip=design.flip)
    grid = layout.grid if design.shifts else ()
    if layout.num_coordinates and grid:
        return networks.TorusVector(path, grid[0], **scale)
    if layout.num_coordinates >= _MIXED_FROM and not layout.angles.any():
        return networks.CoordinateVector(path, **scale, **size)
    if layout.num_coordinates:
        return networks.MLPVector(path, **scale, **size)
    skip = getattr(energy, "masked_conditionals", None)
    if grid:
        shape = {"channels": 16, "expansion": 1, "flip": design.flip, "skip": skip}
        return networks.TorusDenoiser(grid[0], layout.vocab_size, **shape)
    return networks.MLPDenoiser(layout.vocab_size, **size, flip=design.flip, skip=skip)


def _legal(apply: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """The network with the logits of tokens that a site does not have far below all others."""
    sizes = layout.vocab_sizes
    if not sizes.size or sizes.min() == layout.vocab_size:
        return apply
    none = np.arange(layout.vocab_size)[None] >= sizes[:, None]

    def legal(params, state, t):
        out = apply(params, state, t)
        logits = jnp.where(none, -30.0, out["h"] if layout.num_coordinates else out)
        return {**out, "h": logits} if layout.num_coordinates else logits

    return legal
