"""`lighterman ps`: the containers of a root."""

from __future__ import annotations

import shlex
import time
from typing import TYPE_CHECKING

import click

from lighterman.cli.at_root import at_root, root_option, settled

if TYPE_CHECKING:
    from lighterman.container import Container
    from lighterman.engine import Engine

__all__ = ["command"]

_WIDTH = 24  # of a column whose text may be long


@click.command("ps", help="List the containers of a root.")
@root_option
@click.option("-a", "--all", "all_of_them", is_flag=True, help="Those too that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("--no-trunc", is_flag=True, help="Ids and commands in full.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def command(root: str, all_of_them: bool, quiet: bool, no_trunc: bool, as_json: bool) -> int:
    """Returns the exit code."""

    async def look(engine: Engine) -> list[dict[str, object]]:
        found = [await settled(engine, one) for one in await engine.containers()]
        return [_row(one) for one in found if all_of_them or one.status in ("running", "paused", "restarting")]

    rows = at_root(root, look)
    if as_json:
        import msgspec

        click.echo(msgspec.json.format(msgspec.json.encode(rows), indent=2))
    elif quiet:
        for row in rows:
            click.echo(row["id"] if no_trunc else str(row["id"])[:12])
    else:
        _table(rows, no_trunc=no_trunc)
    return 0


def _row(container: Container) -> dict[str, object]:
    exit, health = container.exit, container.health
    return {
        "id": container.id,
        "name": container.name,
        "image": container.spec.image or container.spec.rootfs,
        "command": container.spec.argv,
        "status": container.status,
        "pid": container.pid,
        "created_at": container.created_at,
        "started_at": container.started_at,
        "health": health.status if health is not None else None,
        "exit": None if exit is None else str(exit),
        "exit_code": None if exit is None else exit.shell_code,
        "finished_at": None if exit is None else exit.finished_at,
    }


def _table(rows: list[dict[str, object]], *, no_trunc: bool) -> None:
    heads = ("CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "NAMES")
    lines = [heads]
    for row in rows:
        command = shlex.join(row["command"])  # type: ignore[arg-type]
        image = str(row["image"])
        # What a workload was given to run may hold anything; a terminal obeys some of it.
        command = command.encode("unicode_escape").decode()
        if not no_trunc:
            command, image = _cut(command), _cut(image)
        id = str(row["id"]) if no_trunc else str(row["id"])[:12]
        lines.append((id, image, command, f"{_ago(row['created_at'])} ago", _status(row), str(row["name"])))
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        click.echo("   ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _status(row: dict[str, object]) -> str:
    if row["status"] == "created":
        return "Created"
    if row["status"] == "exited":
        when = f" {_ago(row['finished_at'])} ago" if row["finished_at"] is not None else ""
        return f"Exited ({row['exit_code']}){when}"
    if row["status"] == "restarting":
        return f"Restarting ({row['exit_code']})"
    words = [word for word in (row["health"], "paused" if row["status"] == "paused" else None) if word]
    return f"Up {_ago(row['started_at'])}" + (f" ({', '.join(map(str, words))})" if words else "")


def _ago(at: object) -> str:
    passed_s = max(0, int(time.time() - at)) if isinstance(at, int | float) else 0
    for unit, seconds in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if passed_s >= seconds:
            count = passed_s // seconds
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{passed_s} second{'' if passed_s == 1 else 's'}"


def _cut(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."
