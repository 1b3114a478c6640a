"""Looking users up in hostile roots."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lighterman.errors import InvalidSpec, NotFound
from lighterman.runtimes.oci.users import is_root_by_default, lookup_user
from lighterman.spec import User

PASSWD = """\
# a comment
root:x:0:0:root:/home/of/root:/bin/sh
broken
short:x:1
:x:5:5::/:
minus:x:-1:5::/:
words:x:abc:5::/:
huge:x:99999999999999999999:5::/:
last:x:4294967295:5::/:
joe:x:1000:100:Joe:/home/joe:/bin/sh\r
jane:*:1001:1001::relative:
1000:x:55:55::/trap:
tab:x:9:9::/a\tb:
"""
GROUP = """\
users:x:100:
wheel:x:10:root,joe
broken
bad:x:zz:joe
docker:x:999:jane,joe,
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text(PASSWD)
    (tmp_path / "etc" / "group").write_text(GROUP)
    return tmp_path


@pytest.fixture
def root_fd(root: Path) -> Iterator[int]:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("wanted", [None, "", "0", "root", "0:0", "root:root"])
def test_root_needs_no_look(wanted: str | None) -> None:
    assert is_root_by_default(wanted)
    assert lookup_user(wanted, None) == (User(uid=0, gid=0, additional_gids=(0,)), "/root")


@pytest.mark.parametrize(
    ("wanted", "uid", "gid", "additional", "home"),
    [
        ("joe", 1000, 100, (100, 10, 999), "/home/joe"),
        ("1000", 1000, 100, (100, 10, 999), "/home/joe"),
        ("joe:wheel", 1000, 10, (10,), "/home/joe"),
        ("joe:12", 1000, 12, (12,), "/home/joe"),
        ("12345", 12345, 0, (0,), "/"),
        ("12345:54321", 12345, 54321, (54321,), "/"),
        ("jane", 1001, 1001, (1001, 999), "/"),
        ("tab", 9, 9, (9,), "/"),
        ("0:wheel", 0, 10, (10,), "/home/of/root"),
        ("4294967294", 4294967294, 0, (0,), "/"),
    ],
)
def test_found(root_fd: int, wanted: str, uid: int, gid: int, additional: tuple[int, ...], home: str) -> None:
    assert lookup_user(wanted, root_fd) == (User(uid=uid, gid=gid, additional_gids=additional), home)


def test_by_path_and_by_descriptor(root: Path, root_fd: int) -> None:
    assert lookup_user("joe", str(root)) == lookup_user("joe", root_fd)


def test_missing_names(root_fd: int) -> None:
    with pytest.raises(NotFound, match="no user 'x' in the image's /etc/passwd"):
        lookup_user("x", root_fd)
    with pytest.raises(NotFound, match="no group 'x' in the image's /etc/group"):
        lookup_user("joe:x", root_fd)
    for malformed in ("broken", "short", "minus", "words", "huge", "last"):
        with pytest.raises(NotFound):
            lookup_user(malformed, root_fd)


@pytest.mark.parametrize(
    "wanted", ["4294967295", "-1", "1:4294967295", "1:-1", "9" * 100_000, "joe:", "a:b:c", "a\nb", "a\0", "\x7f"]
)
def test_malformed(root_fd: int, wanted: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        lookup_user(wanted, root_fd)
    assert "\n" not in str(caught.value)


def test_no_databases(tmp_path: Path) -> None:
    assert lookup_user("7", str(tmp_path))[0] == User(uid=7, gid=0, additional_gids=(0,))
    with pytest.raises(NotFound):
        lookup_user("joe", str(tmp_path))
    with pytest.raises(InvalidSpec):
        lookup_user("joe", str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "link", ["/etc/passwd-outside", "../../../../../../../../etc/passwd", "/proc/self/root/etc/passwd"]
)
def test_links_do_not_lead_out(tmp_path: Path, link: str) -> None:
    outside = tmp_path / "etc"
    outside.mkdir()
    (outside / "passwd").write_text("joe:x:666:666::/:\n")
    (outside / "passwd-outside").write_text("joe:x:666:666::/:\n")
    root = tmp_path / "a" / "b"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "passwd").symlink_to(link)
    # Inside of the root each of them leads nowhere, or to itself.
    with pytest.raises((NotFound, InvalidSpec)):
        lookup_user("joe", str(root))


def test_a_link_inside_is_followed_as_the_root_has_it(root: Path) -> None:
    (root / "real").mkdir()
    (root / "etc" / "passwd").rename(root / "real" / "passwd")
    (root / "etc" / "passwd").symlink_to("/real/passwd")
    assert lookup_user("joe", str(root))[0].uid == 1000


def test_a_link_of_etc_itself(tmp_path: Path) -> None:
    (tmp_path / "etc").symlink_to("/")
    (tmp_path / "passwd").write_text("joe:x:3:3::/:\n")
    assert lookup_user("joe", str(tmp_path))[0].uid == 3


def test_what_is_no_file(root: Path) -> None:
    passwd = root / "etc" / "passwd"
    passwd.unlink()
    os.mkfifo(passwd)
    with pytest.raises(InvalidSpec, match="not a regular file"):
        lookup_user("joe", str(root))
    passwd.unlink()
    passwd.mkdir()
    with pytest.raises(InvalidSpec, match="not a regular file"):
        lookup_user("joe", str(root))


def test_a_database_too_large(root: Path) -> None:
    with open(root / "etc" / "passwd", "r+b") as file:
        file.truncate(1024 * 1024 + 1)
    with pytest.raises(InvalidSpec, match="larger than 1048576"):
        lookup_user("joe", str(root))


@given(content=st.binary(max_size=200), wanted=st.text(max_size=12))
def test_any_content_gives_an_answer(tmp_path_factory: pytest.TempPathFactory, content: bytes, wanted: str) -> None:
    root = tmp_path_factory.mktemp("root")
    (root / "etc").mkdir()
    (root / "etc" / "passwd").write_bytes(b"joe:x:1:1::/:\n" + content)
    (root / "etc" / "group").write_bytes(content)
    try:
        user, home = lookup_user(wanted, str(root))
    except (NotFound, InvalidSpec):
        return
    assert 0 <= user.uid < 2**32 - 1
    assert 0 <= user.gid < 2**32 - 1
    assert home.startswith("/")
    assert home.isprintable()
