"""Taking a program's output while it runs: bounded, and never so slowly that the program has to wait."""

from __future__ import annotations

import asyncio

from lighterman.errors import InvalidState
from lighterman.logs.streams import LogStream
from lighterman.supervisor.tasks import OwnedTasks

__all__ = ["Captured", "capture"]

Captured = tuple[bytes, bool]
"""What was written, up to a bound, and whether there was more."""


def capture(tasks: OwnedTasks, stream: LogStream, max_output: int) -> asyncio.Future[Captured]:
    """Read a stream to its end in a task of its own; the future has the result, whoever waits for it or does not."""
    done: asyncio.Future[Captured] = asyncio.get_running_loop().create_future()

    async def read() -> None:
        try:
            captured = await stream.capture(max_output)
        except BaseException as failed:
            if not done.done():
                done.set_exception(failed if isinstance(failed, Exception) else InvalidState("the engine was closed"))
                done.exception()  # nobody may be waiting any more
            raise
        if not done.done():
            done.set_result(captured)

    tasks.watch(read(), "capture output")
    return done
