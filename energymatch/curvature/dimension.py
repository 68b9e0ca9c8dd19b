"""Local intrinsic dimension: the eigenvalues of the Hessian of V near zero (arXiv 2504.10612)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egm import checks, random
from egm.checks import number
from egm.typing import Array, Key
from energymatch.curvature import tridiagonal
from energymatch.curvature.hessian import check_steps, directions, linearized
from energymatch.potential import Potential

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
    push, finite = linearized(potential, x)
    error = undecided = jnp.zeros(batch, x.dtype)
    if method == "dense":
        eigenvalues = tridiagonal.eigenvalues(push, finite, (batch, size), x.dtype)
        count = jnp.sum(jnp.abs(eigenvalues) < threshold, axis=-1).astype(x.dtype)
        finite &= jnp.all(jnp.isfinite(eigenvalues), axis=-1)
    elif method == "lanczos":
        start_keys, restart_keys = random.split(keys)
        out = tridiagonal.tridiagonalize(push, directions(start_keys, x), restart_keys, num_steps)
        finite &= tridiagonal.all_finite(out)
        count = tridiagonal.count_below(out, threshold) - tridiagonal.count_below(out, -threshold)
    else:

        def probe(keys):
            start_keys, restart_keys = random.split(keys)
            out = tridiagonal.tridiagonalize(push, directions(start_keys, x), restart_keys, num_steps)
            return *tridiagonal.weight_inside(out, threshold), tridiagonal.all_finite(out)

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
    num_steps = min(size, 64) if num_steps is None else check_steps(num_steps, size)
    return random.example_keys(key, batch, axis_name), num_steps
