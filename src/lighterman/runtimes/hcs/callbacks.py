"""The functions that the service calls: one of each kind for the whole program, with a number as context.

They run on threads that are not ours: they copy, look the number up and pass it on, nothing else. An unknown number
is ignored, so a late call does no harm.
"""

from __future__ import annotations

import atexit
import ctypes
import itertools
import sys
from collections.abc import Callable, Mapping
from typing import Any

from lighterman.runtimes.hcs.answers import decode_exit_status
from lighterman.runtimes.hcs.notifications import Happening, Record
from lighterman.runtimes.hcs.text import read_wide

__all__ = [
    "EVENT",
    "NOTIFICATION",
    "PROCESS_SLOTS",
    "SYSTEM_SLOTS",
    "V1_TYPES",
    "V2_TYPES",
    "HcsEvent",
    "enter",
    "event_address",
    "last_failure",
    "leave",
    "notification_address",
    "registered",
    "unregister",
]

# HCS_NOTIFICATIONS of vmcompute.dll; the upper four bits are flags. Types that are not here are ignored.
V1_TYPES: Mapping[int, Happening] = {
    0x00000001: Happening.SYSTEM_EXITED,
    0x00000002: Happening.CREATED,
    0x00000003: Happening.STARTED,
    0x00000004: Happening.PAUSED,
    0x00000005: Happening.RESUMED,
    0x00010000: Happening.PROCESS_EXITED,
    0x01000000: Happening.DISCONNECTED,
}
TYPE_MASK = 0x0FFFFFFF

# HCS_EVENT_TYPE of computecore.dll: the same numbers mean other things there.
V2_TYPES: Mapping[int, Happening] = {
    0x00000001: Happening.SYSTEM_EXITED,
    0x00010000: Happening.PROCESS_EXITED,
    0x02000000: Happening.DISCONNECTED,
}

SYSTEM_SLOTS = frozenset(
    {
        Happening.DISCONNECTED,
        Happening.SYSTEM_EXITED,
        Happening.CREATED,
        Happening.STARTED,
        Happening.PAUSED,
        Happening.RESUMED,
    }
)
PROCESS_SLOTS = frozenset({Happening.DISCONNECTED, Happening.PROCESS_EXITED})


class HcsEvent(ctypes.Structure):
    """HCS_EVENT: 24 bytes."""

    _fields_ = (("Type", ctypes.c_int32), ("EventData", ctypes.c_void_p), ("Operation", ctypes.c_void_p))


_made: Any
if sys.platform == "win32":
    _made = ctypes.WINFUNCTYPE
else:
    _made = ctypes.CFUNCTYPE
NOTIFICATION = _made(None, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int32, ctypes.c_void_p)
EVENT = _made(None, ctypes.c_void_p, ctypes.c_void_p)

_numbers = itertools.count(1)
_records: dict[int, Record] = {}
_releases: dict[int, Callable[[], object]] = {}
_failures: list[BaseException] = []
_ending: list[bool] = []


def enter(record: Record) -> int:
    """The context number to register with; to be entered before that, for the call may come inside of it."""
    number = next(_numbers)
    _records[number] = record
    return number


def leave(number: int) -> None:
    """Forget it: what still comes is ignored."""
    _records.pop(number, None)


def registered(number: int, release: Callable[[], object]) -> None:
    """The service calls from now on, until `release` has been called: by `unregister`, or at the interpreter's end."""
    _releases[number] = release
    if _ending:
        unregister(number)


def unregister(number: int) -> bool:
    """Call `release`, which waits for a callback that runs, and forget the number. False if that was done before."""
    release = _releases.pop(number, None)
    if release is not None:
        release()
    leave(number)
    return release is not None


def last_failure() -> BaseException | None:
    """What a callback raised last, for tests; the service can't be told of it."""
    return _failures[-1] if _failures else None


def _on_notification(kind: int, context: int | None, status: int, data: int | None) -> None:
    try:
        record = _records.get(context or 0)
        happening = V1_TYPES.get(kind & TYPE_MASK)
        if record is not None and happening is not None:
            record.deliver(happening, status & 0xFFFFFFFF, read_wide(data) if data else None)
    except BaseException as failed:  # noqa: BLE001  on a thread of the service nobody can be told
        _failures[:] = [failed]


def _on_event(event: int | None, context: int | None) -> None:
    try:
        record = _records.get(context or 0)
        if record is None or not event:
            return
        told = HcsEvent.from_address(event)
        happening = V2_TYPES.get(told.Type)
        if happening is None:
            return
        data = read_wide(told.EventData) if told.EventData else None
        status = decode_exit_status(data) if happening is Happening.SYSTEM_EXITED else 0
        record.deliver(happening, status, data)
    except BaseException as failed:  # noqa: BLE001  as above
        _failures[:] = [failed]


# Kept for the life of the program: a callback that is collected while registered is a crash.
_NOTIFICATION = NOTIFICATION(_on_notification)
_EVENT = EVENT(_on_event)


def notification_address() -> int:
    """Of the function for HcsRegister...Callback."""
    return ctypes.cast(_NOTIFICATION, ctypes.c_void_p).value or 0


def event_address() -> int:
    """Of the function for HcsSet...Callback."""
    return ctypes.cast(_EVENT, ctypes.c_void_p).value or 0


def _unregister_all() -> None:
    """A call that comes after the interpreter's end kills the process."""
    _ending.append(True)
    for number in list(_releases):
        unregister(number)


atexit.register(_unregister_all)
