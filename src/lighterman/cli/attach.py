"""`lighterman attach`: a running container of a root, in the foreground."""

from __future__ import annotations

import click

from lighterman.cli.at_root import root_option

__all__ = ["command"]


@click.command(
    "attach",
    help="Pass on what a running container writes from now on, and stdin if it has one, until it ends. "
    "It lives on when this command is ended by a signal that is not passed on.",
)
@root_option
@click.option("--no-stdin", is_flag=True, help="Leave its stdin alone.")
@click.option("--sig-proxy", type=bool, default=True, help="Pass signals on (true); never with a terminal.")
@click.argument("name", metavar="CONTAINER")
def command(root: str, no_stdin: bool, sig_proxy: bool, name: str) -> int:
    """Returns the exit code: the container's own."""
    from lighterman.cli.attached import attach

    return attach(root, name, start=False, stdin=not no_stdin, sig_proxy=sig_proxy)
