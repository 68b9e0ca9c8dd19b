"""Checkpoints of a whole training state on orbax: asynchronous, atomic, restorable on other devices.

`Checkpoints` keeps a sequence of them in a folder. A state is any pytree: parameters, EMA, optimiser, buffer,
chains, keys, counters. Beside it lie the configuration and the format's version, and a folder written with
others is refused. Nothing is pickled. Reading changes nothing on disk. `import egm` leaves this module to its
first use, since orbax takes a fifth of a second to import.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from egm import checks
from egm.checkpoint import configuration as configurations
from egm.checkpoint import paths as folders
from egm.typing import PyTree

__all__ = ["VERSION", "Checkpoints"]

VERSION = 1
"""Of the format; a checkpoint of another one is refused."""


class Checkpoints:
    """The checkpoints of one run in one folder; a context manager.

    A checkpoint is complete or absent, whenever the process dies: what was being written then is ignored.
    Opening a folder and reading from it removes nothing, so that another process may look at a training's
    checkpoints while it runs. What died writers left is removed by the first `save`, if no other process is
    writing there. With several processes all of them make every call, on a folder that all of them see.

    Args:
      folder: a path, made where it is missing (`~` is the home folder, `file://` may stand before it), or an
        address that orbax knows (`gs://...`). Its path has none of `* ? [ ]` and no backslash.
      configuration: what defines the run, see `egm.checkpoint.plain`; compared with that of the newest
        checkpoint.
      keep: how many of the newest checkpoints stay.
      best: the name of a metric; the checkpoint with its lowest value stays too. None for none.

    Raises:
      ValueError: the folder's newest checkpoint has another configuration or version, with the first field
        that differs by its dotted path; `folder` is a file, cannot be made, or has a name that orbax cannot
        read; or `keep` is below 1.
      TypeError: `folder` is no path, or `configuration` holds what `plain` does not take.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        configuration: Mapping[str, Any],
        *,
        keep: int = 3,
        best: str | None = None,
    ):
        keep = checks.positive_int(keep, "keep")
        if best is not None and not isinstance(best, str):
            raise TypeError(f"best must be the name of a metric or None, got {best!r}")
        if not isinstance(configuration, Mapping):
            raise TypeError(f"configuration must be a mapping, got {type(configuration).__name__}")
        self._configuration = configurations.plain(configuration)
        self._best = best
        self._keep = keep
        self._folder = folders.resolve(folder)
        folders.make(self._folder)
        # What writes is made by the first `save`.
        self._writer, self._claim, self._pending = None, None, None
        self._known: dict[int, dict[str, Any]] = {}
        newest = self._read(self.latest) if self.latest is not None else None
        if newest is not None:
            self._check_written(newest)

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps with a complete checkpoint, ascending."""
        while True:
            found = self._written()
            # What died while being deleted may have lost its description: it is no checkpoint any more.
            complete = tuple(step for step in found if self._about(step) is not None)
            # Another process may have put a new one in the place of an old one, between the two lines above.
            if len(complete) == len(found) or self._written() == found:
                return complete

    @property
    def latest(self) -> int | None:
        """The newest complete step, None where there is none."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The complete step with the lowest metric `best`, None where there is none."""
        best = self._best
        if best is None:
            return None
        known = {step: self._figures(step) for step in self.steps}
        steps = [step for step, figures in known.items() if best in figures]
        return min(steps, key=lambda s: _metric(known[s], best), default=None)

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint in the background; waits for the one before it.

        The caller may go on at once, and may donate the state's arrays. The first call also removes what died
        writers left unfinished in the folder, unless another process is writing there.

        Args:
          step: a number above all steps saved before.
          state: a pytree of arrays (jax, typed keys included, or numpy, empty ones included) and Python
            numbers, or one of those.
          metrics: figures kept beside it; must hold `best` where that was given.

        Raises:
          ValueError: `step` is not above the last one, or another process is writing it; `state` has no
            leaf, two of one path, or a donated one; `best` is missing; the folder cannot be written to.
          TypeError: a leaf of `state` is no array or number, or has a dtype that cannot be stored, by its
            path; or `metrics` are no numbers.
        """
        step = checks.positive_int(step, "step", minimum=0)
        written = folders.steps(self._folder)
        if self._writer is not None:
            written += [c.step for c in self._writer.checkpoints]
        last = max(written, default=-1)
        if step <= last:
            raise ValueError(f"step must be above {last}, the last one saved, got {step}")
        metrics = _numbers({} if metrics is None else metrics)
        if self._best is not None and self._best not in metrics:
            raise ValueError(f"metrics must hold {self._best!r}, which `best` names; got {sorted(metrics)}")
        leaves = _leaves(state, "state")
        if not leaves:
            raise ValueError("state must hold at least one array, got none")
        about = {
            "version": VERSION,
            "configuration": self._configuration,
            "metrics": metrics,
            "leaves": {path: _describe(leaf, path, to_store=True) for path, leaf in leaves.items()},
        }
        # orbax stores no arrays of size zero: their description is all there is to know.
        stored = {p: _to_store(leaf) for p, leaf in leaves.items() if _size(about["leaves"][p])}
        writer = self._open_to_write() if self._writer is None else self._writer
        writer.wait()
        if self._claim is not None and jax.process_count() == 1:
            self._claim.check_free(step)
        self._pending = step
        self._known[step] = about
        writer.save_checkpointables_async(
            step,
            {"state": stored or {_ROOT: np.zeros(1)}},
            force=True,
            metrics=dict(metrics) if metrics else None,  # pyright: ignore[reportArgumentType]
            custom_metadata=about,
        )

    def restore(self, like: PyTree, step: int | None = None) -> PyTree:
        """Read a checkpoint into the structure, and onto the devices, of `like`.

        Args:
          like: what the state looks like: arrays, whose values are not read, or `jax.ShapeDtypeStruct`s
            with or without a sharding, on any number of devices; Python numbers for Python numbers.
          step: which checkpoint; None for the newest.

        Returns:
          A pytree as `like`, with the values of the checkpoint, bit for bit: jax arrays for jax arrays (typed
          keys for typed keys), numpy for numpy.

        Raises:
          ValueError: there is no such checkpoint; or its structure, a shape or a dtype differs from those of
            `like`, with the leaf's path; or its files are damaged.
        """
        self.wait()
        leaves = _leaves(like, "like")
        while True:
            chosen = self.latest if step is None else step
            if chosen is None:
                raise ValueError(f"there is no checkpoint in {self._folder}")
            if step is not None and step not in self.steps:
                raise ValueError(f"step must be one of {self.steps} to be restored, got {step}")
            try:
                about = self._read(chosen)
                if about is None:
                    raise ValueError(self._damaged(chosen))
                self._check_written(about)
                _check_leaves(about["leaves"], leaves)
                wanted = {path: _to_load(leaf, about["leaves"][path]) for path, leaf in leaves.items()}
                stored = {path: w for path, w in wanted.items() if _size(about["leaves"][path])}
                if stored:
                    stored = self._load(chosen, stored)
                break
            except (ValueError, OSError, KeyError):
                # Another process may have written a newer one meanwhile, and deleted this one.
                self._known.pop(chosen, None)
                if step is None and (self.latest or -1) > chosen:
                    continue
                raise
        stored |= {path: _empty(w) for path, w in wanted.items() if path not in stored}
        values = [_from_store(stored[p], leaf, about["leaves"][p]) for p, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(like), values)

    def wait(self) -> None:
        """Wait for the checkpoint being written; raises what went wrong with it."""
        if self._writer is not None:
            self._writer.wait()

    def close(self) -> None:
        """Wait for the checkpoint being written, and let go of the folder."""
        writer, self._writer = self._writer, None
        claim, self._claim = self._claim, None
        try:
            if writer is not None:
                writer.close()
        finally:
            if claim is not None:
                claim.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _written(self) -> list[int]:
        """The steps under their final name."""
        if self._writer is None:
            return folders.steps(self._folder)
        writing = self._pending if self._writer.is_saving_in_progress() else None
        return sorted(c.step for c in self._writer.checkpoints if c.step != writing)

    def _open_to_write(self) -> ocp.training.Checkpointer:
        local = folders.is_local(self._folder)
        if local and jax.process_index() == 0:
            self._claim = folders.Claim(self._folder)
        policies = ocp.training.preservation_policies
        kept: list[Any] = [policies.LatestN(self._keep)]
        if self._best is not None:
            lowest = functools.partial(_metric, name=self._best)
            kept.append(
                policies.BestN(
                    get_metric_fn=lowest, reverse=True, n=1, keep_checkpoints_without_metrics=False
                )
            )
        self._writer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=policies.AnyPreservationPolicy(kept),  # pyright: ignore[reportArgumentType]
            # Where nothing tells who else is writing, one writer is taken for granted.
            cleanup_tmp_directories=not local,
        )
        return self._writer

    def _load(self, step: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The stored leaves of a checkpoint."""
        try:
            return dict(ocp.load_checkpointables(self._folder / str(step), {"state": wanted})["state"])
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(self._damaged(step)) from error

    def _damaged(self, step: int) -> str:
        return f"step {step} in {self._folder} cannot be read, files are lost or damaged"

    def _read(self, step: int) -> dict[str, Any] | None:
        """What lies beside the state, None where it is not there."""
        try:
            about = ocp.checkpointables_metadata(self._folder / str(step)).custom_metadata
        except (ValueError, OSError, KeyError):
            return None
        return dict(about) if isinstance(about, Mapping) and about else None

    def _about(self, step: int) -> dict[str, Any] | None:
        """As `_read`, read once."""
        if step not in self._known:
            about = self._read(step)
            if about is None:
                return None
            self._known[step] = about
        return self._known[step]

    def _figures(self, step: int) -> Mapping[str, float]:
        """The metrics of a complete checkpoint, empty where it has none."""
        about = self._about(step) or {}
        if "metrics" not in about:  # written before they stood in the description
            try:
                about["metrics"] = json.loads((self._folder / str(step) / "metrics" / "metrics").read_text())
            except (ValueError, OSError):
                about["metrics"] = {}
        return about["metrics"]

    def _check_written(self, about: dict[str, Any]) -> None:
        where = self._folder
        if about.get("version") != VERSION:
            raise ValueError(
                f"{where} holds a checkpoint of another format: version is {about.get('version')!r} there, "
                f"and {VERSION!r} here"
            )
        found = configurations.first_difference(about["configuration"], self._configuration)
        if found is not None:
            path, there, here = found
            raise ValueError(
                f"{where} holds a checkpoint of another configuration: {path} is {there} there, "
                f"and {here} was asked for"
            )


def _metric(metrics: Mapping[str, float], name: str) -> float:
    """A metric, with what is no number behind every number."""
    return math.inf if math.isnan(metrics[name]) else metrics[name]


_ROOT = "state"
"""The path of a leaf that has none: of a state that is one array, or under the key ""."""


def _numbers(metrics: Any) -> dict[str, float]:
    """Metrics as floats by name; raises TypeError where they are something else."""
    if not isinstance(metrics, Mapping) or not all(isinstance(name, str) for name in metrics):
        raise TypeError(f"metrics must be a mapping of names to numbers, got {metrics!r:.80}")
    found = {}
    for name, value in metrics.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"metrics must hold numbers, got {name!r}: {value!r:.80}") from None
    return found


def _leaves(tree: PyTree, name: str) -> dict[str, Any]:
    """The leaves by dotted path."""
    try:
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a pytree, got one that jax cannot flatten: {error}") from error
    leaves = {}
    for path, leaf in flat:
        dotted = jax.tree_util.keystr(path, simple=True, separator=".") or _ROOT
        if dotted in leaves:
            raise ValueError(f"{name} must have one leaf for every dotted path, got two of {dotted!r}")
        leaves[dotted] = leaf
    return leaves


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


_STORABLE = frozenset(
    "bool int2 int4 int8 int16 int32 int64 uint8 uint16 uint32 uint64 float4_e2m1fn float8_e3m4 "
    "float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu "
    "bfloat16 float16 float32 float64 complex64 complex128".split()
)
"""The dtypes of tensorstore, which writes the arrays."""


def _describe(leaf: Any, path: str, to_store: bool = False) -> dict[str, Any]:
    """Shape and dtype of a leaf, and the implementation of a key; raises where it cannot be stored."""
    if isinstance(leaf, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        raise TypeError(f"{path} must be an array or a number, got a traced value: save outside of jit")
    if to_store and isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(
            f"{path} must be an array or a number, got a jax.ShapeDtypeStruct, which has no values"
        )
    if to_store and isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(f"{path} must hold values, got an array that was deleted or donated")
    known = leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else _as_numpy(leaf, path)
    if not _is_key(known):
        try:
            dtype = np.dtype(known.dtype)
        except TypeError:  # a dtype that numpy does not know
            raise TypeError(f"{path} must be an array or a number, got {_kind(leaf)}") from None
        if dtype.kind in "OSUmM" or isinstance(known, np.ma.MaskedArray):
            raise TypeError(f"{path} must be an array or a number, got {_kind(leaf)}")
        if dtype.name not in _STORABLE:
            raise TypeError(f"{path} must have a dtype that can be stored, got {dtype}")
    described = {"shape": list(known.shape), "dtype": str(known.dtype)}
    if _is_key(known) and isinstance(known, jax.Array):
        described["key"] = str(jax.random.key_impl(known))
    return described


def _as_numpy(leaf: Any, path: str) -> np.ndarray:
    try:
        return np.asarray(leaf)
    except (TypeError, ValueError):
        raise TypeError(f"{path} must be an array or a number, got {_kind(leaf)}") from None


def _kind(leaf: Any) -> str:
    name = type(leaf).__name__
    return f"{name} of dtype {leaf.dtype}" if isinstance(leaf, np.ndarray | np.generic) else name


def _size(described: Mapping[str, Any]) -> int:
    return math.prod(described["shape"])


def _check_leaves(stored: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    for path, leaf in leaves.items():
        if path not in stored:
            raise ValueError(f"like has {path}, which the checkpoint lacks")
        asked = _describe(leaf, path)
        for name in ("shape", "dtype"):
            if asked[name] != stored[path][name]:
                raise ValueError(
                    f"{path} has {name} {stored[path][name]} in the checkpoint, and {asked[name]} in like"
                )
    missing = next((path for path in stored if path not in leaves), None)
    if missing is not None:
        raise ValueError(f"like lacks {missing}, which the checkpoint has")


def _on_host(leaf: Any) -> bool:
    """Whether a leaf goes through the host: no jax array, or one that only this process sees."""
    return not isinstance(leaf, jax.Array) or (jax.process_count() > 1 and leaf.is_fully_addressable)


def _to_store(leaf: Any) -> jax.Array | np.ndarray:
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    # A copy: numpy arrays may change while they are being written.
    return np.array(leaf) if _on_host(leaf) else leaf


def _to_load(leaf: Any, described: Mapping[str, Any]) -> Any:
    """What orbax is asked for."""
    if _is_key(leaf) and isinstance(leaf, jax.Array):
        leaf = jax.random.key_data(leaf)
    elif _is_key(leaf):
        key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=described["key"])))
        leaf = jax.ShapeDtypeStruct((*leaf.shape, *key.shape), key.dtype, sharding=leaf.sharding)
    if isinstance(leaf, jax.ShapeDtypeStruct):
        through_host = leaf.sharding is None
    else:
        # An uncommitted array may follow the others to any device, and shall do so afterwards.
        through_host = _on_host(leaf) or not leaf.committed
    if through_host:
        known = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        return np.empty(known.shape, known.dtype)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _empty(wanted: Any) -> Any:
    """An array of size zero, where and as it is wanted."""
    values = np.zeros(wanted.shape, wanted.dtype)
    return jax.device_put(values, wanted.sharding) if isinstance(wanted, jax.ShapeDtypeStruct) else values


def _from_store(value: Any, leaf: Any, described: Mapping[str, Any]) -> Any:
    """What orbax gave as the kind of leaf that was asked for."""
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(value)
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        # The byte order of what was asked for; numpy's numbers as numbers.
        value = np.asarray(value)
        value = value.astype(getattr(leaf, "dtype", value.dtype), copy=False)
        return value[()] if isinstance(leaf, np.generic) else value
    if not isinstance(value, jax.Array):
        value = jnp.array(value)
        if isinstance(leaf, jax.Array) and leaf.committed:
            sharding = jax.random.key_data(leaf).sharding if _is_key(leaf) else leaf.sharding
            value = jax.device_put(value, sharding)
    return jax.random.wrap_key_data(value, impl=described["key"]) if _is_key(leaf) else value
