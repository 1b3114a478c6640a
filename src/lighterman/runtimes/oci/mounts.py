"""Detached mounts: a root file system behind a descriptor, in no mount table, gone when the last descriptor is.

All here is synchronous and makes system calls that can wait for a disk. Closing the last descriptor of an overlay
syncs its upper file system (unless `volatile`): never on an event loop.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Literal

from lighterman.errors import InvalidSpec, LimitExceeded, NotSupported, RuntimeFailed
from lighterman.runtimes.oci import syscalls
from lighterman.spec import Overlay

__all__ = ["check_upper", "detached_bind", "detached_overlay", "filesystem_of", "is_overlay", "set_mount_attributes"]

MAX_LAYERS = 500  # OVL_MAX_STACK of the kernel
_VALUE_BYTES = 255  # of one fsconfig(2) string, without its NUL
# Names of one byte for as many layers as fit into a string with a colon after each but the last; without what overlayfs
# and paths give a meaning to.
_NAMES = [bytes([byte]) for byte in range(0x21, 0x100) if byte not in b"./:\\,"][: (_VALUE_BYTES + 1) // 2]
_LAYER_BY_LAYER = (6, 7)  # the first Linux with `lowerdir+`

# linux/magic.h
_FILESYSTEMS = {
    0x794C7630: "overlay",
    0x01021994: "tmpfs",
    0x858458F6: "ramfs",
    0xEF53: "ext4",
    0x58465342: "xfs",
    0x9123683E: "btrfs",
    0x2FC12FC1: "zfs",
    0x65735546: "fuse",
    0x6969: "nfs",
}
_ATTRIBUTES = {"read_only": 0x1, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8}  # MOUNT_ATTR_*
_PROPAGATION = {"private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20, "unbindable": 1 << 17}  # MS_*


# ---- overlays ----------------------------------------------------------------------------------------------------


def detached_overlay(overlay: Overlay) -> int:
    """Mount the layers, attached to nothing; a close-on-exec descriptor of the mount.

    `upper` and `work` must exist. Any character may stand in a path, and it may have any length: the kernel is told
    `/proc/self/fd/N`. Before Linux 6.7 more than 128 layers, which is what fits into one option, raise NotSupported.

    Raises: InvalidSpec for a path that can't be used; NotSupported where the kernel lacks something;
        RuntimeFailed with the kernel's own words for what else it refuses.
    """
    if not 1 <= len(overlay.lowers) <= MAX_LAYERS:
        raise InvalidSpec(f"{len(overlay.lowers)} layers: a root must have 1 to {MAX_LAYERS}")
    with ExitStack() as opened:
        lowers = [opened.enter_context(_directory(path, "layer")) for path in overlay.lowers]
        upper = opened.enter_context(_directory(overlay.upper, "upper directory"))
        work = opened.enter_context(_directory(overlay.work, "work directory"))
        _check_upper(upper, overlay.upper)
        context = opened.enter_context(_overlay_context())
        try:
            if _release() >= _LAYER_BY_LAYER:
                for lower in lowers:
                    _set(context, "lowerdir+", f"/proc/self/fd/{lower}")
                _finish(context, upper, work, overlay.volatile)
            else:
                _set_lowers_at_once(context, lowers, upper, work, overlay.volatile)
            return syscalls.syscall(syscalls.FSMOUNT, context, syscalls.FSMOUNT_CLOEXEC, 0)
        except OSError as error:
            raise _refused(error, context, overlay) from error


def _set_lowers_at_once(context: int, lowers: list[int], upper: int, work: int, volatile: bool) -> None:
    """All layers in one `lowerdir`, whose value is limited to 256 bytes."""
    absolute = ":".join(f"/proc/self/fd/{lower}" for lower in lowers)
    if len(absolute) <= _VALUE_BYTES:
        _set(context, "lowerdir", absolute)
        _finish(context, upper, work, volatile)
        return
    if len(lowers) > len(_NAMES):
        raise NotSupported(
            f"{len(lowers)} layers: Linux {os.uname().release} takes no more than {len(_NAMES)} for a detached mount",
            operation="mount",
        )
    # Links of one byte each, in a file system that nobody else sees. A working directory belongs to the whole process,
    # unless a thread parts from it; that thread ends here.
    with ThreadPoolExecutor(1, "lighterman-mount") as thread:
        thread.submit(_set_by_short_names, context, lowers, upper, work, volatile).result()


def _set_by_short_names(context: int, lowers: list[int], upper: int, work: int, volatile: bool) -> None:
    names = _NAMES[: len(lowers)]
    with _scratch() as scratch:
        for name, lower in zip(names, lowers, strict=True):
            os.symlink(f"/proc/self/fd/{lower}", name, dir_fd=scratch)
        syscalls.unshare_fs()
        os.fchdir(scratch)
        _set(context, "lowerdir", b":".join(names))
        _finish(context, upper, work, volatile)


@contextmanager
def _scratch() -> Iterator[int]:
    """A descriptor of an empty directory in memory, attached to nothing."""
    context = syscalls.syscall(syscalls.FSOPEN, b"tmpfs", syscalls.FSOPEN_CLOEXEC)
    try:
        syscalls.syscall(syscalls.FSCONFIG, context, syscalls.FSCONFIG_CMD_CREATE, None, None, 0)
        mount = syscalls.syscall(syscalls.FSMOUNT, context, syscalls.FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)
    try:
        yield mount
    finally:
        os.close(mount)


def _finish(context: int, upper: int, work: int, volatile: bool) -> None:
    _set(context, "upperdir", f"/proc/self/fd/{upper}")
    _set(context, "workdir", f"/proc/self/fd/{work}")
    if volatile:
        syscalls.syscall(syscalls.FSCONFIG, context, syscalls.FSCONFIG_SET_FLAG, b"volatile", None, 0)
    # Before Linux 6.5 the names are looked up only now.
    syscalls.syscall(syscalls.FSCONFIG, context, syscalls.FSCONFIG_CMD_CREATE, None, None, 0)


def _set(context: int, key: str, value: str | bytes) -> None:
    value = value.encode() if isinstance(value, str) else value
    syscalls.syscall(syscalls.FSCONFIG, context, syscalls.FSCONFIG_SET_STRING, key.encode(), value, 0)


@contextmanager
def _overlay_context() -> Iterator[int]:
    try:
        context = syscalls.syscall(syscalls.FSOPEN, b"overlay", syscalls.FSOPEN_CLOEXEC)
    except OSError as error:
        raise NotSupported(_why_no_overlay(error), operation="mount") from error
    try:
        yield context
    finally:
        os.close(context)


def _why_no_overlay(error: OSError) -> str:
    if error.errno == errno.ENODEV:
        return "this kernel has no overlay file system: run `modprobe overlay`"
    if error.errno == errno.EPERM:
        return "mounting an overlay needs CAP_SYS_ADMIN: run as root"
    if error.errno == errno.ENOSYS:
        return "this kernel has no fsopen(2): Linux 5.2 or later is needed"
    return f"an overlay can't be mounted here: {error.strerror}"


def _refused(error: OSError, context: int, overlay: Overlay) -> Exception:
    words = _kernel_log(context)
    text = (
        f"overlay of {len(overlay.lowers)} layers under {overlay.upper!r} was refused: {(error.strerror or '').lower()}"
    )
    if words:
        text += f" ({words})"
    if error.errno == errno.EPERM:
        return NotSupported(text, operation="mount")
    return RuntimeFailed(text, runtime="linux", operation="mount", last_words=words)


def _kernel_log(context: int) -> str:
    """What the kernel says about a file system context: messages as `e overlay: ...`, one each read."""
    messages = []
    while True:
        try:
            message = os.read(context, 4096)
        except OSError as error:
            if error.errno != errno.ENODATA:
                messages.append(f"its log can't be read: {error.strerror}")
            break
        messages.append(message.decode("utf-8", "replace").strip().partition(" ")[2])
    return "; ".join(messages)


def _release() -> tuple[int, ...]:
    numbers = os.uname().release.split("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())


# ---- plain directories -------------------------------------------------------------------------------------------


def detached_bind(path: str, *, recursive: bool = True) -> int:
    """A private copy of the mount at `path`, with those below it if `recursive`; a close-on-exec descriptor.

    Raises: InvalidSpec if `path` is no directory; NotSupported, RuntimeFailed as `detached_overlay`.
    """
    with _directory(path, "directory") as directory:
        flags = syscalls.OPEN_TREE_CLONE | os.O_CLOEXEC | syscalls.AT_EMPTY_PATH
        try:
            mount = syscalls.syscall(
                syscalls.OPEN_TREE, directory, b"", flags | (syscalls.AT_RECURSIVE if recursive else 0)
            )
        except OSError as error:
            raise _failed(error, f"bind mount of {path!r}") from error
    try:
        set_mount_attributes(mount, propagation="private")
    except BaseException:
        os.close(mount)
        raise
    return mount


def set_mount_attributes(
    mount: int,
    *,
    read_only: bool = False,
    nosuid: bool = False,
    nodev: bool = False,
    noexec: bool = False,
    propagation: Literal["private", "slave", "shared", "unbindable"] | None = None,
    recursive: bool = True,
) -> None:
    """Add attributes to a mount, and to those below it if `recursive` (mount_setattr(2), Linux 5.12).

    Raises: NotSupported, RuntimeFailed.
    """
    wanted = {"read_only": read_only, "nosuid": nosuid, "nodev": nodev, "noexec": noexec}
    added = sum(_ATTRIBUTES[name] for name, on in wanted.items() if on)
    attributes = struct.pack("=QQQQ", added, 0, _PROPAGATION[propagation] if propagation else 0, 0)
    flags = syscalls.AT_EMPTY_PATH | (syscalls.AT_RECURSIVE if recursive else 0)
    try:
        syscalls.syscall(syscalls.MOUNT_SETATTR, mount, b"", flags, attributes, len(attributes))
    except OSError as error:
        raise _failed(error, "setting mount attributes") from error


def _failed(error: OSError, what: str) -> Exception:
    if error.errno == errno.ENOSYS:
        return NotSupported(f"{what}: needs Linux 5.12 or later", operation="mount")
    if error.errno == errno.EPERM:
        return NotSupported(f"{what}: needs CAP_SYS_ADMIN: run as root", operation="mount")
    return RuntimeFailed(f"{what} failed: {(error.strerror or '').lower()}", runtime="linux", operation="mount")


# ---- what a directory lies on ------------------------------------------------------------------------------------


def filesystem_of(path: str) -> str:
    """Name of the file system (`"ext4"`, also for ext2 and ext3; `"overlay"`), else its magic number in hex.

    Raises: InvalidSpec if `path` is no directory.
    """
    with _directory(path, "directory") as directory:
        return _filesystem(directory)


def is_overlay(path: str) -> bool:
    """Whether a directory lies on an overlay. Raises: InvalidSpec if it is no directory."""
    return filesystem_of(path) == "overlay"


def check_upper(path: str) -> None:
    """Refuse a directory that can't hold the writable layer of an overlay. Raises: InvalidSpec."""
    with _directory(path, "upper directory") as directory:
        _check_upper(directory, path)


def _check_upper(directory: int, path: str) -> None:
    if _filesystem(directory) == "overlay":
        raise InvalidSpec(
            f"upper directory {path!r}: lies on an overlay, and the kernel stacks no writable layer on one: "
            "choose a state root on a disk or a volume"
        )


def _filesystem(directory: int) -> str:
    magic = syscalls.filesystem_magic(directory)
    return _FILESYSTEMS.get(magic, hex(magic))


@contextmanager
def _directory(path: str, what: str) -> Iterator[int]:
    if not path.startswith("/") or "\0" in path:
        raise InvalidSpec(f"{what} {path!r}: must be an absolute path")
    try:
        directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            limit = "ulimit -n" if error.errno == errno.EMFILE else "fs.file-max"
            raise LimitExceeded(
                f"{what} {path!r} can't be opened: {(error.strerror or '').lower()}: raise `{limit}`",
                limit=limit,
                operation="mount",
            ) from error
        raise InvalidSpec(f"{what} {path!r}: {(error.strerror or '').lower()}") from error
    try:
        yield directory
    finally:
        os.close(directory)
