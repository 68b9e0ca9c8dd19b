"""What an estimate is worth before there is a network: proposals and horizons with the exact phi.

  python benchmarks/bootstrap_proposals.py [--side=4] [--inverse_temperature=.4] [--num_samples=1000]

On a small Ising lattice the log-marginal is known (transfer matrix, clamped at the visible sites), so that
what is left is the error of the estimate alone. For every time t, step r - t and proposal:

  target    mean squared error of the denoiser's target against the exact posterior, at masked sites
  revealed  the same of the target's share of each token where a target is positive, weighted by its mass:
            what cross-entropy, which learns nothing from a target of zero, sees of it
  phi       root mean squared error of the log-marginal, in nats
  ess       effective samples, as a fraction of K

Proposals: `path` is the paper's q_{r|t}, `matched` reveals sites with the marginal's odds, `shared` reveals
the same sites in all samples (`egm.proposals`). The last rows are the naive estimate.
"""

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from egm_step import exact_g

import egm
from egm import bootstrap, horizons, proposals

SIDE = flags.DEFINE_integer("side", 4, "Side of the lattice.")
BETA = flags.DEFINE_float("inverse_temperature", 0.4, "Inverse temperature.")
K = flags.DEFINE_integer("num_samples", 1000, "K.")
BATCH = flags.DEFINE_integer("batch", 64, "States at each time.")
SEED = flags.DEFINE_integer("seed", 0, "Seed.")
TIMES, STEPS = (0.02, 0.1, 0.3), (0.01, 0.03, 0.25, 0.5)
PROPOSALS = {
    "path": None,
    "matched": proposals.IndependentReveal(),
    "shared": proposals.SharedReveal(),
}


def errors(path, estimate, x, t, denoiser, g):
    """(target, revealed, phi, ess) of an estimate."""
    hidden = np.asarray(path.masked(x))
    came, true = np.asarray(estimate.generator)[hidden], np.asarray(denoiser)[hidden]
    mass = came.sum(-1)
    share = came / np.where(mass > 0, mass, 1.0)[:, None]
    revealed = np.average(np.mean((share - true) ** 2, axis=-1), weights=mass)
    phi = np.asarray(estimate.log_marginal - path.log_normalizer(x, t, jnp.ones_like(t)))
    off = np.sqrt(np.mean((phi - np.asarray(g)) ** 2))
    return np.mean((came - true) ** 2), revealed, off, float(np.mean(np.asarray(estimate.ess)))


def main(_):
    energy, path = egm.energies.Ising(SIDE.value, BETA.value), egm.paths.MaskedPath(2)
    g = exact_g(energy)
    phi = bootstrap.boundary(energy, g, path)
    k_data, k_noise, k_estimate = jax.random.split(jax.random.key(SEED.value), 3)
    x_1 = energy.sample(k_data, BATCH.value)

    @jax.jit
    def exact(x, t):
        return path.local_generator(g, x, t), g(x, t)

    print(f"{SIDE.value}x{SIDE.value}, inverse temperature {BETA.value}, K = {K.value}, exact phi")
    print(f"{'t':>5} {'r - t':>11} {'proposal':>9} {'target':>9} {'revealed':>9} {'phi':>7} {'ess':>6}")
    for t in TIMES:
        x = path.sample(k_noise, x_1, t)
        times = jnp.full(BATCH.value, t)
        matching = float(horizons.MatchingTime().look_ahead(path, x, times)[0]) - t
        nats = float(horizons.Nats().look_ahead(path, x, times)[0]) - t
        denoiser, true_g = exact(x, times)
        steps = [(str(h), h) for h in STEPS] + [
            (f"{nats:.2f} Nats", nats),
            (f"{matching:.2f} match", matching),
        ]
        rows = [(name, t + h, label) for name, h in steps for label in PROPOSALS] + [("naive", 1.0, "path")]
        for name, r, label in rows:

            @jax.jit
            def run(x, times, r, proposal=PROPOSALS[label]):
                return egm.estimate(
                    k_estimate, path, phi, x, times, r, num_samples=K.value, chunk_size=128, proposal=proposal
                )

            found = errors(path, run(x, times, jnp.full(BATCH.value, r)), x, times, denoiser, true_g)
            print(
                "{:5} {:>11} {:>9} {:9.3g} {:9.3g} {:7.3f} {:6.3f}".format(t, name, label, *found), flush=True
            )


if __name__ == "__main__":
    app.run(main)
