"""Pools of reference samples, kept in memory and on disk; `draw` is `sample` of the energies that use them.

A pool lies in $EGM_CACHE_DIR (default ~/.cache/energymatch), its name a hash of the energy and the
settings of its chains (`_reference_chains`). The same settings on another machine or jax version may give
other states of the same distribution. Used by `JointDoubleWell` and `LennardJones`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import tempfile
import zipfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egm.energies import state_checks
from egm.energies.reference.chains import Reference, run
from egm.typing import Key, State

__all__ = ["cache_path", "draw", "load_or_run", "reference"]

_VERSION = 1  # of the chains' algorithm: a change of it makes old files obsolete


def draw(energy: Any, key: Key, n: int) -> State:
    """`n` states of the pool of an energy without replacement, in the default float dtype.

    Raises:
      TypeError, ValueError: `key` is not one concrete typed key; `n` < 1 or above the pool's size.
      RuntimeError: the chains have not mixed.
    """
    n = state_checks.sample_size(key, n)
    if isinstance(key, jax.core.Tracer):  # pyright: ignore[reportAttributeAccessIssue]
        raise TypeError("key must be concrete: sample runs on the host and cannot be traced")
    if n > energy.reference.num_kept:
        raise ValueError(f"n must be at most {energy.reference.num_kept}, the pool's size, got {n}")
    states = reference(energy).states
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    index = rng.choice(energy.reference.num_kept, n, replace=False)
    x = jnp.asarray(states["x"][index], float)
    return {"x": x, "h": jnp.asarray(states["h"][index])} if "h" in states else x


@functools.lru_cache(maxsize=4)
def reference(energy: Any) -> Reference:
    """The pool of an energy: from memory, from disk, or from its chains, in this order."""
    return load_or_run(energy)


def load_or_run(energy: Any) -> Reference:
    """The pool from disk, or from the chains where there is no readable file; then it is written.

    Raises:
      RuntimeError: an observable's split R-hat is not below the limit.
    """
    path = cache_path(energy)
    found = _read(path, energy)
    if found is not None:
        return found
    made = run(energy)
    _write(path, made)
    return made


def cache_path(energy: Any) -> pathlib.Path:
    """Where the pool of an energy lies on disk."""
    folder = os.environ.get("EGM_CACHE_DIR") or os.path.join("~", ".cache", "energymatch")
    digest = hashlib.sha256(f"{_VERSION} {energy!r}".encode()).hexdigest()[:20]
    return pathlib.Path(folder).expanduser() / f"{type(energy).__name__}-{digest}.npz"


def _read(path: pathlib.Path, energy: Any) -> Reference | None:
    """The pool in a file, or None where it is missing, damaged, or not what the settings ask for."""
    settings = energy.reference
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
        states = {name: parts[f"state_{name}"] for name in ("x", "h") if f"state_{name}" in parts}
        r_hat = dict(zip(parts["names"].tolist(), parts["r_hat"].tolist(), strict=True))
        found = Reference(states, r_hat, parts["acceptance"], parts["swap_acceptance"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    event = energy.event_shape if isinstance(energy.event_shape, dict) else {"x": energy.event_shape}
    expected = {name: (settings.num_kept, *shape) for name, shape in event.items()}
    if {name: a.shape for name, a in states.items()} != expected:
        return None
    return found if all(np.all(np.isfinite(a)) for a in states.values()) else None


def _write(path: pathlib.Path, made: Reference) -> None:
    """Writes the file whole or not at all; a folder that cannot be written costs the cache, no more."""
    parts = {f"state_{name}": value for name, value in made.states.items()}
    parts.update(names=np.array(list(made.r_hat)), r_hat=np.array(list(made.r_hat.values())))
    parts.update(acceptance=made.acceptance, swap_acceptance=made.swap_acceptance)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, **parts)  # pyright: ignore[reportArgumentType]
        os.replace(temporary, path)
    except OSError:
        if temporary is not None:
            pathlib.Path(temporary).unlink(missing_ok=True)
