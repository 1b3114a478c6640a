"""The lifecycle's rules over the double: the same `Client` as everywhere, Windows' answers below it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hcs.world import HcsWorld, process
from lighterman import limits
from lighterman.errors import AlreadyExists, NotSupported, RuntimeFailed, ServicingFailed
from lighterman.lifecycle.events import State
from lighterman.runtimes.base import CreateOption
from lighterman.runtimes.hcs import HcsRuntime, TerminateWithEngine
from lighterman.runtimes.options import Flush, Servicing, WithRestartPolicy
from lighterman.spec import RestartPolicy, Spec
from lighterman.supervisor.client import Client
from lighterman.testing import RecordingBackend
from support import eventually

UNEXPECTED_EXIT = 0xC0370106


@asynccontextmanager
async def client_of(
    world: HcsWorld, runtime: HcsRuntime | None = None
) -> AsyncIterator[tuple[Client, RecordingBackend]]:
    backend = RecordingBackend()
    async with Client(runtime or world.runtime(), backend) as client:
        yield client, backend
        for id in client.containers():
            waiting = asyncio.create_task(client.wait(id))
            await client.terminate(id)
            await waiting
    await backend.discard()
    assert backend.violations == []


async def run(
    world: HcsWorld,
    *args: str,
    options: tuple[CreateOption, ...] = (),
    runtime: HcsRuntime | None = None,
    **kwargs: Any,
) -> tuple[Any, RecordingBackend]:
    """A container from its create to its told EXIT."""
    async with client_of(world, runtime) as (client, backend):
        await client.create("c1", world.spec(*args, **kwargs), *options)
        end = await client.wait("c1")
        # EXIT tells the clean-up's end, or goes before one that takes long; nothing may stay either way.
        return end, backend


async def test_a_whole_life(either: HcsWorld) -> None:
    end, backend = await run(either, "both")
    assert backend.states("c1") == ["start", "exit"]
    assert (end.exit_code, end.exit_code_known, end.error, end.update_pending) == (0, True, None, False)
    assert (backend.stdout("c1"), backend.stderr("c1")) == (b"out\n", b"err\n")


async def test_exit_code_of_32_bits(world: HcsWorld) -> None:
    end, _ = await run(world, "exit", str(0xC000013A))
    assert (end.exit_code, end.signal) == (0xC000013A, None)


async def test_L02_id_in_use(world: HcsWorld) -> None:
    async with client_of(world) as (client, _):
        await client.create("c1", world.spec("sleep"))
        with pytest.raises(AlreadyExists):
            await client.create("c1", world.spec("sleep"))


async def test_L04_a_signal_shuts_the_system_down(world: HcsWorld) -> None:
    async with client_of(world) as (client, backend):
        await client.create("c1", world.spec("sleep"), WithRestartPolicy(RestartPolicy(name="always")))
        await client.stop("c1", grace_s=30)
        await client.wait("c1")
        assert "HcsShutdownComputeSystem" in world.core.functions()
        assert backend.states("c1") == ["start", "exit"], "a stop is manual: no restart"


async def test_L04_kill_terminates_the_system(world: HcsWorld) -> None:
    async with client_of(world) as (client, _):
        await client.create("c1", world.spec("ignore-term"))
        await client.signal("c1", 9)
        await client.wait("c1")
    assert "HcsShutdownComputeSystem" not in world.core.functions(), "[L30] after a terminate it only waits"


async def test_L05_resize(world: HcsWorld) -> None:
    async with client_of(world) as (client, _):
        await client.create("c1", world.spec("sleep", terminal=True))
        await client.resize("c1", "init", height=50, width=132)
        told = json.loads(world.core.calls("HcsModifyProcess")[-1][2])
        assert told["ConsoleSize"] == {"Height": 50, "Width": 132}


async def test_L03_exec(either: HcsWorld) -> None:
    async with client_of(either) as (client, backend):
        await client.create("c1", either.spec("sleep"))
        await client.add_process("c1", "x", process("exit", "3"))
        assert (await backend.wait_for("c1", State.EXIT_PROCESS)).exit_code == 3


async def test_L25_execs_end_before_the_init_is_told(either: HcsWorld) -> None:
    async with client_of(either) as (client, backend):
        await client.create("c1", either.spec("sleep", "0.5"))
        await client.add_process("c1", "x", process("sleep"))
        await client.wait("c1")
        assert backend.states("c1") == ["start", "start-process", "exit-process", "exit"]


@pytest.mark.parametrize(
    ("function", "keys"),
    [
        ("HcsCreateComputeSystem", {"code": "0xC0370112"}),
        ("HcsStartComputeSystem", {"code": "0xC0370112"}),
        ("HcsCreateProcess", {"code": "0xC0370112"}),
    ],
)
async def test_L07_L11_a_failed_start_leaves_nothing(function: str, keys: dict[str, Any], either: HcsWorld) -> None:
    either.core.script(function, **keys)
    async with client_of(either) as (client, backend):
        with pytest.raises(RuntimeFailed):
            await client.create("c1", either.spec("sleep"))
        assert client.containers() == ()
        assert backend.events == []


async def test_L10_unasked_stdin_is_closed(either: HcsWorld) -> None:
    end, _ = await run(either, "cat")
    assert end.exit_code == 0
    assert '"StdIn"' in either.core.calls("HcsModifyProcess")[0][2]


async def test_L15_L16_half_close(either: HcsWorld) -> None:
    async with client_of(either) as (client, backend):
        await client.create("c1", either.spec("cat", stdin=True))
        await backend.write_stdin("c1", b"hello")
        assert (await client.wait("c1")).exit_code == 0
        assert backend.stdout("c1") == b"hello"


async def test_L15_expected_failures_of_closing_stdin_are_swallowed(world: HcsWorld) -> None:
    for code in ("0xC0370105", "0x80070490", "0xC037010E"):
        world.core.script("HcsModifyProcess", code=code, nth=1, act=1)
        async with client_of(world) as (client, backend):
            await client.create("c1", world.spec("cat", stdin=True))
            await backend.write_stdin("c1", b"hello")
            assert (await client.wait("c1")).exit_code == 0
        world.core.dll.double_reset()
        world.core.begin()


async def test_L18_backspace_of_old_images(world: HcsWorld) -> None:
    for build, expected in ((14300, b"a\x08b"), (14350, b"a\x7fb")):
        async with client_of(world) as (client, backend):
            await client.create("c1", world.spec("cat", stdin=True, terminal=True, os_build=build))
            await backend.write_stdin("c1", b"a\x7fb")
            await client.wait("c1")
            assert backend.stdout("c1") == expected


async def test_L19_no_byte_is_lost(either: HcsWorld) -> None:
    _, backend = await run(either, "flood", "30000")
    assert backend.stdout("c1") == b"".join(b"line %07d of the flood\n" % n for n in range(30000))


async def test_L19_a_grandchild_hides_no_exit(either: HcsWorld) -> None:
    end, backend = await run(either, "grandchild")
    assert end.exit_code == 0
    assert backend.stdout("c1") == b"before\n"


async def test_L20_L21_a_crash_is_told_and_is_no_success(either: HcsWorld) -> None:
    async with client_of(either) as (client, backend):
        await client.create("c1", either.spec("sleep"))
        await asyncio.to_thread(either.core.crash, "c1")
        end = await client.wait("c1")
        assert (end.exit_code, end.exit_code_known) == (-1, False)
        assert backend.states("c1") == ["start", "exit"]


async def test_L21_failed_wait_of_the_service(world: HcsWorld) -> None:
    world.core.set("last_wait", -2147024809)
    end, _ = await run(world, "exit", "0")
    assert (end.exit_code, end.exit_code_known) == (-1, False)


async def test_L20_service_disconnect_is_told(world: HcsWorld) -> None:
    async with client_of(world) as (client, backend):
        await client.create("c1", world.spec("sleep"))
        pid = backend.of("c1", State.START)[0].pid
        world.core.notify("c1", 0x01000000, pid=pid)
        end = await client.wait("c1")
        assert (end.exit_code, end.exit_code_known) == (-1, False)


async def test_L28_a_failed_shutdown_terminates_and_is_told(world: HcsWorld) -> None:
    world.core.script("HcsShutdownComputeSystem", code="0xC0370106")
    end, _ = await run(world, "exit", "3")
    assert end.exit_code == 3
    assert isinstance(end.error, RuntimeFailed)
    assert "HcsTerminateComputeSystem" in world.core.functions()


async def test_L28_procedure_not_found_terminates(world: HcsWorld) -> None:
    world.core.script("HcsShutdownComputeSystem", code="0x8007007F")
    await run(world, "exit", "0")
    assert "HcsTerminateComputeSystem" in world.core.functions()


@pytest.mark.parametrize("code", ["0xC0370110", "0x80370110", "0x80070490"])
async def test_L28_L29_already_stopped_is_done(code: str, world: HcsWorld) -> None:
    world.core.script("HcsShutdownComputeSystem", code=code, act=1)
    end, _ = await run(world, "exit", "0")
    assert end.error is None
    assert "HcsTerminateComputeSystem" not in world.core.functions()


async def test_L28_shutdown_that_never_ends_is_terminated(world: HcsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.core.script("HcsShutdownComputeSystem", completion="never")
    from lighterman.supervisor import ending

    defaults: dict[str, Any] = ending.Ending.__init__.__kwdefaults__ or {}
    monkeypatch.setitem(defaults, "shutdown_s", 0.2)
    end, _ = await run(world, "exit", "3")
    assert end.exit_code == 3
    assert "HcsTerminateComputeSystem" in world.core.functions()


async def test_L31_ten_stops_and_one_exit(either: HcsWorld) -> None:
    async with client_of(either) as (client, backend):
        await client.create("c1", either.spec("sleep"))
        await asyncio.gather(
            *(client.stop("c1", grace_s=20) for _ in range(5)), *(client.terminate("c1") for _ in range(5))
        )
        await client.wait("c1")
        assert backend.states("c1") == ["start", "exit"]


async def test_L36_restart_with_flush_forced_false(world: HcsWorld) -> None:
    policy = RestartPolicy(name="on-failure", max_retries=2)
    end, backend = await run(world, "exit", "3", options=(Flush(True), WithRestartPolicy(policy)))
    assert end.exit_code == 3
    assert backend.states("c1") == ["start", "restart", "start", "restart", "start", "exit"]
    flushes = [
        json.loads(told).get("IgnoreFlushesDuringBoot", False)
        for _, _, told in world.core.calls("HcsCreateComputeSystem")
    ]
    assert flushes == [True, False, False]


# ---- servicing and pending updates -------------------------------------------------------------------------------


async def test_L24_pending_updates_are_asked_for_before_the_shutdown(world: HcsWorld) -> None:
    world.core.set("updates_pending", 1)
    end, _ = await run(world, "exit", "0", runtime=world.runtime(pending_updates=True))
    assert end.update_pending is True
    names = world.core.functions()
    assert names.index("HcsGetComputeSystemProperties") < names.index("HcsShutdownComputeSystem")


async def test_L24_a_failing_question_only_warns(world: HcsWorld) -> None:
    world.core.script("HcsGetComputeSystemProperties", code="0x80070006")
    end, _ = await run(world, "exit", "0", runtime=world.runtime(pending_updates=True))
    assert (end.exit_code, end.update_pending) == (0, False)


async def test_pending_updates_are_off_by_default(world: HcsWorld) -> None:
    runtime = world.runtime()
    assert runtime.features().pending_updates is False
    await run(world, "exit", "0", runtime=runtime)
    assert "HcsGetComputeSystemProperties" not in world.core.functions()


async def test_L12_L24_servicing_end_to_end(world: HcsWorld) -> None:
    """As the backend does it: an exit with code 0 and updates pending is followed by a servicing run."""
    world.core.set("updates_pending", 1)
    runtime = world.runtime(pending_updates=True)
    async with client_of(world, runtime) as (client, backend):
        await client.create("c1", world.spec("exit", "0"))
        end = await client.wait("c1")
        assert end.update_pending
        asked = len(world.core.calls())
        await client.create("c1_servicing", world.spec("exit", "0"), Servicing())
        assert client.containers() == ()
        assert backend.of("c1_servicing") == []
        assert ("c1_servicing", "init") not in backend.attached
    calls = world.core.calls()[asked:]
    names = [name for name, _, _ in calls]
    assert "HcsShutdownComputeSystem" not in names
    assert "HcsTerminateComputeSystem" not in names
    assert json.loads(calls[names.index("HcsCreateComputeSystem")][2])["Servicing"] is True
    assert "CreateStd" not in calls[names.index("HcsCreateProcess")][2]


async def test_L12_servicing_that_fails_is_terminated(world: HcsWorld) -> None:
    async with client_of(world) as (client, backend):
        with pytest.raises(ServicingFailed) as raised:
            await client.create("c1_servicing", world.spec("exit", "3"), Servicing())
        assert raised.value.exit_code == 3
        assert backend.events == []
    assert "HcsTerminateComputeSystem" in world.core.functions()


async def test_L12_servicing_whose_system_never_ends_is_closed(
    world: HcsWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.core.set("servicing_never_ends", 1)
    monkeypatch.setattr(limits, "SERVICING_EXIT_S", 0.2)
    async with client_of(world) as (client, _):
        await client.create("c1_servicing", world.spec("exit", "0"), Servicing())
    names = world.core.functions()
    assert "HcsShutdownComputeSystem" not in names
    assert "HcsTerminateComputeSystem" not in names
    assert "HcsCloseComputeSystem" in names
    world.leaves_something = True


# ---- after the engine's death ------------------------------------------------------------------------------------


async def test_L06_what_can_not_be_taken_over_is_ended_and_unknown(either: HcsWorld) -> None:
    either.core.left_over("c1", "lighterman")
    async with client_of(either) as (client, backend):
        await client.restore("c1", spec=Spec(process=process("sleep")))
        info = await backend.wait_for("c1", State.EXIT)
        assert (info.exit_code, info.exit_code_known, info.reason) == (-1, False, "engine lost")

    async def is_gone() -> bool:
        return await either.runtime().list() == []

    await eventually(is_gone)


async def test_L06_what_is_gone_is_told(world: HcsWorld) -> None:
    async with client_of(world) as (client, backend):
        await client.restore("c1", spec=Spec(process=process("sleep")))
        assert (await backend.wait_for("c1", State.EXIT)).exit_code_known is False


async def test_a_leased_container_goes_with_its_last_handle(either: HcsWorld) -> None:
    runtime = either.runtime()
    system, init = await either.started("sleep", runtime=runtime, options=(TerminateWithEngine(),))
    await init.close()
    await system.close()

    async def is_gone() -> bool:
        return await runtime.list() == []

    await eventually(is_gone)


async def test_pause_under_process_isolation_is_not_supported(world: HcsWorld) -> None:
    async with client_of(world) as (client, _):
        await client.create("c1", world.spec("sleep"))
        with pytest.raises(NotSupported, match="process isolation"):
            await client.pause("c1")
    assert "HcsPauseComputeSystem" not in world.core.functions()


async def test_pause_and_resume_under_hyper_v_are_told(world: HcsWorld) -> None:
    async with client_of(world, world.runtime(hyper_v=True)) as (client, backend):
        await client.create("c1", world.spec("sleep", hyper_v=True))
        await client.pause("c1")
        await client.resume("c1")
        assert backend.states("c1") == ["start", "pause", "resume"]


async def test_summary_and_statistics(either: HcsWorld) -> None:
    async with client_of(either) as (client, backend):
        await client.create("c1", either.spec("sleep"))
        statistics = await client.stats("c1")
        assert statistics.cpu_ns == 31250000 * 100
        assert (statistics.memory_bytes, statistics.memory_peak_bytes) == (73400320, 94371840)
        assert (statistics.read_operations, statistics.write_bytes) == (812, 1048576)
        (summary,) = await client.summary("c1")
        assert summary.pid == backend.of("c1", State.START)[0].pid
        assert (summary.image_name, summary.user_s, summary.resident_bytes) == ("prog.exe", 0.015625, 3108864 + 0)
