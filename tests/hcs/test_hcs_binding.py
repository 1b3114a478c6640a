"""The bindings themselves: sizes, text, ownership, threads, the interpreter's end."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from hcs.double_control import Built
from hcs.world import HcsWorld
from lighterman.errors import InvalidSpec, NotSupported, RuntimeUnavailable
from lighterman.runtimes.hcs import callbacks, computecore, layer_calls, native, vmcompute
from lighterman.runtimes.hcs.codes import code_of, is_failure, is_pending
from lighterman.runtimes.hcs.native import Library, load_dll
from lighterman.runtimes.hcs.text import read_wide, wide
from lighterman.runtimes.hcs.threads import CallThreads

SRC = Path(__file__).parents[2] / "src"


@pytest.mark.parametrize(
    ("kind", "size", "offsets"),
    [
        (native.ProcessInformation, 32, {"StdInput": 8, "StdOutput": 16, "StdError": 24}),
        (layer_calls.LayerDescriptor, 32, {"Flags": 16, "Path": 24}),
        (layer_calls.DriverInfo, 16, {"HomeDir": 8}),
        (native.Guid, 16, {"Data4": 8}),
        (callbacks.HcsEvent, 24, {"EventData": 8, "Operation": 16}),
    ],
)
def test_layouts(kind: Any, size: int, offsets: dict[str, int]) -> None:
    assert ctypes.sizeof(kind) == size
    assert {name: getattr(kind, name).offset for name in offsets} == offsets


@pytest.mark.parametrize("text", ["", "abc", "ä€", "😀 beyond the BMP", "\ud800 lone surrogate", "x" * 100_000])
def test_text_goes_both_ways(text: str) -> None:
    buffer = wide(text)
    assert read_wide(ctypes.addressof(buffer)) == text
    assert len(buffer) == len(text.encode("utf-16-le", "surrogatepass")) + 2


def test_nul_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="NUL"):
        wide("a\0b")


@pytest.mark.parametrize(
    ("hresult", "code"),
    [(0x80070490, 1168), (0xC0370103, 0xC0370103), (0x80004005, 0x80004005), (-1070137082, 0xC0370106)],
)
def test_code_of(hresult: int, code: int) -> None:
    assert is_failure(hresult)
    assert code_of(hresult) == code


def test_pending_in_both_forms() -> None:
    assert is_pending(0xC0370103)
    assert is_pending(0x80370117)
    assert not is_pending(0)
    assert not is_pending(0x00370103)


async def test_strings_are_freed_whatever_was_answered(world: HcsWorld) -> None:
    """Success with a document, failure with one, failure with none: the double's count is the test."""
    runtime = world.runtime()
    system = await runtime.create("c1", world.spec("sleep"))
    world.core.script("HcsGetComputeSystemProperties", nth=1, code="0x0", act=1, result='{"ErrorMessage":"beside"}')
    world.core.script("HcsGetComputeSystemProperties", nth=2, code="0xC0370105", act=1)
    await system.process_list()
    with pytest.raises(Exception, match="current state"):
        await system.process_list()
    await system.close()


async def test_text_beyond_the_bmp_arrives(either: HcsWorld) -> None:
    from hcs.world import all_of, end

    system, init = await either.started("env", "NAME", env={"NAME": "ä€😀"})
    if sys.platform != "win32":
        assert await all_of((await init.stdio()).stdout) == "ä€😀".encode()
    assert "\\ud83d\\ude00" in either.core.calls("HcsCreateProcess")[0][2]
    await init.wait()
    await end(system, init)


def test_missing_export_is_not_supported(built: Built) -> None:
    dll = load_dll(str(built.vmcompute))
    library = Library(dll, lambda address: None, {"HcsNotThere": native.Function(("handle",))})
    assert not library.has("HcsNotThere")
    with pytest.raises(NotSupported, match="has no HcsNotThere"):
        library.call("HcsNotThere", 0)


def test_missing_dll_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="can't be loaded"):
        load_dll(str(tmp_path / "none.dll"))


@pytest.mark.parametrize(("module", "name"), [(vmcompute, "vmcompute"), (computecore, "computecore")])
def test_every_function_is_in_the_double(module: Any, name: str, built: Built) -> None:
    library = Library(load_dll(str(getattr(built, name))), lambda address: None, module.FUNCTIONS)
    assert [function for function in module.FUNCTIONS if not library.has(function)] == []


async def test_a_handle_keeps_its_high_bits(world: HcsWorld) -> None:
    system = await world.runtime().create("c1", world.spec("sleep"))
    assert system._handle.opened.handle >> 63 == 1  # type: ignore[attr-defined]
    await system.close()


async def test_notice_for_a_closed_loop_is_dropped(world: HcsWorld) -> None:
    from lighterman.clock import SystemClock
    from lighterman.runtimes.hcs.notifications import Happening, Record

    records: list[Record] = []

    async def make() -> None:
        records.append(Record("c1", frozenset(Happening), SystemClock()))

    thread = threading.Thread(target=lambda: asyncio.run(make()))
    thread.start()
    await asyncio.to_thread(thread.join)
    records[0].deliver(Happening.STARTED, 0, None)


def test_unknown_context_is_ignored() -> None:
    function = callbacks.NOTIFICATION(callbacks.notification_address())
    function(1, 987654321, 0, None)
    event = callbacks.EVENT(callbacks.event_address())
    event(None, None)
    assert callbacks.last_failure() is None


async def test_a_call_that_hangs_holds_up_nobody() -> None:
    threads = CallThreads("test")
    hold = threading.Event()
    hung = [threads.run(hold.wait) for _ in range(40)]
    assert await threads.run(lambda: 7) == 7
    hold.set()
    await asyncio.gather(*hung)
    threads.close()


async def test_a_slow_call_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lighterman.limits.HCS_CALL_WARN_S", 0.02)
    threads = CallThreads("test")
    hold = threading.Event()
    slow = threads.run(hold.wait)
    from support import eventually

    await eventually(lambda: "has not returned" in caplog.text)
    hold.set()
    await slow
    threads.close()


LATE = """
import asyncio, ctypes, sys
from pathlib import Path
from hcs.double_control import Double
from hcs.world import HcsWorld

async def main():
    path, scratch = Path(sys.argv[1]), Path(sys.argv[2])
    double = Double(path, path.parent, scratch)
    world = HcsWorld("vmcompute", double, double, scratch)
    system, init = await world.started("sleep", "0")
    # Notices come all the time, until the process is gone.
    for ms in range(0, 400, 5):
        double.dll.double_notify_later(b"c1", ms)

asyncio.run(main())
print("end of main")
"""


def test_notices_while_the_interpreter_ends(built: Built, tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    program = f"import sys; sys.path[:0] = [{tests!r}, {str(SRC)!r}]\n" + LATE
    done = subprocess.run(
        [sys.executable, "-c", program, str(built.vmcompute), str(tmp_path)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "end of main"), done.stderr


def test_ctypes_is_loaded_only_with_a_dll() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SRC)!r}); import lighterman.runtimes.hcs, lighterman.runtimes.hcs.load; "
        "print('ctypes' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ),
    )
    assert done.stdout.strip() == "False", done.stderr


UNIX_ONLY = ("fcntl", "termios", "resource", "pwd", "grp", "tty", "pty")
PORTABLE = (
    "lighterman",
    "lighterman.supervisor.client",
    "lighterman.lifecycle.order",
    "lighterman.testing",
    "lighterman.runtimes.hcs.load",
    "lighterman.runtimes.hcs.dlls",
    "lighterman.store.sqlite",
    "lighterman.sync",
    "lighterman.engine.on_windows",
)
# They ask for the platform before they import.
GUARDED = ("lighterman.roots", "lighterman.keeper.pipes") if sys.platform != "win32" else ()


def test_unix_only_modules_are_not_imported() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(SRC)!r}); import {', '.join(PORTABLE)}; "
        "ours = {name: module for name, module in sys.modules.items() if name.startswith('lighterman')}; "
        f"print([(at, name) for at, module in ours.items() for name in {UNIX_ONLY!r} if hasattr(module, name) "
        f"and at not in {GUARDED!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ),
    )
    assert done.stdout.strip() == "[]", done.stderr
