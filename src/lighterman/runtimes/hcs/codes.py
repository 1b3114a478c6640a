"""HRESULTs of the Host Compute Service: from the number to what it means. No text is ever read for that.

vmcompute.dll's codes are 0xC0370100 + n, computecore.dll's 0x80370100 + n with the same n; both forms are known
everywhere. Sources: hcsshim's `internal/hcs/errors.go`, Microsoft's "HCS HRESULT error codes".
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["PENDING", "UNEXPECTED_EXIT", "Meaning", "code_of", "describe", "is_failure", "is_pending", "meaning_of"]

PENDING = 0xC0370103
UNEXPECTED_EXIT = 0xC0370106
_MASK = 0xFFFFFFFF


class Meaning(StrEnum):
    """What a code tells the lifecycle; one code has one meaning."""

    PENDING = "pending"
    TIMEOUT = "timeout"
    ALREADY_STOPPED = "already stopped"
    NOT_FOUND = "not found"
    ENDED_OR_UNKNOWN = "ended, or never was"
    ALREADY_EXISTS = "already exists"
    INVALID_STATE = "invalid state"
    NOT_SUPPORTED = "not supported"
    ACCESS_DENIED = "access denied"
    INVALID_HANDLE = "invalid handle"
    BROKEN_PIPE = "broken pipe"
    UNEXPECTED_EXIT = "unexpected exit"
    TERMINATED = "terminated"
    SERVICE_LOST = "service lost"
    UNAVAILABLE = "unavailable"
    FILE_NOT_FOUND = "file not found"
    OTHER = "other"


# n -> meaning and what it says; a meaning of its own only where the lifecycle or a user acts on it.
_HCS: dict[int, tuple[Meaning, str]] = {
    0x00: (Meaning.UNEXPECTED_EXIT, "the compute system ended while it was being started"),
    0x01: (Meaning.OTHER, "the image's Windows does not match the host's: use Hyper-V isolation or another image"),
    0x02: (Meaning.UNAVAILABLE, "a needed feature (Containers, Hyper-V) is not installed"),
    0x03: (Meaning.PENDING, "accepted, completion will be notified"),
    0x04: (Meaning.OTHER, "too many notifications: the subscriber fell behind"),
    0x05: (Meaning.INVALID_STATE, "not valid in the current state of the compute system or process"),
    0x06: (Meaning.UNEXPECTED_EXIT, "the compute system ended unexpectedly"),
    0x07: (Meaning.TERMINATED, "the compute system was ended by force"),
    0x08: (Meaning.OTHER, "no connection to the guest"),
    0x09: (Meaning.OTHER, "the guest did not answer in time"),
    0x0A: (Meaning.OTHER, "the connection to the guest was closed"),
    0x0B: (Meaning.NOT_SUPPORTED, "the guest does not know the request"),
    0x0C: (Meaning.OTHER, "the guest speaks another version of the protocol"),
    0x0D: (Meaning.NOT_SUPPORTED, "the document was not understood (a field that this build does not know?)"),
    0x0E: (Meaning.NOT_FOUND, "no such compute system"),
    0x0F: (Meaning.ALREADY_EXISTS, "the id is in use"),
    0x10: (Meaning.ALREADY_STOPPED, "the compute system has stopped already"),
    0x11: (Meaning.OTHER, "protocol error"),
    0x12: (Meaning.OTHER, "a layer's format is not recognised"),
    0x13: (Meaning.OTHER, "needs a Windows Insider build"),
    0x14: (Meaning.UNAVAILABLE, "the service is not available: a feature is not installed"),
    0x15: (Meaning.OTHER, "the operation was not started"),
    0x16: (Meaning.OTHER, "the operation was started already"),
    0x17: (Meaning.PENDING, "the operation goes on"),
    0x18: (Meaning.TIMEOUT, "the operation was not done in time"),
    0x19: (Meaning.OTHER, "the compute system has a callback for operations already"),
    0x1A: (Meaning.OTHER, "no memory for the operation's result"),
    0x1B: (Meaning.ACCESS_DENIED, "access denied: run as administrator or as a member of Hyper-V Administrators"),
    0x1C: (Meaning.UNEXPECTED_EXIT, "the guest met a critical error"),
    0x1D: (Meaning.OTHER, "no information about the process"),
    0x1E: (Meaning.SERVICE_LOST, "the Host Compute Service (vmcompute) disconnected"),
    0x1F: (Meaning.ALREADY_STOPPED, "the process has ended already"),
}

# 127 (procedure not found) is no "already stopped": shutdown once gave it for an internal failure.
_WIN32: dict[int, tuple[Meaning, str]] = {
    2: (Meaning.FILE_NOT_FOUND, "the system cannot find the file specified"),
    3: (Meaning.OTHER, "the system cannot find the path specified"),
    5: (Meaning.ACCESS_DENIED, "access denied: run as administrator or as a member of Hyper-V Administrators"),
    6: (Meaning.INVALID_HANDLE, "the handle is invalid: the compute system is being stopped"),
    13: (Meaning.NOT_SUPPORTED, "the request is not supported by this platform (invalid data)"),
    31: (Meaning.OTHER, "a device does not function (general failure)"),
    50: (Meaning.NOT_SUPPORTED, "the request is not supported"),
    87: (Meaning.OTHER, "a parameter is incorrect"),
    109: (Meaning.BROKEN_PIPE, "the other side of the pipe is gone"),
    127: (Meaning.OTHER, "a procedure was not found"),
    232: (Meaning.BROKEN_PIPE, "the pipe is being closed"),
    233: (Meaning.BROKEN_PIPE, "nobody is at the other end of the pipe"),
    267: (Meaning.OTHER, "the directory name is invalid: a working directory or a mapping"),
    995: (Meaning.OTHER, "the operation was aborted"),
    1115: (Meaning.OTHER, "the system is shutting down"),
    1168: (Meaning.ENDED_OR_UNKNOWN, "element not found: it has ended, or never was"),
    1450: (Meaning.OTHER, "not enough system resources"),
    1722: (Meaning.SERVICE_LOST, "the Host Compute Service (vmcompute) does not run"),
    1726: (Meaning.SERVICE_LOST, "the Host Compute Service (vmcompute) died in the call"),
}


def is_failure(hresult: int) -> bool:
    """Bit 31 set; pending is one by this, and no error."""
    return bool(hresult & 0x80000000)


def code_of(hresult: int) -> int:
    """The code of a failing HRESULT: the Win32 error where it is one (facility 7), else all 32 bits, unsigned."""
    unsigned = hresult & _MASK
    return unsigned & 0xFFFF if unsigned & 0x1FFF0000 == 0x00070000 else unsigned


def is_pending(hresult: int) -> bool:
    """Whether the call was accepted and goes on."""
    return is_failure(hresult) and meaning_of(code_of(hresult)) is Meaning.PENDING


def meaning_of(code: int) -> Meaning:
    """What a code (see `code_of`) tells."""
    return _known(code)[0]


def describe(code: int) -> str:
    """For people: our own words, then the number."""
    return f"{_known(code)[1]} (0x{code:x})"


def _known(code: int) -> tuple[Meaning, str]:
    family, number = code & ~0xFF, code & 0xFF
    if family in (0xC0370100, 0x80370100):
        return _HCS.get(number, (Meaning.OTHER, "unknown error of the Host Compute Service"))
    return _WIN32.get(code, (Meaning.OTHER, "error of the system"))
