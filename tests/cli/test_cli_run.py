"""`lighterman run`: exit codes, streams and options as a shell sees them."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import lighterman, processes_of_containers, start

from support import PATIENCE, eventually_sync

pytestmark = pytest.mark.real


# ---- exit codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "exit 255"], 255),
        (["/etc"], 126),
        (["no-such-program"], 127),
        (["sh", "-c", "sh -c 'kill -9 $$' 2>/dev/null; exit $?"], 137),
    ],
)
def test_exit_codes(argv: list[str], code: int) -> None:
    done = lighterman("run", "busybox", *argv)
    assert done.returncode == code
    assert done.stdout == b""
    assert done.stderr.count(b"\n") == (1 if code in (126, 127) else 0)


def test_killed_from_outside_is_137() -> None:
    with start("run", "busybox", "sleep", "12345") as program:
        (child,) = eventually_sync(lambda: _with_argument("12345"))
        os.kill(child, signal.SIGKILL)
        assert program.wait(60) == 137


def _with_argument(argument: str) -> list[int]:
    found = []
    for pid in processes_of_containers("sleep"):
        try:
            if argument.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_ended_by_its_signal_is_143() -> None:
    # As pid 1 the program would be immune to a signal that it has no handler for.
    with start("run", "--init", "busybox", "sh", "-c", "echo up; exec sleep 1000") as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n"
        program.terminate()
        assert program.wait(60) == 143


# ---- streams -----------------------------------------------------------------------------------------------------


def test_stdin_ends_and_output_goes_on() -> None:
    done = lighterman("run", "-i", "busybox", "sort", input=b"b\na\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\nb\n", b"")


def test_without_i_stdin_is_not_connected() -> None:
    done = lighterman("run", "busybox", "cat", input=b"not for you")
    assert (done.returncode, done.stdout) == (0, b"")


def test_stdout_and_stderr_stay_apart() -> None:
    done = lighterman("run", "busybox", "sh", "-c", "echo one; echo two >&2")
    assert (done.stdout, done.stderr) == (b"one\n", b"two\n")


def test_output_comes_as_it_is_written() -> None:
    program = "echo -n first; read x; echo -n $x"
    with start("run", "-i", "busybox", "sh", "-c", program, stdin=subprocess.PIPE) as started:
        assert started.stdin is not None
        assert started.stdout is not None
        assert os.read(started.stdout.fileno(), 100) == b"first"
        started.stdin.write(b"second\n")
        started.stdin.flush()
        assert os.read(started.stdout.fileno(), 100) == b"second"
        assert started.wait(60) == 0


def test_64_mebibytes_there_and_back() -> None:
    data = os.urandom(64 << 20)
    done = lighterman("run", "-i", "busybox", "cat", input=data)
    assert done.returncode == 0
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(data).digest()


def test_into_and_out_of_files(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "in").write_bytes(data)
    with (tmp_path / "in").open("rb") as source, (tmp_path / "out").open("wb") as target:
        done = lighterman("run", "-i", "busybox", "cat", stdin=source, stdout=target)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out").read_bytes() == data


def test_a_slow_consumer_gets_every_byte() -> None:
    """Far more than the log keeps: the program has to wait, and nothing is given up at its end."""
    small = {"LIGHTERMAN_SEGMENT_BYTES": "300000", "LIGHTERMAN_SEGMENT_FILES": "3", "LIGHTERMAN_DRAIN_S": "0.1"}
    count = 20_000_000
    program = f"head -c {count} /dev/zero; echo done >&2"
    with start("run", "busybox", "sh", "-c", program, env={**os.environ, **small}) as started:
        assert started.stdout is not None
        assert started.stderr is not None
        total = len(started.stdout.read(1))
        # It stands: the pipe to us is full, the log is full, the pipe in between is full.
        eventually_sync(lambda: [pid for pid in processes_of_containers("head") if _waits_for_a_pipe(pid)])
        assert started.poll() is None
        while data := started.stdout.read(1 << 20):
            total += len(data)
        assert (total, started.stderr.read(), started.wait(60)) == (count, b"done\n", 0)


def test_a_flood_from_the_first_moment_on_loses_nothing() -> None:
    """More than the log keeps may be written before the start is known to have gone well."""
    small = {"LIGHTERMAN_SEGMENT_BYTES": "65536", "LIGHTERMAN_SEGMENT_FILES": "2"}
    for _ in range(5):
        done = lighterman("run", "busybox", "head", "-c", "20000000", "/dev/zero", env={**os.environ, **small})
        assert (done.returncode, len(done.stdout), done.stderr) == (0, 20_000_000, b"")


def _waits_for_a_pipe(pid: int) -> bool:
    try:
        return "pipe" in Path(f"/proc/{pid}/wchan").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nobody_reads_any_more() -> None:
    with start("run", "busybox", "yes") as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == b"y\n"
        program.stdout.close()
        assert program.wait(60) == 141
        assert program.stderr.read() == b""


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = lighterman("run", "busybox", "yes", stdout=full)
    assert (done.returncode, done.stderr) == (125, b"lighterman: can't write the output: No space left on device\n")


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_descriptors(closing: str) -> None:
    inside = "cat; echo out; echo err >&2; exit 3"
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m lighterman.cli run -i busybox sh -c "{inside}" {closing}', sys.executable],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert done.returncode == 3
    assert done.stdout == (b"" if " >&-" in f" {closing}" else b"out\n")
    assert done.stderr == (b"" if "2>&-" in closing else b"err\n")


# ---- options -----------------------------------------------------------------------------------------------------


def _says(*arguments: str, **options: Any) -> str:
    done = lighterman("run", *arguments, **options)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def test_environment(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("# a comment\n\nFILE=from file\nHERE\nBOTH=file\n")
    said = _says(
        *("-e", "A=1=2", "-e", "NOT_THERE", "-e", "BOTH=option", "-e", "EMPTY=", "--env-file", str(tmp_path / "env")),
        *("busybox", "env"),
        env={**os.environ, "HERE": "here"},
    )
    assert {"A=1=2", "HERE=here", "FILE=from file", "BOTH=option", "EMPTY="} <= set(said.splitlines())
    assert "NOT_THERE" not in said


def test_user_workdir_and_hostname() -> None:
    said = _says("-u", "12:34", "-w", "/tmp", "-h", "box.example", "busybox", "sh", "-c", "id -u; id -g; pwd; hostname")
    assert said.split() == ["12", "34", "/tmp", "box.example"]


def test_options_end_at_the_image() -> None:
    assert _says("busybox", "echo", "-w", "--rm", "--", "x").split() == ["-w", "--rm", "--", "x"]


def test_volumes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("from the host")
    read_and_write = ("busybox", "sh", "-c", "cat /data/file; echo x > /data/new")
    assert _says("-v", f"{tmp_path}:/data", *read_and_write) == "from the host"
    assert (tmp_path / "new").read_text() == "x\n"
    assert _says("-v", "./file:/f:ro", "busybox", "cat", "/f", cwd=tmp_path) == "from the host"
    refused = lighterman("run", "-v", f"{tmp_path}:/data:ro", "busybox", "touch", "/data/no")
    assert (refused.returncode, (tmp_path / "no").exists()) == (1, False)


def test_read_only_root_and_tmpfs() -> None:
    program = "touch /x 2>/dev/null || echo refused; df -k /t | tail -1 | awk '{print $2}'; stat -c %a /t"
    said = _says("--read-only", "--tmpfs", "/t:size=1m,mode=0711", "busybox", "sh", "-c", program)
    assert said.split() == ["refused", "1024", "711"]


def test_limits_are_in_the_cgroup() -> None:
    memory = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max"
    assert int(_says("-m", "64m", "busybox", "sh", "-c", memory)) == 64 << 20
    pids = "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max"
    assert int(_says("--pids-limit", "33", "busybox", "sh", "-c", pids)) == 33


def test_ulimit_sysctl_and_shm() -> None:
    program = "ulimit -n; cat /proc/sys/net/ipv4/ip_default_ttl; df -k /dev/shm | tail -1 | awk '{print $2}'"
    said = _says(
        *("--ulimit", "nofile=123:456", "--sysctl", "net.ipv4.ip_default_ttl=77", "--shm-size", "2m"),
        *("busybox", "sh", "-c", program),
    )
    assert said.split() == ["123", "77", "2048"]


def test_capabilities_and_confinement() -> None:
    show = ("busybox", "awk", "/^CapEff|^NoNewPrivs|^Seccomp:/ {print $2}", "/proc/self/status")
    assert _says("--cap-drop", "ALL", "--security-opt", "no-new-privileges", *show).split() == ["0" * 16, "1", "2"]
    said = _says("--cap-drop", "ALL", "--cap-add", "CHOWN", "--security-opt", "seccomp=unconfined", *show)
    assert said.split() == ["0" * 15 + "1", "0", "0"]


def test_a_directory_as_root(tmp_path: Path) -> None:
    root = tmp_path / "rootfs"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "sh").write_bytes(Path("/bin/busybox").read_bytes())
    (root / "bin" / "sh").chmod(0o755)
    program = ("/bin/sh", "-c", "echo hello > /new; echo /*")
    assert "/new" in _says(str(root), *program)
    assert "/new" in _says("./rootfs", *program, cwd=tmp_path)
    assert "/new" in _says("--rootfs", str(root), *program)
    assert not (root / "new").exists()
    assert "/new" in _says("--rootfs", str(root), "--rw", *program)
    assert (root / "new").read_text() == "hello\n"


def test_runtime_is_chosen(real_runtime: str) -> None:
    assert _says("--runtime", real_runtime, "busybox", "echo", "hi") == "hi\n"


def test_restart_goes_on_in_the_foreground() -> None:
    done = lighterman("run", "--restart", "on-failure:2", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, b"out\n" * 3, b"err\n" * 3)


def test_timings_table() -> None:
    done = lighterman("run", "--timings", "busybox", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout) == (3, b"out\n")
    first, *table = done.stderr.decode().splitlines()
    assert first == "err"
    phases = {name: float(ms) for line in table for name, ms in re.findall(r"^(\w+) +([\d.]+) ms$", line)}
    assert list(phases) == ["prepare", "runtime", "program", "drain", "total"]
    assert sum(phases.values()) == pytest.approx(2 * phases["total"], abs=0.5)


# ---- signals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TERM", "HUP", "INT", "QUIT", "USR1", "USR2"])
def test_signals_are_the_programs(name: str) -> None:
    trap = f"trap 'echo caught; exit 9' {name}; echo up; while :; do sleep 0.05; done"
    program = start("run", "busybox", "sh", "-c", trap)
    assert program.stdout is not None
    assert program.stdout.readline() == b"up\n"
    program.send_signal(signal.Signals[f"SIG{name}"])
    out, err = program.communicate(timeout=60 * PATIENCE)
    assert (program.returncode, out, err) == (9, b"caught\n", b"")


def test_who_insists_kills() -> None:
    program = start("run", "busybox", "sh", "-c", "trap '' INT; echo up; exec sleep 1000")
    assert program.stdout is not None
    assert program.stdout.readline() == b"up\n"
    for _ in range(3):
        program.send_signal(signal.SIGINT)
        # The same signal twice at once is one.
        eventually_sync(lambda: not _mask(program.pid, "ShdPnd"))
    assert (program.communicate(timeout=60 * PATIENCE), program.returncode) == ((b"", b""), 137)


def test_a_signal_before_the_start_leaves_nothing() -> None:
    with start("run", "busybox", "sleep", "1000") as program:
        # As soon as its handlers are there; too late by chance, it would be the program's own, which ignores it.
        eventually_sync(lambda: _mask(program.pid, "SigCgt") >> (signal.SIGUSR2 - 1) & 1)
        program.terminate()
        assert program.wait(60) == 143


def _mask(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1], 16) if found else 0
