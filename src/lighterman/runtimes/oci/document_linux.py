"""The `linux` object: namespaces, hidden paths, devices, sysctls, resources, seccomp."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from lighterman.errors import InvalidSpec
from lighterman.runtimes.oci.cgroups import resources_to_oci
from lighterman.runtimes.oci.document_checks import check_target, shown, text_bytes
from lighterman.spec import Device, Resources

__all__ = ["encode_linux"]

# Docker's. Each tells of the host, or lets it be changed.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# What every container may use: null, zero, full, random, urandom, tty, console, ptmx, pseudo terminals; nodes of
# any kind may be made, and not opened.
_DEVICE_RULES: tuple[dict[str, Any], ...] = (
    {"allow": False, "access": "rwm"},
    {"allow": True, "type": "c", "access": "m"},
    {"allow": True, "type": "b", "access": "m"},
    *(
        {"allow": True, "type": "c", "major": major, "minor": minor, "access": "rwm"}
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2))
    ),
    {"allow": True, "type": "c", "major": 136, "access": "rwm"},
)
_EVERY_DEVICE: tuple[dict[str, Any], ...] = ({"allow": True, "access": "rwm"},)

# /dev of a container has its own of these.
_OWN_IN_DEV = frozenset({"console", "fd", "mqueue", "ptmx", "pts", "shm", "stderr", "stdin", "stdout", "core"})

_SYSCTL = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def encode_linux(
    *,
    id: str,
    network: str,
    own_cgroup_namespace: bool,
    privileged: bool,
    resources: Resources,
    devices: tuple[Device, ...],
    sysctls: Mapping[str, str],
    seccomp: bytes | None,
) -> bytes:
    """The encoded object. With `devices`, or privileged, it looks at the host's files.

    Args: seccomp: the encoded section, None for none.
    Raises: InvalidSpec for a device or a sysctl that can't be.
    """
    nodes, rules = _devices(devices, privileged)
    parts = [_encoded_frame(network, own_cgroup_namespace, privileged)]
    parts.append(b'"cgroupsPath":"/lighterman/%s"' % id.encode())
    limits = resources_to_oci(resources) if resources != _UNLIMITED else {}
    parts.append(_encoded_resources(privileged) if not limits and not nodes else _resources(limits, rules))
    if nodes:
        parts.append(b'"devices":' + msgspec.json.encode(nodes))
    if sysctls:
        parts.append(b'"sysctl":' + msgspec.json.encode(_checked_sysctls(sysctls, network)))
    if seccomp is not None:
        parts.append(b'"seccomp":' + seccomp)
    return b"{%s}" % b",".join(parts)


_UNLIMITED = Resources()


@lru_cache(maxsize=16)
def _encoded_frame(network: str, own_cgroup_namespace: bool, privileged: bool) -> bytes:
    """What depends on nothing else: namespaces and paths, without the braces."""
    kinds = ["pid", "ipc", "uts", "mount"]
    if network != "host":
        kinds.append("network")
    # With version 1 a namespace would hide nothing: the hierarchies are mounted by path.
    if own_cgroup_namespace:
        kinds.append("cgroup")
    frame: dict[str, Any] = {"namespaces": [{"type": kind} for kind in kinds]}
    if not privileged:
        frame["maskedPaths"] = MASKED_PATHS
        frame["readonlyPaths"] = READ_ONLY_PATHS
    return msgspec.json.encode(frame)[1:-1]


@lru_cache(maxsize=2)
def _encoded_resources(privileged: bool) -> bytes:
    return _resources({}, _EVERY_DEVICE if privileged else _DEVICE_RULES)


def _resources(limits: dict[str, Any], rules: Iterable[dict[str, Any]]) -> bytes:
    return b'"resources":' + msgspec.json.encode({"devices": list(rules), **limits})


# ---- devices -----------------------------------------------------------------------------------------------------


def _devices(wanted: tuple[Device, ...], privileged: bool) -> tuple[list[dict[str, Any]], tuple[dict[str, Any], ...]]:
    """Nodes to make, and the rules of the device cgroup."""
    nodes: dict[str, dict[str, Any]] = {}
    rules: list[dict[str, Any]] = []
    if privileged:
        nodes = {node["path"]: node for node in _host_devices("/dev")}
    for device in wanted:
        node = _device(device)
        nodes[node["path"]] = node
        rules.append(
            {
                "allow": True,
                "type": node["type"],
                "major": node["major"],
                "minor": node["minor"],
                "access": device.permissions,
            }
        )
    return list(nodes.values()), _EVERY_DEVICE if privileged else (*_DEVICE_RULES, *rules)


def _device(device: Device) -> dict[str, Any]:
    path = device.path_on_host
    text_bytes(path, "device")
    if not path.startswith("/"):
        raise InvalidSpec(f"device {shown(path)}: must be absolute")
    if not device.permissions or not set(device.permissions) <= set("rwm"):
        raise InvalidSpec(f"device {shown(path)}: permissions {shown(device.permissions)} must be some of rwm")
    target = check_target(device.path_in_container or path, "device path in the container")
    try:
        node = _node(path, target, os.stat(path))
    except OSError as missing:
        raise InvalidSpec(f"device {shown(path)}: {missing.strerror}") from missing
    if node is None:
        raise InvalidSpec(f"device {shown(path)}: is not a device")
    return node


def _node(path: str, target: str, status: os.stat_result) -> dict[str, Any] | None:
    kind = stat.S_IFMT(status.st_mode)
    if kind not in (stat.S_IFCHR, stat.S_IFBLK):
        return None
    return {
        "path": target,
        "type": "c" if kind == stat.S_IFCHR else "b",
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }


def _host_devices(directory: str) -> Iterator[dict[str, Any]]:
    for entry in os.scandir(directory):
        if entry.name in _OWN_IN_DEV or entry.is_symlink():
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _host_devices(entry.path)
                continue
            node = _node(entry.path, entry.path, entry.stat(follow_symlinks=False))
        except FileNotFoundError:
            continue  # unplugged while we looked
        if node is not None:
            yield node


# ---- sysctls -----------------------------------------------------------------------------------------------------


def _checked_sysctls(sysctls: Mapping[str, str], network: str) -> dict[str, str]:
    for name, value in sysctls.items():
        if not _SYSCTL.fullmatch(name):
            raise InvalidSpec(f"sysctl {shown(name)}: must be words joined by dots")
        text_bytes(value, f"sysctl {name}")
        if "\n" in value or not value:
            raise InvalidSpec(f"sysctl {name}: the value {shown(value)} must be one line")
        if name.startswith("net."):
            if network == "host":
                raise InvalidSpec(f"sysctl {name}: would change the host, whose network this container uses")
        elif name not in _IPC_SYSCTLS and not name.startswith("fs.mqueue."):
            raise InvalidSpec(
                f"sysctl {name}: belongs to the whole host: only net.*, the IPC ones and fs.mqueue.* do not"
            )
    return dict(sysctls)
