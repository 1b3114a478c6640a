"""SIGKILL for a list of processes, with as many descriptors as there are."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from lighterman.runtimes.oci.cgroups.killing import kill_listed
from lighterman.scarcity import Reserve
from support import descriptors_left


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen(["sleep", "1000"]) for _ in range(20)]
    yield started
    for one in started:
        one.kill()
        one.wait()


def test_more_processes_than_descriptors(sleepers: list[subprocess.Popen[bytes]]) -> None:
    with descriptors_left(5):
        kill_listed(lambda: {one.pid for one in sleepers})
    assert {one.wait(20) for one in sleepers} == {-9}


def test_no_descriptor_at_all_is_an_error_and_the_reserve_is_for_that(sleepers: list[subprocess.Popen[bytes]]) -> None:
    reserve = Reserve()
    try:
        with descriptors_left(0):
            with pytest.raises(OSError, match="Too many open files"):
                kill_listed(lambda: {one.pid for one in sleepers})
            assert [one.poll() for one in sleepers] == [None] * len(sleepers)
            reserve.use(lambda: kill_listed(lambda: {one.pid for one in sleepers}))
            # Taken back: it can be used again.
            reserve.use(lambda: kill_listed(lambda: {one.pid for one in sleepers}))
        assert {one.wait(20) for one in sleepers} == {-9}
    finally:
        reserve.close()


def test_other_failures_use_no_reserve() -> None:
    tries = []

    def act() -> None:
        tries.append(1)
        raise OSError(5, "Input/output error")

    reserve = Reserve()
    try:
        with pytest.raises(OSError, match="Input/output"):
            reserve.use(act)
    finally:
        reserve.close()
    assert len(tries) == 1
