"""Processes with as little of our own time around them as possible: spawned, waited for by pidfd, with a deadline."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence

from bench.trouble import Trouble

__all__ = ["DEADLINE_S", "many", "succeed", "timed", "words_of"]

DEADLINE_S = 60.0
_LAST_WORDS = 400


def timed(argv: Sequence[str], *, env: Mapping[str, str] | None = None, log: str | None = None) -> float:
    """Seconds from the spawn until the process has ended. Raises: Trouble if it does not end with 0."""
    began = time.perf_counter()
    pid = _spawn(argv, env, log)
    status = _wait(pid, argv[0])
    seconds = time.perf_counter() - began
    _check(argv, status, log)
    return seconds


def succeed(argv: Sequence[str], *, env: Mapping[str, str] | None = None, log: str | None = None) -> None:
    """Raises: Trouble."""
    timed(argv, env=env, log=log)


def many(commands: Sequence[Sequence[str]], at_a_time: int) -> float:
    """Seconds for all of them. Raises: Trouble if one fails."""
    waiting = list(reversed(commands))
    poll = select.poll()
    running: dict[int, tuple[int, Sequence[str]]] = {}
    statuses: list[tuple[Sequence[str], int]] = []
    began = time.perf_counter()
    try:
        while waiting or running:
            while waiting and len(running) < at_a_time:
                argv = waiting.pop()
                pid = _spawn(argv, None, None)
                pidfd = os.pidfd_open(pid)
                running[pidfd] = pid, argv
                poll.register(pidfd, select.POLLIN)
            ready = poll.poll(DEADLINE_S * 1000)
            if not ready:
                raise Trouble(f"{next(iter(running.values()))[1][0]}: nothing has ended in {DEADLINE_S:g} s")
            for pidfd, _ in ready:
                pid, argv = running.pop(pidfd)
                poll.unregister(pidfd)
                os.close(pidfd)
                statuses.append((argv, os.waitpid(pid, 0)[1]))
        seconds = time.perf_counter() - began
    finally:
        for pidfd, (pid, _) in running.items():
            _kill(pid)
            os.close(pidfd)
    for argv, status in statuses:
        _check(argv, status, None)
    return seconds


def words_of(path: str) -> str:
    """The last line of a log."""
    with contextlib.suppress(FileNotFoundError), open(path, errors="replace") as file:
        return next((line.strip()[-_LAST_WORDS:] for line in reversed(file.readlines()) if line.strip()), "")
    return ""


def _spawn(argv: Sequence[str], env: Mapping[str, str] | None, log: str | None) -> int:
    output = (1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else (1, os.devnull, os.O_WRONLY, 0)
    return os.posix_spawn(
        argv[0],
        list(argv),
        dict(env) if env is not None else {"PATH": os.environ.get("PATH", os.defpath)},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, *output),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),
    )


def _wait(pid: int, name: str) -> int:
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(DEADLINE_S * 1000):
            _kill(pid)
            raise Trouble(f"{os.path.basename(name)}: had not ended after {DEADLINE_S:g} s")
        return os.waitpid(pid, 0)[1]
    finally:
        os.close(pidfd)


def _kill(pid: int) -> None:
    """A child of ours that has not been reaped: its pid can't be anybody else's."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _check(argv: Sequence[str], status: int, log: str | None) -> None:
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        words = words_of(log) if log else ""
        raise Trouble(f"{os.path.basename(argv[0])}: ended with {code}{f': {words}' if words else ''}")
