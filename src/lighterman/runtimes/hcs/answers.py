"""What the service says, in JSON: keys in any case, unknown ones ignored, every one optional.

Sources: hcsshim's `internal/hcs/schema1` and `schema2`; Microsoft's "HCS schema reference".
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lighterman.errors import RuntimeFailed
from lighterman.spec import ProcessSummary, Statistics

__all__ = [
    "ErrorEvent",
    "ErrorResult",
    "ProcessStatus",
    "SystemProperties",
    "decode_error",
    "decode_exit_status",
    "decode_process_status",
    "decode_properties",
    "decode_schemas",
    "decode_systems",
]

log = logging.getLogger(__name__)

_100NS = 100


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """One event of the result document: which part of Windows failed, and at what."""

    message: str
    provider: str
    event_id: int
    source: str

    def __str__(self) -> str:
        return f"[event: {self.message} provider: {self.provider} id: {self.event_id} source: {self.source}]"


@dataclass(frozen=True, slots=True)
class ErrorResult:
    """The document beside a failing HRESULT."""

    message: str = ""
    events: tuple[ErrorEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessStatus:
    """How a process stands. `exit_code` has 32 bits, unsigned, and holds only with `exited` and `last_wait` 0."""

    pid: int
    exited: bool
    exit_code: int
    last_wait: int


@dataclass(frozen=True, slots=True)
class SystemProperties:
    """Some of a compute system's properties; what was not asked for is None or empty."""

    id: str
    owner: str
    state: str
    updates_pending: bool
    is_template: bool
    image_path: str
    statistics: Statistics | None
    processes: tuple[ProcessSummary, ...]


class _Object:
    """A JSON object asked without regard to case; an answer of another type counts as none."""

    def __init__(self, value: object) -> None:
        self.fields = {key.lower(): each for key, each in value.items()} if isinstance(value, dict) else {}

    def text(self, key: str) -> str:
        value = self.fields.get(key.lower())
        return value if isinstance(value, str) else ""

    def flag(self, key: str) -> bool:
        return self.fields.get(key.lower()) is True

    def number(self, key: str) -> int | None:
        value = self.fields.get(key.lower())
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def object(self, key: str) -> _Object:
        return _Object(self.fields.get(key.lower()))

    def objects(self, key: str) -> list[_Object]:
        value = self.fields.get(key.lower())
        return [_Object(each) for each in value] if isinstance(value, list) else []

    def has(self, key: str) -> bool:
        return self.fields.get(key.lower()) is not None


def decode_error(text: str | None) -> ErrorResult:
    """The result document; may be empty or no JSON at all, which is only logged."""
    if not text:
        return ErrorResult()
    try:
        document = _Object(json.loads(text))
    except ValueError:
        log.warning("the service's error document is not JSON: %.200r", text)
        return ErrorResult()
    events = tuple(
        ErrorEvent(
            one.text("Message").strip(),
            one.text("Provider"),
            one.number("EventId") or 0,
            one.text("Source"),
        )
        for one in document.objects("ErrorEvents")
    )
    return ErrorResult(document.text("ErrorMessage").strip(), events)


def decode_process_status(text: str) -> ProcessStatus:
    """`ProcessStatus`. Raises: RuntimeFailed if it is none."""
    status = _Object(_decoded(text, "process status"))
    return ProcessStatus(
        pid=status.number("ProcessId") or 0,
        exited=status.flag("Exited"),
        exit_code=(status.number("ExitCode") or 0) & 0xFFFFFFFF,
        last_wait=status.number("LastWaitResult") or 0,
    )


def decode_exit_status(text: str | None) -> int:
    """The HRESULT, unsigned, in schema 2's `SystemExitStatus`; 0 where there is none."""
    if not text:
        return 0
    return (_Object(_decoded(text, "exit status")).number("Status") or 0) & 0xFFFFFFFF


def decode_properties(text: str, *, read_at: float) -> SystemProperties:
    """The answer of a property query. Raises: RuntimeFailed if it is no JSON object."""
    value = _decoded(text, "properties")
    if not isinstance(value, dict):
        raise _malformed("properties", text)
    return _properties(_Object(value), read_at)


def decode_systems(text: str) -> Sequence[SystemProperties]:
    """The answer of an enumeration. Raises: RuntimeFailed if it is no JSON array."""
    value = _decoded(text or "[]", "list of compute systems")
    if value is None:
        return ()
    if not isinstance(value, list):
        raise _malformed("list of compute systems", text)
    return tuple(_properties(_Object(one), 0.0) for one in value)


def decode_schemas(text: str) -> tuple[tuple[int, int], ...]:
    """The schema versions that the service supports, as (major, highest minor)."""
    answer = _Object(_decoded(text, "service properties"))
    return tuple(
        (version.number("Major") or 0, version.number("Minor") or 0)
        for properties in answer.objects("Properties")
        for version in properties.objects("SupportedSchemaVersions")
    )


def _properties(answer: _Object, read_at: float) -> SystemProperties:
    return SystemProperties(
        id=answer.text("Id"),
        owner=answer.text("Owner"),
        state=answer.text("State"),
        updates_pending=answer.flag("AreUpdatesPending"),
        is_template=answer.flag("IsRuntimeTemplate"),
        image_path=answer.text("RuntimeImagePath"),
        statistics=_statistics(answer.object("Statistics"), read_at) if answer.has("Statistics") else None,
        processes=tuple(_process(one) for one in answer.objects("ProcessList")),
    )


def _statistics(answer: _Object, read_at: float) -> Statistics:
    memory, processor, storage = answer.object("Memory"), answer.object("Processor"), answer.object("Storage")

    def nanoseconds(key: str) -> int | None:
        value = processor.number(key)
        return None if value is None else value * _100NS

    return Statistics(
        read_at=_seconds(answer.text("Timestamp")) or read_at,
        cpu_ns=nanoseconds("TotalRuntime100ns"),
        cpu_user_ns=nanoseconds("RuntimeUser100ns"),
        cpu_system_ns=nanoseconds("RuntimeKernel100ns"),
        memory_bytes=memory.number("MemoryUsageCommitBytes"),
        memory_peak_bytes=memory.number("MemoryUsageCommitPeakBytes"),
        read_bytes=storage.number("ReadSizeBytes"),
        write_bytes=storage.number("WriteSizeBytes"),
        read_operations=storage.number("ReadCountNormalized"),
        write_operations=storage.number("WriteCountNormalized"),
    )


def _process(answer: _Object) -> ProcessSummary:
    return ProcessSummary(
        pid=answer.number("ProcessId") or 0,
        image_name=answer.text("ImageName"),
        user_s=(answer.number("UserTime100ns") or 0) / 1e7,
        system_s=(answer.number("KernelTime100ns") or 0) / 1e7,
        resident_bytes=(answer.number("MemoryWorkingSetPrivateBytes") or 0)
        + (answer.number("MemoryWorkingSetSharedBytes") or 0),
        started_at=_seconds(answer.text("CreateTimestamp")),
    )


def _seconds(text: str) -> float | None:
    """Unix time of an ISO 8601 instant with up to seven fractional digits; the year 1 is "never"."""
    try:
        seconds = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return seconds if seconds > 0 else None


def _decoded(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as wrong:
        raise _malformed(what, text) from wrong


def _malformed(what: str, text: str) -> RuntimeFailed:
    return RuntimeFailed(f"hcs: the service's {what} can't be read: {text[:200]!r}", runtime="hcs", operation=what)
