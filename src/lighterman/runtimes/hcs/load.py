"""Finds the service on this host and makes the runtime; each thing that may be missing has its line."""

from __future__ import annotations

import struct
import sys
from typing import Literal

from lighterman.clock import Clock, SystemClock
from lighterman.errors import LightermanError, RuntimeFailed, RuntimeUnavailable
from lighterman.runtimes.hcs.codes import Meaning, meaning_of
from lighterman.runtimes.hcs.failures import code_behind
from lighterman.runtimes.hcs.host import FIRST_BUILD, FIRST_BUILD_COMPUTECORE, HostFacts
from lighterman.runtimes.hcs.runtime import OWNER, HcsRuntime
from lighterman.runtimes.hcs.std import StdPipes

__all__ = ["BindingName", "load_runtime"]

BindingName = Literal["vmcompute", "computecore"]


async def load_runtime(
    binding: BindingName = "vmcompute",
    *,
    owner: str = OWNER,
    hyper_v: bool = False,
    pending_updates: bool = False,
    clock: Clock | None = None,
    host: HostFacts | None = None,
) -> HcsRuntime:
    """The runtime of this Windows.

    Raises: RuntimeUnavailable with one line: not Windows, a 32-bit program, too old a build, a feature that is not
        installed, the service not running, not an administrator, a schema that the service does not know.
    """
    if struct.calcsize("P") != 8:
        raise _unavailable("the Host Compute Service needs a 64-bit Python")
    if sys.platform == "win32":
        from lighterman.runtimes.hcs.std_windows import WindowsStdPipes

        facts = host or HostFacts.of_this_host()
        check_build(facts, binding)
        runtime = _made(binding, WindowsStdPipes(), owner, hyper_v, pending_updates, clock, facts)
        return await checked(runtime, binding)
    raise _unavailable(f"the Host Compute Service is a part of Windows, this is {sys.platform}")


def check_build(host: HostFacts, binding: BindingName) -> None:
    """Raises: RuntimeUnavailable for a Windows that is too old."""
    needed = FIRST_BUILD_COMPUTECORE if binding == "computecore" else FIRST_BUILD
    if host.build < needed:
        raise _unavailable(f"Windows build {host.build} is too old: {binding}.dll needs {needed}")


async def checked(runtime: HcsRuntime, binding: BindingName) -> HcsRuntime:
    """Ask the service something, so that what is wrong is said now. Raises: RuntimeUnavailable."""
    try:
        await runtime.list()
    except LightermanError as failed:
        await runtime.close()
        meaning = meaning_of(code_behind(failed) or 0)
        if meaning is Meaning.ACCESS_DENIED:
            raise _unavailable(
                "not allowed to use the Host Compute Service: run as administrator, "
                "or as a member of Hyper-V Administrators"
            ) from failed
        if meaning is Meaning.SERVICE_LOST:
            raise _unavailable("the Host Compute Service does not run: `sc start vmcompute`") from failed
        raise _unavailable(f"the Host Compute Service does not answer: {failed}") from failed
    try:
        await runtime.check_schema()
    except RuntimeFailed:
        await runtime.close()
        raise
    return runtime


def _made(
    binding: BindingName,
    std: StdPipes,
    owner: str,
    hyper_v: bool,
    pending_updates: bool,
    clock: Clock | None,
    host: HostFacts,
) -> HcsRuntime:
    # ctypes is loaded only when a DLL is.
    from lighterman.runtimes.hcs.dlls import runtime_over, system_libraries

    return runtime_over(
        system_libraries(binding),
        binding,
        std=std,
        host=host,
        owner=owner,
        hyper_v=hyper_v,
        pending_updates=pending_updates,
        clock=clock or SystemClock(),
    )


def _unavailable(text: str) -> RuntimeUnavailable:
    return RuntimeUnavailable(text, runtime="hcs", operation="load")
