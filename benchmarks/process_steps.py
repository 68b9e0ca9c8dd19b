"""ESS against steps: one trained network, several processes on its path.

  python benchmarks/process_steps.py [--targets=gaussian_mixture,coupled_joint_mixture] [--heads=score]
      [--steps=25,50,100,200] [--processes=diffusion,superposition] [--params=FOLDER]

`--heads=exact` trains nothing: the target, a mixture, says the generator itself and x_0 is drawn from the
exact marginal, so that what is lost is lost by the steps. Other heads are trained as the examples do,
simulating the diffusion; then each process samples at each number of steps by the averaged parameters. With
--params the trained state is kept in FOLDER and taken from there when it is there already, so that two
versions of the library can be compared on one network. Seconds are those of this process on all its cores
(`time.process_time`) for 1000 samples, compiling left out.
"""

import functools
import math
import pathlib
import pickle
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "examples"))

from support.continuous import ITERATIONS, SEED, Settings, make_path  # noqa: E402
from support.optimizers import cosine, optimizer  # noqa: E402

import egm  # noqa: E402
from egm import algorithms, heads, iteration, metrics, networks, paths, processes  # noqa: E402

TARGETS = flags.DEFINE_list("targets", ["gaussian_mixture", "coupled_joint_mixture"], "Which targets.")
HEADS = flags.DEFINE_list("heads", ["score"], "Which heads to train.")
STEPS = flags.DEFINE_list("steps", ["25", "50", "100", "200"], "Numbers of steps.")
PROCESSES = flags.DEFINE_list("processes", ["diffusion", "superposition"], "Which processes.")
NUM_PARTS = flags.DEFINE_integer("num_parts", 32, "K of the mixture head.")
TRAJECTORIES = flags.DEFINE_integer("trajectories", 10_000, "Trajectories of a figure.")
PARAMS = flags.DEFINE_string("params", None, "Folder of trained parameters.")


def far_modes(dim):
    """N(-10, 1) and N(+10, 1) in every coordinate, masses .8 and .2."""
    return egm.energies.GaussianMixture(((-10.0,) * dim, (10.0,) * dim), 1.0, (0.8, 0.2))


MAKE = {
    "gaussian_mixture": (egm.energies.GaussianMixture, Settings(search_radius=10.0)),
    "coupled_joint_mixture": (
        egm.energies.CoupledJointMixture,
        Settings(search_radius=3.0, iterations=80, symmetric=True),
    ),
    "far_modes_2": (functools.partial(far_modes, 2), Settings(search_radius=15.0, iterations=40)),
    "far_modes_10": (functools.partial(far_modes, 10), Settings(search_radius=15.0, iterations=40)),
}


def make_process(name, path, scale):
    """A process on a Gaussian path; superpositions are half and half.

    "low_noise" has a tenth of the diffusion's g^2, "still" none.
    """
    flow = processes.FlowProcess(path, "heun")
    diffusion = processes.DiffusionProcess(path, data_scale=scale)
    jumps = lambda: processes.VectorJumpProcess(path)
    made = {
        "jumps": jumps,
        "jumps_diffusion": lambda: processes.SuperpositionProcess((jumps(), diffusion), (0.5, 0.5)),
        "flow": lambda: flow,
        "diffusion": lambda: diffusion,
        "superposition": lambda: processes.SuperpositionProcess((flow, diffusion), (0.5, 0.5)),
        "low_noise": lambda: processes.DiffusionProcess(path, 0.1**0.5, scale),
        "still": lambda: processes.DiffusionProcess(path, 0.0, scale),
    }
    return made[name]()


def make_parts(kind, energy, path, found, settings):
    """(head, network) of a target: on mixed states a product of heads and one network for both parts."""
    center = tuple(float(c) for c in found.center) if found.center.any() else 0.0
    shape = {"length_scale": found.length_scale, "data_scale": found.data_scale, "center": center}
    if kind == "mixture":
        head = heads.MixtureHead(path, NUM_PARTS.value, found.data_scale, center)
        return head, networks.MLPVector(path, **shape, width=64, num_outputs=3 * NUM_PARTS.value)
    head = heads.ScoreHead(path, **shape)
    if not isinstance(energy.event_shape, dict):
        return head, networks.MLPVector(path, **shape, width=settings.width)
    head = heads.ProductHead({"x": head, "h": heads.DenoiserHead(paths.MaskedPath(energy.vocab_size))})
    flip = {"flip": settings.symmetric, "width": settings.width}
    return head, networks.MLPMixed(path, energy.vocab_size, **shape, **flip)


def train(kind, name):
    """(energy, path, found, algorithm, params, moments, evaluations, seconds) of a target with a head."""
    energy, settings = MAKE[name][0](), MAKE[name][1]
    k_scales, k_params, k_train = jax.random.split(jax.random.key(SEED.value), 3)
    path, found = make_path(k_scales, energy, settings)
    head, network = make_parts(kind, energy, path, found, settings)
    algorithm = algorithms.Weighted(head.path, head, network.apply)
    file = None if PARAMS.value is None else pathlib.Path(PARAMS.value) / f"{name}_{kind}_{SEED.value}.pickle"
    if file is not None and file.exists():
        return energy, path, found, algorithm, *pickle.loads(file.read_bytes())
    event = energy.event_shape
    mixed = isinstance(event, dict)
    process = make_process("diffusion", path, found.data_scale)
    size = (event["x"] if mixed else event)[0]
    reference = egm.typing.Moments(jnp.asarray(found.center, float), jnp.full(size, found.data_scale**2))
    x = jnp.zeros((1, size))
    if mixed:
        jump = processes.JumpProcess(paths.MaskedPath(energy.vocab_size))
        process, reference = processes.ProductProcess({"x": process, "h": jump}), {"x": reference, "h": None}
        x = {"x": x, "h": jnp.zeros((1, *event["h"]), jnp.int32)}
    config = iteration.IterationConfig(
        num_simulated=settings.num_simulated,
        buffer_size=settings.buffer_size * settings.num_simulated,
        num_gradient_steps=settings.num_gradient_steps,
        batch_size=settings.batch_size,
        num_times=settings.num_times,
        ema_decay=0.995,
        ess_target=settings.ess_target,
    )
    init, step = iteration.make_iteration(
        algorithm, process, energy, optimizer(), config, event_shape=event, reference=reference
    )
    state, step = init(network.init(k_params, x, jnp.zeros(1))), jax.jit(step)
    calls, prepare = ITERATIONS.value or settings.iterations, cosine(settings.learning_rate)
    for i in range(calls):
        state, report = step(jax.random.fold_in(k_train, i), prepare(state, i / calls))
        if i == 0:
            jax.block_until_ready(state)
            started = time.process_time()
        print(f"{name}, {kind}: {i + 1} of {calls}, ESS {float(report['ess']):.3f}", end="\r", flush=True)
    print()
    seconds = (time.process_time() - started) * calls / max(calls - 1, 1)
    record = (state.train.ema_params, state.moments, float(state.num_energy_evaluations), seconds)
    record = jax.device_get(record)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(pickle.dumps(record))
    return energy, path, found, algorithm, *record


def exact_generator(energy):
    """The target itself, as seen from everywhere."""
    means = jnp.asarray(energy.modes)
    weights, variances = jnp.log(energy.mode_masses), jnp.full(means.shape, energy.sigma**2)
    target = egm.typing.TargetMixture(weights, means, variances)
    return lambda x, t: jax.tree.map(lambda a: jnp.broadcast_to(a, (len(x), *a.shape)), target)


def exact_start(energy, path):
    """`start(key, num)`: states of the first time from the exact marginal, and its density."""

    def start(key, num):
        k_data, k_noise = jax.random.split(key)
        first = jnp.asarray(path.t_min, float)
        x_0 = path.sample(k_noise, energy.sample(k_data, num), first)
        return egm.PriorDraw(x_0, energy.marginal_log_density(x_0, path.alpha(first), path.variance(first)))

    return start


def fitted_start(energy, path, moments):
    """`start(key, num)`: from the prior with the moments of the training's last buffer."""
    is_shape = lambda e: isinstance(e, tuple)
    return lambda key, num: egm.draw_prior(
        key, path, jax.tree.map(lambda d: (num, *d), energy.event_shape, is_leaf=is_shape), moments
    )


def measure(energy, process, generator, start, steps):
    """(ESS, log Z, its error, seconds for 1000 samples, samples)."""
    num = min(TRAJECTORIES.value, 2000)

    @jax.jit
    def run(key):
        k_prior, k_simulate = jax.random.split(key)
        x_0 = start(k_prior, num)
        trajectory = egm.simulate(k_simulate, process, generator, x_0, process.times(steps))
        return trajectory.x_1, egm.path_log_weights(energy, process.path, trajectory)

    key = jax.random.fold_in(jax.random.key(SEED.value), 7)
    jax.block_until_ready(run(key))
    started, found = time.process_time(), []
    count = math.ceil(TRAJECTORIES.value / num)
    for i in range(count):
        found.append(jax.device_get(run(jax.random.fold_in(key, i))))
    seconds = (time.process_time() - started) / (count * num) * 1000
    x_1, log_w = jax.tree.map(lambda *a: np.concatenate(a), *found)
    summary = metrics.summarize(jnp.asarray(log_w))
    return float(summary.ess), float(summary.log_z), float(summary.log_z_error), seconds, x_1


def main(_):
    print("| target | head | process | steps | ESS | log Z - exact | s / 1000 samples |")
    print("|---|---|---|---|---|---|---|")
    for name in TARGETS.value:
        for kind in HEADS.value:
            if kind == "exact":
                energy, evaluations, seconds = MAKE[name][0](), 0.0, 0.0
                path, found = make_path(jax.random.key(SEED.value), energy, MAKE[name][1])
                generator = exact_generator(energy)
            else:
                energy, path, found, algorithm, params, moments, evaluations, seconds = train(kind, name)
                generator = algorithm.generator(params, energy)
            exact = float(energy.log_partition())
            for label in PROCESSES.value:
                process = make_process(label, path, found.data_scale)
                if isinstance(energy.event_shape, dict):
                    jump = processes.JumpProcess(paths.MaskedPath(energy.vocab_size))
                    process = processes.ProductProcess({"x": process, "h": jump})
                start = (
                    exact_start(energy, path)
                    if kind == "exact"
                    else fitted_start(energy, process.path, moments)
                )
                for steps in map(int, STEPS.value):
                    ess, log_z, error, cost, _ = measure(energy, process, generator, start, steps)
                    cells = f"{ess:.3f} | {log_z - exact:+.4f} ± {error:.4f} | {cost:.2f}"
                    print(f"| {name} | {kind} | {label} | {steps} | {cells} |", flush=True)
            print(f"{name}, {kind}: {evaluations:.2g} evaluations, {seconds:.0f} s of training", flush=True)


if __name__ == "__main__":
    app.run(main)
