"""Moves output into segments while no engine is connected, a bounded piece a turn, so that no container freezes."""

from __future__ import annotations

import os
import sys
from _collections_abc import Callable
from select import EPOLLIN
from time import monotonic

from .table import Row

# Spelled out, as `typing` is expensive to import and the checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from .segments import SegmentWriter

PIECE_BYTES = 256 * 1024
_RETRY_S = 1.0
_STDOUT = 1
_STDERR = 2
_DRAINS = ("drain_out", "drain_err")
_NO_DROPS = "block"

Watch = Callable[[int, int, Callable[[int], None]], None]


class Mover:
    """The output of one job: which descriptors, and the writer that they share."""

    def __init__(
        self, row: Row, segments: tuple[str, int, int, str], watch: Watch, unwatch: Callable[[int], None]
    ) -> None:
        self._row = row
        self._segments = segments
        self._watch = watch
        self._unwatch = unwatch
        self._writer: SegmentWriter | None = None
        self._through: tuple[int, int] | None = None
        self._sources: dict[int, int] = {}
        self._watched: set[int] = set()
        held = row.held
        if "console" in held:
            if "console_pipe_r" in held and "console_pipe_w" in held:
                self._through = (held["console_pipe_r"], held["console_pipe_w"])
                self._sources[held["console"]] = _STDOUT
        else:
            for name, stream in (("stdout", _STDOUT), ("stderr", _STDERR)):
                if name in held:
                    self._sources[held[name]] = stream
        self.retry_at: float | None = None
        self._has_complained = False
        self.resume()

    def resume(self) -> None:
        """Watch every stream that has not ended."""
        self.retry_at = None
        for fd in tuple(self._sources):
            if fd not in self._watched:
                self._watched.add(fd)
                self._watch(fd, EPOLLIN, lambda _events, fd=fd: self._readable(fd))  # type: ignore[misc]
                if self._through is not None:
                    # What is in the pipe behind a terminal is not seen by epoll: an engine that died between the two
                    # splices has left it there, or a full disk.
                    self._readable(fd)

    def stop(self) -> None:
        """Leave the streams to somebody else; what is in the files is complete or repaired by the next writer."""
        self._suspend()
        self.retry_at = None
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _suspend(self) -> None:
        for fd in self._watched:
            self._unwatch(fd)
        self._watched.clear()

    def _readable(self, fd: int) -> None:
        try:
            ended = self._move(fd)
            while not ended and self._stuck_halfway():
                # The next try tells why.
                ended = self._move(fd)
        except BlockingIOError:
            return
        except OSError:
            # A full disk: the container waits; nothing is lost meanwhile.
            self._suspend()
            self.retry_at = monotonic() + _RETRY_S
            return
        except Exception:  # noqa: BLE001
            # A defect of ours, or this program is not on the disk any more to import the rest of it: as a full disk.
            self._suspend()
            self.retry_at = monotonic() + _RETRY_S
            if not self._has_complained:
                self._has_complained = True
                sys.excepthook(*sys.exc_info())
            return
        if ended and self._through is not None and not self._row.exited:
            # Nobody has the terminal open at this moment; it still hangs up at each look.
            self._suspend()
            self.retry_at = monotonic() + _RETRY_S
        elif ended:
            self._unwatch(fd)
            self._watched.discard(fd)
            del self._sources[fd]
            if not self._sources:
                self._tell_dropped()
                self.stop()

    def retry(self) -> None:
        """What could not be written, or told of, may be now."""
        self.retry_at = None
        self.resume()
        self._tell_dropped()

    def _tell_dropped(self) -> None:
        if self._writer is None or not self._writer.untold:
            return
        try:
            self._writer.tell_dropped()
        except OSError:
            # Its slot has the number, for whoever writes or reads here next.
            self.retry_at = monotonic() + _RETRY_S

    def _stuck_halfway(self) -> bool:
        """Whether output has left the terminal and has not reached the file."""
        if self._through is None:
            return False
        from .segments import buffered

        return buffered(self._through[0]) > 0

    def _move(self, fd: int) -> bool:
        """One piece; True at the end of the stream. Raises: BlockingIOError, OSError."""
        if self._writer is None:
            # Only a keeper whose engine has left needs it.
            from .segments import SegmentWriter

            self._writer = SegmentWriter(*self._segments)
            if self._segments[3] != _NO_DROPS:
                self._writer.drop_into(drains_of(self._row))
        while True:
            try:
                return self._splice(self._writer, fd) == 0
            except BlockingIOError:
                raise
            except OSError:
                dropped = self._writer.give_way(self._sources[fd], fd, PIECE_BYTES, self._through)
                if dropped is not None:
                    self.retry_at = self.retry_at or monotonic() + _RETRY_S
                    return dropped == 0

    def _splice(self, writer: SegmentWriter, fd: int) -> int:
        if self._through is not None:
            return writer.splice_through(_STDOUT, fd, *self._through, PIECE_BYTES)
        if writer.owed is not None and writer.owed[0] != self._sources[fd]:
            self._complete(writer, *writer.owed)
        return writer.splice(self._sources[fd], fd, PIECE_BYTES)

    def _complete(self, writer: SegmentWriter, stream: int, missing: int) -> None:
        """Finish the other stream's frame; its pipe holds the very bytes, unless that stream has ended."""
        for fd, other in self._sources.items():
            if other == stream:
                while writer.owed is not None:
                    writer.splice(stream, fd, missing)
                return
        writer.cut()


def drains_of(row: Row) -> tuple[int, int]:
    """Duplicates of a job's drains (see `drops.py`), which are held with its streams. Raises: OSError."""
    from .drops import make_drain

    for name in _DRAINS:
        if name not in row.held:
            row.held[name] = make_drain()
    first = os.dup(row.held[_DRAINS[0]])
    try:
        return first, os.dup(row.held[_DRAINS[1]])
    except OSError:
        os.close(first)
        raise


class Output:
    """The movers of all jobs."""

    def __init__(self, watch: Watch, unwatch: Callable[[int], None]) -> None:
        self._watch = watch
        self._unwatch = unwatch
        self._movers: dict[str, Mover] = {}

    def start(self, row: Row) -> None:
        """Move a job's output from now on."""
        if row.segments is not None and row.job not in self._movers:
            self._movers[row.job] = Mover(row, row.segments, self._watch, self._unwatch)

    def stop(self, row: Row) -> None:
        mover = self._movers.pop(row.job, None)
        if mover is not None:
            mover.stop()

    def stop_all(self) -> None:
        for mover in self._movers.values():
            mover.stop()
        self._movers.clear()

    def next_retry(self) -> float | None:
        """When `retry` is due, on the monotonic clock."""
        return min((mover.retry_at for mover in self._movers.values() if mover.retry_at is not None), default=None)

    def retry(self, now: float) -> None:
        for mover in self._movers.values():
            if mover.retry_at is not None and mover.retry_at <= now:
                mover.retry()
