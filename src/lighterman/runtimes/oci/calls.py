"""One call of a runtime: how it is called, and what is kept of it for a later engine."""

from __future__ import annotations

from typing import Literal

import msgspec

from lighterman.runtimes.options import OutputSegments

__all__ = ["JobMeta", "RuntimeCall", "decode_meta"]


class JobMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What a later engine needs to take a process over; kept by the keeper with the job. `name` is the process's.

    Attributes: cgroup: the name of its own one, below the container's.
    """

    kind: Literal["init", "exec"]
    id: str
    runtime: str
    name: str
    terminal: bool
    started_mono: float
    segments: OutputSegments | None = None
    lease: str | None = None
    cgroup: str | None = None

    @property
    def generation(self) -> int:
        """The run that the process belongs to; 1 where nobody counts them."""
        return self.segments.generation if self.segments is not None else 1


class RuntimeCall(msgspec.Struct, frozen=True, kw_only=True):
    """How one runtime is called."""

    name: str
    executable: str
    root: str
    exec_cgroups: bool = False  # whether it knows `exec --cgroup`

    def argv(self, log: str, *words: str) -> tuple[str, ...]:
        """The argument vector of one command, whose own words go to `log`."""
        return (self.name, "--root", self.root, "--log", log, "--log-format", "json", *words)


def decode_meta(encoded: bytes) -> JobMeta | None:
    """None for a job of somebody else."""
    try:
        return msgspec.json.decode(encoded, type=JobMeta)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
