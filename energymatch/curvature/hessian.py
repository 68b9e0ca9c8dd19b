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

import jax
import jax.numpy as jnp

from egm import checks, collectives, random
from egm.typing import Array, Key
from energymatch.curvature import tridiagonal
from energymatch.curvature.tridiagonal import Tridiagonal
from energymatch.potential import Potential, value_and_gradient

__all__ = ["check_steps", "directions", "hessian_vector_product", "lanczos", "like", "linearized", "spectrum"]


def hessian_vector_product(potential: Potential, x: Array, v: Array) -> Array:
    """[B, *event] the product H(x) v of every example, one gradient and its forward derivative.

    Args:
      potential: V(x) -> [B], each value of its own example alone.
      x: [B, *event].
      v: [B, *event] directions.

    Raises:
      TypeError: `x`, `v` or V(x) is not floating. ValueError: `x` has no batch axis, `v` another shape
        than `x`, or V(x) is not [B].

    Examples:
      >>> potential = lambda x: 0.5 * (x[:, 0] ** 2 + 4.0 * x[:, 1] ** 2)
      >>> print(energymatch.curvature.hessian_vector_product(potential, jnp.zeros((1, 2)), jnp.ones((1, 2))))
      [[1. 4.]]
    """
    x = checks.wide(checks.float_array(x, "x", min_ndim=1))
    v = like(v, "v", x)
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

    Examples:
      >>> potential = lambda x: 0.5 * (x[:, 0] ** 2 + 4.0 * x[:, 1] ** 2)
      >>> print(np.asarray(energymatch.curvature.spectrum(potential, jnp.zeros((1, 2)))).round(2))
      [[1. 4.]]
    """
    x = checks.wide(checks.not_empty(checks.float_array(x, "x", min_ndim=1), "x"))
    if chunk_size is not None:
        checks.positive_int(chunk_size, "chunk_size")
    push, finite = linearized(potential, x)
    return tridiagonal.eigenvalues(push, finite, (x.shape[0], math.prod(x.shape[1:])), x.dtype, chunk_size)


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
    num_steps = check_steps(num_steps, size)
    start_keys, keys = random.split(random.example_keys(key, batch, axis_name))
    start = directions(start_keys, x) if start is None else like(start, "start", x).reshape(batch, size)
    push, _ = linearized(potential, x)
    out = tridiagonal.tridiagonalize(push, start, keys, num_steps)
    return out._replace(basis=out.basis.reshape(batch, num_steps, *x.shape[1:]))


def linearized(potential: Potential, x: Array) -> tuple[Callable[[Array], Array], Array]:
    """(v [B, D] -> H v [B, D], [B] whether V and grad V are finite); V and its gradient run once."""
    (value, gradient), push = jax.linearize(lambda x: value_and_gradient(potential, x), x)
    finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient.reshape(x.shape[0], -1)), axis=-1)

    def product(v):
        v = collectives.varying_like(v.astype(x.dtype), x)
        return push(v.reshape(x.shape))[1].reshape(v.shape)

    return product, finite


def directions(keys, x):
    """[B, D] random directions, uniform over the sphere once they have unit length."""
    size = math.prod(x.shape[1:])
    return jax.vmap(lambda k: jax.random.normal(k, (size,), x.dtype))(keys)


def check_steps(num_steps, size):
    """The number of Lanczos steps; raises ValueError above the size of an event."""
    num_steps = checks.positive_int(num_steps, "num_steps")
    if num_steps > size:
        raise ValueError(f"num_steps must be at most {size}, the size of an event, got {num_steps}")
    return num_steps


def like(v, name, x):
    """`v` in the dtype of x; raises ValueError unless it has the shape of x."""
    v = checks.float_array(v, name)
    if v.shape != x.shape:
        raise ValueError(f"{name} must have the shape of x, {x.shape}, got {v.shape}")
    return v.astype(x.dtype)
