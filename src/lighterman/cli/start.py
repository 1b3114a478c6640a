"""`lighterman start`: start containers of a root again, or for the first time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lighterman.cli.at_root import for_each, root_option, start_now

if TYPE_CHECKING:
    from lighterman.container import Container

__all__ = ["command"]


@click.command("start", help="Start containers that have ended, or never ran; one that runs already is left as it is.")
@root_option
@click.option("-a", "--attach", "attached", is_flag=True, help="Stay in the foreground, of one container.")
@click.option("-i", "--interactive", is_flag=True, help="The same, and pass stdin on if it has one.")
@click.option("--sig-proxy", type=bool, default=True, help="With -a pass signals on (true); never with a terminal.")
@click.argument("names", nargs=-1, required=True, metavar="CONTAINER...")
def command(root: str, attached: bool, interactive: bool, sig_proxy: bool, names: tuple[str, ...]) -> int:
    """Returns the exit code: with -a the container's own."""
    if attached or interactive:
        from lighterman.cli.attached import attach
        from lighterman.errors import UsageError

        if len(names) > 1:
            raise UsageError("--attach and --interactive are for one container at a time")
        return attach(root, names[0], start=True, stdin=interactive, sig_proxy=sig_proxy)

    async def start(container: Container) -> None:
        if container.status != "running":
            await start_now(container)

    return for_each(root, names, start)
