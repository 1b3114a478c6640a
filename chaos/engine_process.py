"""An engine to be killed: `ROOT RUNTIME`. Reads requests from stdin and answers them on stdout, one JSON object a line.

A request is `{"n": 1, "verb": "stop", "name": "c1", ...}`; its answer `{"n": 1, "ok": ...}` or, for an error,
`{"n": 1, "error": CLASS, "typed": whether it is one of ours, "text": ...}`. Answers come in any order.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from chaos.builds import use_build
from lighterman import Container, Engine, ExitRecord, InternalError, LightermanError, StoreError
from lighterman.journal import Event
from lighterman.logs.reader import Cursor, LogRecord

Request = dict[str, Any]

log = logging.getLogger("chaos")


def _plain(value: object) -> Any:
    if isinstance(value, ExitRecord):
        value = msgspec.structs.replace(value, last_words=b"")
    if isinstance(value, Event):
        value = msgspec.structs.replace(value, exit=value.exit and msgspec.structs.replace(value.exit, last_words=b""))
    return msgspec.to_builtins(value)


class Served:
    """The verbs, each as a method."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._following: set[asyncio.Task[None]] = set()

    async def _box(self, request: Request) -> Container:
        return await self._engine.get(request["name"])

    async def create(self, request: Request) -> Any:
        box = await self._engine.create(
            "busybox",
            ["sh", "-c", request["script"]],
            name=request["name"],
            lease=request["lease"],
            restart=request["policy"],
            mounts=[f"{request['truth']}:/truth"],
        )
        return {"id": box.id}

    async def start(self, request: Request) -> Any:
        await (await self._box(request)).start()

    async def restart(self, request: Request) -> Any:
        await (await self._box(request)).restart(grace_s=request["grace_s"])

    async def stop(self, request: Request) -> Any:
        return _plain(await (await self._box(request)).stop(grace_s=request["grace_s"]))

    async def kill(self, request: Request) -> Any:
        await (await self._box(request)).kill(request["signal"])

    async def pause(self, request: Request) -> Any:
        await (await self._box(request)).pause()

    async def resume(self, request: Request) -> Any:
        await (await self._box(request)).resume()

    async def policy(self, request: Request) -> Any:
        await (await self._box(request)).set_restart_policy(request["policy"])

    async def wait(self, request: Request) -> Any:
        return _plain(await (await self._box(request)).wait())

    async def remove(self, request: Request) -> Any:
        await (await self._box(request)).remove(force=request["force"])

    async def exec(self, request: Request) -> Any:
        done = await (await self._box(request)).exec(["sh", "-c", request["script"]], timeout_s=30)
        return {"exit": _plain(done.exit), "stdout": done.stdout.decode()}

    async def run(self, request: Request) -> Any:
        done = await self._engine.run("busybox", ["sh", "-c", request["script"]], timeout_s=60, name=request["name"])
        return {"exit": _plain(done.exit), "stdout": done.stdout.decode()}

    async def logs(self, request: Request) -> Any:
        return [_shown(record) async for record in (await self._box(request)).logs()]

    async def follow(self, request: Request) -> Any:
        """Send its log to the reader at a socket, from the reader's cursor on; it may stand still, or go away."""
        box = await self._box(request)
        task = asyncio.get_running_loop().create_task(self._follow(box, request["socket"]))
        self._following.add(task)
        task.add_done_callback(self._following.discard)

    async def _follow(self, box: Container, path: str) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError:
            return  # killed already
        try:
            generation, offset = json.loads(await reader.readline())
            async for record in box.logs(after=Cursor(generation, offset), follow=True):
                writer.write(json.dumps(_shown(record)).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError):
            return  # the reader has gone
        except StoreError:
            if box.status != "removed":
                raise
        finally:
            writer.close()

    async def upgrade(self, request: Request) -> Any:
        """Of the keeper that it works with, while it does."""
        use_build(request["build"])
        await self._engine.host.keeper.upgrade()

    async def list(self, request: Request) -> Any:
        boxes = await self._engine.containers()
        return [{"name": box.name, "id": box.id, "status": box.status, "exit": _exit(box.exit)} for box in boxes]

    async def events(self, request: Request) -> Any:
        return [_plain(event) async for event in self._engine.events(after=0, follow=False)]


def _exit(exit: ExitRecord | None) -> Any:
    return None if exit is None else _plain(exit)


def _shown(record: LogRecord) -> list[Any]:
    place = record.cursor
    data = base64.b64encode(record.data).decode()
    return [record.stream, place.generation, place.offset, record.lost, data]


async def answer(request: Request, act: Callable[[Request], Awaitable[Any]]) -> None:
    reply: Request = {"n": request["n"]}
    try:
        reply["ok"] = await act(request)
    except Exception as failed:  # noqa: BLE001  an error of no class of ours is what is looked for
        typed = isinstance(failed, LightermanError) and not isinstance(failed, InternalError)
        reply |= {"error": type(failed).__name__, "typed": typed, "text": str(failed)}
    say(reply)


def say(reply: Request) -> None:
    data = memoryview(json.dumps(reply).encode() + b"\n")
    while data:
        data = data[os.write(1, data) :]


async def serve(root: str, runtime: str) -> None:
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    os.set_blocking(1, True)
    use_build()
    engine = Engine(root=root, runtime=runtime)
    try:
        await engine.start()
    except LightermanError as failed:
        say({"n": 0, "error": type(failed).__name__, "typed": True, "text": str(failed)})
        return
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _say_where, engine)
    served = Served(engine)
    say({"n": 0, "ok": os.getpid()})
    tasks: set[asyncio.Task[None]] = set()
    close = None
    while line := await reader.readline():
        request = json.loads(line)
        if request["verb"] == "close":
            close = request["n"]
            break
        task = asyncio.get_running_loop().create_task(answer(request, getattr(served, request["verb"])))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await engine.close()
    if close is not None:
        say({"n": close, "ok": None})
    # Who still waits for something that lives on is not asked.
    for task in tasks:
        task.cancel()


def _say_where(engine: Engine) -> None:
    """Into its log: where each task waits, and what is known of each container; asked for when something hangs."""
    for task in asyncio.all_tasks():
        frames: list[str] = []
        waits: Any = task.get_coro()
        while waits is not None and (frame := getattr(waits, "cr_frame", None)) is not None:
            frames.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
            waits = getattr(waits, "cr_await", None)
        log.info("task %s: %s: %s", task.get_name(), " > ".join(frames), waits)
    for entry in engine.inside.books:
        known = {name: getattr(entry, name) for name in ("starting", "start_unwanted", "removing", "is_registered")}
        log.info("container %s: %s, ended %s, %s", entry.record.name, known, entry.ended.is_set(), entry.record)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(serve(sys.argv[1], sys.argv[2]))
