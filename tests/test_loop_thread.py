"""The loop in a thread of its own: an iterator that is left holds nobody up, wherever it is collected."""

from __future__ import annotations

import gc
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from lighterman.loop_thread import LoopThread

PATIENCE_S = 30


@pytest.fixture
def _collected_by_hand() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    loop.start()
    yield loop
    loop.stop()


class Numbers:
    """Attributes: ended: whether it was left, or has come to its end."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    async def count(self) -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            self.ended.set()


async def _collect() -> None:
    gc.collect()


def test_iterator_gives_all_there_is(loop: LoopThread) -> None:
    numbers = Numbers()
    assert list(loop.iterate(numbers.count)) == [1, 2]
    assert numbers.ended.is_set()


def test_iterator_that_is_left_early_is_ended(loop: LoopThread) -> None:
    numbers = Numbers()
    for _ in loop.iterate(numbers.count):
        break
    assert numbers.ended.wait(PATIENCE_S)


@pytest.mark.usefixtures("_collected_by_hand")
def test_iterator_that_is_collected_in_the_loops_own_thread_is_ended() -> None:
    loop, numbers = LoopThread(), Numbers()
    loop.start()
    items = loop.iterate(numbers.count)
    assert next(items) == 1
    cycle: list[object] = [items]
    cycle.append(cycle)
    del items, cycle
    # In threads that keep nobody from failing.
    asking = threading.Thread(target=lambda: loop.call(_collect()), daemon=True)
    asking.start()
    asking.join(PATIENCE_S)
    assert not asking.is_alive()
    assert numbers.ended.wait(PATIENCE_S)
    loop.stop()


def test_iterator_that_is_left_after_the_loops_end_is_nothing(loop: LoopThread) -> None:
    numbers = Numbers()
    items = loop.iterate(numbers.count)
    assert next(items) == 1
    loop.stop()
    assert numbers.ended.is_set()
    del items
