"""What was asked and done in a round: with it the engine's word is judged."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Box", "Ledger", "Violation"]


@dataclass(frozen=True)
class Violation:
    """One broken promise, with what is needed to see it again."""

    seed: int
    round: int
    text: str

    def __str__(self) -> str:
        return f"seed {self.seed}, round {self.round}: {self.text}"


@dataclass
class Box:
    """One container.

    Attributes:
        created: whether its making was answered. remove_asked: whether anybody has begun to remove it.
        removed: whether that was answered.
        may_be_killed: whether anybody has sent it a signal that ends it.
        starting: starts that are under way; a counter of all that were asked for.
        stopped: the generation that a stop has ended, unless a start was asked for since.
        waits: exit records that `wait` has answered.
    """

    name: str
    slot: int
    kind: str
    code: int
    policy: str
    lease: str | None
    id: str | None = None
    created: bool = False
    remove_asked: bool = False
    removed: bool = False
    may_be_killed: bool = False
    starting: int = 0
    starts: int = 0
    stopped: int | None = None
    waits: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Ledger:
    """One round."""

    boxes: dict[str, Box] = field(default_factory=dict)
    faults: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    keeper_ends: list[float] = field(default_factory=list)
    engine_ends: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unknowns: int = 0
    runs: int = 0
    lines: int = 0
    exits: int = 0

    def violation(self, text: str) -> None:
        self.problems.append(text)

    def keeper_ended(self) -> None:
        self.keeper_ends.append(time.time())

    def engine_ended(self) -> None:
        self.engine_ends.append(time.time())

    def lost_keeper(self, began: float, ended: float) -> bool:
        """Whether a keeper was killed in that time."""
        return any(began - 1 <= at <= ended + 1 for at in self.keeper_ends)

    def lost_both(self, began: float, ended: float) -> bool:
        """Whether a keeper was killed in that time, and an engine died or began after it."""
        first = min((at for at in self.keeper_ends if began - 1 <= at <= ended + 1), default=None)
        return first is not None and any(first - 2 <= at <= ended + 3 for at in self.engine_ends)
