"""An empty batch in every public function: an error of our own that says so, or nothing out of nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_bad_input_generated import ENTRIES, IDS, ROOTS, where_raised

import egm
import energymatch

KEY = jax.random.key(0)
BATCHES = (2, 3, 4)
"""Leading sizes that the tables give to batches."""


def is_empty_able(leaf):
    return (
        isinstance(leaf, jax.Array | np.ndarray)
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        and leaf.ndim >= 1
        and leaf.shape[0] in BATCHES
    )


def emptied(value):
    return jax.tree.map(lambda leaf: leaf[:0] if is_empty_able(leaf) else leaf, value)


def changes(value):
    try:
        return any(map(is_empty_able, jax.tree.leaves(value)))
    except (TypeError, ValueError):
        return False


def arrays(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)]


PARAMETERS = "Potential Denoiser LogMarginal Vector EGNN MLPMixed EGNNMixed".split()
"""Parts of the names of networks, whose entries make parameters: those do not depend on the batch."""
EVENTS = ("prior", "mean", "example", "buffer", "mask", "matrix", "checkpoint")
"""Arguments that hold no batch."""
KEEPS = ("egm.buffer.add",)
"""What goes on without a batch: a buffer that gets nothing stays as it was."""


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_an_empty_batch_is_refused_or_gives_nothing(entry):
    values = {name: a.value for name, a in entry.arguments.items()}
    named = [name for name, value in values.items() if name not in EVENTS and changes(value)]
    trials = [named, *([name] for name in named)] if len(named) > 1 else [named]
    for names in filter(None, trials):
        given = values | {name: emptied(values[name]) for name in names}
        try:
            out = entry.run(**given) if entry.host else jax.eval_shape(lambda: arrays(entry.call(**given)))  # noqa: B023
        except (TypeError, ValueError) as error:
            where, line = where_raised(error)
            assert where.startswith(ROOTS) and "raise" in line, f"{entry.names[0]}({names}): {error!r}"
            continue
        if entry.names[0] in KEEPS or any(part in entry.names[0] for part in PARAMETERS):
            continue
        numbers = [x.shape for x in arrays(out) if jnp.issubdtype(x.dtype, jnp.floating) and 0 not in x.shape]
        assert not numbers, f"{entry.names[0]}({names}) makes {numbers} of nothing"


def bowl(x):
    return 0.5 * jnp.sum(x**2, axis=-1)


NONE = jnp.zeros((0, 3))
REFUSED = {
    "estimate": lambda: egm.estimate(
        KEY, egm.paths.LinearPath(), lambda x, t: bowl(x), NONE, 0.5, 1.0, num_samples=4
    ),
    "exact_ot": lambda: energymatch.couplings.exact_ot(KEY, NONE, NONE),
    "sinkhorn": lambda: energymatch.couplings.sinkhorn(KEY, NONE, NONE),
    "squared_euclidean": lambda: energymatch.couplings.costs.squared_euclidean(NONE, NONE),
    "langevin": lambda: energymatch.langevin.sample(
        KEY, bowl, NONE, num_steps=2, step_size=0.1, temperature=1.0
    ),
    "dimension": lambda: energymatch.curvature.local_intrinsic_dimension(bowl, NONE, threshold=1.0),
    "spectrum": lambda: energymatch.curvature.spectrum(bowl, NONE),
    "nll": lambda: energymatch.likelihood.nll(bowl, NONE, epsilon=1.0, log_z=0.0),
    "negatives": lambda: energymatch.energy_matching_loss(
        lambda p, x: bowl(x), (), KEY, energymatch.losses.Batch(NONE + 1, NONE), NONE, lambda_cd=1.0
    ),
    "summarize": lambda: egm.metrics.summarize(jnp.zeros(0)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_no_mean_of_nothing(name):
    with pytest.raises(ValueError, match="at least one example|at least 1|of 1 or more"):
        REFUSED[name]()
