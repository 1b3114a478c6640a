"""The `mounts` list: what every container has, what the user adds, and the three files in /etc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec

from lighterman.errors import InvalidSpec
from lighterman.runtimes.oci.document_checks import check_target, shown, text_bytes
from lighterman.runtimes.oci.document_host import HostFacts
from lighterman.runtimes.oci.document_process import INIT_INSIDE
from lighterman.spec import Mount

__all__ = ["NOTIFY_DIRECTORY", "EtcFiles", "encode_mounts"]

NOTIFY_DIRECTORY = "/run/notify"  # inside the container, where podman has it too

OciMount = dict[str, Any]

_RECURSIVE_READ_ONLY_SINCE = (5, 12)  # mount_setattr(2)


class EtcFiles(msgspec.Struct, frozen=True):
    """Paths on the host of the container's /etc/hosts, /etc/hostname and /etc/resolv.conf.

    Attributes: notify: a directory with the socket of sd_notify in it; None where there is none.
    """

    hosts: str
    hostname: str
    resolv_conf: str
    notify: str | None = None


def encode_mounts(
    mounts: tuple[Mount, ...],
    files: EtcFiles | None,
    *,
    shm_bytes: int,
    init: bool,
    read_only: bool,
    privileged: bool,
    forbidden_sources: tuple[str, ...],
    host: HostFacts,
) -> bytes:
    """The encoded list. With `mounts` it looks at the host's files (a source has to exist), which can block.

    Args: read_only: holds for `files`; each of `mounts` says so by itself.
    Raises: InvalidSpec as `Mount` can be wrong; a source that is equal to, inside or above one of
        `forbidden_sources`.
    """
    if shm_bytes < 1:
        raise InvalidSpec(f"shm size {shm_bytes}: must be 1 byte or more")
    late: list[OciMount] = []
    if files is not None:
        for source, target in (
            (files.resolv_conf, "/etc/resolv.conf"),
            (files.hostname, "/etc/hostname"),
            (files.hosts, "/etc/hosts"),
        ):
            late.append(_bind(source, target, ["rbind", "rprivate", "ro" if read_only else "rw"]))
        if files.notify is not None:
            # Read-only: a socket can be sent to all the same.
            late.append(_bind(files.notify, NOTIFY_DIRECTORY, ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"]))
    if init:
        assert host.init_path is not None
        late.append(_bind(host.init_path, INIT_INSIDE, ["bind", "rprivate", "ro", "nosuid", "nodev"]))
    if not mounts:
        default = _encoded_default(shm_bytes, privileged)
        return default if not late else b"%s,%s" % (default[:-1], msgspec.json.encode(late)[1:])

    asked = _asked(mounts, forbidden_sources, host)
    standard = [each for each in _default(shm_bytes, privileged) if each["destination"] not in asked]
    # A parent before what lies in it, wherever the user wrote it.
    ordered = sorted(
        [*asked.values(), *(each for each in late if each["destination"] not in asked)],
        key=lambda each: each["destination"].count("/"),
    )
    return msgspec.json.encode([*standard, *ordered])


@lru_cache(maxsize=32)
def _encoded_default(shm_bytes: int, privileged: bool) -> bytes:
    return msgspec.json.encode(_default(shm_bytes, privileged))


def _default(shm_bytes: int, privileged: bool) -> list[OciMount]:
    """Docker's seven. The kernel's own trees are read-only, unless privileged."""
    access = "rw" if privileged else "ro"
    quiet = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", "proc", quiet),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mount("/sys", "sysfs", "sysfs", [*quiet, access]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*quiet, access]),
        _mount("/dev/mqueue", "mqueue", "mqueue", quiet),
        _mount("/dev/shm", "tmpfs", "shm", [*quiet, "mode=1777", f"size={shm_bytes}"]),
    ]


def _mount(destination: str, type: str, source: str, options: list[str]) -> OciMount:
    return {"destination": destination, "type": type, "source": source, "options": options}


def _bind(source: str, destination: str, options: list[str]) -> OciMount:
    return _mount(destination, "bind", source, options)


# ---- the user's --------------------------------------------------------------------------------------------------


def _asked(mounts: Iterable[Mount], forbidden_sources: tuple[str, ...], host: HostFacts) -> dict[str, OciMount]:
    forbidden = tuple(os.path.realpath(path) for path in forbidden_sources)
    asked: dict[str, OciMount] = {}
    for mount in mounts:
        target = check_target(mount.target)
        if target in asked:
            raise InvalidSpec(f"mount target {shown(target)}: given twice")
        if mount.type == "tmpfs":
            asked[target] = _tmpfs(mount, target)
        else:
            asked[target] = _user_bind(mount, target, forbidden, host)
    return asked


def _user_bind(mount: Mount, target: str, forbidden: tuple[str, ...], host: HostFacts) -> OciMount:
    if mount.size_bytes is not None or mount.mode is not None:
        raise InvalidSpec(f"bind mount at {shown(target)}: size and mode are for tmpfs")
    source = mount.source
    if source is None:
        raise InvalidSpec(f"bind mount at {shown(target)}: needs a source")
    text_bytes(source, "bind source")
    if not source.startswith("/"):
        raise InvalidSpec(f"bind source {shown(source)}: must be absolute")
    # The resolved path is what is mounted: a link changed after this check leads nowhere else.
    try:
        real = os.path.realpath(source, strict=True)
    except OSError as missing:
        raise InvalidSpec(f"bind source {shown(source)}: {missing.strerror}") from missing
    for path in forbidden:
        if _overlap(real, path):
            raise InvalidSpec(f"bind source {shown(source)}: touches the engine's own {path}")
    options = ["rbind", mount.propagation]
    if mount.read_only:
        options.append("ro")
        # `ro` alone leaves what is mounted below the source writable; nothing is below a file, and crun 1.8 opens the
        # target of `rro` as a directory.
        if host.kernel >= _RECURSIVE_READ_ONLY_SINCE and os.path.isdir(real):
            options.append("rro")
    return _bind(real, target, options)


def _overlap(one: str, other: str) -> bool:
    """Whether they are the same path, or one lies in the other."""
    one, other = one.rstrip("/") + "/", other.rstrip("/") + "/"
    return one.startswith(other) or other.startswith(one)


def _tmpfs(mount: Mount, target: str) -> OciMount:
    if mount.source is not None:
        raise InvalidSpec(f"tmpfs at {shown(target)}: has no source, not {shown(mount.source)}")
    options = ["nosuid", "nodev", "noexec"]
    mode = 0o1777 if mount.mode is None else mount.mode
    if not 0 <= mode <= 0o7777:
        raise InvalidSpec(f"tmpfs at {shown(target)}: mode {mode:o} must be 0 to 7777")
    options.append(f"mode={mode:o}")
    if mount.size_bytes is not None:
        if not 1 <= mount.size_bytes < 2**63:
            raise InvalidSpec(f"tmpfs at {shown(target)}: size {mount.size_bytes} must be 1 byte or more")
        options.append(f"size={mount.size_bytes}")
    if mount.read_only:
        options.append("ro")
    return _mount(target, "tmpfs", "tmpfs", options)
