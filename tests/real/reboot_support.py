"""A reboot as it looks afterwards: nothing runs, RUN is gone, the boot id is another one. Engines that are killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
from real_support import keeper_pid, process_is_there

from lighterman.record import Record
from lighterman.roots import StateRoot
from lighterman.runtimes.oci.cgroups import Cgroup, cgroup_host, group_of
from support import eventually

__all__ = ["change_record", "die_in", "kill_for_good", "reboot", "rows"]


def rows(root: Path) -> list[Record]:
    """What is written down of each container."""
    with sqlite3.connect(root / "state.db") as store:
        found = store.execute("SELECT record FROM containers ORDER BY rowid").fetchall()
    store.close()
    return [msgspec.json.decode(encoded, type=Record) for (encoded,) in found]


def change_record(root: Path, id: str, **fields: object) -> None:
    """As an engine that was killed in between has left it."""
    record = next(record for record in rows(root) if record.id == id)
    changed = msgspec.json.encode(msgspec.structs.replace(record, **fields))
    with sqlite3.connect(root / "state.db") as store:
        store.execute("UPDATE containers SET record = ? WHERE id = ?", (changed, id))
    store.close()


async def kill_for_good(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: not process_is_there(pid))


async def reboot(root: Path) -> None:
    """The host of a root restarts, while no engine is there."""
    run, cgroups = StateRoot.of(root).run, cgroup_host()
    if (Path(run) / "keeper.sock").exists():
        await kill_for_good(keeper_pid(root))
    for record in rows(root):
        cgroup = Cgroup(group_of(run, record.id), cgroups)
        assert await asyncio.to_thread(cgroup.kill)
        await eventually(cgroup.remove)
    shutil.rmtree(run, ignore_errors=True)
    with sqlite3.connect(root / "state.db") as store:
        store.execute("UPDATE facts SET value = 'an earlier boot' WHERE name = 'boot_id'")
    store.close()


async def die_in(root: Path, program: str) -> None:
    """An engine of its own process is killed, or fails, in its start; `program` says where."""
    code = f"""
import asyncio, os, signal, sys
from lighterman import Engine, KeeperLost
from lighterman.books import Books
from lighterman.engine.runs import Runs
from lighterman.linux_host import LinuxHost
from lighterman.store.sqlite import SqliteStore

def die(*arguments, **named):
    os.kill(os.getpid(), signal.SIGKILL)

{program}

async def main():
    engine = Engine(root=sys.argv[1])
    await engine.start()
    await asyncio.sleep(1000)

asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, str(root)], check=False, timeout=120, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL or b"KeeperLost" in done.stderr, done
