"""What is said, and done, where there are no descriptors left."""

from __future__ import annotations

import errno
import os
import threading

import pytest

from lighterman.errors import LimitExceeded, RuntimeFailed, StoreError, Unkillable
from lighterman.scarcity import Reserve, is_for_lack_of_descriptors, telling_what_ran_out

FEW = OSError(errno.EMFILE, "Too many open files", "/some/file")


def caused_by(failed: BaseException, cause: BaseException) -> BaseException:
    failed.__cause__ = cause
    return failed


@pytest.mark.parametrize(
    ("failed", "limit"),
    [
        (FEW, "ulimit -n"),
        (OSError(errno.ENFILE, "Too many open files in system"), "fs.file-max"),
        (caused_by(StoreError("it can't be written"), FEW), "ulimit -n"),
        (caused_by(RuntimeFailed("no", runtime="x", operation="y"), caused_by(StoreError("no"), FEW)), "ulimit -n"),
    ],
)
def test_the_limit_behind_an_error_is_told(failed: BaseException, limit: str) -> None:
    assert is_for_lack_of_descriptors(failed)
    text = rf"^no descriptors left to start container c1: raise `{limit}`"
    with pytest.raises(LimitExceeded, match=text) as said, telling_what_ran_out("start", "c1"):
        raise failed
    assert (said.value.limit, said.value.operation, said.value.container) == (limit, "start", "c1")
    assert said.value.__cause__ is failed


@pytest.mark.parametrize(
    "failed",
    [
        OSError(errno.EACCES, "Permission denied"),
        TimeoutError(),
        StoreError("it can't be written"),
        caused_by(StoreError("it can't be written"), OSError(errno.ENOSPC, "No space left on device")),
        LimitExceeded("too long", limit="KEEPER_MESSAGE_BYTES"),
        ValueError("a defect"),
    ],
)
def test_other_errors_pass_as_they_are(failed: BaseException) -> None:
    assert not is_for_lack_of_descriptors(failed)
    with pytest.raises(type(failed)) as said, telling_what_ran_out("start", "c1"):
        raise failed
    assert said.value is failed


def test_what_can_not_be_killed_is_no_lack_of_descriptors() -> None:
    assert not is_for_lack_of_descriptors(Unkillable("it hangs", pid=1, since_s=10, where=None))


def held() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_the_reserve_is_given_up_for_what_finds_no_other_and_taken_back() -> None:
    before = held()
    reserve = Reserve()
    kept = held() - before
    seen = []

    def act() -> str:
        seen.append(held() - before)
        if len(seen) == 1:
            raise FEW
        return "done"

    assert reserve.use(act) == "done"
    assert seen == [kept, 0]
    assert held() - before == kept > 0
    reserve.close()
    reserve.close()
    assert held() == before


def test_the_reserve_is_tried_again_and_then_the_error_is_told() -> None:
    tries = []

    def act() -> None:
        tries.append(1)
        raise FEW

    reserve = Reserve()
    with pytest.raises(OSError, match="Too many"):
        reserve.use(act)
    assert len(tries) > 2
    reserve.close()


def test_a_reserve_that_was_lost_is_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    before = held()
    reserve = Reserve()
    kept = held() - before

    def refuse(*_arguments: object) -> int:
        raise FEW

    def act() -> None:
        if held() - before == kept:
            raise FEW

    with monkeypatch.context() as others_are_faster:
        others_are_faster.setattr("lighterman.scarcity.os.open", refuse)
        reserve.use(act)
    assert held() == before
    reserve.use(lambda: None)
    assert held() - before == kept
    reserve.close()


def test_the_close_waits_for_nobody() -> None:
    before = held()
    reserve = Reserve()
    begun, go_on = threading.Event(), threading.Event()
    tries = []

    def act() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise FEW
        begun.set()
        go_on.wait(20)

    using = threading.Thread(target=reserve.use, args=(act,))
    using.start()
    assert begun.wait(20)
    reserve.close()
    go_on.set()
    using.join(20)
    assert held() == before


def test_a_forgotten_reserve_gives_its_descriptors_back() -> None:
    before = held()
    Reserve()
    assert held() == before
