"""The program `lighterman`."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command that the arguments name, and exit."""
    # Collecting while modules are made finds nothing, and costs 11 of 172 ms of CPU (median of 30 pairs of processes
    # that import what `run` does); `run` turns it on again.
    gc.disable()
    from lighterman.cli.app import invoke

    _open_standard_descriptors()
    code = invoke(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or 1  # its reader has gone, or its disk is full
    # What an orderly end of the interpreter takes apart is 24 of 185 ms of CPU, for nobody (likewise).
    os._exit(code)


def _open_standard_descriptors() -> None:
    """Where one was closed, a file of ours would get its number, and be written to as our output."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    if sys.stdout is None:
        sys.stdout = open(1, "w")  # noqa: SIM115  it is the program's own
    if sys.stderr is None:
        sys.stderr = open(2, "w")  # noqa: SIM115


if __name__ == "__main__":
    main()
