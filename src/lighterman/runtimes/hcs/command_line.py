"""One command line of an argument vector, by the rules of the Microsoft C run time [L09]."""

from __future__ import annotations

from subprocess import list2cmdline

from lighterman.errors import InvalidSpec
from lighterman.spec import ProcessConfig

__all__ = ["command_line_of"]


def command_line_of(process: ProcessConfig) -> str:
    """The caller's own line, else its arguments, each quoted. Raises: InvalidSpec where there is nothing to run."""
    line = process.command_line or list2cmdline(process.args)
    if not line.strip():
        raise InvalidSpec("nothing to run: give arguments or a command line")
    if "\0" in line:
        raise InvalidSpec(f"a command line with a NUL: {line[:100]!r}")
    return line
