"""Logs that outlive whatever dies: each line once wherever reading is taken up (P8); nobody waits for a sink (P7)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import lighterman
from lighterman import CallableSink, Engine, JournaldSink, LogRecord, SyslogSink
from support import eventually

pytestmark = pytest.mark.real

RUNS, CHUNKS, CHUNK = 4, 20, 2500
KILLS = 3
LINES = RUNS * CHUNKS * CHUNK

# Counts its runs in its own root, and writes its part of the numbers.
PROGRAM = f"""
n=$(cat /n 2>/dev/null || echo 0); echo $((n+1)) > /n; i=$((n*{CHUNKS * CHUNK})); c=0
while [ $c -lt {CHUNKS} ]; do seq $i $((i+{CHUNK}-1)); i=$((i+{CHUNK})); c=$((c+1)); sleep 0.02; done
"""

# An engine that follows the log, and tells each line with the place after it.
READER = """
import asyncio, json, sys
sys.path.insert(0, sys.argv[1])
from lighterman import Cursor, Engine
async def main():
    async with Engine(root=sys.argv[2], runtime=sys.argv[3]) as engine:
        after = Cursor(*json.loads(sys.argv[4])) if sys.argv[4] else None
        if after is None:
            box = await engine.create("busybox", ["sh", "-c", sys.argv[5]], name="box", lease=None)
        else:
            box = await engine.get("box")
        if sys.argv[6]:
            await box.start()
        async for line in box.logs(after=after, follow=True, lines=True):
            place = line.cursor
            place = [place.generation, place.offset, place.stdout, place.stderr]
            print(json.dumps([line.data.decode(), line.lost, line.partial, place]))
asyncio.run(main())
"""


class Reader:
    """A process with an engine that reads, killed when it has told so many lines; None lets it come to an end."""

    def __init__(self, root: Path, runtime: str, place: list[int] | None, *, start: bool) -> None:
        source = str(Path(lighterman.__file__).parent.parent)
        arguments = [source, str(root), runtime, json.dumps(place) if place else "", PROGRAM, "start" if start else ""]
        self._process = subprocess.Popen(
            [sys.executable, "-c", READER, *arguments],
            stdout=subprocess.PIPE,
            # Rotated after some 2,000 lines; all of it is kept.
            env={**os.environ, "LIGHTERMAN_SEGMENT_BYTES": "16384", "LIGHTERMAN_SEGMENT_FILES": "1000"},
        )

    def read(self, stop_after: int | None) -> list[tuple[str, int, bool, list[int]]]:
        assert self._process.stdout is not None
        told = []
        for line in self._process.stdout:
            if not line.endswith(b"\n"):
                break
            told.append(tuple(json.loads(line)))
            if stop_after is not None and len(told) >= stop_after:
                # What lies in the pipe by now is thrown away with the reader.
                break
        self._process.kill()
        self._process.communicate()
        return told


@pytest.mark.parametrize("seed", range(2))
async def test_P08_each_line_once_over_rotation_restarts_and_killed_engines(
    root: Path, real_runtime: str, seed: int
) -> None:
    chance = random.Random(seed)
    got: list[str] = []
    place: list[int] | None = None
    for _ in range(RUNS):
        for kill in range(KILLS + 1):
            stop_after = chance.randrange(1, CHUNKS * CHUNK // KILLS) if kill < KILLS else None
            reader = await asyncio.to_thread(Reader, root, real_runtime, place, start=kill == 0)
            for text, lost, partial, after in await asyncio.to_thread(reader.read, stop_after):
                assert (lost, partial) == (0, False), (text, after)
                got.append(text)
                place = after
    assert got == [f"{number}\n" for number in range(LINES)]
    async with Engine(root=root, runtime=real_runtime) as engine:
        box = await engine.get("box")
        exit = await asyncio.wait_for(box.wait(), 60)
        assert (exit.code, exit.generation) == (0, RUNS)
        # And once more from the files alone, by pieces.
        whole = b"".join([record.data async for record in box.logs()])
        assert whole.decode() == "".join(got)
        assert [line.data async for line in box.logs(lines=True, tail=2)] == [
            b"%d\n" % number for number in (LINES - 2, LINES - 1)
        ]


async def test_P08_beyond_the_bound_the_gap_is_counted(engine: Engine) -> None:
    async with engine.container("busybox", ["sh", "-c", "yes 0123456789abcde | head -c 80000000"]) as box:
        first = await anext(box.logs(follow=True, lines=True))
        await asyncio.wait_for(box.wait(), 90)
        rest = [line async for line in box.logs(after=first.cursor, lines=True)]
        assert first.cursor.offset + sum(line.lost + len(line.data) for line in rest) == 80_000_000
        assert sum(1 for line in rest if line.lost) == 1


# ---- sinks ----


async def test_P07_dead_and_hanging_sinks_the_program_writes_as_much(engine: Engine, tmp_path: Path) -> None:
    released = threading.Event()

    def hang(_: LogRecord) -> None:
        released.wait(100)

    sinks: list[CallableSink | JournaldSink | SyslogSink] = [
        CallableSink(hang),
        JournaldSink(path=str(tmp_path / "nobody")),
        SyslogSink(address=str(tmp_path / "none")),
    ]
    size = 20_000_000
    box = await engine.create(
        "busybox", ["sh", "-c", f"yes 0123456789 | head -c {size}; echo end"], log_sinks=sinks, name="dead"
    )
    await box.start()
    assert (await asyncio.wait_for(box.wait(), 60)).code == 0
    await eventually(lambda: sum(sink.error is not None for sink in box.log_state.sinks) == 2)
    state = box.log_state
    assert {sink.kind: (sink.sent, sink.error is not None) for sink in state.sinks} == {
        "callable": (0, False),
        "journald": (0, True),
        "syslog": (0, True),
    }
    assert sum([len(record.data) + record.lost async for record in box.logs()]) == size + 4
    released.set()
    await asyncio.wait_for(box.remove(), 30)


async def test_sink_of_a_container_that_is_removed_at_once_gets_everything(real_runtime: str) -> None:
    got: list[bytes] = []
    async with Engine(runtime=real_runtime) as engine:
        done = await engine.run(
            "busybox", ["seq", "1", "5000"], log_sinks=[CallableSink(lambda record: got.append(record.data))]
        )
        assert done.exit.code == 0
    assert got == [b"%d\n" % number for number in range(1, 5001)]


async def test_bad_log_options_are_refused(engine: Engine) -> None:
    for wrong in ({"log_policy": "drop"}, {"log_sinks": [print]}, {"log_sinks": [SyslogSink(address="tcp://x")]}):
        with pytest.raises(lighterman.InvalidSpec):
            await engine.create("busybox", ["true"], **wrong)


# ---- a full disk ----


@pytest.fixture
def small_root(tmp_path: Path) -> Iterator[Path]:
    root = tmp_path / "small"
    root.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=30m,mode=0700", "tmpfs", root], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"this host refuses to mount a tmpfs: {mounted.stderr.strip()}")
    yield root
    subprocess.run(["umount", "--lazy", root], check=True)


def fill(path: Path) -> None:
    """To the last byte of the disk."""
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"b" * 4096)
        except OSError:
            return


FLOOD = "echo begin; read x; head -c 8000000 /dev/zero; echo end; touch /out/done; read x"


@pytest.mark.parametrize("policy", ["drop-newest", "drop-oldest"])
async def test_P07_full_disk_the_program_goes_on_and_each_byte_is_counted(
    small_root: Path, tmp_path: Path, real_runtime: str, policy: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    async with Engine(root=small_root, runtime=real_runtime) as engine:
        box = await engine.create(
            "busybox",
            ["sh", "-c", FLOOD],
            stdin=True,
            log_policy=policy,  # type: ignore[arg-type]
            mounts=[f"{out}:/out"],
        )
        await box.start()
        assert (await anext(box.logs(follow=True, lines=True))).data == b"begin\n"
        fill(small_root / "ballast")
        box.stdin.write(b"go\n")
        await eventually((out / "done").exists, 60)
        state = box.log_state
        assert state.policy == policy
        assert state.dropped_bytes > 0
        (small_root / "ballast").unlink()
        box.stdin.write_eof()
        assert (await asyncio.wait_for(box.wait(), 60)).code is not None
        records = [record async for record in box.logs()]
        assert sum(len(record.data) + record.lost for record in records) == 6 + 8_000_000 + 4
        assert [record for record in records if record.lost and not record.data] or policy == "drop-oldest"
        await box.remove()


async def test_P07_full_disk_the_policy_block_waits_visibly_and_loses_nothing(
    small_root: Path, tmp_path: Path, real_runtime: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    async with Engine(root=small_root, runtime=real_runtime) as engine:
        box = await engine.create("busybox", ["sh", "-c", FLOOD], stdin=True, mounts=[f"{out}:/out"])
        await box.start()
        assert (await anext(box.logs(follow=True, lines=True))).data == b"begin\n"
        fill(small_root / "ballast")
        box.stdin.write(b"go\n")
        await eventually(lambda: box.log_state.blocked == "disk")
        assert not (out / "done").exists()
        assert box.log_state.error is not None
        (small_root / "ballast").unlink()
        await eventually((out / "done").exists, 60)
        box.stdin.write_eof()
        await asyncio.wait_for(box.wait(), 60)
        records = [record async for record in box.logs()]
        assert sum(len(record.data) for record in records) == 6 + 8_000_000 + 4
        assert not any(record.lost for record in records)
        await box.remove()
