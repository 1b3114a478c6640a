"""What is to go wrong, and when: a declarative plan that the fake runtime follows."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lighterman.errors import InvalidSpec

__all__ = ["Fault", "FaultPlan", "Operation"]

Operation = Literal[
    "create",
    "open",
    "list",
    "version",
    "start",
    "create_process",
    "open_process",
    "exec_ids",
    "shutdown",
    "terminate",
    "system.wait",
    "system.close",
    "pause",
    "resume",
    "statistics",
    "process_list",
    "pids",
    "oom_counters",
    "has_pending_updates",
    "update_resources",
    "checkpoint",
    "restore",
    "stdio",
    "process.wait",
    "exit_code",
    "kill",
    "resize_console",
    "close_stdin",
    "process.close",
    "process.forget",
]

Act = Callable[[], Awaitable[None] | None]


@dataclass(slots=True)
class Fault:
    """One entry of a plan; see `FaultPlan.at`."""

    operation: Operation
    error: BaseException | None = None
    hang: bool = False
    pending_s: float | None = None
    delay_s: float = 0.0
    do: Act | None = None
    after: bool = False
    nth: int | None = None
    id: str | None = None
    process: str | None = None
    calls: int = field(default=0, init=False)
    used: int = field(default=0, init=False)

    def takes(self, operation: str, id: str | None, process: str | None) -> bool:
        """Count the call if it is of this fault's kind, and say whether it is the one meant."""
        if operation != self.operation or (self.id is not None and id != self.id):
            return False
        if self.process is not None and process != self.process:
            return False
        self.calls += 1
        if self.nth is not None and self.calls != self.nth:
            return False
        self.used += 1
        return True

    async def act(self) -> None:
        """Run `do`."""
        if self.do is not None:
            result = self.do()
            if inspect.isawaitable(result):
                await result


class FaultPlan:
    """Which calls of a fake runtime fail, hang, are slow or stay pending. The first fault that fits a call is used."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []

    def at(
        self,
        operation: Operation,
        *,
        error: BaseException | None = None,
        hang: bool = False,
        pending_s: float | None = None,
        delay_s: float = 0.0,
        do: Act | None = None,
        after: bool = False,
        nth: int | None = None,
        id: str | None = None,
        process: str | None = None,
    ) -> FaultPlan:
        """Add a fault and return the plan.

        Args:
            error: raised instead of doing it.
            hang: never answer; the call ends only by being cancelled.
            pending_s: raise OperationPending, and do it that many seconds later; `math.inf` for never.
            delay_s: seconds that the call takes longer.
            do: called at that point.
            after: do the operation first, and `delay_s`, `do`, `hang` and `error` only then.
            nth: only the n-th call (from 1) of those that fit `operation`, `id` and `process`; None is every one.
            id, process: only calls about that container id, that process (`"init"` or an exec id).
        """
        if operation not in get_args(Operation):
            raise InvalidSpec(f"fault at {operation!r}: no such operation")
        if (
            not 0 <= delay_s < math.inf
            or (pending_s is not None and not pending_s >= 0)
            or (nth is not None and nth < 1)
        ):
            raise InvalidSpec(f"fault at {operation!r}: delay_s={delay_s!r}, pending_s={pending_s!r}, nth={nth!r}")
        self.faults.append(
            Fault(operation, error, hang, pending_s, delay_s, do, after, nth=nth, id=id, process=process)
        )
        return self

    def take(self, operation: str, id: str | None, process: str | None = None) -> Fault | None:
        """The fault for this call, for the fake runtime. Every fault counts the call, whether it is used or not."""
        fitting = [fault for fault in self.faults if fault.takes(operation, id, process)]
        for unneeded in fitting[1:]:
            unneeded.used -= 1
        return fitting[0] if fitting else None

    def unused(self) -> list[dict[str, Any]]:
        """Faults that no call met, so that a test can't miss its fault in silence."""
        return [
            {"operation": fault.operation, "id": fault.id, "process": fault.process, "nth": fault.nth}
            for fault in self.faults
            if not fault.used
        ]
