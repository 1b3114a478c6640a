"""`lighterman rm`: remove containers of a root."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lighterman.cli.at_root import for_each, root_option

if TYPE_CHECKING:
    from lighterman.container import Container

__all__ = ["command"]


@click.command("rm", help="Remove containers, with all that they wrote.")
@root_option
@click.option("-f", "--force", is_flag=True, help="Kill those that run.")
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
def command(root: str, force: bool, names: tuple[str, ...]) -> int:
    """Returns the exit code."""

    async def remove(container: Container) -> None:
        await container.remove(force=force)

    return for_each(root, names, remove)
