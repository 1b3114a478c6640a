"""One thread moves the output of all containers from their pipes into their segments.

The event loop hands a descriptor over and hears of the end; it never touches the bytes. The thread waits in epoll
(level-triggered), moves a bounded piece per descriptor and turn, and wakes the loop at most once a turn, and only if
somebody waits. What is wrong with one container's segments (a full disk) makes that one wait and no other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

from lighterman import limits
from lighterman.errors import AlreadyClosed
from lighterman.keeper.segments import BLOCK_WRITER, SegmentWriter, at_end, buffered
from lighterman.logs.sink import OutputSink, Source, StreamEnd

__all__ = ["OutputPump"]

log = logging.getLogger(__name__)

# Of one descriptor in one turn: what an output pipe holds. A flooding container delays the others by less than 1 ms.
PIECE_BYTES = 1024 * 1024
# A full disk is looked at again after the first, later after up to the second.
RETRY_FIRST_S = 0.05
RETRY_MAX_S = 2.0
# A terminal that no process has open may be opened again (a getty does that); epoll can't wait for it.
HANGUP_RETRY_S = 0.1
# What can be on its way in a pseudo terminal when the process exits: the kernel's 64 KiB buffer, which FIONREAD does
# not see, and the line discipline's.
TERMINAL_BYTES = 128 * 1024


class OutputPump:
    """All methods are called on the event loop, except that `open` may be called in a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread: threading.Thread | None = None
        self._closed = False
        self._stopping = False
        self._sources: dict[int, Source] = {}
        self._commands: deque[tuple[Callable[..., None], tuple[object, ...]]] = deque()
        self._kicked = False
        self._changed: list[OutputSink] = []
        self._told = False
        self._retries: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._finished: asyncio.Future[None] = loop.create_future()
        self._kick_fd = -1
        # A source is attached on the loop while the thread may pause all of its sink.
        self._registering = threading.Lock()

    # ---- the loop's side ----

    def open(
        self,
        directory: str,
        max_bytes: int = limits.SEGMENT_BYTES,
        max_files: int = limits.SEGMENT_FILES,
        policy: str = BLOCK_WRITER,
    ) -> OutputSink:
        """The sink of one run of one process. Creates nothing on disk before the first byte, under the policy `block`.

        A directory that has segments is continued after a repair, which reads up to 256 KiB: then, and under the other
        policies, call it in a thread.
        Raises: AlreadyClosed; OSError.
        """
        if self._closed:
            raise AlreadyClosed("the output pump is closed")
        return OutputSink(self, directory, SegmentWriter(directory, max_bytes, max_files, policy))

    def start(self) -> None:
        """Start the thread; the first sink does it by itself. Again is nothing."""
        if self._closed:
            raise AlreadyClosed("the output pump is closed")
        if self._thread is None:
            epoll = select.epoll()
            try:
                self._kick_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            except OSError:
                epoll.close()
                raise
            self._epoll = epoll
            self._epoll.register(self._kick_fd, select.EPOLLIN)
            self._thread = threading.Thread(target=self._run, name="lighterman-output", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """Stop between two frames and close every descriptor; what is still in the pipes stays there. Again joins."""
        self._closed = True
        if self._thread is None or self._kick_fd < 0:
            return
        self._stopping = True
        os.eventfd_write(self._kick_fd, 1)
        await asyncio.shield(self._finished)
        self._thread.join()
        if self._kick_fd >= 0:
            # Not in the thread: a command that comes at the same time must not hit a number that is somebody else's.
            fd, self._kick_fd = self._kick_fd, -1
            os.close(fd)

    # ---- called by the sinks, on the loop ----

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def attach(self, source: Source) -> None:
        """Begin to move a source's bytes."""
        self.start()
        self._sources[source.fd] = source
        try:
            self._register(source)
        except OSError:
            self._sources.pop(source.fd, None)
            raise
        if source.pipe is not None:
            self.command(self._look, source)

    def command(self, act: Callable[..., None], *arguments: object) -> None:
        """Have something done in the thread. Nothing, once the pump is closed: every stream has ended then."""
        if self._closed:
            return
        self._commands.append((act, arguments))
        if not self._kicked:
            self._kicked = True
            os.eventfd_write(self._kick_fd, 1)

    # ---- the thread ----

    def _run(self) -> None:
        try:
            while not self._stopping:
                for fd, _ in self._epoll.poll(self._until_retry()):
                    if fd == self._kick_fd:
                        self._obey()
                    elif (source := self._sources.get(fd)) is not None and source.registered:
                        self._guard(self._serve, source)
                self._retry_due()
                self._tell()
        finally:
            self._closed = True
            for source in list(self._sources.values()):
                self._end(source, StreamEnd.CLOSED)
            self._epoll.close()
            self._tell()
            self._call_loop(self._finish)

    def _obey(self) -> None:
        os.eventfd_read(self._kick_fd)
        # First this: a command that comes later kicks again.
        self._kicked = False
        while self._commands:
            act, arguments = self._commands.popleft()
            self._guard(act, *arguments)

    def _guard(self, act: Callable[..., object], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception:
            # Ours, and about one container: the others' output must go on.
            log.exception("moving output: %r %r", act, arguments)

    def _serve(self, source: Source) -> int:
        """Move one piece. Returns how many bytes; what happened else is in the source's and the sink's state."""
        sink, writer = source.sink, source.sink.writer
        writer.keep_from = sink.needed_from()
        limit = PIECE_BYTES if source.left is None else min(PIECE_BYTES, source.left)
        try:
            untold = writer.untold
            moved = self._move(source, limit)
        except BlockingIOError:
            self._nothing_there(source)
            return 0
        except OSError as error:
            self._fail(sink, error)
            return 0
        except Exception as error:
            # Ours, and this container's alone: the others' output must go on.
            log.exception("%s: moving output", sink.directory)
            self._fail(sink, OSError(errno.EIO, f"{type(error).__name__}: {error}"))
            return 0
        if moved == 0:
            if source.pipe is None or source.left is not None:
                self._end(source, StreamEnd.EOF)
            else:
                self._pause(source)
                self._retry_in(HANGUP_RETRY_S, lambda: self._resume(source))
            return 0
        if not sink.dropping:
            sink.error = None
            sink.retry_s = 0.0
        sink.progress = source.progress = writer.end
        if untold and not writer.untold:
            self._count_told(sink)
        self._note(sink)
        if source.left is not None:
            source.left -= moved
            if source.left <= 0:
                self._end(source, self._how_ended(source))
        if writer.overfull:
            self._block(sink)
        if source.pipe is not None and source.registered and buffered(source.pipe[0]):
            # It got stuck halfway, and the next try will tell why.
            moved += self._serve(source)
        return moved

    def _move(self, source: Source, limit: int) -> int:
        """One piece into the segments, or away from there. Raises: as `SegmentWriter.splice`."""
        sink, writer = source.sink, source.sink.writer
        stream, fd, pipe = source.stream, source.fd, source.pipe
        if sink.dropping:
            return writer.drop(stream, fd, limit) if pipe is None else writer.drop_through(stream, fd, *pipe, limit)
        while True:
            try:
                return (
                    writer.splice(stream, fd, limit)
                    if pipe is None
                    else writer.splice_through(stream, fd, *pipe, limit)
                )
            except BlockingIOError:
                raise
            except OSError as error:
                if sink.policy == BLOCK_WRITER:
                    raise
                moved = writer.give_way(stream, fd, limit, pipe)
                if moved is not None:
                    if moved:
                        self._begin_dropping(sink, error)
                    return moved

    def _begin_dropping(self, sink: OutputSink, error: OSError | None) -> None:
        """For a while; then it is seen whether the disk, or the reader, can take something again."""
        if not sink.dropping:
            if sink.retry_s == 0:
                log.warning("%s: output is dropped: %s", sink.directory, error or "a reader is too far behind")
            sink.dropping = True
            sink.retry_s = min(max(2 * sink.retry_s, RETRY_FIRST_S), RETRY_MAX_S)
            self._retry_in(sink.retry_s, lambda: self._end_dropping(sink))
        sink.error = error
        self._note(sink)

    def _end_dropping(self, sink: OutputSink) -> None:
        """Tell how much it was, if that can be written now."""
        if not sink.dropping or sink.ended:
            return
        sink.dropping = False
        try:
            if self._still_overfull(sink):
                self._begin_dropping(sink, None)
                return
            sink.writer.tell_dropped()
        except OSError as failed:
            self._begin_dropping(sink, failed)
            return
        self._count_told(sink)

    def _count_told(self, sink: OutputSink) -> None:
        sink.error = None
        sink.progress = sink.writer.end
        for source in tuple(sink.sources.values()):
            if source.end is None:
                source.progress = sink.progress
        self._note(sink)

    def _nothing_there(self, source: Source) -> None:
        owed = source.sink.writer.owed
        if owed is not None and owed[0] != source.stream:
            other = source.sink.sources.get(owed[0])
            if other is None and source.left is not None:
                # Its pipe was not handed over until the very end: it is lost.
                self._try(source.sink, source.sink.writer.cut)
            # The rest of the other stream's frame is in its pipe, and comes within this turn.
            self._pause(source)
            self._retry_in(HANGUP_RETRY_S / 10, lambda: self._resume(source))
        elif source.left is not None:
            self._end(source, self._how_ended(source))

    def _how_ended(self, source: Source) -> StreamEnd:
        return StreamEnd.EOF if source.pipe is None and at_end(source.fd) else StreamEnd.BUFFERED

    def finish_source(self, source: Source) -> None:
        """The process has exited: what is in the pipe now is all that it wrote."""
        if source.end is not None or source.left is not None:
            return
        source.left = buffered(source.fd) if source.pipe is None else TERMINAL_BYTES
        if source.left == 0:
            self._end(source, self._how_ended(source))
        self._resume(source)
        while source.end is None and source.registered:
            self._serve(source)

    def close_sink(self, sink: OutputSink) -> None:
        """Stop moving; the writer's file is closed."""
        for source in tuple(sink.sources.values()):
            self._end(source, StreamEnd.CLOSED)
        sink.writer.close()

    def _end(self, source: Source, how: StreamEnd) -> None:
        if source.end is not None:
            return
        sink, writer = source.sink, source.sink.writer
        if how is not StreamEnd.CLOSED and writer.owed is not None and writer.owed[0] == source.stream:
            if not self._try(sink, writer.cut):
                return
            sink.progress = source.progress = writer.end
        if writer.untold:
            self._last_words(sink)
        with self._registering:
            self._forget(source)
            # Before the end, which readers look at first.
            source.untold = writer.untold_each[source.stream - 1]
            source.end = how
        self._sources.pop(source.fd, None)
        for fd in (source.fd, *(source.pipe or ())):
            os.close(fd)
        if all(other.end is not None for other in tuple(sink.sources.values())):
            writer.close()
        self._note(sink)

    # ---- waiting for a disk, for a reader, for a terminal ----

    def _try(self, sink: OutputSink, act: Callable[[], None]) -> bool:
        try:
            act()
        except OSError as error:
            self._fail(sink, error)
            return False
        return True

    def _fail(self, sink: OutputSink, error: OSError) -> None:
        if sink.error is None:
            log.warning("%s: output waits in its pipe: %s", sink.directory, error)
        sink.error = error
        for source in tuple(sink.sources.values()):
            self._pause(source)
        sink.retry_s = min(max(2 * sink.retry_s, RETRY_FIRST_S), RETRY_MAX_S)
        self._retry_in(sink.retry_s, lambda: self._try_again(sink))
        self._note(sink)

    def _try_again(self, sink: OutputSink) -> None:
        if sink.blocked:
            # The reader may have come to the end meanwhile, and then it moves no more.
            self.unblock(sink)
        self._resume_all(sink)

    def _block(self, sink: OutputSink) -> None:
        """A reader that may lose nothing is further behind than the files may grow: let the container wait for it."""
        if not self._still_overfull(sink):
            return
        if sink.policy != BLOCK_WRITER:
            self._begin_dropping(sink, None)
        else:
            sink.blocked = True
            for source in tuple(sink.sources.values()):
                self._pause(source)
            self._note(sink)
            # A reader that moved on before it could see this has told nobody.
            self.unblock(sink)

    def unblock(self, sink: OutputSink) -> None:
        """A reader has moved on: look again."""
        if sink.dropping and sink.error is None:
            self._end_dropping(sink)
        elif sink.blocked and not self._still_overfull(sink):
            sink.blocked = False
            self._resume_all(sink)
            self._note(sink)

    def _last_words(self, sink: OutputSink) -> None:
        """What was dropped is told before the end, if it can be; if not, its slot tells it to who reads."""
        try:
            sink.writer.tell_dropped()
        except OSError as error:
            log.warning("%s: dropped output is not told of in the log: %s", sink.directory, error)
        else:
            self._count_told(sink)

    def _still_overfull(self, sink: OutputSink) -> bool:
        sink.writer.keep_from = sink.needed_from()
        try:
            sink.writer.prune()
        except OSError as error:
            self._fail(sink, error)
        return sink.writer.overfull

    def _resume_all(self, sink: OutputSink) -> None:
        for source in tuple(sink.sources.values()):
            self._resume(source)

    def _look(self, source: Source) -> None:
        """Serve a source of which epoll may not tell.

        The end after an exit, if somebody else holds the write end of an empty pipe; and what is in the pipe behind a
        terminal, which epoll does not watch.
        """
        if source.registered and (source.left is not None or source.pipe is not None):
            self._serve(source)

    def _pause(self, source: Source) -> None:
        with self._registering:
            self._forget(source)

    def _forget(self, source: Source) -> None:
        # epoll tells of a hang-up even if nothing is asked for: it has to forget the descriptor.
        if source.registered:
            source.registered = False
            self._epoll.unregister(source.fd)

    def _resume(self, source: Source) -> None:
        if source.end is None and not source.sink.blocked and not source.registered:
            self._register(source)
            self._look(source)

    def _register(self, source: Source) -> None:
        with self._registering:
            if source.end is None and not source.registered:
                self._epoll.register(source.fd, select.EPOLLIN)
                source.registered = True

    def _retry_in(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._retries, (time.monotonic() + delay_s, next(self._numbers), act))

    def _until_retry(self) -> float | None:
        return max(self._retries[0][0] - time.monotonic(), 0.0) if self._retries else None

    def _retry_due(self) -> None:
        while self._retries and self._retries[0][0] <= time.monotonic():
            self._guard(heapq.heappop(self._retries)[2])

    # ---- telling the loop ----

    def _note(self, sink: OutputSink) -> None:
        if sink.watched and sink not in self._changed:
            self._changed.append(sink)

    def _tell(self) -> None:
        if self._changed and not self._told:
            self._told = True
            self._call_loop(self._deliver)

    def _deliver(self) -> None:
        # First this: the thread that still sees it set has added to the list that is taken next.
        self._told = False
        changed, self._changed = self._changed, []
        for sink in changed:
            sink.wake()

    def _call_loop(self, act: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(act)
        except RuntimeError:
            # The loop was closed without closing us: nobody is left to hear.
            self._stopping = True

    def _finish(self) -> None:
        with contextlib.suppress(asyncio.InvalidStateError):
            self._finished.set_result(None)
