"""Virtual time: a clock that moves when it is told to, or by itself whenever nothing else can happen.

On `FakeLoop` "nothing else can happen" is exact: the loop asks its selector to block. On any other loop it is taken
to be so after `ROUNDS` turns of the loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import Executor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar, TypeVarTuple

__all__ = ["FakeClock", "FakeLoop", "run"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ROUNDS = 100  # a call chain through the supervisor takes about ten turns; each turn costs some microseconds


class FakeLoop(asyncio.SelectorEventLoop):
    """An event loop that tells when it is idle: every task waits for something that is not there yet.

    It is not idle while work that was given to `run_in_executor` (`asyncio.to_thread`) is under way.
    """

    def __init__(self) -> None:
        self._idle_hooks: list[Callable[[], bool]] = []
        self._in_threads = 0
        super().__init__(_IdleSelector(self._on_idle))

    def add_idle_hook(self, hook: Callable[[], bool]) -> None:
        """Call `hook` when the loop is about to block; it returns whether it made something ready."""
        self._idle_hooks.append(hook)

    def remove_idle_hook(self, hook: Callable[[], bool]) -> None:
        """Forget it."""
        self._idle_hooks.remove(hook)

    def run_in_executor(self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts) -> asyncio.Future[T]:
        self._in_threads += 1
        working = super().run_in_executor(executor, func, *args)
        working.add_done_callback(self._thread_is_done)
        return working

    def _thread_is_done(self, _: asyncio.Future[Any]) -> None:
        self._in_threads -= 1

    def _on_idle(self) -> bool:
        if self._in_threads:
            return False
        # The youngest first: who waits for idleness inside an automatic clock gets it before time moves.
        return any(hook() for hook in reversed(self._idle_hooks))


class _IdleSelector(selectors.BaseSelector):
    """The platform's selector; asks `on_idle` before it would block."""

    def __init__(self, on_idle: Callable[[], bool]) -> None:
        self._selector = selectors.DefaultSelector()
        self._on_idle = on_idle

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # asyncio blocks (None or more than 0) only when no callback is ready.
        ready = self._selector.select(0)
        if ready or (timeout is not None and timeout <= 0) or self._on_idle():
            return ready
        return self._selector.select(timeout)

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._selector.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        return self._selector.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._selector.get_map()

    def close(self) -> None:
        self._selector.close()


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a `FakeLoop`."""
    with asyncio.Runner(loop_factory=FakeLoop) as runner:
        return runner.run(main)


class FakeClock:
    """A `Clock` whose time passes only by `advance` or inside `autojump`.

    Args: mono, wall: what it shows at first, in seconds.
    """

    def __init__(self, *, mono: float = 1000.0, wall: float = 1_700_000_000.0) -> None:
        self._mono = mono
        self._wall_offset = wall - mono
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()
        self._numbers = itertools.count()

    def mono(self) -> float:
        return self._mono

    def wall(self) -> float:
        return self._mono + self._wall_offset

    def set_wall(self, wall: float) -> None:
        """Step the wall clock, as an administrator or NTP may; the monotonic one stays."""
        self._wall_offset = wall - self._mono

    async def sleep(self, delay_s: float) -> None:
        """Wait for `delay_s` seconds of virtual time; 0 or less gives other tasks one turn."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake() -> None:
            if not woken.done():
                woken.set_result(None)

        timer = self._call_at(self._mono + delay_s, wake)
        try:
            await woken
        finally:
            self._cancel(timer)

    def timeout(self, limit_s: float | None) -> AbstractAsyncContextManager[object]:
        """A block that raises TimeoutError after `limit_s` seconds of virtual time; None has no bound."""
        return _Timeout(self, limit_s)

    @property
    def pending(self) -> int:
        """How many sleeps and timeouts are waited for."""
        return len(self._timers) - len(self._cancelled)

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass: fire what falls due, in order, and let everything settle after each."""
        target = self._mono + seconds
        await self.settle()
        while (due := self._next_due()) is not None and due <= target:
            self._fire_next()
            await self.settle()
        self._mono = max(self._mono, target)

    async def settle(self) -> None:
        """Return when no task can go on without time passing."""
        loop = asyncio.get_running_loop()
        if not isinstance(loop, FakeLoop):
            for _ in range(ROUNDS):
                await asyncio.sleep(0)
            return
        idle: asyncio.Future[None] = loop.create_future()

        def on_idle() -> bool:
            if idle.done():
                return False
            idle.set_result(None)
            return True

        loop.add_idle_hook(on_idle)
        try:
            await idle
        finally:
            loop.remove_idle_hook(on_idle)

    @asynccontextmanager
    async def autojump(self) -> AsyncIterator[FakeClock]:
        """Inside, whenever every task waits, time jumps to the next timer by itself."""
        loop = asyncio.get_running_loop()
        if isinstance(loop, FakeLoop):
            loop.add_idle_hook(self._fire_next)
            try:
                yield self
            finally:
                loop.remove_idle_hook(self._fire_next)
            return
        jumping = asyncio.create_task(self._jump_for_ever(), name="fake clock")
        try:
            yield self
        finally:
            jumping.cancel()
            await asyncio.wait([jumping])

    async def _jump_for_ever(self) -> None:
        while True:
            await self.settle()
            self._fire_next()

    # ---- the timers ----

    def _call_at(self, when: float, callback: Callable[[], None]) -> int:
        number = next(self._numbers)
        heapq.heappush(self._timers, (when, number, callback))
        return number

    def _cancel(self, number: int) -> None:
        if any(timer[1] == number for timer in self._timers):
            self._cancelled.add(number)
            self._drop_cancelled()

    def _drop_cancelled(self) -> None:
        while self._timers and self._timers[0][1] in self._cancelled:
            self._cancelled.remove(heapq.heappop(self._timers)[1])

    def _next_due(self) -> float | None:
        self._drop_cancelled()
        return self._timers[0][0] if self._timers else None

    def _fire_next(self) -> bool:
        due = self._next_due()
        if due is None or due == float("inf"):
            return False
        _, _, callback = heapq.heappop(self._timers)
        self._mono = max(self._mono, due)
        callback()
        return True


class _Timeout:
    """`asyncio.timeout` whose deadline is virtual: it is brought forward to now when virtual time gets there."""

    def __init__(self, clock: FakeClock, limit_s: float | None) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._inner = asyncio.timeout(0 if limit_s is not None and limit_s <= 0 else None)
        self._timer: int | None = None

    async def __aenter__(self) -> asyncio.Timeout:
        inner = await self._inner.__aenter__()
        if self._limit_s is not None and self._limit_s > 0:
            self._timer = self._clock._call_at(self._clock.mono() + self._limit_s, self._expire)
        return inner

    def _expire(self) -> None:
        self._inner.reschedule(asyncio.get_running_loop().time())

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._clock._cancel(self._timer)
        await self._inner.__aexit__(kind, error, trace)
