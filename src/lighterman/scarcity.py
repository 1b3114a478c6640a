"""A process that has no descriptors left fails in many places: whoever asked hears the one reason, and what has to be
done all the same (to kill, to take away) is done with a few that were kept for it.
"""

from __future__ import annotations

import errno
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from lighterman.errors import LightermanError, LimitExceeded

__all__ = ["Reserve", "is_for_lack_of_descriptors", "telling_what_ran_out"]

T = TypeVar("T")

_LIMITS = {errno.EMFILE: "ulimit -n", errno.ENFILE: "fs.file-max"}
_KEPT = 8  # the removal of a nested cgroup, the deepest need, has four open at a time
_PAUSES_S = (0.01, 0.03, 0.1, 0.3, 0.6)


@contextmanager
def telling_what_ran_out(operation: str, container: str | None = None) -> Iterator[None]:
    """Raises: LimitExceeded in place of an error that came of a lack of descriptors."""
    try:
        yield
    except (OSError, LightermanError) as failed:
        limit = None if isinstance(failed, LimitExceeded) else _limit_behind(failed)
        if limit is None:
            raise
        what = f" container {container}" if container is not None else ""
        text = f"no descriptors left to {operation}{what}: raise `{limit}` ({failed})"
        raise LimitExceeded(text, limit=limit, operation=operation, container=container) from failed


def is_for_lack_of_descriptors(failed: BaseException) -> bool:
    """Whether it is nothing of what was asked for: with more descriptors it would have come through."""
    if isinstance(failed, LimitExceeded):
        return failed.limit in _LIMITS.values()
    return _limit_behind(failed) is not None


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
        weakref.finalize(self, _close_all, self._kept)
        self._take()

    def use(self, act: Callable[[], T]) -> T:
        """Do what can be done again from its beginning; blocking, from any thread. Raises what it raises.

        Another thread may be faster and take what was given up: then it is tried again, for about a second.
        """
        try:
            done = act()
        except OSError as failed:
            if failed.errno not in _LIMITS:
                raise
        else:
            self._take_again()
            return done
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
        """Keep none any more; never waits. Again is nothing."""
        self._closed = True
        # Who has the lock now gives up what it takes back.
        if self._lock.acquire(blocking=False):
            try:
                self._give_up()
            finally:
                self._lock.release()

    def _take_again(self) -> None:
        """What others were faster to take, once there is room."""
        if len(self._kept) < _KEPT and not self._closed and self._lock.acquire(blocking=False):
            try:
                self._take()
            finally:
                self._lock.release()

    def _take(self) -> None:
        while len(self._kept) < _KEPT:
            try:
                self._kept.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                break  # the next time
        if self._closed:
            self._give_up()

    def _give_up(self) -> None:
        _close_all(self._kept)


def _close_all(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())
