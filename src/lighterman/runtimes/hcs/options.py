"""Create options that only this runtime knows, beside those of `runtimes.options`."""

from __future__ import annotations

from lighterman.runtimes.base import CreateOption

__all__ = ["SandboxSize", "TerminateWithEngine"]


class TerminateWithEngine(CreateOption, frozen=True):
    """The service ends the compute system when its last handle is closed: with our process, however that ends."""


class SandboxSize(CreateOption, frozen=True):
    """Grow the writable layer to at least this."""

    size_bytes: int
