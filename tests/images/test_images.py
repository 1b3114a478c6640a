"""The built-in image and plain directories."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lighterman.errors import InvalidSpec, NotFound, NotSupported, StoreError
from lighterman.images import Image, ImageStore, builtin, directory_image
from lighterman.images.builtin import busybox_image, find_static_busybox, is_static

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture
def layers(tmp_path: Path) -> Path:
    try:
        find_static_busybox()
    except NotSupported as missing:
        pytest.skip(str(missing))
    return tmp_path / "layers"


def _resolve(layers: Path) -> Image:
    return ImageStore(layers).resolve("busybox")


# ---- the layer ---------------------------------------------------------------------------------------------------


def test_the_layer_is_a_root(layers: Path) -> None:
    image = _resolve(layers)
    assert image.name == "busybox"
    assert image.config.cmd == ("sh",)
    (top,) = image.layers
    assert image.id == f"sha256:{os.path.basename(top)}"
    root = Path(top)
    for name in ("bin/sh", "bin/true", "bin/[", "usr/bin/env"):
        assert (root / name).resolve() == root / "bin" / "busybox"
    assert (root / "etc" / "passwd").read_text().startswith("root:x:0:0:root:/root:")
    for name in ("dev", "proc", "sys", "home", "var", "root", "etc/hosts", "etc/group"):
        assert (root / name).exists(), name
    done = subprocess.run([root / "bin" / "echo", "works"], capture_output=True, text=True)
    assert done.stdout == "works\n"


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes_do_not_depend_on_the_umask(layers: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        root = Path(busybox_image(layers).layers[0])
    finally:
        os.umask(before)
    expected = {"": 0o755, "tmp": 0o1777, "root": 0o700, "bin/busybox": 0o755, "etc/passwd": 0o644, "etc/shadow": 0o640}
    for name, mode in expected.items():
        assert stat.S_IMODE((root / name).stat().st_mode) == mode, name


def test_the_cache_is_private(layers: Path) -> None:
    _resolve(layers)
    assert stat.S_IMODE(layers.stat().st_mode) == 0o700


def test_made_once(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _resolve(layers)
    monkeypatch.setattr(builtin, "_make", _must_not_be_called)
    assert _resolve(layers) == first
    store = ImageStore(layers)
    assert store.cached("busybox") is None
    assert store.resolve("busybox:latest") == first == store.cached("busybox")


def _must_not_be_called(*_: object) -> None:
    raise AssertionError("the layer was there already")


def test_a_damaged_layer_is_made_again(layers: Path) -> None:
    binary = Path(_resolve(layers).layers[0]) / "bin" / "busybox"
    whole = binary.read_bytes()
    binary.write_bytes(whole[:100])
    _resolve(layers)
    assert binary.read_bytes() == whole


def test_what_a_dead_maker_left_is_swept(layers: Path) -> None:
    stale = layers / ".making-dead" / "bin"
    stale.mkdir(parents=True)
    _resolve(layers)
    assert {path.name for path in layers.iterdir() if path.name.startswith(".")} == {".lock"}


def test_a_failure_leaves_nothing(layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(builtin, "_write", full)
    with pytest.raises(StoreError, match="busybox"):
        _resolve(layers)
    assert {path.name for path in layers.iterdir()} == {".lock"}


def test_many_processes_and_threads_make_one(layers: Path) -> None:
    code = "import sys; from lighterman.images import ImageStore; print(ImageStore(sys.argv[1]).resolve('busybox'))"
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(layers)], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        for _ in range(4)
    ]
    from_processes = [process.communicate()[0].strip() for process in started]
    shutil.rmtree(layers)
    from_threads: list[Image] = []
    threads = [threading.Thread(target=lambda: from_threads.append(_resolve(layers))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(from_processes) == set(map(repr, from_threads))
    assert len(set(from_processes)) == 1
    assert len([path for path in layers.iterdir() if not path.name.startswith(".")]) == 1


# ---- no busybox, or not a static one ------------------------------------------------------------------------------


def test_no_busybox(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match="apt-get install busybox-static"):
        busybox_image(tmp_path / "layers", str(tmp_path / "missing"))
    assert not (tmp_path / "layers").exists()


def test_a_dynamic_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotSupported, match=r"not a static program.*busybox-static"):
        busybox_image(tmp_path / "layers", "/bin/ls")


def test_a_program_that_lists_nothing(layers: Path, tmp_path: Path) -> None:
    catatonit = shutil.which("catatonit")
    if catatonit is None or not is_static(Path(catatonit).read_bytes()):
        pytest.skip("needs another static program: catatonit is not installed")
    with pytest.raises(NotSupported, match="no shell"):
        busybox_image(tmp_path / "layers", catatonit)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF",
        b"#!/bin/sh\n",
        b"\x7fELF\x02\x01" + b"\0" * 58,
        b"\x7fELF\x02\x01" + b"\xff" * 58,
        b"\x7fELF\x01\x02" + b"\xff" * 58,
        b"\x7fELF\x09\x01" + b"\0" * 58,
    ],
)
def test_what_is_no_static_program(content: bytes) -> None:
    assert not is_static(content)


# ---- names and directories ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["alpine", "", "busybox:1.36", "../busybox", "bus\nybox", "a\0b", "x" * 10_000])
def test_unknown_image(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        NotFound, match="this build knows only the built-in `busybox`; run a directory with --rootfs DIR"
    ) as e:
        ImageStore(tmp_path).resolve(name)
    assert "\n" not in str(e.value)
    assert len(str(e.value)) < 300


def test_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")
    monkeypatch.chdir(tmp_path)
    for path in (str(tmp_path / "root"), "root", "./link/", str(tmp_path / "link" / "..") + "/root"):
        assert directory_image(path).layers == (os.path.realpath(tmp_path / "root"),)


def test_what_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for name in ("missing", "file", "loop", "file/x", "x" * 5000, "a\0b"):
        with pytest.raises(InvalidSpec):
            directory_image(str(tmp_path / name))
    with pytest.raises(InvalidSpec):
        directory_image("")


def test_the_engines_own_directories_are_no_root(tmp_path: Path) -> None:
    state = tmp_path / "state"
    (state / "inside").mkdir(parents=True)
    (tmp_path / "state-2").mkdir()
    for path in (state, state / "inside", tmp_path, Path("/")):
        with pytest.raises(InvalidSpec, match="the engine's own"):
            directory_image(str(path), forbidden=(str(state), "/run/lighterman"))
    directory_image(str(tmp_path / "state-2"), forbidden=(str(state),))
