"""For tests of what builds on Lighterman: virtual time, a runtime in memory with faults to order, a recording backend.

    async with FakeClock().autojump() as clock:
        runtime = FakeRuntime(clock, FaultPlan().at("shutdown", hang=True))
        async with Client(runtime, RecordingBackend(), clock=clock) as client:
            ...

Run it by `lighterman.testing.run`, or on any event loop of one's own.
"""

from lighterman.runtimes.fake import (
    LINUX,
    WINDOWS,
    FakeProgram,
    FakeRuntime,
    FaultPlan,
    Leftovers,
    ProgramContext,
)
from lighterman.testing.backend import RecordingBackend
from lighterman.testing.clock import FakeClock, FakeLoop, run
from lighterman.testing.conformance import CHECKS, ConformanceError, Subject, check_runtime

__all__ = [
    "CHECKS",
    "LINUX",
    "WINDOWS",
    "ConformanceError",
    "FakeClock",
    "FakeLoop",
    "FakeProgram",
    "FakeRuntime",
    "FaultPlan",
    "Leftovers",
    "ProgramContext",
    "RecordingBackend",
    "Subject",
    "check_runtime",
    "run",
]
