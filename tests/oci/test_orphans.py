"""Runtime calls that outlived their keeper."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

if sys.platform != "linux":
    pytest.skip("needs Linux", allow_module_level=True)

from lighterman.runtimes.oci.calls import RuntimeCall
from lighterman.runtimes.oci.orphans import end_orphans
from support import eventually_sync

STATES = "/run/lighterman-of-a-test/runtime"


@contextmanager
def call(states: str, id: str = "id") -> Iterator[subprocess.Popen[bytes]]:
    words = RuntimeCall(name="crun", executable="/bin/sh", root=f"{states}/crun").argv("/log", "run", id)
    program = subprocess.Popen(["sh", "-c", "echo; read x", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert program.stdout is not None
    program.stdout.readline()
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def test_calls_of_another_keeper_are_ended_and_no_others() -> None:
    with call(STATES) as orphan, call(f"{STATES}-of-another-root") as other:
        assert end_orphans(STATES, keeper=1 << 30) == {"id"}
        assert eventually_sync(orphan.poll) == -9
        assert other.poll() is None


def test_calls_for_one_container_alone() -> None:
    with call(STATES) as orphan:
        assert end_orphans(STATES, 1 << 30, "another") == set()
        assert orphan.poll() is None
        assert end_orphans(STATES, 1 << 30, "id") == {"id"}
        assert eventually_sync(orphan.poll) == -9


def test_what_only_looks_like_a_call_goes_on() -> None:
    with call(STATES, "../../somewhere") as other:
        assert end_orphans(STATES, keeper=1 << 30) == set()
        assert other.poll() is None


def test_calls_below_the_keeper_go_on() -> None:
    with call(STATES) as mine:
        assert end_orphans(STATES, keeper=os.getpid()) == set()
        assert mine.poll() is None
