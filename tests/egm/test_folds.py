"""Flows whose steps fold: what an exact preimage count says, and that log Z is never too high.

The prior is integrated on a grid instead of sampled, so that a mean weight has no Monte-Carlo error.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import egm
from egm.paths import MaskedPath, VarianceExplodingPath
from egm.processes import FlowProcess, JumpProcess, ProductProcess

PATH = VarianceExplodingPath(0.5, 3.0)
EVERY = {
    "euler": FlowProcess(PATH),
    "heun": FlowProcess(PATH, "heun"),
}
GRID = np.linspace(-18.0, 18.0, 40_001, dtype=np.float32)[:, None]
WHOLE = (0.0, 1.0)
ENERGY = lambda x: 0.5 * jnp.sum((x - 1.0) ** 2, axis=-1)
LOG_Z = 0.5 * np.log(2 * np.pi)


def wave(strength):
    """x + h u is x + strength sin(2x) in one step: it folds from strength 1/2 on."""
    return lambda x, t: strength * jnp.sin(2 * x)


def log_z(process, generator, times=WHOLE):
    """(log of the mean weight by quadrature, trajectory) of the whole prior."""
    run = jax.jit(lambda x: egm.simulate(jax.random.key(0), process, generator, x, jnp.array(times)))
    path = run(GRID)
    log_w = np.asarray(egm.path_log_weights(ENERGY, PATH, path), np.float64)
    density = np.asarray(PATH.prior_log_density(GRID), np.float64)
    w = np.where(np.isnan(log_w), 0.0, np.exp(log_w + density))
    return np.log(np.sum(w) * float(GRID[1, 0] - GRID[0, 0])), path


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("strength", [0.3, 1.5, 3.0])
def test_a_fold_is_counted_and_does_not_raise_log_z(name, strength):
    """Euler's map has up to 3 (strength 1.5) and 5 (3.0) preimages: log Z was .57 and 1.21 too high."""
    came, path = log_z(EVERY[name], wave(strength))
    folded = int(np.sum(path.num_folded))
    if strength == 0.3:
        assert folded == 0
        assert abs(came - LOG_Z) < 1e-3
    else:
        assert folded > 1000
        assert LOG_Z - 0.1 < came < LOG_Z + 0.01
        np.testing.assert_array_equal(np.isnan(path.log_ratio), path.num_folded > 0)
        # One state a place: what is kept is injective.
        image = np.sort(np.asarray(path.x_1)[np.asarray(path.num_folded) == 0, 0])
        assert image.size < GRID.size - folded + 1


def test_small_steps_of_the_same_flow_do_not_fold():
    came, path = log_z(EVERY["euler"], wave(1.5), tuple(np.linspace(0.0, 1.0, 9)))
    assert np.sum(path.num_folded) == 0
    assert abs(came - LOG_Z) < 2e-3


def test_a_map_that_turns_space_over_is_injective():
    """x to -2x: all determinants are negative, nothing is folded."""
    came, path = log_z(EVERY["euler"], lambda x, t: -3.0 * x)
    assert np.sum(path.num_folded) == 0
    assert abs(came - LOG_Z) < 1e-3


def test_step_norm_and_counts_in_a_product():
    x = jnp.linspace(-1.0, 1.0, 8)[:, None]
    norm = EVERY["euler"].step_norm(x, wave(1.5), 0.0, 0.5)
    np.testing.assert_allclose(norm, np.abs(1.5 * np.cos(2 * x[:, 0])), rtol=1e-5)
    product = ProductProcess({"x": EVERY["euler"], "y": EVERY["euler"], "h": JumpProcess(MaskedPath(2))})

    def generator(state, t):
        folds, h = wave(3.0), state["h"]
        return {"x": folds(state["x"], t), "y": folds(state["y"], t), "h": jnp.full((*h.shape, 2), 0.5)}

    x = jnp.linspace(-3.0, 3.0, 64)[:, None]
    state = {"x": x, "y": x, "h": jnp.full((64, 2), 2, jnp.int32)}
    path = egm.simulate(jax.random.key(0), product, generator, state, jnp.array(WHOLE))
    assert set(np.unique(path.num_folded)) == {0, 2}
    np.testing.assert_array_equal(np.isnan(path.log_ratio), path.num_folded > 0)


def test_reverse_finds_what_forward_keeps():
    """The backward kernel is the inverse that the check uses: forward from it is not refused."""
    process, generator = EVERY["euler"], wave(1.5)
    y = jnp.linspace(-4.0, 4.0, 101)[:, None]
    back = jax.jit(lambda y: egm.simulate_reverse(jax.random.key(0), process, generator, y, jnp.array(WHOLE)))
    x = back(y)
    found = ~np.isnan(x.x_0[:, 0])
    assert found.mean() > 0.95
    ahead = egm.simulate(jax.random.key(0), process, generator, x.x_0[found], jnp.array(WHOLE))
    np.testing.assert_allclose(ahead.x_1, y[found], atol=1e-3)
    assert np.mean(ahead.num_folded) < 0.03
    keep = np.asarray(ahead.num_folded) == 0
    np.testing.assert_allclose(ahead.log_ratio[keep], x.log_ratio[found][keep], atol=1e-3)
