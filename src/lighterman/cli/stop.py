"""`lighterman stop`: ask containers of a root to end, and kill those that do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lighterman.cli.at_root import for_each, root_option

if TYPE_CHECKING:
    from lighterman.container import Container

__all__ = ["command"]


@click.command("stop", help="Ask containers to end by their stop signal, and kill those that do not in time.")
@root_option
@click.option("-t", "--time", "grace", metavar="TIME", default="10", help="How long each has, as 30s (10s).")
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
def command(root: str, grace: str, names: tuple[str, ...]) -> int:
    """Returns the exit code."""
    from lighterman.quantities import parse_duration

    grace_s = parse_duration(grace)

    async def stop(container: Container) -> None:
        await container.stop(grace_s=grace_s)

    return for_each(root, names, stop)
