"""The rules of the lifecycle on a real OCI runtime, with `Client` alone: no engine, no images, no store."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from real_support import process_is_there, running_in

from lighterman import (
    AlreadyExists,
    Client,
    InvalidState,
    LightermanError,
    NotFound,
    NotSupported,
    Overlay,
    PlainRoot,
    ProcessConfig,
    RestartPolicy,
    Spec,
    State,
    StateInfo,
)
from lighterman.keeper.client import KeeperClient
from lighterman.runtimes.base import CreateOption
from lighterman.runtimes.oci.opened import open_runtime
from lighterman.runtimes.oci.runtime import OciRuntime
from lighterman.runtimes.options import HyperVIsolation, Servicing, WithRestartPolicy
from lighterman.testing import RecordingBackend
from support import eventually

pytestmark = pytest.mark.real


@pytest.fixture
def bundle_root(tmp_path: Path) -> Path:
    """The root file system of a bundle, as an embedding program has it."""
    root = tmp_path / "bundle" / "rootfs"
    for name in ("bin", "proc", "dev", "tmp", "sys"):
        (root / name).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, root / "bin/busybox")
    for name in ("sh", "cat", "sleep", "echo", "true", "false", "seq", "stty", "rm"):
        (root / "bin" / name).symlink_to("busybox")
    return root


@pytest.fixture
async def runtime(real_runtime: str) -> AsyncIterator[OciRuntime]:
    async with open_runtime(name=real_runtime) as runtime:
        yield runtime


@pytest.fixture
async def backend() -> AsyncIterator[RecordingBackend]:
    backend = RecordingBackend()
    yield backend
    await backend.discard()
    # [L39]: every test here is a test of the order as well.
    assert backend.violations == []


@pytest.fixture
async def client(runtime: OciRuntime, backend: RecordingBackend) -> AsyncIterator[Client]:
    async with Client(runtime, backend) as client:
        yield client
        for id in client.containers():
            await client.terminate(id)


def config(root: Path, *argv: str, terminal: bool = False) -> dict[str, Any]:
    """A config.json, decoded, as `crun spec` would write it; no more than is needed."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "args": list(argv),
            "cwd": "/",
            "env": ["PATH=/bin", "NO_EQUALS_SIGN"] if argv[:1] == ("warn",) else ["PATH=/bin"],
            "user": {"uid": 0, "gid": 0},
            "terminal": terminal,
        },
        "root": {"path": str(root)},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
    }


def spec(root: Path, *argv: str, terminal: bool = False, stdin: bool = False) -> Spec:
    document = config(root, *argv, terminal=terminal)
    return Spec.from_oci(document, rootfs=PlainRoot(path=str(root)), stdin=stdin)


def process(*argv: str, terminal: bool = False, stdin: bool = False) -> ProcessConfig:
    return ProcessConfig(args=argv, env={"PATH": "/bin"}, terminal=terminal, stdin=stdin)


SLEEP = ("sleep", "1000")


async def test_create_bundle_runs_and_writes_into_its_own_root(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, "sh", "-c", "echo hi; echo x > /made; exit 3"))
    end = await backend.wait_for("box", State.EXIT)
    assert (end.exit_code, end.exit_code_known, end.signal) == (3, True, None)
    assert backend.states("box") == ["start", "exit"]
    assert backend.stdout("box") == b"hi\n"
    assert (bundle_root / "made").read_text() == "x\n"
    assert client.containers() == ()


async def test_create_overlay_leaves_the_layer_as_it_is(
    client: Client, backend: RecordingBackend, bundle_root: Path, tmp_path: Path
) -> None:
    overlay = Overlay(lowers=(str(bundle_root),), upper=str(tmp_path / "upper"), work=str(tmp_path / "work"))
    document = config(bundle_root, "sh", "-c", "echo x > /made")
    await client.create("box", Spec.from_oci(document, rootfs=overlay))
    assert (await backend.wait_for("box", State.EXIT)).exit_code == 0
    assert not (bundle_root / "made").exists()
    assert (tmp_path / "upper/made").read_text() == "x\n"


async def test_L01_backend_that_creates_the_id_anew_from_its_exit(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    again: list[StateInfo] = []

    async def on_state(info: StateInfo) -> None:
        if info.state is State.EXIT and len(again) < 3:
            again.append(info)
            await client.create("box", spec(bundle_root, "true"))

    backend.on_state = on_state
    await client.create("box", spec(bundle_root, "true"))
    await asyncio.wait_for(backend.wait_for("box", State.EXIT, 4), 60)
    assert backend.states("box") == ["start", "exit"] * 4


async def test_L02_id_in_use_exists_and_the_first_goes_on(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, *SLEEP))
    with pytest.raises(AlreadyExists):
        await client.create("box", spec(bundle_root, *SLEEP))
    assert backend.states("box") == ["start"]
    assert len(running_in("/box")) == 1


async def test_L02_id_in_use_in_another_root_exists_and_the_first_goes_on(
    client: Client, runtime: OciRuntime, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, *SLEEP))
    pid = backend.of("box", State.START)[0].pid
    other = RecordingBackend()
    async with open_runtime(name=runtime.name) as second, Client(second, other) as late:
        if second.parent_group() != runtime.parent_group():
            pytest.skip("each root has its containers in a scope of its own here")
        with pytest.raises(AlreadyExists, match="of another root"):
            await late.create("box", spec(bundle_root, *SLEEP))
        assert (late.containers(), other.events) == ((), [])
    assert process_is_there(pid)
    assert backend.states("box") == ["start"]


async def test_L02_create_that_fails_leaves_nothing(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    with pytest.raises(LightermanError):
        await client.create("box", spec(bundle_root, "no-such-program"))
    assert (client.containers(), backend.states("box")) == ((), [])
    await client.create("box", spec(bundle_root, "true"))
    assert (await backend.wait_for("box", State.EXIT)).exit_code == 0


async def test_L03_exec_name_twice_while_it_runs(client: Client, backend: RecordingBackend, bundle_root: Path) -> None:
    await client.create("box", spec(bundle_root, *SLEEP))
    pid = await client.add_process("box", "one", process(*SLEEP))
    assert process_is_there(pid)
    with pytest.raises(AlreadyExists):
        await client.add_process("box", "one", process(*SLEEP))
    await client.signal_process("box", "one", 9)
    end = await backend.wait_for("box", State.EXIT_PROCESS)
    assert (end.process_id, end.pid, end.signal) == ("one", pid, 9)
    await client.add_process("box", "one", process("true"))
    assert (await backend.wait_for("box", State.EXIT_PROCESS, 2)).exit_code == 0


async def test_L04_kill_of_a_frozen_container_ends_it_for_good(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, *SLEEP), WithRestartPolicy(RestartPolicy(name="always")))
    await client.pause("box")
    await client.signal("box", signal.SIGKILL)
    end = await asyncio.wait_for(backend.wait_for("box", State.EXIT), 60)
    assert (end.signal, backend.of("box", State.RESTART)) == (9, [])


async def test_L04_other_signals_do_not_stop_the_policy(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    script = "trap 'exit 4' USR1; echo ready; while :; do sleep 0.05; done"
    await client.create("box", spec(bundle_root, "sh", "-c", script), WithRestartPolicy(RestartPolicy(name="always")))
    await eventually(lambda: b"ready" in backend.stdout("box"))
    await client.signal("box", signal.SIGUSR1)
    assert (await backend.wait_for("box", State.RESTART)).exit_code == 4
    await backend.wait_for("box", State.START, 2)


async def test_L05_resize_by_named_height_and_width(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done"
    await client.create("box", spec(bundle_root, "sh", "-c", script, terminal=True))
    await eventually(lambda: b"ready" in backend.stdout("box"))
    await client.resize("box", "init", height=12, width=34)
    await backend.wait_for("box", State.EXIT)
    assert b"12 34\r\n" in backend.stdout("box")
    await client.create("plain", spec(bundle_root, *SLEEP))
    with pytest.raises(InvalidState):
        await client.resize("plain", "init", height=12, width=34)


async def test_L06_restore_by_another_client_goes_on(
    real_runtime: str, root: Path, bundle_root: Path, backend: RecordingBackend
) -> None:
    first = RecordingBackend()
    async with open_runtime(root, name=real_runtime) as runtime, Client(runtime, first) as client:
        await client.create("box", spec(bundle_root, "sh", "-c", "read x; echo got $x; exit 6", stdin=True))
        pid = first.of("box", State.START)[0].pid
    await first.discard()
    assert process_is_there(pid)
    async with open_runtime(root, name=real_runtime) as runtime, Client(runtime, backend) as client:
        await client.restore("box")
        assert (await backend.wait_for("box", State.RESTORE)).pid == pid
        await backend.write_stdin("box", b"it\n")
        assert (await backend.wait_for("box", State.EXIT)).exit_code == 6
        assert backend.stdout("box") == b"got it\n"


async def test_L06_restore_of_what_ended_meanwhile_tells_the_true_code(
    real_runtime: str, root: Path, bundle_root: Path, backend: RecordingBackend
) -> None:
    first = RecordingBackend()
    async with open_runtime(root, name=real_runtime) as runtime, Client(runtime, first) as client:
        await client.create("box", spec(bundle_root, "sh", "-c", "sleep 0.2; exit 7"))
        pid = first.of("box", State.START)[0].pid
    await first.discard()
    await eventually(lambda: not process_is_there(pid))
    async with open_runtime(root, name=real_runtime) as runtime, Client(runtime, backend) as client:
        await client.restore("box")
        end = await backend.wait_for("box", State.EXIT)
        assert (end.exit_code, end.exit_code_known) == (7, True)


async def test_L06_restore_of_what_never_was_is_no_success(client: Client, backend: RecordingBackend) -> None:
    try:
        await client.restore("nothing")
    except NotFound:
        return
    end = await backend.wait_for("nothing", State.EXIT)
    assert (end.exit_code, end.exit_code_known) == (-1, False)


async def test_L08_environment_without_equals_sign_is_dropped_with_a_warning(bundle_root: Path) -> None:
    with pytest.warns(RuntimeWarning, match="NO_EQUALS_SIGN"):
        assert spec(bundle_root, "warn").process.env == {"PATH": "/bin"}


async def test_L10_stdin_not_asked_for_is_at_its_end(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, "cat"))
    assert (await asyncio.wait_for(backend.wait_for("box", State.EXIT), 60)).exit_code == 0


async def test_L13_start_comes_before_the_end_however_fast(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    ids = [f"box{number}" for number in range(20)]
    await asyncio.gather(*(client.create(id, spec(bundle_root, "true")) for id in ids))
    for id in ids:
        await backend.wait_for(id, State.EXIT)
        assert backend.states(id) == ["start", "exit"]
        assert backend.of(id, State.START)[0].pid > 0


async def test_L14_backend_that_can_not_attach_nothing_runs_and_nothing_is_told(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    backend.attach_error = ZeroDivisionError("no room")
    with pytest.raises(ZeroDivisionError):
        await client.create("box", spec(bundle_root, *SLEEP), WithRestartPolicy(RestartPolicy(name="always")))
    assert (backend.states("box"), client.containers()) == ([], ())
    await eventually(lambda: not running_in("/box"))
    backend.attach_error = None
    await client.create("box", spec(bundle_root, "true"))
    await backend.wait_for("box", State.EXIT)


async def test_L16_half_close_output_goes_on(client: Client, backend: RecordingBackend, bundle_root: Path) -> None:
    await client.create("box", spec(bundle_root, "sh", "-c", "cat; echo after", stdin=True))
    await backend.write_stdin("box", b"before\n")
    assert (await backend.wait_for("box", State.EXIT)).exit_code == 0
    assert backend.stdout("box") == b"before\nafter\n"


async def test_L19_exit_is_not_held_up_by_who_still_holds_the_pipe(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, *SLEEP))
    await client.add_process("box", "one", process("sh", "-c", "seq 1 3000; sleep 1000 & exit 2"))
    end = await asyncio.wait_for(backend.wait_for("box", State.EXIT_PROCESS), 60)
    assert end.exit_code == 2
    assert backend.stdout("box", "one") == b"".join(b"%d\n" % number for number in range(1, 3001))


async def test_L20_kill_of_the_init_from_outside_is_heard_and_exact(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, *SLEEP))
    os.kill(backend.of("box", State.START)[0].pid, signal.SIGKILL)
    end = await asyncio.wait_for(backend.wait_for("box", State.EXIT), 60)
    assert (end.exit_code, end.signal, end.exit_code_known) == (137, 9, True)


async def test_L25_execs_end_before_their_container_does(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, *SLEEP))
    for name in ("one", "two", "three"):
        await client.add_process("box", name, process(*SLEEP))
    await client.terminate("box")
    await backend.wait_for("box", State.EXIT)
    assert backend.states("box")[-4:] == ["exit-process"] * 3 + ["exit"]
    assert {info.signal for info in backend.of("box", State.EXIT_PROCESS)} == {9}


async def test_L26_backend_that_raises_stops_nothing(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    backend.state_error = ZeroDivisionError()
    await client.create("box", spec(bundle_root, "sh", "-c", "exit 5"))
    assert (await backend.wait_for("box", State.EXIT)).exit_code == 5
    await eventually(lambda: client.containers() == ())


async def test_L31_ended_by_many_at_once_one_end(client: Client, backend: RecordingBackend, bundle_root: Path) -> None:
    for number in range(5):
        id = f"box{number}"
        await client.create(id, spec(bundle_root, "sh", "-c", "trap 'exit 0' TERM; sleep 0.0$RANDOM; exit 0"))
        await asyncio.gather(
            client.terminate(id),
            client.stop(id, grace_s=0.01),
            client.signal(id, 9),
            client.terminate(id),
            return_exceptions=True,
        )
        await backend.wait_for(id, State.EXIT)
        assert backend.states(id).count("exit") == 1


async def test_L34_terminate_ends_the_wait_for_a_restart(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, "false"), WithRestartPolicy(RestartPolicy(name="always")))
    await backend.wait_for("box", State.RESTART, 4)
    await asyncio.wait_for(client.terminate("box"), 60)
    end = await backend.wait_for("box", State.EXIT)
    assert end.exit_code == 1
    assert client.containers() == ()


async def test_L36_run_that_can_not_be_made_again_is_given_up_and_told(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    policy = WithRestartPolicy(RestartPolicy(name="on-failure", max_retries=2))
    await client.create("box", spec(bundle_root, "sh", "-c", "rm /bin/sh; exit 3"), policy)
    end = await asyncio.wait_for(backend.wait_for("box", State.EXIT), 60)
    assert end.not_started
    assert backend.states("box") == ["start", "restart", "exit"]


async def test_L37_exec_of_an_earlier_run_is_not_in_the_next(
    client: Client, backend: RecordingBackend, bundle_root: Path
) -> None:
    await client.create("box", spec(bundle_root, *SLEEP), WithRestartPolicy(RestartPolicy(name="always")))
    pid = await client.add_process("box", "one", process(*SLEEP))
    os.kill(backend.of("box", State.START)[0].pid, signal.SIGKILL)
    await backend.wait_for("box", State.START, 2)
    assert not process_is_there(pid)
    with pytest.raises(NotFound):
        await client.signal_process("box", "one", 9)
    await client.add_process("box", "one", process("true"))


@pytest.mark.parametrize("option", [HyperVIsolation(sandbox_path="C:\\x"), Servicing()])
async def test_L40_option_that_the_runtime_can_not_honour_is_refused(
    client: Client, backend: RecordingBackend, bundle_root: Path, option: CreateOption
) -> None:
    with pytest.raises(NotSupported, match=type(option).__name__):
        await client.create("box", spec(bundle_root, *SLEEP), option)
    assert (client.containers(), backend.events, backend.attached) == ((), [], [])


async def test_client_left_ends_no_container(real_runtime: str, root: Path, bundle_root: Path) -> None:
    backend = RecordingBackend()
    async with open_runtime(root, name=real_runtime) as runtime:
        async with Client(runtime, backend) as client:
            await client.create("box", spec(bundle_root, *SLEEP))
        pid = backend.of("box", State.START)[0].pid
        assert process_is_there(pid)
        assert await runtime.list() == ["box"]
    await backend.discard()
    assert process_is_there(pid)


async def test_cancelled_while_it_connects_it_leaves_no_connection_and_no_lock(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, connecting, made = KeeperClient.start_or_connect, asyncio.Event(), []

    async def noted(run_dir: str, state_dir: str) -> KeeperClient:
        connecting.set()
        made.append(await connect(run_dir, state_dir))
        return made[0]

    async def use() -> None:
        async with open_runtime(root):
            raise AssertionError("it was cancelled")

    monkeypatch.setattr(KeeperClient, "start_or_connect", noted)
    using = asyncio.ensure_future(use())
    await connecting.wait()
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    (client,) = made
    assert client.is_lost
    monkeypatch.undo()
    async with open_runtime(root) as runtime:
        assert await runtime.list() == []
