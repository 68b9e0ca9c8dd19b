"""Mixed targets whose tokens say which Gaussian x comes from, without and with coupled tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, random
from egm.energies import state_checks
from egm.typing import Array, Key, State

__all__ = ["CoupledJointMixture", "JointGaussianMixture"]

_MAX_MODE_DIM = 12


class _Spins:
    """What both mixtures share: {"x": [..., dim], "h": [..., dim]} with spins s = 2 h - 1, V = 2."""

    dim: int
    mode: float

    @property
    def vocab_size(self) -> int:
        """V = 2; the mask token is 2."""
        return 2

    @property
    def event_shape(self) -> dict[str, tuple[int, ...]]:
        """{"x": (dim,), "h": (dim,)}."""
        return {"x": (self.dim,), "h": (self.dim,)}

    @property
    def modes(self) -> np.ndarray:
        """[2^dim, dim] the corners mode * s; no such attribute above dim 12."""
        return self.mode * self._corners()

    @property
    def mode_masses(self) -> np.ndarray:
        """[2^dim] probability of each corner's tokens, which is not quite that of its orthant."""
        spins = self._corners()
        return np.exp(self._log_weight(spins) - self._log_token_partition())

    def _log_weight(self, spins: Any) -> Any:
        raise NotImplementedError

    def _log_token_partition(self) -> float:
        raise NotImplementedError

    def _corners(self):
        if self.dim > _MAX_MODE_DIM:
            raise AttributeError(f"modes are listed up to dim {_MAX_MODE_DIM}, got dim {self.dim}")
        return 2.0 * state_checks.tokens_of_integers(self.dim) - 1

    def _spins_and_x(self, state):
        x, h = state_checks.mixed(state, self.dim, self.dim)
        return x, 2 * h - 1

    def _mean_spins_and_x(self, state):
        x, p = state_checks.probabilities(state, self.dim, self.dim, 2)
        return x, 2 * p[..., 1] - 1


@dataclasses.dataclass(frozen=True)
class JointGaussianMixture(_Spins):
    """E(x, h) = sum_i (x_i - mode s_i)^2 / (2 sigma^2) on {"x": [..., dim], "h": [..., dim]}, s = 2h - 1.

    Coordinates are independent, every corner mode * s of the cube is a mode of equal mass, and
    log Z = dim (log 2 + log(2 pi sigma^2) / 2).

    Attributes:
      dim: D and L.
      mode: where the two modes of a coordinate lie, +mode and -mode.
      sigma: standard deviation of x given h.

    Examples:
      >>> energy = egm.energies.JointGaussianMixture(dim=4)
      >>> state = energy.sample(jax.random.key(0), 5)
      >>> state["x"].shape, state["h"].shape
      ((5, 4), (5, 4))
      >>> print(f"log Z {energy.log_partition():.3f}")
      log Z 1.632
    """

    dim: int = 10
    mode: float = 1.0
    sigma: float = 0.3

    def __post_init__(self):
        object.__setattr__(self, "dim", checks.positive_int(self.dim, "dim"))
        for name in ("mode", "sigma"):
            object.__setattr__(self, name, state_checks.length(getattr(self, name), name))

    def __call__(self, state: State) -> Array:
        """E(x, h), [...] in the dtype of x, at least float32.

        Raises:
          TypeError, ValueError: `state` is no {"x": [..., dim] float, "h": [..., dim] integer}.
        """
        x, s = self._spins_and_x(state)
        return jnp.sum((x - self.mode * s) ** 2, axis=-1) / (2 * self.sigma**2)

    def single_site_conditionals(self, state: State) -> Array:
        """Logits [..., L, V] = -E(x, h with site i set to v) up to a constant a site."""
        x, _ = self._spins_and_x(state)
        up = self.mode * x / self.sigma**2
        return jnp.stack([-up, up], axis=-1)

    def relaxed(self, state: State) -> Array:
        """[...] the mean of E(x, h) over independent tokens with probabilities "h" [..., L, V]."""
        x, m = self._mean_spins_and_x(state)
        squared = (x - self.mode * m) ** 2 + self.mode**2 * (1 - m**2)
        return jnp.sum(squared, axis=-1) / (2 * self.sigma**2)

    def marginal_energy(self, x: Array) -> Array:
        """[...] -log sum_h exp(-E(x, h)) of x [..., dim]."""
        x = state_checks.vector(x, self.dim)
        down, up = ((x + sign * self.mode) ** 2 / (2 * self.sigma**2) for sign in (1, -1))
        return -jnp.sum(jnp.logaddexp(-down, -up), axis=-1)

    def log_partition(self) -> float:
        """Log of the sum over h of the integral over x of exp(-E)."""
        return self._log_token_partition() + 0.5 * self.dim * math.log(2 * math.pi * self.sigma**2)

    def token_marginals(self) -> tuple[np.ndarray, np.ndarray]:
        """(E[s_i] [dim], E[s_i s_j] [dim, dim]), exact: zeros and the identity."""
        return np.zeros(self.dim), np.eye(self.dim)

    def sample(self, key: Key, n: int) -> State:
        """{"x": [n, dim], "h": [n, dim] int32} exact independent samples.

        Raises:
          TypeError, ValueError: `key` is not one typed key, `n` no positive int.
        """
        n = state_checks.sample_size(key, n)
        tokens, noise = random.split(key)
        h = jax.random.bernoulli(tokens, shape=(n, self.dim)).astype(jnp.int32)
        x = self.mode * (2.0 * h - 1) + self.sigma * jax.random.normal(noise, (n, self.dim))
        return {"x": x, "h": h}

    def _log_weight(self, spins):
        return np.zeros(len(spins))

    def _log_token_partition(self):
        return self.dim * math.log(2)


@dataclasses.dataclass(frozen=True)
class CoupledJointMixture(_Spins):
    """A periodic Ising ring of tokens, and x given the tokens a correlated Gaussian around mode * s.

    E(x, h) = -J sum_i s_i s_{i+1} + (x - mode s)^T Sigma^-1 (x - mode s) / 2 on
    {"x": [..., dim], "h": [..., dim]}, s = 2h - 1, i + 1 taken modulo dim (at dim 2 the one pair
    counts twice), Sigma_ij = sigma^2 rho^|i-j|, which is positive definite for every |rho| < 1 and has
    a tridiagonal inverse (an autoregression along i, open at the ends).
    log Z = log Z_ring + log det(2 pi Sigma) / 2, Z_ring = (2 cosh J)^dim (1 + tanh(J)^dim).

    Attributes:
      dim: D and L, at least 2.
      coupling: J.
      mode: where the two modes of a coordinate lie, +mode and -mode.
      sigma: standard deviation of each x_i given h.
      correlation: rho, between -1 and 1.
    """

    dim: int = 10
    coupling: float = 0.3
    mode: float = 1.0
    sigma: float = 0.4
    correlation: float = 0.5

    def __post_init__(self):
        object.__setattr__(self, "dim", checks.positive_int(self.dim, "dim", minimum=2))
        for name in ("mode", "sigma"):
            object.__setattr__(self, name, state_checks.length(getattr(self, name), name))
        for name in ("coupling", "correlation"):
            object.__setattr__(self, name, checks.finite_float(getattr(self, name), name))
        if abs(self.correlation) >= 1:
            raise ValueError(f"correlation must lie strictly between -1 and 1, got {self.correlation}")

    def __call__(self, state: State) -> Array:
        """E(x, h), [...] in the dtype of x, at least float32.

        Raises:
          TypeError, ValueError: `state` is no {"x": [..., dim] float, "h": [..., dim] integer}.
        """
        x, s = self._spins_and_x(state)
        return self._energy(x, s)

    def single_site_conditionals(self, state: State) -> Array:
        """Logits [..., L, V] = -E(x, h with site i set to v) up to a constant a site."""
        x, s = self._spins_and_x(state)
        near = jnp.roll(s, 1, axis=-1) + jnp.roll(s, -1, axis=-1)
        # E is quadratic in s with s_i^2 constant: the spin's own diagonal term must not count.
        own = self.mode * s * state_checks.constant(np.diag(self.precision()), x)
        up = self.coupling * near + self.mode * (self._whiten(x - self.mode * s) + own)
        return jnp.stack([-up, up], axis=-1)

    def relaxed(self, state: State) -> Array:
        """[...] the mean of E(x, h) over independent tokens with probabilities "h" [..., L, V]."""
        x, m = self._mean_spins_and_x(state)
        spread = (1 - m**2) * state_checks.constant(np.diag(self.precision()), x)
        return self._energy(x, m) + 0.5 * self.mode**2 * jnp.sum(spread, axis=-1)

    def covariance(self) -> np.ndarray:
        """[dim, dim] Sigma of x given the tokens, float64."""
        i = np.arange(self.dim)
        return self.sigma**2 * self.correlation ** np.abs(i[:, None] - i).astype(float)

    def precision(self) -> np.ndarray:
        """[dim, dim] the tridiagonal Sigma^-1, float64."""
        rho, diagonal = self.correlation, np.full(self.dim, 1 + self.correlation**2)
        diagonal[[0, -1]] = 1
        beside = np.full(self.dim - 1, -rho)
        return (np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)) / (self.sigma**2 * (1 - rho**2))

    def log_partition(self) -> float:
        """Log of the sum over h of the integral over x of exp(-E)."""
        log_det = self.dim * math.log(2 * math.pi * self.sigma**2)
        log_det += (self.dim - 1) * math.log1p(-(self.correlation**2))
        return self._log_token_partition() + 0.5 * log_det

    def token_marginals(self) -> tuple[np.ndarray, np.ndarray]:
        """(E[s_i] [dim], E[s_i s_j] [dim, dim]), exact by the ring's transfer matrix."""
        i = np.arange(self.dim)
        steps = np.abs(i[:, None] - i)
        # Both ways round the ring, t = tanh |J|: (t^k +- t^(n - k)) / (1 +- t^n) with the sign of each way.
        near, far = np.minimum(steps, self.dim - steps), np.maximum(steps, self.dim - steps)
        sign = np.sign(self.coupling) ** near
        ratio = _power_ratio(self.coupling, far - near, self.dim, self._frustrated)
        return np.zeros(self.dim), sign * np.exp(near * _log_tanh(self.coupling)) * ratio

    def sample(self, key: Key, n: int) -> State:
        """{"x": [n, dim], "h": [n, dim] int32} exact independent samples.

        The ring comes spin by spin: given s_0 and s_{i-1}, the odds of s_i are those of one bond and
        of the chain of dim - i bonds that leads back to s_0.

        Raises:
          TypeError, ValueError: `key` is not one typed key, `n` no positive int.
        """
        n = state_checks.sample_size(key, n)
        tokens, noise = random.split(key)
        uniform = jax.random.uniform(tokens, (self.dim, n))
        first = jnp.where(uniform[0] < 0.5, 1.0, -1.0)
        back = _chain_coupling(self.coupling, np.arange(self.dim - 1, 0, -1))
        # Differences of strong couplings decide: taken here, in float64.
        agree, differ = (jnp.asarray(2 * (self.coupling + sign * back), float) for sign in (1, -1))

        def draw(before, step):
            u, together, apart = step
            up = u < jax.nn.sigmoid(before * jnp.where(before == first, together, apart))
            spin = jnp.where(up, 1.0, -1.0)
            return spin, spin

        _, rest = jax.lax.scan(draw, first, (uniform[1:], agree, differ))
        s = jnp.concatenate([first[None], rest]).T
        # The factor of Sigma in closed form: one that is computed fails as |rho| goes to 1.
        i, rho = np.arange(self.dim), self.correlation
        lower = np.where(i <= i[:, None], rho ** np.maximum(i[:, None] - i, 0).astype(float), 0.0)
        lower[:, 1:] *= math.sqrt((1 - rho) * (1 + rho))
        factor = jnp.asarray(self.sigma * lower, float)
        z = jax.random.normal(noise, (n, self.dim))
        x = self.mode * s + jnp.matmul(z, factor.T, precision=jax.lax.Precision.HIGHEST)
        return {"x": x, "h": ((s + 1) / 2).astype(jnp.int32)}

    def _energy(self, x, s):
        bonds = jnp.sum(s * jnp.roll(s, -1, axis=-1), axis=-1)
        y = x - self.mode * s
        innovation = (y[..., 1:] - self.correlation * y[..., :-1]) ** 2 / (1 - self.correlation**2)
        squared = y[..., 0] ** 2 + jnp.sum(innovation, axis=-1)
        return -self.coupling * bonds + squared / (2 * self.sigma**2)

    def _whiten(self, y):
        """Sigma^-1 y."""
        return jnp.matmul(y, jnp.asarray(self.precision(), y.dtype), precision=jax.lax.Precision.HIGHEST)

    def _log_weight(self, spins):
        return self.coupling * np.sum(spins * np.roll(spins, -1, axis=1), axis=1)

    def _log_token_partition(self):
        j, n = abs(self.coupling), self.dim
        log_two_cosh = j + math.log1p(math.exp(-2 * j))
        if not self._frustrated:
            return n * log_two_cosh + math.log1p(math.exp(n * _log_tanh(j)))
        # 1 - tanh(j)^n, which is 2 n exp(-2 j) where the tanh rounds to 1.
        log_rest = math.log(2 * n) - 2 * j if j > 20 else math.log(-math.expm1(n * _log_tanh(j)))
        return n * log_two_cosh + log_rest

    @property
    def _frustrated(self):
        return self.coupling < 0 and self.dim % 2 == 1


def _log_tanh(coupling: float) -> float:
    """log tanh |J|, without rounding the tanh to 1; 0 has a very negative one."""
    q = math.exp(-2 * abs(coupling))
    return math.log1p(-q) - math.log1p(q) if q < 1 else -1e9


def _power_ratio(coupling: float, k: np.ndarray, n: int, frustrated: bool) -> np.ndarray:
    """(1 + t^k) / (1 + t^n), or with minus signs, t = tanh |J|: k / n where t is 1 to all digits."""
    log_t = _log_tanh(coupling)
    if not frustrated:
        return (1 + np.exp(k * log_t)) / (1 + math.exp(n * log_t))
    return np.expm1(k * log_t) / math.expm1(n * log_t) if log_t < -1e-30 else k / n


def _chain_coupling(coupling: float, k: np.ndarray) -> np.ndarray:
    """[M] artanh(tanh(J)^k), what k bonds in a row amount to; |J| - log(k) / 2 where J is strong."""
    sign = np.sign(coupling) ** k
    if abs(coupling) > 20:
        return sign * (abs(coupling) - np.log(k) / 2)
    log_power = k * _log_tanh(coupling)
    strength = 0.5 * (np.log1p(np.exp(log_power)) - np.log(-np.expm1(log_power)))
    return sign * np.where(k == 1, abs(coupling), strength)
