"""What the paths on tokens share: checks of a state, uniform tokens, phi at every change of one site."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from egm import checks, collectives
from egm.typing import Array, Key, ModelFn, Time

LARGEST_VOCABULARY = 2**31 - 3
"""The mask, and one number above it for what is no token, are int32 too."""


@dataclasses.dataclass(frozen=True)
class Scheduled:
    """V tokens, and kappa_t = t**power: the probability that a site shows its token of time 1."""

    vocab_size: int
    power: float = 1.0

    def __post_init__(self):
        if checks.positive_int(self.vocab_size, "vocab_size", minimum=2) > LARGEST_VOCABULARY:
            raise ValueError(f"vocab_size must be at most {LARGEST_VOCABULARY}, got {self.vocab_size}")
        checks.positive_float(self.power, "power")

    @property
    def t_min(self) -> float:
        """Proposals are finite from the start."""
        return 0.0

    def times(self, num_steps: int) -> Array:
        """[num_steps + 1] times between which kappa grows by equal steps."""
        checks.positive_int(num_steps, "num_steps")
        return jnp.linspace(0.0, 1.0, num_steps + 1) ** (1.0 / self.power)

    def kappa(self, t: Time) -> Array:
        """Probability that a site shows its token of time 1 at time t, before any uniform draw."""
        t = jnp.asarray(t)
        return t if self.power == 1 else t**self.power

    def kappa_dot(self, t: Time) -> Array:
        """Time derivative of `kappa`."""
        return jnp.ones_like(t) if self.power == 1 else self.power * t ** (self.power - 1)


def batch_shape(x: Array, name: str, largest: int, expected: str) -> tuple[int, ...]:
    """The batch axes of [..., L] tokens 0..largest; raises TypeError, ValueError for anything else."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise TypeError(f"{name} must hold integer tokens, got {dtype or type(x).__name__}")
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ValueError(f"{name} must have shape [..., L] with L >= 1, got {x.shape}")
    value = checks.concrete(x)
    if value is not None and value.size and not 0 <= value.min() <= value.max() <= largest:
        bad = value[(value < 0) | (value > largest)]
        raise ValueError(f"{name} must hold {expected}, got {bad[0]}")
    return tuple(x.shape[:-1])


def check_same_sites(x_t: Array, x_r: Array) -> None:
    """Raises ValueError unless x_r has the sites of x_t, and its batch axes behind any others."""
    if x_t.shape[-1] != x_r.shape[-1]:
        raise ValueError(f"x_t has trailing size {x_t.shape[-1]}, x_r has {x_r.shape[-1]}")
    batch, wide = x_t.shape[:-1], x_r.shape[:-1]
    if wide[len(wide) - len(batch) :] != batch:
        raise ValueError(f"x_r must end in the batch shape {batch} of x_t, got {wide}")


def sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape itself; raises unless it is a tuple or list of ints of at least 0."""
    if not isinstance(shape, tuple | list):
        raise TypeError(f"shape must be a tuple of ints, got {shape!r:.80}")
    return tuple(checks.positive_int(n, "every size in shape", minimum=0) for n in shape)


def zero_energy(x_1: Array) -> Array:
    """[...] zeros, for tokens [..., L] or probabilities [..., L, V] in their place."""
    return jnp.zeros(x_1.shape[: -1 if jnp.issubdtype(x_1.dtype, jnp.integer) else -2])


def one_hot(tokens: Array, vocab_size: int) -> Array:
    """[..., L, V], all zeros where a token is the mask."""
    return jax.nn.one_hot(checks.tokens(tokens, vocab_size), vocab_size, dtype=jnp.zeros(()).dtype)


def uniform_tokens(key: Key, shape: tuple[int, ...], vocab_size: int) -> Array:
    """int32 of the given shape, uniform on 0..V-1."""
    bits = (vocab_size - 1).bit_length()
    if vocab_size != 1 << bits or bits > 16:
        return jax.random.randint(key, shape, 0, vocab_size, jnp.int32)
    # A power of two: every random word holds 32 // bits independent tokens.
    per_word = 32 // bits
    num_words = -(-shape[-1] // per_word)
    words = jax.random.bits(key, (*shape[:-1], num_words), jnp.uint32)
    shifts = np.arange(per_word, dtype=np.uint32) * bits
    tokens = (words[..., None] >> shifts.reshape((1,) * words.ndim + (-1,))) & (vocab_size - 1)
    return tokens.reshape(*shape[:-1], -1)[..., : shape[-1]].astype(jnp.int32)


def site_values(log_density: ModelFn, x: Array, t: Array, vocab_size: int) -> Array:
    """[..., L, V] of `log_density` at x [..., L] int32 with each token at each site, t of the batch shape.

    It is evaluated once, on the L * V * N states of an array [L * V, N, L] that `collectives.merge` flattens.
    """
    batch, num_sites = x.shape[:-1], x.shape[-1]
    flat = x.reshape(-1, num_sites)
    n, count = flat.shape[0], num_sites * vocab_size
    value = jnp.arange(vocab_size, dtype=flat.dtype)[None, :, None, None]
    chosen = jnp.eye(num_sites, dtype=bool)[:, None, None, :]
    states = jnp.where(chosen, value, flat[None, None]).reshape(count, n, num_sites)
    times = jnp.broadcast_to(t.reshape(1, n), (count, n))
    out = log_density(collectives.merge(states), collectives.merge(times))
    values = checks.model_output(out, "log_density", (count * n,))
    return collectives.unmerge(values, count).T.reshape(*batch, num_sites, vocab_size)


def pick(values: Array, index: Array) -> Array:
    """The entry `index` [...] of the last axis of values [..., V]."""
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def safe(x: Array) -> Array:
    """`x`, with 1 where it is not positive."""
    return jnp.where(x > 0, x, 1.0)


def log(x: Array) -> Array:
    """log x, -inf at 0, with finite gradients."""
    return jnp.where(x > 0, jnp.log(safe(x)), -jnp.inf)


def log1m(x: Array) -> Array:
    """log(1 - x), -inf at 1, with finite gradients."""
    return jnp.where(x < 1, jnp.log1p(-jnp.where(x < 1, x, 0.0)), -jnp.inf)
