"""What the commands on containers of a root share: each is an engine of its own, for the time of one command."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import click

from lighterman import limits
from lighterman.cli.asked import Asked
from lighterman.cli.failures import failed, log_errors
from lighterman.cli.terminal import terminal_size
from lighterman.container import Container
from lighterman.engine import Engine
from lighterman.errors import LightermanError, NotFound

__all__ = ["at_root", "find", "for_each", "is_alive", "root_option", "run_detached", "settled", "start_now"]

T = TypeVar("T")


def root_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--root DIR`, which has to be given."""
    return click.option("--root", metavar="DIR", required=True, help="State of the engine that the containers are in.")(
        function
    )


def at_root(root: str, act: Callable[[Engine], Awaitable[T]]) -> T:
    """Do something with an engine on a root that there is. Raises: LightermanError."""
    log_errors()
    # What follows may last for days, as `attach` and `logs -f` do.
    gc.freeze()
    gc.enable()
    if not os.path.exists(os.path.join(root, "state.db")):
        raise NotFound(f"root {root!r:.140}: no engine has used it: `lighterman run --root` makes one")

    async def within() -> T:
        async with Engine(root) as engine:
            return await act(engine)

    return asyncio.run(within())


async def find(engine: Engine, name: str) -> Container:
    """By name, id or the beginning of one, `settled`. Raises: NotFound, InvalidSpec."""
    return await settled(engine, await engine.get(name))


async def settled(engine: Engine, container: Container) -> Container:
    """The same, once its status and health are true.

    An engine is told a moment after its own start that it has taken a container up, and a moment after that of an end
    that came while no engine was there.
    """
    # Bounded: on a full disk its end is told much later. Its status shows it before.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limits.DRAIN_S):
            await engine.inside.books.find(container.id).taken_up()
            generation = container.generation
            if not container.pid or is_alive(container.pid):
                return container
            async for event in engine.events(after=0, kinds=("exit", "restart"), container=container.id):
                if event.generation == generation:
                    break
    return container


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended; one that nobody has reaped yet has."""
    from lighterman.runtimes.oci.processes import family_of

    return family_of(pid) is not None


async def start_now(container: Container) -> None:
    """Start it; one that waits for a restart by its policy waits no longer. Raises: as `Container.start`."""
    if container.status == "restarting":
        await container.stop()
    await container.start()


def for_each(root: str, names: Iterable[str], act: Callable[[Container], Awaitable[object]]) -> int:
    """Do it with each container, and print what comes of it, or its name; one that fails keeps no other from it.

    Returns: the exit code, of the last failure.
    """

    async def all_of_them(engine: Engine) -> int:
        code = 0
        for name in names:
            try:
                said = await act(await find(engine, name))
            except LightermanError as wrong:
                code = failed(wrong)
            else:
                click.echo(name if said is None else said)
        return code

    return at_root(root, all_of_them)


def run_detached(asked: Asked) -> int:
    """Start a container that lives on in its root, and print its id. Returns the exit code. Raises: LightermanError."""
    wanted = asked.wanted()
    log_errors()
    if asked.tty:
        wanted.options["console_size"] = terminal_size()

    async def start() -> str:
        async with Engine(asked.root) as engine:
            container = await engine.create(
                wanted.image,
                wanted.argv,
                name=asked.name,
                stdin=asked.interactive,
                lease=None,
                **wanted.options,
            )
            try:
                await container.start()
            except BaseException:
                with contextlib.suppress(NotFound):
                    await container.remove(force=True)
                raise
            return container.id

    click.echo(asyncio.run(start()))
    return 0
