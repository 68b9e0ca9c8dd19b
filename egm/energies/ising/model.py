"""The Ising model on a periodic square lattice, with exact answers to judge samplers by.

Energies and conditionals are jax functions; log Z, histograms, moments and samples are exact and
computed on the host (`_ising_exact`), but for samples of large lattices, which come from coupling
from the past on the device.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks
from egm.energies import lattices
from egm.energies.ising import closed_form, density_of_states, enumeration, exact, transfer
from egm.energies.ising.coupling_from_the_past import couple_from_the_past
from egm.typing import Array, Key

__all__ = ["Ising"]

_MAX_ENERGY = 1e38
_DIRECTIONS = ((1, 0), (-1, 0), (0, 1), (0, -1))
"""Down, up, right, left: opposite ones differ in the last bit of their index."""


@dataclasses.dataclass(frozen=True)
class Ising:
    """E(x) = beta (-J sum_<ij> s_i s_j - h sum_i s_i) on a periodic `side` x `side` lattice.

    Tokens are 0 and 1, the spin of token x is s = 2x - 1, sites are in row-major order, L = side^2.
    The first sum runs over every site's right and lower neighbour: each bond once, and at side 2,
    where both ways round the torus join the same pair, each pair twice. p(x) is proportional to
    exp(-E(x)), beta inside E.

    What is exact, and where:
      `log_partition`: any side at zero field, side <= 16 with a field.
      `sample`: side <= 16; beyond, coupling > 0, or coupling < 0 with an even side.
      `energy_histogram`: side <= 5, side <= 32 at zero field.
      `magnetization_histogram`: side <= 12.
      `correlation_function`: side <= 16.

    Attributes:
      side: lattice side, at least 2.
      inverse_temperature: beta >= 0; the infinite lattice at J = 1 is critical at
        log(1 + sqrt(2)) / 2 = 0.4407.
      coupling: J, ferromagnetic where positive.
      field: h.

    Examples:
      >>> energy = egm.energies.Ising(side=4, inverse_temperature=0.4)
      >>> x = energy.sample(jax.random.key(0), 5)  # exact, tokens 0 and 1
      >>> x.shape, energy(x).shape
      ((5, 16), (5,))
      >>> print(f"{energy(jnp.ones((1, 16), jnp.int32))[0]:.1f}, log Z {energy.log_partition():.3f}")
      -12.8, log Z 14.561
    """

    side: int
    inverse_temperature: float
    coupling: float = 1.0
    field: float = 0.0

    def __post_init__(self):
        beta = checks.positive_float(self.inverse_temperature, "inverse_temperature", allow_zero=True)
        object.__setattr__(self, "side", checks.positive_int(self.side, "side", minimum=2))
        object.__setattr__(self, "inverse_temperature", beta)
        for name in ("coupling", "field"):
            object.__setattr__(self, name, checks.finite_float(getattr(self, name), name))
        largest = beta * self.num_sites * (2 * abs(self.coupling) + abs(self.field))
        if not largest < _MAX_ENERGY:
            raise ValueError(
                f"inverse_temperature * (2 |coupling| + |field|) * side^2 must be below {_MAX_ENERGY:.0e}, "
                f"the range of float32 energies, got {largest:.3g}"
            )

    @property
    def num_sites(self) -> int:
        """L = side^2."""
        return self.side**2

    @property
    def vocab_size(self) -> int:
        """V = 2; the mask token is 2."""
        return 2

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(L,)."""
        return (self.num_sites,)

    @property
    def _bond(self) -> float:
        return self.inverse_temperature * self.coupling

    @property
    def _site(self) -> float:
        return self.inverse_temperature * self.field

    def __call__(self, x: Array) -> Array:
        """Energy of each configuration.

        Args:
          x: [..., L] integer tokens in {0, 1}, of any integer dtype.

        Returns:
          [...] E(x) in the default float dtype; its sums are integers, so only scaling rounds.

        Raises:
          TypeError: `x` is not of an integer dtype. ValueError: its trailing size is not L.
        """
        return self._energy(self._spins(x))

    def single_site_conditionals(self, x: Array) -> Array:
        """Logits of every site's token given all the others, at the cost of one energy.

        Args:
          x: [..., L] integer tokens in {0, 1}; the logits of site i do not depend on x_i.

        Returns:
          [..., L, V] -E(x with site i set to v) up to a constant a site; the two logits of a site
          sum to zero.

        Raises:
          TypeError: `x` is not of an integer dtype. ValueError: its trailing size is not L.
        """
        return self._conditionals(self._spins(x))

    def masked_conditionals(self, x: Array) -> Array:
        """`single_site_conditionals` where some sites hold the mask: their spins count as zero.

        A starting point for a denoiser, exact at a site whose four neighbours are revealed.

        Args:
          x: [..., L] integer tokens in {0, 1, 2}, 2 the mask.

        Returns:
          [..., L, V] logits.

        Raises:
          TypeError: `x` is not of an integer dtype. ValueError: its trailing size is not L.
        """
        s = self._spins(x)
        return self._conditionals(jnp.where(s > 1, jnp.zeros_like(s), s))

    @property
    def colouring(self) -> tuple[int, ...]:
        """[L] a colour for each site, no two of one colour next to each other: the checkerboard's two.

        On odd sides, where there is none of two colours, one of three or four.
        """
        return lattices.colouring(self.num_sites, lattices.square((self.side, self.side)))

    def revealed_conditionals(self, x: Array, scale: Any = 1.0, depth: int = 1) -> tuple[Array, Array]:
        """Logits of the hidden sites given the revealed ones, and where they are exact.

        Hidden neighbours are summed over, as if they hung together through this site alone: exact where
        they do, and where all neighbours are revealed (belief propagation in `depth` rounds, from no
        messages; exact at hidden sites in a tree that ends in revealed ones within `depth` bonds).

        Args:
          x: [..., L] integer tokens in {0, 1, 2}, 2 the mask.
          scale: factor on the energy, a scalar, may be traced.
          depth: rounds, at least 0; on a side of 2, where bonds are double, 0 is used.

        Returns:
          (logits [..., L, V], which sum to zero, exact [..., L] bool, False at revealed sites).

        Raises:
          TypeError: `x` is not of an integer dtype. ValueError: its trailing size is not L.
        """
        s = self._spins(x)
        hidden = s > 1
        bond, site = scale * self._bond, scale * self._site
        spins = jnp.where(hidden, 0, s).astype(float)
        # Of each direction, what comes from the neighbour there: a field, and whether it is exact.
        near = [lambda a, o=o: jnp.roll(a, (-o[0], -o[1]), axis=(-2, -1)) for o in _DIRECTIONS]
        shown = [bond * of(spins) for of in near]
        known = [of(~hidden) for of in near]
        field, exact = list(shown), list(known)
        for _ in range(0 if self.side == 2 else depth):
            send, safe = [], []
            for d, of in enumerate(near):
                others = [k for k in range(4) if k != d ^ 1]
                cavity = site + sum(field[k] for k in others)
                # artanh(tanh(bond) tanh(cavity)), which rounds well however strong they are.
                message = 0.5 * (_log_cosh(bond + cavity) - _log_cosh(bond - cavity))
                send.append(jnp.where(known[d], shown[d], of(message)))
                safe.append(known[d] | of(functools.reduce(operator.and_, [exact[k] for k in others])))
            field, exact = send, safe
        total = site + sum(field)
        flat = lambda a: a.reshape(*a.shape[:-2], self.num_sites)
        total = flat(jnp.broadcast_to(total, s.shape))
        certain = flat(functools.reduce(operator.and_, exact) & hidden)
        return jnp.stack([-total, total], axis=-1), certain

    def revealed_energy(self, x: Array) -> Array:
        """The energy of the revealed part: masked spins count as zero.

        A starting point for a log-marginal: g is minus this plus what the hidden spins add.

        Args:
          x: [..., L] integer tokens in {0, 1, 2}, 2 the mask.

        Returns:
          [...] E with the bonds and fields of revealed spins alone.

        Raises:
          TypeError: `x` is not of an integer dtype. ValueError: its trailing size is not L.
        """
        s = self._spins(x)
        return self._energy(jnp.where(s > 1, jnp.zeros_like(s), s))

    def masked_log_marginal(self, x: Array) -> Array:
        """log of the mean of exp(-E) over the hidden spins, as if they saw revealed ones alone.

        Exact where no hidden spin is next to another: sum of log cosh of the fields that the revealed ones
        make, minus `revealed_energy`. A starting point for g, exact at t = 1.

        Args:
          x: [..., L] integer tokens in {0, 1, 2}, 2 the mask.

        Returns:
          [...].

        Raises:
          TypeError: `x` is not of an integer dtype. ValueError: its trailing size is not L.
        """
        fields = jax.nn.logsumexp(self.masked_conditionals(x), axis=-1) - np.log(2.0)
        hidden = jnp.asarray(x) == self.vocab_size
        return jnp.sum(jnp.where(hidden, fields, 0.0), axis=-1) - self.revealed_energy(x)

    def log_partition(self) -> float:
        """log sum_x exp(-E(x)) in float64.

        Enumeration up to side 5, Kaufman's formula at zero field (the exact density of states where
        the lattice is frustrated: odd side, negative coupling), the transfer matrix with a field
        (seconds up to side 15, half a minute at 16).

        Raises:
          ValueError: a field on a lattice of side above 16.
        """
        if self.side <= enumeration.MAX_ENUMERATION_SIDE:
            return enumeration.enumerated_log_partition(self.side, self._bond, self._site)
        if self._site == 0:
            if self._bond >= 0 or self.side % 2 == 0:
                return closed_form.kaufman_log_partition(self.side, abs(self._bond))
            return density_of_states.density_log_partition(self.side, self._bond)
        self._supported("log_partition", transfer.MAX_TRANSFER_SIDE, "any side at zero field, or ")
        return transfer.row_distribution(self.side, self._bond, self._site)[1]

    def energy_histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """The exact distribution of E(x), beta inside.

        Returns:
          (energies [M] sorted, probabilities [M]), both float64.

        Raises:
          ValueError: side above 5 with a field, or above 32.
        """
        if self._site:
            limit = enumeration.MAX_ENUMERATION_SIDE
            self._supported("energy_histogram", limit, "side up to 32 at zero field, or ")
        else:
            self._supported("energy_histogram", density_of_states.MAX_DENSITY_SIDE)
        return exact.energy_histogram(self.side, self._bond, self._site)

    def magnetization_histogram(self) -> tuple[np.ndarray, np.ndarray]:
        """The exact distribution of the signed magnetisation a site, sum_i s_i / L.

        Takes a second or two up to side 11, up to a minute at side 12. Where couplings are strong
        (about 2 beta (3 |J| + |h|) side above 600) probabilities below 1e-17 may read 0.

        Returns:
          (m [L + 1] from -1 to 1, probabilities [L + 1]), both float64.

        Raises:
          ValueError: side above 12.
        """
        self._supported("magnetization_histogram", transfer.MAX_MAGNETIZATION_SIDE)
        compute = transfer.magnetization_probabilities
        if self.side <= enumeration.MAX_ENUMERATION_SIDE:
            compute = enumeration.enumerated_magnetization
        m = (2 * np.arange(self.num_sites + 1) - self.num_sites) / self.num_sites
        return m, compute(self.side, self._bond, self._site)

    def exact_moments(self) -> dict[str, float]:
        """Exact moments in float64; a key is absent where its histogram is not available.

        Returns:
          `mean_energy`: mean of E(x), beta inside, of the whole lattice.
          `heat_capacity`: Var[E(x)] / L, which is beta^2 Var[E / beta] / L.
          `mean_abs_magnetization`, `mean_squared_magnetization`: means of |m| and m^2, m a site.
          `binder_cumulant`: 1 - <m^4> / (3 <m^2>^2); -inf where m^2 is 0 to the precision of float64,
            as deep in an antiferromagnet.
        """
        moments = {}
        limit = enumeration.MAX_ENUMERATION_SIDE if self._site else density_of_states.MAX_DENSITY_SIDE
        if self.side <= limit:
            energies, p = self.energy_histogram()
            mean = p @ energies
            moments["mean_energy"] = float(mean)
            moments["heat_capacity"] = float(p @ (energies - mean) ** 2 / self.num_sites)
        if self.side <= transfer.MAX_MAGNETIZATION_SIDE:
            m, p = self.magnetization_histogram()
            moments["mean_abs_magnetization"] = float(p @ np.abs(m))
            squared = p @ m**2
            moments["mean_squared_magnetization"] = float(squared)
            # Divided twice: the square of a small mean underflows.
            ratio = (p @ m**4 / squared) / squared if squared > 0 else np.inf
            moments["binder_cumulant"] = float(1 - ratio / 3)
        return moments

    def correlation_function(self) -> np.ndarray:
        """[side // 2 + 1] exact <s_0 s_r> along a row in float64, not connected.

        Raises:
          ValueError: side above 16.
        """
        self._supported("correlation_function", transfer.MAX_TRANSFER_SIDE)
        return transfer.row_correlation(self.side, self._bond, self._site)

    def sample(self, key: Key, n: int) -> Array:
        """Independent exact samples, not traceable.

        Up to side 16 by the transfer matrix, at any coupling and field. Beyond by monotone coupling
        from the past (Propp and Wilson, 1996; heat-bath thresholds rounded to 2^-32), whose time
        grows steeply once the lattice orders: use it above the critical temperature, at it, or
        under a field. Where the lattice orders, a few replicas find that out before the others start.
        Seconds up to side 15, some 20 at side 16, a minute for 2000 at 20x20.

        Args:
          key: one typed key.
          n: number of samples.

        Returns:
          [n, L] int32 tokens.

        Raises:
          TypeError: `key` is no concrete typed key, `n` no int.
          ValueError: `key` is a batch of keys, `n` < 1, or side odd above 16 at coupling < 0.
          RuntimeError: coupling from the past did not coalesce within 65536 sweeps; below the
            critical temperature the message comes after some ten seconds.
        """
        checks.key_array(key)
        n = checks.positive_int(n, "n")
        if isinstance(key, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
            raise TypeError("key must be concrete: sample runs on the host and cannot be traced")
        if key.shape != ():
            raise ValueError(f"key must be one key, got shape {key.shape}")
        if self.side <= transfer.MAX_TRANSFER_SIDE:
            rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
            tokens = transfer.sample_transfer(rng, self.side, self._bond, self._site, n)
            return jnp.asarray(tokens, jnp.int32)
        if self._bond < 0 and self.side % 2:
            raise ValueError(
                f"sample supports coupling >= 0 or an even side where side > "
                f"{transfer.MAX_TRANSFER_SIDE}, got side {self.side} and coupling {self.coupling}"
            )
        return couple_from_the_past(key, n, self.side, self._bond, self._site)

    def _spins(self, x: Any) -> Array:
        """[..., side, side] int8 spins; a mask token becomes 3."""
        dtype = getattr(x, "dtype", None)
        x = checks.as_array(x, "x", "an array of integers")
        if not jnp.issubdtype(x.dtype, jnp.integer):
            raise TypeError(f"x must hold integer tokens, got dtype {dtype or x.dtype}")
        if x.ndim < 1:
            raise ValueError(f"x must have at least 1 axis, got shape {x.shape}")
        if x.shape[-1] != self.num_sites:
            raise ValueError(f"x has trailing size {x.shape[-1]}, this energy has {self.num_sites} sites")
        # What is no token must not become one by wrapping in int8.
        x = jnp.clip(checks.tokens(x, 2), -1, 3).astype(jnp.int8)
        return (2 * x - 1).reshape(*x.shape[:-1], self.side, self.side)

    def _energy(self, s: Array) -> Array:
        # Sums of int8 vectorise on a CPU where sums of floats may not be reordered.
        bonds = jnp.sum(s * self._shifted(s, (1, 0), (0, 1)), axis=(-2, -1), dtype=jnp.int32)
        energy = -self._bond * bonds.astype(float)
        if self.field:
            up = jnp.sum(s, axis=(-2, -1), dtype=jnp.int32)
            energy = energy - self._site * up.astype(float)
        return energy

    def _shifted(self, s: Array, *offsets: tuple[int, int]) -> Array:
        """Sum over offsets (down, right) of the spins that lie there."""
        rolled = [jnp.roll(s, (-down, -right), axis=(-2, -1)) for down, right in offsets]
        return functools.reduce(operator.add, rolled)

    def _conditionals(self, s: Array) -> Array:
        near = self._shifted(s, (1, 0), (-1, 0), (0, 1), (0, -1))
        up = self._bond * near.reshape(*s.shape[:-2], self.num_sites).astype(float) + self._site
        return jnp.stack([-up, up], axis=-1)

    def _supported(self, what: str, limit: int, otherwise: str = "") -> None:
        if self.side > limit:
            raise ValueError(
                f"{what} supports {otherwise}side up to {limit} at any field, "
                f"got side {self.side} and field {self.field}"
                if otherwise
                else f"{what} supports side up to {limit}, got side {self.side}"
            )


def _log_cosh(x: Array) -> Array:
    """log(2 cosh x)."""
    size = jnp.abs(x)
    return size + jnp.log1p(jnp.exp(-2 * size))
