"""The signals of Linux by name, on any host: Python on Windows knows seven, and a policy may be written there."""

from __future__ import annotations

import signal as signals
import sys
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["SIGNAL_NUMBERS", "signal_name"]

# signal(7), the column of x86 and ARM. On Linux Python tells the numbers of the machine it runs on.
_LINUX = {
    "SIGHUP": 1,
    "SIGINT": 2,
    "SIGQUIT": 3,
    "SIGILL": 4,
    "SIGTRAP": 5,
    "SIGABRT": 6,
    "SIGIOT": 6,
    "SIGBUS": 7,
    "SIGFPE": 8,
    "SIGKILL": 9,
    "SIGUSR1": 10,
    "SIGSEGV": 11,
    "SIGUSR2": 12,
    "SIGPIPE": 13,
    "SIGALRM": 14,
    "SIGTERM": 15,
    "SIGSTKFLT": 16,
    "SIGCHLD": 17,
    "SIGCLD": 17,
    "SIGCONT": 18,
    "SIGSTOP": 19,
    "SIGTSTP": 20,
    "SIGTTIN": 21,
    "SIGTTOU": 22,
    "SIGURG": 23,
    "SIGXCPU": 24,
    "SIGXFSZ": 25,
    "SIGVTALRM": 26,
    "SIGPROF": 27,
    "SIGWINCH": 28,
    "SIGIO": 29,
    "SIGPOLL": 29,
    "SIGPWR": 30,
    "SIGSYS": 31,
    "SIGRTMIN": 34,
    "SIGRTMAX": 64,
}

SIGNAL_NUMBERS: Mapping[str, int] = MappingProxyType(
    {name: member.value for name, member in signals.Signals.__members__.items()}
    if sys.platform.startswith("linux")
    else _LINUX
)
_FIRST_NAMES = {number: name for name, number in reversed(tuple(SIGNAL_NUMBERS.items()))}


def signal_name(number: int) -> str:
    """As "SIGTERM"; "signal 40" for one without a name."""
    return _FIRST_NAMES.get(number, f"signal {number}")
