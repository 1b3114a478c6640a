"""Signals by name: the same on every host."""

from __future__ import annotations

import platform
import signal
import sys

import pytest

from lighterman import signal_names
from lighterman.signal_names import SIGNAL_NUMBERS, signal_name


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGHUP", 1), ("SIGKILL", 9), ("SIGTERM", 15), ("SIGABRT", 6), ("SIGIOT", 6), ("SIGSYS", 31), ("SIGRTMAX", 64)],
)
def test_a_name_has_its_number_on_any_host(name: str, number: int) -> None:
    assert SIGNAL_NUMBERS[name] == number


def test_a_number_has_its_usual_name() -> None:
    assert [signal_name(number) for number in (6, 17, 29, 9)] == ["SIGABRT", "SIGCHLD", "SIGIO", "SIGKILL"]
    assert signal_name(40) == "signal 40"


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or platform.machine() not in ("x86_64", "aarch64"),
    reason="the table is that of Linux on x86 and ARM",
)
def test_the_table_is_what_linux_says() -> None:
    known = {name: member.value for name, member in signal.Signals.__members__.items()}
    assert known == signal_names._LINUX | known  # a newer Python may know more names
    assert set(signal_names._LINUX) <= set(known)
