"""Ends that keepers have written down: found by their container, and let go once nobody needs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lighterman.keeper.slots import ExitSlot, SlotFile
from lighterman.runtimes.oci.processes import PidRef
from lighterman.runtimes.oci.recorded import forget_recorded, recorded_ends, recorded_exit

_LIVING = """
import sys
from lighterman.keeper.slots import SlotFile
SlotFile.make(sys.argv[1])
print("made", flush=True)
sys.stdin.read()
"""


def of_the_dead(path: Path, *exits: ExitSlot) -> None:
    """As a killed keeper leaves it."""
    file = SlotFile.make(str(path))
    for exit in exits:
        file.fill(file.reserve(), exit)
    file.reserve()
    file.close(remove=False)


def exit_of(job: str, pid: int = 4711, status: int = 0) -> ExitSlot:
    return ExitSlot(job, pid, 1234, status, 10**9, 2 * 10**9, lease_ended=status == 9)


def test_ends_are_found_by_their_container(tmp_path: Path) -> None:
    of_the_dead(tmp_path / "1-1", exit_of("one:a", 1, 3 << 8), exit_of("two:b", 2), exit_of("one:c", 3, 9))
    of_the_dead(tmp_path / "2-2", exit_of("one:d", 4))
    (tmp_path / "3-3").mkdir()
    found = recorded_ends(str(tmp_path))
    assert {id: sorted(end.process.pid for end in ends) for id, ends in found.items()} == {"one": [1, 3, 4], "two": [2]}
    last = next(end for end in found["one"] if end.process == PidRef(3, 1234))
    assert (last.exit.status, last.exit.wall, last.exit.lease_ended) == (9, 2.0, True)
    assert recorded_exit(str(tmp_path), "one", PidRef(3, 1234)) == last.exit
    assert recorded_exit(str(tmp_path), "on", PidRef(3, 1234)) is None
    assert recorded_ends(str(tmp_path / "nothing")) == {}


@pytest.mark.parametrize("told", [False, True])
def test_what_dead_keepers_leave_goes_when_it_is_told(tmp_path: Path, told: bool) -> None:
    of_the_dead(tmp_path / "empty")
    of_the_dead(tmp_path / "full", exit_of("one:a"))
    with subprocess.Popen(
        [sys.executable, "-c", _LIVING, str(tmp_path / "living")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == b"made\n"
        forget_recorded(str(tmp_path), told=told)
        assert set(os.listdir(tmp_path)) == ({"living"} if told else {"living", "full"})
        keeper.kill()
    forget_recorded(str(tmp_path), told=told)
    assert set(os.listdir(tmp_path)) == (set() if told else {"full"})
    forget_recorded(str(tmp_path / "nothing"), told=told)
