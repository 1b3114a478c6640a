"""127, 126 or neither: found where the program would have lain, whatever the root is made of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from lighterman import CommandNotExecutable, CommandNotFound, Engine, RuntimeFailed


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    busybox = shutil.which("busybox")
    assert busybox is not None
    root = tmp_path / "plain"
    for name in ("bin", "etc", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin" / "busybox")
    os.symlink("busybox", root / "bin" / "true")
    (root / "etc" / "text").write_text("x")
    return root


@pytest.mark.parametrize("rw", [False, True])
async def test_of_a_directory(engine: Engine, plain: Path, rw: bool) -> None:
    with pytest.raises(CommandNotExecutable):
        await engine.run(rootfs=plain, rootfs_rw=rw, argv=["/etc/text"])
    with pytest.raises(CommandNotFound):
        await engine.run(rootfs=plain, rootfs_rw=rw, argv=["nosuch"])
    with pytest.raises(RuntimeFailed) as failed:
        await engine.run(rootfs=plain, rootfs_rw=rw, argv=["true"], workdir="/etc/text")
    assert type(failed.value) is RuntimeFailed, failed.value


async def test_in_a_bind_mount(engine: Engine, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    script = source / "script"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o644)
    mounts = [f"{source}:/src", f"{script}:/one", f"{source}:/usr/local/bin"]
    for command in ("/src/script", "/one", "script"):
        with pytest.raises(CommandNotExecutable):
            await engine.run("busybox", [command], mounts=mounts)
    with pytest.raises(CommandNotFound):
        await engine.run("busybox", ["/src/nosuch"], mounts=mounts)
    script.chmod(0o755)
    with pytest.raises(RuntimeFailed) as failed:
        await engine.run("busybox", ["/src/script"], mounts=mounts, workdir="/etc/passwd")
    assert type(failed.value) is RuntimeFailed, failed.value
    assert (await engine.run("busybox", ["script"], mounts=mounts)).exit.code == 0
