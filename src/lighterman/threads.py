"""Threads for what blocks. They are ours: whoever fills asyncio's own pool with work holds up none of our verbs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from threading import Thread
from typing import ParamSpec, Protocol, TypeVar

from lighterman import limits
from lighterman.errors import LimitExceeded, OperationPending, OperationTimeout

__all__ = ["InThread", "OneThread", "in_own_thread", "in_removing_thread", "in_thread", "let_go", "look_at_files"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_pools: dict[str, ThreadPoolExecutor] = {}
_looking: set[Thread] = set()  # those of `look_at_files`: what else has a thread of its own does not count there


async def in_thread(
    function: Callable[_Arguments, _Result], /, *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """Call what ends soon: the kernel's answers, and files of our own. As `asyncio.to_thread`, without the context."""
    call = partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_pool("lighterman-work", limits.THREADS_KEPT), call)


async def in_removing_thread(function: Callable[[], _Result], /) -> _Result:
    """Call what takes a tree of files away: it may be huge, and then nobody else is to wait for a thread."""
    pool = _pool("lighterman-remove", limits.REMOVING_THREADS_KEPT)
    return await asyncio.get_running_loop().run_in_executor(pool, function)


def _pool(name: str, threads: int) -> ThreadPoolExecutor:
    if name not in _pools:
        _pools[name] = ThreadPoolExecutor(threads, name)
        _register_at_fork()
    return _pools[name]


def let_go() -> None:
    """End the idle ones, for who closes; whoever goes on gets new ones."""
    pools = list(_pools.values())
    _pools.clear()
    for pool in pools:
        pool.shutdown(wait=False)


@cache
def _register_at_fork() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)


def _forget() -> None:
    """A child that was forked has none of these threads."""
    _pools.clear()
    _looking.clear()


async def look_at_files(
    what: str, function: Callable[[], _Result], discard: Callable[[_Result], None] | None = None
) -> _Result:
    """Call what looks at files that a caller has named: their server may hang, and then so does the call.

    Args: what: of the message, as "the mounts of container box". discard: see `in_own_thread`.
    Raises: OperationTimeout after limits.HOST_FILES_S. LimitExceeded while too many hang.
    """
    if len(_looking) >= limits.HUNG_THREADS_KEPT:
        raise LimitExceeded(
            f"{what}: {len(_looking)} threads wait for files of the host already: look for a hung mount (NFS, FUSE)",
            limit="HUNG_THREADS_KEPT",
            operation="look at files",
        )
    looking = asyncio.ensure_future(in_own_thread(function, discard, among=_looking))
    try:
        done, _ = await asyncio.wait((looking,), timeout=limits.HOST_FILES_S)
        if not done:
            raise OperationTimeout(
                f"{what}: no answer for {limits.HOST_FILES_S:g} s: look for a hung mount (NFS, FUSE) on the host",
                operation="look at files",
            )
        return looking.result()
    finally:
        if not looking.cancel() and not looking.cancelled():
            looking.exception()  # seen, also by who was cancelled in the same moment


class InThread(Protocol):
    """What `in_own_thread` is, and an `OneThread`."""

    async def __call__(
        self, act: Callable[[], _Result], discard: Callable[[_Result], None] | None = None, /
    ) -> _Result: ...


class OneThread:
    """For who asks again and again what may hang: a thread of its own for each call, and no more than one at a time."""

    def __init__(self) -> None:
        self._threads: set[Thread] = set()

    @property
    def is_busy(self) -> bool:
        """Whether one has not ended yet, whoever gave up waiting for it."""
        return bool(self._threads)

    async def __call__(
        self, act: Callable[[], _Result], discard: Callable[[_Result], None] | None = None, /
    ) -> _Result:
        """As `in_own_thread`. Raises: OperationPending while the one before has not ended."""
        if self._threads:
            raise OperationPending("the call before has not ended yet")
        return await in_own_thread(act, discard, among=self._threads)


async def in_own_thread(
    act: Callable[[], _Result],
    discard: Callable[[_Result], None] | None = None,
    /,
    *,
    among: set[Thread] | None = None,
) -> _Result:
    """Do something that may block for ever, or that leaves its thread unfit for anything else.

    Args:
        discard: what to do with a result that nobody waits for any more; in a thread as well.
        among: where the thread is entered until it has ended, waited for or not.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def settle(result: _Result | None, failed: BaseException | None) -> None:
        if done.done():
            throw_away(result, failed)
        elif failed is not None:
            done.set_exception(failed)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # one of the two is given

    def throw_away(result: _Result | None, failed: BaseException | None) -> None:
        if failed is None and discard is not None:
            Thread(target=discard, args=(result,), name="lighterman-discard", daemon=True).start()

    def run() -> None:
        result, failed = None, None
        try:
            result = act()
        except BaseException as raised:  # noqa: BLE001  belongs to who waits
            failed = raised
        finally:
            if among is not None:
                among.discard(thread)
        try:
            loop.call_soon_threadsafe(settle, result, failed)
        except RuntimeError:  # the loop is closed
            throw_away(result, failed)

    # A daemon: what hangs in somebody's file system must not keep the program from ending.
    thread = Thread(target=run, name="lighterman-alone", daemon=True)
    if among is not None:
        among.add(thread)
    try:
        thread.start()
    except BaseException:  # the system has no more of them
        if among is not None:
            among.discard(thread)
        raise
    try:
        return await done
    except asyncio.CancelledError:
        # It had come, but the cancellation came before it could be taken.
        if done.done() and not done.cancelled():
            throw_away(*((None, failed) if (failed := done.exception()) is not None else (done.result(), None)))
        raise
