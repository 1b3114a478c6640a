"""`lighterman events`: what has happened to the containers of a root."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from lighterman.cli.at_root import at_root, root_option

if TYPE_CHECKING:
    from lighterman.engine import Engine
    from lighterman.journal import Event

__all__ = ["command"]


@click.command("events", help="Show what has happened: a number, the time, what it was, the container, and more of it.")
@root_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes.")
@click.option("--after", type=int, default=0, metavar="NUMBER", help="From the one after this; 0 for all kept (0).")
@click.option("--container", "name", metavar="CONTAINER", help="Only of this one, which may be removed.")
@click.option("--json", "as_json", is_flag=True, help="For programs: one object a line.")
def command(root: str, follow: bool, after: int, name: str | None, as_json: bool) -> int:
    """Returns the exit code."""
    import msgspec

    from lighterman.cli.passing import ConsumerGone, Output

    async def show(engine: Engine) -> None:
        output = Output(1)
        container = None if name is None else await _id_of(engine, name)
        async for event in engine.events(after=after, container=container, follow=follow):
            await output.write(msgspec.json.encode(event) + b"\n" if as_json else _line(event))

    try:
        at_root(root, show)
    except ConsumerGone:
        return 141
    return 0


async def _id_of(engine: Engine, name: str) -> str:
    """Of the last container that had this name or id: what has happened to it is kept longer than it is."""
    from lighterman.errors import NotFound

    try:
        return (await engine.get(name)).id
    except NotFound:
        found = None
        async for event in engine.events(after=0, follow=False):
            if name in (event.name, event.container):
                found = event.container
        if not found:
            raise
        return found


def _line(event: Event) -> bytes:
    from lighterman.cli.times import shown_time

    more = {
        "process": event.process if event.process != "init" else None,
        "generation": event.generation,
        "pid": event.pid,
        "exit": None if event.exit is None else str(event.exit),
        "reason": event.reason,
        "oom_kills": event.oom_kills,
        "lost": event.lost,
    }
    words = [str(event.seq), shown_time(event.time), event.kind, event.name, event.container[:12]]
    # Parts of it are the workload's words; a terminal obeys some of what those may hold.
    words += [
        f"{key}={shlex.quote(str(value).encode('unicode_escape').decode())}" for key, value in more.items() if value
    ]
    return (" ".join(filter(None, words)) + "\n").encode()
