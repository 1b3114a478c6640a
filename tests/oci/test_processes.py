from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lighterman.errors import AlreadyStopped, NotFound, NotSupported
from lighterman.runtimes.oci import processes
from support import eventually_sync

if sys.platform != "linux":
    pytest.skip("pidfds are Linux's", allow_module_level=True)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


@pytest.fixture
def pidfd(child: subprocess.Popen[bytes]) -> Iterator[int]:
    start_time = processes.read_start_time(child.pid)
    assert start_time is not None
    descriptor = processes.open_pidfd_checked(child.pid, start_time)
    yield descriptor
    os.close(descriptor)


def test_open_pidfd_is_close_on_exec_and_of_that_process(child: subprocess.Popen[bytes], pidfd: int) -> None:
    assert not os.get_inheritable(pidfd)
    assert not processes.has_exited(pidfd)
    processes.send_signal(pidfd, signal.SIGTERM)
    assert child.wait(30) == -signal.SIGTERM
    assert processes.has_exited(pidfd)


def test_open_pidfd_refuses_a_recycled_number(child: subprocess.Popen[bytes]) -> None:
    start_time = processes.read_start_time(child.pid)
    assert start_time is not None
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotFound, match=str(child.pid)):
        processes.open_pidfd_checked(child.pid, start_time - 1)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_open_pidfd_of_the_reaped_and_of_nonsense_is_not_found(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    child.wait()
    for pid in (child.pid, 0, -1):
        with pytest.raises(NotFound):
            processes.open_pidfd_checked(pid, 1)


def test_open_pidfd_of_a_zombie_works(child: subprocess.Popen[bytes]) -> None:
    start_time = processes.read_start_time(child.pid)
    assert start_time is not None
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    descriptor = processes.open_pidfd_checked(child.pid, start_time)
    assert processes.has_exited(descriptor)
    os.close(descriptor)


def test_send_signal_to_the_reaped_says_already_stopped(child: subprocess.Popen[bytes], pidfd: int) -> None:
    child.kill()
    child.wait()
    with pytest.raises(AlreadyStopped):
        processes.send_signal(pidfd, signal.SIGKILL)


def test_send_signal_of_a_number_that_is_none_is_not_supported(pidfd: int) -> None:
    with pytest.raises(NotSupported, match="signal 99"):
        processes.send_signal(pidfd, 99)


async def test_wait_pidfd_wakes_everybody_who_waits(child: subprocess.Popen[bytes], pidfd: int) -> None:
    waiters = [asyncio.ensure_future(processes.wait_pidfd(pidfd)) for _ in range(3)]
    cancelled = asyncio.ensure_future(processes.wait_pidfd(pidfd))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert not any(waiter.done() for waiter in waiters)
    child.kill()
    async with asyncio.timeout(30):
        await asyncio.gather(*waiters)
        await processes.wait_pidfd(pidfd)


async def test_wait_pidfd_outlives_the_descriptor(child: subprocess.Popen[bytes]) -> None:
    pidfd = os.pidfd_open(child.pid)
    waiter = asyncio.ensure_future(processes.wait_pidfd(pidfd))
    await asyncio.sleep(0)
    os.close(pidfd)
    child.kill()
    async with asyncio.timeout(30):
        await waiter


def grandchild() -> tuple[subprocess.Popen[bytes], int]:
    """One whose parent (not we) reaps it as soon as it has ended; SIGTERM makes it exit with 3."""
    script = "(trap 'exit 3' TERM; echo ready; while :; do sleep 0.01; done) & echo $!; wait; read end"
    parent = subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert parent.stdout
    lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
    return parent, int((lines - {b"ready"}).pop())


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 3), (signal.SIGKILL, -9)])
async def test_exit_status_of_somebody_elses_child(sent: int, code: int) -> None:
    parent, pid = grandchild()
    with parent:
        pidfd = os.pidfd_open(pid)
        try:
            assert processes.pidfd_exit_status(pidfd) is None, "it runs"
            processes.send_signal(pidfd, sent)
            async with asyncio.timeout(30):
                status = await processes.wait_exit_status(pidfd, 30)
            release = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
            if release < (6, 15):
                assert status is None
            else:
                assert status is not None
                assert os.waitstatus_to_exitcode(status) == code
        finally:
            os.close(pidfd)
            parent.communicate(b"\n")


async def test_exit_status_is_none_while_nobody_reaps(child: subprocess.Popen[bytes], pidfd: int) -> None:
    child.kill()
    assert await processes.wait_exit_status(pidfd, 0.01) is None
    assert processes.pidfd_exit_status(pidfd) is None


def test_summaries_survive_hostile_names(child: subprocess.Popen[bytes]) -> None:
    script = "open('/proc/self/comm','w').write('a) S 1 (\\n x'); print(flush=True); input()"
    argv = [sys.executable, "-c", script, "two words", "", "\udcff"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hostile:
        assert hostile.stdout
        hostile.stdout.readline()
        first, second = processes.process_summaries([hostile.pid, 2**22 + 1, child.pid])
        assert processes.read_start_time(hostile.pid)
        hostile.communicate(b"\n")
    assert first.pid == hostile.pid
    assert first.image_name == "a) S 1 (\n x"
    assert first.command == (sys.executable, "-c", script, "two words", "", "\ufffd")
    assert first.resident_bytes > 100_000
    assert first.user_s + first.system_s >= 0
    assert first.started_at is not None
    assert abs(first.started_at - time.time()) < 600
    assert second.image_name == "sleep"
    assert second.command == ("sleep", "600")


def test_uninterruptible_is_told_of_a_process_that_waits_for_its_vfork_child() -> None:
    # The parent of a vfork sleeps in state D until the child has executed; here the child waits for our line.
    script = (
        "import ctypes, os\n"
        "libc = ctypes.PyDLL(None)\n"
        "print(flush=True)\n"
        "pid = libc.syscall({'x86_64': 58}.get(os.uname().machine, -1))\n"
        "if pid == 0: os.read(0, 1); os._exit(0)\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of vfork is known for x86_64")
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        where = eventually_sync(lambda: processes.uninterruptible(process.pid))
        process.communicate(b"\n")
    assert where
    assert processes.uninterruptible(os.getpid()) is None
    assert processes.uninterruptible(process.pid) is None
