"""Runtime calls that outlived their keeper."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import pytest

if sys.platform != "linux":
    pytest.skip("needs Linux", allow_module_level=True)

from lighterman.runtimes.oci import orphans
from lighterman.runtimes.oci.calls import RuntimeCall
from lighterman.runtimes.oci.orphans import end_orphans
from support import eventually_sync

_PLACE = tempfile.TemporaryDirectory(prefix="lighterman-of-a-test-")
STATES = f"{_PLACE.name}/runtime"


def call(states: str, id: str = "id", operation: str = "run") -> AbstractContextManager[subprocess.Popen[bytes]]:
    return process(*RuntimeCall(name="crun", executable="/bin/sh", root=f"{states}/crun").argv("/log", operation, id))


@contextmanager
def process(*words: str, before: Sequence[str] = ()) -> Iterator[subprocess.Popen[bytes]]:
    program = subprocess.Popen(
        [*before, "sh", "-c", "echo; read x", *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
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


def test_calls_below_a_keeper_that_has_none_under_way_are_ended() -> None:
    with call(STATES) as forked:
        assert end_orphans(STATES, keeper=os.getpid(), settled=True) == {"id"}
        assert eventually_sync(forked.poll) == -9


def test_calls_that_make_no_process_go_on() -> None:
    with call(STATES, operation="delete") as deleting:
        assert end_orphans(STATES, keeper=1 << 30) == set()
        assert deleting.poll() is None


def test_child_of_a_lost_keeper_that_was_about_to_be_a_call_is_ended() -> None:
    with process("/lib/keeper/__main__.py", os.path.dirname(STATES), "/state") as child:
        assert end_orphans(STATES, child.pid) == set()
        assert child.poll() is None
        assert end_orphans(STATES, os.getpid()) == set()
        assert child.poll() is None
        assert end_orphans(STATES, 1 << 30) == set()
        assert eventually_sync(child.poll) == -9


def test_process_that_is_known_goes_on_though_it_is_not_its_program_yet() -> None:
    with call(STATES) as init:
        assert end_orphans(STATES, 1 << 30, settled=True, known={init.pid}) == set()
        assert init.poll() is None


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a mount namespace, which needs root")
def test_of_an_engine_in_a_container_with_paths_like_ours_nothing_is_ended() -> None:
    run_dir = os.path.dirname(STATES)
    inside = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {run_dir} && exec "$@"', "sh")
    words = RuntimeCall(name="crun", executable="/bin/sh", root=f"{STATES}/crun").argv("/log", "run", "id")
    keeper = ("/lib/lighterman/keeper/__main__.py", run_dir)
    with process(*words, before=inside) as theirs, process(*keeper, before=inside) as their_keeper:
        with process(*keeper) as lost:
            assert end_orphans(STATES, keeper=1 << 30, settled=True) == set()
            assert eventually_sync(lost.poll) == -9
        assert (theirs.poll(), their_keeper.poll()) == (None, None)


def test_what_forks_calls_for_ever_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orphans, "_WHOLE_S", 0.0)
    with call(STATES) as orphan:
        assert end_orphans(STATES, keeper=1 << 30) == set()
        assert orphan.poll() is None
