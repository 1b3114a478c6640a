"""UTF-16 text to and from the DLL: one code path everywhere, because a wide character has four bytes elsewhere."""

from __future__ import annotations

import ctypes

from lighterman.errors import InvalidSpec

__all__ = ["read_wide", "wide"]


def wide(text: str) -> ctypes.Array[ctypes.c_char]:
    """A NUL-terminated buffer to pass by address. Raises: InvalidSpec for a NUL inside, which would cut it."""
    if "\0" in text:
        raise InvalidSpec(f"text with a NUL can't be given to Windows: {text[:100]!r}")
    data = text.encode("utf-16-le", "surrogatepass") + b"\0\0"
    return ctypes.create_string_buffer(data, len(data))


def read_wide(address: int) -> str:
    """Copy the NUL-terminated text at `address`."""
    unit = ctypes.c_uint16.from_address
    count = 0
    while unit(address + 2 * count).value:
        count += 1
    return ctypes.string_at(address, 2 * count).decode("utf-16-le", "surrogatepass")
