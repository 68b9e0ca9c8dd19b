"""Local intrinsic dimension: the eigenvalues of the Hessian of V near zero (arXiv 2504.10612)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from egm import checks, random
from egm.checks import number
from egm.typing import Array, Key
from energymatch.curvature import tridiagonal
from energymatch.curvature.hessian import check_steps, directions, linearized
from energymatch.potential import Potential

__all__ = [
    "ALIASES",
    "Count",
    "CountMethod",
    "Dense",
    "Lanczos",
    "METHODS",
    "Quadrature",
    "eigenvalue_count",
    "local_intrinsic_dimension",
]


class Count(NamedTuple):
    """A number of eigenvalues.

    Attributes:
      count: [B] floating, a whole number but for "quadrature"; NaN where not valid.
      standard_error: [B] over probes; 0 where the count is exact, NaN where not valid.
      undecided: [B] what the probes' Ritz values that are not resolved at the threshold contribute at most;
        0 where the count is exact, NaN where not valid. The standard error knows nothing of it.
      valid: [B] bool, whether V, its gradient and its curvature are finite there.
    """

    count: Array  # pyright: ignore[reportIncompatibleMethodOverride]
    standard_error: Array
    undecided: Array
    valid: Array


class CountMethod(Protocol):
    """How eigenvalues are counted; frozen and hashable."""

    needs_key: ClassVar[bool]

    def count(
        self, push: tridiagonal.Push, x: Array, threshold: Array, keys: Key | None
    ) -> tuple[Array, Array | float, Array | float, Array]:
        """([B] count, its standard error, what is undecided, [B] whether all was finite) of H(x) = push."""
        ...


@dataclasses.dataclass(frozen=True)
class Dense:
    """Exact, from the dense matrix; D products, many at once; memory B D^2."""

    needs_key: ClassVar[bool] = False

    def count(self, push, x, threshold, keys):
        """As `CountMethod`."""
        shape = (x.shape[0], math.prod(x.shape[1:]))
        eigenvalues = tridiagonal.eigenvalues(push, jnp.ones(shape[:1], bool), shape, x.dtype)
        count = jnp.sum(jnp.abs(eigenvalues) < threshold, axis=-1)
        return count, 0.0, 0.0, jnp.all(jnp.isfinite(eigenvalues), axis=-1)


@dataclasses.dataclass(frozen=True)
class Lanczos:
    """Exact, multiplicities included, from D Lanczos steps and the signs of the pivots of T.

    D products one after another; memory B D^2, no eigenvalue problem of size D (a convolutional V of 28x28
    pixels on two busy cores: 1.7 s an image, `Dense` 10.5 s, the same counts).
    """

    needs_key: ClassVar[bool] = True

    def count(self, push, x, threshold, keys):
        """As `CountMethod`."""
        start_keys, restart_keys = random.split(keys)
        start = directions(start_keys, x)
        out = tridiagonal.tridiagonalize(push, start, restart_keys, start.shape[1])
        count = tridiagonal.count_below(out, threshold) - tridiagonal.count_below(out, -threshold)
        return count, 0.0, 0.0, tridiagonal.all_finite(out)


@dataclasses.dataclass(frozen=True)
class Quadrature:
    """Stochastic Lanczos quadrature, an estimate from P probes of m steps.

    m products, P at once; memory B P m D. A probe is D times the weight of a random unit vector on the
    eigenvectors counted: unbiased, with variance 2 k (D - k) / (D + 2) for a count of k, where m steps
    resolve the spectrum at the threshold. They do so at its ends long before they do inside: raise m, up to
    D, until `undecided` is small.

    Attributes:
      num_steps: m; None for min(D, 64).
      num_probes: P, at least 2.

    Source: Ubaru, Chen and Saad (2017), "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature".
    """

    num_steps: int | None = None
    num_probes: int = 16
    needs_key: ClassVar[bool] = True

    def __post_init__(self):
        checks.positive_int(self.num_probes, "num_probes", minimum=2)

    def count(self, push, x, threshold, keys):
        """As `CountMethod`."""
        size = math.prod(x.shape[1:])
        num_steps = min(size, 64) if self.num_steps is None else check_steps(self.num_steps, size)

        def probe(keys):
            start_keys, restart_keys = random.split(keys)
            out = tridiagonal.tridiagonalize(push, directions(start_keys, x), restart_keys, num_steps)
            return *tridiagonal.weight_inside(out, threshold), tridiagonal.all_finite(out)

        probe_keys = jnp.stack(random.split(keys, self.num_probes))
        weights, unresolved, resolvable = jax.vmap(probe)(probe_keys)
        error = size * jnp.std(weights, axis=0, ddof=1) / math.sqrt(self.num_probes)
        undecided = size * jnp.mean(unresolved, axis=0)
        return size * jnp.mean(weights, axis=0), error, undecided, jnp.all(resolvable, axis=0)


ALIASES: dict[str, CountMethod] = {"dense": Dense(), "lanczos": Lanczos(), "quadrature": Quadrature()}
METHODS = tuple(ALIASES)
"""Names of the ways to count."""


def eigenvalue_count(
    potential: Potential,
    x: Array,
    threshold: float | Array,
    *,
    method: str | CountMethod = "dense",
    key: Key | None = None,
    num_steps: int | None = None,
    num_probes: int = 16,
    axis_name: str | None = None,
) -> Count:
    """How many eigenvalues of H(x) have |lambda| < threshold.

    `Dense`, `Lanczos` and `Quadrature` ("dense", "lanczos", "quadrature") say how.

    Rounding decides on eigenvalues within 1e-7 of the largest (float32) from the threshold.

    Args:
      potential: V(x) -> [B].
      x: [B, *event].
      threshold: a positive number or traced scalar, in the units of H (V per unit of x squared). A
        direction counts where the density exp(-V/epsilon) is wider than sqrt(epsilon / threshold).
      method: one of METHODS, or the object.
      key: for "lanczos" and "quadrature": a typed key, folded with global indices, or [B] keys.
      num_steps: m of the name "quadrature" only; by default min(D, 64).
      num_probes: P of the name "quadrature", at least 2.
      axis_name: the mapped axis that splits the batch.

    Returns:
      Count.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value, or a key is missing.

    Source: Energy Matching (arXiv 2504.10612), local intrinsic dimension.
    """
    x, method, keys = _checked(x, threshold, method, key, num_steps, num_probes, axis_name)
    return _count(potential, x, threshold, method, keys)


def local_intrinsic_dimension(
    potential: Potential,
    x: Array,
    *,
    threshold: float | Array,
    method: str | CountMethod = "dense",
    key: Key | None = None,
    num_steps: int | None = None,
    num_probes: int = 16,
    chunk_size: int = 16,
    axis_name: str | None = None,
) -> Array:
    """[B] the local intrinsic dimension: the number of eigenvalues of H(x) with |lambda| < threshold.

    `eigenvalue_count` over the batch, `chunk_size` examples at a time, in one `lax.map`: one trace for any
    size of batch, and memory for one chunk.

    Args:
      potential: V(x) -> [B].
      x: [B, *event], points on the data's manifold.
      threshold: as in `eigenvalue_count`, in the units of V and x at hand (the paper's 3 on MNIST and 2 on
        CIFAR belong to its potentials and pixels in [-1, 1]).
      method, key, num_steps, num_probes, axis_name: as in `eigenvalue_count`.
      chunk_size: examples at a time.

    Returns:
      [B] floating; NaN where V, its gradient or its curvature is not finite.

    Raises:
      TypeError, ValueError: as `eigenvalue_count`, or `chunk_size` is no positive int.

    Source: Energy Matching (arXiv 2504.10612), local intrinsic dimension.

    Examples:
      >>> potential = lambda x: 50.0 * (jnp.linalg.norm(x, axis=-1) - 1.0) ** 2  # data on a circle
      >>> x = jnp.array([[1.0, 0.0], [0.0, 1.0]])
      >>> print(energymatch.curvature.local_intrinsic_dimension(potential, x, threshold=3.0))
      [1. 1.]
    """
    x, method, keys = _checked(x, threshold, method, key, num_steps, num_probes, axis_name)
    batch = x.shape[0]
    chunk = min(checks.positive_int(chunk_size, "chunk_size"), batch)
    # The last chunk is filled up with copies of the last example.
    rows = jnp.minimum(jnp.arange(-(-batch // chunk) * chunk), batch - 1).reshape(-1, chunk)
    count = lambda part: _count(potential, part[0], threshold, method, part[1]).count
    return jax.lax.map(count, (x[rows], None if keys is None else keys[rows])).reshape(-1)[:batch]


def _count(
    potential: Potential, x: Array, threshold: float | Array, method: CountMethod, keys: Key | None
) -> Count:
    push, finite = linearized(potential, x)
    count, error, undecided, usable = method.count(push, x, jnp.asarray(threshold, x.dtype), keys)
    finite = finite & usable
    known = lambda v: jnp.where(finite, jnp.asarray(v, x.dtype), jnp.nan)
    return Count(known(count), known(error), known(undecided), finite)


def _checked(
    x: Any, threshold: Any, method: Any, key: Any, num_steps: Any, num_probes: Any, axis_name: str | None
) -> tuple[Array, CountMethod, Key | None]:
    """(x, the method of a name, [B] keys where it takes some)."""
    x = checks.wide(checks.not_empty(checks.float_array(x, "x", min_ndim=1), "x"))
    number(threshold, "threshold", "finite and positive")
    found: Any = ALIASES.get(method) if isinstance(method, str) else method
    if isinstance(found, type) or not hasattr(found, "count") or not hasattr(found, "needs_key"):
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if num_steps is not None and method != "quadrature":
        raise ValueError(f"num_steps is for method 'quadrature' only, got {num_steps} for {method!r}")
    quadrature = Quadrature(num_steps, num_probes)
    found = quadrature if method == "quadrature" else found
    if not found.needs_key:
        return x, found, None
    if key is None:
        raise ValueError(f"key is needed for method {method!r}, got None")
    return x, found, random.example_keys(key, x.shape[0], axis_name)
