"""The public callables of `egm` with valid arguments and their kinds, for `test_bad_input_generated`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bad_input_kinds import (
    KEY,
    anything,
    array,
    choice,
    entry,
    flag,
    function,
    key,
    model,
    number,
    record,
    time,
    tokens,
    whole,
)
from hypothesis import strategies as st
from like_networkx import LikeNetworkx

import egm
from egm import (
    algorithms,
    bootstrap,
    buffer,
    divergences,
    energies,
    estimators,
    heads,
    horizons,
    importance,
    iteration,
    losses,
    metrics,
    networks,
    paths,
    processes,
    proposals,
    random,
    scales,
    smoothness,
    symmetry,
    training,
)

B, D, L, V = 2, 3, 3, 3
MASKED, LINEAR = paths.MaskedPath(V), paths.LinearPath()
UNIFORM = paths.UniformPath(V)
VE = paths.VarianceExplodingPath(0.1, 5.0)
CENTRED = paths.CenteredPath(LINEAR, D, 1)
PRODUCT = paths.ProductPath({"x": LINEAR, "h": MASKED})
H = jnp.array([[3, 1, 3], [0, 3, 2]])
X = jnp.array([[0.1, -0.3, 0.2], [1.0, -0.5, -0.5]])
MIXED = {"x": X, "h": H}
DATA = {"x": X, "h": jnp.array([[0, 1, 2], [0, 1, 2]])}
ONES = jnp.ones(B)


def bowl(x):
    return 0.5 * jnp.sum(x**2, axis=-1)


def count(x):
    return jnp.sum(x, axis=-1).astype(float)


def mixed_energy(x):
    return bowl(x["x"]) + count(x["h"])


def zero(x, t):
    return 0.0 * t


def uniform(x, t):
    return jnp.full((*x.shape, V), 1 / V)


def still(x, t):
    return 0.0 * x


def parts(x, t):
    one = jnp.zeros((x.shape[0], 1, x.shape[1]))
    return egm.typing.TargetMixture(one[..., 0], one, one + 1.0)


def both(x, t):
    return {"x": still(x["x"], t), "h": uniform(x["h"], t)}


NOT_A_STATE = (X, {"x": X}, {"x": H, "h": H}, {"x": X, "h": X}, {"x": X[:1], "h": H})
SPACES = (
    (MASKED, H, DATA["h"], count, uniform),
    (UNIFORM, DATA["h"], DATA["h"], count, uniform),
    (LINEAR, X, X, bowl, still),
    (PRODUCT, MIXED, DATA, mixed_energy, both),
)


def state(value, axes=(), min_ndim=1, max_ndim=None):
    """A state of MASKED, LINEAR or PRODUCT: whatever the value is one of."""
    if isinstance(value, dict):
        return anything(value, None, 1.0, *NOT_A_STATE)
    if jnp.issubdtype(value.dtype, jnp.integer):
        return tokens(value, V, axes, min_ndim, max_ndim)
    return array(value, axes, min_ndim, max_ndim)


def path(value):
    return record(value, more=(paths.MaskedPath, processes.JumpProcess(MASKED), KEY))


# Paths: constructors, then the methods of each.

ENTRIES = [
    entry("egm.paths.MaskedPath", paths.MaskedPath, vocab_size=whole(3, 2), power=number(1.0, 0)),
    entry("egm.paths.UniformPath", paths.UniformPath, vocab_size=whole(3, 2), power=number(1.0, 0)),
    entry("egm.paths.LinearPath", paths.LinearPath, sigma=number(1.0, 0), t_min=number(0.1, 0, 1)),
    entry(
        "egm.paths.WrappedPath", paths.WrappedPath,
        sigma_min=number(0.1, 0, 5.0), sigma_max=number(5.0, 0.1), length_scale=number(1.0, 0),
        circular=anything((True, False), 3, (), (1.0, 2.0), ("a",), optional=True),
    ),
    entry(
        "egm.paths.VarianceExplodingPath", paths.VarianceExplodingPath,
        sigma_min=number(0.1, 0, 5.0), sigma_max=number(5.0, 0.1), length_scale=number(1.0, 0),
    ),
    entry(
        "egm.paths.VariancePreservingPath", paths.VariancePreservingPath,
        beta_min=number(0.1, 0, 20.0, high_strict=True), beta_max=number(20.0, 0.1, strict=False),
        length_scale=number(1.0, 0),
    ),
    entry(
        "egm.paths.CenteredPath", paths.CenteredPath,
        path=record(LINEAR, more=(MASKED, CENTRED)), num_particles=whole(3, 2), spatial_dim=whole(1),
    ),
    entry(
        "egm.paths.ProductPath", paths.ProductPath,
        paths=anything({"x": LINEAR}, 3, None, paths.LinearPath, {"x": X}),
    ),
]  # fmt: skip


def after(value=0.8):
    return time(value, (B,), (0.5, 0.1))


def before(value=0.5):
    return time(value, (B,), (0.8, 0.9))


for p, x_t, x_1, energy, _ in SPACES:
    x_r, kind = jax.tree.map(lambda a: a[None], x_1), type(p).__name__
    ENTRIES += [
        entry(f"{kind}.times", p.times, num_steps=whole(4)),
        entry(f"{kind}.batch_shape", p.batch_shape, x=state(x_t)),
        entry(f"{kind}.prior_log_density", p.prior_log_density, x_0=state(x_t)),
        entry(f"{kind}.sample", p.sample, key=key(), x_1=state(x_1), t=time(0.5, (B,))),
        entry(
            f"{kind}.noise", p.noise,
            key=key(), x_r=state(x_1), r=time(0.8, (B,), (0.2,)), t=time(0.5, (B,), (0.9,)),
        ),
        entry(
            f"{kind}.log_noising", p.log_noising,
            x_t=state(x_t, (-1,)), t=before(), x_r=state(x_r, (-1,)), r=after(),
        ),
        entry(
            f"{kind}.propose", p.propose,
            key=key(), x_t=state(x_t), t=before(), r=after(), num_samples=whole(2),
        ),
        entry(f"{kind}.log_normalizer", p.log_normalizer, x_t=state(x_t), t=before(), r=after()),
        entry(
            f"{kind}.conditional_generator", p.conditional_generator,
            x_t=state(x_t, (-1,)), t=before(), x_r=state(x_r, (-1,)), r=after(),
        ),
        entry(
            f"{kind}.local_generator", p.local_generator,
            log_density=model(lambda x, t, e=energy: e(x), (71,)), x_t=state(x_t), t=time(0.5, (B,)),
        ),
    ]  # fmt: skip
ENTRIES += [
    entry("egm.simulate.draw_prior", egm.draw_prior, path=path(LINEAR),
          key=anything(KEY, jax.random.PRNGKey(0), jax.random.split(KEY, (2, 2)), 3, None),
          shape=anything((2, 3), 3.5, None, (2.0, 3), ("a",), ())),
    entry("LinearPath.sample_prior", LINEAR.sample_prior, key=key(),
          shape=anything((2, 3), 3.5, None, (2.0, 3), ("a",), ())),
    entry("LinearPath.draw_prior", LINEAR.draw_prior, key=key(),
          shape=anything((2, 3), 3.5, None, (2.0, 3), ("a",), ())),
    entry("MaskedPath.sample_prior", lambda shape: MASKED.sample_prior(KEY, shape),
          shape=anything((2, 3), 3.5, None, (2.0, 3), ("a",), (-1, 2))),
    entry("LinearPath.velocity_from_score", LINEAR.velocity_from_score,
          score=array(X, (-1,), 1), x=array(X, (-1,), 1), t=time(0.5, (B,), (0.0,))),
    entry("LinearPath.score_from_velocity", LINEAR.score_from_velocity,
          velocity=array(X, (-1,), 1), x=array(X, (-1,), 1), t=time(0.5, (B,), (0.0,))),
    entry("CenteredPath.sample", CENTRED.sample, key=key(), x_1=array(X, (-1,), 1), t=time(0.5, (B,))),
]  # fmt: skip

# Processes, simulation, estimates.

JUMP, ANY = processes.JumpProcess(MASKED), processes.AnyOrderProcess(MASKED)
FLOW, DIFFUSION = processes.FlowProcess(LINEAR), processes.DiffusionProcess(LINEAR)
VECTOR_JUMP = processes.VectorJumpProcess(LINEAR)
TOGETHER = processes.ProductProcess({"x": DIFFUSION, "h": JUMP})
TIMES = jnp.linspace(0.1, 1.0, 3)
ENTRIES += [
    entry("LinearPath.conditional_rate", LINEAR.conditional_rate, x_t=state(X), t=before(),
          x_r=state(X, (-1,)), r=after()),
]  # fmt: skip
BAD_TIMES = (
    None, 3, jnp.array([0.0, 0.6, 0.5]), jnp.array([0.5]), jnp.array([0.5, np.nan]), jnp.array([0.5, 1.5]),
    jnp.array([-0.5, 0.5]), jnp.zeros((2, 2)), jnp.array([0, 1]), jnp.array([0.5, 0.5]),
)  # fmt: skip

ENTRIES += [
    entry("egm.processes.JumpProcess", processes.JumpProcess, path=record(MASKED, more=(LINEAR,))),
    entry("egm.processes.AnyOrderProcess", processes.AnyOrderProcess,
          path=record(MASKED, more=(LINEAR,))),
    entry("egm.processes.FlowProcess", processes.FlowProcess, path=record(LINEAR, more=(MASKED,)),
          method=choice("heun"), max_dimension=whole(8)),
    entry("egm.processes.DiffusionProcess", processes.DiffusionProcess,
          path=record(LINEAR, more=(MASKED,)), coefficient=anything(1.0, -1.0, np.nan, np.inf, optional=True),
          data_scale=number(1.0, 0, optional=True)),
    entry("egm.processes.VectorJumpProcess", processes.VectorJumpProcess,
          path=record(LINEAR, more=(MASKED, CENTRED))),
    entry("VectorJumpProcess.rate", VECTOR_JUMP.rate, x_t=array(X, (0, 1), 2, 2), generator=function(parts),
          t=time(0.5, (B,))),
    entry("egm.processes.SuperpositionProcess", processes.SuperpositionProcess,
          aliases={"processes": "weights"}, data_scale=number(1.0, 0, optional=True),
          processes=anything((FLOW, DIFFUSION), 3, None, (JUMP,), (), (FLOW,),
                             (FLOW, processes.FlowProcess(VE))),
          weights=anything((0.5, 0.5), None, 1.0, (1.0,), (0.5, 0.6), (-0.5, 1.5), (np.nan, 0.5),
                           ("a", 1.0))),
    entry("egm.processes.ProductProcess", processes.ProductProcess,
          processes=anything({"x": FLOW}, 3, None, processes.FlowProcess, {"x": LINEAR})),
    entry("egm.processes.OrderedProcess", processes.OrderedProcess, path=record(MASKED, more=(LINEAR,)),
          order=record(processes.orders.random_sites(L))),
]  # fmt: skip
for process, x_t, generator, shape in (
    (JUMP, H, uniform, (B, L, V)), (ANY, H, uniform, (B, L, V)), (FLOW, X, still, (B, D)),
    (DIFFUSION, X, still, (B, D)), (TOGETHER, MIXED, both, None), (VECTOR_JUMP, X, parts, None),
):  # fmt: skip
    kind = type(process).__name__
    acts = function(generator) if shape is None else model(generator, shape)
    needs_key = {} if process is FLOW else {"key": key(B)}
    ENTRIES += [
        entry(
            f"{kind}.step",
            (lambda q=process, **a: q.step(a.pop("key", KEY), a["x_t"], a["generator"], a["t"], a["r"])),
            x_t=state(x_t, min_ndim=2, max_ndim=2), generator=acts, t=before(), r=after(), **needs_key,
        ),
        entry(
            f"{kind}.log_ratio", process.log_ratio, x_t=state(x_t, (-1,), 2, 2),
            x_r=state(x_t, (-1,), 2, 2), generator=acts, t=before(), r=after(),
        ),
        entry(
            f"{kind}.reverse_step",
            (lambda q=process, g=generator, **a: q.reverse_step(a.pop("key", KEY), a["x_r"], g, a["t"],
            a["r"])),
            x_r=state(x_t, min_ndim=2, max_ndim=2), t=before(), r=after(), **needs_key,
        ),
    ]  # fmt: skip
TRAJECTORY = egm.Trajectory(X, X, jnp.zeros(B), None, jnp.zeros(B))
for p, process, x_t, x_1, energy, generator, shape in (
    (MASKED, JUMP, H, DATA["h"], count, uniform, (B, L, V)),
    (LINEAR, DIFFUSION, X, X, bowl, still, (B, D)),
):
    phi = model(lambda x, r, e=energy: e(x), (B * 4,))
    ENTRIES += [
        entry(
            "egm.estimators.estimate", egm.estimate, traced=True, key=key(B), path=path(p),
            log_density=phi, x_t=state(x_t, (), 2, 2), t=before(), r=after(), num_samples=whole(4),
            chunk_size=whole(128, optional=True, more=[st.integers(1, 127)]),
            proposal=record(proposals.Guided(generator), optional=True, more=(MASKED,)),
            values=function(lambda x, r: x, optional=True),
        ),
        entry(
            "egm.simulate.simulate", egm.simulate, traced=True, aliases={"generator_fn": "generator"},
            key=key(B), process=record(process, more=(p, type(process))), generator_fn=model(generator,
            shape),
            x_0=state(x_t, (), 2, 2), times=anything(TIMES, *BAD_TIMES), save_states=flag(False),
        ),
        entry(
            "egm.simulate.simulate_reverse", egm.simulate_reverse, traced=True,
            aliases={"generator_fn": "generator"}, key=key(B),
            process=record(process, more=(p, type(process))),
            generator_fn=function(generator), x_1=state(x_1, (), 2, 2), times=anything(TIMES, *BAD_TIMES),
            save_states=flag(False),
        ),
        entry(
            "egm.simulate.path_log_weights", egm.path_log_weights, energy=model(energy, (B,)), path=path(p),
            trajectory=record(TRAJECTORY._replace(x_0=x_t, x_1=x_1)),
        ),
    ]  # fmt: skip

# The kernel.

LOG_W = jnp.array([0.1, -0.5, 0.3, 0.0])
ESTIMATE = egm.Estimate(X, jnp.zeros(B), ONES, jnp.ones(B, bool), jnp.zeros(B, jnp.int32))


def matched(value, min_ndim=1):
    """One of two arrays of the same shape."""
    return array(value, tuple(range(value.ndim)), min_ndim)


LOGITS = jnp.zeros((B, L, V))
ENTRIES += [
    entry("egm.smoothness.probe_segments", smoothness.probe_segments, energy=model(bowl, (B,)),
          start=array(X, min_ndim=2, max_ndim=2), stop=array(X, axes=(0, 1), min_ndim=2, max_ndim=2)),
    entry("egm.smoothness.is_smooth", smoothness.is_smooth, max_jump=number(0.1, 0, strict=False),
          probe=record(smoothness.Probe(jnp.zeros(B), jnp.zeros(B, bool))),
          max_mismatch=number(0.1, 0, strict=False)),
    entry("egm.importance.snis", importance.snis, log_weights=array(LOG_W, min_ndim=1),
          axis=anything(0, 1, -2, None, 0.0, 7)),
    entry("egm.importance.log_mean_exp", importance.log_mean_exp, log_weights=array(LOG_W, min_ndim=1),
          axis=anything(0, 1, -2, None, 0.0, 7)),
    entry("egm.importance.nonfinite", importance.nonfinite, log_weights=array(LOG_W)),
    entry("egm.importance.systematic", importance.systematic, key=key(),
          log_weights=array(LOG_W, min_ndim=1, max_ndim=1), num=whole(3)),
    entry("egm.importance.clipped_probabilities", importance.clipped_probabilities,
          log_weights=array(LOG_W, min_ndim=1, max_ndim=1), clip=number(2.0, 0, optional=True)),
    entry("egm.divergences.squared_error", divergences.squared_error, target=matched(X),
          prediction=matched(X)),
    entry("egm.divergences.itakura_saito", divergences.itakura_saito, target=matched(X),
          log_prediction=matched(X)),
    entry("egm.divergences.denoiser_kl", divergences.denoiser_kl, target=matched(LOGITS),
          logits=matched(LOGITS), site_weights=array(X, (0, 1), 1, 2, optional=True)),
    entry("egm.divergences.rate_kl", divergences.rate_kl, target=matched(LOGITS), log_rates=matched(LOGITS)),
    entry("egm.divergences.exponential", divergences.exponential, target=matched(ONES),
          prediction=matched(ONES), max_difference=number(20.0, 0)),
    entry("egm.divergences.squared_difference", divergences.squared_difference, target=matched(ONES),
          prediction=matched(ONES)),
    entry("egm.losses.generator_loss", losses.generator_loss, divergence=function(divergences.squared_error),
          estimate=record(ESTIMATE), output=matched(X), aliases={"output": "prediction"}),
    entry("egm.losses.log_marginal_loss", losses.log_marginal_loss, target=matched(ONES),
          prediction=matched(ONES),
          valid=anything(jnp.ones(B, bool), jnp.ones(3, bool), 3, ONES, optional=True),
          divergence=function(divergences.exponential)),
    entry("egm.random.example_keys", random.example_keys, key=key(B), batch_size=whole(B, 0)),
    entry("egm.estimators.check_chunk_size", estimators.check_chunk_size,
          chunk_size=whole(128, optional=True, more=[st.integers(1, 127)])),
    entry("egm.random.split", random.split, keys=anything(KEY, 3, None, jax.random.PRNGKey(0), X),
          num=whole(2)),
]  # fmt: skip

# Bootstrapping.

ENTRIES += [
    entry("egm.horizons.FixedStep", horizons.FixedStep, step=number(0.1, 0, 1, high_strict=True)),
    entry("egm.horizons.Nats", horizons.Nats, nats=number(2.5, 0)),
    entry("egm.proposals.IndependentReveal", proposals.IndependentReveal,
          probability=number(0.4, 0, 1, high_strict=True, optional=True)),
    entry("egm.proposals.Guided", proposals.Guided, generator=function(still, optional=True),
          tokens=record(proposals.SharedReveal(), more=(MASKED,))),
    entry("Guided.prepare", lambda generator: proposals.Guided(generator).prepare(LINEAR, X, ONES / 4, ONES),
          generator=model(still, (B, D))),
    entry("DiffusionProcess.forward_kernel", DIFFUSION.forward_kernel, x_t=state(X, min_ndim=2, max_ndim=2),
          generator=model(still, (B, D)), t=before(), r=after()),
    entry("egm.symmetry.flips", symmetry.flips, host=True, key=key(), energy=function(count),
          path=path(paths.MaskedPath(2)), num_states=whole(4), aliases={"event_shape": ("shape", "x")},
          event_shape=anything((L,), 3, None, ("a",), (-1,), (2.5,), {"h": 2})),
    entry("egm.bootstrap.intermediate_time", bootstrap.intermediate_time, t=array(ONES * 0.5),
          step=number(0.1, 0, 1, high_strict=True)),
    entry("egm.bootstrap.terminal", bootstrap.terminal, energy=function(bowl)),
    entry("egm.bootstrap.relative_boundary", bootstrap.relative_boundary, energy=function(bowl),
          g=function(zero), path=path(LINEAR)),
    entry("egm.bootstrap.boundary", bootstrap.boundary, energy=function(bowl), g=function(zero),
          path=path(LINEAR)),
    entry("egm.bootstrap.LocalGenerator", bootstrap.LocalGenerator, path=path(LINEAR),
          log_density=function(zero)),
    entry("egm.bootstrap.with_tokens", bootstrap.with_tokens, x=array(H, (), 2, 2, integers=True),
          sites=array(jnp.zeros(B, jnp.int32), (0,), 1, 1, integers=True), vocab_size=whole(V)),
    entry("egm.bootstrap.num_local_states", bootstrap.num_local_states, path=path(LINEAR),
          event_shape=anything((D,), 3, None, (), ("a",), (2.5,))),
]  # fmt: skip
for p, x_t, g in ((MASKED, H, zero), (LINEAR, X, lambda x, t: -bowl(x)), (PRODUCT, MIXED, zero)):
    ENTRIES.append(
        entry(
            "egm.bootstrap.local_target", bootstrap.local_target, traced=True,
            aliases={"boundary_g": "log_density"}, key=key(B),
            boundary_g=function(g) if p is PRODUCT else model(g, (7,)), path=path(p),
            x_t=state(x_t, (), 2, 2), t=time(ONES * 0.5, (B,)), num_steps=whole(10),
        )
    )  # fmt: skip

# Buffer and metrics.

FILLED = buffer.add(buffer.init(4, {"x": X[0]}), {"x": X})
PROBABILITIES = jnp.full(4, 0.25)
ENTRIES += [
    entry("egm.buffer.init", buffer.init, capacity=whole(4), example=anything({"x": X[0]}, None, 3, {})),
    entry("egm.buffer.filled", buffer.filled, buffer=record(FILLED)),
    entry("egm.buffer.add", buffer.add, buffer=record(FILLED),
          items=anything({"x": X}, None, 3, {"x": X[:, :2]}, {"y": X}, {"x": jnp.zeros((5, D))}, {"x": 1.0}),
          valid=anything(jnp.ones(B, bool), jnp.ones(3, bool), 3, ONES, optional=True)),
    entry("egm.buffer.draw", buffer.draw, probabilities=array(PROBABILITIES, min_ndim=1, max_ndim=1),
          uniforms=array(ONES * 0.5, min_ndim=1, max_ndim=1)),
    entry("egm.buffer.sample", buffer.sample, buffer=record(FILLED),
          probabilities=array(PROBABILITIES, (0,), 1, 1), uniforms=array(ONES * 0.5, min_ndim=1, max_ndim=1)),
    entry("egm.metrics.summarize", metrics.summarize, log_weights=array(LOG_W, min_ndim=1, max_ndim=1)),
    entry("egm.metrics.log_mean_error", metrics.log_mean_error,
          log_weights=array(LOG_W, min_ndim=1, max_ndim=1)),
    entry("egm.importance.reliability", importance.reliability,
          log_weights=array(LOG_W, min_ndim=1, max_ndim=1)),
    entry("egm.metrics.reason", metrics.reason, host=True, record=record(metrics.summarize(LOG_W)),
          level=anything(0.5, "a", [0.5, 1.0], np.nan, optional=True)),
    entry("egm.metrics.evidence_upper_bound", metrics.evidence_upper_bound,
          reverse_log_weights=array(LOG_W, min_ndim=1, max_ndim=1)),
    entry("egm.metrics.reweighted_mean", metrics.reweighted_mean, values=array(LOG_W, (0,), 1, whole=True),
          log_weights=array(LOG_W, (), 1, 1)),
    entry("egm.metrics.jackknife", metrics.jackknife, statistic=function(lambda m: m),
          values=array(LOG_W, (0,), 1, whole=True), log_weights=array(LOG_W, (), 1, 1), num_blocks=whole(2,
          2, 4)),
    entry("egm.metrics.mode_masses", metrics.mode_masses, x=array(X, (1,), 2, 2), modes=array(X, (1,), 2, 2),
          log_weights=array(ONES, (0,), 1, 1, optional=True)),
    entry("egm.metrics.wasserstein_1d", metrics.wasserstein_1d, a=array(LOG_W, (0,), 1, 1),
          b=array(LOG_W, (0,), 1, 1), p=number(1.0, 1, strict=False)),
    entry("egm.metrics.sample_distance", metrics.sample_distance, host=True,
          distance=function(metrics.wasserstein_1d), generated=array(LOG_W, (0,), 1, whole=True),
          exact=array(LOG_W, (0,), 1, whole=True), num_sets=whole(2, 1, 4)),
    entry("egm.metrics.distance_floor", metrics.distance_floor, host=True,
          distance=function(metrics.wasserstein_1d), exact=array(LOG_W, (), 1, whole=True),
          set_size=whole(2, 1, 2),
          num_pairs=whole(1), seed=whole(0, 0)),
]  # fmt: skip

# Heads, algorithms, the loop.

SCORE, DENOISER = heads.ScoreHead(LINEAR), heads.DenoiserHead(MASKED)
MIXTURE = heads.MixtureHead(LINEAR, 2)
RAW = jnp.zeros((B, D, 2))
PAIR = heads.ProductHead({"x": SCORE, "h": DENOISER})
HALF = jnp.full(B, 0.5)


def apply(params, x, t):
    return jnp.zeros((*x.shape, V))


CONFIG = iteration.IterationConfig(num_simulated=4, num_times=3, num_gradient_steps=1, batch_size=4)
WEIGHTED = algorithms.Weighted(MASKED, DENOISER, apply)
COMMON = dict(path=path(MASKED), head=record(DENOISER, more=(MASKED,)), apply=function(apply))
ENTRIES += [
    entry("egm.heads.DenoiserHead", heads.DenoiserHead, path=record(MASKED, more=(LINEAR,))),
    entry("DenoiserHead.generator", DENOISER.generator, output=matched(LOGITS), x_t=tokens(H, V, (0, 1), 2,
          2)),
    entry("DenoiserHead.divergence", DENOISER.divergence, target=matched(LOGITS),
          output=matched(LOGITS), x_t=tokens(H, V, (0, 1), 2, 2)),
    entry("DenoiserHead.generator", heads.DenoiserHead(UNIFORM).generator, output=matched(LOGITS),
          x_t=tokens(DATA["h"], V, (0, 1), 2, 2, mask=False), t=time(HALF, (B,))),
    entry("egm.heads.ScoreHead", heads.ScoreHead, path=record(LINEAR, more=(MASKED,)),
          length_scale=number(1.0, 0), data_scale=number(1.0, 0), center=anything(0.0, None, np.nan, ("a",)),
          energy_skip=flag(True), target_score=flag(True), max_target_norm=number(1.0, 0, optional=True),
          max_drift_norm=number(1.0, 0, optional=True)),
    entry("ScoreHead.generator", SCORE.generator, output=array(RAW, (0, 1, 2), 1), x_t=array(X, (0, 1), 2, 2),
          t=time(HALF, (B,)), energy=model(bowl, (B,), optional=True), aliases={"x_t": ("t", "output")}),
    entry("ScoreHead.divergence", SCORE.divergence, target=array(X, (1,), 1), output=array(RAW, (0, 1, 2), 1),
          x_t=array(X, (0, 1), 2, 2), t=time(HALF, (B,)), energy=model(bowl, (B,), optional=True),
          aliases={"target": "velocity", "x_t": ("t", "output")}),
    entry("egm.heads.MixtureHead", heads.MixtureHead, path=record(LINEAR, more=(MASKED,)), num_parts=whole(3),
          data_scale=number(1.0, 0), center=anything(0.0, None, np.nan, ("a",))),
    entry("MixtureHead.generator", MIXTURE.generator, output=array(jnp.zeros((B, D, 6)), (0, 1, 2), 1),
          x_t=array(X, (0, 1), 2, 2)),
    entry("egm.heads.ProductHead", heads.ProductHead,
          heads=anything({"x": SCORE, "h": DENOISER}, None, 3, {"x": LINEAR}),
          weights=anything({"x": 1.0, "h": 1.0}, 3, {"x": 1.0}, {"x": 1.0, "h": -1.0}, {"x": np.nan,
          "h": 1.0},
                           optional=True)),
    entry("ProductHead.divergence", PAIR.divergence,
          target=anything({"x": X, "h": LOGITS}, None, 3, {"x": X}), t=time(HALF, (B,)),
          output=anything({"x": RAW, "h": LOGITS}, None, 3, {"x": RAW}), x_t=state(MIXED),
          aliases={"x_t": "t"}),
    entry("egm.symmetry.even", symmetry.even, apply=function(apply), path=path(MASKED)),
    entry("egm.algorithms.Weighted", algorithms.Weighted, **COMMON, energy_targets=flag(True),
          draws_by_weight=flag(True)),
    entry("egm.algorithms.Naive", algorithms.Naive, **COMMON, num_samples=whole(4),
          chunk_size=whole(128, optional=True), draws_by_weight=flag(False)),
    entry("egm.algorithms.Bootstrap", algorithms.Bootstrap, **COMMON, apply_log_marginal=function(apply),
          num_samples=whole(4), step=number(0.1, 0, 1, high_strict=True), chunk_size=whole(128,
          optional=True),
          skip=function(lambda e: e, optional=True), draws_by_weight=flag(False),
          proposal=record(proposals.Guided(), optional=True, more=(MASKED,)),
          divergence=function(divergences.squared_difference)),
    entry("egm.algorithms.LocalBootstrap", algorithms.LocalBootstrap, path=path(MASKED),
          apply=function(apply),
          num_steps=whole(5), skip=function(lambda e: e, optional=True), draws_by_weight=flag(False)),
    entry("egm.metrics.interatomic_distances", metrics.interatomic_distances,
          x=array(X, (1,), 1), num_particles=anything(3, None, 1, 2, 2.5), spatial_dim=whole(1)),
    entry("egm.metrics.aligned_squared_distances", metrics.aligned_squared_distances,
          x=array(X, (1,), 1), y=array(X, (1,), 1), num_particles=anything(3, None, 1, 2, 7),
          spatial_dim=whole(1)),
    entry("egm.iteration.IterationConfig", iteration.IterationConfig, num_simulated=whole(4),
          buffer_size=whole(40, 4), num_gradient_steps=whole(1), batch_size=whole(4), num_times=whole(3),
          ema_decay=number(0.9, 0, 1, strict=False), weight_clip=number(20.0, 1, strict=False, optional=True),
          ess_target=number(0.2, 0, optional=True), fit_prior=flag(True), num_moves=whole(0, 0)),
    entry("egm.iteration.make_iteration", iteration.make_iteration,
          algorithm=record(WEIGHTED, more=(MASKED, DENOISER)),
          process=record(ANY, more=(MASKED, JUMP, processes.AnyOrderProcess(paths.MaskedPath(2)))[::2]),
          energy=function(count), optimizer=record(optax.sgd(0.1)), config=record(CONFIG),
          event_shape=anything((L,), 3, None, ("a",), {"x": (3,)}, (-1,), (2.5,)),
          reference=anything(None, 3, (1.0,), X, optional=True)),
    entry("egm.training.make_train_step",
          lambda ema_decay: training.make_train_step(apply, optax.sgd(0.1), ema_decay=ema_decay),
          ema_decay=number(0.9, 0, 1, strict=False)),
    entry("egm.scales.find_scales", scales.find_scales, host=True, key=key(), energy=model(bowl, (4,)),
          event_shape=anything((D,), 3, None, ("a",), (-1,), (2.5,), {"h": (2,)}, (2, 3)),
          search_radius=number(1.0, 0), vocab_size=whole(2, 2, optional=True),
          project=function(lambda x: x, optional=True), num_starts=whole(4), num_steps=whole(2),
          energy_range=number(10.0, 0)),
]  # fmt: skip

# Energies.

RBM, LJ = energies.GaussianBernoulliRBM(), energies.LennardJones(2, 2)
GAUSSIANS = energies.GaussianMixture(((0.0, 1.0), (1.0, 0.0)))
ISING = energies.Ising(2, 0.4)
GLASS = energies.SpinGlass(4, ((0, 1), (1, 2), (2, 3)), 0.5)
POTTS = energies.Potts(4, ((0, 1), (1, 2), (2, 3)), 2)
CUT = energies.MaximumCut(4, ((0, 1), (1, 2), (2, 3)))
ON_GRAPHS = ("SpinGlass", "Potts", "MaximumCut", "IndependentSet")
SET = energies.IndependentSet(4, ((0, 1), (1, 2), (2, 3)))
SITES = jnp.zeros((B, 4), jnp.int32)
RBM_STATE = {"x": jnp.zeros((B, 2)), "h": jnp.zeros((B, 3), jnp.int32)}
BAD_RBM = (
    None, 3, X, {"x": RBM_STATE["x"]}, {"x": X, "h": RBM_STATE["h"]}, {"x": RBM_STATE["x"], "h": SITES},
    {"x": RBM_STATE["x"], "h": jnp.zeros((B, 3))}, {"x": RBM_STATE["h"], "h": RBM_STATE["h"]},
    {"x": RBM_STATE["x"], "h": jnp.zeros((3, 3), jnp.int32)}, {"x": "a", "h": RBM_STATE["h"]},
    {"x": RBM_STATE["x"], "h": None},
)  # fmt: skip
CHAINS = anything(energies.ChainSettings(), None, 3, {})
ENTRIES += [
    entry("egm.energies.Ising", energies.Ising, side=whole(3, 2),
          inverse_temperature=number(0.4, 0, strict=False), coupling=number(1.0), field=number(0.0)),
    entry("Ising.__call__", ISING, x=array(SITES, (1,), 1, integers=True)),
    entry("Ising.single_site_conditionals", ISING.single_site_conditionals,
          x=array(SITES, (1,), 1, integers=True)),
    entry("Ising.revealed_conditionals", ISING.revealed_conditionals,
          x=array(SITES, (1,), 1, integers=True)),
    entry("egm.energies.SpinGlass", energies.SpinGlass, num_sites=whole(3, 2),
          edges=anything(((0, 1), (1, 2)), None, 3, (), ((0, 9),), ((0, 0),), ((0, 1, 2),), (0, 1), "ab"),
          couplings=anything(1.0, None, "a", np.nan, (1.0,), (1.0, np.inf)),
          fields=anything(0.0, None, "a", np.nan, (1.0,), (1.0, np.inf, 0.0)),
          inverse_temperature=number(0.4, 0, strict=False)),
    entry("SpinGlass.edwards_anderson", energies.SpinGlass.edwards_anderson, host=True, key=key(),
          shape=anything((2, 3), None, 3, (), ("a",), (0, 2), (2.0, 3)),
          inverse_temperature=number(0.4, 0, strict=False), couplings=choice("normal")),
    entry("egm.energies.Potts", energies.Potts, num_sites=whole(3, 2),
          edges=anything(((0, 1), (1, 2)), None, 3, (), ((0, 9),), ((0, 0),), ((0, 1, 2),), (0, 1), "ab"),
          vocab_size=whole(3, 2), couplings=anything(1.0, None, "a", np.nan, (1.0,), (1.0, np.inf)),
          field=number(0.0), inverse_temperature=number(0.4, 0, strict=False)),
    entry("egm.energies.MaximumCut", energies.MaximumCut, num_sites=whole(3, 2),
          edges=anything(((0, 1), (1, 2)), None, 3, (), ((0, 9),), ((0, 0),), ((0, 1, 2),), (0, 1), "ab"),
          weights=anything(1.0, None, "a", np.nan, (1.0,), (1.0, np.inf)),
          inverse_temperature=number(0.4, 0, strict=False)),
    entry("egm.energies.IndependentSet", energies.IndependentSet, num_sites=whole(3, 2),
          edges=anything(((0, 1), (1, 2)), None, 3, (), ((0, 9),), ((0, 0),), ((0, 1, 2),), (0, 1), "ab"),
          weights=anything(1.0, None, "a", np.nan, (1.0,), (1.0, -1.0, 1.0)),
          penalty=anything(2.0, "a", np.nan, 0.5, optional=True),
          inverse_temperature=number(0.4, 0, strict=False)),
    entry(("MaximumCut.from_graph", "IndependentSet.from_graph", "IndependentSet.cliques"),
          lambda graph, inverse_temperature: [f(graph, inverse_temperature) for f in (
              energies.MaximumCut.from_graph, energies.IndependentSet.from_graph,
              energies.IndependentSet.cliques)],
          graph=anything(LikeNetworkx(4, ((0, 1), (1, 2))), None, 3, ((0, 1),)),
          inverse_temperature=number(0.4, 0, strict=False)),
    entry("MaximumCut.from_graph", energies.MaximumCut.from_graph,
          graph=anything(LikeNetworkx(4, ((0, 1), (1, 2))), None),
          weight=anything("weight", 3, b"w", text=True)),
    entry(("MaximumCut.cut", "IndependentSet.size", "IndependentSet.repaired"),
          lambda x: [f(x) for f in (CUT.cut, SET.size, SET.repaired)],
          x=array(SITES, (1,), 1, integers=True)),
    entry("egm.energies.WithColouring", energies.WithColouring, energy=function(ISING),
          colours=anything((0, 1, 1, 0), None, 3, (), ("a",), (0.5, 1.0), (-1, 0))),
    entry("egm.energies.WithPairs", energies.WithPairs, energy=function(ISING),
          biases=anything(np.zeros((4, 2)), np.zeros(4), np.zeros((4, 1)), np.full((4, 2), np.nan)),
          tables=anything(np.zeros((4, 2, 4, 2)), np.zeros((4, 4)), np.full((4, 2, 4, 2), np.inf))),
    entry(("WithPairs.single_site_conditionals", "WithPairs.masked_conditionals",
           "WithPairs.revealed_conditionals"),
          lambda x: [f(x) for e in (energies.WithPairs(ISING, np.zeros((4, 2)), np.zeros((4, 2, 4, 2))),)
                     for f in (e.single_site_conditionals, e.masked_conditionals, e.revealed_conditionals)],
          x=array(SITES, (1,), 2, 2, integers=True)),
    entry("egm.energies.pair_terms", energies.pair_terms, host=True, energy=function(ISING),
          num_sites=whole(4), vocab_size=whole(2, 2)),
    entry("WithColouring.revealed_conditionals",
          energies.WithColouring(ISING, (0, 1, 1, 0)).revealed_conditionals,
          x=array(SITES, (1,), 2, 2, integers=True)),
    entry(tuple(f"{kind}.{name}" for kind in ON_GRAPHS for name in
                ("__call__", "single_site_conditionals", "revealed_conditionals")),
          lambda x: [f(x) for e in (GLASS, POTTS, CUT, SET)
                     for f in (e, e.single_site_conditionals, e.revealed_conditionals)],
          x=array(SITES, (1,), 1, integers=True)),
    entry(tuple(f"{kind}.sample" for kind in ON_GRAPHS),
          lambda key, n: [e.sample(key, n) for e in (GLASS, POTTS, CUT, SET)],
          host=True, key=key(), n=whole(2)),
    entry("Ising.sample", ISING.sample, host=True, key=key(), n=whole(2)),
    entry("egm.energies.GaussianMixture", energies.GaussianMixture,
          means=anything(((0.0, 1.0),), None, 3.0, (1.0,), ((1.0,), (1.0, 2.0)), ((np.nan, 0.0),), ()),
          sigma=number(1.0, 0), weights=anything((1.0,), 1.0, (-1.0,), (0.5, 0.5), ("a",), (np.inf,),
          optional=True)),
    entry("GaussianMixture.__call__", GAUSSIANS, x=array(X[:, :2], (1,), 1)),
    entry("GaussianMixture.marginal_log_density", GAUSSIANS.marginal_log_density, x=array(X[:, :2], (1,), 1),
          alpha=anything(0.5, None, jnp.ones(3), "a"), variance=anything(0.5, None, jnp.ones(3), "a")),
    entry("GaussianMixture.sample", GAUSSIANS.sample, key=key(), n=whole(2)),
    entry("egm.energies.GaussianBernoulliRBM", energies.GaussianBernoulliRBM,
          weights=anything(RBM.weights, None, 3.0, (1.0,), ((np.nan,) * 3,) * 2, ((1.0, 0.0), (1.0, 0.0))),
          visible_bias=anything(RBM.visible_bias, None, 0.0, (1.0,), (np.inf, 0.0), ("a", "b")),
          hidden_bias=anything(RBM.hidden_bias, None, 0.0, (1.0,), (np.inf, 0.0, 0.0)), sigma=number(1.0, 0)),
    entry("GaussianBernoulliRBM.__call__", RBM, state=anything(RBM_STATE, *BAD_RBM)),
    entry("GaussianBernoulliRBM.single_site_conditionals", RBM.single_site_conditionals,
          state=anything(RBM_STATE, *BAD_RBM)),
    entry("GaussianBernoulliRBM.sample", RBM.sample, key=key(), n=whole(2)),
    entry("egm.energies.JointGaussianMixture", energies.JointGaussianMixture, dim=whole(3),
          mode=number(1.0, 0), sigma=number(0.3, 0)),
    entry("egm.energies.CoupledJointMixture", energies.CoupledJointMixture, dim=whole(3, 2),
          coupling=number(0.3), mode=number(1.0, 0), sigma=number(0.4, 0), correlation=number(0.5, -1, 1)),
    entry("egm.energies.DoubleWell4", energies.DoubleWell4,
          num_particles=whole(4, 2), spatial_dim=whole(2), reference=CHAINS),
    entry("DoubleWell4.__call__", energies.DoubleWell4(2, 2), x=array(SITES.astype(float), (1,), 1)),
    entry("egm.energies.JointDoubleWell", energies.JointDoubleWell,
          num_particles=whole(4, 2), spatial_dim=whole(2), reference=CHAINS),
    entry("egm.energies.LennardJones", energies.LennardJones, num_particles=whole(4, 2),
          spatial_dim=whole(2), core_radius=number(0.5, 0, 1), reference=CHAINS),
    entry("LennardJones.__call__", LJ, x=array(SITES.astype(float), (1,), 1)),
    entry("egm.energies.WithConditionals", energies.WithConditionals, energy=function(count),
          vocab_size=whole(2, 2), part=anything(None, 3, 1.0, X, optional=True, text=True)),
    entry("WithConditionals.single_site_conditionals",
          energies.WithConditionals(count, V).single_site_conditionals,
          x=array(DATA["h"], (), 2, 2, integers=True)),
]  # fmt: skip

# Networks: their fields and inputs, as `init` sees them.

GRID = jnp.zeros((B, 4), jnp.int32)
WIDE = jnp.zeros((B, 4))


def made(cls, *inputs):
    """A function of fields and of the inputs called by name that makes the network's parameters."""

    def make(**values):
        state = [values.pop(name) for name in inputs]
        return cls(**values).init(KEY, *state)

    return make


GAUSSIAN = dict(
    gaussian_path=record(LINEAR, more=(MASKED,)), length_scale=number(1.0, 0), data_scale=number(1.0, 0)
)
LAYERS = dict(width=whole(4), depth=whole(1))
NETS = [
    ("tokens.MLPDenoiser", dict(vocab_size=whole(2, 2), flip=flag(False), **LAYERS), GRID),
    ("tokens.MLPLogMarginal", dict(vocab_size=whole(2, 2), flip=flag(False), **LAYERS), GRID),
    ("tokens.TorusDenoiser", dict(side=whole(2, 2), vocab_size=whole(2, 2), channels=whole(4), depth=whole(1),
                                  expansion=whole(1), flip=flag(False)), GRID),
    ("tokens.TorusLogMarginal", dict(side=whole(2, 2), vocab_size=whole(2, 2), channels=whole(4),
                                     depth=whole(1), expansion=whole(1), flip=flag(False)), GRID),
    ("vectors.MLPVector", dict(**GAUSSIAN, **LAYERS, center=anything(0.0, None, (1.0, 2.0), np.nan),
                               num_frequencies=whole(2, 0, optional=True), num_outputs=whole(2)), WIDE),
    ("vectors.CoordinateVector", dict(**GAUSSIAN, **LAYERS, channels=whole(4), context=whole(2),
                                      num_outputs=whole(2)), WIDE),
    ("fields.TorusVector", dict(**GAUSSIAN, side=whole(2, 2), channels=whole(4), depth=whole(1),
                                expansion=whole(1), num_outputs=whole(2)), WIDE),
    ("vectors.MLPVectorLogMarginal", dict(**GAUSSIAN, **LAYERS, center=anything(0.0, None, (1.0, 2.0),
          np.nan),
                                          num_frequencies=whole(2, 0, optional=True)), WIDE),
    ("particles.EGNN", dict(**GAUSSIAN, **LAYERS, num_particles=whole(2), spatial_dim=whole(2),
                            num_outputs=whole(2), edge_width=whole(4)), WIDE),
    ("particles.EGNNLogMarginal", dict(**GAUSSIAN, **LAYERS, num_particles=whole(2), spatial_dim=whole(2),
                                       edge_width=whole(4)), WIDE),
]  # fmt: skip
for name, fields, x in NETS:
    cls = getattr(networks, name.split(".")[1])
    integers = x is GRID
    inputs = {"x": array(x, (1,) if "Torus" in name or "EGNN" in name else (), 2, 2, integers=integers)}
    if not integers:
        inputs["t"] = time(jnp.full(B, 0.5), (B,))
    ENTRIES.append(
        entry(f"egm.networks.{name.split('.')[-1]}", made(cls, *inputs), traced=True, **fields, **inputs)
    )
MIXED_NETS = [
    ("MLPMixed", dict(vocab_size=whole(V, 2), **GAUSSIAN, **LAYERS, num_outputs=whole(2), flip=flag(False))),
    ("MLPMixedLogMarginal", dict(vocab_size=whole(V, 2), **GAUSSIAN, **LAYERS)),
    ("EGNNMixed", dict(vocab_size=whole(V, 2), num_particles=whole(3), spatial_dim=whole(1), **GAUSSIAN,
                       **LAYERS, num_outputs=whole(2), edge_width=whole(4))),
    ("EGNNMixedLogMarginal", dict(vocab_size=whole(V, 2), num_particles=whole(3), spatial_dim=whole(1),
                                  **GAUSSIAN, **LAYERS, edge_width=whole(4))),
]  # fmt: skip
for name, fields in MIXED_NETS:
    inputs = {"state": state(MIXED), "t": time(jnp.full(B, 0.5), (B,))}
    call = made(getattr(networks, name), *inputs)
    parts = {"state": ("x", "h", "types", "t")}
    ENTRIES.append(entry(f"egm.networks.{name}", call, traced=True, aliases=parts, **fields, **inputs))
CLOSED = dict(
    path=record(LINEAR, more=(MASKED,)), center=anything(0.0, None, np.nan, ("a",)), data_scale=number(1.0,
          0),
    offset=number(0.0),
)  # fmt: skip
ENTRIES += [
    entry("egm.closed_forms.gaussian_log_marginal", networks.gaussian_log_marginal, **CLOSED),
    entry("egm.closed_forms.energy_log_marginal", networks.energy_log_marginal, energy=function(bowl),
          length_scale=number(1.0, 0), max_energy=number(100.0, 0), **CLOSED),
]  # fmt: skip

_CHUNKS = "how `estimate` joins its chunks, which it makes itself"
EXCLUDED = {
    "egm.annealing": "called by a step of make_iteration, which checks",
    "egm.checks": "the checks themselves (tests/test_bad_input.py)",
    "egm.checkpoint": "its configuration and folders: tests/egm/test_checkpoint.py",
    "egm.collectives": "jax names an axis that is not there",
    "egm.devices": "functions made of functions, meshes and layouts, which jax checks",
    "egm.evidence": "its own table of bad input: tests/egm/test_evidence.py",
    "egm.batching": "its own table of bad input: tests/egm/test_spaces.py",
    "egm.modules": "its own table of bad input: tests/egm/test_modules.py",
    "egm.design": "chosen by fit: tests/egm/test_fit.py",
    "egm.stopping": "told by fit: tests/egm/test_fit.py",
    "egm.fitting": "its own table of bad input: tests/egm/test_fit.py",
    "egm.moves": "called with states and energies that others have checked: tests/egm/test_moves.py",
    "egm.rejuvenation": "called by a step of make_iteration, which checks",
    "egm.scales.as_argument": "called by find_length and the pilot, which check",
    "egm.scales.find_length": "called by find_scales and the pilot, which check",
    "egm.refinement": "its own table of bad input: tests/egm/test_fit.py",
    "egm.curves": "energies and layouts that fit has checked: tests/egm/test_fit.py",
    "egm.coordinates": "layouts and maps that fit has checked: tests/egm/test_fit.py",
    "egm.modes": "energies and states that fit has checked: tests/egm/test_modes.py",
    "egm.heads.NormalMixture": "its own table of bad input: tests/egm/test_modes.py",
    "egm.pilot": "energies and layouts that fit has checked: tests/egm/test_fit.py",
    "egm.sampler": "built by fit and load: tests/egm/test_fit.py",
    "egm.spaces": "its own table of bad input: tests/egm/test_spaces.py",
    "egm.transport": "its own table of bad input: tests/egm/test_transport.py",
    "egm.energies.check_colouring": "its own table of bad input: tests/egm/test_orders.py",
    "egm.horizons.MatchingTime": "has no arguments",
    "egm.horizons.nats": "of a path and state that estimate checks: tests/egm/test_proposals.py",
    "egm.importance.reliability": "takes log-weights as snis does: tests/egm/test_reliability.py",
    "egm.importance.running_chunk": _CHUNKS,
    "egm.importance.running_collect": _CHUNKS,
    "egm.importance.running_empty": _CHUNKS,
    "egm.importance.running_finish": _CHUNKS,
    "egm.importance.running_merge": _CHUNKS,
    "egm.metrics.frechet_distance": "its own table of bad input: tests/egm/test_frechet.py",
    "egm.metrics.frechet_distance_of_moments": "its own table of bad input: tests/egm/test_frechet.py",
    "egm.metrics.log_mean_error": "takes log-weights as summarize does: tests/egm/test_reliability.py",
    "egm.metrics.reason": "words for a record, on the host",
    "egm.random.categorical": "its own table of bad input: tests/egm/test_categorical.py",
    "egm.random.derive": "keys and a word: tests/egm/test_random_keys.py",
    "egm.random.per_example": "jax.vmap under another name",
    "egm.proposals.SharedReveal": "has no arguments",
    "egm.proposals.matched_probability": "of times that estimate checks",
    "egm.symmetry.flip": "of states that a network is given: tests/egm/test_proposals.py",
    "egm.paths.GaussianPath": "abstract: its methods are LinearPath's",
    "egm.simulate.draw_prior": "hands on to the path: tests/egm/test_prior_draw.py",
    "egm.summation": "the additions of a scan, whose arguments its body made",
    "egm.target.TargetScale": "the fields of networks and heads, whose entries have them",
    "egm.training": "functions made of functions and optax's parts, which check their own",
}
"""Public names without an entry, and why. Records (named tuples) and Protocols are none of them checked."""
