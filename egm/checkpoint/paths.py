"""The folder of `egm.checkpoint`: which names it may have, what lies in it, and who may clean it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import urllib.parse
import weakref
from typing import Any

from orbax.checkpoint import v1 as ocp

__all__ = ["Claim", "is_local", "make", "resolve", "steps"]

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


_TEMPORARY = ".orbax-checkpoint-tmp"
"""What orbax ends the name of an unfinished checkpoint with."""


_COMPLETE = "commit_success.txt"
"""What orbax writes last, where a folder cannot be renamed."""


_REFUSED = "*?[]\\"
"""orbax reads these as patterns: it would miss its own files, or find those of another folder."""


def resolve(folder: Any) -> ocp.path.Path:
    """The folder as an absolute path or an address; raises TypeError or ValueError where it can be none."""
    if not isinstance(folder, str | os.PathLike) or isinstance(os.fspath(folder), bytes):
        raise TypeError(f"folder must be a path as text or a pathlib.Path, got {folder!r:.80}")
    text = os.fspath(folder)
    if re.match(r"\w+:/(?!/)", text) and not text.startswith("file:"):
        raise ValueError(
            f"folder must be a path, or an address with `://`, got {text!r} (pathlib.Path drops a slash of "
            "an address: give it as text)"
        )
    if text.startswith("file:"):
        host, path = re.fullmatch(r"file:(?://([^/]*))?(.*)", text, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if host not in (None, "", "localhost") or not path.startswith("/"):
            raise ValueError(f"folder must be an absolute path after `file://`, got {text!r}")
        text = urllib.parse.unquote(path)
    if "://" not in text:
        if not text:
            raise ValueError("folder must be a path, got an empty text (the present folder is '.')")
        text = os.path.expanduser(text)
        if text.startswith("~"):
            raise ValueError(f"folder must not start with the name of an unknown user, got {text!r}")
        text = os.path.abspath(text)
        if "gs:/" in text + "/":
            raise ValueError(
                f"folder must have no part that ends in 'gs:', which orbax cannot read, got {text!r}"
            )
    found = "".join(c for c in _REFUSED if c in text)
    if found or "\0" in text:
        raise ValueError(
            f"folder must have none of {_REFUSED} in its path, which orbax cannot read: {text!r}"
        )
    try:
        text.encode()
        path = ocp.path.Path(text)
        path.exists()
    except (ImportError, KeyError, ValueError) as error:
        raise ValueError(f"folder must be one that orbax can open, got {text!r}: {error!r}") from error
    return path


def make(folder: ocp.path.Path) -> None:
    """Makes the folder where it is missing; raises ValueError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        problem = None if folder.is_dir() else "there is a file of that name"
    except OSError as error:
        problem = "there is a file of that name" if isinstance(error, FileExistsError) else error.strerror
    if problem is not None:
        raise ValueError(f"folder {str(folder)!r} cannot be made: {problem}")


def is_local(folder: ocp.path.Path) -> bool:
    """Whether it is a path of this machine, and no address."""
    return "://" not in str(folder)


def steps(folder: ocp.path.Path) -> list[int]:
    """The steps with a folder of their final name, ascending. Changes nothing."""
    try:
        found = [path for path in folder.iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []
    if not is_local(folder):
        found = [path for path in found if (path / _COMPLETE).exists()]
    return sorted(int(path.name) for path in found)


class Claim:
    """A writer's hold on a folder of this machine, until it lets go or its process ends, however it ends.

    A lock of the operating system that all writers of a folder share; who can have it alone may remove what
    died writers left. Where the file system has no such locks nothing is removed.

    Raises:
      ValueError: the folder cannot be written to.
    """

    def __init__(self, folder: ocp.path.Path):
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ValueError(f"folder {str(folder)!r} cannot be written to")
        self._folder, self._held = folder, os.open(folder, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, self._held)
        self._clean_if_alone()

    def check_free(self, step: int) -> None:
        """Raises ValueError where another process is writing this step, which orbax would overwrite."""
        unfinished = os.path.join(self._folder, f"{step}{_TEMPORARY}")
        if os.path.exists(unfinished) and not self._clean_if_alone():
            raise ValueError(
                f"step {step} in folder {str(self._folder)!r} is being written by another process"
            )

    def close(self) -> None:
        """Lets go of the folder."""
        self._close()

    def _clean_if_alone(self) -> bool:
        """Removes what died writers left; False where another one lives."""
        try:
            self._lock("LOCK_EX")
            for entry in os.scandir(self._folder):
                if _TEMPORARY in entry.name and entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
        except BlockingIOError:
            return False
        except OSError:  # no locks here
            pass
        finally:
            with contextlib.suppress(OSError):
                self._lock("LOCK_SH")
        return True

    def _lock(self, kind: str) -> None:
        if fcntl is None:
            raise OSError("no locks on this system")
        fcntl.flock(self._held, getattr(fcntl, kind) | fcntl.LOCK_NB)
