"""`lighterman ps`, `logs`, `exec`, `wait`, `stop` and `rm` on a root in which a container lives on."""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest
from cli_support import lighterman, one_line, ran, rows, start

from support import eventually_sync

pytestmark = pytest.mark.real


def test_a_container_lives_on_and_is_asked_for(root: str) -> None:
    script = "echo up; echo oops >&2; trap 'echo bye; exit 7' TERM; while :; do sleep 0.05; done"
    id = ran("run", "-d", "--root", root, "--name", "box", "busybox", "sh", "-c", script).strip()
    assert len(id) == 32
    assert ran("ps", "-q", "--root", root) == f"{id[:12]}\n"
    (row,) = rows(root)
    assert (row["id"], row["name"], row["image"], row["status"]) == (id, "box", "busybox", "running")
    assert " Up " in ran("ps", "--root", root)

    eventually_sync(lambda: lighterman("logs", "--root", root, "box").stderr)
    logged = lighterman("logs", "--root", root, "box")
    assert (logged.stdout, logged.stderr) == (b"up\n", b"oops\n")
    assert ran("exec", "--root", root, "-e", "A=b c", "-w", "/tmp", "box", "sh", "-c", "echo $A $PWD") == "b c /tmp\n"

    assert ran("stop", "--root", root, "-t", "30s", "box") == "box\n"
    assert ran("wait", "--root", root, "box") == "7\n"
    assert ran("ps", "-q", "--root", root) == ""
    assert "Exited (7)" in ran("ps", "-a", "--root", root)
    assert lighterman("logs", "--root", root, "-n", "1", "box").stdout == b"bye\n"
    stamped = lighterman("logs", "--root", root, "-t", "--since", "10m", "box").stdout.decode().splitlines()
    assert [line.split("Z ")[1] for line in stamped] == ["up", "bye"]
    assert ran("logs", "--root", root, "--until", "2001-01-01T00:00:00Z", "box") == ""
    assert ran("rm", "--root", root, "box") == "box\n"
    assert rows(root) == []


def test_exec_has_the_codes_streams_and_time_of_its_command(root: str) -> None:
    ran("run", "-d", "--root", root, "--name", "box", "busybox", "sleep", "1000")
    done = lighterman("exec", "-i", "--root", root, "box", "sh", "-c", "cat; echo e >&2; exit 3", input=b"data")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"data", b"e\n")
    assert lighterman("exec", "--root", root, "box", "no-such-program").returncode == 127
    assert lighterman("exec", "--root", root, "--timeout", "500ms", "box", "sleep", "1000").returncode == 143


def test_exec_passes_signals_on(root: str) -> None:
    ran("run", "-d", "--root", root, "--name", "box", "busybox", "sleep", "1000")
    script = "trap 'exit 9' TERM; echo up; while :; do sleep 0.05; done"
    with start("exec", "--root", root, "box", "sh", "-c", script) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n"
        program.send_signal(signal.SIGTERM)
        assert program.wait(60) == 9


def test_what_was_run_in_the_foreground_is_there(root: str) -> None:
    assert lighterman("run", "--root", root, "--name", "box", "busybox", "sh", "-c", "echo x; exit 4").returncode == 4
    assert ran("wait", "--root", root, "box") == "4\n"
    assert ran("logs", "-f", "--root", root, "box") == "x\n"


def test_health_and_its_time(root: str) -> None:
    options = ["--health-cmd", "test -e /ok", "--health-interval", "100ms", "--health-start-interval", "100ms"]
    ran("run", "-d", "--root", root, "--name", "box", *options, "busybox", "sh", "-c", "touch /ok; exec sleep 1000")
    ran("run", "-d", "--root", root, "--name", "short", "--timeout", "500ms", "busybox", "sleep", "1000")
    # No engine is there between two commands: the keeper sees to the time.
    eventually_sync(lambda: {row["name"]: row["status"] for row in rows(root)}["short"] == "exited")
    assert ran("wait", "--root", root, "short") == "137\n"
    (box,) = [row for row in rows(root) if row["name"] == "box"]
    assert box["health"] in ("starting", "healthy")


def test_restart_options_are_taken(root: str) -> None:
    options = ["--restart", "on-failure", "--restart-opt", "delay=1ms", "--restart-opt", "never-on=3"]
    script = "echo x >> /runs; exit $(wc -l < /runs)"
    assert lighterman("run", "--root", root, "--name", "box", *options, "busybox", "sh", "-c", script).returncode == 3


def test_what_ended_between_two_commands_is_seen_so_by_the_next(root: str) -> None:
    for number in range(5):
        ran("run", "-d", "--root", root, "--name", f"box{number}", "busybox", "sleep", "0.3")
        init = Path(f"/proc/{rows(root)[-1]['pid'] or 'none'}")
        eventually_sync(partial(_is_gone, init))
        assert rows(root)[-1]["status"] == "exited"


def _is_gone(path: Path) -> bool:
    return not path.exists()


def test_each_is_told_and_one_that_fails_keeps_no_other_from_it(root: str) -> None:
    for name in ("a", "b"):
        ran("run", "-d", "--root", root, "--name", name, "busybox", "sleep", "1000")
    done = lighterman("stop", "-t", "0", "--root", root, "a", "nosuch", "b")
    assert (done.returncode, done.stdout) == (125, b"a\nb\n")
    assert "nosuch" in one_line(done)
    assert [row["status"] for row in rows(root)] == ["exited", "exited"]
    done = lighterman("rm", "--root", root, "a", "b")
    assert (done.returncode, done.stdout) == (0, b"a\nb\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ps"], "--root"),
        (["ps", "--root", "/no/such/root"], "/no/such/root"),
        (["logs", "--root", "/no/such/root", "--tail", "few", "box"], "few"),
        (["logs", "--root", "/no/such/root", "--since", "yore", "box"], "yore"),
        (["stop", "--root", "/no/such/root", "-t", "never", "box"], "never"),
        (["stop", "--root", "/no/such/root"], "CONTAINER"),
        (["exec", "--root", "/no/such/root", "-e", "=", "box", "true"], "--env"),
        (["exec", "--root", "/no/such/root", "box"], "COMMAND"),
    ],
)
def test_what_can_not_be_is_one_line(arguments: list[str], said: str) -> None:
    done = lighterman(*arguments)
    assert done.returncode == 125
    assert said in one_line(done)
    assert not Path("/no/such/root").exists()
