# %% [markdown]
# # The same training on one device and on eight
#
# For whoever has more than one GPU, a TPU host or a pod, and wants to know that nothing changes but the
# time. A training step here is one pure function of a key and a state; `egm.devices` puts it on any number of
# devices. You will see one loss curve, drawn by one device, by eight under `jit`, by eight under `shard_map`,
# and by `jax.pmap`.
#
# Without such a machine: ask for eight CPU devices before jax starts. They share your cores, so this shows
# that it is right, not that it is fast. On a GPU or TPU machine leave these two lines out.

# %%
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from egm import algorithms, devices, energies, heads, iteration, networks, paths, processes

print(jax.device_count(), "devices")

# %% [markdown]
# The step: a masked sampler of the 4x4 Ising lattice. `axis_name` is the only thing in it that knows of
# devices: inside `shard_map` and `pmap` sums go over that axis; under `jit` the compiler sees to it, and
# there is none. Sizes are those of all devices together.

# %%
energy, path = energies.Ising(4, 0.4407), paths.MaskedPath(2)
network = networks.MLPDenoiser(2, width=64, depth=2)
config = iteration.IterationConfig(
    num_simulated=256, buffer_size=1024, num_gradient_steps=20, batch_size=256, num_times=16
)


def make(axis_name):
    init, step = iteration.make_iteration(
        algorithms.Weighted(path, heads.DenoiserHead(path), network.apply),
        processes.AnyOrderProcess(path),
        energy,
        optax.adam(1e-2, eps=1e-3),
        config,
        event_shape=(16,),
        axis_name=axis_name,
    )
    return init(network.init(jax.random.key(0), jnp.zeros((1, 16), jnp.int32))), step


# %% [markdown]
# Four ways to run it. A mesh says which devices; keys are the same for all, and random numbers depend on the
# number of an example among all of them, never on the device that draws it.

# %%
one, eight = devices.data_mesh(jax.devices()[:1]), devices.data_mesh()
ways = {
    "one device": (None, lambda step: devices.jit_step(step, one)),
    "eight, jit": (None, lambda step: devices.jit_step(step, eight)),
    "eight, shard_map": (devices.DATA, lambda step: devices.shard_map_step(step, eight)),
    "eight, pmap": (devices.DATA, devices.pmap_step),
}
curves = {}
for name, (axis_name, on_devices) in ways.items():
    state, step = make(axis_name)
    step, losses = on_devices(step), []
    for i in range(8):
        state, info = step(jax.random.key(i), state)
        losses.append(float(info["loss"]))
    curves[name] = np.array(losses)
    ess = float(info["ess"])
    print(f"{name:<17} loss {losses[0]:.3f} -> {losses[-1]:.3f}, ESS {ess:.2f}")

# %% [markdown]
# The curves differ by the order in which numbers are added, no more.

# %%
apart = max(np.abs(curve / curves["one device"] - 1).max() for curve in curves.values())
print("largest difference below one in a thousand:", bool(apart < 1e-3))
assert apart < 1e-3

# %% Loss by iteration, four ways: one curve
for (name, curve), style in zip(curves.items(), ("k-", "C0--", "C1-.", "C2:"), strict=True):
    plt.plot(curve, style, lw=2, label=name)
plt.xlabel("iteration")
plt.ylabel("loss")
plt.legend()
plt.gcf().set_size_inches(5.5, 3.4)
plt.tight_layout()

# %% [markdown]
# From here: several processes, TPU pods and Slurm, parameters split over a second axis ([Many
# devices](../pods.md)), a state on disk that may be read by another number of devices
# ([Checkpoints](../checkpoints.md)). `energymatch.matching` makes steps in the same three ways; they take the
# batch as well.
