# %% [markdown]
# # A lattice with your own energy
#
# For whoever has a model of spins, colours or occupied sites, as a function of the whole lattice. `egm.fit`
# makes a sampler of it whose log Z, energy and order parameters come with errors. This lattice is small
# enough to enumerate, so that every figure stands beside its exact value.
#
# A lattice gas on a torus of 4 x 4 sites: neighbours attract, diagonal neighbours repel, and a chemical
# potential fills the sites. The energy has the inverse temperature inside: p(x) is proportional to
# exp(-energy(x)).

# %%
import itertools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import egm
from egm import spaces


def energy(n):  # of one lattice [4, 4] of zeros and ones
    near = sum(jnp.sum(n * jnp.roll(n, 1, axis)) for axis in (0, 1))
    diagonal = sum(jnp.sum(n * jnp.roll(n, (1, shift), (0, 1))) for shift in (1, -1))
    return (-1.2 * near + 0.8 * diagonal - 0.3 * jnp.sum(n)).astype(float)


# %% [markdown]
# `periodic=True` tells the network that the axes are those of a torus; `fit` then asks the energy whether
# it is the same after shifts, and builds that in. It also finds the conditionals of single sites by
# evaluating the energy, which makes training far quicker than by values alone.

# %%
space = spaces.Tokens((4, 4), vocab_size=2, periodic=True)
sampler = egm.fit(jax.random.key(0), energy, space, iterations=15, progress=False)
draw = sampler.sample(jax.random.key(1), 8192)
print(f"converged: {sampler.converged}, ESS {sampler.ess:.2f}")
print("shifts built in:", sampler.design.shifts)

# %% [markdown]
# Observables are functions of all states at once, weighted, with their standard errors; a function of
# means, such as a variance, goes through `egm.metrics.jackknife`.

# %%
filling = lambda n: jnp.mean(n, axis=(-2, -1))
mean_filling, filling_error = draw.expectation(filling)
mean_energy, energy_error = draw.expectation(jax.vmap(energy))
values = jax.vmap(energy)(draw.x)
heat, heat_error = egm.metrics.jackknife(
    lambda m: m[1] - m[0] ** 2, jnp.stack([values, values**2], axis=1), draw.log_weights
)

# %% [markdown]
# The exact values, by all 65,536 states:

# %%
states = np.array(list(itertools.product((0, 1), repeat=16)), np.int32).reshape(-1, 4, 4)
energies = np.asarray(jax.vmap(energy)(jnp.asarray(states)), np.float64)
log_z = np.logaddexp.reduce(-energies)
p = np.exp(-energies - log_z)
exact_energy = p @ energies
for name, value, error, exact in (
    ("log Z", sampler.log_z, sampler.log_z_error, log_z),
    ("filling", mean_filling, filling_error, p @ states.mean(axis=(1, 2))),
    ("energy", mean_energy, energy_error, exact_energy),
    ("variance of the energy", heat, heat_error, p @ (energies - exact_energy) ** 2),
):
    print(f"{name:<23} {value:8.3f} +- {error:.3f}   exact {exact:.3f}")
    assert abs(value - exact) < 4 * error

# %% [markdown]
# How many sites are filled, by weight and exactly:

# %% Probability of each number of filled sites, by the sampler and exactly
count = np.asarray(draw.x).sum(axis=(1, 2))
by_weight = np.bincount(count, weights=np.asarray(draw.weights), minlength=17)
exactly = np.bincount(states.sum(axis=(1, 2)), weights=p, minlength=17)
plt.figure(figsize=(5, 3.2))
plt.bar(np.arange(17), by_weight, color="#4477aa", label="sampler, weighted")
plt.plot(np.arange(17), exactly, "o", color="#aa3377", label="exact")
plt.xlabel("filled sites")
plt.ylabel("probability")
plt.legend()
plt.tight_layout()
print(f"largest difference of a probability: {np.abs(by_weight - exactly).max():.2f}")

# %% [markdown]
# Larger lattices, critical points, spin glasses, and orders that need far fewer network calls:
# [Lattices](../lattices.md). The library's own models (`egm.energies.Ising`, `Potts`, `SpinGlass`) know
# their closed forms and are trained on them.
