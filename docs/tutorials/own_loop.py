# %% [markdown]
# # Your own network in your own loop
#
# For whoever wants to choose the network, the optimiser, and what happens between steps. The parts that
# `egm.fit` puts together are public: a path says how noise is added, a head what the network's output
# stands for, an algorithm what is learned, and `make_iteration` gives (init, step), as optax does. The
# network is any function `apply(params, x, t)`; here it is written in plain JAX.
#
# The target: a ring in the plane with two heavy spots.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import egm
from egm import algorithms, heads, iteration, paths, processes


def energy(x):  # [N, 2] to [N]
    radius, angle = jnp.linalg.norm(x, axis=-1), jnp.arctan2(x[:, 1], x[:, 0])
    return 0.5 * ((radius - 3.0) / 0.5) ** 2 - jnp.cos(2 * angle)


# %% [markdown]
# The network gives two numbers a coordinate, [N, D, 2], as `ScoreHead` takes them: what is added to the
# score of a normal target, and to the logarithm of its posterior variance. An output of zero is a good
# start, so the last layer is small.


# %%
def init_network(key, width=64):
    sizes = [(2 + 4, width), (width, width), (width, 4)]
    keys = jax.random.split(key, len(sizes))
    return [
        {
            "w": jax.random.normal(k, size) / np.sqrt(size[0]) * (0.01 if size[1] == 4 else 1.0),
            "b": jnp.zeros(size[1]),
        }
        for k, size in zip(keys, sizes)
    ]


def apply(params, x, t):
    time = jnp.stack([t, t**2, jnp.cos(np.pi * t), jnp.cos(2 * np.pi * t)], axis=-1)
    h = jnp.concatenate([x / 3.0, time], axis=-1)
    for layer in params[:-1]:
        h = jax.nn.silu(h @ layer["w"] + layer["b"][None])
    return (h @ params[-1]["w"] + params[-1]["b"][None]).reshape(-1, 2, 2)


# %% [markdown]
# The parts. `length_scale` is the finest length of the target (the width of the ring), `data_scale` its
# extent; `reference` is the normal distribution from which annealing goes to the energy.

# %%
length_scale, data_scale = 0.5, 2.2
path = paths.VarianceExplodingPath(length_scale, 2.5 * data_scale, length_scale=length_scale)
process = processes.DiffusionProcess(path, data_scale=data_scale)
algorithm = algorithms.Weighted(path, heads.ScoreHead(path, length_scale, data_scale), apply)
config = iteration.IterationConfig(num_simulated=512, buffer_size=2560, num_gradient_steps=100, num_times=50)
init, step = iteration.make_iteration(
    algorithm,
    process,
    energy,
    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(2e-3)),
    config,
    event_shape=(2,),
    reference=egm.typing.Moments(jnp.zeros(2), jnp.full(2, data_scale**2)),
)

# %% [markdown]
# The loop is yours. One call of `step` simulates, weighs, fills the buffer and takes the gradient steps;
# its metrics tell the ESS, log Z and the level of the annealing.

# %%
state, step = init(init_network(jax.random.key(0))), jax.jit(step)
history = []
for i in range(30):
    state, info = step(jax.random.fold_in(jax.random.key(1), i), state)
    history.append(jax.device_get(info))
    if info["level"] >= 1 and info["ess"] > 0.9:
        break
print(f"level {history[-1]['level']:.1f}, ESS {history[-1]['ess']:.1f}")

# %% [markdown]
# Samples with exact weights: simulate with the averaged parameters, and ask what the weights say.

# %%
generator = algorithm.generator(state.train.ema_params, energy)
x_0 = egm.draw_prior(jax.random.key(2), path, (4096, 2), state.moments)
trajectory = jax.jit(lambda key: egm.simulate(key, process, generator, x_0, process.times(50)))(
    jax.random.key(3)
)
log_weights = egm.path_log_weights(energy, path, trajectory)
summary = egm.metrics.summarize(log_weights)
grid = np.linspace(-8, 8, 801)
points = np.stack(np.meshgrid(grid, grid), axis=-1).reshape(-1, 2)
exact = np.log(
    np.sum(np.exp(-np.asarray(energy(jnp.asarray(points)), np.float64))) * (grid[1] - grid[0]) ** 2
)
print(f"log Z {summary.log_z:.2f} +- {summary.log_z_error:.2f}, by quadrature {exact:.2f}")
assert abs(summary.log_z - exact) < 4 * summary.log_z_error

# %% ESS and level by iteration, and weighted samples of the ring
_, axes = plt.subplots(1, 2, figsize=(8, 3.2))
axes[0].plot([h["ess"] for h in history], "o-", color="#4477aa", label="ESS")
axes[0].plot([h["level"] for h in history], color="#aa3377", label="level of the energy")
axes[0].set_xlabel("iteration")
axes[0].legend()
weights = np.asarray(egm.importance.snis(log_weights).weights)
axes[1].scatter(*np.asarray(trajectory.x_1).T, s=4000 * weights, color="#4477aa", alpha=0.5)
axes[1].set_aspect("equal")
axes[1].set_xlabel("samples, as large as their weight")
plt.tight_layout()

# %% [markdown]
# From here: other algorithms (`Bootstrap`, `LocalBootstrap`, `Naive`) take the same place as `Weighted`
# ([Bootstrapping](../algorithms.md)), tokens and mixed states the same loop ([Your own
# loop](../by_hand.md)), and `egm.checkpoint` keeps `state` on disk ([Checkpoints](../checkpoints.md)). Has
# it lost a mode? `egm.evidence.check` compares its weights with tempered chains.
