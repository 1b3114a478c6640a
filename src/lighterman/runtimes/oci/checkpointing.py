"""Checkpoints by CRIU, through runc: why there may be none here, where their parts lie, making them, using them.

A checkpoint is a directory of its own:

    images/   what CRIU wrote of the processes, their memory among it
    upper/    a copy of the root's writable layer at that moment; none where the root is a plain directory
    work/     CRIU's logs
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess

import msgspec

from lighterman.ends import to_its_end
from lighterman.errors import NotFound, RuntimeFailed, StoreError
from lighterman.keeper.client import KeeperClient
from lighterman.runtimes.oci import layer_swap
from lighterman.runtimes.oci.bundle import check_id
from lighterman.runtimes.oci.copying import copy_tree
from lighterman.runtimes.oci.syscalls import set_network_namespace
from lighterman.runtimes.options import unfinished
from lighterman.spec import HostFile, Spec
from lighterman.threads import in_thread

__all__ = [
    "SavedState",
    "criu_environment",
    "criu_programs",
    "find_criu",
    "going_to",
    "raise_loopback",
    "why_no_checkpoints",
]

_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"  # where criu and what it calls are, and a user's PATH may not have
_CHECK_S = 30
_SAID_CHARS = 400
_LOG_BYTES = 65536  # of CRIU's log, its end
_CRIU_CONFIG = "org.criu.config"  # the annotation by which runc knows where that file is
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h


# ---- whether it is possible here -------------------------------------------------------------------------------------


def find_criu() -> str | None:
    """The path of the program."""
    return shutil.which("criu", path=f"{os.environ.get('PATH', os.defpath)}:{_SBIN}")


def criu_environment() -> dict[str, str]:
    """With which runc finds the criu that was checked."""
    return {"PATH": f"{os.path.dirname(find_criu() or '/')}:{os.defpath}:{_SBIN}"}


def _find_iptables() -> str | None:
    return shutil.which("iptables-restore", path=criu_environment()["PATH"])


def criu_programs() -> list[tuple[str, str]]:
    """Names and paths of the installed programs that `why_no_checkpoints` rests on."""
    found = (("criu", find_criu()), ("iptables-restore", _find_iptables()))
    return [(name, path) for name, path in found if path is not None]


def why_no_checkpoints(runtime: str) -> str | None:
    """Why containers of this runtime can't be checkpointed on this host, for people; None where they can. Blocking.

    Raises: OSError, TimeoutExpired where criu does not answer in this moment.
    """
    if runtime != "runc":
        # Debian's crun is built without CRIU; one that is built with it was never tried here.
        return "only containers of runc can be checkpointed: make it with runtime='runc'"
    criu = find_criu()
    if criu is None:
        return "criu is not installed (apt-get install criu)"
    if _find_iptables() is None:
        return "criu calls iptables-restore, which is not installed (apt-get install iptables)"
    done = subprocess.run([criu, "check"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_CHECK_S, check=False)
    if done.returncode == 0:
        return None
    lines = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    said = _one_line([line for line in lines if "Error" in line] or lines) or f"exit status {done.returncode}"
    return f"`criu check` says that this host can't: {said}"


# ---- one checkpoint --------------------------------------------------------------------------------------------------


class SavedState(msgspec.Struct, frozen=True):
    """The parts of one checkpoint.

    Attributes:
        path: its directory once it is whole. part: where it comes to be, made and removed by whoever names it.
    """

    path: str
    part: str

    @classmethod
    def at(cls, directory: str, name: str) -> SavedState:
        """Raises: InvalidSpec for what can't be a name."""
        check_id(name)
        return cls(os.path.join(directory, name), os.path.join(directory, unfinished(name)))

    @property
    def being_made(self) -> SavedState:
        """The same, as long as it is not whole."""
        return SavedState(self.part, self.part)

    @property
    def images(self) -> str:
        return f"{self.path}/images"

    @property
    def work(self) -> str:
        return f"{self.path}/work"

    @property
    def upper(self) -> str:
        return f"{self.path}/upper"

    def words(self, *more: str) -> tuple[str, ...]:
        """Of runc's command line."""
        return ("--image-path", self.images, "--work-path", self.work, "--file-locks", *more)

    def make(self) -> None:
        """Make room for CRIU. Blocking. Raises: StoreError."""
        try:
            for directory in (self.images, self.work):
                os.mkdir(directory, 0o700)
        except OSError as failed:
            raise StoreError(f"checkpoint {self.path} can't be written: {failed.strerror}") from failed

    def complete(self) -> None:
        """All of it is there. Blocking. Raises: StoreError."""
        try:
            os.rename(self.part, self.path)
        except OSError as failed:
            raise StoreError(f"{self.part} can't be moved to {self.path}: {failed.strerror}") from failed

    def require_whole(self, container: str) -> None:
        """Blocking. Raises: NotFound if there is none, or a part of one whose making was cut short."""
        # Of a release that has not renamed them CRIU's last file is all that tells.
        if not os.path.isfile(f"{self.images}/inventory.img"):
            raise NotFound(f"there is no whole checkpoint at {self.path}", operation="restore", container=container)

    def blame(self, failed: RuntimeFailed, log: str) -> RuntimeFailed:
        """The same error with CRIU's own words, from its log `dump.log` or `restore.log`. Blocking."""
        said = _criu_words(f"{self.work}/{log}")
        return RuntimeFailed(
            f"{failed}; criu: {said or 'it said nothing'}",
            runtime=failed.runtime,
            operation=failed.operation or log,
            container=failed.container,
            exit_status=failed.exit_status,
            last_words=said or failed.last_words,
        )

    async def save_files(self, keeper: KeeperClient, upper: str, container: str) -> None:
        """Copy a writable layer into it; nobody may write there meanwhile. Raises: StoreError."""
        await copy_tree(keeper, upper, self.upper, container)

    async def copy_to(self, other: SavedState, keeper: KeeperClient, container: str) -> None:
        """Make another one that is the same. Raises: NotFound if this is no whole one, StoreError."""
        await in_thread(self.require_whole, container)
        try:
            await in_thread(os.makedirs, os.path.dirname(other.path), mode=0o700, exist_ok=True)
        except OSError as failed:
            raise StoreError(f"checkpoint {other.path} can't be written: {failed.strerror}") from failed
        await copy_tree(keeper, self.path, other.part, container)
        await to_its_end(in_thread(other.complete))

    async def put_files_back(self, keeper: KeeperClient, upper: str, container: str) -> None:
        """Make a writable layer what it was when the checkpoint was made; see `layer_swap`. Raises: StoreError."""
        await to_its_end(in_thread(layer_swap.prepare, upper))
        await copy_tree(keeper, self.upper, layer_swap.fresh(upper), container)
        await to_its_end(in_thread(layer_swap.put_in, upper))


def _criu_words(path: str) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return _one_line([line for line in lines if "Error (" in line][:3])


def _one_line(lines: list[str]) -> str:
    return "; ".join(" ".join(line.split()) for line in lines)[:_SAID_CHARS]


# ---- its cgroup ------------------------------------------------------------------------------------------------------


def going_to(spec: Spec, cgroup_path: str, config: str) -> Spec:
    """The same, whose processes come back into `cgroup_path`: CRIU puts them where they were, maybe another's, and of
    where they are to go runc says nothing with cgroup v2.

    Args: config: the path of a file that will be made.
    """
    document = msgspec.json.decode(spec.document)
    document["annotations"] = {**(document.get("annotations") or {}), _CRIU_CONFIG: config}
    told = HostFile(config, f"cgroup-root {cgroup_path}\n".encode())
    return msgspec.structs.replace(spec, document=msgspec.json.encode(document), files=(*spec.files, told))


# ---- its network -----------------------------------------------------------------------------------------------------


def raise_loopback(pid: int) -> None:
    """Set the loopback interface of a process's network namespace up: runc restores an empty one.

    Leaves its thread in that namespace: call it in one of its own. Raises: OSError.
    """
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        set_network_namespace(namespace)
    finally:
        os.close(namespace)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        # struct ifreq of linux/if.h: a name of 16 bytes, then here a short.
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh22x", b"lo", 0))
        flags = struct.unpack_from("16sh", answer)[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", flags | _IFF_UP))
