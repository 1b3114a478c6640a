"""Running the command line as its users do: as a program, with pipes or at a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from support import PATIENCE

__all__ = ["PROGRAM", "AtTerminal", "lighterman", "one_line", "processes_of_containers", "ran", "rows", "start"]

PROGRAM = (sys.executable, "-m", "lighterman.cli")
TIMEOUT_S = 100 * PATIENCE


def lighterman(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end; without `stdin` or `input` its stdin is empty."""
    if "input" not in options:
        options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    return subprocess.run([*PROGRAM, *arguments], timeout=TIMEOUT_S, check=False, **options)


def start(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start it; leave it as a block or by `communicate`, which close the pipes."""
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    return subprocess.Popen([*PROGRAM, *arguments], **options)


def one_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """What it said on stderr, which is one line of ours."""
    text = done.stderr.decode()
    assert text.startswith("lighterman: "), text
    assert text.count("\n") == 1, text
    assert text.endswith("\n"), text
    return text.removeprefix("lighterman: ").rstrip("\n")


def ran(*arguments: str, **options: Any) -> str:
    """What it said on stdout, after an orderly end."""
    done = lighterman(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, b""), (arguments, done)
    return done.stdout.decode()


def rows(root: str) -> list[dict[str, Any]]:
    """All containers of a root, the oldest first."""
    found = json.loads(ran("ps", "--json", "-a", "--root", root))
    assert isinstance(found, list)
    return found


def processes_of_containers(name: str) -> list[int]:
    """The pids of all processes of this name in containers of ours."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if (directory / "comm").read_text() == f"{name}\n" and "/lighterman/" in (directory / "cgroup").read_text():
                found.append(int(directory.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class AtTerminal:
    """It runs at a terminal of its own, which is its controlling one: 40 lines of 100 columns."""

    def __init__(self, *arguments: str) -> None:
        # A descriptor of the slave stays here, so that its attributes can be read when the program has gone.
        self.master, self.slave = pty.openpty()
        self.resize(40, 100)
        self.before: list[Any] = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )

    def __enter__(self) -> AtTerminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.wait()
        os.close(self.slave)
        os.close(self.master)

    def resize(self, height: int, width: int) -> None:
        """The kernel sends SIGWINCH to whoever sits there."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, keys: bytes) -> None:
        """As a user does."""
        os.write(self.master, keys)

    def expect(self, pattern: bytes) -> bytes:
        """Read until it is there; what comes after it is kept for the next."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (match := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([self.master], [], [], left)[0]
            assert ready, f"{pattern!r} did not come; only {self.seen!r}"
            self.seen += os.read(self.master, 65536)
        self.seen = self.seen[match.end() :]
        return match[0]

    def wait(self) -> int:
        """Its exit code; what it writes meanwhile is kept in `seen`."""
        deadline = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"has not ended; it wrote {self.seen!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0)[0]:
            self.seen += os.read(self.master, 65536)
        return self.process.returncode

    def attributes(self) -> list[Any]:
        """As tcgetattr has them."""
        return termios.tcgetattr(self.slave)

    @property
    def is_raw(self) -> bool:
        """Whether no key is the terminal's own."""
        return not self.attributes()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
