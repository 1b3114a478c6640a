"""What this host offers, what is missing, and the command that mends it. Looks only: nothing is changed or made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import msgspec

from lighterman.disks import is_read_only
from lighterman.errors import InvalidSpec, NotSupported

if sys.platform == "linux":  # elsewhere this module can be imported too, and says what is not there
    import resource

    from lighterman.images.builtin import find_static_busybox
    from lighterman.roots import default_state
    from lighterman.runtimes.oci import document_apparmor
    from lighterman.runtimes.oci.cgroups import CgroupHost, cgroup_host
    from lighterman.runtimes.oci.mounts import filesystem_of

__all__ = ["Finding", "Status", "examine", "render"]

Status = Literal["ok", "warning", "missing"]

_RUNTIMES = ("crun", "youki", "runc")
_PATH = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))  # where Debian keeps runc, and a user's PATH may end
_CALL_S = 10
_CAP_SYS_ADMIN = 21
_CONTROLLERS = {"memory": "memory", "cpu": "cpu", "cpuset": "cpuset", "pids": "pids", "blkio": "io"}  # v1's, v2's name
_OPEN_FILES = 4096  # two descriptors for each container, and room
_INOTIFY_INSTANCES = 256  # the kernel's own default of 128 is soon used up by programs in containers

# What a kernel gains with each release, the oldest first.
_KERNELS = (
    ((5, 3), "pidfds"),
    ((5, 12), "attributes of detached mounts"),
    ((5, 14), "cgroup.kill"),
    ((6, 7), "roots of more than 128 layers as detached mounts"),
    ((6, 15), "exit codes from the kernel when a keeper is lost"),
)
_DEBIAN_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_NEEDED_KERNEL, _WANTED_KERNEL = (5, 3), (5, 12)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One fact about this host.

    Attributes:
        status: `missing` means that containers can't be run, `warning` that something of them can't be had.
        text: one line. remedy: the exact command that mends it, on Debian and Ubuntu; None where there is none.
    """

    name: str
    status: Status
    text: str
    remedy: str | None = None


def examine(state_root: str | None = None) -> list[Finding]:
    """Look at everything. Blocking: reads some files of /proc and /sys, and asks each runtime for its version.

    Args:
        state_root: where the writable layers will lie; by default the usual STATE.
    """
    findings = [_python(sys.version_info[:3])]
    if sys.platform != "linux":
        text = f"{sys.platform}: containers of OCI runtimes need Linux"
        return [*findings, Finding(name="kernel", status="missing", text=text)]
    findings += [_kernel(os.uname().release), _root()]
    try:
        host: CgroupHost | None = cgroup_host()
    except NotSupported as refused:
        host = None
        remedy = "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        findings.append(Finding(name="cgroups", status="missing", text=str(refused), remedy=remedy))
    installed = {name: path for name in _RUNTIMES if (path := _which(name))}
    if host is not None:
        findings += [_cgroups(host, sorted(installed)), _limits(host)]
    findings += _runtimes({name: _version_of(path) for name, path in installed.items()})
    findings += [_overlay(), _state_root(state_root or default_state())]
    looks: Sequence[Callable[[], Finding]] = (_seccomp, _apparmor, _init, _busybox)
    findings += [look() for look in looks]
    findings += [_tool("tar", "unpacking image layers"), _tool("skopeo", "pulling and pushing images")]
    findings += [_user_namespaces(), _pidfd(), _open_files(resource.getrlimit(resource.RLIMIT_NOFILE)), _inotify()]
    return findings


def render(findings: Sequence[Finding]) -> str:
    """A table for people, one line a finding, with the remedies below the lines; ends with a line break."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.status:<7}  {finding.name:<{width}}  {finding.text}")
        if finding.remedy and finding.status != "ok":
            lines.append(f"{'':<7}  {'':<{width}}  run: {finding.remedy}")
    missing = sum(finding.status == "missing" for finding in findings)
    warnings = sum(finding.status == "warning" for finding in findings)
    lines.append(f"{len(findings)} looked at: {missing} missing, {warnings} with a warning")
    return "\n".join(lines) + "\n"


# ---- the machine -------------------------------------------------------------------------------------------------


def _python(version: tuple[int, ...]) -> Finding:
    text = ".".join(str(number) for number in version)
    if version < (3, 11):
        remedy = "apt-get install -y python3.11 python3.11-venv"
        return Finding(name="python", status="missing", text=f"{text}: 3.11 or later is needed", remedy=remedy)
    return Finding(name="python", status="ok", text=text)


def _kernel(release: str) -> Finding:
    numbers = tuple(int(number) for number in release.split("-")[0].split(".")[:2] if number.isdigit())
    lacks = [what for since, what in _KERNELS if numbers < since]
    text = f"Linux {release}" + (f", which lacks {'; '.join(lacks)}" if lacks else "")
    if numbers < _WANTED_KERNEL:
        status: Status = "missing" if numbers < _NEEDED_KERNEL else "warning"
        remedy = f"apt-get install -y linux-image-{_DEBIAN_MACHINES.get(os.uname().machine, os.uname().machine)}"
        return Finding(name="kernel", status=status, text=text, remedy=remedy)
    return Finding(name="kernel", status="ok", text=text)


def _root() -> Finding:
    capabilities = next(
        (int(line.split()[1], 16) for line in _text("/proc/self/status").splitlines() if line.startswith("CapEff:")), 0
    )
    if os.geteuid() != 0:
        return Finding(name="root", status="missing", text=f"user {os.geteuid()}: needs root", remedy="sudo -i")
    if not capabilities >> _CAP_SYS_ADMIN & 1:
        text = "root without CAP_SYS_ADMIN, as in an unprivileged container: nothing can be mounted"
        return Finding(name="root", status="missing", text=text)
    return Finding(name="root", status="ok", text="root, with CAP_SYS_ADMIN")


def _user_namespaces() -> Finding:
    most = _text("/proc/sys/user/max_user_namespaces").strip()
    if most in ("", "0"):
        text = "off: containers can't have users of their own"
        return Finding(
            name="user namespaces", status="warning", text=text, remedy="sysctl -w user.max_user_namespaces=15000"
        )
    return Finding(name="user namespaces", status="ok", text=f"up to {most}")


def _pidfd() -> Finding:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        text = f"pidfd_open(2) fails ({error.strerror}): Linux 5.3 or later, and a seccomp filter that lets it through"
        return Finding(name="pidfd", status="missing", text=text)
    return Finding(name="pidfd", status="ok", text="works")


def _open_files(limits: tuple[int, int]) -> Finding:
    soft, hard = (float("inf") if limit == resource.RLIM_INFINITY else limit for limit in limits)
    text = f"ulimit -n is {soft:g} (at most {hard:g})"
    if soft < _OPEN_FILES:
        text += ": each container takes some"
        remedy = f"ulimit -n {_OPEN_FILES}" if hard >= _OPEN_FILES else f"ulimit -Hn {_OPEN_FILES} && ulimit -n $_"
        return Finding(name="open files", status="warning", text=text, remedy=remedy)
    return Finding(name="open files", status="ok", text=text)


def _inotify() -> Finding:
    name = "fs.inotify.max_user_instances"
    most = _text(f"/proc/sys/{name.replace('.', '/')}").strip()
    if most.isdigit() and int(most) < _INOTIFY_INSTANCES:
        text = f"{most} instances a user: programs in many containers may run out"
        return Finding(name="inotify", status="warning", text=text, remedy=f"sysctl -w {name}=1024")
    return Finding(name="inotify", status="ok", text=f"{most or 'no'} instances a user")


# ---- cgroups and runtimes ----------------------------------------------------------------------------------------


def _cgroups(host: CgroupHost, runtimes: Sequence[str]) -> Finding:
    text = host.title
    read_only = [hierarchy.mount_point for hierarchy in host.hierarchies if hierarchy.read_only]
    if read_only:
        remedy = "; ".join(f"mount -o remount,rw {mount_point}" for mount_point in read_only)
        text += f"; mounted read-only: {', '.join(read_only)}"
        return Finding(name="cgroups", status="missing", text=text, remedy=remedy)
    if host.left_over:
        text += f"; crun refuses that while version 2 holds {', '.join(host.left_over)}"
        status: Status = "missing" if runtimes == ["crun"] else "warning"
        return Finding(name="cgroups", status=status, text=text, remedy=host.remedy)
    return Finding(name="cgroups", status="ok", text=text)


def _limits(host: CgroupHost) -> Finding:
    lacking = [v1 for v1, v2 in _CONTROLLERS.items() if not (host.hierarchy_of(v1) or host.hierarchy_of(v2))]
    if not lacking:
        return Finding(name="limits", status="ok", text=", ".join(_CONTROLLERS))
    text = f"no controller for {', '.join(lacking)}: such limits will be refused"
    return Finding(name="limits", status="warning", text=text, remedy=host.remedy_for(lacking))


def _runtimes(versions: dict[str, str]) -> Iterator[Finding]:
    """Of each that is installed; that it is there does not say that it works here: `lighterman version` tries."""
    for name, version in versions.items():
        yield Finding(name=name, status="ok", text=version)
    if not versions:
        text = f"none of {', '.join(_RUNTIMES)} is installed"
        yield Finding(name="runtime", status="missing", text=text, remedy="apt-get install -y crun runc")
    elif list(versions) == ["runc"]:
        text = "only runc: crun starts containers three times as fast"
        yield Finding(name="runtime", status="warning", text=text, remedy="apt-get install -y crun")


def _version_of(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_CALL_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as failed:
        return f"{path}, which does not tell its version ({failed})"
    first = done.stdout.decode("utf-8", "replace").partition("\n")[0].strip()
    return f"{first or 'no version'} ({path})"


# ---- file systems ------------------------------------------------------------------------------------------------


def _overlay() -> Finding:
    known = {line.split()[-1] for line in _text("/proc/filesystems").splitlines() if line.strip()}
    if "overlay" not in known:
        text = "the kernel does not have the overlay file system loaded"
        return Finding(name="overlay", status="missing", text=text, remedy="modprobe overlay")
    return Finding(name="overlay", status="ok", text="available")


def _state_root(path: str) -> Finding:
    """On what the writable layers will lie; nothing need exist yet."""
    existing = os.path.abspath(path)
    while not os.path.isdir(existing):
        existing = os.path.dirname(existing)
    try:
        kind = filesystem_of(existing)
    except InvalidSpec as refused:
        return Finding(name="state root", status="missing", text=str(refused))
    text = f"{path} is on {kind}"
    if is_read_only(existing):
        text += ", which is read-only: nothing can be written there, `dmesg` may say why"
        remedy = f"mount -o remount,rw {_mount_of(existing)}"
        return Finding(name="state root", status="missing", text=text, remedy=remedy)
    if kind == "overlay":
        text += ", where no writable layer can be: give a root on a disk or a volume"
        return Finding(name="state root", status="missing", text=text, remedy="lighterman run --root /PATH/ON/A/DISK")
    if kind in ("tmpfs", "ramfs"):
        text += ": what containers write takes memory, and is lost at a reboot"
        return Finding(name="state root", status="warning", text=text, remedy="lighterman run --root /PATH/ON/A/DISK")
    return Finding(name="state root", status="ok", text=text)


def _mount_of(path: str) -> str:
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


# ---- confinement -------------------------------------------------------------------------------------------------


def _seccomp() -> Finding:
    actions = _text("/proc/sys/kernel/seccomp/actions_avail").split()
    if "errno" not in actions:
        text = "the kernel has no seccomp filters: containers need --security-opt seccomp=unconfined"
        return Finding(name="seccomp", status="missing", text=text)
    return Finding(name="seccomp", status="ok", text="filters available")


def _apparmor() -> Finding:
    text = document_apparmor.explain().removeprefix("apparmor: ")
    if document_apparmor.is_enabled() and document_apparmor.loaded_profile() is None:
        return Finding(
            name="apparmor", status="warning", text=text, remedy="apt-get install -y apparmor apparmor-utils"
        )
    return Finding(name="apparmor", status="ok", text=text)


# ---- programs ----------------------------------------------------------------------------------------------------


def _init() -> Finding:
    for name in ("catatonit", "tini"):
        path = _which(name)
        if path:
            return Finding(name="init", status="ok", text=path)
    text = "neither catatonit nor tini is installed: `--init` will be refused"
    return Finding(name="init", status="warning", text=text, remedy="apt-get install -y catatonit")


def _busybox() -> Finding:
    try:
        path = find_static_busybox()
    except NotSupported as refused:
        remedy = "apt-get install -y busybox-static"
        return Finding(name="busybox", status="warning", text=str(refused), remedy=remedy)
    return Finding(name="busybox", status="ok", text=f"{path}: the built-in image can be made")


def _tool(name: str, purpose: str) -> Finding:
    path = _which(name)
    if path:
        return Finding(name=name, status="ok", text=path)
    text = f"not installed: needed for {purpose}"
    return Finding(name=name, status="warning", text=text, remedy=f"apt-get install -y {name}")


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + os.pathsep + _PATH)


def _text(path: str) -> str:
    """A file's text; empty where this kernel does not have it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
