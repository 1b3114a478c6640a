"""Pytest on the machine that this runs on, ended in good order at its bound: what its set-up mounted is unmounted."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from vm.errors import Failed

__all__ = ["CUT_SHORT", "run"]

ROOT = Path(__file__).parent.parent
CUT_SHORT = 124  # as timeout(1) says it, which is what bounds the run in a machine
GRACE_S = 120.0  # interrupted, pytest takes down what the test has, and writes what it has done
UNDO_S = 60.0  # tools/cgroup-setup.sh tries for 5 s for each controller
AFTER_S = 2.0


def run(command: list[str], folder: Path, bound_s: float, grace_s: float = GRACE_S, undo_s: float = UNDO_S) -> None:
    """Run `command`, whose first word is a set-up that runs the rest, show what it says and keep it in `console`.

    Its exit code goes into `exit`; `CUT_SHORT` if it was interrupted after `bound_s`. Whatever ends this function ends
    the command, in the same way.

    Raises: Failed if it had to be killed with its set-up.
    """
    setup, *rest = command
    named = folder / "pid"
    # A session of its own, so that an interrupt reaches pytest once, and from here. An interrupt that is ignored here,
    # as in the background of a shell, must not be there.
    whole = ["env", "--default-signal=INT", setup, "sh", "-c", 'echo $$ >"$0"; exec "$@"', str(named), *rest]
    process = subprocess.Popen(
        whole,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    with process.stdout, (folder / "console").open("wb") as console:
        try:
            in_time = _shown(process, process.stdout, console, bound_s)
        finally:
            if process.poll() is None:
                _end(process, process.stdout, console, named, grace_s, undo_s)
    named.unlink(missing_ok=True)
    (folder / "exit").write_text(str(process.returncode if in_time else CUT_SHORT))
    if process.returncode == -signal.SIGKILL:
        raise Failed(
            f"what ran here did not end within {bound_s + grace_s + undo_s:.0f} s and was killed: see {folder}"
        )


def _end(
    process: subprocess.Popen[bytes], source: IO[bytes], console: IO[bytes], named: Path, grace_s: float, undo_s: float
) -> None:
    try:
        os.killpg(process.pid, signal.SIGINT)
        if not _shown(process, source, console, grace_s):
            # Not the set-up, which undoes what it did when its command has ended.
            _kill_child(process.pid, named)
            _shown(process, source, console, undo_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _kill_child(parent: int, named: Path) -> None:
    try:
        pid = int(named.read_text())
        if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent:
            os.kill(pid, signal.SIGKILL)
    except (OSError, ValueError):
        return  # it has not come so far, or has ended


def _shown(process: subprocess.Popen[bytes], source: IO[bytes], console: IO[bytes], for_s: float) -> bool:
    """Copy what comes until the process has ended; whether it has, within `for_s`."""
    deadline = time.monotonic() + for_s
    with selectors.DefaultSelector() as waiting:
        waiting.register(source, selectors.EVENT_READ)
        # What the tests have left behind may hold the pipe open, so its end is not waited for.
        ended_at: float | None = None
        while True:
            now = time.monotonic()
            if process.poll() is not None:
                ended_at = ended_at or now
            if now > (deadline if ended_at is None else ended_at + AFTER_S):
                return ended_at is not None
            if waiting.select(0.1):
                piece = os.read(source.fileno(), 65536)
                if not piece:
                    break
                console.write(piece)
                console.flush()
                sys.stdout.write(piece.decode(errors="replace"))
                sys.stdout.flush()
            elif ended_at is not None:
                return True
    # The pipe is closed, and the process is about to end.
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True
