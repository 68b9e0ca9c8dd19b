"""What the examples on continuous and mixed spaces share: flags, and a sampler built from an energy."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags
from reports.continuous.report import report
from support import cluster, loop
from support.optimizers import SHOWN, cosine, optimizer

import egm
from egm import algorithms, heads, iteration, networks, paths, processes, scales

ALGORITHM = flags.DEFINE_enum(
    "algorithm",
    "weighted",
    ["naive", "bootstrap", "published_bootstrap", "local_bootstrap", "weighted"],
    "What to train.",
)
PROCESS = flags.DEFINE_enum(
    "process",
    "diffusion",
    ["flow", "diffusion", "superposition"],
    "What moves the continuous part of the final sampler; training simulates the diffusion.",
)
ITERATIONS = flags.DEFINE_integer("iterations", None, "Outer iterations; by default by target and algorithm.")
SECONDS = flags.DEFINE_float("seconds", None, "Train for this long instead of a number of iterations.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 1000, "K of the naive estimate.")
NUM_TIMES = flags.DEFINE_integer("num_times", None, "Steps of the final sampler; by default by target.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Where the figure and the numbers go.")


class Settings(NamedTuple):
    """What differs from target to target.

    Attributes:
      search_radius: how far from the origin the target may reach, in its own units.
      iterations: outer iterations of weighted training.
      learning_rate: at its peak.
      num_times: steps of the simulation in training.
      sampler_num_times: steps of the final sampler.
      num_simulated, num_gradient_steps, batch_size: sizes of an iteration.
      particles: (number, dimension) of a particle system, or None.
      width: of the networks.
      symmetric: E(x, h) = E(-x, 1 - h): networks keep it, and the centre is 0.
      num_moves: rounds of moves of the buffer's states in an iteration.
      buffer_size: in generations.
      ess_target: of the annealing, in generations.
    """

    search_radius: float
    iterations: int = 60
    learning_rate: float = 2e-3
    num_times: int = 100
    sampler_num_times: int = 100
    num_simulated: int = 2000
    num_gradient_steps: int = 150
    batch_size: int = 512
    particles: tuple[int, int] | None = None
    width: int = 128
    symmetric: bool = False
    num_moves: int = 0
    buffer_size: int = 5
    ess_target: float = 0.2


def make_path(key: jax.Array, energy: Any, settings: Settings) -> tuple[Any, scales.Scales]:
    """The exploding path whose scales are the energy's own, and those scales."""
    center = (
        None
        if settings.particles is None
        else paths.CenteredPath(paths.VarianceExplodingPath(1.0, 2.0), *settings.particles)
    )
    found = scales.find_scales(
        key,
        energy,
        energy.event_shape,
        settings.search_radius,
        vocab_size=getattr(energy, "vocab_size", None),
        project=None if center is None else center.project,
    )
    # With sigma_min = s the times that are uniform in log(sigma^2 + s^2) are uniform in t. At 2.5 extents
    # a normal prior with fitted moments is as good as the marginal.
    s = found.length_scale
    path = paths.VarianceExplodingPath(s, 2.5 * found.data_scale, length_scale=s)
    if center is not None or settings.symmetric:
        found = found._replace(center=found.center * 0.0)
    return (path if center is None else paths.CenteredPath(path, *settings.particles)), found


def make_process(name: str, path: Any, found: scales.Scales) -> Any:
    """The process of the continuous part."""
    flow = processes.FlowProcess(path, "heun")
    diffusion = processes.DiffusionProcess(path, data_scale=found.data_scale)
    if name == "superposition":
        return processes.SuperpositionProcess((flow, diffusion), (0.5, 0.5))
    return {"flow": flow, "diffusion": diffusion}[name]


def relaxed_skip(path, energy, **shape) -> Callable[..., Any]:
    """A start for g from the energy: on mixed states with every masked token uniform."""
    if not isinstance(energy.event_shape, dict):
        return lambda e: networks.energy_log_marginal(e, path, **shape)
    vocab = energy.vocab_size

    def skip(e):
        def g(state, t):
            visible = jax.nn.one_hot(state["h"], vocab)
            p = jnp.where((state["h"] == vocab)[..., None], 1.0 / vocab, visible)
            closed = networks.energy_log_marginal(lambda x: e.relaxed({"x": x, "h": p}), path, **shape)
            return closed(state["x"], t)

        return g

    return skip


def make_algorithm(name: str, energy: Any, path: Any, found: scales.Scales, make_networks: Callable):
    """The algorithm and its parameters' function `init(key)`.

    `make_networks(path, **shape)` returns (generator network, log-marginal network).
    """
    center = tuple(float(c) for c in found.center) if found.center.any() else 0.0
    shape = {"length_scale": found.length_scale, "data_scale": found.data_scale}
    head = heads.ScoreHead(path, **shape, center=center)
    event = energy.event_shape
    x, t = jnp.zeros((1, path_size(event))), jnp.zeros(1)
    if isinstance(event, dict):
        head = heads.ProductHead({"x": head, "h": heads.DenoiserHead(paths.MaskedPath(energy.vocab_size))})
        x = {"x": x, "h": jnp.zeros((1, *event["h"]), jnp.int32)}
    if not isinstance(path, paths.CenteredPath):
        shape["center"] = center
    generator, log_marginal = make_networks(path, **shape)
    skip = relaxed_skip(path, energy, **shape)
    if name == "local_bootstrap":
        algorithm = algorithms.LocalBootstrap(head.path, log_marginal.apply, skip=skip)
        return algorithm, lambda k: log_marginal.init(k, x, t)
    if name == "weighted":
        return algorithms.Weighted(head.path, head, generator.apply), lambda k: generator.init(k, x, t)
    if name == "naive":
        algorithm = algorithms.Naive(head.path, head, generator.apply, NUM_SAMPLES.value)
        return algorithm, lambda k: generator.init(k, x, t)
    published = name == "published_bootstrap"
    make = algorithms.Bootstrap.published if published else algorithms.Bootstrap
    algorithm = make(head.path, head, generator.apply, log_marginal.apply, skip=skip)
    return algorithm, lambda k: {
        "generator": generator.init(k, x, t),
        "log_marginal": log_marginal.init(k, x, t),
    }


def path_size(event: Any) -> int:
    """D of the continuous part."""
    return (event["x"] if isinstance(event, dict) else event)[0]


def run(name: str, energy: Any, settings: Settings, make_networks: Callable) -> None:
    """Train a sampler of the energy as the flags say, and write its figure and its numbers."""
    started = time.time()
    k_scales, k_params, k_train, k_report = jax.random.split(jax.random.key(SEED.value), 4)
    path, found = make_path(k_scales, energy, settings)
    loop.say(
        f"from the energy: extent {found.data_scale:.3g}, radius {found.radius:.3g}, "
        f"length scale {found.length_scale:.3g}, {found.num_minima} descents of 256 ended low"
    )
    algorithm, init_params = make_algorithm(ALGORITHM.value, energy, path, found, make_networks)
    sampler, trainer = (make_process(p, path, found) for p in (PROCESS.value, "diffusion"))
    size = path_size(energy.event_shape)
    reference = egm.typing.Moments(jnp.asarray(found.center, float), jnp.full(size, found.data_scale**2))
    if isinstance(energy.event_shape, dict):
        jump = processes.JumpProcess(paths.MaskedPath(energy.vocab_size))
        sampler, trainer = (processes.ProductProcess({"x": p, "h": jump}) for p in (sampler, trainer))
        reference = {"x": reference, "h": None}
    # An estimate costs K evaluations an example, of a network where it is bootstrapped.
    cost = {"naive": 4, "bootstrap": 4, "published_bootstrap": 8, "local_bootstrap": 2, "weighted": 1}[
        ALGORITHM.value
    ]
    config = iteration.IterationConfig(
        num_simulated=settings.num_simulated,
        buffer_size=settings.buffer_size * settings.num_simulated,
        num_gradient_steps=settings.num_gradient_steps // (3 if cost == 8 else 1),
        batch_size=settings.batch_size // cost,
        num_times=settings.num_times,
        ema_decay=0.95 if "bootstrap" in ALGORITHM.value else 0.995,
        ess_target=settings.ess_target,
        num_moves=settings.num_moves,
    )
    init, step = iteration.make_iteration(
        algorithm,
        trainer,
        energy,
        optimizer(),
        config,
        event_shape=energy.event_shape,
        reference=reference,
    )
    state, history, compile_seconds, _ = loop.train(
        step,
        init(init_params(k_params)),
        k_train,
        label="sampler",
        calls=ITERATIONS.value or math.ceil(settings.iterations / (2 if cost > 1 else 1)),
        seconds=SECONDS.value,
        prepare=cosine(settings.learning_rate),
        shown=SHOWN,
        configuration=loop.values(ALGORITHM, NUM_SAMPLES, SEED)
        | {"target": name, "energy": energy, "settings": settings, "iteration": config},
    )
    if not cluster.is_main():
        return
    report(
        k_report,
        name,
        energy,
        sampler,
        algorithm.generator(state.train.ema_params, energy),
        state.moments,
        NUM_TIMES.value or settings.sampler_num_times,
        history,
        OUTPUT_DIR.value or f"results/{name}",
        {
            "algorithm": ALGORITHM.value,
            "process": PROCESS.value,
            "seed": SEED.value,
            "compile_seconds": compile_seconds,
            "started": started,
        },
    )
