"""Exit slots: what is written is read back, and nothing else is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lighterman.keeper.slots import GROW_SLOTS, SLOT_BYTES, ExitSlot, SlotFile, encode_slot, read_exit_slots
from lighterman.keeper.wire import MAX_JOB_CHARS


def exit_of(job: str, status: int = 256) -> ExitSlot:
    return ExitSlot(job, 4711, 123456, status, 10**15, 2 * 10**18)


def test_filled_slots_are_read_and_free_ones_are_not(tmp_path: Path) -> None:
    file = SlotFile.make(str(tmp_path / "exits"))
    slots = [file.reserve() for _ in range(GROW_SLOTS + 3)]
    assert len(set(slots)) == len(slots)
    file.fill(slots[0], exit_of("a"))
    file.fill(slots[-1], exit_of("x" * MAX_JOB_CHARS, -1))
    found = read_exit_slots(file.path)
    assert [(one.job, one.status) for one in found] == [("a", 256), ("x" * MAX_JOB_CHARS, -1)]
    assert (found[0].pid, found[0].start_time, found[0].mono_ns, found[0].wall_ns) == (4711, 123456, 10**15, 2 * 10**18)
    file.free(slots[0], filled=True)
    assert [one.job for one in read_exit_slots(file.path)] == ["x" * MAX_JOB_CHARS]
    assert file.reserve() == slots[0]
    file.close(remove=True)
    assert not (tmp_path / "exits").exists()


def test_reserved_room_is_allocated_on_the_disk(tmp_path: Path) -> None:
    file = SlotFile.make(str(tmp_path / "exits"))
    file.reserve()
    assert os.stat(file.path).st_blocks * 512 >= GROW_SLOTS * SLOT_BYTES
    assert os.stat(file.path).st_mode & 0o777 == 0o600
    file.close(remove=False)


@pytest.mark.parametrize("at", [0, 5, 8, 30, 45, SLOT_BYTES - 1])
def test_a_damaged_slot_is_left_out(tmp_path: Path, at: int) -> None:
    path = tmp_path / "exits"
    good, bad = encode_slot(exit_of("good")), bytearray(encode_slot(exit_of("bad")))
    bad[at] ^= 1
    path.write_bytes(bytes(bad) + good + good[:100])
    assert [one.job for one in read_exit_slots(str(path))] == ["good"]
