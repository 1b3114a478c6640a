"""The runtimes that are held to the checks: the fake, and each OCI runtime of this host."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from lighterman.runtimes.base import Features
from lighterman.spec import ContainerSpec, ProcessConfig, Spec
from lighterman.testing import FakeClock, FakeProgram, FakeRuntime, ProgramContext, Subject
from lighterman.testing.conformance import PROGRAMS


async def _both(context: ProgramContext) -> int:
    await context.write(b"out\n")
    await context.write_error(b"err\n")
    return 0


async def _exit_3(context: ProgramContext) -> int:
    return 3


async def _trap(context: ProgramContext) -> int:
    asked = asyncio.Event()
    context.catch(15, asked.set)
    await context.write(b"ready\n")
    await asked.wait()
    return 5


async def _size(context: ProgramContext) -> int:
    while True:
        height, width = context.console or (0, 0)
        await context.write(b"%d %d\r\n" % (height, width))
        await context.sleep(0.05)


async def _grandchild(context: ProgramContext) -> int:
    context.leave_grandchild(math.inf)
    await context.write(b"before\n")
    return 0


FAKE_PROGRAMS: dict[str | tuple[str, ...], FakeProgram] = {
    PROGRAMS["both"]: _both,
    PROGRAMS["exit 3"]: _exit_3,
    PROGRAMS["trap"]: _trap,
    PROGRAMS["size"]: _size,
    PROGRAMS["grandchild"]: _grandchild,
}


@asynccontextmanager
async def fake_subject(features: Features, *, null_stdin: bool = False) -> AsyncIterator[Subject]:
    """The fake on virtual time; at the end nothing may be left in it."""
    clock = FakeClock()
    runtime = FakeRuntime(clock, features=features, programs=FAKE_PROGRAMS, null_stdin=null_stdin)

    async def make_spec(id: str, args: tuple[str, ...], *, stdin: bool, terminal: bool) -> Spec:
        return Spec(process=ProcessConfig(args=args, stdin=stdin, terminal=terminal))

    async def make_exec(spec: Spec, args: tuple[str, ...], *, stdin: bool, terminal: bool) -> ProcessConfig:
        return msgspec.structs.replace(spec.process, args=args, stdin=stdin, terminal=terminal)

    async with clock.autojump():
        yield Subject(runtime, make_spec, make_exec, clock)
        left = runtime.leftovers()
        await runtime.discard()
        assert not [system for system in left.systems if system], left
        assert not left.processes, left
        assert not left.process_handles, left


@asynccontextmanager
async def oci_subject(name: str) -> AsyncIterator[Subject]:
    """An OCI runtime of this host under a private root, with the built-in busybox image."""
    # Here, so that the fake can be held to the checks where there is no OCI runtime.
    from lighterman.linux_host import open_host
    from lighterman.roots import StateRoot

    root = StateRoot.of(None)
    await asyncio.to_thread(root.acquire)
    try:
        host = await open_host(root, name)
        try:
            runtime = await host.runtime(name)
            image = await host.image("busybox", None)

            async def make_spec(id: str, args: tuple[str, ...], *, stdin: bool, terminal: bool) -> Spec:
                directory = f"{root.state}/containers/{id}"
                await asyncio.to_thread(os.makedirs, directory, mode=0o700, exist_ok=True)
                wanted = ContainerSpec(image="busybox", argv=args, stdin=stdin, terminal=terminal)
                return await host.spec(id, wanted, image)

            async def make_exec(spec: Spec, args: tuple[str, ...], *, stdin: bool, terminal: bool) -> ProcessConfig:
                return await host.exec_process(
                    spec.process,
                    args,
                    pid=0,  # of no use without a user
                    env=None,
                    workdir=None,
                    user=None,
                    terminal=terminal,
                    console_size=None,
                    stdin=stdin,
                )

            yield Subject(runtime, make_spec, make_exec)
        finally:
            await host.close(by_force=True)
    finally:
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(root.remove)
        await asyncio.to_thread(root.release)
