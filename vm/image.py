"""The virtual machine's kernel and root, made of Debian packages once and kept under `build/vm`."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vm.errors import Failed

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
MAKING_S = 1800.0  # some three minutes with a mirror near by
DISK_BYTES = 8 << 30  # sparse; what containers write is on it
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


@dataclasses.dataclass(frozen=True)
class Image:
    """Absolute paths: the kernel, and the root as a raw ext4 image that nobody may write to."""

    kernel: Path
    root: Path


def ready(build: Path) -> Image:
    """The image under `build`, made first if it is not there or is made of something else by now. Needs root.

    Raises: subprocess.CalledProcessError if a step fails; its output has been shown. Failed if it takes too long.
    """
    image = Image(kernel=build / "vmlinuz", root=build / "root.img")
    mark = build / "made-of"
    key = _key()
    if mark.is_file() and mark.read_text() == key and image.kernel.is_file() and image.root.is_file():
        return image
    mark.unlink(missing_ok=True)
    for left in build.glob("root-*"):
        shutil.rmtree(left, ignore_errors=True)
    # A name of its own: what is left of a run that was killed may still be being written to.
    _make(image, build / f"root-{os.getpid()}-{time.time_ns()}")
    mark.write_text(key)
    return image


def _key() -> str:
    """Of all that goes in, but not of the packages' versions: `make clean` takes the newest."""
    project = _project()
    parts = [SUITE, MIRROR, SECURITY, *PACKAGES, "", *_requirements(), "", repr(project["scripts"])]
    parts += [Path(__file__).read_text(), *_described(GUEST / "kernel.sh"), *_described(GUEST / "image")]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _described(path: Path) -> Iterator[str]:
    """Everything that `copytree` takes over: names, kinds, modes and contents."""
    status = path.lstat()
    yield f"{path.relative_to(GUEST)} {stat.filemode(status.st_mode)}"
    if path.is_symlink():
        yield str(path.readlink())
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            yield from _described(child)
    else:
        yield hashlib.sha256(path.read_bytes()).hexdigest()


def _project() -> dict[str, Any]:
    """The table of that name in pyproject.toml."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def _requirements() -> list[str]:
    project = _project()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [requirement for requirement in wanted if not requirement.startswith(NOT_INSIDE)]


class _Steps:
    """The commands that make an image, with one bound for all of them."""

    def __init__(self, bound_s: float) -> None:
        self._bound_s = bound_s
        self._deadline = time.monotonic() + bound_s

    def run(self, *command: str | Path) -> None:
        """Raises: subprocess.CalledProcessError; Failed when the bound is over."""
        environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
        # Whatever ends this process ends the step.
        step = ("setpriv", "--pdeathsig", "KILL", *command)
        left_s = max(0.0, self._deadline - time.monotonic())
        try:
            subprocess.run(step, check=True, stdin=subprocess.DEVNULL, env=environment, timeout=left_s)
        except subprocess.TimeoutExpired:
            raise Failed(
                f"the image was not made within {self._bound_s:.0f} s, `{command[0]}` was ended: is {MIRROR} reachable?"
            ) from None


def _make(image: Image, tree: Path) -> None:
    print(f"vm: making the root image ({SUITE}, {len(PACKAGES)} packages and what they need)", flush=True)
    steps = _Steps(MAKING_S)
    try:
        _debian(tree, steps)
        _virtual_environment(tree, steps)
        shutil.copytree(GUEST / "image", tree, dirs_exist_ok=True)
        shutil.move(next((tree / "boot").glob("vmlinuz-*")), image.kernel)
        image.root.unlink(missing_ok=True)
        # Without a journal and lazy: it is written once, and used as a throw-away copy.
        steps.run("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", tree, image.root, f"{DISK_BYTES >> 10}k")
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _debian(tree: Path, steps: _Steps) -> None:
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
    steps.run(*alone, "mmdebstrap", *options, SUITE, tree, *sources)


def _virtual_environment(tree: Path, steps: _Steps) -> None:
    """As `.venv` is here: the dependencies, and the package itself out of the checkout, in `/venv`."""
    steps.run("chroot", tree, "python3", "-m", "venv", "--without-pip", "/venv")
    packages = tree / "venv" / "lib" / f"python{PYTHON}" / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += ["--target", str(packages), "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp"]
    pip += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64"]
    steps.run(*pip, *_requirements())
    (packages / "lighterman.pth").write_text("/checkout/src\n")
    for name, target in _project()["scripts"].items():
        module, _, function = target.partition(":")
        script = tree / "venv" / "bin" / name
        script.write_text(f"#!/venv/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        script.chmod(0o755)
