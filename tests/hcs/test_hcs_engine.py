"""The public engine over the double: what a user of Windows has, from `run` to coming back."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from hcs.windows_engine import blocking_engine_of, engine_of, layer, owner
from hcs.world import HcsWorld
from lighterman import (
    ConsoleSize,
    Engine,
    Exec,
    HealthCheck,
    InvalidSpec,
    InvalidState,
    LogPattern,
    Mount,
    NotFound,
    NotSupported,
    Port,
    Resources,
    RestartPolicy,
    RootLocked,
    RuntimeUnavailable,
    SdNotify,
    Status,
    Tcp,
)
from support import eventually


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


# ---- running -----------------------------------------------------------------------------------------------------


async def test_run_has_output_and_exit_code_of_32_bits(either: HcsWorld, root: Path) -> None:
    async with engine_of(either, root) as engine:
        both = await engine.run(rootfs=layer(either), argv=["prog", "both"])
        assert (both.exit.code, both.stdout, both.stderr) == (0, b"out\n", b"err\n")
        ended = await engine.run(rootfs=layer(either), argv=["prog", "exit", str(0xC000013A)])
        assert (ended.exit.code, ended.exit.signal, ended.exit.unknown) == (0xC000013A, None, None)
        assert await engine.containers() == []


async def test_run_with_input_reads_its_end(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        done = await engine.run(rootfs=layer(world), argv=["prog", "cat"], stdin=b"in\0put" * 50_000)
        assert (done.exit.code, done.stdout) == (0, b"in\0put" * 50_000)


async def test_arguments_come_as_they_were_given(world: HcsWorld, root: Path) -> None:
    words = ['a "b" c', "d\\", '\\"', ""]
    async with engine_of(world, root) as engine:
        done = await engine.run(rootfs=layer(world), argv=["prog", "args", *words])
    assert done.stdout.decode().split("\n")[:-1] == words


async def test_timeout_kills(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        done = await engine.run(rootfs=layer(world), argv=["prog", "sleep"], timeout_s=0.05)
        assert done.exit.reason == "timeout"


async def test_cancelled_run_leaves_nothing(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        running = asyncio.ensure_future(engine.run(rootfs=layer(world), argv=["prog", "sleep"], name="gone"))
        await eventually(lambda: world.core.calls("HcsCreateProcess"))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await engine.containers() == []
        with pytest.raises(NotFound):
            await engine.get("other")
    assert list((root / "containers").glob("*")) == []


async def test_private_root_goes_with_its_engine(
    world: HcsWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lighterman.roots.default_state", lambda: str(tmp_path / "state"))
    monkeypatch.setattr("lighterman.roots.default_run", lambda: str(tmp_path / "run"))
    async with engine_of(world) as engine:
        assert (await engine.run(rootfs=layer(world), argv=["prog", "exit", "3"])).exit.code == 3
        await engine.create(rootfs=layer(world), argv=["prog", "sleep"])
    assert list((tmp_path / "state" / "private").glob("*")) == []


# ---- a container's life ------------------------------------------------------------------------------------------


async def test_create_start_stop_remove(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        box = await engine.create(rootfs=layer(world), argv=["prog", "sleep"], name="box")
        assert box.status is Status.CREATED
        await box.start()
        assert box.status.value == "running"
        with pytest.raises(InvalidState):
            await box.remove()
        exit = await box.stop(grace_s=20)
        assert exit is not None
        assert exit.reason == "stop"
        assert world.core.calls("HcsShutdownComputeSystem")
        await box.start()
        await box.kill()
        assert (await box.wait()).reason == "kill"
        await box.remove()
        assert box.status.value == "removed"
        # The writable layer goes in the background.
        await eventually(lambda: not list((root / "layers").glob("*")))


async def test_layer_removal_is_tried_again(world: HcsWorld, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighterman.limits.LAYER_REMOVAL_FIRST_S", 0.01)
    world.layers.script("DestroyLayer", code="0x80070020", times=2)
    async with engine_of(world, root) as engine:
        box = await engine.create(rootfs=layer(world), argv=["prog", "exit"])
        await box.start()
        await box.wait()
        await box.remove()
        await eventually(lambda: not list((root / "layers").glob("*")))


async def test_exec_and_its_kill(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine, engine.container(rootfs=layer(world), argv=["prog", "sleep"]) as box:
        done = await box.exec(["prog", "cat"], stdin=b"x")
        assert (done.exit.code, done.stdout) == (0, b"x")
        late = await box.exec(["prog", "sleep"], timeout_s=0.05)
        assert late.exit.reason == "timeout"
        process = await box.start_exec(["prog", "sleep"])
        with pytest.raises(NotSupported):
            await process.kill("TERM")
        await process.kill()
        await process.wait()


async def test_stdin_half_close(world: HcsWorld, root: Path) -> None:
    async with (
        engine_of(world, root) as engine,
        engine.container(rootfs=layer(world), argv=["prog", "cat"], stdin=True) as box,
    ):
        box.stdin.write(b"one\n")
        await box.stdin.drain()
        assert await box.stdout.readline() == b"one\n"
        box.stdin.write_eof()
        assert (await box.wait()).code == 0
        assert await box.stdout.read() == b""


async def test_terminal_has_one_stream(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        size = ConsoleSize(height=31, width=97)
        async with engine.container(
            rootfs=layer(world), argv=["prog", "size"], terminal=True, console_size=size
        ) as box:
            assert await box.stdout.readline() == b"31 97\n"
            with pytest.raises(InvalidState):
                _ = box.stderr
            await box.resize(height=5, width=6)
            while await box.stdout.readline() != b"5 6\n":
                continue


# ---- what is kept ------------------------------------------------------------------------------------------------


async def test_logs_go_on_after_a_cursor_over_restarts(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        box = await engine.create(rootfs=layer(world), argv=["prog", "both"], name="box", lease=None)
        for _ in range(2):
            await box.start()
            await box.wait()
        records = [record async for record in box.logs()]
        assert sorted(record.data for record in records) == [b"err\n", b"err\n", b"out\n", b"out\n"]
        after = records[1].cursor
        assert after.generation == 1
    async with engine_of(world, root) as engine:
        box = await engine.get("box")
        left = [record async for record in box.logs(after=after)]
        assert left == records[2:]
        assert (await box.wait()).code == 0
        await box.remove()
        await eventually(lambda: not list((root / "layers").glob("*")))


async def test_much_output_is_whole(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        done = await engine.run(rootfs=layer(world), argv=["prog", "flood", "50000"])
        assert len(done.stdout.splitlines()) == 50_000
        assert done.exit.code == 0


async def test_events_are_a_journal(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        await engine.run(rootfs=layer(world), argv=["prog", "exit"], name="one")
        await eventually(lambda: _kinds(root) is not None)
    async with engine_of(world, root) as engine:
        kinds = [event.kind async for event in engine.events(after=0, follow=False)]
        assert kinds == ["create", "start", "exit", "remove"]


def _kinds(root: Path) -> Path | None:
    return root / "state.db" if (root / "state.db").exists() else None


async def test_restart_policy(world: HcsWorld, root: Path) -> None:
    policy = RestartPolicy(name="on-failure", max_retries=2, initial_delay_s=0.01)
    async with engine_of(world, root) as engine:
        box = await engine.create(rootfs=layer(world), argv=["prog", "exit", "7"], restart=policy)
        await box.start()
        exit = await box.wait()
        assert (exit.code, exit.generation) == (7, 3)
        with pytest.raises(NotSupported, match="use exit codes"):
            await box.set_restart_policy(RestartPolicy(name="always", prevent_codes=("SIGTERM",)))


# ---- leases ------------------------------------------------------------------------------------------------------


async def test_scope_and_process_end_with_our_handles(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        box = await engine.create(rootfs=layer(world), argv=["prog", "sleep"])
        free = await engine.create(rootfs=layer(world), argv=["prog", "sleep"], lease=None)
        for each in (box, free):
            await each.start()
        assert box.lease.kind == "process"
        documents = [json.loads(document) for _, _, document in world.core.calls("HcsCreateComputeSystem")]
        assert [bool(each.get("TerminateOnLastHandleClosed")) for each in documents] == [True, False]
        await free.remove(force=True)
    assert world.core.calls("HcsTerminateComputeSystem")


async def test_time_ends_it(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        box = await engine.create(rootfs=layer(world), argv=["prog", "sleep"], ttl_s=1000)
        await box.start()
        assert box.lease.left_s is not None
        await box.renew(0.05)
        assert (await box.wait(timeout_s=30)).reason == "lease"


@pytest.mark.skipif(sys.platform == "win32", reason="no such lease can be asked for there")
async def test_other_owners_are_refused(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        with pytest.raises(NotSupported, match="ends with its engine"):
            await engine.create(rootfs=layer(world), argv=["prog"], lease=1)
        assert await engine.containers() == []


# ---- one root, one engine; coming back ---------------------------------------------------------------------------


async def test_second_engine_on_one_root_is_refused(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root):
        with pytest.raises(RootLocked, match="another engine"):
            await engine_of(world, root).start()


async def test_what_ran_when_the_engine_died_is_ended_and_told(world: HcsWorld, root: Path) -> None:
    code = await _killed_engine(world, root)
    assert code == 9
    async with engine_of(world, root) as engine:
        # It starts as it is before the sweep of what nobody knows.
        box = await engine.get("lost")
        assert box.status is Status.EXITED
        exit = await box.wait()
        assert (exit.unknown, exit.code, exit.signal) == ("engine lost", None, None)
        kinds = [event.kind async for event in engine.events(after=0, follow=False) if event.container == box.id]
        assert kinds == ["create", "start", "exit"]
        # Its lease ended with its engine.
        await eventually(lambda: _only(engine, "lost", "always"))
        again = await engine.get("always")
        await eventually(lambda: again.status is Status.RUNNING)
        assert (again.exit, await _text(box)) == (None, b"")
        await again.remove(force=True)
        await box.remove()
        await eventually(lambda: not list((root / "layers").glob("*")))


async def test_what_lives_on_is_ended_by_the_next_engine(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine:
        box = await engine.create(rootfs=layer(world), argv=["prog", "sleep"], name="box", lease=None)
        await box.start()
    assert world.core.calls("HcsTerminateComputeSystem") == []
    async with engine_of(world, root) as engine:
        box = await engine.get("box")
        assert (await box.wait()).unknown == "engine lost"
        assert world.core.calls("HcsTerminateComputeSystem")
        await box.remove()
        await eventually(lambda: not list((root / "layers").glob("*")))


async def test_a_killed_private_engine_is_swept(
    world: HcsWorld, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lighterman.roots.default_state", lambda: str(tmp_path / "state"))
    monkeypatch.setattr("lighterman.roots.default_run", lambda: str(tmp_path / "run"))
    left = tmp_path / "state" / "private" / "0123456789abcdef"
    (left / "layers" / "box").mkdir(parents=True)
    (left / "containers" / "box").mkdir(parents=True)
    (left / "lock").write_text("1\n")
    world.core.left_over("box", owner(left))
    async with engine_of(world, root):
        assert not left.exists()
        assert [id for _, id, _ in world.core.calls("HcsOpenComputeSystem")] == ["box"]


async def _only(engine: Engine, *names: str) -> bool:
    return {box.name for box in await engine.containers()} == set(names)


async def _text(box: object) -> bytes:
    return b"".join([record.data async for record in box.logs()])  # type: ignore[attr-defined]


async def _killed_engine(world: HcsWorld, root: Path) -> int:
    """A program whose engine dies while three containers run; what outlived it is in the service still."""
    program = Path(__file__).parent / "killed_engine.py"
    layers = layer(world)
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        str(root),
        layers,
        *world.core.made_of(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await child.communicate()
    ids = [line for line in said.decode().split() if len(line) == 32]
    assert len(ids) == 2, said
    for id in ids:
        world.core.left_over(id, owner(root))
    assert child.returncode is not None
    return child.returncode


async def test_left_overs_are_swept_at_the_start(world: HcsWorld, root: Path) -> None:
    world.core.left_over("unknown", owner(root))
    world.core.left_over("foreign", "somebody")
    world.leaves_something = True  # what is somebody else's
    async with engine_of(world, root):
        ended = [id for _, id, _ in world.core.calls("HcsOpenComputeSystem")]
        assert ended == ["unknown"]


# ---- the blocking face, and what Windows has no word for ---------------------------------------------------------


async def test_blocking_face(world: HcsWorld, root: Path) -> None:
    def work() -> tuple[int | None, bytes]:
        with blocking_engine_of(world, root) as engine:
            done = engine.run(rootfs=layer(world), argv=["prog", "both"])
            return done.exit.code, done.stdout

    assert await asyncio.to_thread(work) == (0, b"out\n")


@pytest.mark.parametrize(
    "options",
    [
        {"seccomp": "unconfined"},
        {"cap_add": ["NET_ADMIN"]},
        {"privileged": True},
        {"read_only": True},
        {"network": "host"},
        {"pids_limit": 5},
        {"memory_swap": "1G"},
        {"cpuset_cpus": "0"},
        {"mounts": [Mount(type="tmpfs", target="C:\\tmp")]},
        {"log_policy": "drop-oldest"},
        {"ready": Port(80)},
        {"ready": SdNotify()},
        {"health": HealthCheck(Tcp(80))},
        {"restart": RestartPolicy(name="always", force_codes=("SIGTERM",))},
        {"runtime": "crun"},
    ],
    ids=lambda options: next(iter(options)),
)
async def test_what_windows_has_no_word_for_is_said_in_one_line(
    options: dict[str, object], world: HcsWorld, root: Path
) -> None:
    async with engine_of(world, root) as engine:
        with pytest.raises((NotSupported, InvalidSpec)) as refused:
            await engine.run(rootfs=layer(world), argv=["prog", "exit"], **options)  # type: ignore[arg-type]
        assert "\n" not in str(refused.value)
        assert await engine.containers() == []


async def test_limits_of_a_running_container_stay(world: HcsWorld, root: Path) -> None:
    async with engine_of(world, root) as engine, engine.container(rootfs=layer(world), argv=["prog", "sleep"]) as box:
        with pytest.raises(NotSupported, match="can't be changed"):
            await box.update(Resources(memory_bytes=1 << 30))


async def test_ready_by_a_line_of_the_log(world: HcsWorld, root: Path) -> None:
    async with (
        engine_of(world, root) as engine,
        engine.container(rootfs=layer(world), argv=["prog", "cat"], stdin=True, ready=LogPattern("up [0-9]+")) as box,
    ):
        box.stdin.write(b"up 1\n")
        await box.wait(until="ready", timeout_s=30)


async def test_health_by_an_exec(world: HcsWorld, root: Path) -> None:
    check = HealthCheck(Exec(["prog", "exit", "1"]), interval_s=0.01, retries=2)
    async with (
        engine_of(world, root) as engine,
        engine.container(rootfs=layer(world), argv=["prog", "sleep"], health=check) as box,
    ):
        await box.wait(until="unhealthy", timeout_s=30)


@pytest.mark.skipif(sys.platform != "win32", reason="elsewhere an engine asks for another platform")
async def test_no_service_is_one_line(root: Path) -> None:
    """Wine has no such DLL; a Windows without the Containers feature has none either."""
    with pytest.raises(RuntimeUnavailable) as missing:
        await Engine(root).start()
    assert "\n" not in str(missing.value)
    # The root is free again.
    with pytest.raises(RuntimeUnavailable):
        await Engine(root).start()
