"""Argument checks: every error names the argument, what came and what was expected.

Static facts (shapes, dtypes, sizes) raise at trace time; values raise where they are concrete.
"""

from __future__ import annotations

import numbers
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "as_array",
    "below_one",
    "bool_vector",
    "center",
    "concrete",
    "expanded",
    "finite_float",
    "flag",
    "float_array",
    "function",
    "instance",
    "integer_array",
    "key_array",
    "model_output",
    "not_empty",
    "number",
    "one_key",
    "positive_float",
    "positive_int",
    "time",
    "time_order",
    "time_pair",
    "tokens",
    "unit_interval",
    "vector",
    "wide",
]


def concrete(value: Any) -> np.ndarray | None:
    """The value as a numpy array, or None where it is traced, lives on other processes or is a key."""
    if isinstance(value, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        return None
    if isinstance(value, jax.Array):
        if not value.is_fully_addressable or jnp.issubdtype(value.dtype, jax.dtypes.extended):
            return None
    return np.asarray(value)


def function(value: Any, name: str) -> Any:
    """The value itself; raises TypeError unless it can be called (a Flax module cannot)."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, got {value!r:.80}")
    if _is_unbound_flax_module(value):
        kind = type(value).__name__
        raise TypeError(
            f"{name} must be a function, got the Flax module {kind} itself: pass its `module.apply` where "
            f"parameters are the first argument, else a function that calls it with them"
        )
    if isinstance(value, type):
        raise TypeError(f"{name} must be a function, got the class {value.__name__}: pass an instance of it")
    return value


def _is_unbound_flax_module(value: Any) -> bool:
    """Whether it is a `flax.linen.Module` without parameters; told by name, so that Flax is not imported."""
    kinds = type(value).__mro__
    linen = any(k.__name__ == "Module" and k.__module__.startswith("flax.linen") for k in kinds)
    return linen and getattr(value, "scope", None) is None


def flag(value: Any, name: str) -> bool:
    """The value itself; raises TypeError unless it is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, got {value!r:.80}")
    return bool(value)


def instance(value: Any, kind: Any, name: str) -> Any:
    """The value itself; raises TypeError unless it is of a class (or satisfies a runtime Protocol)."""
    if isinstance(value, type) or not isinstance(value, kind):
        raise TypeError(f"{name} must be a {kind.__name__}, got {value!r:.80}")
    return value


def positive_int(value: Any, name: str, minimum: int = 1) -> int:
    """The value as an int; raises TypeError unless integral, ValueError when below `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an int, got {value!r:.80}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def _number(value: Any, name: str) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        hint = " (float() makes a number of it)" if isinstance(value, jax.Array | np.ndarray) else ""
        raise TypeError(f"{name} must be a number, got {value!r:.80}{hint}")


def positive_float(value: Any, name: str, *, allow_zero: bool = False) -> float:
    """The value as a float; raises unless it is a finite number above (or at) zero."""
    _number(value, name)
    ok = np.isfinite(value) and (value >= 0 if allow_zero else value > 0)
    if not ok:
        expected = "non-negative" if allow_zero else "positive"
        raise ValueError(f"{name} must be finite and {expected}, got {value}")
    return float(value)


def finite_float(value: Any, name: str) -> float:
    """The value as a float; raises unless it is a finite real number."""
    _number(value, name)
    if not np.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def below_one(value: Any, name: str) -> float:
    """The value as a float; raises unless it is a number in [0, 1)."""
    value = finite_float(value, name)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return value


def float_array(x: Any, name: str, *, min_ndim: int = 0) -> jax.Array:
    """`x` as an array; raises TypeError unless floating, ValueError when it has too few axes."""
    dtype = getattr(x, "dtype", None)
    x = as_array(x, name, "an array of floats")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got dtype {dtype or x.dtype}")
    if x.ndim < min_ndim:
        raise ValueError(f"{name} must have at least {min_ndim} axes, got shape {x.shape}")
    return x


def as_array(x: Any, name: str, expected: str = "an array of numbers") -> jax.Array:
    """`x` as an array; raises TypeError where it is nothing of that kind (None, text, a ragged list)."""
    if x is not None and not isinstance(x, str | bytes):
        try:
            return jnp.asarray(x)
        except (TypeError, ValueError):
            pass
    if hasattr(x, "__array__") and np.asarray(x).dtype == np.dtype(object):
        raise TypeError(f"{name} must be {expected}, got Python objects (dtype object): see x.astype")
    raise TypeError(f"{name} must be {expected}, got {x!r:.80}")


def wide(x: Any) -> jax.Array:
    """`x` as an array wide enough to compute with: floats as float32, integers as int32, or wider.

    A network may run in bfloat16, data may be stored as int8: sums, weights, averages and random numbers
    are never made in such a dtype, and a token of one would meet V, which it cannot hold.
    """
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < 4:
        return x.astype(jnp.float32)
    if jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4:
        return x.astype(jnp.int32)
    return x


def tokens(x: Any, vocab_size: int) -> jax.Array:
    """Integers as int32 tokens for a vocabulary of V: what lies outside 0..V stays outside.

    So no token is ever compared with V, or set to it, in a dtype that does not hold V.
    """
    x = wide(x)
    if x.dtype == jnp.int32:
        return x
    lowest = 0 if jnp.issubdtype(x.dtype, jnp.unsignedinteger) else -1
    return jnp.clip(x, lowest, vocab_size + 1).astype(jnp.int32)


def center(value: Any, name: str) -> float | tuple[float, ...]:
    """A point: the value as a float or a tuple of floats; raises unless finite numbers."""
    if isinstance(value, str) or not np.iterable(value):
        return finite_float(value, name)
    if not hasattr(value, "__len__"):
        raise TypeError(f"{name} must be a number or a tuple of numbers, got a {type(value).__name__}")
    point: Any = value
    if np.ndim(point) != 1:
        raise ValueError(f"{name} must be a number or a tuple of numbers, got shape {np.shape(point)}")
    return tuple(finite_float(v, name) for v in point)


def integer_array(x: Any, name: str, ndim: int) -> jax.Array:
    """`x` as an array; raises TypeError unless of integers, ValueError unless it has `ndim` axes."""
    x = as_array(x, name, "an array of integers")
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(f"{name} must hold integers, got dtype {x.dtype}")
    if x.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {x.shape}")
    return x


def bool_vector(x: Any, name: str, size: int) -> jax.Array:
    """`x` as a boolean array [size]; raises TypeError for another dtype, ValueError for another shape."""
    x = as_array(x, name, "a boolean array")
    if x.dtype != bool:
        raise TypeError(f"{name} must be boolean, got dtype {x.dtype}")
    if x.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {x.shape}")
    return x


def vector(x: Any, name: str) -> jax.Array:
    """`x` as an array [N] in float32 or wider, N >= 1; raises as `float_array`, and ValueError by shape."""
    x = wide(float_array(x, name))
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"{name} must have shape [N], N at least 1, got {x.shape}")
    return x


def key_array(key: Any, name: str = "key") -> jax.Array:
    """`key` itself; raises TypeError unless it is a typed PRNG key (or an array of them)."""
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        came = f"dtype {key.dtype}" if hasattr(key, "dtype") else f"{key!r:.80}"
        if getattr(key, "dtype", None) == np.uint32:
            came += (
                ", an untyped key as of jax.random.PRNGKey (jax.random.wrap_key_data makes it a typed one)"
            )
        raise TypeError(f"{name} must be a typed PRNG key, as jax.random.key(seed) makes, got {came}")
    return key


def one_key(key: Any, name: str = "key") -> jax.Array:
    """`key` itself; raises as `key_array`, and ValueError where it is an array of keys."""
    if key_array(key, name).shape != ():
        raise ValueError(f"{name} must be one key, got an array of keys of shape {key.shape}")
    return key


def not_empty(x: Any, name: str) -> Any:
    """The batch (an array or a pytree) itself; raises ValueError where it has no example."""
    for leaf in jax.tree.leaves(x):
        if np.ndim(leaf) > 0 and np.shape(leaf)[0] == 0:
            raise ValueError(f"{name} must have at least one example, got shape {np.shape(leaf)}")
    return x


def time(t: Any, name: str, batch_shape: tuple[int, ...]) -> jax.Array:
    """`t` as a float array of the given batch shape; concrete values outside [0, 1] raise."""
    given, t = t, as_array(t, name, "a floating point time")
    if not jnp.issubdtype(t.dtype, jnp.floating):
        if not jnp.issubdtype(t.dtype, jnp.integer):
            raise TypeError(f"{name} must be a floating point time, got dtype {t.dtype}")
        t = t.astype(float)
    if t.shape not in ((), batch_shape):
        raise ValueError(f"{name} must be a scalar or have shape {batch_shape}, got shape {t.shape}")
    # Under jit `jnp.asarray` traces a plain number, which is known all the same.
    value = concrete(given)
    if value is not None and not np.all((value >= 0) & (value <= 1)):
        bad = value[~((value >= 0) & (value <= 1))]
        raise ValueError(f"{name} must lie in [0, 1], got {bad.ravel()[0]}")
    return jnp.broadcast_to(t, batch_shape)


def time_pair(t: Any, r: Any, batch_shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """`t` and `r` as float arrays of the batch shape; concrete values with t >= r raise."""
    t_checked, r_checked = time(t, "t", batch_shape), time(r, "r", batch_shape)
    t_value, r_value = concrete(t), concrete(r)
    if t_value is not None and r_value is not None and not np.all(t_value < r_value):
        bad = np.argmax(
            np.broadcast_to(t_value >= r_value, np.broadcast_shapes(t_value.shape, r_value.shape))
        )
        t_bad = np.broadcast_to(t_value, np.broadcast_shapes(t_value.shape, r_value.shape)).ravel()[bad]
        r_bad = np.broadcast_to(r_value, np.broadcast_shapes(t_value.shape, r_value.shape)).ravel()[bad]
        raise ValueError(f"t must be below r, got t = {t_bad} and r = {r_bad}")
    return t_checked, r_checked


def time_order(t: Any, r: Any) -> None:
    """Raises ValueError where concrete times have t > r (equal ones are no noise at all)."""
    t_value, r_value = concrete(t), concrete(r)
    if t_value is not None and r_value is not None and np.any(t_value > r_value):
        raise ValueError(f"t must not be above r, got t = {t_value} and r = {r_value}")


def model_output(out: Any, name: str, shape: tuple[int, ...]) -> jax.Array:
    """What a user's function returned, in float32 or wider; raises unless it has the expected shape."""
    if not hasattr(out, "shape"):
        raise TypeError(f"{name} must return an array of shape {shape}, got {type(out).__name__}")
    if tuple(out.shape) != tuple(shape):
        hint = ": leave out its last axis, `out[..., 0]`" if tuple(out.shape) == (*shape, 1) else ""
        raise ValueError(f"{name} must return shape {tuple(shape)}, got {tuple(out.shape)}{hint}")
    out = jnp.asarray(out)
    if not jnp.issubdtype(out.dtype, jnp.floating):
        raise TypeError(f"{name} must return a floating dtype, got {out.dtype}")
    return wide(out)


_ALLOWED = {
    "finite": np.isfinite,
    "finite and positive": lambda value: np.isfinite(value) & (value > 0),
    "finite and non-negative": lambda value: np.isfinite(value) & (value >= 0),
}


def number(value: Any, name: str, expected: str, batch_shape: tuple[int, ...] = ()) -> jax.Array:
    """`value` as a floating array of shape () or `batch_shape`, integers converted.

    Args:
      value: a number or an array, traced or not. Numbers are checked under jit as well.
      name: of the argument.
      expected: what its values must be where they are known: a key of `_ALLOWED`.
      batch_shape: the shape that is allowed besides ().

    Raises:
      TypeError: no number, or a boolean. ValueError: another shape, or a value that is not as expected.
    """
    array = as_array(value, name, "a number or an array of numbers")
    if jnp.issubdtype(array.dtype, jnp.integer):
        array = array.astype(float)
    array = float_array(array, name)
    if array.shape not in ((), batch_shape):
        allowed = f"a scalar or have shape {batch_shape}" if batch_shape else "a scalar"
        raise ValueError(f"{name} must be {allowed}, got shape {array.shape}")
    # Under jit `jnp.asarray` traces a plain number, which is known all the same.
    known = concrete(value if isinstance(value, numbers.Real | np.ndarray | jax.Array) else array)
    if known is not None:
        bad = ~_ALLOWED[expected](known)
        if np.any(bad):
            raise ValueError(f"{name} must be {expected}, got {known[bad].ravel()[0]}")
    return array


def unit_interval(value: Any, name: str) -> float:
    """The value as a float; raises unless it is a number in [0, 1]. Makes no array."""
    value = finite_float(value, name)
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return value


def expanded(mask: jax.Array, like: jax.Array) -> jax.Array:
    """mask [N] with axes of size 1 after it, so that it goes with like [N, ...]."""
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))
