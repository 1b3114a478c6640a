"""The host restarts: how what ran ended nobody knows, and who has a policy is started again, in order, once."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from real_support import logged, written
from reboot_support import change_record, die_in, reboot, rows

from lighterman import Container, Engine, Event, RestartPolicy, StoreError, limits
from lighterman.lifecycle.status import Status
from lighterman.runtimes.base import CreateOption
from lighterman.runtimes.oci.recorded import recorded_ends
from lighterman.spec import Spec
from lighterman.store.base import Change
from lighterman.store.sqlite import SqliteStore
from lighterman.supervisor.client import Client
from support import eventually

pytestmark = pytest.mark.real

SLEEP = ["sleep", "1000"]


async def service(
    engine: Engine, name: str, restart: str | RestartPolicy = "no", argv: Sequence[str] = SLEEP
) -> Container:
    box = await engine.create("busybox", argv, name=name, lease=None, restart=restart)
    await box.start()
    return box


async def comes_to(box: Container, status: Status) -> None:
    await eventually(lambda: box.status is status)


async def events_of(engine: Engine, name: str = "") -> list[Event]:
    return [event async for event in engine.events(after=0, follow=False) if name in ("", event.name)]


def told(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.kind, event.generation) for event in events]


# ---- what is told ------------------------------------------------------------------------------------------------


async def test_what_ran_has_ended_unknown_and_what_had_ended_is_as_it_was(root: Path) -> None:
    async with Engine(root=root) as engine:
        await service(engine, "ran")
        await (await service(engine, "paused")).pause()
        await (await service(engine, "ended", argv=["sh", "-c", "exit 3"])).wait()
        await engine.create("busybox", SLEEP, name="created", lease=None)
    await reboot(root)
    async with Engine(root=root) as engine:
        for name in ("ran", "paused"):
            box = await engine.get(name)
            exit = await box.wait(timeout_s=20)
            assert (box.status, box.pid, exit.code, exit.unknown) == (Status.EXITED, 0, None, "host restarted")
            last = (await events_of(engine, name))[-1]
            assert (last.kind, last.generation, last.exit) == ("exit", 1, exit)
        ended = await engine.get("ended")
        assert (ended.status, (await ended.wait()).code) == (Status.EXITED, 3)
        assert (await engine.get("created")).status is Status.CREATED
        before = len(await events_of(engine))
        await (await engine.get("ran")).start()
    # The same life of the host: nothing of it is told again.
    async with Engine(root=root) as engine:
        assert (await engine.get("ran")).status is Status.RUNNING
        assert told((await events_of(engine))[before:]) == [("start", 2), ("restore", 2)]


async def test_P01_end_that_only_the_keeper_knew_is_told_after_the_reboot(root: Path) -> None:
    argv = ["sh", "-c", "trap 'exit 7' TERM; trap 'exit 0' USR1; echo up; while :; do sleep 0.1; done"]
    async with Engine(root=root) as engine:
        failed = await service(engine, "failed", argv=argv)
        succeeded = await service(engine, "succeeded", "on-failure", argv)
        ran = await service(engine, "ran")
        process = await ran.start_exec(argv)
        for box in (failed, succeeded):
            await written(box, b"up")
        assert await process.stdout.readline() == b"up\n"
        pids = failed.pid, succeeded.pid, process.pid
    for pid, number in zip(pids, (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM), strict=True):
        os.kill(pid, number)
    exits = root / "exits"
    await eventually(lambda: sum(map(len, recorded_ends(str(exits)).values())) == 3)
    files = set(os.listdir(exits))
    await reboot(root)
    async with Engine(root=root) as engine:
        exit = await (await engine.get("failed")).wait()
        assert (exit.code, exit.unknown, exit.generation, exit.reason) == (7, None, 1, None)
        times = exit.started_at, exit.finished_at, exit.duration_s
        assert all(times), times
        box = await engine.get("succeeded")
        assert (box.status, (await box.wait()).code) == (Status.EXITED, 0)
        box = await engine.get("ran")
        assert (await box.wait()).unknown == "host restarted"
        assert (await (await box.get_exec(process.id)).wait()).code == 7
        # Of the exec first [L25].
        ends = [(event.process, event.exit) for event in await events_of(engine, "ran") if event.exit is not None]
        assert [(name, end.code) for name, end in ends] == [(process.id, 7), ("init", None)]
        # In the store now, and so no file of a dead keeper is needed.
        await eventually(lambda: not files & set(os.listdir(exits)))
        assert os.listdir(exits), "the keeper that lives needs its own"


async def test_containers_of_owners_who_are_dead_are_removed(root: Path) -> None:
    async with Engine(root=root) as engine:
        box = await engine.create("busybox", SLEEP, name="box", lease=1, restart="always")
        await box.start()
        await service(engine, "other", "always")
    await reboot(root)
    async with Engine(root=root) as engine:

        async def is_gone() -> bool:
            return [box.name for box in await engine.containers()] == ["other"]

        await eventually(is_gone)
        assert [kind for kind, _ in told(await events_of(engine, "box"))].count("start") == 1


# ---- who is started ----------------------------------------------------------------------------------------------


async def test_L32_policy_and_last_end_say_who_is_started(root: Path) -> None:
    forced, prevented = RestartPolicy(name="no", force_codes=(3,)), RestartPolicy(name="always", prevent_codes=(3,))
    # Name: policy, whether it is stopped by hand, the code it ends with by itself, whether it runs after the reboot.
    cases: dict[str, tuple[str | RestartPolicy, bool, int | None, bool]] = {
        "no": ("no", False, None, False),
        "always": ("always", False, None, True),
        "always, stopped": ("always", True, None, True),
        "unless-stopped": ("unless-stopped", False, None, True),
        "unless-stopped, stopped": ("unless-stopped", True, None, False),
        "on-failure": ("on-failure", False, None, True),
        "on-failure, stopped": ("on-failure", True, None, False),
        "on-failure, succeeded": ("on-failure", False, 0, False),
        "prevented by its code": (prevented, False, 3, False),
        "prevented by its code, and runs": (prevented, False, None, True),
        "forced by its code, and runs": (forced, False, None, False),
        "forced by its code, stopped": (forced, True, None, False),
    }
    async with Engine(root=root) as engine:
        for number, (policy, stopped, code, _) in enumerate(cases.values()):
            argv = SLEEP if code is None else ["sh", "-c", f"exit {code}"]
            box = await service(engine, f"box{number}", policy, argv)
            if stopped:
                await box.stop(grace_s=0)
            elif code is not None:
                await box.wait()
    await reboot(root)
    async with Engine(root=root) as engine:
        boxes = [await engine.get(f"box{number}") for number in range(len(cases))]
        await eventually(lambda: not any(box.status is Status.RESTARTING for box in boxes))
        runs = {case: box.status is Status.RUNNING for case, box in zip(cases, boxes, strict=True)}
        assert runs == {case: wanted for case, (_, _, _, wanted) in cases.items()}
        for box in boxes:
            await box.remove(force=True)


async def test_P01_known_end_of_who_waits_for_a_restart_stays_known(root: Path) -> None:
    slow = RestartPolicy(name="on-failure", initial_delay_s=1000.0, max_delay_s=1000.0)
    forced = RestartPolicy(name="no", force_codes=(3,), initial_delay_s=1000.0, max_delay_s=1000.0)
    script = ["sh", "-c", "[ -e /again ] && exec sleep 1000; touch /again; exit 3"]
    async with Engine(root=root) as engine:
        for name, policy in (("due", slow), ("forced", forced), ("given up", slow)):
            box = await service(engine, name.replace(" ", "-"), policy, script)
            await comes_to(box, Status.RESTARTING)
        given_up = box.id
    await reboot(root)
    no = RestartPolicy(name="no")
    row = next(record for record in rows(root) if record.id == given_up)
    change_record(root, given_up, spec=type(row.spec)(image="busybox", argv=tuple(script), restart=no))
    async with Engine(root=root) as engine:
        for name in ("due", "forced"):
            box = await engine.get(name)
            # At once: the clock that its delay was measured on is gone.
            await comes_to(box, Status.RUNNING)
            ends = [event.exit for event in await events_of(engine, name) if event.kind in ("restart", "exit")]
            assert [exit.code for exit in ends if exit is not None] == [3]
        box = await engine.get("given-up")
        assert (box.status, (await box.wait()).code) == (Status.EXITED, 3)
        assert told(await events_of(engine, "given-up"))[-2:] == [("restart", 1), ("exit", 1)]


# ---- in which order ----------------------------------------------------------------------------------------------


async def test_each_starts_when_the_one_before_it_has_started(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"box{number}" for number in range(5)]
    async with Engine(root=root) as engine:
        for name in names:
            await service(engine, name, "always")
    await reboot(root)
    real, under_way, most = Client.create, 0, 0

    async def create(self: Client, id: str, spec: Spec, *options: CreateOption) -> None:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await real(self, id, spec, *options)
        under_way -= 1

    monkeypatch.setattr(Client, "create", create)
    async with Engine(root=root) as engine:
        boxes = [await engine.get(name) for name in names]
        await eventually(lambda: all(box.status is Status.RUNNING for box in boxes))
        started = [event.name for event in await events_of(engine) if (event.kind, event.generation) == ("start", 2)]
        assert (started, most) == (names, 1)


async def test_one_that_fails_or_hangs_holds_up_no_other(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread((tmp_path / "rootfs" / "bin").mkdir, parents=True)
    await asyncio.to_thread(shutil.copy, "/bin/busybox", tmp_path / "rootfs" / "bin" / "sleep")
    async with Engine(root=root) as engine:
        failing = await engine.create(
            rootfs=tmp_path / "rootfs", argv=SLEEP, name="failing", lease=None, restart="always"
        )
        await failing.start()
        hanging = await service(engine, "hanging", "always")
        await service(engine, "last", "always")
    await reboot(root)
    await asyncio.to_thread(shutil.rmtree, tmp_path / "rootfs")
    real, may_go_on = Client.create, asyncio.Event()

    async def create(self: Client, id: str, spec: Spec, *options: CreateOption) -> None:
        if id == hanging.id:
            await may_go_on.wait()
        await real(self, id, spec, *options)

    monkeypatch.setattr(Client, "create", create)
    monkeypatch.setattr(limits, "START_SLOW_S", 0.05)
    async with Engine(root=root) as engine:
        last = await engine.get("last")
        await eventually(lambda: last.status is Status.RUNNING)
        assert (await engine.get("hanging")).status is Status.RESTARTING
        exit = await (await engine.get("failing")).wait(timeout_s=20)
        assert exit.not_started is not None
        may_go_on.set()
        box = await engine.get("hanging")
        await eventually(lambda: box.status is Status.RUNNING)


async def test_stopped_before_its_turn_it_stays_down(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Engine(root=root) as engine:
        first = await service(engine, "first", "always")
        await service(engine, "ran", "unless-stopped")
        await (await service(engine, "ended", "always")).stop(grace_s=0)
    await reboot(root)
    real, may_go_on = Client.create, asyncio.Event()

    async def create(self: Client, id: str, spec: Spec, *options: CreateOption) -> None:
        if id == first.id:
            await may_go_on.wait()
        await real(self, id, spec, *options)

    monkeypatch.setattr(Client, "create", create)
    async with Engine(root=root) as engine:
        for name in ("ran", "ended"):
            box = await engine.get(name)
            assert str(box.status) == "restarting"
            await asyncio.wait_for(box.stop(), 60)
            assert str(box.status) == "exited"
        may_go_on.set()
        box = await engine.get("first")
        await eventually(lambda: box.status is Status.RUNNING)
        assert told(await events_of(engine, "ran"))[1:] == [("start", 1), ("restart", 1), ("exit", 1)]
        # Its end was told before the reboot.
        assert told(await events_of(engine, "ended"))[1:] == [("start", 1), ("exit", 1)]
    async with Engine(root=root) as engine:
        for name in ("ran", "ended"):
            box = await engine.get(name)
            assert (box.status, box.generation) == (Status.EXITED, 1)


# ---- engines that are killed, disks that are full ----------------------------------------------------------------

KILLED = {
    "after the store was read": """
real = SqliteStore.load
async def load(self, *arguments):
    await real(self, *arguments)
    die()
SqliteStore.load = load
""",
    "when one end is told": """
real, count = SqliteStore.commit, 0
async def commit(self, change):
    global count
    count += 1
    number = await real(self, change)
    if count >= 2:
        die()
    return number
SqliteStore.commit = commit
""",
    "before it is said that all is settled": "SqliteStore.keep_boot_id = die",
    "before the starts": "Runs.start_due = die",
    "in the first start": "Runs._start = die",
    "when the first has started": """
real = Books.tell_fact
async def tell_fact(self, entry, event):
    later = await real(self, entry, event)
    if event.kind == "start":
        die()
    return later
Books.tell_fact = tell_fact
""",
    "not at all, it fails": """
async def held_jobs(self, known):
    raise KeeperLost("keeper is gone")
LinuxHost.held_jobs = held_jobs
""",
}


@pytest.mark.parametrize("program", KILLED.values(), ids=list(KILLED))
async def test_P01_first_engine_is_killed_the_next_one_starts_who_is_due(root: Path, program: str) -> None:
    names = ["ran0", "ran1", "ran2", "ended"]
    async with Engine(root=root) as engine:
        for name in names:
            await service(engine, name, "always")
        await (await engine.get("ended")).stop(grace_s=0)
    await reboot(root)
    await die_in(root, program)
    async with Engine(root=root) as engine:
        boxes = [await engine.get(name) for name in names]
        await eventually(lambda: all(box.status is Status.RUNNING for box in boxes))
        for name in names:
            events = [event for event in await events_of(engine, name) if event.kind != "restore"]
            assert told(events)[1:] == [("start", 1), ("exit" if name == "ended" else "restart", 1), ("start", 2)]
            if name != "ended":
                assert events[2].exit is not None
                assert events[2].exit.unknown == "host restarted"


async def test_P12_start_at_boot_that_no_engine_could_tell_is_told_by_the_next(root: Path) -> None:
    async with Engine(root=root) as engine:
        for name in ("ran", "ended"):
            await service(engine, name, "always")
        await (await engine.get("ended")).stop(grace_s=0)
    await reboot(root)
    program = """
real, begun = Books.tell_fact, set()
async def tell_fact(self, entry, event):
    if event.kind != "start":
        return await real(self, entry, event)
    begun.add(entry.record.name)
    if begun == {"ran", "ended"}:
        die()
    entry.start_over.set()  # the next one may begin
    await asyncio.Event().wait()
Books.tell_fact = tell_fact
"""
    await die_in(root, program)
    async with Engine(root=root) as engine:
        for name, kinds in (("ran", ["restart", "restore"]), ("ended", ["exit", "start", "restore"])):
            box = await engine.get(name)
            await comes_to(box, Status.RUNNING)
            events = await events_of(engine, name)
            first = kinds[:1]
            assert told(events) == [("create", 0), ("start", 1), *((kind, 1) for kind in first)] + [
                (kind, 2) for kind in kinds[1:]
            ]
            assert {event.pid for event in events if event.generation == 2} == {box.pid}


async def test_P08_output_of_a_run_that_nobody_was_told_of_is_not_in_the_next_one(root: Path) -> None:
    script = ["sh", "-c", "echo hi; [ -e /again ] && exec sleep 1000; touch /again; exit 3"]
    slow = RestartPolicy(name="always", initial_delay_s=1000.0, max_delay_s=1000.0)
    async with Engine(root=root) as engine:
        waits = await service(engine, "waits", slow, script)
        await eventually(lambda: waits.status is Status.RESTARTING)
        runs = await service(engine, "runs", "always", ["sh", "-c", "echo hi; exec sleep 1000"])
        started = await service(engine, "started", "no", ["echo", "hi"])
        await started.wait()

        async def has_said() -> bool:
            return await logged(runs) == b"hi\n"

        await eventually(has_said)
    await reboot(root)
    for box in (waits, runs, started):
        # The next run had begun and written, and was not told of when the power went.
        logs = root / "containers" / box.id / "logs"
        await asyncio.to_thread(shutil.copytree, logs / "1", logs / "2", dirs_exist_ok=True)
    change_record(root, waits.id, starting=2)
    change_record(root, started.id, starting=2)
    async with Engine(root=root) as engine:
        for name in ("waits", "runs", "started"):
            box = await engine.get(name)
            if name == "started":
                await box.start()

            async def has_said_it_again(box: Container = box) -> bool:
                return await logged(box) == b"hi\nhi\n"

            await eventually(has_said_it_again)
            assert {record.cursor.generation for record in [record async for record in box.logs()]} == {1, 2}


async def test_full_disk_delays_what_is_told_and_started_and_loses_none_of_it(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Engine(root=root) as engine:
        await service(engine, "service", "always")
        await service(engine, "plain")
    await reboot(root)

    async def full(self: SqliteStore, change: Change) -> int:
        raise StoreError("the disk is full")

    monkeypatch.setattr(limits, "STORE_RETRY_S", 0.01)
    with monkeypatch.context() as disk:
        disk.setattr(SqliteStore, "commit", full)
        async with Engine(root=root) as engine:
            plain = await engine.get("plain")
            assert (plain.status, (await plain.wait()).unknown) == (Status.EXITED, "host restarted")
            assert (await engine.get("service")).status is Status.RESTARTING
            assert "restart" not in [event.kind for event in await events_of(engine)]
    async with Engine(root=root) as engine:
        box = await engine.get("service")
        await eventually(lambda: box.status is Status.RUNNING)
        assert told(await events_of(engine, "service"))[1:] == [("start", 1), ("restart", 1), ("start", 2)]
        assert told(await events_of(engine, "plain"))[1:] == [("start", 1), ("exit", 1)]
