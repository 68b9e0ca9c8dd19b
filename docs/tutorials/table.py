# %% [markdown]
# # The density of a table, and what is missing in it
#
# For whoever has rows of numbers, some of them incomplete. `energymatch.fit` makes an energy of the table:
# it scores rows, draws new ones, and fills in what is missing by samples, not by one guess. The rows here
# come from a known law, so that scores and samples can be held against it.
#
# A thousand rows of a plant's day: temperature, light, and growth. Growth is best at about 20 degrees, so
# that a given growth belongs to a cold or to a hot day.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

import energymatch

rng = np.random.default_rng(0)


def rows(num):
    temperature = rng.normal(20.0, 6.0, num)
    light = 0.5 * temperature + rng.normal(0.0, 2.0, num)
    growth = 5.0 - 0.05 * (temperature - 20.0) ** 2 + rng.normal(0.0, 0.4, num)
    return np.stack([temperature, light, growth], axis=1)


def normal(x, mean, deviation):
    return -0.5 * ((x - mean) / deviation) ** 2 - np.log(deviation * np.sqrt(2 * np.pi))


def true_log_density(x):
    t = x[:, 0]
    growth = normal(x[:, 2], 5.0 - 0.05 * (t - 20.0) ** 2, 0.4)
    return normal(t, 20.0, 6.0) + normal(x[:, 1], 0.5 * t, 2.0) + growth


# %% [markdown]
# One call. It whitens the columns, chooses a mixture of normals by cross-validation, and adds a network
# where that is better on rows held out. Columns that have no density (constant, copied, of few values) are
# named.

# %%
table, fresh = rows(1000), rows(1000)
model = energymatch.fit(jax.random.key(0), table, steps=400, progress=False)
score, truth = float(model.log_prob(fresh).mean()), float(true_log_density(fresh).mean())
flat = normal(fresh, table.mean(0), table.std(0)).sum(axis=1).mean()
print(f"converged: {model.converged}")
print(f"mean log-density of fresh rows: model {score:.2f}, true law {truth:.2f}, columns alone {flat:.2f}")
assert flat < score < truth + 0.05

# %% [markdown]
# A row whose temperature is missing has two answers, and imputation gives both in their proportion. What
# was observed comes back as it is.

# %%
row = np.array([[np.nan, 10.0, 3.0]])
filled = np.asarray(model.impute(jax.random.key(1), row, ~np.isnan(row), 500))[:, 0]
cold = filled[:, 0] < 20
means = filled[cold, 0].mean(), filled[~cold, 0].mean()
print(f"temperatures of a day of growth 3: {means[0]:.0f} or {means[1]:.0f} degrees")

# %% [markdown]
# The true law of that temperature, on a grid:

# %%
grid = np.linspace(0, 40, 2001)
given = np.stack([grid, np.full_like(grid, 10.0), np.full_like(grid, 3.0)], axis=1)
p = np.exp(true_log_density(given))
p /= p.sum()
share = p[grid < 20].sum()
print(f"share of cold days: imputed {cold.mean():.1f}, true {share:.1f}")
for side, kept in ((cold, grid < 20), (~cold, grid >= 20)):
    assert abs(filled[side, 0].mean() - (p[kept] @ grid[kept]) / p[kept].sum()) < 1.0

# %% The table with samples of the model, and the imputed temperatures beside their true law
_, axes = plt.subplots(1, 2, figsize=(8, 3.2))
sample = np.asarray(model.sample(jax.random.key(2), 1000))
axes[0].plot(table[:, 0], table[:, 2], ".", color="#bbbbbb", label="table")
axes[0].plot(sample[:, 0], sample[:, 2], ".", ms=2, color="#4477aa", label="samples of the model")
axes[0].set_xlabel("temperature")
axes[0].set_ylabel("growth")
axes[0].legend()
axes[1].hist(filled[:, 0], bins=40, density=True, color="#4477aa", label="imputed")
axes[1].plot(grid, p / (grid[1] - grid[0]), color="#aa3377", label="true law")
axes[1].set_xlabel("temperature, given light 10 and growth 3")
axes[1].legend()
plt.tight_layout()

# %% [markdown]
# Measurements of other kinds, sums of columns or noisy ones, go through `model.posterior`; how the model is
# made, and how its log Z is bounded from above: [Energies of tables](../energy_matching.md).
