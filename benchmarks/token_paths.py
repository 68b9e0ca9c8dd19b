"""Masks against uniform tokens: the same network, loss and seconds on each path, exact log Z beside it.

  python benchmarks/token_paths.py [--seconds=10] [--seeds=1] [--targets=ising_5,ising_10,potts_5]

Seconds are those of this process on all its cores (`time.process_time`), compiling left out, so that other
work on the machine does not count. Each arm trains by the weighted conditional loss with Rao-Blackwell
targets, L network calls a trajectory, and is then simulated with the averaged parameters:

  any order   masked, one random site a step: no error from the steps, L calls
  masks       masked, `JumpProcess`: each site by itself in each of L and of 4 L steps
  uniform     `UniformPath`, `JumpProcess`: the same, every site may change in every step

Closed conditionals that an energy offers to masked states (`revealed_conditionals`) are hidden, so that the
network learns everything; `closed` is any order with them. The first table needs no network: the exact
denoiser of the 3x3 Ising lattice, and what the number of steps alone costs.
"""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

import egm
from egm import algorithms, energies, heads, iteration, metrics, networks, paths, processes

SECONDS = flags.DEFINE_float("seconds", 10.0, "Seconds of training an arm.")
SEEDS = flags.DEFINE_integer("seeds", 1, "Seeds an arm.")
TARGETS = flags.DEFINE_list("targets", ["ising_5", "ising_10", "potts_5"], "Which targets.")
ARMS = flags.DEFINE_list("arms", ["closed", "any order", "masks", "uniform"], "Which arms.")
MULTIPLES = flags.DEFINE_list(
    "multiples", ["1", "4"], "Steps of the figures, in multiples of L; masks, uniform."
)
NUM_SAMPLES = flags.DEFINE_integer("num_samples", 2000, "Trajectories of the figures.")


def potts_log_z(side, colours, beta):
    """Trace of the row-to-row matrix to the power `side`, float64."""
    rows = np.array(list(itertools.product(range(colours), repeat=side)))
    inside = np.sum(rows == np.roll(rows, 1, 1), 1)
    between = np.sum(rows[:, None] == rows[None], -1)
    matrix = np.exp(beta * (between + 0.5 * inside[:, None] + 0.5 * inside[None] - 2 * side))
    values = np.linalg.eigvalsh(matrix)
    return 2 * side**2 * beta + np.log(np.sum(values**side))


def make_target(name):
    """(energy, side, exact log Z)."""
    kind, side = name.split("_")
    side = int(side)
    if kind == "ising":
        energy = energies.Ising(side, {5: 0.4, 10: 0.2}[side])
        return energy, side, float(energy.log_partition())
    beta = 0.7
    energy = energies.Potts(side**2, energies.lattices.square((side, side)), 3, inverse_temperature=beta)
    return energy, side, potts_log_z(side, 3, beta)


class Plain:
    """An energy with its single-site conditionals, and nothing for masked states."""

    def __init__(self, energy):
        self.energy = energy
        self.single_site_conditionals = energy.single_site_conditionals
        self.conditional_evaluations = getattr(energy, "conditional_evaluations", lambda num_sites: 1)

    def __call__(self, x):
        return self.energy(x)


def make_arm(name, energy, side):
    """(energy, process, algorithm, network) of an arm."""
    vocab, sites = energy.vocab_size, side**2
    path = paths.UniformPath(vocab) if name == "uniform" else paths.MaskedPath(vocab)
    visibility = path.kappa if name == "uniform" else None
    network = networks.TorusDenoiser(side, vocab, 16, expansion=1, flip=vocab == 2, visibility=visibility)
    if name in ("closed", "any order"):
        order = processes.orders.random_sites(sites)
        process, head = processes.OrderedProcess(path, order), heads.DenoiserHead(path, order)
    else:
        process, head = processes.JumpProcess(path), heads.DenoiserHead(path)
    target = energy if name == "closed" else Plain(energy)
    return target, process, algorithms.Weighted(path, head, network.apply), network


def train(name, energy, side, seed):
    """(figures by the number of steps, gradient steps taken)."""
    sites = side**2
    energy, process, algorithm, network = make_arm(name, energy, side)
    config = iteration.IterationConfig(
        num_simulated=256, buffer_size=2560, num_gradient_steps=50, batch_size=128, num_times=sites,
        ema_decay=0.99, weight_clip=5.0,
    )  # fmt: skip
    optimizer = optax.adam(optax.cosine_decay_schedule(4e-3, 4000, 0.05))
    init, step = iteration.make_iteration(algorithm, process, energy, optimizer, config, event_shape=(sites,))
    k_params, k_train, k_report = jax.random.split(jax.random.key(seed), 3)
    params = network.init(k_params, jnp.zeros((1, sites), jnp.int32), jnp.zeros(1))
    state, step = init(params), jax.jit(step)
    step = step.lower(k_train, state).compile()
    began, count = time.process_time(), 0
    while time.process_time() - began < SECONDS.value:
        state, report = step(jax.random.fold_in(k_train, count), state)
        jax.block_until_ready(report)
        count += 1
    generator = algorithm.generator(egm.training.average(state.train), energy)
    lengths = [sites * int(m) for m in (["1"] if name in ("closed", "any order") else MULTIPLES.value)]
    return {n: figures(k_report, energy, process, generator, sites, n) for n in lengths}, 50 * count


def figures(key, energy, process, generator, sites, num_steps):
    """The summary of the path weights, and the process seconds of a thousand trajectories."""

    @jax.jit
    def run(key):
        keys = egm.random.example_keys(key, NUM_SAMPLES.value)
        x_0 = egm.draw_prior(keys, process.path, (sites,))
        trajectory = egm.simulate(keys, process, generator, x_0, process.times(num_steps))
        return egm.path_log_weights(energy, process.path, trajectory)

    run = run.lower(key).compile()
    began = time.process_time()
    log_weights = jax.block_until_ready(run(key))
    return metrics.summarize(log_weights), (time.process_time() - began) * 1000 / NUM_SAMPLES.value


def exact_steps(side=3, beta=0.4, steps=(9, 18, 36)):
    """What the steps cost a perfect denoiser: log Z - E log w in nats, and ESS, of both jump processes."""
    energy, sites = energies.Ising(side, beta), side**2
    states = jnp.asarray(list(itertools.product(range(2), repeat=sites)), jnp.int32)
    minus_e, one_hot = -energy(states), jax.nn.one_hot(states, 2)

    def denoiser(path, x, t):
        same = jnp.sum(x[:, None] == states[None], axis=-1)
        if isinstance(path, paths.MaskedPath):
            fits = same + jnp.sum(path.masked(x), axis=-1)[:, None] == sites
            log_p = jnp.where(fits, 0.0, -jnp.inf)
        else:
            kappa = path.kappa(t)[:, None]
            log_p = same * jnp.log1p(2 * kappa / (1 - kappa))
        return jnp.einsum("ns,slv->nlv", jax.nn.softmax(log_p + minus_e[None], axis=-1), one_hot)

    print("exact denoiser, 3x3, beta .4: log Z - E log w, ESS")
    for num_steps in steps:
        cells = []
        for path in (paths.MaskedPath(2), paths.UniformPath(2)):
            process = processes.JumpProcess(path)
            summary, _ = figures(
                jax.random.key(0), energy, process, lambda x, t, p=path: denoiser(p, x, t), sites, num_steps
            )
            cells.append(f"{energy.log_partition() - summary.elbo:.3f}, {summary.ess:.3f}")
        print(f"| {num_steps} steps | {' | '.join(cells)} |", flush=True)


def main(_):
    exact_steps()
    print("| target | arm | seed | gradient steps | steps | ESS | log Z - exact | log Z - ELBO | s / 1000 |")
    for name in TARGETS.value:
        energy, side, log_z = make_target(name)
        for seed in range(SEEDS.value):
            for arm in ARMS.value:
                found, count = train(arm, energy, side, seed)
                for num_steps, (s, seconds) in found.items():
                    print(
                        f"| {name} | {arm} | {seed} | {count} | {num_steps} | {s.ess:.3f} "
                        f"| {s.log_z - log_z:+.4f} ± {s.log_z_error:.4f} | {log_z - s.elbo:.3f} "
                        f"| {seconds:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    app.run(main)
