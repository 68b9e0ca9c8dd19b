"""What may be wrong with an argument of each kind: hypothesis strategies, and the entries of the table."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

JUNK = st.one_of(st.text(max_size=4), st.just(object()), st.just(1j), st.just({}), st.just(["a", None]))
"""Nothing that any argument takes."""
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Argument:
    """A valid value, and a strategy of values that must raise."""

    value: Any
    bad: Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """A public callable with valid arguments.

    Attributes:
      names: the dotted public names that this entry stands for.
      call: takes the arguments by name.
      arguments: by name.
      traced: errors come while tracing: run under `jax.eval_shape`, so that nothing is compiled.
      host: runs on the host, and cannot be traced.
      aliases: what messages may call an argument beside its name (its parts, or what it does not fit).
    """

    names: tuple[str, ...]
    call: Callable
    arguments: dict[str, Argument]
    traced: bool
    host: bool
    aliases: dict[str, tuple[str, ...]]

    def run(self, **changed):
        values = {name: a.value for name, a in self.arguments.items()} | changed
        if self.traced:
            return jax.eval_shape(lambda: _arrays_only(self.call(**values)))
        return self.call(**values)

    def run_valid(self):
        values = {name: a.value for name, a in self.arguments.items()}
        if self.host:
            return self.call(**values)
        return jax.eval_shape(lambda: _arrays_only(self.call(**values)))


def _arrays_only(out):
    """The arrays in a result, which is all that tracing may return."""
    return [leaf for leaf in jax.tree.leaves(out) if isinstance(leaf, jax.Array)]


def entry(names, call, /, traced=False, host=False, aliases=None, **arguments):
    names = (names,) if isinstance(names, str) else tuple(names)
    labels = {k: (v,) if isinstance(v, str) else tuple(v) for k, v in (aliases or {}).items()}
    return Entry(names, call, arguments, traced, host, labels)


# Kinds.


def _or_none(bad, optional):
    return bad if optional else st.one_of(bad, st.none())


def whole(value, minimum=1, maximum=None, optional=False, more=None):
    """An int of at least `minimum`."""
    bad = [
        JUNK,
        st.integers(max_value=minimum - 1),
        st.floats(),
        st.booleans(),
        st.just(np.array([1, 2])),
    ]
    if maximum is not None:
        bad.append(st.integers(min_value=maximum + 1))
    return Argument(value, _or_none(st.one_of(*bad, *(more or ())), optional))


def number(value, low=None, high=None, strict=True, high_strict=False, optional=False, more=None):
    """A finite number above `low` (or at it, if not strict), and below `high` if given."""
    bad = [JUNK, st.sampled_from([np.nan, np.inf, -np.inf]), st.booleans(), st.just(np.array([1.0, 2.0]))]
    if low is not None:
        bad.append(st.floats(max_value=low, exclude_max=not strict, allow_infinity=False))
        if strict:
            bad.append(st.just(low))
    if high is not None:
        bad.append(st.floats(min_value=high, exclude_min=not high_strict, allow_infinity=False))
    return Argument(value, _or_none(st.one_of(*bad, *(more or ())), optional))


def scalar(value, low=None, strict=True, batch=None, optional=False):
    """A number as `number`, or a (traced) array of shape () or `batch`."""
    bad = number(value, low, strict=strict, optional=optional).bad
    wrong = [st.just(jnp.ones((7,))), st.just(jnp.ones((1, 1)))]
    if low is not None:
        wrong.append(st.just(jnp.asarray(low - 1.0)))
    # A vector of two is fine where the batch is two.
    bad = bad.filter(lambda v: not (isinstance(v, np.ndarray) and v.shape == batch))
    return Argument(value, st.one_of(bad, *wrong))


def choice(value, optional=False):
    """One of a few strings."""
    return Argument(value, _or_none(st.one_of(JUNK, st.integers(), st.just([value])), optional))


def flag(value):
    """True or False."""
    return Argument(value, st.one_of(JUNK, st.none(), st.integers(), st.floats()))


def function(value, optional=False, more=()):
    """A callable."""
    bad = st.one_of(JUNK, st.integers(), st.just(np.zeros(3)), *(st.just(m) for m in more))
    return Argument(value, _or_none(bad, optional))


def model(value, shape, optional=False):
    """A callable that returns floats of a shape: also those that do not."""
    wrong = [
        lambda *a: None,
        lambda *a: 0.0,
        lambda *a: jnp.zeros((*shape, 1)),
        lambda *a: jnp.zeros((*shape[:-1], shape[-1] + 1) if shape else (2,)),
        lambda *a: jnp.zeros(shape, jnp.int32),
    ]
    return function(value, optional, wrong)


def record(value, optional=False, more=()):
    """An instance of some class."""
    bad = st.one_of(
        JUNK, st.integers(), st.just(np.zeros(3)), st.just(lambda *a: a), *(st.just(m) for m in more)
    )
    return Argument(value, _or_none(bad, optional))


def pair(value, optional=True):
    """(lo, hi) with lo < hi."""
    bad = st.one_of(
        JUNK,
        st.integers(),
        st.just((1.0,)),
        st.just((1.0, 0.0)),
        st.just((0.0, np.nan)),
        st.just(("a", 1.0)),
        st.just((0.0, np.inf)),
    )
    return Argument(value, _or_none(bad, optional))


def key(batch=None, optional=False):
    """One typed key, or where there is a batch that many."""
    sizes = st.integers(1, 9).filter(lambda n: n != batch)
    bad = st.one_of(
        JUNK,
        st.integers(),
        st.just(jax.random.PRNGKey(0)),
        st.just(np.zeros(2, np.uint32)),
        sizes.map(lambda n: jax.random.split(KEY, n)),
        st.just(jax.random.split(KEY, (2, 2))),
    )
    return Argument(KEY, _or_none(bad, optional))


def time(value, batch, ordered=()):
    """A time in [0, 1], scalar or of the batch's shape; `ordered` are values on the wrong side of another."""
    bad = [
        JUNK,
        st.none(),
        st.floats(max_value=-1e-3),
        st.floats(min_value=1.001),
        st.sampled_from([np.nan, np.inf, -np.inf, True]),
        st.integers(3, 9).map(lambda n: jnp.full(n, 0.5)),
        st.just(jnp.full((*batch, 1), 0.5)),
        st.just(np.array([0.5, 0.5j])),
    ]
    return Argument(value, st.one_of(*bad, *(st.just(v) for v in ordered)))


def _resized(value, axes):
    """The value with one of the axes longer or (where that leaves something) shorter."""

    def make(axis, by):
        shape = list(value.shape)
        shape[axis] = shape[axis] + by if shape[axis] + by > 0 else shape[axis] + 5
        return jnp.zeros(shape, value.dtype)

    return st.builds(make, st.sampled_from(axes), st.integers(-2, 3).filter(bool))


def array(value, axes=(), min_ndim=0, max_ndim=None, optional=False, integers=False, whole=False, more=()):
    """A floating array (or, with `integers`, one of tokens).

    Args:
      value: the valid one.
      axes: those whose length is fixed by another argument.
      min_ndim: fewest axes.
      max_ndim: most axes, where there is a most.
      optional: whether None is valid.
      integers: whether it holds integers and floats are wrong.
      whole: whether integers will do as well as floats.
      more: further wrong values.
    """
    other = jnp.zeros(value.shape, float if integers else jnp.int32)
    bad = [JUNK, st.just(KEY)]
    if not whole:
        bad += [st.just(other), st.just(jnp.zeros(value.shape, bool))]
    bad.append(st.just(jnp.zeros(value.shape, complex)))
    if axes:
        bad.append(_resized(value, axes))
    if min_ndim:
        bad.append(st.integers(0, min_ndim - 1).map(lambda n: jnp.zeros((2,) * n, value.dtype)))
    if max_ndim is not None:
        bad.append(
            st.integers(max_ndim + 1, max_ndim + 2).map(
                lambda n: jnp.zeros((1,) * (n - value.ndim) + value.shape, value.dtype)
            )
        )
    return Argument(value, _or_none(st.one_of(*bad, *(st.just(m) for m in more)), optional))


def tokens(value, vocab, axes=(), min_ndim=1, max_ndim=None, mask=True, optional=False):
    """Tokens 0..V-1, with a mask V where it is allowed."""
    top = vocab if mask else vocab - 1
    wrong = [value.at[..., 0].set(top + 1), value.at[..., -1].set(-1)]
    return array(value, axes, min_ndim, max_ndim, optional, integers=True, more=wrong)


def anything(value, *bad, optional=False, text=False):
    """Any other kind: values that are wrong, beside what is wrong everywhere (`text`: a string may do)."""
    junk = JUNK.filter(lambda v: not isinstance(v, str)) if text else JUNK
    return Argument(value, _or_none(st.one_of(junk, *(st.just(b) for b in bad)), optional))
