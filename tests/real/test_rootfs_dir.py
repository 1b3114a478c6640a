"""A plain directory as the root, through an overlay or itself."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from lighterman import CommandNotFound, Engine, InvalidSpec, LightermanError

pytestmark = pytest.mark.real


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    root = tmp_path / "root, with: odd\\name"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "ls", "cat", "touch", "rm", "echo", "id"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nme:x:77:78::/:/bin/sh\n")
    (root / "file").write_text("old\n")
    return root


def listing(root: Path) -> list[tuple[str, int, int]]:
    found = []
    for directory, _, names in os.walk(root):
        for name in names:
            status = os.lstat(os.path.join(directory, name))
            found.append((os.path.relpath(os.path.join(directory, name), root), status.st_size, status.st_mtime_ns))
    return sorted(found)


async def test_rootfs_through_an_overlay_is_unchanged(engine: Engine, directory: Path) -> None:
    before = listing(directory)
    script = "echo new > /file; cat /file; touch /made /etc/x; rm /bin/id; ls /made"
    done = await engine.run(rootfs=directory, argv=["sh", "-c", script])
    assert (done.exit.code, done.stdout) == (0, b"new\n/made\n")
    assert listing(directory) == before


async def test_rootfs_rw_is_changed(engine: Engine, directory: Path) -> None:
    done = await engine.run(rootfs=directory, rootfs_rw=True, argv=["sh", "-c", "echo new > /file; touch /made; id -u"])
    assert (done.exit.code, done.stdout) == (0, b"0\n")
    assert (directory / "file").read_text() == "new\n"
    assert (directory / "made").exists()


async def test_rootfs_rw_read_only_can_not_be_written(engine: Engine, directory: Path) -> None:
    done = await engine.run(rootfs=directory, rootfs_rw=True, read_only=True, argv=["touch", "/made"])
    assert done.exit.code == 1
    assert not (directory / "made").exists()


async def test_rootfs_user_is_looked_up_in_it(engine: Engine, directory: Path) -> None:
    done = await engine.run(rootfs=directory, argv=["sh", "-c", "id -u; id -g"], user="me")
    assert done.stdout == b"77\n78\n"


async def test_rootfs_used_by_many_at_once_none_sees_the_others(engine: Engine, directory: Path) -> None:
    done = await asyncio.gather(
        *(
            engine.run(rootfs=directory, argv=["sh", "-c", f"ls /mark* 2>/dev/null; touch /mark{n}; ls /mark*"])
            for n in range(8)
        )
    )
    assert [one.stdout for one in done] == [b"/mark%d\n" % n for n in range(8)]


async def test_rootfs_command_missing_in_it_is_not_found(engine: Engine, directory: Path) -> None:
    with pytest.raises(CommandNotFound):
        await engine.run(rootfs=directory, argv=["nosuch"])


async def test_rootfs_passwd_link_out_of_it_is_not_followed(engine: Engine, directory: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("evil:x:0:0::/:/bin/sh\n")
    (directory / "etc/passwd").unlink()
    (directory / "etc/passwd").symlink_to(outside)
    with pytest.raises(LightermanError):
        await engine.run(rootfs=directory, argv=["id"], user="evil")


@pytest.mark.parametrize("path", ["nosuch", "file"])
async def test_rootfs_that_is_no_directory_is_told(engine: Engine, directory: Path, path: str) -> None:
    with pytest.raises(LightermanError, match=r"rootfs .*directory"):
        await engine.run(rootfs=directory / path, argv=["true"])


async def test_rootfs_and_image_are_one_too_many(engine: Engine, directory: Path) -> None:
    with pytest.raises(InvalidSpec):
        await engine.run("busybox", ["true"], rootfs=directory)
    with pytest.raises(InvalidSpec):
        await engine.run(argv=["true"])


async def test_rootfs_of_the_engine_itself_is_refused(engine: Engine) -> None:
    for path in ("/var/lib/lighterman", "/run/lighterman", "/"):
        with pytest.raises(LightermanError):
            await engine.run(rootfs=path, rootfs_rw=True, argv=["true"])
