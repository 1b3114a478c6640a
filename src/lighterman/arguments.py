"""The arguments of verbs: what Python lets through is checked here, with one clear line for each that can't be."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from lighterman.errors import InvalidSpec
from lighterman.spec import ConsoleSize

__all__ = [
    "MAX_SEQUENCE",
    "ExecArguments",
    "check_at_most",
    "check_bytes",
    "check_seconds",
    "check_text",
    "console_size_of",
    "exec_arguments",
    "items_of",
    "shown",
    "words_of",
]

MAX_SEQUENCE = 2**63 - 1  # SQLite's integers


class ExecArguments(msgspec.Struct, frozen=True, kw_only=True):
    """What `exec` and `start_exec` were asked for."""

    argv: tuple[str, ...]
    env: dict[str, str] | None = None
    workdir: str | None = None
    user: str | None = None
    stdin: bool = False
    terminal: bool = False
    console_size: ConsoleSize | None = None


msgspec.json.Decoder(ExecArguments)  # makes the type known at import, see `recovery`


def exec_arguments(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None,
    workdir: str | None,
    user: str | None,
    stdin: bool,
    terminal: bool,
    console_size: ConsoleSize | tuple[int, int] | None,
) -> ExecArguments:
    """Raises: InvalidSpec."""
    wanted = {
        "argv": words_of(argv),
        "env": env,
        "workdir": workdir,
        "user": user,
        "stdin": stdin,
        "terminal": terminal,
        "console_size": console_size_of(console_size),
    }
    try:
        return msgspec.convert(wanted, ExecArguments, from_attributes=True)
    except msgspec.ValidationError as wrong:
        raise InvalidSpec(f"not a process that can be: {wrong}") from wrong


def words_of(argv: Sequence[str]) -> tuple[str, ...]:
    """A command. Raises: InvalidSpec."""
    if isinstance(argv, str):
        raise InvalidSpec(f"command {argv!r:.140}: must be a list of arguments, not one text: use ['sh', '-c', ...]")
    return items_of("command", argv)


def items_of(name: str, value: Iterable[Any]) -> tuple[Any, ...]:
    """A list as a tuple; a text is not one. Raises: InvalidSpec."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidSpec(f"{name} {value!r:.140}: must be a list")
    return tuple(value)


def console_size_of(value: ConsoleSize | tuple[int, int] | None) -> ConsoleSize | None:
    """Raises: InvalidSpec for what is no pair of numbers; whether a terminal can be so big is checked later."""
    if value is None or isinstance(value, ConsoleSize):
        return value
    if isinstance(value, Sequence) and len(value) == 2 and all(type(cells) is int for cells in value):
        return ConsoleSize(height=value[0], width=value[1])
    raise InvalidSpec(f"console_size {shown(value)}: must be a ConsoleSize, or (height, width) in cells")


def check_seconds(name: str, value: float | None, *, none: bool = False) -> float | None:
    """A time to wait, from 0 on; None, where it is allowed, is without a bound. Raises: InvalidSpec."""
    if value is None and none:
        return None
    # A whole number may be beyond what a clock's can be added to.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise InvalidSpec(f"{name} {shown(value)}: must be 0 seconds or more{', or None for no bound' if none else ''}")
    return value


def check_at_most(name: str, value: int, most: int = MAX_SEQUENCE) -> int:
    """A number from 0 on. Raises: InvalidSpec."""
    if type(value) is not int or not 0 <= value <= most:
        raise InvalidSpec(f"{name} {shown(value)}: must be a whole number, 0 to {most}")
    return value


def shown(value: object) -> str:
    """The beginning of a value, for a message."""
    # The text of a number beyond 4300 digits is refused by Python itself.
    is_beyond = isinstance(value, int) and abs(value) >= 10**80
    return "(a number beyond all bounds)" if is_beyond else f"{value!r:.80}"


def check_bytes(name: str, value: bytes | None) -> None:
    """Raises: InvalidSpec."""
    if isinstance(value, str):
        raise InvalidSpec(f"{name} {value!r:.80}: must be bytes: encode the text first")
    if value is not None and not isinstance(value, bytes | bytearray | memoryview):
        raise InvalidSpec(f"{name} {value!r:.80}: must be bytes, or None")


def check_text(name: str, value: str) -> str:
    """A text that can be written down: no NUL, no half of a surrogate pair. Raises: InvalidSpec."""
    if not isinstance(value, str):
        raise InvalidSpec(f"{name} {value!r:.140}: must be a text")
    if "\0" in value or not _encodes(value):
        raise InvalidSpec(f"{name} {value!r:.140}: must be text without NUL that UTF-8 can encode")
    return value


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
