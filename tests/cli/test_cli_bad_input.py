"""What can't be asked of the command line: one line of ours, docker's code, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_support import lighterman, one_line, start

from support import eventually_sync

pytestmark = pytest.mark.real

REFUSED = [
    ([], "no image given"),
    (["no-such-image", "true"], "no image 'no-such-image'"),
    (["registry.example/name:tag", "true"], "no image 'registry.example/name:tag'"),
    (["/no/such/directory", "true"], "/no/such/directory"),
    (["./no-such-directory", "true"], "no-such-directory"),
    (["--rootfs", "/etc/passwd", "true"], "/etc/passwd"),
    (["--rootfs", "/bin"], "no command given"),
    (["--rw", "busybox", "true"], "--rw"),
    (["busybox", ""], "empty string"),
    (["-e", "=x", "busybox", "true"], "--env '=x'"),
    (["--env-file", "/no/such/file", "busybox", "true"], "/no/such/file"),
    (["--env-file", "/dev/zero", "busybox", "true"], "bytes"),
    (["-w", "relative", "busybox", "true"], "relative"),
    (["-u", "no-such-user", "busybox", "true"], "no-such-user"),
    (["-h", "a b", "busybox", "true"], "a b"),
    (["--name", "../x", "busybox", "true"], "../x"),
    (["--name", "a/b", "busybox", "true"], "a/b"),
    (["--name", "a\nb", "busybox", "true"], r"a\nb"),
    (["-m", "many", "busybox", "true"], "'many'"),
    (["-m", "1m", "busybox", "true"], "6 MiB"),
    (["--shm-size", "-5", "busybox", "true"], "'-5'"),
    (["--cpus", "lots", "busybox", "true"], "'lots'"),
    (["--cpus", "4096", "busybox", "true"], "4096"),
    (["--pids-limit", "x", "busybox", "true"], "--pids-limit"),
    (["--cpu-shares", "1", "busybox", "true"], "cpu shares 1"),
    (["-v", "/no/such/source:/x", "busybox", "true"], "/no/such/source"),
    (["-v", "name:/x", "busybox", "true"], "named volumes"),
    (["-v", "/tmp", "busybox", "true"], "--volume '/tmp'"),
    (["-v", "/tmp:/x:zz", "busybox", "true"], "'zz'"),
    (["--tmpfs", "/x:size=big", "busybox", "true"], "big"),
    (["--tmpfs", "/x:speed=1", "busybox", "true"], "speed"),
    (["--device", "/dev/no-such", "busybox", "true"], "/dev/no-such"),
    (["--sysctl", "x", "busybox", "true"], "--sysctl 'x'"),
    (["--ulimit", "nofile", "busybox", "true"], "nofile"),
    (["--ulimit", "nofile=a:b", "busybox", "true"], "nofile=a:b"),
    (["--cap-add", "FLY", "busybox", "true"], "FLY"),
    (["--security-opt", "label=x", "busybox", "true"], "label=x"),
    (["--security-opt", "seccomp=/no/such/profile", "busybox", "true"], "/no/such/profile"),
    (["--device-read-bps", "/dev/sda", "busybox", "true"], "--device-read-bps"),
    (["--network", "bridge", "busybox", "true"], "bridge"),
    (["--runtime", "docker", "busybox", "true"], "docker"),
    (["--restart", "sometimes", "busybox", "true"], "sometimes"),
    (["--rm", "--restart", "always", "busybox", "true"], "--restart"),
    (["--restart-opt", "delay", "busybox", "true"], "--restart-opt 'delay'"),
    (["--restart-opt", "speed=1", "busybox", "true"], "max-delay"),
    (["--restart-opt", "delay=soon", "busybox", "true"], "delay=soon"),
    (["--restart-opt", "jitter=2", "busybox", "true"], "jitter"),
    (["--restart-opt", "on=SIGNONE", "busybox", "true"], "SIGNONE"),
    (["--health-interval", "5s", "busybox", "true"], "--health-cmd"),
    (["--health-cmd", "true", "--health-interval", "often", "busybox", "true"], "--health-interval"),
    (["--health-cmd", "true", "--health-retries", "0", "busybox", "true"], "retries"),
    (["--health-cmd", "true", "--health-on-failure", "cry", "busybox", "true"], "cry"),
    (["--timeout", "never", "busybox", "true"], "--timeout"),
    (["--log-policy", "lose", "busybox", "true"], "log_policy"),
    (["--log-sink", "mail", "busybox", "true"], "--log-sink 'mail'"),
    (["-d", "busybox", "true"], "--root"),
    (["-d", "--rm", "--root", "/tmp/x", "busybox", "true"], "--rm"),
    (["-i", "--restart", "always", "busybox", "true"], "--restart"),
    (["--stop-signal", "SIGNOTHING", "busybox", "true"], "SIGNOTHING"),
    (["--no-such-option", "busybox", "true"], "--no-such-option"),
    (["--root", "/", "busybox", "true"], "'/'"),
    (["--root", "/dev/null/x", "busybox", "true"], "/dev/null/x"),
]


@pytest.mark.parametrize(("arguments", "named"), REFUSED, ids=[" ".join(case[0])[:40] or "none" for case in REFUSED])
def test_refused(arguments: list[str], named: str) -> None:
    done = lighterman("run", *arguments)
    assert named in one_line(done)
    assert (done.returncode, done.stdout) == (125, b"")


def test_bytes_that_are_no_text() -> None:
    done = lighterman("run", "busybox", "echo", os.fsdecode(b"\xff\xfe"))
    assert (done.returncode, "UTF-8" in one_line(done)) == (125, True)


def test_10_mebibytes_of_environment(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("".join(f"V{number}={'x' * 1000}\n" for number in range(10_000)))
    done = lighterman("run", "--env-file", str(tmp_path / "env"), "busybox", "true")
    assert (done.returncode, "environment is" in one_line(done)) == (125, True)


def test_a_root_that_is_held(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    with start("run", "--rm", "--root", root, "--init", "busybox", "sh", "-c", "echo up; exec sleep 1000") as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"up\n"
        done = lighterman("run", "--rm", "--root", root, "busybox", "true")
        assert (done.returncode, f"(process {first.pid})" in one_line(done)) == (125, True)
        first.terminate()
        assert first.wait(60) == 143
    assert lighterman("run", "--rm", "--root", root, "busybox", "true").returncode == 0


def test_two_of_one_name_in_one_root(tmp_path: Path) -> None:
    keep = ("run", "--root", str(tmp_path / "root"), "--name", "box", "busybox", "true")
    assert lighterman(*keep).returncode == 0
    done = lighterman(*keep)
    assert (done.returncode, "'box' exists already" in one_line(done)) == (125, True)


def test_no_runtime(tmp_path: Path) -> None:
    done = lighterman("run", "busybox", "true", env={**os.environ, "PATH": str(tmp_path)})
    assert (done.returncode, "not installed" in one_line(done)) == (125, True)


def test_not_root() -> None:
    # Where only root can read the modules, they have to be loaded before.
    program = """
import os, sys
import lighterman.cli.foreground, lighterman.cli.run, lighterman.linux_host
from lighterman.cli.app import invoke
os.setresuid(65534, 65534, 65534)
sys.exit(invoke(["run", "busybox", "true"]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    assert (done.returncode, "root" in one_line(done)) == (125, True)


def test_an_unexpected_error_asks_for_a_report(tmp_path: Path) -> None:
    program = """
import sys
import lighterman.cli.foreground as foreground
from lighterman.cli.app import invoke
def fail(asked):
    raise ZeroDivisionError("a\\nb")
foreground.run_in_foreground = fail
sys.exit(invoke(["run", "busybox", "true"]))
"""
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, timeout=60, check=False)
    assert done.returncode == 125
    assert one_line(done).startswith("internal error, please report it: ZeroDivisionError: a b ")
    loud = subprocess.run(
        run, capture_output=True, timeout=60, check=False, env={**os.environ, "LIGHTERMAN_DEBUG": "1"}
    )
    assert b"Traceback" in loud.stderr


def test_killed_leaves_nothing_once_the_next_one_has_run() -> None:
    with start("run", "busybox", "sh", "-c", "echo up; exec sleep 1000") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n"
        program.kill()
        program.wait(60)
    # The leak check of this test waits for what ends by itself; what does not is swept by the next.
    eventually_sync(lambda: lighterman("run", "busybox", "true").returncode == 0)
