# %% [markdown]
# # Which model do the data want?
#
# For whoever compares models by their evidence, the probability of the data under each with all parameters
# integrated out. You get it with an error, the posterior besides, and a warning where either is not to be
# trusted. Here the answer is known: with normal priors the weights can be integrated by hand, and the
# noise by quadrature.
#
# The data: thirty points on a slightly bent line, the noise unknown.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from scipy import integrate

import egm

rng = np.random.default_rng(0)
x = np.linspace(-1, 1, 30)
y = 0.5 + 1.0 * x + 0.6 * x**2 + 0.3 * rng.normal(size=30)

# %% [markdown]
# A model is an energy, minus the log of prior times likelihood with all its constants, and a space that says
# what the parameters are. The noise is a `Positive`: no change of variables is needed, `egm` adds it. The
# prior of the noise is log-normal, those of the weights are standard normal.


# %%
def model(degree):
    """(E of one set of parameters, their space) of a polynomial."""
    basis = jnp.asarray(np.vander(x, degree + 1, increasing=True), jnp.float32)

    def energy(p):
        log_prior = -0.5 * jnp.sum(p["w"] ** 2) - 0.5 * (degree + 1) * jnp.log(2 * jnp.pi)
        log_sd = jnp.log(p["sd"])
        log_prior += -0.5 * log_sd**2 - 0.5 * jnp.log(2 * jnp.pi) - log_sd
        left = (jnp.asarray(y, jnp.float32) - basis @ p["w"]) / p["sd"]
        log_likelihood = -0.5 * jnp.sum(left**2) - len(x) * (log_sd + 0.5 * jnp.log(2 * jnp.pi))
        return -(log_prior + log_likelihood)

    return energy, {"w": egm.spaces.Real(degree + 1), "sd": egm.spaces.Positive()}


# %% [markdown]
# The truth, for comparison. Given the noise, y is normal with covariance sd^2 I + B B^T.


# %%
def exact(degree):
    """The evidence by quadrature over the noise."""
    basis = np.vander(x, degree + 1, increasing=True)
    values, vectors = np.linalg.eigh(basis @ basis.T)
    turned = vectors.T @ y

    def density(log_sd):
        variance = np.maximum(values, 0) + np.exp(2 * log_sd)
        log_p = -0.5 * np.sum(turned**2 / variance + np.log(2 * np.pi * variance))
        return np.exp(log_p - 0.5 * log_sd**2) / np.sqrt(2 * np.pi)

    return np.log(integrate.quad(density, -4, 3, limit=200)[0])


# %% [markdown]
# One call a model. `log_z` is the log of the evidence; `converged` says whether its error may be believed.

# %%
samplers = {}
for degree in (1, 2, 3):
    energy, space = model(degree)
    samplers[degree] = egm.fit(jax.random.key(degree), energy, space, seconds=90, progress=False)
    s = samplers[degree]
    error = abs(s.log_z - exact(degree))
    good = s.converged and error < 4 * s.log_z_error
    print(f"degree {degree}: log evidence {s.log_z:.2f} (exact {exact(degree):.2f}), agrees: {good}")

# %% [markdown]
# The posterior comes with it. Expectations are weighted, and their errors are those of the weights.

# %%
draw = samplers[2].sample(jax.random.key(10), 5000)
for name, function in {"noise": lambda p: p["sd"], "bend": lambda p: p["w"][:, 2]}.items():
    mean, error = draw.expectation(function)
    print(f"{name}: {mean:.2f}, known to a hundredth: {bool(error < 0.01)}")

# %% The data, forty curves of the posterior of degree 2, and the evidence of three models with exact values.
p = draw.resample(jax.random.key(11), 40)
grid = np.linspace(-1.2, 1.2, 100)
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
left.plot(grid, np.vander(grid, 3, increasing=True) @ np.asarray(p["w"]).T, color="#4477aa", alpha=0.2)
left.plot(x, y, "k.")
left.set(xlabel="x", ylabel="y", title="curves of the posterior, degree 2")
degrees = list(samplers)
bars = [samplers[d].log_z for d in degrees]
right.errorbar(
    degrees, bars, [samplers[d].log_z_error for d in degrees], fmt="o", color="#4477aa", label="egm.fit"
)
right.plot(degrees, [exact(d) for d in degrees], "kx", ms=9, label="exact")
right.set(xlabel="degree of the polynomial", ylabel="log evidence", xticks=degrees)
right.legend()
