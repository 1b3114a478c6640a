"""One engine's life, from outside: its process, what it was asked, what it has answered."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from asyncio.subprocess import Process
from contextlib import suppress
from pathlib import Path
from typing import Any

from chaos.builds import VARIABLE

__all__ = ["Answer", "Died", "Life"]

Answer = dict[str, Any]

# Short, so that a round sees them over; each is a time that a user can set.
_LIMITS = {
    "RUNTIME_CALL_S": "4",
    "START_S": "15",
    "KILL_WAIT_S": "10",
    "STORE_RETRY_S": "0.2",
    "KEEPER_RETRY_S": "0.2",
    "KEEPER_IDLE_S": "20",
    "DRAIN_S": "3",
}
READY_S = 60.0


log = logging.getLogger("chaos")


class Died(Exception):
    """The engine ended before it answered."""


class Life:
    """Made by `begin`."""

    def __init__(self, process: Process, log: Path) -> None:
        self.process = process
        self.log = log
        self.ready: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.pending: dict[int, tuple[str, float, asyncio.Future[Answer]]] = {}
        self._last = 0
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def begin(cls, root: Path, runtime: str, log: Path, path: str, build: str) -> Life:
        """Start one. It says itself when it is ready."""
        environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(word for word in sys.path if word)}
        environment |= {f"LIGHTERMAN_{name}": value for name, value in _LIMITS.items()}
        environment[VARIABLE] = build
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-X",
                "faulthandler",
                "-m",
                "chaos.engine_process",
                str(root),
                runtime,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=said,
                env=environment,
                cwd=Path(__file__).parent.parent,
                start_new_session=True,
                limit=1 << 28,
            )
        finally:
            os.close(said)
        return cls(process, log)

    @property
    def is_ready(self) -> bool:
        return self.ready.done() and self.ready.exception() is None and "ok" in self.ready.result()

    @property
    def ended(self) -> bool:
        return self._reading.done()

    async def ask(self, verb: str, **words: Any) -> Answer:
        """Raises: Died."""
        self._last += 1
        number = self._last
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.pending[number] = (f"{verb} {words.get('name', '')}", time.monotonic(), answer)
        assert self.process.stdin is not None
        if self.ended:
            self.pending.pop(number)
            raise Died
        self.process.stdin.write(json.dumps({"n": number, "verb": verb, **words}).encode() + b"\n")
        return await answer

    async def _read(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            if not line.endswith(b"\n"):
                break
            try:
                answer = json.loads(line)
            except ValueError:
                log.exception("an engine has said %r", line[:200])
                os.kill(self.process.pid, signal.SIGKILL)
                break
            _, _, future = self.pending.pop(answer["n"], ("", 0.0, self.ready))
            if not future.done():
                future.set_result(answer)
        await self.process.wait()
        for future in [self.ready, *(entry[2] for entry in self.pending.values())]:
            if not future.done():
                future.set_exception(Died())
                future.exception()
        self.pending.clear()

    def say_where(self) -> None:
        """Have it write into its log what it waits for."""
        if not self.ended:
            os.kill(self.process.pid, signal.SIGUSR1)

    def kill(self) -> None:
        """As `kill -9`."""
        if not self.ended:
            # Not by the process's own method, which may reap it before asyncio's watcher does.
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    async def wait_end(self) -> None:
        # Who stops waiting must not stop the reading.
        await asyncio.shield(self._reading)
