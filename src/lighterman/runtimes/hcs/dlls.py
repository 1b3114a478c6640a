"""The DLLs behind a runtime, each with the function that frees its strings. Loads ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lighterman.clock import Clock
from lighterman.runtimes.hcs import computecore, layer_calls, vmcompute
from lighterman.runtimes.hcs.binding import Binding
from lighterman.runtimes.hcs.choices import COMPUTECORE_FREE
from lighterman.runtimes.hcs.computecore import ComputecoreBinding
from lighterman.runtimes.hcs.host import HostFacts
from lighterman.runtimes.hcs.layer_calls import LayerCalls
from lighterman.runtimes.hcs.layers import LayerStore
from lighterman.runtimes.hcs.native import Library, in_system_directory
from lighterman.runtimes.hcs.runtime import OWNER, HcsRuntime
from lighterman.runtimes.hcs.std import StdPipes
from lighterman.runtimes.hcs.threads import CallThreads
from lighterman.runtimes.hcs.vmcompute import VmcomputeBinding

__all__ = ["Dlls", "free_function", "runtime_over", "system_libraries"]


@dataclass(frozen=True, slots=True)
class Dlls:
    """Loaded libraries: compute systems of one of the two, and vmcompute's layer functions."""

    compute: Library
    layers: Library


def free_function(dll: ctypes.CDLL, name: str) -> Callable[[int], object]:
    """The function of `dll` that takes the address of a string and frees it."""
    function = dll[name]
    function.argtypes = [ctypes.c_void_p]
    function.restype = None
    return function


def system_libraries(binding: Literal["vmcompute", "computecore"]) -> Dlls:
    """Those of Windows. Raises: RuntimeUnavailable."""
    dll = in_system_directory("vmcompute.dll")
    free = free_function(in_system_directory("ole32.dll"), "CoTaskMemFree")
    layers = Library(dll, free, layer_calls.FUNCTIONS)
    if binding == "vmcompute":
        return Dlls(Library(dll, free, vmcompute.FUNCTIONS), layers)
    owner = "kernel32.dll" if COMPUTECORE_FREE == "LocalFree" else "ole32.dll"
    free = free_function(in_system_directory(owner), COMPUTECORE_FREE)
    return Dlls(Library(in_system_directory("computecore.dll"), free, computecore.FUNCTIONS), layers)


def runtime_over(
    dlls: Dlls,
    binding: Literal["vmcompute", "computecore"],
    *,
    std: StdPipes,
    host: HostFacts,
    clock: Clock,
    owner: str = OWNER,
    hyper_v: bool = False,
    pending_updates: bool = False,
) -> HcsRuntime:
    """Put the parts together."""
    threads = CallThreads("hcs")
    kind: type[VmcomputeBinding] | type[ComputecoreBinding] = (
        ComputecoreBinding if binding == "computecore" else VmcomputeBinding
    )
    made: Binding = kind(dlls.compute, threads, clock, std.close)
    return HcsRuntime(
        made,
        LayerStore(LayerCalls(dlls.layers), threads, clock),
        std,
        host,
        threads,
        owner=owner,
        hyper_v=hyper_v,
        pending_updates=pending_updates,
        clock=clock,
    )
