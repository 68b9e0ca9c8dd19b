"""The examples in the docstrings of the names that a user meets first do what they say.

An example may use jax, jnp, np, egm and energymatch without importing them, and those of a trained sampler
or model the `sampler` and `energy`, or the `model`, that the examples of `egm.fit` and `energymatch.fit`
make. What takes longer than a second or so is in SLOW, `egm.fit` itself among them: elsewhere its sampler is
put together by hand, for a target at which a network that has learned nothing is exact.
"""

import doctest
import functools
import importlib
import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm
import energymatch
from egm.coordinates import Coordinates
from egm.design import Design, parts_of
from egm.typing import Moments

SAMPLER = [
    "egm.Sampler",
    *(f"egm.Sampler.{name}" for name in ("sample", "log_prob", "report", "save", "load")),
    "egm.Samples",
    "egm.refine",
]
"""Their examples use the sampler of `egm.fit`."""
MODEL = [
    "energymatch.EnergyModel",
    *(
        f"energymatch.EnergyModel.{name}"
        for name in (
            "log_prob",
            "energy",
            "score",
            "sample",
            "impute",
            "posterior",
            "dimension",
            "report",
            "save",
            "load",
        )
    ),
]
"""Their examples use the model of `energymatch.fit`."""
OTHERS = {
    "egm": "fit estimate simulate",
    "egm.iteration": "make_iteration",
    "egm.spaces": "Real Positive Interval Circle Tokens Particles Layout like of",
    "egm.paths": "MaskedPath LinearPath VarianceExplodingPath VariancePreservingPath WrappedPath "
    "CenteredPath ProductPath",
    "egm.processes": "DiffusionProcess FlowProcess JumpProcess AnyOrderProcess OrderedProcess ProductProcess "
    "SuperpositionProcess VectorJumpProcess",
    "egm.processes.orders": "random_sites colouring coarse_to_fine",
    "egm.heads": "DenoiserHead ScoreHead MixtureHead ProductHead",
    "egm.algorithms": "Weighted Naive Bootstrap LocalBootstrap",
    "egm.networks": "MLPVector MLPDenoiser TorusDenoiser EGNN MLPMixed",
    "egm.importance": "snis log_mean_exp clipped_probabilities systematic reliability",
    "egm.metrics": "summarize reason reweighted_mean jackknife evidence_upper_bound mode_masses "
    "wasserstein_1d frechet_distance distance_floor",
    "egm.evidence": "two_sided message tempered_chains moved from_states check",
    "egm.energies": "Ising Potts SpinGlass GaussianMixture GaussianBernoulliRBM JointGaussianMixture "
    "JointDoubleWell LennardJones WithConditionals check_colouring",
    "egm.energies.lattices": "square",
    "energymatch": "fit temperature flow_weight",
    "energymatch.losses": "flow_matching_loss contrastive_divergence_loss energy_matching_loss energy_gate "
    "time_gate negative_limit",
    "energymatch.langevin": "sample step",
    "energymatch.couplings": "exact_ot sinkhorn independent line_of_sight",
    "energymatch.posterior": "sample gaussian_measurement measurement",
    "energymatch.posterior.operators": "inpainting",
    "energymatch.likelihood": "log_partition evidence log_prob nll fit_gaussian fit_mixture",
    "energymatch.curvature": "local_intrinsic_dimension spectrum hessian_vector_product",
    "energymatch.networks": "MLPPotential",
}
NAMES = [*SAMPLER, *MODEL, *(f"{m}.{name}" for m, names in OTHERS.items() for name in names.split())]
SLOW = {
    "egm.fit",
    "egm.Sampler.load",
    "egm.refine",
    "egm.iteration.make_iteration",
    "egm.processes.DiffusionProcess",
    "egm.processes.FlowProcess",
    "egm.heads.ScoreHead",
    "egm.algorithms.Weighted",
    "egm.algorithms.Naive",
    "egm.algorithms.Bootstrap",
    "egm.algorithms.LocalBootstrap",
    "egm.networks.MLPVector",
    "egm.networks.TorusDenoiser",
    "egm.networks.EGNN",
    "egm.networks.MLPMixed",
    "egm.metrics.jackknife",
    "egm.evidence.message",
    "egm.evidence.tempered_chains",
    "egm.evidence.moved",
    "egm.evidence.from_states",
    "egm.evidence.check",
    "egm.energies.GaussianMixture",
    "egm.energies.GaussianBernoulliRBM",
    "egm.energies.check_colouring",
    "energymatch.EnergyModel.score",
    "energymatch.EnergyModel.sample",
    "energymatch.EnergyModel.posterior",
    "energymatch.losses.flow_matching_loss",
    "energymatch.losses.energy_matching_loss",
    "energymatch.langevin.sample",
    "energymatch.langevin.step",
    "energymatch.couplings.exact_ot",
    "energymatch.couplings.sinkhorn",
    "energymatch.couplings.line_of_sight",
    "energymatch.posterior.sample",
    "energymatch.likelihood.log_partition",
    "energymatch.likelihood.evidence",
    "energymatch.likelihood.fit_gaussian",
    "energymatch.curvature.spectrum",
    "energymatch.networks.MLPPotential",
}
GIVEN = {"jax": jax, "jnp": jnp, "np": np, "egm": egm, "energymatch": energymatch}


def found(name):
    """The object of a public name; `egm.simulate` is the function, not its module."""
    parts = name.split(".")
    value = importlib.import_module(parts[0])
    for part in parts[1:]:
        value = getattr(value, part)
    return value


def run(name, namespace):
    """Runs the examples of a name with these names known; returns what they know afterwards."""
    text = inspect.getdoc(found(name)) or ""
    assert ">>> " in text, f"{name} has no example in its docstring"
    parser, said = doctest.DocTestParser(), []
    # `run` may clear what it is given: the test gets a dict of its own.
    test = parser.get_doctest(text, dict(namespace), name, None, None)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    # A reader has jax's default, not the strict setting of conftest.py.
    with jax.numpy_rank_promotion("allow"):
        runner.run(test, out=said.append, clear_globs=False)
    assert not runner.failures, "".join(said)
    return test.globs


@functools.cache
def sampler_by_hand():
    """What the example of `egm.fit` makes, of a network that has learned nothing and is exact."""
    energy, layout = lambda x: 0.5 * jnp.sum((x - 1.0) ** 2), egm.spaces.Layout(egm.spaces.Real(2))
    design = Design(layout, num_times=20, width=16, depth=1)
    zero = np.zeros(2, np.float32)
    coordinates = Coordinates(layout, zero + 1, 1.0, 0.0)
    params = parts_of(design, jax.vmap(energy)).init(jax.random.key(0))
    figures = {"log_z": math.log(2 * math.pi), "log_z_error": 1e-3, "ess": 0.99, "converged": True}
    sampler = egm.Sampler(
        jax.vmap(energy), design, coordinates, Moments(zero, zero + 1), params,
        figures={**figures, "reason": "", "seconds": 1.0},
    )  # fmt: skip
    return {"energy": energy, "sampler": sampler}


@functools.cache
def model_of_the_example():
    known = run("energymatch.fit", GIVEN)
    return {"table": known["table"], "model": known["model"]}


def namespace_of(name):
    if name in SAMPLER:
        return GIVEN | sampler_by_hand()
    return GIVEN | model_of_the_example() if name in MODEL else GIVEN


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in NAMES]
)
def test_the_example_does_what_it_says(name):
    known = run(name, namespace_of(name))
    if name == "egm.fit":
        # The sampler that is trained in truth serves the other examples as well.
        for other in SAMPLER:
            run(other, GIVEN | {"sampler": known["sampler"], "energy": known["energy"]})


def test_every_listed_name_has_an_example():
    """Also of those that are slow to run."""
    assert set(SLOW) <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES)
    missing = [name for name in NAMES if "\nExamples:\n  >>> " not in (inspect.getdoc(found(name)) or "")]
    assert not missing, missing


def test_an_example_that_does_not_hold_is_a_failure(monkeypatch):
    def wrong():
        """One and one.

        Examples:
          >>> 1 + 1
          3
        """

    monkeypatch.setattr(egm, "fit", wrong)
    with pytest.raises(AssertionError, match="Expected:"):
        run("egm.fit", GIVEN)
