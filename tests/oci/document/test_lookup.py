"""127 or 126: found by looking inside the root."""

from __future__ import annotations

from pathlib import Path

import pytest

from lighterman.errors import InvalidSpec
from lighterman.runtimes.oci.lookup import find_command
from lighterman.spec import User

ROOT_USER = User()
JOE = User(uid=1000, gid=1000, additional_gids=(50,))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name, mode in (
        ("bin/run", 0o755),
        ("bin/plain", 0o644),
        ("bin/both", 0o644),
        ("usr/bin/both", 0o755),
        ("bin/owner", 0o700),
        ("work/here", 0o755),
    ):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
        file.chmod(mode)
    (root / "bin" / "directory").mkdir()
    (root / "bin" / "link").symlink_to("/bin/run")
    (root / "bin" / "dangling").symlink_to("/nowhere")
    (root / "bin" / "loop").symlink_to("loop")
    (tmp_path / "outside").touch(mode=0o755)
    (root / "bin" / "escape").symlink_to("../../outside")
    return root


@pytest.mark.parametrize(
    ("argv0", "found"),
    [
        ("run", "ok"),
        ("/bin/run", "ok"),
        ("link", "ok"),
        ("both", "ok"),
        ("../bin/run", "ok"),
        ("here", "not-found"),
        ("./here", "ok"),
        ("missing", "not-found"),
        ("/missing", "not-found"),
        ("/bin/run/x", "not-found"),
        ("dangling", "not-found"),
        ("escape", "not-found"),
        ("/bin/escape", "not-found"),
        ("", "not-found"),
        ("a\0b", "not-found"),
        ("x" * 5000, "not-found"),
        ("plain", "not-executable"),
        ("/bin/plain", "not-executable"),
        ("directory", "not-executable"),
        ("/bin", "not-executable"),
        ("loop", "not-executable"),
    ],
)
def test_as_execvp_would_fare(root: Path, argv0: str, found: str) -> None:
    assert find_command(argv0, "/nothing:/bin:/usr/bin", "/work", str(root), ROOT_USER) == found


def test_path_and_its_empty_entry(root: Path) -> None:
    assert find_command("run", None, "/work", str(root), ROOT_USER) == "not-found"
    assert find_command("run", "", "/work", str(root), ROOT_USER) == "not-found"
    assert find_command("here", "/bin:", "/work", str(root), ROOT_USER) == "ok"
    assert find_command("run", "../bin", "/work", str(root), ROOT_USER) == "ok"


def test_permissions_of_the_user(root: Path) -> None:
    owner = root / "bin" / "owner"
    uid, gid = owner.stat().st_uid, owner.stat().st_gid
    assert find_command("owner", "/bin", "/", str(root), User(uid=uid, gid=gid)) == "ok"
    if uid == 0:
        assert find_command("owner", "/bin", "/", str(root), JOE) == "not-executable"
    owner.chmod(0o010)
    assert find_command("owner", "/bin", "/", str(root), User(uid=12345, gid=1, additional_gids=(gid,))) == "ok"
    assert find_command("owner", "/bin", "/", str(root), User(uid=12345, gid=gid + 1)) == "not-executable"


def test_no_root(tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec):
        find_command("run", "/bin", "/", str(tmp_path / "missing"), ROOT_USER)
