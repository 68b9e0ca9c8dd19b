"""Data to energy to sampler: learn V from points, then sample exp(-V/eps) without them.

python examples/quickstart.py                      # about two minutes
1. `energymatch` learns a potential V whose Boltzmann density exp(-V/eps) is that of the data.
2. `egm` learns a sampler of that density from V alone, with exact weights: an ESS and log Z.
Writes quickstart.png and results.json to --output_dir.
"""

import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from data import moons
from support import cluster, loop, potentials
from support.distances import w2
from support.optimizers import SHOWN, cosine, optimizer
from support.tables import table, with_error, write_results

import egm
from egm import algorithms, heads, iteration, networks, paths, processes, scales
from egm.typing import Moments
from energymatch import couplings, langevin, losses, matching, potential, schedules
from energymatch.couplings import costs
from energymatch.networks import MLPPotential

plt.switch_backend("Agg")  # no screen is needed

EPSILON = 1.0
STEPS = flags.DEFINE_integer("steps", 2000, "Gradient steps of the potential; as many again with density.")
ITERATIONS = flags.DEFINE_integer("iterations", 40, "Iterations of the sampler.")
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 2000, "Samples to compare.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", "results/quickstart", "Where the figure and the numbers go.")


def learn_potential(key, data):
    """V and the seconds it took, by Energy Matching: transport first, then transport and density."""
    keys = jax.random.split(key, 6)
    # Pairs of noise and data by optimal transport, with lines that do not run through the data.
    x_0, x_1 = moons.sample_prior(keys[0], 8192), data[:8192]
    couple = functools.partial(couplings.exact_ot, cost=costs.line_of_sight(data[:128]))
    x_0, x_1 = jax.lax.map(lambda a: couple(*a), (jax.random.split(keys[1], 16), *split(x_0, x_1)))
    x_0, x_1 = x_0.reshape(-1, 2), x_1.reshape(-1, 2)

    def draw_batch(key):
        rows = jax.random.randint(key, (2, 256), 0, x_0.shape[0])
        return losses.Batch(x_0[rows[0]], x_1[rows[0]], data[rows[1]])

    net = MLPPotential(scale=4.0, output_scale=5.0)
    adam = potentials.optimizer(2e-3, STEPS.value)
    init, step = matching.make_warm_up(net.apply, adam)
    state = init(net.init(keys[2], data[:1]))
    fit = functools.partial(potentials.fit, configuration=loop.values(SEED))
    state, *_ = fit(step, state, keys[3], draw_batch, STEPS.value, label="transport")
    init, step = matching.make_matching(net.apply, adam, matching.MatchingConfig(epsilon_max=EPSILON))
    state = init(state.ema_params, data[-128:])
    state, *_ = fit(step, state, keys[4], draw_batch, STEPS.value, label="density")
    return functools.partial(net.apply, state.train.ema_params)


def split(*arrays):
    """Each array in batches of 512."""
    return (a.reshape(-1, 512, *a.shape[1:]) for a in arrays)


def learn_sampler(key, energy):
    """(process, generator, moments of the data, history) of a sampler of exp(-E), from E alone."""
    keys = jax.random.split(key, 3)
    found = scales.find_scales(keys[0], energy, (2,), search_radius=8.0)
    shape = {
        "length_scale": found.length_scale,
        "data_scale": found.extent,
        "center": tuple(found.center.tolist()),
    }
    path = paths.VarianceExplodingPath(
        found.length_scale, 2.5 * found.extent, length_scale=found.length_scale
    )
    process = processes.DiffusionProcess(path, data_scale=found.extent)
    net = networks.MLPVector(path, **shape)
    algorithm = algorithms.Weighted(path, heads.ScoreHead(path, **shape), net.apply)
    config = iteration.IterationConfig(num_simulated=2000, buffer_size=10_000, batch_size=512)
    moments = Moments(jnp.array(found.center, float), jnp.full(2, found.extent**2))
    init, step = iteration.make_iteration(
        algorithm, process, energy, optimizer(), config, event_shape=(2,), reference=moments
    )
    state = init(net.init(keys[1], jnp.zeros((1, 2)), jnp.zeros(1)))
    state, history, *_ = loop.train(
        step,
        state,
        keys[2],
        label="sampler",
        calls=ITERATIONS.value,
        prepare=cosine(2e-3),
        shown=SHOWN,
        configuration=loop.values(SEED, STEPS) | {"iteration": config},
    )
    return process, algorithm.generator(state.train.ema_params, energy), state.moments, history


def main(_):
    started = time.time()
    keys = jax.random.split(jax.random.key(SEED.value), 7)
    data, _ = moons.sample_data(keys[0], 20_000)
    V = learn_potential(keys[1], data)
    learned = time.time()
    energy = potential.boltzmann_energy(V, EPSILON)
    process, generator, moments, history = learn_sampler(keys[2], energy)
    trained = time.time()
    if not cluster.is_main():
        return

    num = NUM_SAMPLES.value
    # From V itself: transport to t = 1, then Langevin dynamics at its own temperature.
    temperature = functools.partial(schedules.temperature, tau_star=0.8, epsilon_max=EPSILON)
    of_v = jax.jit(
        lambda key, x: (
            langevin.sample(
                key, V, x, num_steps=1000, step_size=0.01, temperature=temperature, method="mala"
            ).x
        )
    )(keys[3], moons.sample_prior(keys[4], num))

    @jax.jit
    def sample(key):
        prior_key, step_key = jax.random.split(key)
        x_0 = egm.draw_prior(prior_key, process.path, (num, 2), moments)
        trajectory = egm.simulate(step_key, process, generator, x_0, process.times(100))
        return trajectory.x_1, egm.path_log_weights(energy, process.path, trajectory)

    of_egm, log_weights = sample(keys[5])
    summary = egm.metrics.summarize(log_weights)
    truth = np.asarray(moons.sample_data(keys[6], 3 * num)[0]).reshape(3, num, 2)
    results = {
        "w2_energymatch": w2(of_v, truth[0]),
        "w2_egm": w2(of_egm, truth[0]),
        "w2_between": w2(of_v, of_egm),
        "w2_floor": w2(truth[1], truth[2]),
        "ess": float(summary.ess),
        "log_z": float(summary.log_z),
        "log_z_error": float(summary.log_z_error),
        "log_z_reason": egm.metrics.reason(summary),
        "potential_seconds": learned - started,
        "sampler_seconds": trained - learned,
        "iterations": len(history),
    }
    folder = pathlib.Path(OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    figure(folder / "quickstart.png", energy, data, of_v, of_egm, results)
    results["total_seconds"] = time.time() - started
    floor = f"{results['w2_floor']:.3f} (between two sets of data)"
    rows = [
        ["W2 of samples of V (energymatch) to data", results["w2_energymatch"], floor],
        ["W2 of samples of the sampler (egm) to data", results["w2_egm"], floor],
        ["W2 between the two", results["w2_between"], floor],
        ["ESS / N of the sampler", results["ess"], "1"],
        [
            "log Z of exp(-V/eps)",
            with_error(results["log_z"], results["log_z_error"]),
            results["log_z_reason"],
        ],
    ]
    print(table("\ndata -> energy -> sampler", ["", "", "reference"], rows))
    path = write_results(OUTPUT_DIR.value, results)
    print(f"\n{results['total_seconds']:.0f} s in all. Wrote\n{folder / 'quickstart.png'} and {path}")


def figure(path, energy, data, of_v, of_egm, results):
    """The data, the energy that is learned from them, and samples of it in two ways."""
    edge = np.linspace(-6, 7, 200, dtype=np.float32)
    e = np.asarray(jax.jit(energy)(np.stack(np.meshgrid(edge, edge), axis=-1)))
    fig, axes = plt.subplots(1, 4, figsize=(16, 4.2), layout="constrained")
    axes[0].scatter(*np.asarray(data[:2000]).T, s=2, c="black")
    axes[0].set_title("data")
    shown = axes[1].contourf(edge, edge, e - e.min(), np.arange(0, 31, 2), cmap="viridis_r", extend="max")
    fig.colorbar(shown, ax=axes[1])
    axes[1].set_title(r"energy $V/\epsilon$ learned from them")
    axes[2].scatter(*np.asarray(of_v).T, s=2, c="tab:blue")
    axes[2].set_title(f"energymatch: along -grad V, W2 {results['w2_energymatch']:.2f}")
    axes[3].scatter(*np.asarray(of_egm).T, s=2, c="tab:orange")
    axes[3].set_title(f"egm: from V alone, W2 {results['w2_egm']:.2f}, ESS {results['ess']:.2f}")
    for ax in axes:
        ax.set(xlim=(-6, 7), ylim=(-6, 7), aspect="equal")
    fig.savefig(path, dpi=130)
    plt.close(fig)


if __name__ == "__main__":
    cluster.run(main)
