"""`lighterman start` and `attach` on a root in which containers live on."""

from __future__ import annotations

import signal
import subprocess

import pytest
from cli_support import AtTerminal, lighterman, one_line, ran, rows, start

from lighterman import sync
from support import eventually_sync

pytestmark = pytest.mark.real

TICKS = "while :; do echo tick; sleep 0.05; done"


def made(root: str, name: str, script: str, *options: str) -> None:
    """A container that has ended."""
    lighterman("run", "--root", root, "--name", name, *options, "busybox", "sh", "-c", script)
    assert rows(root)[-1]["name"] == name


# ---- start -------------------------------------------------------------------------------------------------------


def test_start_runs_what_has_ended_again_and_tells_each(root: str) -> None:
    for name in ("a", "b"):
        made(root, name, "echo x; exit 4")
    done = lighterman("start", "--root", root, "a", "nosuch", "b")
    assert (done.returncode, done.stdout) == (125, b"a\nb\n")
    assert "nosuch" in one_line(done)
    assert ran("wait", "--root", root, "a", "b") == "4\n4\n"
    assert ran("logs", "--root", root, "a") == "x\nx\n"


def test_start_leaves_what_runs_as_it_is(root: str) -> None:
    ran("run", "-d", "--root", root, "--name", "box", "busybox", "sleep", "1000")
    pid = rows(root)[0]["pid"]
    assert ran("start", "--root", root, "box") == "box\n"
    assert (rows(root)[0]["status"], rows(root)[0]["pid"]) == ("running", pid)


def test_start_attached_to_one_that_never_ran(root: str) -> None:
    with sync.Engine(root) as engine:
        engine.create("busybox", ["sh", "-c", "cat; echo e >&2; exit 3"], name="box", stdin=True, lease=None)
    done = lighterman("start", "-i", "--root", root, "box", input=b"data")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"data", b"e\n")


def test_start_attached_passes_on_this_run_alone(root: str) -> None:
    made(root, "box", "echo x >> /runs; wc -l < /runs")
    for run in (b"2\n", b"3\n"):
        done = lighterman("start", "-a", "--root", root, "box")
        assert (done.returncode, done.stdout, done.stderr) == (0, run, b"")


def test_start_attached_stays_for_restarts(root: str) -> None:
    made(root, "box", "echo out; echo err >&2; exit 7", "--restart", "on-failure:1")
    done = lighterman("start", "-a", "--root", root, "box")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n" * 2, b"err\n" * 2)


def test_start_of_one_that_waits_for_its_restart_does_not_wait(root: str) -> None:
    options = ["--restart", "on-failure", "--restart-opt", "delay=1h", "--restart-opt", "max-delay=1h"]
    script = "echo x >> /runs; cat /runs; test $(wc -l < /runs) -eq 3"
    ran("run", "-d", "--root", root, "--name", "box", *options, "busybox", "sh", "-c", script)
    eventually_sync(lambda: rows(root)[0]["status"] == "restarting")
    assert ran("start", "--root", root, "box") == "box\n"
    eventually_sync(lambda: rows(root)[0]["status"] == "restarting")
    assert ran("start", "-a", "--root", root, "box") == "x\nx\nx\n"
    assert rows(root)[0]["status"] == "exited"


def test_start_attached_to_what_can_not_start(root: str) -> None:
    with sync.Engine(root) as engine:
        engine.create("busybox", ["no-such-program"], name="box", lease=None)
    for options in ([], ["-a"]):
        done = lighterman("start", *options, "--root", root, "box")
        assert (done.returncode, "no-such-program" in one_line(done)) == (127, True)


def test_start_attached_passes_signals_on(root: str) -> None:
    made(root, "box", "test -e /n || { touch /n; exit; }; trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done")
    with start("start", "-a", "--root", root, "box") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n"
        program.terminate()
        assert program.wait(60) == 9


# ---- attach ------------------------------------------------------------------------------------------------------


def test_attach_passes_on_what_comes_signals_and_the_code(root: str) -> None:
    script = f"echo early; trap 'echo bye; echo oops >&2; exit 7' TERM; {TICKS}"
    ran("run", "-d", "--root", root, "--name", "box", "busybox", "sh", "-c", script)
    program = start("attach", "--root", root, "box")
    assert program.stdout is not None
    assert program.stdout.readline() == b"tick\n"
    program.terminate()
    out, err = program.communicate(timeout=60)
    assert program.returncode == 7
    assert set(out.splitlines()) <= {b"tick", b"bye"}
    assert out.endswith(b"bye\n")
    assert err == b"oops\n"


def test_attach_passes_stdin_on_to_its_end(root: str) -> None:
    made(root, "box", "cat; exit 3", "-i")
    ran("start", "--root", root, "box")
    done = lighterman("attach", "--root", root, "box", input=b"b\na\n")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"b\na\n", b"")


def test_attach_is_left_and_the_container_lives_on(root: str) -> None:
    made(root, "box", f"test -e /n || {{ touch /n; exit; }}; ({TICKS}) & read x; echo got $x; exit 6", "-i")
    ran("start", "--root", root, "box")
    for leave, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        # Its stdin is empty, which would be the container's end.
        with start("attach", "--no-stdin", "--sig-proxy=false", "--root", root, "box") as program:
            assert program.stdout is not None
            assert program.stdout.readline() == b"tick\n"
            program.send_signal(leave)
            assert program.wait(60) == code
    with start("attach", "--no-stdin", "--root", root, "box") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == b"tick\n"
        program.stdout.close()
        assert program.wait(60) == 141
        assert program.stderr.read() == b""
    assert rows(root)[0]["status"] == "running"
    # A start that finds it running is the same.
    with start("start", "-ai", "--root", root, "box", stdin=subprocess.PIPE) as program:
        out, _ = program.communicate(b"it\n", timeout=60)
        assert (program.returncode, b"got it\n" in out) == (6, True)


def test_attach_at_a_terminal_that_goes_away_and_another(root: str) -> None:
    with AtTerminal("run", "-it", "--root", root, "--name", "box", "busybox", "sh") as terminal:
        terminal.expect(b"# ")
        terminal.type(b"exit\r")
        assert terminal.wait() == 0
    ran("start", "--root", root, "box")
    with AtTerminal("attach", "--root", root, "box") as terminal:
        terminal.type(b"x=4; echo $((x + 1))$x\r")
        terminal.expect(b"\r\n54\r\n")
        assert terminal.is_raw
        terminal.resize(31, 77)
        terminal.type(b"until stty size | grep '31 77'; do :; done\r")
        terminal.expect(b"\r\n31 77\r\n")
        terminal.process.send_signal(signal.SIGHUP)
        assert terminal.wait() == 129
        assert terminal.attributes() == terminal.before
    with AtTerminal("attach", "--root", root, "box") as terminal:
        terminal.type(b"until stty size | grep '40 100'; do :; done; exit $((x + 1))\r")
        assert terminal.wait() == 5
        assert b"40 100\r\n" in terminal.seen
        assert terminal.attributes() == terminal.before


def test_run_detached_waits_with_its_terminal_for_who_attaches(root: str) -> None:
    ran("run", "-dit", "--root", root, "--name", "box", "busybox", "sh")
    with AtTerminal("attach", "--root", root, "box") as terminal:
        terminal.type(b"echo $((6 * 7)); exit 3\r")
        assert terminal.wait() == 3
        assert b"\r\n42\r\n" in terminal.seen
    assert ran("wait", "--root", root, "box") == "3\n"


def test_run_detached_keeps_stdin_open_for_who_attaches(root: str) -> None:
    ran("run", "-d", "-i", "--root", root, "--name", "box", "busybox", "sh", "-c", "cat; exit 4")
    done = lighterman("attach", "--root", root, "box", input=b"data\n")
    assert (done.returncode, done.stdout) == (4, b"data\n")


def test_what_can_not_be_attached_to_is_one_line(root: str) -> None:
    made(root, "box", "exit 1")
    with sync.Engine(root) as engine:
        engine.create("busybox", ["sh"], name="tty", stdin=True, terminal=True, lease=None)
    for arguments, said in (
        (["attach", "box"], "box is exited"),
        (["attach", "nosuch"], "nosuch"),
        (["start", "-a", "nosuch"], "nosuch"),
        (["start", "-a", "box", "tty"], "one container"),
        (["start", "-ai", "tty"], "not a TTY"),
        (["attach", "--sig-proxy=perhaps", "box"], "perhaps"),
        (["start"], "CONTAINER"),
    ):
        done = lighterman(*arguments[:1], "--root", root, *arguments[1:])
        assert (done.returncode, done.stdout) == (125, b"")
        assert said in one_line(done)
    assert {row["name"]: row["status"] for row in rows(root)} == {"box": "exited", "tty": "created"}
