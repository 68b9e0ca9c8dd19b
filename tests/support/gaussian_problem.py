"""Gaussian mixtures whose marginals on a Gaussian path are closed forms, alone and labelled by tokens."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from egm.paths import MaskedPath, ProductPath
from egm.typing import Gaussian, TargetMixture

LOG_Z = 0.7


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianProblem:
    """E(x) = -log sum_m w_m N(x; mean_m, sd_m^2 I) - log Z on the space of a Gaussian path.

    Attributes:
      path: a Gaussian path.
      means: [M, D], in the path's space.
      sds: [M]. weights: [M], sum 1.
      record: how much `generator` tells: "velocity", "score" or "variance", each with those before it; or
        "mixture".
    """

    path: Any
    means: np.ndarray
    sds: np.ndarray
    weights: np.ndarray
    record: str = "velocity"
    log_z: float = LOG_Z

    def __call__(self, x):
        return -self.log_density(x, jnp.ones(x.shape[:-1], x.dtype)) - self.log_z

    def posterior(self, x, t):
        """log p_t(x) + log p(m | x), [..., M], and mean and variance of x_1 given x and m."""
        alpha, noise = self.path.alpha(t)[..., None], self.path.variance(t)[..., None]
        var = _like(self.sds**2, t)
        total = alpha**2 * var + noise
        off = x[..., None, :] - alpha[..., None] * _like(self.means, t)
        size = self.path.dimension(x.shape[-1])
        log_joint = _like(np.log(self.weights), t) - 0.5 * (
            jnp.sum(off**2, -1) / total + size * jnp.log(2 * np.pi * total)
        )
        mean = _like(self.means, t) + (alpha * var / total)[..., None] * off
        # A coordinate of isotropic noise on a subspace has less variance than one of the whole space.
        return log_joint, mean, var * noise / total * (size / x.shape[-1])

    def log_density(self, x, t):
        """log p_t(x) [...], x [..., D] and t [...]."""
        return jax.nn.logsumexp(self.posterior(x, t)[0], axis=-1)

    def moments(self, x, t):
        """Mean and variance of each coordinate of x_1 given x_t."""
        log_joint, mean, var = self.posterior(x, t)
        p = jax.nn.softmax(log_joint, axis=-1)[..., None]
        first = jnp.sum(p * mean, axis=-2)
        return first, jnp.sum(p * (var[..., None] + (mean - first[..., None, :]) ** 2), axis=-2)

    def score(self, x, t):
        """By d/dx of the mixture's density, component by component."""
        log_joint, _, _ = self.posterior(x, t)
        total = (self.path.alpha(t)[..., None] * _like(self.sds, t)) ** 2 + self.path.variance(t)[..., None]
        off = x[..., None, :] - self.path.alpha(t)[..., None, None] * _like(self.means, t)
        return -jnp.sum((jax.nn.softmax(log_joint, axis=-1) / total)[..., None] * off, axis=-2)

    def velocity(self, x, t):
        """alpha' E[x_1 | x] + sigma' E[noise | x], E[noise | x] being -sigma times the score."""
        alpha_dot, variance_dot = self.path.alpha_dot(t)[..., None], self.path.variance_dot(t)[..., None]
        return alpha_dot * self.moments(x, t)[0] - 0.5 * variance_dot * self.score(x, t)

    def exact_samples(self, n, seed=0):
        rng = np.random.default_rng(seed)
        which = rng.choice(len(self.weights), n, p=self.weights)
        noise = self.path.project(jnp.asarray(rng.normal(size=(n, self.means.shape[1]))))
        return jnp.asarray(self.means[which], float) + jnp.asarray(self.sds[which, None], float) * noise

    def exact_generator(self, x, t):
        """The marginal generator: the velocity or, by `record`, more."""
        if self.record == "mixture":
            return self._parts(x)
        return self._told(self.velocity(x, t), self.score(x, t), self.moments(x, t)[1])

    def _parts(self, x, shift=0.0, log_shift=0.0, log_factor=0.0):
        """The target itself as a `TargetMixture`, or a wrong one, at each of the points."""
        like = lambda values: _like(values, x[..., 0])
        variances = like(np.broadcast_to(self.sds[:, None] ** 2, self.means.shape))
        return TargetMixture(
            like(np.log(self.weights)) + log_shift,
            like(self.means) + shift,
            variances * jnp.exp(log_factor),
        )

    def random_generator(self, x, t):
        """An untrained one: the velocity, the score and the variance are off by bounded functions."""
        wave = self.path.project(jnp.sin(1.3 * x + 2 * t[:, None]))
        if self.record == "mixture":
            count = jnp.arange(float(len(self.weights)))[None]
            return self._parts(x, 0.4 * wave[:, None], 0.5 * wave[:, :1] * count, 0.3 * wave[:, None])
        variance = self.moments(x, t)[1] * (1 + 0.2 * jnp.cos(x))
        # An error of the score moves the denoised state by sigma^2 / alpha times it.
        alpha = self.path.alpha(t)[:, None]
        return self._told(self.velocity(x, t) + 0.3 * wave, self.score(x, t) - 0.2 * alpha * wave, variance)

    def _told(self, velocity, score, variance):
        if self.record == "velocity":
            return velocity
        return Gaussian(velocity, score, variance if self.record == "variance" else None)


@dataclasses.dataclass(frozen=True, eq=False)
class MixedProblem:
    """p(x, h) = p(h) N(x; means[h], sd^2 I) on L sites of two tokens, every completion enumerated.

    Attributes:
      path: ProductPath({"x": a Gaussian path, "h": MaskedPath(2)}).
      states: [2^L, L] tokens. probabilities: [2^L]. mixture: the `GaussianProblem` of x.
    """

    path: Any
    states: np.ndarray
    mixture: GaussianProblem
    log_z: float = LOG_Z

    def __call__(self, state):
        """E(x, h)."""
        x, h = state["x"], state["h"]
        log_joint = self.mixture.posterior(x, jnp.ones(x.shape[:-1], x.dtype))[0]
        return -jnp.sum(jnp.where(self._agrees(h), log_joint, 0.0), axis=-1) - self.log_z

    def _agrees(self, h):
        wide = _like(self.states, h[..., 0])
        return jnp.all((h[..., None, :] == wide) | (h[..., None, :] == 2), axis=-1)

    def exact_generator(self, state, t):
        """{"x": Gaussian, "h": denoiser}, of the components that the visible tokens allow."""
        x, h = state["x"], state["h"]
        path = self.mixture.path
        log_joint, mean, var = self.mixture.posterior(x, t)
        p = jax.nn.softmax(jnp.where(self._agrees(h), log_joint, -jnp.inf), axis=-1)
        first = jnp.sum(p[..., None] * mean, axis=-2)
        spread = jnp.sum(p[..., None] * (var[..., None] + (mean - first[..., None, :]) ** 2), axis=-2)
        alpha = path.alpha(t)[..., None]
        total = alpha**2 * _like(self.mixture.sds**2, t) + path.variance(t)[..., None]
        off = x[..., None, :] - alpha[..., None] * _like(self.mixture.means, t)
        score = -jnp.sum((p / total)[..., None] * off, axis=-2)
        one_hot = jax.nn.one_hot(jnp.asarray(self.states), 2, dtype=x.dtype)
        velocity = path.alpha_dot(t)[..., None] * first - 0.5 * path.variance_dot(t)[..., None] * score
        return {"x": Gaussian(velocity, score, spread), "h": jnp.einsum("ns,slv->nlv", p, one_hot)}

    def random_generator(self, state, t):
        exact = self.exact_generator(state, t)
        shift = 0.2 * jnp.sin(1.3 * state["x"] + jnp.sum(state["h"], -1, keepdims=True) + t[:, None])
        u, s, spread = exact["x"]
        alpha = self.mixture.path.alpha(t)[:, None]
        masked = (state["h"] == 2)[..., None]
        flat = 0.5 + 0.2 * jnp.tanh(state["x"][:, :1, None]) * jnp.broadcast_to(
            jnp.array([1.0, -1.0]), (1, 1, 2)
        )
        probs = jnp.where(masked, 0.7 * exact["h"] + 0.3 * flat, exact["h"])
        return {"x": Gaussian(u + shift, s + alpha * shift, spread * (1 + shift)), "h": probs}

    def exact_samples(self, n, seed=0):
        rng = np.random.default_rng(seed)
        mixture = self.mixture
        which = rng.choice(len(mixture.weights), n, p=mixture.weights)
        x = mixture.means[which] + mixture.sds[which, None] * rng.normal(size=(n, mixture.means.shape[1]))
        return {"x": jnp.asarray(x, float), "h": jnp.asarray(self.states[which], jnp.int32)}


def _like(values, batch):
    """`values` with the batch axes of `batch` in front."""
    return jnp.broadcast_to(jnp.asarray(values, float), (*batch.shape, *np.shape(values)))


@functools.cache
def gaussian_problem(path, dim=1, components=2, record="velocity", scale=1.0):
    """Fixed components of scale `scale`; equal arguments give the same object."""
    rng = np.random.default_rng(components)
    means = np.asarray(path.project(jnp.asarray(scale * rng.normal(size=(components, dim)))))
    sds = scale * np.linspace(0.5, 0.7, components)
    weights = np.arange(1.0, components + 1)
    return GaussianProblem(path, means, sds, weights / weights.sum(), record)


@functools.cache
def mixed_problem(gaussian, sites=2, dim=1):
    states = np.array(list(itertools.product(range(2), repeat=sites)), np.int32)
    table = np.random.default_rng(1).normal(size=len(states)) * 0.5
    means = np.stack([states @ np.arange(1.0, sites + 1) - 1.5] + [states[:, 0] - 0.5] * (dim - 1), axis=-1)
    weights = np.exp(table - scipy.special.logsumexp(table))
    mixture = GaussianProblem(gaussian, means, np.full(len(states), 0.6), weights, "variance")
    return MixedProblem(ProductPath({"x": gaussian, "h": MaskedPath(2)}), states, mixture)
