"""The virtual machine's kernel and root, made of Debian packages once and kept under `build/vm`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

__all__ = ["Image", "ready"]

ROOT = Path(__file__).parent.parent
GUEST = Path(__file__).parent / "guest"

SUITE = "bookworm"
PYTHON = "3.11"  # the suite's own
MIRROR = os.environ.get("DEBIAN_MIRROR", "http://deb.debian.org/debian")
SECURITY = os.environ.get("DEBIAN_SECURITY_MIRROR", "http://deb.debian.org/debian-security")
PACKAGES = (
    *("systemd", "systemd-sysv", "dbus", "kmod", "procps", "iproute2"),
    *("crun", "runc", "criu", "iptables", "catatonit", "busybox-static"),
    *("python3", "strace"),
)
# Checkers need no second host, and are the largest part.
NOT_INSIDE = ("mypy", "ruff")
DISK_BYTES = 8 << 30  # sparse; what containers write is on it
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


@dataclasses.dataclass(frozen=True)
class Image:
    """Absolute paths: the kernel, and the root as a raw ext4 image that nobody may write to."""

    kernel: Path
    root: Path


def ready(build: Path) -> Image:
    """The image under `build`, made first if it is not there or is made of something else by now. Needs root.

    Raises: subprocess.CalledProcessError if a step fails; its output has been shown.
    """
    image = Image(kernel=build / "vmlinuz", root=build / "root.img")
    mark = build / "made-of"
    key = _key()
    if mark.is_file() and mark.read_text() == key and image.kernel.is_file() and image.root.is_file():
        return image
    mark.unlink(missing_ok=True)
    _make(image, build / "root")
    mark.write_text(key)
    return image


def _key() -> str:
    """Of all that goes in, but not of the packages' versions: `make clean` takes the newest."""
    parts = [SUITE, MIRROR, SECURITY, *PACKAGES, *_requirements(), Path(__file__).read_text()]
    parts += [path.read_text() for path in sorted((GUEST / "image").rglob("*")) if path.is_file()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _project() -> dict[str, Any]:
    """The table of that name in pyproject.toml."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def _requirements() -> list[str]:
    project = _project()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [requirement for requirement in wanted if not requirement.startswith(NOT_INSIDE)]


def _make(image: Image, tree: Path) -> None:
    print(f"vm: making the root image ({SUITE}, {len(PACKAGES)} packages and what they need)", flush=True)
    shutil.rmtree(tree, ignore_errors=True)
    try:
        _debian(tree)
        _virtual_environment(tree)
        shutil.copytree(GUEST / "image", tree, dirs_exist_ok=True)
        shutil.move(next((tree / "boot").glob("vmlinuz-*")), image.kernel)
        image.root.unlink(missing_ok=True)
        # Without a journal and lazy: it is written once, and used as a throw-away copy.
        _run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, image.root, f"{DISK_BYTES >> 10}k")
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _debian(tree: Path) -> None:
    sources = (
        f"deb {MIRROR} {SUITE} main",
        f"deb {MIRROR} {SUITE}-updates main",
        f"deb {SECURITY} {SUITE}-security main",
    )
    options = ["--quiet", "--mode=root", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    # Nothing here has to outlive a power cut.
    options += ["--dpkgopt=force-unsafe-io", f"--customize-hook={GUEST / 'kernel.sh'}"]
    # What it mounts and starts goes with it, however it ends.
    alone = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child")
    _run(*alone, "mmdebstrap", *options, SUITE, tree, *sources)


def _virtual_environment(tree: Path) -> None:
    """As `.venv` is here: the dependencies, and the package itself out of the checkout, in `/venv`."""
    _run("chroot", tree, "python3", "-m", "venv", "--without-pip", "/venv")
    packages = tree / "venv" / "lib" / f"python{PYTHON}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--target", str(packages), "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    pip += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"]
    _run(*pip, *_requirements())
    (packages / "lighterman.pth").write_text("/checkout/src\n")
    for name, target in _project()["scripts"].items():
        module, _, function = target.partition(":")
        script = tree / "venv" / "bin" / name
        script.write_text(f"#!/venv/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)


def _run(*command: str | Path) -> None:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, env=environment)
