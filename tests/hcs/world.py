"""A runtime over the doubles, and what must hold at the end of every test."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hcs.double_control import Double
from lighterman.clock import Clock, SystemClock
from lighterman.errors import AlreadyStopped, LightermanError, OperationPending
from lighterman.runtimes.base import CreateOption, ReadPipe
from lighterman.runtimes.hcs import HcsRuntime, HostFacts, callbacks, computecore, layer_calls, vmcompute
from lighterman.runtimes.hcs.dlls import Dlls, free_function, runtime_over
from lighterman.runtimes.hcs.native import Library
from lighterman.runtimes.hcs.process import HcsProcess
from lighterman.runtimes.hcs.std import StdPipes
from lighterman.runtimes.hcs.system import HcsSystem
from lighterman.spec import ConsoleSize, ProcessConfig, Spec
from support import eventually

VOLUME = "\\\\?\\Volume{8b1d9d0e-35d6-4a0c-9f7d-0a4a55c1e7aa}"
BASE = "D:\\store\\base-layer"
WRITABLE = "D:\\store\\c1"
Name = Literal["vmcompute", "computecore"]


def std_pipes() -> StdPipes:
    if sys.platform == "win32":
        from lighterman.runtimes.hcs.std_windows import WindowsStdPipes

        return WindowsStdPipes()
    from hcs.std_posix import PosixStdPipes

    return PosixStdPipes()


def process(*args: str, **kwargs: Any) -> ProcessConfig:
    return ProcessConfig(args=("prog", *args), **kwargs)


def document(**sections: Any) -> bytes:
    """An OCI document of a process-isolated container; `windows` and others replace or add sections."""
    windows = {"layerFolders": [BASE, WRITABLE]} | sections.pop("windows", {})
    return json.dumps({"root": {"path": f"{VOLUME}\\"}, "windows": windows} | sections).encode()


class HcsWorld:
    """Attributes: core is the double that compute systems live in; layers the one with the layer functions."""

    def __init__(self, name: Name, vmcompute_double: Double, computecore_double: Double, scratch: Path) -> None:
        self.name: Name = name
        self.layers = vmcompute_double
        self.core = vmcompute_double if name == "vmcompute" else computecore_double
        self.scratch = scratch
        self.leaves_something = False
        self._runtimes: list[HcsRuntime] = []
        for double in {self.layers, self.core}:
            double.begin()

    def runtime(
        self,
        *,
        build: int = 20348,
        processors: int = 4,
        clock: Clock | None = None,
        hyper_v: bool = False,
        pending_updates: bool = False,
        owner: str = "lighterman",
    ) -> HcsRuntime:
        cotask = free_function(self.layers.dll, "double_CoTaskMemFree")
        free = cotask if self.name == "vmcompute" else free_function(self.core.dll, "double_LocalFree")
        functions = vmcompute.FUNCTIONS if self.name == "vmcompute" else computecore.FUNCTIONS
        made = runtime_over(
            Dlls(
                Library(self.core.dll, free, functions),
                Library(self.layers.dll, cotask, layer_calls.FUNCTIONS),
            ),
            self.name,
            std=std_pipes(),
            host=HostFacts(build=build, processors=processors),
            clock=clock or SystemClock(),
            owner=owner,
            hyper_v=hyper_v,
            pending_updates=pending_updates,
        )
        self._runtimes.append(made)
        return made

    def spec(self, *args: str, hyper_v: bool = False, os_build: int | None = None, **kwargs: Any) -> Spec:
        """A container that runs the program; under Hyper-V its utility VM is a folder that exists."""
        size = kwargs.pop("size", None)
        if size:
            kwargs["console_size"] = ConsoleSize(height=size[0], width=size[1])
        return Spec(
            process=process(*args, **kwargs),
            document=self.hyper_v_document() if hyper_v else document(),
            os_build=os_build,
        )

    def layer_folders(self) -> list[str]:
        """Two read-only layers, of which the base has a utility VM, and the writable one."""
        for name in ("top", "base", "writable"):
            (self.scratch / name).mkdir(exist_ok=True)
        (self.scratch / "base" / "UtilityVM").mkdir(exist_ok=True)
        return [str(self.scratch / name) for name in ("top", "base", "writable")]

    def hyper_v_document(self, **sections: Any) -> bytes:
        windows = {"layerFolders": self.layer_folders(), "hyperv": {}} | sections.pop("windows", {})
        return json.dumps({"windows": windows} | sections).encode()

    async def started(
        self,
        *args: str,
        id: str = "c1",
        runtime: HcsRuntime | None = None,
        options: Sequence[CreateOption] = (),
        **kwargs: Any,
    ) -> tuple[HcsSystem, HcsProcess]:
        """A container whose init process runs the program."""
        spec = self.spec(*args, **kwargs)
        system = await (runtime or self.runtime()).create(id, spec, options)
        await system.start()
        return system, await system.create_process(spec.process)

    async def finish(self) -> None:
        """Nothing may be left, done wrong, or planned and not met."""
        for runtime in self._runtimes:
            await runtime.close()
        for double in {self.layers, self.core}:
            if not self.leaves_something:
                await eventually(partial(_gave_all_back, double))
            if not self.leaves_something:
                assert double.leaks() == ""
            assert double.complaints() == ""
            assert double.unused() == ""
        assert self.layers.attached_layers() == ""
        assert callbacks.last_failure() is None

    def discard(self) -> None:
        """The test is over."""
        for double in {self.layers, self.core}:
            double.dll.double_reset()


def _gave_all_back(double: Double) -> bool:
    return not double.leaks()


async def all_of(pipe: ReadPipe | None) -> bytes:
    assert pipe is not None
    got = b""
    while data := await pipe.read(65536):
        got += data
    return got


async def end(system: HcsSystem, *processes: HcsProcess) -> None:
    """As the lifecycle does."""
    with contextlib.suppress(OperationPending, AlreadyStopped):
        await system.terminate()
    try:
        await system.wait()
    except LightermanError as failed:
        print(f"waiting for {system.id}: {failed!r}")
    for each in processes:
        await each.close()
    await system.close()
