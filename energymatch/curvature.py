"""Curvature of a potential: Hessian-vector products, spectra, Lanczos, and the dimension it leaves flat.

H(x) is the Hessian of V (not of V/epsilon) in one example; its eigenvalues have the units of V per unit of
x squared and are positive across a valley of data. `local_intrinsic_dimension` counts those near zero.
Products are forward over reverse, so every operation inside V needs a forward derivative; on accelerators
with short products set `jax.default_matmul_precision("highest")`. Shape letters: B batch, *event the axes
of one state, D its size, m Lanczos steps, P probes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, collectives, random
from egm.typing import Array, Key
from energymatch import _symmetric
from energymatch._checks import number
from energymatch._symmetric import Tridiagonal
from energymatch.potential import Potential, value_and_gradient

__all__ = [
    "METHODS",
    "Count",
    "Tridiagonal",
    "eigenvalue_count",
    "hessian_vector_product",
    "lanczos",
    "local_intrinsic_dimension",
    "spectrum",
]

METHODS = ("dense", "lanczos", "quadrature")


class Count(NamedTuple):
    """A number of eigenvalues.

    Attributes:
      count: [B] floating, a whole number but for "quadrature"; NaN where not valid.
      standard_error: [B] over probes; 0 where the count is exact, NaN where not valid.
      undecided: [B] what the probes' Ritz values that are not resolved at the threshold contribute at most;
        0 where the count is exact, NaN where not valid. The standard error knows nothing of it.
      valid: [B] bool, whether V, its gradient and its curvature are finite there.
    """

    count: Array
    standard_error: Array
    undecided: Array
    valid: Array


def hessian_vector_product(potential: Potential, x: Array, v: Array) -> Array:
    """[B, *event] the product H(x) v of every example, one gradient and its forward derivative.

    Args:
      potential: V(x) -> [B], each value of its own example alone.
      x: [B, *event].
      v: [B, *event] directions.

    Raises:
      TypeError: `x`, `v` or V(x) is not floating. ValueError: `x` has no batch axis, `v` another shape
        than `x`, or V(x) is not [B].
    """
    x = checks.wide(checks.float_array(x, "x", min_ndim=1))
    v = _like(v, "v", x)
    return jax.jvp(lambda x: value_and_gradient(potential, x)[1], (x,), (v,))[1]


def spectrum(potential: Potential, x: Array, *, chunk_size: int | None = None) -> Array:
    """[B, D] all eigenvalues of H(x), ascending, from the dense matrix; NaN where V is not finite.

    Args:
      potential: V(x) -> [B].
      x: [B, *event].
      chunk_size: directions pushed through V at a time, of D; None for 256 over all examples.

    Returns:
      [B, D]; rounding is that of the largest eigenvalue, some 1e-7 of it in float32.

    Raises:
      TypeError, ValueError: as `hessian_vector_product`, or `chunk_size` is no positive int.
    """
    x = checks.wide(checks.not_empty(checks.float_array(x, "x", min_ndim=1), "x"))
    if chunk_size is not None:
        checks.positive_int(chunk_size, "chunk_size")
    push, finite = _linearized(potential, x)
    return _symmetric.eigenvalues(push, finite, (x.shape[0], math.prod(x.shape[1:])), x.dtype, chunk_size)


def lanczos(
    key: Key,
    potential: Potential,
    x: Array,
    num_steps: int,
    *,
    start: Array | None = None,
    axis_name: str | None = None,
) -> Tridiagonal:
    """Lanczos tridiagonalisation of H(x), matrix-free, every new direction made orthogonal to all before.

    Where the Krylov space of the start is exhausted before m steps, the next direction is a random one
    orthogonal to it and T falls into blocks. So a multiple eigenvalue, which one start vector sees once,
    appears as often as it is, and at m = D the eigenvalues of T are all those of H.

    Args:
      key: for the starts (unless given) and restarts; folded with the global index of each example, or [B].
      potential: V(x) -> [B].
      x: [B, *event].
      num_steps: m, from 1 to D: m products one after another, memory B m D.
      start: [B, *event] first directions, of any length but zero; None for random ones.
      axis_name: the mapped axis that splits the batch.

    Returns:
      Tridiagonal; NaN in examples whose curvature is not finite.

    Raises:
      TypeError, ValueError: as `hessian_vector_product`; `key` is no typed key; `num_steps` is out of range.

    Source: Golub and Van Loan, Matrix Computations, section 10.1 (Lanczos) and 10.3 (reorthogonalisation).
    """
    x = checks.wide(checks.not_empty(checks.float_array(x, "x", min_ndim=1), "x"))
    batch, size = x.shape[0], math.prod(x.shape[1:])
    num_steps = _check_steps(num_steps, size)
    start_keys, keys = random.split(random.example_keys(key, batch, axis_name))
    start = _directions(start_keys, x) if start is None else _like(start, "start", x).reshape(batch, size)
    push, _ = _linearized(potential, x)
    out = _symmetric.tridiagonalize(push, start, keys, num_steps)
    return out._replace(basis=out.basis.reshape(batch, num_steps, *x.shape[1:]))


def eigenvalue_count(
    potential: Potential,
    x: Array,
    threshold: float | Array,
    *,
    method: str = "dense",
    key: Key | None = None,
    num_steps: int | None = None,
    num_probes: int = 16,
    axis_name: str | None = None,
) -> Count:
    """How many eigenvalues of H(x) have |lambda| < threshold.

    Methods:
      "dense": exact, from the dense matrix; D products, many at once; memory B D^2.
      "lanczos": exact, multiplicities included, from D Lanczos steps and the signs of the pivots of T; D
        products one after another; memory B D^2, no eigenvalue problem of size D (a convolutional V of
        28x28 pixels on two busy cores: 1.7 s an image, "dense" 10.5 s, the same counts).
      "quadrature": stochastic Lanczos quadrature, an estimate from P probes of m steps; m products, P at
        once; memory B P m D. A probe is D times the weight of a random unit vector on the eigenvectors
        counted: unbiased, with variance 2 k (D - k) / (D + 2) for a count of k, where m steps resolve the
        spectrum at the threshold. They do so at its ends long before they do inside: raise m, up to D,
        until `undecided` is small.

    Rounding decides on eigenvalues within 1e-7 of the largest (float32) from the threshold.

    Args:
      potential: V(x) -> [B].
      x: [B, *event].
      threshold: a positive number or traced scalar, in the units of H (V per unit of x squared). A
        direction counts where the density exp(-V/epsilon) is wider than sqrt(epsilon / threshold).
      method: one of METHODS.
      key: for "lanczos" and "quadrature": a typed key, folded with global indices, or [B] keys.
      num_steps: m of "quadrature" only; by default min(D, 64).
      num_probes: P of "quadrature", at least 2.
      axis_name: the mapped axis that splits the batch.

    Returns:
      Count.

    Raises:
      TypeError, ValueError: an argument has a wrong type, shape or value, or a key is missing.

    Source: Energy Matching (arXiv 2504.10612), local intrinsic dimension; Ubaru, Chen and Saad (2017),
      "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature".
    """
    x = checks.wide(checks.not_empty(checks.float_array(x, "x", min_ndim=1), "x"))
    batch, size = x.shape[0], math.prod(x.shape[1:])
    keys, num_steps = _check_count(threshold, method, key, num_steps, num_probes, x, axis_name)
    threshold = jnp.asarray(threshold, x.dtype)
    push, finite = _linearized(potential, x)
    error = undecided = jnp.zeros(batch, x.dtype)
    if method == "dense":
        eigenvalues = _symmetric.eigenvalues(push, finite, (batch, size), x.dtype)
        count = jnp.sum(jnp.abs(eigenvalues) < threshold, axis=-1).astype(x.dtype)
        finite &= jnp.all(jnp.isfinite(eigenvalues), axis=-1)
    elif method == "lanczos":
        start_keys, restart_keys = random.split(keys)
        out = _symmetric.tridiagonalize(push, _directions(start_keys, x), restart_keys, num_steps)
        finite &= _symmetric.all_finite(out)
        count = _symmetric.count_below(out, threshold) - _symmetric.count_below(out, -threshold)
    else:

        def probe(keys):
            start_keys, restart_keys = random.split(keys)
            out = _symmetric.tridiagonalize(push, _directions(start_keys, x), restart_keys, num_steps)
            return *_symmetric.weight_inside(out, threshold), _symmetric.all_finite(out)

        probe_keys = jnp.stack(random.split(keys, num_probes))
        weights, unresolved, resolvable = jax.vmap(probe)(probe_keys)
        finite &= jnp.all(resolvable, axis=0)
        count, undecided = size * jnp.mean(weights, axis=0), size * jnp.mean(unresolved, axis=0)
        error = size * jnp.std(weights, axis=0, ddof=1) / math.sqrt(num_probes)
    figures = (jnp.where(finite, v.astype(x.dtype), jnp.nan) for v in (count, error, undecided))
    return Count(*figures, finite)


def local_intrinsic_dimension(
    potential: Potential,
    x: Array,
    *,
    threshold: float | Array,
    method: str = "dense",
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
    """
    x = checks.wide(checks.not_empty(checks.float_array(x, "x", min_ndim=1), "x"))
    batch = x.shape[0]
    chunk = min(checks.positive_int(chunk_size, "chunk_size"), batch)
    keys, _ = _check_count(threshold, method, key, num_steps, num_probes, x, axis_name)
    # The last chunk is filled up with copies of the last example.
    rows = jnp.minimum(jnp.arange(-(-batch // chunk) * chunk), batch - 1).reshape(-1, chunk)

    def count(part):
        x, keys = part
        out = eigenvalue_count(
            potential, x, threshold, method=method, key=keys, num_steps=num_steps, num_probes=num_probes
        )
        return out.count

    return jax.lax.map(count, (x[rows], None if keys is None else keys[rows])).reshape(-1)[:batch]


def _linearized(potential: Potential, x: Array) -> tuple[Callable[[Array], Array], Array]:
    """(v [B, D] -> H v [B, D], [B] whether V and grad V are finite); V and its gradient run once."""
    (value, gradient), push = jax.linearize(lambda x: value_and_gradient(potential, x), x)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient.reshape(x.shape[0], -1)), axis=-1)

    def product(v):
        v = collectives.varying_like(v.astype(x.dtype), x)
        return push(v.reshape(x.shape))[1].reshape(v.shape)

    return product, finite


def _directions(keys, x):
    """[B, D] random directions, uniform over the sphere once they have unit length."""
    size = math.prod(x.shape[1:])
    return jax.vmap(lambda k: jax.random.normal(k, (size,), x.dtype))(keys)


def _check_count(threshold, method, key, num_steps, num_probes, x, axis_name):
    """([B] keys or None, number of Lanczos steps or None), checked."""
    batch, size = x.shape[0], math.prod(x.shape[1:])
    number(threshold, "threshold", "finite and positive")
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}")
    if num_steps is not None and method != "quadrature":
        raise ValueError(f"num_steps is for method 'quadrature' only, got {num_steps} for {method!r}")
    checks.positive_int(num_probes, "num_probes", minimum=2)
    if method == "dense":
        return None, None
    if key is None:
        raise ValueError(f"key is needed for method {method!r}, got None")
    if method == "lanczos":
        num_steps = size
    num_steps = min(size, 64) if num_steps is None else _check_steps(num_steps, size)
    return random.example_keys(key, batch, axis_name), num_steps


def _check_steps(num_steps, size):
    num_steps = checks.positive_int(num_steps, "num_steps")
    if num_steps > size:
        raise ValueError(f"num_steps must be at most {size}, the size of an event, got {num_steps}")
    return num_steps


def _like(v, name, x):
    v = checks.float_array(v, name)
    if v.shape != x.shape:
        raise ValueError(f"{name} must have the shape of x, {x.shape}, got {v.shape}")
    return v.astype(x.dtype)
