from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lighterman.errors import InvalidSpec, LightermanError, NotSupported, RuntimeFailed
from lighterman.runtimes.oci import mounts
from lighterman.spec import Overlay

pytestmark = pytest.mark.real

RELEASES = {"layer by layer": (6, 18), "all at once": (6, 1)}


@pytest.fixture
def where() -> Iterator[Path]:
    """A directory that is on no overlay."""
    for top in ("/var/lib", "/var/tmp", "/dev/shm"):
        if not mounts.is_overlay(top):
            with tempfile.TemporaryDirectory(dir=top, prefix="lm-test-") as directory:
                yield Path(directory)
            return
    pytest.skip("every file system here is an overlay")


@pytest.fixture(
    params=[pytest.param("layer by layer", marks=pytest.mark.needs("linux>=6.7")), pytest.param("all at once")]
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of handing the layers over; the older one works on a newer kernel too."""
    release = RELEASES[request.param]
    monkeypatch.setattr(mounts, "_release", lambda: release)


def overlay(
    where: Path, layers: list[dict[str, str]], names: list[str] | None = None, volatile: bool = False
) -> Overlay:
    lowers = []
    for number, files in enumerate(layers):
        layer = where / (names[number] if names else f"layer{number}")
        layer.mkdir()
        for name, text in files.items():
            (layer / name).write_text(text)
        lowers.append(str(layer))
    for name in ("upper", "work"):
        (where / name).mkdir()
    return Overlay(lowers=tuple(lowers), upper=str(where / "upper"), work=str(where / "work"), volatile=volatile)


def at(mount: int, name: str = "") -> Path:
    return Path(f"/proc/self/fd/{mount}/{name}")


def mounted() -> str:
    return Path("/proc/self/mountinfo").read_text()


@pytest.mark.usefixtures("way")
def test_overlay_shows_the_topmost_and_keeps_writes_in_the_upper(where: Path) -> None:
    before = mounted()
    spec = overlay(where, [{"both": "top", "a": "1"}, {"both": "bottom", "b": "2"}])
    mount = mounts.detached_overlay(spec)
    try:
        assert not os.get_inheritable(mount)
        assert at(mount, "both").read_text() == "top"
        assert sorted(os.listdir(at(mount))) == ["a", "b", "both"]
        at(mount, "b").write_text("changed")
        at(mount, "new").write_text("new")
        at(mount, "a").unlink()
        assert (where / "upper/b").read_text() == "changed"
        assert (where / "upper/new").read_text() == "new"
        assert (where / "layer1/b").read_text() == "2"
        assert sorted(os.listdir(at(mount))) == ["b", "both", "new"]
        assert mounted() == before
    finally:
        os.close(mount)
    assert mounted() == before


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("count", [1, 60])
def test_overlay_of_many_layers(where: Path, count: int) -> None:
    here = os.getcwd()
    spec = overlay(where, [{f"of{number}": "", "who": str(number)} for number in range(count)])
    descriptors = len(os.listdir("/proc/self/fd"))
    mount = mounts.detached_overlay(spec)
    try:
        assert at(mount, "who").read_text() == "0"
        assert len(os.listdir(at(mount))) == count + 1
        assert len(os.listdir("/proc/self/fd")) == descriptors + 1
        assert os.getcwd() == here
    finally:
        os.close(mount)


@pytest.mark.usefixtures("way")
def test_overlay_of_paths_with_every_special_character(where: Path) -> None:
    inner = where / "in: side,\\ \u00e9\n"
    inner.mkdir()
    names = ["a:b", "a,b", "a\\:b", "a b", "\u00fc\u4e16", "\udcff", "line\nfeed", "lowerdir=x", "x" * 255, '"q"']
    spec = overlay(inner, [{f"f{number}": "x"} for number in range(len(names))], names)
    mount = mounts.detached_overlay(spec)
    try:
        assert sorted(os.listdir(at(mount))) == sorted(f"f{number}" for number in range(len(names)))
        at(mount, "w").write_text("x")
        assert (inner / "upper/w").exists()
    finally:
        os.close(mount)


@pytest.mark.usefixtures("way")
def test_overlay_volatile_is_asked_of_the_kernel(where: Path) -> None:
    mount = mounts.detached_overlay(overlay(where, [{}], volatile=True))
    try:
        # The kernel marks the work directory, so that nobody takes the upper for synced.
        assert (where / "work/work/incompat/volatile").exists()
    finally:
        os.close(mount)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(1000)]
    yield
    for descriptor in held:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("way", "many_descriptors")
@pytest.mark.parametrize("count", [60, 128])
def test_overlay_of_many_layers_in_a_process_with_many_descriptors(where: Path, count: int) -> None:
    before = mounted()
    spec = overlay(where, [{f"of{number}": ""} for number in range(count)])
    mount = mounts.detached_overlay(spec)
    try:
        assert len(os.listdir(at(mount))) == count
        assert mounted() == before
    finally:
        os.close(mount)


def test_more_layers_than_an_older_kernel_takes_are_not_supported(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_release", lambda: (6, 1))
    spec = overlay(where, [{} for _ in range(129)])
    with pytest.raises(NotSupported, match="129 layers"):
        mounts.detached_overlay(spec)


def test_overlay_of_what_is_missing_names_it_and_leaves_no_descriptor(where: Path) -> None:
    spec = overlay(where, [{}])
    good = {"lowers": spec.lowers, "upper": spec.upper, "work": spec.work}
    (where / "file").write_text("")
    descriptors = len(os.listdir("/proc/self/fd"))
    for wrong, text in (
        ({"lowers": (spec.lowers[0], f"{where}/gone")}, "layer .*gone.*: no such file"),
        ({"lowers": (f"{where}/file",)}, "layer .*file.*: not a directory"),
        ({"lowers": ("relative",)}, "layer 'relative': must be an absolute path"),
        ({"lowers": ("/a\0b",)}, "absolute"),
        ({"lowers": ()}, "0 layers"),
        ({"lowers": spec.lowers * 501}, "501 layers"),
        ({"upper": f"{where}/gone"}, "upper directory"),
        ({"work": f"{where}/gone"}, "work directory"),
    ):
        with pytest.raises(InvalidSpec, match=text):
            mounts.detached_overlay(Overlay(**(good | wrong)))  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_overlay_that_the_kernel_refuses_names_it(where: Path) -> None:
    spec = overlay(where, [{}])
    (where / "upper/work").mkdir()
    with pytest.raises(RuntimeFailed, match="upper") as refused:
        mounts.detached_overlay(Overlay(lowers=spec.lowers, upper=spec.upper, work=f"{where}/upper/work"))
    assert refused.value.operation == "mount"
    assert "\n" not in str(refused.value)


@pytest.mark.needs("linux>=6.5")  # before, overlay says why in the kernel's log alone
def test_overlay_that_the_kernel_refuses_has_its_words(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish = mounts._finish

    def finish_with_nonsense(context: int, upper: int, work: int, volatile: bool) -> None:
        mounts._set(context, "nonsense", "x")
        finish(context, upper, work, volatile)

    monkeypatch.setattr(mounts, "_finish", finish_with_nonsense)
    with pytest.raises(RuntimeFailed, match=r"invalid argument .*nonsense") as refused:
        mounts.detached_overlay(overlay(where, [{}]))
    assert "nonsense" in refused.value.last_words


def test_upper_on_an_overlay_is_refused(where: Path) -> None:
    mount = mounts.detached_overlay(overlay(where, [{}]))
    try:
        for name in ("upper", "work"):
            at(mount, name).mkdir()
        assert mounts.is_overlay(str(at(mount, "upper")))
        with pytest.raises(InvalidSpec, match="lies on an overlay"):
            mounts.check_upper(str(at(mount, "upper")))
        with pytest.raises(InvalidSpec, match="lies on an overlay"):
            mounts.detached_overlay(Overlay(lowers=("/",), upper=str(at(mount, "upper")), work=str(at(mount, "work"))))
    finally:
        os.close(mount)
    mounts.check_upper(str(where))
    assert mounts.filesystem_of("/dev/shm") == "tmpfs"


def test_bind_is_a_private_copy_that_can_be_made_read_only(where: Path) -> None:
    before = mounted()
    (where / "f").write_text("x")
    mount = mounts.detached_bind(str(where))
    try:
        assert not os.get_inheritable(mount)
        at(mount, "g").write_text("through")
        assert (where / "g").read_text() == "through"
        mounts.set_mount_attributes(mount, read_only=True, nosuid=True)
        with pytest.raises(OSError, match="Read-only"):
            at(mount, "h").write_text("")
        (where / "h").write_text("the original can be written")
        assert os.statvfs(mount).f_flag & os.ST_NOSUID
        assert mounted() == before
    finally:
        os.close(mount)


def test_bind_of_a_tree_has_the_mounts_below_unless_not_wanted() -> None:
    for recursive in (True, False):
        mount = mounts.detached_bind("/", recursive=recursive)
        try:
            assert os.path.exists(at(mount, "proc/self")) is recursive
        finally:
            os.close(mount)


@pytest.mark.parametrize("path", ["", "relative", "/nowhere/at/all", "/etc/passwd", "/a\0b"])
def test_bind_of_what_is_no_directory_is_refused(path: str) -> None:
    with pytest.raises(LightermanError) as refused:
        mounts.detached_bind(path)
    assert type(refused.value) is InvalidSpec
