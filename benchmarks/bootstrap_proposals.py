"""What an estimate is worth before there is a network: proposals and horizons with the exact phi.

  python benchmarks/bootstrap_proposals.py [--side=4] [--inverse_temperature=.4] [--num_samples=1000]
  python benchmarks/bootstrap_proposals.py --continuous --num_samples=32 --batch=256

On a small Ising lattice the log-marginal is known (transfer matrix, clamped at the visible sites), so that
what is left is the error of the estimate alone. For every time t, step r - t and proposal:

  target    mean squared error of the denoiser's target against the exact posterior, at masked sites
  revealed  the same of the target's share of each token where a target is positive, weighted by its mass:
            what cross-entropy, which learns nothing from a target of zero, sees of it
  phi       root mean squared error of the log-marginal, in nats
  ess       effective samples, as a fraction of K

Proposals: `path` is the paper's q_{r|t}, `matched` reveals sites with the marginal's odds, `shared` reveals
the same sites in all samples (`egm.proposals`). The last rows are the naive estimate.

With --continuous a mixture of 4 normals of width .5 in 10 dimensions, on the variance exploding path, with
the exact phi; r is `Nats` ahead. For every noise level of x_t, stage and proposal:

  score     mean squared error of the score's target times b, b^2 = sigma_t^2 + .5^2, a coordinate
  phi, ess  as above

Proposals: `path` is q_{r|t}, `guided` the mixture's own step, `untrained` that of a normal distribution with
the mixture's moments, `off` the mixture's with errors of .3/b in the score and of a factor up to 2 in the
variance.
"""

import functools

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
CONTINUOUS = flags.DEFINE_bool("continuous", False, "Normals in place of the lattice.")
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


class Normals:
    """M normals of one width in D dimensions: phi and what three generators say, on a path with alpha = 1."""

    def __init__(self, path, num=4, dim=10, width=0.5, spread=1.5):
        self.path, self.width = path, width
        self.means = spread * jax.random.normal(jax.random.key(0), (num, dim))
        self.center, self.extent = jnp.mean(self.means, 0), jnp.sqrt(width**2 + jnp.var(self.means, 0).mean())

    def phi(self, x, t):
        total = self.path.variance(t) + self.width**2
        away = jnp.sum((x[:, None] - self.means[None]) ** 2, axis=-1) / total[:, None]
        return jax.nn.logsumexp(-0.5 * away, axis=-1) - 0.5 * x.shape[-1] * jnp.log(total)

    def exact(self, x, t):
        log_weights = jnp.zeros((x.shape[0], len(self.means)))
        means = jnp.broadcast_to(self.means[None], (x.shape[0], *self.means.shape))
        return egm.typing.TargetMixture(log_weights, means, jnp.full(means.shape, self.width**2))

    def untrained(self, x, t):
        shape = (x.shape[0], 1, x.shape[1])
        center = jnp.broadcast_to(self.center[None, None], shape)
        return egm.typing.TargetMixture(jnp.zeros(shape[:2]), center, jnp.full(shape, self.extent**2))

    def off(self, x, t):
        n = self.path.variance(t)[:, None]
        score = jax.grad(lambda y: jnp.sum(self.phi(y, t)))(x)
        spread = n + n**2 * jax.vmap(lambda y, u: jnp.diag(self._hessian(y, u)))(x, t)
        wrong = score + 0.3 * jnp.sqrt(2 / (n + self.width**2)) * jnp.sin(3 * x)
        velocity = self.path.velocity_from_score(wrong, x, t)
        return egm.typing.Gaussian(velocity, wrong, spread * 2 ** jnp.sin(2 * x))

    def _hessian(self, x, t):
        return jax.hessian(lambda y: self.phi(y[None], t[None])[0])(x)


def continuous():
    path = egm.paths.VarianceExplodingPath(0.1, 10.0, length_scale=0.5)
    target = Normals(path)
    k_part, k_noise, k_estimate = jax.random.split(jax.random.key(SEED.value), 3)
    part = jax.random.randint(k_part, (BATCH.value,), 0, len(target.means))
    guides = {"guided": target.exact, "off": target.off, "untrained": target.untrained}
    arms = {"path": None} | {name: proposals.Guided(fn) for name, fn in guides.items()}

    def run(proposal, x, t, r):
        return egm.estimate(
            k_estimate, path, target.phi, x, t, r, num_samples=K.value, chunk_size=128, proposal=proposal
        )

    runs = {name: jax.jit(functools.partial(run, proposal)) for name, proposal in arms.items()}
    exact = jax.jit(jax.grad(lambda x, t: jnp.sum(target.phi(x, t))))
    print(f"4 normals of width .5 in 10 dimensions, K = {K.value}, exact phi")
    print(f"{'noise':>5} {'nats':>5} {'proposal':>9} {'score':>9} {'phi':>7} {'ess':>6}")
    for level in (5.0, 1.5, 0.5):
        t = 1 - np.log1p(level**2 / path.sigma_min**2) / (2 * np.log(path.sigma_max / path.sigma_min))
        t, spread = jnp.full(BATCH.value, t, float), np.sqrt(level**2 + target.width**2)
        x = target.means[part] + spread * jax.random.normal(k_noise, (BATCH.value, target.means.shape[1]))
        phi, score = target.phi(x, t), exact(x, t)
        for nats in (1.25, 2.5, 5.0, 10.0):
            r = horizons.Nats(nats).look_ahead(path, x, t)
            for name, fn in runs.items():
                found = fn(x, t, r)
                off = path.score_from_velocity(found.generator, x, t) - score
                errors = spread**2 * jnp.mean(off**2), jnp.sqrt(jnp.mean((found.log_marginal - phi) ** 2))
                row = "{:5} {:5} {:>9} {:9.2g} {:7.2g} {:6.3f}"
                print(row.format(level, nats, name, *map(float, errors), float(found.ess.mean())), flush=True)


def main(_):
    if CONTINUOUS.value:
        return continuous()
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
