"""What was measured: rows, goals, what did not take part; as a value that JSON and the tables are made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.interleave import Contender
from bench.numbers import Samples, ratio

__all__ = ["Goal", "Report", "Row"]


@dataclass(frozen=True)
class Row:
    """One measured thing.

    Attributes:
        p95: of a rate it is the 5th percentile: what is worse than all but the worst twentieth.
        ratio: to the row named `against` of the same section.
    """

    section: str
    name: str
    unit: str
    median: float
    p95: float | None = None
    best: float | None = None
    count: int = 1
    against: str | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Goal:
    """`reached` is None where a part of it could not be measured."""

    name: str
    limit: float
    at_least: bool = False
    unit: str = ""
    reached: float | None = None

    @property
    def met(self) -> bool | None:
        if self.reached is None:
            return None
        return self.reached >= self.limit if self.at_least else self.reached <= self.limit


@dataclass
class Report:
    """Filled in by the suites."""

    facts: dict[str, str] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)
    isolation: dict[str, dict[str, str]] = field(default_factory=dict)

    def row(
        self,
        section: str,
        name: str,
        samples: Samples,
        *,
        unit: str = "ms",
        scale: float = 1e3,
        against: str = "",
        rate: bool = False,
    ) -> None:
        """Add a row; `scale` is from the samples' unit to the shown one. rate: more is better."""
        base = self.median(section, against) if against else None
        median = samples.median * scale
        self.rows.append(
            Row(
                section=section,
                name=name,
                unit=unit,
                median=median,
                p95=(samples.p5 if rate else samples.p95) * scale if len(samples) > 1 else None,
                best=(samples.highest if rate else samples.lowest) * scale,
                count=len(samples),
                against=against if base is not None else None,
                ratio=ratio(median, base),
            )
        )

    def contenders(self, section: str, contenders: Sequence[Contender], *, against: str = "") -> None:
        """A row for each that was not given up; the peer to compare with first, as ratios need it."""
        for contender in sorted(contenders, key=lambda one: one.name != against):
            samples = contender.samples
            if samples is None:
                self.absent[f"{section}: {contender.name}"] = contender.failed or "not measured"
            else:
                self.row(section, contender.name, samples, against="" if contender.name == against else against)

    def median(self, section: str, name: str) -> float | None:
        """Of a row, in its unit; None where there is none."""
        return next((row.median for row in self.rows if (row.section, row.name) == (section, name)), None)

    def goal(self, name: str, reached: float | None, limit: float, *, at_least: bool = False, unit: str = "") -> None:
        """Add a goal with what was reached."""
        self.goals.append(Goal(name=name, limit=limit, at_least=at_least, unit=unit, reached=reached))

    def as_json(self) -> dict[str, Any]:
        """Everything, for msgspec.json.encode."""
        return {
            "facts": self.facts,
            "rows": self.rows,
            "goals": [
                {
                    "name": goal.name,
                    "goal": goal.limit,
                    "at_least": goal.at_least,
                    "unit": goal.unit,
                    "reached": goal.reached,
                    "met": goal.met,
                }
                for goal in self.goals
            ],
            "absent": self.absent,
            "isolation": self.isolation,
        }
