"""The methods of peers.py that are given an energy and no data, each as its own documentation runs it.

A method is `run(target, width, seconds, seed) -> figures`, the clock begun when it is called, compilation
counted. All but `egm.fit` are told `width`, the deviation of the prior, base or starts that a user who
knows the problem would choose; `egm.fit` has to find it.
"""

from __future__ import annotations

import functools
import time

import energy_targets
import jax
import jax.numpy as jnp
import numpy as np
from peers_table import group_mean, mode_figures
from scipy import integrate

import egm

DRAWS = 10_000
REWEIGHTED = jax.jit(egm.metrics.reweighted_mean)
WIDTHS = {
    "gaussian": 50.0,  # its deviations are 1 to 100
    "funnel": 10.0,
    "many_well": 3.0,
    "mixture_2d": 40.0,  # the box of the means
    "logistic_10": 1.0,  # the model's own prior
    "banana": 5.0,
    "ring": 5.0,
}


def _radius(radius=4.0, width=0.2):
    """The mean radius of the ring, by quadrature."""
    moment = lambda n: integrate.quad(
        lambda r: r**n * np.exp(-0.5 * ((r - radius) / width) ** 2), 0, 2 * radius
    )[0]
    return moment(2) / moment(1)


def target_of(name):
    """A target of energy_targets.py, with one more fact where it has none."""
    target = energy_targets.TARGETS[name]()
    if name in ("gaussian", "banana"):  # pairs of normals, however they are bent: E is half a chi-square
        facts = {"E": (lambda x: target.energy(jnp.asarray(x)), 0.5 * target.space.shape[0])}
        return target._replace(facts=facts)
    if name == "ring":
        return target._replace(facts={"radius": (lambda x: jnp.sqrt(jnp.sum(x**2, -1)), _radius())})
    return target


def figures(target, x, *, log_weights=None, groups=None, expectation=None, log_z=None, error=None, **more):
    """The figures of a row.

    Args:
      target: Target.
      x: [N, D] states, or [G, N, D] of G independent runs or chains with `groups`.
      log_weights: [N]; None for states of equal weight.
      groups: [G, N] values -> (mean, error), for states of several runs.
      expectation: f -> (mean, error); None for the two above.
      log_z, error: with its stated error; None where the method gives none.
      more: ess, evaluations, note.
    """
    flat = np.asarray(x).reshape(-1, np.shape(x)[-1])
    if log_weights is not None:
        log_weights = jnp.asarray(log_weights)
        weights = np.asarray(egm.importance.snis(log_weights).weights)
        expectation = expectation or (lambda f: REWEIGHTED(f(flat), log_weights))
    else:
        weights = np.full(len(flat), 1 / len(flat))
        expectation = expectation or (lambda f: groups(np.asarray(f(flat)).reshape(np.shape(x)[:2])))
    facts = {
        name: [*(float(v) for v in expectation(f)), float(exact)] for name, (f, exact) in target.facts.items()
    }
    modes = None
    if target.modes is not None:
        function, masses = target.modes
        modes = mode_figures(np.asarray(function(flat)), weights, masses)
    given = {"log_z": log_z, "error": error, "exact": target.log_z, "facts": facts, "modes": modes}
    return given | {"ess": None, "evaluations": None, "note": ""} | more


def egm_fit(target, width, seconds, seed):
    """One call; the width is not used."""
    del width
    sampler = egm.fit(jax.random.key(seed), target.energy, target.space, seconds=seconds, progress=False)
    draw = sampler.sample(jax.random.key(1000 + seed), DRAWS)
    return figures(
        target,
        draw.x,
        log_weights=draw.log_weights,
        expectation=draw.expectation,
        log_z=sampler.log_z,
        error=sampler.log_z_error,
        ess=sampler.ess,
        note=f"{len(sampler.history['ess'])} iterations, "
        + ("converged" if sampler.converged else f"not converged: {sampler.reason}"),
    )


LEAPFROGS, MOVES, TARGET_ESS, RUNS = 10, 5, 0.9, 4


def _smc_kernel(target, width):
    """A step of adaptive tempering from N(0, width^2 I) by HMC."""
    import blackjax
    import blackjax.smc.resampling as resampling
    from blackjax.smc import adaptive_tempered

    prior = lambda x: jnp.sum(jax.scipy.stats.norm.logpdf(x, 0.0, width))
    return adaptive_tempered.init, adaptive_tempered.build_kernel(
        prior,
        lambda x: -target.energy(x) - prior(x),
        blackjax.hmc.build_kernel(),
        blackjax.hmc.init,
        resampling.systematic,
        TARGET_ESS,
    )


def _smc_run(target, width):
    """run(key, num) -> (particles, log Z, levels, last level), compiled for each number of particles.

    Between levels the mass matrix is that of the particles, as in blackjax.smc.tuning, and the step grows or
    shrinks with the acceptance.
    """
    import blackjax.smc.resampling as resampling

    dim = target.space.shape[0]
    init, kernel = _smc_kernel(target, width)

    def step(carry):
        key, state, log_z, size, count = carry
        key, k_step = jax.random.split(key)
        spread = jnp.var(state.particles, axis=0) + 1e-10
        parameters = {
            "step_size": size[None],
            "inverse_mass_matrix": spread[None],
            "num_integration_steps": jnp.array([LEAPFROGS]),
        }
        state, info = kernel(k_step, state, MOVES, parameters)
        accepted = jnp.mean(info.update_info.acceptance_rate)
        size = jnp.clip(size * jnp.exp(accepted - 0.8), 1e-4, 2.0)
        return key, state, log_z + info.log_likelihood_increment, size, count + 1

    @functools.partial(jax.jit, static_argnums=1)
    def run(key, num):
        k_start, key = jax.random.split(key)
        state = init(width * jax.random.normal(k_start, (num, dim)))
        begin = (key, state, jnp.zeros(()), jnp.asarray(dim**-0.25), 0)
        going = lambda carry: (carry[1].tempering_param < 1) & (carry[-1] < 2000)
        _, state, log_z, _, count = jax.lax.while_loop(going, step, begin)
        # The last level's weights are not yet in the particles.
        last = resampling.systematic(jax.random.fold_in(key, 1), state.weights, num)
        return state.particles[last], log_z, count, state.tempering_param

    return run


def blackjax_smc(target, width, seconds, seed):
    """Independent populations, as large as the time allows, whose spread is the error."""
    began = time.perf_counter()
    run = _smc_run(target, width)

    def timed(seed, num):
        start = time.perf_counter()
        found = jax.block_until_ready(run(jax.random.key(seed), num))
        return found, time.perf_counter() - start

    # A small run compiled, the same again for its time, then populations that fill what is left.
    num = 250
    _, first = timed(seed, num)
    _, took = timed(seed + 1, num)
    left = seconds - (time.perf_counter() - began) - 1.2 * max(first - took, 0.0)
    num = int(np.clip(250 * 0.9 * left / took / RUNS, 250, 200_000))
    found = [timed(seed + 100 + i, num)[0] for i in range(RUNS)]
    log_z = jnp.stack([f[1] for f in found])
    count = sum(int(f[2]) for f in found)
    level = min(float(f[3]) for f in found)
    keep = np.random.default_rng(seed).choice(num, min(num, DRAWS), replace=False)
    return figures(
        target,
        np.stack([np.asarray(f[0])[keep] for f in found]),
        groups=group_mean,
        log_z=float(egm.importance.log_mean_exp(log_z)),
        error=float(egm.metrics.log_mean_error(log_z)),
        evaluations=count * num * MOVES * LEAPFROGS,
        note=f"{RUNS} runs of {num:,} particles" + ("" if level >= 1 else f", stopped at level {level:.2g}"),
    )


def _chain_mean(values):
    """(mean, Monte-Carlo standard error) of [C, N] values of chains, by numpyro's effective sample size."""
    from numpyro.diagnostics import effective_sample_size

    values = np.asarray(values, np.float64)
    number = float(effective_sample_size(values)) if values.std() > 0 else float("nan")
    return float(values.mean()), float(values.std() / np.sqrt(number))


def numpyro_nuts(target, width, seconds, seed):
    """Four chains from N(0, width^2 I), 1,000 steps of warm-up, then states until the time is over."""
    from numpyro.diagnostics import split_gelman_rubin
    from numpyro.infer import MCMC, NUTS

    began = time.perf_counter()
    starts = width * jax.random.normal(jax.random.key(100 + seed), (4, target.space.shape[0]))
    chains = MCMC(
        NUTS(potential_fn=target.energy),
        num_warmup=1000,
        num_samples=500,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    states, count, took = [], 0, 0.0
    chains.run(jax.random.key(seed), init_params=starts, extra_fields=("num_steps",))
    while True:
        states.append(np.asarray(chains.get_samples(group_by_chain=True)))
        count += int(np.sum(chains.get_extra_fields()["num_steps"]))
        if time.perf_counter() - began + took > seconds:
            break
        chains.post_warmup_state = chains.last_state
        start = time.perf_counter()
        chains.run(chains.post_warmup_state.rng_key, extra_fields=("num_steps",))
        jax.block_until_ready(chains.last_state)
        took = time.perf_counter() - start
    x = np.concatenate(states, axis=1)
    r_hat = float(np.max(split_gelman_rubin(x)))
    note = f"r-hat {r_hat:.2f}" + ("" if r_hat < 1.01 else ": not mixed")
    note += f", 4 chains of {x.shape[1]:,}"
    return figures(
        target,
        x,
        groups=_chain_mean,
        evaluations=count,
        note=note,
    )


def flowjax_elbo(target, width, seconds, seed):
    """A coupling flow of rational quadratic splines by the ELBO, then importance weights."""
    import equinox as eqx
    import optax
    import paramax
    from flowjax.bijections import Affine, RationalQuadraticSpline
    from flowjax.distributions import StandardNormal, Transformed
    from flowjax.flows import coupling_flow
    from flowjax.train import step
    from flowjax.train.losses import ElboLoss

    began = time.perf_counter()
    k_flow, k_fit, k_draw = jax.random.split(jax.random.key(seed), 3)
    dim = target.space.shape[0]
    spline = RationalQuadraticSpline(knots=8, interval=4)
    flow = coupling_flow(k_flow, base_dist=StandardNormal((dim,)), transformer=spline, invert=False)
    flow = Transformed(flow, Affine(jnp.zeros(dim), jnp.full(dim, width / 2)))
    loss = ElboLoss(lambda x: -target.energy(x), num_samples=256)
    # The loop of flowjax.train.fit_to_key_based_loss, which counts steps, until time is over.
    is_fixed = lambda leaf: isinstance(leaf, paramax.NonTrainable)
    params, static = eqx.partition(flow, eqx.is_inexact_array, is_leaf=is_fixed)
    optimizer, steps = optax.adam(5e-4), 0
    given = {"optimizer": optimizer, "loss_fn": loss}
    opt_state = optimizer.init(params)
    while time.perf_counter() - began < 0.93 * seconds:
        k_fit, k_step = jax.random.split(k_fit)
        params, opt_state, value = step(params, static, key=k_step, opt_state=opt_state, **given)
        steps += int(np.isfinite(value.item()))  # waits for it
    flow = eqx.combine(params, static)
    x, log_q = eqx.filter_jit(lambda f, k: f.sample_and_log_prob(k, (DRAWS,)))(flow, k_draw)
    return weighted(target, x, -target.energy(x) - log_q, steps * 256 + DRAWS, f"{steps:,} steps")


def weighted(target, x, log_weights, evaluations, size):
    """Figures of states with importance weights, by the same rule for all methods."""
    summary = jax.jit(egm.metrics.summarize)(jnp.asarray(log_weights))
    return figures(
        target,
        x,
        log_weights=log_weights,
        log_z=float(summary.log_z),
        error=float(summary.log_z_error),
        ess=float(summary.ess),
        evaluations=evaluations,
        note=egm.metrics.reason(summary) or f"weights are reliable, {size}",
    )


METHODS = {
    "egm.fit": egm_fit,
    "blackjax SMC": blackjax_smc,
    "numpyro NUTS": numpyro_nuts,
    "flowjax ELBO": flowjax_elbo,
}
