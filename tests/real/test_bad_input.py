"""Bad input through the Python face: the right class, one line that names the value, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lighterman import Engine
from lighterman.errors import (
    AlreadyExists,
    CommandNotExecutable,
    CommandNotFound,
    InvalidSpec,
    LightermanError,
    NotFound,
    NotSupported,
    RootLocked,
    RuntimeFailed,
)
from lighterman.spec import BlkioLimit, Device, Mount, Ulimit
from support import leaked_since, snapshot

pytestmark = pytest.mark.real

TRUE = ("true",)


def _one_line(error: LightermanError) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    assert len(text) < 1000
    assert text[0].islower() or not text[0].isalpha()
    assert not text.endswith(".")
    return text


# ---- what a container is asked to be -----------------------------------------------------------------------------

REFUSED: list[tuple[str | None, Sequence[str], dict[str, Any], type[LightermanError], str]] = [
    # image and command
    ("no-such-image", TRUE, {}, NotFound, "no-such-image"),
    ("", TRUE, {}, NotFound, "''"),
    (None, TRUE, {}, InvalidSpec, "image or a rootfs"),
    ("busybox", TRUE, {"rootfs": "/"}, InvalidSpec, "image or a rootfs"),
    (None, TRUE, {"rootfs": "/no/such/directory"}, InvalidSpec, "/no/such/directory"),
    (None, TRUE, {"rootfs": "/etc/passwd"}, InvalidSpec, "/etc/passwd"),
    (None, TRUE, {"rootfs": "/"}, InvalidSpec, "'/'"),
    ("busybox", [""], {}, InvalidSpec, "empty string"),
    ("busybox", "true", {}, InvalidSpec, "list of arguments"),
    ("busybox", ["echo", "a\0b"], {}, InvalidSpec, "NUL"),
    ("busybox", ["echo", "\udcff"], {}, InvalidSpec, "UTF-8"),
    ("busybox", ["echo", "x" * 200_000], {}, InvalidSpec, "200000 bytes"),
    ("busybox", ["echo", *["x" * 100_000] * 30], {}, InvalidSpec, "bytes, more than"),
    # environment, directory, user, names
    ("busybox", TRUE, {"env": {"BIG": "x" * 10_000_000}}, InvalidSpec, "pass large data in a file"),
    ("busybox", TRUE, {"env": {f"V{i}": "x" * 1000 for i in range(10_000)}}, InvalidSpec, "pass large data in a file"),
    ("busybox", TRUE, {"env": {"A": "a\0b"}}, InvalidSpec, "NUL"),
    ("busybox", TRUE, {"env": {"A\nB": "x"}}, InvalidSpec, r"A\\nB"),
    ("busybox", TRUE, {"env": {"": "x"}}, InvalidSpec, "environment name"),
    ("busybox", TRUE, {"env": {"A": 1}}, InvalidSpec, "env"),
    ("busybox", TRUE, {"workdir": "relative"}, InvalidSpec, "relative"),
    ("busybox", TRUE, {"workdir": "/a\0b"}, InvalidSpec, "NUL"),
    ("busybox", TRUE, {"user": "no-such-user"}, NotFound, "no-such-user"),
    ("busybox", TRUE, {"user": "0:no-such-group"}, NotFound, "no-such-group"),
    ("busybox", TRUE, {"user": "99999999999"}, InvalidSpec, "99999999999"),
    ("busybox", TRUE, {"user": "a\nb"}, LightermanError, r"a\\nb"),
    ("busybox", TRUE, {"hostname": "a b"}, InvalidSpec, "a b"),
    ("busybox", TRUE, {"hostname": "a\nb"}, InvalidSpec, r"a\\nb"),
    ("busybox", TRUE, {"name": "a/b"}, InvalidSpec, "a/b"),
    ("busybox", TRUE, {"name": ".."}, InvalidSpec, r"'\.\.'"),
    ("busybox", TRUE, {"name": "../../etc"}, InvalidSpec, "etc"),
    ("busybox", TRUE, {"name": ""}, InvalidSpec, "''"),
    ("busybox", TRUE, {"name": "a\n"}, InvalidSpec, r"a\\n"),
    ("busybox", TRUE, {"name": "x" * 200}, InvalidSpec, "at most 128"),
    # sizes and limits
    ("busybox", TRUE, {"memory": "many"}, InvalidSpec, "many"),
    ("busybox", TRUE, {"memory": "-1"}, InvalidSpec, "-1"),
    ("busybox", TRUE, {"memory": "1M"}, InvalidSpec, "6 MiB"),
    ("busybox", TRUE, {"memory": "9" * 30}, InvalidSpec, "at most"),
    ("busybox", TRUE, {"memory_swap": "64M"}, InvalidSpec, "memory limit"),
    ("busybox", TRUE, {"cpus": "lots"}, InvalidSpec, "lots"),
    ("busybox", TRUE, {"cpus": float("nan")}, InvalidSpec, "finite"),
    ("busybox", TRUE, {"cpus": 4096}, NotSupported, "4096"),
    ("busybox", TRUE, {"cpuset_cpus": "5000"}, NotSupported, "5000"),
    ("busybox", TRUE, {"cpuset_cpus": "a-b"}, InvalidSpec, "a-b"),
    ("busybox", TRUE, {"cpu_shares": 1}, InvalidSpec, "cpu shares 1"),
    ("busybox", TRUE, {"pids_limit": -7}, InvalidSpec, "-7"),
    ("busybox", TRUE, {"pids_limit": "8"}, InvalidSpec, "pids_limit"),
    ("busybox", TRUE, {"blkio_weight": 5}, InvalidSpec, "blkio weight 5"),
    ("busybox", TRUE, {"device_read_bps": [BlkioLimit(path="/dev/null", rate=1)]}, InvalidSpec, "/dev/null"),
    ("busybox", TRUE, {"shm_size": 0}, InvalidSpec, "shm size 0"),
    ("busybox", TRUE, {"ulimits": [Ulimit(name="speed", soft=1, hard=1)]}, InvalidSpec, "speed"),
    ("busybox", TRUE, {"ulimits": [Ulimit(name="nofile", soft=2, hard=1)]}, InvalidSpec, "nofile"),
    ("busybox", TRUE, {"ulimits": [Ulimit(name="nofile", soft=1, hard=2**62)]}, NotSupported, "nofile"),
    ("busybox", TRUE, {"oom_score_adj": 5000}, InvalidSpec, "5000"),
    # mounts, devices, kernel parameters
    ("busybox", TRUE, {"mounts": ["/no/such/source:/x"]}, InvalidSpec, "/no/such/source"),
    ("busybox", TRUE, {"mounts": ["relative:/x"]}, InvalidSpec, "relative"),
    ("busybox", TRUE, {"mounts": ["/tmp:x"]}, InvalidSpec, "'x'"),
    ("busybox", TRUE, {"mounts": ["/tmp:/a/../b"]}, InvalidSpec, r"\.\."),
    ("busybox", TRUE, {"mounts": ["/tmp:/x:bad"]}, InvalidSpec, "bad"),
    ("busybox", TRUE, {"mounts": ["/tmp"]}, InvalidSpec, "/tmp"),
    ("busybox", TRUE, {"mounts": ["/:/host"]}, InvalidSpec, "engine's own"),
    ("busybox", TRUE, {"mounts": ["/tmp:/x", "/tmp:/x"]}, InvalidSpec, "twice"),
    ("busybox", TRUE, {"mounts": [Mount(type="tmpfs", target="/x", size_bytes=-1)]}, InvalidSpec, "-1"),
    ("busybox", TRUE, {"devices": ["/dev/no-such-device"]}, InvalidSpec, "no-such-device"),
    ("busybox", TRUE, {"devices": [Device(path_on_host="/etc/passwd")]}, InvalidSpec, "not a device"),
    ("busybox", TRUE, {"sysctls": {"vm.swappiness": "1"}}, InvalidSpec, "vm.swappiness"),
    # the rest
    ("busybox", TRUE, {"network": "bridge"}, InvalidSpec, "bridge"),
    ("busybox", TRUE, {"runtime": "docker"}, NotSupported, "docker"),
    ("busybox", TRUE, {"restart": "sometimes"}, InvalidSpec, "sometimes"),
    ("busybox", TRUE, {"cap_add": ["FLY"]}, InvalidSpec, "FLY"),
    ("busybox", TRUE, {"seccomp": "relative.json"}, InvalidSpec, "relative.json"),
    ("busybox", TRUE, {"seccomp": "/no/such/profile"}, LightermanError, "/no/such/profile"),
    ("busybox", TRUE, {"stop_signal": 99}, InvalidSpec, "99"),
    ("busybox", TRUE, {"terminal": True, "console_size": (0, 80)}, InvalidSpec, "0x80"),
]


@pytest.mark.parametrize(
    ("image", "argv", "options", "kind", "named"),
    REFUSED,
    ids=[f"{number}-{','.join(case[2]) or case[4][:20]}" for number, case in enumerate(REFUSED)],
)
async def test_refused(
    image: str | None, argv: Sequence[str], options: dict[str, Any], kind: type[LightermanError], named: str
) -> None:
    async with Engine() as engine:
        before = snapshot()
        with pytest.raises(kind, match=named) as caught:
            await engine.run(image, argv, **options)
        _one_line(caught.value)
        assert await engine.containers() == []
        # Not even before the engine is closed.
        assert leaked_since(before) == []


async def test_unknown_option_is_a_type_error() -> None:
    async with Engine() as engine:
        with pytest.raises(TypeError, match="memroy"):
            await engine.run("busybox", TRUE, memroy="1G")  # type: ignore[call-arg]


# ---- the command -------------------------------------------------------------------------------------------------


async def test_command_not_found_and_not_executable(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    (tmp_path / "directory").mkdir()
    before = snapshot()
    for argv, kind in (
        (["no-such-program"], CommandNotFound),
        (["/no/such/program"], CommandNotFound),
        (["/data/x"], CommandNotFound),
        (["/directory"], CommandNotExecutable),
        (["/data"], CommandNotExecutable),
    ):
        with pytest.raises(kind) as caught:
            await engine.run(None, argv, rootfs=tmp_path)
        assert argv[0] in _one_line(caught.value)
        assert isinstance(caught.value, RuntimeFailed)
        assert await engine.containers() == []
    assert leaked_since(before) == []
    assert (await engine.run("busybox", ["true"])).ok


async def test_newline_in_an_argument_is_an_argument(engine: Engine) -> None:
    done = await engine.run("busybox", ["printf", "%s", "a\nb"], env={"A": "x\ny"})
    assert done.stdout == b"a\nb"


async def test_two_of_one_name(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"], name="box"):
        with pytest.raises(AlreadyExists, match="'box'") as caught:
            await engine.run("busybox", TRUE, name="box")
        _one_line(caught.value)
        assert [container.name for container in await engine.containers()] == ["box"]
    assert (await engine.run("busybox", TRUE, name="box")).ok


async def test_bad_exec(engine: Engine) -> None:
    async with engine.container("busybox", ["sleep", "1000"]) as box:
        for argv, options, kind in (
            ([], {}, InvalidSpec),
            ([""], {}, InvalidSpec),
            ("true", {}, InvalidSpec),
            (["echo", "a\0b"], {}, InvalidSpec),
            (["true"], {"env": {"A=B": "x"}}, InvalidSpec),
            (["true"], {"env": {"BIG": "x" * 10_000_000}}, InvalidSpec),
            (["true"], {"user": "no-such-user"}, NotFound),
            (["true"], {"workdir": "relative"}, InvalidSpec),
            (["no-such-program"], {}, CommandNotFound),
            (["/etc"], {}, CommandNotExecutable),
        ):
            with pytest.raises(kind) as caught:
                await box.exec(argv, **options)
            _one_line(caught.value)
        assert (await box.exec(["true"])).ok
        assert len(await box.top()) == 1


# ---- the engine --------------------------------------------------------------------------------------------------


async def test_second_engine_on_one_root_in_this_process(tmp_path: Path) -> None:
    async with Engine(tmp_path / "root") as engine:
        with pytest.raises(RootLocked, match=str(os.getpid())) as caught:
            await Engine(tmp_path / "root").start()
        assert caught.value.holder_pid == os.getpid()
        _one_line(caught.value)
        assert (await engine.run("busybox", TRUE)).ok
    async with Engine(tmp_path / "root") as again:
        assert (await again.run("busybox", TRUE)).ok


async def test_second_engine_on_one_root_in_another_process(tmp_path: Path) -> None:
    async with Engine(tmp_path / "root") as engine:
        done = _refused_elsewhere(f"lighterman.Engine({str(tmp_path / 'root')!r})")
        assert done.startswith(f"RootLocked {os.getpid()} state root {tmp_path / 'root'} ")
        # It was not harmed.
        assert (await engine.run("busybox", TRUE)).ok


def test_no_runtime_is_installed(tmp_path: Path) -> None:
    said = _refused_elsewhere("lighterman.Engine()", PATH=str(tmp_path))
    assert said.startswith("RuntimeUnavailable None no runtime can run a container on this host: ")
    assert "apt-get install" in said


def test_wanted_runtime_is_not_installed(tmp_path: Path) -> None:
    said = _refused_elsewhere("lighterman.Engine(runtime='crun')", PATH=str(tmp_path))
    assert said.startswith("RuntimeUnavailable ")
    assert "crun is not installed" in said


def test_unknown_runtime() -> None:
    assert _refused_elsewhere("lighterman.Engine(runtime='docker')").startswith("NotSupported None runtime 'docker' ")


def test_a_runtime_that_refuses(tmp_path: Path) -> None:
    (tmp_path / "crun").write_text("#!/bin/sh\necho 'crun version 9'; echo 'no containers today' >&2; exit 1\n")
    (tmp_path / "crun").chmod(0o755)
    said = _refused_elsewhere("lighterman.Engine()", PATH=str(tmp_path))
    assert said.startswith("RuntimeUnavailable ")
    assert "no containers today" in said


def test_not_root() -> None:
    # The modules lie where only root can read them: they are loaded before.
    said = _refused_elsewhere("lighterman.Engine()", before="os.setresuid(65534, 65534, 65534)")
    assert said.startswith("NotSupported None ")
    assert "root" in said


@pytest.mark.parametrize("root", ["/", "/proc/self/x", "/dev/null", "/etc/passwd/x", "a\0b"])
def test_a_root_that_can_not_be(root: str) -> None:
    said = _refused_elsewhere(f"lighterman.Engine({root!r})")
    assert said.split()[0] in ("InvalidSpec", "StoreError")


def _refused_elsewhere(engine: str, *, before: str = "", **environment: str) -> str:
    """What starting an engine raises in a process of its own: class, holder's pid, text. Nothing else is written."""
    program = f"""
import asyncio, os, lighterman, lighterman.engine, lighterman.linux_host
async def main():
    try:
        await {engine}.start()
    except lighterman.LightermanError as error:
        print(type(error).__name__, getattr(error, "holder_pid", None), error)
{before}
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    return done.stdout
