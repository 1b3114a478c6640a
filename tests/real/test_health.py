"""Health and readiness of real containers: every kind of probe, what follows, and what the world does to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from real_support import descriptors

from lighterman import (
    Container,
    Engine,
    Exec,
    File,
    Health,
    HealthCheck,
    Http,
    InvalidSpec,
    InvalidState,
    LogPattern,
    OperationTimeout,
    Port,
    RestartPolicy,
    SdNotify,
    Tcp,
    UnixSocket,
    limits,
)
from support import eventually

pytestmark = pytest.mark.real

LIMIT_S = 60.0
HTTPD = "mkdir -p /www; echo hello > /www/index.html; exec httpd -f -p 127.0.0.1:8080 -h /www"
NETWORKS = ["none", "host"]


def often(probe: Any, **options: Any) -> HealthCheck:
    return HealthCheck(
        probe, **{"interval_s": 0.05, "start_interval_s": 0.05, "timeout_s": 30, "retries": 2, **options}
    )


@contextlib.asynccontextmanager
async def shell(engine: Engine, script: str, **options: Any) -> AsyncIterator[Container]:
    async with engine.container("busybox", ["sh", "-c", script], **options) as box:
        yield box


async def event_kinds(engine: Engine, box: Container) -> list[str]:
    events = [event async for event in engine.events(after=0, container=box.id, follow=False)]
    return [f"{event.kind} {event.reason or ''}".strip().partition(":")[0] for event in events]


# ---- each kind of probe ------------------------------------------------------------------------------------------


async def test_exec_probe_sees_what_is_inside(engine: Engine) -> None:
    check = often(Exec(["sh", "-c", "echo looked; test -e /ok"]))
    async with shell(engine, "touch /ok; exec sleep 1000", health=check) as box:
        await box.wait(until="healthy", timeout_s=LIMIT_S)
        assert box.health is not None
        assert box.health.log[-1].output == "looked"
        await box.exec(["rm", "/ok"])
        await box.wait(until="unhealthy", timeout_s=LIMIT_S)
        assert box.health.status is Health.UNHEALTHY
        assert box.health.failing_streak >= 2
        assert box.status == "running"
        kinds = await event_kinds(engine, box)
        # The one exec of ours, none of the probes'.
        assert kinds == ["create", "start", "health healthy", "start-process", "exit-process", "health unhealthy"]


async def test_exec_probe_that_hangs_is_killed_with_its_tree(engine: Engine) -> None:
    check = often(Exec(["sh", "-c", "sleep 777 & sleep 777"]), timeout_s=0.3, retries=1)
    async with shell(engine, "exec sleep 1000", health=check) as box:
        await box.wait(until="unhealthy", timeout_s=LIMIT_S)
        assert box.health is not None
        assert "no answer in 0.3 s" in box.health.log[0].output
    # The engine's end is the test that nothing of the probes is left.


async def test_tcp_probe_inside_the_containers_network(engine: Engine) -> None:
    check = often(Tcp(7001), start_period_s=1000)
    async with shell(engine, "sleep 0.5; while :; do nc -l -p 7001; done", health=check) as box:
        await box.wait(until="healthy", timeout_s=LIMIT_S)
        # Nobody listens there on the host.
        with socket.socket() as outside:
            assert outside.connect_ex(("127.0.0.1", 7001)) != 0


async def test_tcp_probe_does_not_reach_the_host(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check = often(Tcp(server.getsockname()[1]))
        async with shell(engine, "exec sleep 1000", health=check) as box:
            await box.wait(until="unhealthy", timeout_s=LIMIT_S)
            assert box.health is not None
            assert "refused" in box.health.log[-1].output.lower()


async def test_http_probe(engine: Engine) -> None:
    check = often(Http(8080, "/index.html"), start_period_s=1000)
    async with shell(engine, HTTPD, health=check) as box:
        await box.wait(until="healthy", timeout_s=LIMIT_S)
        assert box.health is not None
        assert "200" in box.health.log[-1].output


async def test_http_probe_sees_the_status(engine: Engine) -> None:
    for probe, ok in ((Http(8080, "/none"), False), (Http(8080, "/none", 404), True)):
        async with shell(engine, HTTPD, health=often(probe, retries=50), ready=Port(8080)) as box:
            await box.wait(until="ready", timeout_s=LIMIT_S)
            await box.wait(until="healthy" if ok else "unhealthy", timeout_s=LIMIT_S)
            assert box.health is not None
            assert "404" in box.health.log[-1].output


async def test_http_probe_of_something_else_is_bounded(engine: Engine) -> None:
    check = often(Http(7002), retries=1, start_period_s=0)
    async with shell(engine, "while :; do yes | nc -l -p 7002; done", health=check, ready=Port(7002)) as box:
        await box.wait(until="ready", timeout_s=LIMIT_S)
        await eventually(lambda: box.health and any("HTTP" in one.output for one in box.health.log), LIMIT_S)


async def test_unix_socket_probe_within_the_root(engine: Engine, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # Nothing in busybox listens on a unix socket: it is bound here, in a directory that both see.
        check = often(UnixSocket("/link"), start_period_s=1000)
        script = "ln -s /shared/s.sock /link; exec sleep 1000"
        async with shell(engine, script, health=check, mounts=[f"{tmp_path}:/shared"]) as box:
            await eventually(lambda: box.health and box.health.log, LIMIT_S)
            assert box.health is not None
            assert box.health.status is Health.STARTING
            server.bind(str(tmp_path / "s.sock"))
            server.listen(100)
            await box.wait(until="healthy", timeout_s=LIMIT_S)


async def test_file_probe_wants_it_fresh_and_inside(engine: Engine, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.touch()
    check = often(File(str(outside)), retries=1)
    async with shell(
        engine, f"mkdir -p {tmp_path}; ln -s ../../../../../..{outside} /x; sleep 1000", health=check
    ) as box:
        await box.wait(until="unhealthy", timeout_s=LIMIT_S)
    check = often(File("/beat", max_age_s=1.5), start_period_s=1000)
    async with shell(engine, "while [ ! -e /stop ]; do touch /beat; sleep 0.2; done; sleep 1000", health=check) as box:
        await box.wait(until="healthy", timeout_s=LIMIT_S)
        await box.exec(["touch", "/stop"])
        await box.wait(until="unhealthy", timeout_s=LIMIT_S)


async def test_function_as_probe(engine: Engine) -> None:
    seen: list[str] = []

    async def probe(box: Container) -> bool:
        seen.append(box.name)
        return (await box.exec(["true"])).exit.ok

    def blocking(box: Container) -> bool:
        assert threading.current_thread() is not threading.main_thread()
        raise LookupError(box.name)

    async with shell(engine, "exec sleep 1000", health=often(probe), name="fn") as box:
        await box.wait(until="healthy", timeout_s=LIMIT_S)
    async with shell(engine, "exec sleep 1000", health=often(blocking), name="bl") as box:
        await box.wait(until="unhealthy", timeout_s=LIMIT_S)
        assert box.health is not None
        assert box.health.log[-1].output == "LookupError: bl"
    assert set(seen) == {"fn"}


async def test_function_that_blocks_is_one_thread_and_holds_nobody_up(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HUNG_THREADS_KEPT", 1)
    release, asked = threading.Event(), 0

    def hang(_box: Container) -> bool:
        nonlocal asked
        asked += 1
        return release.wait(LIMIT_S)

    check = often(hang, interval_s=0.01, timeout_s=0.02, on_unhealthy="restart", retries=5)
    async with shell(engine, "exec sleep 1000", health=check, stop_signal=9) as box:
        # Over its restarts too.
        await eventually(lambda: box.generation >= 2, LIMIT_S)
        await eventually(lambda: box.health and box.health.failing_streak >= 3, LIMIT_S)
        assert box.health is not None
        assert "not ended" in box.health.log[-1].output
        assert asked == 1
        assert (await engine.run("busybox", ["true"], mounts=[f"{tmp_path}:/x:ro"])).exit.ok
        release.set()
        await box.wait(until="healthy", timeout_s=LIMIT_S)


@pytest.mark.parametrize("network", NETWORKS)
async def test_probes_make_no_process_and_leave_nothing(engine: Engine, network: str) -> None:
    check = often(Tcp(7003), interval_s=0.01, retries=1000)
    async with shell(engine, "exec sleep 1000", health=check, network=network) as box:
        before = descriptors(), os.readlink("/proc/self/ns/net")
        pids = {process.pid for process in await box.top()}
        await eventually(lambda: box.health and box.health.failing_streak > 50, LIMIT_S)
        assert {process.pid for process in await box.top()} == pids
        assert os.readlink("/proc/self/ns/net") == before[1]
        # A probe may be under way: its socket, its look at the namespace.
        assert abs(descriptors() - before[0]) <= 4
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("reach") <= 1


# ---- what follows ------------------------------------------------------------------------------------------------


async def test_on_unhealthy_restart_needs_no_policy_and_tells_why(engine: Engine) -> None:
    # Its shell has all of these tries to come as far as its loop.
    check = often(File("/ok"), on_unhealthy="restart", retries=30)
    script = "trap 'exit 0' TERM; [ -e /again ] && touch /ok; touch /again; while :; do sleep 0.05; done"
    async with shell(engine, script, health=check) as box:
        await box.wait(until="healthy", timeout_s=LIMIT_S)
        assert box._entry.record.generation == 2
        events = [event async for event in engine.events(after=0, container=box.id, follow=False)]
        ended = next(event for event in events if event.kind == "restart")
        assert ended.exit is not None
        assert (ended.exit.code, ended.exit.reason, ended.reason) == (0, "unhealthy", "unhealthy")
        kinds = await event_kinds(engine, box)
        assert kinds == ["create", "start", "health unhealthy", "restart unhealthy", "start", "health healthy"]


async def test_on_unhealthy_restart_holds_the_start_limit(engine: Engine) -> None:
    policy = RestartPolicy(burst=3, interval_s=600, initial_delay_s=0)
    check = often(File("/never"), on_unhealthy="restart", retries=1)
    async with shell(engine, "trap 'exit 0' TERM; while :; do sleep 0.05; done", health=check, restart=policy) as box:
        exit = await box.wait(timeout_s=LIMIT_S)
        assert (exit.generation, exit.reason) == (3, "unhealthy")


async def test_on_unhealthy_stop_stays_down(engine: Engine) -> None:
    check = often(File("/never"), on_unhealthy="stop")
    script = "trap 'exit 5' TERM; while :; do sleep 0.05; done"
    async with shell(engine, script, health=check, restart="always") as box:
        exit = await box.wait(timeout_s=LIMIT_S)
        assert (exit.code, exit.reason, exit.generation) == (5, "unhealthy", 1)


async def test_on_unhealthy_kill_leaves_it_to_the_policy(engine: Engine) -> None:
    check = often(File("/never"), on_unhealthy="kill")
    async with shell(engine, "exec sleep 1000", health=check, restart="on-failure:2") as box:
        exit = await box.wait(timeout_s=LIMIT_S)
        assert (exit.signal, exit.reason, exit.generation) == (9, "unhealthy", 3)


async def test_on_unhealthy_function_is_given_the_container(engine: Engine) -> None:
    async def act(box: Container) -> None:
        await box.stop(grace_s=0)

    check = often(File("/never"), on_unhealthy=act)
    async with shell(engine, "exec sleep 1000", health=check) as box:
        assert (await box.wait(timeout_s=LIMIT_S)).reason == "stop"


async def test_a_stop_by_request_is_not_undone_by_on_unhealthy(engine: Engine) -> None:
    check = often(File("/never"), on_unhealthy="restart", retries=1)
    async with shell(engine, "trap '' TERM; while :; do sleep 0.05; done", health=check) as box:
        await box.wait(until="unhealthy", timeout_s=LIMIT_S)
        assert (await box.stop(grace_s=0)) is not None
        assert box.status == "exited"


async def test_paused_is_not_unhealthy(engine: Engine) -> None:
    check = often(Exec(["true"]), timeout_s=0.5, retries=1)
    async with shell(engine, "exec sleep 1000", health=check) as box:
        await box.wait(until="healthy", timeout_s=LIMIT_S)
        await box.pause()
        with pytest.raises(OperationTimeout):
            await box.wait(until="unhealthy", timeout_s=2)
        await box.resume()
        assert box.health is not None
        assert box.health.status is Health.HEALTHY


async def test_a_probe_that_dies_with_the_container_finds_nothing(engine: Engine) -> None:
    check = often(Exec(["sh", "-c", "touch /probing; exec sleep 1000"]), retries=1, on_unhealthy="restart")
    script = "until [ -e /probing ]; do sleep 0.01; done; exit 0"
    for _ in range(5):
        async with shell(engine, script, health=check) as box:
            ended = await box.wait()
            assert (ended.code, ended.reason) == (0, None)
            assert await event_kinds(engine, box) == ["create", "start", "exit"]


async def test_startup_probe_comes_first(engine: Engine) -> None:
    check = often(File("/never"), startup=File("/up"), start_period_s=1000, retries=1)
    async with shell(engine, "exec sleep 1000", health=check) as box:
        await eventually(lambda: box.health and box.health.log, LIMIT_S)
        assert box.health is not None
        assert {result.which for result in box.health.log} == {"startup"}
        await box.exec(["touch", "/up"])
        await eventually(lambda: box.health and box.health.log[-1].which == "liveness", LIMIT_S)
        assert box.health.status is Health.STARTING


# ---- waiting -----------------------------------------------------------------------------------------------------


async def test_waiting_for_what_never_comes(engine: Engine) -> None:
    async with shell(engine, "exec sleep 1000", health=often(File("/never"), retries=1000)) as box:
        with pytest.raises(OperationTimeout, match="healthy"):
            await box.wait(until="healthy", timeout_s=0.5)
        with pytest.raises(InvalidState, match="ready="):
            await box.wait(until="ready", timeout_s=1)
        with pytest.raises(InvalidSpec):
            await box.wait(until="happy")  # type: ignore[call-overload]
        with pytest.raises(OperationTimeout):
            await box.wait(timeout_s=0.1)
        waiting = asyncio.create_task(box.wait(until="healthy"))
        await box.kill()
        with pytest.raises(InvalidState, match="ended before it was healthy"):
            await asyncio.wait_for(waiting, LIMIT_S)


async def test_waiting_may_begin_before_the_start(engine: Engine) -> None:
    box = await engine.create("busybox", ["sleep", "1000"], health=often(Exec(["true"])))
    waiting = asyncio.create_task(box.wait(until="healthy", timeout_s=LIMIT_S))
    await box.start()
    await waiting
    await box.remove(force=True)
    with pytest.raises(InvalidState):
        await box.wait(until="healthy", timeout_s=LIMIT_S)


async def test_wrong_options_are_refused(engine: Engine) -> None:
    for options in ({"health": Tcp(80)}, {"health": "true"}, {"ready": Tcp(80)}, {"ready": "up"}):
        with pytest.raises(InvalidSpec):
            await engine.create("busybox", ["true"], **options)


# ---- readiness ---------------------------------------------------------------------------------------------------


async def test_ready_by_log_pattern_over_pieces_and_streams(engine: Engine) -> None:
    script = "echo not yet; printf 'server lis' >&2; sleep 0.3; echo 'tening on 80' >&2; exec sleep 1000"
    async with shell(engine, script, ready=LogPattern(r"listening on \d+$", "stderr")) as box:
        await box.wait(until="ready", timeout_s=LIMIT_S)
        assert box.is_ready
        assert (await event_kinds(engine, box))[-1] == "ready"
    async with shell(engine, script, ready=LogPattern("listening", "stdout")) as box:
        with pytest.raises(OperationTimeout):
            await box.wait(until="ready", timeout_s=1)


async def test_ready_by_log_pattern_is_of_this_run(engine: Engine) -> None:
    script = "[ -e /second ] || { touch /second; echo ready; sleep 0.2; exit 1; }; sleep 1; echo ready; exec sleep 1000"
    async with shell(engine, script, ready=LogPattern("^ready$"), restart="on-failure") as box:
        await eventually(lambda: box._entry.record.generation == 2 and box.status == "running", LIMIT_S)
        assert not box.is_ready
        await box.wait(until="ready", timeout_s=LIMIT_S)
        assert box._entry.record.generation == 2


async def test_ready_by_port(engine: Engine) -> None:
    async with shell(engine, "sleep 0.5; while :; do nc -l -p 7004; done", ready=Port(7004)) as box:
        assert not box.is_ready
        await box.wait(until="ready", timeout_s=LIMIT_S)


async def test_ready_ends_with_the_container(engine: Engine) -> None:
    async with shell(engine, "sleep 0.3", ready=Port(7005)) as box:
        with pytest.raises(InvalidState, match="ended before it was ready"):
            await box.wait(until="ready", timeout_s=LIMIT_S)


# Nothing in busybox sends to a unix datagram socket: this interpreter does it, in a root that is the host's /.
NOTIFY = """
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.connect(os.environ["NOTIFY_SOCKET"])
for word in sys.argv[1:]:
    if word.startswith("sleep="):
        time.sleep(float(word[6:]))
    elif word == "huge":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        s.send(b"READY=1\\n" + b"x" * 100000)
    elif word.startswith("first=") and not os.path.exists("/second"):
        s.send(word[6:].encode())
    elif word == "exit-once" and not os.path.exists("/second"):
        open("/second", "w").close()
        sys.exit(1)
    elif word == "exit-once" or word.startswith("first="):
        continue
    else:
        s.send(word.encode())
time.sleep(1000)
"""


PYTHON = os.path.realpath("/usr/bin/python3")
PYTHON_MOUNTS = [f"{path}:{path}:ro" for path in ("/usr", "/lib", "/lib64") if os.path.exists(path)]


@contextlib.asynccontextmanager
async def notifying(engine: Engine, *words: str, **options: Any) -> AsyncIterator[Container]:
    if not os.access(PYTHON, os.X_OK):
        pytest.skip("no /usr/bin/python3 on this host, which would send the notifications")
    async with engine.container(
        "busybox", [PYTHON, "-I", "-c", NOTIFY, *words], ready=SdNotify(), mounts=PYTHON_MOUNTS, **options
    ) as box:
        yield box


async def test_ready_by_sd_notify(engine: Engine) -> None:
    async with notifying(engine, "STATUS=loading", "garbage", "sleep=0.3", "READY=1\nSTATUS=serving") as box:
        await box.wait(until="ready", timeout_s=LIMIT_S)
        assert box.status_text == "serving"


async def test_sd_notify_at_the_first_moment_and_as_nobody(engine: Engine) -> None:
    async with notifying(engine, "READY=1", user="65534:65534", read_only=True) as box:
        await box.wait(until="ready", timeout_s=LIMIT_S)


async def test_sd_notify_of_too_much_is_left_out(engine: Engine) -> None:
    async with notifying(engine, "huge", "STATUS=sent") as box:
        await eventually(lambda: box.status_text == "sent", LIMIT_S)
        assert not box.is_ready


async def test_sd_notify_of_a_run_that_is_over_is_not_the_next_ones(engine: Engine) -> None:
    """It has said more than is read at once, and was gone before that was read."""
    words = [*["first=READY=1"] * 40, "exit-once", "STATUS=second"]
    for delay_s in (0.0, 0.1):
        policy = RestartPolicy(name="on-failure", initial_delay_s=delay_s)
        async with notifying(engine, *words, restart=policy) as box:
            await eventually(lambda box=box: box.status_text == "second", LIMIT_S)  # type: ignore[misc]
            assert box.generation == 2
            assert not box.is_ready


async def test_sd_notify_counts_for_its_run_only(engine: Engine) -> None:
    words = ("first=READY=1", "sleep=0.5", "exit-once", "STATUS=second", "sleep=1", "READY=1")
    async with notifying(engine, *words, restart="on-failure") as box:
        await eventually(lambda: box.status_text == "second", LIMIT_S)
        assert not box.is_ready
        await box.wait(until="ready", timeout_s=LIMIT_S)
        assert box._entry.record.generation == 2


# ---- the next engine ---------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def left_behind(root: Path, runtime: str, *words: str) -> AsyncIterator[tuple[Path, str]]:
    """A container that its engine has left, and that says these words when the file is there."""
    if not os.access(PYTHON, os.X_OK):
        pytest.skip("no /usr/bin/python3 on this host, which would send the notifications")
    signs = root.parent / "signs"
    signs.mkdir()
    waits = NOTIFY.replace("for word in", "while not os.path.exists('/signs/go'): time.sleep(0.01)\nfor word in")
    waits = waits.replace("time.sleep(1000)", "open('/signs/said', 'w').close()\ntime.sleep(1000)")
    async with Engine(root, runtime=runtime) as engine:
        box = await engine.create(
            "busybox",
            [PYTHON, "-I", "-c", waits, *words],
            name="box",
            lease=None,
            ready=SdNotify(),
            mounts=[*PYTHON_MOUNTS, f"{signs}:/signs"],
        )
        await box.start()
    yield signs, box.id
    async with Engine(root, runtime=runtime) as engine:
        await (await engine.get(box.id)).remove(force=True)


async def test_ready_said_while_no_engine_is_there(root: Path, real_runtime: str) -> None:
    """Also more words than a socket's queue has room for, which nobody has to wait with."""
    words = ["STATUS=loading", "READY=1", *(f"STATUS=step {number}" for number in range(600))]
    async with left_behind(root, real_runtime, *words) as (signs, id):
        (signs / "go").touch()
        await eventually(lambda: (signs / "said").exists(), LIMIT_S)
        async with Engine(root, runtime=real_runtime) as engine:
            box = await engine.get(id)
            await box.wait(until="ready", timeout_s=LIMIT_S)
            await eventually(lambda: box.status_text == "step 599", LIMIT_S)
        async with Engine(root, runtime=real_runtime) as engine:
            box = await engine.get(id)
            assert box.is_ready


async def test_what_was_not_said_is_not_heard_and_the_socket_goes_on(root: Path, real_runtime: str) -> None:
    """A program that has connected to the socket once still reaches the next engine."""
    async with (
        left_behind(root, real_runtime, "READY=1\nSTATUS=now") as (signs, id),
        Engine(root, runtime=real_runtime) as engine,
    ):
        box = await engine.get(id)
        assert not box.is_ready
        assert box.status_text is None
        (signs / "go").touch()
        await box.wait(until="ready", timeout_s=LIMIT_S)
        assert box.status_text == "now"
        # Of the run before: it does not count for the next.
        await box.restart(grace_s=0)
        assert not box.is_ready
        await box.wait(until="ready", timeout_s=LIMIT_S)


@pytest.mark.parametrize("seed", range(4))
async def test_ready_said_while_engines_are_killed(root: Path, seed: int) -> None:
    """Heard by an engine that dies before it has written that down, or by none."""
    program = (
        "import asyncio, sys\nfrom lighterman import Engine\n"
        "async def main():\n    async with Engine(sys.argv[1]):\n"
        "        print('open', flush=True)\n        await asyncio.Event().wait()\nasyncio.run(main())"
    )
    async with left_behind(root, "crun", "READY=1") as (signs, id):
        for turn in range(2):
            engine = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, str(root), stdout=asyncio.subprocess.PIPE
            )
            assert engine.stdout is not None
            assert await engine.stdout.readline() == b"open\n"
            (signs / "go").touch()
            if turn == seed % 2:
                await eventually(lambda: (signs / "said").exists(), LIMIT_S)
            engine.kill()
            await engine.wait()
        await eventually(lambda: (signs / "said").exists(), LIMIT_S)
        async with Engine(root, runtime="crun") as last:
            await (await last.get(id)).wait(until="ready", timeout_s=LIMIT_S)


async def test_health_and_readiness_go_on_under_the_next_engine(tmp_path: Path, real_runtime: str) -> None:
    check = often(File("/ok"), retries=1)
    script = "touch /ok; echo ready; exec sleep 1000"
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.create(
            "busybox", ["sh", "-c", script], name="box", lease=None, health=check, ready=LogPattern("ready")
        )
        await box.start()
        await box.wait(until="healthy", timeout_s=LIMIT_S)
        await box.wait(until="ready", timeout_s=LIMIT_S)
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.get("box")
        await eventually(lambda: box.health, LIMIT_S)
        assert box.is_ready
        assert box.health is not None
        assert box.health.status is Health.HEALTHY
        await box.exec(["rm", "/ok"])
        await box.wait(until="unhealthy", timeout_s=LIMIT_S)
        await box.remove(force=True)


async def test_the_next_engine_listens_to_the_next_run(tmp_path: Path, real_runtime: str) -> None:
    if not os.access(PYTHON, os.X_OK):
        pytest.skip("no /usr/bin/python3 on this host, which would send the notifications")
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.create(
            "busybox",
            [PYTHON, "-I", "-c", NOTIFY, "READY=1"],
            name="box",
            lease=None,
            ready=SdNotify(),
            mounts=PYTHON_MOUNTS,
            restart="always",
        )
        await box.start()
        await box.wait(until="ready", timeout_s=LIMIT_S)
    async with Engine(tmp_path, runtime=real_runtime) as engine:
        box = await engine.get("box")
        assert box.is_ready
        await eventually(lambda: engine.client_of(box._entry), LIMIT_S)
        os.kill(box.pid, 9)
        await eventually(lambda: box._entry.record.generation == 2, LIMIT_S)
        await box.wait(until="ready", timeout_s=LIMIT_S)
        await box.remove(force=True)
