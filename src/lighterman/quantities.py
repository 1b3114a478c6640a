"""Sizes, durations and CPU counts as people write them."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from lighterman.errors import InvalidSpec

__all__ = ["MAX_BYTES", "parse_cpus", "parse_duration", "parse_size", "parse_swap_size"]

MAX_BYTES = 2**63 - 1  # OCI and the kernel have sizes as int64
_MAX_CPUS = MAX_BYTES // 10**9  # docker counts in billionths of a CPU, in an int64
_MAX_CHARS = 40  # the longest that makes sense; keeps hostile input from reaching big-number arithmetic

# Docker's units are binary: k is 1024. `512m`, `512M`, `512mb`, `512MiB` and `512 m` are the same.
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(i?b)?", re.ASCII | re.IGNORECASE)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
_CPUS = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)


def parse_size(size: str | int) -> int:
    """Bytes from docker's notation (`"256M"`, `"1.5g"`, `"4096"`, `"64kb"`) or from a number of bytes.

    Raises: InvalidSpec for anything else, negative and beyond int64 included.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise InvalidSpec(f"size {size!r}: must be a number of bytes, or text as 256M")
    if isinstance(size, int):
        if not 0 <= size <= MAX_BYTES:
            raise InvalidSpec(f"size {_shown(size)}: must be 0 to {MAX_BYTES} bytes")
        return size
    match = _SIZE.fullmatch(size.strip(" ")) if len(size) <= _MAX_CHARS else None
    if match is None:
        raise InvalidSpec(f"size {_shown(size)}: must be a number with an optional unit b, k, m or g, as 256M")
    count = int(Fraction(match[1]) * 1024 ** _UNITS[match[2].lower()])
    if count > MAX_BYTES:
        raise InvalidSpec(f"size {size!r}: must be at most {MAX_BYTES} bytes")
    return count


def parse_swap_size(size: str | int) -> int:
    """As `parse_size`, and -1 (or `"-1"`) for no limit, as docker's `--memory-swap` has it."""
    if size in (-1, "-1") and not isinstance(size, bool):
        return -1
    return parse_size(size)


def parse_duration(text: str) -> float:
    """Seconds from docker's notation (`"1m30s"`, `"500ms"`, `"1.5h"`) or from a number of seconds.

    Raises: InvalidSpec for anything else, negative included.
    """
    if len(text) <= _MAX_CHARS:
        if _NUMBER.fullmatch(text):
            return float(text)
        parts = _PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    raise InvalidSpec(f"duration {_shown(text)}: must be a number with a unit ms, s, m or h, as 1m30s")


def parse_cpus(cpus: str | float) -> float:
    """CPUs (1.5 is a CPU and a half) from a number or its decimal text; 0 is no limit, as docker has it.

    Raises: InvalidSpec for anything else: negative, not finite, more digits than billionths.
    """
    if isinstance(cpus, bool) or not isinstance(cpus, int | float | str):
        raise InvalidSpec(f"cpus {cpus!r}: must be a number, as 1.5")
    if isinstance(cpus, str):
        if len(cpus) > _MAX_CHARS or not _CPUS.fullmatch(cpus):
            raise InvalidSpec(f"cpus {_shown(cpus)}: must be a decimal number, as 1.5")
        if (Fraction(cpus) * 10**9).denominator != 1:
            raise InvalidSpec(f"cpus {cpus!r}: must have at most 9 digits after the point")
    elif isinstance(cpus, float) and not math.isfinite(cpus):
        raise InvalidSpec(f"cpus {cpus!r}: must be a finite number")
    elif not 0 <= cpus <= _MAX_CPUS:
        raise InvalidSpec(f"cpus {_shown(cpus)}: must be 0 or more, and at most what the host has")
    count = float(cpus)
    if count > _MAX_CPUS:
        raise InvalidSpec(f"cpus {_shown(cpus)}: must be at most what the host has")
    return count


def _shown(value: object) -> str:
    # The text of an int beyond 4300 digits is refused by Python itself.
    if isinstance(value, int) and abs(value) >= 10**_MAX_CHARS:
        return "(a number beyond all bounds)"
    text = repr(value)
    return text if len(text) <= _MAX_CHARS + 2 else text[:_MAX_CHARS] + "..."
