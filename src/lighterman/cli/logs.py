"""`lighterman logs`: what a container of a root wrote."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import click

from lighterman.cli.at_root import at_root, root_option

if TYPE_CHECKING:
    from lighterman.engine import Engine

__all__ = ["command"]


@click.command("logs", help="Show what a container wrote, all its runs: its stdout on stdout, its stderr on stderr.")
@root_option
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until it has ended.")
@click.option(
    "--since", metavar="TIME", help="From then on: 2026-01-31T12:00:00Z, Unix seconds, or 10m for so long ago."
)
@click.option("--until", metavar="TIME", help="Up to then, likewise.")
@click.option("-n", "--tail", metavar="NUMBER", default="all", help="The last so many lines (all).")
@click.option("-t", "--timestamps", is_flag=True, help="Begin each line with its time.")
@click.argument("name", metavar="CONTAINER")
def command(
    root: str, follow: bool, since: str | None, until: str | None, tail: str, timestamps: bool, name: str
) -> int:
    """Returns the exit code."""
    from lighterman.cli.failures import say
    from lighterman.cli.passing import ConsumerGone, Output
    from lighterman.cli.times import shown_time

    begin, end, count = _moment("--since", since), _moment("--until", until), _count(tail)

    async def show(engine: Engine) -> None:
        lost = 0
        outputs = {"stdout": Output(1), "stderr": Output(2)}
        container = await engine.get(name)
        records = container.logs(
            follow=follow, since=begin, until=end, tail=count, lines=timestamps or count is not None
        )
        async for record in records:
            lost += record.lost
            head = f"{shown_time(record.time)} ".encode() if timestamps else b""
            if record.data:
                await outputs[record.stream].write(head + record.data)
        if lost:
            say(f"{lost} bytes of output were lost: they were rotated away or dropped")

    try:
        at_root(root, show)
    except ConsumerGone:
        return 141
    return 0


def _moment(option: str, text: str | None) -> datetime.datetime | float | None:
    from lighterman.errors import InvalidSpec
    from lighterman.quantities import parse_duration

    if text is None:
        return None
    if text.isascii() and text.replace(".", "", 1).isdigit() and len(text) <= 40:
        return float(text)
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        now = datetime.datetime.now(datetime.UTC).timestamp()
        try:
            return now - parse_duration(text)
        except InvalidSpec as wrong:
            raise InvalidSpec(f"{option} {text!r:.60}: must be a time as 2026-01-31T12:00:00Z, or as 10m") from wrong
    # Without a zone it is the time of the clock on this wall.
    return moment if moment.tzinfo is not None else moment.astimezone()


def _count(tail: str) -> int | None:
    from lighterman.errors import InvalidSpec

    if tail == "all":
        return None
    if not (tail.isascii() and tail.isdigit() and len(tail) <= 9):
        raise InvalidSpec(f"--tail {tail!r:.60}: must be a number of lines, or all")
    return int(tail)
