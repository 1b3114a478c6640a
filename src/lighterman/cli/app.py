"""The commands by name, each imported when it is asked for, and every failure as one line and a code."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

import click

from lighterman import __version__
from lighterman.cli.failures import ENGINE_ERROR, failed, say

__all__ = ["COMMANDS", "app", "invoke"]

COMMANDS = {
    "run": "Run a command in a new container, in the foreground.",
    "start": "Start containers of a root that have ended, or never ran.",
    "attach": "Be in the foreground of a running container of a root.",
    "ps": "List the containers of a root.",
    "inspect": "Show all that is known of containers of a root, as JSON.",
    "logs": "Show what a container of a root wrote.",
    "events": "Show what has happened to the containers of a root.",
    "exec": "Run a command in a running container of a root.",
    "wait": "Wait until containers of a root have ended, and print their exit codes.",
    "stop": "Ask containers of a root to end, and kill those that do not.",
    "rm": "Remove containers of a root.",
    "version": "Show the version, and the runtimes of this host.",
    "doctor": "Show what this host offers, what is missing, and what mends it.",
}


class _LazyGroup(click.Group):
    """Help and names cost no import of the commands."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command = import_module(f"lighterman.cli.{name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    help="Run containers: exact exit codes, no orphans, no lost byte of output.",
    epilog="Exit codes: the container's own; 125 lighterman failed; 126 the command can't be executed; "
    "127 it was not found; 128+n signal n ended it.",
    no_args_is_help=True,
)
@click.version_option(__version__, message="lighterman %(version)s")
def app() -> None:
    """Every command does its own work."""


def invoke(arguments: Sequence[str]) -> int:
    """Do what the arguments say. Returns the exit code."""
    try:
        result = app.main(list(arguments), prog_name="lighterman", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as helped:
        click.echo(helped.format_message())
        return 0
    except click.ClickException as wrong:
        context = getattr(wrong, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if context is not None else ""
        say(f"{wrong.format_message().rstrip('.')}{hint}")
        return ENGINE_ERROR
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        return 141
    except Exception as unexpected:  # noqa: BLE001  never a traceback, unless it is asked for
        return failed(unexpected)
    return result if isinstance(result, int) else 0
