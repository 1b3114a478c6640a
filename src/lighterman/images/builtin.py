"""The built-in image `busybox`: one layer, made on first use from the host's own static busybox.

The layer lies in the content-addressed cache `STATE/layers/<sha256>`, shared by all roots of a user; its digest is of
what goes into it, so that an upgraded busybox makes another one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from pathlib import Path

from lighterman.errors import NotSupported, StoreError
from lighterman.images.cache_lock import cache_lock
from lighterman.images.image import Image, ImageConfig

__all__ = ["busybox_image", "find_static_busybox", "is_static"]

_INSTALL = "run `apt-get install busybox-static`"
_SEARCHED = ("/bin/busybox", "/usr/bin/busybox", "/usr/local/bin/busybox", "/bin/busybox.static", "/sbin/busybox")
_BINARY_BYTES = 64 * 1024 * 1024  # Debian's has 2 MB
_LIST_S = 10.0
_APPLET = re.compile(r"[A-Za-z0-9_.+\[-]{1,64}")

_WORK = ".making-"

_LAYOUT = 1
"""Goes into the digest: to be raised with every change of what is below."""

_CONFIG = ImageConfig(
    env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
    cmd=("sh",),
)

_DIRECTORIES = {
    "bin": 0o755,
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "mnt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "sbin": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "usr": 0o755,
    "usr/bin": 0o755,
    "usr/sbin": 0o755,
    "var": 0o755,
    "var/log": 0o755,
    "var/spool": 0o755,
    "var/tmp": 0o1777,
    "var/www": 0o755,
}

_PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
sys:x:3:3:sys:/dev:/bin/false
sync:x:4:100:sync:/bin:/bin/sync
mail:x:8:8:mail:/var/spool/mail:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:Operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP = """\
root:x:0:
daemon:x:1:
bin:x:2:
sys:x:3:
adm:x:4:
tty:x:5:
disk:x:6:
mail:x:8:
kmem:x:9:
wheel:x:10:root
audio:x:29:
www-data:x:33:
utmp:x:43:
video:x:44:
plugdev:x:46:
staff:x:50:
users:x:100:
nogroup:x:65534:
"""
_SHADOW = "root:*:::::::\nnobody:*:::::::\n"

_FILES: dict[str, tuple[int, str]] = {
    "etc/group": (0o644, _GROUP),
    "etc/hostname": (0o644, ""),
    "etc/hosts": (0o644, ""),
    "etc/nsswitch.conf": (0o644, "passwd: files\ngroup: files\nhosts: files dns\n"),
    "etc/passwd": (0o644, _PASSWD),
    "etc/profile": (0o644, ""),
    "etc/resolv.conf": (0o644, ""),
    "etc/shadow": (0o640, _SHADOW),
}

# Where scripts expect them although everything lies in /bin.
_ELSEWHERE = {"usr/bin/env": "env", "sbin/init": "init"}


def busybox_image(layers: Path, binary: str | None = None) -> Image:
    """Find it in the cache `layers`, or make it; it blocks (2 ms if there, 30 if not): not for the event loop.

    Args: binary: the busybox to take, the host's by default.
    Raises: NotSupported where there is no static busybox; StoreError if the cache can't be written.
    """
    path, content = _static_busybox(binary)
    digest = hashlib.sha256(b"lighterman busybox layer %d\n" % _LAYOUT + content).hexdigest()
    layer = layers / digest
    try:
        if not _is_whole(layer, len(content)):
            layers.mkdir(mode=0o700, parents=True, exist_ok=True)
            with cache_lock(layers):
                if not _is_whole(layer, len(content)):
                    _make(layer, path, content)
    except OSError as failed:
        raise StoreError(f"image busybox: can't write its layer to {layers} ({failed})") from failed
    return Image(name="busybox", id=f"sha256:{digest}", layers=(str(layer),), config=_CONFIG)


def find_static_busybox() -> str:
    """The path of the host's. Raises: NotSupported where there is none."""
    return _static_busybox(None)[0]


def _static_busybox(binary: str | None) -> tuple[str, bytes]:
    found_dynamic: str | None = None
    for path in (binary,) if binary else _SEARCHED:
        try:
            with open(path, "rb") as file:
                content = file.read(_BINARY_BYTES + 1)
        except OSError:
            continue
        if len(content) <= _BINARY_BYTES and is_static(content):
            return path, content
        found_dynamic = path
    if found_dynamic is not None:
        raise NotSupported(f"image busybox: {found_dynamic} is not a static program: {_INSTALL}")
    raise NotSupported(f"image busybox: there is no busybox on this host: {_INSTALL}")


def is_static(content: bytes) -> bool:
    """Whether it is an ELF program that asks for no interpreter, as the ELF specification's PT_INTERP has it."""
    if content[:4] != b"\x7fELF" or len(content) < 64 or content[4] not in (1, 2) or content[5] not in (1, 2):
        return False
    wide, order = content[4] == 2, "<" if content[5] == 1 else ">"
    try:
        if wide:
            (offset,) = struct.unpack_from(order + "Q", content, 32)
            size, count = struct.unpack_from(order + "HH", content, 54)
        else:
            (offset,) = struct.unpack_from(order + "I", content, 28)
            size, count = struct.unpack_from(order + "HH", content, 42)
        kinds = [struct.unpack_from(order + "I", content, offset + number * size)[0] for number in range(count)]
    except (struct.error, OverflowError):
        return False
    program_header_load, program_header_interpreter = 1, 3
    return program_header_load in kinds and program_header_interpreter not in kinds


def _is_whole(layer: Path, size: int) -> bool:
    """The rename that put it there was the last step; the size tells of a disk that lost what was written."""
    try:
        return (layer / "bin" / "busybox").stat().st_size == size
    except (FileNotFoundError, NotADirectoryError):
        return False


def _make(layer: Path, path: str, content: bytes) -> None:
    applets = _applets(path)
    # Under the lock whatever is half made is a dead process's.
    for stale in (*layer.parent.glob(f"{_WORK}*"), *((layer,) if layer.exists() else ())):
        shutil.rmtree(stale)
    work = Path(tempfile.mkdtemp(prefix=_WORK, dir=layer.parent))
    try:
        _fill(work, content, applets)
        work.rename(layer)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    _sync(layer.parent)


def _applets(path: str) -> list[str]:
    """The commands that this busybox has. Raises: NotSupported if it does not tell."""
    try:
        done = subprocess.run([path, "--list"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_LIST_S)
    except (OSError, subprocess.TimeoutExpired) as failed:
        raise NotSupported(f"image busybox: {path} --list failed ({failed}): {_INSTALL}") from failed
    names = sorted({name for name in done.stdout.decode("ascii", "replace").split() if _APPLET.fullmatch(name)})
    if "sh" not in names:
        raise NotSupported(f"image busybox: {path} has no shell: {_INSTALL}")
    return [name for name in names if name not in ("busybox", ".", "..")]


def _fill(root: Path, content: bytes, applets: list[str]) -> None:
    """Every mode is set by chmod, whatever the umask of the program that we are part of."""
    for name, mode in _DIRECTORIES.items():
        (root / name).mkdir()
        (root / name).chmod(mode | stat.S_IWUSR)
    _write(root / "bin" / "busybox", content, 0o755)
    for name in applets:
        (root / "bin" / name).symlink_to("busybox")
    for place, applet in _ELSEWHERE.items():
        if applet in applets:
            (root / place).symlink_to(os.path.relpath("bin/busybox", os.path.dirname(place)))
    for name, (mode, text) in _FILES.items():
        _write(root / name, text.encode(), mode)
    for name, mode in _DIRECTORIES.items():
        (root / name).chmod(mode)
    root.chmod(0o755)


def _write(path: Path, content: bytes, mode: int) -> None:
    with open(path, "xb") as file:
        file.write(content)
        os.fchmod(file.fileno(), mode)
        file.flush()
        os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
