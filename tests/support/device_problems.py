"""Two small training problems, as `(state, step, layout, batches)` for any way to run a step on many devices.

The 3x3 Ising sampler simulates inside its step; the two-moons potential gets batches, coupled in the step by
exact optimal transport over the global batch. Used by test_devices.py and by the two processes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from egm import algorithms, energies, heads, iteration, networks, paths, processes
from energymatch import couplings, losses, matching
from energymatch.negatives import Tempered
from energymatch.networks import MLPPotential

KEY = jax.random.key
OPTIMIZER = optax.adam(1e-2, eps=1e-3)  # a large eps: the sign of a gradient near 0 is rounding


def ising(axis_name=None, *, algorithm="weighted", num=56, sites=9):
    """The sampler of the 3x3 Ising model at the critical point."""
    energy, path, x = energies.Ising(3, 0.4407), paths.MaskedPath(2), jnp.zeros((1, sites), jnp.int32)
    net, t = networks.MLPDenoiser(2, width=16, depth=1), jnp.zeros(1)
    head = heads.DenoiserHead(path)
    if algorithm == "local_bootstrap":
        net = networks.MLPLogMarginal(2, width=16, depth=1)
        trained = algorithms.LocalBootstrap(path, net.apply)
    elif algorithm == "naive":
        trained = algorithms.Naive(path, head, net.apply, num_samples=256, chunk_size=128)
    else:
        trained = algorithms.Weighted(path, head, net.apply)
    config = iteration.IterationConfig(
        num_simulated=num, buffer_size=4 * num, num_gradient_steps=5, batch_size=num, num_times=sites
    )
    init, step = iteration.make_iteration(
        trained,
        processes.AnyOrderProcess(path),
        energy,
        OPTIMIZER,
        config,
        event_shape=(sites,),
        axis_name=axis_name,
    )
    params = net.init(KEY(0), x, t) if algorithm == "local_bootstrap" else net.init(KEY(0), x)
    return init(params), step, P(), None


def _moons(rng, num):
    """[num, 2] points on two half circles."""
    angle, upper = rng.uniform(0, np.pi, num), rng.integers(2, size=(num, 1))
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.where(upper, arc, [1, 0.5] - arc).astype(np.float32)


NET = MLPPotential(width=16, depth=2)
CONFIG = matching.MatchingConfig(negatives=Tempered(num_rungs=2, num_steps=3))


def moons_batch(index, num=56):
    """`losses.Batch` number `index`, all of it."""
    rng = np.random.default_rng(index)
    x_0, prior = rng.normal(size=(2, num, 2)).astype(np.float32)
    return losses.Batch(x_0, _moons(rng, num), _moons(rng, num), prior)


def moons(phase, axis_name=None, params=None, num=56):
    """Phase 1 or 2 of the two-moons potential."""

    def coupled(step):
        def run(key, state, batch):
            keys = jax.random.split(key)
            x_0, x_1 = couplings.exact_ot(keys[0], batch.x_0, batch.x_1, axis_name=axis_name)
            return step(keys[1], state, batch._replace(x_0=x_0, x_1=x_1))

        return run

    params = NET.init(KEY(0), jnp.zeros((1, 2))) if params is None else params
    if phase == 1:
        init, step = matching.make_warm_up(NET.apply, OPTIMIZER, axis_name=axis_name)
        return init(params), coupled(step), P(), moons_batch
    init, step = matching.make_matching(NET.apply, OPTIMIZER, CONFIG, axis_name=axis_name)
    start = init(params, jnp.asarray(moons_batch(999, num).data))
    return start, coupled(step), matching.state_spec(CONFIG), moons_batch
