# %% [markdown]
# # A lattice with your own energy
#
# For whoever has a model of discrete states that no library knows. You write the energy as a function of one
# state, say how many tokens there are and that the grid is periodic, and get independent weighted samples,
# the partition function with an error, and observables.
#
# The model: particles on an 8 x 8 torus that repel each other along the axes and attract across the
# diagonals, in contact with a reservoir. It is small enough for the exact answer by a transfer matrix.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import egm

SIDE, REPULSION, ATTRACTION, POTENTIAL = 8, 1.2, 0.5, 1.0


def energy(n):  # [8, 8] of 0 and 1
    n = n.astype(jnp.float32)
    right, down = jnp.roll(n, -1, 1), jnp.roll(n, -1, 0)
    diagonal = jnp.roll(down, -1, 1) + jnp.roll(down, 1, 1)
    return jnp.sum(n * (REPULSION * (right + down) - ATTRACTION * diagonal - POTENTIAL))


# %% [markdown]
# `fit` finds by evaluating the function that it is a sum over pairs of sites. It takes a colouring of the
# graph of these pairs from that, four colours here, and reveals the last one in a single exact step.

# %%
space = egm.spaces.Tokens((SIDE, SIDE), vocab_size=2, periodic=True)
sampler = egm.fit(jax.random.key(0), energy, space, seconds=120, progress=False)
print("pairs found:", sampler.design.pairs, "| steps:", sampler.design.num_times, "for", SIDE**2, "sites")
print("converged:", sampler.converged)

# %% [markdown]
# The exact partition function: rows of the torus are the states of a transfer matrix.

# %%
rows = (np.arange(2**SIDE)[:, None] >> np.arange(SIDE)) & 1
inside = np.sum(rows * REPULSION * np.roll(rows, -1, 1), axis=1)
between = REPULSION * rows @ rows.T - ATTRACTION * rows @ (np.roll(rows, 1, 1) + np.roll(rows, -1, 1)).T


def exact_log_z(potential):
    alone = inside - potential * rows.sum(axis=1)
    transfer = np.exp(-between - 0.5 * (alone[:, None] + alone))
    return float(np.log(np.sum(np.linalg.eigvals(transfer) ** SIDE).real))


log_z = exact_log_z(POTENTIAL)
agrees = abs(sampler.log_z - log_z) < 4 * sampler.log_z_error
print(f"log Z {sampler.log_z:.2f}, exact {log_z:.2f}, within four errors: {agrees}")

# %% [markdown]
# Observables are weighted means with errors. That of the density has an exact answer as well: the derivative
# of log Z with respect to the potential.

# %%
draw = sampler.sample(jax.random.key(1), 8000)
density, error = draw.expectation(lambda n: n.mean(axis=(-2, -1)))
exact = (exact_log_z(POTENTIAL + 1e-3) - exact_log_z(POTENTIAL - 1e-3)) / 2e-3 / SIDE**2
agrees = bool(abs(density - exact) < 4 * error)
print(f"density {density:.2f}, exact {exact:.2f}, within four errors: {agrees}")

# %% Six samples, checkerboards with few defects, and the correlation of two sites by their distance.
n = np.asarray(draw.resample(jax.random.key(2), 2000))
figure, axes = plt.subplots(2, 4, figsize=(9, 4.6), layout="constrained")
for axis, state in zip(axes[:, :3].ravel(), n):
    axis.imshow(state, cmap="cividis", interpolation="nearest")
    axis.set(xticks=[], yticks=[])
grid = axes[0, 3].get_gridspec()
for axis in axes[:, 3]:
    axis.remove()
wide = figure.add_subplot(grid[:, 3])
centred = n - n.mean()
shifts = range(SIDE // 2 + 1)
wide.plot(shifts, [np.mean(centred * np.roll(centred, r, 2)) for r in shifts], "o-", label="along an axis")
along = [np.mean(centred * np.roll(centred, (r, r), (1, 2))) for r in shifts]
wide.plot(shifts, along, "s--", label="along a diagonal")
wide.axhline(0, color="0.7", lw=1)
wide.set(xlabel="distance in sites", ylabel="correlation")
wide.legend()
