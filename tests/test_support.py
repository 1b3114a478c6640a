"""The leak check itself: what stays is named, what goes away in time is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import support
from support import eventually, eventually_sync, leaked_since, snapshot, why_not_host

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
pytestmark = linux


def test_nothing_new_is_nothing_left() -> None:
    assert leaked_since(snapshot(own=True), timeout_s=0) == []


def test_left_directory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support, "RUN", tmp_path)
    before = snapshot()
    left = tmp_path / "private" / "c0ffee"
    left.mkdir(parents=True)
    assert f"directories: {left}" in leaked_since(before, timeout_s=0)


def test_left_process_is_named_with_its_pid() -> None:
    before = snapshot()
    command = [sys.executable, "-I", "-c", "import sys; sys.stdin.read()", "lighterman", "keeper"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        # Its command line is another one until it has executed the program.
        left = eventually_sync(lambda: leaked_since(before, timeout_s=0))
        assert [line for line in left if line.startswith(f"processes: {process.pid} ")]
        assert process.stdin is not None
        process.stdin.close()


def test_left_descriptor_and_thread_are_named() -> None:
    before = snapshot(own=True)
    reader, writer = os.pipe()
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, name="left-over")
    thread.start()
    left = leaked_since(before, timeout_s=0)
    os.close(reader)
    os.close(writer)
    gate.set()
    thread.join()
    assert [line for line in left if line.startswith(f"descriptors: {writer} -> pipe:")]
    assert [line for line in left if line.startswith("threads: left-over ")]
    assert leaked_since(before, timeout_s=0) == []


def test_what_goes_away_in_time_is_no_leak() -> None:
    before = snapshot(own=True)
    seen = threading.Event()
    thread = threading.Thread(target=lambda: seen.wait(0.2))
    thread.start()
    assert leaked_since(before) == []
    thread.join()


async def test_eventually_returns_what_it_waited_for() -> None:
    values = iter([None, 0, "here"])

    async def look() -> object:
        return next(values)

    assert await eventually(look) == "here"
    with pytest.raises(AssertionError, match="not within 0 s"):
        await eventually(lambda: False, timeout_s=0)


# ---- which host a test is for ----------------------------------------------------------------------------------------


def test_host_is_this_one_or_the_reason_is_told() -> None:
    assert why_not_host() is None
    assert why_not_host("linux>=3.0") is None
    assert "needs Linux 99.0" in str(why_not_host("linux>=3.0", "linux>=99.0"))
    assert (why_not_host("v1") is None) != (why_not_host("v2") is None)
    assert why_not_host("hybrid") is not None or why_not_host("v1") is None


def test_host_unknown_is_an_error_and_no_skip() -> None:
    with pytest.raises(ValueError, match="'v3'"):
        why_not_host("v3")
