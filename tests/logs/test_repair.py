"""Killed at any byte: the next writer completes the frame from the same pipe, and nothing is lost or doubled."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lighterman.errors import StoreError
from lighterman.keeper import segments
from lighterman.keeper.segments import (
    BLOCK,
    HEADER_BYTES,
    STDERR,
    STDOUT,
    SegmentWriter,
    at_end,
    buffered,
    list_segments,
    pack_header,
    segment_name,
)
from lighterman.logs.reader import read_frames

from .support import DEADLINE_S, content, pipe, put


def cut_at(source: Path, target: Path, size: int) -> None:
    """A copy whose last file has only its first `size` bytes."""
    shutil.copytree(source, target)
    os.truncate(target / segment_name(list_segments(str(target))[-1]), size)


@pytest.mark.parametrize("before", [0, 100, BLOCK - 2 * HEADER_BYTES - 10, BLOCK - 2 * HEADER_BYTES, 2 * BLOCK])
def test_killed_at_every_byte_of_the_last_frame(tmp_path: Path, before: int) -> None:
    whole = tmp_path / "whole"
    writer = SegmentWriter(str(whole), 10_000_000, 3)
    first, last = os.urandom(before), os.urandom(70)
    put(writer, STDOUT, first)
    start = writer.end
    path = whole / segment_name(0)
    size_before = path.stat().st_size if before else 0
    put(writer, STDERR, last)
    writer.close()

    for size in range(size_before, path.stat().st_size + 1):
        copy = tmp_path / f"copy{size}"
        cut_at(whole, copy, size)
        again = SegmentWriter(str(copy), 10_000_000, 3)
        # What the kill left in the pipe is what is not in the file.
        present = again.end - start if again.owed is None else len(last) - again.owed[1]
        assert again.owed is None or again.owed[0] == STDERR
        with pipe(last[present:] + b"more") as (read, _):
            while buffered(read):
                again.splice(STDERR, read, 1000)
        assert content(copy) == first + last + b"more"
        assert again.end == before + len(last) + 4
        again.close()
        shutil.rmtree(copy)


def test_killed_with_two_streams_the_owed_one_goes_first(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000_000, 3)
    put(writer, STDOUT, b"0123456789")
    writer.close()
    path = tmp_path / segment_name(0)
    os.truncate(path, path.stat().st_size - 4)
    again = SegmentWriter(str(tmp_path), 10_000_000, 3)
    assert again.owed == (STDOUT, 4)
    with pipe(b"err") as (err, _), pipe(b"6789out") as (out, _):
        with pytest.raises(BlockingIOError):
            again.splice(STDERR, err, 100)
        assert again.splice(STDOUT, out, 2) == 2
        assert again.owed == (STDOUT, 2)
        with pytest.raises(BlockingIOError):
            again.splice(STDERR, err, 100)
        assert again.splice(STDOUT, out, 100) == 5
        assert again.splice(STDERR, err, 100) == 3
    assert content(tmp_path, STDOUT) == b"0123456789out"
    assert content(tmp_path, STDERR) == b"err"
    again.close()


@pytest.mark.parametrize("missing", [1, 4, 10])
def test_owed_pipe_is_lost_the_frame_is_cut(tmp_path: Path, missing: int) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000_000, 3)
    put(writer, STDOUT, b"before")
    put(writer, STDOUT, b"0123456789")
    writer.close()
    path = tmp_path / segment_name(0)
    os.truncate(path, path.stat().st_size - missing)
    again = SegmentWriter(str(tmp_path), 10_000_000, 3)
    with pipe(closed=True) as (read, _):
        assert at_end(read)
        assert again.splice(STDOUT, read, 100) == 0
    put(again, STDERR, b"after")
    again.close()
    assert content(tmp_path) == b"before" + b"0123456789"[: 10 - missing] + b"after"
    assert SegmentWriter(str(tmp_path), 10_000_000, 3).end == again.end


def test_bytes_that_were_in_no_pipe_are_cut_and_not_completed(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000_000, 3)
    writer.write(STDOUT, b"0123456789")
    writer.close()
    path = tmp_path / segment_name(0)
    os.truncate(path, path.stat().st_size - 4)
    again = SegmentWriter(str(tmp_path), 10_000_000, 3)
    assert again.owed is None
    put(again, STDOUT, b"next")
    assert content(tmp_path) == b"012345next"
    again.close()


@pytest.mark.parametrize("damage", [b"\0" * 100, b"\xff" * 40, pack_header(STDOUT, 0, BLOCK, 6, 1)])
def test_damaged_end_is_left_behind_and_counted(tmp_path: Path, damage: bytes) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000_000, 3)
    put(writer, STDOUT, b"before")
    writer.close()
    with (tmp_path / segment_name(0)).open("ab") as file:
        file.write(damage)
    got: list[bytes] = []
    with pytest.raises(StoreError, match="damaged"):
        got.extend(frame.data for frame in read_frames(str(tmp_path)))
    again = SegmentWriter(str(tmp_path), 10_000_000, 3)
    put(again, STDOUT, b"after")
    again.close()
    frames = list(read_frames(str(tmp_path)))
    assert [frame.data for frame in frames] == [b"before", b"after"]
    assert frames[1].lost == frames[1].end - len(b"before" + b"after") > 0
    assert len(list_segments(str(tmp_path))) == 2


def test_opening_a_long_file_reads_one_block(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000_000, 3)
    put(writer, STDOUT, b"x" * (3 * BLOCK))
    writer.close()
    path = tmp_path / segment_name(0)
    data = bytearray(path.read_bytes())
    data[0] ^= 1  # a walk through the whole file would meet it
    path.write_bytes(data)
    again = SegmentWriter(str(tmp_path), 10_000_000, 3)
    assert again.end == writer.end
    assert again.starts == (0,)
    again.close()


WRITER = """
import os, select, sys
package = sys.modules["keeper"] = type(sys)("keeper"); package.__path__ = [sys.argv[1].rpartition("/")[0]]
import keeper.segments as s
fds = {int(sys.argv[3]): 1, int(sys.argv[4]): 2}
writer = s.SegmentWriter(sys.argv[2], 300_000, 1000)
poll = select.poll()
for fd in fds:
    poll.register(fd, select.POLLIN)
print("ready", flush=True)
while fds:
    for fd, _ in poll.poll():
        try:
            if fd in fds and writer.splice(fds[fd], fd, 1 << 20) == 0:
                poll.unregister(fd)
                del fds[fd]
        except BlockingIOError:
            pass
"""
PRODUCER = """
import os, sys
fds = [int(sys.argv[1]), int(sys.argv[2])]
n = 0
while not os.path.exists(sys.argv[3]) or n < 1000:
    for fd in fds:
        os.write(fd, b"".join(b"%d line %d\\n" % (fd, i) for i in range(n, n + 7)))
    n += 7
print(n)
"""


def test_kill_the_writer_again_and_again_each_line_once(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    directory, stop = tmp_path / "log", tmp_path / "stop"
    out_r, out_w = os.pipe2(os.O_CLOEXEC)
    err_r, err_w = os.pipe2(os.O_CLOEXEC)
    for fd in (out_r, err_r):
        os.set_blocking(fd, False)
    producer = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PRODUCER, str(out_w), str(err_w), str(stop)],
        pass_fds=(out_w, err_w),
        stdout=subprocess.PIPE,
    )
    command = [sys.executable, "-I", "-S", "-c", WRITER, segments.__file__, str(directory), str(out_r), str(err_r)]
    try:
        for _ in range(15):
            with subprocess.Popen(command, pass_fds=(out_r, err_r), stdout=subprocess.PIPE) as writer:
                assert writer.stdout is not None
                writer.stdout.readline()
                # Random instants are the point; nothing depends on how long it really is.
                time.sleep(rng.random() * 0.03)
                writer.send_signal(signal.SIGKILL)
        stop.touch()
        os.close(out_w)
        os.close(err_w)
        subprocess.run(command, pass_fds=(out_r, err_r), check=True, timeout=DEADLINE_S, stdout=subprocess.DEVNULL)
        written = int(producer.communicate(timeout=DEADLINE_S)[0])
    finally:
        producer.kill()
        producer.wait()
        os.close(out_r)
        os.close(err_r)
    for stream, fd in ((STDOUT, out_w), (STDERR, err_w)):
        lines = content(directory, stream).split(b"\n")
        assert lines == [b"%d line %d" % (fd, number) for number in range(written)] + [b""], f"seed {seed}"
