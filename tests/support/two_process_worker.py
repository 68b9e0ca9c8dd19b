"""One of several processes that train the Ising sampler and the two-moons potential: test_two_processes.py.

python tests/support/two_process_worker.py OUT.npz NUM_STEPS COORDINATOR NUM_PROCESSES PROCESS_ID
Process 0 writes the losses and the parameters. Each process reads its own rows of the batches.
"""

import sys

import device_problems as problems
import jax
import numpy as np
from jax.experimental import multihost_utils

from egm import devices


def whole(x):
    """An array on the host; what is split over processes comes from all of them."""
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def train(problem, mesh, num_steps):
    """(losses [num_steps], the last state)."""
    state, step, spec, batches = problem
    step, state = devices.jit_step(step, mesh, state=spec), devices.put(state, mesh, spec)
    rank, count, losses = jax.process_index(), jax.process_count(), []
    for i in range(num_steps):
        batch = ()
        if batches is not None:
            rows = jax.tree.map(lambda x: np.split(x, count)[rank], batches(i))
            batch = (devices.from_processes(rows, mesh),)
        key = devices.put(jax.random.fold_in(problems.KEY(1), i), mesh)
        state, metrics = step(key, state, *batch)
        losses.append(float(metrics["loss"]))
    return np.array(losses), state


def train_all(mesh, num_steps):
    """Losses, parameters and chains by name: the sampler, then both phases of the potential."""
    found = {"devices": np.array(mesh.size)}

    def keep(name, losses, tree):
        found[f"{name} losses"] = losses
        found.update({f"{name} {i}": whole(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))})

    losses, state = train(problems.ising(), mesh, num_steps)
    keep("ising", losses, state.train.params)
    losses, state = train(problems.moons(1), mesh, num_steps // 2)
    keep("transport", losses, state.params)
    params = jax.tree.map(whole, state.ema_params)
    losses, state = train(problems.moons(2, params=params), mesh, num_steps - num_steps // 2)
    keep("density", losses, (state.train.params, state.chains.x))
    return found


def main(out, num_steps, coordinator, num_processes, process_id):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(coordinator, int(num_processes), int(process_id), initialization_timeout=120)
    found = train_all(devices.data_mesh(), int(num_steps))
    if process_id == "0":
        np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
