"""What a document depends on of the host: read once, handed in as a value."""

from __future__ import annotations

import os
import re
import resource
import shutil
from functools import lru_cache

import msgspec

from lighterman.runtimes.oci.cgroups import has_namespaces
from lighterman.runtimes.oci.document_apparmor import loaded_profile

__all__ = ["CAPABILITIES", "HostFacts"]

_CAPABILITY_NAMES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""

# linux/capability.h, in the order of their numbers.
CAPABILITIES = tuple(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())


class HostFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What `build_spec` has to know of the host.

    Attributes:
        own_cgroup_namespace: whether containers get one by default, as with docker.
        capabilities: those in our own bounding and permitted sets: no more can be given away.
        hard_limits: RLIMIT number to our hard limit, -1 for none.
        nr_open: the kernel's ceiling for `nofile`, above which even CAP_SYS_RESOURCE does not go.
        kernel: major and minor version.
        init_path: of catatonit, None where it is not installed.
        apparmor_profile: to confine containers with; None where AppArmor is off or has no such profile.
    """

    own_cgroup_namespace: bool
    capabilities: tuple[str, ...]
    hard_limits: dict[int, int]
    nr_open: int
    kernel: tuple[int, int]
    init_path: str | None
    apparmor_profile: str | None = None

    @classmethod
    def detect(cls) -> HostFacts:
        """Read them from this host. It blocks for less than a millisecond."""
        return cls(
            own_cgroup_namespace=has_namespaces(),
            capabilities=_capabilities(),
            # 16 of them on Linux: asm-generic/resource.h
            hard_limits={number: resource.getrlimit(number)[1] for number in range(16)},
            nr_open=_read_int("/proc/sys/fs/nr_open", 1024 * 1024),
            kernel=_kernel(os.uname().release),
            init_path=find_init(),
            apparmor_profile=loaded_profile(),
        )


@lru_cache(maxsize=1)
def find_init() -> str | None:
    """The path of catatonit, the init that `--init` puts in front of a program; None without one."""
    path = os.environ.get("PATH", "") + ":/usr/bin:/usr/libexec/podman:/usr/local/libexec/podman:/usr/libexec/catatonit"
    return shutil.which("catatonit", path=path)


def _capabilities() -> tuple[str, ...]:
    with open("/proc/self/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    held = int(fields["CapBnd"], 16) & int(fields["CapPrm"], 16)
    return tuple(name for number, name in enumerate(CAPABILITIES) if held >> number & 1)


def _kernel(release: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _read_int(path: str, default: int) -> int:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return default
