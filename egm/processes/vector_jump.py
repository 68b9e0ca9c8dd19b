"""Jumps on R^d that keep a Gaussian path's marginals: a rate, and a density of where they lead.

Given x_1 a state stays from t to r with the probability s = exp(-|x_t - xi x_1|^2 / (2 delta)), 1 / delta =
1 / sigma_r^2 - 1 / sigma_t^2 and xi = (alpha_r sigma_t^2 - alpha_t sigma_r^2) / (sigma_t^2 - sigma_r^2),
else it jumps to a fresh draw from p_{r|1}(. | x_1) = N(alpha_r x_1, sigma_r^2 I). That leads from p_{t|1}
to p_{r|1} at any two times, as s p_{t|1} is a multiple c(x_1) of p_{r|1}. Backward a state stays with the
probability c, else it jumps to p_{t|1} (1 - s) / (1 - c).

Source: jump generators of Generator Matching (arXiv 2410.20587); this rate, and its step of any length, are
this library's.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives, random
from egm.paths.centered import CenteredPath
from egm.paths.gaussian import GaussianPath
from egm.paths.wrapped import WrappedPath
from egm.processes import _gaussian
from egm.typing import Array, Key, ModelFn

__all__ = ["VectorJumpProcess"]

_DRAWS = 32
"""Candidates of a rejection at once, in `reverse_step`."""


@dataclasses.dataclass(frozen=True)
class VectorJumpProcess:
    """Jumps of whole states in R^D; between them a state does not move at all.

    The generator says a `TargetMixture`, by which p(x_1 | x) is a mixture of normal distributions: so are
    the densities of where jumps lead, and the probabilities to stay are sums of closed forms. Both kernels of
    a step are the exact ones of the process for that p(x_1 | x): with the exact mixture log w has no spread,
    whatever the number of steps; with any other weights are exact all the same.

    A jump need not pass through what lies between two modes: mass that is on the wrong side goes over as
    long as p(x_1 | x) says so. The last step of a grid always jumps: to p(x_1 | x) itself.

    Attributes:
      path: a Gaussian path on all of R^D (neither centred nor wrapped).

    Raises:
      TypeError: it is none.

    Examples:
      >>> path = egm.paths.VarianceExplodingPath(0.1, 5.0)
      >>> process = egm.processes.VectorJumpProcess(path)
      >>> target = egm.typing.TargetMixture(np.log([0.8, 0.2]), np.array([[-3.0], [3.0]]), np.ones((2, 1)))
      >>> generator = lambda x, t: jax.tree.map(lambda a: jnp.broadcast_to(a, (len(x), *a.shape)), target)
      >>> x_0 = path.sample_prior(jax.random.key(0), (2000, 1))
      >>> trajectory = egm.simulate(jax.random.key(1), process, generator, x_0, process.times(10))
      >>> bool(abs(jnp.mean(trajectory.x_1 < 0) - 0.8) < 0.05)
      True
    """

    path: GaussianPath

    def __post_init__(self):
        _gaussian.check_path(self.path)
        if isinstance(self.path, CenteredPath | WrappedPath):
            raise TypeError(f"path must be a Gaussian path on all of R^D, got {self.path!r}")

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times from the path."""
        return self.path.times(num_steps)

    def rate(self, x_t: Array, generator: ModelFn, t: Array) -> Array:
        """[N] the marginal rate of jumps: the mean of `path.conditional_rate` over p(x_1 | x_t); t < 1."""
        x_t, t, r = _gaussian.prepare(self.path, x_t, t, jnp.ones(()), "x_t")
        found = self._posterior(x_t, generator, t)
        k = lambda a: jnp.moveaxis(a, 1, 0)
        p = jnp.exp(k(found.log_weights))
        at_means = self.path.conditional_rate(x_t, t, k(found.means), r)
        # The rate is a quadratic form in x_1, whose curvature is what it is at 0 with x_t = 0.
        deviation = jnp.sqrt(k(found.variances))
        return jnp.sum(
            p * (at_means + self.path.conditional_rate(jnp.zeros_like(x_t), t, deviation, r)), axis=0
        )

    def step(self, key: Key, x_t: Array, generator: ModelFn, t: Array, r: Array) -> tuple[Array, Array]:
        """One step forward.

        Args:
          key: a typed key, or [N] of them.
          x_t: [N, D].
          generator: `fn(x, t)` that returns a `TargetMixture`.
          t: scalar or [N], before r.
          r: scalar or [N].

        Returns:
          (x_r [N, D], log_ratio [N] = log backward(x_t | x_r) - log forward(x_r | x_t)); both kernels have
          an atom where x_r = x_t.

        Raises:
          TypeError, ValueError: the generator returns no `TargetMixture`, or a shape is wrong.
        """
        x_t, t, r = _gaussian.prepare(self.path, x_t, t, r, "x_t")
        found, law = self._posterior(x_t, generator, t), _law(self.path, t, r, x_t.dtype)

        def one(key, x, found, law):
            k_data, k_stay, k_noise = random.split(key, 3)
            x_1 = _draw(k_data, found)
            stays = jnp.log(jax.random.uniform(k_stay, (), x.dtype)) < _log_stay(law, x, x_1)
            fresh = law.alpha_r * x_1 + jnp.sqrt(law.noise_r) * jax.random.normal(k_noise, x.shape, x.dtype)
            return jnp.where(stays & ~law.last, x, fresh)

        x_r = random.per_example(one, _keys(key, x_t), x_t, found, law)
        return x_r, self.log_ratio(x_t, x_r, generator, t, r)

    def reverse_step(self, key: Key, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """x_t [N, D] ~ backward(. | x_r): by rejection, of which smaller steps need more draws."""
        x_r, t, r = _gaussian.prepare(self.path, x_r, t, r, "x_r")
        found, law = self._posterior(x_r, generator, r), _law(self.path, t, r, x_r.dtype)

        def one(key, x, found, law):
            k_data, k_stay, k_noise = random.split(key, 3)
            x_1 = _draw(k_data, found)
            log_c = x.size * law.log_shrink - 0.5 * law.pull * jnp.sum(x_1**2)
            stays = jnp.log(jax.random.uniform(k_stay, (), x.dtype)) < log_c
            return jnp.where(stays & ~law.last, x, _rejected(k_noise, x_1, law))

        return random.per_example(one, _keys(key, x_r), x_r, found, law)

    def log_ratio(self, x_t: Array, x_r: Array, generator: ModelFn, t: Array, r: Array) -> Array:
        """[N] log backward - log forward of a given pair, as in `step`."""
        _, forward, backward = self.log_kernels(x_t, x_r, generator, generator, t, r)
        return backward - forward

    def log_kernels(
        self, x_t: Array, x_r: Array, before: ModelFn, after: ModelFn, t: Array, r: Array
    ) -> tuple[Array, Array, Array]:
        """(whether x_r = x_t by staying, log forward, log backward), [N] each.

        Where a state stays they are the logs of probabilities, else of densities. The generator `before` is
        asked at (x_t, t), `after` at (x_r, r).
        """
        x_t, x_r, t, r = _gaussian.prepare_pair(self.path, x_t, x_r, t, r)
        law = _law(self.path, t, r, x_t.dtype)
        stays = jnp.all(x_t == x_r, axis=-1) & ~law.last
        ahead = jax.vmap(_log_forward)(law, x_t, x_r, self._posterior(x_t, before, t))
        back = jax.vmap(_log_backward)(law, x_t, x_r, self._posterior(x_r, after, r))
        return stays, jnp.where(stays, *ahead), jnp.where(stays, *back)

    def _posterior(self, x, generator, t):
        out = checks.function(generator, "generator")(x, t)
        return _gaussian.mixture_posterior(self.path, _gaussian.checked_mixture(out, x), x, t)


class _Law(NamedTuple):
    """The numbers of a step, [N] each: those of the module's head, and log sigma_r / sigma_t."""

    alpha_t: Array
    alpha_r: Array
    noise_t: Array
    noise_r: Array
    sharpness: Array  # 1 / delta
    center: Array  # xi
    log_shrink: Array
    pull: Array  # c = (sigma_r / sigma_t)^D exp(-pull |x_1|^2 / 2)
    last: Array  # bool, r = 1: no state stays


def _law(path: GaussianPath, t: Array, r: Array, dtype) -> _Law:
    alpha_t, alpha_r = path.alpha(t), path.alpha(r)
    noise_t, noise_r = path.variance(t), path.variance(r)
    last = noise_r == 0
    # What is not used where no state stays, yet finite.
    held = jnp.where(last, 0.5 * noise_t, noise_r)
    lost = noise_t - held
    law = _Law(
        alpha_t=alpha_t,
        alpha_r=alpha_r,
        noise_t=noise_t,
        noise_r=noise_r,
        sharpness=lost / (held * noise_t),
        center=(alpha_r * noise_t - alpha_t * held) / lost,
        log_shrink=0.5 * jnp.log(held / noise_t),
        pull=(alpha_r - alpha_t) ** 2 / lost,
        last=last,
    )
    return jax.tree.map(lambda a: a if a.dtype == bool else a.astype(dtype), law)


def _draw(key: Array, found: _gaussian.Posterior) -> Array:
    """x_1 [D] from the mixture of one example."""
    k_part, k_noise = random.split(key)
    part = random.categorical(k_part, jnp.exp(found.log_weights))
    mean, variance = found.means[part], found.variances[part]
    return mean + jnp.sqrt(variance) * jax.random.normal(k_noise, mean.shape, mean.dtype)


def _log_stay(law: _Law, x_t: Array, mean: Array, variance: Array | float = 0.0) -> Array:
    """log E s(x_t; x_1) over x_1 ~ N(mean, diag(variance)), [..., D] each; the sum over the last axis."""
    widened = law.sharpness * law.center**2 * variance
    square = law.sharpness * jnp.square(x_t - law.center * mean)
    return -0.5 * jnp.sum(square / (1 + widened) + jnp.log1p(widened), axis=-1)


def _log_moved(law: _Law, x_t: Array, y: Array, found: _gaussian.Posterior, alpha, noise) -> Array:
    """log of the density of y ~ N(alpha x_1, noise) times that of no stay, over x_1 ~ the mixture."""
    mean, variance = found.means, found.variances
    total = noise + alpha**2 * variance
    off = y[None] - alpha * mean
    normal = -0.5 * jnp.sum(off**2 / total + jnp.log(2 * jnp.pi * total), axis=-1)
    # x_1 given y too, for each part.
    share = variance / total
    stay = _log_stay(law, x_t[None], mean + alpha * share * off, share * noise)
    left = jnp.where(law.last, 0.0, jnp.log(-jnp.expm1(stay)))
    return jax.nn.logsumexp(found.log_weights + normal + left)


def _log_forward(law: _Law, x_t: Array, x_r: Array, found: _gaussian.Posterior) -> tuple[Array, Array]:
    """(log of the probability to stay at x_t, log-density of a jump to x_r) of one example."""
    stay = jax.nn.logsumexp(found.log_weights + _log_stay(law, x_t[None], found.means, found.variances))
    return stay, _log_moved(law, x_t, x_r, found, law.alpha_r, law.noise_r)


def _log_backward(law: _Law, x_t: Array, x_r: Array, found: _gaussian.Posterior) -> tuple[Array, Array]:
    """(log of the probability to have stayed at x_r, log-density of a jump from x_t) of one example."""
    widened = law.pull * found.variances
    pulled = -0.5 * jnp.sum(law.pull * found.means**2 / (1 + widened) + jnp.log1p(widened), axis=-1)
    stay = jax.nn.logsumexp(found.log_weights + pulled) + x_r.size * law.log_shrink
    return stay, _log_moved(law, x_t, x_t, found, law.alpha_t, law.noise_t)


def _rejected(key: Array, x_1: Array, law: _Law) -> Array:
    """x_t [D] from p_{t|1} (1 - s) / (1 - c)."""

    def draw(state):
        key, _, _ = state
        key, k_noise, k_accept = random.split(key, 3)
        noise = jax.random.normal(k_noise, (_DRAWS, *x_1.shape), x_1.dtype)
        x = law.alpha_t * x_1[None] + jnp.sqrt(law.noise_t) * noise
        stay = jnp.where(law.last, -jnp.inf, _log_stay(law, x, x_1[None]))
        taken = jax.random.uniform(k_accept, (_DRAWS,), x_1.dtype) < -jnp.expm1(stay)
        return key, x[jnp.argmax(taken)], jnp.any(taken)

    start = (key, x_1, jnp.zeros((), bool))
    start = collectives.varying_like(start, (key, x_1, law.last))
    return jax.lax.while_loop(lambda state: ~state[2], draw, start)[1]


def _keys(key: Key, x: Array) -> Array:
    return random.derive(random.example_keys(key, x.shape[0]), "vector jump")
