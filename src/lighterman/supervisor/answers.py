"""Answering a future whose asker may have been cancelled meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

__all__ = ["fail", "succeed"]


def succeed(done: asyncio.Future[Any], value: Any = None) -> None:
    """Set the result, unless it has one."""
    if not done.done():
        done.set_result(value)


def fail(done: asyncio.Future[Any], failed: BaseException) -> None:
    """Set the error, unless it has an answer; nobody need ask for it."""
    if not done.done():
        done.set_exception(failed)
        done.exception()
