"""The blocking face: the same results without asyncio, from several threads, and Ctrl-C that leaves nothing."""

from __future__ import annotations

import hashlib
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import lighterman
from lighterman import limits, sync, threads
from lighterman.errors import AlreadyExists, BrokenPipe, InvalidState, NotFound, RootLocked
from lighterman.logs.streams import LogStream
from lighterman.spec import Resources
from lighterman.stdin import StdinWriter
from support import eventually_sync

pytestmark = pytest.mark.real


def _threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("lighterman")}


# ---- its own life ------------------------------------------------------------------------------------------------


def test_import_starts_no_thread() -> None:
    program = "import threading, lighterman.sync; lighterman.sync.Engine(); assert threading.active_count() == 1"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_one_thread_from_start_to_close() -> None:
    threads.let_go()  # a test of something else may have used the pool without an engine that lets go of it
    eventually_sync(lambda: not _threads())
    engine = sync.Engine()
    assert _threads() == set()
    engine.start()
    # Beside those for what blocks, which come and go.
    assert _threads() - {f"lighterman-work_{number}" for number in range(limits.THREADS_KEPT)} == {"lighterman-engine"}
    engine.close()
    eventually_sync(lambda: not _threads())
    engine.close()


def test_not_started_and_closed_engines_say_so() -> None:
    engine = sync.Engine()
    with pytest.raises(InvalidState, match="not running"):
        engine.run("busybox", ["true"])
    with engine, pytest.raises(InvalidState, match="running already"):
        engine.start()
    with pytest.raises(InvalidState, match="not running"):
        engine.containers()


def test_failed_start_leaves_no_thread(tmp_path: Path) -> None:
    with sync.Engine(tmp_path / "root"):
        second = sync.Engine(tmp_path / "root")
        with pytest.raises(RootLocked) as caught:
            second.start()
        assert caught.value.holder_pid == os.getpid()
        assert len([thread for thread in threading.enumerate() if thread.name == "lighterman-engine"]) == 1


# ---- the verbs ---------------------------------------------------------------------------------------------------


def test_run() -> None:
    with sync.Engine() as engine:
        done = engine.run("busybox", ["sh", "-c", "cat; echo no >&2; exit 3"], stdin=b"yes\n")
        assert (done.exit.code, done.stdout, done.stderr) == (3, b"yes\n", b"no\n")
        late = engine.run("busybox", ["sleep", "1000"], timeout_s=0.1)
        assert (late.exit.signal, late.exit.reason) == (9, "timeout")
        assert engine.version().name in ("crun", "youki", "runc")
        assert engine.containers() == []
        with pytest.raises(NotFound, match="no-such-image"):
            engine.run("no-such-image", ["true"])


def test_container_block() -> None:
    with sync.Engine() as engine:
        with engine.container("busybox", ["sort"], stdin=True, name="box") as box:
            assert (box.name, box.status, engine.get("box").id) == ("box", "running", box.id)
            assert box.pid > 1
            box.stdin.write(b"pear\n")
            box.stdin.write(b"apple\n")
            box.stdin.write_eof()
            box.stdin.wait_closed()
            assert list(box.stdout) == [b"apple\n", b"pear\n"]
            assert box.stdout.at_eof()
            assert box.wait().code == 0
            assert box.exit is not None
            assert box.stderr.read() == b""
        assert engine.containers() == []


def test_container_block_ends_its_container_on_an_error() -> None:
    with sync.Engine() as engine:
        with pytest.raises(ZeroDivisionError), engine.container("busybox", ["sleep", "1000"]):
            raise ZeroDivisionError
        assert engine.containers() == []


def test_created_container() -> None:
    with sync.Engine() as engine:
        program = "trap 'exit 5' TERM; echo up; while :; do sleep 0.1; done"
        box = engine.create("busybox", ["sh", "-c", program], name="c")
        with pytest.raises(AlreadyExists):
            engine.create("busybox", ["true"], name="c")
        assert (box.status, box.exit) == ("created", None)
        box.start()
        assert box.stdout.readline() == b"up\n"
        box.pause()
        assert box.status == "paused"
        box.resume()
        assert box.stats().pids is not None
        assert any("sh" in one.image_name for one in box.top())
        box.update(Resources(pids_limit=50))
        assert box.stats().pids_limit == 50
        ended = box.stop()
        assert ended is not None
        assert ended.code == 5
        box.start()
        box.restart(grace_s=0)
        box.kill("KILL")
        assert box.wait().signal == 9
        assert [record.data for record in box.logs()] == [b"up\n"] * len(list(box.logs()))
        box.remove()
        assert box.status == "removed"
        assert engine.containers() == []


def test_exec() -> None:
    with sync.Engine() as engine, engine.container("busybox", ["sleep", "1000"]) as box:
        done = box.exec(["sh", "-c", "cat; echo $X; exit 4"], stdin=b"in\n", env={"X": "x"})
        assert (done.exit.code, done.stdout) == (4, b"in\nx\n")
        process = box.start_exec(["cat"], stdin=True)
        assert process.exit is None
        process.stdin.write(b"abc")
        assert process.stdout.read(100) == b"abc"
        process.stdin.close()
        assert process.wait().code == 0
        shell = box.start_exec(["sh"], stdin=True, terminal=True)
        shell.resize(height=11, width=33)
        shell.stdin.write(b"stty size; exit 6\r")
        assert b"11 33" in shell.stdout.read()
        assert shell.wait().code == 6
        sleeper = box.start_exec(["sleep", "1000"])
        assert box.get_exec(sleeper.id).pid == sleeper.pid
        assert sleeper.id in {one.id for one in box.execs()}
        sleeper.kill("TERM")
        assert sleeper.wait().signal == 15
        assert b"".join(record.data for record in process.logs()) == b"abc"
        with pytest.raises(NotFound):
            box.get_exec("no-such-exec")


def test_logs_follow_to_the_end() -> None:
    with sync.Engine() as engine:
        box = engine.create("busybox", ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.05; done; echo e >&2"])
        box.start()
        records = list(box.logs(follow=True))
        assert b"".join(record.data for record in records if record.stream == "stdout") == b"1\n2\n3\n"
        assert b"".join(record.data for record in records if record.stream == "stderr") == b"e\n"
        first = records[0]
        assert list(box.logs(after=first.cursor)) == records[1:]
        # Left early: its end holds nobody up.
        for _ in box.logs(follow=True):
            break
        box.remove()


def test_events() -> None:
    with sync.Engine() as engine:
        box = engine.create("busybox", ["true"])
        box.start()
        box.wait()
        kinds = [event.kind for event in engine.events(after=0, container=box.id, follow=False)]
        assert kinds == sorted(kinds, key=["create", "start", "exit"].index)
        following = engine.events(after=0)
        assert next(following).container == box.id
        following = engine.events()
    # Nobody waits for what will never come, and leaving it is no error.
    with pytest.raises(InvalidState):
        next(following)


def test_write_waits_and_breaks() -> None:
    data = os.urandom(8 * 1024 * 1024)
    with sync.Engine() as engine:
        with engine.container("busybox", ["sha256sum"], stdin=True) as box:
            for start in range(0, len(data), 1 << 20):
                box.stdin.write(data[start : start + (1 << 20)])
            box.stdin.write_eof()
            assert box.stdout.read().split()[0].decode() == hashlib.sha256(data).hexdigest()
        with engine.container("busybox", ["true"], stdin=True) as box, pytest.raises(BrokenPipe):
            _write_for_ever(box.stdin, data)


def _write_for_ever(stdin: sync.StdinWriter, data: bytes) -> None:
    while True:
        stdin.write(data)


# ---- threads and Ctrl-C ------------------------------------------------------------------------------------------


def test_from_several_threads() -> None:
    with sync.Engine() as engine, ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda i: engine.run("busybox", ["sh", "-c", f"echo {i}; exit {i}"]), range(8)))
        assert [one.exit.code for one in done] == list(range(8))
        assert [one.stdout for one in done] == [b"%d\n" % i for i in range(8)]


def test_close_ends_what_another_thread_waits_for() -> None:
    engine = sync.Engine()
    engine.start()
    box = engine.create("busybox", ["sleep", "1000"])
    box.start()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(box.wait)
        engine.close()
        # Its end may have been told before the close was: either is an answer.
        failed = waiting.exception(timeout=60)
        assert isinstance(failed, InvalidState) or waiting.result().signal == 9


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """What a shell has started in the background ignores the signal, and Python leaves it so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_interrupt_is_undone_before_it_is_raised() -> None:
    with sync.Engine() as engine:
        watcher = threading.Thread(target=_interrupt_when_running, args=(engine,))
        watcher.start()
        with pytest.raises(KeyboardInterrupt):
            engine.run("busybox", ["sleep", "1000"])
        assert engine.containers() == []
        watcher.join()
        assert engine.run("busybox", ["true"]).ok


def _interrupt_when_running(engine: sync.Engine) -> None:
    eventually_sync(lambda: [one for one in engine.containers() if one.status == "running"])
    os.kill(os.getpid(), signal.SIGINT)


# What needs no face: parts of the engine that its other half asks for, and what a blocking write does by itself.
INSIDE = {
    "Engine": {"client_of", "execs", "host", "inside", "leases", "removal", "runs", "watches"},
    "StdinWriter": {"drain"},
    "LogStream": {"capture", "close"},
}
FACES = [
    (lighterman.Engine, sync.Engine),
    (lighterman.Container, sync.Container),
    (lighterman.Process, sync.Process),
    (StdinWriter, sync.StdinWriter),
    (LogStream, sync.OutputReader),
]


@pytest.mark.parametrize(("waiting", "blocking"), FACES)
def test_both_faces_have_the_same_names(waiting: type, blocking: type) -> None:
    inside = INSIDE.get(waiting.__name__, set())
    names = {name for name in vars(waiting) if not name.startswith("_")}
    assert names - inside == {name for name in vars(blocking) if not name.startswith("_")}


@pytest.mark.parametrize(("waiting", "blocking"), FACES)
def test_both_faces_take_the_same_arguments(waiting: type, blocking: type) -> None:
    for name, method in vars(blocking).items():
        if callable(method) and not name.startswith("_"):
            wanted = inspect.signature(getattr(waiting, name)).parameters
            assert list(inspect.signature(method).parameters) == list(wanted), name
