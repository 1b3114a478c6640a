"""Filters compiled once: never weaker, never for the wrong section, never by a runtime that does not take them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lighterman.errors import NotSupported, RuntimeFailed
from lighterman.images import ImageConfig, ImageStore
from lighterman.images.builtin import find_static_busybox
from lighterman.runtimes.oci.document import HostFacts, build_spec, encode_config
from lighterman.runtimes.oci.seccomp.cache import ANNOTATION, FilterCache, _take_apart
from lighterman.runtimes.oci.seccomp.profile import DEFAULT_PROFILE
from lighterman.runtimes.oci.seccomp.section import is_precompilable, reduced
from lighterman.spec import ContainerSpec, PlainRoot, Spec
from support import eventually_sync, why_not_real

RUN_S = 60.0


@pytest.fixture
def crun() -> str:
    reason = why_not_real("crun")
    if reason is not None:
        pytest.skip(reason)
    path = shutil.which("crun")
    assert path is not None
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    try:
        layer = ImageStore(tmp_path / "layers").resolve("busybox").layers[0]
    except NotSupported as missing:
        pytest.skip(str(missing))
    shutil.copytree(layer, tmp_path / "root", symlinks=True)
    return tmp_path / "root"


def spec_of(root: Path, script: str = "true", id: str = "x", **wanted: Any) -> Spec:
    return build_spec(
        ContainerSpec(rootfs=str(root), argv=("sh", "-c", script), **wanted),
        ImageConfig(),
        rootfs=PlainRoot(path=str(root)),
        root_lookup=str(root),
        id=id,
        files=None,
        host=HostFacts.detect(),
    )


def with_section(section: dict[str, Any] | None, **more: Any) -> bytes:
    linux: dict[str, Any] = {"namespaces": []}
    if section is not None:
        linux["seccomp"] = section
    return json.dumps({"ociVersion": "1.0.2", "linux": linux, **more}).encode()


# ---- what may be precompiled -------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "architectures": ["SCMP_ARCH_X86_64"],
    "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
}


def _encoded(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_a_plain_profile_may_be_precompiled() -> None:
    assert is_precompilable(_encoded())
    assert json.loads(reduced(_encoded())) == {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "flags": ["SECCOMP_FILTER_FLAG_LOG"],
    }


@pytest.mark.parametrize(
    "section",
    [
        _encoded(defaultAction="SCMP_ACT_ALLOW"),
        _encoded(defaultAction="SCMP_ACT_LOG"),
        _encoded(defaultAction="SCMP_ACT_TRACE"),
        _encoded(defaultAction="SCMP_ACT_NOTIFY"),
        _encoded(flags=["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]),
        _encoded(flags=["SECCOMP_FILTER_FLAG_NEW_LISTENER"]),
        _encoded(listenerPath="/run/x"),
        _encoded(somethingNew=True),
        _encoded(syscalls=[{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]),
        _encoded(syscalls=[{"names": ["mkdir"], "action": "SCMP_ACT_TRACE"}]),
        _encoded(syscalls=[{"names": ["mkdir"]}]),
        _encoded(syscalls=[1]),
        _encoded(syscalls=None),
        b"{}",
        b"[]",
        b"null",
        b"",
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_is_never_precompiled(section: bytes, tmp_path: Path) -> None:
    assert not is_precompilable(section)


def test_nothing_is_known_at_first(tmp_path: Path) -> None:
    cache = FilterCache(tmp_path / "cache", sys.executable, "1")
    document = with_section(GOOD)
    assert cache.apply(document) is document
    assert cache.is_worth_preparing(document)
    assert not cache.is_worth_preparing(with_section(None))
    assert not cache.prepare(with_section(None))
    assert cache.lookup(json.dumps(GOOD).encode()) is None
    assert not (tmp_path / "cache").exists()


def test_no_runtime(tmp_path: Path) -> None:
    with pytest.raises(NotSupported):
        FilterCache(tmp_path, str(tmp_path / "missing"), "1")


def test_the_document_around_it_stays(tmp_path: Path) -> None:
    cache = FilterCache(tmp_path, sys.executable, "1")
    document = with_section(GOOD, annotations={"a": "b"}, hostname='x","seccomp":{}', root={"path": "r"})
    section = _take_apart(document)[2]
    assert section is not None
    cache._remember(section, (reduced(section), "Zm9v"))
    applied = json.loads(cache.apply(document))
    expected = json.loads(document)
    expected["linux"]["seccomp"] = json.loads(reduced(section))
    expected["annotations"] = {"a": "b", ANNOTATION: "Zm9v"}
    assert applied == expected
    other = with_section({**GOOD, "defaultErrnoRet": 2})
    assert cache.apply(other) is other


# ---- runtimes that lie or fail -----------------------------------------------------------------------------------


def _script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "behaviour",
    [
        "exit 1",
        "echo up",
        "exec >&-; read x",
        "head -c 100000 /dev/zero | tr '\\0' x; read x",
        'mkdir -p "$2/lighterman-filter"; printf abc > "$2/lighterman-filter/seccomp.bpf"; echo up; read x',
        'mkdir -p "$2/lighterman-filter"; : > "$2/lighterman-filter/seccomp.bpf"; echo up; read x',
        # Keeps a filter, and lets everything happen that it should have refused.
        'mkdir -p "$2/lighterman-filter"; printf 12345678 > "$2/lighterman-filter/seccomp.bpf"; echo allowed; read x',
    ],
)
def test_a_runtime_that_is_not_to_be_trusted(tmp_path: Path, behaviour: str) -> None:
    runtime = _script(tmp_path / "runtime", behaviour)
    cache = FilterCache(tmp_path / "cache", runtime, "1", busybox="/bin/true", timeout_s=5.0)
    document = with_section(GOOD)
    assert cache.prepare(document) is False
    assert cache.apply(document) is document
    assert not cache.is_worth_preparing(document)
    assert not list((tmp_path / "cache").glob("*.trusted"))
    assert not list((tmp_path / "cache").glob(".work-*"))


def test_a_runtime_that_hangs_is_given_up(tmp_path: Path) -> None:
    runtime = _script(tmp_path / "runtime", "exec sleep 1000")
    cache = FilterCache(tmp_path / "cache", runtime, "1", busybox="/bin/true", timeout_s=0.2)
    with pytest.raises(RuntimeFailed, match="showed nothing"):
        cache.compile(json.dumps(GOOD).encode())
    assert not list((tmp_path / "cache").glob(".work-*"))


def test_a_runtime_replaced_meanwhile_compiles_nothing(tmp_path: Path) -> None:
    runtime = _script(tmp_path / "runtime", "exit 1")
    cache = FilterCache(tmp_path / "cache", runtime, "1", busybox="/bin/true")
    _script(tmp_path / "runtime", "exit 1 # newer")
    with pytest.raises(NotSupported, match="has been replaced"):
        cache.compile(json.dumps(GOOD).encode())
    assert not cache.prepare(with_section(GOOD))


def test_what_a_killed_maker_left_is_swept(tmp_path: Path) -> None:
    runtime = _script(tmp_path / "runtime", "exit 1")
    (tmp_path / "cache" / ".work-dead" / "rootfs").mkdir(parents=True)
    (tmp_path / "cache" / ".new-1-x.bpf").touch()
    FilterCache(tmp_path / "cache", runtime, "1", busybox="/bin/true").prepare(with_section(GOOD))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".lock"]


# ---- files -------------------------------------------------------------------------------------------------------


def _stored(cache: FilterCache, section: bytes, filter: bytes) -> Path:
    cache.directory.mkdir(exist_ok=True)
    path = cache._path(section)
    cache._write(path, hashlib.sha256(filter).digest() + filter)
    return path


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        _link,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:32]),
        lambda path: path.write_bytes(b""),
        lambda path: path.chmod(0o622),
        _directory,
        _fifo,
    ],
)
def test_a_damaged_file_is_not_used(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    cache = FilterCache(tmp_path / "cache", sys.executable, "1")
    section = json.dumps(GOOD).encode()
    path = _stored(cache, section, b"12345678" * 3)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert cache.lookup(section) == base64.b64encode(b"12345678" * 3)
    damage(path)
    assert cache.lookup(section) is None


def test_each_build_and_section_has_its_own(tmp_path: Path) -> None:
    section = json.dumps(GOOD).encode()
    first = FilterCache(tmp_path / "cache", sys.executable, "1")
    _stored(first, section, b"12345678")
    assert FilterCache(tmp_path / "cache", sys.executable, "1").lookup(section) is not None
    assert FilterCache(tmp_path / "cache", sys.executable, "2").lookup(section) is None
    assert FilterCache(tmp_path / "cache", "/bin/sh", "1").lookup(section) is None
    assert first.lookup(_encoded(flags=[])) is None


def test_an_upgraded_runtime_is_another_build(tmp_path: Path) -> None:
    section = json.dumps(GOOD).encode()
    runtime = _script(tmp_path / "runtime", "exit 1")
    _stored(FilterCache(tmp_path / "cache", runtime, "1"), section, b"12345678")
    _script(tmp_path / "runtime", "exit 1 # newer")
    assert FilterCache(tmp_path / "cache", runtime, "1").lookup(section) is None


# ---- real containers ---------------------------------------------------------------------------------------------

REFUSED = """
    grep Seccomp: /proc/self/status
    for call in 'unshare -U true' 'unshare -n true' 'mount -t tmpfs x /mnt' 'swapon /etc/passwd' dmesg; do
        $call >/dev/null 2>&1 && echo "allowed: $call" || echo "refused: $call"
    done
    mkdir /works && rmdir /works && echo works
"""


def _run(crun: str, directory: Path, config: bytes, id: str) -> tuple[str, bytes | None]:
    """Its output, and the filter that crun keeps in its state while it runs."""
    bundle = directory / f"bundle-{id}"
    bundle.mkdir()
    document = msgspec.json.decode(config)
    # Limits need cgroups, and what is looked at here does not.
    for name in ("resources", "cgroupsPath"):
        del document["linux"][name]
    (bundle / "config.json").write_bytes(msgspec.json.encode(document))
    state = directory / "state"
    process = subprocess.Popen(
        [crun, "--root", str(state), "--cgroup-manager=disabled", "run", "--bundle", str(bundle), id],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        if line == "end\n":
            break
        lines.append(line)
    file = state / id / "seccomp.bpf"
    filter = file.read_bytes() if file.exists() else None
    process.communicate(timeout=RUN_S)
    return "".join(lines), filter


@pytest.mark.real
@pytest.mark.parametrize(
    "wanted",
    [{}, {"cap_add": ("SYS_ADMIN",)}, {"cap_drop": ("ALL",)}, {"user": "1000"}, {"no_new_privileges": True}],
    ids=str,
)
def test_the_filter_in_force_is_what_the_runtime_would_compile(
    crun: str, tmp_path: Path, root: Path, wanted: dict[str, Any]
) -> None:
    cache = FilterCache(tmp_path / "cache", crun, "test")
    seen = []
    for precompiled in (False, True):
        id = uuid.uuid4().hex
        spec = spec_of(root, f"{REFUSED} echo end; read x", id=id, **wanted)
        if precompiled:
            assert cache.prepare(spec.document)
            applied = cache.apply(spec.document)
            assert ANNOTATION in msgspec.json.decode(applied)["annotations"]
            assert msgspec.json.decode(applied)["linux"]["seccomp"].keys() == {"defaultAction", "defaultErrnoRet"}
            spec = msgspec.structs.replace(spec, document=applied)
        seen.append(_run(crun, tmp_path, encode_config(spec), id))
    (compiled_output, compiled), (given_output, given) = seen
    assert compiled is not None
    assert given == compiled
    assert given_output == compiled_output
    assert "Seccomp:\t2" in given_output
    if not wanted:
        for call in ("unshare -U true", "unshare -n true", "mount -t tmpfs x /mnt", "swapon /etc/passwd", "dmesg"):
            assert f"refused: {call}" in given_output
        assert "works" in given_output
    if "SYS_ADMIN" in wanted.get("cap_add", ()):
        assert "allowed: unshare -U true" in given_output


@pytest.mark.real
def test_capabilities_alone_would_not_refuse(crun: str, tmp_path: Path, root: Path) -> None:
    """Without any filter the same call works: so it is the filter that refuses it above."""
    id = uuid.uuid4().hex
    output, filter = _run(
        crun, tmp_path, encode_config(spec_of(root, f"{REFUSED} echo end; read x", id=id, seccomp="unconfined")), id
    )
    assert filter is None
    assert "allowed: unshare -U true" in output


@pytest.mark.real
def test_a_users_profile_in_force(crun: str, tmp_path: Path, root: Path) -> None:
    profile = json.loads(json.dumps(DEFAULT_PROFILE))
    for rule in profile["syscalls"]:
        rule["names"] = [name for name in rule["names"] if name not in ("mkdir", "mkdirat")]
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    id = uuid.uuid4().hex
    spec = spec_of(root, "mkdir /d 2>&1; echo end; read x", id=id, seccomp=str(tmp_path / "profile.json"))
    cache = FilterCache(tmp_path / "cache", crun, "test")
    assert cache.prepare(spec.document)
    output, _ = _run(
        crun, tmp_path, encode_config(msgspec.structs.replace(spec, document=cache.apply(spec.document))), id
    )
    assert "Operation not permitted" in output


@pytest.mark.real
def test_without_the_filter_the_rest_refuses_everything(crun: str, tmp_path: Path, root: Path) -> None:
    """A runtime that does not know the annotation must not run the program unfiltered."""
    id = uuid.uuid4().hex
    spec = spec_of(root, "echo ran; echo end; read x", id=id)
    cache = FilterCache(tmp_path / "cache", crun, "test")
    assert cache.prepare(spec.document)
    config = msgspec.json.decode(encode_config(msgspec.structs.replace(spec, document=cache.apply(spec.document))))
    del config["annotations"][ANNOTATION]
    output, _ = _run(crun, tmp_path, msgspec.json.encode(config), id)
    assert "ran" not in output.splitlines()


@pytest.mark.real
def test_the_second_engine_finds_it_on_disk(
    crun: str, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = spec_of(root).document
    assert FilterCache(tmp_path / "cache", crun, "test").prepare(document)
    monkeypatch.setattr("lighterman.runtimes.oci.seccomp.cache.observe", _must_not_be_called)
    second = FilterCache(tmp_path / "cache", crun, "test")
    assert second.prepare(document)
    assert second.apply(document) != document


def _must_not_be_called(*_: object, **__: object) -> None:
    raise AssertionError("the runtime was asked again")


@pytest.mark.real
def test_many_at_once_agree(crun: str, tmp_path: Path, root: Path) -> None:
    document = spec_of(root).document
    caches = [FilterCache(tmp_path / "cache", crun, "test") for _ in range(4)]
    threads = [threading.Thread(target=cache.prepare, args=(document,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({cache.apply(document) for cache in caches}) == 1
    assert caches[0].apply(document) != document


@pytest.mark.real
def test_runc_is_not_trusted_with_it(tmp_path: Path, root: Path) -> None:
    reason = why_not_real("runc")
    if reason is not None:
        pytest.skip(reason)
    runc = shutil.which("runc")
    assert runc is not None
    document = spec_of(root).document
    cache = FilterCache(tmp_path / "cache", runc, "test")
    assert not cache.prepare(document)
    assert cache.apply(document) is document


@pytest.mark.real
def test_a_maker_killed_on_its_way_leaves_no_container(crun: str, tmp_path: Path, root: Path) -> None:
    """The throwaway container ends with its standard input, however the maker ended."""
    code = """
import os, signal, sys
from pathlib import Path
from lighterman.runtimes.oci.seccomp import throwaway
throwaway._read = lambda path: os.kill(os.getpid(), signal.SIGKILL)
runtime, busybox, directory, section = sys.argv[1:]
throwaway.observe(
    runtime, busybox, "echo up", directory=Path(directory), seccomp=section.encode(), timeout_s=30
)
"""
    section = _take_apart(spec_of(root).document)[2]
    assert section is not None
    done = subprocess.run(
        [sys.executable, "-c", code, crun, find_static_busybox(), str(tmp_path), section.decode()],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=RUN_S,
    )
    assert done.returncode == -signal.SIGKILL
    (work,) = tmp_path.glob(".work-*")

    def running() -> list[str]:
        listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, timeout=RUN_S).stdout
        return [line for line in listed.splitlines() if str(work) in line and "python" not in line]

    eventually_sync(lambda: not running())
