"""Where checkpoints lie: a directory of directories, one for each name. Blocking; call it in a thread."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from lighterman.errors import AlreadyExists, InvalidSpec, NotFound, StoreError
from lighterman.runtimes.options import WithCheckpoint
from lighterman.trees import remove_tree

__all__ = ["check_name", "check_options", "delete", "names", "reserve"]

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
    """Make the directory of one checkpoint. Raises: AlreadyExists, StoreError."""
    path = _path(directory, name)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.mkdir(path, 0o700)
    except FileExistsError:
        raise AlreadyExists(f"checkpoint {name!r} exists already in {directory}") from None
    except OSError as failed:
        raise StoreError(f"checkpoint {name!r} can't be made in {directory}: {failed.strerror}") from failed


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
    try:
        remove_tree(path)
    except FileNotFoundError:
        raise NotFound(f"no checkpoint {name!r} in {directory}") from None
    except OSError as failed:
        raise StoreError(f"checkpoint {name!r} in {directory} can't be removed: {failed.strerror}") from failed
