"""What every runtime must do: checks of the ports alone, for the fake, each OCI runtime, HCS, and yours.

    async with subject_of_my_runtime() as subject:
        await check_runtime(subject)

The programs are argument vectors of a small Unix shell (`PROGRAMS`); a runtime in memory maps them to its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal as signals
from collections.abc import Awaitable, Callable, Sequence

from lighterman.errors import (
    AlreadyClosed,
    AlreadyExists,
    AlreadyStopped,
    CommandNotFound,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    OperationPending,
)
from lighterman.runtimes.base import CreateOption
from lighterman.runtimes.options import Credentials, Flush, HyperVIsolation, Layers, NetworkEndpoints, Servicing
from lighterman.spec import Resources
from lighterman.testing.subject import (
    PROGRAMS,
    Subject,
    all_of,
    box_of,
    ended,
    must_raise,
    read_until,
    stdin_of,
    stdout_of,
    was_killed,
)

__all__ = ["CHECKS", "PROGRAMS", "ConformanceError", "Subject", "check_runtime"]

LIMIT_S = 60.0  # for one check; a loaded host needs seconds, a hung runtime for ever


class ConformanceError(AssertionError):
    """Which checks failed, and why."""


# ---- the checks --------------------------------------------------------------------------------------------------


async def _exit_code(subject: Subject) -> None:
    async with box_of(subject, "exit 3") as box:
        code = await ended(await box.start())
        assert (code.code, code.signal) == (3, None), code


async def _exit_code_before_the_end(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await must_raise(InvalidState, (await box.start()).exit_code())


async def _exit_code_again(subject: Subject) -> None:
    async with box_of(subject, "exit 3") as box:
        process = await box.start()
        assert await ended(process) == await ended(process)


async def _output(subject: Subject) -> None:
    async with box_of(subject, "both") as box:
        stdio = await (await box.start()).stdio()
        assert await all_of(stdio.stdout) == b"out\n"
        assert await all_of(stdio.stderr) == b"err\n"


async def _stdio_is_the_same_each_time(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        process = await box.start()
        assert await process.stdio() is await process.stdio()


async def _half_close(subject: Subject) -> None:
    async with box_of(subject, "cat", stdin=True) as box:
        process = await box.start()
        stdin, stdout = await stdin_of(process), await stdout_of(process)
        await stdin.write(b"hello")
        assert await read_until(stdout, b"hello") == b"hello"
        await stdin.close()
        await process.close_stdin()
        assert await all_of(stdout) == b""
        assert (await ended(process)).code == 0


async def _binary(subject: Subject) -> None:
    sent = os.urandom(1 << 20)
    async with box_of(subject, "cat", stdin=True) as box:
        process = await box.start()
        stdin = await stdin_of(process)

        async def send() -> None:
            await stdin.write(sent)
            await stdin.close()
            await process.close_stdin()

        sending = asyncio.create_task(send())
        assert await all_of(await stdout_of(process)) == sent, "bytes changed on their way"
        await sending


async def _no_stdin(subject: Subject) -> None:
    async with box_of(subject, "cat") as box:
        process = await box.start()
        stdin = (await process.stdio()).stdin
        if stdin is not None:
            await stdin.close()
            with contextlib.suppress(NotFound, AlreadyClosed, InvalidState):
                await process.close_stdin()
        assert (await ended(process)).code == 0


async def _cancelled_read_loses_nothing(subject: Subject) -> None:
    async with box_of(subject, "cat", stdin=True) as box:
        process = await box.start()
        stdin, stdout = await stdin_of(process), await stdout_of(process)
        reading = asyncio.create_task(stdout.read(100))
        await subject.clock.sleep(0.05)
        reading.cancel()
        await asyncio.wait([reading])
        await stdin.write(b"hello")
        assert await read_until(stdout, b"hello") == b"hello"


async def _buffered_is_what_can_be_read(subject: Subject) -> None:
    async with box_of(subject, "both") as box:
        process = await box.start()
        await process.wait()
        stdout = await stdout_of(process)
        assert stdout.buffered() == 4
        assert await stdout.read(100) == b"out\n"
        assert stdout.buffered() == 0


async def _closing_a_pipe_wakes_its_reader(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        stdout = await stdout_of(await box.start())
        reading = asyncio.create_task(stdout.read(100))
        await subject.clock.sleep(0.05)
        await stdout.close()
        assert await reading == b""
        await stdout.close()


async def _terminal(subject: Subject) -> None:
    async with box_of(subject, "size", terminal=True) as box:
        process = await box.start()
        stdio = await process.stdio()
        assert stdio.stderr is None, "with a terminal there is no stderr"
        assert stdio.stdout is not None
        await process.resize_console(33, 99)
        await read_until(stdio.stdout, b"33 99")


async def _resize_without_terminal(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await must_raise(InvalidState, (await box.start()).resize_console(24, 80))


async def _signals(subject: Subject) -> None:
    async with box_of(subject, "trap") as box:
        process = await box.start()
        await read_until(await stdout_of(process), b"ready")
        if not subject.runtime.features().signals:
            await must_raise(NotSupported, process.kill(signals.SIGTERM))
            return
        await process.kill(signals.SIGTERM)
        assert (await ended(process)).code == 5


async def _kill(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        process = await box.start()
        await process.kill(9)
        code = await ended(process)
        assert was_killed(subject, code), code


async def _kill_after_the_end(subject: Subject) -> None:
    async with box_of(subject, "exit 0") as box:
        process = await box.start()
        await process.wait()
        await must_raise(AlreadyStopped, process.kill(9))


async def _cancelled_wait_leaves_it_running(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        process = await box.start()
        waiting = asyncio.create_task(process.wait())
        await subject.clock.sleep(0.05)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert process.pid in await box.system.pids()


async def _exec(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await box.start()
        quick = await box.exec("x", "exit 3")
        assert (await ended(quick)).code == 3
        loud = await box.exec("y", "both")
        stdio = await loud.stdio()
        assert (await all_of(stdio.stdout), await all_of(stdio.stderr)) == (b"out\n", b"err\n")
        cat = await box.exec("z", "cat", stdin=True)
        await (await stdin_of(cat)).write(b"abc")
        assert await read_until(await stdout_of(cat), b"abc") == b"abc"
        assert "z" in await box.system.exec_ids()
        await cat.kill(9)
        assert was_killed(subject, await ended(cat))


async def _exec_name_in_use(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await box.start()
        await box.exec("x", "sleep")
        await must_raise(AlreadyExists, box.exec("x", "sleep"))


async def _exec_after_the_end(subject: Subject) -> None:
    async with box_of(subject, "exit 0") as box:
        await (await box.start()).wait()
        await must_raise(AlreadyStopped, box.exec("x", "exit 0"))


async def _grandchild_of_an_exec_hides_no_exit(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await box.start()
        process = await box.exec("x", "grandchild")
        assert (await ended(process)).code == 0
        assert await read_until(await stdout_of(process), b"before\n") == b"before\n"


async def _command_not_found(subject: Subject) -> None:
    async with box_of(subject, "missing") as box:
        await must_raise(CommandNotFound, box.start())
    async with box_of(subject, "sleep") as box:
        await box.start()
        await must_raise(CommandNotFound, box.exec("x", "missing"))


async def _pause_and_resume(subject: Subject) -> None:
    async with box_of(subject, "cat", stdin=True) as box:
        process = await box.start()
        if not subject.runtime.features().pause:
            await must_raise(NotSupported, box.system.pause())
            return
        stdin, stdout = await stdin_of(process), await stdout_of(process)
        await must_raise(InvalidState, box.system.resume())
        await box.system.pause()
        await must_raise(InvalidState, box.system.pause())
        await stdin.write(b"hello")
        reading = asyncio.create_task(read_until(stdout, b"hello"))
        await subject.clock.sleep(0.3)
        assert not reading.done(), "what is paused writes nothing"
        await box.system.resume()
        assert await reading == b"hello"


async def _terminate_what_is_paused(subject: Subject) -> None:
    if not subject.runtime.features().pause:
        return
    async with box_of(subject, "sleep") as box:
        process = await box.start()
        await box.system.pause()
        with contextlib.suppress(OperationPending):
            await box.system.terminate()
        # As the lifecycle does: a runtime may need the thaw, and may have done it.
        with contextlib.suppress(InvalidState, AlreadyStopped, NotFound):
            await box.system.resume()
        assert was_killed(subject, await ended(process))


async def _terminate_ends_all_of_it(subject: Subject) -> None:
    async with box_of(subject, "trap") as box:
        init = await box.start()
        process = await box.exec("x", "sleep")
        with contextlib.suppress(OperationPending):
            await box.system.terminate()
        for each in (process, init):
            await each.wait()
        with contextlib.suppress(AlreadyStopped):
            await box.system.wait()
        await must_raise(AlreadyStopped, box.system.terminate())


async def _terminate_twice_at_once(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        init = await box.start()
        results = await asyncio.gather(box.system.terminate(), box.system.terminate(), return_exceptions=True)
        assert all(result is None or isinstance(result, OperationPending | AlreadyStopped) for result in results)
        await init.wait()


async def _terminate_before_anything_runs(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await box.system.start()
        with contextlib.suppress(OperationPending, AlreadyStopped):
            await box.system.terminate()
        await must_raise(LightermanError, box.system.create_process(box.spec.process))


async def _close_before_anything_runs(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await box.system.close()
    async with box_of(subject, "exit 3") as box:
        assert (await ended(await box.start())).code == 3


async def _shutdown_after_the_end(subject: Subject) -> None:
    async with box_of(subject, "exit 0") as box:
        await (await box.start()).wait()
        with contextlib.suppress(AlreadyStopped, OperationPending):
            await box.system.shutdown()
        with contextlib.suppress(AlreadyStopped):
            await box.system.wait()


async def _close_twice(subject: Subject) -> None:
    async with box_of(subject, "exit 0") as box:
        process = await box.start()
        await process.wait()
        await process.close()
        await must_raise(AlreadyClosed, process.close())
        with contextlib.suppress(AlreadyStopped, OperationPending):
            await box.system.terminate()
        await box.system.close()
        await must_raise(AlreadyClosed, box.system.close())


async def _same_id_again(subject: Subject) -> None:
    for _ in range(3):
        async with box_of(subject, "exit 3") as box:
            assert (await ended(await box.start())).code == 3


async def _id_in_use(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await box.start()
        await must_raise(AlreadyExists, subject.runtime.create(box.id, box.spec))


async def _listed(subject: Subject) -> None:
    async with box_of(subject, "sleep", id="conformance-listed") as box:
        await box.start()
        assert "conformance-listed" in await subject.runtime.list()

    async def is_gone() -> bool:
        return "conformance-listed" not in await subject.runtime.list()

    await subject.until(is_gone, "a closed compute system is no longer listed")


async def _open_unknown(subject: Subject) -> None:
    await must_raise((NotFound, NotSupported), subject.runtime.open("conformance-nobody"))


async def _pids_and_processes(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        init = await box.start()
        process = await box.exec("x", "sleep")
        assert {init.pid, process.pid} <= set(await box.system.pids())
        assert {init.pid, process.pid} <= {each.pid for each in await box.system.process_list()}


async def _statistics(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await box.start()
        if not subject.runtime.features().statistics:
            await must_raise(NotSupported, box.system.statistics())
            return
        assert (await box.system.statistics()).read_at > 0


async def _oom_counters(subject: Subject) -> None:
    async with box_of(subject, "exit 0") as box:
        await (await box.start()).wait()
        told: list[int] = []
        box.system.watch_oom(0, told.append)
        counters = await box.system.oom_counters()
        assert counters is None or counters.oom_kills == 0
        assert told == []


async def _pending_updates(subject: Subject) -> None:
    async with box_of(subject, "exit 0") as box:
        await (await box.start()).wait()
        try:
            assert not await box.system.has_pending_updates()
        except NotSupported:
            assert not subject.runtime.features().pending_updates, "features() says that it can"


async def _update_resources(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await box.start()
        update = box.system.update_resources(Resources(pids_limit=50))
        if subject.runtime.features().update_resources:
            await update
        else:
            await must_raise(NotSupported, update)


async def _denied_features_are_not_supported(subject: Subject) -> None:
    async with box_of(subject, "sleep") as box:
        await box.start()
        if not subject.runtime.features().checkpoint:
            await must_raise(NotSupported, box.system.checkpoint("one", "/nowhere", leave_running=True))
            await must_raise(NotSupported, box.system.restore("one", "/nowhere"))


async def _denied_options_are_refused(subject: Subject) -> None:
    known: Sequence[CreateOption] = (
        Servicing(),
        Flush(False),
        HyperVIsolation("/sandbox"),
        Layers("/layer", ()),
        NetworkEndpoints(()),
        Credentials("{}"),
    )
    spec = await subject.make_spec("conformance", PROGRAMS["exit 0"], stdin=False, terminal=False)
    for option in known:
        if type(option).__name__ not in subject.runtime.features().create_options:
            await must_raise(NotSupported, subject.runtime.create("conformance", spec, (option,)))


async def _side_by_side(subject: Subject) -> None:
    async def one(number: int) -> int:
        async with box_of(subject, "exit 3", id=f"conformance-{number}") as box:
            return (await ended(await box.start())).code

    assert await asyncio.gather(*(one(number) for number in range(8))) == [3] * 8


async def _version(subject: Subject) -> None:
    version = await subject.runtime.version()
    assert version.name == subject.runtime.name
    assert version.version


CHECKS: dict[str, Callable[[Subject], Awaitable[None]]] = {
    check.__name__.removeprefix("_"): check
    for check in (
        _version,
        _exit_code,
        _exit_code_before_the_end,
        _exit_code_again,
        _output,
        _stdio_is_the_same_each_time,
        _half_close,
        _binary,
        _no_stdin,
        _cancelled_read_loses_nothing,
        _buffered_is_what_can_be_read,
        _closing_a_pipe_wakes_its_reader,
        _terminal,
        _resize_without_terminal,
        _signals,
        _kill,
        _kill_after_the_end,
        _cancelled_wait_leaves_it_running,
        _exec,
        _exec_name_in_use,
        _exec_after_the_end,
        _grandchild_of_an_exec_hides_no_exit,
        _command_not_found,
        _pause_and_resume,
        _terminate_what_is_paused,
        _terminate_ends_all_of_it,
        _terminate_twice_at_once,
        _terminate_before_anything_runs,
        _close_before_anything_runs,
        _shutdown_after_the_end,
        _close_twice,
        _same_id_again,
        _id_in_use,
        _listed,
        _open_unknown,
        _pids_and_processes,
        _statistics,
        _oom_counters,
        _pending_updates,
        _update_resources,
        _denied_features_are_not_supported,
        _denied_options_are_refused,
        _side_by_side,
    )
}


async def check_runtime(subject: Subject, *names: str) -> None:
    """Run the checks of these names, or all, one after the other.

    Raises: ConformanceError that names every check that failed, with the first failure as its cause.
    """
    failures: list[tuple[str, Exception]] = []
    for name in names or tuple(CHECKS):
        try:
            async with subject.clock.timeout(LIMIT_S):
                await CHECKS[name](subject)
        except Exception as failed:  # noqa: BLE001  gathered, and raised together
            failures.append((name, failed))
    if failures:
        lines = [f"{name}: {failed!r}" for name, failed in failures]
        raise ConformanceError(f"{subject.runtime.name}: " + "; ".join(lines)) from failures[0][1]
