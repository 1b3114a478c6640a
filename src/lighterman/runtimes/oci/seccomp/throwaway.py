"""A container that lives for a moment, to see which filter a runtime puts into force.

It ends by itself when its standard input ends, so nothing is left of it when we are killed meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from lighterman.errors import RuntimeFailed

__all__ = ["FILTER_FILE", "Seen", "observe"]

FILTER_FILE = "seccomp.bpf"
"""What crun names the compiled filter in its state directory."""

_ID = "lighterman-filter"
_PROGRAM = "/busybox"


class Seen(msgspec.Struct, frozen=True):
    """What one throwaway container showed: its first line, and the filter in the runtime's state while it ran."""

    line: str
    filter: bytes | None


def observe(
    runtime: str,
    busybox: str,
    script: str,
    *,
    directory: Path,
    seccomp: bytes,
    annotations: dict[str, str] | None = None,
    timeout_s: float,
) -> Seen:
    """Run `script` in a shell, in a new container, until it has written one line; it blocks.

    Args:
        busybox: a static one on the host; `$B` in the script. directory: where the throwaway bundle is made.
        seccomp: the encoded section.
    Raises: RuntimeFailed where there was no line within `timeout_s`.
    """
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=directory))
    try:
        _make_bundle(work, busybox, script, seccomp, annotations or {})
        return _run(runtime, work, timeout_s)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(runtime: str, work: Path, timeout_s: float) -> Seen:
    state = work / "state"
    with open(work / "stderr", "w+b") as stderr:
        process = subprocess.Popen(
            # Without cgroups: none of ours would be seen, and none could be left behind.
            [runtime, "--root", str(state), "--cgroup-manager=disabled", "run", "--bundle", str(work), _ID],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={"PATH": os.defpath},
            cwd=work,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + timeout_s
        try:
            line = _first_line(process.stdout.fileno(), deadline)
            filter = _read(state / _ID / FILTER_FILE) if line else None
        finally:
            # The end of its input ends the script, that the container, and that the runtime, which then tidies up.
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(max(1.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if not line:
            stderr.seek(0)
            words = stderr.read(2048).decode("utf-8", "replace").strip()
            raise RuntimeFailed(
                f"{runtime} showed nothing of its seccomp filter: {words or 'no message'}",
                runtime=os.path.basename(runtime),
                operation="seccomp",
                exit_status=process.returncode,
                last_words=words,
            )
    return Seen(line, filter)


def _first_line(descriptor: int, deadline: float) -> str:
    collected = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while b"\n" not in collected and len(collected) < 4096:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                break
            piece = os.read(descriptor, 4096)
            if not piece:
                break
            collected += piece
    line, newline, _ = collected.partition(b"\n")
    return line.decode("ascii", "replace") if newline else ""


def _read(path: Path) -> bytes | None:
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    return None


def _make_bundle(work: Path, busybox: str, script: str, seccomp: bytes, annotations: dict[str, str]) -> None:
    root = work / "rootfs"
    for name in ("dev", "proc", "sys"):
        (root / name).mkdir(parents=True)
    (root / _PROGRAM[1:]).touch(mode=0o755)
    caps = ["CAP_DAC_OVERRIDE"]
    process: dict[str, Any] = {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": [_PROGRAM, "sh", "-c", f"{script}; read end"],
        "env": [f"B={_PROGRAM}"],
        "cwd": "/",
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
    }
    document = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": process,
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": _PROGRAM, "type": "bind", "source": busybox, "options": ["bind", "ro"]},
        ],
        "annotations": annotations,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")],
            "seccomp": msgspec.Raw(seccomp),
        },
    }
    (work / "config.json").write_bytes(msgspec.json.encode(document))
