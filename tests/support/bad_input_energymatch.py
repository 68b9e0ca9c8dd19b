"""The public callables of `energymatch` with valid arguments and their kinds; beside `bad_input_egm`."""

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
    pair,
    record,
    scalar,
    whole,
)

from energymatch import (
    convert,
    couplings,
    curvature,
    images,
    langevin,
    likelihood,
    losses,
    matching,
    negatives,
    posterior,
    potential,
    preprocessing,
    schedules,
    tempering,
)
from energymatch.couplings import costs, plans
from energymatch.likelihood import bridge, priors
from energymatch.losses import contrast
from energymatch.networks import ConvPotential, MLPPotential, UNetViTPotential
from energymatch.posterior import interactions, operators

B, D = 2, 3
X = jnp.array([[0.1, -0.3, 0.2], [1.0, -0.5, -0.5]])
IMAGES = jnp.zeros((B, 4, 4, 1))
MATRIX = jnp.array([[0.0, 1.0], [2.0, 0.5]])
ONES = jnp.ones(B)


def bowl(x):
    return 0.5 * jnp.sum(x**2, axis=tuple(range(1, x.ndim)))


def scaled(params, x):
    return params * bowl(x)


def states(**options):
    """[B, *event] with at least a batch axis."""
    return array(X, options.pop("axes", ()), options.pop("min_ndim", 1), **options)


V = model(bowl, (B,))
PIXELS = np.zeros((3, 4, 4, 1), np.uint8)
IMAGE_SET = images.ImageSet((PIXELS,), np.zeros(3, int))
EPSILON = scalar(1.0, 0)
COUPLED = dict(key=key(B), x_0=states(axes=(0,)), x_1=states(axes=(0,)))
OPTIMIZER = record(optax.sgd(0.1))
PAIRED = dict(x_0=states(axes=(0, 1), min_ndim=2), x_1=states(axes=(0, 1), min_ndim=2))
BATCH = losses.Batch(X, X, X)
PRIOR = priors.gaussian_prior(jnp.zeros(D), 2.0)
BRIDGE = bridge.Bridge(jnp.linspace(0.0, 1.0, 4), jnp.full(3, 0.1))
BAD_BRIDGES = (
    (BRIDGE.schedule, BRIDGE.step_sizes), BRIDGE._replace(schedule=jnp.array([0.0, 0.5, 0.4, 1.0])),
    BRIDGE._replace(schedule=jnp.array([0.1, 0.5, 0.6, 1.0])), BRIDGE._replace(schedule=X),
    BRIDGE._replace(step_sizes=-BRIDGE.step_sizes), BRIDGE._replace(step_sizes=jnp.ones(2)),
    BRIDGE._replace(schedule=None), BRIDGE._replace(step_sizes="a"),
)  # fmt: skip
GROUPS = dict(num_groups=whole(2, 2), num_chains=whole(4, 4, more=()))

ENTRIES = [
    entry("energymatch.schedules.temperature", schedules.temperature,
          t=anything(0.5, None, -0.1, np.nan, True, 1j, jnp.array([-1.0])),
          tau_star=number(0.5, 0, 1, strict=False, high_strict=True), epsilon_max=scalar(1.0, 0,
          strict=False)),
    entry("energymatch.schedules.flow_weight", schedules.flow_weight,
          t=anything(0.5, None, -0.1, np.nan, True, 1j, jnp.array([-1.0])),
          tau_star=number(0.5, 0, 1, strict=False, high_strict=True)),
    entry("energymatch.couplings.exact_assignment", plans.exact_assignment,
          cost_matrix=array(MATRIX, (0, 1),
          2, 2)),
    entry("energymatch.couplings.sinkhorn_plan", plans.sinkhorn_plan, traced=True,
          cost_matrix=array(MATRIX, (0, 1), 2, 2), regularization=scalar(0.05, 0),
          tolerance=number(1e-3, 0, strict=False), max_iterations=whole(5)),
    entry("energymatch.couplings.squared_euclidean", costs.squared_euclidean, x_0=states(axes=(1,)),
          x_1=states(axes=(1,))),
    entry("energymatch.couplings.line_of_sight", costs.line_of_sight,
          landmarks=array(jnp.ones((8, D)), (), 2),
          strength=number(5.0, 0, strict=False), radius=number(0.5, 0, optional=True)),
    entry("energymatch.couplings.independent", couplings.independent, **COUPLED),
    entry("energymatch.couplings.exact_ot", couplings.exact_ot, traced=True, **COUPLED,
          cost=model(costs.squared_euclidean, (B, B))),
    entry("energymatch.couplings.sinkhorn", couplings.sinkhorn, traced=True, **COUPLED,
          regularization=scalar(0.05, 0), tolerance=number(1e-3, 0, strict=False), max_iterations=whole(5),
          cost=model(costs.squared_euclidean, (B, B))),
    entry("energymatch.potential.value_and_gradient", potential.value_and_gradient, potential=V, x=states()),
    entry("energymatch.potential.velocity", potential.velocity, potential=V, x=states()),
    entry("energymatch.potential.boltzmann_log_density", potential.boltzmann_log_density, potential=V,
          x=states(), epsilon=EPSILON),
    entry("energymatch.potential.boltzmann_energy", potential.boltzmann_energy, potential=function(bowl),
          epsilon=EPSILON, event_ndim=whole(1)),
    entry("energymatch.likelihood.gaussian_prior", priors.gaussian_prior, mean=array(X[0]),
          scale=anything(1.0, None, 0.0, -1.0, np.nan, jnp.ones(2), -jnp.ones(D), jnp.zeros((D, D)),
          jnp.ones((2, 2)), jnp.ones((D, D)), jnp.eye(D) + jnp.eye(D, k=1))),
    entry("energymatch.likelihood.mixture_prior", priors.mixture_prior,
          weights=anything(jnp.ones(2), None, 1.0, -jnp.ones(2), jnp.zeros(2), jnp.ones(3), "a"),
          mean=anything(jnp.zeros((2, D)), None, 0.0, jnp.zeros((2, D), int), "a"),
          scale=anything(jnp.ones((2, D)), None, 1.0, jnp.zeros((2, D)), jnp.ones((2, D, D)),
          jnp.ones((3, D)), "a")),
    entry("energymatch.likelihood.fit_mixture", priors.fit_mixture, host=True, key=key(),
          x=array(X, (), 1, more=[jnp.ones((1, D)), jnp.ones((9, D)), X.at[0, 0].set(jnp.nan)]),
          max_components=whole(2), full=anything(False, 3, 1.0, optional=True), widen=number(1.5, 0),
          floor=number(1e-3, 0), background=number(0.1, 0, 1), max_examples=whole(100, 2)),
    entry("energymatch.likelihood.priors.widened", priors.widened,
          prior=anything(PRIOR, None, 3, priors.MixturePrior),
          factor=number(2.0, 0)),
    entry("energymatch.likelihood.fit_gaussian", priors.fit_gaussian,
          x=array(jnp.ones((4, D)), (), 1, more=[jnp.ones((1, D))]),
          full=anything(False, 3, 1.0, optional=True), widen=number(2.0, 0), floor=number(1e-3, 0)),
    # Operators and energies of measurements.
    entry("energymatch.posterior.operators.inpainting", operators.inpainting,
          mask=anything(jnp.ones(D, bool), None, 3, X, jnp.ones(D, int))),
    entry("inpainting(mask)", lambda x: operators.inpainting(jnp.ones(D, bool))(x), x=states(axes=(1,))),
    entry("energymatch.posterior.operators.linear", operators.linear, matrix=array(X, (), 2, 2)),
    entry("linear(matrix)", lambda x: operators.linear(X)(x), x=states(axes=(1,))),
    entry("energymatch.posterior.operators.random_projection", operators.random_projection, key=key(),
          event_shape=anything((D,), None, 3, (2.5,), (-1,), ("a",)), num_measurements=whole(2)),
    entry("energymatch.posterior.operators.downsampling", operators.downsampling, factor=whole(2)),
    entry("downsampling(factor)", lambda x: operators.downsampling(4)(x), x=array(IMAGES, (1, 2), 4, 4)),
    entry("energymatch.posterior.operators.gaussian_blur", operators.gaussian_blur, width=number(1.0, 0),
          truncate=number(4.0, 0)),
    entry("energymatch.posterior.measurement", lambda **a: posterior.measurement(y=X, **a),
          operator=function(bowl), negative_log_likelihood=function(bowl)),
    entry("energymatch.posterior.gaussian_measurement", posterior.gaussian_measurement,
          operator=function(bowl),
          y=array(X, more=[X.at[0, 0].set(np.nan)]), scale=anything(1.0, None, 0.0, -1.0, np.nan, True,
          MATRIX)),
    entry("gaussian_measurement(...)", lambda x: posterior.gaussian_measurement(lambda x: x, X[0], 1.0)(x),
          x=states(axes=(1,)), aliases={"x": "y"}),
    entry("energymatch.posterior.with_energies", posterior.with_energies, potential=function(bowl),
          energies=anything((bowl,), None, bowl, (3,), (interactions.QuadraticRepulsion(1.0, 2),)),
          epsilon=EPSILON),
    entry("energymatch.posterior.QuadraticRepulsion", interactions.QuadraticRepulsion,
          scale=EPSILON,
          group_size=whole(2, 2), projection=function(bowl, optional=True)),
    entry("energymatch.posterior.BoundedRepulsion", interactions.BoundedRepulsion,
          strength=EPSILON,
          scale=EPSILON, group_size=whole(2, 2), projection=function(bowl, optional=True)),
    entry("BoundedRepulsion.__call__", interactions.BoundedRepulsion(1.0, 1.0, 2), x=states(axes=(),
          more=[X[:1]])),
    entry("energymatch.posterior.joint", interactions.joint, function=function(bowl)),
    # Dynamics.
    entry("energymatch.langevin.init", langevin.init, potential=V, x=states(),
          energies=anything((bowl,), None, bowl, (3,))),
    entry("energymatch.langevin.step", langevin.step, traced=True, key=key(B),
          state=record(langevin.init(bowl, X)), t=scalar(0.5, batch=(B,)), potential=model(bowl, (B,)),
          temperature=anything(1.0, None, -1.0, np.nan, jnp.ones(3), lambda t: "a", lambda t: None),
          step_size=scalar(0.1, 0, batch=(B,)), energies=anything((), None, bowl, (3,)),
          method=choice("mala"),
          bounds=pair((-5.0, 5.0))),
    entry("energymatch.langevin.sample", langevin.sample, traced=True, key=key(B), potential=model(bowl,
          (B,)),
          x_0=states(), num_steps=whole(4), step_size=scalar(0.1, 0, batch=(B,)), t_0=scalar(0.0, batch=(B,)),
          temperature=anything(1.0, None, -1.0, np.nan, jnp.ones(3), lambda t: "a", lambda t: None),
          energies=anything((), None, bowl, (3,)), method=choice("heun"), bounds=pair((-5.0, 5.0)),
          save_every=whole(2, 1, 4, optional=True)),
    entry("energymatch.tempering.geometric_temperatures", tempering.geometric_temperatures,
          epsilon_max=EPSILON,
          factor=number(1.5, 1), num=whole(2)),
    entry("energymatch.tempering.init", tempering.init, potential=V, x=states(),
          temperatures=array(jnp.array([1.0, 2.0]), (), 1, 1, more=[jnp.array([1.0, 1.0]), jnp.array([-1.0,
          1.0])]),
          step_size=scalar(0.1, 0, batch=(2,)), bounds=pair((-5.0, 5.0))),
    entry("energymatch.tempering.factor_for", tempering.factor_for, dim=whole(3),
          acceptance=number(0.4, 0, 1)),
    entry("energymatch.langevin.reflect", langevin.reflect, x=array(X), bounds=pair((-5.0, 5.0))),
    entry("energymatch.tempering.step", tempering.step, traced=True, key=key(B),
          state=record(tempering.init(bowl, X, jnp.array([1.0, 2.0]))), potential=model(bowl, (2 * B,)),
          temperatures=array(jnp.array([1.0, 2.0]), (0,), 1, 1, more=[jnp.array([1.0, 1.0]),
          jnp.array([-1.0, 1.0])]),
          step_size=scalar(0.1, 0, batch=(2,)), num_steps=whole(1), num_swaps=whole(1, 0),
          method=choice("mala"),
          bounds=pair((-5.0, 5.0)), target_acceptance=number(0.5, 0, 1),
          max_step_size=scalar(1.0, 0, batch=(2,), optional=True)),
    # Data before training.
    entry("energymatch.preprocessing.check_columns", preprocessing.check_columns, host=True,
          x=array(X, (), 2), names=anything(["a", "b", "c"], ["a"], 3, optional=True)),
    entry("energymatch.preprocessing.noise_scales", preprocessing.noise_scales, host=True, x=array(X, (), 2)),
    entry("energymatch.preprocessing.dither", preprocessing.dither, key=key(B), x=states(),
          noise=anything(0.1, None, -1.0, np.nan, "a", jnp.ones(2), jnp.ones((B, 2)))),
    # Losses and training.
    entry("energymatch.losses.time_gate", losses.time_gate, tau_star=number(0.5, 0, 1, strict=False)),
    entry("energymatch.losses.energy_gate", losses.energy_gate, epsilon=EPSILON, margin=number(5.0),
          width=number(4.0, 0), quantile=number(0.9, 0, 1, strict=False, high_strict=True)),
    entry("energymatch.losses.negative_limit", contrast.negative_limit,
          dim=whole(3), epsilon=number(1.0, 0)),
    entry("energymatch.losses.flow_matching_loss", lambda **a: losses.flow_matching_loss(params=1.0, **a),
          traced=True, potential=model(scaled, (B,)), key=key(B), **PAIRED, sigma=number(0.1, 0,
          strict=False),
          gate=function(losses.time_gate(0.5), optional=True),
          data_values=array(ONES, (), 1, 1, optional=True)),
    entry("energymatch.losses.contrastive_divergence_loss", losses.contrastive_divergence_loss,
          data_values=array(ONES, (), 1, 1), negative_values=array(ONES, (), 1, 1, more=[jnp.zeros(0)]),
          weight=number(1.0, 0, strict=False), trim=number(0.1, 0, 1, strict=False),
          limit=number(5.0, 0, optional=True), floor=number(0.1, 0, strict=False, optional=True),
          log_weights=array(ONES, (0,), 1, 1, optional=True), energy_l2=number(0.1, 0, strict=False)),
    entry("energymatch.losses.energy_matching_loss", lambda **a: losses.energy_matching_loss(params=1.0, **a),
          traced=True, potential=model(scaled, (2 * B,)), key=key(B),
          batch=record(BATCH, more=(BATCH._replace(x_0=None), BATCH._replace(x_1=X[:1]),
          BATCH._replace(data="a"),
                                    BATCH._replace(data=X[:, :2]))),
          negatives=states(axes=(1,), min_ndim=2), lambda_cd=number(1.0, 0, strict=False),
          gate=function(losses.time_gate(0.5), optional=True), sigma=number(0.1, 0, strict=False),
          trim=number(0.1, 0, 1, strict=False), floor=number(0.1, 0, strict=False, optional=True),
          limit=number(5.0, 0, optional=True), log_weights=array(ONES, (0,), 1, 1, optional=True),
          energy_l2=number(0.1, 0, strict=False),
          aliases={"batch": ("x_0", "x_1", "negatives"), "lambda_cd": "weight"}),
    entry("energymatch.matching.MatchingConfig", matching.MatchingConfig, epsilon_max=number(1.0, 0),
          lambda_cd=number(4.0, 0, strict=False), gate=function(losses.energy_gate, optional=True),
          negatives=record(negatives.ShortRun()), sigma=number(0.1, 0, strict=False),
          trim=number(0.1, 0, 1, strict=False), floor=number(0.1, 0, strict=False, optional=True),
          energy_l2=number(0.1, 0, strict=False), guard=number(1.0, 0, optional=True),
          data_noise=number(0.1, 0, strict=False)),
    entry("energymatch.matching.make_warm_up", matching.make_warm_up, potential=function(scaled),
          optimizer=OPTIMIZER, sigma=number(0.1, 0, strict=False),
          data_noise=number(0.1, 0, strict=False), ema_decay=number(0.9, 0, 1, strict=False)),
    entry("energymatch.matching.make_matching", matching.make_matching, potential=function(scaled),
          optimizer=OPTIMIZER, config=record(matching.MatchingConfig(), optional=True),
          ema_decay=number(0.9, 0, 1, strict=False)),
    entry("energymatch.negatives.ShortRun", negatives.ShortRun, num_steps=whole(4), step_size=number(0.1, 0),
          tau_star=number(0.5, 0, 1, strict=False, high_strict=True)),
    entry("energymatch.negatives.Restarted", negatives.Restarted, num_steps=whole(4), step_size=number(0.1,
          0),
          tau_star=number(0.5, 0, 1, strict=False, high_strict=True),
          restart=number(0.05, 0, 1, strict=False, high_strict=True), burn_in=number(1.0, 0, strict=False)),
    entry("energymatch.matching.published_images", matching.published_images, num_steps=whole(4),
          step_size=number(0.1, 0)),
    entry("energymatch.matching.state_spec", lambda config: matching.state_spec(config),
          config=record(matching.MatchingConfig(), optional=True)),
    entry("energymatch.images.BatchStream", images.BatchStream, host=True, images=record(IMAGE_SET),
          batch_size=whole(2), seed=whole(0, 0), process_index=whole(0, 0, 0), process_count=whole(1, 1, 2)),
    entry("energymatch.images.ImageSet", images.ImageSet, host=True,
          parts=anything((PIXELS,), (), (X,), (PIXELS[0],)),
          labels=anything(np.zeros(3, int), None, np.zeros(3), np.zeros(2, int))),
    entry("energymatch.negatives.Tempered", negatives.Tempered, num_rungs=whole(2, optional=True),
          factor=number(1.5, 1, optional=True), step_size=number(0.1, 0), adapt=flag(True)),
    # Likelihood, posterior, curvature.
    entry("energymatch.likelihood.tune_bridge", bridge.tune_bridge, traced=True, key=key(4),
          potential=model(bowl, (4,)), epsilon=number(1.0, 0), prior=record(PRIOR,
          more=(priors.GaussianPrior,)),
          num_steps=whole(3), **GROUPS),
    entry("energymatch.likelihood.log_partition", likelihood.log_partition, traced=True, key=key(4),
          potential=model(bowl, (4,)), epsilon=number(1.0, 0), prior=record(PRIOR,
          more=(priors.GaussianPrior,)),
          num_steps=whole(3), num_moves=whole(1), bridge=anything(BRIDGE, *BAD_BRIDGES, optional=True),
          resample_below=number(0.5, 0, 1, high_strict=True, optional=True), **GROUPS),
    entry("energymatch.likelihood.log_partition_upper", likelihood.log_partition_upper, traced=True,
          key=key(B),
          potential=model(bowl, (B,)), x=states(axes=(1,)), epsilon=number(1.0, 0), prior=record(PRIOR),
          bridge=anything(BRIDGE, None, *BAD_BRIDGES), num_moves=whole(1)),
    entry("energymatch.likelihood.evidence", likelihood.evidence, traced=True, key=key(4),
          potential=function(bowl), x=states(axes=(1,)), epsilon=number(1.0, 0),
          prior=anything(PRIOR, 3, X), num_steps=whole(3), num_moves=whole(1),
          resample_below=number(0.5, 0, 1, high_strict=True, optional=True), **GROUPS),
    entry("energymatch.likelihood.log_prob", likelihood.log_prob, potential=V, x=states(), epsilon=EPSILON,
          log_z=scalar(0.5)),
    entry("energymatch.likelihood.nll", likelihood.nll, potential=V, x=states(), epsilon=EPSILON,
          log_z=scalar(0.5)),
    entry("energymatch.posterior.sample", posterior.sample, traced=True, key=key(4), potential=model(bowl,
          (4,)),
          energies=anything((bowl,), None, bowl, (3,)), epsilon=number(1.0, 0), prior=record(PRIOR),
          num_samples=whole(4, 4), num_steps=whole(3), num_moves=whole(1), num_last_moves=whole(1, 0),
          bridge=anything(BRIDGE, *BAD_BRIDGES, optional=True),
          resample_below=number(0.5, 0, 1, high_strict=True, optional=True), num_groups=whole(2, 2),
          aliases={"num_samples": "num_chains"}),
    entry("energymatch.curvature.hessian_vector_product", curvature.hessian_vector_product, potential=V,
          x=states(axes=(0, 1)), v=states(axes=(0, 1)), aliases={"x": "v"}),
    entry("energymatch.curvature.spectrum", curvature.spectrum, traced=True, potential=V, x=states(),
          chunk_size=whole(2, optional=True)),
    entry("energymatch.curvature.lanczos", curvature.lanczos, traced=True, key=key(B), potential=V,
          x=states(),
          num_steps=whole(2, 1, 3), start=states(axes=(0, 1), optional=True), aliases={"x": "start"}),
    entry("energymatch.curvature.eigenvalue_count", curvature.eigenvalue_count, traced=True, potential=V,
          x=states(),
          threshold=EPSILON, method=choice("quadrature"), key=key(B), num_steps=whole(2, 1, 3, optional=True),
          num_probes=whole(2, 2)),
    entry("energymatch.curvature.local_intrinsic_dimension", curvature.local_intrinsic_dimension, traced=True,
          potential=V, x=states(), threshold=EPSILON, method=choice("quadrature"), key=key(B),
          num_steps=whole(2, 1, 3, optional=True), num_probes=whole(2, 2), chunk_size=whole(2)),
]  # fmt: skip


def made(cls):
    """A function of fields and of x that makes the network's parameters."""

    def make(x, **fields):
        return cls(**fields).init(KEY, x)

    return make


WALL = dict(
    center=anything(0.0, None, (1.0,) * 99, np.nan, MATRIX), scale=anything(1.0, None, 0.0, -1.0,
          (1.0,) * 99),
    output_scale=number(1.0, 0), confinement_radius=number(1.0, 0, optional=True),
    confinement_strength=number(1.0, 0), activation=function(jnp.tanh),
)  # fmt: skip
ENTRIES += [
    entry("energymatch.networks.MLPPotential", made(MLPPotential), traced=True, x=states(min_ndim=2),
          width=whole(4), depth=whole(1), features=function(jnp.tanh, optional=True), **WALL),
    entry("energymatch.networks.ConvPotential", made(ConvPotential), traced=True,
          x=array(IMAGES, (1, 2), 4, 4), width=whole(2), num_stages=whole(2), depth=whole(1, 0),
          head_width=whole(2), local_energies=flag(False), **WALL, aliases={"num_stages": "x"}),
    entry("energymatch.networks.UNetViTPotential", made(UNetViTPotential), traced=True,
          x=array(jnp.zeros((1, 4, 4, 1)), (1, 2), 4, 4), num_channels=whole(32), num_res_blocks=whole(1),
          channel_mult=anything((1,), None, 1, (), (0,), ("a",), (-1.0,), (0.3,)),
          attention_resolutions=anything((4,), None, 4, ("a",), (0,), (2.5,)), num_heads=whole(2),
          num_head_channels=whole(32, optional=True), embed_dim=whole(4), num_transformer_heads=whole(2),
          num_transformer_layers=whole(1), patch_size=whole(4), output_scale=number(1000.0, 0),
          dropout=number(0.1, 0, 1, strict=False), remat=flag(False),
          dtype=anything(jnp.bfloat16, jnp.int32, 3, optional=True)),
    entry("energymatch.convert.select", convert.select, host=True, checkpoint=anything({"a": X}, None, 3),
          weights=choice(None, optional=True)),
]  # fmt: skip

_WEIGHTS = "needs a whole official state dict: tests/energymatch/test_convert.py"
_PIXELS = "an elementwise scale of pixels on the host: tests/energymatch/test_images.py"
_FILES = "reads or writes files, which raise their own errors"
EXCLUDED = {
    "energymatch.convert.configuration": _WEIGHTS,
    "energymatch.convert.from_official": _WEIGHTS,
    "energymatch.convert.load": _FILES,
    "energymatch.convert.main": "the command line",
    "energymatch.convert.save": _FILES,
    "energymatch.estimator": "its own table of bad input: tests/energymatch/test_estimator.py",
    "energymatch.fitting": "its own table of bad input: tests/energymatch/test_fit.py",
    "energymatch.model": "built by fit and load: tests/energymatch/test_fit.py",
    "energymatch.negatives.Proposed": "its own table of bad input: tests/energymatch/test_proposed.py",
    "energymatch.curvature.Dense": "has no arguments",
    "energymatch.curvature.Lanczos": "has no arguments",
    "energymatch.curvature.Quadrature": "its arguments are those of eigenvalue_count",
    "energymatch.images.read_cifar10": _FILES,
    "energymatch.images.read_imagenet32": _FILES,
    "energymatch.images.save_samples": _FILES,
    "energymatch.images.to_float": _PIXELS,
    "energymatch.images.to_uint8": _PIXELS,
    "energymatch.langevin.EulerMaruyama": "has no arguments",
    "energymatch.langevin.Heun": "has no arguments",
    "energymatch.langevin.MALA": "has no arguments",
    "energymatch.matching.published_2d": "has no arguments",
}
"""Public names without an entry, and why."""
