"""`kill -9` of who drops output, at any instant: what is there and what is counted as missing is what was written."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lighterman.keeper.drops import make_drain
from lighterman.keeper.segments import DROP_NEWEST, STDERR, STDOUT, SegmentWriter
from lighterman.logs.reader import read_frames

KILLS = 40

# Writes a part of what it is given, and drops more; says when it has begun.
DROPPER = """
import os, random, sys
from lighterman.keeper.segments import DROP_NEWEST, SegmentWriter
directory, out, err, first, second, seed = sys.argv[1], *map(int, sys.argv[2:])
chance = random.Random(seed)
writer = SegmentWriter(directory, 100_000, 1000, DROP_NEWEST)
if first:
    writer.drop_into((os.dup(first), os.dup(second)))
os.write(1, b"begun")
while True:
    for stream, fd in ((1, out), (2, err)):
        try:
            if chance.random() < 0.02:
                writer.splice(stream, fd, chance.randrange(1, 500))
            else:
                writer.drop(stream, fd, chance.randrange(1, 3000))
        except BlockingIOError:
            pass
"""


class Program:
    """Writes without end, until it is told to stop; `count` is how much."""

    def __init__(self) -> None:
        self.read, self._write = os.pipe()
        os.set_blocking(self.read, False)
        self.count = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.count += os.write(self._write, b"x" * 700)

    def stop(self) -> None:
        """Its pipe may be full: somebody has to read."""
        self._stop.set()

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        self._thread.join()
        os.close(self._write)
        os.close(self.read)


def told(directory: Path, stream: int) -> int:
    return sum(len(frame.data) + frame.lost for frame in read_frames(str(directory)) if frame.stream == stream)


@pytest.mark.parametrize("seed", range(2))
def test_P07_drops_are_counted_exactly_whenever_the_writer_is_killed(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    programs = {STDOUT: Program(), STDERR: Program()}
    drains = make_drain(), make_drain()
    fds = [programs[STDOUT].read, programs[STDERR].read, *drains]
    for number in range(KILLS):
        dropper = subprocess.Popen(
            [sys.executable, "-c", DROPPER, str(tmp_path), *map(str, fds), str(seed * 1000 + number)],
            stdout=subprocess.PIPE,
            pass_fds=fds,
        )
        assert dropper.stdout is not None
        assert dropper.stdout.read(5) == b"begun"
        threading.Event().wait(chance.random() * 0.03)
        dropper.send_signal(signal.SIGKILL)
        dropper.wait()
        dropper.stdout.close()
    writer = SegmentWriter(str(tmp_path), 100_000, 1000, DROP_NEWEST)
    writer.drop_into((os.dup(drains[0]), os.dup(drains[1])))
    assert writer.dropped == sum(os.fstat(fd).st_size for fd in drains) > 100_000
    assert sum(os.fstat(fd).st_blocks for fd in drains) * 512 < 1_000_000  # nobody keeps what was dropped
    for stream, program in programs.items():
        program.stop()
        ended = False
        while not ended:
            ended = not program.is_running
            with contextlib.suppress(BlockingIOError):
                while True:
                    writer.splice(stream, program.read, 1 << 20)
    writer.tell_dropped()
    writer.close()
    for stream, program in programs.items():
        assert told(tmp_path, stream) == program.count
        program.close()
    for fd in drains:
        os.close(fd)


def test_drains_of_a_keeper_that_was_lost_are_begun_anew(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    writer = SegmentWriter(str(tmp_path), 100_000, 3, DROP_NEWEST)
    for dropped in (0, 7, 14):
        drains = make_drain(), make_drain()
        writer.drop_into(drains)
        assert writer.dropped == dropped
        os.write(write, b"1234567")
        assert writer.drop(STDERR, read, 100) == 7
        assert os.fstat(drains[1]).st_size == 7
    writer.close()
    writer = SegmentWriter(str(tmp_path), 100_000, 3, DROP_NEWEST)
    assert (writer.dropped, writer.untold) == (21, 21)
    # Without any it is as exact, unless it is killed.
    os.write(write, b"89")
    assert writer.drop(STDERR, read, 100) == 2
    writer.tell_dropped()
    writer.close()
    assert told(tmp_path, STDERR) == 23
    os.close(read)
    os.close(write)
