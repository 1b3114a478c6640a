"""A process that has no descriptors left fails in many places: whoever asked hears the one reason, and what has to be
done all the same (to kill, to take away) is done with a few that were kept for it.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from lighterman.errors import LightermanError, LimitExceeded

__all__ = ["Reserve", "telling_what_ran_out"]

T = TypeVar("T")

_LIMITS = {errno.EMFILE: "ulimit -n", errno.ENFILE: "fs.file-max"}
# The deepest need: the removal of a nested cgroup has six open, one pass of a kill three.
_KEPT = 8
_PAUSES_S = (0.01, 0.03, 0.1, 0.3, 0.6)


@contextmanager
def telling_what_ran_out(operation: str, container: str) -> Iterator[None]:
    """Raises: LimitExceeded in place of an error that came of a lack of descriptors."""
    try:
        yield
    except (OSError, LightermanError) as failed:
        limit = None if isinstance(failed, LimitExceeded) else _limit_behind(failed)
        if limit is None:
            raise
        text = f"no descriptors left to {operation} container {container}: raise `{limit}` ({failed})"
        raise LimitExceeded(text, limit=limit, operation=operation, container=container) from failed


def _limit_behind(failed: BaseException) -> str | None:
    """Of an error of the system, or of one of ours that was raised for one."""
    while not isinstance(failed, OSError):
        if failed.__cause__ is None:
            return None
        failed = failed.__cause__
    return _LIMITS.get(failed.errno or 0)


class Reserve:
    """Descriptors of nothing, given up for as long as something must be done that finds no other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: list[int] = []
        self._closed = False
        self._take()

    def use(self, act: Callable[[], T]) -> T:
        """Do what can be done again from its beginning; blocking, from any thread. Raises what it raises.

        Another thread may be faster and take what was given up: then it is tried again, for about a second.
        """
        try:
            return act()
        except OSError as failed:
            if failed.errno not in _LIMITS:
                raise
        for pause_s in _PAUSES_S:
            try:
                return self._use_once(act)
            except OSError as failed:
                if failed.errno not in _LIMITS:
                    raise
            time.sleep(pause_s)
        return self._use_once(act)

    def _use_once(self, act: Callable[[], T]) -> T:
        with self._lock:
            self._give_up()
            try:
                return act()
            finally:
                self._take()

    def close(self) -> None:
        """Keep none any more. Again is nothing."""
        with self._lock:
            self._closed = True
            self._give_up()

    def _take(self) -> None:
        while len(self._kept) < _KEPT and not self._closed:
            try:
                self._kept.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return  # the next time

    def _give_up(self) -> None:
        while self._kept:
            os.close(self._kept.pop())
