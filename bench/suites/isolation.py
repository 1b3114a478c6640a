"""What a container sees of its confinement, ours beside raw crun's and docker's: no figure is bought with less."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from bench.peers.raw import RawRuntime
from bench.setting import IMAGE, Setting
from bench.spawn import DEADLINE_S
from bench.trouble import Trouble

__all__ = ["describe", "measure"]

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
_PARTS = ("status", "ns", "cgroup", "mountinfo", "dev")
_LOOK = (
    "sh",
    "-c",
    "; ".join(
        [
            "echo @status; cat /proc/self/status",
            "echo @ns; for n in " + " ".join(_NAMESPACES) + "; do echo $n $(readlink /proc/self/ns/$n); done",
            "echo @cgroup; cat /proc/self/cgroup",
            "echo @mountinfo; cat /proc/self/mountinfo",
            "echo @dev; ls /dev",
        ]
    ),
)


async def measure(setting: Setting) -> None:
    report, peers = setting.report, setting.peers
    done = await setting.engine.run(IMAGE, _LOOK)
    report.isolation["lighterman"] = describe(done.stdout.decode())
    for runtime in (peers.crun, peers.runc):
        if runtime is not None:
            report.isolation[f"raw {runtime.name}"] = describe(_output_of(runtime))
    for name, peer in (("docker", peers.docker), ("podman", peers.podman)):
        if peer is not None:
            try:
                report.isolation[name] = describe(peer.output_of(_LOOK))
            except Trouble as trouble:
                report.absent[f"isolation: {name}"] = str(trouble)


def _output_of(runtime: RawRuntime) -> str:
    id, bundle = runtime.prepare(_LOOK)
    done = subprocess.run(runtime.command(bundle, id), capture_output=True, text=True, timeout=DEADLINE_S, check=True)
    return done.stdout


def describe(seen: str) -> dict[str, str]:
    """From what the program inside wrote to what is compared."""
    parts: dict[str, list[str]] = {name: [] for name in _PARTS}
    lines = parts["status"]
    for line in seen.splitlines():
        if line.startswith("@"):
            lines = parts[line[1:]]
        else:
            lines.append(line)
    status = dict(line.split(":\t", 1) for line in parts["status"] if ":\t" in line)
    own = [name for name, link in (line.split() for line in parts["ns"]) if link != _host_namespace(name)]
    mounts = [_mount(line.split()) for line in parts["mountinfo"]]
    below = [(target, options, kind) for target, options, kind in mounts if target.startswith(("/proc/", "/sys/"))]
    # An empty directory, or /dev/null, over what is there; version 1 of cgroups has a tmpfs of its own.
    masked = [target for target, _, kind in below if kind in ("tmpfs", "devtmpfs") and target != "/sys/fs/cgroup"]
    return {
        "own namespaces": " ".join(own),
        "capabilities effective": _capabilities(status["CapEff"]),
        "capabilities bounding": _capabilities(status["CapBnd"]),
        "seccomp": f"mode {status['Seccomp']}, filters {status.get('Seccomp_filters', '?')}",
        "no new privileges": status["NoNewPrivs"],
        "cgroup hierarchies": str(len(parts["cgroup"])),
        "cgroups of its own": _own_cgroups(parts["cgroup"], namespace="cgroup" in own),
        "mounts": str(len(mounts)),
        "masked paths": str(len(masked)),
        "read-only below /proc and /sys": str(sum("ro" in options for _, options, _ in below)),
        "devices": str(len(parts["dev"])),
    }


def _mount(fields: list[str]) -> tuple[str, list[str], str]:
    """Target, options and file system type of a line of mountinfo, proc(5)."""
    return fields[4], fields[5].split(","), fields[fields.index("-") + 1]


def _own_cgroups(lines: list[str], *, namespace: bool) -> str:
    """How many hierarchies hold it apart; through a cgroup namespace of its own its cgroup is seen as the root."""
    host = dict(_cgroup(line) for line in Path("/proc/self/cgroup").read_text().splitlines())
    seen = dict(_cgroup(line) for line in lines)
    return str(sum(path != host.get(number) or (namespace and path == "/") for number, path in seen.items()))


def _cgroup(line: str) -> tuple[str, str]:
    number, _, path = line.split(":", 2)
    return number, path


def _capabilities(mask: str) -> str:
    return f"{int(mask, 16).bit_count()} ({mask.lstrip('0') or '0'})"


def _host_namespace(name: str) -> str:
    return os.readlink(f"/proc/self/ns/{name}")
