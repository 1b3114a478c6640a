"""A host with systemd as init and cgroup manager: what it does to its units touches neither keeper nor containers."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_support import cgroup_of, keeper_pid, process_is_there

import lighterman
from lighterman import Engine
from lighterman.lifecycle.status import Status
from support import eventually

pytestmark = [pytest.mark.real, pytest.mark.needs("systemd", "v2")]

OWNER = """
import asyncio, os, sys
from lighterman import Engine
async def main():
    async with Engine(root=sys.argv[1], runtime=sys.argv[2]) as engine:
        script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done"
        box = await engine.create(
            "busybox", ["sh", "-c", script], name="box", lease=None, memory="32M", pids_limit=20, cpus=0.5
        )
        await box.start()
        await box.stdout.readline()
        with open(sys.argv[3] + ".new", "w") as ready:
            ready.write(f"{os.getpid()} {box.pid}")
        os.rename(sys.argv[3] + ".new", sys.argv[3])
        await asyncio.Event().wait()
asyncio.run(main())
"""


def systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], check=True, stdin=subprocess.DEVNULL)


def shown(unit: str, properties: str) -> str:
    command = ["systemctl", "show", f"--property={properties}", unit]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Unit:
    """A transient unit of systemd in which an engine runs."""

    def __init__(self, kind: str, root: Path, runtime: str) -> None:
        self.name = f"lm-test-{uuid.uuid4().hex[:8]}.{kind}"
        self._ready = root.with_name("ready")
        source = str(Path(lighterman.__file__).parent.parent)
        program = [sys.executable, "-c", OWNER, str(root), runtime, str(self._ready)]
        environment = {"PYTHONPATH": source, "PATH": os.environ["PATH"], "LIGHTERMAN_KEEPER_IDLE_S": "2"}
        if kind == "scope":
            command = ["systemd-run", "--quiet", "--scope", "--collect", f"--unit={self.name}", *program]
        else:
            settings = [f"--setenv={name}={value}" for name, value in environment.items()]
            settings.append("--property=KillMode=control-group")
            command = ["systemd-run", "--quiet", "--collect", f"--unit={self.name}", *settings, *program]
        self._process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)

    async def ready(self) -> tuple[int, int]:
        """The pids of the engine and of its container."""
        await eventually(self._ready.exists, 120)
        engine, box = self._ready.read_text().split()
        return int(engine), int(box)

    def stop(self) -> None:
        """As an administrator would, with all that is in it."""
        systemctl("stop", self.name)

    def close(self) -> None:
        subprocess.run(["systemctl", "stop", self.name], check=False, capture_output=True)
        self._process.wait()


@pytest.fixture(params=["service", "scope"])
def unit(request: pytest.FixtureRequest, root: Path, real_runtime: str) -> Iterator[Unit]:
    made = Unit(request.param, root, real_runtime)
    yield made
    made.close()


async def test_end_of_the_engines_unit_ends_neither_keeper_nor_container(unit: Unit, root: Path) -> None:
    engine_pid, box_pid = await unit.ready()
    keeper = keeper_pid(root)
    await asyncio.to_thread(unit.stop)
    await eventually(lambda: not process_is_there(engine_pid))
    assert process_is_there(keeper)
    assert process_is_there(box_pid)
    async with Engine(root=root) as engine:
        box = await engine.get("box")
        assert (box.status, box.pid) == (Status.RUNNING, box_pid)
        now = await box.stats()
        assert (now.memory_limit_bytes, now.pids_limit) == (32 << 20, 20)
        assert (await box.exec(["echo", "fine"])).stdout == b"fine\n"
        exit = await box.stop()
        assert exit is not None
        assert exit.code == 5
        await box.remove()


async def test_keeper_and_containers_are_in_a_scope_that_is_ours(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        keeper, own = cgroup_of(keeper_pid(), "memory"), cgroup_of(box.pid, "memory")
        scope = keeper.parent
        assert scope.name.endswith(".scope")
        assert own.is_relative_to(scope)
        told = await asyncio.to_thread(shown, scope.name, "Delegate,ActiveState,TasksMax")
        assert set(told.split()) == {"Delegate=yes", "ActiveState=active", "TasksMax=infinity"}


async def test_reload_of_systemd_takes_no_limit_away(engine: Engine) -> None:
    limited = {"memory": "32M", "pids_limit": 20, "cpus": 0.5, "cpuset_cpus": "0"}
    async with engine.container("busybox", ["sleep", "1000"], **limited) as box:  # type: ignore[arg-type]
        group = cgroup_of(box.pid, "memory")
        names = ("memory.max", "pids.max", "cpu.max", "cpuset.cpus", "cgroup.controllers")
        before = {name: (group / name).read_text() for name in names}
        await asyncio.to_thread(systemctl, "daemon-reload")
        # A unit's change makes systemd write the tree anew.
        await asyncio.to_thread(systemctl, "set-property", "--runtime", "system.slice", "CPUWeight=200")
        assert {name: (group / name).read_text() for name in names} == before
        assert cgroup_of(box.pid, "memory") == group
        done = await engine.run("busybox", ["sh", "-c", "head -c 100000000 /dev/zero | tail"], memory="16M")
        assert done.exit.oom_kills


async def test_scope_of_a_private_engine_goes_with_it(real_runtime: str) -> None:
    async with Engine(runtime=real_runtime) as engine:
        assert (await engine.run("busybox", ["true"])).ok
        scope = cgroup_of(keeper_pid(), "memory").parent
        assert scope.is_dir()
    await eventually(lambda: not scope.exists())


async def test_next_keeper_shares_the_scope_of_what_outlived_the_first(root: Path, real_runtime: str) -> None:
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await engine.create("busybox", ["sleep", "1000"], name="box", lease=None)
        await box.start()
        first = keeper_pid(root)
        os.kill(first, 9)
        await eventually(lambda: not process_is_there(first))

        async def runs() -> bool:
            try:
                return (await engine.run("busybox", ["true"])).ok
            except lighterman.KeeperLost:
                return False

        await eventually(runs)
        assert cgroup_of(keeper_pid(root), "memory").parent == cgroup_of(box.pid, "memory").parent.parent
        await box.remove(force=True)
