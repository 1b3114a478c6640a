"""The format: what goes in comes out, wherever one begins to read, and files stay within their bounds."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lighterman.keeper import segments
from lighterman.keeper.segments import (
    BLOCK,
    HEADER_BYTES,
    MIN_FILE_BYTES,
    STDERR,
    STDOUT,
    SegmentWriter,
    list_segments,
    pack_header,
    segment_name,
    segment_offset,
    unpack_header,
)
from lighterman.logs.reader import SegmentReader, read_frames

from .support import content, pipe, put

pieces = st.lists(
    st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(min_size=1, max_size=3000) | st.just(b"\0" * 50_000)),
    max_size=40,
)


@given(written=pieces, max_bytes=st.integers(1, 200_000), data=st.data())
@settings(max_examples=60, deadline=None)
def test_write_read_from_any_offset_gives_the_rest(
    written: list[tuple[int, bytes]], max_bytes: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        writer = SegmentWriter(directory, max_bytes, 10_000)
        for stream, piece in written:
            put(writer, stream, piece)
        everything = b"".join(piece for _, piece in written)
        assert writer.end == len(everything)
        after = data.draw(st.integers(0, len(everything)))
        until = data.draw(st.none() | st.integers(after, len(everything)))
        frames = list(read_frames(directory, after, until))
        got = b"".join(frame.data for frame in frames)
        # `until` is kept at frame borders: what is returned is never less.
        assert everything[after:].startswith(got)
        assert len(got) >= (len(everything) if until is None else until) - after
        assert not any(frame.lost for frame in frames)
        for stream in (STDOUT, STDERR):
            mine = b"".join(frame.data for frame in read_frames(directory) if frame.stream == stream)
            assert mine == b"".join(piece for source, piece in written if source == stream)
        assert SegmentWriter(directory, max_bytes, 10_000).end == writer.end
        writer.close()


def test_no_frame_crosses_a_block_and_no_file_its_bound(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 3 * BLOCK + 1000, 100)
    for size in (BLOCK - 2 * HEADER_BYTES - 1, 1, 1, 7, BLOCK * 2, 5, BLOCK * 3, 1):
        put(writer, STDOUT, b"x" * size)
    writer.close()
    for path in tmp_path.iterdir():
        data = path.read_bytes()
        assert len(data) <= 3 * BLOCK + 1000
        for block in range(0, len(data), BLOCK):
            assert unpack_header(data, block, block) is not None
    assert len(content(tmp_path)) == writer.end


def test_write_nothing_creates_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "a" / "b"
    writer = SegmentWriter(str(directory), 10_000, 2)
    with pipe() as (read, _), pytest.raises(BlockingIOError):
        writer.splice(STDOUT, read, 100)
    with pipe(closed=True) as (read, _):
        assert writer.splice(STDOUT, read, 100) == 0
    assert not (tmp_path / "a").exists()
    with pipe(b"x") as (read, _):
        assert writer.splice(STDOUT, read, 100) == 1
    assert directory.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in directory.iterdir()] == [0o600]
    writer.close()


def test_rotation_keeps_the_newest_files_and_the_offsets(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), MIN_FILE_BYTES, 3)
    for number in range(5000):
        put(writer, STDOUT, b"%06d\n" % number)
    assert len(list_segments(str(tmp_path))) == 3
    frames = list(read_frames(str(tmp_path)))
    assert frames[0].lost == list_segments(str(tmp_path))[0]
    lines = b"".join(frame.data for frame in frames)
    assert frames[0].lost + len(lines) == writer.end == 35_000
    assert lines.endswith(b"004999\n")
    writer.close()


def test_rotation_keeps_what_a_reader_needs(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), MIN_FILE_BYTES, 2)
    writer.keep_from = 0
    put(writer, STDOUT, b"x" * 20_000)
    assert writer.overfull
    assert content(tmp_path) == b"x" * 20_000
    writer.keep_from = 10_000
    writer.prune()
    assert list_segments(str(tmp_path))[0] <= 10_000 < list_segments(str(tmp_path))[1]
    writer.keep_from = None
    writer.prune()
    assert not writer.overfull
    assert writer.starts == tuple(list_segments(str(tmp_path)))
    writer.close()


def test_write_bytes_that_are_in_no_pipe(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 10_000_000, 2)
    data = os.urandom(3 * BLOCK)
    assert writer.write(STDERR, data) == len(data)
    assert content(tmp_path, STDERR) == data
    assert content(tmp_path, STDOUT) == b""
    writer.close()


@given(st.binary(min_size=HEADER_BYTES, max_size=HEADER_BYTES), st.integers(0, 3 * BLOCK))
def test_header_of_noise_is_damage(noise: bytes, position: int) -> None:
    assert unpack_header(noise, 0, position) is None


@given(st.integers(0, HEADER_BYTES * 8 - 1))
def test_header_with_one_bit_changed_is_damage(bit: int) -> None:
    header = bytearray(pack_header(STDOUT, 0, 100, 12345, 1))
    assert unpack_header(header, 0, 0) == (STDOUT, 0, 100, 12345, 1)
    header[bit // 8] ^= 1 << bit % 8
    assert unpack_header(header, 0, 0) is None


def test_header_with_a_length_that_crosses_its_block_is_damage() -> None:
    room = BLOCK - HEADER_BYTES
    assert unpack_header(pack_header(STDOUT, 0, room, 0, 1), 0, 0) is not None
    assert unpack_header(pack_header(STDOUT, 0, room + 1, 0, 1), 0, 0) is None
    assert unpack_header(pack_header(STDOUT, 0, 2**32 - 1, 0, 1), 0, 0) is None


@pytest.mark.parametrize(
    "name",
    ["segment-.log", "segment-1.log", "segment-" + "x" * 20 + ".log", "segment-" + "²" * 20 + ".log", "a" * 32, ""],
)
def test_other_names_are_no_segments(name: str) -> None:
    assert segment_offset(name) is None
    assert segment_offset(segment_name(7)) == 7


def test_a_container_that_prints_frames_forges_none(tmp_path: Path) -> None:
    forged = pack_header(STDERR, 0, 5, 0, 1) + b"false"
    writer = SegmentWriter(str(tmp_path), 10_000_000, 2)
    put(writer, STDOUT, forged * 20_000)
    put(writer, STDOUT, b"end")
    writer.close()
    path = tmp_path / segment_name(0)
    data = bytearray(path.read_bytes())
    # Damage within the second block: reading goes on at the third, not at a forged frame in between.
    data[BLOCK + 3] ^= 1
    path.write_bytes(data)
    frames = list(read_frames(str(tmp_path)))
    assert {frame.stream for frame in frames} == {STDOUT}
    assert frames[-1].data.endswith(b"end")
    assert sum(frame.lost + len(frame.data) for frame in frames) == writer.end
    assert 0 < sum(frame.lost for frame in frames) <= BLOCK


def test_keeper_loads_the_file_without_the_package_and_cheaply() -> None:
    program = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "package = sys.modules['keeper'] = type(sys)('keeper'); package.__path__ = [sys.argv[1].rpartition('/')[0]]\n"
        "import keeper.segments\n"
        "dear = {'re', 'enum', 'json', 'typing', 'dataclasses', 'logging', 'lighterman'}\n"
        "print(sorted(dear & (set(sys.modules) - before)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-E", "-c", program, segments.__file__], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_reader_position_survives_going_elsewhere(tmp_path: Path) -> None:
    writer = SegmentWriter(str(tmp_path), 8192, 100)
    for number in range(3000):
        put(writer, STDOUT, b"%04d\n" % number)
    reader = SegmentReader(str(tmp_path))
    for offset in (14_995, 0, 7_500, 5):
        reader.go_to(offset)
        assert reader.read()[0].data == b"%04d\n" % (offset // 5)
    reader.close()
    writer.close()
