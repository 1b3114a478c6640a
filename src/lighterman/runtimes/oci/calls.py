"""One call of a runtime: how it is called, and what is kept of it for a later engine."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Literal

import msgspec

from lighterman.errors import LimitExceeded
from lighterman.keeper.client import JobState
from lighterman.runtimes.options import OutputSegments

__all__ = ["JobMeta", "RuntimeCall", "decode_meta", "in_memory"]


class JobMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What a later engine needs to take a process over; kept by the keeper with the job. `name` is the process's.

    Attributes:
        cgroup: the name of its own one, below the container's.
        upper: the root's writable layer, where it has one of its own.
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
    upper: str | None = None

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


_META = msgspec.json.Decoder(JobMeta)  # at import, see `recovery`


def decode_meta(encoded: bytes) -> JobMeta | None:
    """None for a job of somebody else."""
    try:
        return _META.decode(encoded)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


def in_memory(content: bytes) -> int:
    """A descriptor to read `content` from: an exec's `process` object lies on no disk. Raises: LimitExceeded."""
    try:
        memfd = os.memfd_create("process", os.MFD_CLOEXEC)
    except OSError as failed:
        raise LimitExceeded(
            f"no descriptor for an exec: {failed.strerror}: raise `ulimit -n`", limit="ulimit -n"
        ) from failed
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(memfd, rest) :]
    return memfd


def find_kept(jobs: Iterable[JobState], container: str, process_id: int | str) -> tuple[JobState, JobMeta] | None:
    """The job of one process of a container, by its pid or its name."""
    for job in jobs:
        meta = decode_meta(job.meta)
        if meta is not None and meta.id == container and job.pid is not None and process_id in (job.pid, meta.name):
            return job, meta
    return None
