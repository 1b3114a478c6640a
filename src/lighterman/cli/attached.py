"""A container of a root in the foreground, started by us or running already; it lives on when we leave."""

from __future__ import annotations

import asyncio
import contextlib
import os

from lighterman.cli.at_root import at_root, find, start_now
from lighterman.cli.passing import ConsumerGone
from lighterman.cli.session import Session, exit_code, leave_by_force, output_failed
from lighterman.cli.signals import Signals
from lighterman.cli.terminal import RawMode, terminal_size
from lighterman.container import Container
from lighterman.engine import Engine
from lighterman.errors import AlreadyStopped, InvalidState, UsageError
from lighterman.logs.reader import Cursor

__all__ = ["attach"]


def attach(root: str, name: str, *, start: bool, stdin: bool, sig_proxy: bool) -> int:
    """Pass its streams on until it ends.

    Args: start: start it before, unless it runs. stdin: pass ours on, if it has one.
    Returns: its exit code. Raises: LightermanError.
    """

    async def visit(engine: Engine) -> int:
        container = await find(engine, name)
        if not start and container.status != "running":
            raise InvalidState(f"container {container.name} is {container.status}, not running", container=container.id)
        spec = container.spec
        with contextlib.ExitStack() as stack:
            raw = None
            if stdin and spec.stdin and spec.terminal:
                if not os.isatty(0):
                    raise UsageError("the input device is not a TTY")
                raw = stack.enter_context(RawMode(0))
            signals = stack.enter_context(Signals(give_up=leave_by_force(raw), terminal=spec.terminal))
            try:
                session = await (_attached if container.status == "running" else _started)(container)
                session.take_signals(signals, deliver=sig_proxy)
                if stdin and spec.stdin:
                    # Whoever was attached before may have closed it.
                    with contextlib.suppress(InvalidState):
                        session.feed(container.stdin)
                return await _to_its_end(session)
            except asyncio.CancelledError:
                if signals.ended_by is None:
                    raise
                return 128 + signals.ended_by

    return at_root(root, visit)


async def _to_its_end(session: Session) -> int:
    try:
        return exit_code(await session.wait())
    except (ConsumerGone, OSError) as failed:
        return output_failed(failed)


async def _started(container: Container) -> Session:
    session = Session(container, terminal=container.spec.terminal)
    health = container.spec.health
    if container.spec.restart.can_restart or (health is not None and health.on_unhealthy == "restart"):
        end = await _end_of_log(container)
        await start_now(container)
        session.pass_records(container.logs(after=end, follow=True))
    else:
        await start_now(container)
        session.pass_streams()
    return session


async def _end_of_log(container: Container) -> Cursor | None:
    end = None
    async for record in container.logs(tail=1):
        end = record.cursor
    return end


async def _attached(container: Container) -> Session:
    """What it writes from now on."""
    session = Session(container, terminal=container.spec.terminal)
    # Known before anything is done that it can answer to: `tail=0` would begin where the log ends once it is asked for.
    session.pass_records(container.logs(after=await _end_of_log(container), follow=True))
    size = terminal_size() if container.spec.terminal else None
    if size is not None:
        # The program hears of a change only; what it has drawn before is drawn again by that.
        with contextlib.suppress(InvalidState, AlreadyStopped):
            await container.resize(height=size.height + 1, width=size.width)
    return session
