"""What Windows consoles of old images need of their input [L18]."""

from __future__ import annotations

__all__ = ["FIRST_BUILD_WITHOUT_SWAP", "needs_backspace_swap", "swap_backspace"]

FIRST_BUILD_WITHOUT_SWAP = 14350  # of the image, not of the host
# Sources disagree: by one, DEL alone is replaced by BS. Exchanged, either key does what the other program means by it,
# and a program that wants the Delete key still gets it.
_SWAP = bytes.maketrans(b"\x08\x7f", b"\x7f\x08")


def needs_backspace_swap(os_build: int | None, *, terminal: bool) -> bool:
    """Whether this image's console exchanged backspace and delete; only on Windows, only with a terminal."""
    return terminal and os_build is not None and os_build < FIRST_BUILD_WITHOUT_SWAP


def swap_backspace(data: bytes) -> bytes:
    """Exchange the two bytes."""
    return data.translate(_SWAP)
