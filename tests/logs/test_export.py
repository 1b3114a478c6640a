"""Docker's and CRI's forms."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lighterman.logs import export
from lighterman.logs.export import PIECE_BYTES, cri_lines, docker_json, write_file
from lighterman.logs.reader import Cursor, LogRecord, StreamName


def line(data: bytes, stream: StreamName = "stdout", time: float = 1475711829.669794, lost: int = 0) -> LogRecord:
    return LogRecord(stream, time, data, Cursor(1, 0), lost, partial=not data.endswith(b"\n"))


def partial(data: bytes, generation: int = 1, stream: StreamName = "stdout", lost: int = 0) -> LogRecord:
    return LogRecord(stream, 0.0, data, Cursor(generation, 0), lost, partial=True)


async def given(*records: LogRecord) -> AsyncIterator[LogRecord]:
    for record in records:
        yield record


async def test_docker_json() -> None:
    records = given(line(b"one\n"), line('"ü"\n'.encode(), "stderr"), line(b"\xff no end"))
    assert [chunk async for chunk in docker_json(records)] == [
        b'{"log":"one\\n","stream":"stdout","time":"2016-10-05T23:57:09.669794000Z"}\n',
        '{"log":"\\"ü\\"\\n","stream":"stderr","time":"2016-10-05T23:57:09.669794000Z"}\n'.encode(),
        '{"log":"\ufffd no end","stream":"stdout","time":"2016-10-05T23:57:09.669794000Z"}\n'.encode(),
    ]


async def test_docker_json_tells_what_is_lost() -> None:
    (chunk,) = [chunk async for chunk in docker_json(given(line(b"", lost=77)))]
    assert json.loads(chunk)["attrs"] == {"lost_bytes": "77"}
    assert json.loads(chunk)["log"] == ""


async def test_cri() -> None:
    records = given(line(b"one\n"), line(b"\xff\0 no end", "stderr"), line(b"\n"), line(b"", lost=3))
    assert [chunk async for chunk in cri_lines(records)] == [
        b"2016-10-05T23:57:09.669794000Z stdout F one\n",
        b"2016-10-05T23:57:09.669794000Z stderr P \xff\0 no end\n",
        b"2016-10-05T23:57:09.669794000Z stdout F \n",
    ]


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES])
async def test_long_lines_come_in_pieces(size: int) -> None:
    data = b"x" * size + b"\n"
    docker = [json.loads(chunk)["log"] async for chunk in docker_json(given(line(data)))]
    assert "".join(docker).encode() == data
    assert all(len(piece.rstrip("\n")) <= PIECE_BYTES for piece in docker)
    assert [piece.endswith("\n") for piece in docker] == [False] * (len(docker) - 1) + [True]
    assert len(docker) == -(-size // PIECE_BYTES)
    cri = [chunk.split(b" ", 3) async for chunk in cri_lines(given(line(data)))]
    assert b"".join(content.removesuffix(b"\n") for *_, content in cri) + b"\n" == data
    assert [tag for _, _, tag, _ in cri] == [b"P"] * (len(cri) - 1) + [b"F"]


@pytest.mark.parametrize("shift", range(4))
async def test_no_character_is_torn(shift: int) -> None:
    text = "a" * shift + "€𝄞ü" * 9000
    docker = [json.loads(chunk)["log"] async for chunk in docker_json(given(line(text.encode() + b"\n")))]
    assert "".join(docker) == text + "\n"


async def test_write_file(tmp_path: Path) -> None:
    records = [line(b"%d\n" % number) for number in range(20_000)]
    written = await write_file(cri_lines(given(*records)), tmp_path / "log")
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert written == (tmp_path / "log").stat().st_size
    assert [int(each.rsplit(b" ", 1)[1]) for each in lines] == list(range(20_000))
    with pytest.raises(FileExistsError):
        await write_file(cri_lines(given()), tmp_path / "log")


async def test_write_file_that_is_cancelled_closes_no_file_that_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    write_all = export._write_all

    def wait_and_write(fd: int, data: bytes) -> int:
        begun.set()
        assert go_on.wait(60)
        return write_all(fd, data)

    monkeypatch.setattr(export, "_write_all", wait_and_write)
    writing = asyncio.ensure_future(write_file(cri_lines(given(line(b"text\n"))), tmp_path / "log"))
    await asyncio.to_thread(begun.wait, 60)
    writing.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert (tmp_path / "log").read_bytes().endswith(b" text\n")


@pytest.mark.parametrize("cut", range(1, 12))
async def test_no_character_is_torn_where_a_very_long_line_is_cut(cut: int) -> None:
    data = "€𝄞üa\n".encode()
    records = given(partial(data[:cut]), line(b"other\n", "stderr"), line(data[cut:]) if cut < 11 else line(b"\n"))
    docker = [json.loads(chunk) async for chunk in docker_json(records)]
    assert "".join(entry["log"] for entry in docker if entry["stream"] == "stdout").rstrip("\n") == "€𝄞üa"
    assert [entry["log"] for entry in docker if entry["stream"] == "stderr"] == ["other\n"]


async def test_half_a_character_that_nothing_completes_is_not_lost() -> None:
    half = "€".encode()[:2]
    for following in ((), (partial(b"next", 2),), (partial(b"", lost=3), partial(b"after"))):
        docker = [json.loads(chunk) async for chunk in docker_json(given(partial(b"ab" + half), *following))]
        assert docker[0]["log"] == "ab"
        assert docker[1]["log"] == "\ufffd"
        assert [entry["log"] for entry in docker[2:]] == [record.data.decode() for record in following]
    # And what is no UTF-8 at all stays as it is.
    assert [json.loads(chunk)["log"] async for chunk in docker_json(given(partial(b"\x80" * 5)))] == ["\ufffd" * 5]


async def test_cri_a_line_that_a_run_did_not_end_is_not_glued_to_the_next_runs_first() -> None:
    records = given(partial(b"no end"), partial(b"err", stream="stderr"), line(b"\n", "stderr"), partial(b"next", 2))
    assert [chunk.split(b" ", 1)[1] async for chunk in cri_lines(records)] == [
        b"stdout P no end\n",
        b"stderr P err\n",
        b"stderr F \n",
        b"stdout F \n",
        b"stdout P next\n",
    ]
