"""Waits of one container that have to end."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from lighterman.clock import Clock
from lighterman.errors import OperationTimeout
from lighterman.flag import Flag

__all__ = ["Bounds"]

T = TypeVar("T")


class Bounds:
    """By the container's clock."""

    def __init__(self, container_id: str, clock: Clock) -> None:
        self._id = container_id
        self._clock = clock

    async def within(self, limit_s: float | None, operation: str, call: Awaitable[T]) -> T:
        """A call of the runtime that has to end: one that hangs must not hang who asked, nor who comes next.

        Raises: OperationTimeout.
        """
        try:
            async with self._clock.timeout(limit_s):
                return await call
        except TimeoutError as late:
            raise OperationTimeout(
                f"{operation} of container {self._id} was not done after {limit_s:g} s",
                operation=operation,
                container=self._id,
            ) from late

    async def is_set(self, flag: Flag, limit_s: float) -> bool:
        """Whether it is set within `limit_s` seconds."""
        try:
            async with self._clock.timeout(limit_s):
                await flag.wait()
        except TimeoutError:
            # Set in the turn in which its time ran out, it is set all the same.
            return flag.is_set()
        return True
