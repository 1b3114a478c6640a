"""Builds the doubles of the DLLs, loads them, and tells them what to do wrong."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parent / "double"
PREBUILT = "LIGHTERMAN_HCS_DOUBLE"  # a directory with the libraries and the program, as under Wine

_SHARED = ("core.c", "json.c", "model.c", "none.c")
_PARTS = {
    "vmcompute": (("vmcompute.c", "layers.c"), "-DWITHOUT_OPERATIONS"),
    "computecore": (("computecore.c",), "-DWITHOUT_LAYERS"),
}


@dataclass(frozen=True)
class Built:
    """Where the libraries are, and the directory of the program that compute processes run."""

    vmcompute: Path
    computecore: Path
    programs: Path


def build(directory: Path, *, compiler: str = "gcc", windows: bool = False) -> Built:
    """Compile everything into `directory`."""
    flags = ["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g"]
    child, suffix, exe = ("child_windows.c", ".dll", ".exe") if windows else ("child_posix.c", ".so", "")
    shared = ["-shared", "-static"] if windows else ["-shared", "-fPIC", "-fvisibility=hidden"]
    for name, (parts, define) in _PARTS.items():
        files = [str(SOURCES / file) for file in (*_SHARED, child, *parts)]
        output = str(directory / f"double-{name}{suffix}")
        subprocess.run([compiler, *flags, *shared, define, "-o", output, *files, "-lpthread"], check=True)
    static = ["-static"] if windows else []
    program = ["-o", str(directory / f"prog{exe}"), str(SOURCES / "prog.c")]
    subprocess.run([compiler, *flags, *static, *program], check=True)
    return built_in(directory, windows=windows)


def built_in(directory: Path, *, windows: bool = sys.platform == "win32") -> Built:
    """What `build` has made."""
    suffix = ".dll" if windows else ".so"
    return Built(directory / f"double-vmcompute{suffix}", directory / f"double-computecore{suffix}", directory)


class Double:
    """One loaded double. `scratch` is for what its programs need."""

    def __init__(self, path: Path, programs: Path, scratch: Path) -> None:
        self._path = path
        self.dll: ctypes.CDLL
        if sys.platform == "win32":
            self.dll = ctypes.WinDLL(str(path))
        else:
            self.dll = ctypes.CDLL(str(path))
        self._programs = programs
        self._scratch = scratch
        self.dll.double_notify.argtypes = [
            ctypes.c_char_p,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_uint32,
            ctypes.c_char_p,
        ]

    def made_of(self) -> tuple[str, str, str]:
        """For another process's: its arguments."""
        return str(self._path), str(self._programs), str(self._scratch)

    def begin(self) -> None:
        """For a new test."""
        self.dll.double_reset()
        self.set("programs", str(self._programs))
        self.set("console_directory", str(self._scratch))

    # ---- what goes wrong ----

    def script(self, function: str, **keys: Any) -> None:
        """The calls of `function` misbehave: code, nth, times, act, delay_ms, hang, completion, completion_ms, status,
        result, out."""
        words = [f"{key}={value}" for key, value in keys.items()]
        assert not any(" " in word for word in words), words
        assert self.dll.double_script(" ".join([function, *words]).encode())

    def release(self, function: str) -> None:
        """Let the calls go on that `hang=1` holds."""
        self.dll.double_release(function.encode())

    def set(self, name: str, value: object) -> None:
        """An option: updates_pending, inside_register, no_exit_data, no_process_exit, last_wait, shutdown_ms,
        servicing_never_ends, exit_before_create_returns_ms."""
        self.dll.double_set(name.encode(), str(value).encode())

    def notify(self, id: str, kind: int, *, pid: int = 0, status: int = 0, data: str | None = None) -> None:
        """A notification out of the blue."""
        assert self.dll.double_notify(id.encode(), pid, kind, status, data.encode() if data is not None else None)

    def settle(self) -> None:
        """computecore only: the operations that were never to end do so, as failures."""
        self.dll.double_settle()

    def crash(self, id: str) -> None:
        """The utility VM, or the silo, dies."""
        assert self.dll.double_crash(id.encode())

    def left_over(self, id: str, owner: str, *, template: bool = False, image_path: str = "") -> None:
        """A compute system of an earlier engine."""
        self.dll.double_left_over(id.encode(), owner.encode(), int(template), image_path.encode())

    # ---- what happened ----

    def calls(self, function: str | None = None) -> list[tuple[str, str, str]]:
        """(function, first argument, second), in order."""
        lines = [line.split("\t", 2) for line in self._text("double_calls").splitlines()]
        return [(one, two, three) for one, two, three in lines if function in (None, one)]

    def functions(self) -> list[str]:
        """The names of the calls, in order."""
        return [name for name, _, _ in self.calls()]

    def console(self, id: str, pid: int) -> tuple[int, int]:
        """(height, width)."""
        both = self.dll.double_console(id.encode(), pid)
        return both >> 16, both & 0xFFFF

    def leaks(self) -> str:
        """What was not given back, a line each."""
        return self._text("double_leaks")

    def complaints(self) -> str:
        """What was done wrong, a line each."""
        return self._text("double_complaints")

    def unused(self) -> str:
        """Faults that no call met."""
        return self._text("double_unused")

    def attached_layers(self) -> str:
        """Layers whose disk is still attached."""
        return self._text("double_layers")

    def _text(self, function: str) -> str:
        ask = getattr(self.dll, function)
        size = ask(None, 0) + 4096
        buffer = ctypes.create_string_buffer(size)
        ask(buffer, size)
        return buffer.value.decode(errors="replace")


def prebuilt() -> Built | None:
    """From the environment."""
    directory = os.environ.get(PREBUILT)
    return built_in(Path(directory)) if directory else None
