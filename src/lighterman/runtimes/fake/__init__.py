"""A runtime in memory, scripted per test: `runtime.py` has the ports, `platform.py` what they act on."""

from lighterman.runtimes.fake.faults import FaultPlan
from lighterman.runtimes.fake.programs import FakeProgram, ProgramContext
from lighterman.runtimes.fake.runtime import LINUX, WINDOWS, FakeRuntime, Leftovers

__all__ = ["LINUX", "WINDOWS", "FakeProgram", "FakeRuntime", "FaultPlan", "Leftovers", "ProgramContext"]
