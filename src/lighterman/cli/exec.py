"""`lighterman exec`: a further process in a container of a root, in the foreground."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import click

from lighterman.cli.at_root import at_root, root_option

if TYPE_CHECKING:
    from lighterman.cli.signals import Signals
    from lighterman.container import Process
    from lighterman.engine import Engine

__all__ = ["command"]


@click.command(
    "exec",
    help="Run a command in a running container. Options after CONTAINER are the command's.",
    context_settings={"allow_interspersed_args": False},
)
@root_option
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on, to its end of file.")
@click.option("-t", "--tty", is_flag=True, help="Give the program a terminal.")
@click.option("-e", "--env", metavar="KEY=VALUE", multiple=True, help="Environment variable.")
@click.option("-w", "--workdir", metavar="DIR", help="Working directory inside the container.")
@click.option("-u", "--user", metavar="USER[:GROUP]", help="Name or number, looked up inside the container.")
@click.option("--timeout", metavar="TIME", help="End it and all that it has started after this time, as 90s.")
@click.argument("name", metavar="CONTAINER")
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND...")
def command(
    root: str,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    workdir: str | None,
    user: str | None,
    timeout: str | None,
    name: str,
    words: tuple[str, ...],
) -> int:
    """Returns the exit code: the command's own."""
    from lighterman.cli.asked import pair
    from lighterman.cli.signals import Signals
    from lighterman.cli.terminal import RawMode, terminal_size
    from lighterman.errors import UsageError
    from lighterman.quantities import parse_duration

    variables = dict(pair("--env", text) for text in env)
    timeout_s = None if timeout is None else parse_duration(timeout)
    if interactive and tty and not os.isatty(0):
        raise UsageError("the input device is not a TTY")

    async def run(engine: Engine) -> int:
        with Signals(give_up=lambda number: os._exit(128 + number), terminal=tty) as signals:
            container = await engine.get(name)
            try:
                process = await container.start_exec(
                    words,
                    stdin=interactive,
                    env=variables or None,
                    workdir=workdir,
                    user=user,
                    terminal=tty,
                    console_size=terminal_size() if tty else None,
                    timeout_s=timeout_s,
                )
                return await _serve(process, signals, interactive=interactive, tty=tty)
            except asyncio.CancelledError:
                if signals.ended_by is None:
                    raise
                return 128 + signals.ended_by

    with contextlib.ExitStack() as stack:
        if interactive and tty:
            stack.enter_context(RawMode(0))
        return at_root(root, run)


async def _serve(process: Process, signals: Signals, *, interactive: bool, tty: bool) -> int:
    from lighterman.cli.passing import ConsumerGone, Output, feed, pass_on
    from lighterman.cli.terminal import terminal_size

    working: set[asyncio.Task[None]] = set()

    def resize() -> None:
        size = terminal_size()
        if size is not None:
            working.add(asyncio.ensure_future(process.resize(height=size.height, width=size.width)))

    signals.deliver_to(lambda number: working.add(asyncio.ensure_future(process.kill(number))))
    if tty:
        signals.on_resize(resize)
    if interactive:
        feed(0, process.stdin, asyncio.get_running_loop())
    passing = [pass_on(process.stdout, Output(1))]
    if not tty:
        passing.append(pass_on(process.stderr, Output(2)))
    try:
        await asyncio.gather(*passing)
        return (await process.wait()).shell_code
    except ConsumerGone:
        return 141
    finally:
        if process.exit is None:
            await process.kill()
        await asyncio.gather(*working, return_exceptions=True)
