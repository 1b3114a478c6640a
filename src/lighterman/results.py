"""What `run` and `exec` give back."""

from __future__ import annotations

import msgspec

from lighterman.spec import ExitRecord, Timings

__all__ = ["Result"]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A program that has ended. A non-zero exit is data, never an error.

    Attributes:
        exit: how it ended.
        stdout, stderr: what it wrote, each at most `max_output` bytes; with a terminal all is in `stdout`.
        stdout_truncated, stderr_truncated: whether it wrote more than that.
        timings: where the time went.
    """

    exit: ExitRecord
    stdout: bytes
    stderr: bytes
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    timings: Timings = Timings()

    @property
    def truncated(self) -> bool:
        """Whether either stream was cut."""
        return self.stdout_truncated or self.stderr_truncated

    @property
    def ok(self) -> bool:
        """Whether it exited by itself with 0."""
        return self.exit.ok
