# %% [markdown]
# # The evidence of a Bayesian model
#
# For whoever has a log-density in JAX and wants its normaliser: the evidence, which says how well a model
# foretold the data, and with which two models are compared. One call gives it with an error, together with
# weighted samples of the posterior. Here the answer is known by quadrature, so that you see what the error
# is worth.
#
# Twelve measurements, and two models of them: a line, or a parabola, with normal noise of unknown width.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.scipy.stats import norm

import egm
from egm import spaces

x = np.linspace(-1, 1, 12)
y = np.array([1.01, 0.46, 0.53, 0.02, 0.19, 0.30, 0.42, 0.81, 0.85, 1.32, 1.55, 2.14])

# %% [markdown]
# A state is one setting of everything that is unknown, and its space says what each part is. `Positive`
# keeps the noise above zero (the change of variables is added for you), and the model itself is a token: 0
# is the line, 1 the parabola. So both are sampled at once, and how often the token is 1 is the posterior
# probability of the parabola. The curvature `c` is drawn from its prior where the model does not use it.

# %%
space = {
    "a": spaces.Real(),
    "b": spaces.Real(),
    "c": spaces.Real(),
    "s": spaces.Positive(),
    "model": spaces.Tokens(),
}


def log_density(p):  # of one state: log p(y | p) + log p(p)
    mean = p["a"] + p["b"] * x + jnp.where(p["model"] == 1, p["c"] * x**2, 0.0)
    likelihood = jnp.sum(norm.logpdf(y, mean, p["s"]))
    prior = sum(norm.logpdf(p[k], 0.0, 2.0) for k in "abc")
    return likelihood + prior + jnp.log(2.0) + norm.logpdf(p["s"]) + jnp.log(0.5)  # half-normal s, equal odds


# %% [markdown]
# One call. It finds coordinates and lengths, trains a sampler, weighs what it draws, and compares its log Z
# with that of tempered chains that know nothing of it.

# %%
sampler = egm.fit(jax.random.key(0), log_density=log_density, space=space, iterations=15, progress=False)
draw = sampler.sample(jax.random.key(1), 10_000)
parabola, parabola_error = draw.expectation(lambda p: p["model"] == 1)
print(f"converged: {sampler.converged}")
print(f"log evidence {sampler.log_z:.2f} +- {sampler.log_z_error:.2f}, ESS {sampler.ess:.2f}")
print(f"P(parabola | y) {parabola:.3f} +- {parabola_error:.3f}")

# %% [markdown]
# Given the noise both models are linear and normal, so that only the noise is left to integrate: y is
# normal with covariance s^2 I + 4 X X^T.


# %%
def exact_log_evidence(columns):
    features = np.stack([x**k for k in range(columns)], axis=1)
    widths = np.linspace(0.02, 5.0, 4000)
    values = np.empty(len(widths))
    for i, s in enumerate(widths):
        covariance = s**2 * np.eye(len(x)) + 4.0 * features @ features.T
        quadratic = y @ np.linalg.solve(covariance, y) + np.linalg.slogdet(2 * np.pi * covariance)[1]
        values[i] = -0.5 * quadratic + np.log(2.0) - 0.5 * s**2 - 0.5 * np.log(2 * np.pi)
    return np.log(np.sum(np.exp(values - values.max())) * (widths[1] - widths[0])) + values.max()


line, curve = exact_log_evidence(2), exact_log_evidence(3)
both = np.logaddexp(line, curve) + np.log(0.5)
share = 1 / (1 + np.exp(line - curve))
print(f"exact: log evidence {both:.2f} (line {line:.2f}, parabola {curve:.2f}), P(parabola | y) {share:.3f}")
assert abs(sampler.log_z - both) < 4 * sampler.log_z_error
assert abs(parabola - share) < 4 * parabola_error

# %% [markdown]
# Expectations under the posterior are weighted ones; `resample` gives states of equal weight, for whatever
# wants plain samples, such as a picture.

# %% Twelve measurements and 200 curves of the posterior
plain = draw.resample(jax.random.key(2), 200)
used = np.where(plain["model"] == 1, plain["c"], 0.0)
fine = np.linspace(-1.2, 1.2, 100)
plt.figure(figsize=(5, 3.2))
curves = np.asarray(plain["a"])[:, None] + np.asarray(plain["b"])[:, None] * fine + used[:, None] * fine**2
plt.plot(fine, curves.T, color="#4477aa", alpha=0.06)
plt.plot(x, y, "o", color="#aa3377")
plt.xlabel("x")
plt.ylabel("y, and 200 curves of the posterior")
plt.tight_layout()

# %% [markdown]
# What the numbers cannot see: a mode that neither the sampler nor the chains reach. `sampler.report()` says
# what was compared, `sampler.reason` why errors are infinite where they are. More on spaces and reports:
# [One call from an energy](../sampler.md).
