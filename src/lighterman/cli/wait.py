"""`lighterman wait`: wait for the end of containers of a root."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lighterman.cli.at_root import for_each, root_option

if TYPE_CHECKING:
    from lighterman.container import Container

__all__ = ["command"]


@click.command("wait", help="Wait until containers have ended, one after the other, and print their exit codes.")
@root_option
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
def command(root: str, names: tuple[str, ...]) -> int:
    """Returns the exit code."""

    async def wait(container: Container) -> int:
        return (await container.wait()).shell_code

    return for_each(root, names, wait)
