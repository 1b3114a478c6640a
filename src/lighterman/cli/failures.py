"""How a failure is told: one line on stderr, and one of docker's exit codes."""

from __future__ import annotations

import logging
import os
import sys

from lighterman.errors import CommandNotExecutable, CommandNotFound, InternalError, LightermanError

__all__ = ["ENGINE_ERROR", "failed", "log_errors", "say"]

ENGINE_ERROR = 125
_DEBUG = "LIGHTERMAN_DEBUG"


def say(text: str) -> None:
    """One line for people, whatever the text holds."""
    line = " ".join(text.split())
    try:
        os.write(2, f"lighterman: {line}\n".encode(errors="backslashreplace"))
    except OSError:
        return  # nobody reads it; the exit code still tells


def log_errors() -> None:
    """What the engine can tell nobody else, as one line each."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.DEBUG if os.environ.get("LIGHTERMAN_DEBUG") else logging.ERROR)
    handler.setFormatter(logging.Formatter("lighterman: %(message)s"))
    logging.getLogger("lighterman").addHandler(handler)


def failed(error: Exception) -> int:
    """Say what failed. Returns the exit code."""
    if isinstance(error, LightermanError) and not isinstance(error, InternalError):
        say(str(error))
    else:
        say(f"internal error, please report it: {type(error).__name__}: {error} ({_DEBUG}=1 shows where)")
    if os.environ.get(_DEBUG):
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, CommandNotFound):
        return 127
    if isinstance(error, CommandNotExecutable):
        return 126
    return ENGINE_ERROR
