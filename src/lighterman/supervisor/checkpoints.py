"""Where checkpoints lie: a directory of directories, one for each name. Blocking; call it in a thread."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Sequence

from lighterman.errors import AlreadyExists, InvalidSpec, NotFound, StoreError
from lighterman.runtimes.options import WithCheckpoint, unfinished
from lighterman.trees import remove_tree

__all__ = ["abandon", "check_name", "check_options", "complete", "delete", "names", "reserve"]

_GONE = ".gone-"  # what one is called while it is being removed
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def check_name(name: str) -> None:
    """It becomes a part of paths. Raises: InvalidSpec."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidSpec(
            f"checkpoint name {name!r:.140}: must be letters, digits, '_', '.' and '-', the first a letter or digit, "
            "at most 128"
        )


def _path(directory: str, name: str) -> str:
    check_name(name)
    if not os.path.isabs(directory):
        raise InvalidSpec(f"checkpoint directory {directory!r}: must be an absolute path")
    return os.path.join(directory, name)


def check_options(options: Sequence[WithCheckpoint]) -> None:
    """Raises: InvalidSpec for a name or directory that can't be one, or more than one checkpoint."""
    if len(options) > 1:
        raise InvalidSpec(f"{len(options)} checkpoints to start from: only one is possible")
    for option in options:
        _path(option.directory, option.name)


def reserve(directory: str, name: str) -> None:
    """Make the directory in which one comes to be. Raises: AlreadyExists, StoreError."""
    path = _path(directory, name)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        if os.path.lexists(path):
            raise AlreadyExists(f"checkpoint {name!r} exists already in {directory}")
        os.mkdir(os.path.join(directory, unfinished(name)), 0o700)
    except FileExistsError:
        raise AlreadyExists(f"checkpoint {name!r} is being made already in {directory}") from None
    except OSError as failed:
        raise StoreError(f"checkpoint {name!r} can't be made in {directory}: {failed.strerror}") from failed


def complete(directory: str, name: str) -> None:
    """It is whole, and gets its name if its runtime has not given it that. Raises: StoreError."""
    try:
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(directory, unfinished(name)), _path(directory, name))
    except OSError as failed:
        raise StoreError(f"checkpoint {name!r} can't be made in {directory}: {failed.strerror}") from failed


def abandon(directory: str, name: str) -> None:
    """One that was reserved has failed: remove what there is of it. Raises: StoreError."""
    for path in (os.path.join(directory, unfinished(name)), _path(directory, name)):
        _remove(directory, name, path)


def names(directory: str) -> tuple[str, ...]:
    """Of the checkpoints in `directory`, sorted; none if it does not exist."""
    try:
        with os.scandir(directory) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return ()
    except OSError as failed:
        raise StoreError(f"checkpoints in {directory} can't be listed: {failed.strerror}") from failed
    return tuple(sorted(name for name in found if _NAME.fullmatch(name)))


def delete(directory: str, name: str) -> None:
    """Remove one checkpoint. Raises: NotFound, StoreError."""
    path = _path(directory, name)
    gone = os.path.join(directory, f"{_GONE}{uuid.uuid4().hex[:12]}")
    try:
        _sweep(directory)
        # Killed half-way, it leaves no checkpoint of which a part is missing.
        os.rename(path, gone)
    except FileNotFoundError:
        raise NotFound(f"no checkpoint {name!r} in {directory}") from None
    except OSError as failed:
        raise StoreError(f"checkpoint {name!r} in {directory} can't be removed: {failed.strerror}") from failed
    _remove(directory, name, gone)


def _sweep(directory: str) -> None:
    for name in os.listdir(directory):
        if name.startswith(_GONE):
            _remove(directory, name, os.path.join(directory, name))


def _remove(directory: str, name: str, path: str) -> None:
    try:
        with contextlib.suppress(FileNotFoundError):
            remove_tree(path)
    except OSError as failed:
        raise StoreError(f"checkpoint {name!r} in {directory} can't be removed: {failed.strerror}") from failed
