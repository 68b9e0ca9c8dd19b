"""Checkpoints of a whole training state on orbax: asynchronous, atomic, restorable on other devices.

`Checkpoints` keeps a sequence of them in a folder. A state is any pytree: parameters, EMA, optimiser, buffer,
chains, keys, counters. Beside it lie the configuration and the format's version, and a folder written with
others is refused. Nothing is pickled. `import egm` leaves this module out, since orbax takes a third of a
second to import: `from egm import checkpoint`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from egm import checks
from egm import configuration as configurations
from egm.typing import PyTree

VERSION = 1
"""Of the format; a checkpoint of another one is refused."""


class Checkpoints:
    """The checkpoints of one run in one folder; a context manager.

    A checkpoint is complete or absent, whenever the process dies: what was being written then is ignored and
    removed when the folder is opened again. With several processes all of them make every call, on a folder
    that all of them see.

    Args:
      folder: a path, made where it is missing, or an address that orbax knows (`gs://...`).
      configuration: what defines the run, see `egm.configuration.plain`; compared with that of the newest
        checkpoint.
      keep: how many of the newest checkpoints stay.
      best: the name of a metric; the checkpoint with its lowest value stays too. None for none.

    Raises:
      ValueError: the folder's newest checkpoint has another configuration or version, with the first field
        that differs by its dotted path; or `keep` is below 1.
      TypeError: `configuration` holds what `plain` does not take.
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
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep)]
        if best is not None:
            lowest = functools.partial(_metric, name=best)
            kept.append(
                policies.BestN(
                    get_metric_fn=lowest, reverse=True, n=1, keep_checkpoints_without_metrics=False
                )
            )
        folder = os.fspath(folder)
        self._checkpointer = ocp.training.Checkpointer(
            folder if "://" in folder else os.path.abspath(folder),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )
        self._pending = None
        # What died while being deleted may have lost its description: it is no checkpoint any more.
        found = {c.step: self._read(c.step) for c in self._checkpointer.checkpoints}
        self._torn = {step for step, about in found.items() if about is None}
        if self.latest is not None:
            try:
                self._check_written(found[self.latest])
            except ValueError:
                self._checkpointer.close()
                raise

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps with a complete checkpoint, ascending."""
        writing = self._pending if self._checkpointer.is_saving_in_progress() else None
        steps = (c.step for c in self._checkpointer.checkpoints)
        return tuple(s for s in steps if s != writing and s not in self._torn)

    @property
    def latest(self) -> int | None:
        """The newest complete step, None where there is none."""
        return max(self.steps, default=None)

    @property
    def best_step(self) -> int | None:
        """The complete step with the lowest metric `best`, None where there is none."""
        known = {c.step: c.metrics for c in self._checkpointer.checkpoints if c.metrics}
        steps = [s for s in self.steps if self._best is not None and self._best in known.get(s, {})]
        return min(steps, key=lambda s: _metric(known[s], self._best), default=None)

    def save(self, step: int, state: PyTree, metrics: Mapping[str, float] | None = None) -> None:
        """Write a checkpoint in the background; waits for the one before it.

        The caller may go on at once, and may donate the state's arrays.

        Args:
          step: a number above all steps saved before.
          state: a pytree of arrays (jax, typed keys included, or numpy) and Python numbers.
          metrics: figures kept beside it; must hold `best` where that was given.

        Raises:
          ValueError: `step` is not above the last one, `state` is empty, or `best` is missing.
          TypeError: a leaf of `state` is no array or number, by its path.
        """
        step = checks.positive_int(step, "step", minimum=0)
        last = max((c.step for c in self._checkpointer.checkpoints), default=-1)
        if step <= last:
            raise ValueError(f"step must be above {last}, the last one saved, got {step}")
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        if self._best is not None and self._best not in metrics:
            raise ValueError(f"metrics must hold {self._best!r}, which `best` names; got {sorted(metrics)}")
        leaves = _leaves(state, "state")
        if not leaves:
            raise ValueError("state must hold at least one array, got none")
        about = {
            "version": VERSION,
            "configuration": self._configuration,
            "leaves": {path: _describe(leaf, path) for path, leaf in leaves.items()},
        }
        stored = {path: _to_store(leaf) for path, leaf in leaves.items()}
        self._checkpointer.wait()
        self._pending = step
        self._checkpointer.save_checkpointables_async(
            step, {"state": stored}, force=True, metrics=metrics or None, custom_metadata=about
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
        if step is None and self.latest is None:
            raise ValueError(f"there is no checkpoint in {self._checkpointer.directory}")
        step = self.latest if step is None else step
        if step not in self.steps:
            raise ValueError(f"step must be one of {self.steps} to be restored, got {step}")
        about = self._read(step)
        self._check_written(about)
        leaves = _leaves(like, "like")
        _check_leaves(about["leaves"], leaves)
        wanted = {path: _to_load(leaf, about["leaves"][path]) for path, leaf in leaves.items()}
        try:
            stored = self._checkpointer.load_checkpointables(step, {"state": wanted})["state"]
        except (ValueError, OSError, KeyError) as error:
            where = self._checkpointer.directory
            raise ValueError(f"step {step} in {where} cannot be read, files are lost or damaged") from error
        values = [_from_store(stored[p], leaf, about["leaves"][p]) for p, leaf in leaves.items()]
        return jax.tree.unflatten(jax.tree.structure(like), values)

    def wait(self) -> None:
        """Wait for the checkpoint being written; raises what went wrong with it."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Wait for the checkpoint being written, and let go of the folder."""
        self._checkpointer.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _read(self, step: int) -> dict[str, Any] | None:
        """What lies beside the state, None where it is not there."""
        try:
            about = self._checkpointer.checkpointables_metadata(step).custom_metadata
        except (ValueError, OSError, KeyError):
            return None
        return about or None

    def _check_written(self, about: dict[str, Any]) -> None:
        where = self._checkpointer.directory
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


def _leaves(tree: PyTree, name: str) -> dict[str, Any]:
    """The leaves by dotted path."""
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    leaves = {jax.tree_util.keystr(p, simple=True, separator=".") or name: leaf for p, leaf in flat}
    if len(leaves) != len(flat):
        raise ValueError(f"{name} must have one leaf for every dotted path, got two of the same path")
    return leaves


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: Any, path: str) -> dict[str, Any]:
    """Shape and dtype of a leaf, and the implementation of a key."""
    known = leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else np.asarray(leaf)
    if not _is_key(known) and np.dtype(known.dtype).kind in "OSUmM":
        raise TypeError(f"{path} must be an array or a number, got {type(leaf).__name__}")
    described = {"shape": list(known.shape), "dtype": str(known.dtype)}
    if _is_key(known) and isinstance(known, jax.Array):
        described["key"] = str(jax.random.key_impl(known))
    return described


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


def _from_store(value: Any, leaf: Any, described: Mapping[str, Any]) -> Any:
    """What orbax gave as the kind of leaf that was asked for."""
    if isinstance(leaf, bool | int | float | complex):
        return type(leaf)(value)
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        return np.asarray(value)
    if not isinstance(value, jax.Array):
        value = jnp.array(value)
        if isinstance(leaf, jax.Array) and leaf.committed:
            sharding = jax.random.key_data(leaf).sharding if _is_key(leaf) else leaf.sharding
            value = jax.device_put(value, sharding)
    return jax.random.wrap_key_data(value, impl=described["key"]) if _is_key(leaf) else value
